#include "worker/model_config/adapter_plan.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "worker/model_config/adapter_folder.h"

namespace longspan::trainer {
namespace {

using Names = std::vector<std::string>;

bool Holds(const Names& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

std::string LastName(const std::string& name) { return name.substr(name.rfind('.') + 1); }

// The last names of a model's linear layers, each once, in the order of the model.
Names LastNames(const Names& linear_names) {
  Names last_names;
  for (const std::string& name : linear_names) {
    if (!Holds(last_names, LastName(name))) last_names.push_back(LastName(name));
  }
  return last_names;
}

Names InModelOrder(const Names& targets, const Names& known) {
  Names ordered;
  for (const std::string& module : known) {
    if (Holds(targets, module)) ordered.push_back(module);
  }
  return ordered;
}

Names TargetsOfJob(const jobfile::MethodSection& method, const AdaptableModel& model) {
  const Names known = LastNames(model.linear_names);
  for (const std::string& target : method.targets) {
    if (!Holds(known, target)) {
      throw SpecError(fmt::format("method.targets: \"{}\" matches no linear layer of the model; known are {}", target,
                                  fmt::join(known, ", ")));
    }
  }
  return InModelOrder(method.targets.empty() ? model.default_targets : method.targets, known);
}

Names TargetsOfFolder(const AdapterFolder& adapter, const Names& known) {
  for (const std::string& target : adapter.targets) {
    if (!Holds(known, target)) {
      throw UserError(fmt::format("cannot use {}: target module \"{}\" is not one of {}", adapter.config_path, target,
                                  fmt::join(known, ", ")));
    }
  }
  return InModelOrder(adapter.targets, known);
}

// Whole names of the modules that carry LoRA.
Names AdaptedNames(const AdapterPlan& plan, const AdaptableModel& model) {
  Names names;
  for (const std::string& name : model.linear_names) {
    if (plan.Targets(LastName(name))) names.push_back(name);
  }
  return names;
}

template <class T>
void CheckKeysMatch(const char* key, const ModulePattern<T>& pattern, const Names& adapted) {
  for (const auto& [end, value] : pattern) {
    const bool matches =
        std::any_of(adapted.begin(), adapted.end(), [&](const auto& name) { return MatchesModule(end, name); });
    if (!matches) {
      throw SpecError(fmt::format("{}: \"{}\" is the end of no module with LoRA; such are {} and so on", key, end,
                                  adapted.empty() ? "none" : adapted.front()));
    }
  }
}

void FillFromJob(const jobfile::MethodSection& method, const AdaptableModel& model, AdapterPlan* plan) {
  plan->rank = method.rank.value_or(8);
  plan->alpha = method.alpha.value_or(16);
  plan->rslora = method.rslora.value_or(false);
  plan->rank_pattern = LongestFirst(method.rank_pattern);
  plan->alpha_pattern = LongestFirst(method.alpha_pattern);
  plan->targets = TargetsOfJob(method, model);
}

[[noreturn]] void Disagree(const std::string& key, const std::string& ours, const std::string& theirs,
                           const AdapterFolder& adapter) {
  throw SpecError(fmt::format("method.{}: {} disagrees with {} of {}; leave it out to take the adapter's", key, ours,
                              theirs, adapter.config_path));
}

// What the job says beside an adapter folder must say the same. `plan` is the folder's.
void CheckAgreement(const jobfile::MethodSection& method, const AdapterPlan& plan, const AdaptableModel& model,
                    const AdapterFolder& adapter) {
  if (method.rank && *method.rank != plan.rank) {
    Disagree("rank", std::to_string(*method.rank), "r " + std::to_string(plan.rank), adapter);
  }
  if (method.alpha && *method.alpha != plan.alpha) {
    Disagree("alpha", fmt::format("{}", *method.alpha), fmt::format("lora_alpha {}", plan.alpha), adapter);
  }
  if (method.rslora && *method.rslora != plan.rslora) {
    Disagree("rslora", *method.rslora ? "true" : "false", fmt::format("use_rslora {}", plan.rslora), adapter);
  }
  const Names targets = TargetsOfJob(method, model);
  if (!method.targets.empty() && targets != plan.targets) {
    Disagree("targets", fmt::format("{}", fmt::join(targets, ", ")),
             fmt::format("target_modules {}", fmt::join(plan.targets, ", ")), adapter);
  }
  for (const std::string& name : AdaptedNames(plan, model)) {
    const int64_t rank = ValueOf(LongestFirst(method.rank_pattern), name, plan.rank);
    if (!method.rank_pattern.empty() && rank != plan.RankOf(name)) {
      Disagree("rank_pattern", fmt::format("rank {} of {}", rank, name), fmt::format("the rank {}", plan.RankOf(name)),
               adapter);
    }
    const double alpha = ValueOf(LongestFirst(method.alpha_pattern), name, plan.alpha);
    if (!method.alpha_pattern.empty() && alpha != plan.AlphaOf(name)) {
      Disagree("alpha_pattern", fmt::format("alpha {} of {}", alpha, name),
               fmt::format("the alpha {}", plan.AlphaOf(name)), adapter);
    }
  }
}

void FillFromFolder(const jobfile::MethodSection& method, const AdaptableModel& model, AdapterPlan* plan) {
  AdapterFolder adapter = ReadAdapterFolder(method.adapter);
  plan->rank = adapter.rank;
  plan->alpha = adapter.alpha;
  plan->rslora = adapter.rslora;
  plan->rank_pattern = adapter.rank_pattern;
  plan->alpha_pattern = adapter.alpha_pattern;
  plan->targets = TargetsOfFolder(adapter, LastNames(model.linear_names));
  CheckAgreement(method, *plan, model, adapter);
}

void FillSwitches(const jobfile::MethodSection& method, bool norms_and_embedding, bool tied, AdapterPlan* plan) {
  plan->trains_norms = method.train_norms.value_or(norms_and_embedding);
  plan->trains_embedding = method.train_embeddings.value_or(norms_and_embedding);
  plan->trains_head = method.train_head.value_or(tied ? plan->trains_embedding : plan->trains_base);
  if (tied && plan->trains_head != plan->trains_embedding) {
    throw SpecError(fmt::format(
        "method.train_head: {}, but the embedding, which is the same tensor in this model, {}; give train_head and "
        "train_embeddings the same value",
        plan->trains_head, plan->trains_embedding ? "trains" : "does not train"));
  }
}

// Products in 8 bits want sizes in multiples of this many bytes.
constexpr int64_t kFp8Multiple = 16;

void CheckFp8Sizes(const AdaptableModel& model) {
  for (size_t i = 0; i < model.linear_sizes.size(); ++i) {
    const auto [outputs, inputs] = model.linear_sizes[i];
    if (outputs % kFp8Multiple == 0 && inputs % kFp8Multiple == 0) continue;
    throw SpecError(
        fmt::format("training.fp8: {} has {} inputs and {} outputs, and products in 8 bits want multiples of {}; leave "
                    "it out for this model",
                    model.linear_names[i], inputs, outputs, kFp8Multiple));
  }
}

}  // namespace

bool AdapterPlan::Targets(const std::string& module) const { return has_lora && Holds(targets, module); }

double AdapterPlan::ScaleOf(const std::string& name) const {
  const auto r = static_cast<double>(RankOf(name));
  return AlphaOf(name) / (rslora ? std::sqrt(r) : r);
}

AdapterPlan ResolveAdapterPlan(const jobfile::JobSpec& spec, const AdaptableModel& model) {
  const jobfile::MethodSection& method = spec.method;
  AdapterPlan plan;
  bool norms_and_embedding = true;
  switch (method.kind) {
    case jobfile::MethodKind::kFull:
      if (!method.adapter.empty()) throw SpecError("method.adapter: method full has no adapter to start from");
      plan.trains_base = true;
      break;
    case jobfile::MethodKind::kLora:
    case jobfile::MethodKind::kQlora:
      norms_and_embedding = false;
      break;
    case jobfile::MethodKind::kLongLora:
    case jobfile::MethodKind::kQlongLora:
      break;
  }
  plan.quantized = IsQuantized(method.kind);
  plan.fp8 = spec.training.fp8;
  if (plan.fp8 && (plan.trains_base || plan.quantized)) {
    throw SpecError("training.fp8: goes with methods lora and longlora, whose base is frozen and not in 4 bits");
  }
  if (plan.fp8) CheckFp8Sizes(model);
  FillSwitches(method, norms_and_embedding, model.tied_embeddings, &plan);
  if (plan.trains_base) return plan;
  plan.has_lora = true;
  plan.dropout = method.dropout;
  if (method.adapter.empty()) {
    FillFromJob(method, model, &plan);
  } else {
    FillFromFolder(method, model, &plan);
  }
  const Names adapted = AdaptedNames(plan, model);
  CheckKeysMatch("method.rank_pattern", LongestFirst(method.rank_pattern), adapted);
  CheckKeysMatch("method.alpha_pattern", LongestFirst(method.alpha_pattern), adapted);
  return plan;
}

}  // namespace longspan::trainer

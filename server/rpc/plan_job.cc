#include "server/rpc/plan_job.h"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <map>
#include <optional>
#include <stdexcept>
#include <utility>

#include "proto/support/job_spec_messages.h"
#include "server/rpc/fit_cache.h"
#include "server/rpc/grpc_error.h"
#include "server/rpc/job_paths.h"
#include "worker/model_config/adapter_plan.h"
#include "worker/model_config/model_config.h"
#include "worker/model_config/tensor_names.h"
#include "worker/planner/job_plan.h"
#include "worker/planner/plan_text.h"

namespace longspan::rpc {
namespace {

namespace fs = std::filesystem;
using planner::DeviceProfile;
using planner::PlannedJob;

constexpr size_t kSlotKindsMax = 16;
constexpr uintmax_t kConfigBytesMax = 4 << 20;

// Why a file of a model or adapter cannot be read here; empty when it can.
std::string WhyUnreadable(const fs::path& file, const std::vector<fs::path>& roots) {
  std::error_code error;
  const fs::file_status status = fs::status(file, error);
  if (error || !fs::exists(status)) return "is not there, or not to be read by it";
  if (!fs::is_regular_file(status)) return "is no file";
  if (!LiesInRoots(file, roots)) return "is a link out of the folders that it allows";
  const uintmax_t size = fs::file_size(file, error);
  if (error || size > kConfigBytesMax) return fmt::format("has more than {} bytes", kConfigBytesMax);
  return "";
}

std::vector<fs::path> ModelFiles(const jobfile::JobSpec& spec) {
  std::vector<fs::path> files = {fs::path(spec.model.path) / "config.json"};
  if (!spec.method.adapter.empty()) files.push_back(fs::path(spec.method.adapter) / "adapter_config.json");
  return files;
}

// Their contents; nothing where one of them cannot be read here.
std::optional<std::vector<std::string>> ReadModelFiles(const jobfile::JobSpec& spec,
                                                       const std::vector<fs::path>& roots) {
  std::vector<std::string> contents;
  for (const fs::path& file : ModelFiles(spec)) {
    if (!WhyUnreadable(file, roots).empty()) return std::nullopt;
    std::ifstream in(file, std::ios::binary);
    contents.emplace_back(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
    if (!in) return std::nullopt;
  }
  return contents;
}

struct Model {
  grpc::Status status;
  trainer::ModelConfig config;
  trainer::AdapterPlan adapter;
};

Model ReadModel(const jobfile::JobSpec& spec, const std::vector<fs::path>& roots) {
  for (const fs::path& file : ModelFiles(spec)) {
    const std::string why = WhyUnreadable(file, roots);
    if (why.empty()) continue;
    return {Error(grpc::StatusCode::FAILED_PRECONDITION, "MODEL_NOT_VISIBLE",
                  fmt::format("planning needs {}, and on the server's machine it {}", file.string(), why),
                  {{"path", file.string()}}),
            {},
            {}};
  }
  try {
    Model model;
    model.config = trainer::WithJobRope(trainer::ReadModelConfig(spec.model.path), spec);
    model.adapter = trainer::ResolveAdapterPlan(spec, trainer::AdaptableModelOf(model.config));
    return model;
  } catch (const std::exception& error) {
    return {InvalidFields("the job does not go with its model:", {{"spec", error.what()}}), {}, {}};
  }
}

std::string PlaceOf(const SlotMemory& slot) {
  return fmt::format("slot {} of {} ({})", slot.index, slot.worker_id, slot.device);
}

// Rates of a device that nothing is known of are another's, and the name says so.
DeviceProfile ProfileOfSlot(const SlotMemory& slot, const jobfile::JobSpec& spec) {
  if (auto known = planner::ProfileOf(slot.device, spec.resources.threads_per_slot)) return *known;
  DeviceProfile profile = *planner::ProfileOf("A100", 1);
  profile.name = fmt::format("{} in place of {}", profile.name, slot.device);
  return profile;
}

DeviceProfile ProfileOf(const v1::DeviceProfile& message) {
  DeviceProfile profile;
  profile.name = message.name().empty() ? "given" : message.name();
  profile.dtype =
      message.dtype() == v1::TrainingSpec::DTYPE_BF16 ? jobfile::TrainingDtype::kBf16 : jobfile::TrainingDtype::kFp32;
  profile.gemm_flops_per_second = message.gemm_flops_per_second();
  profile.attention_flops_per_second = message.attention_flops_per_second();
  profile.memory_bytes_per_second = message.memory_bytes_per_second();
  profile.host_copy_bytes_per_second = message.host_copy_bytes_per_second();
  profile.process_bytes = message.process_bytes();
  profile.is_host = message.is_host();
  return profile;
}

grpc::Status CheckRequest(const v1::PlanJobRequest& request) {
  std::vector<FieldViolation> violations;
  if (request.has_device_profile()) {
    const std::string wrong = planner::CheckProfile(ProfileOf(request.device_profile()));
    if (!wrong.empty()) violations.push_back({"device_profile", wrong});
  }
  if (request.has_device_bytes() && request.device_bytes() < 1) {
    violations.push_back({"device_bytes", "must be at least 1"});
  }
  if (request.has_host_bytes() && request.host_bytes() < 0) violations.push_back({"host_bytes", "must be at least 0"});
  return violations.empty() ? grpc::Status::OK : InvalidFields("the job cannot be planned:", violations);
}

struct Planned {
  PlannedJob job;
  planner::PlanResult result;
  std::string place;
};

// For one kind of slot, or for none.
Planned PlanFor(const Model& model, const jobfile::JobSpec& spec, const SlotMemory* slot,
                const std::optional<DeviceProfile>& given) {
  const DeviceProfile device = given             ? *given
                               : slot != nullptr ? ProfileOfSlot(*slot, spec)
                                                 : planner::CpuProfile(spec.resources.threads_per_slot);
  planner::MemoryLimits limits;
  if (slot != nullptr && slot->memory_bytes > 0) limits = planner::LimitsOfSlot(slot->memory_bytes, device);
  Planned planned{planner::PlannedJobOf(spec, model.config, model.adapter, device, limits), {}, ""};
  if (slot != nullptr && slot->memory_bytes > 0) planned.place = PlaceOf(*slot);
  planned.result = planner::ChoosePolicy(planned.job);
  return planned;
}

// The first kind of slot that it fits into, else the first.
Planned PlanForSlots(const Model& model, const jobfile::JobSpec& spec, const std::vector<SlotMemory>& slots,
                     const std::optional<DeviceProfile>& given) {
  if (slots.empty()) return PlanFor(model, spec, nullptr, given);
  std::optional<Planned> first;
  for (const SlotMemory& slot : slots) {
    Planned planned = PlanFor(model, spec, &slot, given);
    if (planned.result.fits) return planned;
    if (!first) first = std::move(planned);
  }
  return *std::move(first);
}

jobfile::JobSpec OfSmallestGang(const jobfile::JobSpec& spec) {
  jobfile::JobSpec smallest = spec;
  smallest.resources.slots = jobfile::GangSizes(spec).front();
  smallest.resources.slots_min.reset();
  return smallest;
}

// The plan of the whole gang; of the smallest that an elastic job may have where that one, whose ranks have most, does
// not fit.
Planned PlanForGang(const Model& model, const jobfile::JobSpec& spec, const std::vector<SlotMemory>& slots,
                    const std::optional<DeviceProfile>& given) {
  Planned planned = PlanForSlots(model, spec, slots, given);
  const jobfile::JobSpec smallest = OfSmallestGang(spec);
  if (!planned.result.fits || smallest.resources.slots == spec.resources.slots) return planned;
  Planned least = PlanForSlots(model, smallest, slots, given);
  if (least.result.fits) return planned;
  least.place = fmt::format("{}{}with {} ranks (resources.slots_min)", least.place, least.place.empty() ? "" : ", ",
                            smallest.resources.slots);
  return least;
}

// What a rank needs of each kind of slot; absent: more than any has.
std::vector<std::optional<int64_t>> NeedsOf(const Model& model, const jobfile::JobSpec& spec,
                                            const std::vector<SlotMemory>& slots) {
  std::map<std::string, std::optional<int64_t>> by_device;
  std::vector<std::optional<int64_t>> needs;
  for (const SlotMemory& slot : slots) {
    const auto [need, is_new] = by_device.try_emplace(slot.device);
    if (is_new) {
      const DeviceProfile device = ProfileOfSlot(slot, spec);
      need->second = planner::LeastSlotMemory(planner::PlannedJobOf(spec, model.config, model.adapter, device));
    }
    needs.push_back(need->second);
  }
  return needs;
}

bool Fits(const SlotMemory& slot, const std::optional<int64_t>& need) { return need && *need <= slot.memory_bytes; }

bool AnyFits(const std::vector<SlotMemory>& slots, const std::vector<std::optional<int64_t>>& needs) {
  for (size_t i = 0; i < slots.size(); ++i) {
    if (Fits(slots[i], needs[i])) return true;
  }
  return false;
}

// One number for all kinds, though the same job takes less on some devices (their dtype): the least need, raised above
// every kind that has as much and is too small, as long as a larger one is left that fits.
int64_t LeastOf(const std::vector<SlotMemory>& slots, const std::vector<std::optional<int64_t>>& needs) {
  std::optional<int64_t> least;
  int64_t largest_fitting = 0;
  std::vector<int64_t> too_small;
  for (size_t i = 0; i < slots.size(); ++i) {
    const bool fits = Fits(slots[i], needs[i]);
    if (needs[i]) least = std::min(least.value_or(*needs[i]), *needs[i]);
    if (fits) largest_fitting = std::max(largest_fitting, slots[i].memory_bytes);
    if (!fits) too_small.push_back(slots[i].memory_bytes);
  }
  if (!least) return 0;
  std::sort(too_small.begin(), too_small.end());
  for (const int64_t memory : too_small) {
    if (memory >= *least && memory < largest_fitting) least = memory + 1;
  }
  return *least;
}

v1::MemorySpec ToMessage(const planner::MemoryPolicy& policy) {
  jobfile::JobSpec spec;
  spec.memory.keep = policy.keep;
  spec.memory.checkpoint_every = policy.checkpoint_every;
  spec.memory.host_layers = policy.host_layers;
  spec.memory.tile_tokens = policy.tile_tokens;
  spec.memory.loss_tile_tokens = policy.loss_tile_tokens;
  spec.memory.tile_heads = policy.tile_heads;
  return jobfile::ToMessage(spec).memory();
}

bool IsLimited(const planner::MemoryLimits& limits) { return limits.device || limits.whole; }

void Fill(const Planned& planned, v1::PlanJobResponse* response) {
  const planner::JobPlan& plan = planned.result.plan;
  const planner::MemoryLimits& limits = planned.job.limits;
  for (const auto& [kind, bytes] : planner::DeviceKinds(plan.memory)) (*response->mutable_memory_bytes())[kind] = bytes;
  for (const auto& [kind, bytes] : planner::HostKinds(plan.memory)) {
    (*response->mutable_host_memory_bytes())[kind] = bytes;
  }
  for (size_t part = 0; part < planner::kKeptPartCount; ++part) {
    const std::string name(planner::NameOf(static_cast<planner::KeptPart>(part)));
    (*response->mutable_kept_bytes())[name] = plan.memory.kept[part] + plan.memory.kept_host[part];
  }
  response->set_step_flops(plan.model_flops);
  response->set_summary(planner::SummaryText(planned.job, planned.result, planned.place));
  response->set_device_bytes(plan.memory.device_bytes());
  response->set_device_bytes_limit(limits.device ? *limits.device : limits.whole.value_or(0));
  *response->mutable_policy() = ToMessage(plan.policy);
  response->set_policy_summary(planner::PolicyText(plan.policy, planned.job.Shape()));
  const jobfile::JobSpec& spec = planned.job.spec;
  response->set_token_flops(plan.model_flops / static_cast<double>(spec.training.global_batch) /
                            static_cast<double>(spec.context_length));
  response->set_executed_step_flops(plan.time.executed_flops);
  response->set_step_seconds(plan.time.seconds);
  response->set_tokens_per_second(plan.time.tokens_per_second);
  response->set_device_profile(planned.job.device.name);
  response->set_place(planned.place);
  response->set_trained_parameters(plan.memory.model.trained_values);
  for (const std::string& change : planned.result.would_fit) response->add_would_fit(change);
  if (!IsLimited(limits)) return;
  response->set_verdict(planned.result.fits ? v1::PlanJobResponse::VERDICT_FITS
                                            : v1::PlanJobResponse::VERDICT_DOES_NOT_FIT);
  if (const auto longest = planner::LongestContext(planned.job)) response->set_longest_context(*longest);
}

}  // namespace

std::vector<SlotMemory> SlotsToPlanFor(const std::vector<core::SlotKind>& slot_kinds) {
  std::vector<SlotMemory> kinds;
  kinds.reserve(slot_kinds.size());
  for (const core::SlotKind& kind : slot_kinds) {
    kinds.push_back({kind.worker_id.value(), kind.slot.index, kind.slot.device, kind.slot.memory_bytes});
  }
  std::stable_sort(kinds.begin(), kinds.end(), [](const SlotMemory& a, const SlotMemory& b) {
    return std::pair(a.device == "cpu", -a.memory_bytes) < std::pair(b.device == "cpu", -b.memory_bytes);
  });
  if (kinds.size() > kSlotKindsMax) kinds.resize(kSlotKindsMax);
  return kinds;
}

grpc::Status AnswerPlan(const v1::PlanJobRequest& request, const jobfile::JobSpec& spec,
                        const std::vector<fs::path>& roots, const std::vector<SlotMemory>& slots,
                        v1::PlanJobResponse* response) {
  if (spec.kind == jobfile::JobKind::kEvaluate) {
    response->set_summary("jobs of kind evaluate are not planned: they train nothing");
    return grpc::Status::OK;
  }
  if (const grpc::Status status = CheckRequest(request); !status.ok()) return status;
  const Model model = ReadModel(spec, roots);
  if (!model.status.ok()) return model.status;
  jobfile::JobSpec planned_spec = spec;
  std::vector<SlotMemory> considered = slots;
  std::optional<DeviceProfile> given;
  if (request.has_device_profile()) given = ProfileOf(request.device_profile());
  if (request.has_host_bytes()) planned_spec.memory.host_bytes = request.host_bytes();
  if (request.has_device_bytes()) {
    planned_spec.memory.device_bytes = request.device_bytes();
    // The request's memory stands for a slot of the same device.
    if (considered.size() > 1) considered.resize(1);
    for (SlotMemory& slot : considered) slot.memory_bytes = 0;
  }
  try {
    Fill(PlanForGang(model, planned_spec, considered, given), response);
  } catch (const std::overflow_error& error) {
    return InvalidFields("the job cannot be planned:", {{"spec", error.what()}});
  }
  return grpc::Status::OK;
}

FitCheck CheckFits(const jobfile::JobSpec& spec, const std::vector<fs::path>& roots,
                   const std::vector<SlotMemory>& slots, FitCache* cache) {
  const bool all_known =
      std::all_of(slots.begin(), slots.end(), [](const SlotMemory& slot) { return slot.memory_bytes > 0; });
  if (spec.kind == jobfile::JobKind::kEvaluate || slots.empty() || !all_known) return {};
  const std::optional<std::vector<std::string>> files = ReadModelFiles(spec, roots);
  if (!files) return {};  // the workers may see what this machine does not
  const std::string key = cache == nullptr ? "" : FitCache::KeyOf(spec, *files, slots);
  if (cache != nullptr) {
    if (const std::optional<int64_t> known = cache->Find(key)) return {grpc::Status::OK, *known};
  }
  const Model model = ReadModel(spec, roots);
  if (!model.status.ok()) return {};
  try {
    // The ranks of the smallest gang need most; that they fit is cheaper to know than the policy they would train with.
    const std::vector<std::optional<int64_t>> needs = NeedsOf(model, OfSmallestGang(spec), slots);
    if (AnyFits(slots, needs)) {
      const int64_t least = LeastOf(slots, needs);
      // Not when somebody has written a file in the meantime.
      if (cache != nullptr && ReadModelFiles(spec, roots) == files) cache->Put(key, least);
      return {grpc::Status::OK, least};
    }
    const Planned planned = PlanForGang(model, spec, slots, std::nullopt);
    return {Error(grpc::StatusCode::INVALID_ARGUMENT, "DOES_NOT_FIT",
                  fmt::format("the job cannot be accepted: it {}",
                              planner::SummaryText(planned.job, planned.result, planned.place)),
                  {{"device_bytes", std::to_string(planned.result.plan.memory.device_bytes())}})};
  } catch (const std::overflow_error& error) {
    return {InvalidFields("the job cannot be accepted:", {{"spec", error.what()}})};
  }
}

}  // namespace longspan::rpc

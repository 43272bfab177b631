#include "worker/trainer/evaluation.h"

#include <spdlog/spdlog.h>

#include <span>
#include <utility>

#include "worker/storage/storage.h"
#include "worker/trainer/evaluate/evaluation_report.h"
#include "worker/trainer/generate/end_tokens.h"
#include "worker/trainer/json_file.h"
#include "worker/trainer/quantized/quantized_base.h"
#include "worker/trainer/weights_of_job.h"

namespace longspan::trainer {

namespace fs = std::filesystem;

bool Evaluation::IsDone() {
  if (!speaks()) return ranks_.Get("evaluated", [this] { session_.ThrowIfStopped(); }) == "yes";
  const bool done = TellFinished();
  ranks_.Publish("evaluated", done ? "yes" : "no");
  return done;
}

bool Evaluation::TellFinished() {
  const nlohmann::json document = ReadJsonOrNull(job_.work / "evaluation.json");
  try {
    if (document.is_null() || document.at("checkpoint") != job_.checkpoint) return false;
    for (const auto& item : document.at("rows")) {
      Tell(EvaluationRowOf(item));
    }
    for (const auto& item : document.value("tasks", nlohmann::json::array())) TellTask(item);
    return true;
  } catch (const nlohmann::json::exception&) {
    return false;
  }
}

EvaluationResult Evaluation::EvaluateRows(const std::vector<std::string>& models, CausalLm& model,
                                          const Dataset& dataset) {
  EvaluationPlan plan;
  plan.models = models;
  plan.lengths = EvaluationLengths(job_.spec, model.config().original_max_position_embeddings);
  plan.protocol = job_.spec.evaluation.protocol;
  plan.tokens_max = job_.spec.evaluation.max_tokens;
  plan.step = job_.step;
  plan.sequence = &sequence_;
  plan.whole_tokens_max = jobfile::TokensPerRank(job_.spec);
  EvaluationHooks hooks;
  hooks.stop_requested = [this] { return session_.stop_requested(); };
  hooks.warning = [this](const std::string& message) {
    if (speaks()) session_.Warn(message);
  };
  hooks.row = [this](const EvaluationRow& row) {
    if (!speaks()) return;
    spdlog::info("{:>8} at {:>6} tokens: perplexity {:.4f} ({} tokens scored)", row.model, row.length, row.perplexity,
                 row.tokens);
    Tell(row);
  };
  int64_t units = 0;
  hooks.progress = [this, &units](int64_t done, int64_t total) {
    units = total;
    TellProgress(done, total);
  };
  EvaluationResult result = EvaluatePerplexity(model, dataset, ranks_, plan, hooks);
  units_before_ += units;
  return result;
}

void Evaluation::Run(CausalLm& model, const Dataset* dataset) {
  if (AsksForGeneration(job_.spec.evaluation)) {
    tokenizer_.emplace(Tokenizer::Load(job_.spec.model.path));
    tasks_ = MakeGenerationTasks(job_.spec, *tokenizer_, [this](const std::string& message) {
      if (speaks()) session_.Warn(message);
    });
  }
  std::vector<std::string> models = UntrainedModels(model.config());
  if (trains() && job_.spec.method.kind == jobfile::MethodKind::kFull && !models.empty()) {
    ModelOptions options;
    options.device = job_.device;
    options.spec = job_.spec;
    options.trains = false;
    options.sequence = &sequence_;
    Measure(models, *CausalLm::Load(options), dataset);
    models.clear();
  }
  if (trains() || !job_.spec.method.adapter.empty()) models.push_back("extended");
  if (ExportsOriginalWeights(job_.spec)) models.push_back("merged");
  Measure(models, model, dataset);
  if (speaks()) Write();
}

// Random initial weights are no base to compare with; positions that stay as they are need no row of their own.
std::vector<std::string> Evaluation::UntrainedModels(const ModelConfig& config) const {
  std::vector<std::string> models;
  const bool rescaled = !SamePositions(config.rope, config.original_rope) || config.window_outgrown;
  if (job_.spec.model.init == jobfile::ModelInit::kWeights) models.push_back("base");
  if (!models.empty() && rescaled) models.push_back("rescaled");
  return models;
}

void Evaluation::Measure(const std::vector<std::string>& models, CausalLm& model, const Dataset* dataset) {
  if (dataset != nullptr) MeasurePerplexity(models, model, *dataset);
  if (!tasks_.empty()) MeasureTasks(models, model);
}

// Perplexities that an earlier attempt has measured are not measured again.
void Evaluation::MeasurePerplexity(const std::vector<std::string>& models, CausalLm& model, const Dataset& dataset) {
  const std::string key = "perplexity-" + models.front();
  const fs::path path = job_.work / "evaluation" / (key + ".json");
  const nlohmann::json origin = {
      {"checkpoint", job_.checkpoint},
      {"dataset", dataset.key()},
      {"heldout_tokens", dataset.heldout_tokens()},
      {"models", models},
      {"lengths", EvaluationLengths(job_.spec, model.config().original_max_position_embeddings)},
      {"max_tokens", job_.spec.evaluation.max_tokens},
      {"protocol", job_.spec.evaluation.protocol == jobfile::EvaluationProtocol::kPaper ? "paper" : "windows"}};
  nlohmann::json kept;
  if (speaks()) {
    kept = ReadJsonOrNull(path);
    if (!kept.is_object() || kept.value("origin", nlohmann::json()) != origin) kept = nullptr;
    ranks_.Publish(key, kept.is_null() ? "run" : "kept");
  } else if (ranks_.Get(key, [this] { session_.ThrowIfStopped(); }) == "kept") {
    return;
  }
  if (!kept.is_null()) {
    for (const auto& row : kept.at("rows")) {
      perplexity_rows_.push_back(EvaluationRowOf(row));
      Tell(perplexity_rows_.back());
    }
    return;
  }
  nlohmann::json rows = nlohmann::json::array();
  EvaluationResult result = EvaluateRows(models, model, dataset);
  for (EvaluationRow& row : result.rows) {
    rows.push_back(ToDocument(row));
    perplexity_rows_.push_back(std::move(row));
  }
  if (result.stopped) throw StopRequested{};
  if (!speaks()) return;
  fs::create_directories(path.parent_path());
  storage::WriteFileAtomically(path, nlohmann::json{{"origin", origin}, {"rows", rows}}.dump(2) + "\n");
}

void Evaluation::Tell(const EvaluationRow& row) {
  session_.Send(lines::Evaluation{row.model, row.length, row.protocol, row.perplexity, row.loss, row.tokens, row.step});
}

void Evaluation::MeasureTasks(const std::vector<std::string>& models, CausalLm& model) {
  std::vector<TaskModel> under_test;
  for (const std::string& name : models) {
    if (name == "merged") continue;  // reads the folder's weights again for every pass: one a token
    TaskModel& one = under_test.emplace_back();
    one.name = name;
    one.model = &model;
    one.options.adapted = name == "extended";
    one.options.rope = name == "base" ? RopeScaling::kOriginal : RopeScaling::kExtended;
    one.tokenizer = &*tokenizer_;
    one.decode = [this](const std::vector<int64_t>& tokens) {
      return tokenizer_->Decode(std::span<const int64_t>(tokens), /*skip_special=*/true);
    };
    one.end_ids = EndTokensOf(job_.spec.model.path, model.config());
    one.generation = job_.spec.evaluation.generation;
    one.seed = static_cast<uint64_t>(job_.spec.training.seed);
    one.context_length = job_.spec.context_length;
  }
  TaskRunOptions run;
  run.work = job_.work;
  run.checkpoint = job_.checkpoint;
  run.step = job_.step;
  run.model_path = job_.spec.model.path;
  run.adapter_path = job_.spec.method.adapter;
  TaskRunHooks hooks;
  hooks.stop_requested = [this] { return session_.stop_requested(); };
  hooks.keep_waiting = [this] { session_.ThrowIfStopped(); };
  hooks.row = [this](const nlohmann::json& row) { TellTask(row); };
  int64_t units = 0;
  hooks.progress = [this, &units](int64_t done, int64_t all) {
    units = all;
    TellProgress(done, all);
    if (speaks()) session_.Send(lines::Expect{"reading a long prompt", 3600});  // until the next text is whole
  };
  TaskRunResult result = RunGenerationTasks(tasks_, under_test, ranks_, run, hooks);
  if (result.stopped) throw StopRequested{};
  units_before_ += units;
  for (nlohmann::json& row : result.rows) task_rows_.push_back(std::move(row));
}

void Evaluation::TellProgress(int64_t done, int64_t all) {
  if (speaks()) session_.Send(lines::Progress{"evaluate", units_before_ + done, units_before_ + all, {}});
}

void Evaluation::TellTask(const nlohmann::json& row) {
  if (!row.contains("score")) return;  // conversations: their judge is elsewhere
  lines::Evaluation line;
  row.at("model").get_to(line.model);
  row.at("task").get_to(line.protocol);
  row.at("length").get_to(line.length);
  row.at("step").get_to(line.step);
  row.at("score").get_to(line.score);
  row.at("examples").get_to(line.examples);
  spdlog::info("{:>8} at {:>6} tokens: {} {:.2f} ({} examples)", line.model, line.length, line.protocol, line.score,
               line.examples);
  session_.Send(line);
}

// evaluation.json last: with it the evaluation counts as done.
void Evaluation::Write() {
  nlohmann::json document = {
      {"job", job_.name}, {"checkpoint", job_.checkpoint}, {"step", job_.step}, {"attention", "full"}};
  document["protocol"] = job_.spec.evaluation.protocol == jobfile::EvaluationProtocol::kPaper ? "paper" : "windows";
  if (IsQuantized(job_.spec.method.kind)) document["base_weights"] = "nf4";
  if (job_.spec.training.fp8) document["base_weights"] = "fp8";
  document["model_path"] = job_.spec.model.path;
  document["rows"] = nlohmann::json::array();
  for (const EvaluationRow& row : perplexity_rows_) document["rows"].push_back(ToDocument(row));
  document["tasks"] = task_rows_;
  for (const auto& [name, picture] : PasskeyPictures(document)) {
    storage::WriteFileAtomically(job_.work / name, picture);
  }
  storage::WriteFileAtomically(job_.work / "evaluation.md", EvaluationMarkdown(document));
  storage::WriteFileAtomically(job_.work / "evaluation.json", document.dump(2) + "\n");
  session_.Send(lines::Artifact{"evaluation", "evaluation.md", ""});
}

}  // namespace longspan::trainer

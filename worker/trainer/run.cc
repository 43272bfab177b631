#include "worker/trainer/run.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <memory>
#include <utility>

#include "proto/jobfile/job_file.h"
#include "worker/planner/plan_text.h"
#include "worker/storage/storage.h"
#include "worker/trainer/checkpoint/checkpoint.h"
#include "worker/trainer/data/dataset.h"
#include "worker/trainer/data/prepare.h"
#include "worker/trainer/device.h"
#include "worker/trainer/evaluation.h"
#include "worker/trainer/export.h"
#include "worker/trainer/json_file.h"
#include "worker/trainer/memory_plan.h"
#include "worker/trainer/model/causal_lm.h"
#include "worker/trainer/parallel/communicator.h"
#include "worker/trainer/parallel/sequence_ranks.h"
#include "worker/trainer/quantized/quantized_base.h"
#include "worker/trainer/train_loop.h"
#include "worker/trainer/weights_of_job.h"

namespace longspan::trainer {
namespace {

namespace fs = std::filesystem;

constexpr auto kCheckpointVisibleWithin = std::chrono::seconds(60);  // network file systems cache the absence of a name
constexpr auto kOthersFinishWithin = std::chrono::seconds(60);

class JobRun {
 public:
  JobRun(const RunOptions& options, Session& session) : options_(options), session_(session) {}

  ExitCode Run() {
    try {
      return RunPhases();
    } catch (const StopRequested&) {
      spdlog::info("stopped: {}", session_.stop_reason());
      session_.Send(lines::Done{true});
      return ExitCode::kStopped;
    }
  }

 private:
  ExitCode RunPhases();
  bool trains() const { return options_.spec.kind == jobfile::JobKind::kExtend; }
  bool Wants(const std::string& phase) const { return options_.command == "run" || options_.command == phase; }
  bool speaks() const { return options_.rank == 0; }

  void OpenRanks();
  std::string RendezvousAddress();
  void LetOthersGo();
  void PreparePhase();
  void ChooseCheckpoint();
  std::optional<LoadedCheckpoint> FindNewestValid(const std::string& but);
  LoadedCheckpoint LoadNamedOrNewestValid(const std::string& name, const std::string& manifest_sha256);
  LoadedCheckpoint LoadNamed(const std::string& name, const std::string& manifest_sha256, bool wait_for_it);
  void ChooseMemory();
  void LoadModel();
  bool TrainingIsDone() const { return resume_ && resume_->state.step >= options_.spec.training.steps; }
  void TrainPhase();
  void EvaluatePhase();
  void ExportPhase();
  bool ExportIsDone() const;

  void BeginPhase(const std::string& phase) {
    spdlog::info("phase {}", phase);
    if (speaks()) session_.Send(lines::Phase{phase});
  }

  RunOptions options_;
  Session& session_;
  std::string job_;
  int64_t attempt_ = 1;
  std::unique_ptr<Communicator> ranks_;
  std::optional<SequenceRanks> sequence_;
  at::Device device_ = at::kCPU;
  planner::JobPlan memory_plan_;  // of a job that trains
  std::unique_ptr<CausalLm> model_;
  std::optional<Dataset> dataset_;
  std::optional<LoadedCheckpoint> resume_;  // what training goes on from, what evaluation and export are of
  bool model_is_trained_ = false;           // the model in memory holds the values of `resume_`
  bool joined_ = false;
};

ExitCode JobRun::RunPhases() {
  at::set_num_threads(static_cast<int>(options_.threads));
  if (!trains()) {
    if (Wants("train") != Wants("export")) throw SpecError("a job of kind evaluate trains nothing and exports nothing");
    jobfile::JobSpec& spec = options_.spec;
    if (spec.context_length == 0) spec.context_length = ReadModelConfig(spec.model.path).max_position_embeddings;
  }
  job_ = options_.job.empty() ? options_.spec.name : options_.job;
  fs::create_directories(options_.work);
  OpenRanks();
  if (options_.command != "export") PreparePhase();
  if (options_.command == "prepare") {
    session_.Send(lines::Done{});
    return ExitCode::kDone;
  }
  ChooseCheckpoint();
  if (Wants("train") && trains()) TrainPhase();
  if (Wants("evaluate")) EvaluatePhase();
  LetOthersGo();
  if (Wants("export") && speaks() && trains()) ExportPhase();
  session_.Send(lines::Done{});
  return ExitCode::kDone;
}

// ---- ranks ----

std::string JobRun::RendezvousAddress() {
  if (!options_.store.empty()) return options_.store;
  if (options_.job.empty()) throw SpecError("--world-size above 1 needs --store HOST:PORT");
  if (options_.rank == 0) {
    const std::string host = options_.advertise_address.empty() ? "127.0.0.1" : options_.advertise_address;
    return (host.find(':') == std::string::npos ? host : "[" + host + "]") + ":0";
  }
  spdlog::info("waiting for the address of rank 0");
  while (true) {
    if (const auto address = session_.rendezvous()) return *address;
    session_.ThrowIfStopped();
    session_.WaitForSomething(std::chrono::milliseconds(250));
  }
}

void JobRun::OpenRanks() {
  device_ = ChooseDevice(options_.device);
  options_.spec = SpecOn(device_, options_.spec);
  CommunicatorOptions options;
  options.on_gpus = CollectivesOn(device_, options_.collectives);
  options.rank = options_.rank;
  options.world_size = options_.world_size;
  options.advertise_address = options_.advertise_address;
  if (options.world_size > 1) options.store = RendezvousAddress();
  options.connect_timeout = std::chrono::minutes(15);
  options.collective_timeout = std::chrono::minutes(15);
  ranks_ = Communicator::OpenStore(options);
  sequence_.emplace(*ranks_, jobfile::RanksPerSequence(options_.spec));
  if (options.world_size > 1 && speaks()) {
    spdlog::info("the rank store listens at {}", ranks_->store_address());
    session_.Send(lines::Rendezvous{ranks_->store_address()});
  }
}

// Rank 0 holds the store: it may not end while another rank still has a word to read there.
void JobRun::LetOthersGo() {
  if (!speaks()) {
    ranks_->Publish("finished-" + std::to_string(options_.rank), "yes");
    return;
  }
  const auto deadline = std::chrono::steady_clock::now() + kOthersFinishWithin;
  struct TooLate {};
  try {
    for (int64_t rank = 1; rank < options_.world_size; ++rank) {
      ranks_->Get("finished-" + std::to_string(rank), [&] {
        if (std::chrono::steady_clock::now() > deadline) throw TooLate{};
      });
    }
  } catch (const TooLate&) {
    session_.Warn("another rank did not finish; going on without it");
  }
}

// ---- prepare ----

void JobRun::PreparePhase() {
  if (!speaks()) {
    ranks_->Get("prepared", [this] { session_.ThrowIfStopped(); });
    return;
  }
  BeginPhase("prepare");
  if (options_.spec.data.sources.empty()) {  // an evaluation without perplexity
    ranks_->Publish("prepared", "yes");
    return;
  }
  PrepareCallbacks callbacks;
  auto last = std::chrono::steady_clock::time_point();
  callbacks.progress = [&](int64_t done, int64_t total) {
    session_.ThrowIfStopped();
    const auto now = std::chrono::steady_clock::now();
    if (done != total && now - last < std::chrono::milliseconds(500)) return;
    last = now;
    session_.Send(lines::Progress{"prepare", done, total, {}});
  };
  callbacks.warning = [this](const std::string& message) { session_.Warn(message); };
  PrepareOptions prepare = PrepareOptionsOf(options_.spec, options_.work, DefaultDatasetsRoot(options_.work));
  prepare.threads = options_.threads;
  const PreparedDataset prepared = Prepare(prepare, callbacks);
  spdlog::info("{} documents, {} tokens ({} held out), {} sequences per epoch in {}{}", prepared.documents,
               prepared.tokens, prepared.heldout_tokens, prepared.training_sequences, prepared.folder.string(),
               prepared.reused ? ", prepared before" : "");
  session_.Send(lines::Artifact{"dataset", prepared.folder.string(), prepared.example});
  ranks_->Publish("prepared", "yes");
}

// ---- checkpoints ----

LoadedCheckpoint JobRun::LoadNamed(const std::string& name, const std::string& manifest_sha256, bool wait_for_it) {
  const fs::path folder = options_.work / "checkpoints";
  const auto deadline = std::chrono::steady_clock::now() + kCheckpointVisibleWithin;
  while (wait_for_it && !fs::exists(folder / name / "MANIFEST.json") && std::chrono::steady_clock::now() < deadline) {
    session_.ThrowIfStopped();
    session_.WaitForSomething(std::chrono::milliseconds(500));
  }
  return LoadCheckpoint(folder, name, manifest_sha256);
}

std::optional<LoadedCheckpoint> JobRun::FindNewestValid(const std::string& but) {
  const fs::path folder = options_.work / "checkpoints";
  for (const CheckpointName& name : ListCheckpoints(folder)) {
    if (ToString(name) == but) continue;
    try {
      return LoadCheckpoint(folder, ToString(name));
    } catch (const CorruptCheckpoint& error) {
      session_.Warn(std::string(error.what()) + "; trying the one before");
    }
  }
  return std::nullopt;
}

// The server names the newest that it recorded. Damaged or gone, it is passed over for the newest that is whole: some
// steps are done again, with the same results. To start afresh instead would hide the loss of everything.
LoadedCheckpoint JobRun::LoadNamedOrNewestValid(const std::string& name, const std::string& manifest_sha256) {
  try {
    return LoadNamed(name, manifest_sha256, /*wait_for_it=*/true);
  } catch (const CorruptCheckpoint& error) {
    std::optional<LoadedCheckpoint> other = FindNewestValid(name);
    if (!other) throw InfrastructureError(std::string(error.what()) + ", and no other checkpoint is whole");
    session_.Warn(fmt::format("{}; goes on from {} at step {}", error.what(), other->name, other->state.step));
    return *std::move(other);
  }
}

// Rank 0 decides, the others take its word: two ranks that look at a network file system may see different checkpoints.
void JobRun::ChooseCheckpoint() {
  if (!trains()) {  // the model folder itself is what is measured
    resume_.emplace();
    resume_->name = "none";
    return;
  }
  const auto existing = ListCheckpoints(options_.work / "checkpoints");
  attempt_ = options_.attempt;
  if (attempt_ == 0) {
    attempt_ = 1;
    for (const CheckpointName& name : existing) attempt_ = std::max(attempt_, name.attempt + 1);
  }
  try {
    if (!speaks()) {
      const std::string word = ranks_->Get("resume", [this] { session_.ThrowIfStopped(); });
      if (word == "none") return;
      const size_t space = word.find(' ');
      resume_ = LoadNamed(word.substr(0, space), word.substr(space + 1), /*wait_for_it=*/true);
      return;
    }
    // The server starts an attempt when no rank of the one before is left: what that was writing is nobody's.
    if (options_.resume_from) storage::RemoveTemporaries(options_.work);
    if (!options_.checkpoint.empty()) {
      resume_ = LoadNamed(options_.checkpoint, "", false);
    } else if (!options_.resume_from) {
      resume_ = FindNewestValid("");
    } else if (*options_.resume_from != "none") {
      resume_ = LoadNamedOrNewestValid(*options_.resume_from, options_.manifest_sha256);
    }
  } catch (const CorruptCheckpoint& error) {
    if (!options_.checkpoint.empty()) throw UserError(error.what());
    throw InfrastructureError(error.what());
  }
  if (resume_) spdlog::info("checkpoint {} at step {}", resume_->name, resume_->state.step);
  ranks_->Publish("resume", resume_ ? resume_->name + " " + resume_->manifest_sha256 : "none");
}

void JobRun::ChooseMemory() {
  const MemoryPlanOptions plan_options{options_.spec, options_.threads, options_.slot_memory_bytes, device_,
                                       options_.world_size};
  const planner::PlannedJob job = PlannedJobFor(plan_options);
  memory_plan_ = PlanMemory(plan_options);
  const planner::JobPlan& plan = memory_plan_;
  spdlog::info("memory: {}; {} planned on the device{}", planner::PolicyText(plan.policy, job.Shape()),
               planner::BytesText(plan.memory.device_bytes()),
               plan.memory.host_activations() > 0
                   ? " and " + planner::BytesText(plan.memory.host_activations()) + " in host memory"
                   : "");
}

void JobRun::LoadModel() {
  if (model_) return;
  session_.Send(lines::Expect{"loading the model", 1800});
  ModelOptions options;
  options.device = device_;
  options.spec = options_.spec;
  options.trains = trains();
  options.sequence = &*sequence_;
  options.quantized_cache = DefaultQuantizedRoot(options_.work);
  options.ranks = ranks_.get();
  if (trains()) ChooseMemory();
  options.memory = memory_plan_.policy;
  // Rank 0 makes the 4-bit base, the others find it in the cache.
  const bool shared = IsQuantized(options_.spec.method.kind) && options_.world_size > 1;
  if (shared && !speaks()) ranks_->Get("model loaded", [this] { session_.ThrowIfStopped(); });
  model_ = CausalLm::Load(options);
  if (options_.spec.training.fp8) {
    spdlog::info("products with the frozen weights are in 8 bits (e4m3){}",
                 device_.is_cpu() ? ", which a CPU only imitates, slowly: for tests of what a GPU would compute" : "");
  }
  if (shared && speaks()) ranks_->Publish("model loaded", "yes");
  const ModelConfig& config = model_->config();
  if (config.window_outgrown && speaks()) {
    session_.Warn(
        "the model attends within a sliding window of " +
        std::to_string(*std::max_element(config.layer_windows.begin(), config.layer_windows.end())) +
        " tokens, which the context of " + std::to_string(options_.spec.context_length) +
        " outgrows: training uses no window, so the extended model has none (sliding_window null); the base is "
        "evaluated with its own");
  }
  if (!trains()) model_is_trained_ = true;
}

// ---- train ----

void JobRun::TrainPhase() {
  if (TrainingIsDone()) {
    spdlog::info("training is done already: {}", resume_->name);
    return;
  }
  BeginPhase("train");
  LoadModel();
  dataset_.emplace(Dataset::Open(options_.work));
  if (dataset_->vocab_size() > model_->config().vocab_size) {
    throw UserError("the data has token " + std::to_string(dataset_->vocab_size() - 1) +
                    ", the model's vocabulary has only " + std::to_string(model_->config().vocab_size) +
                    ": tokenizer.json and config.json of " + options_.spec.model.path + " do not belong together");
  }
  if (sequence_->size() > 1 && dataset_->row_kind() != RowKind::kJoined) {
    throw SpecError("resources.sequence_parallel is " + std::to_string(sequence_->size()) +
                    ", but the rows of this data differ in length: it goes with plain text (data.format: text)");
  }
  if (resume_ && resume_->state.dataset != dataset_->key()) {
    session_.Warn("the checkpoint was trained on other data (" + resume_->state.dataset + ") than this job has now (" +
                  dataset_->key() + ")");
  }
  TrainOptions train;
  train.spec = options_.spec;
  train.work = options_.work;
  train.job = job_;
  train.attempt = attempt_;
  train.threads = options_.threads;
  train.device = device_;
  train.version = kVersion;
  train.under_service = options_.resume_from.has_value();
  train.dump_gradients = options_.dump_gradients;
  train.planned_device_bytes = memory_plan_.memory.device_bytes();
  ranks_->Join();
  joined_ = true;
  TrainLoop loop(train, *model_, *dataset_, *ranks_, *sequence_, session_, resume_);
  resume_.reset();  // the moments are the loop's now
  if (loop.Run() == TrainLoop::Outcome::kStopped) throw StopRequested{};
  loop.HandleRecorded();
  model_->ReleaseBuffers();
  resume_.emplace();
  resume_->state = loop.state();
  resume_->name = ToString(CheckpointName{loop.state().step, attempt_});
  model_is_trained_ = true;
}

// ---- evaluate ----

void JobRun::EvaluatePhase() {
  if (!resume_) throw UserError("no checkpoint in " + (options_.work / "checkpoints").string() + ": train first");
  EvaluationJob job;
  job.spec = options_.spec;
  job.work = options_.work;
  job.name = job_;
  job.checkpoint = resume_->name;
  job.step = resume_->state.step;
  job.device = device_;
  Evaluation evaluation(job, *ranks_, *sequence_, session_);
  // By hand it is measured again.
  if (options_.command == "run" && evaluation.IsDone()) return;
  BeginPhase("evaluate");
  if (!dataset_ && !options_.spec.data.sources.empty()) dataset_.emplace(Dataset::Open(options_.work));
  LoadModel();
  if (!model_is_trained_) LoadTrainedWeights(options_.work / "checkpoints" / resume_->name, options_.spec, *model_);
  model_is_trained_ = true;
  if (!joined_) ranks_->Join();
  joined_ = true;
  evaluation.Run(*model_, dataset_ ? &*dataset_ : nullptr);
}

// ---- export ----

bool JobRun::ExportIsDone() const {
  const nlohmann::json card = ReadJsonOrNull(options_.work / "run_card.json");
  if (!card.is_object() || card.value("checkpoint", "") != resume_->name) return false;
  const bool adapter = options_.spec.output.adapter && options_.spec.method.kind != jobfile::MethodKind::kFull;
  return (!adapter || fs::exists(options_.work / "adapter")) &&
         (!options_.spec.output.merged || fs::exists(options_.work / "merged"));
}

void JobRun::ExportPhase() {
  if (!resume_) throw UserError("no checkpoint in " + (options_.work / "checkpoints").string() + ": train first");
  const bool adapter = options_.spec.output.adapter && options_.spec.method.kind != jobfile::MethodKind::kFull;
  if (options_.command != "run" || !ExportIsDone()) {
    BeginPhase("export");
    session_.Send(lines::Expect{"export", 3600});
    LoadModel();
    if (!model_is_trained_) LoadTrainedWeights(options_.work / "checkpoints" / resume_->name, options_.spec, *model_);
    model_is_trained_ = true;
    if (adapter) ExportAdapter(options_.spec, *model_, options_.work);
    if (options_.spec.output.merged) ExportMerged(options_.spec, *model_, options_.work);
    RunCardFacts facts;
    facts.job = job_;
    facts.checkpoint = resume_->name;
    facts.state = resume_->state;
    facts.state.memory_peak_bytes = std::max(facts.state.memory_peak_bytes, MemoryPeakBytes());
    facts.dataset = ReadJsonOrNull(options_.work / "dataset.json");
    facts.evaluation = ReadJsonOrNull(options_.work / "evaluation.json");
    // Another checkpoint's perplexities are not this one's.
    if (facts.evaluation.is_object() && facts.evaluation.value("checkpoint", "") != resume_->name)
      facts.evaluation = nullptr;
    facts.version = kVersion;
    WriteRunCard(options_.spec, *model_, facts, options_.work);
  }
  if (adapter) session_.Send(lines::Artifact{"adapter", "adapter", ""});
  if (options_.spec.output.merged) session_.Send(lines::Artifact{"merged", "merged", ""});
  session_.Send(lines::Artifact{"run_card", "run_card.md", ""});
}

}  // namespace

ExitCode Run(const RunOptions& options, Session& session) { return JobRun(options, session).Run(); }

}  // namespace longspan::trainer

#include "worker/trainer/train_loop.h"
#include "worker/trainer/trained_tensors.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <sys/resource.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "proto/jobfile/job_file.h"
#include "worker/model_config/adapter_plan.h"
#include "worker/planner/flops.h"
#include "worker/planner/job_shape.h"
#include "worker/trainer/checkpoint/adapter_config.h"
#include "worker/trainer/errors.h"
#include "worker/trainer/memory/counting_allocator.h"
#include "worker/trainer/model/safetensors.h"
#include "worker/trainer/model/token_loss.h"
#include "worker/trainer/optim/schedule.h"
#include "worker/trainer/row_batch.h"
#include "worker/trainer/weights_of_job.h"

namespace longspan::trainer {
namespace {

static_assert(kUnscoredLabel == kIgnoredLabel);

using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

// Of one document, or of one sequence of joined ones.
double TrainingFlops(const jobfile::JobSpec& spec, const ModelConfig& config, int64_t tokens) {
  const bool full = spec.attention.kind == jobfile::AttentionKind::kFull;
  const int64_t attended = full ? tokens : jobfile::ResolvedGroupSize(spec);
  return planner::TrainingFlopsOfSequence(
      planner::ForwardFlopsOfSequence(planner::ModelShapeOf(config), tokens, attended),
      spec.method.kind == jobfile::MethodKind::kFull);
}

// JSON has no NaN: as in the line protocol, such a number travels as text.
nlohmann::json Number(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  return value;
}

}  // namespace

int64_t MemoryPeakBytes() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  return static_cast<int64_t>(usage.ru_maxrss) * 1024;
}

TrainLoop::TrainLoop(const TrainOptions& options, CausalLm& model, const Dataset& dataset, Communicator& ranks,
                     SequenceRanks& sequence, Session& session, const std::optional<LoadedCheckpoint>& resume)
    : options_(options),
      model_(model),
      dataset_(dataset),
      ranks_(ranks),
      sequence_(sequence),
      session_(session),
      gradients_(Gradients(model)),
      optimizer_(OptimizedTensors(model), AdamWOptionsOf(options.spec.training)),
      reducer_(ranks, gradients_, kBucketBytes, SumsStartOf(model)),
      writer_(options.work / "checkpoints"),
      begin_(Clock::now()) {
  if (resume) {
    state_ = resume->state;
    seconds_before_ = state_.seconds_total;
    last_saved_step_ = state_.step;
    optimizer_.Load(resume->optimizer, state_.updates);
    model_.ValuesChanged();
  }
  state_.ranks = ranks.world_size();
  state_.threads = options.threads;
  state_.version = options.version;
  state_.dataset = dataset.key();
  state_.spec = jobfile::ToDocument(options.spec);
  if (ranks_.rank() == 0) {
    RemovePartialCheckpoints(options_.work / "checkpoints", options_.attempt);
    KeepProgressUpTo(state_.step);
  }
}

TrainLoop::Outcome TrainLoop::Run() {
  const int64_t steps = options_.spec.training.steps;
  while (state_.step < steps) {
    const auto begin = Clock::now();
    StepResult result = Step();
    state_.seconds_total = seconds_before_ + SecondsSince(begin_);
    state_.memory_peak_bytes = std::max(state_.memory_peak_bytes, MemoryPeakBytes());
    Report(result, SecondsSince(begin));
    FinishCheckpoint(/*wait=*/false);
    HandleRecorded();

    const bool last = state_.step == steps;
    const int64_t every = options_.spec.checkpoint.every_steps;
    const bool due = last || (every > 0 && state_.step % every == 0);
    if (due || result.word.checkpoint_now || (result.word.stop && result.word.stop_with_checkpoint)) SaveCheckpoint();
    if (result.word.stop && !last) {
      FinishCheckpoint(/*wait=*/true);
      return Outcome::kStopped;
    }
    if (result.skipped && state_.nonfinite_steps_in_a_row >= kNonfiniteStepsInARowMax) CountSkipped(result);
    const int64_t evaluate_every = options_.spec.evaluation.every_steps;
    if (!last && evaluate_every > 0 && state_.step % evaluate_every == 0) {
      if (EvaluateNow()) {
        if (last_saved_step_ != state_.step) SaveCheckpoint();
        FinishCheckpoint(/*wait=*/true);
        return Outcome::kStopped;
      }
    }
  }
  if (last_saved_step_ != state_.step) SaveCheckpoint();
  FinishCheckpoint(/*wait=*/true);
  return Outcome::kFinished;
}

TrainLoop::StepResult TrainLoop::Step() {
  StepResult result;
  const int64_t global_batch = options_.spec.training.global_batch;
  const auto data_begin = Clock::now();
  const BatchSlice slice = SliceOfRank(global_batch, sequence_.group(), sequence_.groups());
  const Rows rows = RowsOf(slice);
  result.times.data = SecondsSince(data_begin);

  model_.ZeroGradients();
  ControlWord local;
  const double waited = sequence_.wait_seconds();
  RunMicroBatches(rows, slice.begin, local, result.times);
  result.times.exchange = sequence_.wait_seconds() - waited;
  local.stop = session_.stop_requested();
  local.stop_with_checkpoint = local.stop && session_.stop_with_checkpoint();
  local.checkpoint_now = session_.TakeCheckpointRequest();
  session_.Send(lines::Reached{state_.step + 1});
  const auto reduce_begin = Clock::now();
  result.word = reducer_.Finish(local);
  result.times.allreduce = SecondsSince(reduce_begin);

  const auto optimizer_begin = Clock::now();
  Update(result);
  result.times.optimizer = SecondsSince(optimizer_begin);

  CountWork(result);
  ++state_.step;
  return result;
}

// Of the whole global batch, which every rank can compute; padding is nobody's work.
void TrainLoop::CountWork(StepResult& result) {
  const auto& training = options_.spec.training;
  for (const int64_t row :
       dataset_.SequenceIds(static_cast<uint64_t>(training.seed), state_.step, training.global_batch)) {
    for (const int64_t length : dataset_.DocumentLengths(row)) {
      result.tokens += length;
      state_.model_flops_total += TrainingFlops(options_.spec, model_.config(), length);
    }
  }
  state_.tokens_total += result.tokens;
}

Rows TrainLoop::RowsOf(BatchSlice slice) const {
  const std::vector<int64_t> ids = dataset_.SequenceIds(static_cast<uint64_t>(options_.spec.training.seed), state_.step,
                                                        options_.spec.training.global_batch);
  return dataset_.ReadRows({ids.begin() + slice.begin, ids.begin() + slice.end});
}

void TrainLoop::RunMicroBatches(const Rows& rows, int64_t first_row, ControlWord& word, StepTimes& times) {
  const int64_t count = rows.rows;
  const int64_t micro = std::max<int64_t>(1, options_.spec.training.micro_batch.value_or(1));
  const auto passes_of = [micro](int64_t sequences) { return (sequences + micro - 1) / micro; };
  const int64_t most = LargestSlice(options_.spec.training.global_batch, sequence_.groups());
  for (int64_t idle = passes_of(count); idle < passes_of(most); ++idle) {
    model_.TakePart(CausalLm::PassKind::kTraining);
  }
  for (int64_t begin = 0; begin < count; begin += micro) {
    const bool last = begin + micro >= count;
    Batch batch = BatchOf(rows, begin, std::min(micro, count - begin));
    batch.step = state_.step;
    batch.first_sequence_index = first_row + begin;
    // The first gradient that is complete marks where the forward pass has ended.
    const auto forward_begin = Clock::now();
    std::optional<Clock::time_point> first_gradient;
    const LossSum loss = model_.ForwardBackward(batch, [&](size_t index) {
      if (!first_gradient) first_gradient = Clock::now();
      if (last) reducer_.Ready(index);
    });
    const auto end = Clock::now();
    const auto border = first_gradient.value_or(end);
    times.forward += std::chrono::duration<double>(border - forward_begin).count();
    times.backward += std::chrono::duration<double>(end - border).count();
    word.loss_sum += loss.loss;
    word.scored_tokens += loss.tokens;
  }
}

// Everything here follows from reduced numbers, which are equal on all ranks: so is what is done.
void TrainLoop::Update(StepResult& result) {
  const double tokens = static_cast<double>(result.word.scored_tokens);
  result.loss = result.word.loss_sum / tokens;
  if (result.word.scored_tokens > 0) {
    for (at::Tensor& gradient : gradients_) gradient.mul_(1.0 / tokens);
  }
  result.norm = GlobalNorm(gradients_);
  if (!options_.dump_gradients.empty()) DumpGradients(result);
  result.skipped = result.word.scored_tokens == 0 || !std::isfinite(result.loss) || !std::isfinite(result.norm);
  if (result.skipped) {
    ++state_.nonfinite_steps;
    ++state_.nonfinite_steps_in_a_row;
    return;
  }
  ClipGradients(gradients_, result.norm, options_.spec.training.clip_norm);
  result.learning_rate = LearningRate(options_.spec.training, optimizer_.updates() + 1);
  optimizer_.Step(result.learning_rate);
  model_.ValuesChanged();
  state_.updates = optimizer_.updates();
  state_.nonfinite_steps_in_a_row = 0;
  state_.loss = result.loss;
}

void TrainLoop::CountSkipped(const StepResult& result) {
  throw UserError(fmt::format(
      "{} steps in a row had no usable loss or gradient (loss {}, gradient norm {}, {} scored tokens at step "
      "{}): lower training.learning_rate or check the data",
      state_.nonfinite_steps_in_a_row, result.loss, result.norm, result.word.scored_tokens, state_.step));
}

void TrainLoop::SaveCheckpoint() {
  last_saved_step_ = state_.step;
  if (ranks_.rank() != 0) return;
  const auto begin = Clock::now();
  FinishCheckpoint(/*wait=*/true);
  session_.Send(lines::Expect{"checkpoint", 600});
  Snapshot snapshot;
  snapshot.job = options_.job;
  snapshot.attempt = options_.attempt;
  snapshot.state = state_;
  snapshot.weights_file = WeightsFileOf(options_.spec);
  snapshot.weights = StoredTensors(model_);
  snapshot.adapter_config = AdapterConfigOf(options_.spec, model_);
  snapshot.optimizer = optimizer_.states();
  writer_.Start(CopyToHost(std::move(snapshot)));
  seconds_checkpoint_ = SecondsSince(begin);
}

void TrainLoop::FinishCheckpoint(bool wait) {
  if (ranks_.rank() != 0) return;
  const auto written = wait ? writer_.Wait() : writer_.Poll();
  if (written) Announce(*written);
}

void TrainLoop::Announce(const WrittenCheckpoint& written) {
  spdlog::info("checkpoint {} is safe: {} bytes in {:.2f} s", written.name, written.size_bytes, written.seconds);
  session_.Send(
      lines::Checkpoint{written.name, written.step, written.manifest_sha256, written.size_bytes, written.seconds});
  if (!options_.under_service) DeleteOlderThan({written.step, options_.attempt});
}

void TrainLoop::HandleRecorded() {
  for (const std::string& recorded : session_.TakeRecorded()) {
    const auto name = ParseCheckpointName(recorded);
    if (name && ranks_.rank() == 0) DeleteOlderThan(*name);
  }
}

void TrainLoop::DeleteOlderThan(const CheckpointName& newest) {
  const auto folder = options_.work / "checkpoints";
  const auto& keep = options_.spec.checkpoint;
  for (const CheckpointName& name :
       CheckpointsToDelete(ListCheckpoints(folder), newest, keep.keep_last, keep.keep_every)) {
    spdlog::info("deleting checkpoint {}", ToString(name));
    DeleteCheckpoint(folder, name);
  }
}

bool TrainLoop::EvaluateNow() {
  EvaluationPlan plan;
  plan.models = {"extended"};
  plan.lengths = EvaluationLengths(options_.spec, model_.config().original_max_position_embeddings);
  plan.protocol = options_.spec.evaluation.protocol;
  plan.tokens_max = options_.spec.evaluation.max_tokens;
  plan.step = state_.step;
  plan.sequence = &sequence_;
  plan.whole_tokens_max = jobfile::TokensPerRank(options_.spec);
  EvaluationHooks hooks;
  const bool speaks = ranks_.rank() == 0;
  hooks.stop_requested = [this] { return session_.stop_requested(); };
  hooks.row = [&](const EvaluationRow& row) {
    if (!speaks) return;
    spdlog::info("step {}: perplexity {:.4f} at {} tokens", row.step, row.perplexity, row.length);
    session_.Send(
        lines::Evaluation{row.model, row.length, row.protocol, row.perplexity, row.loss, row.tokens, row.step});
    nlohmann::json line = ToDocument(row);
    line["phase"] = "evaluate";
    progress_ << line.dump() << '\n' << std::flush;
  };
  if (speaks) session_.Send(lines::Expect{"evaluation", 3600});
  return EvaluatePerplexity(model_, dataset_, ranks_, plan, hooks).stopped;
}

void TrainLoop::Report(const StepResult& result, double seconds) {
  if (ranks_.rank() != 0) return;
  const auto tokens = static_cast<double>(result.tokens);
  const CausalLm::MemoryUse memory = model_.memory_use();
  lines::Progress progress{"train", state_.step, options_.spec.training.steps, {}};
  progress.values = {
      {"loss", result.loss},
      {"grad_norm", result.norm},
      {"learning_rate", result.learning_rate},
      {"tokens_total", static_cast<double>(state_.tokens_total)},
      {"tokens_per_second", tokens / seconds},
      {"model_flops_total", state_.model_flops_total},
      {"nonfinite_steps", static_cast<double>(state_.nonfinite_steps)},
      {"memory_peak_bytes", static_cast<double>(state_.memory_peak_bytes)},
      {"memory_device_peak_bytes", static_cast<double>(DeviceMemoryNow(options_.device).peak_bytes)},
      {"memory_planned_bytes", static_cast<double>(options_.planned_device_bytes)},
      {"memory_host_bytes", static_cast<double>(memory.host_bytes)},
      {"allreduce_bytes_total", static_cast<double>(ranks_.allreduce_bytes())},
      {"seconds_step", seconds},
      {"seconds_data", result.times.data},
      {"seconds_forward", result.times.forward},
      {"seconds_backward", result.times.backward},
      {"seconds_allreduce", result.times.allreduce},
      {"seconds_optimizer", result.times.optimizer},
      {"seconds_host_wait", memory.host_wait_seconds - std::exchange(host_wait_before_, memory.host_wait_seconds)}};
  if (model_.shares_weights()) {
    progress.values["allgather_bytes_total"] = static_cast<double>(ranks_.allgather_bytes());
    progress.values["seconds_gather_wait"] =
        memory.gather_wait_seconds - std::exchange(gather_wait_before_, memory.gather_wait_seconds);
  }
  if (sequence_.size() > 1) {
    progress.values["seconds_exchange"] = result.times.exchange;
    progress.values["exchanged_bytes_total"] = static_cast<double>(ranks_.exchanged_bytes());
  }
  for (const Collective kind : kCollectives) {
    const CollectiveUse use = ranks_.use(kind);
    if (use.bytes == 0) continue;
    const std::string name = fmt::format("collective_{}_", NameOf(kind));
    progress.values[name + "bytes_total"] = static_cast<double>(use.bytes);
    progress.values[name + "seconds_total"] = std::chrono::duration<double>(use.busy).count();
    progress.values[name + "wait_seconds_total"] = std::chrono::duration<double>(use.waited).count();
  }
  // What the training had to wait for the checkpoint after the step before.
  if (seconds_checkpoint_ > 0) progress.values["seconds_checkpoint"] = std::exchange(seconds_checkpoint_, 0);
  session_.Send(progress);
  nlohmann::json line = {{"phase", "train"}, {"step", state_.step}, {"attempt", options_.attempt}};
  for (const auto& [name, value] : progress.values) line[name] = Number(value);
  progress_ << line.dump() << '\n' << std::flush;
  spdlog::info("step {}/{}: loss {:.4f}, gradient norm {:.3f}, learning rate {:.2e}, {:.0f} tokens/s{}", state_.step,
               options_.spec.training.steps, result.loss, result.norm, result.learning_rate, tokens / seconds,
               result.skipped ? ", skipped" : "");
}

// The reduced gradients of a step as the probe would write them, with its input: the whole global batch.
void TrainLoop::DumpGradients(const StepResult& result) {
  if (ranks_.rank() != 0) return;
  std::filesystem::create_directories(options_.dump_gradients);
  const int64_t global_batch = options_.spec.training.global_batch;
  const Batch batch = BatchOf(RowsOf({0, global_batch}), 0, global_batch);
  std::vector<NamedTensor> tensors = {{"input_ids", batch.input_ids}, {"loss", at::full({}, result.loss, at::kFloat)}};
  if (batch.document_ids.defined()) {
    tensors.emplace_back("labels", batch.labels);
    tensors.emplace_back("document_ids", batch.document_ids);
  }
  for (const Trainable& trainable : model_.trainables())
    tensors.emplace_back("grad." + trainable.name, trainable.gradient);
  const std::string name = fmt::format("step-{:08}.safetensors", state_.step + 1);
  WriteSafetensors((options_.dump_gradients / name).string(), tensors);
}

// Lines of steps that a resumed run computes again are taken away; whole lines stay as they are.
void TrainLoop::KeepProgressUpTo(int64_t step) {
  const auto path = options_.work / "progress.jsonl";
  std::string kept;
  std::ifstream old(path);
  for (std::string line; std::getline(old, line);) {
    const auto document = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (document.is_object() && document.value("step", int64_t{0}) <= step && step > 0) kept += line + "\n";
  }
  old.close();
  progress_.open(path, std::ios::trunc);
  progress_ << kept << std::flush;
  if (!progress_) throw InfrastructureError("cannot write " + path.string());
}

}  // namespace longspan::trainer

#include "worker/trainer/measure_steps.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <fmt/format.h>
#include <sys/resource.h>

#include <chrono>
#include <istream>
#include <nlohmann/json.hpp>
#include <optional>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "worker/planner/plan_text.h"
#include "worker/trainer/data/dataset.h"
#include "worker/trainer/device.h"
#include "worker/trainer/errors.h"
#include "worker/trainer/gpu/gpu_device.h"
#include "worker/trainer/memory/counting_allocator.h"
#include "worker/trainer/memory_plan.h"
#include "worker/trainer/model/causal_lm.h"
#include "worker/trainer/model/safetensors.h"
#include "worker/trainer/optim/adamw.h"
#include "worker/trainer/optim/schedule.h"
#include "worker/trainer/parallel/gradient_reducer.h"
#include "worker/trainer/parallel/sequence_ranks.h"
#include "worker/trainer/trained_tensors.h"

namespace longspan::trainer {
namespace {

using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

int64_t PassesOf(int64_t sequences, int64_t micro_batch) { return (sequences + micro_batch - 1) / micro_batch; }

double ProcessorSeconds() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) * 1e-6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

int64_t ResidentPeakBytes() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  return int64_t{usage.ru_maxrss} * 1024;
}

at::Tensor ReadTokens(const MeasureOptions& options) {
  if (options.tokens_path.empty()) return {};
  const at::Tensor tokens = SafetensorsFile::Open(options.tokens_path).View("input_ids");
  const int64_t length = options.spec.context_length;
  if (tokens.scalar_type() != at::kLong || tokens.dim() != 2 || tokens.size(0) == 0 || tokens.size(1) != length) {
    throw UserError(fmt::format("cannot use {}: input_ids must be (rows, {}) I64 with at least one row",
                                options.tokens_path, length));
  }
  return tokens.clone();
}

class MeasuredSteps {
 public:
  MeasuredSteps(const MeasureOptions& options, const planner::JobPlan& plan, Communicator& ranks)
      : options_(options),
        ranks_(ranks),
        sequence_(ranks, jobfile::RanksPerSequence(options.spec)),
        model_(CausalLm::Load(ModelOptionsOf(options, plan, ranks, &sequence_))),
        tokens_(ReadTokens(options)),
        gradients_(Gradients(*model_)),
        optimizer_(OptimizedTensors(*model_), AdamWOptionsOf(options.spec.training)),
        reducer_(ranks, gradients_, kBucketBytes, SumsStartOf(*model_)) {}

  nlohmann::json Step() {
    const BatchSlice slice = SliceOfRank(options_.spec.training.global_batch, sequence_.group(), sequence_.groups());
    const double exchange_before = sequence_.wait_seconds();
    const int64_t micro = std::max<int64_t>(1, options_.spec.training.micro_batch.value_or(1));
    ResetDeviceMemoryPeak(options_.device);
    const int64_t allocations_before = DeviceMemoryNow(options_.device).allocations;
    const double processor_begin = ProcessorSeconds();
    const auto begin = Clock::now();
    model_->ZeroGradients();
    double forward = 0, backward = 0;
    ControlWord word;
    const int64_t most = LargestSlice(options_.spec.training.global_batch, sequence_.groups());
    for (int64_t idle = PassesOf(slice.end - slice.begin, micro); idle < PassesOf(most, micro); ++idle) {
      model_->TakePart(CausalLm::PassKind::kTraining);
    }
    for (int64_t first = slice.begin; first < slice.end; first += micro) {
      const bool last = first + micro >= slice.end;
      Batch batch;
      batch.input_ids = batch.labels = Ids(std::min(micro, slice.end - first), first);
      batch.step = step_;
      batch.first_sequence_index = first;
      const auto forward_begin = Clock::now();
      std::optional<Clock::time_point> first_gradient;
      const LossSum loss = model_->ForwardBackward(batch, [&](size_t index) {
        if (!first_gradient) first_gradient = Clock::now();
        if (last) reducer_.Ready(index);
      });
      const auto end = Clock::now();
      forward += std::chrono::duration<double>(first_gradient.value_or(end) - forward_begin).count();
      backward += std::chrono::duration<double>(end - first_gradient.value_or(end)).count();
      word.loss_sum += loss.loss;
      word.scored_tokens += loss.tokens;
    }
    const auto reduce_begin = Clock::now();
    word = reducer_.Finish(word);
    const double allreduce = SecondsSince(reduce_begin);
    const std::chrono::nanoseconds busy_before =
        std::exchange(allreduce_time_, ranks_.use(Collective::kAllReduce).busy);
    const double allreduce_busy = std::chrono::duration<double>(allreduce_time_ - busy_before).count();
    const auto optimizer_begin = Clock::now();
    for (at::Tensor& gradient : gradients_) gradient.mul_(1.0 / static_cast<double>(word.scored_tokens));
    const double norm = GlobalNorm(gradients_);
    ClipGradients(gradients_, norm, options_.spec.training.clip_norm);
    optimizer_.Step(options_.spec.training.learning_rate);
    model_->ValuesChanged();
    if (options_.device.is_cuda()) gpu::Synchronize();
    const double optimizer = SecondsSince(optimizer_begin);
    ++step_;
    const DeviceMemory memory = DeviceMemoryNow(options_.device);
    const CausalLm::MemoryUse use = model_->memory_use();
    return {
        {"seconds", SecondsSince(begin)},
        {"processor_seconds", ProcessorSeconds() - processor_begin},
        {"seconds_forward", forward},
        {"seconds_backward", backward},
        {"seconds_allreduce", allreduce},
        {"seconds_optimizer", optimizer},
        {"seconds_exchange", sequence_.wait_seconds() - exchange_before},
        {"seconds_host_wait", use.host_wait_seconds - std::exchange(host_wait_before_, use.host_wait_seconds)},
        {"seconds_gather_wait", use.gather_wait_seconds - std::exchange(gather_wait_before_, use.gather_wait_seconds)},
        {"loss", word.loss_sum / static_cast<double>(word.scored_tokens)},
        {"grad_norm", norm},
        {"memory_peak_bytes", memory.peak_bytes},
        {"memory_live_bytes", memory.live_bytes},
        {"memory_host_bytes", use.host_bytes},
        {"allocations", memory.allocations - allocations_before},
        {"resident_peak_bytes", ResidentPeakBytes()},
        {"allreduce_bytes", ranks_.allreduce_bytes() - std::exchange(allreduce_bytes_, ranks_.allreduce_bytes())},
        {"seconds_allreduce_busy", allreduce_busy},
        {"exchanged_bytes", ranks_.exchanged_bytes()},
        {"allgather_bytes", ranks_.allgather_bytes()}};
  }

 private:
  static ModelOptions ModelOptionsOf(const MeasureOptions& options, const planner::JobPlan& plan, Communicator& ranks,
                                     SequenceRanks* sequence) {
    ModelOptions model;
    model.device = options.device;
    model.spec = SpecOn(options.device, options.spec);
    model.memory = plan.policy;
    model.ranks = &ranks;
    model.sequence = sequence;
    return model;
  }

  // Equal on every rank for the same sequence of the global batch.
  at::Tensor Ids(int64_t sequences, int64_t first) const {
    std::vector<at::Tensor> rows;
    for (int64_t row = 0; row < sequences; ++row) {
      const int64_t sequence = step_ * options_.spec.training.global_batch + first + row;
      if (tokens_.defined()) {
        rows.push_back(tokens_.select(0, sequence % tokens_.size(0)));
        continue;
      }
      const auto seed = static_cast<uint64_t>(sequence);
      rows.push_back(at::empty({options_.spec.context_length}, at::kLong)
                         .random_(0, model_->config().vocab_size, at::detail::createCPUGenerator(seed)));
    }
    return at::stack(rows);
  }

  const MeasureOptions& options_;
  Communicator& ranks_;
  SequenceRanks sequence_;
  std::unique_ptr<CausalLm> model_;
  at::Tensor tokens_;  // (rows, context_length) I64; undefined: random
  std::vector<at::Tensor> gradients_;
  AdamW optimizer_;
  GradientReducer reducer_;
  int64_t step_ = 0;
  double host_wait_before_ = 0;
  double gather_wait_before_ = 0;
  int64_t allreduce_bytes_ = 0;
  std::chrono::nanoseconds allreduce_time_{0};
};

}  // namespace

void MeasureSteps(const MeasureOptions& options, Communicator& ranks, std::istream& in, std::ostream& out) {
  const MemoryPlanOptions plan_options{options.spec, options.threads, options.slot_memory_bytes, options.device,
                                       ranks.world_size()};
  const planner::PlannedJob job = PlannedJobFor(plan_options);
  const planner::JobPlan plan = PlanMemory(plan_options);
  MeasuredSteps steps(options, plan, ranks);
  nlohmann::json hello = {{"policy", planner::PolicyText(plan.policy, job.Shape())},
                          {"planned_device_bytes", plan.memory.device_bytes()},
                          {"planned_host_bytes", plan.memory.host_activations()},
                          {"planned_activation_bytes", plan.memory.activations() + plan.memory.workspace},
                          {"planned_seconds", plan.time.seconds},
                          {"model_flops", plan.model_flops}};
  for (const auto& [kind, bytes] : planner::DeviceKinds(plan.memory)) hello["planned"][kind] = bytes;
  out << hello.dump() << std::endl;
  for (std::string line; std::getline(in, line);) out << steps.Step().dump() << std::endl;
}

}  // namespace longspan::trainer

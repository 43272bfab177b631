#include "worker/planner/plan_text.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace longspan::planner {
namespace {

std::string KeptText(KeepPolicy keep) {
  switch (keep) {
    case KeepPolicy::kInput:
      return "its input";
    case KeepPolicy::kAttentionOutput:
      return "its input and the attention output";
    case KeepPolicy::kQueryKeyValue:
      return "its input, q, k, v and the attention output";
    case KeepPolicy::kResidual:
      return "all but gate, up and norms";
    case KeepPolicy::kGateUp:
      return "all but norms";
  }
  return "";
}

std::string CountText(double value) { return fmt::format("{:.{}f}", value, value < 10 ? 1 : 0); }

// What is there and what is needed of the limit that matters.
std::string NeedText(const RankMemory& memory, const MemoryLimits& limits) {
  const bool device_over = limits.device && memory.device_bytes() > *limits.device;
  if (limits.host && memory.host_activations() > *limits.host) {
    return fmt::format("{} of host memory of {}", BytesText(memory.host_activations()), BytesText(*limits.host));
  }
  if (limits.whole && !device_over) {
    return fmt::format("{} of {}", BytesText(memory.whole_bytes()), BytesText(*limits.whole));
  }
  if (limits.device) return fmt::format("{} of {}", BytesText(memory.device_bytes()), BytesText(*limits.device));
  return BytesText(memory.device_bytes());
}

}  // namespace

std::string BytesText(int64_t bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  auto value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 1024 && unit + 1 < std::size(kUnits)) {
    value /= 1024;
    ++unit;
  }
  return unit == 0 ? fmt::format("{} B", bytes) : fmt::format("{:.1f} {}", value, kUnits[unit]);
}

std::string PolicyText(const MemoryPolicy& policy, const StepShape& shape) {
  const KeptPlan kept = PlanKeptValues(shape, policy);
  std::string text = "each layer keeps " + KeptText(policy.keep);
  if (kept.segment > 0) {
    text = fmt::format("of every {} layers the first one's input is kept; while they run again, {}",
                       kept.checkpoint_every, text);
  }
  if (kept.host > 0) {
    text += fmt::format("; the first {} {} wait in host memory", kept.host,
                        kept.segment > 0 ? "of these inputs" : "layers' values");
  }
  text += fmt::format("; tiles of {} tokens, logits of {}", std::min(policy.tile_tokens, shape.rows),
                      std::min(policy.loss_tile_tokens, shape.rows));
  if (TilesHeads(shape, policy)) {
    text += fmt::format("; gradients of q, k and v in their place, {} key/value {} at a time", policy.tile_heads,
                        policy.tile_heads == 1 ? "head" : "heads");
  }
  return text;
}

std::vector<std::pair<std::string, int64_t>> DeviceKinds(const RankMemory& memory) {
  std::vector<std::pair<std::string, int64_t>> kinds = {
      {"weights", memory.model.weights},        {"gradients", memory.model.gradients},
      {"optimizer", memory.model.optimizer},    {"activations", memory.activations()},
      {"workspace", memory.workspace},          {"batch", memory.batch},
      {"collectives", memory.model.collectives}};
  if (memory.attention > 0) kinds.emplace_back("attention", memory.attention);  // of a GPU alone
  return kinds;
}

std::vector<std::pair<std::string, int64_t>> HostKinds(const RankMemory& memory) {
  return {
      {"activations", memory.host_activations()}, {"tokens", memory.tokens}, {"checkpoint", memory.model.checkpoint}};
}

std::string SummaryText(const PlannedJob& job, const PlanResult& result, const std::string& place) {
  const std::string of_place = place.empty() ? "" : " that " + place + " has for a rank";
  const std::string need = NeedText(result.plan.memory, job.limits);
  if (result.fits) {
    const bool limited = job.limits.device || job.limits.whole;
    return fmt::format("{}: {}{}; about {} tokens/s ({})", limited ? "fits" : "memory is not limited", need,
                       limited ? of_place : "", CountText(result.plan.time.tokens_per_second), job.device.name);
  }
  return fmt::format("does not fit: needs at least {}{}; {}", need, of_place,
                     result.would_fit.empty() ? "no shorter context fits either"
                                              : fmt::format("would fit: {}", fmt::join(result.would_fit, "; or ")));
}

}  // namespace longspan::planner

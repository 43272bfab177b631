// Work and time of a step, against counting by hand and against the rates that the design derives.
#include "worker/planner/step_time.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "tests/worker/planner/model_configs.h"
#include "worker/planner/flops.h"
#include "worker/planner/job_plan.h"

namespace longspan::planner {
namespace {

using jobfile::AttentionEdge;
using jobfile::AttentionKind;

// TRAINING's rule, pair by pair.
double CountedPairs(const jobfile::AttentionSection& attention, int64_t tokens, int64_t group, int64_t heads) {
  double pairs = 0;
  for (int64_t head = 0; head < heads; ++head) {
    const bool shifted = attention.kind == AttentionKind::kS2 && 2 * head >= heads;
    const int64_t shift = shifted ? group / 2 : 0;
    const auto block = [&](int64_t i) { return attention.kind == AttentionKind::kFull ? 0 : (i + shift) / group; };
    const int64_t last = block(tokens - 1);
    for (int64_t i = 0; i < tokens; ++i) {
      for (int64_t j = 0; j <= i; ++j) {
        const bool wraps = shifted && attention.edge == AttentionEdge::kWrap && block(i) == last && block(j) == 0;
        if (block(i) == block(j) || wraps) ++pairs;
      }
    }
  }
  return pairs;
}

TEST(AttendedPairs, AreThoseThatAttend) {
  for (const AttentionKind kind : {AttentionKind::kS2, AttentionKind::kFull, AttentionKind::kShort}) {
    for (const AttentionEdge edge : {AttentionEdge::kSplit, AttentionEdge::kWrap}) {
      jobfile::AttentionSection attention;
      attention.kind = kind;
      attention.edge = edge;
      for (const int64_t tokens : {1, 2, 7, 8, 16, 19}) {
        for (const int64_t group : {1, 3, 4, 8, 30}) {
          for (const int64_t heads : {1, 3, 4}) {
            EXPECT_EQ(AttendedPairs(attention, tokens, group, heads), CountedPairs(attention, tokens, group, heads))
                << static_cast<int>(kind) << " " << static_cast<int>(edge) << " " << tokens << " " << group;
          }
        }
      }
    }
  }
}

jobfile::JobSpec SmallSpec() {
  jobfile::JobSpec spec;
  spec.context_length = 256;
  spec.method.kind = jobfile::MethodKind::kFull;
  spec.training.global_batch = 4;
  return spec;
}

PassWork WorkUnder(const MemoryPolicy& policy, const jobfile::JobSpec& spec) {
  const PlannedJob job = JobOf(TinyQwen(), spec);
  return WorkOfPass(job, job.Shape(), policy);
}

TEST(Work, WithNothingRecomputedItIsTheModelsOwn) {
  jobfile::JobSpec spec = SmallSpec();
  spec.attention.kind = AttentionKind::kFull;
  const PlannedJob job = JobOf(TinyQwen(), spec);
  const PassWork pass = WorkUnder({KeepPolicy::kGateUp, 1, 0, 64, 64}, spec);
  const ForwardFlops flops = ForwardFlopsOfSequence({64, 64, 32, 96, 3, 3, 100}, 256, 256);
  // The gradient of the loss is made in the forward pass.
  EXPECT_DOUBLE_EQ(pass.forward.gemm_flops, flops.projections + flops.mlp + 3 * flops.other);
  EXPECT_DOUBLE_EQ(pass.backward.gemm_flops, 2 * (flops.projections + flops.mlp));
  EXPECT_NEAR(pass.forward.attention_flops, flops.attention / 2, flops.attention / 256);  // the causal half
  EXPECT_DOUBLE_EQ(pass.backward.attention_flops, 2.5 * pass.forward.attention_flops);
  EXPECT_DOUBLE_EQ(ModelFlopsOfStep(job), 4 * 3 * flops.total());
}

TEST(Work, EachPolicyRecomputesWhatItDoesNotKeep) {
  const jobfile::JobSpec spec = SmallSpec();
  const auto backward = [&](KeepPolicy keep) { return WorkUnder({keep, 1, 0, 64, 64}, spec).backward; };
  const double rows = 256, layers = 3;
  EXPECT_DOUBLE_EQ(backward(KeepPolicy::kResidual).gemm_flops - backward(KeepPolicy::kGateUp).gemm_flops,
                   layers * 2 * rows * 64 * 192);
  EXPECT_DOUBLE_EQ(backward(KeepPolicy::kQueryKeyValue).gemm_flops - backward(KeepPolicy::kResidual).gemm_flops,
                   layers * 2 * rows * 64 * 64);
  EXPECT_DOUBLE_EQ(backward(KeepPolicy::kAttentionOutput).gemm_flops - backward(KeepPolicy::kQueryKeyValue).gemm_flops,
                   layers * 2 * rows * 64 * 128);
  EXPECT_EQ(backward(KeepPolicy::kInput).gemm_flops, backward(KeepPolicy::kAttentionOutput).gemm_flops);
  EXPECT_DOUBLE_EQ(backward(KeepPolicy::kInput).attention_flops, 1.4 * backward(KeepPolicy::kGateUp).attention_flops);
}

TEST(Work, SegmentsRunAgainAllButTheLast) {
  const jobfile::JobSpec spec = SmallSpec();
  const PassWork whole = WorkUnder({KeepPolicy::kGateUp, 1, 0, 64, 64}, spec);
  const PassWork pairs = WorkUnder({KeepPolicy::kGateUp, 2, 0, 64, 64}, spec);  // layers 0 and 1 again, 2 not
  EXPECT_DOUBLE_EQ(pairs.backward.attention_flops - whole.backward.attention_flops,
                   whole.forward.attention_flops * 2 / 3);
  EXPECT_DOUBLE_EQ(pairs.forward.gemm_flops, whole.forward.gemm_flops);
  const PassWork one_segment = WorkUnder({KeepPolicy::kGateUp, 3, 0, 64, 64}, spec);
  EXPECT_DOUBLE_EQ(one_segment.executed_flops(), whole.executed_flops());
}

TEST(StepTime, HostCopiesCostOnlyWhatTheComputationDoesNotHide) {
  PlannedJob job = JobOf(TinyQwen(), SmallSpec());
  const PassWork pass = WorkOfPass(job, job.Shape(), {});
  const double hidden = TimeOfStep(job, pass, 1000, 0).seconds;
  EXPECT_EQ(hidden, TimeOfStep(job, pass, 0, 0).seconds);
  const StepTime slow = TimeOfStep(job, pass, int64_t{1} << 40, 0);
  EXPECT_GT(slow.seconds_host, 0);
  // Then nothing but the copies takes time.
  EXPECT_NEAR(slow.seconds, 4 * static_cast<double>(int64_t{1} << 40) / job.device.host_copy_bytes_per_second, 1e-6);
}

TEST(StepTime, MoreRanksTakeLessTimeForTheSameBatch) {
  jobfile::JobSpec spec = SmallSpec();
  const PlannedJob one = JobOf(TinyQwen(), spec);
  spec.resources.slots = 4;
  const PlannedJob four = JobOf(TinyQwen(), spec);
  const PassWork pass = WorkOfPass(one, one.Shape(), {});
  EXPECT_DOUBLE_EQ(TimeOfStep(four, pass, 0, 0).seconds * 4, TimeOfStep(one, pass, 0, 0).seconds);
  EXPECT_DOUBLE_EQ(TimeOfStep(four, pass, 0, 0).executed_flops, TimeOfStep(one, pass, 0, 0).executed_flops);
}

TEST(StepTime, RanksThatShareASequenceTakeTheTimeOfTheLastOne) {
  jobfile::JobSpec spec = SmallSpec();
  spec.training.micro_batch = 1;
  for (const AttentionKind kind : {AttentionKind::kS2, AttentionKind::kFull}) {
    spec.attention.kind = kind;
    spec.resources.slots = 1;
    spec.resources.sequence_parallel.reset();
    const PlannedJob whole = JobOf(TinyQwen(), spec);
    const StepTime alone = TimeOfStep(whole, WorkOfPass(whole, whole.Shape(), {}), 0, 0);
    spec.resources.slots = 4;
    spec.resources.sequence_parallel = 4;
    const PlannedJob part = JobOf(TinyQwen(), spec);
    const StepTime shared = TimeOfStep(part, WorkOfPass(part, part.Shape(), {}), 0, 0);
    EXPECT_NEAR(shared.seconds_attention / alone.seconds_attention, kind == AttentionKind::kFull ? 7.0 / 16 : 0.25,
                1e-9);
    EXPECT_NEAR(shared.executed_flops / alone.executed_flops, 1.0, 1e-9);
  }
}

// The design's own roofline of an H200 for Llama-2-7B, which counts products and attention only: an estimate with
// memory traffic lies below it, and not far.
TEST(StepTime, LiesALittleBelowTheRooflinesOfTheDesign) {
  struct Row {
    int64_t tokens;
    AttentionKind attention;
    int64_t host_gib;
    double tokens_per_second;
  };
  for (const Row& row : {Row{8192, AttentionKind::kS2, 0, 22000}, Row{32768, AttentionKind::kS2, 0, 18700},
                         Row{102400, AttentionKind::kS2, 0, 12900}, Row{262144, AttentionKind::kS2, 0, 6700},
                         Row{131072, AttentionKind::kFull, 0, 3900}, Row{1048576, AttentionKind::kS2, 128, 1700}}) {
    jobfile::JobSpec spec;
    spec.context_length = row.tokens;
    spec.attention.kind = row.attention;
    const DeviceProfile h200 = *ProfileOf("NVIDIA H200", 1);
    MemoryLimits limits = LimitsOfSlot(int64_t{141} * 1'000'000'000, h200);
    limits.host = row.host_gib << 30;
    if (row.host_gib > 0) spec.memory.keep = KeepPolicy::kInput;  // the roofline of that length has attention run again
    const PlanResult result = ChoosePolicy(JobOf(Llama2_7B(), spec, h200, limits));
    EXPECT_TRUE(result.fits) << row.tokens;
    EXPECT_LE(result.plan.time.tokens_per_second, row.tokens_per_second) << row.tokens;
    EXPECT_GE(result.plan.time.tokens_per_second, 0.8 * row.tokens_per_second) << row.tokens;
  }
}

}  // namespace
}  // namespace longspan::planner

// Attention on a GPU beside the same on the CPU, at the edges of blocks, for every kernel that a GPU has: cuDNN (as
// many query as key/value heads), flash attention (grouped heads; lists of documents), memory-efficient attention
// (fp32).
#include "worker/trainer/attention/attention.h"

#include <gtest/gtest.h>

#include "tests/trainer/tiny_llama.h"
#include "worker/trainer/attention/block_attention.h"
#include "worker/trainer/attention/dense_blocks.h"
#include "worker/trainer/attention/segments.h"
#include "worker/trainer/gpu/gpu_device.h"
#include "worker/trainer/memory/counting_allocator.h"

namespace longspan::trainer {
namespace {

using testing::RelativeError;

constexpr int64_t kGroup = 32;
constexpr int64_t kEdgeLengths[] = {1, 2, 17, kGroup - 1, kGroup, kGroup + 1, 2 * kGroup, 4 * kGroup + 7, 129};
const std::vector<std::pair<int64_t, int64_t>> kHeads = {{4, 4}, {5, 5}, {6, 3}, {9, 3}, {8, 2}, {1, 1}, {7, 1}};

enum class Kind { kFull, kShort, kSplit, kWrap };

struct Case {
  int64_t tokens, query_heads, key_value_heads, head_dim;
  Kind kind;
  at::ScalarType dtype;
  std::vector<DocumentRun> documents{};
};

std::string Name(const Case& c) {
  return "T" + std::to_string(c.tokens) + " Hq" + std::to_string(c.query_heads) + " Hkv" +
         std::to_string(c.key_value_heads) + " D" + std::to_string(c.head_dim) + " kind " +
         std::to_string(static_cast<int>(c.kind)) + " " + c10::toString(c.dtype) + " documents " +
         std::to_string(c.documents.size());
}

AttentionPlan PlanOf(const Case& c) {
  const AttentionShape shape{1, c.tokens, c.query_heads, c.key_value_heads, c.documents};
  switch (c.kind) {
    case Kind::kFull:
      return PlanFullAttention(shape);
    case Kind::kShort:
      return PlanShortAttention(shape, kGroup);
    case Kind::kSplit:
    case Kind::kWrap:
      break;
  }
  return PlanShiftedSparseAttention(shape, kGroup, c.kind == Kind::kWrap ? BlockEdge::kWrap : BlockEdge::kSplit);
}

// fp32 on the CPU, of values that bf16 has: q, k and v as one tensor, and the gradient of out.
struct Values {
  at::Tensor fused, out_gradient;
};

Values ValuesOf(const Case& c) {
  const auto draw = [&](int64_t heads, const char* name) {
    return at::empty({c.tokens, heads, c.head_dim}, at::kFloat)
        .normal_(0, 1, NamedGenerator(5, Name(c) + name))
        .to(at::kBFloat16)
        .to(at::kFloat);
  };
  return {draw(c.query_heads + 2 * c.key_value_heads, "qkv"), draw(c.query_heads, "out")};
}

struct Results {
  at::Tensor out, gradients;  // of q, k and v as one tensor; fp32 on the CPU
};

Results Compute(const Case& c, const AttentionPlan& plan, const Values& values, at::Device device,
                at::ScalarType dtype) {
  const at::TensorOptions options = at::TensorOptions(device).dtype(dtype);
  const at::Tensor fused = values.fused.to(options);
  const auto heads = [&](const at::Tensor& all) {
    return std::array<at::Tensor, 3>{all.narrow(1, 0, c.query_heads), all.narrow(1, c.query_heads, c.key_value_heads),
                                     all.narrow(1, c.query_heads + c.key_value_heads, c.key_value_heads)};
  };
  const auto [q, k, v] = heads(fused);
  const at::Tensor out = at::full({c.tokens, c.query_heads, c.head_dim}, NAN, options);
  const at::Tensor gradients = at::full(fused.sizes(), NAN, options);
  const auto logsumexp = AttentionForward(plan, q, k, v, out);
  const auto [dq, dk, dv] = heads(gradients);
  AttentionBackward(plan, {q, k, v, out}, logsumexp, values.out_gradient.to(options, false, /*copy=*/true),
                    {dq, dk, dv});
  return {out.to(at::kCPU, at::kFloat), gradients.to(at::kCPU, at::kFloat)};
}

// fp32 within rounding; bf16 at most twice as far from fp32 as the CPU's own bf16.
void ExpectIsTheCpus(const Case& c, const AttentionPlan& plan) {
  SCOPED_TRACE(Name(c));
  const Values values = ValuesOf(c);
  const Results exact = Compute(c, PlanOf(c), values, at::kCPU, at::kFloat);
  const Results actual = Compute(c, plan, values, at::kCUDA, c.dtype);
  if (c.dtype == at::kFloat) {
    EXPECT_LT(RelativeError(actual.out, exact.out), 1e-4);
    EXPECT_LT(RelativeError(actual.gradients, exact.gradients), 1e-4);
    return;
  }
  const Results rounded = Compute(c, PlanOf(c), values, at::kCPU, c.dtype);
  EXPECT_LE(RelativeError(actual.out, exact.out), 2 * RelativeError(rounded.out, exact.out) + 1e-3);
  EXPECT_LE(RelativeError(actual.gradients, exact.gradients),
            2 * RelativeError(rounded.gradients, exact.gradients) + 1e-3);
}

class AttentionGpuTest : public ::testing::Test {
 protected:
  AttentionGpuTest() {
    if (gpu::Count() == 0) throw std::runtime_error("no GPU");
  }
};

TEST_F(AttentionGpuTest, IsTheCpusAtEveryEdge) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    for (const auto& [query_heads, key_value_heads] : kHeads) {
      for (const int64_t tokens : kEdgeLengths) {
        for (const Kind kind : {Kind::kFull, Kind::kShort, Kind::kSplit, Kind::kWrap}) {
          const Case c{tokens, query_heads, key_value_heads, 64, kind, dtype};
          ExpectIsTheCpus(c, PlanOf(c));
        }
      }
    }
  }
}

TEST_F(AttentionGpuTest, IsTheCpusForEveryHeadSize) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    for (const int64_t head_dim : {16, 64, 80, 96, 128, 192, 256}) {
      for (const auto& [query_heads, key_value_heads] : std::vector<std::pair<int64_t, int64_t>>{{4, 4}, {6, 3}}) {
        for (const int64_t tokens : {kGroup - 1, 3 * kGroup + 5}) {
          const Case c{tokens, query_heads, key_value_heads, head_dim, Kind::kSplit, dtype};
          ExpectIsTheCpus(c, PlanOf(c));
        }
      }
    }
  }
}

TEST_F(AttentionGpuTest, ATokenNeverChangesAnOutputBeforeIt) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    for (const auto& [query_heads, key_value_heads] : kHeads) {
      for (const Kind kind : {Kind::kFull, Kind::kShort, Kind::kSplit, Kind::kWrap}) {
        const Case c{4 * kGroup + 7, query_heads, key_value_heads, 64, kind, dtype};
        SCOPED_TRACE(Name(c));
        const AttentionPlan plan = PlanOf(c);
        const Values values = ValuesOf(c);
        const at::Tensor before = Compute(c, plan, values, at::kCUDA, dtype).out;
        for (const int64_t changed : {1, 15, 16, 17, 31, 32, 33, 64, 134}) {
          Values other{values.fused.clone(), values.out_gradient};
          other.fused[changed].add_(1);
          const at::Tensor after = Compute(c, plan, other, at::kCUDA, dtype).out;
          EXPECT_TRUE(after.narrow(0, 0, changed).equal(before.narrow(0, 0, changed))) << "token " << changed;
          EXPECT_FALSE(after[changed].equal(before[changed]));
        }
      }
    }
  }
}

// The gradient of one output reaches its own query alone, and no key behind it.
TEST_F(AttentionGpuTest, AnOutputsGradientReachesNoTokenBehindIt) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    for (const auto& [query_heads, key_value_heads] : kHeads) {
      for (const Kind kind : {Kind::kFull, Kind::kSplit, Kind::kWrap}) {
        const Case c{3 * kGroup + 1, query_heads, key_value_heads, 64, kind, dtype};
        SCOPED_TRACE(Name(c));
        for (const int64_t token : {0, 15, 16, 31, 32, 96}) {
          Values values = ValuesOf(c);
          const at::Tensor only = at::zeros_like(values.out_gradient);
          only[token].copy_(values.out_gradient[token]);
          values.out_gradient = only;
          const at::Tensor gradients = Compute(c, PlanOf(c), values, at::kCUDA, dtype).gradients;
          const int64_t behind = c.tokens - token - 1;
          EXPECT_TRUE(gradients.narrow(0, token + 1, behind).eq(0).all().item<bool>()) << "token " << token;
          EXPECT_TRUE(gradients.narrow(0, 0, token).narrow(1, 0, query_heads).eq(0).all().item<bool>());
          EXPECT_TRUE(gradients[token].ne(0).any().item<bool>());
        }
      }
    }
  }
}

TEST_F(AttentionGpuTest, TokensThatSeeOnlyThemselvesMoveNoQueryAndNoKey) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const Case c{1, 6, 3, 64, Kind::kFull, dtype};
    const Results results = Compute(c, PlanOf(c), ValuesOf(c), at::kCUDA, dtype);
    EXPECT_TRUE(results.gradients.narrow(1, 0, 9).eq(0).all().item<bool>());
    EXPECT_TRUE(results.gradients.narrow(1, 9, 3).ne(0).any().item<bool>());
  }
}

const std::vector<std::vector<DocumentRun>> kPackings = {{{0, 1, 200}},
                                                         {{0, 1, 1}, {1, 1, 199}},
                                                         {{0, 3, 31}, {93, 1, 33}, {126, 2, 32}, {190, 10, 1}},
                                                         {{0, 1, 65}, {65, 1, 7}, {72, 1, 100}, {172, 4, 7}}};

TEST_F(AttentionGpuTest, PackedDocumentsAreTheCpusInListsToo) {
  for (const auto& [query_heads, key_value_heads] : kHeads) {
    for (const auto& documents : kPackings) {
      for (const Kind kind : {Kind::kFull, Kind::kShort, Kind::kSplit, Kind::kWrap}) {
        for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
          const Case c{200, query_heads, key_value_heads, 64, kind, dtype, documents};
          ExpectIsTheCpus(c, PlanOf(c));
          ExpectIsTheCpus(c, JoinSegments(PlanOf(c), at::kCUDA));
          ExpectIsTheCpus(c, JoinSegments(PlanOf(c), at::kCUDA, 3 * kSegmentPadding + 60));
        }
      }
    }
  }
}

TEST_F(AttentionGpuTest, NoDocumentSeesAnother) {
  const Case c{200, 6, 3, 64, Kind::kSplit, at::kBFloat16, kPackings.back()};
  const AttentionPlan plan = JoinSegments(PlanOf(c), at::kCUDA);
  const Values values = ValuesOf(c);
  const Results before = Compute(c, plan, values, at::kCUDA, c.dtype);
  Values other{values.fused.clone(), values.out_gradient};
  other.fused.narrow(0, 65, 7).add_(1);
  const Results after = Compute(c, plan, other, at::kCUDA, c.dtype);
  for (const auto& [first, rows] : {std::pair(0, 65), std::pair(72, 128)}) {
    EXPECT_TRUE(after.out.narrow(0, first, rows).equal(before.out.narrow(0, first, rows)));
    EXPECT_TRUE(after.gradients.narrow(0, first, rows).equal(before.gradients.narrow(0, first, rows)));
  }
  EXPECT_FALSE(after.out.narrow(0, 65, 7).equal(before.out.narrow(0, 65, 7)));
}

TEST_F(AttentionGpuTest, PartsGiveWhatTheWholeGives) {
  for (const auto& [query_heads, key_value_heads] : kHeads) {
    const int64_t group = query_heads / key_value_heads;
    const auto draw = [&](int64_t heads, const char* name) {
      return at::empty({5, heads, 96, 64}).normal_(0, 1, NamedGenerator(6, name)).to(at::kCUDA, at::kBFloat16);
    };
    const at::Tensor q = draw(query_heads, "q"), k = draw(key_value_heads, "k"), v = draw(key_value_heads, "v");
    const auto run = [&](const planner::DensePart& part) {
      const at::Tensor out = at::empty_like(q);
      const at::Tensor logsumexp = at::empty({5, query_heads, 96}, q.options().dtype(at::kFloat));
      DenseBlocksForward({q, out, logsumexp}, {{k, v, true}}, part);
      return out;
    };
    const at::Tensor expected = run({5, key_value_heads});
    EXPECT_TRUE(run({1, 1}).equal(expected)) << "groups of " << group;
    EXPECT_TRUE(run({2, std::max<int64_t>(1, key_value_heads / 2)}).equal(expected)) << "groups of " << group;
  }
}

// What the planner counts for one call, part by part, is what the allocator sees; blocks of 2 MiB are its grain.
TEST_F(AttentionGpuTest, TemporariesArePlannedWithin5Percent) {
  constexpr int64_t kTokens = 16384, kBlocks = 4, kSize = 128;
  constexpr double kGrain = 4 << 20;
  for (const at::ScalarType dtype : {at::kBFloat16, at::kFloat}) {
    for (const auto& [query_heads, key_value_heads] : std::vector<std::pair<int64_t, int64_t>>{{16, 16}, {16, 4}}) {
      const auto make = [&, heads_of = query_heads + 2 * key_value_heads] {
        return at::zeros({kTokens, heads_of, kSize}, at::TensorOptions(at::kCUDA).dtype(dtype));
      };
      const at::Tensor fused = make(), gradients = make();
      const at::Tensor out = at::zeros({kTokens, query_heads, kSize}, fused.options()),
                       out_gradient = at::ones_like(out);
      const AttentionPlan plan = PlanShortAttention({1, kTokens, query_heads, key_value_heads}, kTokens / kBlocks);
      ASSERT_EQ(plan.size(), 1u);
      const auto heads = [&, queries = query_heads, keys = key_value_heads](const at::Tensor& all) {
        return std::array<at::Tensor, 3>{all.narrow(1, 0, queries), all.narrow(1, queries, keys),
                                         all.narrow(1, queries + keys, keys)};
      };
      const auto [q, k, v] = heads(fused);
      const auto [dq, dk, dv] = heads(gradients);
      const std::vector<at::Tensor> logsumexp =
          SplitLogsumexp(plan, at::empty({LogsumexpSize(plan)}, fused.options().dtype(at::kFloat)));
      const planner::DenseCall call =
          DenseCallOf(QueryView(q, plan[0]), KeyValueView(k, plan[0]), KeyValueView(v, plan[0]));
      const planner::DenseCall part = Cut(call, PartOf(call));
      const auto peak_of = [&](const auto& run) {
        run();  // plans of cuDNN, modules of kernels
        const int64_t before = DeviceMemoryNow(at::kCUDA).live_bytes;
        ResetDeviceMemoryPeak(at::kCUDA);
        run();
        return static_cast<double>(DeviceMemoryNow(at::kCUDA).peak_bytes - before);
      };
      const double forward = peak_of([&] { AttentionForward(plan, q, k, v, out, logsumexp); });
      const double backward =
          peak_of([&] { AttentionBackward(plan, {q, k, v, out}, logsumexp, out_gradient, {dq, dk, dv}); });
      const auto planned_forward = static_cast<double>(ForwardTemporaries(part));
      const auto planned_backward = static_cast<double>(BackwardTemporaries(part));
      EXPECT_LT(std::abs(forward - planned_forward), 0.05 * planned_forward + kGrain)
          << dtype << " " << key_value_heads << ": " << forward << " of " << planned_forward;
      EXPECT_LT(std::abs(backward - planned_backward), 0.05 * planned_backward + kGrain)
          << dtype << " " << key_value_heads << ": " << backward << " of " << planned_backward;
    }
  }
}

TEST_F(AttentionGpuTest, HeadsThatNoKernelKnowsAreRefused) {
  const Case c{16, 4, 4, 20, Kind::kFull, at::kBFloat16};
  EXPECT_THROW(Compute(c, PlanOf(c), ValuesOf(c), at::kCUDA, c.dtype), c10::Error);
}

}  // namespace
}  // namespace longspan::trainer

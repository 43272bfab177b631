// A text that is read piece by piece through a cache gives the logits of the text read at once.
#include "worker/trainer/model/continuation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "tests/trainer/tiny_llama.h"

namespace longspan::trainer {
namespace {

using ::testing::ElementsAre;
using ::testing::FieldsAre;

std::vector<int64_t> Ids(const at::Tensor& ids, int64_t begin, int64_t end) {
  const int64_t* first = ids.const_data_ptr<int64_t>();
  return {first + begin, first + end};
}

struct Case {
  const char* name;
  testing::TinyShape shape;
  jobfile::MethodKind method;
};

class ContinuationTest : public ::testing::TestWithParam<Case> {
 protected:
  std::unique_ptr<CausalLm> Load(int64_t tile_tokens) {
    testing::WriteTinyModel(folder_.path(), GetParam().shape);
    ModelOptions options;
    options.spec = testing::TinySpec(folder_.path(), 64);
    options.spec.method.kind = GetParam().method;
    options.spec.attention.kind = jobfile::AttentionKind::kFull;
    options.memory.tile_tokens = tile_tokens;
    options.dropout = false;
    std::unique_ptr<CausalLm> model = CausalLm::Load(options);
    testing::DrawLora(model.get());
    return model;
  }
  testing::TemporaryFolder folder_;
};

TEST_P(ContinuationTest, PiecesGiveTheLogitsOfTheWhole) {
  constexpr int64_t kTokens = 37;
  const at::Tensor ids = testing::RandomIds(1, kTokens, GetParam().shape.vocab);
  for (const int64_t tile : {1, 5, 64, 4096}) {
    const std::unique_ptr<CausalLm> model = Load(tile);
    const at::Tensor whole = model->TrainingLogits(ids)[0];  // (T, V)
    for (const std::vector<int64_t>& borders :
         std::vector<std::vector<int64_t>>{{0, 37}, {0, 1, 2, 37}, {0, 20, 21, 22, 37}, {0, 36, 37}}) {
      KeyValueCache cache(kTokens);
      for (size_t piece = 0; piece + 1 < borders.size(); ++piece) {
        const at::Tensor logits = model->Continue({{&cache, Ids(ids, borders[piece], borders[piece + 1])}}, {});
        EXPECT_LT(testing::RelativeError(logits[0], whole[borders[piece + 1] - 1]), 1e-5)
            << "tile " << tile << ", up to token " << borders[piece + 1];
      }
      EXPECT_EQ(cache.tokens(), kTokens);
    }
  }
}

TEST_P(ContinuationTest, SequencesOfOneCallDoNotSeeEachOther) {
  const std::unique_ptr<CausalLm> model = Load(8);
  const int64_t vocab = GetParam().shape.vocab;
  const std::vector<int64_t> lengths = {1, 13, 8, 3};
  std::vector<at::Tensor> texts;
  for (size_t i = 0; i < lengths.size(); ++i)
    texts.push_back(testing::RandomIds(1, lengths[i] + 1, vocab, static_cast<int64_t>(i)));
  std::vector<KeyValueCache> caches;
  std::vector<Continuation> prompts, steps;
  for (const int64_t length : lengths) caches.emplace_back(length + 1);
  for (size_t i = 0; i < lengths.size(); ++i) {
    prompts.push_back({&caches[i], Ids(texts[i], 0, lengths[i])});
    steps.push_back({&caches[i], Ids(texts[i], lengths[i], lengths[i] + 1)});
  }
  const at::Tensor first = model->Continue(prompts, {});
  const at::Tensor second = model->Continue(steps, {});
  for (size_t i = 0; i < lengths.size(); ++i) {
    const at::Tensor alone = model->TrainingLogits(texts[i])[0];
    const auto row = static_cast<int64_t>(i);
    EXPECT_LT(testing::RelativeError(first[row], alone[lengths[i] - 1]), 1e-5) << i;
    EXPECT_LT(testing::RelativeError(second[row], alone[lengths[i]]), 1e-5) << i;
  }
}

TEST_P(ContinuationTest, BaseAndRescaledDifferFromExtended) {
  const std::unique_ptr<CausalLm> model = Load(64);
  const at::Tensor ids = testing::RandomIds(1, 30, GetParam().shape.vocab);
  const auto logits = [&](bool adapted, RopeScaling rope) {
    KeyValueCache cache(30);
    CausalLm::EvaluationOptions options;
    options.adapted = adapted;
    options.rope = rope;
    return model->Continue({{&cache, Ids(ids, 0, 30)}}, options);
  };
  const at::Tensor extended = logits(true, RopeScaling::kExtended);
  const at::Tensor rescaled = logits(false, RopeScaling::kExtended);
  const at::Tensor base = logits(false, RopeScaling::kOriginal);
  EXPECT_GT(testing::RelativeError(rescaled, extended), 1e-3);
  EXPECT_GT(testing::RelativeError(base, rescaled), 1e-3);
}

INSTANTIATE_TEST_SUITE_P(
    Models, ContinuationTest,
    ::testing::Values(Case{"grouped_heads", {}, jobfile::MethodKind::kLongLora},
                      Case{"as_many_key_value_heads", {.heads = 4, .key_value_heads = 4}, jobfile::MethodKind::kLora},
                      Case{"one_key_value_head",
                           {.heads = 3, .key_value_heads = 1, .layers = 3, .tied = true},
                           jobfile::MethodKind::kLora}),
    [](const auto& info) { return info.param.name; });

TEST(PlanContinuationTest, PassesAreFullAndKeepTheOrder) {
  KeyValueCache first(10), second(10), third(10);
  second.Advance(4);
  const auto passes = PlanContinuation({{&first, {1, 2, 3}}, {&second, {4, 5, 6, 7, 8}}, {&third, {9}}}, 4);
  ASSERT_EQ(passes.size(), 3u);
  EXPECT_THAT(passes[0].parts, ElementsAre(FieldsAre(0, 0, 0, 3, 0, true), FieldsAre(1, 0, 3, 1, 4, false)));
  EXPECT_THAT(passes[1].parts, ElementsAre(FieldsAre(1, 1, 0, 4, 5, true)));
  EXPECT_THAT(passes[2].parts, ElementsAre(FieldsAre(2, 0, 0, 1, 0, true)));
  EXPECT_EQ(passes[2].rows, 1);
}

TEST(PlanContinuationTest, ACacheWithoutRoomIsAnError) {
  KeyValueCache cache(2);
  EXPECT_THROW(PlanContinuation({{&cache, {1, 2, 3}}}, 4), c10::Error);
  EXPECT_THROW(PlanContinuation({{&cache, {}}}, 4), c10::Error);
}

// Against a mask over the whole text, which the code under test never makes.
TEST(CachedAttentionTest, ASlidingWindowHidesWhatIsTooOld) {
  constexpr int64_t kTokens = 23, kHeads = 4, kKeyValueHeads = 2, kDim = 6;
  const auto draw = [](int64_t heads, const char* name) {
    return at::empty({kTokens, heads, kDim}, at::kFloat).normal_(0, 1, NamedGenerator(3, name));
  };
  const at::Tensor q = draw(kHeads, "q"), k = draw(kKeyValueHeads, "k"), v = draw(kKeyValueHeads, "v");
  const at::Tensor ages = at::arange(kTokens).unsqueeze(1) - at::arange(kTokens).unsqueeze(0);
  for (const int64_t window : {1, 3, 8, 22, 23, 40}) {
    const at::Tensor hidden = ages.lt(0).logical_or(ages.ge(window));
    const auto heads = [](const at::Tensor& rows) {
      return rows.repeat_interleave(kHeads / rows.size(1), 1).transpose(0, 1);
    };
    const at::Tensor scores = at::matmul(heads(q), heads(k).transpose(1, 2)) / std::sqrt(double{kDim});
    const at::Tensor expected =
        at::matmul(at::softmax(scores.masked_fill(hidden, -INFINITY), -1), heads(v)).transpose(0, 1);
    for (const int64_t piece : {1, 2, 9, 23}) {
      KeyValueCache cache(kTokens);
      const at::Tensor out = at::empty_like(q);
      for (int64_t begin = 0; begin < kTokens; begin += piece) {
        const int64_t rows = std::min(piece, kTokens - begin);
        const auto part = [&](const at::Tensor& all) { return all.narrow(0, begin, rows); };
        AttendCached({{{&cache, 0, rows}}}, {0, window}, part(q), part(k), part(v), part(out));
        cache.Advance(rows);
      }
      EXPECT_LT(testing::RelativeError(out, expected), 1e-5) << "window " << window << ", pieces of " << piece;
    }
  }
}

}  // namespace
}  // namespace longspan::trainer

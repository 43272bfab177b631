// Rows packed from documents: each document trains as if it stood alone.
#include "worker/trainer/model/packed_documents.h"

#include <gtest/gtest.h>

#include <map>

#include "tests/trainer/tiny_llama.h"
#include "worker/trainer/model/causal_lm.h"

namespace longspan::trainer {
namespace {

using namespace longspan::trainer::testing;

at::Tensor Ids(const std::vector<std::vector<int64_t>>& rows) {
  std::vector<at::Tensor> tensors;
  for (const auto& row : rows) tensors.push_back(at::tensor(row, at::kLong));
  return at::stack(tensors);
}

TEST(FindDocuments, NewOnesStartWhereTheIdChangesAndAtEachRow) {
  const PackedDocuments documents = FindDocuments(Ids({{5, 5, -1, -1, 5}, {5, 5, 5, 5, 5}}));
  std::vector<std::vector<int64_t>> runs;
  for (const DocumentRun& run : documents.runs) runs.push_back({run.first_row, run.documents, run.tokens});
  EXPECT_EQ(runs, (std::vector<std::vector<int64_t>>{{0, 2, 2}, {4, 1, 1}, {5, 1, 5}}));
  EXPECT_TRUE(at::equal(documents.positions, at::tensor({0, 1, 0, 1, 0, 0, 1, 2, 3, 4}, at::kLong)));
  EXPECT_EQ(documents.tokens_max, 5);
  EXPECT_THROW(FindDocuments(at::zeros({4}, at::kLong)), c10::Error);
  EXPECT_THROW(FindDocuments(at::zeros({1, 4}, at::kInt)), c10::Error);
}

TEST(FindDocuments, OneDocumentPerRowIsTheUnpackedBatch) {
  const PackedDocuments documents = FindDocuments(at::zeros({3, 4}, at::kLong));
  ASSERT_EQ(documents.runs.size(), 1u);
  EXPECT_EQ(documents.runs[0].documents, 3);
  EXPECT_EQ(documents.runs[0].tokens, 4);
}

struct AttentionCase {
  const char* name;
  jobfile::AttentionKind kind;
  jobfile::AttentionEdge edge;
};

constexpr AttentionCase kAttentions[] = {
    {"split", jobfile::AttentionKind::kS2, jobfile::AttentionEdge::kSplit},
    {"wrap", jobfile::AttentionKind::kS2, jobfile::AttentionEdge::kWrap},
    {"short", jobfile::AttentionKind::kShort, jobfile::AttentionEdge::kSplit},
    {"full", jobfile::AttentionKind::kFull, jobfile::AttentionEdge::kSplit},
};

class PackedTest : public ::testing::TestWithParam<AttentionCase> {
 protected:
  void SetUp() override {
    shape_.heads = 6;
    shape_.key_value_heads = 3;
    WriteTinyModel(folder_.path(), shape_);
  }

  ModelOptions Options(jobfile::MethodKind method) const {
    ModelOptions options;
    options.spec = TinySpec(folder_.path(), 64);
    options.spec.method.kind = method;
    options.spec.attention.kind = GetParam().kind;
    options.spec.attention.edge = GetParam().edge;
    return options;
  }
  static std::unique_ptr<CausalLm> Load(const ModelOptions& options) {
    auto model = CausalLm::Load(options);
    DrawLora(model.get());
    return model;
  }
  // Documents of these lengths in each row, and labels of which some are not scored.
  Batch Packed(const std::vector<std::vector<int64_t>>& lengths) const {
    std::vector<std::vector<int64_t>> ids;
    for (const auto& row : lengths) {
      ids.emplace_back();
      for (size_t document = 0; document < row.size(); ++document) {
        ids.back().insert(ids.back().end(), static_cast<size_t>(row[document]), static_cast<int64_t>(document % 2));
      }
    }
    Batch batch;
    batch.document_ids = Ids(ids);
    batch.input_ids = RandomIds(batch.document_ids.size(0), batch.document_ids.size(1), shape_.vocab);
    batch.labels = batch.input_ids.clone();
    batch.labels.masked_fill_(batch.labels.remainder(5).eq(0), -100);
    return batch;
  }
  static std::vector<Batch> OneByOne(const Batch& packed, const std::vector<std::vector<int64_t>>& lengths) {
    std::vector<Batch> batches;
    for (size_t row = 0; row < lengths.size(); ++row) {
      int64_t begin = 0;
      for (const int64_t length : lengths[row]) {
        Batch batch;
        batch.input_ids = packed.input_ids.narrow(0, static_cast<int64_t>(row), 1).narrow(1, begin, length);
        batch.labels = packed.labels.narrow(0, static_cast<int64_t>(row), 1).narrow(1, begin, length);
        batches.push_back(batch);
        begin += length;
      }
    }
    return batches;
  }
  // Of the sum over all batches.
  static LossSum Train(CausalLm* model, const std::vector<Batch>& batches,
                       std::map<std::string, at::Tensor>* gradients) {
    model->ZeroGradients();
    LossSum sum;
    for (const Batch& batch : batches) {
      const LossSum one = model->ForwardBackward(batch);
      sum.loss += one.loss;
      sum.tokens += one.tokens;
    }
    for (const Trainable& trainable : model->trainables()) (*gradients)[trainable.name] = trainable.gradient.clone();
    return sum;
  }
  static void ExpectSame(const std::map<std::string, at::Tensor>& actual,
                         const std::map<std::string, at::Tensor>& expected) {
    ASSERT_EQ(actual.size(), expected.size());
    for (const auto& [name, value] : expected) EXPECT_LT(RelativeError(actual.at(name), value), 1e-5) << name;
  }

  TinyShape shape_;
  TemporaryFolder folder_;
};

const std::vector<std::vector<int64_t>> kPackings = {{5, 1, 17, 9, 13}, {45}, {1, 1, 8, 8, 8, 16, 3}, {20, 20, 5}};

TEST_P(PackedTest, APackedBatchIsItsDocumentsOneByOneUnderEveryKeepPolicy) {
  for (const auto method : {jobfile::MethodKind::kFull, jobfile::MethodKind::kLongLora}) {
    ModelOptions options = Options(method);
    const Batch packed = Packed(kPackings);
    std::map<std::string, at::Tensor> expected;
    const LossSum apart = Train(Load(options).get(), OneByOne(packed, kPackings), &expected);
    for (const auto keep : {KeepPolicy::kInput, KeepPolicy::kAttentionOutput, KeepPolicy::kQueryKeyValue,
                            KeepPolicy::kResidual, KeepPolicy::kGateUp}) {
      options.memory.keep = keep;
      std::map<std::string, at::Tensor> gradients;
      const LossSum together = Train(Load(options).get(), {packed}, &gradients);
      EXPECT_EQ(together.tokens, apart.tokens);
      EXPECT_NEAR(together.loss / apart.loss, 1.0, 1e-6);
      ExpectSame(gradients, expected);
    }
  }
}

TEST_P(PackedTest, DynamicPositionsAreThoseOfEachDocumentsLength) {
  ModelOptions options = Options(jobfile::MethodKind::kLongLora);
  options.spec.rope.emplace();
  options.spec.rope->kind = jobfile::RopeKind::kDynamic;
  options.spec.rope->factor = 2;
  const std::vector<std::vector<int64_t>> lengths = {{36, 40, 4}, {80}, {33, 47}};  // above and below the original 32
  const Batch packed = Packed(lengths);
  std::map<std::string, at::Tensor> expected, gradients;
  const auto model = Load(options);
  const LossSum apart = Train(model.get(), OneByOne(packed, lengths), &expected);
  EXPECT_NEAR(Train(model.get(), {packed}, &gradients).loss / apart.loss, 1.0, 1e-6);
  ExpectSame(gradients, expected);
}

TEST_P(PackedTest, OneDocumentPerRowIsTheUnpackedBatchToTheBit) {
  const auto model = Load(Options(jobfile::MethodKind::kLongLora));
  Batch batch = Packed({{21}, {21}});
  std::map<std::string, at::Tensor> with, without;
  const LossSum first = Train(model.get(), {batch}, &with);
  batch.document_ids.reset();
  EXPECT_EQ(Train(model.get(), {batch}, &without).loss, first.loss);
  for (const auto& [name, value] : without) EXPECT_TRUE(at::equal(with.at(name), value)) << name;
}

TEST_P(PackedTest, ChangingADocumentNeverChangesAnother) {
  shape_.layers = 6;
  WriteTinyModel(folder_.path(), shape_);
  const auto model = Load(Options(jobfile::MethodKind::kFull));
  const std::vector<std::vector<int64_t>> lengths = {{9, 1, 14, 16}, {20, 20}};
  const Batch batch = Packed(lengths);
  const at::Tensor before = model->TrainingLogits(batch.input_ids, batch.document_ids);
  int64_t begin = 0;
  for (const int64_t length : lengths[0]) {
    const at::Tensor other = batch.input_ids.clone();
    other[0].narrow(0, begin, length).add_(1).remainder_(shape_.vocab);
    const at::Tensor same = model->TrainingLogits(other, batch.document_ids).eq(before).all(2);
    EXPECT_FALSE(same[0].narrow(0, begin, length).any().item<bool>()) << "document at " << begin;
    EXPECT_EQ(same.logical_not().sum().item<int64_t>(), length) << "document at " << begin;
    begin += length;
  }
}

TEST_P(PackedTest, PaddingMovesNothing) {
  const auto model = Load(Options(jobfile::MethodKind::kFull));
  const std::vector<std::vector<int64_t>> lengths = {{12, 9, 7}, {20, 3, 5}};  // 7 and 5 are padding
  Batch batch = Packed(lengths);
  const auto pad = [&](int64_t token) {
    batch.input_ids[0].narrow(0, 21, 7).fill_(token);
    batch.input_ids[1].narrow(0, 23, 5).fill_(token);
    batch.labels[0].narrow(0, 21, 7).fill_(-100);
    batch.labels[1].narrow(0, 23, 5).fill_(-100);
  };
  // A token that occurs nowhere else: the gradient of its embedding is what the padding gives.
  const int64_t unused = shape_.vocab - 1;
  batch.input_ids.remainder_(unused);
  batch.labels.copy_(batch.input_ids);
  pad(unused);
  std::map<std::string, at::Tensor> gradients, other;
  const LossSum sum = Train(model.get(), {batch}, &gradients);
  EXPECT_EQ(sum.tokens, 11 + 8 + 19 + 2);
  EXPECT_TRUE(gradients.at("model.embed_tokens.weight")[unused].eq(0).all().item<bool>());
  pad(3);
  EXPECT_EQ(Train(model.get(), {batch}, &other).loss, sum.loss);
  for (const auto& [name, value] : gradients) EXPECT_TRUE(at::equal(other.at(name), value)) << name;
}

TEST_P(PackedTest, DocumentsOfAnotherShapeThanTheTokensAreRefused) {
  const auto model = Load(Options(jobfile::MethodKind::kFull));
  Batch batch = Packed({{9, 4}});
  batch.document_ids = batch.document_ids.narrow(1, 0, 12);
  EXPECT_THROW(model->ForwardBackward(batch), c10::Error);
  EXPECT_THROW(model->TrainingLogits(batch.input_ids, batch.document_ids), c10::Error);
}

INSTANTIATE_TEST_SUITE_P(EveryAttention, PackedTest, ::testing::ValuesIn(kAttentions),
                         [](const ::testing::TestParamInfo<AttentionCase>& info) { return info.param.name; });

}  // namespace
}  // namespace longspan::trainer

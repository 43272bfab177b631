// Documents into rows: what stands where, in which order rows come, and that nothing is lost.
#include <gmock/gmock.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <random>
#include <set>

#include "tests/trainer/data/corpus_fixture.h"
#include "worker/trainer/data/dataset.h"

namespace longspan::trainer {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::Le;

std::vector<TokenRange> Documents(const std::vector<int64_t>& lengths) {
  std::vector<TokenRange> documents;
  int64_t begin = 0;
  for (const int64_t length : lengths) {
    documents.push_back({begin, begin + length});
    begin += length;
  }
  return documents;
}

std::vector<std::vector<int64_t>> Lengths(const RowPlan& plan) {
  std::vector<std::vector<int64_t>> rows;
  for (int64_t row = 0; row < plan.rows(); ++row) {
    rows.emplace_back();
    for (int64_t piece = plan.row_begins[static_cast<size_t>(row)];
         piece < plan.row_begins[static_cast<size_t>(row) + 1]; ++piece) {
      rows.back().push_back(plan.pieces[static_cast<size_t>(piece)].size());
    }
  }
  return rows;
}

// How often each token stands in a row.
std::map<int64_t, int> Uses(const RowPlan& plan) {
  std::map<int64_t, int> uses;
  for (const TokenRange& piece : plan.pieces) {
    for (int64_t token = piece.begin; token < piece.end; ++token) ++uses[token];
  }
  return uses;
}

TEST(PackDocuments, PutsAPieceWhereTheLeastSpaceIsLeft) {
  EXPECT_THAT(Lengths(PackDocuments(Documents({3, 6, 5, 4, 2}), 10)),
              ElementsAre(ElementsAre(6, 4), ElementsAre(5, 3, 2)));
  EXPECT_THAT(Lengths(PackDocuments(Documents({10}), 10)), ElementsAre(ElementsAre(10)));
  EXPECT_THAT(Lengths(PackDocuments(Documents({1, 1, 1}), 2)), ElementsAre(ElementsAre(1, 1), ElementsAre(1)));
  EXPECT_THAT(Lengths(PackDocuments({}, 10)), IsEmpty());
}

TEST(PackDocuments, CutsWhatIsLongerThanAContext) {
  const RowPlan plan = PackDocuments(Documents({25, 4}), 10);
  EXPECT_THAT(Lengths(plan), ElementsAre(ElementsAre(10), ElementsAre(10), ElementsAre(5, 4)));
  EXPECT_EQ(plan.pieces[1], (TokenRange{10, 20}));
  EXPECT_EQ(plan.RowTokens(2), 9);
  EXPECT_EQ(plan.RowWork(2), 41);
}

TEST(PackDocuments, EveryTokenStandsInExactlyOneRowAndNoRowIsTooLong) {
  std::mt19937 random(5);
  for (const int64_t context : {1, 2, 7, 64}) {
    std::vector<int64_t> lengths;
    for (int i = 0; i < 300; ++i) lengths.push_back(1 + static_cast<int64_t>(random() % 100));
    const RowPlan plan = PackDocuments(Documents(lengths), context);
    const int64_t total = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
    EXPECT_EQ(plan.tokens(), total);
    EXPECT_EQ(plan.dropped_tokens, 0);
    const auto uses = Uses(plan);
    EXPECT_EQ(static_cast<int64_t>(uses.size()), total);
    for (const auto& [token, count] : uses) ASSERT_EQ(count, 1) << token;
    std::vector<int64_t> rows;
    for (int64_t row = 0; row < plan.rows(); ++row) rows.push_back(plan.RowTokens(row));
    EXPECT_THAT(rows, Each(Le(context)));
    EXPECT_LE(static_cast<double>(plan.rows() * context),
              1.05 * static_cast<double>(total) + static_cast<double>(context));
  }
}

TEST(OneRowPerDocument, DropsWhatExceedsAContext) {
  const RowPlan plan = OneRowPerDocument(Documents({3, 12, 1}), 10);
  EXPECT_THAT(Lengths(plan), ElementsAre(ElementsAre(3), ElementsAre(10), ElementsAre(1)));
  EXPECT_EQ(plan.dropped_tokens, 2);
}

TEST(SplitData, PackedTrainingTextIsWhatIsLeftOfEachDocument) {
  const std::vector<uint64_t> offsets = {0, 30, 60, 90, 120, 200};
  SplitOptions options;
  options.rows = RowKind::kPacked;
  options.holdout_fraction = 0.25;
  options.context_length = 16;
  const DataSplit split = SplitData(offsets.data(), 5, options);
  EXPECT_EQ(split.heldout_tokens, 50);
  EXPECT_EQ(split.training_tokens, 150);
  EXPECT_EQ(split.plan.tokens(), 150);
  EXPECT_EQ(split.padding_tokens, split.rows * 16 - 150);
  std::set<int64_t> seen;
  for (const auto& [token, count] : Uses(split.plan)) seen.insert(token);
  for (const TokenRange& range : split.heldout) {
    for (int64_t token = range.begin; token < range.end; ++token) EXPECT_TRUE(seen.insert(token).second);
  }
  EXPECT_EQ(seen.size(), 200u);
  for (const TokenRange& piece : split.plan.pieces) {
    const auto document = std::upper_bound(offsets.begin(), offsets.end(), static_cast<uint64_t>(piece.begin));
    EXPECT_LE(static_cast<uint64_t>(piece.end), *document) << "a piece crosses a border";
  }
}

// An evaluation measures all of a corpus: with borders kept that is every document, not one long text.
TEST(SplitData, WhereEverythingIsMeasuredEveryDocumentKeepsItsBorders) {
  const std::vector<uint64_t> offsets = {0, 30, 30, 60, 200};
  SplitOptions options;
  options.holdout_fraction = 1;
  options.context_length = 16;
  for (const RowKind rows : {RowKind::kJoined, RowKind::kPacked, RowKind::kRecords}) {
    options.rows = rows;
    options.whole_documents = rows == RowKind::kRecords;
    const DataSplit split = SplitData(offsets.data(), 4, options);
    EXPECT_EQ(split.heldout_tokens, 200);
    EXPECT_EQ(split.training_tokens, 0);
    EXPECT_EQ(split.rows, 0);
    EXPECT_EQ(split.heldout.size(), 3);
  }
  options.whole_documents = false;
  EXPECT_THAT(Lengths(PlanHeldOut(SplitData(offsets.data(), 4, options), false, 100)),
              ElementsAre(ElementsAre(100), ElementsAre(40, 30, 30)));
}

TEST(SplitData, RecordsAreHeldOutWholeAndNeverAll) {
  const std::vector<uint64_t> offsets = {0, 30, 60, 90, 120, 200};
  SplitOptions options;
  options.rows = RowKind::kRecords;
  options.whole_documents = true;
  options.holdout_fraction = 0.25;
  options.context_length = 100;
  const DataSplit split = SplitData(offsets.data(), 5, options);
  for (const TokenRange& range : split.heldout) {
    EXPECT_TRUE(std::count(offsets.begin(), offsets.end(), range.begin) &&
                std::count(offsets.begin(), offsets.end(), range.end));
  }
  EXPECT_GE(split.heldout_tokens, 50);
  EXPECT_EQ(split.rows + static_cast<int64_t>(split.heldout.size()), 5);
  options.holdout_fraction = 0.5;
  const std::vector<uint64_t> one = {0, 30};
  EXPECT_EQ(SplitData(one.data(), 1, options).rows, 1);
}

RowPlan RandomPlan(int64_t rows, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<int64_t> lengths;
  for (int64_t i = 0; i < rows; ++i) lengths.push_back(1 + static_cast<int64_t>(random() % 1000));
  return OneRowPerDocument(Documents(lengths), 1000);
}

TEST(RowOrder, BucketsVisitEveryRowOncePerEpochForEveryBatchSize) {
  for (const int64_t rows : {1, 2, 5, 16, 61, 200}) {
    const RowOrder order = RowOrder::Bucketed(RandomPlan(rows, 3));
    for (const int64_t batch : {1, 2, 3, 7, 16, 64}) {
      std::vector<int64_t> stream;
      for (int64_t step = 0; static_cast<int64_t>(stream.size()) < 4 * rows; ++step) {
        for (const int64_t row : order.Step(9, step, batch)) stream.push_back(row);
      }
      for (int64_t epoch = 0; epoch < 4; ++epoch) {
        const std::set<int64_t> seen(stream.begin() + epoch * rows, stream.begin() + (epoch + 1) * rows);
        ASSERT_EQ(static_cast<int64_t>(seen.size()), rows) << "rows " << rows << " batch " << batch;
      }
    }
  }
}

TEST(RowOrder, RowsOfABucketAreAlikeAndEpochsDiffer) {
  const int64_t rows = 1000, batch = 8;
  const RowPlan plan = RandomPlan(rows, 4);
  const auto spread = [&](const RowOrder& order) {
    double sum = 0;
    for (int64_t step = 0; step < 3 * rows / batch; ++step) {
      int64_t shortest = 1000, longest = 0;
      for (const int64_t row : order.Step(2, step, batch)) {
        shortest = std::min(shortest, plan.RowTokens(row));
        longest = std::max(longest, plan.RowTokens(row));
      }
      sum += static_cast<double>(longest - shortest) / (3.0 * rows / batch);
    }
    return sum;
  };
  const RowOrder buckets = RowOrder::Bucketed(plan);
  EXPECT_LT(spread(buckets), 0.1 * spread(RowOrder(rows)));
  EXPECT_NE(buckets.Step(2, 0, batch), buckets.Step(2, rows / batch, batch));
  EXPECT_NE(buckets.Step(2, 0, batch), buckets.Step(3, 0, batch));
  EXPECT_EQ(buckets.Step(2, 5, batch), RowOrder::Bucketed(plan).Step(2, 5, batch));
}

TEST(RowOrder, NeverChangesBecauseResumedRunsDependOnIt) {
  EXPECT_THAT(RowOrder(1000).Step(7, 3, 4), ElementsAre(792, 269, 196, 348));
  EXPECT_THAT(RowOrder::Bucketed(RandomPlan(1000, 4)).Step(7, 3, 4), ElementsAre(476, 412, 484, 546));
}

class PackedDatasetTest : public CorpusTest {
 protected:
  // Documents of 2 to some 60 tokens, each of one letter.
  std::filesystem::path Corpus() const {
    std::string lines;
    for (int i = 0; i < 40; ++i) {
      lines += "{\"text\": \"";
      for (int word = 0; word < 1 + i * 7 % 23; ++word) lines += std::string(1, static_cast<char>('a' + i % 26)) + " ";
      lines += "\"}\n";
    }
    return Write("corpus.jsonl", lines);
  }
  Dataset Open(double holdout_fraction, bool bucketing = false) const {
    auto options = Options({Corpus()});
    options.holdout_fraction = holdout_fraction;
    options.context_length = 32;
    options.longest_evaluation_length = 32;
    options.packing = true;
    options.bucketing = bucketing;
    Prepare(options);
    return Dataset::Open(options.work);
  }
  static std::vector<int64_t> AllIds(const Dataset& dataset) {
    std::vector<int64_t> ids(static_cast<size_t>(dataset.training_sequences()));
    std::iota(ids.begin(), ids.end(), int64_t{0});
    return ids;
  }
};

TEST_F(PackedDatasetTest, RowsHoldWholeDocumentsThenPaddingThatIsNeverScored) {
  const Dataset dataset = Open(0);
  const Rows rows = dataset.ReadRows(AllIds(dataset));
  ASSERT_EQ(rows.rows, dataset.training_sequences());
  ASSERT_LE(rows.tokens, 32);
  int64_t tokens = 0;
  for (int64_t row = 0; row < rows.rows; ++row) {
    const auto documents = dataset.DocumentLengths(row);
    int64_t place = row * rows.tokens;
    int64_t before = -1;
    for (const int64_t length : documents) {
      const int64_t id = rows.document_ids[static_cast<size_t>(place)];
      EXPECT_NE(id, before);
      for (int64_t i = 0; i < length; ++i, ++place) {
        EXPECT_EQ(rows.document_ids[static_cast<size_t>(place)], id);
        EXPECT_EQ(rows.labels[static_cast<size_t>(place)], rows.input_ids[static_cast<size_t>(place)]);
      }
      before = id;
      tokens += length;
    }
    EXPECT_EQ(place, row * rows.tokens + rows.lengths[static_cast<size_t>(row)]);
    for (; place < (row + 1) * rows.tokens; ++place) {
      EXPECT_NE(rows.document_ids[static_cast<size_t>(place)], before);
      EXPECT_EQ(rows.labels[static_cast<size_t>(place)], kUnscoredLabel);
    }
  }
  EXPECT_EQ(tokens, dataset.training_tokens());
}

TEST_F(PackedDatasetTest, AStepReadsTheRowsItNames) {
  for (const bool bucketing : {false, true}) {
    const Dataset dataset = Open(0.1, bucketing);
    const auto ids = dataset.SequenceIds(3, 5, 4);
    const Rows batch = dataset.ReadRows(ids);
    for (size_t row = 0; row < ids.size(); ++row) {
      const auto alone = dataset.Sequence(ids[row]);
      EXPECT_EQ(static_cast<int64_t>(alone.size()), batch.lengths[row]);
      EXPECT_TRUE(
          std::equal(alone.begin(), alone.end(), batch.input_ids.begin() + static_cast<int64_t>(row) * batch.tokens));
    }
  }
}

TEST_F(PackedDatasetTest, HeldOutTextIsReadInRowsWithBorders) {
  const Dataset dataset = Open(0.3);
  for (const int64_t length : {5, 32, 1000}) {
    const Dataset::HeldOut heldout = dataset.HeldOutRows(length);
    int64_t tokens = 0;
    for (int64_t row = 0; row < heldout.count(); ++row) {
      const Rows rows = heldout.Read(row, 1);
      EXPECT_LE(rows.tokens, length);
      EXPECT_EQ(rows.document_ids.size(), rows.input_ids.size());
      tokens += rows.lengths[0];
    }
    EXPECT_EQ(tokens, dataset.heldout_tokens());
  }
}

TEST_F(PackedDatasetTest, LabelsFollowTheScoredFile) {
  auto options = Options({Corpus()});
  options.packing = true;
  options.context_length = 32;
  const PreparedDataset prepared = Prepare(options);
  std::string scored(static_cast<size_t>(prepared.tokens), '\1');
  for (size_t token = 0; token < scored.size(); token += 3) scored[token] = '\0';
  std::ofstream(prepared.folder / "scored.bin", std::ios::binary) << scored;
  const Dataset dataset = Dataset::Open(options.work);
  const Rows rows = dataset.ReadRows(AllIds(dataset));
  int64_t unscored = 0, padding = 0;
  for (int64_t i = 0; i < rows.rows * rows.tokens; ++i) {
    unscored += rows.labels[static_cast<size_t>(i)] == kUnscoredLabel;
  }
  for (const int64_t length : rows.lengths) padding += rows.tokens - length;
  EXPECT_EQ(unscored - padding, std::count(scored.begin(), scored.end(), '\0'));
  std::ofstream(prepared.folder / "scored.bin", std::ios::binary) << "short";
  EXPECT_THROW(Dataset::Open(options.work), UserError);
}

}  // namespace
}  // namespace longspan::trainer

#include "worker/trainer/data/dataset.h"

#include <gmock/gmock.h>

#include <numeric>
#include <set>

#include "tests/trainer/data/corpus_fixture.h"

namespace longspan::trainer {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class DatasetTest : public CorpusTest {
 protected:
  // Documents of many words, no two alike.
  std::filesystem::path Corpus(int documents) const {
    std::string lines;
    for (int i = 0; i < documents; ++i) {
      lines += "{\"text\": \"";
      for (int word = 0; word < 40 + i; ++word) lines += std::to_string(i * 1000 + word) + " ";
      lines += "\"}\n";
    }
    return Write("corpus.jsonl", lines);
  }
  Dataset Open(double holdout_fraction, int64_t context_length = 16) const {
    auto options = Options({Corpus(12)});
    options.holdout_fraction = holdout_fraction;
    options.context_length = context_length;
    Prepare(options);
    return Dataset::Open(options.work);
  }
};

TEST(PermuteTest, IsABijectionForEveryCountAndDependsOnTheKey) {
  for (const int64_t count : {1, 2, 3, 4, 5, 16, 17, 63, 64, 65, 1000}) {
    std::set<int64_t> seen;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t value = Permute(i, count, 42);
      ASSERT_TRUE(value >= 0 && value < count);
      seen.insert(value);
    }
    EXPECT_EQ(static_cast<int64_t>(seen.size()), count);
  }
  int moved = 0;
  for (int64_t i = 0; i < 1000; ++i) moved += Permute(i, 1000, 1) != Permute(i, 1000, 2);
  EXPECT_GT(moved, 980);
}

TEST(PermuteTest, NeverChangesBecauseResumedRunsDependOnIt) {
  std::vector<int64_t> order;
  for (int64_t i = 0; i < 8; ++i) order.push_back(Permute(i, 1000, 7));
  EXPECT_THAT(order, ElementsAre(106, 332, 655, 251, 512, 12, 18, 104));
}

TEST(ChooseHeldOutTest, TakesWholeDocumentsAndTheTailOfTheLast) {
  const std::vector<uint64_t> offsets = {0, 100, 200, 300, 400, 1000};
  for (const double fraction : {0.05, 0.1, 0.2, 0.3, 0.5}) {
    const auto ranges = ChooseHeldOut(offsets.data(), 5, fraction, 0, 10);
    int64_t tokens = 0;
    int cut = 0;
    for (const TokenRange& range : ranges) {
      tokens += range.end - range.begin;
      EXPECT_TRUE(std::count(offsets.begin(), offsets.end(), range.end)) << "a range ends with its document";
      cut += !std::count(offsets.begin(), offsets.end(), range.begin);
    }
    EXPECT_EQ(tokens, static_cast<int64_t>(1000 * fraction));
    EXPECT_LE(cut, 1);
  }
}

TEST(ChooseHeldOutTest, HoldsOutNothingOrEnoughForTheLongestEvaluationAndLeavesAContext) {
  const std::vector<uint64_t> offsets = {0, 100, 1000};
  const auto tokens = [&](double fraction, int64_t minimum, int64_t context) {
    int64_t sum = 0;
    for (const TokenRange& range : ChooseHeldOut(offsets.data(), 2, fraction, minimum, context))
      sum += range.end - range.begin;
    return sum;
  };
  EXPECT_EQ(tokens(0, 200, 10), 0);
  EXPECT_EQ(tokens(0.01, 200, 10), 200);
  EXPECT_EQ(tokens(0.01, 900, 10), 250) << "not more than a quarter";
  EXPECT_EQ(tokens(0.5, 0, 800), 200);
  EXPECT_EQ(tokens(0.5, 0, 1000), 0);
}

TEST(SliceOfRankTest, SlicesCoverTheBatchInOrder) {
  for (const int64_t world_size : {1, 2, 3, 5, 8}) {
    int64_t next = 0;
    for (int64_t rank = 0; rank < world_size; ++rank) {
      const BatchSlice slice = SliceOfRank(6, rank, world_size);
      EXPECT_EQ(slice.begin, next);
      next = slice.end;
    }
    EXPECT_EQ(next, 6);
  }
}

TEST_F(DatasetTest, EachEpochVisitsEverySequenceOnceInAnOrderOfItsOwn) {
  const Dataset dataset = Open(0);
  const int64_t sequences = dataset.training_sequences();
  ASSERT_GT(sequences, 20);
  const auto epoch = [&](uint64_t seed, int64_t first_step) {
    std::vector<int64_t> ids;
    for (int64_t step = 0; step < sequences; ++step) {
      for (const int64_t id : dataset.SequenceIds(seed, first_step + step, 1)) ids.push_back(id);
    }
    return ids;
  };
  const auto first = epoch(1, 0);
  const auto second = epoch(1, sequences);
  EXPECT_EQ(std::set(first.begin(), first.end()).size(), static_cast<size_t>(sequences));
  EXPECT_EQ(std::set(second.begin(), second.end()).size(), static_cast<size_t>(sequences));
  EXPECT_NE(first, second);
  EXPECT_NE(first, epoch(2, 0));
  EXPECT_EQ(first, epoch(1, 0));
}

TEST_F(DatasetTest, TheGlobalBatchIsTheSameStreamForEveryBatchSize) {
  const Dataset dataset = Open(0);
  std::vector<int64_t> by_six;
  std::vector<int64_t> by_two;
  for (int64_t step = 0; step < 20; ++step) {
    for (const int64_t id : dataset.SequenceIds(3, step, 6)) by_six.push_back(id);
  }
  for (int64_t step = 0; step < 60; ++step) {
    for (const int64_t id : dataset.SequenceIds(3, step, 2)) by_two.push_back(id);
  }
  EXPECT_EQ(by_six, by_two);
}

TEST_F(DatasetTest, TrainingAndHeldOutTextNeverMeetAndMakeUpTheWhole) {
  const Dataset whole = Open(0);
  const Dataset split = Open(0.3);
  EXPECT_EQ(whole.heldout_tokens(), 0);
  EXPECT_EQ(split.training_tokens() + split.heldout_tokens(), whole.training_tokens());
  std::multiset<int64_t> all;
  for (int64_t i = 0; i < whole.training_sequences(); ++i) {
    for (const int64_t token : whole.Sequence(i)) all.insert(token);
  }
  std::multiset<int64_t> parts;
  for (int64_t i = 0; i < split.training_sequences(); ++i) {
    for (const int64_t token : split.Sequence(i)) parts.insert(token);
  }
  for (const int64_t token : split.HeldOutTokens(0, split.heldout_tokens())) parts.insert(token);
  // Both lack only the tail of the training text that fills no context.
  EXPECT_NEAR(static_cast<double>(all.size()), static_cast<double>(parts.size()), 16);
  std::vector<int64_t> difference;
  std::set_symmetric_difference(all.begin(), all.end(), parts.begin(), parts.end(), std::back_inserter(difference));
  EXPECT_LE(difference.size(), 32u);
}

TEST_F(DatasetTest, WindowsAreConsecutivePartsOfTheHeldOutText) {
  const Dataset dataset = Open(0.3);
  const auto all = dataset.HeldOutTokens(0, dataset.heldout_tokens());
  for (const int64_t length : {1, 7, 64}) {
    const int64_t windows = dataset.HeldOutWindows(length);
    EXPECT_EQ(windows, dataset.heldout_tokens() / length);
    for (int64_t i = 0; i < windows; ++i) {
      const auto window = dataset.HeldOutWindow(length, i);
      EXPECT_TRUE(std::equal(window.begin(), window.end(), all.begin() + i * length));
    }
  }
}

TEST_F(DatasetTest, ADamagedFolderIsRefused) {
  auto options = Options({Corpus(3)});
  EXPECT_THROW(Dataset::Open(options.work), UserError);
  const auto prepared = Prepare(options);
  std::filesystem::resize_file(prepared.folder / "tokens.bin", 10);
  try {
    Dataset::Open(options.work);
    FAIL();
  } catch (const UserError& error) {
    EXPECT_THAT(error.what(), HasSubstr("tokens.bin"));
  }
}

TEST_F(DatasetTest, TheWholeStorageMayMove) {
  auto options = Options({Corpus(3)}, "job-1");
  Prepare(options);
  const auto before = Dataset::Open(options.work).Sequence(1);
  std::filesystem::create_directories(root_ / "moved");
  std::filesystem::rename(root_ / "jobs", root_ / "moved/jobs");
  std::filesystem::rename(root_ / "datasets", root_ / "moved/datasets");
  EXPECT_EQ(Dataset::Open(root_ / "moved/jobs/job-1").Sequence(1), before);
}

}  // namespace
}  // namespace longspan::trainer

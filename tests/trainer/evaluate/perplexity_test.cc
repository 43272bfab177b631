#include "worker/trainer/evaluate/perplexity.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <future>
#include <memory>

#include "tests/trainer/parallel/gang.h"
#include "tests/trainer/run/tiny_job.h"
#include "worker/trainer/data/prepare.h"

namespace longspan::trainer {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

// A token's loss is its id over a thousand, whatever came before; the adapted model halves it.
class FakeModel : public CausalLm {
 public:
  const ModelConfig& config() const override { return config_; }
  const AdapterPlan& adapter() const override { return adapter_; }
  std::vector<Trainable>& trainables() override { return trainables_; }
  int64_t parameter_count() const override { return 0; }
  void ZeroGradients() override {}
  LossSum ForwardBackward(const Batch&, const GradientReady&) override { return {}; }
  at::Tensor TrainingLogits(const at::Tensor&, const at::Tensor&) override { return {}; }
  LossSum Evaluate(const at::Tensor& ids, const at::Tensor& labels, const EvaluationOptions& options) override {
    ++calls;
    EXPECT_TRUE(ids.equal(labels));
    at::Tensor scored = labels.narrow(1, 1, labels.size(1) - 1);
    if (sequence != nullptr && sequence->size() > 1 && !options.alone) {
      EXPECT_GT(ids.size(1), 50);
      const SequenceShare share = SharesOf(scored.size(1), 2)[static_cast<size_t>(sequence->rank())];
      scored = scored.narrow(1, share.first, share.tokens);
    }
    const double scale = (options.adapted ? 0.5 : 1.0) * (options.rope == RopeScaling::kOriginal ? 1.0 : 1.25) / 1000;
    return {scored.sum().item<double>() * scale, scored.numel()};
  }
  at::Tensor Continue(const std::vector<Continuation>&, const EvaluationOptions&) override { return {}; }
  void ForEachMergedTensor(const std::function<void(const std::string&, const at::Tensor&)>&) override {}
  void ValuesChanged() override {}
  bool shares_weights() const override { return shares; }
  void TakePart(PassKind kind) override {
    EXPECT_EQ(kind, PassKind::kForward);
    ++parts_taken;
  }
  int calls = 0, parts_taken = 0;
  bool shares = false;
  const SequenceRanks* sequence = nullptr;

 private:
  ModelConfig config_;
  AdapterPlan adapter_;
  std::vector<Trainable> trainables_;
};

class PerplexityTest : public ::testing::Test {
 protected:
  void SetUp() override {
    PrepareOptions options;
    options.sources = {job_.folder() / "corpus.txt"};
    options.model_folder = job_.folder() / "model";
    options.context_length = 32;
    options.holdout_fraction = 0.2;
    options.work = job_.folder() / "work";
    options.datasets_root = job_.folder() / "datasets";
    Prepare(options);
    dataset_ = std::make_unique<Dataset>(Dataset::Open(options.work));
    plan_.models = {"base", "rescaled", "extended"};
    plan_.lengths = {32, 100};
    plan_.step = 7;
  }
  double ExpectedLoss(int64_t length, double scale) const {
    double sum = 0;
    int64_t tokens = 0;
    for (int64_t window = 0; window < dataset_->HeldOutWindows(length); ++window) {
      const auto ids = dataset_->HeldOutWindow(length, window);
      for (size_t i = 1; i < ids.size(); ++i, ++tokens) sum += static_cast<double>(ids[i]) * scale / 1000;
    }
    return sum / static_cast<double>(tokens);
  }

  // Each of two ranks has the rows that one rank alone has. `shares`: both have every sequence; `shares_weights`: each
  // makes as many passes as the other.
  void ExpectTwoRanksGiveTheRowsOfOne(bool shares = false, bool shares_weights = false) {
    FakeModel alone;
    auto single = Communicator::OpenStore({});
    const auto expected = EvaluatePerplexity(alone, *dataset_, *single, plan_, {}).rows;
    ASSERT_FALSE(expected.empty());
    std::promise<std::string> address;
    auto found = address.get_future().share();
    const auto as_rank = [&](int64_t rank) {
      CommunicatorOptions options;
      options.rank = rank;
      options.world_size = 2;
      options.store = rank == 0 ? "127.0.0.1:0" : found.get();
      auto ranks = Communicator::OpenStore(options);
      if (rank == 0) address.set_value(ranks->store_address());
      ranks->Join();
      FakeModel model;
      SequenceRanks sequence(*ranks, shares ? 2 : 1);
      model.sequence = &sequence;
      EvaluationPlan plan = plan_;
      plan.sequence = &sequence;
      plan.whole_tokens_max = 50;
      model.shares = shares_weights;
      auto rows = EvaluatePerplexity(model, *dataset_, *ranks, plan, {}).rows;
      const at::Tensor passes = at::scalar_tensor(model.calls + model.parts_taken, at::kDouble);
      ranks->AllReduce(passes);
      if (shares_weights) {
        EXPECT_EQ(passes.item<double>(), 2.0 * (model.calls + model.parts_taken));
        EXPECT_EQ(model.parts_taken > 0, !shares && rank == 0);
      } else {
        EXPECT_EQ(model.parts_taken, 0);
      }
      return rows;
    };
    auto second = std::async(std::launch::async, as_rank, 1);
    for (const auto& rows : {as_rank(0), second.get()}) {
      ASSERT_EQ(rows.size(), expected.size());
      for (size_t i = 0; i < rows.size(); ++i) {
        EXPECT_NEAR(rows[i].loss, expected[i].loss, 1e-12);
        EXPECT_EQ(rows[i].tokens, expected[i].tokens);
        EXPECT_EQ(rows[i].windows, expected[i].windows);
      }
    }
  }

  longspan::testing::TinyJob job_;
  std::unique_ptr<Dataset> dataset_;
  EvaluationPlan plan_;
};

TEST_F(PerplexityTest, EveryModelAtEveryLengthInOneTable) {
  FakeModel model;
  auto ranks = Communicator::OpenStore({});
  const auto rows = EvaluatePerplexity(model, *dataset_, *ranks, plan_, {}).rows;
  ASSERT_EQ(rows.size(), 6u);
  const double scales[] = {1.0, 1.25, 0.625, 1.0, 1.25, 0.625};
  for (size_t i = 0; i < rows.size(); ++i) {
    const int64_t length = i < 3 ? 32 : 100;
    EXPECT_EQ(rows[i].model, plan_.models[i % 3]);
    EXPECT_EQ(rows[i].length, length);
    EXPECT_EQ(rows[i].step, 7);
    EXPECT_EQ(rows[i].protocol, "windows");
    EXPECT_EQ(rows[i].windows, dataset_->HeldOutWindows(length));
    EXPECT_EQ(rows[i].tokens, rows[i].windows * (length - 1));
    EXPECT_NEAR(rows[i].loss, ExpectedLoss(length, scales[i]), 1e-9);
    EXPECT_DOUBLE_EQ(rows[i].perplexity, std::exp(rows[i].loss));
    EXPECT_EQ(EvaluationRowOf(ToDocument(rows[i])).loss, rows[i].loss);
  }
}

TEST_F(PerplexityTest, RanksShareTheWindowsAndAllKnowTheTable) { ExpectTwoRanksGiveTheRowsOfOne(); }

TEST_F(PerplexityTest, WhereRanksShareWeightsOneWithoutAWindowTakesPartInThePassesOfTheOther) {
  plan_.lengths = {32, dataset_->heldout_tokens() / 2 + 1};  // one window of the longer
  ExpectTwoRanksGiveTheRowsOfOne(/*shares=*/false, /*shares_weights=*/true);
}

TEST_F(PerplexityTest, WhereRanksShareWeightsOneThatIsStoppedStopsBothBeforeTheNextPass) {
  testing::AsGang(2, [&](Communicator& ranks) {
    FakeModel model;
    model.shares = true;
    EvaluationHooks hooks;
    hooks.stop_requested = [&] { return ranks.rank() == 1 && model.calls >= 1; };
    EXPECT_TRUE(EvaluatePerplexity(model, *dataset_, ranks, plan_, hooks).stopped);
    EXPECT_EQ(model.calls + model.parts_taken, 1);
  });
}

TEST_F(PerplexityTest, RanksThatShareSequencesShareLongWindowsAndHaveShortOnesAlone) {
  ExpectTwoRanksGiveTheRowsOfOne(/*shares=*/true);
  ExpectTwoRanksGiveTheRowsOfOne(/*shares=*/true, /*shares_weights=*/true);
  plan_.protocol = jobfile::EvaluationProtocol::kPaper;
  ExpectTwoRanksGiveTheRowsOfOne(/*shares=*/true);
}

TEST_F(PerplexityTest, RanksShareThePapersWindowsToo) {
  plan_.protocol = jobfile::EvaluationProtocol::kPaper;
  plan_.lengths = {300, 512};
  plan_.tokens_max = dataset_->heldout_tokens() - 1;
  ExpectTwoRanksGiveTheRowsOfOne();
}

TEST_F(PerplexityTest, ThePaperTakesAWindowEvery256Tokens) {
  FakeModel model;
  auto ranks = Communicator::OpenStore({});
  plan_.protocol = jobfile::EvaluationProtocol::kPaper;
  plan_.lengths = {512};
  plan_.models = {"base"};
  const auto rows = EvaluatePerplexity(model, *dataset_, *ranks, plan_, {}).rows;
  ASSERT_EQ(rows.size(), 1u);
  EXPECT_EQ(rows[0].protocol, "paper");
  EXPECT_EQ(rows[0].windows, (dataset_->heldout_tokens() - 512) / 256 + 1);
  double sum_of_means = 0;
  for (int64_t window = 0; window < rows[0].windows; ++window) {
    const auto ids = dataset_->HeldOutTokens(window * 256, 512);
    double sum = 0;
    for (size_t i = 1; i < ids.size(); ++i) sum += static_cast<double>(ids[i]) / 1000;
    sum_of_means += sum / 511;
  }
  EXPECT_NEAR(rows[0].loss, sum_of_means / static_cast<double>(rows[0].windows), 1e-9);
}

TEST_F(PerplexityTest, OnlySoMuchTextIsReadAsThePlanAllows) {
  FakeModel model;
  auto ranks = Communicator::OpenStore({});
  plan_.models = {"base"};
  const auto windows_of = [&](jobfile::EvaluationProtocol protocol, int64_t length, int64_t tokens_max) {
    plan_.protocol = protocol;
    plan_.lengths = {length};
    plan_.tokens_max = tokens_max;
    const auto rows = EvaluatePerplexity(model, *dataset_, *ranks, plan_, {}).rows;
    return rows.empty() ? 0 : rows[0].windows;
  };
  constexpr auto kWindows = jobfile::EvaluationProtocol::kWindows, kPaper = jobfile::EvaluationProtocol::kPaper;
  const int64_t all = dataset_->heldout_tokens();
  EXPECT_EQ(windows_of(kWindows, 100, 0), all / 100);
  EXPECT_EQ(windows_of(kWindows, 100, all + 1), all / 100);
  EXPECT_EQ(windows_of(kWindows, 100, 299), 2);
  EXPECT_EQ(windows_of(kWindows, 100, 300), 3);
  EXPECT_EQ(windows_of(kWindows, 100, 99), 0);
  EXPECT_EQ(windows_of(kPaper, 300, 300 + 255), 1);
  EXPECT_EQ(windows_of(kPaper, 300, 300 + 256), 2);
  EXPECT_EQ(windows_of(kPaper, 100, 100 + 256), 2) << "windows shorter than the stride leave gaps";
}

TEST_F(PerplexityTest, ALengthBeyondTheHeldOutTextIsLeftOutWithAWarning) {
  FakeModel model;
  auto ranks = Communicator::OpenStore({});
  plan_.lengths = {1 << 20};
  std::vector<std::string> warnings;
  EvaluationHooks hooks;
  hooks.warning = [&](const std::string& message) { warnings.push_back(message); };
  const auto result = EvaluatePerplexity(model, *dataset_, *ranks, plan_, hooks);
  EXPECT_THAT(result.rows, IsEmpty());
  EXPECT_FALSE(result.stopped);
  EXPECT_EQ(warnings.size(), 1u);
}

TEST_F(PerplexityTest, StopsWithoutARowOnRequest) {
  FakeModel model;
  auto ranks = Communicator::OpenStore({});
  EvaluationHooks hooks;
  hooks.stop_requested = [] { return true; };
  const auto result = EvaluatePerplexity(model, *dataset_, *ranks, plan_, hooks);
  EXPECT_TRUE(result.stopped);
  EXPECT_THAT(result.rows, IsEmpty());
  EXPECT_EQ(model.calls, 0);
}

TEST(EvaluationLengths, AreTheJobsOrTheOldAndTheNewLength) {
  jobfile::JobSpec spec;
  spec.context_length = 1024;
  EXPECT_THAT(EvaluationLengths(spec, 256), ElementsAre(256, 1024));
  EXPECT_THAT(EvaluationLengths(spec, 1024), ElementsAre(1024));
  spec.evaluation.lengths = {512, 64, 512};
  EXPECT_THAT(EvaluationLengths(spec, 256), ElementsAre(64, 512));
}

}  // namespace
}  // namespace longspan::trainer

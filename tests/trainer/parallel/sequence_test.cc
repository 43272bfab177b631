// Sequences whose tokens lie on several ranks: loss, gradients, logits and evaluation are those of one rank.
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

#include "tests/trainer/parallel/gang.h"
#include "tests/trainer/tiny_llama.h"
#include "worker/planner/rank_memory.h"
#include "worker/trainer/attention/flash_cpu.h"
#include "worker/trainer/attention/sequence_attention.h"
#include "worker/trainer/data/dataset.h"
#include "worker/trainer/memory/arena.h"
#include "worker/trainer/model/causal_lm.h"
#include "worker/trainer/parallel/gradient_reducer.h"
#include "worker/trainer/parallel/sequence_ranks.h"

namespace longspan::trainer {
namespace {

using namespace longspan::trainer::testing;

struct Layout {
  int64_t groups, ranks;  // of data; of a sequence
};

struct Gradients {
  double loss = 0;
  int64_t tokens = 0;
  std::map<std::string, at::Tensor> by_name;
};

class SequenceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    options_.spec = TinySpec(folder_.path(), kTokens);
    UseModel({});
  }

  void UseModel(const TinyShape& shape) {
    shape_ = shape;
    WriteTinyModel(folder_.path(), shape_);
  }

  std::unique_ptr<CausalLm> Load(SequenceRanks* sequence) const {
    ModelOptions options = options_;
    options.sequence = sequence;
    auto model = CausalLm::Load(options);
    DrawLora(model.get());
    return model;
  }

  at::Tensor Ids(int64_t sequences) const { return RandomIds(sequences, kTokens, shape_.vocab); }

  // A step on a slice of the global batch, in micro-batches, added up over all ranks.
  Gradients StepOf(const at::Tensor& ids, const at::Tensor& labels, int64_t micro_batch, Communicator& ranks,
                   SequenceRanks* sequence) const {
    const auto model = Load(sequence);
    std::vector<at::Tensor> tensors;
    for (const Trainable& trainable : model->trainables()) tensors.push_back(trainable.gradient);
    GradientReducer reducer(ranks, tensors, /*bucket_bytes=*/2000);
    Gradients result;
    for (int step = 0; step < 2; ++step) {  // what the first leaves behind must not matter
      model->ZeroGradients();
      ControlWord word;
      const BatchSlice slice = sequence == nullptr ? BatchSlice{0, ids.size(0)}
                                                   : SliceOfRank(ids.size(0), sequence->group(), sequence->groups());
      for (int64_t first = slice.begin; first < slice.end; first += micro_batch) {
        const int64_t count = std::min(micro_batch, slice.end - first);
        Batch batch;
        batch.input_ids = ids.narrow(0, first, count);
        batch.labels = labels.narrow(0, first, count);
        batch.step = 4;
        batch.first_sequence_index = first;
        const bool last = first + count == slice.end;
        const LossSum sum = model->ForwardBackward(batch, [&](size_t index) {
          if (last) reducer.Ready(index);
        });
        word.loss_sum += sum.loss;
        word.scored_tokens += sum.tokens;
      }
      word = reducer.Finish(word);
      result.loss = word.loss_sum;
      result.tokens = word.scored_tokens;
    }
    for (const Trainable& trainable : model->trainables()) {
      result.by_name[trainable.name] = trainable.gradient.clone();
    }
    return result;
  }

  Gradients OfOneRank(const at::Tensor& ids, const at::Tensor& labels, int64_t micro_batch = 2) const {
    const auto ranks = Communicator::OpenStore({});
    ranks->Join();
    return StepOf(ids, labels, micro_batch, *ranks, nullptr);
  }

  void ExpectSame(const Gradients& actual, const Gradients& expected, double tolerance) const {
    EXPECT_EQ(actual.tokens, expected.tokens);
    EXPECT_NEAR(actual.loss / expected.loss, 1.0, tolerance);
    ASSERT_EQ(actual.by_name.size(), expected.by_name.size());
    for (const auto& [name, gradient] : expected.by_name) {
      EXPECT_LT(RelativeError(actual.by_name.at(name), gradient), tolerance) << name;
      const at::Tensor moved = actual.by_name.at(name).ne(0).logical_and(gradient.eq(0));
      EXPECT_FALSE(moved.any().item<bool>()) << name << " is not zero where it is zero on one rank";
    }
  }

  void ExpectOneRanks(const Layout& layout, const Gradients& expected, const at::Tensor& ids, const at::Tensor& labels,
                      double tolerance = 1e-5) const {
    AsGang(layout.groups * layout.ranks, [&](Communicator& ranks) {
      SequenceRanks sequence(ranks, layout.ranks);
      const Gradients actual = StepOf(ids, labels, /*micro_batch=*/2, ranks, &sequence);
      SCOPED_TRACE("rank " + std::to_string(ranks.rank()) + " of " + std::to_string(layout.groups) + " x " +
                   std::to_string(layout.ranks));
      ExpectSame(actual, expected, tolerance);
    });
  }

  void ExpectOneRanks(const std::vector<Layout>& layouts, double tolerance = 1e-5) const {
    const at::Tensor ids = Ids(4);
    const Gradients expected = OfOneRank(ids, ids);
    for (const Layout& layout : layouts) ExpectOneRanks(layout, expected, ids, ids, tolerance);
  }

  static constexpr int64_t kTokens = 64;
  static constexpr jobfile::AttentionKind kKinds[] = {jobfile::AttentionKind::kS2, jobfile::AttentionKind::kFull,
                                                      jobfile::AttentionKind::kShort};
  TinyShape shape_;
  TemporaryFolder folder_;
  ModelOptions options_;
};

const std::vector<Layout> kEveryLayout = {{1, 2}, {1, 4}, {2, 2}};

TEST_F(SequenceTest, LossAndEveryGradientAreOneRanksForEveryAttentionAndMethod) {
  for (const auto method : {jobfile::MethodKind::kLongLora, jobfile::MethodKind::kFull}) {
    for (const auto kind : kKinds) {
      SCOPED_TRACE("method " + std::to_string(static_cast<int>(method)) + " attention " +
                   std::to_string(static_cast<int>(kind)));
      options_.spec.method.kind = method;
      options_.spec.attention.kind = kind;
      ExpectOneRanks(kEveryLayout);
    }
  }
}

TEST_F(SequenceTest, LossAndEveryGradientAreOneRanksForHeadsOfEveryKind) {
  options_.spec.method.kind = jobfile::MethodKind::kFull;
  for (const auto& [heads, key_value_heads] :
       std::vector<std::pair<int64_t, int64_t>>{{4, 4}, {9, 3}, {6, 3}, {5, 5}, {3, 1}, {1, 1}}) {
    TinyShape shape;
    shape.heads = heads;
    shape.key_value_heads = key_value_heads;
    UseModel(shape);
    for (const auto kind : {jobfile::AttentionKind::kS2, jobfile::AttentionKind::kFull}) {
      SCOPED_TRACE(std::to_string(heads) + " heads, " + std::to_string(key_value_heads) + " for keys");
      options_.spec.attention.kind = kind;
      ExpectOneRanks({{1, 4}});
    }
  }
}

TEST_F(SequenceTest, LossAndEveryGradientAreOneRanksForGroupsOfEverySize) {
  options_.spec.method.kind = jobfile::MethodKind::kFull;
  for (const int64_t group : {1, 2, 4, 16}) {
    SCOPED_TRACE(group);
    options_.spec.attention.group_size = group;
    ExpectOneRanks({{1, 4}});
  }
}

TEST_F(SequenceTest, LossAndEveryGradientAreOneRanksInEveryFamily) {
  const nlohmann::json families[] = {{{"architectures", {"Qwen3ForCausalLM"}}},
                                     {{"architectures", {"GPTNeoXForCausalLM"}},
                                      {"hidden_act", "gelu"},
                                      {"use_parallel_residual", true},
                                      {"rotary_pct", 0.34}},
                                     {{"architectures", {"GPTNeoXForCausalLM"}},
                                      {"hidden_act", "gelu"},
                                      {"use_parallel_residual", false},
                                      {"rotary_pct", 0.34}}};
  options_.spec.method.kind = jobfile::MethodKind::kFull;
  for (const nlohmann::json& changes : families) {
    TinyShape shape;
    shape.changes = changes;
    UseModel(shape);
    for (const auto kind : {jobfile::AttentionKind::kS2, jobfile::AttentionKind::kFull}) {
      SCOPED_TRACE(changes.dump());
      options_.spec.attention.kind = kind;
      ExpectOneRanks({{1, 2}});
    }
  }
}

TEST_F(SequenceTest, DropoutHasTheMasksOfOneRank) {
  options_.spec.method.targets = {"q_proj", "v_proj", "up_proj", "down_proj"};
  options_.spec.method.dropout = 0.3;
  options_.memory.tile_tokens = 5;
  ExpectOneRanks(kEveryLayout);
}

TEST_F(SequenceTest, EveryKeepPolicyGivesTheGradientsOfOneRank) {
  TinyShape shape;
  shape.layers = 5;
  UseModel(shape);
  const at::Tensor ids = Ids(2);
  for (const auto kind : {jobfile::AttentionKind::kS2, jobfile::AttentionKind::kFull}) {
    options_.spec.attention.kind = kind;
    options_.memory = {};
    const Gradients expected = OfOneRank(ids, ids);
    for (const auto keep : {KeepPolicy::kInput, KeepPolicy::kAttentionOutput, KeepPolicy::kQueryKeyValue,
                            KeepPolicy::kResidual, KeepPolicy::kGateUp}) {
      for (const int64_t every : {1, 2}) {
        SCOPED_TRACE("keep " + std::to_string(static_cast<int>(keep)) + " every " + std::to_string(every));
        options_.memory.keep = keep;
        options_.memory.checkpoint_every = every;
        options_.memory.host_layers = 2;
        options_.memory.tile_tokens = 16;
        ExpectOneRanks(Layout{1, 2}, expected, ids, ids);
      }
    }
  }
}

TEST_F(SequenceTest, BuffersThatShareMemoryGiveTheBitsOfBuffersThatDoNot) {
  const at::Tensor ids = Ids(2);
  for (const auto kind : {jobfile::AttentionKind::kS2, jobfile::AttentionKind::kFull}) {
    for (const auto keep : {KeepPolicy::kInput, KeepPolicy::kAttentionOutput}) {
      options_.spec.attention.kind = kind;
      options_.memory.keep = keep;
      std::map<std::string, at::Tensor> by_name[2];
      for (const bool plans_buffers : {false, true}) {
        options_.plans_buffers = plans_buffers;
        AsGang(4, [&](Communicator& ranks) {
          SequenceRanks sequence(ranks, 4);
          const Gradients gradients = StepOf(ids, ids, 2, ranks, &sequence);
          if (ranks.rank() == 1) by_name[plans_buffers ? 1 : 0] = gradients.by_name;
        });
      }
      for (const auto& [name, gradient] : by_name[0]) EXPECT_TRUE(at::equal(gradient, by_name[1].at(name))) << name;
    }
  }
}

// Gradients of several ranks are rounded at other places than those of one: both are held against fp32.
TEST_F(SequenceTest, Bfloat16IsAsNearFloat32AsOnOneRank) {
  const at::Tensor ids = Ids(2);
  for (const auto kind : {jobfile::AttentionKind::kS2, jobfile::AttentionKind::kFull}) {
    options_.spec.attention.kind = kind;
    options_.spec.training.dtype = jobfile::TrainingDtype::kFp32;
    const Gradients exact = OfOneRank(ids, ids);
    options_.spec.training.dtype = jobfile::TrainingDtype::kBf16;
    const Gradients rounded = OfOneRank(ids, ids);
    AsGang(4, [&](Communicator& ranks) {
      SequenceRanks sequence(ranks, 4);
      const Gradients actual = StepOf(ids, ids, 2, ranks, &sequence);
      EXPECT_NEAR(actual.loss / exact.loss, 1.0, 2 * std::abs(rounded.loss / exact.loss - 1.0) + 1e-3);
      for (const auto& [name, gradient] : exact.by_name) {
        EXPECT_LT(RelativeError(actual.by_name.at(name), gradient),
                  2 * RelativeError(rounded.by_name.at(name), gradient) + 1e-3)
            << name;
      }
    });
  }
}

TEST_F(SequenceTest, LabelsThatAreNotScoredOnOneRankLeaveTheOthersAsTheyAre) {
  const at::Tensor ids = Ids(2);
  for (const int64_t rank : {0, 1, 3}) {
    const at::Tensor labels = ids.clone();
    labels.narrow(1, rank * kTokens / 4, kTokens / 4).fill_(-100);
    ExpectOneRanks(Layout{1, 4}, OfOneRank(ids, labels), ids, labels);
    labels.fill_(-100);
    labels[0][rank * kTokens / 4 + 1] = 5;  // one token of one rank
    ExpectOneRanks(Layout{1, 4}, OfOneRank(ids, labels), ids, labels);
  }
}

TEST_F(SequenceTest, NothingScoredIsZeroOnEveryRank) {
  const at::Tensor ids = Ids(2);
  const at::Tensor labels = at::full_like(ids, -100);
  AsGang(2, [&](Communicator& ranks) {
    SequenceRanks sequence(ranks, 2);
    const Gradients nothing = StepOf(ids, labels, 2, ranks, &sequence);
    EXPECT_EQ(nothing.tokens, 0);
    for (const auto& [name, gradient] : nothing.by_name) EXPECT_TRUE(gradient.eq(0).all().item<bool>()) << name;
  });
}

// (B, T, V) of all ranks of one sequence.
TEST_F(SequenceTest, ChangingATokenNeverChangesAnOutputBeforeItAcrossRanks) {
  TinyShape shape;
  shape.layers = 6;
  UseModel(shape);
  const at::Tensor ids = Ids(1);
  for (const auto kind : {jobfile::AttentionKind::kS2, jobfile::AttentionKind::kFull}) {
    options_.spec.attention.kind = kind;
    const at::Tensor one_rank = Load(nullptr)->TrainingLogits(ids);
    std::map<int64_t, std::vector<at::Tensor>> logits;  // by the token that is changed, -1: none
    const std::vector<int64_t> changes = {-1, 0, 11, 15, 16, 17, 31, 32, 60, 63};
    for (const int64_t changed : changes) logits[changed].resize(4);
    AsGang(4, [&](Communicator& ranks) {
      SequenceRanks sequence(ranks, 4);
      const auto model = Load(&sequence);
      for (const int64_t changed : changes) {
        const at::Tensor other = ids.clone();
        if (changed >= 0) other[0][changed] = (ids[0][changed] + 1) % shape_.vocab;
        logits.at(changed).at(static_cast<size_t>(ranks.rank())) = model->TrainingLogits(other).clone();
      }
    });
    const at::Tensor before = at::cat(logits.at(-1), 1);
    EXPECT_LT(RelativeError(before, one_rank), 1e-5);
    for (const int64_t changed : changes) {
      if (changed < 0) continue;
      const at::Tensor after = at::cat(logits.at(changed), 1);
      EXPECT_TRUE(at::equal(after.narrow(1, 0, changed), before.narrow(1, 0, changed))) << "token " << changed;
      EXPECT_FALSE(at::equal(after[0][changed], before[0][changed]));
      if (changed + 1 < kTokens) {
        EXPECT_FALSE(at::equal(after[0][changed + 1], before[0][changed + 1])) << changed;
      }
    }
  }
}

TEST_F(SequenceTest, EvaluationIsOneRanksAtEveryLength) {
  for (const int64_t tokens : {4, 5, 7, 21, 64, 131}) {
    const at::Tensor ids = RandomIds(3, tokens, shape_.vocab);
    for (const RopeScaling rope : {RopeScaling::kOriginal, RopeScaling::kExtended}) {
      CausalLm::EvaluationOptions options;
      options.rope = rope;
      options.adapted = rope == RopeScaling::kExtended;
      const LossSum expected = Load(nullptr)->Evaluate(ids, ids, options);
      AsGang(4, [&](Communicator& ranks) {
        SequenceRanks sequence(ranks, 4);
        const auto model = Load(&sequence);
        const LossSum share = model->Evaluate(ids, ids, options);
        ControlWord word;
        word.loss_sum = share.loss;
        word.scored_tokens = share.tokens;
        word = ReduceControlWord(ranks, word);
        EXPECT_EQ(word.scored_tokens, expected.tokens);
        EXPECT_NEAR(word.loss_sum / expected.loss, 1.0, 1e-6);
        CausalLm::EvaluationOptions alone = options;
        alone.alone = true;
        EXPECT_EQ(model->Evaluate(ids, ids, alone).loss, expected.loss);
      });
    }
  }
}

TEST_F(SequenceTest, EvaluationThroughASlidingWindowIsOneRanks) {
  for (const int64_t window : {1, 5, 16, 40, 1000}) {
    TinyShape shape;
    shape.changes = {{"architectures", {"MistralForCausalLM"}}, {"model_type", "mistral"}, {"sliding_window", window}};
    UseModel(shape);
    for (const int64_t tokens : {7, 64, 131}) {
      const at::Tensor ids = RandomIds(2, tokens, shape_.vocab);
      CausalLm::EvaluationOptions options;
      options.rope = RopeScaling::kOriginal;
      options.adapted = false;
      const LossSum expected = Load(nullptr)->Evaluate(ids, ids, options);
      AsGang(4, [&](Communicator& ranks) {
        SequenceRanks sequence(ranks, 4);
        const LossSum share = Load(&sequence)->Evaluate(ids, ids, options);
        ControlWord word;
        word.loss_sum = share.loss;
        word.scored_tokens = share.tokens;
        word = ReduceControlWord(ranks, word);
        EXPECT_EQ(word.scored_tokens, expected.tokens);
        EXPECT_NEAR(word.loss_sum / expected.loss, 1.0, 1e-6) << "window " << window << " tokens " << tokens;
      });
    }
  }
}

TEST_F(SequenceTest, ThePlannedArenaIsTheOneThatIsUsed) {
  for (const auto kind : kKinds) {
    for (const int64_t ranks_of_sequence : {2, 4}) {
      options_.spec.attention.kind = kind;
      options_.spec.resources.slots = ranks_of_sequence;
      options_.spec.resources.sequence_parallel = ranks_of_sequence;
      options_.spec.training.global_batch = options_.spec.training.micro_batch.emplace(2);
      options_.spec.training.dtype = jobfile::TrainingDtype::kFp32;
      const at::Tensor ids = Ids(2);
      AsGang(ranks_of_sequence, [&](Communicator& ranks) {
        SequenceRanks sequence(ranks, ranks_of_sequence);
        const auto model = Load(&sequence);
        Batch batch;
        batch.input_ids = batch.labels = ids;
        model->ForwardBackward(batch);
        planner::PlannedJob job = planner::PlannedJobOf(options_.spec, model->config(), model->adapter(),
                                                        planner::CpuProfile(at::get_num_threads()));
        job.attention_scratch_bytes = [](const planner::StepShape& shape) {
          return 4 * FlashWorkspaceSize(shape.head_dim, at::get_num_threads());
        };
        EXPECT_EQ(model->memory_use().arena_bytes, planner::MemoryOfRank(job, options_.memory).workspace);
      });
    }
  }
}

// Attention alone, against the plan over whole sequences on one rank, by ATen's kernels: a call for
// each run of keys and the softmaxes joined, which is what a GPU does. (The tests of whole steps run this project's.)
void ExpectAttentionIsOneRanks(Communicator& ranks, const AttentionShape& whole, int64_t group) {
  SCOPED_TRACE(::testing::Message() << whole.tokens << " tokens in groups of " << group << ", " << whole.key_value_heads
                                    << " heads of keys, rank " << ranks.rank() << " of " << ranks.world_size());
  constexpr int64_t kDim = 8;
  const FlashSetting aten{{}, FlashInstructions::kNone};
  const auto draw = [&](int64_t heads, const char* name) {
    return at::empty({whole.sequences * whole.tokens, heads, kDim}, at::kFloat).normal_(0, 1, NamedGenerator(2, name));
  };
  const at::Tensor q = draw(whole.query_heads, "q"), k = draw(whole.key_value_heads, "k"),
                   v = draw(whole.key_value_heads, "v"), out_gradient = draw(whole.query_heads, "gradient");
  const AttentionPlan plan = group == 0 ? PlanFullAttention(whole) : PlanShiftedSparseAttention(whole, group);
  const at::Tensor out = at::empty_like(q);
  const auto logsumexp = AttentionForward(plan, q, k, v, out);
  const AttentionGradients expected{at::empty_like(q), at::empty_like(k), at::empty_like(v)};
  AttentionBackward(plan, {q, k, v, out}, logsumexp, out_gradient.clone(), expected);

  SequenceRanks sequence(ranks, ranks.world_size());
  const SequencePlace place{ranks.rank(), ranks.world_size()};
  const SequencePlan own_plan =
      group == 0 ? PlanFullSequence(whole, place) : PlanShiftedSparseSequence(whole, place, group);
  const SequenceShare share = own_plan.shares[static_cast<size_t>(ranks.rank())];
  const auto own = [&](const at::Tensor& rows) {
    const at::Tensor sequences = rows.unflatten(0, {whole.sequences, whole.tokens});
    return sequences.narrow(1, share.first, share.tokens).flatten(0, 1).contiguous();
  };
  Arena arena{at::kCPU};
  arena.UseOwnMemory();
  const AttentionInputs inputs{own(q), own(k), own(v), at::empty_like(own(q))};
  const auto own_logsumexp = SplitLogsumexp(own_plan.calls, at::empty({LogsumexpSize(own_plan.calls)}, at::kFloat));
  SequenceAttention(own_plan, sequence, arena).Forward(inputs.q, inputs.k, inputs.v, inputs.out, own_logsumexp, aten);
  EXPECT_LT(RelativeError(inputs.out, own(out)), 1e-5);
  const AttentionGradients found{at::empty_like(inputs.q), at::empty_like(inputs.k), at::empty_like(inputs.v)};
  SequenceAttention(own_plan, sequence, arena).Backward(inputs, own_logsumexp, own(out_gradient), found, aten);
  // Of the whole: a share may have no gradient at all.
  const auto expect_near = [&](const at::Tensor& actual, const at::Tensor& of_whole, const char* name) {
    const double error = (actual - own(of_whole)).abs().max().item<double>();
    EXPECT_LT(error, 1e-5 * std::max(1.0, of_whole.abs().max().item<double>())) << name;
  };
  expect_near(found.q, expected.q, "dQ");
  expect_near(found.k, expected.k, "dK");
  expect_near(found.v, expected.v, "dV");
}

TEST(SequenceAttentionTest, IsOneRanksByCallsThatAreJoinedAtEdgeSizes) {
  for (const Through through : {Through::kGloo, Through::kHostStaging}) {
    for (const int64_t world_size : {2, 3}) {
      AsGang(
          world_size,
          [&](Communicator& ranks) {
            for (const int64_t key_value_heads : {4, 2, 1}) {
              for (const int64_t tokens : {3, 4, 7, 66}) {  // the ring takes any share, of 1 token too
                ExpectAttentionIsOneRanks(ranks, {2, tokens, 4, key_value_heads}, 0);
              }
              for (const int64_t group : {1, 2, 5, 16}) {
                ExpectAttentionIsOneRanks(ranks, {2, world_size * group, 4, key_value_heads}, group);
                ExpectAttentionIsOneRanks(ranks, {2, world_size * 3 * group, 4, key_value_heads}, group);
              }
            }
          },
          through);
    }
  }
}

TEST_F(SequenceTest, MovesAboutAQuarterOfWhatAllToAllsWould) {
  TinyShape shape;
  shape.heads = shape.key_value_heads = 8;
  UseModel(shape);
  const at::Tensor ids = Ids(2);
  for (const int64_t ranks_of_sequence : {2, 4}) {
    options_.spec.attention.group_size = kTokens / 4;
    std::vector<int64_t> sent(static_cast<size_t>(ranks_of_sequence));
    AsGang(ranks_of_sequence, [&](Communicator& ranks) {
      SequenceRanks sequence(ranks, ranks_of_sequence);
      const auto model = Load(&sequence);
      Batch batch;
      batch.input_ids = batch.labels = ids;
      model->ForwardBackward(batch);
      sent[static_cast<size_t>(ranks.rank())] = ranks.exchanged_bytes();
    });
    // Of a layer: K and V of half a group of half the heads forward, again backward, and their gradients back.
    const int64_t head_row = 6 * 4;  // bytes
    const int64_t border = 3 * 2 * (options_.spec.attention.group_size.value() / 2) * 4 * head_row * ids.size(0);
    int64_t all = 0;
    for (const int64_t bytes : sent) all += bytes;
    EXPECT_EQ(all, shape.layers * (ranks_of_sequence - 1) * border);
    // Ulysses (arXiv 2309.14509): q, k, v and out forward, their gradients backward; of each rank's rows all but its
    // own share of the heads leaves.
    const int64_t ulysses =
        shape.layers * 2 * 4 * ids.numel() * 8 * head_row / ranks_of_sequence * (ranks_of_sequence - 1);
    const double ratio = static_cast<double>(all) / static_cast<double>(ulysses);
    RecordProperty("of_ulysses_" + std::to_string(ranks_of_sequence), std::to_string(ratio));
    EXPECT_LE(ratio, 0.25);
    // On four ranks a group is a rank's tokens: the most that travels.
    EXPECT_NEAR(ratio, ranks_of_sequence == 4 ? 0.1875 : 0.09375, 1e-9);
  }
}

TEST_F(SequenceTest, RefusesWhatItCannotShare) {
  AsGang(2, [&](Communicator& ranks) {
    SequenceRanks sequence(ranks, 2);
    const auto model = Load(&sequence);
    const at::Tensor ids = RandomIds(1, 72, shape_.vocab);  // 36 tokens of a rank: not a multiple of 8
    EXPECT_THROW(model->TrainingLogits(ids), c10::Error);
    const at::Tensor good = Ids(1);
    EXPECT_THROW(model->TrainingLogits(good, at::zeros_like(good)), c10::Error);
    CausalLm::EvaluationOptions options;
    EXPECT_THROW(model->Evaluate(RandomIds(1, 1, shape_.vocab), RandomIds(1, 1, shape_.vocab), options), c10::Error);
  });
}

}  // namespace
}  // namespace longspan::trainer

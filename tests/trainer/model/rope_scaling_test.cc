// Positions: what config.json says, what a job makes of it, what is written back. The angles themselves are compared
// with transformers in tests/parity/test_rope.py.
#include "worker/model_config/rope_scaling.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <optional>
#include <utility>
#include <vector>

#include "worker/model_config/rope_extension.h"
#include "worker/trainer/errors.h"
#include "worker/trainer/model/rotary_positions.h"

namespace longspan::trainer {
namespace {

using jobfile::RopeKind;
using nlohmann::json;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr int64_t kHeadDim = 16;

template <typename Error, typename Body>
std::string MessageOf(Body body) {
  try {
    body();
  } catch (const Error& error) {
    return error.what();
  }
  return "nothing was thrown";
}

json Config(json changes = json::object(), int64_t positions = 64) {
  json document = {{"max_position_embeddings", positions}, {"rope_theta", 10000.0}};
  document.update(changes);
  return document;
}
json Scaling(json section, int64_t positions = 64) { return Config({{"rope_scaling", std::move(section)}}, positions); }

RopeParameters Read(const json& document, const RopeKeys& keys = {}) {
  return ReadRopeParameters(document, "m/config.json", document["max_position_embeddings"], kHeadDim, keys);
}
int64_t Reach(const json& document) { return ReachOf(Read(document), document["max_position_embeddings"]); }

std::string Refusal(const json& document) {
  return MessageOf<UserError>([&] { Read(document); });
}

json Yarn() { return {{"type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 32}}; }
json Llama3() {
  return {{"rope_type", "llama3"},
          {"factor", 8.0},
          {"low_freq_factor", 1.0},
          {"high_freq_factor", 4.0},
          {"original_max_position_embeddings", 16}};
}

jobfile::JobSpec Job(int64_t context_length, std::optional<jobfile::RopeSection> rope = std::nullopt) {
  jobfile::JobSpec spec;
  spec.context_length = context_length;
  spec.rope = std::move(rope);
  return spec;
}
jobfile::RopeSection Section(RopeKind kind, std::optional<double> factor = std::nullopt,
                             std::optional<int64_t> original_length = std::nullopt) {
  jobfile::RopeSection section;
  section.kind = kind;
  section.factor = factor;
  section.original_length = original_length;
  return section;
}
RopeParameters Extend(const json& document, const jobfile::JobSpec& spec) {
  return ExtendRope(Read(document), Reach(document), kHeadDim, spec);
}
std::string SpecRefusal(const json& document, const jobfile::JobSpec& spec) {
  return MessageOf<SpecError>([&] { Extend(document, spec); });
}

TEST(ReadRope, OldAndNewKeys) {
  EXPECT_EQ(Read(Config()).kind, RopeScalingKind::kDefault);
  const RopeParameters oldest = Read(Scaling({{"type", "linear"}, {"factor", 2.0}}));
  EXPECT_EQ(oldest.kind, RopeScalingKind::kLinear);
  EXPECT_EQ(oldest.factor, 2);
  EXPECT_EQ(Read(Scaling({{"rope_type", "linear"}, {"factor", 3}})).factor, 3);
  // rope_type counts where both are there.
  EXPECT_EQ(Read(Scaling({{"rope_type", "dynamic"}, {"type", "linear"}, {"factor", 3}})).kind,
            RopeScalingKind::kDynamic);
  const json parameters = {{"rope_type", "linear"}, {"factor", 5.0}, {"rope_theta", 7000.0}};
  const RopeParameters newest = Read({{"max_position_embeddings", 64}, {"rope_parameters", parameters}});
  EXPECT_EQ(newest.factor, 5);
  EXPECT_EQ(newest.theta, 7000);
}

TEST(ReadRope, TheOlderSectionCountsWhereItSaysAnything) {
  const json parameters = {{"rope_type", "linear"}, {"factor", 5.0}, {"rope_theta", 7000.0}};
  const json both = {{"rope_parameters", parameters}, {"rope_scaling", {{"type", "linear"}, {"factor", 2.0}}}};
  EXPECT_EQ(Read(Config(both)).factor, 2);
  EXPECT_EQ(Read(Config(both)).theta, 10000);
  const json empty = {{"rope_parameters", parameters}, {"rope_scaling", json::object()}};
  EXPECT_EQ(Read(Config(empty)).theta, 7000);
  EXPECT_EQ(Read(Config({{"rope_parameters", parameters}, {"rope_scaling", nullptr}})).theta, 7000);
}

TEST(ReadRope, LinearByOneIsNoScaling) {
  EXPECT_EQ(Read(Scaling({{"type", "linear"}, {"factor", 1.0}})).kind, RopeScalingKind::kDefault);
}

TEST(ReadRope, OriginalLengths) {
  EXPECT_EQ(Read(Scaling(Yarn())).original_length, 32);
  json without = Yarn();
  without.erase("original_max_position_embeddings");
  EXPECT_EQ(Read(Scaling(without)).original_length, 64);
  json beside = Scaling(Yarn());
  beside["original_max_position_embeddings"] = 16;
  EXPECT_EQ(Read(beside).original_length, 16) << "beside the section it counts more";
  EXPECT_EQ(
      Read(Scaling({{"type", "dynamic"}, {"factor", 2.0}, {"original_max_position_embeddings", 32}})).original_length,
      64)
      << "dynamic scales from max_position_embeddings";
  EXPECT_EQ(Read(Scaling({{"type", "linear"}, {"factor", 2.0}})).original_length, 0) << "nobody said";
}

TEST(ReadRope, AYarnFactorThatIsNullFollowsFromTheLengths) {
  json section = Yarn();
  section["factor"] = nullptr;
  EXPECT_EQ(Read(Scaling(section)).factor, 2);
}

TEST(ReadRope, AFamilyMayCallItsKeysOtherwise) {
  const RopeKeys keys = {"rotary_emb_base", "rotary_pct", 500.0, 0.25};
  json document = {{"max_position_embeddings", 64}};
  EXPECT_EQ(Read(document, keys).theta, 500);
  EXPECT_EQ(RotaryDims(Read(document, keys), kHeadDim), 4);
  document["rotary_pct"] = 0.5;
  document["rotary_emb_base"] = 300;
  document["rope_scaling"] = {{"type", "linear"}, {"factor", 2.0}};
  const RopeParameters rope = Read(document, keys);
  EXPECT_EQ(rope.theta, 300);
  EXPECT_EQ(RotaryDims(rope, kHeadDim), 8);
  WriteRopeParameters(rope, 64, &document, keys);
  EXPECT_FALSE(document.contains("rope_theta"));
  EXPECT_EQ(document["rotary_pct"], 0.5);
  EXPECT_TRUE(SamePositions(Read(document, keys), rope));
}

TEST(ReadRope, RefusesNamingFileAndKey) {
  const auto with = [](json section, const char* key, json value) {
    section[key] = std::move(value);
    return Scaling(section);
  };
  EXPECT_THAT(Refusal(Scaling(json::array({1}))), HasSubstr("m/config.json: rope_scaling must be an object"));
  EXPECT_THAT(Refusal(Config({{"rope_scaling", true}})), HasSubstr("m/config.json: rope_scaling must be an object"));
  EXPECT_THAT(Refusal(Config({{"rope_parameters", "yarn"}})), HasSubstr("rope_parameters must be an object"));
  EXPECT_THAT(Refusal(with(Yarn(), "type", "longrope")), HasSubstr("rope_scaling.type \"longrope\" is not supported"));
  EXPECT_THAT(Refusal(with(Yarn(), "rope_type", 3)),
              HasSubstr("m/config.json: rope_scaling.rope_type must be a string"));
  EXPECT_THAT(Refusal(Scaling({{"type", "linear"}})), HasSubstr("rope_scaling.factor is missing"));
  EXPECT_THAT(Refusal(Scaling({{"type", "dynamic"}, {"factor", nullptr}})),
              HasSubstr("rope_scaling.factor is missing"));
  for (const json& wrong : {json("x"), json(0), json(-2.0), json(json::array({2})), json(true)}) {
    EXPECT_THAT(Refusal(with(Yarn(), "factor", wrong)), HasSubstr("rope_scaling.factor must be a number above 0"));
    EXPECT_THAT(Refusal(with(Yarn(), "beta_fast", wrong)),
                HasSubstr("rope_scaling.beta_fast must be a number above 0"));
    EXPECT_THAT(Refusal(with(Yarn(), "attention_factor", wrong)), HasSubstr("rope_scaling.attention_factor must be"));
    EXPECT_THAT(Refusal(with(Llama3(), "rope_theta", wrong)), HasSubstr("rope_scaling.rope_theta must be"));
    EXPECT_THAT(Refusal(with(Llama3(), "low_freq_factor", wrong)), HasSubstr("rope_scaling.low_freq_factor must be"));
    EXPECT_THAT(Refusal(with(Llama3(), "original_max_position_embeddings", wrong)),
                HasSubstr("rope_scaling.original_max_position_embeddings must be a whole number"));
  }
  EXPECT_THAT(Refusal(with(Yarn(), "mscale", "x")), HasSubstr("rope_scaling.mscale must be a number above 0"));
  EXPECT_THAT(Refusal(with(Yarn(), "truncate", 1)), HasSubstr("rope_scaling.truncate must be true or false"));
  EXPECT_THAT(Refusal(with(Yarn(), "rope_theta", 1.0)), HasSubstr("rope_theta 1 must be above 1 for yarn"));
  EXPECT_THAT(Refusal(with(Llama3(), "high_freq_factor", nullptr)),
              HasSubstr("rope_scaling.high_freq_factor is missing"));
  EXPECT_THAT(Refusal(with(Llama3(), "high_freq_factor", 0.5)),
              HasSubstr("rope_scaling.high_freq_factor 0.5 must be above low_freq_factor 1"));
  EXPECT_THAT(Refusal(Config({{"rope_parameters", {{"full_attention", {{"rope_type", "default"}}}}}})),
              HasSubstr("rope_parameters.full_attention is a section: positions by layer are not supported"));
  EXPECT_THAT(Refusal(Config({{"partial_rotary_factor", 1.5}})), HasSubstr("more than the whole head"));
  EXPECT_THAT(Refusal(Config({{"partial_rotary_factor", 0.2}})), HasSubstr("3 rotary dimensions, which must be even"));
  EXPECT_THAT(MessageOf<UserError>(
                  [] { ReadRopeParameters(Scaling({{"type", "dynamic"}, {"factor", 2.0}}), "m/config.json", 64, 2); }),
              HasSubstr("dynamic scaling needs more than 2"));
}

TEST(Reach, IsWhatThePositionsWereMadeFor) {
  EXPECT_EQ(Reach(Config()), 64);
  EXPECT_EQ(Reach(Scaling({{"type", "linear"}, {"factor", 2.0}})), 64);
  EXPECT_EQ(Reach(Config(
                {{"rope_scaling", {{"type", "linear"}, {"factor", 4.0}}}, {"original_max_position_embeddings", 64}})),
            256);
  EXPECT_EQ(Reach(Scaling({{"type", "dynamic"}, {"factor", 2.0}})), 128);
  EXPECT_EQ(Reach(Scaling(Yarn())), 128);
  EXPECT_EQ(Reach(Scaling(Yarn(), 32)), 128);
  EXPECT_EQ(Reach(Scaling(Llama3(), 256)), 256) << "Llama 3.1 reads 16 times its original length with a factor of 8";
  EXPECT_EQ(Reach(Scaling({{"type", "yarn"}, {"factor", 1e300}})), int64_t{1000000000000000});
}

TEST(ExtendRope, GivesAModelWithoutScalingTheKindThatTheJobAsksFor) {
  EXPECT_EQ(Extend(Config(), Job(64)).kind, RopeScalingKind::kDefault);
  const RopeParameters absent = Extend(Config(), Job(256));
  EXPECT_EQ(absent.kind, RopeScalingKind::kLinear);
  EXPECT_EQ(absent.factor, 4);
  EXPECT_EQ(absent.original_length, 64);
  for (const auto& [kind, scaling] :
       {std::pair{RopeKind::kDynamic, RopeScalingKind::kDynamic}, std::pair{RopeKind::kYarn, RopeScalingKind::kYarn},
        std::pair{RopeKind::kLlama3, RopeScalingKind::kLlama3}}) {
    const RopeParameters rope = Extend(Config(), Job(256, Section(kind)));
    EXPECT_EQ(rope.kind, scaling);
    EXPECT_EQ(rope.factor, 4);
    EXPECT_EQ(rope.original_length, 64);
    EXPECT_EQ(Extend(Config(), Job(256, Section(kind, 3.0, 16))).factor, 3);
    EXPECT_EQ(Extend(Config(), Job(256, Section(kind, std::nullopt, 16))).factor, 16);
    EXPECT_EQ(Extend(Config(), Job(256, Section(kind, std::nullopt, 16))).original_length, 16);
    EXPECT_EQ(Extend(Config(), Job(64, Section(kind))).kind, RopeScalingKind::kDefault) << "nothing to stretch";
  }
}

TEST(ExtendRope, NtkAndThetaChangeThetaAndLeaveTheScaling) {
  const double expected = 10000 * std::pow(4.0, 16.0 / 14.0);
  EXPECT_DOUBLE_EQ(Extend(Config(), Job(256, Section(RopeKind::kNtk))).theta, expected);
  EXPECT_EQ(Extend(Config(), Job(256, Section(RopeKind::kNtk))).kind, RopeScalingKind::kDefault);
  const RopeParameters on_llama3 = Extend(Scaling(Llama3(), 256), Job(1024, Section(RopeKind::kNtk)));
  EXPECT_DOUBLE_EQ(on_llama3.theta, expected);
  EXPECT_EQ(on_llama3.kind, RopeScalingKind::kLlama3);
  EXPECT_EQ(on_llama3.factor, 8);
  jobfile::RopeSection theta = Section(RopeKind::kTheta);
  theta.theta = 5e6;
  EXPECT_EQ(Extend(Scaling(Yarn()), Job(1024, theta)).theta, 5e6);
  EXPECT_EQ(Extend(Scaling(Yarn()), Job(1024, theta)).factor, 4);
}

TEST(ExtendRope, MultipliesFactorsOfTheSameKindOnTheOriginalLength) {
  const json linear = {{"type", "linear"}, {"factor", 2.0}};
  EXPECT_EQ(Extend(Scaling(linear), Job(256, Section(RopeKind::kLinear, 1.5))).factor, 3);
  EXPECT_EQ(Extend(Scaling(linear), Job(256, Section(RopeKind::kLinear, std::nullopt, 32))).factor, 8);
  EXPECT_EQ(Extend(Scaling(linear), Job(256, Section(RopeKind::kLinear, std::nullopt, 64))).factor, 4);
  EXPECT_EQ(Extend(Scaling({{"type", "dynamic"}, {"factor", 2.0}}), Job(512, Section(RopeKind::kDynamic))).factor, 8);
  const RopeParameters yarn = Extend(Scaling(Yarn()), Job(256, Section(RopeKind::kYarn)));
  EXPECT_EQ(yarn.factor, 8);
  EXPECT_EQ(yarn.original_length, 32);
  const RopeParameters llama3 = Extend(Scaling(Llama3(), 256), Job(512, Section(RopeKind::kLlama3)));
  EXPECT_EQ(llama3.factor, 16);
  EXPECT_EQ(llama3.original_length, 16);
}

TEST(ExtendRope, ParametersStayTheModelsUnlessTheJobGivesThem) {
  json section = Yarn();
  section["beta_fast"] = 20.0;
  section["attention_factor"] = 1.25;
  jobfile::RopeSection job = Section(RopeKind::kYarn, 2.0);
  EXPECT_EQ(Extend(Scaling(section), Job(256, job)).beta_fast, 20);
  EXPECT_EQ(Extend(Scaling(section), Job(256, job)).attention_factor, 1.25);
  job.beta_fast = 30;
  job.attention_factor = 1.5;
  EXPECT_EQ(Extend(Scaling(section), Job(256, job)).beta_fast, 30);
  EXPECT_EQ(Extend(Scaling(section), Job(256, job)).attention_factor, 1.5);
  EXPECT_EQ(Extend(Config(), Job(64, job)).kind, RopeScalingKind::kYarn);
  job.beta_slow = 40;
  EXPECT_THAT(SpecRefusal(Scaling(section), Job(256, job)), HasSubstr("rope.beta_slow: 40 must be below beta_fast 30"));
  jobfile::RopeSection low = Section(RopeKind::kLlama3);
  low.low_freq_factor = 4;
  EXPECT_THAT(SpecRefusal(Scaling(Llama3(), 256), Job(512, low)), HasSubstr("rope.low_freq_factor: 4 must be below"));
}

TEST(ExtendRope, RefusesTwoKindsNamingBoth) {
  const std::pair<const char*, json> own[] = {
      {"linear", {{"type", "linear"}, {"factor", 2.0}}},
      {"dynamic", {{"type", "dynamic"}, {"factor", 2.0}}},
      {"yarn", Yarn()},
      {"llama3", Llama3()},
  };
  for (const auto& [name, section] : own) {
    for (const auto& [kind, other] : {std::pair{RopeKind::kLinear, "linear"}, std::pair{RopeKind::kDynamic, "dynamic"},
                                      std::pair{RopeKind::kYarn, "yarn"}, std::pair{RopeKind::kLlama3, "llama3"}}) {
      if (std::string(name) == other) continue;
      for (const std::optional<double> factor : {std::optional<double>(), std::optional<double>(2.0)}) {
        EXPECT_THAT(SpecRefusal(Scaling(section), Job(4096, Section(kind, factor))),
                    AllOf(HasSubstr("rope.kind"), HasSubstr(name), HasSubstr(other)));
      }
      EXPECT_TRUE(SamePositions(Extend(Scaling(section), Job(32, Section(kind))), Read(Scaling(section))))
          << "nothing to stretch: " << name << " stays";
    }
    EXPECT_TRUE(SamePositions(Extend(Scaling(section), Job(64)), Read(Scaling(section))));
  }
}

TEST(ExtendRope, AsksForTheOriginalLengthWhereTheConfigIsAmbiguous) {
  const json linear = {{"type", "linear"}, {"factor", 8.0}};
  EXPECT_THAT(SpecRefusal(Scaling(linear), Job(256)),
              AllOf(HasSubstr("rope.original_length: is needed"), HasSubstr("linear scaling by 8")));
  EXPECT_EQ(Extend(Scaling(linear), Job(64)).factor, 8) << "shorter than either reading";
  // As LongLoRA's own models have it: the maximum is the length before the scaling.
  EXPECT_EQ(Extend(Scaling(linear), Job(1024, Section(RopeKind::kLinear, std::nullopt, 64))).factor, 16);
  const json stated = Config({{"rope_scaling", linear}, {"original_max_position_embeddings", 64}});
  EXPECT_EQ(Extend(stated, Job(1024)).factor, 16);
  EXPECT_EQ(Extend(stated, Job(512)).factor, 8);
  EXPECT_THAT(SpecRefusal(stated, Job(1024, Section(RopeKind::kLinear, std::nullopt, 32))),
              HasSubstr("rope.original_length: is 32, but the model's linear scaling is on an original length of 64"));
  EXPECT_THAT(SpecRefusal(Scaling(Yarn()), Job(1024, Section(RopeKind::kYarn, 2.0, 64))),
              HasSubstr("rope.original_length: is 64, but the model's yarn scaling is on an original length of 32"));
}

TEST(ExtendRope, AnEvaluationWithoutRopeMeasuresTheModelAsItIs) {
  jobfile::JobSpec spec = Job(4096);
  spec.kind = jobfile::JobKind::kEvaluate;
  EXPECT_EQ(Extend(Config(), spec).kind, RopeScalingKind::kDefault);
  EXPECT_EQ(Extend(Scaling(Yarn()), spec).factor, 4);
  spec.rope = Section(RopeKind::kNtk);
  EXPECT_GT(Extend(Config(), spec).theta, 10000);
}

TEST(ExtendRope, TwoRotaryDimensionsAreTooFewForNtkAndDynamic) {
  for (const RopeKind kind : {RopeKind::kNtk, RopeKind::kDynamic}) {
    EXPECT_THAT(MessageOf<SpecError>([&] { ExtendRope({}, 64, 2, Job(256, Section(kind))); }),
                HasSubstr("needs more than the 2 rotary dimensions"));
  }
  EXPECT_EQ(ExtendRope({}, 64, 2, Job(256)).factor, 4);
}

// A model with such a theta is refused when it has yarn already; a job could still give it yarn, or such a theta.
TEST(ExtendRope, YarnNeedsAThetaAboveOne) {
  RopeParameters own;
  own.theta = 1e-5;
  EXPECT_THAT(MessageOf<SpecError>([&] { ExtendRope(own, 64, 16, Job(256, Section(RopeKind::kYarn))); }),
              HasSubstr("theta 1e-05 must be above 1 for yarn scaling"));
  EXPECT_EQ(ExtendRope(own, 64, 16, Job(256)).factor, 4);
  jobfile::RopeSection theta = Section(RopeKind::kTheta);
  theta.theta = 1;
  EXPECT_THAT(SpecRefusal(Scaling(Yarn()), Job(256, theta)), HasSubstr("theta 1 must be above 1 for yarn scaling"));
}

// Every kind that a job can make, and every kind that a model can have.
std::vector<RopeParameters> AllKinds() {
  std::vector<RopeParameters> all;
  for (const RopeKind kind :
       {RopeKind::kLinear, RopeKind::kNtk, RopeKind::kDynamic, RopeKind::kYarn, RopeKind::kLlama3}) {
    all.push_back(Extend(Config(), Job(200, Section(kind))));
  }
  json yarn = Yarn();
  yarn.update({{"beta_fast", 24.0}, {"beta_slow", 2.0}, {"mscale", 0.7}, {"mscale_all_dim", 1.0}, {"truncate", false}});
  all.push_back(Read(Scaling(yarn)));
  yarn["attention_factor"] = 1.5;
  all.push_back(Read(Scaling(yarn, 128)));
  all.push_back(Extend(Scaling(Yarn()), Job(777, Section(RopeKind::kYarn))));
  all.push_back(Extend(Scaling(Llama3(), 256), Job(777, Section(RopeKind::kLlama3))));
  return all;
}

TEST(WriteRope, ReadsBackAsTheSamePositions) {
  for (const RopeParameters& rope : AllKinds()) {
    // What the original had, under any name, is gone.
    json document = Config({{"rope_parameters", {{"rope_type", "linear"}, {"factor", 9.0}, {"rope_theta", 3.0}}},
                            {"original_max_position_embeddings", 5}});
    WriteRopeParameters(rope, 200, &document);
    EXPECT_FALSE(document.contains("rope_parameters"));
    if (rope.kind == RopeScalingKind::kDefault) continue;
    const RopeParameters again = Read(document);
    EXPECT_TRUE(SamePositions(again, rope)) << document.dump();
    EXPECT_EQ(again.original_length, rope.original_length) << document.dump();
    json twice = document;
    WriteRopeParameters(again, document["max_position_embeddings"], &twice);
    EXPECT_EQ(twice, document);
  }
}

TEST(WriteRope, HasTheFormThatEveryTransformersReads) {
  const auto written = [](const RopeParameters& rope) {
    json document = Config();
    WriteRopeParameters(rope, 256, &document);
    return document;
  };
  const auto extended = [&](RopeKind kind) { return written(Extend(Config(), Job(256, Section(kind)))); };
  EXPECT_EQ(extended(RopeKind::kLinear)["rope_scaling"], json({{"type", "linear"}, {"factor", 4.0}}));
  EXPECT_EQ(extended(RopeKind::kLinear)["max_position_embeddings"], 256);
  EXPECT_EQ(extended(RopeKind::kNtk)["rope_scaling"], nullptr);
  EXPECT_EQ(extended(RopeKind::kNtk)["max_position_embeddings"], 256);
  EXPECT_EQ(extended(RopeKind::kDynamic)["rope_scaling"], json({{"type", "dynamic"}, {"factor", 4.0}}));
  EXPECT_EQ(extended(RopeKind::kDynamic)["max_position_embeddings"], 64);
  const json yarn = extended(RopeKind::kYarn);
  EXPECT_FALSE(yarn["rope_scaling"].contains("original_max_position_embeddings"));
  EXPECT_EQ(yarn["max_position_embeddings"], 64);
  const json llama3 = extended(RopeKind::kLlama3);
  EXPECT_EQ(llama3["rope_scaling"]["original_max_position_embeddings"], 64);
  EXPECT_EQ(llama3["max_position_embeddings"], 256);
}

TEST(RotaryPositions, DynamicDependsOnTheLengthAtHandAndOnNothingBefore) {
  const RopeParameters rope = Read(Scaling({{"type", "dynamic"}, {"factor", 2.0}}));
  RotaryPositions one(rope, kHeadDim);
  for (const int64_t tokens : {5, 100, 64, 200, 100, 63, 65, 1}) {
    RotaryPositions fresh(rope, kHeadDim);
    EXPECT_TRUE(at::equal(one.For(tokens).cosine.narrow(0, 0, tokens), fresh.For(tokens).cosine)) << tokens;
  }
  EXPECT_FALSE(at::equal(one.For(100).cosine.narrow(0, 0, 64), one.For(64).cosine.narrow(0, 0, 64)));
}

TEST(RotaryPositions, PartOfAHeadMayTurn) {
  RopeParameters rope;
  rope.partial_rotary_factor = 0.25;
  EXPECT_THAT(RotaryPositions(rope, 16).For(3).cosine.sizes().vec(), ElementsAre(3, 2));
}

}  // namespace
}  // namespace longspan::trainer

// Job files: what is accepted, and that every mistake comes back with its path, its line and what would be right.
#include "proto/jobfile/job_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

#include "proto/jobfile/enum_names.h"
#include "proto/jobfile/nearest_key.h"
#include "tests/test_paths.h"

namespace longspan::jobfile {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Pair;

constexpr char kSmallest[] =
    R"({"name": "a", "model": {"path": "/m"}, "data": {"sources": ["/d.txt"]}, "context_length": 1024})";

std::vector<std::string> Texts(const std::vector<Mistake>& mistakes) {
  std::vector<std::string> texts;
  for (const Mistake& mistake : mistakes) texts.push_back(ToString(mistake));
  return texts;
}

// The smallest job file with one change, as an RFC 6902-like path and value.
std::vector<std::string> MistakesWith(const std::string& pointer, const json& value) {
  json document = json::parse(kSmallest);
  document[json::json_pointer(pointer)] = value;
  return Texts(ParseDocument(document, nullptr).mistakes);
}

TEST(JobFile, SmallestFileHasTheDefaults) {
  const Parsed parsed = ParseText(kSmallest);
  ASSERT_TRUE(parsed.spec) << ::testing::PrintToString(Texts(parsed.mistakes));
  EXPECT_EQ(parsed.spec->name, "a");
  EXPECT_EQ(parsed.spec->queue, "default");
  EXPECT_EQ(parsed.spec->training.steps, 1000);
  EXPECT_EQ(parsed.spec->method.kind, MethodKind::kLongLora);
  EXPECT_EQ(parsed.spec->attention.kind, AttentionKind::kS2);
  EXPECT_FALSE(parsed.spec->rope);
  EXPECT_EQ(ResolvedGroupSize(*parsed.spec), 256);
}

TEST(JobFile, AllMistakesComeInOneAnswerWithTheirLines) {
  const Parsed parsed = ParseText(R"({
  "name": "Has Spaces",
  "model": {"path": "/m"},
  "data": {
    "sources": ["/d.txt"],
    "formt": "text"
  },
  "context_length": "long",
  "training": {"steps": 0, "learning_rat": 1e-4},
  "attention": {"group_size": 4, "group_ratio": 0.25}
})");
  EXPECT_FALSE(parsed.spec);
  EXPECT_THAT(Texts(parsed.mistakes),
              ElementsAre("line 6: data.formt: unknown key; did you mean data.format?",
                          "line 8: context_length: is \"long\"; must be a whole number",
                          "line 9: training.learning_rat: unknown key; did you mean training.learning_rate?",
                          HasSubstr("line 2: name: is \"Has Spaces\"; must be 1 to 63 lower-case letters"),
                          "line 9: training.steps: is 0; must be 1 to 1000000000",
                          "line 10: attention.group_ratio: excludes attention.group_size; keep one of the two"));
}

TEST(JobFile, RequiredKeysAreNamed) {
  EXPECT_THAT(Texts(ParseText("{}").mistakes),
              ElementsAre(HasSubstr("name: is required"), HasSubstr("model.path: is required"),
                          HasSubstr("data.sources: is required"), HasSubstr("context_length: is required")));
}

TEST(JobFile, ProbeNeedsOnlyTheModelAndTheContextAndIgnoresBatchKeys) {
  const Parsed parsed = ParseText(
      R"({"model": {"path": "/m"}, "context_length": 64, "training": {"global_batch": 0, "micro_batch": -1, "steps": 0}})",
      Purpose::kProbe);
  EXPECT_THAT(Texts(parsed.mistakes), IsEmpty());
  EXPECT_THAT(Texts(ParseText("{}", Purpose::kProbe).mistakes),
              ElementsAre(HasSubstr("model.path: is required"), HasSubstr("context_length: is required")));
}

TEST(JobFile, BrokenTextIsOneMistakeWithItsLine) {
  EXPECT_THAT(Texts(ParseText("{\n  \"name\": \n}").mistakes),
              ElementsAre(HasSubstr("line 3: the job file is not JSON")));
  EXPECT_THAT(Texts(ParseText("").mistakes), ElementsAre(HasSubstr("is not JSON")));
  EXPECT_THAT(Texts(ParseText("[1]").mistakes), ElementsAre("the job file is a list; a job file is a map of keys"));
  EXPECT_THAT(Texts(ParseText("{\"name\": \"\xff\"}").mistakes), ElementsAre(HasSubstr("is not JSON")));
  EXPECT_THAT(Texts(ParseText("{\"training\": {\"learning_rate\": 1e999}}").mistakes),
              ElementsAre(HasSubstr("is not JSON")));
  EXPECT_THAT(Texts(ParseText(std::string(2 << 20, ' ')).mistakes),
              ElementsAre(HasSubstr("at most 1048576 are allowed")));
}

TEST(JobFile, DeepNestingDoesNotOverflowTheStack) {
  const std::string text = "{\"labels\":" + std::string(200'000, '[') + std::string(200'000, ']') + "}";
  EXPECT_FALSE(ParseText(text).spec);
}

TEST(JobFile, KeysWrittenTwiceAreRefused) {
  const Parsed parsed = ParseText(
      "{\"name\": \"a\",\n\"model\": {\"path\": \"/m\"},\n\"data\": {\"sources\": [\"/d\"]},\n"
      "\"context_length\": 8,\n\"name\": \"b\"}");
  EXPECT_THAT(Texts(parsed.mistakes), ElementsAre("line 5: name: is written twice, first in line 1"));
}

TEST(JobFile, KeysOfAnotherSectionAreFound) {
  EXPECT_THAT(MistakesWith("/learning_rate", 1e-4),
              ElementsAre("learning_rate: unknown key; did you mean training.learning_rate?"));
  EXPECT_THAT(MistakesWith("/trainning", json::object()),
              ElementsAre("trainning: unknown key; did you mean training?"));
  EXPECT_THAT(MistakesWith("/xyzzy", 1), ElementsAre(HasSubstr("xyzzy: unknown key; deploy/examples/reference.yaml")));
  EXPECT_THAT(MistakesWith("/training.steps", 1), ElementsAre(HasSubstr("write the part after the dot inside a map")));
  EXPECT_THAT(MistakesWith("/a\nb", 1), ElementsAre(HasSubstr("\"a\\nb\": unknown key")));
}

TEST(JobFile, SharedWeightsGoWithWhatLeavesThemAloneAndWritesNoTexts) {
  const auto shared_with = [](const std::string& pointer, const json& value) {
    json document = json::parse(kSmallest);
    document["resources"]["shard_weights"] = true;
    document[json::json_pointer(pointer)] = value;
    return Texts(ParseText(document.dump()).mistakes);
  };
  EXPECT_THAT(shared_with("/method/kind", "lora"), IsEmpty());
  EXPECT_THAT(shared_with("/method/kind", "longlora"), IsEmpty());
  EXPECT_THAT(
      shared_with("/method/kind", "full"),
      ElementsAre("line 1: resources.shard_weights: does not go with method full, which trains what the ranks would "
                  "share; choose longlora or lora"));
  EXPECT_THAT(shared_with("/method/kind", "qlora"), ElementsAre(HasSubstr("choose lora, or leave it out")));
  EXPECT_THAT(shared_with("/method/kind", "qlonglora"), ElementsAre(HasSubstr("choose longlora, or leave it out")));
  for (const char* task : {"/evaluation/passkey/lengths", "/evaluation/topics/lengths"}) {
    EXPECT_THAT(shared_with(task, {64}), ElementsAre(HasSubstr("in a job of kind evaluate that does without it")));
  }
}

TEST(JobFile, ProductsInEightBitsGoWithFrozenWholeWeightsInBf16) {
  const auto fp8_with = [](const std::string& pointer, const json& value) {
    json document = json::parse(kSmallest);
    document["training"]["fp8"] = true;
    document[json::json_pointer(pointer)] = value;
    return Texts(ParseText(document.dump()).mistakes);
  };
  EXPECT_THAT(fp8_with("/method/kind", "lora"), IsEmpty());
  EXPECT_THAT(fp8_with("/training/dtype", "bf16"), IsEmpty());
  EXPECT_THAT(
      fp8_with("/method/kind", "full"),
      ElementsAre("line 1: training.fp8: does not go with method full, which trains the weights; choose longlora "
                  "or lora"));
  EXPECT_THAT(fp8_with("/method/kind", "qlora"), ElementsAre(HasSubstr("choose lora, or leave it out")));
  EXPECT_THAT(fp8_with("/method/kind", "qlonglora"), ElementsAre(HasSubstr("choose longlora, or leave it out")));
  EXPECT_THAT(fp8_with("/training/dtype", "fp32"), ElementsAre(HasSubstr("leave dtype out")));
  EXPECT_THAT(fp8_with("/resources/shard_weights", true), ElementsAre(HasSubstr("in bf16; leave one out")));
}

TEST(JobFile, TypesAreStrict) {
  EXPECT_THAT(MistakesWith("/training/steps", 1.5), ElementsAre("training.steps: is 1.5; must be a whole number"));
  EXPECT_THAT(MistakesWith("/training/steps", "7"), ElementsAre("training.steps: is \"7\"; must be a whole number"));
  EXPECT_THAT(MistakesWith("/training/steps", nullptr),
              ElementsAre("training.steps: is empty; must be a whole number"));
  EXPECT_THAT(MistakesWith("/training/steps", 18446744073709551615u), ElementsAre(HasSubstr("must be at most")));
  EXPECT_THAT(MistakesWith("/training", 3), ElementsAre("training: is 3; must be a map of keys"));
  EXPECT_THAT(MistakesWith("/output", json({{"merged", 1}})),
              ElementsAre("output.merged: is 1; must be true or false"));
  EXPECT_THAT(
      MistakesWith("/method", json({{"kind", "ATTENTION_KIND_S2"}})),
      ElementsAre("method.kind: is \"ATTENTION_KIND_S2\"; must be one of full | lora | longlora | qlora | qlonglora"));
  EXPECT_THAT(MistakesWith("/data/sources", json({"a", 5})), ElementsAre("data.sources: entry 2 is 5; must be a text"));
  EXPECT_THAT(MistakesWith("/name", std::string("a\0b", 3)), ElementsAre("name: contains a zero byte"));
  EXPECT_THAT(MistakesWith("/name", "\xff"), ElementsAre("name: is not valid UTF-8"));
  EXPECT_THAT(MistakesWith("/training/steps", 1e3), IsEmpty());
  EXPECT_THAT(MistakesWith("/training", nullptr), IsEmpty());
  EXPECT_THAT(MistakesWith("/labels", json({{"fake.steps", 12}, {"on", true}})), IsEmpty());
}

TEST(JobFile, RangesHold) {
  struct Case {
    const char* pointer;
    json good;
    json bad;
  };
  for (const Case& c : std::initializer_list<Case>{{"/priority", 100, 101},
                                                   {"/context_length", 2, 1},
                                                   {"/data/holdout_fraction", 0.5, 0.51},
                                                   {"/attention/group_ratio", 1.0, 0.0},
                                                   {"/attention/group_size", 1, 0},
                                                   {"/method/dropout", 0.0, 1.0},
                                                   {"/method/rank", 1, 0},
                                                   {"/method/alpha", 0.5, 0},
                                                   {"/rope/factor", 1, 0.5},
                                                   {"/training/beta2", 0, 1},
                                                   {"/training/epsilon", 1e-8, 0},
                                                   {"/training/seed", 0, -1},
                                                   {"/checkpoint/keep_last", 1, 0},
                                                   {"/resources/slots", 1, 0},
                                                   {"/resources/slots_min", 1, 0},
                                                   {"/resources/memory_bytes_min", "40GiB", "40 GB"},
                                                   {"/resources/memory_bytes_min", 1, 0},
                                                   {"/resources/require", {{"gpu", "H200"}}, {{"gpu", ""}}},
                                                   {"/resources/require", {{"rack", 7}}, {{"-rack", "7"}}},
                                                   {"/memory/keep", "gate_up", "everything"},
                                                   {"/memory/checkpoint_every", 1, 0},
                                                   {"/memory/host_layers", 0, -1},
                                                   {"/memory/tile_tokens", 1, 0},
                                                   {"/memory/host_bytes", 0, -1},
                                                   {"/limits/max_attempts", 1, 0},
                                                   {"/limits/max_run_time", "2h30m", "soon"},
                                                   {"/evaluation/lengths", {256, 1024}, {256, 1}},
                                                   {"/evaluation/lengths", {2}, {256, 256}},
                                                   {"/method/targets", {"q_proj"}, {"model.q_proj"}},
                                                   {"/queue", "gpu-1", "-gpu"}}) {
    EXPECT_THAT(MistakesWith(c.pointer, c.good), IsEmpty()) << c.pointer;
    EXPECT_EQ(MistakesWith(c.pointer, c.bad).size(), 1u) << c.pointer;
  }
}

TEST(JobFile, FewerSequencesThanRanksAreRefused) {
  json document = json::parse(kSmallest);
  document["training"]["global_batch"] = 2;
  document["resources"]["slots"] = 4;
  EXPECT_THAT(Texts(ParseDocument(document, nullptr).mistakes),
              ElementsAre(HasSubstr("training.global_batch: is 2; must be at least resources.slots, 4")));
}

// Of the smallest job on 4 ranks, 2 of them for a sequence of 64 tokens in groups of 16, with `changes` laid over it.
std::vector<std::string> MistakesOfShared(const json& changes) {
  json document = json::parse(kSmallest);
  document["context_length"] = 64;
  document["resources"] = {{"slots", 4}, {"sequence_parallel", 2}};
  document.merge_patch(changes);
  return Texts(ParseDocument(document, nullptr).mistakes);
}

TEST(JobFile, RanksThatShareSequencesNeedSequencesThatDivide) {
  EXPECT_THAT(MistakesOfShared(json::object()), IsEmpty());
  EXPECT_THAT(MistakesOfShared({{"resources", {{"slots", 3}}}}),
              ElementsAre(HasSubstr("resources.sequence_parallel: is 2; must divide resources.slots, 3")));
  EXPECT_THAT(MistakesOfShared({{"training", {{"global_batch", 2}}}}), IsEmpty());
  EXPECT_THAT(MistakesOfShared({{"training", {{"global_batch", 1}}}}),
              ElementsAre(HasSubstr("training.global_batch: is 1; must be at least resources.slots / "
                                    "resources.sequence_parallel, 2")));
  EXPECT_THAT(MistakesOfShared({{"context_length", 65}}),
              ElementsAre(HasSubstr("context_length: is 65; must be a multiple of resources.sequence_parallel, 2")));
  EXPECT_THAT(MistakesOfShared({{"attention", {{"group_size", 24}}}}),
              ElementsAre(HasSubstr("attention.group_size: makes groups of 24 tokens; they must divide the 32 that")));
  EXPECT_THAT(MistakesOfShared({{"attention", {{"group_ratio", 1}}}}),
              ElementsAre(HasSubstr("attention.group_ratio: makes groups of 64 tokens")));
  EXPECT_THAT(MistakesOfShared({{"attention", {{"kind", "full"}}}}), IsEmpty());
  EXPECT_THAT(MistakesOfShared({{"attention", {{"edge", "wrap"}}}}), ElementsAre(HasSubstr("attention.edge: is wrap")));
  EXPECT_THAT(MistakesOfShared({{"memory", {{"tile_heads", 1}}}}),
              ElementsAre(HasSubstr("memory.tile_heads: is 1; with resources.sequence_parallel")));
  EXPECT_THAT(MistakesOfShared({{"memory", {{"tile_heads", 0}}}}), IsEmpty());
  EXPECT_THAT(MistakesOfShared({{"data", {{"packing", true}}}}), ElementsAre(HasSubstr("data.packing: does not go")));
  EXPECT_THAT(MistakesOfShared({{"data", {{"format", "chat"}}}}),
              ElementsAre(HasSubstr("data.format: is chat, whose rows differ in length")));
}

// Of the smallest job with these resources.
std::vector<std::string> MistakesOfResources(const json& resources) { return MistakesWith("/resources", resources); }

TEST(JobFile, AnElasticJobMayHaveEverySizeBetweenThatKeepsTheRules) {
  const auto sizes = [](const json& resources) {
    json document = json::parse(kSmallest);
    document["context_length"] = 64;
    document["attention"]["group_size"] = 16;
    document["resources"] = resources;
    const Parsed parsed = ParseDocument(document, nullptr);
    EXPECT_THAT(Texts(parsed.mistakes), IsEmpty());
    return parsed.spec ? GangSizes(*parsed.spec) : std::vector<int64_t>();
  };
  EXPECT_THAT(sizes({{"slots", 4}}), ElementsAre(4));
  EXPECT_THAT(sizes({{"slots", 4}, {"slots_min", 4}}), ElementsAre(4));
  EXPECT_THAT(sizes({{"slots", 4}, {"slots_min", 1}}), ElementsAre(1, 2, 3, 4));
  EXPECT_THAT(sizes({{"slots", 8}, {"slots_min", 4}, {"sequence_parallel", 2}}), ElementsAre(4, 6, 8));

  EXPECT_THAT(MistakesOfResources({{"slots", 4}, {"slots_min", 5}}),
              ElementsAre("resources.slots_min: is 5; must be at most resources.slots, 4"));
  EXPECT_THAT(MistakesOfResources({{"slots", 4}, {"slots_min", 3}, {"sequence_parallel", 2}}),
              ElementsAre("resources.slots_min: is 3; must be a multiple of resources.sequence_parallel, 2"));
  json evaluation = json::parse(kSmallest);
  evaluation["kind"] = "evaluate";
  evaluation["resources"] = {{"slots", 2}, {"slots_min", 1}};
  EXPECT_THAT(Texts(ParseDocument(evaluation, nullptr).mistakes),
              ElementsAre(HasSubstr("resources.slots_min: does not go with kind evaluate")));
}

TEST(JobFile, AGangHasABoundedNumberOfSizes) {
  json document = json::parse(kSmallest);
  document["training"]["global_batch"] = 1000;
  document["resources"] = {{"slots", 1000}, {"slots_min", 744}};
  EXPECT_THAT(
      Texts(ParseDocument(document, nullptr).mistakes),
      ElementsAre("resources.slots_min: is 744, which leaves 257 sizes of the gang; at most 256 are allowed: give at "
                  "least 745"));
  document["resources"]["slots_min"] = 745;
  const Parsed parsed = ParseDocument(document, nullptr);
  ASSERT_TRUE(parsed.spec);
  EXPECT_EQ(GangSizes(*parsed.spec).size(), static_cast<size_t>(kGangSizesMax));
}

TEST(JobFile, WhatASlotMustOfferIsReadAndWritten) {
  json document = json::parse(kSmallest);
  document["resources"] = {{"require", {{"gpu", "H200"}, {"rack", 7}}}, {"memory_bytes_min", "40GiB"}};
  const Parsed parsed = ParseDocument(document, nullptr);
  ASSERT_TRUE(parsed.spec);
  EXPECT_THAT(parsed.spec->resources.require, ElementsAre(Pair("gpu", "H200"), Pair("rack", "7")));
  EXPECT_EQ(parsed.spec->resources.memory_bytes_min, int64_t{40} << 30);
  EXPECT_EQ(ToDocument(*parsed.spec)["resources"]["memory_bytes_min"], int64_t{40} << 30);
  EXPECT_FALSE(ToDocument(*ParseText(kSmallest).spec)["resources"].contains("require"));
  EXPECT_THAT(MistakesOfResources({{"require", {{"gpu", ""}}}}),
              ElementsAre("resources.require: gpu is empty; must be the value that the worker's label has"));
}

TEST(JobFile, AJobThatDoesNotShareSequencesIsWrittenAsBefore) {
  const JobSpec spec = *ParseDocument(json::parse(kSmallest), nullptr).spec;
  EXPECT_FALSE(ToDocument(spec)["resources"].contains("sequence_parallel"));
  EXPECT_EQ(RanksPerSequence(spec), 1);
}

TEST(JobFile, BucketsNeedRowsThatDiffer) {
  EXPECT_THAT(MistakesWith("/data", {{"sources", {"/d"}}, {"bucketing", true}, {"packing", true}, {"format", "text"}}),
              IsEmpty());
  EXPECT_THAT(MistakesWith("/data", {{"sources", {"/d"}}, {"bucketing", true}}), IsEmpty());  // they may be records
  EXPECT_THAT(MistakesWith("/data", {{"sources", {"/d"}}, {"bucketing", true}, {"format", "text"}}),
              ElementsAre(HasSubstr("data.bucketing: does not go with joined documents")));
}

TEST(JobFile, OnlyShiftedGroupsHaveAnEdgeToWrap) {
  EXPECT_THAT(MistakesWith("/attention", json({{"edge", "wrap"}})), IsEmpty());
  EXPECT_THAT(MistakesWith("/attention", json({{"kind", "short"}})), IsEmpty());
  EXPECT_THAT(MistakesWith("/attention", json({{"kind", "full"}, {"edge", "wrap"}})),
              ElementsAre("attention.edge: is wrap, which belongs to kind s2; kind is full"));
}

TEST(JobFile, MethodFullHasNoAdapterToStartFrom) {
  EXPECT_THAT(MistakesWith("/method", json({{"kind", "full"}, {"adapter", "/a"}})),
              ElementsAre("method.adapter: cannot start method full, which has no adapter; choose longlora or lora"));
}

TEST(JobFile, SectionsInsideSectionsAreStrictToo) {
  EXPECT_THAT(MistakesWith("/evaluation/passkey", {{"depth", 3}}),
              ElementsAre("evaluation.passkey.depth: unknown key; did you mean evaluation.passkey.depths?"));
  EXPECT_THAT(MistakesWith("/evaluation/passkey", 3), ElementsAre("evaluation.passkey: is 3; must be a map of keys"));
  EXPECT_THAT(MistakesWith("/evaluation/passkeys", json::object()),
              ElementsAre("evaluation.passkeys: unknown key; did you mean evaluation.passkey?"));
  EXPECT_THAT(MistakesWith("/evaluation/longbench", {{"tasks", {"../etc"}}}),
              ElementsAre(HasSubstr("evaluation.longbench.tasks: entry 1 is \"../etc\"; must be the name of a file")));
}

TEST(JobFile, PatternsMapTheEndsOfModuleNamesToNumbers) {
  EXPECT_THAT(MistakesWith("/method/rank_pattern", {{"layers.0.self_attn.q_proj", 4}}), IsEmpty());
  EXPECT_THAT(MistakesWith("/method/rank_pattern", {{"q_proj", 1.5}}),
              ElementsAre("method.rank_pattern: entry \"q_proj\" is 1.5; must be a whole number"));
  EXPECT_THAT(MistakesWith("/method/rank_pattern", {{"q_proj", 0}}),
              ElementsAre("method.rank_pattern: q_proj is 0; must be above 0"));
  EXPECT_THAT(MistakesWith("/method/alpha_pattern", {{".q*", 1}}),
              ElementsAre(HasSubstr("method.alpha_pattern: has the key \".q*\"; must be the end of a module's name")));
  EXPECT_THAT(MistakesWith("/method/alpha_pattern", 3),
              ElementsAre("method.alpha_pattern: is 3; must be a map of names to numbers"));
}

TEST(JobFile, RopeKeysBelongToTheirKind) {
  EXPECT_THAT(MistakesWith("/rope", {{"kind", "theta"}, {"theta", 5e5}}), IsEmpty());
  EXPECT_THAT(MistakesWith("/rope", {{"kind", "theta"}}), ElementsAre("rope.theta: is required by kind theta"));
  EXPECT_THAT(MistakesWith("/rope", {{"kind", "theta"}, {"theta", 5e5}, {"original_length", 64}}),
              ElementsAre("rope.original_length: does not go with kind theta, which needs no length"));
  EXPECT_THAT(MistakesWith("/rope", {{"kind", "yarn"}, {"theta", 5e5}}),
              ElementsAre("rope.theta: belongs to kind theta; kind is yarn"));
  EXPECT_THAT(MistakesWith("/rope", {{"kind", "yarn"}, {"beta_fast", 1}}),
              ElementsAre("rope.beta_fast: must be above beta_slow"));
  EXPECT_THAT(MistakesWith("/rope", {{"kind", "llama3"}, {"low_freq_factor", 4}}),
              ElementsAre("rope.high_freq_factor: must be above low_freq_factor"));
}

TEST(JobFile, TheTextOfAnEvaluationIsAtLeastAsLongAsItsWindows) {
  EXPECT_THAT(MistakesWith("/evaluation", {{"lengths", {64, 512}}, {"max_tokens", 512}}), IsEmpty());
  EXPECT_THAT(MistakesWith("/evaluation", {{"lengths", {64, 512}}, {"max_tokens", 511}}),
              ElementsAre("evaluation.max_tokens: is 511; must be 0 or at least 512, the longest text to measure"));
  EXPECT_THAT(MistakesWith("/evaluation", {{"max_tokens", 1}}), ElementsAre(HasSubstr("must be 0 or at least")));
  EXPECT_THAT(MistakesWith("/evaluation", {{"max_tokens", -1}}),
              ElementsAre("evaluation.max_tokens: is -1; must be at least 0"));
}

TEST(JobFile, ATemplateOfPromptsNeedsPrompts) {
  EXPECT_THAT(MistakesWith("/evaluation", {{"template", "none"}}), IsEmpty());
  EXPECT_THAT(MistakesWith("/evaluation", {{"template", "model"}, {"longbench", {{"path", "/l"}}}}), IsEmpty());
  EXPECT_THAT(MistakesWith("/evaluation", {{"template", "llama3"}, {"conversations", {{"path", "/c"}}}}), IsEmpty());
  EXPECT_THAT(
      MistakesWith("/evaluation", {{"template", "llama2"}, {"passkey", {{"lengths", {64}}}}}),
      ElementsAre("evaluation.template: is llama2, but there are no prompts to write so; give longbench.path or "
                  "conversations.path too"));
  EXPECT_THAT(
      MistakesWith("/evaluation", {{"template", "vicuna"}}),
      ElementsAre("evaluation.template: is \"vicuna\"; must be one of none | model | llama2 | alpaca | chatml | "
                  "llama3 | mistral"));
}

TEST(JobFile, AnEvaluationNeedsNoDataButSomethingToMeasure) {
  const auto mistakes = [](const json& document) { return Texts(ParseDocument(document, nullptr).mistakes); };
  const json only_the_model = {{"kind", "evaluate"}, {"name", "a"}, {"model", {{"path", "/m"}}}};
  EXPECT_THAT(mistakes(only_the_model),
              ElementsAre(HasSubstr("evaluation: has nothing to measure; give data.sources")));
  json with_passkey = only_the_model;
  with_passkey["evaluation"]["passkey"]["lengths"] = {256};
  EXPECT_THAT(mistakes(with_passkey), IsEmpty());
  const Parsed parsed = ParseDocument(with_passkey, nullptr);
  EXPECT_EQ(ToDocument(*ParseDocument(ToDocument(*parsed.spec), nullptr).spec), ToDocument(*parsed.spec));
  with_passkey["model"]["init"] = "random";
  EXPECT_THAT(mistakes(with_passkey), ElementsAre(HasSubstr("model.init: is random, which is nothing to measure")));
}

TEST(JobFile, SizesAreBytesOrTextsWithAUnit) {
  json document = json::parse(kSmallest);
  document["memory"] = {{"device_bytes", "12GiB"}, {"host_bytes", 4096}};
  const Parsed parsed = ParseDocument(document, nullptr);
  ASSERT_TRUE(parsed.spec);
  EXPECT_EQ(parsed.spec->memory.device_bytes, int64_t{12} << 30);
  EXPECT_EQ(ToDocument(*parsed.spec)["memory"], json({{"device_bytes", int64_t{12} << 30}, {"host_bytes", 4096}}));
  EXPECT_THAT(MistakesWith("/memory/device_bytes", "12GB"),
              ElementsAre("memory.device_bytes: is \"12GB\"; must be bytes, or a text such as \"12GiB\" (B, KiB, MiB, "
                          "GiB or TiB)"));
  EXPECT_THAT(MistakesWith("/memory/device_bytes", "0B"), ElementsAre("memory.device_bytes: is 0; must be at least 1"));
  EXPECT_EQ(ParseBytes("1536MiB"), 1536 << 20);
  EXPECT_EQ(ParseBytes("0B"), 0);
  for (const char* wrong : {"", "GiB", "-1GiB", "1.5GiB", "1 GiB", "1gib", "12", "9007199254740993KiB"}) {
    EXPECT_EQ(ParseBytes(wrong), std::nullopt) << wrong;
  }
}

TEST(JobFile, AMemorySectionThatSaysNothingIsNotInTheCanonicalDocument) {
  json document = json::parse(kSmallest);
  document["memory"] = json::object();
  EXPECT_EQ(ToDocument(*ParseDocument(document, nullptr).spec), ToDocument(*ParseText(kSmallest).spec));
  EXPECT_FALSE(ToDocument(*ParseText(kSmallest).spec).contains("memory"));
}

TEST(JobFile, CanonicalDocumentGivesTheSameSpec) {
  json document = json::parse(kSmallest);
  document["rope"] = {{"factor", 4}};
  document["limits"]["max_run_time"] = "90m";
  document["method"]["targets"] = {"q_proj", "down_proj"};
  document["labels"]["team"] = "x";
  document["training"]["learning_rate"] = 0.1 + 0.2;
  const Parsed first = ParseDocument(document, nullptr);
  ASSERT_TRUE(first.spec);
  const json canonical = ToDocument(*first.spec);
  EXPECT_EQ(canonical["limits"]["max_run_time"], "1h30m");
  EXPECT_EQ(canonical["rope"], json({{"factor", 4.0}, {"kind", "linear"}}));
  EXPECT_FALSE(canonical["method"].contains("rank"));
  const Parsed second = ParseText(canonical.dump());
  ASSERT_TRUE(second.spec);
  EXPECT_EQ(ToDocument(*second.spec).dump(), canonical.dump());
}

TEST(JobFile, GroupSizeIsResolvedFromTheContextLength) {
  JobSpec spec;
  spec.context_length = 1001;
  EXPECT_EQ(ResolvedGroupSize(spec), 250);
  spec.attention.group_ratio = 0.0001;
  EXPECT_EQ(ResolvedGroupSize(spec), 1);
  spec.attention.group_ratio.reset();
  spec.attention.group_size = 7;
  EXPECT_EQ(ResolvedGroupSize(spec), 7);
}

TEST(Durations, ReadAndWrite) {
  EXPECT_EQ(ParseDurationSeconds("90s"), 90);
  EXPECT_EQ(ParseDurationSeconds("2h30m"), 9000);
  EXPECT_EQ(ParseDurationSeconds("1d2h3m4s"), 93784);
  for (const char* wrong : {"", "5", "h", "30m2h", "2h2h", "0s", "-1s", "1.5h", "2 h", "1w", "99999999999999999999s"}) {
    EXPECT_EQ(ParseDurationSeconds(wrong), std::nullopt) << wrong;
  }
  for (int64_t seconds : {1, 59, 60, 3600, 9000, 86400, 93784}) {
    EXPECT_EQ(ParseDurationSeconds(FormatDurationSeconds(seconds)), seconds);
  }
}

TEST(NearestKey, PrefersTheSameSectionThenTheFewestEdits) {
  EXPECT_EQ(NearestKey("evaluation.every_step", {"checkpoint.every_steps", "evaluation.every_steps"}),
            "evaluation.every_steps");
  EXPECT_EQ(NearestKey("conext_length", {"context_length"}), "context_length");
  EXPECT_EQ(NearestKey("training.setps", {"training.steps"}), "training.steps");
  EXPECT_EQ(NearestKey("zzz", {"training.steps"}), "");
}

TEST(EnumNames, GoBothWays) {
  EXPECT_EQ(NameOf(MethodKind::kLongLora), "longlora");
  EXPECT_EQ(ValueOf<AttentionKind>("s2"), AttentionKind::kS2);
  EXPECT_EQ(ValueOf<AttentionKind>("S2"), std::nullopt);
}

// LONGSPAN_REWRITE=1 in the environment writes the file anew.
TEST(ReferenceYaml, IsWrittenFromTheTable) {
  const auto path = testing::SourceDir() / "deploy/examples/reference.yaml";
  if (std::getenv("LONGSPAN_REWRITE") != nullptr) std::ofstream(path) << ReferenceYaml();
  std::stringstream text;
  text << std::ifstream(path).rdbuf();
  EXPECT_EQ(text.str(), ReferenceYaml()) << "run this test with LONGSPAN_REWRITE=1";
}

TEST(Fields, DefaultsAreTheParsersOwn) {
  const json defaults = ToDocument(*ParseText(kSmallest).spec);
  for (const FieldInfo& field : Fields()) {
    if (field.default_value == "required" || field.default_value.starts_with("absent: ") ||
        field.path.starts_with("rope."))
      continue;
    std::string pointer = "/" + field.path;
    std::replace(pointer.begin(), pointer.end(), '.', '/');
    const json value = defaults.value(json::json_pointer(pointer), json::object());
    EXPECT_EQ(value.dump(), field.default_value) << field.path;
    EXPECT_FALSE(field.summary.empty());
  }
}

}  // namespace
}  // namespace longspan::jobfile

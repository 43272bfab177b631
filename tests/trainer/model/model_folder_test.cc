// What a model folder may contain, and what is said when it is wrong.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "tests/trainer/tiny_llama.h"
#include "worker/model_config/model_config.h"
#include "worker/trainer/model/safetensors.h"

namespace longspan::trainer {
namespace {

using ::testing::HasSubstr;
using namespace longspan::trainer::testing;
using nlohmann::json;

template <typename Error, typename Body>
std::string MessageOf(Body body) {
  try {
    body();
  } catch (const Error& error) {
    return error.what();
  }
  return "nothing was thrown";
}

std::string ConfigMessage(const char* key, const json& value) {
  json document = TinyConfig({});
  document[key] = value;
  return MessageOf<UserError>([&] { ParseModelConfig(document, "config.json"); });
}

TEST(ModelConfig, RefusesWhatItDoesNotKnowByName) {
  EXPECT_THAT(ConfigMessage("architectures", {"FalconForCausalLM"}),
              HasSubstr("\"FalconForCausalLM\", which is not supported; LlamaForCausalLM, MistralForCausalLM, "
                        "Qwen2ForCausalLM, Qwen3ForCausalLM, GPTNeoXForCausalLM are"));
  EXPECT_THAT(ConfigMessage("attention_bias", "yes"), HasSubstr("attention_bias must be true or false"));
  EXPECT_THAT(ConfigMessage("hidden_act", "gelu"), HasSubstr("gelu"));
  EXPECT_THAT(ConfigMessage("hidden_size", nullptr), HasSubstr("hidden_size is missing"));
  EXPECT_THAT(ConfigMessage("num_key_value_heads", 3), HasSubstr("does not divide"));
  EXPECT_THAT(ConfigMessage("vocab_size", -1), HasSubstr("vocab_size"));
}

TEST(ModelFamily, TellsWhichLinearLayersHaveABias) {
  const auto tensors_of = [](const json& changes) {
    TinyShape shape;
    shape.layers = 1;
    shape.changes = changes;
    std::vector<std::string> names;
    for (const TensorShape& tensor : BaseTensorShapes(ParseModelConfig(TinyConfig(shape), "c"))) {
      if (tensor.name.ends_with(".bias")) names.push_back(tensor.name.substr(std::strlen("model.layers.0.")));
    }
    return names;
  };
  using ::testing::ElementsAre;
  EXPECT_THAT(tensors_of(json::object()), ElementsAre());
  EXPECT_THAT(tensors_of({{"attention_bias", true}}), ElementsAre("self_attn.q_proj.bias", "self_attn.k_proj.bias",
                                                                  "self_attn.v_proj.bias", "self_attn.o_proj.bias"));
  EXPECT_THAT(tensors_of({{"mlp_bias", true}}),
              ElementsAre("mlp.gate_proj.bias", "mlp.up_proj.bias", "mlp.down_proj.bias"));
  EXPECT_THAT(tensors_of({{"architectures", {"Qwen2ForCausalLM"}}}),
              ElementsAre("self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"));
}

TEST(ModelFamily, CapsTheNumberOfLayersOfEveryFamily) {
  for (const ModelFamily& family : ModelFamilies()) {
    TinyShape shape;
    shape.changes = {{"architectures", {family.architecture}}, {"rotary_pct", 1.0}};
    if (!family.has_gate()) shape.changes["hidden_act"] = "gelu";
    const auto parse = [&shape] { return ParseModelConfig(TinyConfig(shape), "c"); };
    shape.layers = 10000;
    EXPECT_EQ(parse().layer_windows.size(), 10000) << family.architecture;
    shape.layers = 10001;
    EXPECT_THAT(MessageOf<UserError>(parse), HasSubstr("num_hidden_layers 10001 is more than 10000"))
        << family.architecture;
  }
}

json WindowConfig(const char* architecture, const json& changes) {
  TinyShape shape;
  shape.layers = 3;
  shape.changes = changes;
  shape.changes["architectures"] = {architecture};
  return TinyConfig(shape);
}

TEST(SlidingWindow, IsReadAsEachFamilySaysIt) {
  const auto windows = [](const char* architecture, const json& changes) {
    return ParseModelConfig(WindowConfig(architecture, changes), "c").layer_windows;
  };
  using ::testing::ElementsAre;
  EXPECT_THAT(windows("LlamaForCausalLM", {{"sliding_window", 9}}), ElementsAre(0, 0, 0));
  EXPECT_THAT(windows("MistralForCausalLM", {{"sliding_window", 9}}), ElementsAre(9, 9, 9));
  EXPECT_THAT(windows("MistralForCausalLM", {{"sliding_window", nullptr}}), ElementsAre(0, 0, 0));
  EXPECT_THAT(windows("MistralForCausalLM", json::object()), ElementsAre(4096, 4096, 4096));
  const json upper = {{"use_sliding_window", true}, {"sliding_window", 9}, {"max_window_layers", 2}};
  EXPECT_THAT(windows("Qwen2ForCausalLM", upper), ElementsAre(0, 0, 9));
  EXPECT_THAT(windows("Qwen2ForCausalLM", {{"sliding_window", 9}, {"max_window_layers", 0}}), ElementsAre(0, 0, 0));
  json named = upper;
  named["layer_types"] = {"sliding_attention", "full_attention", "sliding_attention"};
  EXPECT_THAT(windows("Qwen2ForCausalLM", named), ElementsAre(9, 0, 9));
  named["layer_types"] = {"sliding_attention", "full_attention", "chunked_attention"};
  EXPECT_THAT(MessageOf<UserError>([&] { windows("Qwen2ForCausalLM", named); }), HasSubstr("chunked_attention"));
}

TEST(SlidingWindow, StaysUntilTheContextOutgrowsIt) {
  jobfile::JobSpec spec;
  spec.context_length = 64;
  const auto extended = [&spec](int64_t window) {
    const json document = WindowConfig(
        "Qwen2ForCausalLM", {{"use_sliding_window", true}, {"sliding_window", window}, {"max_window_layers", 1}});
    return WithJobWindow(ParseModelConfig(document, "c"), spec);
  };
  EXPECT_FALSE(extended(64).window_outgrown);
  EXPECT_EQ(ExportedConfigDocument(extended(64))["sliding_window"], 64);
  const ModelConfig outgrown = extended(63);
  EXPECT_TRUE(outgrown.window_outgrown);
  EXPECT_EQ(outgrown.layer_windows[2], 63);  // of the base, which is evaluated with it
  const json exported = ExportedConfigDocument(outgrown);
  EXPECT_TRUE(exported["sliding_window"].is_null());
  EXPECT_FALSE(WithJobWindow(ParseModelConfig(exported, "c"), spec).window_outgrown);
}

TEST(ModelFamily, GptNeoXHasItsOwnKeys) {
  TinyShape shape;
  shape.changes = {{"architectures", {"GPTNeoXForCausalLM"}},
                   {"hidden_act", "gelu_fast"},
                   {"rotary_pct", 0.34},
                   {"rotary_emb_base", 5000.0},
                   {"layer_norm_eps", 1e-3},
                   {"num_key_value_heads", 1}};
  const auto parse = [&shape] { return ParseModelConfig(TinyConfig(shape), "c"); };
  const ModelConfig config = parse();
  EXPECT_EQ(config.num_key_value_heads, config.num_attention_heads);
  EXPECT_EQ(config.norm_epsilon, 1e-3);
  EXPECT_EQ(config.activation, Activation::kGeluTanh);
  EXPECT_TRUE(config.parallel_residual);
  EXPECT_EQ(config.rope.theta, 5000);
  EXPECT_EQ(RotaryDims(config.rope, config.head_dim), 2);
  const json exported = ExportedConfigDocument(config);
  EXPECT_EQ(exported["rotary_emb_base"], 5000);
  EXPECT_EQ(exported["rotary_pct"], 0.34);
  shape.changes["hidden_act"] = "gelu_10";  // clipped
  EXPECT_THAT(MessageOf<UserError>(parse), HasSubstr("gelu_10"));
  shape.changes["hidden_act"] = "gelu";
  shape.changes["tie_word_embeddings"] = true;
  EXPECT_THAT(MessageOf<UserError>(parse), HasSubstr("tie_word_embeddings"));
}

TEST(ModelFamily, IsFoundByItsModelTypeWhereNoArchitectureIsNamed) {
  json document = TinyConfig({});
  document.erase("architectures");
  document["model_type"] = "qwen2";
  EXPECT_EQ(ParseModelConfig(document, "c").family->architecture, "Qwen2ForCausalLM");
  document["model_type"] = "falcon";
  EXPECT_THAT(MessageOf<UserError>([&] { ParseModelConfig(document, "c"); }), HasSubstr("\"falcon\""));
  document["model_type"] = "qwen2";
  document.erase("num_key_value_heads");  // transformers would take 32
  EXPECT_THAT(MessageOf<UserError>([&] { ParseModelConfig(document, "c"); }), HasSubstr("num_key_value_heads"));
}

class SafetensorsTest : public ::testing::Test {
 protected:
  std::string Path() const { return folder_.path() + "/x.safetensors"; }
  std::string OpenMessage(const std::string& bytes) const {
    std::ofstream(Path(), std::ios::binary) << bytes;
    return MessageOf<UserError>([&] { SafetensorsFile::Open(Path()); });
  }
  std::string HeaderMessage(const std::string& header, size_t data_bytes) const {
    const uint64_t size = header.size();
    return OpenMessage(std::string(reinterpret_cast<const char*>(&size), 8) + header + std::string(data_bytes, '\0'));
  }
  TemporaryFolder folder_;
};

TEST_F(SafetensorsTest, WritesWhatItReads) {
  std::vector<NamedTensor> tensors = {{"half", at::ones({3}, at::kHalf)},
                                      {"brain", at::full({2, 2}, 0.5, at::kBFloat16)},
                                      {"float", at::arange(6, at::kFloat).view({2, 3}).t()},
                                      {"long", at::arange(4, at::kLong)},
                                      {"empty", at::empty({0, 3}, at::kFloat)},
                                      {"scalar", at::scalar_tensor(2.5, at::kFloat)}};
  WriteSafetensors(Path(), tensors, {{"step", "4"}});
  const SafetensorsFile file = SafetensorsFile::Open(Path());
  EXPECT_EQ(file.metadata(), (Metadata{{"format", "pt"}, {"step", "4"}}));
  for (const auto& [name, value] : tensors) EXPECT_TRUE(at::equal(file.View(name), value)) << name;
  std::swap(tensors[0], tensors[4]);
  std::ifstream in(Path(), std::ios::binary);
  EXPECT_EQ(EncodeSafetensors(tensors, {{"step", "4"}}), std::string(std::istreambuf_iterator<char>(in), {}));
}

TEST_F(SafetensorsTest, EveryTruncationIsRefused) {
  const std::string bytes = EncodeSafetensors({{"a", at::ones({4})}, {"b", at::ones({2, 3})}});
  for (size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_THAT(OpenMessage(bytes.substr(0, size)), HasSubstr("x.safetensors")) << size;
  }
  EXPECT_THAT(OpenMessage(bytes + "x"), HasSubstr("bytes of data"));
}

TEST_F(SafetensorsTest, ALyingHeaderIsRefusedWithItsTensor) {
  const auto entry = [](const char* dtype, const char* shape, const char* offsets) {
    return std::string("{\"a\":{\"dtype\":\"") + dtype + "\",\"shape\":" + shape + ",\"data_offsets\":" + offsets +
           "}}";
  };
  EXPECT_EQ(HeaderMessage(entry("F32", "[4]", "[0,16]"), 16), "nothing was thrown");
  EXPECT_THAT(HeaderMessage(entry("F32", "[5]", "[0,16]"), 16),
              HasSubstr("tensor \"a\": offsets 0 to 16 hold 16 bytes, but F32 [5]"));
  EXPECT_THAT(HeaderMessage(entry("F32", "[4]", "[0,16]"), 12), HasSubstr("outside the 12 bytes"));
  EXPECT_THAT(HeaderMessage(entry("F32", "[4]", "[16,0]"), 16), HasSubstr("backwards"));
  EXPECT_THAT(HeaderMessage(entry("F32", "[4]", "[4,20]"), 20), HasSubstr("after a hole"));
  EXPECT_THAT(HeaderMessage(entry("F32", "[-4]", "[0,16]"), 16), HasSubstr("lacks dtype, shape"));
  EXPECT_THAT(HeaderMessage(entry("F32", "[4611686018427387904,4]", "[0,16]"), 16), HasSubstr("tensor \"a\""));
  EXPECT_THAT(HeaderMessage(entry("F4", "[4]", "[0,16]"), 16), HasSubstr("dtype F4"));
  EXPECT_THAT(HeaderMessage("[1]", 0), HasSubstr("not a JSON object"));
  EXPECT_THAT(HeaderMessage("{\"a\"", 0), HasSubstr("not a JSON object"));
  EXPECT_THAT(HeaderMessage("{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},"
                            "\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[2,6]}}",
                            6),
              HasSubstr("inside the tensor before it"));
}

TEST_F(SafetensorsTest, AFileMayBeReplacedWhileItIsMapped) {
  WriteSafetensors(Path(), {{"a", at::ones({1000})}});
  const at::Tensor mapped = SafetensorsFile::Open(Path()).View("a");
  WriteSafetensors(Path(), {{"a", at::zeros({1})}});
  EXPECT_EQ(mapped.sum().item<double>(), 1000);
}

TEST_F(SafetensorsTest, ShardsAreReadThroughTheirIndexWhichIsChecked) {
  ShardedSafetensorsWriter writer(folder_.path(), 40);
  for (const char* name : {"a", "b", "c"}) writer.Add(name, at::full({8}, static_cast<double>(name[0])));
  EXPECT_THAT(writer.Finish(),
              ::testing::ElementsAre("model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors",
                                     "model-00003-of-00003.safetensors", "model.safetensors.index.json"));
  const WeightFolder folder = WeightFolder::Open(folder_.path());
  EXPECT_THAT(folder.names(), ::testing::ElementsAre("a", "b", "c"));
  EXPECT_EQ(folder.View("b")[3].item<double>(), 'b');
  EXPECT_THAT(MessageOf<UserError>([&] { folder.View("d"); }), HasSubstr("has no tensor \"d\""));
  WriteJson(folder_.path() + "/model.safetensors.index.json",
            {{"weight_map", {{"a", "model-00002-of-00003.safetensors"}}}});
  EXPECT_THAT(MessageOf<UserError>([&] { WeightFolder::Open(folder_.path()); }), HasSubstr("which does not have it"));
}

TEST_F(SafetensorsTest, AFolderWithoutWeightsSaysSo) {
  EXPECT_THAT(MessageOf<UserError>([&] { WeightFolder::Open(folder_.path()); }),
              HasSubstr("neither model.safetensors nor"));
}

}  // namespace
}  // namespace longspan::trainer

// What a model folder may contain, and what is said when it is wrong.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "tests/trainer/tiny_llama.h"
#include "worker/trainer/model/model_config.h"
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
  EXPECT_THAT(ConfigMessage("architectures", {"MistralForCausalLM"}), HasSubstr("MistralForCausalLM"));
  EXPECT_THAT(ConfigMessage("attention_bias", true), HasSubstr("attention_bias"));
  EXPECT_THAT(ConfigMessage("hidden_act", "gelu"), HasSubstr("gelu"));
  EXPECT_THAT(ConfigMessage("hidden_size", nullptr), HasSubstr("hidden_size is missing"));
  EXPECT_THAT(ConfigMessage("num_key_value_heads", 3), HasSubstr("does not divide"));
  EXPECT_THAT(ConfigMessage("vocab_size", -1), HasSubstr("vocab_size"));
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

// Damaged tokenizer.json files: whatever is done to them, they load or are refused with their name, and never crash.
// Run under the sanitizers, where a read out of bounds is a crash, too. LONGSPAN_NIGHTLY=1 does a hundred times as
// much.
#include <gmock/gmock.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <random>

#include "tests/trainer/data/corpus_fixture.h"
#include "worker/trainer/data/tokenizer.h"

namespace longspan::trainer {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// A text that meets every part of the two tokenizers below.
constexpr std::string_view kText = "It's  <s>the LORD\n\t1234 e\xCC\x81\xE2\x96\x81 \xF0\x9F\x98\x80<n> ";

json CharacterVocabulary() {
  json vocab = {{"<unk>", 0}, {"<s>", 1}};
  for (int byte = 0; byte < 256; ++byte) {
    std::array<char, 8> name{};
    std::snprintf(name.data(), name.size(), "<0x%02X>", byte);
    vocab[name.data()] = 2 + byte;
  }
  for (const char* piece : {"\xE2\x96\x81", "t", "h", "e", "th", "the", "\xE2\x96\x81the"}) vocab[piece] = vocab.size();
  return vocab;
}

// The parts that Llama 2 and Mistral have, and more.
json CharacterTokenizer() {
  json document = json::parse(R"({
    "version": "1.0",
    "added_tokens": [
      {"id": 1, "content": "<s>", "special": true, "normalized": false, "rstrip": true},
      {"id": 265, "content": "<n>", "single_word": true, "lstrip": true, "normalized": true}],
    "normalizer": {"type": "Sequence", "normalizers": [
      {"type": "NFKC"}, {"type": "Lowercase"}, {"type": "Strip", "strip_left": true, "strip_right": false},
      {"type": "Replace", "pattern": {"Regex": "\\d+"}, "content": "0"},
      {"type": "Replace", "pattern": {"String": "~"}, "content": "-"}]},
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
      {"type": "Digits", "individual_digits": true},
      {"type": "Split", "pattern": {"Regex": "[a-z]+|'"}, "behavior": "MergedWithNext", "invert": false},
      {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": true}]},
    "post_processor": {"type": "TemplateProcessing",
      "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
      "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
    "decoder": {"type": "Sequence", "decoders": [
      {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
      {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
    "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
      "ignore_merges": false, "merges": [["t", "h"], ["th", "e"], ["\u2581", "the"]]}
  })");
  document["model"]["vocab"] = CharacterVocabulary();
  return document;
}

class TokenizerFileTest : public CorpusTest {
 protected:
  static int Times(int count) { return std::getenv("LONGSPAN_NIGHTLY") == nullptr ? count : 100 * count; }

  // The byte-level example with its letters and a few merges only.
  static json ByteTokenizer() {
    json document = json::parse(Read(TinyModel() / "tokenizer.json"));
    json vocab;
    for (const auto& [token, id] : document["model"]["vocab"].items()) {
      if (id.get<int>() < 300) vocab[token] = id;
    }
    json merges = json::array();
    for (const json& merge : document["model"]["merges"]) {
      if (merges.size() < 8) merges.push_back(merge);
    }
    document["model"]["vocab"] = vocab;
    document["model"]["merges"] = merges;
    return document;
  }

  // What is said about the file; empty when it loads. Everything that a job may do with it is done.
  std::string Load(const std::string& bytes) const {
    Write("model/tokenizer.json", bytes);
    try {
      const Tokenizer tokenizer = Tokenizer::Load(root_ / "model");
      const auto ids = tokenizer.Encode(kText, true);
      tokenizer.Decode(ids, true);
      tokenizer.Decode(std::vector<int64_t>{-1, 0, 1, 2, 255, 300, 1 << 20, int64_t{1} << 40}, false);
    } catch (const UserError& error) {
      return error.what();
    }
    return "";
  }
  std::string Load(const json& document) const {
    // A JSON text may hold any string, also one that is not UTF-8 any more.
    return Load(document.dump(-1, ' ', false, json::error_handler_t::replace));
  }
  void ExpectSound(const std::string& said) const { EXPECT_THAT(said, AnyOf(IsEmpty(), HasSubstr("tokenizer.json"))); }

  static void CollectPlaces(const json& value, const json::json_pointer& at, std::vector<json::json_pointer>& places) {
    places.push_back(at);
    int members = 0;
    const int members_max = value.size() > 20 ? 2 : 20;  // of a vocabulary, some
    for (const auto& [key, member] : value.items()) {
      if (value.is_structured() && ++members <= members_max) CollectPlaces(member, at / key, places);
    }
  }
};

TEST_F(TokenizerFileTest, BothTokenizersLoadAsTheyAre) {
  EXPECT_EQ(Load(CharacterTokenizer()), "");
  EXPECT_EQ(Load(ByteTokenizer()), "");
}

TEST_F(TokenizerFileTest, ATruncatedFileIsRefused) {
  const std::string whole = CharacterTokenizer().dump();
  for (size_t size = 0; size < whole.size(); size += 37) {
    EXPECT_THAT(Load(whole.substr(0, size)), AllOf(HasSubstr("model/tokenizer.json"), HasSubstr("is not JSON")));
  }
}

TEST_F(TokenizerFileTest, AnotherValueAnywhereIsTakenOrRefused) {
  const std::vector<json> others = {nullptr,
                                    true,
                                    -1,
                                    1.5,
                                    uint64_t{1} << 24,
                                    ~uint64_t{0},
                                    "",
                                    "x",
                                    "Sequence",
                                    "\xE2\x96\x81\xE2\x96\x81",
                                    json::array(),
                                    json::array({json::array()}),
                                    json::object(),
                                    {{"type", "Sequence"}}};
  for (const json& sound : {CharacterTokenizer(), ByteTokenizer()}) {
    std::vector<json::json_pointer> places;
    CollectPlaces(sound, json::json_pointer(), places);
    size_t next = 0;
    for (const json::json_pointer& place : places) {
      for (int i = 0; i < std::min<int>(Times(4), others.size()); ++i) {
        const json& other = others[next++ % others.size()];
        json changed = sound;
        changed[place] = other;
        SCOPED_TRACE(place.to_string() + " = " + other.dump());
        ExpectSound(Load(changed));
      }
      if (place.empty()) continue;
      json without = sound;
      json& parent = without[place.parent_pointer()];
      if (parent.is_object()) parent.erase(place.back());
      ExpectSound(Load(without));
    }
  }
}

TEST_F(TokenizerFileTest, ChangedBytesAreTakenOrRefused) {
  std::mt19937 random(7);
  const auto below = [&random](size_t end) { return std::uniform_int_distribution<size_t>(0, end - 1)(random); };
  const std::string alphabet = "\"{}[]:,0123456789-e.tfnu\\ \xE2\x96\xFF\x00";
  for (const json& sound : {CharacterTokenizer(), ByteTokenizer()}) {
    const std::string whole = sound.dump();
    for (int i = 0; i < Times(150); ++i) {
      std::string bytes = whole;
      for (size_t changes = 1 + below(4); changes > 0; --changes) {
        const size_t at = below(bytes.size());
        switch (below(3)) {
          case 0:
            bytes[at] = alphabet[below(alphabet.size())];
            break;
          case 1:
            bytes.erase(at, 1 + below(20));
            break;
          default:
            bytes.insert(at, bytes.substr(below(bytes.size()), below(40)));
        }
      }
      ExpectSound(Load(bytes));
    }
  }
}

TEST_F(TokenizerFileTest, MembersInOneAnotherHaveABound) {
  json deep = CharacterTokenizer();
  json normalizer = {{"type", "NFC"}};
  for (int i = 0; i < 100; ++i) normalizer = {{"type", "Sequence"}, {"normalizers", {normalizer}}};
  deep["normalizer"] = normalizer;
  EXPECT_THAT(Load(deep), HasSubstr("deep"));
  EXPECT_THAT(Load(std::string(200'000, '[')), HasSubstr("is not JSON"));
  EXPECT_THAT(Load(std::string(200'000, '[') + std::string(200'000, ']')), HasSubstr("an object is needed"));
}

TEST_F(TokenizerFileTest, EveryComplaintNamesThePlace) {
  const auto said = [this](const char* place, const json& value) {
    json changed = CharacterTokenizer();
    changed[json::json_pointer(place)] = value;
    return Load(changed);
  };
  EXPECT_THAT(said("/model/merges/2", 5), HasSubstr("model.merges[2] is a number"));
  EXPECT_THAT(said("/model/merges/1", json::array({"th", "q"})),
              AllOf(HasSubstr("model.merges[1]"), HasSubstr("\"q\"")));
  EXPECT_THAT(said("/model/merges/1", "th e"), HasSubstr("model.merges[1]"));
  EXPECT_THAT(said("/model/merges/0", json::array({"", "t"})), HasSubstr("model.merges[0]"));
  EXPECT_THAT(said("/model/vocab/th", 3), AllOf(HasSubstr("same id 3"), HasSubstr("model.vocab")));
  EXPECT_THAT(said("/model/vocab/th", uint64_t{1} << 40), HasSubstr("model.vocab.th is 1099511627776"));
  EXPECT_THAT(said("/model/vocab/th", "7"), HasSubstr("model.vocab.th is a string"));
  EXPECT_THAT(said("/model/unk_token", "[U]"), HasSubstr("model.unk_token is \"[U]\""));
  EXPECT_THAT(said("/added_tokens/1/id", 9999), AllOf(HasSubstr("added_tokens[1].id is 9999"), HasSubstr("265")));
  EXPECT_THAT(said("/added_tokens/1/content", 1), HasSubstr("added_tokens[1].content is a number"));
  EXPECT_THAT(said("/normalizer/normalizers/1/type", "Nmt"), HasSubstr("Nmt (normalizer.normalizers[1])"));
  EXPECT_THAT(said("/normalizer/normalizers/3/pattern/Regex", "(a"), HasSubstr("does not compile"));
  EXPECT_THAT(said("/pre_tokenizer/pretokenizers/1/behavior", "Mixed"),
              HasSubstr("pretokenizers[1].behavior is Mixed"));
  EXPECT_THAT(said("/pre_tokenizer/pretokenizers/2/replacement", "ab"), HasSubstr("one character is needed"));
  EXPECT_THAT(said("/post_processor/single/0/SpecialToken/id", "<t>"),
              HasSubstr("single[0].SpecialToken.id is \"<t>\""));
  EXPECT_THAT(said("/post_processor/single/1/Sequence/id", "B"), HasSubstr("single[1].Sequence.id is B"));
  EXPECT_THAT(said("/post_processor/special_tokens/<s>/ids/0", 266), HasSubstr("puts id 266 around a text"));
  EXPECT_THAT(said("/decoder/decoders/3/start", -1), HasSubstr("decoder.decoders[3].start is -1"));
}

}  // namespace
}  // namespace longspan::trainer

#include "worker/trainer/data/prepare.h"

#include <gmock/gmock.h>

#include <nlohmann/json.hpp>

#include "tests/trainer/data/corpus_fixture.h"
#include "worker/trainer/data/dataset.h"
#include "worker/trainer/data/tokenizer.h"

namespace longspan::trainer {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr char kLine[] = "In the beginning God created the heaven and the earth.\n";

std::string Repeat(const std::string& text, int times) {
  std::string result;
  for (int i = 0; i < times; ++i) result += text;
  return result;
}

class PrepareTest : public CorpusTest {
 protected:
  std::vector<int64_t> AllTokens(const PreparedDataset& prepared) const {
    const std::string bytes = Read(prepared.folder / "tokens.bin");
    std::vector<uint16_t> narrow(bytes.size() / 2);
    std::copy(bytes.begin(), bytes.end(), reinterpret_cast<char*>(narrow.data()));
    return {narrow.begin(), narrow.end()};
  }
  static std::vector<int64_t> DocumentTokens(const std::string& text) {
    const Tokenizer tokenizer = Tokenizer::Load(TinyModel());
    const auto ids = tokenizer.Encode(text, true);
    std::vector<int64_t> tokens(ids.begin(), ids.end());
    tokens.push_back(*tokenizer.eos());
    return tokens;
  }
};

TEST_F(PrepareTest, EveryDocumentGetsItsBordersInTheOrderOfTheSources) {
  const auto text = Write("b.txt", Repeat(kLine, 3));
  const auto lines = Write("a.jsonl", R"({"text": "first one"})"
                                      "\n\n"
                                      R"({"n": 1, "text": "second"})"
                                      "\r\n"
                                      R"({"text": ""})"
                                      "\n");
  std::vector<std::string> warnings;
  PrepareCallbacks callbacks;
  callbacks.warning = [&](const std::string& message) { warnings.push_back(message); };
  const PreparedDataset prepared = Prepare(Options({text, lines}), callbacks);

  std::vector<int64_t> expected = DocumentTokens(Repeat(kLine, 3));
  for (const char* document : {"first one", "second"}) {
    const auto tokens = DocumentTokens(document);
    expected.insert(expected.end(), tokens.begin(), tokens.end());
  }
  EXPECT_EQ(AllTokens(prepared), expected);
  EXPECT_EQ(expected.front(), 0) << "BOS";
  EXPECT_EQ(prepared.documents, 3);
  EXPECT_EQ(prepared.tokens, static_cast<int64_t>(expected.size()));
  EXPECT_EQ(prepared.training_sequences, prepared.tokens / 8);
  EXPECT_EQ(prepared.dropped_tokens, prepared.tokens % 8);
  EXPECT_THAT(warnings, ElementsAre(HasSubstr("2 of 3 documents are shorter than the context of 8 tokens"),
                                    HasSubstr("1 documents without text")));
}

TEST_F(PrepareTest, AFileLargerThanTheBufferGivesTheIdsOfItsWholeText) {
  // More than three buffers; cuts fall where they may, and the first mebibyte has no place to cut at all.
  std::string text = Repeat("1234 ", 1 << 18);
  for (int i = 0; i < 40000; ++i)
    text += "verse " + std::to_string(i) + " \xC3\xA9t\xC3\xA9 na\xC3\xAFve\n\n  indented word\nnext.\n";
  const PreparedDataset prepared = Prepare(Options({Write("long.txt", text)}));
  EXPECT_EQ(AllTokens(prepared), DocumentTokens(text));
}

TEST_F(PrepareTest, GzipFoldersAndAByteOrderMarkReadLikePlainFiles) {
  const auto plain = Prepare(
      Options({Write("plain/one.txt", kLine), Write("plain/two.jsonl", R"({"text": "two more words of text"})")}));
  fs::create_directories(root_ / "folder/deep");
  WriteGzip("folder/deep/a.txt.gz", std::string("\xEF\xBB\xBF") + kLine);
  WriteGzip("folder/two.jsonl.gz", R"({"text": "two more words of text"})");
  Write("folder/README.md", "not a part of the corpus");
  Write("folder/.hidden.txt", "neither");
  std::string warned;
  PrepareCallbacks callbacks;
  callbacks.warning = [&](const std::string& message) { warned += message + "\n"; };
  const auto packed = Prepare(Options({root_ / "folder"}), callbacks);
  EXPECT_EQ(AllTokens(packed), AllTokens(plain));
  EXPECT_THAT(warned, HasSubstr("README.md"));
}

TEST_F(PrepareTest, EqualJobsShareOneFolderAndDifferentOnesDoNot) {
  const auto source = Write("corpus.txt", Repeat(kLine, 20));
  const auto first = Prepare(Options({source}));
  auto other_job = Options({source}, "job-2");
  other_job.context_length = 16;  // not a part of the key
  other_job.holdout_fraction = 0.25;
  int64_t done = 0;
  int64_t total = -1;
  PrepareCallbacks callbacks;
  callbacks.progress = [&](int64_t d, int64_t t) { done = d, total = t; };
  const auto second = Prepare(other_job, callbacks);
  EXPECT_FALSE(first.reused);
  EXPECT_TRUE(second.reused);
  EXPECT_EQ(first.folder, second.folder);
  EXPECT_EQ(first.folder.parent_path(), root_ / "datasets");
  EXPECT_EQ(done, total);
  EXPECT_EQ(second.heldout_tokens, second.tokens / 4);
  EXPECT_EQ(Dataset::Open(other_job.work).context_length(), 16);

  const auto copy = Write("elsewhere/renamed.txt", Repeat(kLine, 20));
  EXPECT_EQ(Prepare(Options({copy}, "job-3")).key, first.key);
  const auto changed = Prepare(Options({Write("corpus.txt", Repeat(kLine, 20) + "x")}, "job-4"));
  EXPECT_NE(changed.key, first.key);
}

TEST_F(PrepareTest, AnInterruptedRunLeavesNothingBehind) {
  const auto options = Options({Write("corpus.txt", Repeat(kLine, 50000))});
  PrepareCallbacks callbacks;
  callbacks.progress = [](int64_t done, int64_t) {
    if (done > 0) throw std::runtime_error("stop");
  };
  EXPECT_THROW(Prepare(options, callbacks), std::runtime_error);
  std::vector<std::string> left;
  for (const auto& entry : fs::directory_iterator(options.datasets_root)) {
    if (entry.is_directory()) left.push_back(entry.path());
  }
  EXPECT_THAT(left, IsEmpty());
  EXPECT_FALSE(fs::exists(options.work / "dataset.json"));
  EXPECT_FALSE(Prepare(options).reused);
}

TEST_F(PrepareTest, WhatIsWrongWithACorpusIsSaidWithItsPlace) {
  EXPECT_THAT(Refusal(Options({root_ / "missing.txt"})), AllOf(HasSubstr("missing.txt"), HasSubstr("no such file")));
  EXPECT_THAT(Refusal(Options({Write("a.pdf", "x")})), AllOf(HasSubstr("a.pdf"), HasSubstr(".txt, .jsonl and .json")));
  Write("none/readme.md", "x");
  EXPECT_THAT(Refusal(Options({root_ / "none"})), HasSubstr("holds no corpus file"));
  EXPECT_THAT(Refusal(Options({Write("empty.txt", "")})), HasSubstr("the corpus is empty"));
  EXPECT_THAT(Refusal(Options({Write("empty.jsonl", "\n\n")})), HasSubstr("the corpus is empty"));
  EXPECT_THAT(Refusal(Options({Write("short.txt", "In the")})), HasSubstr("fewer than one context of 8"));
  EXPECT_THAT(Refusal(Options({Write("bad.txt", "fine\nbad \xFF here")})),
              AllOf(HasSubstr("bad.txt line 2: byte 9 (0xff) is not UTF-8"), HasSubstr("convert")));
  EXPECT_THAT(Refusal(Options({Write("cut.txt", "fine \xE2\x82")})), HasSubstr("line 1: byte 5 (0xe2)"));
  EXPECT_THAT(Refusal(Options({Write("bad.jsonl", "{\"text\": \"a\"}\n{\"text\": \"\xC0\xAF\"}\n")})),
              HasSubstr("bad.jsonl line 2: byte 24 (0xc0)"));
}

TEST_F(PrepareTest, WhatIsWrongWithARecordIsSaidWithItsLine) {
  const std::string good = R"({"text": "a"})"
                           "\n";
  EXPECT_THAT(Refusal(Options({Write("1.jsonl", good + R"({"body": "b"})")})),
              AllOf(HasSubstr("1.jsonl line 2: \"text\" is missing"), HasSubstr("data.text_field"), HasSubstr("body")));
  EXPECT_THAT(Refusal(Options({Write("2.jsonl", good + "\n" + R"({"text": 7})")})),
              HasSubstr("2.jsonl line 3: \"text\" is a number"));
  EXPECT_THAT(Refusal(Options({Write("3.jsonl", "{\"text\": \"a\"")})), HasSubstr("3.jsonl line 1: it is not JSON"));
  EXPECT_THAT(Refusal(Options({Write("4.jsonl", "[1]")})), HasSubstr("a JSON array stands where an object is needed"));
  EXPECT_THAT(Refusal(Options({Write("5.jsonl", R"({"messages": []})")})),
              HasSubstr("has no chat_template: set data.template"));
  EXPECT_THAT(Refusal(Options({Write("6.jsonl", R"({"text": "\ud800"})")})),
              HasSubstr("6.jsonl line 1: it is not JSON"));
}

TEST_F(PrepareTest, DamagedGzipIsRefused) {
  const auto whole = Read(WriteGzip("whole.txt.gz", Repeat(kLine, 2000)));
  EXPECT_THAT(Refusal(Options({Write("cut.txt.gz", whole.substr(0, whole.size() / 2))})), HasSubstr("cut off"));
  std::string flipped = whole;
  flipped[whole.size() - 6] ^= 0x55;  // in the checksum
  EXPECT_THAT(Refusal(Options({Write("flipped.txt.gz", flipped)})), HasSubstr("flipped.txt.gz"));
  EXPECT_THAT(Refusal(Options({Write("plain.txt.gz", kLine)})), HasSubstr("is no gzip data"));
  EXPECT_THAT(Refusal(Options({Write("packed.txt", whole)})), HasSubstr("call it .gz"));
}

TEST_F(PrepareTest, DamagedZstdIsRefused) {
  std::string text;
  for (int i = 0; i < 300000; ++i) text += std::to_string(i * 2654435761u % 1000003) + " ";
  const auto path = WriteZstd("whole.txt.zst", text);
  EXPECT_EQ(AllTokens(Prepare(Options({path}))), DocumentTokens(text));
  const std::string whole = Read(path);
  EXPECT_EQ(AllTokens(Prepare(Options({Write("two.txt.zst", whole + whole)}))), DocumentTokens(text + text));
  EXPECT_THAT(Refusal(Options({Write("cut.txt.zst", whole.substr(0, whole.size() / 2))})), HasSubstr("cut off"));
  EXPECT_THAT(Refusal(Options({Write("plain.txt.zst", kLine)})), HasSubstr("is no zstd data"));
}

TEST_F(PrepareTest, BucketsOfJoinedDocumentsAreABadSpec) {
  auto options = Options({Write("corpus.txt", kLine)});
  options.bucketing = true;
  EXPECT_THAT(Refusal(options, ExitCode::kBadSpec), HasSubstr("data.bucketing"));
  options.packing = true;
  EXPECT_EQ(Prepare(options).training_tokens, Prepare(options).tokens);
}

TEST_F(PrepareTest, PackingChangesTheRowsAndNotThePreparedFolder) {
  std::string lines;
  for (int i = 1; i <= 9; ++i) lines += "{\"text\": \"" + std::string(static_cast<size_t>(3 * i), 'q') + "\"}\n";
  auto options = Options({Write("corpus.jsonl", lines)});
  const PreparedDataset joined = Prepare(options);
  options.packing = true;
  const PreparedDataset packed = Prepare(options);
  EXPECT_EQ(packed.folder, joined.folder);
  EXPECT_TRUE(packed.reused);
  EXPECT_EQ(packed.dropped_tokens, 0);
  EXPECT_EQ(packed.training_sequences * 8, packed.training_tokens + packed.padding_tokens);
}

TEST_F(PrepareTest, IdsThatTheModelHasNoEmbeddingForAreRefused) {
  auto options = Options({Write("corpus.txt", kLine)});
  options.model_folder = root_ / "model";
  Write("model/tokenizer.json", Read(TinyModel() / "tokenizer.json"));
  Write("model/config.json", R"({"vocab_size": 100})");
  EXPECT_THAT(Refusal(options), AllOf(HasSubstr("config.json"), HasSubstr("vocab_size is 100")));
}

TEST_F(PrepareTest, TheDatasetsLieBesideTheJobsOrBelowALoneWorkFolder) {
  EXPECT_EQ(DefaultDatasetsRoot("/storage/jobs/job-7"), "/storage/datasets");
  EXPECT_EQ(DefaultDatasetsRoot("/storage/jobs/job-7/"), "/storage/datasets");
  EXPECT_EQ(DefaultDatasetsRoot("/tmp/work"), "/tmp/work/datasets");
}

TEST_F(PrepareTest, AnUnreadableModelFolderIsRefusedByName) {
  auto options = Options({Write("corpus.txt", kLine)});
  options.model_folder = root_ / "model";
  EXPECT_THAT(Refusal(options), HasSubstr("needs its tokenizer.json"));
  Write("model/tokenizer.model", "");
  EXPECT_THAT(Refusal(options), HasSubstr("sentencepiece"));
  Write("model/tokenizer.json", "{");
  EXPECT_THAT(Refusal(options), HasSubstr("it is not JSON"));
  Write("model/tokenizer.json", R"({"model": {"vocab": {}, "merges": []}})");
  EXPECT_THAT(Refusal(options), HasSubstr("no single character"));
  Write("model/tokenizer.json", R"({"pre_tokenizer": {"type": "ByteLevel"}, "model": {"vocab": {}, "merges": []}})");
  EXPECT_THAT(Refusal(options), HasSubstr("lacks the byte 0x00"));
}

}  // namespace
}  // namespace longspan::trainer

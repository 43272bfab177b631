// The line protocol: what is written is read back, and nothing a peer sends can do harm.
#include "proto/trainer_lines/trainer_lines.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <time.h>

#include <cmath>
#include <fstream>
#include <limits>
#include <random>
#include <sstream>

#include "tests/test_paths.h"

namespace longspan::lines {
namespace {

using ::testing::HasSubstr;

template <class T>
T RoundTrip(const T& line) {
  bool malformed = true;
  const std::string text = Encode(FromTrainer(line));
  EXPECT_EQ(text.back(), '\n');
  const auto decoded = DecodeFromTrainer(text, &malformed);
  EXPECT_FALSE(malformed) << text;
  return std::get<T>(decoded.value());
}

TEST(TrainerLines, WhatIsWrittenIsReadBack) {
  EXPECT_EQ(RoundTrip(Hello{.pid = 7, .rank = 1, .version = "0.1"}).pid, 7);
  EXPECT_EQ(RoundTrip(Rendezvous{"host:1"}).address, "host:1");
  const Progress progress = RoundTrip(Progress{"train", 3, 9, {{"loss", 1.25}, {"tokens_total", 4e18}}});
  EXPECT_EQ(progress.step, 3);
  EXPECT_EQ(progress.values.at("loss"), 1.25);
  EXPECT_EQ(progress.values.at("tokens_total"), 4e18);
  const Checkpoint checkpoint = RoundTrip(Checkpoint{"step-00000001.attempt-2", 1, "ab", int64_t{1} << 40, 0.5});
  EXPECT_EQ(checkpoint.size_bytes, int64_t{1} << 40);
  EXPECT_EQ(RoundTrip(Evaluation{"base", 1024, "windows", 3.5, 1.25, 77, 5}).tokens, 77);
  EXPECT_EQ(RoundTrip(Artifact{"dataset", "/d", "prompt | a\nanswer | b\n"}).excerpt, "prompt | a\nanswer | b\n");
  EXPECT_EQ(RoundTrip(Failed{"user", "line\n\"two\" \xe2\x82\xac"}).message, "line\n\"two\" \xe2\x82\xac");
  EXPECT_TRUE(RoundTrip(Done{true}).stopped);
  EXPECT_EQ(RoundTrip(Reached{41}).step, 41);
  bool malformed = false;
  const auto stop = DecodeToTrainer(Encode(ToTrainer(Stop{false, "x"})), &malformed);
  EXPECT_FALSE(std::get<Stop>(stop.value()).checkpoint);
  EXPECT_TRUE(
      std::holds_alternative<CheckpointNow>(DecodeToTrainer(Encode(ToTrainer(CheckpointNow{})), &malformed).value()));
  EXPECT_EQ(std::get<Lease>(DecodeToTrainer(Encode(ToTrainer(Lease{1.5})), &malformed).value()).remaining_seconds, 1.5);
}

double BoottimeSeconds() {
  timespec now = {};
  clock_gettime(CLOCK_BOOTTIME, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

TEST(TrainerLines, ALeaseThatLayUnreadIsNotLonger) {
  EXPECT_EQ(RemainingSeconds(Lease{4}), 4) << "of a daemon that tells only the duration";
  bool malformed = true;
  const auto late = DecodeToTrainer(Encode(ToTrainer(Lease{4, BoottimeSeconds() - 3})), &malformed);
  EXPECT_FALSE(malformed);
  EXPECT_LT(RemainingSeconds(std::get<Lease>(late.value())), -2.9);
  const double left = RemainingSeconds(Lease{60, BoottimeSeconds() + 30});
  EXPECT_GT(left, 20);
  EXPECT_LE(left, 30);
  EXPECT_EQ(RemainingSeconds(Lease{60, BoottimeSeconds() + 90}), 60) << "the shorter of the two";
}

TEST(TrainerLines, NonFiniteNumbersAreTexts) {
  const double infinity = std::numeric_limits<double>::infinity();
  const Progress sent{"train", 1, 2, {{"a", std::nan("")}, {"b", infinity}, {"c", -infinity}}};
  EXPECT_THAT(Encode(FromTrainer(sent)), HasSubstr(R"("values":{"a":"nan","b":"inf","c":"-inf"})"));
  const Progress read = RoundTrip(sent);
  EXPECT_TRUE(std::isnan(read.values.at("a")));
  EXPECT_EQ(read.values.at("b"), infinity);
  EXPECT_EQ(read.values.at("c"), -infinity);
}

TEST(TrainerLines, UnknownIsIgnoredAndMalformedIsTold) {
  bool malformed = true;
  EXPECT_FALSE(DecodeFromTrainer(R"({"type":"hologram","x":1})", &malformed));
  EXPECT_FALSE(malformed);
  EXPECT_TRUE(DecodeFromTrainer(R"({"type":"warning","message":"m","later":{"deep":[1]}})", &malformed));
  EXPECT_FALSE(malformed);
  for (const char* line :
       {"", "{", "[]", "7", "{}", R"({"type":3})", R"({"type":"warning"})", R"({"type":"warning","message":5})",
        R"({"type":"progress","phase":"train","step":1.5,"steps":2})",
        R"({"type":"progress","phase":"train","step":18446744073709551615,"steps":2})",
        R"({"type":"progress","phase":"train","step":1,"steps":2,"values":{"loss":"big"}})",
        R"({"type":"hello","protocol":99999999999,"pid":1,"rank":0})", "{\"type\":\"warning\",\"message\":\"\xff\"}"}) {
    EXPECT_FALSE(DecodeFromTrainer(line, &malformed)) << line;
    EXPECT_TRUE(malformed) << line;
  }
}

TEST(TrainerLines, ALineNeverGrowsBeyondItsLimit) {
  for (const std::string& unit :
       {std::string("x"), std::string("\n"), std::string("\x01"), std::string("\xe2\x82\xac"), std::string("\xff")}) {
    std::string text;
    while (text.size() < 200'000) text += unit;
    const std::string line = Encode(FromTrainer(Failed{"user", text}));
    EXPECT_LE(line.size(), kLineBytesMax);
    EXPECT_THAT(line, HasSubstr("bytes cut ..."));
    bool malformed = true;
    EXPECT_TRUE(DecodeFromTrainer(line, &malformed));
  }
  Progress progress{"train", 1, 2, {}};
  for (int i = 0; i < 5000; ++i) progress.values[std::string(300, 'k') + std::to_string(i)] = i;
  EXPECT_LE(Encode(FromTrainer(progress)).size(), kLineBytesMax);
}

TEST(LineBuffer, CutsAnyStreamIntoTheSameLines) {
  std::mt19937 random(11);
  std::string stream =
      "a\n\nbb\n" + std::string(kLineBytesMax - 1, 'f') + "\n" + std::string(kLineBytesMax, 'g') + "\nend\ntail";
  for (int round = 0; round < 50; ++round) {
    LineBuffer buffer;
    std::vector<std::string> lines;
    for (size_t at = 0; at < stream.size();) {
      const size_t length = std::min<size_t>(stream.size() - at, 1 + random() % 5000);
      buffer.Append(std::string_view(stream).substr(at, length));
      at += length;
      while (auto line = buffer.Next()) lines.push_back(*line);
    }
    ASSERT_THAT(lines, ::testing::ElementsAre("a", "", "bb", std::string(kLineBytesMax - 1, 'f'), "end"));
    EXPECT_EQ(buffer.dropped(), 1);
  }
}

TEST(LineBuffer, AnEndlessLineTakesNoMemory) {
  LineBuffer buffer;
  for (int i = 0; i < 1000; ++i) buffer.Append(std::string(10'000, 'x'));
  EXPECT_FALSE(buffer.Next());
  EXPECT_EQ(buffer.dropped(), 1);
  buffer.Append("\nnext\n");
  EXPECT_EQ(buffer.Next(), "next");
}

TEST(TrainerLines, RandomBytesDoNoHarm) {
  std::mt19937 random(5);
  const std::string good = Encode(FromTrainer(Progress{"train", 1, 2, {{"loss", 1.0}}}));
  for (int round = 0; round < 20'000; ++round) {
    std::string line = good;
    for (int edits = 1 + random() % 4; edits > 0; --edits) line[random() % line.size()] = static_cast<char>(random());
    bool malformed = false;
    DecodeFromTrainer(line, &malformed);
    DecodeToTrainer(line, &malformed);
  }
}

TEST(TrainerLines, TheSampleSessionOfTheReadmeIsRight) {
  std::ifstream readme(testing::SourceDir() / "proto/trainer_lines/README.md");
  std::string line;
  int seen = 0;
  while (std::getline(readme, line)) {
    if (!line.starts_with("< {") && !line.starts_with("> {")) continue;
    ++seen;
    bool malformed = true;
    const std::string text = line.substr(2);
    EXPECT_TRUE(line[0] == '<' ? DecodeFromTrainer(text, &malformed).has_value()
                               : DecodeToTrainer(text, &malformed).has_value())
        << line;
  }
  EXPECT_GE(seen, 15);
}

}  // namespace
}  // namespace longspan::lines

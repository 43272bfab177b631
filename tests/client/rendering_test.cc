// Pictures in text.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <sstream>

#include "client/job_report.h"
#include "client/loss_curve.h"
#include "client/output.h"
#include "client/progress.h"

namespace longspan::client {
namespace {

using ::testing::HasSubstr;

TEST(LossCurve, FallsFromLeftToRight) {
  std::vector<CurvePoint> points;
  for (int i = 0; i <= 20; ++i) points.push_back({static_cast<double>(i), 4.0 - 0.1 * i});
  points.push_back({21, std::nan("")});
  EXPECT_EQ(DrawCurve("Loss", "step", points, {31, 5, false}),
            "Loss\n"
            "       4 |***\n"
            "         |   *****\n"
            "       3 |        *****\n"
            "         |             *****\n"
            "       2 |                  ***\n"
            "         +---------------------\n"
            "          step 0             20\n");
}

TEST(LossCurve, BrailleHasFourRowsOfDotsInACharacter) {
  const std::string curve = DrawCurve("Loss", "step", {{0, 1}, {1, 0}}, {20, 3, true});
  EXPECT_THAT(curve, HasSubstr("1 │⠉⠒⠤⡀\n     0.5 │   ⠈⠑⠢⢄\n       0 │       ⠉⠒⢄\n"));
}

TEST(LossCurve, NothingToDrawIsNothing) {
  EXPECT_EQ(DrawCurve("Loss", "step", {}, {}), "");
  EXPECT_EQ(DrawCurve("Loss", "step", {{1, 1}}, {}), "");
  EXPECT_THAT(DrawCurve("Loss", "step", {{1, 2}, {2, 2}}, {72, 11, true}), HasSubstr(" 2 │⠤⠤"));
}

TEST(Text, ControlsAreShownAsQuestionMarks) {
  EXPECT_EQ(WithoutControls("a\nb\tc\x1b[0m\x7f"), "a b c?[0m?");
  EXPECT_EQ(WithoutControls("\u0080\u009f\u00a0\u202a\u202e\u2066\u2069"), "??\u00a0????");
  EXPECT_EQ(WithoutControls("größer \u200f\u2029 \xe2"), "größer \u200f\u2029 \xe2");
}

TEST(Text, FoldsByColumns) {
  EXPECT_THAT(Folded("größer", 4), testing::ElementsAre("größ", "er"));
  EXPECT_THAT(Folded("abcd", 4), testing::ElementsAre("abcd"));
  EXPECT_THAT(Folded("", 4), testing::ElementsAre(""));
}

TEST(Example, LongLinesGoOnUnderTheirText) {
  v1::Job job;
  job.add_artifacts()->set_excerpt("prompt | 0123456789012345678901234\nno mark\nanswer | \n");
  std::ostringstream out;
  PrintExample(out, job, 33);
  EXPECT_EQ(out.str(),
            "\nOne record as it is trained; only the answer is scored\n\n"
            "  prompt | 0123456789012345678901\n"
            "         | 234\n  no mark\n  answer | \n");
}

TEST(Table, AlignsAndCuts) {
  Table table({"NAME", ">COUNT", "WHY"});
  table.Add({"a", "1", "a long\nreason"});
  table.Add({"größer", "1000", ""});
  std::ostringstream out;
  table.Print(out, 24);
  EXPECT_EQ(out.str(), "NAME    COUNT  WHY\na           1  a long...\ngrößer   1000\n");
}

TEST(Numbers, AreReadable) {
  EXPECT_EQ(CountText(1234567), "1,234,567");
  EXPECT_EQ(CountText(-999), "-999");
  EXPECT_EQ(BytesText(1536), "1.5 KiB");
  EXPECT_EQ(DurationText(59.4), "59s");
  EXPECT_EQ(DurationText(3725), "1h02m");
  EXPECT_EQ(DurationText(-1), "?");
}

v1::ProgressSample Sample(int64_t step, int64_t seconds, int64_t attempt = 1) {
  v1::ProgressSample sample;
  sample.set_attempt(attempt);
  sample.set_phase(v1::PHASE_TRAIN);
  sample.set_step(step);
  sample.set_steps(100);
  sample.mutable_time()->set_seconds(seconds);
  return sample;
}

TEST(Progress, TimeLeftIsLearnedFromOneAttempt) {
  Pace pace;
  EXPECT_LT(pace.SecondsLeft(), 0);
  pace.Add(Sample(10, 1000));
  pace.Add(Sample(20, 1020));
  EXPECT_DOUBLE_EQ(pace.SecondsLeft(), 160);
  pace.Add(Sample(15, 1100, 2));  // a restart: the pause says nothing about the pace
  EXPECT_LT(pace.SecondsLeft(), 0);
}

TEST(Progress, TheBarFitsItsTerminal) {
  Pace pace;
  pace.Add(Sample(50, 1000));
  for (int width : {20, 40, 60, 80, 200}) {
    EXPECT_LT(ColumnsOf(ProgressLine(Sample(50, 1000), pace, true, true, width)), static_cast<size_t>(width));
  }
  EXPECT_EQ(ProgressLine(Sample(50, 1000), pace, true, false, 50), "train    [############------------]  50/100   50%");
}

TEST(FoldedAtWords, BreaksBetweenWordsAndLongWordsWhereItMust) {
  EXPECT_THAT(FoldedAtWords("a layer keeps its input", 9), testing::ElementsAre("a layer", "keeps its", "input"));
  EXPECT_THAT(FoldedAtWords("an incomprehensibility", 8), testing::ElementsAre("an", "incompre", "hensibil", "ity"));
  EXPECT_THAT(FoldedAtWords("", 8), testing::ElementsAre(""));
  EXPECT_THAT(FoldedAtWords("größer als", 6), testing::ElementsAre("größer", "als"));
}

}  // namespace
}  // namespace longspan::client

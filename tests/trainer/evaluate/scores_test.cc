#include "worker/trainer/evaluate/scores.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <set>

#include "worker/trainer/evaluate/longbench_tasks.h"
#include "worker/trainer/evaluate/text_words.h"

namespace longspan::trainer {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST(ScoresTest, QuestionAnswersAreComparedAsBagsOfPlainWords) {
  EXPECT_DOUBLE_EQ(QuestionAnswerF1("The  Cat, sat!", "a cat sat"), 1);
  EXPECT_DOUBLE_EQ(QuestionAnswerF1("cat cat", "cat dog"), 0.5);
  EXPECT_DOUBLE_EQ(QuestionAnswerF1("another theme", "other"), 0);  // articles are whole words
  EXPECT_DOUBLE_EQ(QuestionAnswerF1("the", "the"), 0);              // nothing is left
  EXPECT_DOUBLE_EQ(QuestionAnswerF1("", ""), 0);
  EXPECT_DOUBLE_EQ(QuestionAnswerF1("ÉCOLE", "école"), 1);
}

TEST(ScoresTest, RougeCountsEachWordOnceAndCutsAtFullStops) {
  EXPECT_NEAR(RougeL("police killed the gunman", "police killed the gunman"), 1, 1e-7);
  EXPECT_NEAR(RougeL("b a", "a b"), 0.5, 1e-7);
  EXPECT_NEAR(RougeL("b. a", "a b"), 1, 1e-7);  // the union over sentences
  EXPECT_DOUBLE_EQ(RougeL("", "a"), 0);
  EXPECT_DOUBLE_EQ(RougeL("...", "a"), 0);
}

TEST(ScoresTest, AClassNameMustBeFoundAndIsSharedWithOtherFinds) {
  const std::vector<std::string> classes = {"Number", "Number of something", "Date", "City"};
  EXPECT_DOUBLE_EQ(ClassificationScore("Date", "Date", classes), 1);
  EXPECT_DOUBLE_EQ(ClassificationScore("Date or City", "City", classes), 0.5);
  EXPECT_DOUBLE_EQ(ClassificationScore("Number of something", "Number of something", classes), 1);
  EXPECT_DOUBLE_EQ(ClassificationScore("nothing", "City", classes), 0);
}

TEST(ScoresTest, NumbersAreSharesOfWhatWasSaid) {
  EXPECT_DOUBLE_EQ(CountScore("There are 7 or 8", "7"), 0.5);
  EXPECT_DOUBLE_EQ(CountScore("seven", "7"), 0);
  EXPECT_DOUBLE_EQ(RetrievalScore("Paragraph 12", "Paragraph 12", "Paragraph "), 1);
  EXPECT_DOUBLE_EQ(RetrievalScore("1, 12, 3", "Paragraph 12", "Paragraph "), 1.0 / 3);
  EXPECT_DOUBLE_EQ(RetrievalScore("段落5", "段落5", "段落"), 1);
  EXPECT_DOUBLE_EQ(RetrievalScore("5", "no number", "Paragraph "), 0);
}

TEST(ScoresTest, CodeIsTheFirstLineThatIsNoComment) {
  EXPECT_DOUBLE_EQ(CodeSimilarity("\n\n# note\n```\nreturn x\nreturn y", "return x"), 1);
  EXPECT_DOUBLE_EQ(CodeSimilarity("abcd", "abxd"), 0.75);
  EXPECT_DOUBLE_EQ(CodeSimilarity("ab", "ba"), 0.5);
  EXPECT_DOUBLE_EQ(CodeSimilarity("ab", "ba"), 0.5);
  EXPECT_DOUBLE_EQ(CodeSimilarity("// only a note", "x"), 0);
  EXPECT_DOUBLE_EQ(CodeSimilarity("abc", "abcdefgh"), 0.55);  // 6 / 11 in whole percent
}

TEST(TextWordsTest, SeesTextAsPythonDoes) {
  EXPECT_THAT(SplitAtWhiteSpace(" a\u00a0b\x1c"
                                "c\u3000\n"),
              ElementsAre("a", "b", "c"));
  EXPECT_THAT(SplitAtWhiteSpace(" \t"), IsEmpty());
  EXPECT_EQ(LowerCase("ÀÉ ΑΒ ЖЯ ǅ İ ẞ 𐐀"), "àé αβ жя ǆ i\u0307 ß 𐐨");
  EXPECT_EQ(LowerCase("A\xff"
                      "B"),
            "a\xff"
            "b");
  EXPECT_EQ(WithoutWords("the thé _the the", {"the"}), "  thé _the  ");
  EXPECT_THAT(NumbersIn("a12-3½٤٥x²"), ElementsAre("12", "3", "٤٥"));
}

TEST(LongBenchTasksTest, AllOfThemStandInTheTable) {
  const auto& tasks = LongBenchTasks();
  ASSERT_EQ(tasks.size(), 21u);
  std::set<std::string> refused;
  for (const auto& [name, task] : tasks) {
    EXPECT_NE(task.prompt.find("{context}"), std::string::npos) << name;
    EXPECT_GE(task.answer_tokens, 32) << name;
    if (!CanScore(task)) refused.insert(name);
  }
  EXPECT_EQ(refused, (std::set<std::string>{"dureader", "multifieldqa_zh", "vcsum"}));
  EXPECT_TRUE(tasks.at("samsum").ends_at_newline && tasks.at("samsum").first_line && tasks.at("samsum").as_it_is);
}

TEST(LongBenchTasksTest, APromptIsFilledOnce) {
  LongBenchExample example;
  example.context = "see {input} and {context}";
  example.input = "why?";
  EXPECT_EQ(PromptOf(LongBenchTasks().at("trec"), example),
            "Please determine the type of the question below. Here are some examples of questions.\n\n"
            "see {input} and {context}\nwhy?");
}

TEST(LongBenchTasksTest, TheMiddleGoesFirst) {
  std::vector<int64_t> tokens(10);
  std::iota(tokens.begin(), tokens.end(), 0);
  EXPECT_THAT(TruncatedInTheMiddle(tokens, 4), ElementsAre(0, 1, 8, 9));
  EXPECT_THAT(TruncatedInTheMiddle(tokens, 5), ElementsAre(0, 1, 8, 9));
  EXPECT_EQ(TruncatedInTheMiddle(tokens, 10), tokens);
}

TEST(LongBenchTasksTest, TheBestOfTheRightAnswersCounts) {
  LongBenchExample example;
  example.answers = {"blue", "dark blue"};
  EXPECT_DOUBLE_EQ(ScoreOf(LongBenchTasks().at("triviaqa"), example, "\n\nDark blue\nand more"), 1);
  EXPECT_DOUBLE_EQ(ScoreOf(LongBenchTasks().at("hotpotqa"), example, "blue"), 1);
}

// LongLoRA's published row, by task: its average of 36.8 is the mean over LongBench's six categories.
TEST(LongBenchTasksTest, AveragesAreThoseOfThePublishedTable) {
  const std::map<std::string, double> longlora = {{"narrativeqa", 19.8},
                                                  {"qasper", 29.1},
                                                  {"multifieldqa_en", 37.15},
                                                  {"hotpotqa", 37.01},
                                                  {"2wikimqa", 30.26},
                                                  {"musique", 17.14},
                                                  {"gov_report", 31.53},
                                                  {"qmsum", 24.13},
                                                  {"multi_news", 27.74},
                                                  {"trec", 63.5},
                                                  {"triviaqa", 85.69},
                                                  {"samsum", 41.88},
                                                  {"passage_count", 3.61},
                                                  {"passage_retrieval_en", 29.75},
                                                  {"lcc", 57.61},
                                                  {"repobench-p", 54.45},
                                                  {"dureader", 15.25},
                                                  {"lsht", 26.0}};
  EXPECT_NEAR(AverageOf(longlora).categories, 36.84, 0.005);
  EXPECT_NEAR(AverageOf(longlora).tasks, 36.90, 0.005);
  EXPECT_TRUE(std::isnan(AverageOf({}).tasks));
}

}  // namespace
}  // namespace longspan::trainer

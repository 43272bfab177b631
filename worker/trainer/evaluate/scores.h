// The scores of LongBench (arXiv 2308.14508), each equal to the number its own program gives.
//
//   qa_f1            F1 over words: small letters, no punctuation, no articles
//   rouge_l          f of rouge-l as the Python package `rouge` 1.0.1 has it: over sentences cut at every '.', each
//                    word counted once (the package's default), 0 where the package refuses an empty text
//   classification   1 / number of class names found, if the right one is among them
//   count, retrieval share of the numbers in the answer that are the right one
//   code_similarity  the first line that is no comment, against the right one, in whole percent: `fuzz.ratio` of
//                    fuzzywuzzy as LongBench installs it, over Python's difflib. Where python-Levenshtein is installed
//                    too, fuzzywuzzy takes that and gives some 2 points more; LongLoRA's published row is difflib's
//
// qa_f1 and rouge_l of Chinese texts need words that a segmenter (jieba) finds; there is none here, and the tasks that
// need one are refused by name (longbench.h).
//
// Where the original fails it gives 0: so does the `rouge` package's recursion on a pair of sentences of about a
// thousand words together (its program catches the error). Here such a pair is scored.
//
// On the predictions that LongLoRA published (benchmarks/Pred_LongBench of its repository) these give its row on all 16
// English tasks, to both decimals.
//
// Pure and thread-safe. All in [0, 1].
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace longspan::trainer {

double QuestionAnswerF1(std::string_view prediction, std::string_view truth);
double RougeL(std::string_view prediction, std::string_view truth);
double ClassificationScore(std::string_view prediction, std::string_view truth,
                           const std::vector<std::string>& classes);
double CountScore(std::string_view prediction, std::string_view truth);
// `prefix` stands before the number in the truth: "Paragraph " or "段落". 0 when the truth has no such number.
double RetrievalScore(std::string_view prediction, std::string_view truth, std::string_view prefix);
double CodeSimilarity(std::string_view prediction, std::string_view truth);

}  // namespace longspan::trainer

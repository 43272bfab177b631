// Retrieval of one of several facts out of a long conversation, in the style of LongChat's topic retrieval: a user and
// an assistant talk about one topic after another, and the last question asks for one of them by its place.
//
// One task a length, the talk about each topic padded with filler so that prompt and answer together have at most
// `length` tokens. LongChat always asks for the first topic; here trial t of n asks for topic t · topics / n, so the
// first trial does too and the others look at other places. The topics are drawn anew for every trial. Greedy. An
// answer is right when its first line has the name of the topic and of no other topic of the conversation.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "worker/trainer/evaluate/generation_task.h"

namespace longspan::trainer {

// Names of `count` topics, all different, drawn with `seed` and `trial`.
std::vector<std::string> DrawTopics(int64_t count, uint64_t seed, uint64_t trial);
std::string TopicsText(const std::vector<std::string>& topics, int64_t asked, int64_t filler_sentences);
bool NamesOnly(std::string_view answer, const std::vector<std::string>& topics, int64_t asked);

// Null when even the conversation without filler is longer than `length`.
std::unique_ptr<GenerationTask> MakeTopicsTask(const jobfile::TopicsSection& section, int64_t length, uint64_t seed,
                                               const Tokenizer& tokenizer);

}  // namespace longspan::trainer

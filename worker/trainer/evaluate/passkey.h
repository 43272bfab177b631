// Passkey retrieval, as the LongLoRA paper (arXiv 2309.12307, section 4; the text is Landmark Attention's, arXiv
// 2305.16300) measures it: a number between 1 and 50000 hidden in filler text, asked for at the end.
//
// One task a length. The filler is cut so that prompt and answer together have at most `length` tokens; the number
// stands at evenly spaced places from the start to the end of the filler. Greedy. An answer is right when the first
// number in it is the one that was hidden.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "worker/trainer/evaluate/generation_task.h"

namespace longspan::trainer {

inline constexpr int64_t kPasskeyMax = 50000;

// The text with `filler_letters` letters of filler, `key` behind the share `depth` of them.
std::string PasskeyText(int64_t filler_letters, double depth, int64_t key);
// Depth of place `index` of `places`: 0 is the start, 1 the end; a single place is the middle.
double DepthOf(int64_t index, int64_t places);
// The first run of digits in a text as a number; -1 when there is none.
int64_t FirstNumber(std::string_view text);

// Null when even the text without filler is longer than `length`.
std::unique_ptr<GenerationTask> MakePasskeyTask(const jobfile::PasskeySection& section, int64_t length, uint64_t seed,
                                                const Tokenizer& tokenizer);

}  // namespace longspan::trainer

// A tokenizer.model through libsentencepiece: BPE and unigram, with or without byte fallback. Ids equal those of the
// `sentencepiece` package's encode(text); control symbols such as <s> inside text are text, as there.
//
// BOS and EOS: `add_bos_token` (true where tokenizer_config.json does not say) and `add_eos_token` (false); the tokens
// are `bos_token` and `eos_token` of that file, else the model's. The tokens of an added_tokens.json beside it are
// found inside text; what stands between two of them is encoded as a text of its own.
//
// The library takes a whole text at once and slows down as it grows, so where no piece reaches over the space between
// two words, each word goes there once and is remembered.
#pragma once

#include <memory>
#include <string>

#include "worker/trainer/data/encoder.h"
#include "worker/trainer/data/json_place.h"

namespace longspan::trainer {

// `model` is the whole file. Throws UserError with `file` when it is no sentencepiece model.
std::unique_ptr<Encoder> MakeSentencePieceEncoder(const std::string& model, const std::string& file,
                                                  const JsonPlace& tokenizer_config, const JsonPlace& added_tokens);

}  // namespace longspan::trainer

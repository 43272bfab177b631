// A tokenizer.json: added tokens → normalizer → added tokens → pre-tokenizer → byte-pair merges, and the decoder back.
#pragma once

#include <memory>
#include <string>

#include "worker/trainer/data/encoder.h"

namespace longspan::trainer {

// `text` is the whole file. Throws UserError with `file` and the place for everything that is malformed or not
// supported.
std::unique_ptr<Encoder> MakeJsonEncoder(const std::string& text, const std::string& file);

}  // namespace longspan::trainer

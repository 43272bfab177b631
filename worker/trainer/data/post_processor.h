// What is put around one text: BOS in front, EOS behind, or nothing, as the `post_processor` of tokenizer.json says
// (TemplateProcessing, ByteLevel, Sequence). Others are refused by name.
#pragma once

#include <optional>
#include <vector>

#include "worker/trainer/data/json_place.h"
#include "worker/trainer/data/tokenizer.h"

namespace longspan::trainer {

struct PostProcessor {
  std::vector<TokenId> prefix;
  std::vector<TokenId> suffix;

  // `description` is the value of "post_processor", empty when there is none. Throws UserError.
  static PostProcessor Parse(const std::optional<JsonPlace>& description);
};

}  // namespace longspan::trainer

// What a sentencepiece model says about white space. libsentencepiece acts on these settings but does not tell them, so
// they are read from the file (sentencepiece_model.proto: ModelProto.trainer_spec and .normalizer_spec).
#pragma once

#include <string>

namespace longspan::trainer {

struct SentencePieceSettings {
  bool add_dummy_prefix = true;          // a space is put in front of a text
  bool remove_extra_whitespaces = true;  // spaces at the ends go, runs become one
  bool escape_whitespaces = true;        // a space is U+2581 in the pieces
  bool treat_whitespace_as_suffix = false;
};

// `model` is the whole file. Throws UserError, naming `file` and the byte, when it is not in protobuf's form or its
// character rules are damaged (sentencepiece_charsmap.h).
SentencePieceSettings ReadSentencePieceSettings(const std::string& model, const std::string& file);

}  // namespace longspan::trainer

// Makes text of tokens, as the `decoder` of tokenizer.json says: ByteLevel, Metaspace, Replace, ByteFallback, Fuse,
// Strip and Sequence. Others are refused by name. Immutable and thread-safe.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "worker/trainer/data/json_place.h"

namespace longspan::trainer {

// One member of a decoder: turns texts of tokens into others.
class DecodeStep {
 public:
  virtual ~DecodeStep() = default;
  virtual std::vector<std::string> Decode(std::vector<std::string> tokens) const = 0;
};

class TokenDecoder {
 public:
  // `description` is the value of "decoder", empty when there is none: then the tokens stand side by side with a space
  // between, as the package puts them. Throws UserError.
  static TokenDecoder Parse(const std::optional<JsonPlace>& description);

  // Bytes that are not UTF-8 become U+FFFD.
  std::string Decode(std::vector<std::string> tokens) const;

 private:
  std::vector<std::unique_ptr<DecodeStep>> steps_;
  bool spaced_ = true;
};

}  // namespace longspan::trainer

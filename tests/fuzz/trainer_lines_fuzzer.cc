// The lines between daemon and trainer, both ways: decoded, unknown or malformed. What was decoded says the same when
// it is sent on.
#include <cstdlib>

#include "proto/trainer_lines/trainer_lines.h"

namespace {

template <class Line, class Decode>
void CheckSentOn(const std::optional<Line>& line, Decode decode) {
  if (!line) return;
  bool malformed = false;
  const std::string sent = longspan::lines::Encode(*line);
  if (sent.size() > longspan::lines::kLineBytesMax || sent.back() != '\n') std::abort();
  const std::optional<Line> again = decode(std::string_view(sent).substr(0, sent.size() - 1), &malformed);
  if (!again || malformed || again->index() != line->index()) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace longspan::lines;  // NOLINT: a fuzzer is one function
  LineBuffer buffer;
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  // In two parts, as a pipe may deliver them.
  buffer.Append(bytes.substr(0, size / 3));
  buffer.Append(bytes.substr(size / 3));
  while (const std::optional<std::string> text = buffer.Next()) {
    bool malformed = false;
    CheckSentOn(DecodeFromTrainer(*text, &malformed), DecodeFromTrainer);
    CheckSentOn(DecodeToTrainer(*text, &malformed), DecodeToTrainer);
  }
  return 0;
}

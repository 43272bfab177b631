#include "worker/trainer/data/chat_template.h"

#include <fmt/format.h>

#include <algorithm>

#include "proto/jobfile/enum_names.h"
#include "proto/support/check.h"
#include "worker/trainer/data/white_space.h"
#include "worker/trainer/errors.h"

namespace longspan::trainer {
namespace {

using jobfile::ChatTemplate;

// The words of the Alpaca format itself: models trained on it know no others.
constexpr const char* kAlpacaSystem =
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.";
constexpr const char* kAlpacaSystemWithInput =
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request.";

std::string Stripped(const std::string& text) { return std::string(StripWhiteSpace(text)); }

std::string Llama2System(const std::string& system) { return "<<SYS>>\n" + system + "\n<</SYS>>\n\n"; }

// The system message of a conversation, if it has one, and where the turns begin.
struct SystemAndTurns {
  const std::string* system = nullptr;
  size_t first_turn = 0;
};
SystemAndTurns SplitSystem(const Conversation& record) {
  if (record.messages.front().role != Role::kSystem) return {};
  return {&record.messages.front().content, 1};
}

}  // namespace

class RecordTemplate::Writer {
 public:
  void Prompt(std::string text) { Add({std::move(text), false, false}); }
  void Answer(std::string text) { Add({std::move(text), true, false}); }
  void Special(const std::string& token, bool scored = false) { Add({token, scored, true}); }
  void TokenizerPrefix() { rendering_.tokenizer_prefix = true; }
  Rendering Take() { return std::move(rendering_); }

 private:
  // Neighbours of one kind are one part.
  void Add(RenderedPart part) {
    if (part.text.empty()) return;
    auto& parts = rendering_.parts;
    if (!parts.empty() && !part.special && !parts.back().special && parts.back().scored == part.scored) {
      parts.back().text += part.text;
    } else {
      parts.push_back(std::move(part));
    }
  }

  Rendering rendering_;
};

RecordTemplate::RecordTemplate(Options options, SpecialTokenTexts tokens)
    : options_(std::move(options)), tokens_(std::move(tokens)) {
  const bool ends_with_eos = options_.kind == ChatTemplate::kLlama2 || options_.kind == ChatTemplate::kAlpaca ||
                             options_.kind == ChatTemplate::kMistral;
  if (ends_with_eos && tokens_.eos.empty()) {
    throw UserError(
        fmt::format("cannot use template {}: an answer ends with the model's eos_token, and neither "
                    "tokenizer_config.json nor special_tokens_map.json names one",
                    jobfile::NameOf(options_.kind)));
  }
}

std::vector<std::string> RecordTemplate::SpecialTokens() const {
  std::vector<std::string> tokens;
  switch (options_.kind) {
    case ChatTemplate::kLlama2:
    case ChatTemplate::kMistral:
      tokens = {tokens_.bos, tokens_.eos};
      break;
    case ChatTemplate::kAlpaca:
      tokens = {tokens_.eos};
      break;
    case ChatTemplate::kChatml:
      tokens = {"<|im_start|>", "<|im_end|>"};
      if (options_.begins_with_bos) tokens.push_back(tokens_.bos);
      break;
    case ChatTemplate::kLlama3:
      tokens = {tokens_.bos, "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"};
      break;
  }
  std::erase(tokens, "");
  return tokens;
}

nlohmann::json RecordTemplate::Description() const {
  return {{"name", jobfile::NameOf(options_.kind)},
          {"default_system", options_.default_system},
          {"begins_with_bos", options_.begins_with_bos},
          {"takes_system", options_.takes_system},
          {"bos", tokens_.bos},
          {"eos", tokens_.eos}};
}

Rendering RecordTemplate::Render(const SftRecord& record) const {
  Writer writer;
  std::visit([&](const auto& one) { Write(one, writer); }, record);
  return writer.Take();
}

Rendering RecordTemplate::RenderPrompt(SftRecord record) const {
  std::string& answer = std::holds_alternative<Instruction>(record)
                            ? std::get<Instruction>(record).output
                            : std::get<Conversation>(record).messages.back().content;
  answer = "x";  // templates strip nothing of it
  Rendering rendering = Render(record);
  std::vector<RenderedPart>& parts = rendering.parts;
  while (!parts.back().scored) parts.pop_back();  // what stands behind the answer's end
  while (parts.back().scored) parts.pop_back();
  return rendering;
}

std::string RecordTemplate::AnswerEnd() const {
  const Rendering rendering = Render(Instruction{"x", "", "x"});
  const auto end = std::find_if(rendering.parts.rbegin(), rendering.parts.rend(),
                                [](const RenderedPart& part) { return part.scored && part.special; });
  CHECK(end != rendering.parts.rend());
  return end->text;
}

void RecordTemplate::Write(const Instruction& record, Writer& writer) const {
  const bool has_input = !record.input.empty();
  if (options_.kind != ChatTemplate::kLlama2 && options_.kind != ChatTemplate::kAlpaca) {
    std::string prompt = record.instruction;
    if (has_input) prompt += "\n\n" + record.input;
    return Write(Conversation{{{Role::kUser, std::move(prompt)}, {Role::kAssistant, record.output}}}, writer);
  }
  writer.TokenizerPrefix();
  if (options_.kind == ChatTemplate::kLlama2 && has_input) {
    writer.Prompt("[INST] " + Llama2System(record.instruction) + record.input + " [/INST]");
  } else if (options_.kind == ChatTemplate::kLlama2) {
    writer.Prompt("[INST]" + record.instruction + "[/INST]");
  } else {
    writer.Prompt(has_input ? kAlpacaSystemWithInput : kAlpacaSystem);
    writer.Prompt("\n\n### Instruction:\n" + record.instruction);
    if (has_input) writer.Prompt("\n\n### Input:\n" + record.input);
    writer.Prompt("\n\n### Response:");
  }
  writer.Answer(record.output);
  writer.Special(tokens_.eos, /*scored=*/true);
}

void RecordTemplate::Write(const Conversation& record, Writer& writer) const {
  if (!options_.takes_system && SplitSystem(record).system != nullptr) {
    throw RecordError("the first message is a system message, for which the model's template has no place; remove it");
  }
  switch (options_.kind) {
    case ChatTemplate::kLlama2:
      return WriteLlama2(record, writer);
    case ChatTemplate::kAlpaca:
      return WriteAlpaca(record, writer);
    case ChatTemplate::kChatml:
      return WriteChatml(record, writer);
    case ChatTemplate::kLlama3:
      return WriteLlama3(record, writer);
    case ChatTemplate::kMistral:
      return WriteMistral(record, writer);
  }
}

void RecordTemplate::WriteLlama2(const Conversation& record, Writer& writer) const {
  const SystemAndTurns split = SplitSystem(record);
  for (size_t i = split.first_turn; i < record.messages.size(); i += 2) {
    std::string user = record.messages[i].content;
    if (i == split.first_turn && split.system != nullptr) user = Llama2System(*split.system) + user;
    writer.Special(tokens_.bos);
    writer.Prompt("[INST] " + Stripped(user) + " [/INST]");
    writer.Answer(" " + Stripped(record.messages[i + 1].content) + " ");
    writer.Special(tokens_.eos, /*scored=*/true);
  }
}

void RecordTemplate::WriteAlpaca(const Conversation& record, Writer& writer) const {
  const SystemAndTurns split = SplitSystem(record);
  writer.TokenizerPrefix();
  writer.Prompt(split.system != nullptr ? *split.system : kAlpacaSystem);
  for (size_t i = split.first_turn; i < record.messages.size(); i += 2) {
    writer.Prompt("\n\n### Instruction:\n" + record.messages[i].content + "\n\n### Response:");
    writer.Answer(record.messages[i + 1].content);
    writer.Special(tokens_.eos, /*scored=*/true);
  }
}

void RecordTemplate::WriteChatml(const Conversation& record, Writer& writer) const {
  if (options_.begins_with_bos) writer.Special(tokens_.bos);
  const auto write = [&writer](Role role, const std::string& content) {
    const bool answer = role == Role::kAssistant;
    writer.Special("<|im_start|>");
    writer.Prompt(std::string(NameOf(role)) + "\n");
    answer ? writer.Answer(content) : writer.Prompt(content);
    writer.Special("<|im_end|>", answer);
    writer.Prompt("\n");
  };
  if (SplitSystem(record).system == nullptr && !options_.default_system.empty()) {
    write(Role::kSystem, options_.default_system);
  }
  for (const Message& message : record.messages) write(message.role, message.content);
}

void RecordTemplate::WriteLlama3(const Conversation& record, Writer& writer) const {
  writer.Special(tokens_.bos);
  for (const Message& message : record.messages) {
    const bool answer = message.role == Role::kAssistant;
    writer.Special("<|start_header_id|>");
    writer.Prompt(NameOf(message.role));
    writer.Special("<|end_header_id|>");
    writer.Prompt("\n\n");
    answer ? writer.Answer(Stripped(message.content)) : writer.Prompt(Stripped(message.content));
    writer.Special("<|eot_id|>", answer);
  }
}

void RecordTemplate::WriteMistral(const Conversation& record, Writer& writer) const {
  const SystemAndTurns split = SplitSystem(record);
  writer.Special(tokens_.bos);
  for (size_t i = split.first_turn; i < record.messages.size(); i += 2) {
    writer.Prompt(" [INST] ");
    if (i == split.first_turn && split.system != nullptr) writer.Prompt(*split.system + "\n\n");
    writer.Prompt(record.messages[i].content + " [/INST]");
    writer.Answer(" " + record.messages[i + 1].content);
    writer.Special(tokens_.eos, /*scored=*/true);
  }
}

}  // namespace longspan::trainer

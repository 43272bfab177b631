// The model's own chat template, told by the expressions it is written with; and the tokens that templates name.
#include <fmt/format.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "proto/jobfile/enum_names.h"
#include "worker/trainer/data/chat_template.h"
#include "worker/trainer/errors.h"

namespace longspan::trainer {
namespace {

namespace fs = std::filesystem;
using jobfile::ChatTemplate;
using nlohmann::json;

json ReadJsonFile(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return nullptr;
  try {
    return json::parse(file);
  } catch (const json::exception& error) {
    throw UserError(fmt::format("cannot read {}: it is not JSON: {}", path.string(), error.what()));
  }
}

// A token in a configuration: "</s>" or {"content": "</s>", ...}.
std::string TokenText(const json& document, const char* key) {
  if (!document.is_object() || !document.contains(key)) return "";
  const json& value = document[key];
  if (value.is_string()) return value.get<std::string>();
  if (value.is_object() && value.contains("content") && value["content"].is_string()) {
    return value["content"].get<std::string>();
  }
  return "";
}

// transformers keeps one template as a text, several as a list of {name, template}, and newer ones as a file.
std::string ChatTemplateOf(const fs::path& model_folder) {
  const fs::path path = model_folder / "chat_template.jinja";
  if (std::ifstream file(path, std::ios::binary); file) {
    std::ostringstream text;
    text << file.rdbuf();
    return std::move(text).str();
  }
  const json config = ReadJsonFile(model_folder / "tokenizer_config.json");
  if (!config.is_object() || !config.contains("chat_template")) return "";
  const json& value = config["chat_template"];
  if (value.is_string()) return value.get<std::string>();
  if (value.is_array()) {
    for (const json& entry : value) {
      if (entry.is_object() && entry.value("name", json()) == "default") return TokenText(entry, "template");
    }
  }
  return "";
}

void ReplaceAll(std::string& text, std::string_view from, std::string_view to) {
  for (size_t at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size())) {
    text.replace(at, from.size(), to);
  }
}

// One spelling for what Jinja reads as the same: quotes, message.role, spaces around + and |, and "\n" as a line break.
std::string Normalised(std::string text) {
  ReplaceAll(text, "\"", "'");
  ReplaceAll(text, "\\n", "\n");
  for (const char* field : {"role", "content"}) {
    ReplaceAll(text, fmt::format("message.{}", field), fmt::format("message['{}']", field));
  }
  for (const char* sign : {"+", "|"}) {
    for (size_t before = 0; before != text.size();) {
      before = text.size();
      ReplaceAll(text, fmt::format(" {}", sign), sign);
      ReplaceAll(text, fmt::format("{} ", sign), sign);
    }
  }
  ReplaceAll(text, ".strip()", "|trim");
  return text;
}

bool Has(const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; }

// The literal system message that a ChatML template writes when a conversation has none: '<|im_start|>system\n...'.
std::string DefaultSystem(const std::string& jinja) {
  constexpr std::string_view kOpen = "'<|im_start|>system\n";
  for (size_t at = jinja.find(kOpen); at != std::string::npos; at = jinja.find(kOpen, at + 1)) {
    const size_t begin = at + kOpen.size();
    const size_t end = jinja.find_first_of("'<", begin);
    if (end != std::string::npos && end > begin && jinja.compare(end, 10, "<|im_end|>") == 0) {
      return jinja.substr(begin, end - begin);
    }
  }
  return "";
}

std::optional<RecordTemplate::Options> Chatml(const std::string& jinja, std::string* why_not) {
  if (Has(jinja, "<think>") || Has(jinja, "reasoning_content")) {
    *why_not = "it is ChatML with thinking, which it writes into some answers";
    return std::nullopt;
  }
  const std::string message = "'<|im_start|>'+message['role']+'\n'+message['content']+'<|im_end|>";
  const bool plain = Has(jinja, message + "'+'\n'") || Has(jinja, message + "\n'");
  if (!plain) {
    *why_not = "it looks like a variation of ChatML";
    return std::nullopt;
  }
  RecordTemplate::Options options;
  options.kind = ChatTemplate::kChatml;
  options.default_system = DefaultSystem(jinja);
  options.begins_with_bos = Has(jinja, "bos_token");
  return options;
}

std::optional<RecordTemplate::Options> Llama3(const std::string& jinja, std::string* why_not) {
  const bool plain = Has(jinja,
                         "'<|start_header_id|>'+message['role']+'<|end_header_id|>\n\n'+message['content']|trim+"
                         "'<|eot_id|>'") &&
                     Has(jinja, "bos_token+content");
  if (!plain || Has(jinja, "Cutting Knowledge Date")) {
    *why_not = Has(jinja, "Cutting Knowledge Date")
                   ? "it is Llama 3.1's or later, which writes dates into every conversation"
                   : "it looks like a variation of Llama 3's";
    return std::nullopt;
  }
  RecordTemplate::Options options;
  options.kind = ChatTemplate::kLlama3;
  return options;
}

std::optional<RecordTemplate::Options> Llama2(const std::string& jinja, std::string* why_not) {
  const bool plain = Has(jinja, "'<<SYS>>\n'+system_message+'\n<</SYS>>\n\n'+message['content']") &&
                     Has(jinja, "bos_token+'[INST] '+content|trim+' [/INST]'") &&
                     Has(jinja, "' '+content|trim+' '+eos_token");
  if (!plain || Has(jinja, "system_message = '")) {
    *why_not = plain ? "it is Llama 2's with a system message of its own" : "it looks like a variation of Llama 2's";
    return std::nullopt;
  }
  RecordTemplate::Options options;
  options.kind = ChatTemplate::kLlama2;
  return options;
}

std::optional<RecordTemplate::Options> Mistral(const std::string& jinja, std::string* why_not) {
  const std::string answer = "' '+message['content']+eos_token";
  const bool plain = Has(jinja, "' [INST] '+message['content']+' [/INST]'") && Has(jinja, answer) &&
                     !Has(jinja, answer + "+") && !Has(jinja, "[TOOL_CALLS]") && Has(jinja, "bos_token");
  if (!plain) {
    *why_not = "it is another one of Mistral's templates, which differ in spaces and tools";
    return std::nullopt;
  }
  RecordTemplate::Options options;
  options.kind = ChatTemplate::kMistral;
  options.takes_system = Has(jinja, "' [INST] '+system_message+'\n\n'+message['content']+' [/INST]'");
  return options;
}

std::string Names() {
  std::string names;
  for (const auto& [value, name] : jobfile::EnumNames<ChatTemplate>::kValues) {
    names += (names.empty() ? "" : ", ") + std::string(name);
  }
  return names;
}

}  // namespace

SpecialTokenTexts ReadSpecialTokenTexts(const fs::path& model_folder) {
  SpecialTokenTexts texts;
  for (const char* name : {"tokenizer_config.json", "special_tokens_map.json"}) {
    const json document = ReadJsonFile(model_folder / name);
    if (texts.bos.empty()) texts.bos = TokenText(document, "bos_token");
    if (texts.eos.empty()) texts.eos = TokenText(document, "eos_token");
  }
  return texts;
}

std::optional<RecordTemplate::Options> RecogniseTemplate(const std::string& jinja, std::string* why_not) {
  const std::string text = Normalised(jinja);
  why_not->clear();
  if (Has(text, "<|im_start|>")) return Chatml(text, why_not);
  if (Has(text, "<|start_header_id|>")) return Llama3(text, why_not);
  if (Has(text, "<<SYS>>")) return Llama2(text, why_not);
  if (Has(text, "[INST]")) return Mistral(text, why_not);
  if (Has(text, "### Instruction:")) *why_not = "it looks like Alpaca's, of which there is no published form";
  return std::nullopt;
}

RecordTemplate ChooseTemplate(std::optional<ChatTemplate> named, const fs::path& model_folder, const char* key) {
  SpecialTokenTexts tokens = ReadSpecialTokenTexts(model_folder);
  if (named) {
    RecordTemplate::Options options;
    options.kind = *named;
    return RecordTemplate(options, std::move(tokens));
  }
  const std::string jinja = ChatTemplateOf(model_folder);
  if (jinja.empty()) {
    throw UserError(
        fmt::format("the model in {} has no chat_template: set {} to one of {}", model_folder.string(), key, Names()));
  }
  std::string why_not;
  if (const auto options = RecogniseTemplate(jinja, &why_not)) return RecordTemplate(*options, std::move(tokens));
  throw UserError(fmt::format("the chat_template of the model in {} is not known{}: set {} to one of {}",
                              model_folder.string(), why_not.empty() ? "" : " (" + why_not + ")", key, Names()));
}

}  // namespace longspan::trainer

// How a record is written as text: the templates `llama2`, `alpaca`, `chatml`, `llama3` and `mistral`.
//
//   conversations                                                                     (| ends the prompt, what is
//   scored
//                                                                                      follows up to the next turn)
//   llama2    <s>[INST] <<SYS>>\n{system}\n<</SYS>>\n\n{user} [/INST]| {answer} </s>  each exchange with its own <s>
//   alpaca    {system}\n\n### Instruction:\n{user}\n\n### Response:|{answer}</s>       further ones after \n\n
//   chatml    <|im_start|>{role}\n{content}<|im_end|>\n                                | behind "assistant\n"
//   llama3    <|begin_of_text|>, then <|start_header_id|>{role}<|end_header_id|>\n\n{content}<|eot_id|>
//   mistral   <s>, then  [INST] {system}\n\n{user} [/INST]| {answer}</s>              a space before each [INST]
//
// Instructions: `llama2` writes them as LongLoRA's LongAlpaca models were trained,
// [INST]{instruction}[/INST]|{output}</s>, or with an input [INST] <<SYS>>\n{instruction}\n<</SYS>>\n\n{input}
// [/INST]|...; `alpaca` with ### Input: between. The others write instruction, an empty line and input as one user
// message.
//
// For conversations llama2, chatml, llama3 and mistral give the text of transformers' apply_chat_template with these
// models' published templates; the words of `alpaca` are Stanford Alpaca's. What a template strips (llama2, llama3) is
// stripped. Immutable and thread-safe.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "proto/jobfile/job_spec.h"
#include "worker/trainer/data/sft_records.h"
#include "worker/trainer/data/tokenizer.h"

namespace longspan::trainer {

struct RenderedPart {
  std::string text;      // never empty
  bool scored = false;   // answer or the end of a turn that the model has to write
  bool special = false;  // the text is one token of the vocabulary
};

struct Rendering {
  // Begin with what the tokenizer puts before any text (BOS or nothing), as plain text is tokenised; else the parts
  // hold whatever BOS there is.
  bool tokenizer_prefix = false;
  std::vector<RenderedPart> parts;
};

// The texts of the tokens that templates name. Empty: the model folder names none.
struct SpecialTokenTexts {
  std::string bos;
  std::string eos;
};
SpecialTokenTexts ReadSpecialTokenTexts(const std::filesystem::path& model_folder);  // throws UserError

class RecordTemplate {
 public:
  struct Options {
    jobfile::ChatTemplate kind = jobfile::ChatTemplate::kLlama2;
    std::string default_system;    // for conversations without a system message; chatml only
    bool begins_with_bos = false;  // chatml only; the others settle that themselves
    bool takes_system = true;
  };
  // Throws UserError when the template needs a token that the folder does not name.
  RecordTemplate(Options options, SpecialTokenTexts tokens);

  // Throws RecordError for a system message where there is no place for one.
  Rendering Render(const SftRecord& record) const;
  // What a model reads before it writes the answer at the end of `record`, whose words are left away.
  Rendering RenderPrompt(SftRecord record) const;
  // The special token that the answer ends with.
  std::string AnswerEnd() const;

  const Options& options() const { return options_; }
  // The special tokens that renderings hold.
  std::vector<std::string> SpecialTokens() const;
  nlohmann::json Description() const;  // everything that decides renderings

 private:
  class Writer;
  void Write(const Instruction& record, Writer& writer) const;
  void Write(const Conversation& record, Writer& writer) const;
  void WriteLlama2(const Conversation& record, Writer& writer) const;
  void WriteAlpaca(const Conversation& record, Writer& writer) const;
  void WriteChatml(const Conversation& record, Writer& writer) const;
  void WriteLlama3(const Conversation& record, Writer& writer) const;
  void WriteMistral(const Conversation& record, Writer& writer) const;

  Options options_;
  SpecialTokenTexts tokens_;
};

// The template that a job names, or the model's own: its chat_template (tokenizer_config.json or chat_template.jinja)
// where it is one of the published ones, told by the expressions it writes messages with, so that a variation is not
// taken for the original. Throws UserError, listing the names for `key` of the job file, for a model without or with
// another template.
RecordTemplate ChooseTemplate(std::optional<jobfile::ChatTemplate> named, const std::filesystem::path& model_folder,
                              const char* key = "data.template");

// What the expressions of a chat_template (Jinja) make of it; empty: not known. `why_not` then says what it looks like,
// where anything.
std::optional<RecordTemplate::Options> RecogniseTemplate(const std::string& jinja, std::string* why_not);

}  // namespace longspan::trainer

#include "worker/trainer/generate_texts.h"

#include <fmt/format.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>
#include <vector>

#include "proto/jobfile/job_file.h"
#include "worker/storage/storage.h"
#include "worker/trainer/data/tokenizer.h"
#include "worker/trainer/device.h"
#include "worker/trainer/errors.h"
#include "worker/trainer/generate/end_tokens.h"
#include "worker/trainer/generate/generator.h"
#include "worker/trainer/model/causal_lm.h"

namespace longspan::trainer {
namespace {

jobfile::JobSpec ReadSpec(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  if (!file) throw SpecError("cannot read " + path);
  jobfile::Parsed parsed = jobfile::ParseText(text.str(), jobfile::Purpose::kProbe);
  if (parsed.spec) return *std::move(parsed.spec);
  std::string message = path + " is no valid job file:";
  for (const jobfile::Mistake& mistake : parsed.mistakes) message += "\n  " + ToString(mistake);
  throw SpecError(message);
}

class PromptReader {
 public:
  PromptReader(std::string model_folder, int64_t max_new_tokens)
      : model_folder_(std::move(model_folder)), max_new_tokens_(max_new_tokens) {}

  std::vector<Prompt> Read(const std::string& path) {
    std::ifstream file(path);
    if (!file) throw UserError("cannot read " + path);
    std::vector<Prompt> prompts;
    std::string line;
    for (int64_t number = 1; std::getline(file, line); ++number) {
      if (line.empty()) continue;
      prompts.push_back({TokensOf(line, fmt::format("{} line {}", path, number)), max_new_tokens_});
    }
    if (prompts.empty()) throw UserError(path + " has no prompts");
    return prompts;
  }

 private:
  std::vector<int64_t> TokensOf(const std::string& line, const std::string& where) {
    const nlohmann::json document = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (document.is_object() && document.contains("text") && document["text"].is_string()) {
      if (!tokenizer_) tokenizer_.emplace(Tokenizer::Load(model_folder_));
      const auto ids = tokenizer_->Encode(document["text"].get<std::string>(), /*add_special_tokens=*/true);
      if (ids.empty()) throw UserError(where + ": the text has no token");
      return {ids.begin(), ids.end()};
    }
    const bool tokens = document.is_object() && document.contains("tokens") && document["tokens"].is_array() &&
                        !document["tokens"].empty();
    if (!tokens) throw UserError(where + R"(: must be {"tokens": [1, 2, 3]} or {"text": "..."})");
    std::vector<int64_t> ids;
    for (const nlohmann::json& id : document["tokens"]) {
      if (!id.is_number_integer()) throw UserError(where + ": a token must be a whole number, not " + id.dump());
      ids.push_back(id.get<int64_t>());
    }
    return ids;
  }

  const std::string model_folder_;
  const int64_t max_new_tokens_;
  std::optional<Tokenizer> tokenizer_;
};

const char* NameOf(GeneratedText::End end) {
  switch (end) {
    case GeneratedText::End::kEndToken:
      return "end_token";
    case GeneratedText::End::kStop:
      return "stop";
    case GeneratedText::End::kLength:
      return "length";
  }
  return "";
}

}  // namespace

void GenerateTexts(const GenerateOptions& options) {
  ModelOptions model_options;
  model_options.spec = ReadSpec(options.spec_path);
  model_options.dropout = false;
  model_options.trains = false;
  model_options.device = ChooseDevice(options.device);
  model_options.spec = SpecOn(model_options.device, model_options.spec);
  const jobfile::JobSpec& spec = model_options.spec;
  const std::vector<Prompt> prompts = PromptReader(spec.model.path, options.max_new_tokens).Read(options.prompts_path);
  const std::unique_ptr<CausalLm> model = CausalLm::Load(model_options);

  GenerationOptions generation;
  generation.model.adapted = options.model == "extended";
  generation.model.rope = options.model == "base" ? RopeScaling::kOriginal : RopeScaling::kExtended;
  generation.sampling = {spec.evaluation.generation.temperature, spec.evaluation.generation.top_p,
                         static_cast<uint64_t>(spec.training.seed)};
  generation.batch = spec.evaluation.generation.batch;
  if (!options.ignore_end) generation.end_ids = EndTokensOf(spec.model.path, model->config());
  const GenerationResult result = Generate(*model, prompts, generation);

  std::string out;
  for (const GeneratedText& text : result.texts) {
    out += nlohmann::json{{"tokens", text.tokens}, {"end", NameOf(text.end)}}.dump() + "\n";
  }
  storage::WriteFileAtomically(options.out_path, out);
}

}  // namespace longspan::trainer

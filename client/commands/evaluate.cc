// longspan evaluate
#include <fmt/format.h>

#include <filesystem>
#include <vector>

#include "client/command.h"
#include "client/job_source.h"
#include "client/submit_spec.h"

namespace longspan::client {
namespace {

using nlohmann::json;

struct EvaluateOptions {
  std::string model;
  std::string name;
  std::string adapter;
  std::string rope;
  int64_t context_length = 0;
  std::vector<std::string> data;
  std::vector<int64_t> lengths, passkey, topics;
  std::string longbench, conversations, prompt_template;
  std::vector<std::string> changes;
  std::string timeout;
  bool no_wait = false;
};

// "evaluate-" and the folder's name with the letters that a job's name may have.
std::string NameOf(const std::string& model) {
  std::filesystem::path folder = std::filesystem::path(model).lexically_normal();
  if (!folder.has_filename()) folder = folder.parent_path();
  std::string name = "evaluate";
  for (const char c : "-" + folder.filename().string()) {
    const bool capital = c >= 'A' && c <= 'Z';
    const bool plain = (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '.' || c == '_';
    name += capital ? static_cast<char>(c + 32) : plain ? c : '-';
  }
  name = name.substr(0, 63);
  while (name.back() == '-' || name.back() == '.' || name.back() == '_') name.pop_back();
  return name;
}

json DocumentOf(const EvaluateOptions& options) {
  json document = {{"kind", "evaluate"},
                   {"name", options.name.empty() ? NameOf(options.model) : options.name},
                   {"model", {{"path", options.model}}}};
  const auto set = [&document](const char* pointer, const auto& value, bool given) {
    if (given) document[json::json_pointer(pointer)] = value;
  };
  set("/method/adapter", options.adapter, !options.adapter.empty());
  set("/context_length", options.context_length, options.context_length > 0);
  set("/rope/kind", options.rope, !options.rope.empty());
  set("/data/sources", options.data, !options.data.empty());
  set("/evaluation/lengths", options.lengths, !options.lengths.empty());
  set("/evaluation/passkey/lengths", options.passkey, !options.passkey.empty());
  set("/evaluation/topics/lengths", options.topics, !options.topics.empty());
  set("/evaluation/longbench/path", options.longbench, !options.longbench.empty());
  set("/evaluation/conversations/path", options.conversations, !options.conversations.empty());
  set("/evaluation/template", options.prompt_template, !options.prompt_template.empty());
  return document;
}

int Evaluate(const Context& context, const EvaluateOptions& options) {
  SubmitSpecOptions submit;
  submit.what = "the evaluation";
  submit.timeout = options.timeout;
  submit.wait = !options.no_wait;
  return SubmitSpec(context, SpecOfDocument(submit.what, DocumentOf(options), options.changes), submit);
}

}  // namespace

void AddEvaluate(CLI::App& app, Context& context) {
  auto options = std::make_shared<EvaluateOptions>();
  CLI::App* command = AddCommand(app, context, "evaluate", "Measure a model folder; train nothing", options, &Evaluate);
  const char* const length_list = "Lengths in tokens, such as 4096,8192";
  command->add_option("MODEL", options->model, "Hugging Face folder, as the workers see it")->required();
  command->add_option("--data", options->data, "Files or folders of text: perplexity over all of it");
  command->add_option("--lengths", options->lengths, "Lengths for perplexity, in tokens")->delimiter(',');
  command->add_option("--passkey", options->passkey, length_list)->delimiter(',');
  command->add_option("--topics", options->topics, length_list)->delimiter(',');
  command->add_option("--longbench", options->longbench, "Folder of LongBench's TASK.jsonl files");
  command->add_option("--conversations", options->conversations, "Multi-turn questions; answers for an outside judge");
  command->add_option("--template", options->prompt_template,
                      "Ask those two in a chat template: model (its own), llama2, ...; plain text when absent");
  command->add_option("--adapter", options->adapter, "PEFT folder on top of the model");
  command
      ->add_option("--context-length", options->context_length,
                   "Tokens of a prompt and its answer; the model's own when absent")
      ->check(CLI::PositiveNumber);
  command->add_option("--rope", options->rope,
                      "Measure with positions rescaled to the context length too: linear, ...");
  command->add_option("--name", options->name, "Name of the job; evaluate- and the folder's when absent");
  command->add_option("--set", options->changes, "Change a key, such as evaluation.passkey.trials=5 (again for more)")
      ->allow_extra_args(false);
  command->add_option("--timeout", options->timeout, "Stop waiting after this long, such as 2h30m (exit code 4)");
  command->add_flag("--no-wait", options->no_wait, "Do not follow the job");
  AddOutputFlag(command, context);
}

}  // namespace longspan::client

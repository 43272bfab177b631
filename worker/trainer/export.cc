#include "worker/trainer/export.h"

#include <fmt/format.h>
#include <torch/version.h>

#include <cmath>
#include <fstream>
#include <set>
#include <utility>
#include <vector>

#include "proto/jobfile/enum_names.h"
#include "proto/jobfile/job_file.h"
#include "worker/model_config/model_config.h"
#include "worker/storage/storage.h"
#include "worker/trainer/checkpoint/adapter_config.h"
#include "worker/trainer/data/record_example.h"
#include "worker/trainer/errors.h"
#include "worker/trainer/model/safetensors.h"
#include "worker/trainer/weights_of_job.h"

namespace longspan::trainer {
namespace {

namespace fs = std::filesystem;

void WriteText(const fs::path& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary);
  file << text;
  file.flush();
  if (!file) throw InfrastructureError("cannot write " + path.string() + ": the disk is full or failing");
}

// Runs `write` on a temporary folder and puts that in the place of `target`; on failure nothing stays behind.
template <typename Write>
void PublishAs(const fs::path& target, Write write) {
  const fs::path temporary = target.parent_path() / (".exporting-" + target.filename().string());
  const fs::path old = target.parent_path() / (".replaced-" + target.filename().string());
  fs::remove_all(temporary);
  fs::remove_all(old);
  try {
    fs::create_directories(temporary);
    write(temporary);
  } catch (...) {
    std::error_code ignored;
    fs::remove_all(temporary, ignored);
    throw;
  }
  if (fs::exists(target)) fs::rename(target, old);
  if (!storage::PublishFolder(temporary, target)) {
    throw InfrastructureError("cannot publish " + target.string() + ": somebody else did at the same time");
  }
  fs::remove_all(old);
}

std::string AdapterReadme(const jobfile::JobSpec& spec, const std::string& base) {
  const char* const quantized = R"(
It was trained over the base in 4 bits (NF4, block 64, double quantisation, bf16 or fp32 computation). The lines above load the base
as it is, which is near but not the same; `merged/` and the run card say what was measured. To load the base in 4 bits, add
`quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)`.
)";
  const char* const fp8 = R"(
It was trained with products in 8 bits (e4m3) over the base's own weights, which the lines above load in full; `merged/` and the run
card say what was measured.
)";
  // A JSON string is a Python string, whatever characters the path has.
  const std::string quoted = nlohmann::json(base).dump();
  return fmt::format(
      R"(# {} — a LongLoRA adapter by Longspan

The base model was extended to {} tokens. An adapter folder cannot carry the positions that go with that: load the base with the
extended config first, then the adapter. From this folder:

```python
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM

base_config = AutoConfig.from_pretrained("extended_config")
base_model = AutoModelForCausalLM.from_pretrained({}, config=base_config)
model = PeftModel.from_pretrained(base_model, ".")
```

Loading the adapter over the base's own config runs without an error and gives wrong positions.
{})",
      spec.name, spec.context_length, quoted,
      IsQuantized(spec.method.kind) ? quantized : (spec.training.fp8 ? fp8 : ""));
}

void CopyTokenizer(const fs::path& model_folder, const fs::path& target) {
  for (const char* name :
       {"tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
        "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json"}) {
    if (fs::exists(model_folder / name)) fs::copy_file(model_folder / name, target / name);
  }
}

nlohmann::json GenerationConfig(const fs::path& model_folder, const ModelConfig& config) {
  std::ifstream file(model_folder / "generation_config.json");
  const auto existing = nlohmann::json::parse(file, nullptr, /*allow_exceptions=*/false);
  if (existing.is_object()) return existing;
  nlohmann::json made = {{"_from_model_config", true}};
  if (config.bos_token_id) made["bos_token_id"] = *config.bos_token_id;
  if (config.eos_token_ids.size() == 1) made["eos_token_id"] = config.eos_token_ids[0];
  if (config.eos_token_ids.size() > 1) made["eos_token_id"] = config.eos_token_ids;
  return made;
}

// "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" -> "model.layers.0.self_attn.q_proj.weight"
std::string MergedNameOf(std::string name) {
  const std::string prefix = "base_model.model.";
  if (name.rfind(prefix, 0) == 0) name = name.substr(prefix.size());
  for (const char* factor : {".lora_A", ".lora_B"}) {
    const size_t at = name.find(factor);
    if (at != std::string::npos) name.erase(at, std::string(factor).size());
  }
  return name;
}

void RefuseIfMissing(CausalLm& model, const std::set<std::string>& written) {
  for (const Trainable& trainable : model.trainables()) {
    if (written.count(MergedNameOf(trainable.name)) == 0) {
      throw UserError("the merged model would lack " + MergedNameOf(trainable.name) +
                      ", which was trained: refusing to export");
    }
  }
}

// What the rows of a q-method's table are of, and which of them merged/ is.
std::string QuantizedNote(const jobfile::JobSpec& spec) {
  std::string note =
      "The linear layers of the base were kept in 4 bits (NF4, block 64, double quantisation): the rows `base`, "
      "`rescaled` and `extended` are of these values.";
  if (!spec.output.merged) return note;
  if (ExportsOriginalWeights(spec)) {
    return note + " merged/ holds LoRA over the original weights, which is the row `merged`.";
  }
  return note +
         " merged/ holds LoRA over the dequantized values: it is the model of the row `extended`, rounded to the "
         "dtype of the base's files.";
}

std::string Fp8Note(const jobfile::JobSpec& spec) {
  std::string note =
      "Products with the frozen linear weights were in 8 bits (e4m3, a scale of each row): the rows `base`, `rescaled` "
      "and `extended` are of these.";
  if (spec.output.merged) note += " merged/ holds LoRA over the base's own weights, which is the row `merged`.";
  return note;
}

std::string MarkdownTable(const nlohmann::json& evaluation) {
  if (!evaluation.is_object() || !evaluation.contains("rows")) return "Not evaluated.\n";
  std::string text =
      "| length | model | perplexity | loss (nats per token) | tokens scored |\n| --- | --- | --- | --- | --- |\n";
  for (const auto& row : evaluation["rows"]) {
    const auto number = [&](const char* key) { return row[key].is_number() ? row[key].get<double>() : NAN; };
    text += fmt::format("| {} | {} | {:.4f} | {:.4f} | {} |\n", row["length"].get<int64_t>(),
                        row["model"].get<std::string>(), number("perplexity"), number("loss"),
                        row["tokens"].get<int64_t>());
  }
  return text + "\nHeld-out text, full attention, protocol `" + evaluation.value("protocol", "windows") + "`.\n";
}

// One record as it was trained, for instructions and chats.
std::string MarkdownExample(const nlohmann::json& dataset) {
  const std::string lines = dataset.is_object() ? ExampleLines(dataset.value("example", nlohmann::json())) : "";
  if (lines.empty()) return "";
  std::string indented;  // a fence could be ended by the record itself
  for (size_t begin = 0; begin < lines.size();) {
    const size_t end = lines.find('\n', begin);
    indented += "    " + lines.substr(begin, end + 1 - begin);
    begin = end + 1;
  }
  return fmt::format("\n## Data\n\nTemplate `{}`; one record as it was trained, only the answer is scored:\n\n{}",
                     dataset.value("template", ""), indented);
}

std::string RunCardMarkdown(const jobfile::JobSpec& spec, const nlohmann::json& card) {
  std::string text = fmt::format("# Run card of {}\n\n", card["job"].get<std::string>());
  text += fmt::format("| | |\n| --- | --- |\n| base model | {} |\n| method | {} |\n| attention in training | {} |\n",
                      card["base_model"].get<std::string>(), card["method"]["kind"].get<std::string>(),
                      card["attention"].dump());
  text +=
      fmt::format("| context | {} → {} tokens |\n| positions | {} → {} |\n", card["context"]["original"].get<int64_t>(),
                  card["context"]["extended"].get<int64_t>(), card["original_rope"].dump(), card["rope"].dump());
  text +=
      fmt::format("| steps | {} ({} skipped) |\n| tokens | {} |\n| hours | {:.3f} |\n| peak memory | {:.1f} MiB |\n",
                  card["training"]["steps"].get<int64_t>(), card["training"]["skipped_steps"].get<int64_t>(),
                  card["training"]["tokens"].get<int64_t>(), card["training"]["hours"].get<double>(),
                  static_cast<double>(card["training"]["memory_peak_bytes"].get<int64_t>()) / (1 << 20));
  text += fmt::format("| last loss | {:.4f} |\n| ranks × threads | {} × {} |\n| versions | {} |\n",
                      card["training"]["loss"].get<double>(), card["training"]["ranks"].get<int64_t>(),
                      card["training"]["threads"].get<int64_t>(), card["versions"].dump());
  text += "\n## Perplexity\n\n" + MarkdownTable(card["evaluation"]);
  text += MarkdownExample(card["dataset"]);
  for (const auto& note : card["notes"]) text += "\n" + note.get<std::string>() + "\n";
  text += "\n## Job\n\n```json\n" + card["spec"].dump(2) + "\n```\n";
  return text;
}

}  // namespace

void ExportAdapter(const jobfile::JobSpec& spec, CausalLm& model, const fs::path& work) {
  PublishAs(work / "adapter", [&](const fs::path& folder) {
    WriteSafetensors((folder / "adapter_model.safetensors").string(), StoredTensors(model));
    WriteText(folder / "adapter_config.json", AdapterConfigOf(spec, model).dump(2) + "\n");
    fs::create_directories(folder / "extended_config");
    WriteText(folder / "extended_config" / "config.json", ExportedConfigDocument(model.config()).dump(2) + "\n");
    WriteText(folder / "README.md", AdapterReadme(spec, fs::absolute(spec.model.path).string()));
  });
}

void ExportMerged(const jobfile::JobSpec& spec, CausalLm& model, const fs::path& work, int64_t shard_bytes_max) {
  PublishAs(work / "merged", [&](const fs::path& folder) {
    ShardedSafetensorsWriter writer(folder.string(), shard_bytes_max);
    std::set<std::string> written;
    model.ForEachMergedTensor([&](const std::string& name, const at::Tensor& value) {
      writer.Add(name, value);
      written.insert(name);
    });
    writer.Finish();
    RefuseIfMissing(model, written);
    WriteText(folder / "config.json", ExportedConfigDocument(model.config()).dump(2) + "\n");
    WriteText(folder / "generation_config.json", GenerationConfig(spec.model.path, model.config()).dump(2) + "\n");
    CopyTokenizer(spec.model.path, folder);
  });
}

void WriteRunCard(const jobfile::JobSpec& spec, CausalLm& model, const RunCardFacts& facts, const fs::path& work) {
  const ModelConfig& config = model.config();
  const TrainerState& state = facts.state;
  nlohmann::json spec_document = jobfile::ToDocument(spec);
  nlohmann::json card = {{"job", facts.job}, {"checkpoint", facts.checkpoint}};
  card["base_model"] = fs::absolute(spec.model.path).string();
  card["parameters"] = model.parameter_count();
  card["method"] = spec_document["method"];
  const nlohmann::json adapter = AdapterConfigOf(spec, model);
  if (!adapter.is_null()) {
    card["method"]["rank"] = adapter["r"];
    card["method"]["alpha"] = adapter["lora_alpha"];
    card["method"]["rslora"] = adapter["use_rslora"];
    card["method"]["rank_pattern"] = adapter["rank_pattern"];
    card["method"]["alpha_pattern"] = adapter["alpha_pattern"];
    card["method"]["targets"] = adapter["target_modules"];
    card["method"]["modules_to_save"] = adapter["modules_to_save"];
  }
  card["attention"] = {{"kind", std::string(jobfile::NameOf(spec.attention.kind))}};
  if (spec.attention.kind != jobfile::AttentionKind::kFull) {
    card["attention"]["group_size"] = jobfile::ResolvedGroupSize(spec);
  }
  if (spec.attention.kind == jobfile::AttentionKind::kS2) {
    card["attention"]["edge"] = std::string(jobfile::NameOf(spec.attention.edge));
  }
  card["context"] = {{"original", config.original_max_position_embeddings}, {"extended", spec.context_length}};
  card["rope"] = RopeDocument(config.rope);
  card["original_rope"] = RopeDocument(config.original_rope);
  card["training"] = {{"steps", state.step},
                      {"skipped_steps", state.nonfinite_steps},
                      {"tokens", state.tokens_total},
                      {"model_flops", state.model_flops_total},
                      {"hours", state.seconds_total / 3600},
                      {"memory_peak_bytes", state.memory_peak_bytes},
                      {"loss", state.loss},
                      {"ranks", state.ranks},
                      {"threads", state.threads}};
  card["dataset"] = facts.dataset;
  card["evaluation"] = facts.evaluation;
  card["versions"] = {{"longspan", facts.version}, {"libtorch", TORCH_VERSION}};
  card["notes"] = nlohmann::json::array();
  if (config.tie_word_embeddings && model.adapter().trains_embedding) {
    card["notes"].push_back("The embeddings are tied: the output head trained together with the token embedding.");
  }
  if (IsQuantized(spec.method.kind)) {
    card["base_weights"] = "nf4";
    card["notes"].push_back(QuantizedNote(spec));
  }
  if (spec.training.fp8) {
    card["base_weights"] = "fp8";
    card["notes"].push_back(Fp8Note(spec));
  }
  if (config.window_outgrown) {
    card["notes"].push_back(
        "The base model's sliding window is gone: this model was trained without one on contexts longer than it.");
  }
  card["spec"] = std::move(spec_document);
  storage::WriteFileAtomically(work / "run_card.md", RunCardMarkdown(spec, card));
  storage::WriteFileAtomically(work / "run_card.json", card.dump(2) + "\n");
}

}  // namespace longspan::trainer

// config.json: understood, or refused with UserError. What is understood can be extended and exported, and reads back.
#include "tests/fuzz/json_fuzzer.h"
#include "worker/trainer/model/model_config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace longspan::trainer;  // NOLINT: a fuzzer is one function
  const nlohmann::json document = nlohmann::json::parse(data, data + size, nullptr, /*allow_exceptions=*/false);
  if (document.is_discarded()) return 0;
  try {
    const ModelConfig config = ParseModelConfig(document, "config.json");
    longspan::jobfile::JobSpec spec;
    spec.context_length = 4096;
    const ModelConfig extended = WithJobRope(config, spec);
    ParseModelConfig(ExportedConfigDocument(extended), "exported config.json");
  } catch (const TrainerError&) {
  }
  return 0;
}

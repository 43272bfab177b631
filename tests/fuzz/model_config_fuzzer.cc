// config.json: understood, or refused with UserError. What is understood can be extended by every kind of `rope`, or
// the job is refused; what was extended is exported and reads back with the same positions.
#include <cmath>
#include <cstdlib>

#include "tests/fuzz/json_fuzzer.h"
#include "worker/model_config/model_config.h"

namespace {

using namespace longspan::trainer;  // NOLINT: a fuzzer
using longspan::jobfile::JobSpec;
using longspan::jobfile::RopeKind;

// The job file allows no factor so large that it leaves the numbers; a config.json can begin with one that does.
bool Finite(const RopeParameters& rope) {
  return std::isfinite(rope.theta) && std::isfinite(rope.factor) && rope.theta > 0 && rope.factor > 0;
}

void Extend(const ModelConfig& config, const JobSpec& spec) {
  ModelConfig extended;
  try {
    extended = WithJobWindow(WithJobRope(config, spec), spec);
  } catch (const TrainerError&) {
    return;
  }
  RopeDocument(extended.rope);
  if (!Finite(extended.rope)) return;
  const ModelConfig again = ParseModelConfig(ExportedConfigDocument(extended), "exported config.json");
  if (!SamePositions(again.rope, extended.rope)) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const nlohmann::json document = nlohmann::json::parse(data, data + size, nullptr, /*allow_exceptions=*/false);
  if (document.is_discarded()) return 0;
  ModelConfig config;
  try {
    config = ParseModelConfig(document, "config.json");
  } catch (const TrainerError&) {
    return 0;
  }
  JobSpec spec;
  spec.context_length = 4096;
  Extend(config, spec);
  for (const RopeKind kind :
       {RopeKind::kLinear, RopeKind::kNtk, RopeKind::kDynamic, RopeKind::kYarn, RopeKind::kLlama3, RopeKind::kTheta}) {
    spec.rope.emplace().kind = kind;
    if (kind == RopeKind::kTheta) spec.rope->theta = 1e6;
    Extend(config, spec);
    if (kind == RopeKind::kTheta) continue;
    spec.rope->factor = 2.5;
    Extend(config, spec);
    spec.rope->original_length = 512;
    Extend(config, spec);
  }
  return 0;
}

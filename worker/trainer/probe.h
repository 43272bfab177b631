// `longspan-trainer probe`: loss, logits and every gradient of one batch, by the code of the real training step, for
// comparison with another implementation.
#pragma once

#include <string>

namespace longspan::trainer {

struct ProbeOptions {
  std::string spec_path;       // job file in JSON; `data` is not needed, batch keys are ignored
  std::string tokens_path;     // safetensors: input_ids (B, T) int64, optionally labels and document_ids (B, T)
  std::string out_path;        // safetensors: loss, logits (B, T, V), grad.<name>
  std::string device = "cpu";  // device.h
};

// Throws SpecError or UserError.
void RunProbe(const ProbeOptions& options);

}  // namespace longspan::trainer

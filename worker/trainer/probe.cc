#include "worker/trainer/probe.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>

#include "proto/jobfile/job_file.h"
#include "worker/trainer/device.h"
#include "worker/trainer/errors.h"
#include "worker/trainer/memory_plan.h"
#include "worker/trainer/model/causal_lm.h"
#include "worker/trainer/model/safetensors.h"

namespace longspan::trainer {
namespace {

jobfile::JobSpec ReadSpec(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw SpecError(fmt::format("cannot open {}: {}", path, std::strerror(errno)));
  std::ostringstream text;
  text << in.rdbuf();
  jobfile::Parsed parsed = jobfile::ParseText(text.str(), jobfile::Purpose::kProbe);
  if (parsed.spec) return *std::move(parsed.spec);
  std::string message = path + " is not a job file:";
  for (const jobfile::Mistake& mistake : parsed.mistakes) message += " " + jobfile::ToString(mistake) + ";";
  message.pop_back();
  throw SpecError(message);
}

at::Tensor ReadIds(const SafetensorsFile& file, const std::string& name) {
  const at::Tensor ids = file.View(name);
  if (ids.scalar_type() != at::kLong || ids.dim() != 2 || ids.numel() == 0) {
    throw UserError(fmt::format("cannot read {}: {} must be (B, T) I64 with at least one token", file.path(), name));
  }
  return ids;
}

void CheckShape(const std::string& path, const char* name, const at::Tensor& ids, const at::Tensor& input_ids) {
  if (ids.sizes() == input_ids.sizes()) return;
  throw UserError(
      fmt::format("cannot read {}: {} is ({}, {}), but input_ids is ({}, {}); they must have the same shape", path,
                  name, ids.size(0), ids.size(1), input_ids.size(0), input_ids.size(1)));
}

Batch ReadBatch(const std::string& path, int64_t context_length) {
  const SafetensorsFile file = SafetensorsFile::Open(path);
  Batch batch;
  batch.input_ids = ReadIds(file, "input_ids");
  batch.labels = file.Has("labels") ? ReadIds(file, "labels") : batch.input_ids;
  if (file.Has("document_ids")) batch.document_ids = ReadIds(file, "document_ids");
  CheckShape(path, "labels", batch.labels, batch.input_ids);
  if (batch.document_ids.defined()) CheckShape(path, "document_ids", batch.document_ids, batch.input_ids);
  if (batch.input_ids.size(1) > context_length) {
    throw UserError(fmt::format("cannot use {}: {} tokens are more than context_length {}", path,
                                batch.input_ids.size(1), context_length));
  }
  return batch;
}

}  // namespace

void RunProbe(const ProbeOptions& options) {
  ModelOptions model_options;
  model_options.spec = ReadSpec(options.spec_path);
  model_options.dropout = false;
  model_options.spec.resources.sequence_parallel.reset();  // one rank has all of it
  model_options.device = ChooseDevice(options.device);
  model_options.spec = SpecOn(model_options.device, model_options.spec);
  MemoryPlanOptions plan;
  plan.spec = model_options.spec;
  plan.device = model_options.device;
  model_options.memory = PlanMemory(plan).policy;
  const Batch batch = ReadBatch(options.tokens_path, model_options.spec.context_length);
  const std::unique_ptr<CausalLm> model = CausalLm::Load(model_options);

  std::vector<NamedTensor> out;
  out.emplace_back("logits", model->TrainingLogits(batch.input_ids, batch.document_ids));
  model->ZeroGradients();
  const LossSum sum = model->ForwardBackward(batch);
  const double per_token = sum.tokens > 0 ? 1.0 / static_cast<double>(sum.tokens) : 0.0;
  out.emplace_back("loss", at::scalar_tensor(sum.loss * per_token, at::kFloat));
  for (const Trainable& trainable : model->trainables()) {
    out.emplace_back("grad." + trainable.name, trainable.gradient.mul(per_token));
  }
  WriteSafetensors(options.out_path, out);
}

}  // namespace longspan::trainer

// The phase "evaluate" of a job: perplexity and tasks of the base, rescaled and extended model, side by side.
//
// Every rank runs it with the same job; rank 0 tells the rows and writes the files. What an earlier attempt has
// measured of the same checkpoint is kept in <work>/evaluation/ and not measured again. Not thread-safe.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "proto/jobfile/job_spec.h"
#include "worker/trainer/data/dataset.h"
#include "worker/trainer/data/tokenizer.h"
#include "worker/trainer/evaluate/perplexity.h"
#include "worker/trainer/evaluate/run_tasks.h"
#include "worker/trainer/model/causal_lm.h"
#include "worker/trainer/parallel/communicator.h"
#include "worker/trainer/parallel/sequence_ranks.h"
#include "worker/trainer/session.h"

namespace longspan::trainer {

struct EvaluationJob {
  jobfile::JobSpec spec;
  std::filesystem::path work;
  std::string name;        // of the job
  std::string checkpoint;  // that the model was loaded from; "none": the model folder itself
  int64_t step = 0;        // of the checkpoint
  at::Device device = at::kCPU;
};

class Evaluation {
 public:
  // All must outlive it. `sequence`: over `ranks`, as the model knows it.
  Evaluation(EvaluationJob job, Communicator& ranks, SequenceRanks& sequence, Session& session)
      : job_(std::move(job)), ranks_(ranks), sequence_(sequence), session_(session) {}

  // Whether this checkpoint was evaluated to the end before; then rank 0 tells the rows again, so that nobody misses
  // them after a restart. Every rank asks, and gets rank 0's answer. Throws StopRequested.
  bool IsDone();

  // `dataset` null: no perplexity. Throws StopRequested; what was measured by then stays. Of method full the base is
  // loaded a second time, because `model` has lost its weights.
  void Run(CausalLm& model, const Dataset* dataset);

 private:
  bool speaks() const { return ranks_.rank() == 0; }
  bool trains() const { return job_.spec.kind == jobfile::JobKind::kExtend; }
  bool TellFinished();
  std::vector<std::string> UntrainedModels(const ModelConfig& config) const;
  void Measure(const std::vector<std::string>& models, CausalLm& model, const Dataset* dataset);
  void MeasurePerplexity(const std::vector<std::string>& models, CausalLm& model, const Dataset& dataset);
  EvaluationResult EvaluateRows(const std::vector<std::string>& models, CausalLm& model, const Dataset& dataset);
  void MeasureTasks(const std::vector<std::string>& models, CausalLm& model);
  void Tell(const EvaluationRow& row);
  void TellTask(const nlohmann::json& row);
  void TellProgress(int64_t done, int64_t all);
  void Write();

  const EvaluationJob job_;
  Communicator& ranks_;
  SequenceRanks& sequence_;
  Session& session_;
  std::optional<Tokenizer> tokenizer_;  // for the tasks
  GenerationTasks tasks_;
  std::vector<EvaluationRow> perplexity_rows_;
  std::vector<nlohmann::json> task_rows_;
  int64_t units_before_ = 0;  // of progress, of the measurements that are through
};

}  // namespace longspan::trainer

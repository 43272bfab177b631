// Perplexity over held-out text at several lengths, always with full attention.
//
//   windows (default): windows that do not overlap; every token but the first of a window is scored
//     (where rows keep the borders of documents: rows of at most the length, with their borders, none scored across
//     one)
//   paper: windows of the same length every 256 tokens of the plain text, whatever the rows; the mean over windows of
//     each whole window's mean loss. Reads a token length / 256 times
//
// `tokens_max` bounds both: windows are cut from so many tokens at the start of the held-out text (where rows keep
// borders: as many rows as fill them).
//
// All ranks share the windows and add up what they found, so each has the whole table. Where ranks share sequences,
// long windows go to such sets of ranks, which share each of them. Lengths that the held-out text is too short for are
// left out with a warning. Stopping is agreed between ranks at the end of each row.
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "proto/jobfile/job_spec.h"
#include "worker/trainer/data/dataset.h"
#include "worker/trainer/model/causal_lm.h"
#include "worker/trainer/parallel/communicator.h"
#include "worker/trainer/parallel/sequence_ranks.h"

namespace longspan::trainer {

inline constexpr int64_t kPaperWindowStride = 256;  // tokens

struct EvaluationRow {
  std::string model;     // "base" | "rescaled" | "extended" | "merged" (LoRA over the original weights of a 4-bit base)
  int64_t length = 0;    // tokens of a window
  std::string protocol;  // "windows" | "paper"
  double perplexity = 0;
  double loss = 0;  // nats per scored token
  int64_t tokens = 0;
  int64_t windows = 0;
  int64_t step = 0;
};
nlohmann::json ToDocument(const EvaluationRow& row);
EvaluationRow EvaluationRowOf(const nlohmann::json& document);

// The job's lengths, or the original length of the model and the context length; rising, each once.
std::vector<int64_t> EvaluationLengths(const jobfile::JobSpec& spec, int64_t original_length);

struct EvaluationPlan {
  std::vector<std::string> models;  // which rows, in this order
  std::vector<int64_t> lengths;
  jobfile::EvaluationProtocol protocol = jobfile::EvaluationProtocol::kWindows;
  int64_t tokens_max = 0;  // of the held-out text; 0: all
  int64_t step = 0;
  // Ranks that share sequences, as the model knows them; null: none do. Windows of at most `whole_tokens_max` tokens
  // are measured whole by one rank each all the same.
  SequenceRanks* sequence = nullptr;
  int64_t whole_tokens_max = 0;
};

struct EvaluationHooks {
  std::function<void(const EvaluationRow&)> row;
  std::function<void(int64_t done_windows, int64_t windows)> progress;  // this rank's share
  std::function<void(const std::string&)> warning;
  std::function<bool()> stop_requested;
};

struct EvaluationResult {
  std::vector<EvaluationRow> rows;
  bool stopped = false;  // some rank was asked to stop: the rows are not all there
};
EvaluationResult EvaluatePerplexity(CausalLm& model, const Dataset& dataset, Communicator& ranks,
                                    const EvaluationPlan& plan, const EvaluationHooks& hooks);

}  // namespace longspan::trainer

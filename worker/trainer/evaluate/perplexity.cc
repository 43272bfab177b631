#include "worker/trainer/evaluate/perplexity.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <string>

#include "worker/trainer/parallel/gradient_reducer.h"
#include "worker/trainer/row_batch.h"

namespace longspan::trainer {
namespace {

// Tokens that go through the model at once: short windows are taken several at a time.
constexpr int64_t kTokensPerCall = 4096;

std::string NameOf(jobfile::EvaluationProtocol protocol) {
  return protocol == jobfile::EvaluationProtocol::kPaper ? "paper" : "windows";
}

CausalLm::EvaluationOptions OptionsOf(const std::string& model) {
  CausalLm::EvaluationOptions options;
  options.adapted = model == "extended" || model == "merged";
  options.original_weights = model == "merged";
  options.rope = model == "base" ? RopeScaling::kOriginal : RopeScaling::kExtended;
  return options;
}

// The windows of one length under one protocol, in as much of the held-out text as the plan allows.
class Windows {
 public:
  Windows(const Dataset& dataset, int64_t length, const EvaluationPlan& plan)
      : dataset_(&dataset),
        length_(length),
        tokens_max_(plan.tokens_max),
        paper_(plan.protocol == jobfile::EvaluationProtocol::kPaper) {
    if (!paper_) rows_ = dataset.HeldOutRows(length);
  }

  int64_t length() const { return length_; }
  // Windows of plain text; others keep the borders of documents, which ranks cannot share.
  bool are_plain() const { return paper_ || dataset_->row_kind() == RowKind::kJoined; }
  int64_t count() const {
    if (!paper_) return tokens_max_ > 0 ? std::min(rows_.count(), tokens_max_ / length_) : rows_.count();
    const int64_t tokens = text_tokens();
    return tokens < length_ ? 0 : (tokens - length_) / kPaperWindowStride + 1;
  }
  int64_t text_tokens() const {
    const int64_t all = dataset_->heldout_tokens();
    return tokens_max_ > 0 ? std::min(all, tokens_max_) : all;
  }
  Batch Read(int64_t first, int64_t count) const {
    if (!paper_) return BatchOf(rows_.Read(first, count), 0, count);
    Batch batch;
    batch.input_ids = at::empty({count, length_}, at::kLong);
    for (int64_t row = 0; row < count; ++row) {
      const std::vector<int64_t> tokens = dataset_->HeldOutTokens((first + row) * kPaperWindowStride, length_);
      std::copy(tokens.begin(), tokens.end(), batch.input_ids.mutable_data_ptr<int64_t>() + row * length_);
    }
    batch.labels = batch.input_ids;
    return batch;
  }

 private:
  const Dataset* dataset_;
  int64_t length_;
  int64_t tokens_max_;  // 0: all
  bool paper_;
  Dataset::HeldOut rows_;  // not for the paper's protocol
};

// Which rank measures which windows of one length.
struct Share {
  BatchSlice windows;
  SequenceRanks* sequence = nullptr;  // that the windows are shared with; null: they are this rank's alone
};

Share ShareOf(const Windows& windows, const EvaluationPlan& plan, const Communicator& ranks) {
  const bool shared = plan.sequence != nullptr && plan.sequence->size() > 1 && windows.are_plain() &&
                      windows.length() > plan.whole_tokens_max && windows.length() >= plan.sequence->size();
  if (shared) {
    return {SliceOfRank(windows.count(), plan.sequence->group(), plan.sequence->groups()), plan.sequence};
  }
  return {SliceOfRank(windows.count(), ranks.rank(), ranks.world_size())};
}

// Calls of the model for this rank's windows; where ranks share weights, as many as the rank with most has.
int64_t CallsOf(const Windows& windows, int64_t batch_max, const Share& share, const CausalLm& model,
                const Communicator& ranks) {
  int64_t count = share.windows.end - share.windows.begin;
  if (model.shares_weights()) {
    count = LargestSlice(windows.count(), share.sequence != nullptr ? share.sequence->groups() : ranks.world_size());
  }
  return (count + batch_max - 1) / batch_max;
}

// Ranks that share a window stop at the same one. Where ranks share weights none may leave a call to the others: all
// stop before the same one.
bool StopsNow(const EvaluationHooks& hooks, const Share& share, const CausalLm& model, Communicator& ranks) {
  ControlWord word;
  word.stop = hooks.stop_requested && hooks.stop_requested();
  if (model.shares_weights()) return ReduceControlWord(ranks, word).stop;
  return share.sequence == nullptr ? word.stop : share.sequence->AnyOf(word.stop);
}

}  // namespace

nlohmann::json ToDocument(const EvaluationRow& row) {
  return {{"model", row.model},           {"length", row.length}, {"protocol", row.protocol},
          {"perplexity", row.perplexity}, {"loss", row.loss},     {"tokens", row.tokens},
          {"windows", row.windows},       {"attention", "full"},  {"step", row.step}};
}

EvaluationRow EvaluationRowOf(const nlohmann::json& document) {
  EvaluationRow row;
  document.at("model").get_to(row.model);
  document.at("length").get_to(row.length);
  document.at("protocol").get_to(row.protocol);
  // A perplexity that is no number was written as null.
  row.perplexity = document.at("perplexity").is_number() ? document.at("perplexity").get<double>() : NAN;
  row.loss = document.at("loss").is_number() ? document.at("loss").get<double>() : NAN;
  document.at("tokens").get_to(row.tokens);
  document.at("windows").get_to(row.windows);
  document.at("step").get_to(row.step);
  return row;
}

std::vector<int64_t> EvaluationLengths(const jobfile::JobSpec& spec, int64_t original_length) {
  std::set<int64_t> lengths(spec.evaluation.lengths.begin(), spec.evaluation.lengths.end());
  if (lengths.empty()) {
    lengths.insert(std::max<int64_t>(2, original_length));
    lengths.insert(spec.context_length);
  }
  return {lengths.begin(), lengths.end()};
}

EvaluationResult EvaluatePerplexity(CausalLm& model, const Dataset& dataset, Communicator& ranks,
                                    const EvaluationPlan& plan, const EvaluationHooks& hooks) {
  EvaluationResult result;
  int64_t all_windows = 0, done_windows = 0;
  std::vector<Windows> lengths;
  for (int64_t length : plan.lengths) {
    const Windows windows(dataset, length, plan);
    if (windows.count() == 0) {
      if (hooks.warning) {
        hooks.warning("no evaluation at " + std::to_string(length) + " tokens: the held-out text has only " +
                      std::to_string(windows.text_tokens()));
      }
      continue;
    }
    lengths.push_back(windows);
    const BatchSlice share = ShareOf(windows, plan, ranks).windows;
    all_windows += (share.end - share.begin) * static_cast<int64_t>(plan.models.size());
  }

  for (const Windows& windows : lengths) {
    const int64_t batch_max = std::max<int64_t>(1, kTokensPerCall / windows.length());
    for (const std::string& name : plan.models) {
      ControlWord word;
      const Share share = ShareOf(windows, plan, ranks);
      const int64_t calls = CallsOf(windows, batch_max, share, model, ranks);
      for (int64_t call = 0; call < calls && !StopsNow(hooks, share, model, ranks); ++call) {
        const int64_t first = share.windows.begin + call * batch_max;
        if (first >= share.windows.end) {
          model.TakePart(CausalLm::PassKind::kForward);
          continue;
        }
        const int64_t count = std::min(batch_max, share.windows.end - first);
        const Batch batch = windows.Read(first, count);
        CausalLm::EvaluationOptions options = OptionsOf(name);
        options.document_ids = batch.document_ids;
        options.alone = share.sequence == nullptr;
        const LossSum loss = model.Evaluate(batch.input_ids, batch.labels, options);
        word.loss_sum += loss.loss;
        word.scored_tokens += loss.tokens;
        done_windows += count;
        if (hooks.progress) hooks.progress(done_windows, all_windows);
      }
      word.stop = hooks.stop_requested && hooks.stop_requested();
      word = ReduceControlWord(ranks, word);
      if (word.stop) {
        result.stopped = true;
        return result;
      }
      // Under `paper` every window scores equally many tokens, so the mean of the windows' means is this mean too.
      const double loss = word.loss_sum / static_cast<double>(std::max<int64_t>(1, word.scored_tokens));
      result.rows.push_back({name, windows.length(), NameOf(plan.protocol), std::exp(loss), loss, word.scored_tokens,
                             windows.count(), plan.step});
      if (hooks.row) hooks.row(result.rows.back());
    }
  }
  return result;
}

}  // namespace longspan::trainer

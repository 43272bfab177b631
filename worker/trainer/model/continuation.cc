#include "worker/trainer/model/continuation.h"

#include <algorithm>

namespace longspan::trainer {

std::vector<ContinuationPass> PlanContinuation(const std::vector<Continuation>& sequences, int64_t rows_max) {
  TORCH_CHECK(rows_max >= 1, "passes of ", rows_max, " rows");
  std::vector<ContinuationPass> passes;
  for (size_t index = 0; index < sequences.size(); ++index) {
    const auto tokens = static_cast<int64_t>(sequences[index].tokens.size());
    const int64_t before = sequences[index].cache->tokens();
    TORCH_CHECK(tokens >= 1, "sequence ", index, " goes on with no token");
    TORCH_CHECK(before + tokens <= sequences[index].cache->tokens_max(), "sequence ", index, " has ", before + tokens,
                " tokens, its cache room for ", sequences[index].cache->tokens_max());
    for (int64_t done = 0; done < tokens;) {
      if (passes.empty() || passes.back().rows == rows_max) passes.emplace_back();
      ContinuationPass& pass = passes.back();
      const int64_t rows = std::min(tokens - done, rows_max - pass.rows);
      pass.parts.push_back({index, done, pass.rows, rows, before + done, done + rows == tokens});
      pass.rows += rows;
      done += rows;
    }
  }
  return passes;
}

at::Tensor IdsOf(const std::vector<Continuation>& sequences, const ContinuationPass& pass) {
  at::Tensor ids = at::empty({pass.rows}, at::kLong);
  for (const ContinuationPass::Rows& part : pass.parts) {
    const int64_t* tokens = sequences[part.sequence].tokens.data() + part.first_token;
    std::copy(tokens, tokens + part.rows, ids.mutable_data_ptr<int64_t>() + part.first_row);
  }
  return ids;
}

}  // namespace longspan::trainer

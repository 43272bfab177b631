#include "worker/trainer/model/sharded_weights.h"

#include <algorithm>
#include <utility>

namespace longspan::trainer {

ShardedWeights::ShardedWeights(const planner::WeightShards& shards, const at::TensorOptions& stored_as,
                               Communicator& ranks)
    : shards_(shards), stored_as_(stored_as), ranks_(ranks), gathered_(static_cast<size_t>(shards.layers)) {
  TORCH_CHECK(shards.ranks == ranks.world_size(), "weights shared by ", shards.ranks, " ranks among ",
              ranks.world_size());
  for (int64_t layer = 0; layer < shards.layers; ++layer)
    parts_.push_back(at::zeros({shards.rank_elements}, stored_as));
  for (auto& layer : gathered_) {
    for (size_t linear = 0; linear < layer.size(); ++linear) layer[linear].inputs = shards.linears[linear].inputs;
  }
}

void ShardedWeights::Keep(int64_t layer, size_t linear, int64_t first_row, const at::Tensor& stored) {
  // All in elements of the layer's row.
  const int64_t begin = shards_.first[linear] + first_row * shards_.linears[linear].inputs;
  const int64_t part_begin = ranks_.rank() * shards_.rank_elements;
  const int64_t from = std::max(begin, part_begin);
  const int64_t to = std::min(begin + stored.numel(), part_begin + shards_.rank_elements);
  if (from >= to) return;
  parts_[static_cast<size_t>(layer)]
      .narrow(0, from - part_begin, to - from)
      .copy_(stored.view({-1}).narrow(0, from - begin, to - from));
}

GatheredWeight* ShardedWeights::Gathered(int64_t layer, size_t linear) {
  return &gathered_[static_cast<size_t>(layer)][linear];
}

int64_t ShardedWeights::gathered_bytes() const { return rows_[0].memory.defined() ? shards_.gathered_bytes() : 0; }

ShardedWeights::Row* ShardedWeights::RowOf(int64_t layer) {
  for (Row& row : rows_) {
    if (row.layer == layer) return &row;
  }
  return nullptr;
}

void ShardedWeights::Release(Row* row) {
  if (row->layer == kNone) return;
  for (GatheredWeight& weight : gathered_[static_cast<size_t>(row->layer)]) weight.weight.reset();
  row->layer = kNone;
}

void ShardedWeights::Start(Row* row, int64_t layer) {
  Release(row);
  row->layer = layer;
  row->pending = ranks_.StartAllGather(parts_[static_cast<size_t>(layer)], row->memory);
  ++gathers_;
}

void ShardedWeights::Finish(Row* row) {
  if (!row->pending) return;
  row->pending->Wait();
  row->pending.reset();
  auto& weights = gathered_[static_cast<size_t>(row->layer)];
  for (size_t linear = 0; linear < weights.size(); ++linear) {
    const planner::LinearShape& shape = shards_.linears[linear];
    weights[linear].folded = false;
    weights[linear].weight =
        row->memory.narrow(0, shards_.first[linear], shape.outputs * shape.inputs).view({shape.outputs, shape.inputs});
  }
}

void ShardedWeights::Begin(std::vector<int64_t> order) {
  TORCH_CHECK(next_ == order_.size(), "a pass begins while layer ", next_, " of another is still to be used");
  for (Row& row : rows_) {
    Release(&row);  // LoRA has changed, or is off
    if (!row.memory.defined()) row.memory = at::empty({shards_.row_elements()}, stored_as_);
  }
  order_ = std::move(order);
  next_ = 0;
  current_ = 0;
  if (!order_.empty()) Start(&rows_[0], order_.front());
}

void ShardedWeights::Use(int64_t layer) {
  TORCH_CHECK(next_ < order_.size() && order_[next_] == layer, "layer ", layer, " is used out of order");
  Row* row = RowOf(layer);
  Finish(row);
  current_ = static_cast<size_t>(row - rows_.data());
  ++next_;
  if (next_ < order_.size() && RowOf(order_[next_]) == nullptr) Start(&rows_[1 - current_], order_[next_]);
}

void ShardedWeights::ReleaseRows() {
  for (Row& row : rows_) {
    Release(&row);
    row.memory.reset();
  }
}

void ShardedWeights::WalkThrough(std::vector<int64_t> order) {
  const std::vector<int64_t> layers = order;
  Begin(std::move(order));
  for (const int64_t layer : layers) Use(layer);
}

}  // namespace longspan::trainer

#include "worker/trainer/parallel/gradient_reducer.h"

#include <algorithm>
#include <utility>

namespace longspan::trainer {
namespace {

at::Tensor Encode(const ControlWord& word) {
  at::Tensor encoded = at::zeros({5}, at::kDouble);
  double* values = encoded.mutable_data_ptr<double>();
  values[0] = word.loss_sum;
  values[1] = static_cast<double>(word.scored_tokens);
  values[2] = word.stop;
  values[3] = word.stop_with_checkpoint;
  values[4] = word.checkpoint_now;
  return encoded;
}

ControlWord Decode(const at::Tensor& encoded) {
  const double* values = encoded.const_data_ptr<double>();
  return {values[0], static_cast<int64_t>(values[1]), values[2] > 0, values[3] > 0, values[4] > 0};
}

}  // namespace

ControlWord ReduceControlWord(Communicator& ranks, const ControlWord& local) {
  const at::Tensor encoded = Encode(local);
  ranks.AllReduce(encoded);
  return Decode(encoded);
}

GradientReducer::GradientReducer(Communicator& ranks, std::vector<at::Tensor> gradients, int64_t bucket_bytes,
                                 SumsStart start)
    : ranks_(ranks), gradients_(std::move(gradients)), ready_(gradients_.size(), false), start_(start) {
  int64_t bytes = bucket_bytes;
  for (size_t index = gradients_.size(); index-- > 0;) {
    const auto size = static_cast<int64_t>(gradients_[index].nbytes());
    if (bytes + size > bucket_bytes) {
      buckets_.emplace_back();
      bytes = 0;
    }
    buckets_.back().members.push_back(index);
    bytes += size;
  }
  for (Bucket& bucket : buckets_) {
    bucket.in_place = bucket.members.size() == 1 && gradients_[bucket.members[0]].is_contiguous();
    if (bucket.in_place) {
      bucket.flat = gradients_[bucket.members[0]];
      continue;
    }
    int64_t elements = 0;
    for (size_t index : bucket.members) elements += gradients_[index].numel();
    bucket.flat = at::empty({elements}, gradients_.front().options());
  }
}

void GradientReducer::Ready(size_t index) {
  TORCH_CHECK(index < ready_.size() && !ready_[index], "gradient ", index, " is reported twice or does not exist");
  ready_[index] = true;
  if (start_ == SumsStart::kWhenReady) StartReadyBuckets();
}

void GradientReducer::StartReadyBuckets() {
  while (next_bucket_ < buckets_.size()) {
    Bucket& bucket = buckets_[next_bucket_];
    if (!std::all_of(bucket.members.begin(), bucket.members.end(), [&](size_t index) { return ready_[index]; })) return;
    Start(bucket);
    ++next_bucket_;
  }
}

void GradientReducer::Start(Bucket& bucket) {
  if (!bucket.in_place && ranks_.world_size() > 1) {
    int64_t offset = 0;
    for (size_t index : bucket.members) {
      const int64_t elements = gradients_[index].numel();
      bucket.flat.narrow(0, offset, elements).copy_(gradients_[index].reshape({-1}));
      offset += elements;
    }
  }
  bucket.pending = ranks_.StartAllReduce(bucket.flat);
}

void GradientReducer::CopyBack(Bucket& bucket) {
  if (bucket.in_place || ranks_.world_size() == 1) return;
  int64_t offset = 0;
  for (size_t index : bucket.members) {
    const int64_t elements = gradients_[index].numel();
    gradients_[index].copy_(bucket.flat.narrow(0, offset, elements).view(gradients_[index].sizes()));
    offset += elements;
  }
}

ControlWord GradientReducer::Finish(const ControlWord& local) {
  std::fill(ready_.begin(), ready_.end(), true);
  StartReadyBuckets();
  const at::Tensor word = Encode(local);
  auto pending_word = ranks_.StartAllReduce(word);
  for (Bucket& bucket : buckets_) {
    bucket.pending->Wait();
    bucket.pending.reset();
    CopyBack(bucket);
  }
  pending_word->Wait();
  std::fill(ready_.begin(), ready_.end(), false);
  next_bucket_ = 0;
  return Decode(word);
}

}  // namespace longspan::trainer

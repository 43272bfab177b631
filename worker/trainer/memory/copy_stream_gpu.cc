// Copies on a CUDA stream of their own. Waiting is the computing stream's, not the host's.
#include <ATen/cuda/CUDAContext.h>
#include <ATen/cuda/CUDAEvent.h>

#include <algorithm>
#include <deque>
#include <vector>

#include "worker/trainer/memory/copy_stream.h"

namespace longspan::trainer {
namespace {

void Check(cudaError_t status, const char* what) {
  TORCH_CHECK(status == cudaSuccess, what, ": ", cudaGetErrorString(status));
}

class GpuStream : public CopyStream {
 public:
  GpuStream() : stream_(at::cuda::getStreamFromPool(/*isHighPriority=*/true)) {}

  Ticket Copy(std::byte* to, const std::byte* from, int64_t bytes) override {
    copied_bytes_ += bytes;
    // What computes so far may still write `from` or read what lies at `to`.
    at::cuda::CUDAEvent asked;
    asked.record(at::cuda::getCurrentCUDAStream());
    asked.block(stream_);
    Check(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDefault, stream_),
          "a copy to or from the host");
    done_.emplace_back(cudaEventDefault);
    done_.back().record(stream_);
    return ++asked_;
  }

  void Wait(Ticket ticket) override {
    if (ticket <= waited_for_) return;
    const at::cuda::CUDAStream computing = at::cuda::getCurrentCUDAStream();
    while (waited_for_ < ticket) {
      Waited& waited = waits_.emplace_back();
      waited.done = std::move(done_.front());
      done_.pop_front();
      ++waited_for_;
      if (waited_for_ < ticket) continue;
      waited.arrived.record(computing);
      waited.done.block(computing);
      waited.counts = true;
    }
    Settle();
  }

  void Finish() override {
    Check(cudaStreamSynchronize(stream_), "copies to and from the host");
    Settle();
  }

 private:
  // The computing stream arrived at a point where it needs a copy that was done later, or earlier.
  struct Waited {
    at::cuda::CUDAEvent arrived{cudaEventDefault}, done;
    bool counts = false;
  };

  // Adds up the waits whose events have passed.
  void Settle() {
    while (!waits_.empty()) {
      Waited& waited = waits_.front();
      if (waited.counts) {
        if (!waited.arrived.query() || !waited.done.query()) return;
        wait_seconds_ += std::max(0.0, static_cast<double>(waited.arrived.elapsed_time(waited.done)) * 1e-3);
      }
      waits_.pop_front();
    }
  }

  at::cuda::CUDAStream stream_;
  std::deque<at::cuda::CUDAEvent> done_;  // of copies that nobody has waited for
  std::deque<Waited> waits_;
  Ticket asked_ = 0, waited_for_ = 0;
};

}  // namespace

std::unique_ptr<CopyStream> CopyStream::OnGpu() { return std::make_unique<GpuStream>(); }

}  // namespace longspan::trainer

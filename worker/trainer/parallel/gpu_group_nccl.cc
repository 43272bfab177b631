#include <ATen/cuda/CUDAContext.h>
#include <ATen/cuda/CUDAEvent.h>

#include <cstdlib>
#include <deque>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>
#include <utility>

#include "worker/trainer/errors.h"
#include "worker/trainer/parallel/gpu_group.h"

namespace longspan::trainer {
namespace {

template <typename Call>
auto OrInfrastructureError(Call call) {
  try {
    return call();
  } catch (const std::exception& error) {
    const std::string cause = error.what();
    throw InfrastructureError("cannot add up over the ranks' GPUs: " + cause.substr(0, cause.find('\n')));
  }
}

// c10d reads these once. An operator's own settings stay.
void Configure() {
  // What NCCL notices by itself ends the process, whose daemon then restarts the gang: there is nothing to clean up.
  ::setenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1", /*overwrite=*/0);
  // Durations of collectives, for the metrics.
  ::setenv("TORCH_NCCL_ENABLE_TIMING", "1", /*overwrite=*/0);
}

class NcclGroup : public GpuGroup {
 public:
  NcclGroup(const c10::intrusive_ptr<c10d::Store>& store, const Options& options) {
    Configure();
    const auto group_options = c10d::ProcessGroupNCCL::Options::create(/*is_high_priority_stream=*/true);
    group_options->timeout = options.timeout;
    group_ = OrInfrastructureError([&] {
      auto group = c10::make_intrusive<c10d::ProcessGroupNCCL>(c10::make_intrusive<c10d::PrefixStore>("nccl", store),
                                                               static_cast<int>(options.rank),
                                                               static_cast<int>(options.world_size), group_options);
      group->eagerConnectSingleDevice(at::Device(at::kCUDA, at::cuda::current_device()));
      return group;
    });
  }
  ~NcclGroup() override {
    works_.clear();
    group_->abort();
  }

  std::unique_ptr<Communicator::Pending> StartAllReduce(at::Tensor tensor) override {
    Settle();
    std::vector<at::Tensor> tensors = {std::move(tensor)};
    auto work = OrInfrastructureError([&] { return group_->allreduce(tensors, c10d::AllreduceOptions()); });
    works_.push_back(work);
    return std::make_unique<Sum>(std::move(work));
  }

  std::chrono::nanoseconds busy_time() const override { return busy_; }

 private:
  class Sum : public Communicator::Pending {
   public:
    explicit Sum(c10::intrusive_ptr<c10d::Work> work) : work_(std::move(work)) {}
    void Wait() override {
      OrInfrastructureError([&] { work_->wait(); });
    }

   private:
    c10::intrusive_ptr<c10d::Work> work_;
  };

  // Adds up the durations of what has ended.
  void Settle() {
    while (!works_.empty() && works_.front()->isCompleted()) {
      busy_ += std::chrono::nanoseconds(static_cast<int64_t>(works_.front()->getDuration() * 1e6F));
      works_.pop_front();
    }
  }

  c10::intrusive_ptr<c10d::ProcessGroupNCCL> group_;
  std::deque<c10::intrusive_ptr<c10d::Work>> works_;
  std::chrono::nanoseconds busy_{0};
};

}  // namespace

std::unique_ptr<GpuGroup> GpuGroup::Open(const c10::intrusive_ptr<c10d::Store>& store, const Options& options) {
  return std::make_unique<NcclGroup>(store, options);
}

}  // namespace longspan::trainer

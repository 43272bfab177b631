#include <ATen/cuda/CUDAContext.h>
#include <ATen/cuda/CUDAEvent.h>

#include <algorithm>
#include <array>
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
    throw InfrastructureError("no collective over the ranks' GPUs: " + cause.substr(0, cause.find('\n')));
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
    for (Kind& kind : kinds_) kind.works.clear();
    group_->abort();
  }

  std::unique_ptr<Communicator::Pending> StartAllReduce(at::Tensor tensor) override {
    return Started(Collective::kAllReduce, [&] {
      std::vector<at::Tensor> tensors = {std::move(tensor)};
      return group_->allreduce(tensors, c10d::AllreduceOptions());
    });
  }

  std::unique_ptr<Communicator::Pending> StartAllGather(const at::Tensor& local, const at::Tensor& out) override {
    return Started(Collective::kAllGather, [&] {
      at::Tensor whole = out.view({-1}), part = local.view({-1});
      return group_->_allgather_base(whole, part, c10d::AllgatherOptions());
    });
  }

  // Within one group call, so that both directions go at once, and over the communicator that is there already: by
  // themselves c10d would make one for each pair of ranks.
  std::unique_ptr<Communicator::Pending> StartExchange(const Communicator::Exchange& exchange) override {
    return Started(Collective::kExchange, [&] {
      group_->startCoalescing();
      if (exchange.received.defined()) {
        std::vector<at::Tensor> tensors = {exchange.received};
        group_->recv(tensors, static_cast<int>(exchange.from), /*tag=*/0);
      }
      if (exchange.sent.defined()) {
        std::vector<at::Tensor> tensors = {exchange.sent};
        group_->send(tensors, static_cast<int>(exchange.to), /*tag=*/0);
      }
      return group_->endCoalescing();
    });
  }

  Times times(Collective kind) override {
    Settle();
    return kinds_[static_cast<size_t>(kind)].times;
  }

 private:
  using Work = c10::intrusive_ptr<c10d::Work>;

  // A stream arrived at a point where it needs a collective that was over later, or earlier.
  struct Wait {
    at::cuda::CUDAEvent arrived{cudaEventDefault}, over{cudaEventDefault};
  };
  struct Kind {
    std::deque<Work> works;
    std::deque<Wait> waits;
    Times times;
  };

  class Running : public Communicator::Pending {
   public:
    Running(Work work, Kind* kind) : work_(std::move(work)), kind_(kind) {}
    void Wait() override {
      const at::cuda::CUDAStream stream = at::cuda::getCurrentCUDAStream();
      NcclGroup::Wait& wait = kind_->waits.emplace_back();
      wait.arrived.record(stream);
      OrInfrastructureError([&] { work_->wait(); });
      wait.over.record(stream);
    }

   private:
    Work work_;
    Kind* kind_;
  };

  template <typename Call>
  std::unique_ptr<Communicator::Pending> Started(Collective kind, Call call) {
    Settle();
    Kind& of = kinds_[static_cast<size_t>(kind)];
    of.works.push_back(OrInfrastructureError(call));
    return std::make_unique<Running>(of.works.back(), &of);
  }

  static std::chrono::nanoseconds Milliseconds(float value) {
    return std::chrono::nanoseconds(static_cast<int64_t>(std::max(0.0F, value) * 1e6F));
  }

  // Adds up what has passed.
  void Settle() {
    for (Kind& kind : kinds_) {
      while (!kind.works.empty() && kind.works.front()->isCompleted()) {
        kind.times.busy += Milliseconds(kind.works.front()->getDuration());
        kind.works.pop_front();
      }
      while (!kind.waits.empty() && kind.waits.front().over.query()) {
        kind.times.waited += Milliseconds(kind.waits.front().arrived.elapsed_time(kind.waits.front().over));
        kind.waits.pop_front();
      }
    }
  }

  c10::intrusive_ptr<c10d::ProcessGroupNCCL> group_;
  std::array<Kind, kCollectives.size()> kinds_;
};

}  // namespace

std::unique_ptr<GpuGroup> GpuGroup::Open(const c10::intrusive_ptr<c10d::Store>& store, const Options& options) {
  return std::make_unique<NcclGroup>(store, options);
}

}  // namespace longspan::trainer

#include "worker/trainer/parallel/host_staging.h"

#include <utility>

namespace longspan::trainer {
namespace {

at::Tensor OnHost(const at::Tensor& tensor) {
  return at::empty(tensor.sizes(), tensor.options().device(at::kCPU)).copy_(tensor);
}
at::Tensor EmptyOnHost(const at::Tensor& like) { return at::empty(like.sizes(), like.options().device(at::kCPU)); }

// Copies what came when it has come. Keeps what left until then.
class StagedPending : public Communicator::Pending {
 public:
  StagedPending(std::unique_ptr<Communicator::Pending> pending, at::Tensor sent, at::Tensor came, at::Tensor to)
      : pending_(std::move(pending)), sent_(std::move(sent)), came_(std::move(came)), to_(std::move(to)) {}
  void Wait() override {
    pending_->Wait();
    if (to_.defined()) to_.copy_(came_);
  }

 private:
  std::unique_ptr<Communicator::Pending> pending_;
  at::Tensor sent_, came_, to_;
};

class StagedRanks : public Communicator {
 public:
  StagedRanks(std::unique_ptr<Communicator> ranks, Staged staged) : ranks_(std::move(ranks)), staged_(staged) {}

  int64_t rank() const override { return ranks_->rank(); }
  int64_t world_size() const override { return ranks_->world_size(); }
  std::string store_address() const override { return ranks_->store_address(); }
  void Publish(const std::string& key, const std::string& value) override { ranks_->Publish(key, value); }
  std::string Get(const std::string& key, const std::function<void()>& keep_waiting) override {
    return ranks_->Get(key, keep_waiting);
  }
  void Join() override { ranks_->Join(); }
  CollectiveUse use(Collective kind) const override { return ranks_->use(kind); }

  void AllReduce(at::Tensor tensor) override { StartAllReduce(std::move(tensor))->Wait(); }

  std::unique_ptr<Pending> StartAllReduce(at::Tensor tensor) override {
    if (!Stages(tensor)) return ranks_->StartAllReduce(std::move(tensor));
    const at::Tensor sum = OnHost(tensor);
    auto pending = ranks_->StartAllReduce(sum);
    return std::make_unique<StagedPending>(std::move(pending), at::Tensor(), sum, std::move(tensor));
  }

  std::unique_ptr<Pending> StartAllGather(const at::Tensor& local, const at::Tensor& out) override {
    if (!Stages(local)) return ranks_->StartAllGather(local, out);
    const at::Tensor sent = OnHost(local), came = EmptyOnHost(out);
    auto pending = ranks_->StartAllGather(sent, came);
    return std::make_unique<StagedPending>(std::move(pending), sent, came, out);
  }

  std::unique_ptr<Pending> StartExchange(const Exchange& exchange) override {
    Exchange on_host = exchange;
    if (exchange.sent.defined() && Stages(exchange.sent)) on_host.sent = OnHost(exchange.sent);
    const bool stages = exchange.received.defined() && Stages(exchange.received);
    if (stages) on_host.received = EmptyOnHost(exchange.received);
    auto pending = ranks_->StartExchange(on_host);
    return std::make_unique<StagedPending>(std::move(pending), on_host.sent, on_host.received,
                                           stages ? exchange.received : at::Tensor());
  }

 private:
  bool Stages(const at::Tensor& tensor) const { return staged_ == Staged::kAll || tensor.is_cuda(); }

  const std::unique_ptr<Communicator> ranks_;
  const Staged staged_;
};

}  // namespace

std::unique_ptr<Communicator> StagedThroughHost(std::unique_ptr<Communicator> ranks, Staged staged) {
  return std::make_unique<StagedRanks>(std::move(ranks), staged);
}

}  // namespace longspan::trainer

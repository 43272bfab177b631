#include "worker/trainer/parallel/communicator.h"

#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <thread>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#include <utility>
#include <vector>

#include "worker/trainer/errors.h"
#include "worker/trainer/parallel/gpu_group.h"
#include "worker/trainer/parallel/host_staging.h"

namespace longspan::trainer {
namespace {

constexpr int kExchangeTag = 1;  // Gloo keeps the messages of a pair of ranks under one tag in order
constexpr auto kGetInterval = std::chrono::milliseconds(50);  // between two looks for a word of rank 0
constexpr int kGatherTag = 1 << 20;                           // of the messages of all-gathers

// Runs a c10d call; whatever it throws means that a peer or the network failed.
template <typename Call>
auto OrInfrastructureError(const std::string& what, Call call) {
  try {
    return call();
  } catch (const TrainerError&) {
    throw;
  } catch (const std::exception& error) {
    std::string cause = error.what();
    // c10 appends a C++ stack trace; the first line says what happened.
    cause = cause.substr(0, cause.find('\n'));
    throw InfrastructureError("cannot " + what + ": " + cause);
  }
}

class DonePending : public Communicator::Pending {
 public:
  void Wait() override {}
};

class SingleRank : public Communicator {
 public:
  int64_t rank() const override { return 0; }
  int64_t world_size() const override { return 1; }
  std::string store_address() const override { return ""; }
  void Publish(const std::string&, const std::string&) override {}
  std::string Get(const std::string& key, const std::function<void()>&) override {
    throw std::logic_error("a single rank waits for its own word: " + key);
  }
  void Join() override {}
  void AllReduce(at::Tensor) override {}
  std::unique_ptr<Pending> StartAllReduce(at::Tensor) override { return std::make_unique<DonePending>(); }
  std::unique_ptr<Pending> StartAllGather(const at::Tensor& local, const at::Tensor& out) override {
    at::Tensor(out).copy_(local);
    return std::make_unique<DonePending>();
  }
  CollectiveUse use(Collective) const override { return {}; }
  std::unique_ptr<Pending> StartExchange(const Exchange& exchange) override {
    TORCH_CHECK(!exchange.sent.defined() && !exchange.received.defined(), "a single rank has nobody to exchange with");
    return std::make_unique<DonePending>();
  }
};

using Meter = std::shared_ptr<CollectiveMeter>;
using Clock = CollectiveMeter::Clock;
using Work = c10::intrusive_ptr<c10d::Work>;

// Its end is noticed by Gloo's thread.
class GlooSum : public Communicator::Pending {
 public:
  GlooSum(Work work, Meter meter, std::string what)
      : work_(std::move(work)), meter_(std::move(meter)), what_(std::move(what)) {}
  void Wait() override {
    const auto begin = Clock::now();
    OrInfrastructureError(what_, [&] { work_->wait(); });
    meter_->Waited(Collective::kAllReduce, begin);
  }

 private:
  Work work_;
  Meter meter_;
  std::string what_;
};

// Messages to and from other ranks.
class GlooMessages : public Communicator::Pending {
 public:
  struct Kind {
    Collective collective;
    std::string what;
  };
  GlooMessages(std::vector<Work> works, std::chrono::milliseconds timeout, Meter meter, Kind kind)
      : works_(std::move(works)), timeout_(timeout), meter_(std::move(meter)), kind_(std::move(kind)) {}
  void Wait() override {
    const auto waits_since = Clock::now();
    OrInfrastructureError(kind_.what, [&] {
      for (const Work& work : works_) work->wait(timeout_);
    });
    meter_->Waited(kind_.collective, waits_since);
    meter_->Ended(kind_.collective, begin_);
  }

 private:
  std::vector<Work> works_;
  std::chrono::milliseconds timeout_;
  Meter meter_;
  Kind kind_;
  const Clock::time_point begin_ = Clock::now();
};

struct HostPort {
  std::string host;
  uint16_t port = 0;
};

HostPort ParseStore(const std::string& store) {
  const size_t colon = store.rfind(':');
  const std::string port = colon == std::string::npos ? "" : store.substr(colon + 1);
  const bool digits = !port.empty() && port.size() <= 5 && port.find_first_not_of("0123456789") == std::string::npos;
  if (colon == 0 || !digits || std::stoi(port) > 65535) {
    throw SpecError("--store is '" + store + "'; it must be HOST:PORT");
  }
  std::string host = store.substr(0, colon);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  return {host, static_cast<uint16_t>(std::stoi(port))};
}

// The address of this machine from which packets to `peer` leave. A connected UDP socket knows it without sending
// anything.
std::string LocalAddressTowards(const HostPort& peer) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_DGRAM;
  addrinfo* found = nullptr;
  const int error = ::getaddrinfo(peer.host.c_str(), std::to_string(peer.port).c_str(), &hints, &found);
  if (error != 0) throw InfrastructureError("cannot resolve " + peer.host + ": " + ::gai_strerror(error));
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> owned(found, &::freeaddrinfo);
  const int probe = ::socket(found->ai_family, SOCK_DGRAM, 0);
  sockaddr_storage local{};
  socklen_t size = sizeof local;
  char host[NI_MAXHOST] = "";
  const bool known =
      probe >= 0 && ::connect(probe, found->ai_addr, found->ai_addrlen) == 0 &&
      ::getsockname(probe, reinterpret_cast<sockaddr*>(&local), &size) == 0 &&
      ::getnameinfo(reinterpret_cast<sockaddr*>(&local), size, host, sizeof host, nullptr, 0, NI_NUMERICHOST) == 0;
  if (probe >= 0) ::close(probe);
  if (!known) throw InfrastructureError("no way from here to the rank store at " + peer.host);
  return host;
}

class GlooRanks : public Communicator {
 public:
  explicit GlooRanks(const CommunicatorOptions& options) : options_(options), address_(ParseStore(options.store)) {
    c10d::TCPStoreOptions store_options;
    store_options.port = address_.port;
    store_options.isServer = options.rank == 0;
    store_options.numWorkers = static_cast<size_t>(options.world_size);
    store_options.waitWorkers = false;
    store_options.timeout = options.connect_timeout;
    const std::string what = options.rank == 0 ? "open the rank store on " + options.store
                                               : "reach the rank store of rank 0 at " + options.store;
    store_ =
        OrInfrastructureError(what, [&] { return c10::make_intrusive<c10d::TCPStore>(address_.host, store_options); });
    address_.port = store_->getPort();
  }

  int64_t rank() const override { return options_.rank; }
  int64_t world_size() const override { return options_.world_size; }
  std::string store_address() const override {
    const std::string& host = options_.advertise_address.empty() ? address_.host : options_.advertise_address;
    return (host.find(':') == std::string::npos ? host : "[" + host + "]") + ":" + std::to_string(address_.port);
  }

  void Publish(const std::string& key, const std::string& value) override {
    OrInfrastructureError("publish '" + key + "'",
                          [&] { store_->set(key, std::vector<uint8_t>(value.begin(), value.end())); });
  }

  std::string Get(const std::string& key, const std::function<void()>& keep_waiting) override {
    const std::string what = "get '" + key + "' from rank 0";
    // `check` answers at once, so a dead rank 0 shows as a broken connection here, and never as a long silence.
    while (!OrInfrastructureError(what, [&] { return store_->check({key}); })) {
      if (keep_waiting) keep_waiting();
      // Not c10d's own wait: it says a warning each time it runs out.
      std::this_thread::sleep_for(kGetInterval);
    }
    const std::vector<uint8_t> bytes = OrInfrastructureError(what, [&] { return store_->get(key); });
    return std::string(bytes.begin(), bytes.end());
  }

  void Join() override {
    OrInfrastructureError("join the other ranks", [&] {
      auto group_options = c10d::ProcessGroupGloo::Options::create(options_.collective_timeout);
      group_options->threads = 1;  // collectives run in the order they were started
      group_options->devices.push_back(MakeDevice());
      group_ = c10::make_intrusive<c10d::ProcessGroupGloo>(store_, static_cast<int>(options_.rank),
                                                           static_cast<int>(options_.world_size), group_options);
    });
    if (options_.on_gpus == CommunicatorOptions::GpuCollectives::kNccl) {
      gpus_ = GpuGroup::Open(store_, {options_.rank, options_.world_size, options_.collective_timeout});
    }
  }

  void AllReduce(at::Tensor tensor) override { StartAllReduce(std::move(tensor))->Wait(); }

  std::unique_ptr<Pending> StartAllReduce(at::Tensor tensor) override {
    const std::string what = "add up over the ranks (another rank died or hangs)";
    meter_->Moved(Collective::kAllReduce, static_cast<int64_t>(tensor.nbytes()));
    if (tensor.is_cuda()) return OnGpus().StartAllReduce(std::move(tensor));
    std::vector<at::Tensor> tensors = {std::move(tensor)};
    c10d::AllreduceOptions allreduce;
    allreduce.timeout = options_.collective_timeout;
    const auto begin = Clock::now();
    Work work = OrInfrastructureError(what, [&] { return group_->allreduce(tensors, allreduce); });
    work->getFuture()->addCallback([meter = meter_, begin](auto&) { meter->Ended(Collective::kAllReduce, begin); });
    return std::make_unique<GlooSum>(std::move(work), meter_, what);
  }

  // c10d's own all-gather on Gloo receives into a second buffer as large as `out` and copies. Here every rank sends its
  // part to each other rank, straight into place: as many bytes for each as a ring moves, and no order to keep with the
  // all-reduces.
  std::unique_ptr<Pending> StartAllGather(const at::Tensor& local, const at::Tensor& out) override {
    const int64_t size = local.numel();
    TORCH_CHECK(local.is_contiguous() && out.is_contiguous() && out.scalar_type() == local.scalar_type() &&
                    out.numel() == size * options_.world_size,
                "an all-gather of ", local.sizes(), " into ", out.sizes());
    meter_->Moved(Collective::kAllGather, (options_.world_size - 1) * static_cast<int64_t>(local.nbytes()));
    if (local.is_cuda()) return OnGpus().StartAllGather(local, out);
    const std::string what = "gather from the ranks (another rank died or hangs)";
    const auto part_of = [&](int64_t rank) { return out.view({-1}).narrow(0, rank * size, size); };
    std::vector<Work> works;
    OrInfrastructureError(what, [&] {
      // The peer at a distance of 1 first, then of 2: no rank is everybody's first.
      for (int64_t distance = 1; distance < options_.world_size; ++distance) {
        const int64_t source = (options_.rank - distance + options_.world_size) % options_.world_size;
        const int64_t target = (options_.rank + distance) % options_.world_size;
        std::vector<at::Tensor> received = {part_of(source)}, sent = {local};
        works.push_back(group_->recv(received, static_cast<int>(source), kGatherTag));
        works.push_back(group_->send(sent, static_cast<int>(target), kGatherTag));
      }
    });
    part_of(options_.rank).copy_(local);
    return Messages(std::move(works), {Collective::kAllGather, what});
  }

  std::unique_ptr<Pending> StartExchange(const Exchange& exchange) override {
    if (!exchange.sent.defined() && !exchange.received.defined()) return std::make_unique<DonePending>();
    if (exchange.sent.defined()) meter_->Moved(Collective::kExchange, static_cast<int64_t>(exchange.sent.nbytes()));
    if ((exchange.sent.defined() ? exchange.sent : exchange.received).is_cuda()) {
      return OnGpus().StartExchange(exchange);
    }
    const std::string what = "exchange with another rank (it died or hangs)";
    std::vector<Work> works;
    OrInfrastructureError(what, [&] {
      if (exchange.received.defined()) {
        std::vector<at::Tensor> tensors = {exchange.received};
        works.push_back(group_->recv(tensors, static_cast<int>(exchange.from), kExchangeTag));
      }
      if (exchange.sent.defined()) {
        std::vector<at::Tensor> tensors = {exchange.sent};
        works.push_back(group_->send(tensors, static_cast<int>(exchange.to), kExchangeTag));
      }
    });
    return Messages(std::move(works), {Collective::kExchange, what});
  }

  CollectiveUse use(Collective kind) const override {
    CollectiveUse sum = meter_->use(kind);
    if (!gpus_) return sum;
    const GpuGroup::Times times = gpus_->times(kind);
    sum.busy += times.busy;
    sum.waited += times.waited;
    return sum;
  }

 private:
  GpuGroup& OnGpus() const {
    TORCH_CHECK(gpus_, "a collective of tensors on GPUs among ranks that joined without");
    return *gpus_;
  }
  std::unique_ptr<Pending> Messages(std::vector<Work> works, GlooMessages::Kind kind) const {
    return std::make_unique<GlooMessages>(std::move(works), options_.collective_timeout, meter_, std::move(kind));
  }
  std::shared_ptr<::gloo::transport::Device> MakeDevice() const {
    if (!options_.advertise_address.empty()) {
      return c10d::ProcessGroupGloo::createDeviceForHostname(options_.advertise_address);
    }
    // Gloo's own choice, the host name, often resolves to 127.0.0.1 on machines whose peers are elsewhere.
    return c10d::ProcessGroupGloo::createDeviceForHostname(LocalAddressTowards(address_));
  }

  CommunicatorOptions options_;
  HostPort address_;
  c10::intrusive_ptr<c10d::TCPStore> store_;
  c10::intrusive_ptr<c10d::ProcessGroupGloo> group_;
  std::unique_ptr<GpuGroup> gpus_;  // null: on CPUs alone
  // Shared with the collectives: Gloo's thread ends them, and may do so after these ranks are gone.
  const Meter meter_ = std::make_shared<CollectiveMeter>();
};

// c10d records every collective with a stack trace, in a table of the whole process that it looks up without its lock:
// two groups in one process, as in the tests, crash in it. Nobody reads the records here. An operator's own setting
// stays.
void SwitchOffFlightRecorder() {
  static std::once_flag once;
  std::call_once(once, [] { ::setenv("TORCH_FR_BUFFER_SIZE", "0", 0); });
}

}  // namespace

std::unique_ptr<Communicator> Communicator::OpenStore(const CommunicatorOptions& options) {
  SwitchOffFlightRecorder();
  if (options.world_size == 1) return std::make_unique<SingleRank>();
  auto ranks = std::make_unique<GlooRanks>(options);
  if (options.on_gpus != CommunicatorOptions::GpuCollectives::kHost) return ranks;
  return StagedThroughHost(std::move(ranks), Staged::kTensorsOnGpus);
}

}  // namespace longspan::trainer

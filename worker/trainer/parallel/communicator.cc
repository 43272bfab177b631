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
  std::chrono::nanoseconds allreduce_time() const override { return {}; }
  std::unique_ptr<Pending> StartExchange(const Exchange& exchange) override {
    TORCH_CHECK(!exchange.sent.defined() && !exchange.received.defined(), "a single rank has nobody to exchange with");
    return std::make_unique<DonePending>();
  }
};

// How long at least one of several things was under way that end in the order in which they began. Thread-safe.
class BusyTime {
 public:
  using Clock = std::chrono::steady_clock;

  void Ended(Clock::time_point begin) {
    const std::lock_guard lock(mutex_);
    const Clock::time_point now = Clock::now();
    total_ += now - std::max(begin, last_end_);
    last_end_ = now;
  }
  std::chrono::nanoseconds total() const {
    const std::lock_guard lock(mutex_);
    return total_;
  }

 private:
  mutable std::mutex mutex_;
  Clock::time_point last_end_;
  std::chrono::nanoseconds total_{0};
};

class GlooPending : public Communicator::Pending {
 public:
  GlooPending(c10::intrusive_ptr<c10d::Work> work, std::string what) : work_(std::move(work)), what_(std::move(what)) {}
  void Wait() override {
    OrInfrastructureError(what_, [&] { work_->wait(); });
  }

 private:
  c10::intrusive_ptr<c10d::Work> work_;
  std::string what_;
};

// Messages to and from several ranks.
class GlooMessages : public Communicator::Pending {
 public:
  GlooMessages(std::vector<c10::intrusive_ptr<c10d::Work>> works, std::chrono::milliseconds timeout, std::string what)
      : works_(std::move(works)), timeout_(timeout), what_(std::move(what)) {}
  void Wait() override {
    OrInfrastructureError(what_, [&] {
      for (const auto& work : works_) work->wait(timeout_);
    });
  }

 private:
  std::vector<c10::intrusive_ptr<c10d::Work>> works_;
  std::chrono::milliseconds timeout_;
  std::string what_;
};

// Either may be null.
class GlooExchange : public Communicator::Pending {
 public:
  using Work = c10::intrusive_ptr<c10d::Work>;
  GlooExchange(Work sent, Work received, std::chrono::milliseconds timeout, std::string what)
      : sent_(std::move(sent)), received_(std::move(received)), timeout_(timeout), what_(std::move(what)) {}
  void Wait() override {
    OrInfrastructureError(what_, [&] {
      if (received_) received_->wait(timeout_);
      if (sent_) sent_->wait(timeout_);
    });
  }

 private:
  Work sent_, received_;
  std::chrono::milliseconds timeout_;
  std::string what_;
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
    if (options_.on_gpus) {
      gpus_ = GpuGroup::Open(store_, {options_.rank, options_.world_size, options_.collective_timeout});
    }
  }

  void AllReduce(at::Tensor tensor) override { StartAllReduce(std::move(tensor))->Wait(); }

  std::unique_ptr<Pending> StartAllReduce(at::Tensor tensor) override {
    const std::string what = "add up over the ranks (another rank died or hangs)";
    allreduce_bytes_ += static_cast<int64_t>(tensor.nbytes());
    if (tensor.is_cuda()) {
      TORCH_CHECK(gpus_, "a sum over GPUs of ranks that joined without");
      return gpus_->StartAllReduce(std::move(tensor));
    }
    std::vector<at::Tensor> tensors = {std::move(tensor)};
    c10d::AllreduceOptions allreduce;
    allreduce.timeout = options_.collective_timeout;
    const auto begin = BusyTime::Clock::now();
    auto work = OrInfrastructureError(what, [&] { return group_->allreduce(tensors, allreduce); });
    work->getFuture()->addCallback([busy = busy_, begin](auto&) { busy->Ended(begin); });
    return std::make_unique<GlooPending>(std::move(work), what);
  }

  // c10d's own all-gather on Gloo receives into a second buffer as large as `out` and copies. Here every rank sends its
  // part to each other rank, straight into place: as many bytes for each as a ring moves, and no order to keep with the
  // all-reduces.
  std::unique_ptr<Pending> StartAllGather(const at::Tensor& local, const at::Tensor& out) override {
    const int64_t size = local.numel();
    TORCH_CHECK(local.is_contiguous() && out.is_contiguous() && out.scalar_type() == local.scalar_type() &&
                    out.numel() == size * options_.world_size,
                "an all-gather of ", local.sizes(), " into ", out.sizes());
    const std::string what = "gather from the ranks (another rank died or hangs)";
    const auto part_of = [&](int64_t rank) { return out.view({-1}).narrow(0, rank * size, size); };
    std::vector<c10::intrusive_ptr<c10d::Work>> works;
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
    allgather_bytes_ += (options_.world_size - 1) * static_cast<int64_t>(local.nbytes());
    return std::make_unique<GlooMessages>(std::move(works), options_.collective_timeout, what);
  }

  std::chrono::nanoseconds allreduce_time() const override { return gpus_ ? gpus_->busy_time() : busy_->total(); }
  std::unique_ptr<Pending> StartExchange(const Exchange& exchange) override {
    const std::string what = "exchange with another rank (it died or hangs)";
    c10::intrusive_ptr<c10d::Work> received, sent;
    OrInfrastructureError(what, [&] {
      if (exchange.received.defined()) {
        std::vector<at::Tensor> tensors = {exchange.received};
        received = group_->recv(tensors, static_cast<int>(exchange.from), kExchangeTag);
      }
      if (exchange.sent.defined()) {
        std::vector<at::Tensor> tensors = {exchange.sent};
        sent = group_->send(tensors, static_cast<int>(exchange.to), kExchangeTag);
        exchanged_bytes_ += static_cast<int64_t>(exchange.sent.nbytes());
      }
    });
    return std::make_unique<GlooExchange>(std::move(sent), std::move(received), options_.collective_timeout, what);
  }

 private:
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
  const std::shared_ptr<BusyTime> busy_ = std::make_shared<BusyTime>();
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
  return std::make_unique<GlooRanks>(options);
}

}  // namespace longspan::trainer

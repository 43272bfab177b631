#include "client/local_cluster.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "client/command.h"

namespace longspan::client {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr auto kReadyMax = std::chrono::seconds(30);
constexpr auto kPoll = std::chrono::milliseconds(20);
constexpr auto kStopGrace = std::chrono::seconds(15);
constexpr char kHost[] = "127.0.0.1";

// The JSON a program writes when it is ready.
nlohmann::json WaitForPorts(LocalProcess& process, const fs::path& port_file) {
  const auto deadline = Clock::now() + kReadyMax;
  for (;;) {
    std::ifstream in(port_file);
    if (in) {
      const nlohmann::json ports = nlohmann::json::parse(in, nullptr, false);
      if (ports.is_object()) return ports;
    }
    const bool running = process.IsRunning();
    if (!running || Clock::now() > deadline) {
      const std::string what = running ? "is not ready after 30 seconds"
                                       : fmt::format("ended at its start with exit code {}", *process.exit_code());
      throw CommandError(kExitFailed,
                         fmt::format("{} {}; the end of its log:\n{}", process.name(), what, process.LogTail()));
    }
    std::this_thread::sleep_for(kPoll);
  }
}

std::string PortOf(const nlohmann::json& ports, const char* name, const std::string& process) {
  if (!ports.contains(name) || !ports[name].is_number_integer())
    throw CommandError(kExitFailed, fmt::format("the port file of {} lacks {}", process, name));
  return std::to_string(ports[name].get<int>());
}

}  // namespace

LocalCluster::LocalCluster(Options options) : options_(std::move(options)) {
  for (const char* program : {"longspan-server", "longspan-worker"}) {
    if (!fs::exists(options_.programs / program))
      throw CommandError(kExitFailed,
                         fmt::format("{} is not there; build it first", (options_.programs / program).native()));
  }
  if (!fs::exists(options_.trainer))
    throw CommandError(kExitFailed, fmt::format("the trainer {} is not there; build it, or name one with --trainer",
                                                options_.trainer.native()));
  Lock();
  StartServer();
  for (int i = 0; i < options_.workers; ++i) StartWorker(i);
  for (auto& worker : workers_) WaitForPorts(*worker, options_.state_dir / (worker->name() + ".ports.json"));
}

LocalCluster::~LocalCluster() {
  Stop();
  if (lock_ >= 0) ::close(lock_);
}

void LocalCluster::Lock() {
  std::error_code error;
  fs::create_directories(storage(), error);
  if (error) throw CommandError(kExitFailed, fmt::format("cannot create {}: {}", storage().native(), error.message()));
  lock_ = ::open((options_.state_dir / "lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (lock_ < 0 || ::flock(lock_, LOCK_EX | LOCK_NB) != 0) {
    throw CommandError(kExitFailed,
                       fmt::format("{} is in use by another longspan dev; name another folder with --state-dir",
                                   options_.state_dir.native()));
  }
}

void LocalCluster::StartServer() {
  const fs::path port_file = options_.state_dir / "server.ports.json";
  fs::remove(port_file);
  LocalProcess::Options server;
  server.name = "server";
  server.command = {options_.programs / "longspan-server",
                    "--data-dir",
                    options_.state_dir / "server",
                    "--storage",
                    storage(),
                    "--listen",
                    fmt::format("{}:0", kHost),
                    "--http-listen",
                    fmt::format("{}:0", kHost),
                    "--port-file",
                    port_file};
  server.log = options_.state_dir / "server.log";
  server_ = std::make_unique<LocalProcess>(std::move(server));
  const nlohmann::json ports = WaitForPorts(*server_, port_file);
  address_ = fmt::format("{}:{}", kHost, PortOf(ports, "grpc_port", "the server"));
  http_address_ = fmt::format("{}:{}", kHost, PortOf(ports, "http_port", "the server"));
}

void LocalCluster::StartWorker(int index) {
  const std::string name = fmt::format("worker-{}", index);
  const fs::path port_file = options_.state_dir / (name + ".ports.json");
  fs::remove(port_file);
  LocalProcess::Options worker;
  worker.name = name;
  worker.command = {options_.programs / "longspan-worker",
                    "--server",
                    address_,
                    "--storage",
                    storage(),
                    "--state-dir",
                    options_.state_dir / name,
                    "--name",
                    name,
                    "--slots",
                    std::to_string(options_.slots),
                    "--trainer",
                    options_.trainer,
                    "--advertise-address",
                    kHost,
                    "--http-listen",
                    fmt::format("{}:0", kHost),
                    "--port-file",
                    port_file};
  worker.log = options_.state_dir / (name + ".log");
  workers_.push_back(std::make_unique<LocalProcess>(std::move(worker)));
}

LocalProcess* LocalCluster::NewlyEnded() {
  std::vector<LocalProcess*> all = {server_.get()};
  for (const auto& worker : workers_) all.push_back(worker.get());
  for (LocalProcess* process : all) {
    if (process->IsRunning() || std::find(reported_.begin(), reported_.end(), process) != reported_.end()) continue;
    reported_.push_back(process);
    return process;
  }
  return nullptr;
}

void LocalCluster::Stop() {
  std::vector<LocalProcess*> workers;
  for (const auto& worker : workers_) workers.push_back(worker.get());
  StopAll(workers, kStopGrace);
  if (server_) StopAll({server_.get()}, kStopGrace);
}

void StopAll(const std::vector<LocalProcess*>& processes, std::chrono::seconds grace) {
  const auto any_runs = [&processes] {
    bool any = false;
    for (LocalProcess* process : processes) any = process->IsRunning() || any;
    return any;
  };
  for (LocalProcess* process : processes) {
    if (process->IsRunning()) process->SignalGroup(SIGTERM);
  }
  const auto deadline = Clock::now() + grace;
  while (any_runs() && Clock::now() < deadline) std::this_thread::sleep_for(kPoll);
  for (LocalProcess* process : processes) {
    if (process->IsRunning()) process->SignalGroup(SIGKILL);
  }
  while (any_runs()) std::this_thread::sleep_for(kPoll);
}

}  // namespace longspan::client

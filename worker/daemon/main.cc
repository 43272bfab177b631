// longspan-worker: offers this machine's slots to a coordinator and runs its trainers. Flags, wiring, signals; nothing
// else.
#include <fmt/format.h>
#include <signal.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "proto/support/channel.h"
#include "worker/daemon/child_process.h"
#include "worker/daemon/daemon.h"
#include "worker/daemon/inventory.h"
#include "worker/daemon/metrics_http.h"
#include "worker/daemon/trainer_check.h"

namespace {

using longspan::worker::Daemon;

constexpr int kExitUsage = 2;

struct Flags {
  longspan::ChannelOptions server;
  std::string storage;
  std::string state_dir;
  std::string name;
  std::optional<int64_t> cpu_slots;
  std::string trainer;
  std::string advertise_address = "127.0.0.1";
  std::string interface;
  std::string http_listen = "127.0.0.1:0";
  std::string port_file;
  std::string token_file;
  std::vector<std::string> labels;
  double kill_grace_seconds = 10;
  double leave_grace_seconds = 60;
};

std::string HostName() {
  char name[256] = {};
  return gethostname(name, sizeof name - 1) == 0 ? name : "";
}

// The trainer that was built with this program.
std::string TrainerBesideThisProgram() {
  std::error_code error;
  const auto self = std::filesystem::read_symlink("/proc/self/exe", error);
  return error ? "longspan-trainer" : (self.parent_path() / "longspan-trainer").string();
}

void AddFlags(CLI::App& app, Flags& flags) {
  app.add_option("--server", flags.server.address, "HOST:PORT of longspan-server")->required();
  app.add_option("--storage", flags.storage, "shared storage, as every worker mounts it")
      ->required()
      ->check(CLI::ExistingDirectory);
  app.add_option("--state-dir", flags.state_dir, "folder of this daemon on a local disk")->required();
  app.add_option("--name", flags.name, "name of this worker, unique in the cluster")->default_val(HostName());
  app.add_option(
         "--slots", flags.cpu_slots,
         "CPU slots to offer instead of GPUs; absent: a slot for each GPU of CUDA_VISIBLE_DEVICES (absent: of the "
         "machine), or one CPU slot where there is none")
      ->check(CLI::Range(0, 4096));
  app.add_option("--trainer", flags.trainer, "path of longspan-trainer")->default_val(TrainerBesideThisProgram());
  app.add_option("--advertise-address", flags.advertise_address,
                 "host or address at which other machines reach this one's ranks and metrics")
      ->default_val("127.0.0.1");
  app.add_option("--interface", flags.interface, "network interface of NCCL and Gloo; absent: theirs to choose");
  app.add_option("--http-listen", flags.http_listen, "HOST:PORT of /metrics and /healthz; port 0: any free one")
      ->default_val("127.0.0.1:0");
  app.add_option("--port-file", flags.port_file, "written once it listens: {\"http_port\": ...}");
  app.add_flag("--tls", flags.server.tls, "TLS with the system's certificates");
  app.add_option("--tls-ca", flags.server.ca_file, "PEM of the authority that signed the server's certificate");
  app.add_option("--tls-certificate", flags.server.certificate_file,
                 "PEM of this worker's certificate, for mutual TLS");
  app.add_option("--tls-key", flags.server.key_file, "PEM of its key");
  app.add_option("--token-file", flags.token_file, "file with this worker's token");
  app.add_flag("--insecure", flags.server.insecure,
               "allow plain text to the server, and /metrics, beyond this machine");
  app.add_option("--label", flags.labels, "KEY=VALUE shown in `longspan workers`; may be repeated");
  app.add_option("--kill-grace-seconds", flags.kill_grace_seconds, "from SIGTERM to SIGKILL")
      ->default_val(10)
      ->check(CLI::Range(0.0, 600.0));
  app.add_option("--leave-grace-seconds", flags.leave_grace_seconds,
                 "for ranks to save a checkpoint when this daemon is stopped")
      ->default_val(60)
      ->check(CLI::Range(0.0, 86400.0));
  app.set_version_flag("--version", LONGSPAN_VERSION);
}

absl::StatusOr<std::string> ReadToken(const std::string& path) {
  if (path.empty()) return std::string();
  std::ifstream file(path);
  std::string token;
  if (!(file >> token)) return absl::InvalidArgumentError(fmt::format("{} holds no token", path));
  return token;
}

absl::StatusOr<std::pair<std::string, int>> SplitHostPort(const std::string& text) {
  const size_t colon = text.rfind(':');
  const std::string digits = colon == std::string::npos ? "" : text.substr(colon + 1);
  const bool numeric =
      !digits.empty() && digits.size() <= 5 && digits.find_first_not_of("0123456789") == std::string::npos;
  if (!numeric || colon == 0 || std::stoi(digits) > 65535) {
    return absl::InvalidArgumentError(fmt::format("'{}' is no HOST:PORT", text));
  }
  return std::pair(text.substr(0, colon), std::stoi(digits));
}

absl::StatusOr<std::map<std::string, std::string>> ParseLabels(const std::vector<std::string>& labels) {
  std::map<std::string, std::string> result;
  for (const std::string& label : labels) {
    const size_t equals = label.find('=');
    if (equals == std::string::npos || equals == 0) {
      return absl::InvalidArgumentError(fmt::format("label '{}' is not KEY=VALUE", label));
    }
    result[label.substr(0, equals)] = label.substr(equals + 1);
  }
  return result;
}

std::string RandomId() {
  std::random_device random;
  return fmt::format("{:08x}{:08x}", random(), random());
}

// SIGTERM and SIGINT, taken by a thread so that no code runs in signal context. All other threads have them blocked.
class LeaveOnSignal {
 public:
  static sigset_t Signals() {
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    return signals;
  }

  explicit LeaveOnSignal(Daemon* daemon)
      : thread_([this, daemon] {
          const sigset_t signals = Signals();
          for (int signal = 0; sigwait(&signals, &signal) == 0 && !done_;) daemon->Leave();
        }) {}
  ~LeaveOnSignal() {
    done_ = true;
    pthread_kill(thread_.native_handle(), SIGTERM);
    thread_.join();
  }

 private:
  std::atomic<bool> done_ = false;
  std::thread thread_;
};

// What is offered, and the GPUs to read metrics of.
struct Offer {
  std::vector<longspan::v1::Slot> slots;
  std::unique_ptr<longspan::worker::Gpus> gpus;  // null: none, or CPU slots are offered
};

absl::StatusOr<Offer> OfferOf(const std::optional<int64_t>& cpu_slots) {
  using namespace longspan::worker;
  Offer offer;
  if (!cpu_slots) {
    auto gpus = Gpus::Open();
    if (!gpus.ok() && gpus.status().code() != absl::StatusCode::kNotFound) return gpus.status();
    if (gpus.ok()) {
      const char* const names = std::getenv("CUDA_VISIBLE_DEVICES");
      const auto visible =
          VisibleGpus((*gpus)->all(), names == nullptr ? std::nullopt : std::optional<std::string>(names));
      if (!visible.ok()) return visible.status();
      offer.slots = GpuSlots(*visible);
      if (!offer.slots.empty()) offer.gpus = *std::move(gpus);
    }
  }
  if (offer.slots.empty()) offer.slots = CpuSlots(cpu_slots.value_or(1), MachineMemoryBytes());
  return offer;
}

// GPUs are offered only to a trainer that can use them.
absl::Status CheckTrainer(const std::string& trainer, const Offer& offer) {
  using namespace longspan::worker;
  if (offer.gpus == nullptr) return absl::OkStatus();
  TrainerQuestion question;
  question.trainer = std::filesystem::absolute(trainer).string();
  for (const longspan::v1::Slot& slot : offer.slots) question.gpus.push_back(slot.uuid());
  question.environment = AllowedEnvironment(environ);
  std::erase_if(question.environment,
                [](const std::string& entry) { return entry.starts_with("CUDA_VISIBLE_DEVICES="); });
  return AskTrainer(question);
}

absl::Status Serve(const Flags& flags) {
  using namespace longspan::worker;
  auto token = ReadToken(flags.token_file);
  if (!token.ok()) return token.status();
  auto listen = SplitHostPort(flags.http_listen);
  if (!listen.ok()) return listen.status();
  if (!flags.server.insecure && !longspan::IsLoopback(flags.http_listen)) {
    return absl::InvalidArgumentError(fmt::format(
        "{} can be reached from other machines and /metrics is plain text: listen on loopback or give --insecure",
        flags.http_listen));
  }
  auto labels = ParseLabels(flags.labels);
  if (!labels.ok()) return labels.status();
  if (flags.name.empty()) return absl::InvalidArgumentError("this machine has no host name: give --name");
  if (access(flags.trainer.c_str(), X_OK) != 0) {
    return absl::InvalidArgumentError(fmt::format("{} is no program: give --trainer", flags.trainer));
  }
  auto offer = OfferOf(flags.cpu_slots);
  if (!offer.ok()) return offer.status();
  if (absl::Status able = CheckTrainer(flags.trainer, *offer); !able.ok()) return able;
  auto channel = longspan::OpenChannel(flags.server);
  if (!channel.ok()) return channel.status();
  auto state_dir = StateDir::Open(flags.state_dir);
  if (!state_dir.ok()) return state_dir.status();

  WorkerMetrics metrics;
  metrics.WatchGpus(offer->gpus.get());
  auto http = MetricsHttp::Start({listen->first, listen->second, [&metrics] { return metrics.Scrape(); }});
  if (!http.ok()) return http.status();

  DaemonOptions options;
  options.worker_id = flags.name;
  options.incarnation_id = RandomId();
  options.advertise_address = flags.advertise_address;
  options.interface = flags.interface;
  options.trainer = std::filesystem::absolute(flags.trainer).string();
  options.storage = std::filesystem::absolute(flags.storage).string();
  options.version = LONGSPAN_VERSION;
  options.token = *token;
  options.http_port = (*http)->port();
  options.slots = offer->slots;
  options.labels = *labels;
  options.supervisor.kill_grace = absl::Seconds(flags.kill_grace_seconds);
  options.schedule.seed = std::random_device()();
  options.leave_grace = absl::Seconds(flags.leave_grace_seconds);
  Daemon daemon(std::move(options), *channel, state_dir->get(), &metrics);
  const LeaveOnSignal leave_on_signal(&daemon);
  if (!flags.port_file.empty()) {
    absl::Status written = WriteFileWhole(flags.port_file, fmt::format("{{\"http_port\": {}}}\n", (*http)->port()));
    if (!written.ok()) return written;
  }
  spdlog::info("longspan-worker {} offers {} slots ({}) to {}, metrics on {}:{}", flags.name, offer->slots.size(),
               offer->slots.empty() ? "none" : offer->slots[0].device(), flags.server.address, listen->first,
               (*http)->port());
  return daemon.Run();
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Offers this machine's slots to a Longspan coordinator and runs its trainers.", "longspan-worker");
  Flags flags;
  AddFlags(app, flags);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : kExitUsage;
  }
  spdlog::set_default_logger(spdlog::stderr_color_mt("longspan-worker"));
  spdlog::set_pattern("%Y-%m-%dT%H:%M:%S.%e%z %^%l%$ %v");
  spdlog::flush_on(spdlog::level::info);
  const sigset_t signals = LeaveOnSignal::Signals();
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  const absl::Status status = Serve(flags);
  if (status.ok()) return 0;
  spdlog::error("{}", std::string(status.message()));
  return status.code() == absl::StatusCode::kInvalidArgument ? kExitUsage : 1;
}

// longspan-server: flags, wiring, signals.
#include <fmt/format.h>
#include <grpc/support/log.h>
#include <signal.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <thread>

#include "server/http/http_server.h"
#include "server/restore/restore.h"
#include "server/rpc/rpc_server.h"
#include "server/simulator/command.h"
#include "server/store/sqlite_store.h"

namespace longspan {
namespace {

// A call that does not end, or a disk that hangs, must not keep the program from ending.
constexpr int kExitAfterSeconds = 20;

struct Flags {
  std::string data_dir;
  std::string storage;
  std::string listen = "127.0.0.1:7450";
  std::string http_listen = "127.0.0.1:7451";
  std::string port_file;
  std::string cluster;
  std::vector<std::string> roots;
  double lease_seconds = 60;
  double slot_reuse_seconds = 0;
  double restart_grace_seconds = 120;
  double kill_grace_seconds = 10;
  double checkpoint_grace_seconds = 120;
  double retry_backoff_seconds = 1;
  double start_deadline_seconds = 300;
  double keep_finished_days = 90;
  int64_t keep_finished_max = 20'000;
  int64_t free_disk_mib_min = 256;
  double progress_deadline_seconds = 60;
  double first_progress_deadline_seconds = 600;
  double min_run_time_seconds = 600;
  double resize_interval_seconds = 600;
  double usage_half_life_seconds = 24 * 3600;
  double schedule_interval_seconds = 30;
  double reservation_seconds = 300;
  rpc::TlsFiles tls;
  std::string token_file;
  std::string worker_token_file;
  bool insecure = false;
  bool metrics_need_token = false;
  std::string log_level = "info";
};

void AddSchedulerFlags(CLI::App* app, Flags* flags) {
  app->add_option("--checkpoint-grace-seconds", flags->checkpoint_grace_seconds,
                  "Time for a paused, preempted, resized or moved rank to save a checkpoint and stop")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app->add_option("--min-run-time-seconds", flags->min_run_time_seconds,
                  "An attempt runs at least that long before it is asked to stop for another job or another size")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app->add_option("--resize-interval-seconds", flags->resize_interval_seconds,
                  "An elastic job gets more slots after so long in its attempt, if it has as long to go")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app->add_option("--usage-half-life-seconds", flags->usage_half_life_seconds,
                  "Half of what a queue used counts after that long")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app->add_option("--schedule-interval-seconds", flags->schedule_interval_seconds,
                  "Between passes of the scheduler while jobs wait, beside those after a change")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app->add_option("--reservation-seconds", flags->reservation_seconds,
                  "Slots that others give back are kept that long for the job that they are for; above the checkpoint "
                  "grace")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
}

void AddServeFlags(CLI::App* app, Flags* flags) {
  app->set_config("--config", "", "File with any of these flags, `key = value` per line; unknown keys are errors");
  app->allow_config_extras(CLI::config_extras_mode::error);
  app->add_option("--data-dir", flags->data_dir, "Folder of the database, on a local disk")->required();
  app->add_option("--storage", flags->storage, "Shared storage, as every worker sees it")->required();
  app->add_option("--listen", flags->listen, "HOST:PORT of gRPC; port 0 takes a free one")->capture_default_str();
  app->add_option("--http-listen", flags->http_listen,
                  "HOST:PORT of /metrics, /healthz, /readyz, /targets and the status page")
      ->capture_default_str();
  app->add_option("--port-file", flags->port_file, "Written once ready: {\"grpc_port\": ..., \"http_port\": ...}");
  app->add_option("--cluster", flags->cluster, "Name of the cluster, for people");
  app->add_option("--root", flags->roots, "Folder that job paths may lie in; may be repeated; none: anywhere");
  app->add_option("--lease-seconds", flags->lease_seconds, "A worker owns its ranks this long after its newest report")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app->add_option("--slot-reuse-seconds", flags->slot_reuse_seconds,
                  "Its slots are given away this long after it; default: 1.25 leases")
      ->check(CLI::NonNegativeNumber);
  app->add_option("--restart-grace-seconds", flags->restart_grace_seconds,
                  "Time for workers to report after a restart of the server")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app->add_option("--kill-grace-seconds", flags->kill_grace_seconds, "Time for a cancelled rank to stop")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app->add_option("--retry-backoff-seconds", flags->retry_backoff_seconds,
                  "Wait before the first retry; doubles up to a minute")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app->add_option("--start-deadline-seconds", flags->start_deadline_seconds, "From placement until every rank must run")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app->add_option("--keep-finished-days", flags->keep_finished_days,
                  "A job that has ended is forgotten after that; its files stay")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app->add_option("--keep-finished-max", flags->keep_finished_max,
                  "Of jobs that have ended the newest so many are kept")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app->add_option("--free-disk-mib-min", flags->free_disk_mib_min,
                  "New jobs are refused while the database's disk has less left")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app->add_option("--progress-deadline-seconds", flags->progress_deadline_seconds,
                  "A job that makes no step for so long, or for 20 of its step times if that is longer, is restarted")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app->add_option("--first-progress-deadline-seconds", flags->first_progress_deadline_seconds,
                  "The same, from its start to its first step")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  AddSchedulerFlags(app, flags);
  app->add_option("--tls-cert", flags->tls.certificate, "Certificate chain, PEM");
  app->add_option("--tls-key", flags->tls.key, "Its key, PEM");
  app->add_option("--tls-ca", flags->tls.client_authority,
                  "Authority of client certificates, PEM; makes them required");
  app->add_option("--token-file", flags->token_file, "File with the token that every caller must send");
  app->add_option("--worker-token-file", flags->worker_token_file,
                  "File with the token of workers, instead of --token-file");
  app->add_flag("--metrics-need-token", flags->metrics_need_token, "/metrics and /targets want the token too");
  app->add_flag("--insecure", flags->insecure, "Allow plain text on more than the loopback interface");
  app->add_option("--log-level", flags->log_level, "debug, info, warn or error")
      ->check(CLI::IsMember({"debug", "info", "warn", "error"}))
      ->capture_default_str();
}

core::CoreOptions CoreOptionsOf(const Flags& flags) {
  core::CoreOptions options;
  options.jobs_folder = (std::filesystem::path(flags.storage) / "jobs").string();
  options.lease = absl::Seconds(flags.lease_seconds);
  options.slot_reuse_after =
      absl::Seconds(flags.slot_reuse_seconds > 0 ? flags.slot_reuse_seconds : flags.lease_seconds * 1.25);
  options.restart_grace = absl::Seconds(flags.restart_grace_seconds);
  options.kill_grace = absl::Seconds(flags.kill_grace_seconds);
  options.checkpoint_grace = absl::Seconds(flags.checkpoint_grace_seconds);
  options.backoff_first = absl::Seconds(flags.retry_backoff_seconds);
  options.start_deadline = absl::Seconds(flags.start_deadline_seconds);
  options.keep_finished = absl::Hours(24) * flags.keep_finished_days;
  options.keep_finished_max = flags.keep_finished_max;
  options.progress_deadline_min = absl::Seconds(flags.progress_deadline_seconds);
  options.first_progress_deadline = absl::Seconds(flags.first_progress_deadline_seconds);
  options.min_run_time = absl::Seconds(flags.min_run_time_seconds);
  options.schedule_interval = absl::Seconds(flags.schedule_interval_seconds);
  options.scheduler.resize_interval = absl::Seconds(flags.resize_interval_seconds);
  options.scheduler.usage_half_life = absl::Seconds(flags.usage_half_life_seconds);
  options.scheduler.reservation = absl::Seconds(flags.reservation_seconds);
  return options;
}

absl::Status CheckFlags(const Flags& flags, const core::CoreOptions& core) {
  if (core.slot_reuse_after <= core.lease) {
    return absl::InvalidArgumentError(
        fmt::format("--slot-reuse-seconds must be above --lease-seconds ({}), or two jobs could "
                    "hold one slot",
                    flags.lease_seconds));
  }
  if (core.restart_grace < core.slot_reuse_after) {
    return absl::InvalidArgumentError(fmt::format("--restart-grace-seconds must be at least the slot reuse time ({})",
                                                  absl::ToDoubleSeconds(core.slot_reuse_after)));
  }
  if (core.scheduler.reservation <= core.checkpoint_grace) {
    return absl::InvalidArgumentError(
        fmt::format("--reservation-seconds is {}; it must be above --checkpoint-grace-seconds ({}), or slots would be "
                    "given away while the ranks on them still stop",
                    flags.reservation_seconds, flags.checkpoint_grace_seconds));
  }
  if (flags.usage_half_life_seconds < 60) {
    return absl::InvalidArgumentError(
        fmt::format("--usage-half-life-seconds is {}; it must be at least 60: queues would take turns in a moment",
                    flags.usage_half_life_seconds));
  }
  if (flags.schedule_interval_seconds < 1) {
    return absl::InvalidArgumentError(
        fmt::format("--schedule-interval-seconds is {}; it must be at least 1: changes start a pass by themselves",
                    flags.schedule_interval_seconds));
  }
  for (const std::string& root : flags.roots) {
    if (!std::filesystem::path(root).is_absolute()) {
      return absl::InvalidArgumentError(
          fmt::format("--root {} is relative; give the absolute path as the workers see it", root));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<rpc::BearerToken> ReadToken(const std::string& path) {
  if (path.empty()) return rpc::BearerToken();
  return rpc::BearerToken::FromFile(path);
}

// Appears whole or not at all: whoever waits for it may read it as soon as it is there.
absl::Status WritePortFile(const std::string& path, int grpc_port, int http_port) {
  const std::string temporary = fmt::format("{}.{}", path, getpid());
  {
    std::ofstream file(temporary);
    file << nlohmann::json{{"grpc_port", grpc_port}, {"http_port", http_port}}.dump() << "\n";
    if (!file.flush()) return absl::UnavailableError(fmt::format("cannot write {}", temporary));
  }
  std::error_code error;
  std::filesystem::rename(temporary, path, error);
  if (error) return absl::UnavailableError(fmt::format("cannot write {}: {}", path, error.message()));
  return absl::OkStatus();
}

// Threads that gRPC starts must not take the signals, so they are blocked before anything else and waited for in main.
sigset_t BlockSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);
  return signals;
}

void StartExitTimer() {
  std::thread([] {
    std::this_thread::sleep_for(std::chrono::seconds(kExitAfterSeconds));
    spdlog::error("not stopped after {} s; leaving without waiting any longer (everything acknowledged is stored)",
                  kExitAfterSeconds);
    spdlog::shutdown();
    _exit(3);
  }).detach();
}

absl::Status Serve(const Flags& flags) {
  const sigset_t signals = BlockSignals();
  const core::CoreOptions core_options = CoreOptionsOf(flags);
  if (absl::Status checked = CheckFlags(flags, core_options); !checked.ok()) return checked;
  const absl::StatusOr<rpc::BearerToken> token = ReadToken(flags.token_file);
  if (!token.ok()) return token.status();
  const absl::StatusOr<rpc::BearerToken> worker_token =
      ReadToken(flags.worker_token_file.empty() ? flags.token_file : flags.worker_token_file);
  if (!worker_token.ok()) return worker_token.status();
  auto store = store::OpenSqliteStore((std::filesystem::path(flags.data_dir) / "longspan.db").string());
  if (!store.ok()) return store.status();

  http::ServerMetrics metrics;
  auto http = http::HttpServer::Start(
      {flags.http_listen, flags.insecure, *token, flags.metrics_need_token, LONGSPAN_VERSION}, &metrics);
  if (!http.ok()) return http.status();

  rpc::RpcServerOptions options;
  options.listen = flags.listen;
  options.tls = flags.tls;
  options.insecure = flags.insecure;
  options.storage = flags.storage;
  options.coordinator.core = core_options;
  options.coordinator.free_bytes_min = flags.free_disk_mib_min << 20;
  options.coordinator.on_fatal = [](const absl::Status& cause) {
    spdlog::critical("the database is not what this server wrote; stopping: {}", std::string(cause.message()));
    kill(getpid(), SIGTERM);
  };
  options.training.token = *token;
  options.training.roots.assign(flags.roots.begin(), flags.roots.end());
  options.training.version = LONGSPAN_VERSION;
  options.training.cluster = flags.cluster;
  options.training.http_port = [port = (*http)->port()] { return port; };
  options.fleet.token = *worker_token;
  auto server = rpc::RpcServer::Start(std::move(options), store->get(), &metrics);
  if (!server.ok()) return server.status();
  (*http)->Serve(&(*server)->coordinator());
  if (!flags.port_file.empty()) {
    absl::Status written = WritePortFile(flags.port_file, (*server)->port(), (*http)->port());
    if (!written.ok()) {
      (*http)->Stop();  // it asks the coordinator, which goes first
      return written;
    }
  }
  spdlog::info("longspan-server {} serves gRPC on port {} and HTTP on port {}", LONGSPAN_VERSION, (*server)->port(),
               (*http)->port());

  int signal_number = 0;
  sigwait(&signals, &signal_number);
  spdlog::info("signal {}: stopping", signal_number);
  StartExitTimer();
  (*http)->Stop();
  (*server)->Stop();
  if (!flags.port_file.empty()) unlink(flags.port_file.c_str());
  spdlog::info("stopped");
  return absl::OkStatus();
}

absl::Status Backup(const std::string& data_dir, const std::string& target) {
  return store::BackupSqliteDatabase((std::filesystem::path(data_dir) / "longspan.db").string(), target);
}

absl::Status Restore(const std::string& from, const std::string& data_dir) {
  const absl::StatusOr<Restored> restored = RestoreBackup(from, data_dir);
  if (!restored.ok()) return restored.status();
  std::cout << fmt::format(
      "restored {} jobs, {} of them unfinished; those that ran then start again from their newest checkpoint of then.\n"
      "Ranks that workers still run of the time since are refused and stopped when these workers report. If one cannot "
      "be "
      "reached, start the server only when its lease has run out.\n",
      restored->jobs, restored->unfinished);
  return absl::OkStatus();
}

absl::Status ServeIn(Flags flags) {
  flags.storage = std::filesystem::absolute(flags.storage).lexically_normal().string();  // jobs keep it for ever
  return Serve(flags);
}

int ExitCode(const absl::Status& status) {
  if (status.ok()) return 0;
  std::cerr << "longspan-server: " << status.message() << "\n";
  return 1;
}

int Main(int argc, char** argv) {
  CLI::App app{"The coordinator of a Longspan cluster: accepts jobs, places them on workers, keeps the truth."};
  Flags flags;
  // The server itself is the program without a subcommand, so its required flags must not stand in the way of the
  // others.
  CLI::App* version = app.add_subcommand("version", "Print the version");
  CLI::App* backup = app.add_subcommand("backup", "Copy the database while a server may be using it");
  std::string backup_data_dir;
  std::string backup_target;
  backup->add_option("--data-dir", backup_data_dir, "Folder of the database")->required();
  backup->add_option("--to", backup_target, "File to write; must not exist")->required();
  CLI::App* restore = app.add_subcommand("restore", "Make a backup the database of a server that is to start");
  std::string restore_from;
  restore->add_option("--from", restore_from, "File that backup wrote")->required();
  restore->add_option("--data-dir", backup_data_dir, "Folder of the database; must not have one")->required();
  simulator::Commands simulator(&app);
  app.require_subcommand(0, 1);
  CLI::App* serve = &app;
  const std::vector<CLI::App*> subcommands = app.get_subcommands([](CLI::App*) { return true; });
  const bool has_subcommand =
      argc > 1 && std::any_of(subcommands.begin(), subcommands.end(),
                              [&](CLI::App* subcommand) { return subcommand->check_name(argv[1]); });
  if (!has_subcommand) AddServeFlags(serve, &flags);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  spdlog::set_default_logger(spdlog::stderr_color_mt("server"));
  spdlog::set_level(spdlog::level::from_str(flags.log_level));
  // gRPC speaks on standard error by itself; what matters of it comes back as statuses.
  gpr_set_log_function([](gpr_log_func_args* args) { spdlog::debug("grpc: {}", args->message); });
  if (version->parsed()) {
    std::cout << "longspan-server " << LONGSPAN_VERSION << "\n";
    return 0;
  }
  if (simulator.Parsed()) return ExitCode(simulator.Run(std::cout));
  const absl::Status status = backup->parsed()    ? Backup(backup_data_dir, backup_target)
                              : restore->parsed() ? Restore(restore_from, backup_data_dir)
                                                  : ServeIn(flags);
  return ExitCode(status);
}

}  // namespace
}  // namespace longspan

int main(int argc, char** argv) { return longspan::Main(argc, argv); }

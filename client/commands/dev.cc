// longspan dev: a whole cluster on this machine, for as long as the command runs.
#include <fmt/format.h>
#include <signal.h>

#include <filesystem>

#include "client/command.h"
#include "client/local_cluster.h"

namespace longspan::client {
namespace {

namespace fs = std::filesystem;

struct DevOptions {
  int workers = 2;
  int slots = 1;
  std::string state_dir = ".longspan/dev";
  std::string trainer;
  std::string run;
};

// Signals that end the cluster, and those that tell of a child: held back, and taken one by one.
class Signals {
 public:
  Signals() {
    ::sigemptyset(&set_);
    for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGCHLD}) ::sigaddset(&set_, signal);
    ::sigprocmask(SIG_BLOCK, &set_, &before_);
  }
  ~Signals() { ::sigprocmask(SIG_SETMASK, &before_, nullptr); }
  Signals(const Signals&) = delete;
  Signals& operator=(const Signals&) = delete;

  // The next signal, or 0 after a second.
  int Wait() const {
    const timespec second{1, 0};
    const int signal = ::sigtimedwait(&set_, nullptr, &second);
    return signal < 0 ? 0 : signal;
  }

 private:
  sigset_t set_{};
  sigset_t before_{};
};

bool IsEnd(int signal) { return signal == SIGINT || signal == SIGTERM || signal == SIGHUP; }

void PrintCluster(std::ostream& out, const LocalCluster& cluster, const DevOptions& options) {
  out << fmt::format("server     {}\nmetrics    http://{}/metrics\nworkers    {} with {} slot{} each\nstorage    {}\n",
                     cluster.address(), cluster.http_address(), options.workers, options.slots,
                     options.slots == 1 ? "" : "s", cluster.storage().native());
}

// Tells of a process that has ended; throws when the cluster cannot go on.
void TellOfEnded(const Context& context, LocalCluster& cluster) {
  while (LocalProcess* ended = cluster.NewlyEnded()) {
    const std::string text = fmt::format("{} ended with exit code {}; the end of its log:\n{}", ended->name(),
                                         *ended->exit_code(), ended->LogTail());
    if (cluster.IsServer(ended)) throw CommandError(kExitFailed, text);
    context.err() << "longspan: " << text << "\n";
  }
}

// Runs the user's command against the cluster; its exit code is the answer.
int RunCommandOf(const Context& context, const DevOptions& options, const Signals& signals, LocalCluster& cluster,
                 const fs::path& programs) {
  LocalProcess::Options shell;
  shell.name = "the command";
  shell.command = {"/bin/sh", "-c", options.run};
  shell.variables = {
      {"LONGSPAN_ADDRESS", cluster.address()},
      {"PATH", programs.native() + ":" + context.environment.variable("PATH").value_or("/usr/bin:/bin")}};
  shell.in_foreground = true;
  LocalProcess command(std::move(shell));
  while (command.IsRunning()) {
    if (const int signal = signals.Wait(); IsEnd(signal)) {
      StopAll({&command}, std::chrono::seconds(5));
      return 128 + signal;
    }
    TellOfEnded(context, cluster);
  }
  return *command.exit_code();
}

int WaitForEnd(const Context& context, const Signals& signals, LocalCluster& cluster) {
  context.out() << fmt::format("\nexport LONGSPAN_ADDRESS={}\n\nrunning; end with Ctrl-C\n", cluster.address())
                << std::flush;
  while (!IsEnd(signals.Wait())) TellOfEnded(context, cluster);
  context.out() << "stopping\n" << std::flush;
  return kExitSucceeded;
}

int Dev(const Context& context, const DevOptions& options) {
  const Signals signals;
  const fs::path programs = fs::read_symlink("/proc/self/exe").parent_path();
  LocalCluster::Options cluster_options;
  cluster_options.programs = programs;
  cluster_options.trainer = options.trainer.empty() ? programs / "longspan-trainer" : fs::absolute(options.trainer);
  cluster_options.state_dir = fs::absolute(options.state_dir).lexically_normal();
  cluster_options.workers = options.workers;
  cluster_options.slots = options.slots;
  LocalCluster cluster(std::move(cluster_options));
  // With a command, standard output is the command's.
  PrintCluster(options.run.empty() ? context.out() : context.err(), cluster, options);
  const int exit_code = options.run.empty() ? WaitForEnd(context, signals, cluster)
                                            : RunCommandOf(context, options, signals, cluster, programs);
  cluster.Stop();
  return exit_code;
}

}  // namespace

void AddDev(CLI::App& app, Context& context) {
  auto options = std::make_shared<DevOptions>();
  CLI::App* command = AddCommand(app, context, "dev", "A whole cluster on this machine, until Ctrl-C", options, &Dev);
  command->add_option("--workers", options->workers, "Workers")->check(CLI::Range(0, 64))->capture_default_str();
  command->add_option("--slots", options->slots, "CPU slots of each worker")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  command->add_option("--state-dir", options->state_dir, "Database, storage and logs; kept for the next start")
      ->capture_default_str();
  command->add_option("--trainer", options->trainer, "Trainer program; longspan-trainer beside this one when absent");
  command->add_option("--run", options->run,
                      "Run this command against the cluster, end the cluster with it, and exit with its code");
}

}  // namespace longspan::client

#include "server/simulator/command.h"

#include <fmt/format.h>

#include <fstream>

#include "server/simulator/generator.h"
#include "server/simulator/report.h"

namespace longspan::simulator {
namespace {

struct SimulateFlags {
  std::string trace;
  std::string cluster;
  WorkerGroup group;
  double memory_gib = 0;
  std::string policy = "longspan";
  std::string estimates = "progress";
  std::string output = "table";
  double stop_seconds = 60;
  double restart_seconds = 60;
  double checkpoint_seconds = 1800;
  double min_run_seconds = 600;
  double schedule_seconds = 30;
  double scaling_efficiency = 1;
  int64_t passes_max = 0;
  double patience_seconds = absl::ToDoubleSeconds(scheduler::Options().patience);
};

struct GenerateFlags {
  std::string trace;
  std::string cluster;
  GeneratorOptions options;
  double days = 14;
};

CLI::App* AddSimulate(CLI::App* app, SimulateFlags* flags) {
  CLI::App* simulate = app->add_subcommand("simulate", "Replay a trace of jobs against the scheduler in virtual time");
  simulate->add_option("trace", flags->trace, "JSON lines: id, submit, slots or sizes, run_time, limit, queue, ...")
      ->required();
  CLI::Option* cluster = simulate->add_option("--cluster", flags->cluster, "JSON file of workers and queues");
  const auto add_group = [&](CLI::Option* option) { option->capture_default_str()->excludes(cluster); };
  add_group(simulate->add_option("--workers", flags->group.count, "Equal workers, instead of --cluster")
                ->check(CLI::Range(int64_t{1}, int64_t{100'000})));
  add_group(simulate->add_option("--slots-per-worker", flags->group.slots, "Slots of each")
                ->check(CLI::Range(int64_t{1}, int64_t{1024})));
  add_group(simulate->add_option("--device", flags->group.device, "Device of each slot"));
  add_group(
      simulate->add_option("--memory-gib", flags->memory_gib, "Memory of each slot")->check(CLI::NonNegativeNumber));
  add_group(simulate->add_option("--racks", flags->group.racks, "Racks that the workers are spread over; 0: unknown")
                ->check(CLI::NonNegativeNumber));
  simulate->add_option("--policy", flags->policy, "longspan, or for comparison fifo, fifo-backfill or slurm")
      ->check(CLI::IsMember({"longspan", "fifo", "fifo-backfill", "slurm"}))
      ->capture_default_str();
  simulate
      ->add_option("--estimates", flags->estimates,
                   "Of running gangs: by the progress they report, or by their limits alone")
      ->check(CLI::IsMember({"progress", "limits"}))
      ->capture_default_str();
  const auto add_seconds = [&](const char* name, double* value, const char* help) {
    simulate->add_option(name, *value, help)->check(CLI::NonNegativeNumber)->capture_default_str();
  };
  add_seconds("--stop-seconds", &flags->stop_seconds, "From the request to stop until the slots are free");
  add_seconds("--restart-seconds", &flags->restart_seconds, "Without work at every start but the first");
  add_seconds("--checkpoint-seconds", &flags->checkpoint_seconds,
              "Between checkpoints; a stopped gang loses what it did since; 0: it saves when it stops");
  add_seconds("--min-run-seconds", &flags->min_run_seconds, "A gang runs so long before it is asked to stop");
  simulate
      ->add_option("--schedule-seconds", flags->schedule_seconds, "Between passes while jobs wait and nothing happens")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  simulate
      ->add_option("--scaling-efficiency", flags->scaling_efficiency,
                   "A gang of a part of the largest size works at that part to the power of this")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  simulate
      ->add_option("--patience-seconds", flags->patience_seconds,
                   "Of longspan: a job that has waited so long goes before its queue's share")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  simulate->add_option("--passes-max", flags->passes_max, "End after so many passes; 0: when all jobs have ended")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  simulate->add_option("--output", flags->output, "table or json")
      ->check(CLI::IsMember({"table", "json"}))
      ->capture_default_str();
  return simulate;
}

CLI::App* AddGenerate(CLI::App* app, GenerateFlags* flags) {
  CLI::App* generate =
      app->add_subcommand("generate-trace", "Write a trace of the shape of public traces of GPU clusters");
  GeneratorOptions& options = flags->options;
  generate->add_option("--trace", flags->trace, "File to write: JSON lines")->required();
  generate->add_option("--cluster", flags->cluster, "File to write: its workers and queues, for simulate --cluster")
      ->required();
  generate->add_option("--seed", options.seed, "Another seed, another trace")->capture_default_str();
  generate->add_option("--workers", options.workers, "Of the cluster")
      ->check(CLI::Range(int64_t{1}, int64_t{100'000}))
      ->capture_default_str();
  generate->add_option("--slots-per-worker", options.slots_per_worker, "Slots of each")
      ->check(CLI::Range(int64_t{1}, int64_t{1024}))
      ->capture_default_str();
  generate->add_option("--racks", options.racks, "Racks that the workers are spread over")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  generate->add_option("--days", flags->days, "Of submissions")->check(CLI::Range(0.01, 365.0))->capture_default_str();
  generate->add_option("--load", options.load, "Slot-seconds asked for by slot-seconds there")
      ->check(CLI::Range(0.01, 10.0))
      ->capture_default_str();
  const auto add_share = [&](const char* name, double* share, const char* help) {
    generate->add_option(name, *share, help)->check(CLI::Range(0.0, 1.0))->capture_default_str();
  };
  add_share("--limited", &options.limited, "Share of jobs with a limit");
  add_share("--high-priority", &options.high_priority, "Share of jobs of priority 80");
  add_share("--low-priority", &options.low_priority, "Share of jobs of priority 20");
  add_share("--elastic", &options.elastic, "Share of jobs of several slots that can run with fewer");
  add_share("--required-gpu", &options.required_gpu, "Share of jobs that need the device of half of the workers");
  generate->add_option("--backlog", options.backlog, "Jobs that are there at the beginning, beside the load")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  return generate;
}

SimulationOptions OptionsOf(const SimulateFlags& flags) {
  SimulationOptions options;
  options.stop_time = absl::Seconds(flags.stop_seconds);
  options.restart_time = absl::Seconds(flags.restart_seconds);
  options.checkpoint_interval = absl::Seconds(flags.checkpoint_seconds);
  options.min_run_time = absl::Seconds(flags.min_run_seconds);
  options.scaling_efficiency = flags.scaling_efficiency;
  options.estimate_by_progress = flags.estimates == "progress";
  options.passes_max = flags.passes_max;
  return options;
}

absl::StatusOr<ClusterSpec> ClusterOf(const SimulateFlags& flags) {
  if (!flags.cluster.empty()) return ReadClusterFile(flags.cluster);
  ClusterSpec cluster;
  cluster.groups.push_back(flags.group);
  cluster.groups.back().memory_bytes = static_cast<int64_t>(flags.memory_gib * (int64_t{1} << 30));
  return cluster;
}

absl::Status RunSimulate(const SimulateFlags& flags, std::ostream& out) {
  absl::StatusOr<std::vector<TraceJob>> trace = ReadTraceFile(flags.trace);
  if (!trace.ok()) return trace.status();
  absl::StatusOr<ClusterSpec> cluster = ClusterOf(flags);
  if (!cluster.ok()) return cluster.status();
  PolicyOptions policy_options;
  policy_options.scheduler.patience = absl::Seconds(flags.patience_seconds);
  policy_options.schedule_interval = absl::Seconds(flags.schedule_seconds);
  absl::StatusOr<std::unique_ptr<Policy>> policy = MakePolicy(flags.policy, policy_options);
  if (!policy.ok()) return policy.status();
  const Report report = MakeReport(*trace, Simulate(*cluster, *trace, OptionsOf(flags), **policy));
  if (flags.output == "json") {
    out << ReportJson(report).dump(1) << "\n";
  } else {
    out << ReportTable(report);
  }
  return absl::OkStatus();
}

absl::Status WriteFile(const std::string& path, const std::string& text) {
  std::ofstream file(path);
  file << text;
  if (!file.flush()) return absl::UnavailableError(fmt::format("cannot write {}", path));
  return absl::OkStatus();
}

absl::Status RunGenerate(GenerateFlags flags, std::ostream& out) {
  flags.options.duration = absl::Seconds(flags.days * 86'400);
  if (flags.options.workers * flags.options.slots_per_worker < 80) {
    return absl::InvalidArgumentError(
        "the largest jobs have 80 slots; --workers times --slots-per-worker must be 80 or more");
  }
  const GeneratedTrace generated = GenerateTrace(flags.options);
  std::string lines;
  for (const TraceJob& job : generated.jobs) lines += TraceLine(job) + "\n";
  if (absl::Status written = WriteFile(flags.trace, lines); !written.ok()) return written;
  if (absl::Status written = WriteFile(flags.cluster, ClusterText(generated.cluster)); !written.ok()) return written;
  out << fmt::format("{} jobs for {} slots\n", generated.jobs.size(), generated.cluster.SlotCount());
  return absl::OkStatus();
}

}  // namespace

struct Commands::Flags {
  CLI::App* simulate_app = nullptr;
  CLI::App* generate_app = nullptr;
  SimulateFlags simulate;
  GenerateFlags generate;
};

Commands::Commands(CLI::App* app) : flags_(std::make_unique<Flags>()) {
  flags_->simulate_app = AddSimulate(app, &flags_->simulate);
  flags_->generate_app = AddGenerate(app, &flags_->generate);
}

Commands::~Commands() = default;

bool Commands::Parsed() const { return flags_->simulate_app->parsed() || flags_->generate_app->parsed(); }

absl::Status Commands::Run(std::ostream& out) {
  return flags_->simulate_app->parsed() ? RunSimulate(flags_->simulate, out) : RunGenerate(flags_->generate, out);
}

}  // namespace longspan::simulator

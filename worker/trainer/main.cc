// longspan-trainer: one rank of a job, or all of it by hand. Flags, wiring, and the one place that catches.

#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <ATen/Parallel.h>
#include <c10/util/Exception.h>
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <memory>
#include <new>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>

#include "proto/jobfile/job_file.h"
#include "worker/storage/storage.h"
#include "worker/trainer/device.h"
#include "worker/trainer/errors.h"
#include "worker/trainer/generate_texts.h"
#include "worker/trainer/measure_device.h"
#include "worker/trainer/measure_steps.h"
#include "worker/trainer/memory/counting_allocator.h"
#include "worker/trainer/probe.h"
#include "worker/trainer/run.h"
#include "worker/trainer/session.h"

namespace longspan::trainer {
namespace {

constexpr int kInternalError = 70;

struct Failure {
  std::string failure_class;
  int exit_code;
  std::string message;
};

std::string FirstLine(const std::string& text) { return text.substr(0, text.find('\n')); }

const char* ClassOf(ExitCode code) {
  switch (code) {
    case ExitCode::kBadSpec:
    case ExitCode::kUserData:
      return "user";
    case ExitCode::kResource:
      return "resource";
    case ExitCode::kInfrastructure:
      return "infrastructure";
    case ExitCode::kDone:
    case ExitCode::kStopped:
      return "internal";
  }
  return "internal";
}

// Names whose fault the exception in flight is. Called inside a catch block.
Failure CurrentFailure() {
  try {
    throw;
  } catch (const TrainerError& error) {
    return {ClassOf(error.exit_code()), static_cast<int>(error.exit_code()), error.what()};
  } catch (const storage::StorageError& error) {
    return {"infrastructure", static_cast<int>(ExitCode::kInfrastructure), error.what()};
  } catch (const std::filesystem::filesystem_error& error) {
    return {"infrastructure", static_cast<int>(ExitCode::kInfrastructure), error.what()};
  } catch (const std::bad_alloc&) {
    return {"resource", static_cast<int>(ExitCode::kResource), "out of host memory"};
  } catch (const c10::OutOfMemoryError& error) {
    return {"resource", static_cast<int>(ExitCode::kResource), FirstLine(error.what_without_backtrace())};
  } catch (const c10::Error& error) {
    const std::string what = FirstLine(error.what_without_backtrace());
    if (what.find("can't allocate memory") != std::string::npos) {
      return {"resource", static_cast<int>(ExitCode::kResource), what};
    }
    return {"internal", kInternalError, what};
  } catch (const std::exception& error) {
    return {"internal", kInternalError, error.what()};
  }
}

int Report(const Failure& failure, Session* session) {
  spdlog::error("{}", failure.message);
  if (session != nullptr) session->Send(lines::Failed{failure.failure_class, failure.message});
  return failure.exit_code;
}

jobfile::JobSpec ReadSpec(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  if (!file) throw SpecError("cannot read " + path);
  jobfile::Parsed parsed = jobfile::ParseText(text.str());
  if (parsed.spec) return std::move(*parsed.spec);
  std::string message = path + " is no valid job file:";
  for (const jobfile::Mistake& mistake : parsed.mistakes) message += "\n  " + ToString(mistake);
  throw SpecError(message);
}

struct Flags {
  std::string command;
  std::string spec_path;
  RunOptions run;
  Session::Options session;
  int64_t threads = 0;            // 0: resources.threads_per_slot
  int64_t slot_memory_bytes = 0;  // 0: the machine's
  std::string resume_from;
  std::string tokens, out;  // of the probe; tokens also of measure
  std::string device = "auto";
  GenerateOptions generate;
  bool as_json = false;  // of version
};

void AddDeviceFlag(CLI::App& command, Flags& flags) {
  command.add_option("--device", flags.device, "what computes; auto: the first GPU that is to be seen, else the CPU")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}));
}

void AddRankFlags(CLI::App& command, Flags& flags) {
  AddDeviceFlag(command, flags);
  command.add_option("--rank", flags.run.rank, "number of this rank, from 0")->check(CLI::Range(0, 65535));
  command.add_option("--world-size", flags.run.world_size, "number of ranks")->check(CLI::Range(1, 65536));
  command
      .add_option("--collectives", flags.run.collectives,
                  "between ranks on GPUs; auto: NCCL, which wants a GPU for each; gloo: through the host")
      ->check(CLI::IsMember({"auto", "nccl", "gloo"}));
  command.add_option("--store", flags.run.store, "HOST:PORT where rank 0 listens and the others connect");
  command.add_option("--threads", flags.threads, "CPU threads; default: resources.threads_per_slot")
      ->check(CLI::Range(1, 4096));
  command
      .add_option("--slot-memory", flags.slot_memory_bytes,
                  "bytes that this rank may use; default: all that the device has")
      ->check(CLI::PositiveNumber);
}

void AddRunFlags(CLI::App& command, Flags& flags) {
  command.add_option("spec", flags.spec_path, "the job file, in JSON")->required();
  command.add_option("--work", flags.run.work, "the job's folder")->required();
  command.add_option("--checkpoint", flags.run.checkpoint,
                     "start from this checkpoint of the folder instead of the newest");
  AddRankFlags(command, flags);
  command.add_option("--dump-gradients", flags.run.dump_gradients,
                     "write the reduced gradients and tokens of every step to this folder");
  const char* const service = "Under the service";
  command.add_option("--job", flags.run.job, "id of the job")->group(service);
  command.add_option("--attempt", flags.run.attempt, "number of the attempt")
      ->check(CLI::PositiveNumber)
      ->group(service);
  command.add_option("--lines-out-fd", flags.session.lines_out_fd, "lines to the daemon")->group(service);
  command.add_option("--lines-in-fd", flags.session.lines_in_fd, "lines from the daemon")->group(service);
  command.add_option("--resume-from", flags.resume_from, "exactly this checkpoint, or `none`")->group(service);
  command.add_option("--manifest-sha256", flags.run.manifest_sha256, "hash of its manifest")->group(service);
  command.add_option("--advertise-address", flags.run.advertise_address, "of this machine, for the other ranks")
      ->group(service);
}

int RunCommand(Flags& flags) {
  std::unique_ptr<Session> session;
  try {
    flags.session.rank = flags.run.rank;
    flags.session.version = kVersion;
    session = std::make_unique<Session>(flags.session);
    if (flags.run.rank >= flags.run.world_size) {
      throw SpecError("--rank " + std::to_string(flags.run.rank) + " must be below --world-size " +
                      std::to_string(flags.run.world_size));
    }
    flags.run.command = flags.command;
    flags.run.spec = ReadSpec(flags.spec_path);
    flags.run.threads = flags.threads > 0 ? flags.threads : flags.run.spec.resources.threads_per_slot;
    if (flags.slot_memory_bytes > 0) flags.run.slot_memory_bytes = flags.slot_memory_bytes;
    flags.run.device = flags.device;
    if (!flags.resume_from.empty()) flags.run.resume_from = flags.resume_from;
    return static_cast<int>(Run(flags.run, *session));
  } catch (...) {
    return Report(CurrentFailure(), session.get());
  }
}

int ProbeCommand(const Flags& flags) {
  try {
    ProbeOptions options;
    options.spec_path = flags.spec_path;
    options.tokens_path = flags.tokens;
    options.out_path = flags.out;
    options.device = flags.device;
    RunProbe(options);
    return static_cast<int>(ExitCode::kDone);
  } catch (...) {
    return Report(CurrentFailure(), nullptr);
  }
}

// The tokens are random, or those of --tokens: a job's data is named, but not read.
int MeasureCommand(const Flags& flags) {
  try {
    MeasureOptions options;
    options.spec = ReadSpec(flags.spec_path);
    options.threads = flags.threads > 0 ? flags.threads : options.spec.resources.threads_per_slot;
    if (flags.slot_memory_bytes > 0) options.slot_memory_bytes = flags.slot_memory_bytes;
    options.tokens_path = flags.tokens;
    options.device = ChooseDevice(flags.device);
    at::set_num_threads(static_cast<int>(options.threads));
    CommunicatorOptions ranks;
    ranks.rank = flags.run.rank;
    ranks.world_size = flags.run.world_size;
    ranks.store = flags.run.store;
    ranks.on_gpus = CollectivesOn(options.device, flags.run.collectives);
    const std::unique_ptr<Communicator> communicator = Communicator::OpenStore(ranks);
    if (ranks.world_size > 1 && ranks.rank == 0)
      spdlog::info("the rank store listens at {}", communicator->store_address());
    communicator->Join();
    MeasureSteps(options, *communicator, std::cin, std::cout);
    return static_cast<int>(ExitCode::kDone);
  } catch (...) {
    return Report(CurrentFailure(), nullptr);
  }
}

int ProfileCommand(const Flags& flags) {
  try {
    const at::Device device = ChooseDevice(flags.device);
    std::cout << planner::ToJson(MeasureDevice(device, std::max<int64_t>(1, flags.threads))).dump(2) << std::endl;
    return static_cast<int>(ExitCode::kDone);
  } catch (...) {
    return Report(CurrentFailure(), nullptr);
  }
}

int GenerateCommand(Flags& flags) {
  try {
    flags.generate.device = flags.device;
    GenerateTexts(flags.generate);
    return static_cast<int>(ExitCode::kDone);
  } catch (...) {
    return Report(CurrentFailure(), nullptr);
  }
}

void AddMeasure(CLI::App& app, Flags& flags) {
  CLI::App* command =
      app.add_subcommand("measure", "one training step for every line of standard input; answers in lines of JSON");
  command->add_option("spec", flags.spec_path, "the job file, in JSON")->required();
  command->add_option("--tokens", flags.tokens, "input_ids of the job's sequences, safetensors; default: random ones");
  AddRankFlags(*command, flags);
  command->callback([&flags] { flags.command = "measure"; });
}

void AddProfile(CLI::App& app, Flags& flags) {
  CLI::App* command =
      app.add_subcommand("profile", "measure a device's rates, as JSON for `longspan plan --device-profile`");
  AddDeviceFlag(*command, flags);
  command->add_option("--threads", flags.threads, "CPU threads of a rank; default: 1")->check(CLI::Range(1, 4096));
  command->callback([&flags] { flags.command = "profile"; });
}

void AddGenerate(CLI::App& app, Flags& flags) {
  GenerateOptions& options = flags.generate;
  CLI::App* command = app.add_subcommand("generate", "continue prompts with the model of a job file");
  command->add_option("spec", options.spec_path, "the job file, in JSON")->required();
  AddDeviceFlag(*command, flags);
  command->add_option("--prompts", options.prompts_path, R"(.jsonl of {"tokens": [...]} or {"text": "..."})")
      ->required();
  command->add_option("--out", options.out_path, "where the texts go, .jsonl")->required();
  command->add_option("--model", options.model, "whether the job's positions and adapter count")
      ->check(CLI::IsMember({"base", "rescaled", "extended"}));
  command->add_option("--max-new-tokens", options.max_new_tokens, "longest text")->check(CLI::Range(1, 1 << 24));
  command->add_flag("--ignore-end", options.ignore_end, "go on behind the model's end tokens");
  command->callback([&flags] { flags.command = "generate"; });
}

void AddVersion(CLI::App& app, Flags& flags) {
  CLI::App* command = app.add_subcommand("version", "print the version");
  command->add_flag("--json", flags.as_json, "with what the program can train on here, as a line of JSON");
  command->callback([&flags] { flags.command = "version"; });
}

int VersionCommand(const Flags& flags) {
  if (!flags.as_json) {
    std::printf("longspan-trainer %s\n", kVersion);
    return 0;
  }
  try {
    nlohmann::json version = DevicesSeen();
    version["version"] = kVersion;
    std::cout << version.dump() << std::endl;
    return static_cast<int>(ExitCode::kDone);
  } catch (...) {
    return Report(CurrentFailure(), nullptr);
  }
}

int Main(int argc, char** argv) {
  spdlog::set_default_logger(spdlog::stderr_color_mt("trainer"));
  spdlog::set_pattern("%Y-%m-%dT%H:%M:%S.%e %^%l%$ %v");
  CLI::App app("Longspan's trainer: extends the context of a language model (LongLoRA)");
  app.require_subcommand(1);
  Flags flags;
  const std::pair<const char*, const char*> commands[] = {
      {"prepare", "tokenise the corpus"},
      {"train", "train, after preparing; goes on from the newest valid checkpoint"},
      {"evaluate", "perplexity of the newest checkpoint, full attention"},
      {"export", "write adapter, merged model and run card of the newest checkpoint"},
      {"run", "all four, each where its result is not there yet"}};
  for (const auto& [name, description] : commands) {
    CLI::App* command = app.add_subcommand(name, description);
    AddRunFlags(*command, flags);
    command->callback([&flags, name = name] { flags.command = name; });
  }
  CLI::App* probe = app.add_subcommand("probe", "loss, logits and gradients of the training step on given tokens");
  probe->add_option("spec", flags.spec_path, "the job file, in JSON")->required();
  AddDeviceFlag(*probe, flags);
  probe->add_option("--tokens", flags.tokens, "input_ids and optionally labels, safetensors")->required();
  probe->add_option("--out", flags.out, "where the result goes, safetensors")->required();
  probe->callback([&flags] { flags.command = "probe"; });
  AddGenerate(app, flags);
  AddMeasure(app, flags);
  AddProfile(app, flags);
  AddVersion(app, flags);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    // CLI11 has exit codes of its own; every mistake in the flags is a bad spec here.
    return app.exit(error) == 0 ? 0 : static_cast<int>(ExitCode::kBadSpec);
  }
  if (flags.command == "version") return VersionCommand(flags);
  if (flags.command == "generate") return GenerateCommand(flags);
  if (flags.command == "measure") return MeasureCommand(flags);
  if (flags.command == "profile") return ProfileCommand(flags);
  return flags.command == "probe" ? ProbeCommand(flags) : RunCommand(flags);
}

}  // namespace
}  // namespace longspan::trainer

int main(int argc, char** argv) {
  longspan::trainer::InstallCountingAllocator();
  return longspan::trainer::Main(argc, argv);
}

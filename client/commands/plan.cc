// longspan plan
#include <fmt/format.h>
#include <google/protobuf/util/json_util.h>

#include <algorithm>
#include <cctype>
#include <fstream>
#include <iterator>
#include <map>
#include <set>

#include "client/command.h"
#include "client/job_source.h"
#include "client/message_json.h"
#include "client/yaml_document.h"
#include "proto/support/enum_words.h"
#include "proto/support/job_spec_messages.h"

namespace longspan::client {
namespace {

using Bytes = std::map<std::string, int64_t>;

struct PlanOptions {
  std::string file;
  std::vector<std::string> changes;
  std::string device_profile, device_memory, host_memory;
};

// "12GiB", or bytes.
int64_t BytesOf(const char* flag, const std::string& text) {
  const bool plain = !text.empty() && text.size() < 18 && text.find_first_not_of("0123456789") == std::string::npos;
  if (plain) return std::stoll(text);
  const auto bytes = jobfile::ParseBytes(text);
  if (!bytes) throw CommandError(kExitUsage, fmt::format("{} {}: must be bytes, or a size such as 12GiB", flag, text));
  return *bytes;
}

// A file in JSON or YAML whose keys are the fields of the message; dtype is fp32 or bf16.
v1::DeviceProfile ReadProfile(const std::string& path) {
  const auto fail = [&](const std::string& why) {
    return CommandError(kExitUsage, fmt::format("--device-profile {}: {}", path, why));
  };
  std::ifstream file(path, std::ios::binary);
  if (!file) throw fail("cannot be read");
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  YamlDocument source = ParseYaml(text);
  if (!source.mistakes.empty()) throw fail(jobfile::ToString(source.mistakes.front()));
  nlohmann::json& document = source.document;
  if (!document.is_object()) throw fail("must be a map of keys");
  if (document.contains("dtype") && document["dtype"].is_string()) {
    std::string word = document["dtype"].get<std::string>();
    std::transform(word.begin(), word.end(), word.begin(), [](unsigned char c) { return std::toupper(c); });
    document["dtype"] = "DTYPE_" + word;
  }
  v1::DeviceProfile profile;
  const auto status = google::protobuf::util::JsonStringToMessage(document.dump(), &profile);
  if (!status.ok()) throw fail(std::string(status.message()));
  return profile;
}

// 1.5e15 -> "1.5 PFLOP".
std::string FlopsText(double flops) {
  constexpr const char* kUnits[] = {"", "k", "M", "G", "T", "P", "E", "Z", "Y"};
  size_t unit = 0;
  while (flops >= 1000 && unit + 1 < std::size(kUnits)) {
    flops /= 1000;
    ++unit;
  }
  return fmt::format("{:.1f} {}FLOP", flops, kUnits[unit]);
}

std::string RateText(double per_second) {
  return per_second < 10 ? fmt::format("{:.2g}", per_second) : CountText(static_cast<int64_t>(per_second));
}

std::string SecondsText(double seconds) {
  return seconds < 10 ? fmt::format("{:.2g} s", seconds) : DurationText(seconds);
}

// Kinds in the order in which people read them; what a newer server knows besides comes last.
std::vector<std::string> KindsOf(const Bytes& device, const Bytes& host) {
  std::vector<std::string> kinds = {"weights", "gradients",   "optimizer", "activations", "workspace",
                                    "batch",   "collectives", "tokens",    "checkpoint"};
  std::set<std::string> others;
  for (const Bytes& map : {device, host}) {
    for (const auto& [kind, bytes] : map) others.insert(kind);
  }
  for (const std::string& kind : kinds) others.erase(kind);
  kinds.insert(kinds.end(), others.begin(), others.end());
  return kinds;
}

void PrintMemory(const Context& context, const v1::PlanJobResponse& plan) {
  const Bytes device(plan.memory_bytes().begin(), plan.memory_bytes().end());
  const Bytes host(plan.host_memory_bytes().begin(), plan.host_memory_bytes().end());
  const auto cell = [](const Bytes& map, const std::string& kind) {
    const auto found = map.find(kind);
    return found == map.end() || found->second == 0 ? std::string() : BytesText(found->second);
  };
  Table table({"MEMORY OF A RANK", ">DEVICE", ">HOST"});
  int64_t host_total = 0;
  for (const auto& [kind, bytes] : host) host_total += bytes;
  for (const std::string& kind : KindsOf(device, host)) {
    if (cell(device, kind).empty() && cell(host, kind).empty()) continue;
    table.Add({kind, cell(device, kind), cell(host, kind)});
  }
  table.Add({"together", BytesText(plan.device_bytes()), host_total > 0 ? BytesText(host_total) : ""});
  if (plan.device_bytes_limit() > 0) table.Add({"there is", BytesText(plan.device_bytes_limit()), ""});
  table.Print(context.out(), context.environment.width);
}

// On the device and in host memory together.
std::string KeptText(const v1::PlanJobResponse& plan) {
  std::string text;
  for (const auto& [part, bytes] : Bytes(plan.kept_bytes().begin(), plan.kept_bytes().end())) {
    if (bytes > 0) text += fmt::format("{}{} {}", text.empty() ? "" : ", ", part, BytesText(bytes));
  }
  return text;
}

std::string PolicyKeys(const v1::MemorySpec& policy) {
  const auto* keep = v1::MemorySpec::Keep_descriptor()->FindValueByNumber(policy.keep());
  return fmt::format(
      "keep: {}, checkpoint_every: {}, host_layers: {}, tile_tokens: {}, loss_tile_tokens: {}, tile_heads: {}",
      keep == nullptr ? "?" : LowerCaseWord(*keep), policy.checkpoint_every(), policy.host_layers(),
      policy.tile_tokens(), policy.loss_tile_tokens(), policy.tile_heads());
}

// A name in the first columns, and text beside it, broken between words.
void PrintFact(const Context& context, const std::string& name, const std::string& text) {
  constexpr size_t kNameColumns = 18;
  const auto width =
      static_cast<size_t>(std::max(40, context.environment.width > 0 ? context.environment.width : 1000));
  std::string label = name;
  for (const std::string& line : FoldedAtWords(WithoutControls(text), width - kNameColumns)) {
    context.out() << fmt::format("{:<{}}{}\n", label, kNameColumns, line);
    label.clear();
  }
}

void Print(const Context& context, const v1::PlanJobResponse& plan) {
  if (!plan.memory_bytes().empty()) {
    PrintMemory(context, plan);
    context.out() << "\n";
    PrintFact(context, "activations", KeptText(plan));
    PrintFact(context, "policy", plan.policy_summary());
    PrintFact(context, "  as `memory`", PolicyKeys(plan.policy()));
    PrintFact(context, "trains", fmt::format("{} values", CountText(plan.trained_parameters())));
    PrintFact(context, "work",
              fmt::format("{} per token, {} per step; {} with what is computed again", FlopsText(plan.token_flops()),
                          FlopsText(plan.step_flops()), FlopsText(plan.executed_step_flops())));
    PrintFact(context, "speed",
              fmt::format("about {} tokens/s, {} per step ({})", RateText(plan.tokens_per_second()),
                          SecondsText(plan.step_seconds()), plan.device_profile()));
    if (plan.has_longest_context()) {
      PrintFact(context, "longest context",
                plan.longest_context() > 0 ? fmt::format("{} tokens", CountText(plan.longest_context())) : "none fits");
    }
  }
  PrintFact(context, "verdict", plan.summary());
}

int Plan(const Context& context, const PlanOptions& options) {
  v1::PlanJobRequest request;
  *request.mutable_spec() = jobfile::ToMessage(ReadJobFile(options.file, options.changes, context.environment));
  if (!options.device_profile.empty()) *request.mutable_device_profile() = ReadProfile(options.device_profile);
  if (!options.device_memory.empty()) request.set_device_bytes(BytesOf("--device-memory", options.device_memory));
  if (!options.host_memory.empty()) request.set_host_bytes(BytesOf("--host-memory", options.host_memory));
  const auto response = context.Connect().Call(&v1::TrainingService::Stub::PlanJob, request);
  if (context.format == OutputFormat::kTable) {
    Print(context, response);
  } else {
    PrintEnvelope(context.out(), context.format, "Plan", ToJson(response));
  }
  return response.verdict() == v1::PlanJobResponse::VERDICT_DOES_NOT_FIT ? kExitRefused : kExitSucceeded;
}

}  // namespace

void AddPlan(CLI::App& app, Context& context) {
  auto options = std::make_shared<PlanOptions>();
  CLI::App* command = AddCommand(app, context, "plan",
                                 "Memory and time a job would take, without a job (exit code 6: "
                                 "it does not fit)",
                                 options, &Plan);
  command->add_option("FILE", options->file, "Job file in YAML or JSON; - for standard input")->required();
  command->add_option("--set", options->changes, "Change a key, such as training.steps=100")->allow_extra_args(false);
  command->add_option("--device-memory", options->device_memory,
                      "Memory that a rank has, such as 80GiB; that of a registered slot when absent");
  command->add_option("--host-memory", options->host_memory, "Host memory for kept values, such as 128GiB");
  command->add_option("--device-profile", options->device_profile,
                      "File with the rates of a device; published ones of the slot's device when absent");
  AddOutputFlag(command, context);
}

}  // namespace longspan::client

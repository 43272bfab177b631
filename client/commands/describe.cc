// longspan describe
#include <fmt/format.h>

#include "client/command.h"
#include "client/job_report.h"
#include "client/message_json.h"
#include "client/progress.h"
#include "proto/support/enum_words.h"

namespace longspan::client {
namespace {

struct DescribeOptions {
  std::string job;
};

void PrintFact(std::ostream& out, const std::string& name, const std::string& value) {
  if (!value.empty()) out << fmt::format("{:<13} {}\n", name, WithoutControls(value));
}

std::string TimeAndAge(const google::protobuf::Timestamp& time, bool present, const Context& context) {
  return present ? fmt::format("{} ({})", TimeText(time), AgeText(time, context.environment.now())) : "";
}

std::string RanksText(const v1::Attempt& attempt) {
  std::string text;
  for (const v1::RankPlacement& rank : attempt.ranks()) {
    text += fmt::format("{}{}:{}", text.empty() ? "" : " ", rank.rank(), rank.worker_id());
    if (text.size() > 60) return text + " ...";
  }
  return text;
}

// With the size of the gang, where it may have several.
std::string SlotsAndSize(const v1::Job& job) {
  std::string text = SlotsText(job.spec().resources());
  const bool runs = !job.attempts().empty() && !job.attempts().rbegin()->has_end_time();
  if (!runs || !job.spec().resources().has_slots_min() || job.attempts().rbegin()->phase() == v1::PHASE_PREPARE)
    return text;
  return fmt::format("{}, now {}", text, job.attempts().rbegin()->ranks_size());
}

std::string RequirementsText(const v1::ResourcesSpec& resources) {
  std::string text;
  for (const auto& [key, value] :
       std::map<std::string, std::string>(resources.require().begin(), resources.require().end()))
    text += fmt::format("{}{}: {}", text.empty() ? "" : ", ", key, value);
  if (resources.has_memory_bytes_min()) {
    text += fmt::format("{}{} a slot", text.empty() ? "" : ", ", BytesText(resources.memory_bytes_min()));
  }
  return text;
}

std::string ExpectedStartText(const v1::Job& job, const Context& context) {
  if (job.queue_position() == 0) return "";
  if (!job.has_expected_start_time()) return "not known";
  return fmt::format("{}, by estimates ({})", UntilText(job.expected_start_time(), context.environment.now()),
                     TimeText(job.expected_start_time()));
}

std::string ReservedText(const v1::Job& job, const Context& context) {
  std::string text;
  for (const v1::ReservedSlot& slot : job.reserved_slots()) {
    if (text.size() > 60) {
      text += " ...";
      break;
    }
    text += fmt::format("{}{}:{}", text.empty() ? "" : " ", slot.worker_id(), slot.slot());
  }
  if (text.empty()) return "";
  return fmt::format("{}; lapses {}", text, UntilText(job.reserved_until_time(), context.environment.now()));
}

std::string TimesText(int64_t count) { return count == 1 ? "once" : fmt::format("{} times", count); }

void PrintAttempts(std::ostream& out, const v1::Job& job, int width) {
  if (job.attempts().empty()) return;
  out << "\n";
  Table table({">ATTEMPT", "PHASE", "STARTED", ">TOOK", "ENDED BY", "RANKS", "MESSAGE"});
  for (const v1::Attempt& attempt : job.attempts()) {
    const bool ended = attempt.has_end_time();
    const double seconds =
        std::chrono::duration<double>(TimeOf(attempt.end_time()) - TimeOf(attempt.start_time())).count();
    const bool failed = attempt.failure_class() != v1::FAILURE_CLASS_UNSPECIFIED;
    table.Add({std::to_string(attempt.number()), PhaseWord(attempt.phase()), TimeText(attempt.start_time()),
               ended ? DurationText(seconds) : "",
               failed  ? WordOf(attempt.failure_class())
               : ended ? "end"
                       : "",
               RanksText(attempt), attempt.message()});
  }
  table.Print(out, width);
}

int Describe(const Context& context, const DescribeOptions& options) {
  v1::GetJobRequest request;
  request.set_job_id(options.job);
  const v1::Job job = context.Connect().Call(&v1::TrainingService::Stub::GetJob, request).job();
  if (context.format != OutputFormat::kTable) {
    PrintEnvelope(context.out(), context.format, "Job", ToJson(job));
    return kExitSucceeded;
  }
  std::ostream& out = context.out();
  const int width = context.environment.out_is_terminal ? context.environment.width : 0;
  PrintFact(out, "Job", job.job_id());
  PrintFact(out, "Name", job.spec().name());
  PrintFact(out, "Stands at", WhereItStands(job));
  PrintFact(out, "Queue",
            fmt::format("{}, priority {}", job.spec().has_queue() ? job.spec().queue() : "default",
                        job.spec().has_priority() ? job.spec().priority() : 50));
  PrintFact(out, "Slots", SlotsAndSize(job));
  PrintFact(out, "Requires", RequirementsText(job.spec().resources()));
  PrintFact(out, "Starts", ExpectedStartText(job, context));
  PrintFact(out, "Reserved", ReservedText(job, context));
  if (job.preemptions() > 0) PrintFact(out, "Preempted", TimesText(job.preemptions()));
  PrintFact(out, "Model", job.spec().model().path());
  PrintFact(out, "Context", CountText(job.spec().context_length()) + " tokens");
  PrintFact(out, "Owner", job.owner());
  PrintFact(out, "Submitted", TimeAndAge(job.submit_time(), job.has_submit_time(), context));
  PrintFact(out, "Started", TimeAndAge(job.start_time(), job.has_start_time(), context));
  PrintFact(out, "Ended", TimeAndAge(job.end_time(), job.has_end_time(), context));
  if (job.has_progress()) PrintFact(out, "Progress", ProgressLine(job.progress(), Pace(), false, false, 0));
  if (job.has_latest_checkpoint()) PrintFact(out, "Checkpoint", job.latest_checkpoint().name());
  PrintFact(out, "Folder", job.folder());
  for (const v1::Artifact& artifact : job.artifacts()) PrintFact(out, ArtifactName(artifact.kind()), artifact.path());
  PrintExample(out, job, width);
  if (!job.evaluations().empty()) out << "\n";
  PrintPerplexity(out, job);
  PrintScores(out, job);
  PrintAttempts(out, job, width);
  return kExitSucceeded;
}

}  // namespace

void AddDescribe(CLI::App& app, Context& context) {
  auto options = std::make_shared<DescribeOptions>();
  CLI::App* command =
      AddCommand(app, context, "describe", "Everything about a job, and why it is not running", options, &Describe);
  command->add_option("JOB", options->job, "Id, or a name that one job has")->required();
  AddOutputFlag(command, context);
}

}  // namespace longspan::client

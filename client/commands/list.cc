// longspan list
#include <fmt/format.h>

#include <algorithm>

#include "client/command.h"
#include "client/job_report.h"
#include "client/message_json.h"
#include "proto/support/enum_words.h"

namespace longspan::client {
namespace {

constexpr int kPageSize = 200;

struct ListOptions {
  std::vector<std::string> states;
  std::vector<std::string> labels;
  std::string queue;
  int limit = 50;
};

v1::JobState ParseState(std::string word) {
  for (char& c : word) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  v1::JobState state;
  if (word == "UNSPECIFIED" || !v1::JobState_Parse("JOB_STATE_" + word, &state)) {
    throw CommandError(kExitUsage, fmt::format("--state {}: no such state", word));
  }
  return state;
}

v1::ListJobsRequest RequestOf(const ListOptions& options) {
  v1::ListJobsRequest request;
  request.set_queue(options.queue);
  for (const std::string& state : options.states) request.add_states(ParseState(state));
  for (const std::string& label : options.labels) {
    const size_t equals = label.find('=');
    if (equals == std::string::npos)
      throw CommandError(kExitUsage, fmt::format("--label {}: must be key=value", label));
    (*request.mutable_labels())[label.substr(0, equals)] = label.substr(equals + 1);
  }
  return request;
}

std::vector<v1::Job> AllPages(const Connection& connection, v1::ListJobsRequest request, size_t limit) {
  std::vector<v1::Job> jobs;
  do {
    request.set_page_size(static_cast<int>(std::min<size_t>(kPageSize, limit - jobs.size())));
    auto response = connection.Call(&v1::TrainingService::Stub::ListJobs, request);
    for (v1::Job& job : *response.mutable_jobs()) jobs.push_back(std::move(job));
    request.set_page_token(response.next_page_token());
  } while (!request.page_token().empty() && jobs.size() < limit);
  return jobs;
}

std::string StepText(const v1::Job& job) {
  if (!job.has_progress()) return "";
  return fmt::format("{}/{}", job.progress().step(), job.progress().steps());
}

std::string LossText(const v1::Job& job) {
  const auto loss = job.progress().values().find("loss");
  return loss == job.progress().values().end() ? "" : fmt::format("{:.4f}", loss->second);
}

std::string PositionText(const v1::Job& job) {
  return job.queue_position() > 0 ? std::to_string(job.queue_position()) : "";
}

std::string StartText(const v1::Job& job, std::chrono::system_clock::time_point now) {
  if (job.queue_position() == 0) return "";
  return job.has_expected_start_time() ? UntilText(job.expected_start_time(), now) : "?";
}

int List(const Context& context, const ListOptions& options) {
  const v1::ListJobsRequest request = RequestOf(options);
  const std::vector<v1::Job> jobs = AllPages(context.Connect(), request, static_cast<size_t>(options.limit));
  if (context.format != OutputFormat::kTable) {
    nlohmann::ordered_json items = nlohmann::ordered_json::array();
    for (const v1::Job& job : jobs) items.push_back(ToJson(job));
    PrintEnvelope(context.out(), context.format, "Job", std::move(items));
    return kExitSucceeded;
  }
  if (jobs.empty()) {
    context.err() << "no jobs\n";
    return kExitSucceeded;
  }
  // How a job waits is asked only where one does.
  const bool any_waits =
      std::any_of(jobs.begin(), jobs.end(), [](const auto& job) { return job.queue_position() > 0; });
  std::vector<std::string> headings = {"JOB", "NAME", "STATE", ">SLOTS", ">STEP", ">LOSS", ">SUBMITTED"};
  if (any_waits) headings.insert(headings.end(), {">POSITION", ">STARTS"});
  headings.emplace_back("WHY");
  Table table(headings);
  for (const v1::Job& job : jobs) {
    std::vector<std::string> cells = {job.job_id(),
                                      job.spec().name(),
                                      WordOf(job.state()),
                                      SlotsText(job.spec().resources()),
                                      StepText(job),
                                      LossText(job),
                                      AgeText(job.submit_time(), context.environment.now())};
    if (any_waits) cells.insert(cells.end(), {PositionText(job), StartText(job, context.environment.now())});
    cells.push_back(job.status_message().empty() ? job.reason() : job.status_message());
    table.Add(cells);
  }
  table.Print(context.out(), context.environment.out_is_terminal ? context.environment.width : 0);
  return kExitSucceeded;
}

}  // namespace

void AddList(CLI::App& app, Context& context) {
  auto options = std::make_shared<ListOptions>();
  CLI::App* command = AddCommand(app, context, "list", "Jobs, newest first", options, &List);
  command->add_option("--state", options->states, "Only this state, such as running (again for more)")
      ->allow_extra_args(false);
  command->add_option("--label", options->labels, "Only jobs with this label, key=value")->allow_extra_args(false);
  command->add_option("--queue", options->queue, "Only this queue");
  command->add_option("--limit", options->limit, "At most this many")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  AddOutputFlag(command, context);
}

}  // namespace longspan::client

// longspan logs
#include "client/command.h"

namespace longspan::client {
namespace {

// A follower whose server went away asks again for this long.
constexpr auto kServerAwayMax = std::chrono::minutes(2);
constexpr auto kStreamDeadline = std::chrono::hours(24 * 30);
constexpr auto kRetryPause = std::chrono::milliseconds(500);

struct LogsOptions {
  std::string job;
  int64_t rank = 0;
  int64_t attempt = 0;
  bool follow = false;
};

int Logs(const Context& context, const LogsOptions& options) {
  const Connection connection = context.Connect();
  v1::StreamLogsRequest request;
  request.set_job_id(options.job);
  request.set_rank(options.rank);
  request.set_attempt(options.attempt);
  request.set_follow(options.follow);
  auto last_answer = std::chrono::steady_clock::now();
  for (;;) {
    grpc::ClientContext call;
    connection.Prepare(&call, kStreamDeadline);
    const auto stream = connection.stub().StreamLogs(&call, request);
    v1::StreamLogsResponse response;
    while (stream->Read(&response)) {
      context.out() << response.data() << std::flush;
      request.set_offset(response.next_offset());
      last_answer = std::chrono::steady_clock::now();
    }
    const grpc::Status status = stream->Finish();
    if (status.ok()) return kExitSucceeded;
    const bool again = (status.error_code() == grpc::StatusCode::UNAVAILABLE ||
                        status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED) &&
                       options.follow && request.offset() > 0 &&
                       std::chrono::steady_clock::now() - last_answer < kServerAwayMax;
    if (!again) connection.Throw(status);
    context.environment.sleep(kRetryPause);
  }
}

}  // namespace

void AddLogs(CLI::App& app, Context& context) {
  auto options = std::make_shared<LogsOptions>();
  CLI::App* command = AddCommand(app, context, "logs", "Log of one rank of a job", options, &Logs);
  command->add_option("JOB", options->job, "Id, or a name that one job has")->required();
  command->add_option("--rank", options->rank, "Rank")->check(CLI::NonNegativeNumber)->capture_default_str();
  command->add_option("--attempt", options->attempt, "Attempt; the newest when absent")->check(CLI::PositiveNumber);
  command->add_flag("-f,--follow", options->follow, "Wait for more until the attempt ends");
}

}  // namespace longspan::client

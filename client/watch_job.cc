#include "client/watch_job.h"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "client/command.h"
#include "client/job_report.h"
#include "client/message_json.h"
#include "client/progress.h"
#include "proto/jobfile/job_file.h"
#include "proto/support/enum_words.h"

namespace longspan::client {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kServerAwayMax = std::chrono::minutes(2);
constexpr auto kRetryPause = std::chrono::milliseconds(500);
constexpr auto kForEver = std::chrono::hours(24 * 365);
constexpr int kPlainLines = 20;  // of progress, over a whole phase
constexpr int kCurveWidthMax = 90;
constexpr int kCurveHeight = 11;

// Draws what happens. Quiet for scripts.
class Screen {
 public:
  Screen(const Environment& environment, bool quiet) : environment_(environment), quiet_(quiet) {}

  void Event(const v1::JobEvent& event) {
    const std::time_t seconds = event.time().seconds();
    Line(fmt::format("{:%H:%M:%S}  {:<10} {}", fmt::localtime(seconds), WordOf(event.state()),
                     WithoutControls(event.message().empty() ? event.reason() : event.message())));
  }

  void Progress(const v1::ProgressSample& sample) {
    pace_.Add(sample);
    if (quiet_) return;
    if (environment_.out_is_terminal) {
      bar_ = ProgressLine(sample, pace_, true, environment_.utf8, environment_.width);
      *environment_.out << "\r\x1b[K" << bar_ << std::flush;
    } else if (IsWorthALine(sample)) {
      Line(ProgressLine(sample, pace_, false, false, 0));
    }
  }

  void Line(const std::string& text) {
    if (quiet_) return;
    *environment_.out << (bar_.empty() ? "" : "\r\x1b[K") << text << "\n" << bar_ << std::flush;
  }

  // The bar has done its work; what follows is ordinary text.
  void End() {
    if (!bar_.empty()) *environment_.out << "\n";
    bar_.clear();
  }

 private:
  // The first and the last step of a phase and some between: the same lines whatever the pace.
  bool IsWorthALine(const v1::ProgressSample& sample) {
    const int64_t part = sample.steps() > 0 ? sample.step() * kPlainLines / sample.steps() : 0;
    const std::tuple key(sample.attempt(), sample.phase(), part);
    if (key == last_) return false;
    last_ = key;
    return true;
  }

  const Environment& environment_;
  bool quiet_;
  Pace pace_;
  std::string bar_;
  std::tuple<int64_t, v1::Phase, int64_t> last_{};
};

class Watcher {
 public:
  Watcher(const Connection& connection, const WatchOptions& options, const Environment& environment)
      : connection_(connection),
        options_(options),
        environment_(environment),
        screen_(environment, options.format != OutputFormat::kTable) {}

  int Run() {
    const auto begin = Clock::now();
    auto last_answer = begin;
    for (;;) {
      const auto left = options_.timeout
                            ? std::chrono::milliseconds(*options_.timeout) -
                                  std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - begin)
                            : std::chrono::milliseconds(kForEver);
      if (left.count() <= 0) return TimedOut();
      answered_ = false;
      const grpc::Status status = Stream(left);
      if (ended_ || (status.ok() && IsTerminal(job_.state()))) return Finish();
      if (answered_) last_answer = Clock::now();
      if (status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED && options_.timeout) continue;
      // A closed stream is opened again: the server restarts, or this client read too slowly.
      const bool retry = status.ok() || status.error_code() == grpc::StatusCode::UNAVAILABLE ||
                         status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED;
      if (!retry || (job_.job_id().empty() && !status.ok() && ++first_failures_ > 3) ||
          Clock::now() - last_answer > kServerAwayMax) {
        screen_.End();
        connection_.Throw(status);
      }
      environment_.sleep(kRetryPause);
    }
  }

 private:
  // One stream from where the last one ended.
  grpc::Status Stream(std::chrono::milliseconds deadline) {
    grpc::ClientContext context;
    connection_.Prepare(&context, deadline);
    v1::WatchJobRequest request;
    request.set_job_id(options_.job_id);
    request.set_after_event(after_event_);
    request.set_after_progress(after_progress_);
    const auto stream = connection_.stub().WatchJob(&context, request);
    jobs_in_stream_ = 0;
    v1::WatchJobResponse response;
    while (!ended_ && stream->Read(&response)) {
      answered_ = true;
      Take(response);
    }
    if (ended_) context.TryCancel();
    return stream->Finish();
  }

  void Take(const v1::WatchJobResponse& response) {
    switch (response.update_case()) {
      case v1::WatchJobResponse::kEvent:
        after_event_ = std::max(after_event_, response.event().sequence());
        return screen_.Event(response.event());
      case v1::WatchJobResponse::kProgress:
        return TakeProgress(response.progress());
      case v1::WatchJobResponse::kJob:
        return TakeJob(response.job());
      case v1::WatchJobResponse::kEvaluation:  // comes with the job at its end, all rows in one table
      case v1::WatchJobResponse::UPDATE_NOT_SET:
        return;
    }
  }

  void TakeProgress(const v1::ProgressSample& sample) {
    after_progress_ = std::max(after_progress_, sample.sequence());
    const auto loss = sample.values().find("loss");
    // A restarted attempt repeats steps: the newest value of each counts.
    if (sample.phase() == v1::PHASE_TRAIN && loss != sample.values().end()) losses_[sample.step()] = loss->second;
    screen_.Progress(sample);
  }

  // The job comes first and last. Told first in a terminal state, its events and samples are still on their way: it
  // ends with the stream, or with its second coming.
  void TakeJob(const v1::Job& job) {
    const bool first = jobs_in_stream_++ == 0;
    job_ = job;
    if (job.state() == v1::JOB_STATE_PAUSED)
      screen_.Line(fmt::format("{} is paused; still waiting (longspan resume {})", job.job_id(), job.job_id()));
    ended_ = IsTerminal(job.state()) && !first;
  }

  int TimedOut() {
    screen_.End();
    *environment_.err << fmt::format(
        "longspan: {} is still {} after {}; it goes on, and `longspan watch {}` follows it\n", options_.job_id,
        WordOf(job_.state()), DurationText(static_cast<double>(options_.timeout->count())), options_.job_id);
    return kExitTimeout;
  }

  int Finish() {
    screen_.End();
    if (options_.format != OutputFormat::kTable) {
      PrintEnvelope(*environment_.out, options_.format, "Job", ToJson(job_));
    } else {
      std::vector<CurvePoint> curve;
      for (const auto& [step, loss] : losses_) curve.push_back({static_cast<double>(step), loss});
      PrintResult(*environment_.out, job_, curve,
                  {std::min(environment_.width, kCurveWidthMax), kCurveHeight, environment_.utf8});
    }
    return ExitCodeOf(job_.state());
  }

  const Connection& connection_;
  const WatchOptions& options_;
  const Environment& environment_;
  Screen screen_;
  v1::Job job_;
  std::map<int64_t, double> losses_;
  int64_t after_event_ = 0;
  int64_t after_progress_ = 0;
  int jobs_in_stream_ = 0;
  int first_failures_ = 0;
  bool answered_ = false;
  bool ended_ = false;
};

}  // namespace

std::optional<std::chrono::seconds> ParseTimeout(const std::string& text) {
  if (text.empty()) return std::nullopt;
  const auto seconds = jobfile::ParseDurationSeconds(text);
  if (!seconds)
    throw CommandError(kExitUsage, fmt::format("--timeout {}: must be a duration such as 90s or 2h30m", text));
  return std::chrono::seconds(*seconds);
}

int WatchJob(const Connection& connection, const WatchOptions& options, const Environment& environment) {
  return Watcher(connection, options, environment).Run();
}

}  // namespace longspan::client

// What tests of commands begin with: a server inside the test, a client, a job file.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "tests/client/fake_server.h"
#include "tests/temporary_folder.h"

namespace longspan::client {

namespace fs = std::filesystem;
using nlohmann::json;

inline constexpr char kJobFile[] = R"(name: extend
model: {path: model}
data:
  sources: [corpus.txt]
context_length: 1024
)";

class CommandsTest : public ::testing::Test {
 protected:
  CommandsTest() {
    client_.variables["LONGSPAN_ADDRESS"] = server_.address;
    server_.service.job.set_job_id("job-1");
    server_.service.job.set_state(v1::JOB_STATE_QUEUED);
    server_.service.job.mutable_submit_time()->set_seconds(999'000);
    std::ofstream(JobFile()) << kJobFile;
  }

  std::string JobFile() const { return folder_ / "job.yaml"; }
  static json ItemsOf(const Result& result) { return json::parse(result.out).at("items"); }

  // A script of a watch: the job, some samples, the job at its end.
  static FakeService::WatchScript Script(v1::Job first, std::vector<v1::WatchJobResponse> between,
                                         std::optional<v1::Job> last, grpc::Status status = grpc::Status::OK) {
    return [=](const v1::WatchJobRequest&, grpc::ServerWriter<v1::WatchJobResponse>* writer) {
      v1::WatchJobResponse response;
      *response.mutable_job() = first;
      writer->Write(response);
      for (const auto& update : between) writer->Write(update);
      if (last) {
        *response.mutable_job() = *last;
        writer->Write(response);
      }
      return status;
    };
  }
  v1::WatchJobResponse Sample(int64_t sequence, int64_t step, double loss) const {
    v1::WatchJobResponse response;
    v1::ProgressSample& sample = *response.mutable_progress();
    sample.set_sequence(sequence);
    sample.set_attempt(1);
    sample.set_phase(v1::PHASE_TRAIN);
    sample.set_step(step);
    sample.set_steps(10);
    (*sample.mutable_values())["loss"] = loss;
    (*sample.mutable_values())["tokens_per_second"] = 12345;
    sample.mutable_time()->set_seconds(1000 + 2 * step);
    return response;
  }
  v1::WatchJobResponse Event(int64_t sequence, v1::JobState state, const std::string& message) const {
    v1::WatchJobResponse response;
    response.mutable_event()->set_sequence(sequence);
    response.mutable_event()->set_state(state);
    response.mutable_event()->set_message(message);
    return response;
  }
  v1::Job JobIn(v1::JobState state) const {
    v1::Job job = server_.service.job;
    job.set_state(state);
    return job;
  }
  v1::Job Succeeded() const {
    v1::Job job = JobIn(v1::JOB_STATE_SUCCEEDED);
    const auto add = [&job](const char* model, int64_t length, double perplexity, int64_t step) {
      v1::EvaluationRow& row = *job.add_evaluations();
      row.set_model(model);
      row.set_length(length);
      row.set_protocol("windows");
      row.set_perplexity(perplexity);
      row.set_step(step);
    };
    add("base", 256, 5.25, 0);
    add("base", 1024, 123456.0, 0);
    add("rescaled", 1024, 34.5, 0);
    add("extended", 1024, 9.75, 5);
    add("extended", 1024, 8.5, 10);
    for (const auto& [kind, path] : std::map<std::string, std::string>{
             {"adapter", "/s/jobs/job-1/adapter"}, {"merged", "/s/jobs/job-1/merged"}, {"dataset", "/s/d"}}) {
      v1::Artifact& artifact = *job.add_artifacts();
      artifact.set_kind(kind);
      artifact.set_path(path);
    }
    return job;
  }

  const testing::TemporaryFolder temporary_folder_;
  const fs::path folder_ = temporary_folder_.path();
  FakeServer server_;
  TestClient client_;
};

}  // namespace longspan::client

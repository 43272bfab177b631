// Commands that change something, and what all commands share: errors, addresses, completion.
#include <fstream>
#include <sstream>

#include "client/exit_codes.h"
#include "tests/client/commands_fixture.h"
#include "worker/storage/storage.h"

namespace longspan::client {
namespace {

using ::testing::HasSubstr;

TEST_F(CommandsTest, QueuesAreATableAndChangedByWhatIsSaid) {
  EXPECT_THAT(client_.Run({"queues"}).err, HasSubstr("no queues"));
  v1::Queue& queue = *server_.service.queues.add_queues();
  queue.set_name("research");
  queue.set_weight(2.5);
  queue.set_slots_in_use(3);
  queue.set_slots_max(8);
  queue.set_queued(4);
  queue.mutable_run_time_default()->set_seconds(8 * 3600);
  queue.set_used_share(0.621);
  queue.set_expected_share(0.5);
  EXPECT_THAT(client_.Run({"queues"}).out, ::testing::ContainsRegex("research +2.5 +3 of 8 +4 +62% +50% +8h\n"));
  queue.set_expected_share(0);
  EXPECT_THAT(client_.Run({"queues"}).out, ::testing::ContainsRegex("62% +- +8h\n"));
  const json item = ItemsOf(client_.Run({"queues", "-o", "json"}))[0];
  EXPECT_EQ(item["name"], "research");
  EXPECT_EQ(item["run_time_default"], 28800);

  const Result set =
      client_.Run({"queues", "set", "research", "--weight", "2", "--run-time-default", "2h", "-o", "json"});
  EXPECT_EQ(set.exit_code, kExitSucceeded) << set.err;
  ASSERT_EQ(server_.service.queue_updates.size(), 1u);
  const v1::UpdateQueueRequest request = server_.service.queue_updates[0];
  EXPECT_EQ(request.queue().name(), "research");
  EXPECT_EQ(request.queue().weight(), 2);
  EXPECT_EQ(request.queue().run_time_default().seconds(), 7200);
  EXPECT_THAT(request.update_mask().paths(), ::testing::ElementsAre("weight", "run_time_default"));
  EXPECT_EQ(ItemsOf(set).size(), 1u) << "the queue, and not the list";
  client_.Run({"queues", "set", "research", "--slots-max", "0", "--waiting-max", "7"});
  EXPECT_THAT(server_.service.queue_updates[1].update_mask().paths(),
              ::testing::ElementsAre("slots_max", "queued_max"));
  EXPECT_EQ(server_.service.queue_updates[1].queue().queued_max(), 7);

  EXPECT_THAT(client_.Run({"queues", "set", "research"}).err, HasSubstr("nothing to change; give --weight"));
  EXPECT_EQ(client_.Run({"queues", "set", "research"}).exit_code, kExitUsage);
  EXPECT_EQ(client_.Run({"queues", "set", "--weight", "1"}).exit_code, kExitUsage);
  EXPECT_THAT(client_.Run({"queues", "set", "research", "--run-time-default", "long"}).err, HasSubstr("such as 90s"));
  EXPECT_EQ(server_.service.queue_updates.size(), 2u);
}

TEST_F(CommandsTest, UpdateSendsWhatIsSaidAndShowsTheJob) {
  server_.service.job.mutable_spec()->set_priority(90);
  (*server_.service.job.mutable_spec()->mutable_labels())["team"] = "red\x1b";
  const Result result = client_.Run({"update", "job-1", "--priority", "90", "--label", "team=red", "--label", "old="});
  EXPECT_EQ(result.out, "job-1 is QUEUED, priority 90, labels team=red?\n");
  const v1::UpdateJobRequest& request = server_.service.updates[0];
  EXPECT_EQ(request.priority(), 90);
  EXPECT_EQ(request.labels().at("team"), "red");
  EXPECT_EQ(request.labels().at("old"), "");
  client_.Run({"update", "job-1", "--label", "a=b"});
  EXPECT_FALSE(server_.service.updates[1].has_priority());
  EXPECT_EQ(client_.Run({"update", "job-1"}).exit_code, kExitUsage);
  EXPECT_EQ(client_.Run({"update", "job-1", "--label", "team"}).exit_code, kExitUsage);
  EXPECT_EQ(ItemsOf(client_.Run({"update", "job-1", "--priority", "1", "-o", "json"}))[0]["job_id"], "job-1");
}

TEST_F(CommandsTest, DrainMovesRanksOnlyWhenTold) {
  EXPECT_EQ(client_.Run({"drain", "gpu-7"}).exit_code, kExitSucceeded);
  EXPECT_EQ(client_.Run({"drain", "gpu-7", "--move"}).exit_code, kExitSucceeded);
  EXPECT_FALSE(server_.service.drains[0].move());
  EXPECT_TRUE(server_.service.drains[1].move());
}

TEST_F(CommandsTest, ErrorsHaveTheirExitCodes) {
  const Result missing = client_.Run({"describe", "job-7"});
  EXPECT_EQ(missing.exit_code, kExitRefused);
  EXPECT_EQ(missing.err, "longspan: there is no job job-7\n");
  const Result unimplemented = client_.Run({"pause", "job-1"});
  EXPECT_EQ(unimplemented.exit_code, kExitRefused);
  EXPECT_THAT(unimplemented.err, HasSubstr("this server cannot do that yet"));
  EXPECT_EQ(client_.Run({"fly"}).exit_code, kExitUsage);
  EXPECT_EQ(client_.Run({}).exit_code, kExitUsage);
  EXPECT_EQ(client_.Run({"list", "--limit", "0"}).exit_code, kExitUsage);
  EXPECT_EQ(client_.Run({"submit", "/no/such/file.yaml"}).exit_code, kExitUsage);
  EXPECT_EQ(client_.Run({"--help"}).exit_code, kExitSucceeded);
  client_.variables["LONGSPAN_ADDRESS"] = "127.0.0.1:1";
  const Result away = client_.Run({"list"});
  EXPECT_EQ(away.exit_code, kExitConnection);
  EXPECT_THAT(away.err, HasSubstr("cannot reach the server at 127.0.0.1:1"));
  client_.variables["LONGSPAN_ADDRESS"] = "cluster.example:1";
  EXPECT_EQ(client_.Run({"list"}).exit_code, kExitUsage) << "plain text to another machine";
}

TEST_F(CommandsTest, AddressAndTokenComeFromFlagsThenVariablesThenTheFile) {
  std::ofstream(folder_ / "config.yaml") << "address: " << server_.address << "\ntoken: from-file\n";
  client_.variables = {{"LONGSPAN_CONFIG", folder_ / "config.yaml"}};
  EXPECT_EQ(client_.Run({"submit", JobFile()}).exit_code, kExitSucceeded);
  EXPECT_EQ(server_.service.authorization, "Bearer from-file");
  client_.variables["LONGSPAN_TOKEN"] = "from-variable";
  client_.Run({"submit", JobFile()});
  EXPECT_EQ(server_.service.authorization, "Bearer from-variable");
  std::ofstream(folder_ / "token") << "from-flag\n";
  client_.Run({"submit", JobFile(), "--token-file", folder_ / "token"});
  EXPECT_EQ(server_.service.authorization, "Bearer from-flag");
  std::ofstream(folder_ / "config.yaml") << "adress: x\n";
  const Result wrong = client_.Run({"list"});
  EXPECT_EQ(wrong.exit_code, kExitUsage);
  EXPECT_THAT(wrong.err, HasSubstr("unknown key adress"));
}

TEST_F(CommandsTest, DownloadResumesChecksAndStaysInItsFolder) {
  const auto add = [](v1::ListFilesResponse& list, const std::string& path, bool is_folder) {
    list.add_files()->set_path(path);
    list.mutable_files(list.files_size() - 1)->set_is_folder(is_folder);
  };
  add(server_.service.folders[""], "merged", true);
  add(server_.service.folders["merged"], "merged/config.json", false);
  const std::string text = "0123456789";
  server_.service.download_script = [&text](const v1::DownloadFileRequest& request,
                                            grpc::ServerWriter<v1::DownloadFileResponse>* writer) {
    v1::DownloadFileResponse response;
    response.set_data(
        text.substr(static_cast<size_t>(request.offset()), request.offset() == 0 ? 4 : std::string::npos));
    if (request.offset() > 0) response.set_sha256(storage::Sha256Hex(response.data()));
    writer->Write(response);
    return request.offset() == 0 ? grpc::Status(grpc::StatusCode::UNAVAILABLE, "away") : grpc::Status::OK;
  };
  const std::string to = folder_ / "here";
  const Result result = client_.Run({"download", "job-1", "--to", to});
  EXPECT_EQ(result.exit_code, kExitSucceeded) << result.err;
  std::stringstream read;
  read << std::ifstream(folder_ / "here/merged/config.json").rdbuf();
  EXPECT_EQ(read.str(), text);
  EXPECT_EQ(server_.service.downloads.back().offset(), 4);

  server_.service.download_script = [](const v1::DownloadFileRequest&,
                                       grpc::ServerWriter<v1::DownloadFileResponse>* writer) {
    v1::DownloadFileResponse response;
    response.set_data("x");
    response.set_sha256("00");
    writer->Write(response);
    return grpc::Status::OK;
  };
  EXPECT_THAT(client_.Run({"download", "job-1", "merged/none", "--to", to}).err, HasSubstr("no file or folder"));
  EXPECT_THAT(client_.Run({"download", "job-1", "merged", "--to", to}).err, HasSubstr("arrived damaged"));
  server_.service.folders["merged"].mutable_files(0)->set_path("../../escape");
  EXPECT_THAT(client_.Run({"download", "job-1", "merged", "--to", to}).err, HasSubstr("no plain relative path"));
}

TEST_F(CommandsTest, CompletionKnowsEveryCommand) {
  for (const char* shell : {"bash", "zsh", "fish"}) {
    const Result result = client_.Run({"completion", shell});
    EXPECT_EQ(result.exit_code, kExitSucceeded);
    for (const char* command :
         {"submit", "plan",    "list",        "describe", "watch",    "logs",    "cancel",    "delete",
          "pause",  "resume",  "checkpoints", "export",   "download", "queues",  "update",    "slots-max",
          "move",   "workers", "drain",       "undrain",  "dev",      "version", "completion"}) {
      EXPECT_THAT(result.out, HasSubstr(command)) << shell;
    }
  }
  EXPECT_EQ(client_.Run({"completion", "tcsh"}).exit_code, kExitUsage);
  EXPECT_THAT(client_.Run({"version"}).out, ::testing::ContainsRegex("^longspan [0-9]+\\.[0-9]+"));
}

}  // namespace
}  // namespace longspan::client

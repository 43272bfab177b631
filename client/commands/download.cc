// longspan download
#include <fmt/format.h>

#include <filesystem>
#include <fstream>
#include <set>

#include "client/command.h"
#include "client/message_json.h"
#include "worker/storage/sha256.h"
#include "worker/storage/storage.h"

namespace longspan::client {
namespace {

namespace fs = std::filesystem;

constexpr auto kStreamDeadline = std::chrono::hours(24);
constexpr auto kRetryPause = std::chrono::milliseconds(500);
constexpr int kAttemptsWithoutABiteMax = 5;
// What is fetched when nothing is named: the results.
constexpr const char* kResults[] = {
    "adapter",       "merged",     "run_card.json",    "run_card.md",          "evaluation.json",
    "evaluation.md", "evaluation", "passkey-base.svg", "passkey-rescaled.svg", "passkey-extended.svg"};

struct DownloadOptions {
  std::string job;
  std::vector<std::string> paths;
  std::string folder = ".";
};

// A server's word is not enough to write outside of the folder.
void CheckPath(const std::string& path) {
  const fs::path relative(path);
  bool good = !path.empty() && relative.is_relative();
  for (const fs::path& part : relative) good = good && part != ".." && part != "." && !part.empty();
  if (!good)
    throw CommandError(kExitFailed,
                       fmt::format("the server names the file '{}', which is no plain relative path", path));
}

std::vector<v1::FileInfo> FilesBelow(const Connection& connection, const std::string& job, const std::string& folder,
                                     bool recursive) {
  v1::ListFilesRequest request;
  request.set_job_id(job);
  request.set_folder(folder);
  request.set_recursive(recursive);
  const auto response = connection.Call(&v1::TrainingService::Stub::ListFiles, request);
  return {response.files().begin(), response.files().end()};
}

// Every file at or below the paths that were asked for.
std::vector<v1::FileInfo> FilesToFetch(const Connection& connection, const DownloadOptions& options) {
  const bool results_only = options.paths.empty();
  const std::vector<std::string> wanted =
      results_only ? std::vector<std::string>(std::begin(kResults), std::end(kResults)) : options.paths;
  std::vector<v1::FileInfo> files;
  for (const std::string& path : wanted) {
    const fs::path clean = fs::path(path).lexically_normal();
    const std::string parent = clean.parent_path();
    const std::vector<v1::FileInfo> siblings = FilesBelow(connection, options.job, parent, false);
    const auto found = std::find_if(siblings.begin(), siblings.end(),
                                    [&clean](const v1::FileInfo& file) { return fs::path(file.path()) == clean; });
    if (found == siblings.end()) {
      if (results_only) continue;
      throw CommandError(kExitRefused, fmt::format("{} has no file or folder {}", options.job, path));
    }
    if (!found->is_folder()) {
      files.push_back(*found);
      continue;
    }
    for (v1::FileInfo& file : FilesBelow(connection, options.job, clean, true)) {
      if (!file.is_folder()) files.push_back(std::move(file));
    }
  }
  if (files.empty()) throw CommandError(kExitRefused, fmt::format("{} has no results yet", options.job));
  return files;
}

// One stream from where the file on disk ends; the status of the call, or CommandError when its hash disagrees.
grpc::Status FetchFrom(const Connection& connection, const std::string& job, const std::string& path, int64_t offset,
                       std::ofstream& out, int64_t* received) {
  grpc::ClientContext context;
  connection.Prepare(&context, kStreamDeadline);
  v1::DownloadFileRequest request;
  request.set_job_id(job);
  request.set_path(path);
  request.set_offset(offset);
  const auto stream = connection.stub().DownloadFile(&context, request);
  v1::DownloadFileResponse response;
  storage::Sha256 hash;
  std::string expected;
  while (stream->Read(&response)) {
    hash.Add(response.data());
    out.write(response.data().data(), static_cast<std::streamsize>(response.data().size()));
    if (!out)
      throw CommandError(kExitFailed, fmt::format("cannot write {}: {}", path, std::generic_category().message(errno)));
    *received += static_cast<int64_t>(response.data().size());
    if (!response.sha256().empty()) expected = response.sha256();
  }
  const grpc::Status status = stream->Finish();
  if (status.ok() && !expected.empty() && hash.Hex() != expected) {
    throw CommandError(kExitFailed, fmt::format("{} arrived damaged: its SHA-256 is not the server's", path));
  }
  return status;
}

void Fetch(const Connection& connection, const Context& context, const std::string& job, const v1::FileInfo& file,
           const fs::path& folder) {
  CheckPath(file.path());
  const fs::path target = folder / file.path();
  const fs::path part = target.native() + ".part";
  fs::create_directories(target.parent_path());
  std::ofstream out(part, std::ios::binary | std::ios::trunc);
  int64_t received = 0;
  for (int failures = 0;;) {
    const int64_t before = received;
    const grpc::Status status = FetchFrom(connection, job, file.path(), received, out, &received);
    if (status.ok()) break;
    failures = received > before ? 0 : failures + 1;
    if (status.error_code() != grpc::StatusCode::UNAVAILABLE || failures == kAttemptsWithoutABiteMax)
      connection.Throw(status);
    context.environment.sleep(kRetryPause);
  }
  out.close();
  if (!out) throw CommandError(kExitFailed, fmt::format("cannot write {}", part.native()));
  fs::rename(part, target);
}

int Download(const Context& context, const DownloadOptions& options) {
  const Connection connection = context.Connect();
  nlohmann::ordered_json items = nlohmann::ordered_json::array();
  int64_t bytes = 0;
  for (const v1::FileInfo& file : FilesToFetch(connection, options)) {
    Fetch(connection, context, options.job, file, options.folder);
    bytes += file.size_bytes();
    if (context.format == OutputFormat::kTable)
      context.out() << fmt::format("{}  {}\n", file.path(), BytesText(file.size_bytes()));
    items.push_back(ToJson(file));
  }
  if (context.format != OutputFormat::kTable) {
    PrintEnvelope(context.out(), context.format, "File", std::move(items));
  } else {
    context.out() << fmt::format("{} files, {}, in {}\n", items.size(), BytesText(bytes), options.folder);
  }
  return kExitSucceeded;
}

}  // namespace

void AddDownload(CLI::App& app, Context& context) {
  auto options = std::make_shared<DownloadOptions>();
  CLI::App* command =
      AddCommand(app, context, "download", "Fetch the results of a job, or any of its files", options, &Download);
  command->add_option("JOB", options->job, "Id, or a name that one job has")->required();
  command->add_option("PATH", options->paths, "Files or folders below the job's folder; the results when absent");
  command->add_option("--to", options->folder, "Folder to put them in")->capture_default_str();
  AddOutputFlag(command, context);
}

}  // namespace longspan::client

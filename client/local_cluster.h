// A whole cluster on this machine: a server and some workers as child processes. For `longspan dev`.
#pragma once

#include <chrono>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "client/local_process.h"

namespace longspan::client {

class LocalCluster {
 public:
  struct Options {
    std::filesystem::path programs;   // folder of longspan-server and longspan-worker
    std::filesystem::path trainer;    // the program the workers start
    std::filesystem::path state_dir;  // database, storage, logs, port files; locked while the cluster lives
    int workers = 2;
    int slots = 1;  // of each worker
  };

  // Waits until every process is ready. Throws CommandError with the end of its log when one is not.
  explicit LocalCluster(Options options);
  // Stops what still runs.
  ~LocalCluster();
  LocalCluster(const LocalCluster&) = delete;
  LocalCluster& operator=(const LocalCluster&) = delete;

  const std::string& address() const { return address_; }
  const std::string& http_address() const { return http_address_; }
  std::filesystem::path storage() const { return options_.state_dir / "storage"; }

  // A process that has ended since the last call; null when none has.
  LocalProcess* NewlyEnded();
  bool IsServer(const LocalProcess* process) const { return process == server_.get(); }

  // Workers first, then the server; SIGTERM, and SIGKILL after a while.
  void Stop();

 private:
  void Lock();
  void StartServer();
  void StartWorker(int index);

  Options options_;
  int lock_ = -1;
  std::string address_;
  std::string http_address_;
  std::unique_ptr<LocalProcess> server_;
  std::vector<std::unique_ptr<LocalProcess>> workers_;
  std::vector<LocalProcess*> reported_;
};

// SIGTERM to all, SIGKILL to those that still run after `grace`.
void StopAll(const std::vector<LocalProcess*>& processes, std::chrono::seconds grace);

}  // namespace longspan::client

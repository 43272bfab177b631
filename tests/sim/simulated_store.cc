#include "tests/sim/simulated_store.h"

#include <limits>
#include <utility>

#include "server/store/sqlite.h"
#include "server/store/sqlite_store.h"
#include "server/store/store.h"
#include "tests/server/fakes/memory_store.h"
#include "tests/sim/faulty_disk.h"
#include "tests/temporary_folder.h"

namespace longspan::sim {
namespace {

class InMemory : public SimulatedStore {
 public:
  absl::Status Open() override { return absl::OkStatus(); }
  absl::StatusOr<core::StoredState> Load() override { return store_.Load(); }
  absl::Status Commit(const core::Transaction& transaction) override {
    if (transaction.empty()) return absl::OkStatus();
    if (std::exchange(fail_next_, false)) return absl::UnavailableError("an I/O error");
    if (full_) return absl::ResourceExhaustedError("database or disk is full");
    store_.Commit(transaction);
    return absl::OkStatus();
  }
  void Kill(bool) override { fail_next_ = false; }
  void SetFull(bool full) override { full_ = full; }
  void FailNextCommit() override { fail_next_ = true; }
  bool DieInNextCommit() override { return false; }
  bool died() const override { return false; }
  absl::StatusOr<std::vector<core::JobEvent>> Events(const JobId& job_id) override { return store_.Events(job_id); }
  std::string Damage() override { return ""; }

 private:
  testing::MemoryStore store_;
  bool full_ = false;
  bool fail_next_ = false;
};

class OnFaultyDisk : public SimulatedStore {
 public:
  explicit OnFaultyDisk(Random* random) : random_(random), disk_(random), path_(folder_.File("server.db")) {}
  ~OnFaultyDisk() override { Kill(false); }

  absl::Status Open() override {
    absl::StatusOr<std::unique_ptr<store::Store>> store = store::OpenSqliteStore(path_);
    if (!store.ok()) return store.status();
    store_ = *std::move(store);
    return absl::OkStatus();
  }
  absl::StatusOr<core::StoredState> Load() override { return store_->Load(); }
  absl::Status Commit(const core::Transaction& transaction) override { return store_->Commit(transaction); }
  void Kill(bool power_cut) override {
    disk_.Kill();
    store_.reset();
    disk_.Recover(power_cut);
  }
  void SetFull(bool full) override { disk_.SetFull(full); }
  void FailNextCommit() override { disk_.FailNextSync(); }
  bool DieInNextCommit() override {
    disk_.DieAfter(random_->Integer(0, 12));
    return true;
  }
  bool died() const override { return disk_.dead(); }
  absl::StatusOr<std::vector<core::JobEvent>> Events(const JobId& job_id) override {
    return store_->ReadEvents(job_id, 0, std::numeric_limits<int64_t>::max());
  }
  std::string Damage() override {
    const auto database = store::Database::Open(path_, SQLITE_OPEN_READWRITE);
    if (!database.ok()) return database.status().ToString();
    const auto check = (*database)->QueryText("PRAGMA integrity_check");
    if (!check.ok()) return check.status().ToString();
    const auto keys = (*database)->QueryText("PRAGMA foreign_key_check");
    if (!keys.ok() || !keys->empty()) return "a foreign key is broken";
    return *check == "ok" ? "" : *check;
  }

 private:
  Random* const random_;
  longspan::testing::TemporaryFolder folder_;  // for the lock alone; the files are on disk_
  FaultyDisk disk_;
  const std::string path_;
  std::unique_ptr<store::Store> store_;
};

}  // namespace

std::unique_ptr<SimulatedStore> MakeMemoryStore() { return std::make_unique<InMemory>(); }
std::unique_ptr<SimulatedStore> MakeSqliteStore(Random* random) { return std::make_unique<OnFaultyDisk>(random); }

}  // namespace longspan::sim

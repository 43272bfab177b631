// A disk in memory for SQLite (a sqlite3_vfs that is the default while it lives), with the faults of a real one.
//
// What is written is seen by every reader at once, as through a page cache, and is durable when it was synced. When the
// power is cut, of the writes since then an arbitrary part is on the disk, and one of them half: disks reorder, and
// tear. When only the process dies, all of them are. A full disk refuses to grow (SQLITE_FULL); writing over what is
// there goes on. Locks and shared memory are those of one process with one thread, and are gone after Kill.
//
// One at a time; not thread-safe.
#pragma once

#include <sqlite3.h>

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tests/sim/random.h"

namespace longspan::sim {

class FaultyDisk {
 public:
  explicit FaultyDisk(Random* random);
  ~FaultyDisk();
  FaultyDisk(const FaultyDisk&) = delete;
  FaultyDisk& operator=(const FaultyDisk&) = delete;

  void SetFull(bool full) { full_ = full; }
  // The next sync answers with an I/O error.
  void FailNextSync() { fail_next_sync_ = true; }
  // The process dies at its `writes`-th write from now: nothing after that reaches the disk, every call fails.
  void DieAfter(int64_t writes) { die_after_ = writes; }
  bool dead() const { return dead_; }

  // The process is dead from here on: close the connections, which can do no more harm, then call Recover.
  void Kill() { dead_ = true; }
  // What the next process finds.
  void Recover(bool power_cut);

  int64_t writes() const { return writes_; }
  int64_t syncs() const { return syncs_; }

  // ---- for the VFS ----
  struct Change {  // not synced yet
    int64_t offset = 0;
    std::string bytes;
    std::optional<int64_t> truncate_to;
  };
  struct File {
    std::string data;
    std::string durable;
    std::vector<Change> unsynced;
    int shared = 0;  // locks of the database file
    int reserved = 0;
    int exclusive = 0;
    std::vector<std::unique_ptr<std::string>> memory;  // of the write-ahead log's index
    int memory_shared[8] = {};
    int memory_exclusive[8] = {};
  };
  File* Open(const std::string& name, bool create);
  bool Exists(const std::string& name) const { return files_.contains(name); }
  int Delete(const std::string& name);
  int Write(File& file, const void* bytes, int64_t size, int64_t offset);
  int Truncate(File& file, int64_t size);
  int Sync(File& file);
  // SQLite's own chance. Apart from the faults': how much of it SQLite takes is its own business.
  Random& salt() { return salt_; }

 private:
  static void Apply(const Change& change, std::string& data);

  Random* const random_;
  Random salt_{1};
  std::map<std::string, std::unique_ptr<File>> files_;
  bool full_ = false;
  bool fail_next_sync_ = false;
  bool dead_ = false;
  int64_t die_after_ = -1;
  int64_t writes_ = 0;
  int64_t syncs_ = 0;
  std::unique_ptr<sqlite3_vfs> vfs_;
  sqlite3_vfs* before_ = nullptr;
};

}  // namespace longspan::sim

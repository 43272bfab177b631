#include "tests/sim/faulty_disk.h"

#include <algorithm>
#include <cstring>

#include "proto/support/check.h"

namespace longspan::sim {
namespace {

constexpr int64_t kSector = 512;

struct Handle {
  sqlite3_file base;
  FaultyDisk* disk;
  FaultyDisk::File* file;
  int lock;
  unsigned memory_shared;  // bits: locks of the log's index that this connection holds
  unsigned memory_exclusive;
};

Handle& Of(sqlite3_file* file) { return *reinterpret_cast<Handle*>(file); }

// ---- a file ----

int UnlockTo(Handle& h, int level) {
  FaultyDisk::File& f = *h.file;
  if (h.lock >= SQLITE_LOCK_EXCLUSIVE && level < SQLITE_LOCK_EXCLUSIVE) --f.exclusive;
  if (h.lock >= SQLITE_LOCK_RESERVED && level < SQLITE_LOCK_RESERVED) --f.reserved;
  if (h.lock >= SQLITE_LOCK_SHARED && level < SQLITE_LOCK_SHARED) --f.shared;
  h.lock = std::min(h.lock, level);
  return SQLITE_OK;
}

int Close(sqlite3_file* file) {
  Handle& h = Of(file);
  if (!h.disk->dead()) UnlockTo(h, SQLITE_LOCK_NONE);
  return SQLITE_OK;
}
int Read(sqlite3_file* file, void* to, int amount, sqlite3_int64 offset) {
  Handle& h = Of(file);
  if (h.disk->dead()) return SQLITE_IOERR_READ;
  const auto size = static_cast<sqlite3_int64>(h.file->data.size());
  const sqlite3_int64 got = std::clamp<sqlite3_int64>(size - offset, 0, amount);
  if (got > 0) std::memcpy(to, h.file->data.data() + offset, static_cast<size_t>(got));
  if (got == amount) return SQLITE_OK;
  std::memset(static_cast<char*>(to) + got, 0, static_cast<size_t>(amount - got));
  return SQLITE_IOERR_SHORT_READ;
}
int Write(sqlite3_file* file, const void* from, int amount, sqlite3_int64 offset) {
  return Of(file).disk->Write(*Of(file).file, from, amount, offset);
}
int Truncate(sqlite3_file* file, sqlite3_int64 size) { return Of(file).disk->Truncate(*Of(file).file, size); }
int Sync(sqlite3_file* file, int) { return Of(file).disk->Sync(*Of(file).file); }
int FileSize(sqlite3_file* file, sqlite3_int64* size) {
  *size = static_cast<sqlite3_int64>(Of(file).file->data.size());
  return SQLITE_OK;
}
int Lock(sqlite3_file* file, int level) {
  Handle& h = Of(file);
  FaultyDisk::File& f = *h.file;
  if (h.disk->dead()) return SQLITE_IOERR_LOCK;
  if (level <= h.lock) return SQLITE_OK;
  const int others_shared = f.shared - (h.lock >= SQLITE_LOCK_SHARED ? 1 : 0);
  const int others_reserved = f.reserved - (h.lock >= SQLITE_LOCK_RESERVED ? 1 : 0);
  if (f.exclusive > 0) return SQLITE_BUSY;
  if (level >= SQLITE_LOCK_RESERVED && others_reserved > 0) return SQLITE_BUSY;
  if (level == SQLITE_LOCK_EXCLUSIVE && others_shared > 0) return SQLITE_BUSY;
  if (h.lock < SQLITE_LOCK_SHARED) ++f.shared;
  if (h.lock < SQLITE_LOCK_RESERVED && level >= SQLITE_LOCK_RESERVED) ++f.reserved;
  if (level == SQLITE_LOCK_EXCLUSIVE) ++f.exclusive;
  h.lock = level;
  return SQLITE_OK;
}
int Unlock(sqlite3_file* file, int level) { return Of(file).disk->dead() ? SQLITE_OK : UnlockTo(Of(file), level); }
int CheckReservedLock(sqlite3_file* file, int* result) {
  *result = Of(file).file->reserved > 0;
  return SQLITE_OK;
}
int FileControl(sqlite3_file*, int, void*) { return SQLITE_NOTFOUND; }
int SectorSize(sqlite3_file*) { return 4096; }
// What unix says too: a torn write harms no byte outside of it.
int DeviceCharacteristics(sqlite3_file*) { return SQLITE_IOCAP_POWERSAFE_OVERWRITE; }

// ---- the index of the write-ahead log, shared by the connections of the process ----

int MemoryMap(sqlite3_file* file, int region, int size, int extend, void volatile** memory) {
  FaultyDisk::File& f = *Of(file).file;
  *memory = nullptr;
  if (Of(file).disk->dead()) return SQLITE_IOERR_SHMMAP;
  while (static_cast<int>(f.memory.size()) <= region) {
    if (!extend) return SQLITE_OK;
    f.memory.push_back(std::make_unique<std::string>(static_cast<size_t>(size), '\0'));
  }
  *memory = f.memory[static_cast<size_t>(region)]->data();
  return SQLITE_OK;
}
int MemoryLock(sqlite3_file* file, int first, int count, int flags) {
  Handle& h = Of(file);
  FaultyDisk::File& f = *h.file;
  if (h.disk->dead()) return SQLITE_IOERR_SHMLOCK;
  const bool shared = (flags & SQLITE_SHM_SHARED) != 0;
  const bool lock = (flags & SQLITE_SHM_LOCK) != 0;
  for (int i = first; lock && i < first + count; ++i) {
    const int mine_shared = (h.memory_shared >> i) & 1;
    const int mine_exclusive = (h.memory_exclusive >> i) & 1;
    if (f.memory_exclusive[i] > mine_exclusive) return SQLITE_BUSY;
    if (!shared && f.memory_shared[i] > mine_shared) return SQLITE_BUSY;
  }
  for (int i = first; i < first + count; ++i) {
    unsigned& mine = shared ? h.memory_shared : h.memory_exclusive;
    int& all = shared ? f.memory_shared[i] : f.memory_exclusive[i];
    const bool had = ((mine >> i) & 1) != 0;
    if (lock && !had) ++all, mine |= 1u << i;
    if (!lock && had) --all, mine &= ~(1u << i);
  }
  return SQLITE_OK;
}
void MemoryBarrier(sqlite3_file*) {}
int MemoryUnmap(sqlite3_file* file, int remove) {
  Handle& h = Of(file);
  if (h.disk->dead()) return SQLITE_OK;
  for (int i = 0; i < 8; ++i) {
    h.file->memory_shared[i] -= static_cast<int>((h.memory_shared >> i) & 1);
    h.file->memory_exclusive[i] -= static_cast<int>((h.memory_exclusive >> i) & 1);
  }
  h.memory_shared = h.memory_exclusive = 0;
  if (remove) h.file->memory.clear();
  return SQLITE_OK;
}

const sqlite3_io_methods kMethods = {2,
                                     Close,
                                     Read,
                                     Write,
                                     Truncate,
                                     Sync,
                                     FileSize,
                                     Lock,
                                     Unlock,
                                     CheckReservedLock,
                                     FileControl,
                                     SectorSize,
                                     DeviceCharacteristics,
                                     MemoryMap,
                                     MemoryLock,
                                     MemoryBarrier,
                                     MemoryUnmap,
                                     nullptr,
                                     nullptr};

// ---- the file system ----

FaultyDisk& DiskOf(sqlite3_vfs* vfs) { return *static_cast<FaultyDisk*>(vfs->pAppData); }

int OpenFile(sqlite3_vfs* vfs, const char* name, sqlite3_file* file, int flags, int* flags_out) {
  file->pMethods = nullptr;
  FaultyDisk& disk = DiskOf(vfs);
  FaultyDisk::File* found =
      disk.Open(name == nullptr ? "" : name, name == nullptr || (flags & SQLITE_OPEN_CREATE) != 0);
  if (found == nullptr || disk.dead()) return SQLITE_CANTOPEN;
  Handle& h = Of(file);
  h.disk = &disk;
  h.file = found;
  h.lock = SQLITE_LOCK_NONE;
  h.memory_shared = h.memory_exclusive = 0;
  h.base.pMethods = &kMethods;
  if (flags_out != nullptr) *flags_out = flags;
  return SQLITE_OK;
}
int DeleteFile(sqlite3_vfs* vfs, const char* name, int) { return DiskOf(vfs).Delete(name); }
int Access(sqlite3_vfs* vfs, const char* name, int, int* result) {
  *result = DiskOf(vfs).Exists(name) ? 1 : 0;
  return SQLITE_OK;
}
int FullPathname(sqlite3_vfs*, const char* name, int size, char* full) {
  sqlite3_snprintf(size, full, "%s", name);
  return SQLITE_OK;
}
int Randomness(sqlite3_vfs* vfs, int size, char* bytes) {
  for (int i = 0; i < size; ++i) bytes[i] = static_cast<char>(DiskOf(vfs).salt().Next());
  return size;
}
int Sleep(sqlite3_vfs*, int microseconds) { return microseconds; }
int CurrentTime(sqlite3_vfs*, double* days) {
  *days = 2'451'544.5;
  return SQLITE_OK;
}
int LastError(sqlite3_vfs*, int, char*) { return 0; }

}  // namespace

FaultyDisk::FaultyDisk(Random* random) : random_(random), vfs_(std::make_unique<sqlite3_vfs>()) {
  before_ = sqlite3_vfs_find(nullptr);
  vfs_->iVersion = 1;
  vfs_->szOsFile = sizeof(Handle);
  vfs_->mxPathname = 512;
  vfs_->zName = "longspan-faulty";
  vfs_->pAppData = this;
  vfs_->xOpen = OpenFile;
  vfs_->xDelete = DeleteFile;
  vfs_->xAccess = Access;
  vfs_->xFullPathname = FullPathname;
  vfs_->xRandomness = Randomness;
  vfs_->xSleep = Sleep;
  vfs_->xCurrentTime = CurrentTime;
  vfs_->xGetLastError = LastError;
  CHECK_EQ(sqlite3_vfs_register(vfs_.get(), 1), SQLITE_OK);
  sqlite3_randomness(0, nullptr);  // seeds itself anew from this one
}

FaultyDisk::~FaultyDisk() {
  sqlite3_vfs_unregister(vfs_.get());
  sqlite3_vfs_register(before_, 1);
}

FaultyDisk::File* FaultyDisk::Open(const std::string& name, bool create) {
  const std::string key = name.empty() ? "temporary " + std::to_string(files_.size()) : name;
  const auto found = files_.find(key);
  if (found != files_.end()) return found->second.get();
  if (!create || dead_) return nullptr;
  return (files_[key] = std::make_unique<File>()).get();
}

int FaultyDisk::Delete(const std::string& name) {
  if (dead_) return SQLITE_IOERR_DELETE;
  const auto found = files_.find(name);
  if (found == files_.end()) return SQLITE_IOERR_DELETE_NOENT;
  files_.erase(found);
  return SQLITE_OK;
}

void FaultyDisk::Apply(const Change& change, std::string& data) {
  if (change.truncate_to) {
    data.resize(static_cast<size_t>(*change.truncate_to));
    return;
  }
  const auto end = static_cast<size_t>(change.offset) + change.bytes.size();
  if (data.size() < end) data.resize(end);
  data.replace(static_cast<size_t>(change.offset), change.bytes.size(), change.bytes);
}

int FaultyDisk::Write(File& file, const void* bytes, int64_t size, int64_t offset) {
  if (dead_) return SQLITE_IOERR_WRITE;
  if (die_after_ >= 0 && die_after_-- == 0) {
    dead_ = true;
    return SQLITE_IOERR_WRITE;
  }
  if (full_ && offset + size > static_cast<int64_t>(file.data.size())) return SQLITE_FULL;
  ++writes_;
  Change change;
  change.offset = offset;
  change.bytes.assign(static_cast<const char*>(bytes), static_cast<size_t>(size));
  Apply(change, file.data);
  file.unsynced.push_back(std::move(change));
  return SQLITE_OK;
}

int FaultyDisk::Truncate(File& file, int64_t size) {
  if (dead_) return SQLITE_IOERR_TRUNCATE;
  Change change;
  change.truncate_to = size;
  Apply(change, file.data);
  file.unsynced.push_back(std::move(change));
  return SQLITE_OK;
}

int FaultyDisk::Sync(File& file) {
  if (dead_ || std::exchange(fail_next_sync_, false)) return SQLITE_IOERR_FSYNC;
  ++syncs_;
  for (const Change& change : file.unsynced) Apply(change, file.durable);
  file.unsynced.clear();
  return SQLITE_OK;
}

void FaultyDisk::Recover(bool power_cut) {
  std::erase_if(files_, [](const auto& entry) { return entry.first.starts_with("temporary "); });
  for (auto& [name, file] : files_) {
    for (Change& change : file->unsynced) {
      if (power_cut && random_->Chance(0.5)) continue;
      if (power_cut && random_->Chance(0.3)) {  // torn, at a sector
        const auto sectors = static_cast<int64_t>(change.bytes.size()) / kSector;
        change.bytes.resize(static_cast<size_t>(random_->Integer(0, sectors) * kSector));
      }
      Apply(change, file->durable);
    }
    file->unsynced.clear();
    file->data = file->durable;
    file->shared = file->reserved = file->exclusive = 0;
    file->memory.clear();
    std::fill(std::begin(file->memory_shared), std::end(file->memory_shared), 0);
    std::fill(std::begin(file->memory_exclusive), std::end(file->memory_exclusive), 0);
  }
  dead_ = false;
  die_after_ = -1;
  fail_next_sync_ = false;
}

}  // namespace longspan::sim

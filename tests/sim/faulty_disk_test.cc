// That the disk forgets what was not synced: a simulation on a disk that forgets nothing would prove nothing.
#include "tests/sim/faulty_disk.h"

#include <gtest/gtest.h>

#include "server/store/sqlite.h"

namespace longspan::sim {
namespace {

using store::Database;

constexpr int kFlags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE;

// How many of 50 inserted rows are there after the power was cut.
int64_t RowsAfterPowerCut(uint64_t seed, const std::string& synchronous) {
  Random random(seed);
  FaultyDisk disk(&random);
  {
    std::unique_ptr<Database> database = *Database::Open("test.db", kFlags);
    EXPECT_EQ(*database->QueryText("PRAGMA journal_mode = WAL"), "wal");
    EXPECT_TRUE(database->Execute("PRAGMA synchronous = " + synchronous + "; CREATE TABLE t (x)").ok());
    for (int i = 0; i < 50; ++i) EXPECT_TRUE(database->Execute("INSERT INTO t VALUES (randomblob(500))").ok());
    disk.Kill();
  }
  disk.Recover(true);
  std::unique_ptr<Database> database = *Database::Open("test.db", kFlags);
  const auto check = database->QueryText("PRAGMA integrity_check");
  if (!check.ok() || *check != "ok") return -1;
  const auto rows = database->QueryText("SELECT count(*) FROM t");
  return rows.ok() ? std::stoll(*rows) : -1;
}

TEST(FaultyDiskTest, WhatWasSyncedOutlivesThePower) {
  for (uint64_t seed = 0; seed < 50; ++seed) EXPECT_EQ(RowsAfterPowerCut(seed, "FULL"), 50) << seed;
}

TEST(FaultyDiskTest, WhatWasNotSyncedIsLost) {
  int lost = 0;
  for (uint64_t seed = 0; seed < 50; ++seed) lost += RowsAfterPowerCut(seed, "OFF") < 50 ? 1 : 0;
  EXPECT_GT(lost, 40);
}

TEST(FaultyDiskTest, AFullDiskRefusesAndKeepsWhatIsThere) {
  Random random(1);
  FaultyDisk disk(&random);
  std::unique_ptr<Database> database = *Database::Open("test.db", kFlags);
  ASSERT_TRUE(database->Execute("CREATE TABLE t (x); INSERT INTO t VALUES (1)").ok());
  disk.SetFull(true);
  EXPECT_TRUE(absl::IsResourceExhausted(database->Execute("INSERT INTO t VALUES (randomblob(100000))")));
  EXPECT_EQ(*database->QueryText("SELECT count(*) FROM t"), "1");
  disk.SetFull(false);
  EXPECT_TRUE(database->Execute("INSERT INTO t VALUES (randomblob(100000))").ok());
}

}  // namespace
}  // namespace longspan::sim

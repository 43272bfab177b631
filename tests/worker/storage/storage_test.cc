// Storage in a directory: whole or not at all, no way out, and errors that say what and why.
#include "worker/storage/storage.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <csignal>
#include <fstream>
#include <sstream>
#include <thread>

namespace longspan::storage {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class StorageTest : public ::testing::Test {
 protected:
  StorageTest() {
    std::string name = fs::temp_directory_path() / "longspan-storage-XXXXXX";
    folder_ = ::mkdtemp(name.data());
    storage_ = OpenDirectory(folder_ / "root");
  }
  ~StorageTest() override { fs::remove_all(folder_); }

  std::vector<std::string> Keys(std::string_view folder) const {
    std::vector<std::string> keys;
    for (const Entry& entry : storage_->List(folder)) keys.push_back(entry.key);
    return keys;
  }
  static std::string TextOf(const fs::path& path) {
    std::stringstream text;
    text << std::ifstream(path).rdbuf();
    return text.str();
  }
  template <class Action>
  static StorageErrorKind KindOfError(Action action, const std::string& text) {
    try {
      action();
    } catch (const StorageError& error) {
      EXPECT_THAT(error.what(), HasSubstr(text));
      return error.kind();
    }
    ADD_FAILURE() << "no error";
    return StorageErrorKind::kOther;
  }

  fs::path folder_;
  std::unique_ptr<Storage> storage_;
};

TEST_F(StorageTest, PutsReadsListsAndDeletes) {
  storage_->PutAtomically("jobs/a/log", "0123456789");
  storage_->PutAtomically("jobs/a/log", "abcdefghij");
  storage_->PutAtomically("jobs/b", "");
  EXPECT_EQ(storage_->ReadRange("jobs/a/log", 0, 100), "abcdefghij");
  EXPECT_EQ(storage_->ReadRange("jobs/a/log", 3, 4), "defg");
  EXPECT_EQ(storage_->ReadRange("jobs/a/log", 10, 4), "");
  EXPECT_EQ(storage_->ReadRange("jobs/a/log", ~uint64_t{0}, ~uint64_t{0}), "");
  EXPECT_THAT(Keys(""), ElementsAre("jobs"));
  EXPECT_THAT(Keys("jobs"), ElementsAre("jobs/a", "jobs/b"));
  EXPECT_THAT(Keys("nowhere"), IsEmpty());
  EXPECT_TRUE(storage_->Stat("jobs/a")->is_folder);
  EXPECT_EQ(storage_->Stat("jobs/a/log")->size_bytes, 10u);
  EXPECT_GT(storage_->Stat("jobs/a/log")->modified_ns, 0);
  EXPECT_FALSE(storage_->Stat("jobs/c"));
  storage_->Delete("jobs/a");
  storage_->Delete("jobs/a");
  EXPECT_THAT(Keys("jobs"), ElementsAre("jobs/b"));
}

TEST_F(StorageTest, KeysCannotLeaveTheRoot) {
  for (const char* key : {"", "/etc/passwd", "..", "a/../b", "a//b", "a/", "./a"}) {
    EXPECT_THROW(storage_->ReadRange(key, 0, 1), std::invalid_argument) << key;
    EXPECT_THROW(storage_->PutAtomically(key, ""), std::invalid_argument) << key;
  }
  std::ofstream(folder_ / "secret") << "x";
  fs::create_directory_symlink(folder_, folder_ / "root/out");
  EXPECT_EQ(KindOfError([&] { storage_->ReadRange("out/secret", 0, 1); }, "leads out of"),
            StorageErrorKind::kPermission);
  EXPECT_EQ(KindOfError([&] { storage_->PutAtomically("out/new", "x"); }, "leads out of"),
            StorageErrorKind::kPermission);
}

TEST_F(StorageTest, ErrorsNameTheKeyTheOperationAndTheCause) {
  EXPECT_EQ(KindOfError([&] { storage_->ReadRange("no/such", 0, 1); }, "cannot read no/such: No such file"),
            StorageErrorKind::kNotFound);
  storage_->PutAtomically("file", "x");
  EXPECT_EQ(KindOfError([&] { storage_->PutAtomically("file/below", "x"); }, "file/below"), StorageErrorKind::kOther);
  EXPECT_EQ(KindOfError([&] { OpenDirectory(folder_ / "root/file"); }, "root/file"), StorageErrorKind::kOther);
}

// A limit on the size of files stands in for a full disk: write() fails in the middle in the same way.
TEST_F(StorageTest, ADiskThatFillsUpLeavesTheOldObjectAndNoRest) {
  storage_->PutAtomically("state", "old");
  std::signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  ::getrlimit(RLIMIT_FSIZE, &before);
  const rlimit small{64 * 1024, before.rlim_max};
  ::setrlimit(RLIMIT_FSIZE, &small);
  const StorageErrorKind kind =
      KindOfError([&] { storage_->PutAtomically("state", std::string(1 << 20, 'n')); }, "cannot write state");
  ::setrlimit(RLIMIT_FSIZE, &before);
  EXPECT_EQ(kind, StorageErrorKind::kNoSpace);
  EXPECT_EQ(storage_->ReadRange("state", 0, 10), "old");
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_ / "root"), fs::directory_iterator()), 1);
}

TEST_F(StorageTest, ReadersSeeAWholeObjectWhileItIsReplaced) {
  const std::string a(300'000, 'a'), b(300'000, 'b');
  storage_->PutAtomically("object", a);
  std::thread writer([&] {
    for (int i = 0; i < 50; ++i) storage_->PutAtomically("object", i % 2 == 0 ? b : a);
  });
  for (int i = 0; i < 200; ++i) {
    const std::string read = storage_->ReadRange("object", 0, 1 << 20);
    EXPECT_TRUE(read == a || read == b);
  }
  writer.join();
  EXPECT_THAT(Keys(""), ElementsAre("object"));
}

TEST_F(StorageTest, TheFirstToPublishAFolderWins) {
  const fs::path first = folder_ / "first.tmp", second = folder_ / "second.tmp", target = folder_ / "data";
  for (const fs::path& path : {first, second}) {
    fs::create_directories(path / "deep");
    std::ofstream(path / "deep/file") << path.filename();
  }
  EXPECT_TRUE(PublishFolder(first, target));
  EXPECT_FALSE(PublishFolder(second, target));
  EXPECT_FALSE(fs::exists(second));
  EXPECT_EQ(TextOf(target / "deep/file"), "\"first.tmp\"");
  EXPECT_EQ(KindOfError([&] { PublishFolder(folder_ / "none", folder_ / "x"); }, "none"), StorageErrorKind::kNotFound);
}

TEST_F(StorageTest, AnEmptyFolderThatIsThereAlreadyIsNotReplaced) {
  fs::create_directories(folder_ / "new.tmp");
  fs::create_directories(folder_ / "there");
  EXPECT_FALSE(PublishFolder(folder_ / "new.tmp", folder_ / "there"));
}

TEST_F(StorageTest, WritesAFileAtomicallyInTheWorkingFolderToo) {
  WriteFileAtomically(folder_ / "plain", "one");
  WriteFileAtomically(folder_ / "plain", "two");
  EXPECT_EQ(TextOf(folder_ / "plain"), "two");
  EXPECT_EQ(KindOfError([&] { WriteFileAtomically(folder_ / "no/such", "x"); }, "no/such"),
            StorageErrorKind::kNotFound);
}

TEST_F(StorageTest, WhatKilledWritersLeftIsRemovedAndNothingElse) {
  WriteFileAtomically(folder_ / "plain", "one");
  const std::vector<std::string> kept = {".hidden", "notes.tmp-7", "plain"};
  std::ofstream(folder_ / ".hidden") << "x";
  std::ofstream(folder_ / "notes.tmp-7") << "x";
  std::ofstream(folder_ / ".plain.tmp-8936d3e9-21209-1") << "half a fi";
  RemoveTemporaries(folder_);
  std::vector<std::string> there;
  for (const auto& entry : fs::directory_iterator(folder_)) {
    if (entry.is_regular_file()) there.push_back(entry.path().filename());
  }
  std::sort(there.begin(), there.end());
  EXPECT_EQ(there, kept);
  RemoveTemporaries(folder_ / "none");
}

TEST_F(StorageTest, HashesAreSha256) {
  EXPECT_EQ(Sha256Hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  const std::string bytes(3'000'000, 'x');
  std::ofstream(folder_ / "large") << bytes;
  EXPECT_EQ(Sha256HexOfFile(folder_ / "large"), Sha256Hex(bytes));
}

}  // namespace
}  // namespace longspan::storage

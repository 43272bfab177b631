#include "worker/trainer/data/corpus_files.h"

#include <fmt/format.h>
#include <zlib.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>

#include "worker/trainer/errors.h"

namespace longspan::trainer {
namespace {

namespace fs = std::filesystem;

constexpr const char* kReadable = ".txt and .jsonl are read, each also packed as .gz";

int64_t ModifiedNs(const fs::path& path) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(fs::last_write_time(path).time_since_epoch()).count();
}

std::optional<CorpusFile> Recognise(const fs::path& path) {
  CorpusFile file;
  file.path = path;
  fs::path name = path.filename();
  if (name.extension() == ".gz") {
    file.gzip = true;
    name = name.stem();
  }
  if (name.extension() == ".jsonl") {
    file.kind = CorpusFileKind::kJsonLines;
  } else if (name.extension() != ".txt") {
    return std::nullopt;
  }
  file.size_bytes = static_cast<int64_t>(fs::file_size(path));
  file.modified_ns = ModifiedNs(path);
  return file;
}

std::vector<fs::path> FilesBelow(const fs::path& folder) {
  std::vector<fs::path> paths;
  const auto options = fs::directory_options::follow_directory_symlink;
  for (auto entry = fs::recursive_directory_iterator(folder, options); entry != fs::end(entry); ++entry) {
    const bool hidden = entry->path().filename().native().front() == '.';
    if (hidden && entry->is_directory()) entry.disable_recursion_pending();
    if (!hidden && entry->is_regular_file()) paths.push_back(entry->path());
  }
  std::sort(paths.begin(), paths.end(), [](const fs::path& a, const fs::path& b) { return a.native() < b.native(); });
  return paths;
}

void AddFolder(const fs::path& folder, const std::function<void(const fs::path&)>& ignored,
               std::vector<CorpusFile>& files) {
  const size_t before = files.size();
  for (const fs::path& path : FilesBelow(folder)) {
    if (const auto file = Recognise(path)) {
      files.push_back(*file);
    } else if (ignored) {
      ignored(path);
    }
  }
  if (files.size() == before) {
    throw UserError(fmt::format("cannot read the folder {}: it holds no corpus file; {}", folder.string(), kReadable));
  }
}

void AddFile(const fs::path& path, std::vector<CorpusFile>& files) {
  const auto file = Recognise(path);
  if (!file)
    throw UserError(fmt::format("cannot read {}: this kind of file is not supported; {}", path.string(), kReadable));
  files.push_back(*file);
}

}  // namespace

std::vector<CorpusFile> ListCorpusFiles(const std::vector<fs::path>& sources,
                                        const std::function<void(const fs::path&)>& ignored) {
  std::vector<CorpusFile> files;
  for (const fs::path& source : sources) {
    try {
      if (fs::is_directory(source)) {
        AddFolder(source, ignored, files);
      } else if (fs::exists(source)) {
        AddFile(source, files);
      } else {
        throw UserError(fmt::format("cannot read {}: there is no such file or folder", source.string()));
      }
    } catch (const fs::filesystem_error& error) {
      throw UserError(fmt::format("cannot read {}: {}", source.string(), error.code().message()));
    }
  }
  return files;
}

void CheckUnchanged(const CorpusFile& file) {
  std::error_code error;
  const auto size = fs::file_size(file.path, error);
  if (!error && static_cast<int64_t>(size) == file.size_bytes && ModifiedNs(file.path) == file.modified_ns) return;
  throw UserError(
      fmt::format("cannot use {}: it changed while it was read; start again when it is complete", file.path.string()));
}

struct CorpusReader::Impl {
  std::string path;
  gzFile file = nullptr;
  [[noreturn]] void Fail(const std::string& why) const {
    throw UserError(fmt::format("cannot read {}: {}", path, why));
  }
};

CorpusReader::CorpusReader(const CorpusFile& file) : impl_(std::make_unique<Impl>()) {
  impl_->path = file.path.string();
  errno = 0;
  impl_->file = gzopen(impl_->path.c_str(), "rb");
  if (impl_->file == nullptr) impl_->Fail(errno != 0 ? std::strerror(errno) : "out of memory");
  gzbuffer(impl_->file, 256 * 1024);
  const bool packed = gzdirect(impl_->file) == 0;
  if (packed == file.gzip || file.size_bytes == 0) return;
  gzclose(impl_->file);
  impl_->Fail(packed ? "it is gzip data under another name; call it .gz" : "it is called .gz but is no gzip data");
}

CorpusReader::~CorpusReader() { gzclose(impl_->file); }

bool CorpusReader::AppendTo(std::string& buffer, size_t bytes) {
  const size_t before = buffer.size();
  buffer.resize(before + bytes);
  errno = 0;
  const int got = gzread(impl_->file, buffer.data() + before, static_cast<unsigned>(bytes));
  const int system_error = errno;
  int error = Z_OK;
  const char* message = gzerror(impl_->file, &error);
  if (got < 0 || error == Z_BUF_ERROR) {
    if (error == Z_ERRNO) message = std::strerror(system_error);
    impl_->Fail(error == Z_BUF_ERROR ? "the gzip data ends too early: the file is cut off" : message);
  }
  buffer.resize(before + static_cast<size_t>(got));
  return got > 0;
}

int64_t CorpusReader::position() const { return gzoffset(impl_->file); }

}  // namespace longspan::trainer

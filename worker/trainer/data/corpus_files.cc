#include "worker/trainer/data/corpus_files.h"

#include <fmt/format.h>
#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <optional>
#include <utility>

#include "worker/trainer/errors.h"

namespace longspan::trainer {
namespace {

namespace fs = std::filesystem;

constexpr const char* kReadable = ".txt, .jsonl and .json are read, each also packed as .gz or .zst";

int64_t ModifiedNs(const fs::path& path) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(fs::last_write_time(path).time_since_epoch()).count();
}

std::optional<CorpusFile> Recognise(const fs::path& path) {
  CorpusFile file;
  file.path = path;
  fs::path name = path.filename();
  if (name.extension() == ".gz") file.packing = CorpusPacking::kGzip;
  if (name.extension() == ".zst") file.packing = CorpusPacking::kZstd;
  if (file.packing != CorpusPacking::kNone) name = name.stem();
  if (name.extension() == ".jsonl") {
    file.kind = CorpusFileKind::kJsonLines;
  } else if (name.extension() == ".json") {
    file.kind = CorpusFileKind::kJson;
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

class CorpusReader::Source {
 public:
  explicit Source(std::string path) : path_(std::move(path)) {}
  virtual ~Source() = default;
  Source(const Source&) = delete;
  Source& operator=(const Source&) = delete;

  // Fills up to `bytes` bytes; 0 at the end.
  virtual size_t Read(char* out, size_t bytes) = 0;
  virtual int64_t position() const = 0;

 protected:
  [[noreturn]] void Fail(const std::string& why) const {
    throw UserError(fmt::format("cannot read {}: {}", path_, why));
  }

 private:
  std::string path_;
};

class CorpusReader::GzipSource : public CorpusReader::Source {
 public:
  explicit GzipSource(const CorpusFile& file) : Source(file.path.string()) {
    errno = 0;
    file_ = gzopen(file.path.c_str(), "rb");
    if (file_ == nullptr) Fail(errno != 0 ? std::strerror(errno) : "out of memory");
    gzbuffer(file_, 256 * 1024);
    const bool packed = gzdirect(file_) == 0;
    if (packed == (file.packing == CorpusPacking::kGzip) || file.size_bytes == 0) return;
    gzclose(file_);
    Fail(packed ? "it is gzip data under another name; call it .gz" : "it is called .gz but is no gzip data");
  }
  ~GzipSource() override { gzclose(file_); }

  size_t Read(char* out, size_t bytes) override {
    errno = 0;
    const int got = gzread(file_, out, static_cast<unsigned>(bytes));
    const int system_error = errno;
    int error = Z_OK;
    const char* message = gzerror(file_, &error);
    if (got < 0 || error == Z_BUF_ERROR) {
      if (error == Z_ERRNO) message = std::strerror(system_error);
      Fail(error == Z_BUF_ERROR ? "the gzip data ends too early: the file is cut off" : message);
    }
    return static_cast<size_t>(got);
  }
  int64_t position() const override { return gzoffset(file_); }

 private:
  gzFile file_ = nullptr;
};

class CorpusReader::ZstdSource : public CorpusReader::Source {
 public:
  explicit ZstdSource(const CorpusFile& file)
      : Source(file.path.string()), file_(file.path, std::ios::binary), packed_(ZSTD_DStreamInSize(), '\0') {
    if (!file_) Fail(std::strerror(errno));
    // What the largest window may take: more is no corpus but an attack on memory.
    ZSTD_DCtx_setParameter(stream_.get(), ZSTD_d_windowLogMax, 27);
  }

  size_t Read(char* out, size_t bytes) override {
    ZSTD_outBuffer output{out, bytes, 0};
    while (output.pos == 0) {
      // A full buffer may have left something behind in the decoder.
      if (input_.pos == input_.size && !std::exchange(was_full_, false) && !Refill()) {
        if (wanted_ != 0) Fail("the zstd data ends too early: the file is cut off");
        return 0;
      }
      wanted_ = ZSTD_decompressStream(stream_.get(), &output, &input_);
      if (ZSTD_isError(wanted_) != 0) Fail(fmt::format("it is no zstd data ({})", ZSTD_getErrorName(wanted_)));
    }
    was_full_ = output.pos == output.size;
    return output.pos;
  }
  int64_t position() const override { return position_; }

 private:
  bool Refill() {
    file_.read(packed_.data(), static_cast<std::streamsize>(packed_.size()));
    if (file_.bad()) Fail("the file cannot be read");
    input_ = {packed_.data(), static_cast<size_t>(file_.gcount()), 0};
    position_ += file_.gcount();
    return input_.size > 0;
  }

  struct Free {
    void operator()(ZSTD_DStream* stream) const { ZSTD_freeDStream(stream); }
  };
  std::ifstream file_;
  std::string packed_;
  std::unique_ptr<ZSTD_DStream, Free> stream_{ZSTD_createDStream()};
  ZSTD_inBuffer input_{nullptr, 0, 0};
  size_t wanted_ = 0;  // 0: between two frames
  bool was_full_ = false;
  int64_t position_ = 0;
};

CorpusReader::CorpusReader(const CorpusFile& file) {
  if (file.packing == CorpusPacking::kZstd) {
    source_ = std::make_unique<ZstdSource>(file);
  } else {
    source_ = std::make_unique<GzipSource>(file);
  }
}

CorpusReader::~CorpusReader() = default;

bool CorpusReader::AppendTo(std::string& buffer, size_t bytes) {
  const size_t before = buffer.size();
  buffer.resize(before + bytes);
  const size_t got = source_->Read(buffer.data() + before, bytes);
  buffer.resize(before + got);
  return got > 0;
}

int64_t CorpusReader::position() const { return source_->position(); }

}  // namespace longspan::trainer

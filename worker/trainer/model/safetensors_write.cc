#include <fcntl.h>
#include <unistd.h>

#include <fmt/format.h>
#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "worker/trainer/model/safetensors.h"

namespace longspan::trainer {
namespace {

using nlohmann::json;

const char* DtypeName(at::ScalarType dtype) {
  switch (dtype) {
    case at::kDouble:
      return "F64";
    case at::kFloat:
      return "F32";
    case at::kHalf:
      return "F16";
    case at::kBFloat16:
      return "BF16";
    case at::kLong:
      return "I64";
    case at::kInt:
      return "I32";
    case at::kShort:
      return "I16";
    case at::kChar:
      return "I8";
    case at::kByte:
      return "U8";
    case at::kBool:
      return "BOOL";
    default:
      TORCH_CHECK(false, "no safetensors dtype for ", dtype);
  }
}

// Wide elements first, then by name: every tensor is then aligned, and the order does not depend on the caller.
std::vector<const NamedTensor*> FileOrder(const std::vector<NamedTensor>& tensors) {
  std::vector<const NamedTensor*> order;
  for (const NamedTensor& tensor : tensors) order.push_back(&tensor);
  std::sort(order.begin(), order.end(), [](const NamedTensor* a, const NamedTensor* b) {
    if (a->second.element_size() != b->second.element_size())
      return a->second.element_size() > b->second.element_size();
    return a->first < b->first;
  });
  return order;
}

std::string Header(const std::vector<const NamedTensor*>& order, const Metadata& metadata) {
  json header = json::object();  // sorted keys
  header["__metadata__"] = metadata;
  uint64_t offset = 0;
  for (const NamedTensor* tensor : order) {
    const uint64_t end = offset + tensor->second.nbytes();
    TORCH_CHECK(!header.contains(tensor->first), "tensor ", tensor->first, " is there twice");
    header[tensor->first] = {{"dtype", DtypeName(tensor->second.scalar_type())},
                             {"shape", tensor->second.sizes().vec()},
                             {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string text = header.dump();
  text.append((8 - text.size() % 8) % 8, ' ');
  return text;
}

// A file that is written from start to end, under a temporary name until it is whole: who has an older one of that name
// mapped keeps it. Errors carry the path.
class OutputFile {
 public:
  explicit OutputFile(const std::string& path)
      : path_(path),
        partial_path_(path + ".partial"),
        descriptor_(::open(partial_path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644)) {
    if (descriptor_ < 0) Fail("create");
  }
  ~OutputFile() {
    if (descriptor_ < 0) return;
    ::close(descriptor_);
    ::unlink(partial_path_.c_str());
  }
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  void Write(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t written = ::write(descriptor_, bytes.data(), bytes.size());
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) Fail("write");
      bytes.remove_prefix(static_cast<size_t>(written));
    }
  }
  void Close() {
    if (::fsync(descriptor_) != 0) Fail("write");
    if (::rename(partial_path_.c_str(), path_.c_str()) != 0) Fail("rename");
    ::close(descriptor_);
    descriptor_ = -1;
  }

 private:
  [[noreturn]] void Fail(const char* verb) const {
    const int error = errno;
    const std::string message = fmt::format("cannot {} {}: {}", verb, path_, std::strerror(error));
    if (error == ENOSPC || error == EDQUOT || error == EFBIG) throw ResourceError(message);
    throw InfrastructureError(message);
  }

  std::string path_, partial_path_;
  int descriptor_;
};

std::string ShardName(size_t index, size_t count) {
  return fmt::format("model-{:05}-of-{:05}.safetensors", index + 1, count);
}

}  // namespace

void StreamSafetensors(const std::vector<NamedTensor>& tensors, const ByteSink& sink, Metadata metadata) {
  metadata.try_emplace("format", "pt");
  const auto order = FileOrder(tensors);
  const std::string header = Header(order, metadata);
  const uint64_t header_bytes = header.size();
  sink(std::string_view(reinterpret_cast<const char*>(&header_bytes), 8));
  sink(header);
  for (const NamedTensor* tensor : order) {
    const at::Tensor bytes = tensor->second.detach().to(at::kCPU).contiguous();
    sink(std::string_view(static_cast<const char*>(bytes.data_ptr()), bytes.nbytes()));
  }
}

std::string EncodeSafetensors(const std::vector<NamedTensor>& tensors, Metadata metadata) {
  std::string encoded;
  StreamSafetensors(tensors, [&](std::string_view bytes) { encoded.append(bytes); }, std::move(metadata));
  return encoded;
}

void WriteSafetensors(const std::string& path, const std::vector<NamedTensor>& tensors, Metadata metadata) {
  OutputFile file(path);
  StreamSafetensors(tensors, [&](std::string_view bytes) { file.Write(bytes); }, std::move(metadata));
  file.Close();
}

ShardedSafetensorsWriter::ShardedSafetensorsWriter(std::string folder, int64_t shard_bytes_max)
    : folder_(std::move(folder)), shard_bytes_max_(shard_bytes_max) {}

void ShardedSafetensorsWriter::Add(const std::string& name, const at::Tensor& value) {
  const int64_t bytes = static_cast<int64_t>(value.nbytes());
  if (!shard_.empty() && shard_bytes_ + bytes > shard_bytes_max_) FlushShard();
  shard_.emplace_back(name, value.detach().to(at::kCPU).clone(at::MemoryFormat::Contiguous));
  shard_bytes_ += bytes;
  total_bytes_ += bytes;
}

// Shards get their final names in Finish, when their number is known.
void ShardedSafetensorsWriter::FlushShard() {
  WriteSafetensors(folder_ + "/" + ShardName(names_of_shards_.size(), 0), shard_);
  auto& names = names_of_shards_.emplace_back();
  for (const NamedTensor& tensor : shard_) names.push_back(tensor.first);
  shard_.clear();
  shard_bytes_ = 0;
}

std::vector<std::string> ShardedSafetensorsWriter::Finish() {
  if (names_of_shards_.empty()) {
    WriteSafetensors(folder_ + "/model.safetensors", shard_);
    shard_.clear();
    return {"model.safetensors"};
  }
  if (!shard_.empty()) FlushShard();
  std::vector<std::string> files;
  json weight_map = json::object();
  for (size_t shard = 0; shard < names_of_shards_.size(); ++shard) {
    files.push_back(ShardName(shard, names_of_shards_.size()));
    std::filesystem::rename(folder_ + "/" + ShardName(shard, 0), folder_ + "/" + files.back());
    for (const std::string& name : names_of_shards_[shard]) weight_map[name] = files.back();
  }
  const json index = {{"metadata", {{"total_size", total_bytes_}}}, {"weight_map", weight_map}};
  OutputFile file(folder_ + "/model.safetensors.index.json");
  file.Write(index.dump(2) + "\n");
  file.Close();
  files.push_back("model.safetensors.index.json");
  return files;
}

}  // namespace longspan::trainer

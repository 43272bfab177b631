// The safetensors format: 8 bytes of header length (little endian), a JSON header, the tensors' bytes back to back.
//
// Reading maps the file and believes nothing in it: a header that is too long, not JSON, or whose offsets overlap,
// leave holes, fall outside the file or disagree with dtype and shape is a UserError that names the file, the tensor
// and what is wrong. Writing is deterministic: equal tensors give equal bytes. Every file carries the metadata `format:
// pt`.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "worker/trainer/errors.h"

namespace longspan::trainer {

using NamedTensor = std::pair<std::string, at::Tensor>;
using Metadata = std::map<std::string, std::string>;

// One file. Cheap to copy; tensors that it gave out keep the mapping alive.
class SafetensorsFile {
 public:
  struct Entry {
    at::ScalarType dtype;
    std::vector<int64_t> shape;
    uint64_t offset;  // of the first byte, from the start of the data
    uint64_t bytes;
  };

  static SafetensorsFile Open(const std::string& path);

  const std::string& path() const { return path_; }
  const std::map<std::string, Entry>& entries() const { return entries_; }
  const Metadata& metadata() const { return metadata_; }
  bool Has(const std::string& name) const { return entries_.count(name) != 0; }
  // Read-only view of the mapped bytes (a copy where they are not aligned). UserError when absent.
  at::Tensor View(const std::string& name) const;
  // Gives the memory of a tensor's pages back; a later read takes them from the file again. For who reads a large file
  // through once.
  void LetGo(const std::string& name) const;

 private:
  std::string path_;
  std::shared_ptr<const void> mapping_;
  const char* data_ = nullptr;
  std::map<std::string, Entry> entries_;
  Metadata metadata_;
};

// The weights of a Hugging Face folder: model.safetensors, or the shards that model.safetensors.index.json names.
class WeightFolder {
 public:
  // UserError when the folder has neither, or the index and its shards disagree.
  static WeightFolder Open(const std::string& folder);

  bool Has(const std::string& name) const { return file_of_.count(name) != 0; }
  std::vector<std::string> names() const;  // sorted
  at::Tensor View(const std::string& name) const;
  const SafetensorsFile::Entry& entry(const std::string& name) const;
  const std::string& path_of(const std::string& name) const;  // the file that holds it, for messages
  void LetGo(const std::string& name) const;
  std::vector<std::string> paths() const;  // of the files that hold tensors, in the order of their names

 private:
  std::string folder_;
  std::vector<SafetensorsFile> files_;
  std::map<std::string, size_t> file_of_;
};

// Receives consecutive bytes.
using ByteSink = std::function<void(std::string_view bytes)>;

// Writes the file's bytes to `sink`. Tensors may be on any device and of any strides; names must differ.
void StreamSafetensors(const std::vector<NamedTensor>& tensors, const ByteSink& sink, Metadata metadata = {});
// The same as one string.
std::string EncodeSafetensors(const std::vector<NamedTensor>& tensors, Metadata metadata = {});
// The same into a file, which is on the disk (fsync) before it gets its name; the folder's entry is the caller's to
// sync. ResourceError when the disk is full, InfrastructureError for another failure.
void WriteSafetensors(const std::string& path, const std::vector<NamedTensor>& tensors, Metadata metadata = {});

// Writes a model folder's weights tensor by tensor: model.safetensors, or model-00001-of-0000N.safetensors with their
// index as soon as they need more than one file. Holds at most one shard in memory. Call Finish once, at the end.
class ShardedSafetensorsWriter {
 public:
  explicit ShardedSafetensorsWriter(std::string folder, int64_t shard_bytes_max = int64_t{5} << 30);
  void Add(const std::string& name, const at::Tensor& value);  // copies value
  std::vector<std::string> Finish();                           // the names of the files it wrote

 private:
  void FlushShard();

  std::string folder_;
  int64_t shard_bytes_max_;
  int64_t shard_bytes_ = 0;
  int64_t total_bytes_ = 0;
  std::vector<NamedTensor> shard_;
  std::vector<std::vector<std::string>> names_of_shards_;
};

}  // namespace longspan::trainer

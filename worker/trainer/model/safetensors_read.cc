#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>

#include "worker/trainer/model/safetensors.h"

namespace longspan::trainer {
namespace {

using nlohmann::json;

constexpr uint64_t kHeaderBytesMax = 100'000'000;  // the reference implementation's limit

std::optional<at::ScalarType> DtypeOf(const std::string& name) {
  static const std::map<std::string, at::ScalarType> kTypes = {
      {"F64", at::kDouble}, {"F32", at::kFloat}, {"F16", at::kHalf}, {"BF16", at::kBFloat16}, {"I64", at::kLong},
      {"I32", at::kInt},    {"I16", at::kShort}, {"I8", at::kChar},  {"U8", at::kByte},       {"BOOL", at::kBool},
  };
  const auto found = kTypes.find(name);
  if (found == kTypes.end()) return std::nullopt;
  return found->second;
}

// Maps a whole file; the pointer's deleter unmaps it.
std::pair<std::shared_ptr<const void>, size_t> MapFile(const std::string& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) throw UserError("cannot open " + path + ": " + std::strerror(errno));
  struct stat status;
  if (::fstat(descriptor, &status) != 0 || !S_ISREG(status.st_mode)) {
    ::close(descriptor);
    throw UserError("cannot read " + path + ": it is not a regular file");
  }
  const size_t bytes = static_cast<size_t>(status.st_size);
  if (bytes < 8) {
    ::close(descriptor);
    throw UserError("cannot read " + path + ": " + std::to_string(bytes) +
                    " bytes are too few for a safetensors file; it is truncated or something else");
  }
  void* start = ::mmap(nullptr, bytes, PROT_READ, MAP_PRIVATE, descriptor, 0);
  const int error = errno;
  ::close(descriptor);
  if (start == MAP_FAILED) throw InfrastructureError("cannot map " + path + ": " + std::strerror(error));
  return {std::shared_ptr<const void>(start, [bytes](const void* p) { ::munmap(const_cast<void*>(p), bytes); }), bytes};
}

// Product of the sizes times the bytes of an element; nothing when negative or beyond 2^62.
std::optional<uint64_t> BytesOf(const std::vector<int64_t>& shape, uint64_t element_bytes) {
  uint64_t bytes = element_bytes;
  for (const int64_t size : shape) {
    if (size < 0) return std::nullopt;
    if (size != 0 && bytes > (uint64_t{1} << 62) / static_cast<uint64_t>(size)) return std::nullopt;
    bytes *= static_cast<uint64_t>(size);
  }
  return bytes;
}

bool IsListOfNonNegativeIntegers(const json& value) {
  return value.is_array() && std::all_of(value.begin(), value.end(), [](const json& item) {
           return item.is_number_unsigned() && item.get<uint64_t>() < (uint64_t{1} << 62);
         });
}

SafetensorsFile::Entry ParseEntry(const json& value, uint64_t data_bytes, const std::string& where) {
  if (!value.is_object() || !value.contains("dtype") || !value["dtype"].is_string() || !value.contains("shape") ||
      !IsListOfNonNegativeIntegers(value["shape"]) || !value.contains("data_offsets") ||
      !IsListOfNonNegativeIntegers(value["data_offsets"]) || value["data_offsets"].size() != 2) {
    throw UserError(where + "its header entry lacks dtype, shape or two data_offsets");
  }
  const std::string dtype_name = value["dtype"];
  const auto dtype = DtypeOf(dtype_name);
  if (!dtype) throw UserError(where + "dtype " + dtype_name + " is not one that Longspan reads (F32, F16, BF16, ...)");
  SafetensorsFile::Entry entry{*dtype, value["shape"].get<std::vector<int64_t>>(), value["data_offsets"][0], 0};
  const uint64_t end = value["data_offsets"][1];
  const std::string range = std::to_string(entry.offset) + " to " + std::to_string(end);
  if (end < entry.offset) throw UserError(where + "offsets " + range + " run backwards");
  if (end > data_bytes) {
    throw UserError(where + "offsets " + range + " lie outside the " + std::to_string(data_bytes) +
                    " bytes of data; the file is truncated or its header lies");
  }
  entry.bytes = end - entry.offset;
  const auto expected = BytesOf(entry.shape, c10::elementSize(*dtype));
  if (!expected || *expected != entry.bytes) {
    throw UserError(where + "offsets " + range + " hold " + std::to_string(entry.bytes) + " bytes, but " + dtype_name +
                    " " + value["shape"].dump() + " needs " +
                    (expected ? std::to_string(*expected) : std::string("too many")));
  }
  return entry;
}

// The tensors must tile the data: no two overlap and no byte belongs to none (which would hide a header that lies).
void CheckTiling(const std::map<std::string, SafetensorsFile::Entry>& entries, uint64_t data_bytes,
                 const std::string& path) {
  std::vector<std::pair<uint64_t, const std::string*>> order;
  for (const auto& [name, entry] : entries) order.emplace_back(entry.offset, &name);
  std::sort(order.begin(), order.end(), [&](const auto& a, const auto& b) {
    return std::pair(a.first, entries.at(*a.second).bytes) < std::pair(b.first, entries.at(*b.second).bytes);
  });
  uint64_t end = 0;
  for (const auto& [offset, name] : order) {
    if (offset != end) {
      throw UserError("cannot read " + path + ": tensor \"" + *name + "\" starts at byte " + std::to_string(offset) +
                      (offset < end ? ", inside the tensor before it, which ends at " : ", after a hole from ") +
                      std::to_string(end));
    }
    end = offset + entries.at(*name).bytes;
  }
  if (end != data_bytes) {
    throw UserError("cannot read " + path + ": its tensors end at byte " + std::to_string(end) + " of " +
                    std::to_string(data_bytes) + " bytes of data");
  }
}

json ReadJson(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw UserError("cannot open " + path + ": " + std::strerror(errno));
  json document = json::parse(in, nullptr, /*allow_exceptions=*/false);
  if (document.is_discarded()) throw UserError("cannot read " + path + ": it is not JSON");
  return document;
}

}  // namespace

SafetensorsFile SafetensorsFile::Open(const std::string& path) {
  SafetensorsFile file;
  file.path_ = path;
  const auto [mapping, file_bytes] = MapFile(path);
  file.mapping_ = mapping;
  const char* start = static_cast<const char*>(mapping.get());
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, start, 8);
  if (header_bytes > kHeaderBytesMax || header_bytes > file_bytes - 8) {
    throw UserError("cannot read " + path + ": a header of " + std::to_string(header_bytes) +
                    " bytes does not fit in the file's " + std::to_string(file_bytes) +
                    "; it is truncated or no safetensors file");
  }
  file.data_ = start + 8 + header_bytes;
  const uint64_t data_bytes = file_bytes - 8 - header_bytes;
  const json header = json::parse(start + 8, start + 8 + header_bytes, nullptr, /*allow_exceptions=*/false);
  if (!header.is_object()) throw UserError("cannot read " + path + ": its header is not a JSON object");
  for (const auto& [name, value] : header.items()) {
    if (name == "__metadata__") {
      if (!value.is_object()) throw UserError("cannot read " + path + ": its __metadata__ is not an object");
      for (const auto& [key, text] : value.items())
        file.metadata_[key] = text.is_string() ? text.get<std::string>() : text.dump();
      continue;
    }
    file.entries_[name] = ParseEntry(value, data_bytes, "cannot read " + path + ": tensor \"" + name + "\": ");
  }
  CheckTiling(file.entries_, data_bytes, path);
  return file;
}

at::Tensor SafetensorsFile::View(const std::string& name) const {
  const auto found = entries_.find(name);
  if (found == entries_.end()) throw UserError("cannot read " + path_ + ": it has no tensor \"" + name + "\"");
  const Entry& entry = found->second;
  const char* start = data_ + entry.offset;
  const auto options = at::TensorOptions().dtype(entry.dtype);
  if (reinterpret_cast<uintptr_t>(start) % c10::elementSize(entry.dtype) != 0 || entry.bytes == 0) {
    at::Tensor copy = at::empty(entry.shape, options);
    if (entry.bytes > 0) std::memcpy(copy.data_ptr(), start, entry.bytes);
    return copy;
  }
  auto keep = mapping_;
  return at::from_blob(const_cast<char*>(start), entry.shape, [keep](void*) {}, options);
}

void SafetensorsFile::LetGo(const std::string& name) const {
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const Entry& entry = entries_.at(name);
  const auto begin = reinterpret_cast<uintptr_t>(data_ + entry.offset) / page * page;
  const auto end = reinterpret_cast<uintptr_t>(data_ + entry.offset + entry.bytes);
  // Clean pages of a file: a neighbour's in the first or last one are read again when they are wanted.
  if (end > begin) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

WeightFolder WeightFolder::Open(const std::string& folder) {
  namespace fs = std::filesystem;
  WeightFolder weights;
  weights.folder_ = folder;
  const std::string single = folder + "/model.safetensors";
  const std::string index_path = folder + "/model.safetensors.index.json";
  if (fs::exists(single)) {
    weights.files_.push_back(SafetensorsFile::Open(single));
    for (const auto& [name, entry] : weights.files_[0].entries()) weights.file_of_[name] = 0;
    return weights;
  }
  if (!fs::exists(index_path)) {
    throw UserError(
        "cannot load " + folder + ": it has neither model.safetensors nor model.safetensors.index.json" +
        (fs::exists(folder + "/pytorch_model.bin") ? "; convert its pytorch_model.bin to safetensors first" : ""));
  }
  const json index = ReadJson(index_path);
  if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object()) {
    throw UserError("cannot read " + index_path + ": it has no weight_map");
  }
  std::map<std::string, size_t> opened;
  for (const auto& [name, file] : index["weight_map"].items()) {
    if (!file.is_string() || file.get<std::string>().find('/') != std::string::npos) {
      throw UserError("cannot read " + index_path + ": the file of tensor \"" + name + "\" is not a file name");
    }
    const auto [position, is_new] = opened.try_emplace(file.get<std::string>(), weights.files_.size());
    if (is_new) weights.files_.push_back(SafetensorsFile::Open(folder + "/" + position->first));
    if (!weights.files_[position->second].Has(name)) {
      throw UserError("cannot read " + index_path + ": it says that tensor \"" + name + "\" is in " + position->first +
                      ", which does not have it");
    }
    weights.file_of_[name] = position->second;
  }
  return weights;
}

std::vector<std::string> WeightFolder::names() const {
  std::vector<std::string> names;
  for (const auto& [name, file] : file_of_) names.push_back(name);
  return names;
}

at::Tensor WeightFolder::View(const std::string& name) const {
  const auto found = file_of_.find(name);
  if (found == file_of_.end()) throw UserError("cannot load " + folder_ + ": it has no tensor \"" + name + "\"");
  return files_[found->second].View(name);
}

const SafetensorsFile::Entry& WeightFolder::entry(const std::string& name) const {
  const auto found = file_of_.find(name);
  if (found == file_of_.end()) throw UserError("cannot load " + folder_ + ": it has no tensor \"" + name + "\"");
  return files_[found->second].entries().at(name);
}

const std::string& WeightFolder::path_of(const std::string& name) const { return files_[file_of_.at(name)].path(); }

void WeightFolder::LetGo(const std::string& name) const { files_[file_of_.at(name)].LetGo(name); }

std::vector<std::string> WeightFolder::paths() const {
  std::vector<std::string> paths;
  for (const SafetensorsFile& file : files_) paths.push_back(file.path());
  std::sort(paths.begin(), paths.end());
  return paths;
}

}  // namespace longspan::trainer

// The linear layers of a base model in 4 bits, made once and kept in a cache.
//
//   <cache>/<key>/nf4.safetensors   <module>.codes, .scale_codes, .scale_maxima, .scale_mean of every module
//                 MANIFEST.json     size and SHA-256 of it
//
// The key is a hash of the content of the base's files and of the format, so every job over the same base shares the
// folder. It is published by rename: it exists whole or not at all. Loading verifies the hash; a folder that is damaged
// is made anew, with a warning in the log. While it is made, one tensor at a time is read in full precision and let go
// of again: the base never sits in memory whole.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "worker/trainer/quantized/nf4_weight.h"

namespace longspan::trainer {

struct QuantizeSource {
  struct Module {
    std::string name;  // "model.layers.0.self_attn.q_proj"
    int64_t outputs = 0, inputs = 0;
  };
  std::vector<Module> modules;
  std::function<at::Tensor(const std::string& module)> read;  // its weight, as stored
  std::function<void(const std::string& module)> let_go;      // what `read` gave is not needed any more
  std::vector<std::filesystem::path> files;                   // of the base; none: it is not cached
};

using QuantizedBase = std::map<std::string, Nf4Weight>;  // by module

// cache: a folder, made when missing; empty: nothing is cached. UserError for a weight that is not finite,
// StorageError or ResourceError when the cache cannot be written.
QuantizedBase LoadQuantizedBase(const QuantizeSource& source, const std::filesystem::path& cache);

// `<storage>/quantized` when work is `<storage>/jobs/<job>`, else `<work>/quantized`.
std::filesystem::path DefaultQuantizedRoot(const std::filesystem::path& work);

}  // namespace longspan::trainer

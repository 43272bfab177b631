// The base model's tensors by their Hugging Face names, as stored: from the folder's safetensors, or drawn at random
// from config.json and a seed. Reading is repeatable, so nobody needs to keep a copy of a value that training changes.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "worker/model_config/model_config.h"
#include "worker/model_config/tensor_names.h"
#include "worker/trainer/model/safetensors.h"

namespace longspan::trainer {

class BaseTensors {
 public:
  virtual ~BaseTensors() = default;
  // On the CPU, in the stored dtype (random weights: fp32), not to be written to.
  virtual at::Tensor Read(const std::string& name) const = 0;
  // Into a contiguous tensor of the same shape, on its device and in its dtype: what Read gives, rounded. Random
  // weights are drawn where they are to lie.
  virtual void ReadInto(const std::string& name, const at::Tensor& out) const;
  virtual std::vector<int64_t> ShapeOf(const std::string& name) const = 0;
  // The dtype that an exported tensor gets: the file's, or config.json's for random weights.
  virtual at::ScalarType ExportDtype(const std::string& name) const = 0;
  // The memory behind what Read gave for that name may be given back.
  virtual void LetGo(const std::string& name) const {}
  // The files that the tensors come from; none for random ones.
  virtual std::vector<std::string> paths() const { return {}; }
};

// Checks that every tensor is there with its shape and a floating dtype; UserError names file, tensor and both shapes.
std::unique_ptr<BaseTensors> OpenBaseTensors(const ModelConfig& config, const std::string& folder);
// As transformers initialises every family: normal(0, initializer_range), norms 1, biases 0. A tensor depends on seed
// and name alone, not on the device that draws it (kernels/normal).
std::unique_ptr<BaseTensors> RandomBaseTensors(const ModelConfig& config, int64_t seed);

// A generator for the tensor of that name.
at::Generator NamedGenerator(int64_t seed, const std::string& name);

// UserError unless `tensor` has the shape that config.json asks for.
void CheckStoredShape(const std::string& file, const std::string& name, at::IntArrayRef stored,
                      at::IntArrayRef expected);

}  // namespace longspan::trainer

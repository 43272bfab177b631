#include "worker/trainer/model/base_tensors.h"

#include <ATen/CPUGeneratorImpl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <map>

#include "kernels/normal/normal.h"
#include "worker/trainer/gpu/gpu_kernels.h"
#include "worker/trainer/model/row_parallel.h"

namespace longspan::trainer {
namespace {

std::string ShapeText(at::IntArrayRef shape) {
  return fmt::format("[{}]", fmt::join(shape.begin(), shape.end(), ", "));
}

at::ScalarType ScalarTypeOf(WeightDtype dtype) {
  switch (dtype) {
    case WeightDtype::kFp32:
      return at::kFloat;
    case WeightDtype::kBf16:
      return at::kBFloat16;
    case WeightDtype::kFp16:
      return at::kHalf;
  }
  TORCH_CHECK(false, "not a dtype");
}

class StoredTensors : public BaseTensors {
 public:
  StoredTensors(WeightFolder folder, const ModelFamily& family) : folder_(std::move(folder)), family_(family) {}
  at::Tensor Read(const std::string& name) const override { return folder_.View(StoredName(folder_, family_, name)); }
  std::vector<int64_t> ShapeOf(const std::string& name) const override {
    return folder_.entry(StoredName(folder_, family_, name)).shape;
  }
  at::ScalarType ExportDtype(const std::string& name) const override {
    return folder_.entry(StoredName(folder_, family_, name)).dtype;
  }

  // Of a tensor in the folder, which may have the head under the other of its names.
  static std::string StoredName(const WeightFolder& folder, const ModelFamily& family, const std::string& name) {
    const std::string alias = family.head_alias + ".weight";
    return name == family.head + ".weight" && !folder.Has(name) && folder.Has(alias) ? alias : name;
  }
  void LetGo(const std::string& name) const override { folder_.LetGo(StoredName(folder_, family_, name)); }
  std::vector<std::string> paths() const override { return folder_.paths(); }

 private:
  WeightFolder folder_;
  const ModelFamily& family_;  // of the static table
};

// FNV-1a over the name.
uint64_t NamedSeed(int64_t seed, const std::string& name) {
  uint64_t hash = 0xcbf29ce484222325u ^ (static_cast<uint64_t>(seed) * 0x9e3779b97f4a7c15u);
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return hash;
}

void Draw(uint64_t key, double deviation, const at::Tensor& out) {
  if (out.is_cuda()) {
    gpu::DrawNormal(key, deviation, out);
    return;
  }
  const bool fp32 = out.scalar_type() == at::kFloat;
  TORCH_CHECK(fp32 || out.scalar_type() == at::kBFloat16, "random weights in ", out.scalar_type());
  ForRowRanges(out.numel(), /*grain=*/4096, [&](int64_t begin, int64_t end) {
    kernels::normal::DrawReference({fp32 ? kernels::ElementType::kFloat32 : kernels::ElementType::kBfloat16, key, begin,
                                    end - begin, deviation,
                                    static_cast<char*>(out.mutable_data_ptr()) + begin * out.element_size()});
  });
}

class DrawnTensors : public BaseTensors {
 public:
  DrawnTensors(const ModelConfig& config, int64_t seed)
      : seed_(seed), standard_deviation_(config.initializer_range), export_dtype_(ScalarTypeOf(config.dtype)) {
    for (TensorShape& tensor : BaseTensorShapes(config)) shapes_[tensor.name] = std::move(tensor.shape);
  }
  at::Tensor Read(const std::string& name) const override {
    const at::Tensor drawn = at::empty(shapes_.at(name), at::kFloat);
    ReadInto(name, drawn);
    return drawn;
  }
  void ReadInto(const std::string& name, const at::Tensor& out) const override {
    const std::vector<int64_t>& shape = shapes_.at(name);
    TORCH_CHECK(out.sizes() == shape && out.is_contiguous(), "random weights ", name, " into ", out.sizes());
    if (name.ends_with(".bias") || shape.size() == 1) {
      out.fill_(name.ends_with(".bias") ? 0 : 1);
    } else {
      Draw(NamedSeed(seed_, name), standard_deviation_, out);
    }
  }
  std::vector<int64_t> ShapeOf(const std::string& name) const override { return shapes_.at(name); }
  at::ScalarType ExportDtype(const std::string&) const override { return export_dtype_; }

 private:
  int64_t seed_;
  double standard_deviation_;
  at::ScalarType export_dtype_;
  std::map<std::string, std::vector<int64_t>> shapes_;
};

}  // namespace

void BaseTensors::ReadInto(const std::string& name, const at::Tensor& out) const { at::Tensor(out).copy_(Read(name)); }

void CheckStoredShape(const std::string& file, const std::string& name, at::IntArrayRef stored,
                      at::IntArrayRef expected) {
  if (stored == expected) return;
  throw UserError(fmt::format("cannot load {}: tensor \"{}\" has shape {}, but config.json asks for {}", file, name,
                              ShapeText(stored), ShapeText(expected)));
}

std::unique_ptr<BaseTensors> OpenBaseTensors(const ModelConfig& config, const std::string& folder) {
  WeightFolder weights = WeightFolder::Open(folder);
  for (const TensorShape& tensor : BaseTensorShapes(config)) {
    const std::string name = StoredTensors::StoredName(weights, *config.family, tensor.name);
    const SafetensorsFile::Entry& entry = weights.entry(name);
    const std::string& file = weights.path_of(name);
    CheckStoredShape(file, name, entry.shape, tensor.shape);
    if (entry.dtype != at::kFloat && entry.dtype != at::kHalf && entry.dtype != at::kBFloat16) {
      throw UserError(fmt::format("cannot load {}: tensor \"{}\" has dtype {}; weights must be F32, F16 or BF16", file,
                                  name, c10::toString(entry.dtype)));
    }
  }
  return std::make_unique<StoredTensors>(std::move(weights), *config.family);
}

std::unique_ptr<BaseTensors> RandomBaseTensors(const ModelConfig& config, int64_t seed) {
  return std::make_unique<DrawnTensors>(config, seed);
}

at::Generator NamedGenerator(int64_t seed, const std::string& name) {
  return at::detail::createCPUGenerator(NamedSeed(seed, name));
}

}  // namespace longspan::trainer

#include "worker/trainer/quantized/quantized_base.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <chrono>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>

#include "kernels/nf4/nf4.h"
#include "worker/storage/storage.h"
#include "worker/trainer/data/prepare.h"
#include "worker/trainer/data/source_hashes.h"
#include "worker/trainer/errors.h"
#include "worker/trainer/model/safetensors.h"

namespace longspan::trainer {
namespace {

namespace fs = std::filesystem;
namespace nf4 = kernels::nf4;

constexpr char kFormat[] = "longspan nf4 1";  // another layout or arithmetic gets another name
constexpr char kWeightsFile[] = "nf4.safetensors";

struct CacheDamaged {
  std::string why;
};

std::string KeyOf(const std::vector<fs::path>& files, const fs::path& cache) {
  SourceHashes hashes(cache);
  nlohmann::json content = {{"format", kFormat}, {"files", nlohmann::json::array()}};
  for (const fs::path& path : files) {
    CorpusFile file;
    file.path = path;
    file.size_bytes = static_cast<int64_t>(fs::file_size(path));
    file.modified_ns = std::chrono::nanoseconds(fs::last_write_time(path).time_since_epoch()).count();
    content["files"].push_back({path.filename().string(), hashes.Hash(file)});
  }
  hashes.Save();
  return storage::Sha256Hex(content.dump()).substr(0, 32);
}

QuantizedBase QuantizeAll(const QuantizeSource& source) {
  QuantizedBase base;
  for (const QuantizeSource::Module& module : source.modules) {
    base[module.name] = QuantizeNf4(source.read(module.name), module.name + ".weight");
    source.let_go(module.name);
  }
  return base;
}

void Write(const QuantizedBase& base, const fs::path& folder) {
  const fs::path temporary =
      folder.parent_path() / fmt::format(".writing-{}-{}", folder.filename().string(), ::getpid());
  fs::remove_all(temporary);
  fs::create_directories(temporary);
  try {
    std::vector<NamedTensor> tensors;
    for (const auto& [name, weight] : base) {
      tensors.emplace_back(name + ".codes", weight.codes);
      tensors.emplace_back(name + ".scale_codes", weight.scale_codes);
      tensors.emplace_back(name + ".scale_maxima", weight.scale_maxima);
      tensors.emplace_back(name + ".scale_mean", at::full({1}, weight.scale_mean, at::kFloat));
    }
    const fs::path file = temporary / kWeightsFile;
    WriteSafetensors(file.string(), tensors, {{"longspan", kFormat}});
    const nlohmann::json manifest = {
        {"files", {{kWeightsFile, {{"size", fs::file_size(file)}, {"sha256", storage::Sha256HexOfFile(file)}}}}}};
    storage::WriteFileAtomically(temporary / "MANIFEST.json", manifest.dump(2) + "\n");
    storage::PublishFolder(temporary, folder);  // another job may have been faster, with the same content
  } catch (...) {
    std::error_code ignored;
    fs::remove_all(temporary, ignored);
    throw;
  }
}

void Verify(const fs::path& folder) {
  std::ifstream in(folder / "MANIFEST.json");
  const auto manifest = nlohmann::json::parse(in, nullptr, /*allow_exceptions=*/false);
  const auto entry = "/files"_json_pointer / kWeightsFile;
  if (!manifest.is_object() || !manifest.contains(entry / "sha256"))
    throw CacheDamaged{"it has no valid MANIFEST.json"};
  const fs::path file = folder / kWeightsFile;
  if (!fs::exists(file)) throw CacheDamaged{fmt::format("{} is missing", kWeightsFile)};
  if (manifest[entry / "sha256"] != storage::Sha256HexOfFile(file)) {
    throw CacheDamaged{fmt::format("{} is not what MANIFEST.json says", kWeightsFile)};
  }
}

// Copies, so that nothing points into a file that may change.
at::Tensor Take(const SafetensorsFile& file, const std::string& name, at::ScalarType dtype, int64_t count) {
  const at::Tensor stored = file.View(name);
  if (stored.scalar_type() != dtype || stored.dim() != 1 || stored.numel() != count) {
    throw CacheDamaged{fmt::format("tensor {} has another shape than the model asks for", name)};
  }
  return stored.clone();
}

QuantizedBase Read(const QuantizeSource& source, const fs::path& folder) {
  Verify(folder);
  try {
    const SafetensorsFile file = SafetensorsFile::Open((folder / kWeightsFile).string());
    QuantizedBase base;
    for (const QuantizeSource::Module& module : source.modules) {
      const int64_t values = module.outputs * module.inputs;
      const int64_t blocks = nf4::Blocks(values);
      Nf4Weight& weight = base[module.name];
      weight.outputs = module.outputs;
      weight.inputs = module.inputs;
      weight.codes = Take(file, module.name + ".codes", at::kByte, nf4::CodeBytes(values));
      weight.scale_codes = Take(file, module.name + ".scale_codes", at::kByte, blocks);
      weight.scale_maxima = Take(file, module.name + ".scale_maxima", at::kFloat, nf4::ScaleBlocks(blocks));
      weight.scale_mean = Take(file, module.name + ".scale_mean", at::kFloat, 1).item<float>();
    }
    return base;
  } catch (const UserError& error) {
    throw CacheDamaged{error.what()};
  }
}

std::optional<QuantizedBase> ReadIfThere(const QuantizeSource& source, const fs::path& folder) {
  if (!fs::exists(folder)) return std::nullopt;
  try {
    return Read(source, folder);
  } catch (const CacheDamaged& damage) {
    spdlog::warn("cannot use the 4-bit base in {}: {}; making it anew", folder.string(), damage.why);
    fs::remove_all(folder);
    return std::nullopt;
  }
}

int64_t BytesOf(const QuantizedBase& base) {
  int64_t bytes = 0;
  for (const auto& [name, weight] : base) bytes += weight.bytes();
  return bytes;
}

}  // namespace

QuantizedBase LoadQuantizedBase(const QuantizeSource& source, const fs::path& cache) {
  if (cache.empty() || source.files.empty()) return QuantizeAll(source);
  fs::create_directories(cache);
  const fs::path folder = cache / KeyOf(source.files, cache);
  if (auto base = ReadIfThere(source, folder)) {
    spdlog::info("the 4-bit base comes from {}", folder.string());
    return std::move(*base);
  }
  QuantizedBase base = QuantizeAll(source);
  Write(base, folder);
  spdlog::info("quantized {} linear layers to {} bytes, kept in {}", base.size(), BytesOf(base), folder.string());
  return base;
}

fs::path DefaultQuantizedRoot(const fs::path& work) { return DefaultDatasetsRoot(work).parent_path() / "quantized"; }

}  // namespace longspan::trainer

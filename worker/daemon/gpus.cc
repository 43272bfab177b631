#include "worker/daemon/gpus.h"

#include <absl/status/status.h>
#include <absl/strings/ascii.h>
#include <absl/strings/str_split.h>
#include <dlfcn.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <string_view>
#include <utility>

namespace longspan::worker {
namespace {

// NVML's binary interface: documented, and stable under these names. Kept here because its header is not everywhere.
using Device = void*;
constexpr int kSuccess = 0;
constexpr unsigned kNameBytes = 96;
constexpr unsigned kTemperatureOfGpu = 0;
struct MemoryInfo {
  unsigned long long total, free, used;
};
struct UtilizationRates {
  unsigned gpu, memory;  // percent
};

}  // namespace

struct Gpus::Library {
  ~Library() {
    if (initialised) shutdown();
    if (handle != nullptr) ::dlclose(handle);
  }

  template <typename Function>
  bool Load(const char* name, Function** function) {
    *function = reinterpret_cast<Function*>(::dlsym(handle, name));
    if (*function == nullptr) missing = name;
    return *function != nullptr;
  }
  bool LoadAll() {
    return Load("nvmlInit_v2", &init) && Load("nvmlShutdown", &shutdown) && Load("nvmlErrorString", &error_string) &&
           Load("nvmlDeviceGetCount_v2", &count) && Load("nvmlDeviceGetHandleByIndex_v2", &by_index) &&
           Load("nvmlDeviceGetName", &name) && Load("nvmlDeviceGetUUID", &uuid) &&
           Load("nvmlDeviceGetMemoryInfo", &memory) &&
           Load("nvmlDeviceGetCudaComputeCapability", &compute_capability) &&
           Load("nvmlDeviceGetUtilizationRates", &utilization) && Load("nvmlDeviceGetTemperature", &temperature) &&
           Load("nvmlDeviceGetPowerUsage", &power);
  }
  absl::Status Failed(const char* call, int result) const {
    return absl::UnavailableError(fmt::format("the GPU driver's {} says: {}", call, error_string(result)));
  }

  void* handle = nullptr;
  bool initialised = false;
  std::string missing;
  int (*init)() = nullptr;
  int (*shutdown)() = nullptr;
  const char* (*error_string)(int) = nullptr;
  int (*count)(unsigned*) = nullptr;
  int (*by_index)(unsigned, Device*) = nullptr;
  int (*name)(Device, char*, unsigned) = nullptr;
  int (*uuid)(Device, char*, unsigned) = nullptr;
  int (*memory)(Device, MemoryInfo*) = nullptr;
  int (*compute_capability)(Device, int*, int*) = nullptr;
  int (*utilization)(Device, UtilizationRates*) = nullptr;
  int (*temperature)(Device, unsigned, unsigned*) = nullptr;
  int (*power)(Device, unsigned*) = nullptr;  // milliwatts
};

Gpus::Gpus(std::unique_ptr<Library> library) : library_(std::move(library)) {}
Gpus::~Gpus() = default;

absl::StatusOr<std::unique_ptr<Gpus>> Gpus::Open(const std::string& path) {
  auto library = std::make_unique<Library>();
  library->handle = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library->handle == nullptr) return absl::NotFoundError(::dlerror());
  if (!library->LoadAll()) {
    return absl::FailedPreconditionError(fmt::format("{} has no {}: the driver is too old", path, library->missing));
  }
  if (const int result = library->init(); result != kSuccess) return library->Failed("nvmlInit", result);
  library->initialised = true;
  auto gpus = std::unique_ptr<Gpus>(new Gpus(std::move(library)));
  if (absl::Status found = gpus->Find(); !found.ok()) return found;
  return gpus;
}

absl::Status Gpus::Find() {
  unsigned count = 0;
  if (const int result = library_->count(&count); result != kSuccess) {
    return library_->Failed("nvmlDeviceGetCount", result);
  }
  for (unsigned index = 0; index < count; ++index) {
    Device device = nullptr;
    if (const int result = library_->by_index(index, &device); result != kSuccess) {
      return library_->Failed("nvmlDeviceGetHandleByIndex", result);
    }
    std::array<char, kNameBytes> name{}, uuid{};
    MemoryInfo memory{};
    int major = 0, minor = 0;
    if (const int result = library_->name(device, name.data(), kNameBytes - 1); result != kSuccess) {
      return library_->Failed("nvmlDeviceGetName", result);
    }
    if (const int result = library_->uuid(device, uuid.data(), kNameBytes - 1); result != kSuccess) {
      return library_->Failed("nvmlDeviceGetUUID", result);
    }
    if (const int result = library_->memory(device, &memory); result != kSuccess) {
      return library_->Failed("nvmlDeviceGetMemoryInfo", result);
    }
    if (const int result = library_->compute_capability(device, &major, &minor); result != kSuccess) {
      return library_->Failed("nvmlDeviceGetCudaComputeCapability", result);
    }
    gpus_.push_back({name.data(), uuid.data(), static_cast<int64_t>(memory.total), fmt::format("{}.{}", major, minor)});
    handles_.push_back(device);
  }
  return absl::OkStatus();
}

GpuReading Gpus::Read(size_t index) const {
  const Device device = handles_.at(index);
  GpuReading reading;
  UtilizationRates rates{};
  MemoryInfo memory{};
  unsigned degrees = 0, milliwatts = 0;
  if (library_->utilization(device, &rates) == kSuccess) reading.utilization = rates.gpu / 100.0;
  if (library_->memory(device, &memory) == kSuccess) reading.memory_used_bytes = static_cast<int64_t>(memory.used);
  if (library_->temperature(device, kTemperatureOfGpu, &degrees) == kSuccess) reading.temperature_celsius = degrees;
  if (library_->power(device, &milliwatts) == kSuccess) reading.power_watts = milliwatts * 1e-3;
  return reading;
}

absl::StatusOr<std::vector<Gpu>> VisibleGpus(const std::vector<Gpu>& all, const std::optional<std::string>& visible) {
  if (!visible) return all;
  std::vector<Gpu> result;
  for (const absl::string_view part : absl::StrSplit(*visible, ',', absl::SkipWhitespace())) {
    const std::string name(absl::StripAsciiWhitespace(part));
    if (name.starts_with("MIG-")) {
      return absl::InvalidArgumentError(
          fmt::format("CUDA_VISIBLE_DEVICES names {}: parts of a GPU are not offered; name whole ones", name));
    }
    const bool is_number =
        !name.empty() && name.size() < 6 && name.find_first_not_of("0123456789") == std::string::npos;
    const auto found =
        is_number ? (std::stoul(name) < all.size() ? all.begin() + std::stol(name) : all.end())
                  : std::find_if(all.begin(), all.end(), [&](const Gpu& gpu) { return gpu.uuid.starts_with(name); });
    if (found == all.end()) break;  // CUDA does not see what is behind a wrong one
    result.push_back(*found);
  }
  return result;
}

}  // namespace longspan::worker

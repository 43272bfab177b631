// The GPUs of this machine, as the driver's management library (NVML, libnvidia-ml.so.1) tells: found at run time, so
// that the daemon needs no CUDA to be built or to run.
//
// Not thread-safe. A GPU that fails keeps its place; what cannot be read of it is absent.
#pragma once

#include <absl/status/statusor.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace longspan::worker {

struct Gpu {
  std::string name;  // "NVIDIA H200"
  std::string uuid;  // "GPU-8f2c…", what CUDA_VISIBLE_DEVICES takes
  int64_t memory_bytes = 0;
  std::string compute_capability;  // "9.0"
};

struct GpuReading {
  std::optional<double> utilization;  // share of time in which a kernel ran, 0 to 1
  std::optional<int64_t> memory_used_bytes;
  std::optional<double> temperature_celsius;
  std::optional<double> power_watts;
};

class Gpus {
 public:
  // NotFound where there is no such library, so no driver. What else goes wrong names the call.
  static absl::StatusOr<std::unique_ptr<Gpus>> Open(const std::string& library = "libnvidia-ml.so.1");
  ~Gpus();
  Gpus(const Gpus&) = delete;
  Gpus& operator=(const Gpus&) = delete;

  // In the driver's order (by PCI bus).
  const std::vector<Gpu>& all() const { return gpus_; }
  GpuReading Read(size_t index) const;

 private:
  struct Library;
  explicit Gpus(std::unique_ptr<Library> library);
  absl::Status Find();

  std::unique_ptr<Library> library_;
  std::vector<Gpu> gpus_;
  std::vector<void*> handles_;
};

// Those that CUDA_VISIBLE_DEVICES of this process leaves, in its order: numbers or beginnings of UUIDs, up to the first
// that names none, as CUDA reads it. Absent: all. InvalidArgument for one that begins with nothing of the kind (MIG).
absl::StatusOr<std::vector<Gpu>> VisibleGpus(const std::vector<Gpu>& all, const std::optional<std::string>& visible);

}  // namespace longspan::worker

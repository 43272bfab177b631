// How fast a device computes and moves bytes: what the planner turns work into seconds with.
//
// Pure. Rates are what a long product, a long attention and a long copy reach, not peaks. The built-in ones are rough:
// on CPU they are per thread and of no machine in particular; those of GPUs are published figures (see the .cc). A
// measured profile of the machine at hand takes their place.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "proto/jobfile/job_spec.h"

namespace longspan::planner {

struct DeviceProfile {
  std::string name;
  jobfile::TrainingDtype dtype = jobfile::TrainingDtype::kFp32;  // of a job that does not say; the rates are of it
  double gemm_flops_per_second = 0;
  double attention_flops_per_second = 0;  // only pairs that attend count: a causal mask halves the work, not the rate
  double memory_bytes_per_second = 0;
  double host_copy_bytes_per_second = 0;  // between device and host memory, one way
  int64_t process_bytes = 0;              // what a process has on the device beside the planned kinds
  bool is_host = false;                   // a CPU: its device memory is the host's
};

DeviceProfile CpuProfile(int64_t threads);
// By the name of a slot's device: "cpu", "NVIDIA H100 80GB HBM3". Empty for one that is not known.
std::optional<DeviceProfile> ProfileOf(const std::string& device, int64_t threads);

// {"name": "...", "dtype": "bf16", "gemm_flops_per_second": 7.2e14, ...}: every key of the struct.
nlohmann::json ToJson(const DeviceProfile& profile);
// Keys that are absent stay as they are in *profile. Returns what is wrong, empty when nothing.
std::string ReadJson(const nlohmann::json& document, DeviceProfile* profile);
// What is wrong with its values, empty when nothing: rates must be above 0.
std::string CheckProfile(const DeviceProfile& profile);

}  // namespace longspan::planner

// What a rank trains on, chosen once at its start.
#pragma once

#include <c10/core/Device.h>

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "proto/jobfile/job_spec.h"
#include "worker/planner/device_profile.h"
#include "worker/trainer/parallel/communicator.h"

namespace longspan::trainer {

// "cpu"; "cuda", the first GPU that this process sees; "auto": that one where there is one, else the CPU. Says in the
// log which it is. SpecError when there is no GPU but one is asked for.
at::Device ChooseDevice(const std::string& wanted);

// How ranks on `device` reach each other: `wanted` is "auto" (NCCL between GPUs), "nccl" or "gloo" (through the host).
// SpecError for nccl without a GPU.
CommunicatorOptions::GpuCollectives CollectivesOn(at::Device device, const std::string& wanted);

// Whether this program was built with CUDA, and what it sees then: {"cuda": true, "gpus": [{"name": "NVIDIA H200",
// "memory_bytes": …, "compute_capability": "9.0", "usable": true}, …]}; usable: ChooseDevice would take it.
nlohmann::json DevicesSeen();

// With what the job leaves to the device filled in: the type in which it computes. SpecError where it asks for what the
// device cannot do: products in 8 bits.
jobfile::JobSpec SpecOn(at::Device device, jobfile::JobSpec spec);

// The built-in rates of it. A GPU that the planner does not know gets those of the slowest that it does.
planner::DeviceProfile ProfileOf(at::Device device, int64_t threads);
// All that it has.
int64_t MemoryBytesOf(at::Device device);

}  // namespace longspan::trainer

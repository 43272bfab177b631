// What this machine offers to the scheduler: a slot for each GPU, or CPU slots.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "longspan/v1/job.pb.h"
#include "worker/daemon/gpus.h"

namespace longspan::worker {

// `slots` CPU slots that share `machine_memory_bytes` evenly.
std::vector<v1::Slot> CpuSlots(int64_t slots, int64_t machine_memory_bytes);

// One slot for each.
std::vector<v1::Slot> GpuSlots(const std::vector<Gpu>& gpus);

// MemTotal, or the limit of this process's cgroup where that is lower; 0 when neither can be read. The folders are
// arguments for tests.
int64_t MachineMemoryBytes(const std::string& proc = "/proc", const std::string& cgroup = "/sys/fs/cgroup");

}  // namespace longspan::worker

#include "worker/daemon/inventory.h"

#include <algorithm>
#include <fstream>

namespace longspan::worker {

std::vector<v1::Slot> CpuSlots(int64_t slots, int64_t machine_memory_bytes) {
  std::vector<v1::Slot> result(static_cast<size_t>(std::max<int64_t>(slots, 0)));
  for (int64_t index = 0; index < slots; ++index) {
    v1::Slot& slot = result[static_cast<size_t>(index)];
    slot.set_index(index);
    slot.set_device("cpu");
    slot.set_memory_bytes(machine_memory_bytes / slots);
  }
  return result;
}

std::vector<v1::Slot> GpuSlots(const std::vector<Gpu>& gpus) {
  std::vector<v1::Slot> slots;
  for (const Gpu& gpu : gpus) {
    v1::Slot& slot = slots.emplace_back();
    slot.set_index(static_cast<int64_t>(slots.size()) - 1);
    slot.set_device(gpu.name);
    slot.set_memory_bytes(gpu.memory_bytes);
    slot.set_uuid(gpu.uuid);
    slot.set_compute_capability(gpu.compute_capability);
  }
  return slots;
}

int64_t MachineMemoryBytes(const std::string& proc, const std::string& cgroup) {
  int64_t total = 0;
  std::ifstream meminfo(proc + "/meminfo");
  for (std::string name; meminfo >> name;) {
    int64_t kibibytes = 0;
    if (name == "MemTotal:" && meminfo >> kibibytes) {
      total = kibibytes * 1024;
      break;
    }
    meminfo.ignore(1 << 10, '\n');
  }
  // "max" (no limit) fails to read as a number.
  std::ifstream limit_file(cgroup + "/memory.max");
  int64_t limit = 0;
  if (limit_file >> limit && limit > 0) total = total > 0 ? std::min(total, limit) : limit;
  return total;
}

}  // namespace longspan::worker

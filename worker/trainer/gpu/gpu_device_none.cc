#include "worker/trainer/errors.h"
#include "worker/trainer/gpu/gpu_device.h"

namespace longspan::trainer::gpu {

bool IsBuilt() { return false; }
int64_t Count() { return 0; }
Description Describe(int64_t) { throw SpecError("this program was built without CUDA"); }
Memory MemoryNow() { return {}; }
void ResetMemoryPeak() {}
bool UseExpandableSegments() { return false; }
void PinHostMemory(std::byte*, int64_t) {}
void UnpinHostMemory(std::byte*) {}
void Synchronize() {}

}  // namespace longspan::trainer::gpu

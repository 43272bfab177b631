#include "worker/trainer/errors.h"
#include "worker/trainer/parallel/gpu_group.h"

namespace longspan::trainer {

std::unique_ptr<GpuGroup> GpuGroup::Open(const c10::intrusive_ptr<c10d::Store>&, const Options&) {
  throw SpecError("this program was built without CUDA, so its ranks share no GPUs");
}

}  // namespace longspan::trainer

// How fast a device computes and copies, as the planner wants to know it: `longspan plan --device-profile` reads what
// this gives. A CPU in fp32 with so many threads; a GPU in bf16, with copies from and to pinned host memory.
//
// Takes some seconds, and 4 GiB of a GPU. Each rate is the best of several runs after one that is not counted: what the
// device reaches when nobody else uses it, a GPU's before long runs make it hot. Of the two ways between host and
// device the slower counts.
#pragma once

#include <c10/core/Device.h>

#include <cstdint>

#include "worker/planner/device_profile.h"

namespace longspan::trainer {

planner::DeviceProfile MeasureDevice(at::Device device, int64_t threads);

}  // namespace longspan::trainer

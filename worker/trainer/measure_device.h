// How fast this machine computes and copies with so many threads, as the planner wants to know it: `longspan plan
// --device-profile` reads what this gives.
//
// Takes some seconds. Each rate is the best of several runs: what the machine reaches when nobody else uses it.
#pragma once

#include <cstdint>

#include "worker/planner/device_profile.h"

namespace longspan::trainer {

planner::DeviceProfile MeasureDevice(int64_t threads);

}  // namespace longspan::trainer

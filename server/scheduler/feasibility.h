// Which workers and slots may take ranks of a job at all. Each hard constraint is one small predicate.
#pragma once

#include <string_view>

#include "server/scheduler/schedule.h"

namespace longspan::scheduler {

// It answers, and nobody asked it to run dry.
bool IsOpen(const WorkerSlots& worker);

// Open, or expected to be in a moment: counts for what is possible, not for what can start.
bool IsExpectedOpen(const WorkerSlots& worker);

// The worker has every label that is required, but "gpu", which is a question to its slots.
bool HasLabels(const Requirements& requirements, const WorkerSlots& worker);

// The device's name contains the required "gpu", upper and lower case being the same; "gpu: H200" fits "NVIDIA H200".
bool HasDevice(const Requirements& requirements, const SlotKind& kind);

bool HasMemory(const Requirements& requirements, const SlotKind& kind);

// "gpu: H200, zone: a, 80.0 GiB"; empty when nothing is required.
std::string Text(const Requirements& requirements);

}  // namespace longspan::scheduler

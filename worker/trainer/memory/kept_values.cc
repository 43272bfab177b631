#include "worker/trainer/memory/kept_values.h"

#include <algorithm>
#include <utility>

namespace longspan::trainer {
namespace {

size_t Index(KeptPart part) { return static_cast<size_t>(part); }

std::array<int64_t, planner::kKeptPartCount> OffsetsOf(const planner::KeptBytes& bytes) {
  std::array<int64_t, planner::kKeptPartCount> offsets{};
  int64_t offset = 0;
  for (size_t part = 0; part < offsets.size(); ++part) {
    offsets[part] = offset;
    offset += bytes.parts[part];
  }
  return offsets;
}

}  // namespace

KeptValues::KeptValues(std::unique_ptr<CopyStream> copies, at::Device device)
    : copies_(std::move(copies)), long_lived_(device), segment_(device), host_(/*pinned=*/device.is_cuda()) {}
KeptValues::~KeptValues() { Release(); }

void KeptValues::Begin(const planner::KeptPlan& plan) {
  for (const Buffer& buffer : buffers_) {
    for (const CopyStream::Ticket ticket : buffer.leaving) copies_->Wait(ticket);
    for (const CopyStream::Ticket ticket : buffer.coming) copies_->Wait(ticket);
  }
  plan_ = plan;
  offsets_ = OffsetsOf(plan.long_lived_bytes);
  segment_offsets_ = OffsetsOf(plan.segment_bytes);
  buffers_.assign(static_cast<size_t>(plan.long_lived - plan.host), {});
  const planner::KeptTotals totals = planner::KeptValuesOf(plan);
  const int64_t long_lived_bytes = (plan.long_lived - plan.host) * plan.long_lived_bytes.total();
  long_lived_.Reserve(long_lived_bytes);
  segment_.Reserve(totals.device_bytes - long_lived_bytes);
  host_.Reserve(totals.host_bytes);
}

void KeptValues::Release() {
  Begin({});
  copies_->Finish();
  long_lived_.Release();
  segment_.Release();
  host_.Release();
}

int64_t KeptValues::BufferOf(int64_t entry) const {
  return entry < plan_.host ? entry % planner::kDeviceEntriesMin
                            : (entry - plan_.host < planner::kDeviceEntriesMin ? entry % planner::kDeviceEntriesMin
                                                                               : entry - plan_.host);
}

int64_t KeptValues::OffsetOf(int64_t entry, KeptPart part) const {
  return BufferOf(entry) * plan_.long_lived_bytes.total() + offsets_[Index(part)];
}

std::byte* KeptValues::HostAddress(int64_t entry, KeptPart part) const {
  return host_.data() + entry * plan_.long_lived_bytes.total() + offsets_[Index(part)];
}

at::Tensor KeptValues::Open(int64_t entry, KeptPart part, at::IntArrayRef sizes, at::ScalarType dtype) {
  Buffer& buffer = buffers_[static_cast<size_t>(BufferOf(entry))];
  copies_->Wait(std::exchange(buffer.leaving[Index(part)], 0));
  return long_lived_.At(OffsetOf(entry, part), sizes, dtype);
}

void KeptValues::Close(int64_t entry, KeptPart part) {
  const int64_t bytes = plan_.long_lived_bytes.parts[Index(part)];
  if (!IsOnHost(entry) || bytes == 0) return;
  const at::Tensor from = long_lived_.At(OffsetOf(entry, part), {bytes}, at::kByte);
  buffers_[static_cast<size_t>(BufferOf(entry))].leaving[Index(part)] =
      copies_->Copy(HostAddress(entry, part), static_cast<const std::byte*>(from.const_data_ptr()), bytes);
}

at::Tensor KeptValues::Read(int64_t entry, KeptPart part, at::IntArrayRef sizes, at::ScalarType dtype) {
  Buffer& buffer = buffers_[static_cast<size_t>(BufferOf(entry))];
  copies_->Wait(std::exchange(buffer.coming[Index(part)], 0));
  return long_lived_.At(OffsetOf(entry, part), sizes, dtype);
}

void KeptValues::Done(int64_t entry) {
  const int64_t next = entry - planner::kDeviceEntriesMin;
  if (next >= 0 && IsOnHost(next) && BufferOf(next) == BufferOf(entry)) Fetch(next);
}

void KeptValues::Fetch(int64_t entry) {
  Buffer& buffer = buffers_[static_cast<size_t>(BufferOf(entry))];
  for (size_t index = 0; index < plan_.long_lived_bytes.parts.size(); ++index) {
    const int64_t bytes = plan_.long_lived_bytes.parts[index];
    if (bytes == 0) continue;
    const auto part = static_cast<KeptPart>(index);
    const at::Tensor to = long_lived_.At(OffsetOf(entry, part), {bytes}, at::kByte);
    buffer.coming[index] =
        copies_->Copy(static_cast<std::byte*>(to.mutable_data_ptr()), HostAddress(entry, part), bytes);
  }
}

at::Tensor KeptValues::OfSegment(int64_t layer, KeptPart part, at::IntArrayRef sizes, at::ScalarType dtype) const {
  // The first layer's input is left out.
  const int64_t left_out = plan_.segment_bytes.parts[Index(KeptPart::kInput)];
  const int64_t offset = layer * plan_.segment_bytes.total() + segment_offsets_[Index(part)] - left_out;
  TORCH_CHECK(offset >= 0, "the input of a segment's first layer is its checkpoint");
  return segment_.At(offset, sizes, dtype);
}

}  // namespace longspan::trainer

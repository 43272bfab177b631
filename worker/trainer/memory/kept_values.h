// What layers leave for their backward pass, where the plan says (worker/planner/kept_values.h): in one block on the
// device, or in host memory by way of the device buffers that the last entries live in.
//
//   entry        0        1        2        3   …  h-1      h       h+1      h+2 …
//   device       A        B        A        B       B       A        B       own
//   host         ▼ 0      ▼ 1      ▼ 2      ▼ 3     ▼ h-1   stays    stays   stays
//
// Forward: Open gives the buffer to write into and waits until what lay there has left; Close starts the copy to the
// host. Backward, from the last entry: Read waits until the entry is back; Done lets the next one that needs this
// buffer begin to come back, so the copy of entry i runs while the layer of entry i + 1 computes. With bandwidth to
// spare nothing ever waits; wait_seconds() says how long it did.
//
// Entries of a segment are plain buffers on the device. Not thread-safe. Legend as in step_buffers.h.
#pragma once

#include <ATen/ATen.h>

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "worker/planner/kept_values.h"
#include "worker/trainer/memory/byte_block.h"
#include "worker/trainer/memory/copy_stream.h"
#include "worker/trainer/memory/host_memory.h"

namespace longspan::trainer {

using planner::KeptPart;

class KeptValues {
 public:
  explicit KeptValues(std::unique_ptr<CopyStream> copies, at::Device device = at::kCPU);
  ~KeptValues();

  // Begins a pass. Memory grows where it must, and is kept else.
  void Begin(const planner::KeptPlan& plan);
  void Release();

  // ---- long-lived entries ----
  at::Tensor Open(int64_t entry, KeptPart part, at::IntArrayRef sizes, at::ScalarType dtype);
  void Close(int64_t entry, KeptPart part);
  at::Tensor Read(int64_t entry, KeptPart part, at::IntArrayRef sizes, at::ScalarType dtype);
  void Done(int64_t entry);

  // ---- of the segment that runs back ----
  // Of the first layer there is no kInput: it is a long-lived entry.
  at::Tensor OfSegment(int64_t layer, KeptPart part, at::IntArrayRef sizes, at::ScalarType dtype) const;

  int64_t device_bytes() const { return long_lived_.bytes() + segment_.bytes(); }
  int64_t host_bytes() const { return host_.bytes(); }
  int64_t copied_bytes() const { return copies_->copied_bytes(); }
  double wait_seconds() const { return copies_->wait_seconds(); }

 private:
  using Tickets = std::array<CopyStream::Ticket, planner::kKeptPartCount>;
  // What a device buffer holds or is about to hold.
  struct Buffer {
    Tickets leaving{}, coming{};
  };

  bool IsOnHost(int64_t entry) const { return entry < plan_.host; }
  int64_t BufferOf(int64_t entry) const;
  int64_t OffsetOf(int64_t entry, KeptPart part) const;
  std::byte* HostAddress(int64_t entry, KeptPart part) const;
  void Fetch(int64_t entry);

  std::unique_ptr<CopyStream> copies_;
  planner::KeptPlan plan_;
  std::array<int64_t, planner::kKeptPartCount> offsets_{}, segment_offsets_{};  // of each part in an entry
  ByteBlock long_lived_, segment_;
  HostBlock host_;
  std::vector<Buffer> buffers_;
};

}  // namespace longspan::trainer

// Copies between device and host memory that run beside the computation, in the order in which they were asked for.
//
// The interface is what a CUDA stream with events gives; on a CPU it is a thread. Not thread-safe: one thread asks and
// waits. The memory of a copy belongs to the stream until it has been waited for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace longspan::trainer {

class CopyStream {
 public:
  using Ticket = int64_t;  // of a copy; 0 is none, and done

  virtual ~CopyStream() = default;
  virtual Ticket Copy(std::byte* to, const std::byte* from, int64_t bytes) = 0;
  // What computes after this call sees this copy, and so all before it, done. On a CPU it returns when they are; on a
  // GPU the computing stream waits.
  virtual void Wait(Ticket ticket) = 0;
  // Returns when all copies are done, so that their memory may go.
  virtual void Finish() = 0;

  int64_t copied_bytes() const { return copied_bytes_; }
  double wait_seconds() const { return wait_seconds_; }  // that Wait kept what computes waiting, all calls together

  static std::unique_ptr<CopyStream> OnThread();
  static std::unique_ptr<CopyStream> OnGpu();  // c10::Error in a build without CUDA

 protected:
  int64_t copied_bytes_ = 0;
  double wait_seconds_ = 0;
};

}  // namespace longspan::trainer

// What gRPC promises, said to ThreadSanitizer: an object that goes through gRPC from one thread to the next is not
// touched by both at a time. gRPC comes compiled without instrumentation, so the sanitizer does not see that promise
// kept.
//
//   HandOver(this);     // all that this thread did with the object ...
//   Finish(status);
//   ...
//   void OnDone() { TakeOver(this);  // ... happened before what this thread does
//
// In every other build both do nothing.
#pragma once

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
extern "C" void __tsan_acquire(void* address);
extern "C" void __tsan_release(void* address);
#define LONGSPAN_THREAD_SANITIZER
#endif
#endif

namespace longspan {

inline void HandOver([[maybe_unused]] const void* object) {
#ifdef LONGSPAN_THREAD_SANITIZER
  __tsan_release(const_cast<void*>(object));
#endif
}

inline void TakeOver([[maybe_unused]] const void* object) {
#ifdef LONGSPAN_THREAD_SANITIZER
  __tsan_acquire(const_cast<void*>(object));
#endif
}

// For a function object that gRPC calls: its captures are read before anything could name an object.
inline char grpc_callbacks = 0;

}  // namespace longspan

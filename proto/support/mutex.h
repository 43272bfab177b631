// std::mutex and std::condition_variable with clang's thread-safety annotations: `clang++ -Wthread-safety` proves that
// a GUARDED_BY field is touched only under its mutex. Other compilers see the plain types.
//
//   Mutex mutex_;
//   std::deque<Event> events_ GUARDED_BY(mutex_);
//   CondVar changed_;
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>

#if defined(__clang__)
#define LONGSPAN_THREAD_ANNOTATION(x) __attribute__((x))
#else
#define LONGSPAN_THREAD_ANNOTATION(x)
#endif

#ifndef GUARDED_BY
#define GUARDED_BY(x) LONGSPAN_THREAD_ANNOTATION(guarded_by(x))
#define PT_GUARDED_BY(x) LONGSPAN_THREAD_ANNOTATION(pt_guarded_by(x))
#define EXCLUSIVE_LOCKS_REQUIRED(...) LONGSPAN_THREAD_ANNOTATION(exclusive_locks_required(__VA_ARGS__))
#define LOCKS_EXCLUDED(...) LONGSPAN_THREAD_ANNOTATION(locks_excluded(__VA_ARGS__))
#define NO_THREAD_SAFETY_ANALYSIS LONGSPAN_THREAD_ANNOTATION(no_thread_safety_analysis)
#endif

namespace longspan {

class LONGSPAN_THREAD_ANNOTATION(lockable) Mutex {
 public:
  void Lock() LONGSPAN_THREAD_ANNOTATION(exclusive_lock_function()) { mutex_.lock(); }
  void Unlock() LONGSPAN_THREAD_ANNOTATION(unlock_function()) { mutex_.unlock(); }

 private:
  friend class CondVar;
  std::mutex mutex_;
};

// Holds a mutex for a scope.
class LONGSPAN_THREAD_ANNOTATION(scoped_lockable) MutexLock {
 public:
  explicit MutexLock(Mutex& mutex) LONGSPAN_THREAD_ANNOTATION(exclusive_lock_function(mutex)) : mutex_(mutex) {
    mutex_.Lock();
  }
  ~MutexLock() LONGSPAN_THREAD_ANNOTATION(unlock_function()) { mutex_.Unlock(); }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

 private:
  Mutex& mutex_;
};

// Waits may wake up for no reason: wait in a loop over the condition.
class CondVar {
 public:
  void Wait(Mutex& mutex) EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    std::unique_lock<std::mutex> lock(mutex.mutex_, std::adopt_lock);
    condition_.wait(lock);
    lock.release();
  }
  // False when the deadline passed.
  template <class Clock, class Duration>
  bool WaitUntil(Mutex& mutex, std::chrono::time_point<Clock, Duration> deadline) EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    std::unique_lock<std::mutex> lock(mutex.mutex_, std::adopt_lock);
    const bool in_time = condition_.wait_until(lock, deadline) == std::cv_status::no_timeout;
    lock.release();
    return in_time;
  }
  template <class Rep, class Period>
  bool WaitFor(Mutex& mutex, std::chrono::duration<Rep, Period> timeout) EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    return WaitUntil(mutex, std::chrono::steady_clock::now() + timeout);
  }
  void NotifyOne() { condition_.notify_one(); }
  void NotifyAll() { condition_.notify_all(); }

 private:
  std::condition_variable condition_;
};

}  // namespace longspan

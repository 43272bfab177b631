// Who wants to know when something of a name changes: streams wait here for their job or their log. Thread-safe.
//
// A wake-up says "look again", nothing more; it may come for no reason. To miss none: Add first, then look.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <unordered_map>

#include "proto/support/mutex.h"

namespace longspan::rpc {

class WakeUps {
 public:
  using Callback = std::function<void()>;

  // Ends the subscription when destroyed; a wake-up under way on another thread may still come a little later.
  class Subscription {
   public:
    Subscription() = default;
    Subscription(WakeUps* owner, std::string name, uint64_t number);
    Subscription(Subscription&& other) noexcept;
    Subscription& operator=(Subscription&& other) noexcept;
    ~Subscription();

   private:
    WakeUps* owner_ = nullptr;
    std::string name_;
    uint64_t number_ = 0;
  };

  // `callback` must be quick, and must hold what it uses by weak pointer.
  [[nodiscard]] Subscription Add(const std::string& name, Callback callback);
  void Wake(const std::string& name);
  void WakeAll();

 private:
  void Remove(const std::string& name, uint64_t number);

  Mutex mutex_;
  uint64_t last_number_ GUARDED_BY(mutex_) = 0;
  std::unordered_map<std::string, std::map<uint64_t, Callback>> callbacks_ GUARDED_BY(mutex_);
};

}  // namespace longspan::rpc

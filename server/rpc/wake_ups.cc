#include "server/rpc/wake_ups.h"

#include <utility>
#include <vector>

namespace longspan::rpc {

WakeUps::Subscription::Subscription(WakeUps* owner, std::string name, uint64_t number)
    : owner_(owner), name_(std::move(name)), number_(number) {}
WakeUps::Subscription::Subscription(Subscription&& other) noexcept
    : owner_(std::exchange(other.owner_, nullptr)), name_(std::move(other.name_)), number_(other.number_) {}
WakeUps::Subscription& WakeUps::Subscription::operator=(Subscription&& other) noexcept {
  std::swap(owner_, other.owner_);
  std::swap(name_, other.name_);
  std::swap(number_, other.number_);
  return *this;
}
WakeUps::Subscription::~Subscription() {
  if (owner_ != nullptr) owner_->Remove(name_, number_);
}

WakeUps::Subscription WakeUps::Add(const std::string& name, Callback callback) {
  const MutexLock lock(mutex_);
  const uint64_t number = ++last_number_;
  callbacks_[name].emplace(number, std::move(callback));
  return {this, name, number};
}

void WakeUps::Remove(const std::string& name, uint64_t number) {
  const MutexLock lock(mutex_);
  const auto found = callbacks_.find(name);
  if (found == callbacks_.end()) return;
  found->second.erase(number);
  if (found->second.empty()) callbacks_.erase(found);
}

// Callbacks run without the lock: they may subscribe and unsubscribe.
void WakeUps::Wake(const std::string& name) {
  std::vector<Callback> due;
  {
    const MutexLock lock(mutex_);
    const auto found = callbacks_.find(name);
    if (found == callbacks_.end()) return;
    for (const auto& [number, callback] : found->second) due.push_back(callback);
  }
  for (const Callback& callback : due) callback();
}

void WakeUps::WakeAll() {
  std::vector<Callback> due;
  {
    const MutexLock lock(mutex_);
    for (const auto& [name, of_name] : callbacks_) {
      for (const auto& [number, callback] : of_name) due.push_back(callback);
    }
  }
  for (const Callback& callback : due) callback();
}

}  // namespace longspan::rpc

#include "server/rpc/fit_cache.h"

#include <nlohmann/json.hpp>

#include "proto/jobfile/job_file.h"
#include "server/rpc/submit.h"

namespace longspan::rpc {

std::string FitCache::KeyOf(const jobfile::JobSpec& spec, const std::vector<std::string>& model_files,
                            const std::vector<SlotMemory>& slots) {
  nlohmann::json document = jobfile::ToDocument(spec);
  for (const char* unread : {"name", "labels", "queue", "priority", "limits"}) document.erase(unread);
  for (const char* unread : {"seed", "learning_rate"}) document["training"].erase(unread);
  std::string text = document.dump();
  const auto add = [&text](const std::string& part) { text += '\n' + std::to_string(part.size()) + '\n' + part; };
  for (const std::string& file : model_files) add(file);
  for (const SlotMemory& slot : slots) {
    add(slot.device);
    add(std::to_string(slot.memory_bytes));
  }
  return Sha256Hex(text);
}

std::optional<int64_t> FitCache::Find(const std::string& key) {
  const MutexLock lock(mutex_);
  const auto found = by_key_.find(key);
  if (found == by_key_.end()) return std::nullopt;
  entries_.splice(entries_.begin(), entries_, found->second);
  return found->second->memory_bytes_min;
}

void FitCache::Put(const std::string& key, int64_t memory_bytes_min) {
  const MutexLock lock(mutex_);
  if (by_key_.contains(key)) return;
  entries_.push_front({key, memory_bytes_min});
  by_key_[key] = entries_.begin();
  if (entries_.size() <= entries_max_) return;
  by_key_.erase(entries_.back().key);
  entries_.pop_back();
}

}  // namespace longspan::rpc

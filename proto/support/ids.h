// Identifiers that cannot be taken for one another. Values; hashable, ordered, printed by fmt.
#pragma once

#include <fmt/format.h>

#include <compare>
#include <cstdint>
#include <functional>
#include <ostream>
#include <string>
#include <string_view>
#include <utility>

namespace longspan {

// A text that names one kind of thing. Empty: names nothing.
template <class Tag>
class TextId {
 public:
  TextId() = default;
  explicit TextId(std::string value) : value_(std::move(value)) {}
  const std::string& value() const { return value_; }
  bool empty() const { return value_.empty(); }
  friend auto operator<=>(const TextId&, const TextId&) = default;
  friend std::ostream& operator<<(std::ostream& out, const TextId& id) { return out << id.value_; }

 private:
  std::string value_;
};

// A number that counts one kind of thing. 0: none yet.
template <class Tag>
class NumberId {
 public:
  constexpr NumberId() = default;
  constexpr explicit NumberId(int64_t value) : value_(value) {}
  constexpr int64_t value() const { return value_; }
  constexpr NumberId Next() const { return NumberId(value_ + 1); }
  friend constexpr auto operator<=>(const NumberId&, const NumberId&) = default;
  friend std::ostream& operator<<(std::ostream& out, const NumberId& id) { return out << id.value_; }

 private:
  int64_t value_ = 0;
};

using JobId = TextId<struct JobIdTag>;
using WorkerId = TextId<struct WorkerIdTag>;
using QueueName = TextId<struct QueueNameTag>;
using RequestId = TextId<struct RequestIdTag>;            // a client's own name for one submission
using IncarnationId = TextId<struct IncarnationIdTag>;    // one life of a daemon process
using SlotId = TextId<struct SlotIdTag>;                  // unique within its worker: "gpu-0", "cpu-1"
using AttemptNumber = NumberId<struct AttemptNumberTag>;  // runs of a job's gang: 1, 2, ...
using Rank = NumberId<struct RankTag>;                    // 0 is the first
using SequenceNumber = NumberId<struct SequenceNumberTag>;

}  // namespace longspan

template <class Tag>
struct std::hash<longspan::TextId<Tag>> {
  size_t operator()(const longspan::TextId<Tag>& id) const noexcept { return std::hash<std::string>()(id.value()); }
};
template <class Tag>
struct std::hash<longspan::NumberId<Tag>> {
  size_t operator()(const longspan::NumberId<Tag>& id) const noexcept { return std::hash<int64_t>()(id.value()); }
};
template <class Tag>
struct fmt::formatter<longspan::TextId<Tag>> : fmt::formatter<fmt::string_view> {
  template <class Context>
  auto format(const longspan::TextId<Tag>& id, Context& context) const {
    return fmt::formatter<fmt::string_view>::format(fmt::string_view(id.value()), context);
  }
};
template <class Tag>
struct fmt::formatter<longspan::NumberId<Tag>> : fmt::formatter<int64_t> {
  template <class Context>
  auto format(const longspan::NumberId<Tag>& id, Context& context) const {
    return fmt::formatter<int64_t>::format(id.value(), context);
  }
};

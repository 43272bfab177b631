// Builds a row of the table from a member of JobSpec and words about it. Private to this folder.
#pragma once

#include <fmt/format.h>

#include <cmath>
#include <limits>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>

#include "proto/jobfile/field_table.h"
#include "proto/jobfile/field_values.h"

namespace longspan::jobfile {

inline constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Range {
  double min = -kInfinity;
  double max = kInfinity;
  bool min_excluded = false;
  bool max_excluded = false;

  bool Holds(double value) const {
    return (min_excluded ? value > min : value >= min) && (max_excluded ? value < max : value <= max);
  }
};

// 9e18 does not survive the way through a double, so the largest integer stands for "no upper end".
inline bool HasUpperEnd(const Range& range) { return range.max < 9e18; }

inline std::string Number(double value) {
  return value == std::trunc(value) && std::abs(value) < 1e15 ? fmt::format("{}", static_cast<int64_t>(value))
                                                              : fmt::format("{}", value);
}

inline std::string Text(const Range& range) {
  const std::string low = range.min_excluded ? "above " + Number(range.min) : Number(range.min);
  if (!HasUpperEnd(range)) return range.min_excluded ? low : "at least " + low;
  return low + (range.max_excluded ? " to below " : " to ") + Number(range.max);
}

// The words of a row read in the order type, default, range, meaning. An `Access` takes a JobSpec and returns its
// member by reference; where the spec is const, so is the member.
class Row {
 public:
  template <class Access>
  Row(std::string path, std::string summary, Access access) {
    using T = std::decay_t<decltype(access(std::declval<JobSpec&>()))>;
    using Value = typename Plain<T>::Type;
    field_.info.path = std::move(path);
    field_.info.summary = std::move(summary);
    field_.info.type = TypeName<Value>();
    field_.may_be_null = Plain<T>::kOptional;
    field_.read = [access](const json& value, JobSpec& spec) { return Read(value, access(spec)); };
    field_.write = [access](const JobSpec& spec) { return Write(access(spec)); };
    field_.check = [](const JobSpec&) { return std::string(); };
  }

  Row& Unit(std::string unit) {
    field_.info.unit = std::move(unit);
    return *this;
  }
  // By an evaluation too, unless it says otherwise.
  Row& Required(bool also_by_probe) {
    field_.required = true;
    field_.needed_by_probe = also_by_probe;
    field_.missing = [write = field_.write](const JobSpec& spec) {
      const json value = write(spec);
      return value.is_number() ? value == 0 : value.empty() || value == "";
    };
    return *this;
  }
  Row& OptionalForEvaluation() {
    field_.needed_by_evaluation = false;
    return *this;
  }
  Row& Absent(std::string meaning) {
    field_.info.default_value = "absent: " + std::move(meaning);
    field_.may_be_null = true;
    return *this;
  }
  Row& IgnoredByProbe() {
    field_.ignored_by_probe = true;
    return *this;
  }
  Row& In(Range range) {
    field_.info.range = Text(range);
    field_.check = [range, write = field_.write](const JobSpec& spec) {
      const json value = write(spec);
      if (value.is_null() || range.Holds(value.get<double>())) return std::string();
      return fmt::format("is {}; must be {}", Shown(value), Text(range));
    };
    return *this;
  }
  template <class Access, class Rule>
  Row& Checked(std::string range, Access access, Rule rule) {
    field_.info.range = std::move(range);
    field_.check = [access, rule](const JobSpec& spec) { return rule(access(spec)); };
    return *this;
  }
  Row& Duration(std::optional<int64_t> LimitsSection::* member) {
    field_.info.type = "duration";
    field_.info.range = "at least 1s";
    field_.read = [member](const json& value, JobSpec& spec) -> std::string {
      if (value.is_null()) return "";
      const auto seconds = value.is_string() ? ParseDurationSeconds(value.get_ref<const std::string&>()) : std::nullopt;
      if (!seconds) return Wrong(value, "a duration such as \"90s\", \"45m\" or \"2h30m\"");
      spec.limits.*member = *seconds;
      return "";
    };
    field_.write = [member](const JobSpec& spec) {
      return spec.limits.*member ? json(FormatDurationSeconds(*(spec.limits.*member))) : json();
    };
    field_.check = [member](const JobSpec& spec) -> std::string {
      return spec.limits.*member && *(spec.limits.*member) < 1 ? "must be at least 1s" : "";
    };
    return *this;
  }
  // A size: bytes, or a text with a unit. The canonical document has bytes.
  template <class Access>
  Row& Bytes(Access access) {
    field_.info.unit = "bytes";
    field_.info.range += ", or a text such as \"12GiB\"";
    field_.read = [access, number = field_.read](const json& value, JobSpec& spec) -> std::string {
      if (!value.is_string()) return number(value, spec);
      access(spec) = ParseBytes(value.get_ref<const std::string&>());
      return access(spec) ? "" : Wrong(value, "bytes, or a text such as \"12GiB\" (B, KiB, MiB, GiB or TiB)");
    };
    return *this;
  }

  // The default as it stands in a job file.
  Field Build() {
    if (field_.info.default_value.empty()) {
      field_.info.default_value = field_.required ? "required" : field_.write(JobSpec{}).dump();
    }
    return field_;
  }

 private:
  Field field_;
};

}  // namespace longspan::jobfile

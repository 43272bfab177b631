#include "proto/trainer_lines/trainer_lines.h"

#include <time.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

namespace longspan::lines {
namespace {

using nlohmann::json;

constexpr size_t kValuesMax = 512;  // entries of Progress::values; more are dropped

// ---- the fields of each line: one list, read by the encoder and by the decoder ----
// Required fields make a line malformed when they are missing; the others keep their defaults.

template <class T>
constexpr const char* kTypeOf = nullptr;
template <>
constexpr const char* kTypeOf<Hello> = "hello";
template <>
constexpr const char* kTypeOf<Rendezvous> = "rendezvous";
template <>
constexpr const char* kTypeOf<Phase> = "phase";
template <>
constexpr const char* kTypeOf<Progress> = "progress";
template <>
constexpr const char* kTypeOf<Reached> = "reached";
template <>
constexpr const char* kTypeOf<Checkpoint> = "checkpoint";
template <>
constexpr const char* kTypeOf<Evaluation> = "evaluation";
template <>
constexpr const char* kTypeOf<Artifact> = "artifact";
template <>
constexpr const char* kTypeOf<Expect> = "expect";
template <>
constexpr const char* kTypeOf<Warning> = "warning";
template <>
constexpr const char* kTypeOf<Failed> = "failed";
template <>
constexpr const char* kTypeOf<Done> = "done";
template <>
constexpr const char* kTypeOf<Stop> = "stop";
template <>
constexpr const char* kTypeOf<CheckpointNow> = "checkpoint_now";
template <>
constexpr const char* kTypeOf<Lease> = "lease";
template <>
constexpr const char* kTypeOf<CheckpointRecorded> = "checkpoint_recorded";

template <class A>
void Fields(A& a, Hello& line) {
  a.Required("protocol", line.protocol);
  a.Required("pid", line.pid);
  a.Required("rank", line.rank);
  a.Optional("version", line.version);
}
template <class A>
void Fields(A& a, Rendezvous& line) {
  a.Required("address", line.address);
}
template <class A>
void Fields(A& a, Phase& line) {
  a.Required("phase", line.phase);
}
template <class A>
void Fields(A& a, Progress& line) {
  a.Required("phase", line.phase);
  a.Required("step", line.step);
  a.Required("steps", line.steps);
  a.Optional("values", line.values);
}
template <class A>
void Fields(A& a, Reached& line) {
  a.Required("step", line.step);
}
template <class A>
void Fields(A& a, Checkpoint& line) {
  a.Required("name", line.name);
  a.Required("step", line.step);
  a.Required("manifest_sha256", line.manifest_sha256);
  a.Optional("size_bytes", line.size_bytes);
  a.Optional("seconds", line.seconds);
}
template <class A>
void Fields(A& a, Evaluation& line) {
  a.Required("model", line.model);
  a.Required("length", line.length);
  a.Required("protocol", line.protocol);
  a.Required("perplexity", line.perplexity);
  a.Required("loss", line.loss);
  a.Optional("tokens", line.tokens);
  a.Optional("step", line.step);
  a.Optional("score", line.score);
  a.Optional("examples", line.examples);
}
template <class A>
void Fields(A& a, Artifact& line) {
  a.Required("kind", line.kind);
  a.Required("path", line.path);
  a.Optional("excerpt", line.excerpt);
}
template <class A>
void Fields(A& a, Expect& line) {
  a.Required("reason", line.reason);
  a.Required("seconds", line.seconds);
}
template <class A>
void Fields(A& a, Warning& line) {
  a.Required("message", line.message);
}
template <class A>
void Fields(A& a, Failed& line) {
  a.Required("failure_class", line.failure_class);
  a.Required("message", line.message);
}
template <class A>
void Fields(A& a, Done& line) {
  a.Optional("stopped", line.stopped);
}
template <class A>
void Fields(A& a, Stop& line) {
  a.Optional("checkpoint", line.checkpoint);
  a.Optional("reason", line.reason);
}
template <class A>
void Fields(A&, CheckpointNow&) {}
template <class A>
void Fields(A& a, Lease& line) {
  a.Required("remaining_seconds", line.remaining_seconds);
  a.Optional("until_boottime_seconds", line.until_boottime_seconds);
}
template <class A>
void Fields(A& a, CheckpointRecorded& line) {
  a.Required("name", line.name);
}

// ---- encoding ----

json NumberToJson(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  return value;
}

std::string CutInTheMiddle(const std::string& text, size_t bytes_max) {
  if (text.size() <= bytes_max) return text;
  const std::string note = " [... " + std::to_string(text.size() - bytes_max) + " bytes cut ...] ";
  return text.substr(0, bytes_max / 2) + note + text.substr(text.size() - bytes_max / 2);
}

class Encoder {
 public:
  Encoder(const char* type, size_t text_bytes_max) : text_bytes_max_(text_bytes_max) { object_["type"] = type; }

  template <class T>
  void Required(const char* name, T& value) {
    object_[name] = Convert(value);
  }
  template <class T>
  void Optional(const char* name, T& value) {
    object_[name] = Convert(value);
  }

  // A cut may split a character: such bytes are replaced.
  std::string Line() const { return object_.dump(-1, ' ', false, json::error_handler_t::replace) + "\n"; }

 private:
  json Convert(const std::string& text) const { return CutInTheMiddle(text, text_bytes_max_); }
  json Convert(double value) const { return NumberToJson(value); }
  json Convert(bool value) const { return value; }
  json Convert(int value) const { return value; }
  json Convert(int64_t value) const { return value; }
  json Convert(const std::map<std::string, double>& values) const {
    json object = json::object();
    for (const auto& [name, value] : values) {
      if (object.size() == kValuesMax) break;
      object[CutInTheMiddle(name, std::min<size_t>(text_bytes_max_, 64))] = NumberToJson(value);
    }
    return object;
  }

  json object_;
  size_t text_bytes_max_;
};

template <class Line>
std::string EncodeLine(const Line& line) {
  return std::visit(
      [](auto copy) {
        // Escapes make a text up to six times as long, so the limit falls until the line fits; at 64 bytes it always
        // does.
        for (size_t text_bytes_max = kLineBytesMax;; text_bytes_max /= 2) {
          Encoder encoder(kTypeOf<decltype(copy)>, text_bytes_max);
          Fields(encoder, copy);
          std::string text = encoder.Line();
          if (text.size() <= kLineBytesMax || text_bytes_max <= 64) return text;
        }
      },
      line);
}

// ---- decoding ----

class Decoder {
 public:
  explicit Decoder(const json& object) : object_(object) {}

  template <class T>
  void Required(const char* name, T& value) {
    if (!object_.contains(name)) {
      good_ = false;
    } else {
      Read(object_[name], value);
    }
  }
  template <class T>
  void Optional(const char* name, T& value) {
    if (object_.contains(name)) Read(object_[name], value);
  }
  bool good() const { return good_; }

 private:
  void Read(const json& value, std::string& out) {
    if (value.is_string()) {
      out = value.get<std::string>();
    } else {
      good_ = false;
    }
  }
  void Read(const json& value, bool& out) {
    if (value.is_boolean()) {
      out = value.get<bool>();
    } else {
      good_ = false;
    }
  }
  void Read(const json& value, int64_t& out) {
    constexpr auto kMax = static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
    if (value.is_number_integer() && !(value.is_number_unsigned() && value.get<uint64_t>() > kMax)) {
      out = value.get<int64_t>();
    } else {
      good_ = false;
    }
  }
  void Read(const json& value, int& out) {
    int64_t wide = 0;
    Read(value, wide);
    if (wide < std::numeric_limits<int>::min() || wide > std::numeric_limits<int>::max()) good_ = false;
    out = static_cast<int>(wide);
  }
  void Read(const json& value, double& out) {
    if (value.is_number()) {
      out = value.get<double>();
    } else if (value == "nan") {
      out = std::numeric_limits<double>::quiet_NaN();
    } else if (value == "inf") {
      out = std::numeric_limits<double>::infinity();
    } else if (value == "-inf") {
      out = -std::numeric_limits<double>::infinity();
    } else {
      good_ = false;
    }
  }
  void Read(const json& value, std::map<std::string, double>& out) {
    if (!value.is_object() || value.size() > kValuesMax) {
      good_ = false;
      return;
    }
    for (const auto& [name, number] : value.items()) Read(number, out[name]);
  }

  const json& object_;
  bool good_ = true;
};

template <class Variant, class T>
bool TryDecode(const json& object, const std::string& type, std::optional<Variant>& out, bool* malformed) {
  if (type != kTypeOf<T>) return false;
  T line;
  Decoder decoder(object);
  Fields(decoder, line);
  if (decoder.good()) {
    out = std::move(line);
  } else {
    *malformed = true;
  }
  return true;
}

template <class... T>
std::optional<std::variant<T...>> DecodeLine(std::string_view line, bool* malformed, std::variant<T...>*) {
  *malformed = true;
  if (line.size() > kLineBytesMax) return std::nullopt;
  const json object = json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!object.is_object() || !object.contains("type") || !object["type"].is_string()) return std::nullopt;
  *malformed = false;
  std::optional<std::variant<T...>> out;
  const std::string type = object["type"].template get<std::string>();
  (TryDecode<std::variant<T...>, T>(object, type, out, malformed) || ...);
  return out;
}

}  // namespace

double RemainingSeconds(const Lease& lease) {
  if (!(lease.until_boottime_seconds > 0)) return lease.remaining_seconds;
  timespec now = {};
  ::clock_gettime(CLOCK_BOOTTIME, &now);
  const double left =
      lease.until_boottime_seconds - static_cast<double>(now.tv_sec) - 1e-9 * static_cast<double>(now.tv_nsec);
  return std::min(lease.remaining_seconds, left);
}

std::string Encode(const FromTrainer& line) { return EncodeLine(line); }
std::string Encode(const ToTrainer& line) { return EncodeLine(line); }

std::optional<FromTrainer> DecodeFromTrainer(std::string_view line, bool* malformed) {
  return DecodeLine(line, malformed, static_cast<FromTrainer*>(nullptr));
}
std::optional<ToTrainer> DecodeToTrainer(std::string_view line, bool* malformed) {
  return DecodeLine(line, malformed, static_cast<ToTrainer*>(nullptr));
}

void LineBuffer::Append(std::string_view bytes) {
  if (dropping_) {
    const size_t end = bytes.find('\n');
    if (end == std::string_view::npos) return;
    bytes.remove_prefix(end + 1);
    dropping_ = false;
  }
  buffer_.erase(0, begin_);
  begin_ = 0;
  buffer_.append(bytes);
  // The unfinished line at the end is cut off here, so that the buffer stays bounded even when nobody calls Next.
  const size_t last = buffer_.rfind('\n');
  const size_t tail = last == std::string::npos ? 0 : last + 1;
  if (buffer_.size() - tail >= kLineBytesMax) {
    buffer_.resize(tail);
    dropping_ = true;
    ++dropped_;
  }
}

std::optional<std::string> LineBuffer::Next() {
  for (;;) {
    const size_t end = buffer_.find('\n', begin_);
    if (end == std::string::npos) return std::nullopt;
    const size_t begin = begin_;
    begin_ = end + 1;
    if (end + 1 - begin <= kLineBytesMax) return buffer_.substr(begin, end - begin);
    ++dropped_;
  }
}

}  // namespace longspan::lines

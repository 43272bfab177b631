#include "tests/fuzz/json_mutator.h"

#include <algorithm>
#include <iterator>
#include <limits>

namespace longspan::fuzz {

using nlohmann::json;

void JsonMutator::Collect(json& value, int depth) {
  constexpr size_t kPlacesMax = 4096;  // of a large document, the first ones
  if (places_.size() >= kPlacesMax || depth > 40) return;
  places_.push_back(&value);
  if (!value.is_structured()) return;
  for (auto& inner : value) Collect(inner, depth + 1);
}

json JsonMutator::Strange() {
  static const std::vector<json> kValues = {
      nullptr,
      true,
      0,
      -1,
      1,
      2,
      255,
      65536,
      int64_t{1} << 31,
      int64_t{1} << 32,
      int64_t{1} << 62,
      std::numeric_limits<int64_t>::max(),
      std::numeric_limits<int64_t>::min(),
      std::numeric_limits<uint64_t>::max(),
      0.5,
      -0.0,
      1e-320,
      1e308,
      "",
      "\n",
      ".*",
      "(?:a|b)*+(",
      "\xE2\x96\x81",
      std::string("\0x", 2),
      std::string(300, 'a'),
      json::array(),
      json::object(),
      json::array({0, -1}),
      json::array({json::array()}),
      {{"type", "Sequence"}},
      {{"", 0}},
  };
  return kValues[Below(kValues.size())];
}

void JsonMutator::MutateOne(json& value) {
  switch (Below(8)) {
    case 0:
      value = Strange();
      return;
    case 1:
      value = json(*places_[Below(places_.size())]);
      return;
    case 2:
      if (value.is_structured() && !value.empty()) {
        auto victim = value.begin();
        std::advance(victim, static_cast<std::ptrdiff_t>(Below(value.size())));
        value.erase(victim);
      }
      return;
    case 3:
      if (value.is_array()) std::shuffle(value.begin(), value.end(), random_);
      if (value.is_array() && !value.empty()) value.push_back(json(value[Below(value.size())]));
      return;
    case 4:
      if (value.is_object() && value.size() > 1) {
        auto one = value.begin(), other = value.begin();
        std::advance(one, static_cast<std::ptrdiff_t>(Below(value.size())));
        std::advance(other, static_cast<std::ptrdiff_t>(Below(value.size())));
        std::swap(*one, *other);
      }
      return;
    case 5:
      if (value.is_object()) value[value.empty() ? "x" : value.begin().key() + "x"] = Strange();
      return;
    case 6:
      if (value.is_number()) value = value.get<double>() * (Below(2) == 0 ? -1 : 1000003);
      if (value.is_string()) value = value.get<std::string>().substr(0, Below(value.get<std::string>().size() + 1));
      return;
    default:
      if (value.is_number_integer()) value = value.get<uint64_t>() + (Below(2) == 0 ? 1 : ~uint64_t{0});  // wraps
      if (value.is_string()) value = value.get<std::string>() + value.get<std::string>();
      return;
  }
}

void JsonMutator::Mutate(json& document) {
  const size_t changes = 1 + Below(4);
  for (size_t change = 0; change < changes; ++change) {
    places_.clear();
    Collect(document, 0);
    MutateOne(*places_[Below(places_.size())]);
  }
}

std::string MutateJsonText(const std::string& text, size_t bytes_max, unsigned seed) {
  json document = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (document.is_discarded()) return "";
  JsonMutator(seed).Mutate(document);
  std::string mutated = document.dump(-1, ' ', false, json::error_handler_t::replace);
  return mutated.size() > bytes_max ? "" : mutated;
}

}  // namespace longspan::fuzz

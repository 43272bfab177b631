#include "client/yaml_document.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/yaml.h>

#include <limits>
#include <regex>
#include <set>
#include <sstream>

namespace longspan::client {
namespace {

using nlohmann::json;

// A file that names itself through aliases grows without end; no job file has so many values.
constexpr size_t kNodesMax = 20'000;
constexpr size_t kDepthMax = 64;

json PlainScalar(const std::string& text) {
  static const std::regex kInteger("[-+]?[0-9]+");
  static const std::regex kNumber("[-+]?(\\.[0-9]+|[0-9]+(\\.[0-9]*)?)([eE][-+]?[0-9]+)?");
  if (text.empty() || text == "~" || text == "null" || text == "Null" || text == "NULL") return nullptr;
  if (text == "true" || text == "True" || text == "TRUE") return true;
  if (text == "false" || text == "False" || text == "FALSE") return false;
  if (text.size() > 64) return text;
  try {
    if (std::regex_match(text, kInteger)) return std::stoll(text);
    if (std::regex_match(text, kNumber)) return std::stod(text);
  } catch (const std::out_of_range&) {  // a number that no field holds: the text shows in the message
  }
  return text;
}

class Converter {
 public:
  explicit Converter(YamlDocument* result) : result_(*result) {}

  json Convert(const YAML::Node& node, const std::string& path, size_t depth) {
    if (++nodes_ > kNodesMax || depth > kDepthMax) {
      if (!too_large_) Add(path, node, "is nested or repeated beyond any use");
      too_large_ = true;
      return nullptr;
    }
    switch (node.Type()) {
      case YAML::NodeType::Scalar:
        return node.Tag() == "?" ? PlainScalar(node.Scalar()) : json(node.Scalar());
      case YAML::NodeType::Sequence: {
        json list = json::array();
        for (const YAML::Node& entry : node) list.push_back(Convert(entry, path, depth + 1));
        return list;
      }
      case YAML::NodeType::Map:
        return ConvertMap(node, path, depth);
      case YAML::NodeType::Null:
      case YAML::NodeType::Undefined:
        return nullptr;
    }
    return nullptr;
  }

 private:
  json ConvertMap(const YAML::Node& node, const std::string& path, size_t depth) {
    json map = json::object();
    std::set<std::string> seen;
    for (const auto& entry : node) {
      if (!entry.first.IsScalar()) {
        Add(path, entry.first, "has a key that is no text");
        continue;
      }
      const std::string key = entry.first.Scalar();
      const std::string key_path = path.empty() ? key : path + "." + key;
      if (!seen.insert(key).second) {
        Add(key_path, entry.first, "is written twice, first in line " + std::to_string(result_.line_of[key_path]));
        continue;
      }
      result_.line_of.emplace(key_path, entry.first.Mark().line + 1);
      map[key] = Convert(entry.second, key_path, depth + 1);
    }
    return map;
  }

  void Add(const std::string& path, const YAML::Node& node, std::string message) {
    result_.mistakes.push_back({path, node.Mark().line + 1, std::move(message)});
  }

  YamlDocument& result_;
  size_t nodes_ = 0;
  bool too_large_ = false;
};

// Sees where documents start and nothing else.
class DocumentStarts final : public YAML::EventHandler {
 public:
  std::vector<int> lines;  // from 1

  void OnDocumentStart(const YAML::Mark& mark) override { lines.push_back(mark.line + 1); }
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark&, YAML::anchor_t) override {}
  void OnAlias(const YAML::Mark&, YAML::anchor_t) override {}
  void OnScalar(const YAML::Mark&, const std::string&, YAML::anchor_t, const std::string&) override {}
  void OnSequenceStart(const YAML::Mark&, const std::string&, YAML::anchor_t, YAML::EmitterStyle::value) override {}
  void OnSequenceEnd() override {}
  void OnMapStart(const YAML::Mark&, const std::string&, YAML::anchor_t, YAML::EmitterStyle::value) override {}
  void OnMapEnd() override {}
};

// Line of the second document, 0 when there is none. Not YAML::LoadAll: it makes documents without end out of a stray
// comma.
int LineOfSecondDocument(const std::string& text) {
  std::istringstream in(text);
  YAML::Parser parser(in);
  DocumentStarts starts;
  while (starts.lines.size() < 2 && parser.HandleNextDocument(starts)) {
  }
  return starts.lines.size() < 2 ? 0 : starts.lines[1];
}

}  // namespace

YamlDocument ParseYaml(const std::string& text) {
  YamlDocument result;
  try {
    if (const int line = LineOfSecondDocument(text); line > 0) {
      result.mistakes.push_back({"", line, "has a second document; one job file is one document"});
    } else {
      result.document = Converter(&result).Convert(YAML::Load(text), "", 0);
    }
  } catch (const YAML::Exception& error) {
    result.mistakes.push_back({"", error.mark.line + 1, "is not YAML: " + error.msg});
  }
  return result;
}

}  // namespace longspan::client

// The rules that every .proto of ours follows, checked over the descriptors with their comments. A rule broken here
// would be expensive to mend once clients exist.
#include <google/protobuf/descriptor.pb.h>
#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <string>
#include <vector>

#include "tests/test_paths.h"

namespace longspan {
namespace {

using google::protobuf::DescriptorProto;
using google::protobuf::EnumDescriptorProto;
using google::protobuf::FileDescriptorProto;
using google::protobuf::FileDescriptorSet;

FileDescriptorSet ReadDescriptorSet() {
  const std::string path = testing::PathFromEnvironment("LONGSPAN_DESCRIPTOR_SET");
  std::ifstream file(path, std::ios::binary);
  FileDescriptorSet set;
  if (!set.ParseFromIstream(&file)) throw std::runtime_error("cannot read " + path);
  return set;
}

// GANG_DOES_NOT_FIT for GangDoesNotFit.
std::string UpperSnake(const std::string& pascal) {
  std::string out;
  for (size_t i = 0; i < pascal.size(); ++i) {
    if (i > 0 && std::isupper(static_cast<unsigned char>(pascal[i])) != 0) out += '_';
    out += static_cast<char>(std::toupper(static_cast<unsigned char>(pascal[i])));
  }
  return out;
}

// Walks one file, with the source path that comments are keyed by. Field numbers of the path are those of
// descriptor.proto.
class Walk {
 public:
  explicit Walk(const FileDescriptorProto& file) : file_(file) {
    for (const auto& location : file.source_code_info().location()) {
      comments_[{location.path().begin(), location.path().end()}] = location.leading_comments();
    }
  }

  void Run() {
    EXPECT_TRUE(std::regex_match(file_.package(), std::regex(R"([a-z_]+(\.[a-z_]+)*\.v[0-9]+((alpha|beta)[0-9]+)?)")))
        << file_.name() << ": package '" << file_.package() << "' does not end in a version";
    std::string folder = file_.package();
    for (char& letter : folder) letter = letter == '.' ? '/' : letter;
    EXPECT_EQ(file_.name().substr(0, file_.name().rfind('/')), folder) << "a file lies in the folder of its package";
    for (int i = 0; i < file_.message_type_size(); ++i) Message(file_.message_type(i), {4, i}, "");
    for (int i = 0; i < file_.enum_type_size(); ++i) Enum(file_.enum_type(i), {5, i}, "");
    for (int i = 0; i < file_.service_size(); ++i) Service(i);
  }

 private:
  using Path = std::vector<int>;

  static Path Below(Path path, int field, int index) {
    path.push_back(field);
    path.push_back(index);
    return path;
  }

  void ExpectComment(const Path& path, const std::string& name) {
    const auto found = comments_.find(path);
    const bool has_text = found != comments_.end() && found->second.find_first_not_of(" \n") != std::string::npos;
    EXPECT_TRUE(has_text) << file_.name() << ": " << name << " has no comment";
  }

  void Message(const DescriptorProto& message, const Path& path, const std::string& scope) {
    if (message.options().map_entry()) return;
    const std::string name = scope + message.name();
    EXPECT_TRUE(std::regex_match(message.name(), std::regex("[A-Z][A-Za-z0-9]*"))) << name;
    // Requests and responses are documented by their method, everything else by itself.
    if (!std::regex_search(name, std::regex("(Request|Response)$"))) ExpectComment(path, name);
    for (int i = 0; i < message.field_size(); ++i) {
      EXPECT_TRUE(std::regex_match(message.field(i).name(), std::regex("[a-z][a-z0-9]*(_[a-z0-9]+)*")))
          << name << "." << message.field(i).name() << " is not lower_snake_case";
      ExpectComment(Below(path, 2, i), name + "." + message.field(i).name());
    }
    for (int i = 0; i < message.nested_type_size(); ++i) Message(message.nested_type(i), Below(path, 3, i), name + ".");
    for (int i = 0; i < message.enum_type_size(); ++i) Enum(message.enum_type(i), Below(path, 4, i), name + ".");
  }

  void Enum(const EnumDescriptorProto& type, const Path& path, const std::string& scope) {
    const std::string name = scope + type.name();
    ExpectComment(path, name);
    const std::string prefix = UpperSnake(type.name()) + "_";
    ASSERT_GT(type.value_size(), 0) << name;
    EXPECT_EQ(type.value(0).name(), prefix + "UNSPECIFIED") << name << ": zero means that nobody said";
    EXPECT_EQ(type.value(0).number(), 0) << name;
    for (int i = 0; i < type.value_size(); ++i) {
      EXPECT_EQ(type.value(i).name().rfind(prefix, 0), 0u)
          << name << ": " << type.value(i).name() << " lacks " << prefix;
      ExpectComment(Below(path, 2, i), name + "." + type.value(i).name());
    }
  }

  void Service(int index) {
    const auto& service = file_.service(index);
    EXPECT_TRUE(std::regex_search(service.name(), std::regex("^[A-Z].*Service$"))) << service.name();
    ExpectComment({6, index}, service.name());
    for (int i = 0; i < service.method_size(); ++i) {
      const auto& method = service.method(i);
      ExpectComment(Below({6, index}, 2, i), service.name() + "." + method.name());
      EXPECT_EQ(method.input_type(), "." + file_.package() + "." + method.name() + "Request");
      EXPECT_EQ(method.output_type(), "." + file_.package() + "." + method.name() + "Response");
    }
  }

  const FileDescriptorProto& file_;
  std::map<Path, std::string> comments_;
};

TEST(Naming, EveryFileFollowsTheRules) {
  const FileDescriptorSet set = ReadDescriptorSet();
  EXPECT_GE(set.file_size(), 3);
  for (const FileDescriptorProto& file : set.file()) Walk(file).Run();
}

TEST(Naming, NoTwoMethodsShareARequestOrAResponse) {
  std::map<std::string, std::string> user;
  const FileDescriptorSet set = ReadDescriptorSet();
  for (const FileDescriptorProto& file : set.file()) {
    for (const auto& service : file.service()) {
      for (const auto& method : service.method()) {
        for (const std::string& type : {method.input_type(), method.output_type()}) {
          const auto [entry, is_new] = user.emplace(type, method.name());
          EXPECT_TRUE(is_new) << type << " is used by " << entry->second << " and by " << method.name();
        }
      }
    }
  }
}

}  // namespace
}  // namespace longspan

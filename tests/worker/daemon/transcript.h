// Runs a transcript: prose (#), commands, "----", the output they are expected to give, an empty line. With
// LONGSPAN_REWRITE=1 the file is rewritten with what came out.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <sstream>
#include <string>

namespace longspan::testing {

inline void RunTranscript(const std::filesystem::path& path,
                          const std::function<std::string(const std::string&)>& execute) {
  std::ifstream file(path);
  ASSERT_TRUE(file) << path;
  std::ostringstream rewritten;
  std::string actual;
  std::string expected;
  int line_number = 0;
  int block_line = 0;
  bool in_expected = false;
  const auto finish = [&] {
    if (in_expected) {
      EXPECT_EQ(actual, expected) << path.string() << ":" << block_line;
      rewritten << actual;
    }
    actual.clear();
    expected.clear();
    in_expected = false;
  };
  for (std::string line; std::getline(file, line);) {
    ++line_number;
    if (line == "----") {
      in_expected = true;
      block_line = line_number;
      rewritten << line << "\n";
    } else if (line.empty()) {
      finish();
      rewritten << "\n";
    } else if (in_expected) {
      expected += line + "\n";
    } else {
      rewritten << line << "\n";
      if (line[0] != '#') actual += execute(line);
    }
  }
  finish();
  if (std::getenv("LONGSPAN_REWRITE") != nullptr) std::ofstream(path) << rewritten.str();
}

}  // namespace longspan::testing

// Transcripts: files of prose (#), commands, "----", what comes out of them, an empty line; and again.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <sstream>
#include <string>

namespace longspan::testing {

// `text` with what came out in the place of what was expected.
inline std::string PlayTranscript(const std::string& text,
                                  const std::function<std::string(const std::string& command)>& execute) {
  std::istringstream lines(text);
  std::string result, output;
  bool expecting = false;
  for (std::string line; std::getline(lines, line);) {
    if (expecting) {
      if (!line.empty()) continue;
      expecting = false;
    } else if (line == "----") {
      result += "----\n" + output;
      output.clear();
      expecting = true;
      continue;
    } else if (!line.empty() && line[0] != '#') {
      output += execute(line);
    }
    result += line + "\n";
  }
  return result;
}

// Plays the file and expects it to come out as written. With LONGSPAN_REWRITE=1 what came out is written into it.
inline void ExpectTranscript(const std::filesystem::path& path,
                             const std::function<std::string(const std::string& command)>& execute) {
  std::ifstream file(path);
  ASSERT_TRUE(file) << path;
  std::ostringstream content;
  content << file.rdbuf();
  const std::string played = PlayTranscript(content.str(), execute);
  if (std::getenv("LONGSPAN_REWRITE") != nullptr) {
    std::ofstream(path) << played;
    return;
  }
  EXPECT_EQ(played, content.str()) << path << ": LONGSPAN_REWRITE=1 takes what came out as right";
}

}  // namespace longspan::testing

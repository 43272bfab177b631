// Where a test finds the source tree and the built programs. CTest sets both; by hand:
//   LONGSPAN_SOURCE_DIR=$PWD LONGSPAN_BIN_DIR=$PWD/build/release/bin build/release/tests/some_test
#pragma once

#include <cstdlib>
#include <filesystem>
#include <stdexcept>
#include <string>

namespace longspan::testing {

inline std::filesystem::path PathFromEnvironment(const char* variable) {
  const char* value = std::getenv(variable);
  if (value == nullptr) throw std::runtime_error(std::string(variable) + " is not set: run this test through ctest");
  return value;
}
inline std::filesystem::path SourceDir() { return PathFromEnvironment("LONGSPAN_SOURCE_DIR"); }
inline std::filesystem::path BinDir() { return PathFromEnvironment("LONGSPAN_BIN_DIR"); }

}  // namespace longspan::testing

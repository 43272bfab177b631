// The command line client as a function, so that tests run it without a process.
#pragma once

#include <chrono>
#include <functional>
#include <iosfwd>
#include <optional>
#include <string>
#include <vector>

namespace longspan::client {

// Everything the client takes from its surroundings. Values and functions are read by one thread.
struct Environment {
  std::ostream* out = nullptr;  // results
  std::ostream* err = nullptr;  // errors and remarks
  std::istream* in = nullptr;   // a job file named "-"
  bool out_is_terminal = false;
  bool utf8 = true;  // whether the terminal draws characters beyond ASCII
  int width = 80;    // columns of the terminal
  std::function<std::optional<std::string>(const std::string& name)> variable;
  std::function<std::chrono::system_clock::time_point()> now;
  // Waits before a retry.
  std::function<void(std::chrono::milliseconds)> sleep;
};

// This process's own. `out`, `err` and `in` are the standard streams.
Environment ProcessEnvironment();

// Runs `longspan` with these arguments (without the program's name); returns its exit code. Never throws.
int RunClient(const std::vector<std::string>& arguments, const Environment& environment);

}  // namespace longspan::client

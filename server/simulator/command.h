// `longspan-server simulate` and `longspan-server generate-trace`: flags, files, output.
#pragma once

#include <CLI/CLI.hpp>
#include <iosfwd>
#include <memory>

#include "absl/status/status.h"

namespace longspan::simulator {

class Commands {
 public:
  // Adds both to `app`, which outlives it.
  explicit Commands(CLI::App* app);
  ~Commands();

  bool Parsed() const;
  // The one that was parsed. Writes to `out`.
  absl::Status Run(std::ostream& out);

 private:
  struct Flags;
  std::unique_ptr<Flags> flags_;
};

}  // namespace longspan::simulator

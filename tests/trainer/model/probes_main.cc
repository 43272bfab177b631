// longspan-probes: `longspan-trainer probe` for many jobs in one process, since starting one takes much longer than a
// tiny model does (tests/parity/reference/prober.py).
//
// Reads lines {"spec": FILE, "tokens": FILE, "out": FILE} and answers each with {} or {"error": ...}, until its input
// ends. Models do not outlive their line.
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>

#include "worker/trainer/probe.h"

namespace longspan::trainer {
namespace {

nlohmann::json Answer(const nlohmann::json& request) {
  try {
    RunProbe({request.at("spec"), request.at("tokens"), request.at("out")});
    return nlohmann::json::object();
  } catch (const std::exception& error) {
    return {{"error", error.what()}};
  }
}

}  // namespace
}  // namespace longspan::trainer

int main() {
  std::string line;
  while (std::getline(std::cin, line)) {
    std::cout << longspan::trainer::Answer(nlohmann::json::parse(line)).dump() << std::endl;
  }
  return 0;
}

#include "tests/sim/seeds.h"

#include <fmt/format.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>

namespace longspan::sim {
namespace {

constexpr size_t kLinesShown = 60;

volatile uint64_t running_seed = 0;

extern "C" void TellSeed(int) {
  std::fprintf(stderr, "The simulation of seed %llu aborted. Replay it: cluster_sim_test --seed %llu\n",
               static_cast<unsigned long long>(running_seed), static_cast<unsigned long long>(running_seed));
}

std::string Report(uint64_t seed, const SimulationOptions& options, const Violation& violation) {
  SimulationOptions again = options;
  again.transcript = true;
  SimulatedCluster cluster(again);
  cluster.Run();
  std::string text =
      fmt::format("seed {} violates \"{}\": {}\nReplay it: cluster_sim_test --seed {}\nThe end of its transcript:\n",
                  seed, violation.invariant, violation.text, seed);
  const auto& lines = cluster.transcript();
  for (size_t i = lines.size() > kLinesShown ? lines.size() - kLinesShown : 0; i < lines.size(); ++i) {
    text += lines[i] + "\n";
  }
  return text;
}

}  // namespace

SeedRange ParseSeeds(const std::string& text) {
  const size_t dash = text.find('-');
  return {std::stoull(text.substr(0, dash)), std::stoull(text.substr(dash + 1))};
}

SeedRange SeedsFromEnvironment(SeedRange otherwise) {
  if (const char* one = std::getenv("LONGSPAN_SIM_SEED")) {
    const uint64_t seed = std::stoull(one);
    return {seed, seed + 1};
  }
  const char* several = std::getenv("LONGSPAN_SIM_SEEDS");
  if (several == nullptr) return otherwise;
  return ParseSeeds(several);
}

SeedsResult RunSeeds(SeedRange range, SimulationOptions (*options_of)(uint64_t)) {
  std::signal(SIGABRT, TellSeed);
  SeedsResult result;
  for (uint64_t seed = range.from; seed < range.to && !result.failed; ++seed) {
    running_seed = seed;
    const SimulationOptions options = options_of(seed);
    SimulatedCluster cluster(options);
    cluster.Run();
    ++result.seeds;
    const SimulatedCluster::Totals totals = cluster.totals();
    result.totals.jobs += totals.jobs;
    result.totals.attempts += totals.attempts;
    result.totals.steps += totals.steps;
    result.totals.commits += totals.commits;
    result.totals.server_starts += totals.server_starts;
    result.totals.events += totals.events;
    result.totals.checks += totals.checks;
    result.totals.virtual_seconds += totals.virtual_seconds;
    if (!cluster.violation()) continue;
    result.failed = seed;
    result.violation = *cluster.violation();
    result.report = Report(seed, options, *cluster.violation());
  }
  std::signal(SIGABRT, SIG_DFL);
  return result;
}

}  // namespace longspan::sim

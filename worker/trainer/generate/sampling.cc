#include "worker/trainer/generate/sampling.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace longspan::trainer {
namespace {

// SplitMix64's finalizer.
uint64_t Mix(uint64_t value) {
  value += 0x9E3779B97F4A7C15u;
  value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9u;
  value = (value ^ (value >> 27)) * 0x94D049BB133111EBu;
  return value ^ (value >> 31);
}

int64_t MostLikely(std::span<const float> logits) {
  size_t best = 0;
  for (size_t token = 1; token < logits.size(); ++token) {
    if (logits[token] > logits[best] || (std::isnan(logits[best]) && !std::isnan(logits[token]))) best = token;
  }
  return static_cast<int64_t>(best);
}

}  // namespace

double UniformAt(uint64_t seed, const DrawPlace& place) {
  const uint64_t bits = Mix(Mix(Mix(seed) ^ place.text) ^ place.position);
  return static_cast<double>(bits >> 11) * 0x1.0p-53;
}

int64_t ChooseToken(std::span<const float> logits, const Sampling& sampling, const DrawPlace& place) {
  const int64_t likeliest = MostLikely(logits);
  const double highest = logits[static_cast<size_t>(likeliest)];
  if (sampling.temperature <= 0 || !std::isfinite(highest)) return likeliest;

  std::vector<double> weights(logits.size());
  double total = 0;
  for (size_t token = 0; token < logits.size(); ++token) {
    const double weight = std::exp((static_cast<double>(logits[token]) - highest) / sampling.temperature);
    weights[token] = std::isnan(weight) ? 0 : weight;
    total += weights[token];
  }
  std::vector<size_t> order(logits.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return weights[a] > weights[b]; });
  size_t kept = 0;
  double mass = 0;
  while (kept < order.size() && (kept == 0 || mass < sampling.top_p * total)) mass += weights[order[kept++]];

  double left = UniformAt(sampling.seed, place) * mass;
  for (size_t rank = 0; rank + 1 < kept; ++rank) {
    left -= weights[order[rank]];
    if (left < 0) return static_cast<int64_t>(order[rank]);
  }
  return static_cast<int64_t>(order[kept - 1]);
}

}  // namespace longspan::trainer

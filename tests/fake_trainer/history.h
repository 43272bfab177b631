// What stands for the weights in the fake trainer: a number into which every step is folded, so that a step which was
// done twice, left out, or done on top of another attempt's changes every later loss.
//
// Also its two files in the job's folder:
//   progress.jsonl  as the real trainer's: one line a step, without those of steps that are done again
//   steps.log       only ever appended to, by every rank: "ATTEMPT RANK STEP\n"; it tells who lived when
//
// Not thread-safe. Throws std::runtime_error when a file cannot be written.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>

namespace longspan::fake_trainer {

class History {
 public:
  History() = default;
  History(int64_t step, uint64_t digest) : step_(step), digest_(digest) {}

  void DoNextStep();
  int64_t step() const { return step_; }
  uint64_t digest() const { return digest_; }
  // Falls with the steps, and its last digits are the digest's.
  double Loss() const;

 private:
  int64_t step_ = 0;
  uint64_t digest_ = 0x9E3779B97F4A7C15ull;
};

// The file progress.jsonl of a job; only rank 0 has one.
class ProgressFile {
 public:
  // Lines after `step` are taken away: they are written again.
  ProgressFile(const std::filesystem::path& work, int64_t step);
  void Add(const History& history, int64_t attempt);

 private:
  std::ofstream file_;
};

// One write(2) with O_APPEND, so that the lines of several processes do not mix.
void AppendToStepsLog(const std::filesystem::path& work, int64_t attempt, int64_t rank, int64_t step);

}  // namespace longspan::fake_trainer

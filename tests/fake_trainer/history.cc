#include "tests/fake_trainer/history.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <nlohmann/json.hpp>
#include <stdexcept>

#include "worker/storage/storage.h"

namespace longspan::fake_trainer {
namespace {

// The finalizer of splitmix64 (Steele, Lea, Flood 2014): every bit of the input changes half of the output.
uint64_t Mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

}  // namespace

void History::DoNextStep() { digest_ = Mix(digest_ + static_cast<uint64_t>(++step_)); }

double History::Loss() const {
  const double falls = 1.5 + 2.5 / (1.0 + static_cast<double>(step_) / 20.0);
  return falls + static_cast<double>(digest_ >> 44) * 0x1p-24;  // 20 bits, at most 1/16
}

ProgressFile::ProgressFile(const std::filesystem::path& work, int64_t step) {
  const auto path = work / "progress.jsonl";
  std::string kept;
  std::ifstream old(path);
  for (std::string line; std::getline(old, line);) {
    const auto document = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (document.is_object() && document.value("step", int64_t{0}) <= step && step > 0) kept += line + "\n";
  }
  old.close();
  storage::WriteFileAtomically(path, kept);
  file_.open(path, std::ios::app);
  if (!file_) throw std::runtime_error("cannot write " + path.native());
}

void ProgressFile::Add(const History& history, int64_t attempt) {
  file_ << nlohmann::json{{"phase", "train"}, {"step", history.step()}, {"attempt", attempt}, {"loss", history.Loss()}}
               .dump()
        << '\n'
        << std::flush;
  if (!file_) throw std::runtime_error("cannot write progress.jsonl");
}

void AppendToStepsLog(const std::filesystem::path& work, int64_t attempt, int64_t rank, int64_t step) {
  const auto path = work / "steps.log";
  const int descriptor = ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  const std::string line = fmt::format("{} {} {}\n", attempt, rank, step);
  const bool written =
      descriptor >= 0 && ::write(descriptor, line.data(), line.size()) == static_cast<ssize_t>(line.size());
  if (descriptor >= 0) ::close(descriptor);
  if (!written) throw std::runtime_error("cannot append to " + path.native());
}

}  // namespace longspan::fake_trainer

// The ranks of a fake gang: a star of TCP connections around rank 0 that exchanges one word per step, as the real
// trainer does in its all-reduce. A rank that hangs stalls everybody, a rank that dies fails everybody. Ranks of
// another attempt are turned away at the door, and ranks that have not the same past end the gang. Not thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

namespace longspan::fake_trainer {

// A peer is gone, or could not be reached.
class PeerLost : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The ranks are not at the same step, or did not come there the same way: a broken invariant.
class RanksDisagree : public std::logic_error {
 public:
  using std::logic_error::logic_error;
};

// What every rank says before a step.
struct Word {
  int64_t step = 0;
  uint64_t digest = 0;  // of the steps so far
  uint64_t flags = 0;
};

class Gang {
 public:
  // Called while a rank waits, some times a second; it may throw to end the wait.
  using WhileWaiting = std::function<void()>;

  Gang(int64_t attempt, WhileWaiting while_waiting) : attempt_(attempt), while_waiting_(std::move(while_waiting)) {}
  ~Gang();
  Gang(const Gang&) = delete;
  Gang& operator=(const Gang&) = delete;

  // Rank 0: listens on any port of `host`; returns "host:port".
  std::string Listen(const std::string& host);
  // Rank 0: until all others have joined; who comes from another attempt is sent away.
  void AcceptAll(int64_t world_size);
  // Other ranks: joins at "host:port".
  void Join(const std::string& address);

  // Rank 0 says a text of at most 4 KiB, and the others hear it.
  std::string Share(const std::string& text);

  // Every rank gives its word and gets the union of all flags. RanksDisagree in all of them when a step or digest
  // differs.
  uint64_t Agree(const Word& word);

 private:
  void WaitReadable(int descriptor);
  void Receive(int descriptor, void* bytes, size_t size);
  void Send(int descriptor, const void* bytes, size_t size);

  const int64_t attempt_;
  WhileWaiting while_waiting_;
  int listener_ = -1;
  bool is_first_ = true;
  std::vector<int> peers_;  // rank 0: all others; otherwise: rank 0
};

}  // namespace longspan::fake_trainer

// The ranks of a fake gang: a star of TCP connections around rank 0 that agrees on one control byte per step, as the
// real trainer does in its all-reduce. A rank that hangs stalls everybody, a rank that dies fails everybody. Not
// thread-safe.
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

class Gang {
 public:
  // Called while a rank waits, some times a second; it may throw to end the wait.
  using WhileWaiting = std::function<void()>;

  explicit Gang(WhileWaiting while_waiting) : while_waiting_(std::move(while_waiting)) {}
  ~Gang();
  Gang(const Gang&) = delete;
  Gang& operator=(const Gang&) = delete;

  // Rank 0: listens on any port of `host`; returns "host:port".
  std::string Listen(const std::string& host);
  // Rank 0: until all others have joined.
  void AcceptAll(int64_t world_size);
  // Other ranks: joins at "host:port".
  void Join(const std::string& address);

  // Every rank gives its flags and gets the union of all flags.
  uint8_t Agree(uint8_t flags);

 private:
  void WaitReadable(int descriptor);
  uint8_t Receive(int descriptor);
  void Send(int descriptor, uint8_t flags);

  WhileWaiting while_waiting_;
  int listener_ = -1;
  bool is_first_ = true;
  std::vector<int> peers_;  // rank 0: all others; otherwise: rank 0
};

}  // namespace longspan::fake_trainer

#include "tests/fake_trainer/gang.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>

namespace longspan::fake_trainer {
namespace {

constexpr int kPollMs = 50;
constexpr uint64_t kTextBytesMax = 4096;
constexpr uint64_t kDisagree = 1ull << 63;  // a flag of rank 0's answer

std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> Resolve(const std::string& host, const std::string& port) {
  addrinfo hints{};
  hints.ai_family = AF_INET;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (::getaddrinfo(host.c_str(), port.c_str(), &hints, &found) != 0) throw PeerLost("cannot resolve " + host);
  return {found, &freeaddrinfo};
}

int NewSocket() {
  const int descriptor = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (descriptor < 0) throw PeerLost(std::string("no socket: ") + std::strerror(errno));
  return descriptor;
}

}  // namespace

Gang::~Gang() {
  for (int peer : peers_) ::close(peer);
  if (listener_ >= 0) ::close(listener_);
}

std::string Gang::Listen(const std::string& host) {
  const auto address = Resolve(host, "0");
  listener_ = NewSocket();
  sockaddr_in bound{};
  socklen_t length = sizeof bound;
  if (::bind(listener_, address->ai_addr, address->ai_addrlen) != 0 || ::listen(listener_, 128) != 0 ||
      ::getsockname(listener_, reinterpret_cast<sockaddr*>(&bound), &length) != 0) {
    throw PeerLost("cannot listen on " + host + ": " + std::strerror(errno));
  }
  return host + ":" + std::to_string(ntohs(bound.sin_port));
}

void Gang::AcceptAll(int64_t world_size) {
  while (static_cast<int64_t>(peers_.size()) + 1 < world_size) {
    WaitReadable(listener_);
    const int peer = ::accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
    if (peer < 0) throw PeerLost(std::string("cannot accept: ") + std::strerror(errno));
    int64_t attempt = 0;
    try {
      Receive(peer, &attempt, sizeof attempt);
    } catch (const PeerLost&) {  // before it said a word: whoever it was, its daemon tells
    }
    if (attempt == attempt_) {
      peers_.push_back(peer);
    } else {
      ::close(peer);
    }
  }
}

void Gang::Join(const std::string& address) {
  is_first_ = false;
  const size_t colon = address.rfind(':');
  if (colon == std::string::npos) throw PeerLost("bad rendezvous address " + address);
  const auto resolved = Resolve(address.substr(0, colon), address.substr(colon + 1));
  const int peer = NewSocket();
  peers_.push_back(peer);
  if (::connect(peer, resolved->ai_addr, resolved->ai_addrlen) != 0) {
    throw PeerLost("cannot connect to rank 0 at " + address + ": " + std::strerror(errno));
  }
  Send(peer, &attempt_, sizeof attempt_);
}

std::string Gang::Share(const std::string& text) {
  uint64_t size = text.size();
  if (is_first_) {
    for (int peer : peers_) {
      Send(peer, &size, sizeof size);
      Send(peer, text.data(), size);
    }
    return text;
  }
  Receive(peers_.front(), &size, sizeof size);
  if (size > kTextBytesMax) throw PeerLost("rank 0 says " + std::to_string(size) + " bytes");
  std::string heard(size, '\0');
  Receive(peers_.front(), heard.data(), size);
  return heard;
}

uint64_t Gang::Agree(const Word& word) {
  uint64_t flags = word.flags;
  if (is_first_) {
    for (int peer : peers_) {
      Word other;
      Receive(peer, &other, sizeof other);
      flags |= other.flags;
      if (other.step != word.step || other.digest != word.digest) flags |= kDisagree;
    }
    for (int peer : peers_) Send(peer, &flags, sizeof flags);
  } else {
    Send(peers_.front(), &word, sizeof word);
    Receive(peers_.front(), &flags, sizeof flags);
  }
  if ((flags & kDisagree) != 0)
    throw RanksDisagree("the ranks have not done the same steps; this one is at step " + std::to_string(word.step));
  return flags;
}

void Gang::WaitReadable(int descriptor) {
  for (;;) {
    while_waiting_();
    pollfd waiting{descriptor, POLLIN, 0};
    if (::poll(&waiting, 1, kPollMs) > 0) return;
  }
}

void Gang::Receive(int descriptor, void* bytes, size_t size) {
  for (size_t done = 0; done < size;) {
    WaitReadable(descriptor);
    const ssize_t got = ::recv(descriptor, static_cast<char*>(bytes) + done, size - done, 0);
    if (got <= 0) throw PeerLost("a peer closed its connection");
    done += static_cast<size_t>(got);
  }
}

// What is sent is far smaller than the buffer of a connection: it never waits.
void Gang::Send(int descriptor, const void* bytes, size_t size) {
  if (::send(descriptor, bytes, size, MSG_NOSIGNAL) != static_cast<ssize_t>(size))
    throw PeerLost("a peer closed its connection");
}

}  // namespace longspan::fake_trainer

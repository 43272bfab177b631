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
    peers_.push_back(peer);
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
}

uint8_t Gang::Agree(uint8_t flags) {
  if (!is_first_) {
    Send(peers_.front(), flags);
    return Receive(peers_.front());
  }
  for (int peer : peers_) flags |= Receive(peer);
  for (int peer : peers_) Send(peer, flags);
  return flags;
}

void Gang::WaitReadable(int descriptor) {
  for (;;) {
    while_waiting_();
    pollfd waiting{descriptor, POLLIN, 0};
    if (::poll(&waiting, 1, kPollMs) > 0) return;
  }
}

uint8_t Gang::Receive(int descriptor) {
  WaitReadable(descriptor);
  uint8_t flags = 0;
  if (::recv(descriptor, &flags, 1, 0) != 1) throw PeerLost("a peer closed its connection");
  return flags;
}

void Gang::Send(int descriptor, uint8_t flags) {
  if (::send(descriptor, &flags, 1, MSG_NOSIGNAL) != 1) throw PeerLost("a peer closed its connection");
}

}  // namespace longspan::fake_trainer

// Channels to a Longspan server, for the command line client and the worker daemon: credentials, keepalive, limits.
// Thread-safe.
#pragma once

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>

#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace longspan {

struct ChannelOptions {
  std::string address;                // "host:port"
  bool tls = false;                   // with the system's certificates when ca_file is empty; ca_file implies it
  std::string ca_file = {};           // PEM; the authority that signed the server's certificate
  std::string certificate_file = {};  // PEM; this side's own, for mutual TLS; with key_file
  std::string key_file = {};
  bool insecure = false;  // plain text to another machine is otherwise refused
};

// Messages larger than this are refused by both sides.
inline constexpr int kMessageBytesMax = 16 * 1024 * 1024;

// The server's HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS must be below this, with KEEPALIVE_PERMIT_WITHOUT_CALLS, or
// it ends the connection with "too many pings".
inline constexpr int kKeepaliveTimeMs = 20'000;
inline constexpr int kKeepaliveTimeoutMs = 10'000;

// INVALID_ARGUMENT for a bad address or a combination that makes no sense, NOT_FOUND for a file that cannot be read.
// Connects on first use, so an unreachable server shows there.
absl::StatusOr<std::shared_ptr<grpc::Channel>> OpenChannel(const ChannelOptions& options);

// Whether an address names this machine by a loopback name or number.
bool IsLoopback(const std::string& address);

// Adds "authorization: Bearer <token>"; nothing for an empty token.
void Authorize(const std::string& token, grpc::ClientContext* context);

}  // namespace longspan

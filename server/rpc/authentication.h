// Bearer tokens of calls. Thread-safe.
#pragma once

#include <grpcpp/server_context.h>

#include <array>
#include <optional>
#include <string>

#include "absl/status/statusor.h"

namespace longspan::rpc {

// Compares the token of a call with the expected one. Only a hash is kept, and the comparison takes the same time for
// every wrong token.
class BearerToken {
 public:
  // Every call passes.
  BearerToken() = default;
  explicit BearerToken(const std::string& token);

  // The first line of a file; refuses an empty one and one that everybody may read.
  static absl::StatusOr<BearerToken> FromFile(const std::string& path);

  bool required() const { return hash_.has_value(); }
  // OK, or UNAUTHENTICATED.
  grpc::Status Check(const grpc::CallbackServerContext& context) const;
  // The value of an Authorization header, "Bearer ...".
  bool Matches(const std::string& authorization) const;

 private:
  std::optional<std::array<unsigned char, 32>> hash_;
};

}  // namespace longspan::rpc

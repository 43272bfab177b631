#include "server/rpc/authentication.h"

#include <fmt/format.h>
#include <openssl/crypto.h>
#include <openssl/sha.h>
#include <sys/stat.h>

#include <fstream>

#include "server/rpc/grpc_error.h"

namespace longspan::rpc {
namespace {

constexpr char kScheme[] = "Bearer ";

std::array<unsigned char, 32> Hash(const std::string& text) {
  std::array<unsigned char, 32> hash;
  SHA256(reinterpret_cast<const unsigned char*>(text.data()), text.size(), hash.data());
  return hash;
}

}  // namespace

BearerToken::BearerToken(const std::string& token) : hash_(Hash(token)) {}

absl::StatusOr<BearerToken> BearerToken::FromFile(const std::string& path) {
  struct stat status{};
  std::ifstream file(path);
  if (!file || stat(path.c_str(), &status) != 0)
    return absl::NotFoundError(fmt::format("cannot read the token file {}", path));
  if ((status.st_mode & S_IROTH) != 0) {
    return absl::FailedPreconditionError(
        fmt::format("everybody may read the token file {}; make it private: chmod 600", path));
  }
  std::string token;
  std::getline(file, token);
  while (!token.empty() && (token.back() == '\r' || token.back() == ' ')) token.pop_back();
  if (token.empty())
    return absl::InvalidArgumentError(fmt::format("the first line of the token file {} is empty", path));
  return BearerToken(token);
}

bool BearerToken::Matches(const std::string& authorization) const {
  if (!hash_) return true;
  if (authorization.rfind(kScheme, 0) != 0) return false;
  const std::array<unsigned char, 32> hash = Hash(authorization.substr(sizeof(kScheme) - 1));
  return CRYPTO_memcmp(hash.data(), hash_->data(), hash.size()) == 0;
}

grpc::Status BearerToken::Check(const grpc::CallbackServerContext& context) const {
  if (!hash_) return grpc::Status::OK;
  const auto found = context.client_metadata().find("authorization");
  if (found == context.client_metadata().end()) {
    return Error(grpc::StatusCode::UNAUTHENTICATED, "TOKEN_MISSING",
                 "this server wants a token: send 'authorization: Bearer <token>'");
  }
  if (Matches({found->second.data(), found->second.size()})) return grpc::Status::OK;
  return Error(grpc::StatusCode::UNAUTHENTICATED, "TOKEN_WRONG", "the token is not one this server accepts");
}

}  // namespace longspan::rpc

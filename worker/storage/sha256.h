// SHA-256 of bytes as they come. Not thread-safe.
#pragma once

#include <string>
#include <string_view>

struct evp_md_ctx_st;

namespace longspan::storage {

class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;
  void Add(std::string_view bytes);
  // Lower-case hexadecimal; nothing may be added afterwards.
  std::string Hex();

 private:
  evp_md_ctx_st* context_;
};

}  // namespace longspan::storage

#pragma once

namespace longspan::client {

// Of this program; CMake's project version.
inline constexpr char kVersion[] = LONGSPAN_VERSION;

}  // namespace longspan::client

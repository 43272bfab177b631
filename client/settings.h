// How to reach the server: from flags, then the environment, then a file.
#pragma once

#include <string>

#include "client/client.h"
#include "proto/support/channel.h"

namespace longspan::client {

inline constexpr char kDefaultAddress[] = "127.0.0.1:7450";

struct Settings {
  std::string address;  // "host:port"
  std::string token;    // never printed
  std::string ca_file;
  std::string certificate_file;
  std::string key_file;
  bool tls = false;
  bool insecure = false;
};

// Fills what `flags` leaves empty from LONGSPAN_ADDRESS, LONGSPAN_TOKEN, LONGSPAN_CA and from
// ~/.config/longspan/config.yaml (or $XDG_CONFIG_HOME, or the file LONGSPAN_CONFIG names): keys address, token,
// token_file, ca, certificate, key, tls, insecure. Throws CommandError on an unreadable file and on an unknown key.
Settings CompleteSettings(Settings flags, const Environment& environment);

ChannelOptions ToChannelOptions(const Settings& settings);

}  // namespace longspan::client

// What the HTTP endpoints say, made from a snapshot. Pure, thread-safe.
#pragma once

#include <string>

#include "server/http/cluster_snapshot.h"

namespace longspan::http {

// Prometheus HTTP service discovery: every worker that has an HTTP port, up or not, so that one that is down shows as
// down.
std::string TargetsJson(const ClusterSnapshot& snapshot);

// Jobs and workers as plain HTML; every text of a user is escaped.
std::string StatusPage(const ClusterSnapshot& snapshot, const std::string& version);

std::string EscapeHtml(const std::string& text);

}  // namespace longspan::http

// How the tables came to be, as numbered steps inside the program. The number of the newest applied one is PRAGMA
// user_version; 0 is an empty database. A step that was ever released is never changed; the next change is the next
// step.
#pragma once

#include <vector>

#include "absl/status/status.h"
#include "server/store/sqlite.h"

namespace longspan::store {

struct Migration {
  int version;  // 1, 2, ...
  const char* sql;
};

const std::vector<Migration>& Migrations();

// Applies what is missing, each step in a transaction of its own with its number. FAILED_PRECONDITION for a database of
// a newer program.
absl::Status Migrate(Database& database, const std::vector<Migration>& migrations);

}  // namespace longspan::store

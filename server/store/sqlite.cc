#include "server/store/sqlite.h"

#include <fmt/format.h>

#include <cmath>
#include <limits>

#include "proto/support/check.h"

namespace longspan::store {
namespace {

constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
constexpr int64_t kMin = std::numeric_limits<int64_t>::min();

// A connection waits this long for another one, such as a backup.
constexpr int kBusyTimeoutMs = 10'000;

}  // namespace

absl::Status ErrorOf(sqlite3* handle) {
  const int code = sqlite3_errcode(handle);
  const char* path = sqlite3_db_filename(handle, "main");
  const std::string text = fmt::format("database {}: {}", path == nullptr ? "?" : path, sqlite3_errmsg(handle));
  switch (code & 0xFF) {
    case SQLITE_FULL:
      return absl::ResourceExhaustedError(text);
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
      return absl::DataLossError(text);
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
      return absl::UnavailableError(text);
    case SQLITE_READONLY:
    case SQLITE_PERM:
    case SQLITE_CANTOPEN:
      return absl::PermissionDeniedError(text);
    default:
      return absl::InternalError(text);
  }
}

Statement& Statement::Bind(int64_t value) {
  CHECK_EQ(sqlite3_bind_int64(statement_, ++parameter_, value), SQLITE_OK);
  return *this;
}
Statement& Statement::Bind(double value) {
  const int code = std::isnan(value) ? sqlite3_bind_null(statement_, ++parameter_)
                                     : sqlite3_bind_double(statement_, ++parameter_, value);
  CHECK_EQ(code, SQLITE_OK);
  return *this;
}
Statement& Statement::Bind(const std::string& value) {
  // The bytes are needed until the step only, and every caller keeps them so long; copying is the safe choice
  // nevertheless.
  CHECK_EQ(sqlite3_bind_text64(statement_, ++parameter_, value.data(), value.size(), SQLITE_TRANSIENT, SQLITE_UTF8),
           SQLITE_OK);
  return *this;
}
Statement& Statement::Bind(absl::Time value) {
  if (value == absl::InfiniteFuture()) return Bind(kMax);
  if (value == absl::InfinitePast()) return Bind(kMin);
  return Bind(absl::ToUnixNanos(value));
}
Statement& Statement::Bind(absl::Duration value) {
  if (value == absl::InfiniteDuration()) return Bind(kMax);
  if (value == -absl::InfiniteDuration()) return Bind(kMin);
  return Bind(absl::ToInt64Nanoseconds(value));
}

absl::StatusOr<bool> Statement::Step() {
  column_ = 0;
  const int code = sqlite3_step(statement_);
  if (code == SQLITE_ROW) return true;
  if (code == SQLITE_DONE) {
    Reset();
    return false;
  }
  const absl::Status error = ErrorOf(sqlite3_db_handle(statement_));
  Reset();
  return error;
}

absl::Status Statement::Run() {
  const absl::StatusOr<bool> row = Step();
  if (!row.ok()) return row.status();
  CHECK(!*row) << "an update gave a row";
  return absl::OkStatus();
}

void Statement::Reset() {
  sqlite3_reset(statement_);
  sqlite3_clear_bindings(statement_);
  parameter_ = 0;
  column_ = 0;
}

double Statement::Real() {
  const int column = column_++;
  if (sqlite3_column_type(statement_, column) == SQLITE_NULL) return std::numeric_limits<double>::quiet_NaN();
  return sqlite3_column_double(statement_, column);
}
std::string Statement::Text() {
  const int column = column_++;
  const unsigned char* text = sqlite3_column_text(statement_, column);
  if (text == nullptr) return {};
  return std::string(reinterpret_cast<const char*>(text),
                     static_cast<size_t>(sqlite3_column_bytes(statement_, column)));
}
absl::Time Statement::Time() {
  const int64_t value = Integer();
  if (value == kMax) return absl::InfiniteFuture();
  if (value == kMin) return absl::InfinitePast();
  return absl::FromUnixNanos(value);
}
absl::Duration Statement::Duration() {
  const int64_t value = Integer();
  if (value == kMax) return absl::InfiniteDuration();
  if (value == kMin) return -absl::InfiniteDuration();
  return absl::Nanoseconds(value);
}

absl::StatusOr<std::unique_ptr<Database>> Database::Open(const std::string& path, int flags) {
  sqlite3* handle = nullptr;
  const int code = sqlite3_open_v2(path.c_str(), &handle, flags | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE, nullptr);
  if (code != SQLITE_OK) {
    const absl::Status error =
        handle == nullptr
            ? absl::ResourceExhaustedError("no memory for a database connection")
            : absl::PermissionDeniedError(fmt::format("cannot open database {}: {}", path, sqlite3_errmsg(handle)));
    sqlite3_close(handle);
    return error;
  }
  sqlite3_busy_timeout(handle, kBusyTimeoutMs);
  return std::unique_ptr<Database>(new Database(handle, path));
}

Database::~Database() {
  prepared_.clear();
  sqlite3_close(handle_);
}

absl::Status Database::Execute(const std::string& sql) {
  if (sqlite3_exec(handle_, sql.c_str(), nullptr, nullptr, nullptr) == SQLITE_OK) return absl::OkStatus();
  return ErrorOf(handle_);
}

Statement& Database::Prepared(const char* sql) {
  std::unique_ptr<Statement>& statement = prepared_[sql];
  if (statement == nullptr) {
    sqlite3_stmt* raw = nullptr;
    const int code = sqlite3_prepare_v3(handle_, sql, -1, SQLITE_PREPARE_PERSISTENT, &raw, nullptr);
    CHECK_EQ(code, SQLITE_OK) << sql << ": " << sqlite3_errmsg(handle_);
    statement = std::make_unique<Statement>(raw);
  }
  statement->Reset();
  return *statement;
}

absl::StatusOr<std::string> Database::QueryText(const std::string& sql) {
  sqlite3_stmt* raw = nullptr;
  if (sqlite3_prepare_v2(handle_, sql.c_str(), -1, &raw, nullptr) != SQLITE_OK) return ErrorOf(handle_);
  Statement statement(raw);
  const absl::StatusOr<bool> row = statement.Step();
  if (!row.ok()) return row.status();
  return *row ? statement.Text() : std::string();
}

}  // namespace longspan::store

// A thin layer over SQLite's C interface: handles that close themselves, statements that are prepared once, errors as
// absl::Status.
//
// A Database and its statements belong to one thread at a time.
#pragma once

#include <sqlite3.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace longspan::store {

// A prepared statement. Bind in order, then Step; reading a column counts from 0, in order too.
class Statement {
 public:
  explicit Statement(sqlite3_stmt* statement) : statement_(statement) {}
  ~Statement() { sqlite3_finalize(statement_); }
  Statement(const Statement&) = delete;
  Statement& operator=(const Statement&) = delete;

  Statement& Bind(int64_t value);
  Statement& Bind(int value) { return Bind(static_cast<int64_t>(value)); }
  Statement& Bind(bool value) { return Bind(static_cast<int64_t>(value)); }
  Statement& Bind(double value);  // NaN becomes NULL, SQLite knows none
  Statement& Bind(const std::string& value);
  Statement& Bind(absl::Time value);      // nanoseconds since the epoch; the infinities are the ends of the range
  Statement& Bind(absl::Duration value);  // nanoseconds, likewise
  template <typename... Values>
  Statement& BindAll(const Values&... values) {
    (Bind(values), ...);
    return *this;
  }

  // True: a row is there. False: done.
  absl::StatusOr<bool> Step();
  // Steps once and expects no row. Ready for the next values afterwards.
  absl::Status Run();
  void Reset();

  int64_t Integer() { return sqlite3_column_int64(statement_, column_++); }
  bool Bool() { return Integer() != 0; }
  double Real();
  std::string Text();
  absl::Time Time();
  absl::Duration Duration();

 private:
  sqlite3_stmt* statement_;
  int parameter_ = 0;
  int column_ = 0;
};

class Database {
 public:
  static absl::StatusOr<std::unique_ptr<Database>> Open(const std::string& path, int flags);
  ~Database();
  Database(const Database&) = delete;
  Database& operator=(const Database&) = delete;

  // One or more statements without parameters.
  absl::Status Execute(const std::string& sql);
  // Ready to bind; owned by the database, prepared at the first use. CHECKs that the text is valid SQL.
  Statement& Prepared(const char* sql);
  // First column of the first row, as text.
  absl::StatusOr<std::string> QueryText(const std::string& sql);

  int64_t changes() const { return sqlite3_changes64(handle_); }
  sqlite3* handle() const { return handle_; }
  const std::string& path() const { return path_; }

 private:
  Database(sqlite3* handle, std::string path) : handle_(handle), path_(std::move(path)) {}

  sqlite3* handle_;
  const std::string path_;
  std::map<const char*, std::unique_ptr<Statement>> prepared_;  // by the literal
};

// The newest error of a connection, with the path of its database.
absl::Status ErrorOf(sqlite3* handle);

}  // namespace longspan::store

// CHECK: an invariant of ours is broken, and going on would do harm. On in every build. Prints the file, the line, the
// condition and the message to standard error and aborts. A user's mistake is no CHECK: it gets an error that says what
// is wrong.
//
//   CHECK(slots > 0) << "worker " << name;
//   CHECK_EQ(ranks.size(), world_size);
#pragma once

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <sstream>
#include <string>

namespace longspan::check_internal {

// Collects the message and aborts at the end of the statement.
class Failure {
 public:
  Failure(const char* file, int line, const std::string& what) {
    text_ << file << ":" << line << ": CHECK failed: " << what << " ";
  }
  [[noreturn]] ~Failure() {
    std::fprintf(stderr, "%s\n", text_.str().c_str());
    std::fflush(stderr);
    std::abort();
  }
  std::ostream& stream() { return text_; }

 private:
  std::ostringstream text_;
};

// Makes both arms of the conditional void; '&' binds looser than '<<'.
struct Voidify {
  void operator&(std::ostream&) const {}
};

template <class A, class B>
std::string Describe(const char* text, const A& a, const B& b) {
  std::ostringstream out;
  out << text << " (" << a << " vs. " << b << ")";
  return out.str();
}

// The description of a failed comparison, or null. Each operand is evaluated once.
template <class A, class B, class Compare>
std::unique_ptr<std::string> Compared(const A& a, const B& b, const char* text, Compare compare) {
  if (compare(a, b)) [[likely]]
    return nullptr;
  return std::make_unique<std::string>(Describe(text, a, b));
}

}  // namespace longspan::check_internal

// LibTorch's headers bring macros of the same names, which report in another way: ours win where both are included.
#undef CHECK
#undef CHECK_EQ
#undef CHECK_NE
#undef CHECK_LT
#undef CHECK_LE
#undef CHECK_GT
#undef CHECK_GE

// The stream must stay open to its right, so the macro's value cannot stand in parentheses.
// NOLINTBEGIN(bugprone-macro-parentheses)
#define CHECK(condition)                                \
  (condition) ? (void)0                                 \
              : ::longspan::check_internal::Voidify() & \
                    ::longspan::check_internal::Failure(__FILE__, __LINE__, #condition).stream()
// NOLINTEND(bugprone-macro-parentheses)

#define LONGSPAN_CHECK_COMPARE(a, b, op)                                                                  \
  while (auto longspan_check_text = ::longspan::check_internal::Compared(                                 \
             a, b, #a " " #op " " #b, [](const auto& left, const auto& right) { return left op right; })) \
  ::longspan::check_internal::Failure(__FILE__, __LINE__, *longspan_check_text).stream()

#define CHECK_EQ(a, b) LONGSPAN_CHECK_COMPARE(a, b, ==)
#define CHECK_NE(a, b) LONGSPAN_CHECK_COMPARE(a, b, !=)
#define CHECK_LT(a, b) LONGSPAN_CHECK_COMPARE(a, b, <)
#define CHECK_LE(a, b) LONGSPAN_CHECK_COMPARE(a, b, <=)
#define CHECK_GT(a, b) LONGSPAN_CHECK_COMPARE(a, b, >)
#define CHECK_GE(a, b) LONGSPAN_CHECK_COMPARE(a, b, >=)

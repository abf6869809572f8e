// Calls code of the user's (policies, observers, callbacks) that must not throw, and keeps what it
// throws all the same from going any further: to another request, another thread, or past a mutex.
//
// Thread safety: pure functions, but for the log.
#ifndef LATCHKEY_CORE_BASE_CONTAIN_H_
#define LATCHKEY_CORE_BASE_CONTAIN_H_

#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include "absl/status/status.h"

namespace latchkey::internal {

// Of the exception that is being handled: its text; and the error (kException) that says where it
// came from, "QueuePolicy::Rank threw for 'a': why". An empty resource is left out.
std::string TextOfCurrentException();
absl::Status ErrorOfCurrentException(std::string_view where, std::string_view resource);

// Logs that error.
void LogCurrentException(std::string_view where, std::string_view resource);

// Runs `call()`; what it throws is logged.
template <typename Call>
void RunContained(std::string_view where, std::string_view resource, Call&& call) {
  try {
    std::forward<Call>(call)();
  } catch (...) {
    LogCurrentException(where, resource);
  }
}

// The same; `what()` says where, and is called only if something was thrown.
template <typename What, typename Call>
requires std::is_invocable_v<const What&>
void RunContained(const What& what, Call&& call) {
  try {
    std::forward<Call>(call)();
  } catch (...) {
    LogCurrentException(what(), "");
  }
}

// Runs `call()`; what it throws is the error.
template <typename Call>
absl::Status StatusOfContained(std::string_view where, std::string_view resource, Call&& call) {
  try {
    std::forward<Call>(call)();
    return absl::OkStatus();
  } catch (...) {
    return ErrorOfCurrentException(where, resource);
  }
}

}  // namespace latchkey::internal

#endif  // LATCHKEY_CORE_BASE_CONTAIN_H_

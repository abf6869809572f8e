// GoogleMock matchers for what the library returns. For OK and codes see
// absl/status/status_matchers.h.
//
//   EXPECT_THAT(locks->Acquire("r", {.acquire_timeout = absl::ZeroDuration()}),
//               HasReason(Reason::kAcquireTimeout));
//   EXPECT_THAT(status, HasReason(Reason::kInvalidArgument, HasSubstr("lease")));
//
// Thread safety: as any matcher's, none needed.
#ifndef LATCHKEY_TESTS_SUPPORT_LOCK_MATCHERS_H_
#define LATCHKEY_TESTS_SUPPORT_LOCK_MATCHERS_H_

#include <ostream>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gmock/gmock.h"
#include "latchkey/core/lock_error.h"

namespace latchkey {
namespace internal_matchers {

inline const absl::Status& StatusOf(const absl::Status& status) { return status; }
template <typename T>
const absl::Status& StatusOf(const absl::StatusOr<T>& value) {
  return value.status();
}

}  // namespace internal_matchers

// Matches a Status or StatusOr with this reason (and its code) and a message that matches.
MATCHER_P2(HasReason, reason, message,
           std::string(negation ? "hasn't" : "has") + " the reason " +
               std::string(ReasonName(reason)) + " and a message that " +
               testing::DescribeMatcher<std::string>(message, negation)) {
  const absl::Status& status = internal_matchers::StatusOf(arg);
  *result_listener << "which is " << status;
  return ReasonOf(status) == reason && status.code() == CodeOf(reason) &&
         testing::ExplainMatchResult(message, std::string(status.message()), result_listener);
}

inline auto HasReason(Reason reason) { return HasReason(reason, testing::_); }

}  // namespace latchkey

#endif  // LATCHKEY_TESTS_SUPPORT_LOCK_MATCHERS_H_

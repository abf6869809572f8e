#include "latchkey/tests/support/lock_matchers.h"

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace latchkey {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(HasReasonTest, MatchesTheReasonOfAStatusOrStatusOr) {
  const absl::Status status = MakeError(Reason::kDeadlock, "a cycle of two");
  EXPECT_THAT(status, HasReason(Reason::kDeadlock));
  EXPECT_THAT(status, Not(HasReason(Reason::kStolen)));
  EXPECT_THAT(absl::StatusOr<int>(status), HasReason(Reason::kDeadlock));
  EXPECT_THAT(absl::StatusOr<int>(7), Not(HasReason(Reason::kDeadlock)));
  EXPECT_THAT(absl::StatusOr<int>(7), HasReason(Reason::kNone));
}

TEST(HasReasonTest, MatchesTheMessage) {
  const absl::Status status = MakeError(Reason::kDeadlock, "a cycle of two");
  EXPECT_THAT(status, HasReason(Reason::kDeadlock, HasSubstr("cycle")));
  EXPECT_THAT(status, Not(HasReason(Reason::kDeadlock, HasSubstr("triangle"))));
}

TEST(HasReasonTest, DoesNotTakeACodeForAReason) {
  EXPECT_THAT(absl::AbortedError("by somebody else"), Not(HasReason(Reason::kDeadlock)));
}

}  // namespace
}  // namespace latchkey

#include "latchkey/core/lock_error.h"

#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/cord.h"
#include "gtest/gtest.h"

namespace latchkey {
namespace {

struct Row {
  Reason reason;
  std::string_view name;
  absl::StatusCode code;
};

// Every reason but kNone. The names and codes are a promise to users.
const std::vector<Row> kRows = {
    {Reason::kAcquireTimeout, "AcquireTimeout", absl::StatusCode::kDeadlineExceeded},
    {Reason::kExecutionTimeout, "ExecutionTimeout", absl::StatusCode::kDeadlineExceeded},
    {Reason::kOccupationTimeout, "OccupationTimeout", absl::StatusCode::kDeadlineExceeded},
    {Reason::kAttemptsExhausted, "AttemptsExhausted", absl::StatusCode::kUnavailable},
    {Reason::kHeldByOther, "HeldByOther", absl::StatusCode::kUnavailable},
    {Reason::kTooManyPending, "TooManyPending", absl::StatusCode::kResourceExhausted},
    {Reason::kCancelled, "Cancelled", absl::StatusCode::kCancelled},
    {Reason::kShutdown, "Shutdown", absl::StatusCode::kCancelled},
    {Reason::kStolen, "Stolen", absl::StatusCode::kAborted},
    {Reason::kExpired, "Expired", absl::StatusCode::kAborted},
    {Reason::kLost, "Lost", absl::StatusCode::kAborted},
    {Reason::kYieldRequested, "YieldRequested", absl::StatusCode::kAborted},
    {Reason::kDeadlock, "Deadlock", absl::StatusCode::kAborted},
    {Reason::kBackendUnavailable, "BackendUnavailable", absl::StatusCode::kUnavailable},
    {Reason::kBackendUnknown, "BackendUnknown", absl::StatusCode::kUnknown},
    {Reason::kBackendRefused, "BackendRefused", absl::StatusCode::kFailedPrecondition},
    {Reason::kInvalidArgument, "InvalidArgument", absl::StatusCode::kInvalidArgument},
    {Reason::kNotSupported, "NotSupported", absl::StatusCode::kUnimplemented},
    {Reason::kWouldBlock, "WouldBlock", absl::StatusCode::kFailedPrecondition},
    {Reason::kNotHeld, "NotHeld", absl::StatusCode::kFailedPrecondition},
    {Reason::kException, "Exception", absl::StatusCode::kInternal},
    {Reason::kMovedFrom, "MovedFrom", absl::StatusCode::kFailedPrecondition},
};

TEST(LockErrorTest, EveryReasonHasItsNameAndCodeAndIsReadBack) {
  std::set<std::string_view> names;
  for (const Row& row : kRows) {
    EXPECT_EQ(ReasonName(row.reason), row.name);
    EXPECT_EQ(testing::PrintToString(row.reason), row.name);
    EXPECT_EQ(CodeOf(row.reason), row.code) << row.name;
    const absl::Status status = MakeError(row.reason, "what happened");
    EXPECT_EQ(status.code(), row.code) << row.name;
    EXPECT_EQ(status.message(), "what happened");
    EXPECT_EQ(ReasonOf(status), row.reason) << row.name;
    EXPECT_TRUE(names.insert(row.name).second) << "a name twice: " << row.name;
  }
  // kMovedFrom is the last of the enumeration: none is missing above.
  EXPECT_EQ(kRows.size(), static_cast<size_t>(Reason::kMovedFrom));
}

TEST(LockErrorTest, NoneIsOk) {
  EXPECT_EQ(ReasonName(Reason::kNone), "None");
  EXPECT_EQ(CodeOf(Reason::kNone), absl::StatusCode::kOk);
  EXPECT_EQ(MakeError(Reason::kNone, "nothing"), absl::OkStatus());
  EXPECT_EQ(ReasonOf(absl::OkStatus()), Reason::kNone);
}

TEST(LockErrorTest, AStatusFromElsewhereHasNoReason) {
  EXPECT_EQ(ReasonOf(absl::CancelledError("by somebody else")), Reason::kNone);
  absl::Status odd = absl::CancelledError("a later version's");
  odd.SetPayload("latchkey/reason", absl::Cord("SomethingNew"));
  EXPECT_EQ(ReasonOf(odd), Reason::kNone);
}

TEST(LockErrorTest, TheReasonSurvivesCopiesAndStatusOr) {
  const absl::StatusOr<int> value = MakeError(Reason::kDeadlock, "a cycle");
  const absl::Status copy = value.status();
  EXPECT_EQ(ReasonOf(copy), Reason::kDeadlock);
}

TEST(LockErrorTest, BackendsSayWhetherTheStepMayHaveBeenExecuted) {
  EXPECT_EQ(ReasonOf(BackendUnavailableError("no route")), Reason::kBackendUnavailable);
  EXPECT_EQ(BackendUnavailableError("no route").code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(ReasonOf(BackendUnknownError("no answer")), Reason::kBackendUnknown);
  EXPECT_EQ(BackendUnknownError("no answer").code(), absl::StatusCode::kUnknown);
  EXPECT_EQ(ReasonOf(BackendRefusedError("wrong password")), Reason::kBackendRefused);
  EXPECT_EQ(BackendRefusedError("wrong password").code(), absl::StatusCode::kFailedPrecondition);
}

TEST(LockErrorTest, OnlyAnErrorThatSaysSoExcludesThatTheStepWasExecuted) {
  for (const Row& row : kRows) {
    EXPECT_EQ(MayHaveBeenDone(MakeError(row.reason, "")), row.reason == Reason::kBackendUnknown)
        << row.name;
  }
  EXPECT_FALSE(MayHaveBeenDone(absl::OkStatus()));
  // The protocol's codes, without a reason.
  for (const absl::Status& not_done :
       {absl::UnavailableError(""), absl::FailedPreconditionError(""),
        absl::InvalidArgumentError(""), absl::UnimplementedError("")}) {
    EXPECT_FALSE(MayHaveBeenDone(not_done)) << not_done;
  }
  for (const absl::Status& who_knows : {absl::UnknownError(""), absl::InternalError(""),
                                        absl::DeadlineExceededError(""), absl::AbortedError("")}) {
    EXPECT_TRUE(MayHaveBeenDone(who_knows)) << who_knows;
  }
}

}  // namespace
}  // namespace latchkey

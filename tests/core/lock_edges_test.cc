// What is small enough to be forgotten: names of states, empty locks, what a manager shows.
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "latchkey/core/executor.h"
#include "latchkey/core/lock_error.h"
#include "latchkey/core/lock_manager.h"
#include "latchkey/tests/support/lock_manager_fixture.h"

namespace latchkey {
namespace {

class LockEdgesTest : public LockManagerFixture {};

TEST_F(LockEdgesTest, EachStateHasAName) {
  EXPECT_EQ(LockStateName(LockState::kEmpty), "Empty");
  EXPECT_EQ(LockStateName(LockState::kHeld), "Held");
  EXPECT_EQ(LockStateName(LockState::kYielding), "Yielding");
  EXPECT_EQ(LockStateName(LockState::kReleased), "Released");
  EXPECT_EQ(LockStateName(LockState::kStolen), "Stolen");
  EXPECT_EQ(LockStateName(LockState::kExpired), "Expired");
  EXPECT_EQ(LockStateName(LockState::kLost), "Lost");
}

TEST_F(LockEdgesTest, AnEmptyLockAnswersWithoutWaiting) {
  Lock empty;
  std::optional<absl::Status> released;
  empty.ReleaseAsync([&](absl::Status status) { released = status; });
  ASSERT_TRUE(released);
  EXPECT_EQ(*released, empty.Release());
  std::optional<absl::Status> extended;
  empty.ExtendAsync(absl::Seconds(1), [&](absl::Status status) { extended = status; });
  ASSERT_TRUE(extended);
  EXPECT_EQ(ReasonOf(*extended), Reason::kNotHeld);
}

TEST_F(LockEdgesTest, AManagerShowsItsBackendTimeAndThreads) {
  EXPECT_EQ(locks_.capabilities().name, backend_->capabilities().name);
  EXPECT_EQ(&locks_.clock(), &clock_);
  EXPECT_EQ(&locks_.executor(), &InlineExecutor());
}

TEST_F(LockEdgesTest, AThreadMayWaitForMembersWithOptionsOfTheirOwn) {
  const std::vector<LockRequest> requests = {
      {.resource = "a", .options = {.owner = "ann"}},
      {.resource = "b", .options = {.owner = "bob", .priority = 3}}};
  absl::StatusOr<LockSet> set = locks_.AcquireAll(requests);
  ASSERT_TRUE(set.ok()) << set.status();
  EXPECT_TRUE(locks_.IsBusy("a"));
  EXPECT_TRUE(locks_.IsBusy("b"));
  EXPECT_TRUE(set->Release().ok());
  ExpectNothingLeft();
}

}  // namespace
}  // namespace latchkey

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
#include "latchkey/core/scoped_owner.h"
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
  EXPECT_EQ(testing::PrintToString(LockState::kLost), "Lost");
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

// ---- Callbacks that are null: nobody wants to know ----

TEST_F(LockEdgesTest, ALockThatNobodyTakesIsReleasedAtOnce) {
  locks_.AcquireAsync("a", {}, nullptr);
  ExpectNothingLeft();
  absl::StatusOr<Lock> held = locks_.Acquire("a");
  locks_.AcquireAsync("a", {}, nullptr);
  locks_.AcquireAsync("a", {.acquire_timeout = absl::ZeroDuration()}, nullptr);
  locks_.AcquireAsync("", {}, nullptr);
  auto next = Ask("a");
  ASSERT_TRUE(held->Release().ok());
  EXPECT_TRUE(next->granted());
}

TEST_F(LockEdgesTest, ASetThatNobodyTakesIsReleasedAtOnce) {
  locks_.AcquireAllAsync({"a", "b"}, {}, nullptr);
  ExpectNothingLeft();
  absl::StatusOr<Lock> held = locks_.Acquire("b");
  locks_.AcquireAllAsync({"a", "b"}, {}, nullptr);
  locks_.AcquireAllAsync({"a", "b"}, {.acquire_timeout = absl::ZeroDuration()}, nullptr);
  locks_.AcquireAllAsync({""}, {}, nullptr);
  EXPECT_TRUE(locks_.IsBusy("a"));
  ASSERT_TRUE(held->Release().ok());
  ExpectNothingLeft();
}

TEST_F(LockEdgesTest, LocksAreReleasedAndExtendedWithoutTellingAnybody) {
  Lock empty;
  empty.ExtendAsync(absl::Seconds(1), nullptr);
  empty.ReleaseAsync(nullptr);
  absl::StatusOr<Lock> lock = locks_.Acquire("a", {.lease = absl::Seconds(1)});
  lock->ExtendAsync(absl::Seconds(2), nullptr);
  EXPECT_EQ(lock->remaining(), absl::Seconds(2));
  lock->ExtendAsync(-absl::Seconds(2), nullptr);
  lock->ReleaseAsync(nullptr);
  lock->ExtendAsync(absl::Seconds(2), nullptr);
  absl::StatusOr<LockSet> set = locks_.AcquireAll({"b", "c"});
  set->ReleaseAsync(nullptr);
  set->ReleaseAsync(nullptr);
  LockSet().ReleaseAsync(nullptr);
  ExpectNothingLeft();
}

TEST_F(LockEdgesTest, ABodyMayFinishWithoutTellingAnybody) {
  int ran = 0;
  locks_.RunAsync(
      "a", {},
      [&](LockContext, LockManager::FinishCallback finish) {
        ++ran;
        finish(absl::OkStatus());
      },
      nullptr);
  locks_.RunAllAsync<int>(
      {"a", "b"}, {},
      [&](LockContext, LockManager::FinishWith<int> finish) {
        ++ran;
        finish(1);
      },
      nullptr);
  locks_.RunAsync("a", {}, nullptr, nullptr);
  locks_.RunAllAsync<int>({"a"}, {}, nullptr, nullptr);
  EXPECT_EQ(ran, 2);
  ExpectNothingLeft();
}

TEST_F(LockEdgesTest, NullRemovesAListener) {
  int told = 0;
  absl::StatusOr<Lock> lock = locks_.Acquire("a");
  lock->OnYieldRequested([&] { ++told; });
  lock->OnLost([&](LockState) { ++told; });
  lock->OnYieldRequested(nullptr);
  lock->OnLost(nullptr);
  absl::StatusOr<LockSet> set = locks_.AcquireAll({"b", "c"});
  set->OnYieldRequested([&] { ++told; });
  set->OnLost([&](LockState) { ++told; });
  set->OnYieldRequested(nullptr);
  set->OnLost(nullptr);
  const AcquireOptions steals = {.priority = 1, .preemption_grace = absl::ZeroDuration()};
  auto thief = Ask("a", steals);
  auto other = Ask("b", steals);
  EXPECT_TRUE(thief->granted());
  EXPECT_TRUE(other->granted());
  EXPECT_EQ(told, 0);
  // Also when it has happened.
  lock->OnYieldRequested(nullptr);
  lock->OnLost(nullptr);
  set->OnYieldRequested(nullptr);
  set->OnLost(nullptr);
}

TEST_F(LockEdgesTest, ANullTaskHasNoOwnerToInherit) {
  const ScopedOwner me("me");
  EXPECT_TRUE(BindOwner(nullptr) == nullptr);
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

// priority-redlock's behaviour, case by case: what its users rely on, in our words. Where we
// differ, the test says so, and docs/reference/from-priority-redlock.md why.
#include <memory>
#include <stop_token>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "latchkey/core/lock_manager.h"
#include "latchkey/core/policy/retry_policy.h"
#include "latchkey/tests/support/lock_manager_fixture.h"

namespace latchkey {
namespace {

using ::testing::ElementsAre;

class PriorityRedlockTest : public LockManagerFixture {};

TEST_F(PriorityRedlockTest, Defaults) {
  absl::StatusOr<Lock> lock = locks_.Acquire("lights");
  ASSERT_TRUE(lock.ok());
  EXPECT_EQ(lock->state(), LockState::kHeld);
  EXPECT_TRUE(lock->IsHeld());
  EXPECT_EQ(locks_.Snapshot()[0].state.holder_priority, 0);
  // Differs: there a lock lives for a fixed time; here for as long as it is held.
  EXPECT_EQ(lock->remaining(), absl::InfiniteDuration());
}

TEST_F(PriorityRedlockTest, AnAcquireTimeThatIsOver) {
  absl::StatusOr<Lock> held = locks_.Acquire("lights", {.owner = "first"});
  EXPECT_EQ(ReasonOf(locks_.Acquire("lights", {.acquire_timeout = absl::ZeroDuration()}).status()),
            Reason::kAcquireTimeout);
  EXPECT_EQ(ReasonOf(Ask("lights", {.acquire_timeout = -absl::Seconds(1)})->status()),
            Reason::kInvalidArgument);
}

TEST_F(PriorityRedlockTest, TheSamePriorityBlocks) {
  absl::StatusOr<Lock> held = locks_.Acquire("lights", {.owner = "first", .priority = 5});
  auto second = Ask("lights", {.owner = "second", .priority = 5});
  EXPECT_FALSE(second->result);
  EXPECT_EQ(held->state(), LockState::kHeld);
  ASSERT_TRUE(held->Release().ok());
  EXPECT_TRUE(second->granted());
}

TEST_F(PriorityRedlockTest, ReentranceRaisesThePriority) {
  absl::StatusOr<Lock> outer = locks_.Acquire("lights", {.owner = "me", .priority = 1});
  absl::StatusOr<Lock> inner = locks_.Acquire("lights", {.owner = "me", .priority = 3});
  auto thief = Ask("lights", {.owner = "thief", .priority = 2});
  EXPECT_EQ(outer->state(), LockState::kHeld);
}

TEST_F(PriorityRedlockTest, ReentranceNeverLowersThePriority) {
  absl::StatusOr<Lock> outer = locks_.Acquire("lights", {.owner = "me", .priority = 3});
  absl::StatusOr<Lock> inner = locks_.Acquire("lights", {.owner = "me", .priority = 1});
  auto thief = Ask("lights", {.owner = "thief", .priority = 2});
  EXPECT_EQ(outer->state(), LockState::kHeld);
}

// Differs: there the inner release frees the outer lock.
TEST_F(PriorityRedlockTest, TheInnerReleaseLeavesTheOuterLock) {
  absl::StatusOr<Lock> outer = locks_.Acquire("lights", {.owner = "me"});
  absl::StatusOr<Lock> inner = locks_.Acquire("lights", {.owner = "me"});
  ASSERT_TRUE(inner->Release().ok());
  EXPECT_TRUE(outer->IsHeld());
  EXPECT_FALSE(locks_.TryAcquire("lights", {.owner = "other"}).ok());
}

TEST_F(PriorityRedlockTest, ManualRelease) {
  absl::StatusOr<Lock> lock = locks_.Acquire("lights");
  EXPECT_TRUE(lock->Release().ok());
  EXPECT_EQ(lock->state(), LockState::kReleased);
  EXPECT_FALSE(lock->IsHeld());
  EXPECT_TRUE(locks_.TryAcquire("lights").ok());
}

TEST_F(PriorityRedlockTest, AutomaticReleaseAtTheEndOfTheLease) {
  absl::StatusOr<Lock> lock = locks_.Acquire("lights", {.lease = absl::Seconds(5)});
  std::vector<LockState> told;
  lock->OnLost([&](LockState state) { told.push_back(state); });
  clock_.AdvanceBy(absl::Seconds(5));
  EXPECT_THAT(told, ElementsAre(LockState::kExpired));
  EXPECT_TRUE(locks_.TryAcquire("lights").ok());
}

TEST_F(PriorityRedlockTest, ARedundantReleaseDoesNoHarm) {
  absl::StatusOr<Lock> lock = locks_.Acquire("lights");
  EXPECT_TRUE(lock->Release().ok());
  absl::StatusOr<Lock> next = locks_.Acquire("lights");
  EXPECT_TRUE(lock->Release().ok());
  EXPECT_TRUE(next->IsHeld());
}

TEST_F(PriorityRedlockTest, ALateListenerHearsWhatHappened) {
  absl::StatusOr<Lock> lock = locks_.Acquire("lights", {.lease = absl::Seconds(5)});
  clock_.AdvanceBy(absl::Seconds(6));
  std::vector<LockState> told;
  lock->OnLost([&](LockState state) { told.push_back(state); });
  EXPECT_THAT(told, ElementsAre(LockState::kExpired));
}

TEST_F(PriorityRedlockTest, RetriesComeEverSlower) {
  const auto policy = ExponentialBackoff({.initial = absl::Milliseconds(50)});
  absl::Duration before = absl::ZeroDuration();
  for (int attempts = 1; attempts <= 5; ++attempts) {
    const absl::Duration delay = policy->Delay({.attempts = attempts, .random = 0.5});
    EXPECT_GT(delay, before);
    before = delay;
  }
}

TEST_F(PriorityRedlockTest, Stealing) {
  absl::StatusOr<Lock> victim = locks_.Acquire("lights", {.owner = "save energy"});
  victim->OnYieldRequested([&] { EXPECT_TRUE(victim->Release().ok()); });
  auto thief = Ask("lights", {.owner = "motion detected", .priority = 100});
  EXPECT_TRUE(thief->granted());
}

// Differs: there the thief owns the record before the victim has left.
TEST_F(PriorityRedlockTest, ADelayedAcknowledgementKeepsTheThiefOut) {
  absl::StatusOr<Lock> victim = locks_.Acquire("lights", {.owner = "save energy"});
  bool asked = false;
  victim->OnYieldRequested([&] { asked = true; });
  auto thief = Ask("lights", {.owner = "motion detected", .priority = 100});
  EXPECT_TRUE(asked);
  clock_.AdvanceBy(absl::Seconds(30));
  EXPECT_FALSE(thief->result);
  EXPECT_TRUE(victim->IsHeld());
  ASSERT_TRUE(victim->Release().ok());
  EXPECT_TRUE(thief->granted());
}

TEST_F(PriorityRedlockTest, AVictimThatNeverAnswersLosesTheLockWithItsLease) {
  absl::StatusOr<Lock> victim = locks_.Acquire("lights", {.lease = absl::Seconds(10)});
  auto thief = Ask("lights", {.priority = 1});
  clock_.AdvanceBy(absl::Seconds(10));
  EXPECT_TRUE(thief->granted());
}

TEST_F(PriorityRedlockTest, OfTwoThievesTheHigherEntersFirst) {
  absl::StatusOr<Lock> victim = locks_.Acquire("lights");
  auto low = Ask("lights", {.owner = "low", .priority = 1});
  auto high = Ask("lights", {.owner = "high", .priority = 2});
  ASSERT_TRUE(victim->Release().ok());
  ASSERT_TRUE(high->granted());
  EXPECT_FALSE(low->result);
  high->result.reset();
  EXPECT_TRUE(low->granted());
}

TEST_F(PriorityRedlockTest, AThiefThatGivesUpLeavesTheVictimTheHolder) {
  absl::StatusOr<Lock> victim = locks_.Acquire("lights");
  auto thief = Ask("lights", {.priority = 1, .acquire_timeout = absl::Seconds(1)});
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_TRUE(thief->failed());
  EXPECT_EQ(victim->state(), LockState::kHeld);
  EXPECT_FALSE(locks_.TryAcquire("lights").ok());
}

// Differs: there nothing reads it.
TEST_F(PriorityRedlockTest, AttemptsAreLimited) {
  absl::StatusOr<Lock> held = locks_.Acquire("lights");
  EXPECT_EQ(ReasonOf(Ask("lights", {.max_attempts = 1})->status()), Reason::kAttemptsExhausted);
}

TEST_F(PriorityRedlockTest, AllLightsWithOneOwnerPriorityAndLease) {
  absl::StatusOr<Lock> one = locks_.Acquire("bedroom", {.owner = "save energy"});
  auto all = AskAll({"kitchen", "bedroom"}, {.owner = "motion detected", .priority = 100});
  EXPECT_EQ(one->state(), LockState::kYielding);
  ASSERT_TRUE(one->Release().ok());
  ASSERT_TRUE(all->granted());
  EXPECT_TRUE(all->lock().Release().ok());
  ExpectNothingLeft();
}

TEST_F(PriorityRedlockTest, MembersOfASetMayDiffer) {
  auto all = std::make_shared<PendingSet>();
  const std::vector<LockRequest> requests = {
      {.resource = "kitchen", .options = {.owner = "cook", .priority = 1}},
      {.resource = "bedroom", .options = {.owner = "sleeper", .priority = 2}}};
  locks_.AcquireAllAsync(requests, LockOrder::kSorted, TellTo(all));
  ASSERT_TRUE(all->granted());
  EXPECT_TRUE(locks_.TryAcquire("kitchen", {.owner = "cook"}).ok());
  EXPECT_FALSE(locks_.TryAcquire("bedroom", {.owner = "cook"}).ok());
}

}  // namespace
}  // namespace latchkey

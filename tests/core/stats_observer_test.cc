// What an Observer hears, by way of the one that counts.
#include "latchkey/core/stats_observer.h"

#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "latchkey/core/lock_manager.h"
#include "latchkey/tests/support/fault_injecting_protocol.h"
#include "latchkey/tests/support/lock_manager_fixture.h"

namespace latchkey {
namespace {

using ::testing::HasSubstr;

class StatsObserverTest : public LockManagerFixture {
 protected:
  StatsObserverTest() : seen_(NewManager({.observer = stats_})) {}

  std::shared_ptr<StatsObserver> stats_ = std::make_shared<StatsObserver>();
  LockManager seen_;
};

TEST_F(StatsObserverTest, CountsGrantsReleasesAndTimes) {
  absl::StatusOr<Lock> held = seen_.Acquire("a");
  auto next = Ask(seen_, "a");
  EXPECT_EQ(stats_->waiting(), 1);
  EXPECT_EQ(stats_->held(), 1);
  clock_.AdvanceBy(absl::Seconds(2));
  ASSERT_TRUE(held->Release().ok());
  ASSERT_TRUE(next->granted());
  EXPECT_EQ(stats_->waiting(), 0);
  EXPECT_EQ(stats_->acquired(), 2);
  EXPECT_EQ(stats_->released(), 1);
  EXPECT_EQ(stats_->wait_time().count(), 2);
  EXPECT_EQ(stats_->wait_time().sum(), absl::Seconds(2));
  EXPECT_EQ(stats_->hold_time().sum(), absl::Seconds(2));
  EXPECT_TRUE(seen_.TryAcquire("b").ok());
  EXPECT_EQ(stats_->acquired(), 3);
}

TEST_F(StatsObserverTest, CountsFailuresByTheirReason) {
  absl::StatusOr<Lock> held = seen_.Acquire("a");
  EXPECT_FALSE(seen_.TryAcquire("a").ok());
  EXPECT_EQ(stats_->denied(Reason::kHeldByOther), 1);
  EXPECT_FALSE(seen_.Acquire("a", {.acquire_timeout = absl::ZeroDuration()}).ok());
  auto late = Ask(seen_, "a", {.acquire_timeout = absl::Seconds(1)});
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_EQ(stats_->denied(Reason::kAcquireTimeout), 2);
  EXPECT_FALSE(seen_.Acquire("a", {.max_attempts = 1}).ok());
  EXPECT_EQ(stats_->denied(Reason::kAttemptsExhausted), 1);
  EXPECT_FALSE(seen_.AcquireAll({"a", "b"}, {.acquire_timeout = absl::ZeroDuration()}).ok());
  EXPECT_EQ(stats_->denied(Reason::kAcquireTimeout), 3);
  EXPECT_EQ(stats_->denied(), 5);
  EXPECT_EQ(stats_->waiting(), 0);
}

TEST_F(StatsObserverTest, CountsPreemptionsAndLosses) {
  absl::StatusOr<Lock> stolen = seen_.Acquire("a");
  absl::StatusOr<Lock> expired = seen_.Acquire("b", {.lease = absl::Seconds(1)});
  auto thief = Ask("a", {.priority = 1, .preemption_grace = absl::Seconds(1)});
  EXPECT_EQ(stats_->preempted(), 1);
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_EQ(stats_->stolen(), 1);
  EXPECT_EQ(stats_->expired(), 1);
  EXPECT_EQ(stats_->held(), 0);
  EXPECT_FALSE(stolen->Release().ok());
  EXPECT_EQ(stats_->held(), 0) << "what was lost is not released as well";
}

// No news arrives on this link, so only the answers to what is asked tell.
TEST_F(StatsObserverTest, ALossThatOnlyTheReleaseRevealsIsNoRelease) {
  auto link = std::make_shared<FaultInjectingProtocol>(
      backend_, FaultInjectingOptions{.clock = &clock_, .faults = {.drop_event = 1}});
  LockManager far = *LockManager::Create(link, {.clock = &clock_, .observer = stats_});
  auto lock = Ask(far, "a", {.lease = absl::Minutes(1), .auto_renew = false});
  clock_.AdvanceBy(absl::Milliseconds(1));
  ASSERT_TRUE(lock->granted());
  absl::StatusOr<Lock> thief =
      locks_.Acquire("a", {.priority = 1, .preemption_grace = absl::ZeroDuration()});
  ASSERT_TRUE(thief.ok());
  EXPECT_EQ(lock->lock().state(), LockState::kHeld) << "as far as it knows";
  lock->lock().ReleaseAsync();
  clock_.AdvanceBy(absl::Milliseconds(1));
  EXPECT_EQ(lock->lock().state(), LockState::kLost);
  EXPECT_EQ(stats_->lost(), 1);
  EXPECT_EQ(stats_->released(), 0);
  EXPECT_EQ(stats_->held(), 0);
}

TEST_F(StatsObserverTest, PrintsForPrometheus) {
  absl::StatusOr<Lock> held = seen_.Acquire("a");
  EXPECT_FALSE(seen_.TryAcquire("a").ok());
  clock_.AdvanceBy(absl::Milliseconds(20));
  ASSERT_TRUE(held->Release().ok());
  const std::string text = stats_->PrometheusText();
  EXPECT_THAT(text,
              HasSubstr("# TYPE latchkey_acquired_total counter\nlatchkey_acquired_total 1\n"));
  EXPECT_THAT(text, HasSubstr("latchkey_denied_total{reason=\"HeldByOther\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("# TYPE latchkey_hold_seconds histogram\n"));
  EXPECT_THAT(text, HasSubstr("latchkey_hold_seconds_bucket{le=\"0.01\"} 0\n"));
  EXPECT_THAT(text, HasSubstr("latchkey_hold_seconds_bucket{le=\"0.05\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("latchkey_hold_seconds_bucket{le=\"+Inf\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("latchkey_hold_seconds_sum 0.02\n"));
}

}  // namespace
}  // namespace latchkey

// What an Observer hears, by way of the one that counts.
#include "latchkey/core/stats_observer.h"

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "latchkey/core/lock_manager.h"
#include "latchkey/core/policy/admission_policy.h"
#include "latchkey/tests/support/fault_injecting_protocol.h"
#include "latchkey/tests/support/lock_manager_fixture.h"

namespace latchkey {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;
using ::testing::StartsWith;

// The value printed for this name.
std::string ValueOf(std::string_view text, std::string_view name) {
  for (const std::string_view line : absl::StrSplit(text, '\n')) {
    if (absl::StartsWith(line, absl::StrCat(name, " "))) {
      return std::string(line.substr(name.size() + 1));
    }
  }
  return "none";
}

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

TEST_F(StatsObserverTest, CountsWhoWaitsThroughSeveralManagers) {
  LockManager other = NewManager({.observer = stats_});
  absl::StatusOr<Lock> held = seen_.Acquire("a");
  auto first = Ask(seen_, "a");
  auto second = Ask(seen_, "a");
  auto third = Ask(other, "a");
  EXPECT_EQ(stats_->waiting(), 3);
  ASSERT_TRUE(held->Release().ok());
  ASSERT_TRUE(first->granted());
  EXPECT_EQ(stats_->waiting(), 2);
  ASSERT_TRUE(first->lock().Release().ok());
  EXPECT_EQ(stats_->waiting(), 1);
  auto& next = second->granted() ? second : third;
  ASSERT_TRUE(next->granted());
  ASSERT_TRUE(next->lock().Release().ok());
  EXPECT_TRUE(second->granted() && third->granted());
  EXPECT_EQ(stats_->waiting(), 0);
}

TEST_F(StatsObserverTest, NobodyWaitsWhenTheManagerHasGone) {
  absl::StatusOr<Lock> held = seen_.Acquire("a");
  {
    LockManager other = NewManager({.observer = stats_});
    auto first = Ask(other, "a");
    auto second = Ask(other, "a");
    EXPECT_EQ(stats_->waiting(), 2);
  }
  EXPECT_EQ(stats_->waiting(), 0);
}

// What is queued is known only when a far backend has answered.
TEST_F(StatsObserverTest, CountsWhoWaitsBehindALink) {
  auto link =
      std::make_shared<FaultInjectingProtocol>(backend_, FaultInjectingOptions{.clock = &clock_});
  LockManager far = *LockManager::Create(link, {.clock = &clock_, .observer = stats_});
  absl::StatusOr<Lock> held = locks_.Acquire("a");
  auto first = Ask(far, "a", {.acquire_timeout = absl::Minutes(1)});
  auto second = Ask(far, "a", {.acquire_timeout = absl::Minutes(1)});
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_EQ(stats_->waiting(), 2);
  clock_.AdvanceBy(absl::Minutes(1));
  EXPECT_EQ(stats_->waiting(), 0);
}

class LengthLog : public Observer {
 public:
  void OnQueueLength(std::string_view, int64_t length, int64_t change) override {
    told.emplace_back(length, change);
  }
  std::vector<std::pair<int64_t, int64_t>> told;
};

TEST_F(StatsObserverTest, TellsALengthWhenItChanges) {
  const auto log = std::make_shared<LengthLog>();
  LockManager logged =
      NewManager({.admission = ShedLowestPriority({.per_resource = 2}), .observer = log});
  absl::StatusOr<Lock> held = logged.Acquire("a");
  auto first = Ask(logged, "a");
  auto second = Ask(logged, "a");
  auto sheds = Ask(logged, "a", {.priority = 1});
  ASSERT_TRUE(held->Release().ok());
  ASSERT_TRUE(sheds->granted());
  EXPECT_THAT(log->told, ElementsAre(Pair(1, 1), Pair(2, 1), Pair(1, -1)));
}

TEST(DurationHistogramTest, TheSumOfLongTimesDoesNotOverflow) {
  DurationHistogram histogram;
  const absl::Duration hold = absl::Hours(3 * 24) + absl::Nanoseconds(1);
  for (int i = 0; i < 100000; ++i) histogram.Add(hold);
  EXPECT_EQ(histogram.sum(), 100000 * hold);
  for (int i = 0; i < 1000; ++i) histogram.Add(absl::Hours(1000 * 24));
  EXPECT_EQ(histogram.sum(), 100000 * hold + 1000 * absl::Hours(1000 * 24));
  EXPECT_EQ(histogram.count(), 101000);
}

TEST(DurationHistogramTest, TakesWhatMakesNoSenseForTheNearestThatDoes) {
  DurationHistogram histogram;
  histogram.Add(-absl::Seconds(1));
  histogram.Add(-absl::InfiniteDuration());
  EXPECT_EQ(histogram.sum(), absl::ZeroDuration());
  EXPECT_EQ(histogram.CountUpTo(0), 2);
  histogram.Add(absl::InfiniteDuration());
  histogram.Add(absl::Seconds(1));
  EXPECT_EQ(histogram.sum(), absl::Hours(24 * 36525) + absl::Seconds(1));
  EXPECT_EQ(histogram.count(), 4);
}

TEST(DurationHistogramTest, ThreadsThatCarryAtTheSameTimeLoseNothing) {
  DurationHistogram histogram;
  constexpr int kThreads = 4;
  constexpr int kTimes = 20000;
  const absl::Duration hold = absl::Hours(100 * 24);
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&] {
      absl::Duration before;
      for (int n = 0; n < kTimes; ++n) {
        histogram.Add(hold);
        const absl::Duration now = histogram.sum();
        EXPECT_GE(now, before);
        before = now;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(histogram.sum(), kThreads * kTimes * hold);
}

TEST(PrometheusTextTest, PrintsAllDigitsOfASum) {
  StatsObserver stats;
  const auto sum = [&stats] {
    return ValueOf(stats.PrometheusText(), "latchkey_hold_seconds_sum");
  };
  EXPECT_EQ(sum(), "0");
  stats.OnReleased({}, absl::Seconds(123456789));
  EXPECT_EQ(sum(), "123456789");
  stats.OnReleased({}, absl::Milliseconds(5));
  EXPECT_EQ(sum(), "123456789.005");
  stats.OnReleased({}, absl::Nanoseconds(1));
  EXPECT_EQ(sum(), "123456789.005000001");
  for (int i = 0; i < 40000; ++i) stats.OnReleased({}, absl::Hours(3 * 24));
  EXPECT_EQ(sum(), "10491456789.005000001");
  stats.OnAcquired({}, absl::Seconds(1000));
  EXPECT_EQ(ValueOf(stats.PrometheusText(), "latchkey_wait_seconds_sum"), "1000");
}

TEST(PrometheusTextTest, EveryPrefixMakesValidNames) {
  StatsObserver stats;
  stats.OnDenied({}, absl::ZeroDuration(), absl::OkStatus());
  for (const auto& [prefix, printed] :
       std::vector<std::pair<std::string, std::string>>{{"latchkey", "latchkey_"},
                                                        {"", ""},
                                                        {"my-app 1\n", "my_app_1__"},
                                                        {"2nd", "_2nd_"},
                                                        {"job:locks", "job:locks_"},
                                                        {"\xc3\xa4", "___"}}) {
    SCOPED_TRACE(prefix);
    const std::string text = stats.PrometheusText(prefix);
    EXPECT_EQ(ValueOf(text, printed + "acquired_total"), "0");
    EXPECT_EQ(ValueOf(text, printed + "denied_total{reason=\"None\"}"), "1");
    EXPECT_EQ(ValueOf(text, printed + "hold_seconds_count"), "0");
    for (const std::string_view line : absl::StrSplit(text, '\n', absl::SkipEmpty())) {
      EXPECT_THAT(line, ::testing::AnyOf(StartsWith("# HELP " + printed),
                                         StartsWith("# TYPE " + printed), StartsWith(printed)));
      const std::string_view name = line.substr(0, line.find_first_of(" {"));
      EXPECT_TRUE(name == "#" || !absl::ascii_isdigit(name[0])) << line;
    }
  }
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

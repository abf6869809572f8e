#include "latchkey/tests/support/simulated_clock.h"

#include <atomic>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "absl/time/time.h"
#include "gtest/gtest.h"

namespace latchkey {
namespace {

TEST(SimulatedClockTest, StandsStillUntilAdvanced) {
  SimulatedClock clock;
  const absl::Time start = clock.Now();
  EXPECT_EQ(clock.Now(), start);
  EXPECT_EQ(clock.CoarseNow(), start);
  clock.AdvanceBy(absl::Minutes(3));
  EXPECT_EQ(clock.Now(), start + absl::Minutes(3));
  clock.AdvanceTo(start);
  EXPECT_EQ(clock.Now(), start + absl::Minutes(3)) << "time never goes back";
}

TEST(SimulatedClockTest, RunsTimersInOrderOfTimeThenOfScheduling) {
  SimulatedClock clock;
  const absl::Time start = clock.Now();
  std::vector<int> order;
  clock.RunAt(start + absl::Seconds(2), [&] { order.push_back(3); });
  clock.RunAt(start + absl::Seconds(1), [&] { order.push_back(1); });
  clock.RunAt(start + absl::Seconds(1), [&] { order.push_back(2); });
  clock.RunAt(start + absl::Seconds(9), [&] { order.push_back(4); });
  clock.AdvanceBy(absl::Seconds(5));
  EXPECT_EQ(order, (std::vector<int>{1, 2, 3}));
  EXPECT_EQ(clock.PendingTimers(), 1u);
  EXPECT_EQ(clock.NextTimer(), start + absl::Seconds(9));
}

TEST(SimulatedClockTest, ATimerSeesTheTimeItWasSetFor) {
  SimulatedClock clock;
  const absl::Time start = clock.Now();
  absl::Time seen;
  clock.RunAt(start + absl::Seconds(1), [&] { seen = clock.Now(); });
  clock.AdvanceBy(absl::Hours(1));
  EXPECT_EQ(seen, start + absl::Seconds(1));
  EXPECT_EQ(clock.Now(), start + absl::Hours(1));
}

TEST(SimulatedClockTest, ATimerDueExactlyAtTheTargetRuns) {
  SimulatedClock clock;
  int runs = 0;
  clock.RunAt(clock.Now() + absl::Seconds(1), [&] { ++runs; });
  clock.AdvanceBy(absl::Seconds(1) - absl::Nanoseconds(1));
  EXPECT_EQ(runs, 0);
  clock.AdvanceBy(absl::Nanoseconds(1));
  EXPECT_EQ(runs, 1);
}

TEST(SimulatedClockTest, TimersSetByTimersRunWithinTheSameAdvance) {
  SimulatedClock clock;
  const absl::Time start = clock.Now();
  std::vector<absl::Duration> seen;
  std::function<void()> again = [&] {
    seen.push_back(clock.Now() - start);
    if (seen.size() < 3) clock.RunAt(clock.Now() + absl::Seconds(1), again);
  };
  clock.RunAt(start + absl::Seconds(1), again);
  clock.AdvanceBy(absl::Seconds(10));
  EXPECT_EQ(seen,
            (std::vector<absl::Duration>{absl::Seconds(1), absl::Seconds(2), absl::Seconds(3)}));
}

TEST(SimulatedClockTest, WhatIsAlreadyDueWaitsForTheNextAdvanceAndNeverNests) {
  SimulatedClock clock;
  std::vector<int> order;
  clock.RunAt(clock.Now() - absl::Seconds(1), [&] {
    clock.RunAt(clock.Now(), [&] { order.push_back(2); });
    order.push_back(1);
  });
  EXPECT_TRUE(order.empty());
  clock.RunDue();
  EXPECT_EQ(order, (std::vector<int>{1, 2}));
}

TEST(SimulatedClockTest, APastTimerDoesNotTurnTheClockBack) {
  SimulatedClock clock;
  const absl::Time start = clock.Now();
  absl::Time seen;
  clock.RunAt(start - absl::Hours(1), [&] { seen = clock.Now(); });
  clock.RunDue();
  EXPECT_EQ(seen, start);
}

TEST(SimulatedClockTest, ACancelledTimerDoesNotRun) {
  SimulatedClock clock;
  int runs = 0;
  const Clock::TimerId timer = clock.RunAt(clock.Now() + absl::Seconds(1), [&] { ++runs; });
  EXPECT_TRUE(clock.Cancel(timer));
  EXPECT_FALSE(clock.Cancel(timer));
  EXPECT_FALSE(clock.Cancel(0));
  clock.AdvanceBy(absl::Seconds(2));
  EXPECT_EQ(runs, 0);
  EXPECT_EQ(clock.PendingTimers(), 0u);
}

TEST(SimulatedClockTest, CancellingARunningOrFinishedTimerSaysSo) {
  SimulatedClock clock;
  Clock::TimerId timer = 0;
  bool cancelled_inside = true;
  timer = clock.RunAt(clock.Now(), [&] { cancelled_inside = clock.Cancel(timer); });
  clock.RunDue();
  EXPECT_FALSE(cancelled_inside);
  EXPECT_FALSE(clock.Cancel(timer));
}

TEST(SimulatedClockTest, TheInfiniteFutureNeverComes) {
  SimulatedClock clock;
  EXPECT_EQ(clock.RunAt(absl::InfiniteFuture(), [] { FAIL(); }), 0u);
  EXPECT_EQ(clock.PendingTimers(), 0u);
  EXPECT_EQ(clock.NextTimer(), absl::InfiniteFuture());
  EXPECT_FALSE(clock.AdvanceToNextTimer());
}

TEST(SimulatedClockTest, AdvancingInsideATimerExtendsTheAdvanceUnderWay) {
  SimulatedClock clock;
  const absl::Time start = clock.Now();
  std::vector<int> order;
  clock.RunAt(start + absl::Seconds(1), [&] {
    clock.AdvanceTo(start + absl::Seconds(5));
    order.push_back(1);
  });
  clock.RunAt(start + absl::Seconds(4), [&] { order.push_back(2); });
  clock.AdvanceBy(absl::Seconds(1));
  EXPECT_EQ(order, (std::vector<int>{1, 2}));
  EXPECT_EQ(clock.Now(), start + absl::Seconds(5));
}

TEST(SimulatedClockTest, ManyThreadsSetCancelAndAdvance) {
  SimulatedClock clock;
  std::atomic<int> runs{0};
  std::atomic<int> inside{0};
  std::atomic<int> cancelled{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 500; ++i) {
        const auto timer = clock.RunAt(clock.Now() + absl::Milliseconds(i % 7), [&] {
          EXPECT_EQ(inside.fetch_add(1), 0) << "timers run one at a time";
          ++runs;
          inside.fetch_sub(1);
        });
        if (i % 3 == 0 && clock.Cancel(timer)) ++cancelled;
        clock.AdvanceBy(absl::Milliseconds(1));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  clock.AdvanceBy(absl::Seconds(1));
  EXPECT_EQ(runs + cancelled, 4 * 500);
  EXPECT_EQ(clock.PendingTimers(), 0u);
}

// Calls the clock when it is destroyed, as a backend does that cancels its timers.
struct CallsTheClock {
  explicit CallsTheClock(SimulatedClock& clock) : clock(clock) {}
  ~CallsTheClock() {
    EXPECT_FALSE(clock.Cancel(own));
    EXPECT_EQ(clock.Cancel(other), cancels_other);
    if (sets_one) clock.RunAt(clock.Now(), [] { FAIL() << "nobody runs it any more"; });
  }

  SimulatedClock& clock;
  Clock::TimerId own = 0;
  Clock::TimerId other = 0;
  bool cancels_other = false;
  bool sets_one = false;
};

TEST(SimulatedClockTest, WhatATimerOwnsMayCallTheClockThatIsDestroyedWithIt) {
  auto clock = std::make_unique<SimulatedClock>();
  const absl::Time soon = clock->Now() + absl::Seconds(1);
  auto first = std::make_shared<CallsTheClock>(*clock);
  auto second = std::make_shared<CallsTheClock>(*clock);
  first->own = clock->RunAt(soon, [first] {});
  second->own = clock->RunAt(soon + absl::Seconds(1), [second] {});
  first->other = clock->RunAt(soon + absl::Seconds(2), [] {});
  first->cancels_other = true;
  second->other = first->own;
  second->sets_one = true;
  first = nullptr;
  second = nullptr;
  clock = nullptr;
}

}  // namespace
}  // namespace latchkey

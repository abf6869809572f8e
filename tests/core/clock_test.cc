// The real clock. No test depends on how fast the machine is: each waits for what must happen, and
// asserts only orders and lower bounds.
#include "latchkey/core/clock.h"

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "absl/synchronization/blocking_counter.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"

namespace latchkey {
namespace {

TEST(RealClockTest, DoesNotGoBack) {
  Clock& clock = RealClock();
  absl::Time last = clock.Now();
  for (int i = 0; i < 10'000; ++i) {
    const absl::Time now = clock.Now();
    ASSERT_GE(now, last);
    last = now;
  }
}

TEST(RealClockTest, TheCoarseTimeIsTheSameScaleAndNeverAhead) {
  Clock& clock = RealClock();
  for (int i = 0; i < 1000; ++i) {
    const absl::Time before = clock.Now();
    const absl::Time coarse = clock.CoarseNow();
    // The two bases are read one after the other, so they may differ by that moment.
    ASSERT_LE(coarse, clock.Now() + absl::Milliseconds(1));
    ASSERT_GE(coarse, before - absl::Seconds(5));
  }
}

TEST(RealClockTest, ATimerRunsNotBeforeItsTime) {
  Clock& clock = RealClock();
  for (const absl::Duration delay :
       {absl::Milliseconds(20), absl::Milliseconds(1), absl::ZeroDuration(), -absl::Hours(1)}) {
    const absl::Time when = clock.Now() + delay;
    absl::Time ran;
    absl::Notification done;
    clock.RunAt(when, [&] {
      ran = clock.Now();
      done.Notify();
    });
    done.WaitForNotification();
    EXPECT_GE(ran, when);
  }
}

TEST(RealClockTest, TimersRunInOrderOfTimeHoweverTheyWereSet) {
  Clock& clock = RealClock();
  const absl::Time start = clock.Now() + absl::Milliseconds(30);
  std::vector<int> order;  // Timers run one at a time, and the last one tells.
  absl::Notification done;
  clock.RunAt(start + absl::Milliseconds(4), [&] {
    order.push_back(4);
    done.Notify();
  });
  clock.RunAt(start + absl::Milliseconds(2), [&] { order.push_back(2); });
  clock.RunAt(start + absl::Milliseconds(3), [&] { order.push_back(3); });
  clock.RunAt(start + absl::Milliseconds(1), [&] { order.push_back(1); });
  clock.RunAt(start + absl::Milliseconds(1), [&] { order.push_back(11); });
  done.WaitForNotification();
  EXPECT_EQ(order, (std::vector<int>{1, 11, 2, 3, 4}));
}

TEST(RealClockTest, AnEarlierTimerOvertakesTheOneThatIsWaitedFor) {
  Clock& clock = RealClock();
  const Clock::TimerId far = clock.RunAt(clock.Now() + absl::Hours(1), [] { FAIL(); });
  absl::Notification done;
  clock.RunAt(clock.Now() + absl::Milliseconds(1), [&] { done.Notify(); });
  done.WaitForNotification();
  EXPECT_TRUE(clock.Cancel(far));
}

TEST(RealClockTest, CancelSaysWhetherTheCallWillNotRun) {
  Clock& clock = RealClock();
  EXPECT_FALSE(clock.Cancel(0));
  const Clock::TimerId far = clock.RunAt(clock.Now() + absl::Hours(1), [] { FAIL(); });
  EXPECT_NE(far, 0u);
  EXPECT_TRUE(clock.Cancel(far));
  EXPECT_FALSE(clock.Cancel(far)) << "it is gone";

  absl::Notification done;
  const Clock::TimerId soon = clock.RunAt(clock.Now(), [&] { done.Notify(); });
  done.WaitForNotification();
  EXPECT_FALSE(clock.Cancel(soon)) << "it runs or ran";
}

TEST(RealClockTest, CancelInsideTheCallNeverWaits) {
  Clock& clock = RealClock();
  absl::Mutex mu;
  Clock::TimerId timer = 0;
  bool cancelled = true;
  absl::Notification done;
  {
    absl::MutexLock lock(&mu);
    timer = clock.RunAt(clock.Now(), [&] {
      absl::MutexLock lock(&mu);
      cancelled = clock.Cancel(timer);
      done.Notify();
    });
  }
  done.WaitForNotification();
  absl::MutexLock lock(&mu);
  EXPECT_FALSE(cancelled);
}

TEST(RealClockTest, CallsDoNotNest) {
  Clock& clock = RealClock();
  bool inside = false;
  bool nested = false;
  absl::Notification done;
  clock.RunAt(clock.Now(), [&] {
    inside = true;
    clock.RunAt(clock.Now() - absl::Seconds(1), [&] {
      nested = inside;
      done.Notify();
    });
    inside = false;
  });
  done.WaitForNotification();
  EXPECT_FALSE(nested);
}

TEST(RealClockTest, TheInfiniteFutureNeverComes) {
  Clock& clock = RealClock();
  EXPECT_EQ(clock.RunAt(absl::InfiniteFuture(), [] { FAIL(); }), 0u);
}

TEST(RealClockTest, WhatACallbackOwnsIsDestroyedAndMayUseTheClock) {
  // Runs when it is destroyed, wherever that is: with a mutex of the clock held it would hang.
  struct UsesClockAtTheEnd {
    explicit UsesClockAtTheEnd(absl::BlockingCounter* counter) : destroyed(counter) {}
    ~UsesClockAtTheEnd() {
      RealClock().Cancel(RealClock().RunAt(RealClock().Now() + absl::Hours(1), [] {}));
      destroyed->DecrementCount();
    }
    absl::BlockingCounter* destroyed;
  };
  absl::BlockingCounter destroyed(2);
  Clock& clock = RealClock();
  clock.RunAt(clock.Now(), [owned = std::make_unique<UsesClockAtTheEnd>(&destroyed)] {});
  EXPECT_TRUE(clock.Cancel(clock.RunAt(
      clock.Now() + absl::Hours(1), [owned = std::make_unique<UsesClockAtTheEnd>(&destroyed)] {})));
  destroyed.Wait();
}

TEST(RealClockTest, ManyThreadsSetAndCancel) {
  constexpr int kThreads = 4;
  constexpr int kTimers = 500;
  Clock& clock = RealClock();
  std::atomic<int> ran{0};
  std::atomic<int> cancelled{0};
  absl::BlockingCounter all(kThreads * kTimers);
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < kTimers; ++i) {
        const auto timer = clock.RunAt(clock.Now() + absl::Microseconds(i % 50), [&] {
          ++ran;
          all.DecrementCount();
        });
        if (i % 2 == 0 && clock.Cancel(timer)) {
          ++cancelled;
          all.DecrementCount();
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  all.Wait();
  EXPECT_EQ(ran + cancelled, kThreads * kTimers);
}

}  // namespace
}  // namespace latchkey

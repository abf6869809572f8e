// Every policy and every option changes what happens.
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/numeric/int128.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "latchkey/core/lock_manager.h"
#include "latchkey/core/policy/admission_policy.h"
#include "latchkey/core/policy/preemption_policy.h"
#include "latchkey/core/policy/queue_policy.h"
#include "latchkey/core/policy/retry_policy.h"
#include "latchkey/memory_backend/memory_backend.h"
#include "latchkey/tests/support/fault_injecting_protocol.h"
#include "latchkey/tests/support/lock_manager_fixture.h"

namespace latchkey {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::Field;
using ::testing::HasSubstr;

// The last come is first: what a user's own order takes.
class LastInFirstOut : public QueuePolicy {
 public:
  absl::int128 Rank(const WaitingRequest& request) const override {
    return -absl::int128(absl::ToUnixNanos(request.enqueued));
  }
};

class PoliciesTest : public LockManagerFixture {
 protected:
  // Notes in `order_` when it is granted, and releases.
  void Note(LockManager& locks, std::string name, AcquireOptions options = {}) {
    locks.AcquireAsync("a", options, [this, name](const absl::StatusOr<Lock>& lock) {
      order_.push_back(lock.ok() ? name : name + "!");
    });
  }

  std::vector<std::string> order_;
};

// ---- Admission ----

TEST_F(PoliciesTest, AtMostSoManyWaitForOneResourceAndInTotal) {
  LockManager locks = NewManager({.admission = LimitPending({.per_resource = 2, .in_total = 3})});
  absl::StatusOr<LockSet> held = locks.AcquireAll({"a", "b", "c"});
  auto a1 = Ask(locks, "a", {.acquire_timeout = absl::Seconds(1)});
  auto a2 = Ask(locks, "a");
  auto a3 = Ask(locks, "a");
  EXPECT_EQ(ReasonOf(a3->status()), Reason::kTooManyPending);
  EXPECT_EQ(a3->status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(a3->status().message(), HasSubstr("'a'"));
  auto b1 = Ask(locks, "b");
  EXPECT_FALSE(b1->result);
  EXPECT_EQ(ReasonOf(Ask(locks, "c")->status()), Reason::kTooManyPending) << "three wait in total";
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_TRUE(a1->failed());
  EXPECT_FALSE(Ask(locks, "a")->result) << "who gave up no longer counts";
}

TEST_F(PoliciesTest, ALimitOfNothingMeansThatNobodyWaits) {
  LockManager locks = NewManager({.admission = LimitPending({.per_resource = 0})});
  absl::StatusOr<Lock> held = locks.Acquire("a");
  EXPECT_TRUE(held.ok());
  EXPECT_EQ(ReasonOf(Ask(locks, "a")->status()), Reason::kTooManyPending);
  EXPECT_EQ(ReasonOf(Ask(locks, "a", {.priority = 1})->status()), Reason::kTooManyPending);
  EXPECT_EQ(held->state(), LockState::kHeld);
}

TEST_F(PoliciesTest, ByDefaultAThousandMayWait) {
  absl::StatusOr<Lock> held = locks_.Acquire("a");
  for (int i = 0; i < 1000; ++i) EXPECT_FALSE(Ask("a")->result);
  EXPECT_EQ(ReasonOf(Ask("a")->status()), Reason::kTooManyPending);
  EXPECT_FALSE(Ask("a", {.admission = AdmitAll()})->result) << "overridden for one request";
}

TEST_F(PoliciesTest, TheLowestPriorityIsShedWhenTheQueueIsFull) {
  LockManager locks = NewManager({.admission = ShedLowestPriority({.per_resource = 2})});
  absl::StatusOr<Lock> held = locks.Acquire("a", {.priority = 100});
  auto low = Ask(locks, "a", {.priority = 1});
  auto middle = Ask(locks, "a", {.priority = 5});
  auto equal = Ask(locks, "a", {.priority = 1});
  EXPECT_EQ(ReasonOf(equal->status()), Reason::kTooManyPending);
  auto high = Ask(locks, "a", {.priority = 9});
  EXPECT_EQ(ReasonOf(low->status()), Reason::kTooManyPending);
  EXPECT_FALSE(middle->result);
  EXPECT_FALSE(high->result);
}

// ---- Queue order ----

TEST_F(PoliciesTest, FifoIgnoresPriority) {
  LockManager locks = NewManager({.queue = FifoQueue(), .preemption = NeverPreempt()});
  absl::StatusOr<Lock> held = locks.Acquire("a");
  Note(locks, "first", {.priority = 1});
  Note(locks, "second", {.priority = 9});
  ASSERT_TRUE(held->Release().ok());
  EXPECT_THAT(order_, ElementsAre("first", "second"));
}

TEST_F(PoliciesTest, AgeingLetsNobodyStarve) {
  LockManager locks = NewManager({.queue = AgeingQueue({.step = absl::Seconds(1)})});
  absl::StatusOr<Lock> held = locks.Acquire("a", {.priority = 100});
  Note(locks, "old", {.priority = 1});
  clock_.AdvanceBy(absl::Seconds(5));
  Note(locks, "a little more urgent", {.priority = 4});
  Note(locks, "much more urgent", {.priority = 9});
  ASSERT_TRUE(held->Release().ok());
  EXPECT_THAT(order_, ElementsAre("much more urgent", "old", "a little more urgent"));
}

TEST_F(PoliciesTest, SkipQueueGoesToTheFrontOfItsPriority) {
  absl::StatusOr<Lock> held = locks_.Acquire("a", {.priority = 100});
  Note(locks_, "high", {.priority = 2});
  Note(locks_, "first", {.priority = 1});
  Note(locks_, "jumps", {.priority = 1, .skip_queue = true});
  ASSERT_TRUE(held->Release().ok());
  EXPECT_THAT(order_, ElementsAre("high", "jumps", "first"));
}

TEST_F(PoliciesTest, SkipQueueGoesBeforeItsPriorityInEveryOrder) {
  const std::vector<std::shared_ptr<const QueuePolicy>> orders = {
      PriorityQueue(), AgeingQueue({.step = absl::Milliseconds(100)}),
      std::make_shared<LastInFirstOut>()};
  for (const std::shared_ptr<const QueuePolicy>& order : orders) {
    order_.clear();
    LockManager locks = NewManager({.queue = order, .preemption = NeverPreempt()});
    absl::StatusOr<Lock> held = locks.Acquire("a");
    for (const char* name : {"1", "2", "3"}) {
      Note(locks, name, {.priority = 1});
      clock_.AdvanceBy(absl::Microseconds(1));
    }
    Note(locks, "skips", {.priority = 1, .skip_queue = true});
    clock_.AdvanceBy(absl::Microseconds(1));
    Note(locks, "skips later", {.priority = 1, .skip_queue = true});
    ASSERT_TRUE(held->Release().ok());
    ASSERT_EQ(order_.size(), 5u);
    EXPECT_EQ(order_[0], "skips later");
    EXPECT_EQ(order_[1], "skips");
  }
}

TEST_F(PoliciesTest, SkipQueueUnderAgeingStaysBehindWhoeverIsAheadOfItsPriority) {
  LockManager locks = NewManager(
      {.queue = AgeingQueue({.step = absl::Milliseconds(100)}), .preemption = NeverPreempt()});
  absl::StatusOr<Lock> held = locks.Acquire("a");
  Note(locks, "aged", {.priority = 0});
  clock_.AdvanceBy(absl::Seconds(1));
  Note(locks, "high", {.priority = 9});
  Note(locks, "first", {.priority = 5});
  Note(locks, "skips", {.priority = 5, .skip_queue = true});
  Note(locks, "alone of its priority", {.priority = 7, .skip_queue = true});
  ASSERT_TRUE(held->Release().ok());
  EXPECT_THAT(order_, ElementsAre("aged", "high", "alone of its priority", "skips", "first"));
}

TEST_F(PoliciesTest, SkipQueueUnderFifoGoesToTheFront) {
  LockManager locks = NewManager({.queue = FifoQueue(), .preemption = NeverPreempt()});
  absl::StatusOr<Lock> held = locks.Acquire("a");
  Note(locks, "first", {.priority = 9});
  Note(locks, "second", {.priority = 1});
  Note(locks, "skips", {.priority = 1, .skip_queue = true});
  ASSERT_TRUE(held->Release().ok());
  EXPECT_THAT(order_, ElementsAre("skips", "first", "second"));
}

TEST_F(PoliciesTest, SkipQueueInAnOrderOfOnesOwnGoesBeforeAllOfTheRankOfItsPriority) {
  // Two classes, of even and of odd priorities, each in the order of arrival.
  class EvenFirst : public QueuePolicy {
   public:
    absl::int128 Rank(const WaitingRequest& request) const override { return request.priority % 2; }
  };
  LockManager locks =
      NewManager({.queue = std::make_shared<EvenFirst>(), .preemption = NeverPreempt()});
  absl::StatusOr<Lock> held = locks.Acquire("a");
  Note(locks, "odd", {.priority = 1});
  Note(locks, "even", {.priority = 4});
  Note(locks, "skips", {.priority = 3, .skip_queue = true});
  ASSERT_TRUE(held->Release().ok());
  EXPECT_THAT(order_, ElementsAre("even", "skips", "odd"));
}

TEST_F(PoliciesTest, TheSnapshotListsTheSuccessorFirst) {
  const auto is = [](Priority priority, bool reserved) {
    return AllOf(Field(&ResourceSnapshot::Waiter::priority, priority),
                 Field(&ResourceSnapshot::Waiter::reserved, reserved));
  };
  LockManager locks = NewManager({.queue = FifoQueue()});
  std::optional<absl::StatusOr<Lock>> held = locks.Acquire("a");
  auto first = Ask(locks, "a");
  auto never = Ask(locks, "a", {.priority = 9, .preemption = NeverPreempt()});
  auto reserves = Ask(locks, "a", {.priority = 5});
  auto last = Ask(locks, "a", {.priority = 1});
  const std::vector<ResourceSnapshot> seen = locks.Snapshot();
  ASSERT_EQ(seen.size(), 1u);
  EXPECT_EQ(seen[0].state.successor_priority, 5);
  EXPECT_THAT(seen[0].waiters, ElementsAre(is(5, true), is(0, false), is(9, false), is(1, false)));
  held.reset();
  EXPECT_TRUE(reserves->granted());
}

TEST_F(PoliciesTest, SkipQueueDoesNotDisplaceAReservationOfItsPriority) {
  const std::vector<std::shared_ptr<const QueuePolicy>> orders = {
      PriorityQueue(), FifoQueue(), AgeingQueue(), std::make_shared<LastInFirstOut>()};
  for (const std::shared_ptr<const QueuePolicy>& order : orders) {
    order_.clear();
    LockManager locks = NewManager({.queue = order});
    absl::StatusOr<Lock> held = locks.Acquire("a");
    Note(locks, "has reserved", {.priority = 5});
    Note(locks, "skips", {.priority = 5, .skip_queue = true});
    ASSERT_TRUE(held->Release().ok());
    EXPECT_THAT(order_, ElementsAre("has reserved", "skips"));
  }
}

TEST_F(PoliciesTest, BargingIsRefusedWhereTheBackendCannot) {
  class Strict : public LockingProtocol {
   public:
    void Obtain(const ObtainRequest&, ObtainCallback) override {}
    void Release(const HoldRef&, ReleaseCallback) override {}
    void Extend(const HoldRef&, absl::Duration, ExtendCallback) override {}
    Subscription Watch(const WatchRequest&, WatchCallback) override { return {}; }
    const BackendCapabilities& capabilities() const override { return capabilities_; }

   private:
    BackendCapabilities capabilities_{.name = "strict", .barging = false};
  };
  const auto create = [](bool barging) {
    return LockManager::Create(std::make_shared<Strict>(),
                               {.queue = PriorityQueue({.barging = barging})})
        .status();
  };
  EXPECT_EQ(ReasonOf(create(true)), Reason::kNotSupported);
  EXPECT_THAT(create(true).message(), HasSubstr("'strict'"));
  EXPECT_TRUE(create(false).ok());
}

TEST_F(PoliciesTest, AQueuePolicyOfOnesOwnTakesOneSmallClass) {
  LockManager locks = NewManager({.queue = std::make_shared<LastInFirstOut>()});
  absl::StatusOr<Lock> held = locks.Acquire("a");
  for (const char* name : {"1", "2", "3"}) {
    Note(locks, name);
    clock_.AdvanceBy(absl::Seconds(1));
  }
  ASSERT_TRUE(held->Release().ok());
  EXPECT_THAT(order_, ElementsAre("3", "2", "1"));
}

TEST_F(PoliciesTest, PreemptionJumpsAnyOrder) {
  const std::vector<std::shared_ptr<const QueuePolicy>> orders = {
      PriorityQueue(), FifoQueue(), AgeingQueue({.step = absl::Milliseconds(1)}),
      std::make_shared<LastInFirstOut>()};
  for (const std::shared_ptr<const QueuePolicy>& order : orders) {
    order_.clear();
    LockManager locks = NewManager({.queue = order});
    absl::StatusOr<Lock> held = locks.Acquire("a");
    Note(locks, "before");
    clock_.AdvanceBy(absl::Seconds(1));
    Note(locks, "may preempt", {.priority = 1});
    clock_.AdvanceBy(absl::Seconds(1));
    Note(locks, "after");
    EXPECT_EQ(held->state(), LockState::kYielding);
    ASSERT_TRUE(held->Release().ok());
    ASSERT_EQ(order_.size(), 3u);
    EXPECT_EQ(order_[0], "may preempt");
  }
}

// ---- Preemption ----

TEST_F(PoliciesTest, ByDefaultAStrictlyHigherPriorityAsksAndWaits) {
  LockManager locks = NewManager({.preemption = PreemptLower()});
  for (LockManager* const manager : {&locks, &locks_}) {
    absl::StatusOr<Lock> held = manager->Acquire("a", {.priority = 5});
    auto equal = Ask(*manager, "a", {.priority = 5});
    EXPECT_EQ(held->state(), LockState::kHeld);
    auto higher = Ask(*manager, "a", {.priority = 6});
    EXPECT_EQ(held->state(), LockState::kYielding);
    clock_.AdvanceBy(absl::Hours(1));
    EXPECT_FALSE(higher->result);
    ASSERT_TRUE(held->Release().ok());
    EXPECT_TRUE(higher->granted());
  }
}

TEST_F(PoliciesTest, NeverPreemptOnlyOrdersTheQueue) {
  LockManager locks = NewManager({.preemption = NeverPreempt()});
  absl::StatusOr<Lock> held = locks.Acquire("a");
  auto low = Ask(locks, "a", {.priority = 1});
  auto high = Ask(locks, "a", {.priority = 9});
  EXPECT_EQ(held->state(), LockState::kHeld);
  ASSERT_TRUE(held->Release().ok());
  EXPECT_TRUE(high->granted());
  EXPECT_FALSE(low->result);
}

TEST_F(PoliciesTest, AMarginProtectsHoldersThatAreAlmostAsUrgent) {
  LockManager locks = NewManager({.preemption = PreemptByMargin(10)});
  absl::StatusOr<Lock> held = locks.Acquire("a", {.priority = 5});
  auto near = Ask(locks, "a", {.priority = 14});
  EXPECT_EQ(held->state(), LockState::kHeld);
  auto far = Ask(locks, "a", {.priority = 15});
  EXPECT_EQ(held->state(), LockState::kYielding);
}

TEST_F(PoliciesTest, ForceAfterTakesOverAfterTheGrace) {
  LockManager locks = NewManager({.preemption = ForceAfter(absl::Seconds(3))});
  absl::StatusOr<Lock> held = locks.Acquire("a");
  std::stop_token stop = held->stop_token();
  auto thief = Ask(locks, "a", {.priority = 1});
  auto patient = Ask(locks, "b");
  clock_.AdvanceBy(absl::Seconds(3) - absl::Nanoseconds(1));
  EXPECT_FALSE(thief->result);
  clock_.AdvanceBy(absl::Nanoseconds(1));
  EXPECT_TRUE(thief->granted());
  EXPECT_EQ(held->state(), LockState::kStolen);
}

TEST_F(PoliciesTest, ARequestMayOverrideThePreemptionOfItsManager) {
  absl::StatusOr<Lock> held = locks_.Acquire("a");
  auto polite = Ask("a", {.priority = 9, .preemption = NeverPreempt()});
  EXPECT_EQ(held->state(), LockState::kHeld);
  LockManager forceful = NewManager({.preemption = ForceAfter(absl::Seconds(1))});
  auto acknowledged =
      Ask(forceful, "a", {.priority = 10, .preemption_grace = absl::InfiniteDuration()});
  clock_.AdvanceBy(absl::Hours(1));
  EXPECT_FALSE(acknowledged->result);
}

TEST_F(PoliciesTest, ForceAndMarginCombine) {
  const auto both = ForceAfter(absl::Seconds(1), PreemptByMargin(10));
  absl::StatusOr<Lock> held = locks_.Acquire("a");
  auto near = Ask("a", {.priority = 9, .preemption = both});
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_EQ(held->state(), LockState::kHeld);
  auto far = Ask("a", {.priority = 10, .preemption = both});
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_EQ(held->state(), LockState::kStolen);
  EXPECT_TRUE(far->granted());
}

// Holders may be preempted at night only: what a user's own rule takes.
class AtNight : public PreemptionPolicy {
 public:
  explicit AtNight(const bool& night) : night_(night) {}
  PreemptionDecision Decide(Priority priority) const override {
    if (!night_) return {};
    return {.reserve_below = priority, .grace = absl::Seconds(10)};
  }

 private:
  const bool& night_;
};

TEST_F(PoliciesTest, APreemptionPolicyOfOnesOwnTakesOneSmallClass) {
  bool night = false;
  LockManager locks = NewManager({.preemption = std::make_shared<AtNight>(night)});
  absl::StatusOr<Lock> held = locks.Acquire("a");
  auto day = Ask(locks, "a", {.priority = 1});
  EXPECT_EQ(held->state(), LockState::kHeld);
  night = true;
  auto thief = Ask(locks, "a", {.priority = 2});
  EXPECT_EQ(held->state(), LockState::kYielding);
  EXPECT_EQ(held->remaining(), absl::Seconds(10));
}

// ---- Retry ----

TEST_F(PoliciesTest, BackOffGrowsIsBoundedAndHasJitter) {
  const auto policy = ExponentialBackoff(
      {.initial = absl::Milliseconds(100), .max = absl::Seconds(1), .multiplier = 2});
  const auto delay = [&](int attempts, double random,
                         absl::Duration lease = absl::InfiniteDuration()) {
    return policy->Delay({.attempts = attempts, .remaining_lease = lease, .random = random});
  };
  EXPECT_EQ(delay(1, 0.5), absl::Milliseconds(50));
  EXPECT_EQ(delay(2, 0.5), absl::Milliseconds(100));
  EXPECT_EQ(delay(3, 0.5), absl::Milliseconds(200));
  EXPECT_EQ(delay(100, 0.5), absl::Milliseconds(500));
  EXPECT_EQ(delay(1, 0), absl::ZeroDuration());
  EXPECT_EQ(delay(100, 0.5, absl::Milliseconds(100)), absl::Milliseconds(105));
  EXPECT_EQ(FixedDelay(absl::Seconds(2))->Delay({.attempts = 7}), absl::Seconds(2));
  EXPECT_EQ(NoRetry()->Delay({}), absl::InfiniteDuration());
}

// ---- Options of one request ----

TEST_F(PoliciesTest, EveryInt64IsAPriority) {
  constexpr Priority kLowest = std::numeric_limits<Priority>::min();
  constexpr Priority kHighest = std::numeric_limits<Priority>::max();
  absl::StatusOr<Lock> held = locks_.Acquire("a", {.priority = kLowest});
  auto above = Ask("a", {.priority = kLowest + 1});
  EXPECT_EQ(held->state(), LockState::kYielding);
  ASSERT_TRUE(held->Release().ok());
  auto highest = Ask("a", {.priority = kHighest});
  EXPECT_EQ(above->lock().state(), LockState::kYielding);
  above->result.reset();
  auto equal = Ask("a", {.priority = kHighest});
  EXPECT_EQ(highest->lock().state(), LockState::kHeld);
}

TEST_F(PoliciesTest, AHoldThatIsNotPreemptibleIsNeverAskedToYield) {
  absl::StatusOr<Lock> held = locks_.Acquire("a", {.preemptible = false});
  auto thief = Ask("a", {.priority = 9, .preemption_grace = absl::Seconds(1)});
  clock_.AdvanceBy(absl::Hours(1));
  EXPECT_EQ(held->state(), LockState::kHeld);
  ASSERT_TRUE(held->Release().ok());
  EXPECT_TRUE(thief->granted());
}

TEST_F(PoliciesTest, WithOneAttemptARequestThatWouldQueueFailsAtOnce) {
  absl::StatusOr<Lock> held = locks_.Acquire("a", {.owner = "bob", .priority = 3});
  auto denied = Ask("a", {.max_attempts = 1});
  EXPECT_EQ(ReasonOf(denied->status()), Reason::kAttemptsExhausted);
  EXPECT_EQ(denied->status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(denied->status().message(), HasSubstr("'a'"));
  EXPECT_THAT(denied->status().message(), HasSubstr("'bob' with priority 3"));
  auto reserves = Ask("a", {.priority = 4, .max_attempts = 1});
  EXPECT_FALSE(reserves->result) << "a reservation is no denial, and its polls do not count";
}

TEST_F(PoliciesTest, ComingBackToTheFrontIsNoAttempt) {
  for (const AcquireOptions& overtakes :
       {AcquireOptions{.skip_queue = true}, AcquireOptions{.priority = 2}}) {
    std::optional<absl::StatusOr<Lock>> held = locks_.Acquire("a", {.priority = 9});
    auto waits = Ask("a", {.max_attempts = 2});
    std::vector<std::shared_ptr<Pending>> overtaking;
    for (int i = 0; i < 3; ++i) overtaking.push_back(Ask("a", overtakes));
    held.reset();
    for (int left = 3; left > 0; --left) {
      EXPECT_FALSE(waits->result) << waits->status();
      for (const std::shared_ptr<Pending>& one : overtaking) {
        if (!one->granted()) continue;
        one->result.reset();
        break;
      }
    }
    ASSERT_TRUE(waits->granted()) << waits->status();
  }
}

TEST_F(PoliciesTest, TheErrorSaysHowManyAttemptsThereWere) {
  absl::StatusOr<Lock> held = locks_.Acquire("a");
  EXPECT_THAT(Ask("a", {.max_attempts = 1})->status().message(),
              HasSubstr("max_attempts are used up (1)"));
  EXPECT_THAT(AskAll({"a", "b"}, {.max_attempts = 1})->status().message(),
              HasSubstr("max_attempts are used up (1)"));
}

// Over a link on which no event arrives, so that a request learns only by asking again.
class PollingTest : public PoliciesTest {
 protected:
  PollingTest()
      : link_(std::make_shared<FaultInjectingProtocol>(
            backend_, FaultInjectingOptions{.clock = &clock_, .faults = {.drop_event = 1}})) {}

  LockManager NewPollingManager(LockManagerOptions options = {}) {
    options.clock = &clock_;
    options.random_seed = 1;
    return *LockManager::Create(link_, std::move(options));
  }

  // When the request ended, counted from now; infinite if it has not after a minute.
  absl::Duration TimeToSettle(const std::shared_ptr<Pending>& pending) {
    const absl::Time begin = clock_.Now();
    while (!pending->result && clock_.Now() - begin < absl::Minutes(1)) {
      clock_.AdvanceBy(absl::Milliseconds(100));
    }
    return pending->result ? clock_.Now() - begin : absl::InfiniteDuration();
  }

  std::shared_ptr<FaultInjectingProtocol> link_;
};

TEST_F(PollingTest, AttemptsAreCountedEachTimeThatTheBackendDenies) {
  absl::StatusOr<Lock> held = locks_.Acquire("a");
  LockManager locks = NewPollingManager({.retry = FixedDelay(absl::Seconds(1))});
  for (const int attempts : {1, 2, 3, 5}) {
    auto pending = Ask(locks, "a", {.max_attempts = attempts});
    const absl::Duration settled = TimeToSettle(pending);
    EXPECT_GE(settled, absl::Seconds(attempts - 1));
    EXPECT_LE(settled, absl::Seconds(attempts - 1) + absl::Milliseconds(200));
    EXPECT_EQ(ReasonOf(pending->status()), Reason::kAttemptsExhausted);
    EXPECT_THAT(pending->status().message(), HasSubstr("'a'"));
    EXPECT_THAT(pending->status().message(), HasSubstr(absl::StrCat("(", attempts, ")")));
  }
}

TEST_F(PollingTest, PollsOfAReservationAreNoAttempts) {
  absl::StatusOr<Lock> held = locks_.Acquire("a");
  LockManager locks = NewPollingManager();
  auto thief = Ask(locks, "a", {.priority = 1, .max_attempts = 1});
  const int64_t before = link_->steps();
  EXPECT_EQ(TimeToSettle(thief), absl::InfiniteDuration());
  EXPECT_GT(link_->steps(), before + 10) << "it polls";
  ASSERT_TRUE(held->Release().ok());
  EXPECT_LT(TimeToSettle(thief), absl::Seconds(30));
  EXPECT_TRUE(thief->granted());
}

TEST_F(PollingTest, TheSeedMakesTheJitterRepeatable) {
  absl::StatusOr<Lock> held = locks_.Acquire("a");
  const auto time_with = [&](uint64_t seed) {
    LockManager locks = *LockManager::Create(link_, {.clock = &clock_, .random_seed = seed});
    const absl::Time begin = clock_.Now();
    auto pending = Ask(locks, "a", {.max_attempts = 6});
    while (!pending->result) clock_.AdvanceBy(absl::Milliseconds(1));
    return clock_.Now() - begin;
  };
  const absl::Duration once = time_with(1);
  EXPECT_EQ(time_with(1), once);
  EXPECT_NE(time_with(2), once);
}

TEST_F(PollingTest, TheRetryPolicySaysWhenTheBackendIsAskedAgain) {
  const auto time_with = [&](std::shared_ptr<const RetryPolicy> retry) {
    LockManager locks = NewPollingManager({.retry = std::move(retry)});
    std::optional<absl::StatusOr<Lock>> held = locks_.Acquire("a");
    auto pending = Ask(locks, "a");
    clock_.AdvanceBy(absl::Milliseconds(10));
    held.reset();
    const absl::Duration settled = TimeToSettle(pending);
    pending->result.reset();
    clock_.AdvanceBy(absl::Milliseconds(1));  // For the release to arrive.
    return settled;
  };
  EXPECT_LE(time_with(FixedDelay(absl::Seconds(1))), absl::Milliseconds(1100));
  const absl::Duration slow = time_with(FixedDelay(absl::Seconds(20)));
  EXPECT_GT(slow, absl::Seconds(19));
  EXPECT_LE(slow, absl::Seconds(20));
  EXPECT_EQ(time_with(NoRetry()), absl::InfiniteDuration()) << "nobody wakes it on this link";
}

TEST_F(PollingTest, ARequestMayOverrideTheRetryOfItsManager) {
  LockManager locks = NewPollingManager({.retry = NoRetry()});
  std::optional<absl::StatusOr<Lock>> held = locks_.Acquire("a");
  auto pending = Ask(locks, "a", {.retry = FixedDelay(absl::Seconds(1))});
  clock_.AdvanceBy(absl::Milliseconds(10));
  held.reset();
  EXPECT_LE(TimeToSettle(pending), absl::Milliseconds(1100));
}

// Each delay is a second longer than the one before.
class SlowerAndSlower : public RetryPolicy {
 public:
  absl::Duration Delay(const RetryContext& context) const override {
    return absl::Seconds(context.attempts);
  }
};

TEST_F(PollingTest, ARetryPolicyOfOnesOwnTakesOneSmallClass) {
  absl::StatusOr<Lock> held = locks_.Acquire("a");
  LockManager locks = NewPollingManager({.retry = std::make_shared<SlowerAndSlower>()});
  auto pending = Ask(locks, "a", {.max_attempts = 4});
  const absl::Duration settled = TimeToSettle(pending);
  EXPECT_GE(settled, absl::Seconds(1 + 2 + 3));
  EXPECT_LE(settled, absl::Seconds(1 + 2 + 3) + absl::Milliseconds(200));
}

// The news of a release is on its way to a waiter of another process: may a newcomer take the lock?
TEST_F(PoliciesTest, BargingLetsANewcomerInBeforeTheOneThatIsWoken) {
  for (const bool barging : {false, true}) {
    const auto link = std::make_shared<FaultInjectingProtocol>(
        backend_, FaultInjectingOptions{.clock = &clock_,
                                        .faults = {.min_delay = absl::Milliseconds(5),
                                                   .max_delay = absl::Milliseconds(5)},
                                        .in_order = true});
    LockManager far = *LockManager::Create(
        link, {.clock = &clock_, .queue = PriorityQueue({.barging = barging})});
    const std::string name = barging ? "barging" : "in order";
    absl::StatusOr<Lock> held = locks_.Acquire(name);
    auto waiter = Ask(far, name);
    clock_.AdvanceBy(absl::Milliseconds(50));
    EXPECT_TRUE(held->Release().ok());
    absl::StatusOr<Lock> newcomer = locks_.TryAcquire(name);
    EXPECT_EQ(newcomer.ok(), barging) << newcomer.status();
    newcomer = absl::CancelledError();
    clock_.AdvanceBy(absl::Seconds(10));
    EXPECT_TRUE(waiter->granted());
  }
}

// Keeps events from waiters when it is told to.
class HoldsEventsBack : public LockingProtocol {
 public:
  explicit HoldsEventsBack(std::shared_ptr<LockingProtocol> inner) : inner_(std::move(inner)) {}

  void HoldBack(bool hold_back) { holds_back_ = hold_back; }
  // Tells them what was kept from them.
  void TellAll() {
    for (auto& event : std::exchange(events_, {})) event();
  }

  void Obtain(const ObtainRequest& request, ObtainCallback done) override {
    inner_->Obtain(request, std::move(done));
  }
  void Release(const HoldRef& hold, ReleaseCallback done) override {
    inner_->Release(hold, std::move(done));
  }
  void Extend(const HoldRef& hold, absl::Duration lease, ExtendCallback done) override {
    inner_->Extend(hold, lease, std::move(done));
  }
  Subscription Watch(const WatchRequest& request, WatchCallback on_event) override {
    if (request.role == WatchRole::kHolder) return inner_->Watch(request, std::move(on_event));
    auto tell = std::make_shared<WatchCallback>(std::move(on_event));
    return inner_->Watch(request, [this, tell](const WatchEvent& event) {
      if (holds_back_) {
        events_.push_back([tell, event] { (*tell)(event); });
      } else {
        (*tell)(event);
      }
    });
  }
  const BackendCapabilities& capabilities() const override { return inner_->capabilities(); }
  void Inspect(std::optional<ResourceName> resource,
               absl::FunctionRef<void(const ResourceState&)> visitor) const override {
    inner_->Inspect(resource, visitor);
  }

 private:
  const std::shared_ptr<LockingProtocol> inner_;
  bool holds_back_ = false;
  std::vector<std::function<void()>> events_;
};

// A blocked thread that is woken competes for the lock when it runs, and may have lost its place
// with the backend by then. Here it is woken while it is busy with somebody else's callback. If it
// then reserves, it must hear that the holder has left, or it sleeps for ever, and so does this
// test.
TEST_F(PoliciesTest, BargingAWaiterThatReservesAfterItLostItsPlaceIsWokenAllTheSame) {
  const auto backend = std::make_shared<HoldsEventsBack>(backend_);
  LockManager locks =
      *LockManager::Create(backend, {.clock = &clock_,
                                     .admission = ShedLowestPriority({.per_resource = 1}),
                                     .queue = PriorityQueue({.barging = true})});
  absl::StatusOr<Lock> held = locks.Acquire("a", {.priority = 9});
  absl::StatusOr<Lock> preempted;
  std::shared_ptr<Pending> jumper;
  const auto while_it_is_woken = [&](const absl::StatusOr<Lock>& shed) {
    EXPECT_EQ(ReasonOf(shed.status()), Reason::kTooManyPending);
    EXPECT_TRUE(held->Release().ok());  // Wakes the blocked thread, which runs this.
    absl::StatusOr<Lock> equal = locks.TryAcquire("a", {.priority = 5});
    ASSERT_TRUE(equal.ok()) << equal.status();
    jumper = Ask(locks, "a", {.priority = 5, .skip_queue = true, .admission = AdmitAll()});
    backend->HoldBack(true);
    EXPECT_TRUE(equal->Release().ok());  // Wakes the jumper, but that does not hear of it yet.
    backend->HoldBack(false);
    preempted = locks.TryAcquire("a");
    ASSERT_TRUE(preempted.ok()) << preempted.status();
    preempted->OnYieldRequested([&] { EXPECT_TRUE(preempted->Release().ok()); });
  };
  locks.AcquireAsync("a", {}, while_it_is_woken);
  // Sheds the one above, whose callback runs on this thread.
  absl::StatusOr<Lock> blocked = locks.Acquire("a", {.priority = 5});
  EXPECT_TRUE(blocked.ok()) << blocked.status();
  EXPECT_EQ(preempted->state(), LockState::kReleased);
  EXPECT_FALSE(jumper->result);
  EXPECT_TRUE(blocked->Release().ok());
  backend->TellAll();
  EXPECT_TRUE(jumper->granted()) << jumper->status();
}

// Work in the background may not wait at all.
class NoBackgroundWork : public AdmissionPolicy {
 public:
  Admission Decide(const AdmissionContext& context) const override {
    return context.priority < 0 ? Admission::kReject : Admission::kAdmit;
  }
};

TEST_F(PoliciesTest, AnAdmissionPolicyOfOnesOwnTakesOneSmallClass) {
  LockManager locks = NewManager({.admission = std::make_shared<NoBackgroundWork>()});
  absl::StatusOr<Lock> held = locks.Acquire("a", {.priority = 1});
  EXPECT_EQ(ReasonOf(Ask(locks, "a", {.priority = -1})->status()), Reason::kTooManyPending);
  EXPECT_FALSE(Ask(locks, "a")->result);
  EXPECT_FALSE(Ask(locks, "a", {.priority = -1, .admission = AdmitAll()})->result);
}

TEST_F(PoliciesTest, ATimeoutOfNothingDoesNotWait) {
  absl::StatusOr<Lock> held = locks_.Acquire("a");
  EXPECT_EQ(ReasonOf(locks_.Acquire("a", {.acquire_timeout = absl::ZeroDuration()}).status()),
            Reason::kAcquireTimeout);
  EXPECT_TRUE(locks_.Acquire("b", {.acquire_timeout = absl::ZeroDuration()}).ok());
}

TEST_F(PoliciesTest, AutoRenewKeepsAFiniteLease) {
  absl::StatusOr<Lock> kept = locks_.Acquire("a", {.lease = absl::Seconds(5), .auto_renew = true});
  absl::StatusOr<Lock> left = locks_.Acquire("b", {.lease = absl::Seconds(5)});
  clock_.AdvanceBy(absl::Minutes(1));
  EXPECT_EQ(kept->state(), LockState::kHeld);
  EXPECT_EQ(left->state(), LockState::kExpired);
}

TEST_F(PoliciesTest, MaxHoldEndsAHoldWithoutALease) {
  absl::StatusOr<Lock> held = locks_.Acquire("a", {.max_hold = absl::Seconds(7)});
  EXPECT_EQ(held->remaining(), absl::Seconds(7));
  auto next = Ask("a");
  clock_.AdvanceBy(absl::Seconds(7));
  EXPECT_EQ(held->state(), LockState::kExpired);
  EXPECT_TRUE(next->granted());
}

// ---- Looking in ----

TEST_F(PoliciesTest, WhatIsFreeForOneWhoWaitedElsewhereIsBusy) {
  const auto link = std::make_shared<FaultInjectingProtocol>(
      backend_, FaultInjectingOptions{.clock = &clock_,
                                      .faults = {.min_delay = absl::Milliseconds(5),
                                                 .max_delay = absl::Milliseconds(5)}});
  LockManager far = *LockManager::Create(link, {.clock = &clock_});
  absl::StatusOr<Lock> held = locks_.Acquire("a");
  auto waiter = Ask(far, "a");
  clock_.AdvanceBy(absl::Milliseconds(50));
  EXPECT_TRUE(held->Release().ok());
  // Nobody holds it until the waiter has heard, but a newcomer would not get it.
  EXPECT_FALSE(locks_.TryAcquire("a").ok());
  EXPECT_TRUE(locks_.IsBusy("a"));
  EXPECT_TRUE(locks_.IsBusy());
  EXPECT_FALSE(locks_.IsBusy("b"));
  clock_.AdvanceBy(absl::Milliseconds(50));
  ASSERT_TRUE(waiter->granted());
  waiter->result.reset();
  clock_.AdvanceBy(absl::Milliseconds(50));
  EXPECT_FALSE(locks_.IsBusy("a"));
  EXPECT_FALSE(locks_.IsBusy());
}

TEST_F(PoliciesTest, ASnapshotShowsTheHolderTheSuccessorAndWhoWaits) {
  absl::StatusOr<Lock> held =
      locks_.Acquire("a", {.owner = "bob", .priority = 3, .lease = absl::Seconds(60)});
  clock_.AdvanceBy(absl::Seconds(10));
  auto low = Ask("a", {.owner = "low", .priority = 1});
  auto thief = Ask("a", {.owner = "thief", .priority = 9});
  clock_.AdvanceBy(absl::Seconds(5));
  const std::vector<ResourceSnapshot> all = locks_.Snapshot();
  ASSERT_EQ(all.size(), 1u);
  EXPECT_EQ(all[0].state.resource, "a");
  EXPECT_EQ(all[0].state.holder_owner, "bob");
  EXPECT_EQ(all[0].state.holder_priority, 3);
  EXPECT_EQ(all[0].state.age, absl::Seconds(15));
  EXPECT_EQ(all[0].state.remaining_lease, absl::Seconds(45));
  EXPECT_TRUE(all[0].state.reserved);
  EXPECT_EQ(all[0].state.successor_owner, "thief");
  EXPECT_EQ(all[0].state.successor_priority, 9);
  ASSERT_EQ(all[0].waiters.size(), 2u);
  EXPECT_EQ(all[0].waiters[0].owner, "thief");
  EXPECT_TRUE(all[0].waiters[0].reserved);
  EXPECT_EQ(all[0].waiters[1].owner, "low");
  EXPECT_EQ(all[0].waiters[1].waited, absl::Seconds(5));
}

// ---- Values that make no sense, and what options do together ----

class NegativeGrace : public PreemptionPolicy {
 public:
  PreemptionDecision Decide(Priority priority) const override {
    return {.reserve_below = priority, .grace = -absl::Seconds(5)};
  }
};

TEST_F(PoliciesTest, ANegativeGraceOfAPolicyIsNone) {
  absl::StatusOr<Lock> victim = locks_.Acquire("a");
  auto thief = Ask("a", {.priority = 1, .preemption = std::make_shared<NegativeGrace>()});
  EXPECT_TRUE(thief->granted());
  EXPECT_EQ(victim->state(), LockState::kStolen);
}

TEST_F(PoliciesTest, ANegativeLimitAdmitsNobody) {
  absl::StatusOr<Lock> held = locks_.Acquire("a");
  for (const PendingLimits limits : {PendingLimits{.per_resource = -1}, {.in_total = -1}}) {
    for (const auto& policy : {LimitPending(limits), ShedLowestPriority(limits)}) {
      auto refused = Ask("a", {.admission = policy});
      EXPECT_EQ(ReasonOf(refused->status()), Reason::kTooManyPending) << refused->status();
      EXPECT_THAT(refused->status().message(), HasSubstr(" is 0)"));
    }
  }
}

TEST_F(PoliciesTest, AGraceBeginsWhenItsRequestReserves) {
  absl::StatusOr<Lock> victim = locks_.Acquire("a");
  auto first = Ask("a", {.priority = 1, .preemption_grace = absl::Seconds(5)});
  clock_.AdvanceBy(absl::Seconds(4));
  auto higher = Ask("a", {.priority = 2, .preemption_grace = absl::Seconds(5)});
  clock_.AdvanceBy(absl::Seconds(4));
  EXPECT_FALSE(higher->result);
  EXPECT_FALSE(first->result);
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_TRUE(higher->granted());
}

TEST_F(PoliciesTest, WithOneAttemptARequestThatMayPreemptWaitsForTheHolderToYield) {
  absl::StatusOr<Lock> victim = locks_.Acquire("a");
  auto denied = Ask("a", {.max_attempts = 1});
  EXPECT_EQ(ReasonOf(denied->status()), Reason::kAttemptsExhausted);
  auto thief = Ask("a", {.priority = 1, .max_attempts = 1});
  EXPECT_FALSE(thief->result);
  EXPECT_TRUE(victim->Release().ok());
  EXPECT_TRUE(thief->granted());
}

TEST_F(PoliciesTest, WhatAnInnerHandleAskedForIsOfTheHoldToItsEnd) {
  absl::StatusOr<Lock> outer = locks_.Acquire("a", {.owner = "me"});
  EXPECT_TRUE(locks_.Acquire("a", {.owner = "me", .priority = 5, .preemptible = false}).ok());
  EXPECT_EQ(locks_.Snapshot()[0].state.handles, 1);
  EXPECT_EQ(locks_.Snapshot()[0].state.holder_priority, 5);
  auto thief = Ask("a", {.priority = 9});
  EXPECT_EQ(outer->state(), LockState::kHeld);
  EXPECT_TRUE(outer->Release().ok());
  EXPECT_TRUE(thief->granted());
}

TEST_F(PoliciesTest, ANonPreemptibleScopeIsOfOneHandle) {
  absl::StatusOr<Lock> outer = locks_.Acquire("a", {.owner = "me"});
  absl::StatusOr<Lock> inner = locks_.Acquire("a", {.owner = "me"});
  const NonPreemptibleScope scope(*inner);
  auto thief = Ask("a", {.priority = 9});
  EXPECT_FALSE(inner->stop_token().stop_requested());
  EXPECT_TRUE(outer->stop_token().stop_requested());
}

TEST_F(PoliciesTest, AnExtensionGoesAsFarAsMaxHoldAllows) {
  absl::StatusOr<Lock> lock =
      locks_.Acquire("a", {.lease = absl::Seconds(1), .max_hold = absl::Seconds(4)});
  EXPECT_TRUE(lock->Extend(absl::Seconds(2)).ok());
  EXPECT_EQ(lock->remaining(), absl::Seconds(2));
  EXPECT_TRUE(lock->Extend(absl::Seconds(100)).ok());
  EXPECT_EQ(lock->remaining(), absl::Seconds(4));
  EXPECT_TRUE(lock->Extend(absl::InfiniteDuration()).ok());
  EXPECT_EQ(lock->remaining(), absl::Seconds(4));
  absl::StatusOr<LockSet> set = locks_.AcquireAll({"b", "c"}, {.max_hold = absl::Seconds(4)});
  EXPECT_TRUE(set->Extend(absl::Seconds(100)).ok());
  EXPECT_EQ(set->remaining(), absl::Seconds(4));
  clock_.AdvanceBy(absl::Seconds(4));
  EXPECT_EQ(lock->state(), LockState::kExpired);
  EXPECT_EQ(set->state(), LockState::kExpired);
  EXPECT_EQ(ReasonOf(lock->Extend(absl::Seconds(1))), Reason::kExpired);
}

TEST_F(PoliciesTest, AWaitWithATimeoutMayCloseACircle) {
  absl::StatusOr<Lock> ann = locks_.Acquire("hers", {.owner = "ann"});
  absl::StatusOr<Lock> bob = locks_.Acquire("his", {.owner = "bob", .lease = absl::Minutes(1)});
  auto bob_waits = Ask("hers", {.owner = "bob", .acquire_timeout = absl::Seconds(1)});
  auto ann_waits = Ask("his", {.owner = "ann", .acquire_timeout = absl::Seconds(1)});
  EXPECT_EQ(ReasonOf(ann_waits->status()), Reason::kDeadlock);
  EXPECT_FALSE(bob_waits->result);
}

}  // namespace
}  // namespace latchkey

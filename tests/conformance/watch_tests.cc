// Events: what a holder and a waiter hear, when, in which order, and what they may do in a
// callback.
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "latchkey/core/lease.h"
#include "latchkey/core/protocol/locking_protocol.h"
#include "latchkey/tests/conformance/conformance.h"

namespace latchkey {
namespace {

using enum WatchEventKind;

#define NEEDS_EVENTS() \
  if (!GetParam().events) GTEST_SKIP() << "events are not expected on this backend"

// Without them a waiter polls, and finds out for itself.
#define NEEDS_RELIABLE_EVENTS() \
  NEEDS_EVENTS();               \
  if (!capabilities().reliable_events) GTEST_SKIP() << "events are not reliable on this backend"

#define NEEDS_ORDER() \
  NEEDS_EVENTS();     \
  if (!capabilities().keeps_order) GTEST_SKIP() << "keeps no order among waiters"

// ---- To the holder
// -------------------------------------------------------------------------------

TEST_P(ConformanceTest, AHolderIsToldToYield) {
  NEEDS_EVENTS();
  Attempt holder = Party("holder", 1);
  ASSERT_TRUE(Obtains(holder));
  const Watched watched = WatchAsHolder(holder);
  EXPECT_TRUE(HeardNothing(watched));
  Attempt thief = Thief("thief", 7);
  ASSERT_TRUE(Reserves(thief));
  const WatchEvent event = NextEvent(watched, kYieldRequested);
  EXPECT_EQ(event.thief_priority, 7);
  EXPECT_EQ(event.grace_remaining, absl::InfiniteDuration());
}

TEST_P(ConformanceTest, AHolderIsToldTheEndOfTheGrace) {
  NEEDS_EVENTS();
  if (!capabilities().forced_handover) GTEST_SKIP() << "no forced hand-over";
  Attempt holder = Party("holder", 1);
  ASSERT_TRUE(Obtains(holder));
  const Watched watched = WatchAsHolder(holder);
  Attempt thief = Thief("thief", 7);
  thief.request.grace = Units(20);
  ASSERT_TRUE(Reserves(thief));
  ExpectRemaining(NextEvent(watched, kYieldRequested).grace_remaining, Units(20));
}

TEST_P(ConformanceTest, AHolderThatSubscribesLateIsToldToYieldAtOnce) {
  NEEDS_EVENTS();
  Attempt holder = Party("holder", 1);
  ASSERT_TRUE(Obtains(holder));
  Attempt thief = Thief("thief", 7);
  thief.request.grace = capabilities().forced_handover ? std::optional(Units(20)) : std::nullopt;
  ASSERT_TRUE(Reserves(thief));
  Advance(Units(1));
  const Watched watched = WatchAsHolder(holder);
  const WatchEvent event = NextEvent(watched, kYieldRequested);
  EXPECT_EQ(event.thief_priority, 7);
  if (capabilities().forced_handover) ExpectRemaining(event.grace_remaining, Units(19));
}

TEST_P(ConformanceTest, EveryHandleOfTheHolderIsToldToYield) {
  NEEDS_EVENTS();
  Attempt outer = Party("holder", 1);
  Attempt inner = Party("holder", 1);
  ASSERT_TRUE(Obtains(outer));
  Obtain(inner);
  const Watched watched_outer = WatchAsHolder(outer);
  const Watched watched_inner = WatchAsHolder(inner);
  Attempt thief = Thief("thief", 7);
  ASSERT_TRUE(Reserves(thief));
  NextEvent(watched_outer, kYieldRequested);
  NextEvent(watched_inner, kYieldRequested);
}

TEST_P(ConformanceTest, AHolderIsToldThatTheThiefWithdrew) {
  NEEDS_EVENTS();
  Attempt holder = Party("holder", 1);
  ASSERT_TRUE(Obtains(holder));
  const Watched watched = WatchAsHolder(holder);
  Attempt thief = Thief("thief", 7);
  ASSERT_TRUE(Reserves(thief));
  NextEvent(watched, kYieldRequested);
  Release(thief);
  NextEvent(watched, kYieldWithdrawn);
  EXPECT_EQ(Count(watched, kHoldEnded), 0);
  Attempt next = Thief("next", 7);
  ASSERT_TRUE(Reserves(next));
  NextEvent(watched, kYieldRequested);
}

TEST_P(ConformanceTest, AHolderIsToldThatTheReservationRanOut) {
  NEEDS_EVENTS();
  Attempt holder = Party("holder", 1);
  ASSERT_TRUE(Obtains(holder));
  const Watched watched = WatchAsHolder(holder);
  Attempt thief = Thief("thief", 7);
  thief.request.reservation_lease = Units(1);
  ASSERT_TRUE(Reserves(thief));
  NextEvent(watched, kYieldRequested);
  Advance(Units(1));  // Nobody takes a step.
  NextEvent(watched, kYieldWithdrawn);
}

TEST_P(ConformanceTest, AHolderIsToldThatItsOwnReentryEndedTheReservation) {
  NEEDS_EVENTS();
  Attempt holder = Party("holder", 1);
  ASSERT_TRUE(Obtains(holder));
  const Watched watched = WatchAsHolder(holder);
  Attempt thief = Thief("thief", 7);
  ASSERT_TRUE(Reserves(thief));
  NextEvent(watched, kYieldRequested);
  Attempt raise = Party("holder", 7);
  Obtain(raise);
  NextEvent(watched, kYieldWithdrawn);
}

TEST_P(ConformanceTest, AHolderIsToldThatItsReentryThatIsNotPreemptibleEndedTheReservation) {
  NEEDS_EVENTS();
  Attempt holder = Party("holder", 1);
  ASSERT_TRUE(Obtains(holder));
  const Watched watched = WatchAsHolder(holder);
  Attempt thief = Thief("thief", 7);
  ASSERT_TRUE(Reserves(thief));
  NextEvent(watched, kYieldRequested);
  Attempt inner = Party("holder", 1);
  inner.request.preemptible = false;
  Obtain(inner);
  NextEvent(watched, kYieldWithdrawn);
}

TEST_P(ConformanceTest, AHolderThatRepeatsItselfNotPreemptibleIsToldThatTheReservationIsGone) {
  NEEDS_EVENTS();
  Attempt holder = Party("holder", 1);
  ASSERT_TRUE(Obtains(holder));
  const Watched watched = WatchAsHolder(holder);
  Attempt thief = Thief("thief", 7);
  ASSERT_TRUE(Reserves(thief));
  NextEvent(watched, kYieldRequested);
  holder.request.preemptible = false;
  EXPECT_EQ(Obtain(holder).outcome, ObtainOutcome::kReentered);
  NextEvent(watched, kYieldWithdrawn);
  EXPECT_TRUE(HeardNothing(watched)) << "it has not lost its hold";
  EXPECT_TRUE(Holds(holder));
}

TEST_P(ConformanceTest, AHolderIsToldOfAHigherThiefInPlaceOfTheFirst) {
  NEEDS_EVENTS();
  Attempt holder = Party("holder", 1);
  ASSERT_TRUE(Obtains(holder));
  const Watched watched = WatchAsHolder(holder);
  Attempt low = Thief("low", 2);
  Attempt high = Thief("high", 3);
  ASSERT_TRUE(Reserves(low));
  EXPECT_EQ(NextEvent(watched, kYieldRequested).thief_priority, 2);
  ASSERT_TRUE(Reserves(high));
  EXPECT_EQ(NextEvent(watched, kYieldRequested).thief_priority, 3);
  EXPECT_EQ(Count(watched, kYieldWithdrawn), 0) << "somebody still stands there";
}

TEST_P(ConformanceTest, AHolderIsToldThatItsLeaseIsOver) {
  NEEDS_EVENTS();
  Attempt holder = Party("holder", 1);
  holder.request.lease = Units(2);
  ASSERT_TRUE(Obtains(holder));
  const Watched watched = WatchAsHolder(holder);
  if (exact()) {
    Advance(Units(1));
    EXPECT_TRUE(HeardNothing(watched));
  }
  Advance(Units(2));  // Nobody takes a step.
  EXPECT_EQ(NextEvent(watched, kHoldEnded).why, HoldEnd::kExpired);
}

TEST_P(ConformanceTest, AHolderThatExtendsIsNotToldThatItsLeaseIsOver) {
  NEEDS_EVENTS();
  Attempt holder = Party("holder", 1);
  holder.request.lease = Units(3);
  ASSERT_TRUE(Obtains(holder));
  const Watched watched = WatchAsHolder(holder);
  for (int i = 0; i < 4; ++i) {
    Extend(holder, Units(30));
    Advance(Units(1));
  }
  EXPECT_TRUE(HeardNothing(watched));
}

TEST_P(ConformanceTest, AHolderIsToldThatItWasTakenOverByForce) {
  NEEDS_EVENTS();
  if (!capabilities().forced_handover) GTEST_SKIP() << "no forced hand-over";
  Attempt holder = Party("holder", 1);
  ASSERT_TRUE(Obtains(holder));
  const Watched watched = WatchAsHolder(holder);
  Attempt thief = Thief("thief", 7);
  thief.request.grace = absl::ZeroDuration();
  ASSERT_TRUE(Reserves(thief));
  ASSERT_TRUE(Obtains(thief));
  EXPECT_EQ(NextEvent(watched, kHoldEnded).why, HoldEnd::kStolen);
}

TEST_P(ConformanceTest, AHolderThatSubscribesAfterItsLossIsToldAtOnce) {
  NEEDS_EVENTS();
  Attempt holder = Party("holder", 1);
  holder.request.lease = Units(1);
  ASSERT_TRUE(Obtains(holder));
  Advance(Units(1));
  Attempt next = Party("next");
  ASSERT_TRUE(Obtains(next));
  const Watched late = WatchAsHolder(holder);
  NextEvent(late, kHoldEnded);
}

TEST_P(ConformanceTest, AHolderThatLostItsHoldIsNoWaiter) {
  NEEDS_EVENTS();
  Attempt holder = Party("holder", 9);
  holder.request.lease = Units(1);
  ASSERT_TRUE(Obtains(holder));
  Advance(Units(1));
  const Watched lost = WatchAsHolder(holder);
  NextEvent(lost, kHoldEnded);
  // Free, and nobody waits: nothing is kept for the one that lost it.
  Attempt anyone = Party("anyone", 0);
  EXPECT_TRUE(Obtains(anyone));
  Release(anyone);
  EXPECT_EQ(Count(lost, kHoldEnded), 0) << "it is not woken either";
}

TEST_P(ConformanceTest, AHoldersOwnReleaseIsNoNewsToIt) {
  NEEDS_EVENTS();
  Attempt outer = Party("holder", 1);
  Attempt inner = Party("holder", 1);
  ASSERT_TRUE(Obtains(outer));
  Obtain(inner);
  const Watched watched_outer = WatchAsHolder(outer);
  const Watched watched_inner = WatchAsHolder(inner);
  Release(inner);
  Release(outer);
  Attempt next = Party("next");
  ASSERT_TRUE(Obtains(next));
  Release(next);
  EXPECT_TRUE(HeardNothing(watched_inner));
  EXPECT_TRUE(HeardNothing(watched_outer));
}

TEST_P(ConformanceTest, EqualPriorityDoesNotDisturbTheHolder) {
  NEEDS_EVENTS();
  Attempt holder = Party("holder", 3);
  ASSERT_TRUE(Obtains(holder));
  const Watched watched = WatchAsHolder(holder);
  Attempt equal = Thief("equal", 3);
  EXPECT_TRUE(IsDenied(equal));
  const Watched waiting = WatchAsWaiter(equal);
  EXPECT_TRUE(IsDenied(equal));
  EXPECT_TRUE(HeardNothing(watched));
  EXPECT_TRUE(HeardNothing(waiting));
}

TEST_P(ConformanceTest, AHintMayStandForTheResourceOfAWatch) {
  NEEDS_EVENTS();
  if (!capabilities().hint_identifies_hold) GTEST_SKIP() << "hints do not identify holds";
  Attempt holder = Party("holder", 1);
  ASSERT_TRUE(Obtains(holder));
  const Watched watched =
      WatchWith(*holder.backend,
                {.acquisition = holder.id(), .role = WatchRole::kHolder, .hint = holder.hint});
  Attempt thief = Thief("thief", 7);
  ASSERT_TRUE(Reserves(thief));
  NextEvent(watched, kYieldRequested);
}

TEST_P(ConformanceTest, AWatchGoesOnWhenTheWaiterHasBecomeTheHolder) {
  NEEDS_EVENTS();
  Attempt holder = Party("holder", 1);
  Attempt waiter = Party("waiter", 1);
  ASSERT_TRUE(Obtains(holder));
  const Watched watched = WatchAsWaiter(waiter);
  Release(holder);
  NextEvent(watched, kHoldEnded);
  ASSERT_TRUE(Obtains(waiter));
  Attempt thief = Thief("thief", 7);
  ASSERT_TRUE(Reserves(thief));
  NextEvent(watched, kYieldRequested);
}

// ---- To those who wait
// ---------------------------------------------------------------------------

TEST_P(ConformanceTest, AWaiterIsToldThatTheHolderLeft) {
  NEEDS_EVENTS();
  Attempt holder = Party("holder");
  Attempt waiter = Party("waiter");
  ASSERT_TRUE(Obtains(holder));
  ASSERT_TRUE(IsDenied(waiter));
  const Watched watched = WatchAsWaiter(waiter);
  EXPECT_TRUE(HeardNothing(watched));
  Release(holder);
  EXPECT_EQ(NextEvent(watched, kHoldEnded).why, HoldEnd::kReleased);
  EXPECT_TRUE(Obtains(waiter));
}

TEST_P(ConformanceTest, AWaiterIsNotToldBeforeTheLastHandleIsGone) {
  NEEDS_EVENTS();
  Attempt outer = Party("holder");
  Attempt inner = Party("holder");
  ASSERT_TRUE(Obtains(outer));
  Obtain(inner);
  Attempt waiter = Party("waiter");
  const Watched watched = WatchAsWaiter(waiter);
  Release(outer);
  EXPECT_TRUE(HeardNothing(watched));
  Release(inner);
  NextEvent(watched, kHoldEnded);
}

TEST_P(ConformanceTest, AWaiterIsToldThatTheLeaseIsOverAlthoughNobodyTakesAStep) {
  NEEDS_EVENTS();
  Attempt holder = Party("holder");
  holder.request.lease = Units(2);
  Attempt waiter = Party("waiter");
  ASSERT_TRUE(Obtains(holder));
  const Watched watched = WatchAsWaiter(waiter);
  Advance(Units(2));
  EXPECT_EQ(NextEvent(watched, kHoldEnded).why, HoldEnd::kExpired);
  EXPECT_TRUE(Obtains(waiter));
}

TEST_P(ConformanceTest, AWaiterIsNotToldOfALeaseThatWasExtended) {
  NEEDS_EVENTS();
  Attempt holder = Party("holder");
  holder.request.lease = Units(3);
  Attempt waiter = Party("waiter");
  ASSERT_TRUE(Obtains(holder));
  const Watched watched = WatchAsWaiter(waiter);
  Extend(holder, Units(60));
  Advance(Units(4));
  EXPECT_TRUE(HeardNothing(watched));
  Advance(Units(60));
  EXPECT_EQ(NextEvent(watched, kHoldEnded).why, HoldEnd::kExpired);
}

TEST_P(ConformanceTest, AWaiterThatSubscribesLateIsToldAtOnce) {
  NEEDS_EVENTS();
  Attempt holder = Party("holder");
  Attempt waiter = Party("waiter");
  ASSERT_TRUE(Obtains(holder));
  ASSERT_TRUE(IsDenied(waiter));
  Release(holder);  // Between its look and its watch.
  const Watched watched = WatchAsWaiter(waiter);
  NextEvent(watched, kHoldEnded);
  EXPECT_TRUE(Obtains(waiter));
}

TEST_P(ConformanceTest, AWaiterThatSubscribesAfterTheLeaseWasOverIsToldAtOnce) {
  NEEDS_EVENTS();
  Attempt holder = Party("holder");
  holder.request.lease = Units(1);
  Attempt waiter = Party("waiter");
  ASSERT_TRUE(Obtains(holder));
  Advance(Units(1));
  const Watched watched = WatchAsWaiter(waiter);
  NextEvent(watched, kHoldEnded);
  EXPECT_TRUE(Obtains(waiter));
}

TEST_P(ConformanceTest, AWaitingThiefIsToldThatTheHolderLeftAndNobodyElseIs) {
  NEEDS_EVENTS();
  Attempt holder = Party("holder", 1);
  Attempt thief = Thief("thief", 2);
  Attempt other = Party("other", 2);
  ASSERT_TRUE(Obtains(holder));
  const Watched other_watched = WatchAsWaiter(other);
  ASSERT_TRUE(Reserves(thief));
  const Watched thief_watched = WatchAsWaiter(thief);
  EXPECT_TRUE(HeardNothing(thief_watched));
  Release(holder);
  EXPECT_EQ(NextEvent(thief_watched, kHoldEnded).why, HoldEnd::kReleased);
  EXPECT_TRUE(HeardNothing(other_watched)) << "the reservation comes before it";
  EXPECT_TRUE(Obtains(thief));
  Release(thief);
  NextEvent(other_watched, kHoldEnded);
}

TEST_P(ConformanceTest, ASuccessorThatSubscribesAfterTheHolderLeftIsToldAtOnce) {
  NEEDS_EVENTS();
  Attempt holder = Party("holder", 1);
  Attempt thief = Thief("thief", 2);
  ASSERT_TRUE(Obtains(holder));
  ASSERT_TRUE(Reserves(thief));
  Release(holder);
  const Watched watched = WatchAsWaiter(thief);
  NextEvent(watched, kHoldEnded);
  EXPECT_TRUE(Obtains(thief));
}

TEST_P(ConformanceTest, AThiefIsToldThatItWasDisplaced) {
  NEEDS_EVENTS();
  Attempt holder = Party("holder", 1);
  Attempt low = Thief("low", 2);
  Attempt high = Thief("high", 3);
  ASSERT_TRUE(Obtains(holder));
  ASSERT_TRUE(Reserves(low));
  const Watched watched = WatchAsWaiter(low);
  ASSERT_TRUE(Reserves(high));
  NextEvent(watched, kDisplaced);
  // It goes on waiting.
  Release(holder);
  ASSERT_TRUE(Obtains(high));
  Release(high);
  NextEvent(watched, kHoldEnded);
  EXPECT_TRUE(Obtains(low));
}

TEST_P(ConformanceTest, AThiefIsToldThatTheHolderOutrankedIt) {
  NEEDS_EVENTS();
  Attempt holder = Party("holder", 1);
  Attempt thief = Thief("thief", 2);
  ASSERT_TRUE(Obtains(holder));
  ASSERT_TRUE(Reserves(thief));
  const Watched watched = WatchAsWaiter(thief);
  Attempt raise = Party("holder", 2);
  Obtain(raise);
  NextEvent(watched, kDisplaced);
}

TEST_P(ConformanceTest, AThiefIsToldThatTheHoldIsNotPreemptibleAnyMore) {
  NEEDS_EVENTS();
  Attempt holder = Party("holder", 1);
  Attempt thief = Thief("thief", 2);
  ASSERT_TRUE(Obtains(holder));
  ASSERT_TRUE(Reserves(thief));
  const Watched watched = WatchAsWaiter(thief);
  Attempt inner = Party("holder", 1);
  inner.request.preemptible = false;
  Obtain(inner);
  NextEvent(watched, kDisplaced);
  // It goes on waiting.
  EXPECT_TRUE(IsDenied(thief));
  Release(inner);
  Release(holder);
  NextEvent(watched, kHoldEnded);
  EXPECT_TRUE(Obtains(thief));
}

TEST_P(ConformanceTest, AThiefIsToldThatItsReservationRanOut) {
  NEEDS_EVENTS();
  Attempt holder = Party("holder", 1);
  Attempt thief = Thief("thief", 2);
  thief.request.reservation_lease = Units(1);
  ASSERT_TRUE(Obtains(holder));
  ASSERT_TRUE(Reserves(thief));
  const Watched watched = WatchAsWaiter(thief);
  Advance(Units(1));
  NextEvent(watched, kDisplaced);
}

TEST_P(ConformanceTest, AWaiterIsToldThatTheReservationInItsWayRanOut) {
  NEEDS_RELIABLE_EVENTS();
  for (const Priority first_priority : {2, 3}) {
    Attempt holder = Party("holder", 1);
    Attempt first = Thief("first", first_priority);
    first.request.reservation_lease = Units(1);
    Attempt second = Thief("second", 2);
    ASSERT_TRUE(Obtains(holder));
    ASSERT_TRUE(Reserves(first));
    const Watched watched = WatchAsWaiter(second);
    ASSERT_TRUE(IsDenied(second));
    ASSERT_TRUE(HeardNothing(watched));
    Advance(Units(1));  // Nobody takes a step.
    NextEvent(watched, kDisplaced);
    ASSERT_TRUE(Reserves(second));
    Release(second);
    Release(holder);
  }
}

TEST_P(ConformanceTest, AWaiterIsToldThatTheReservationInItsWayWasWithdrawn) {
  NEEDS_RELIABLE_EVENTS();
  for (const Priority first_priority : {2, 3}) {
    Attempt holder = Party("holder", 1);
    Attempt first = Thief("first", first_priority);
    Attempt second = Thief("second", 2);
    ASSERT_TRUE(Obtains(holder));
    ASSERT_TRUE(Reserves(first));
    const Watched watched = WatchAsWaiter(second);
    ASSERT_TRUE(IsDenied(second));
    Release(first);
    NextEvent(watched, kDisplaced);
    ASSERT_TRUE(Reserves(second));
    Release(second);
    Release(holder);
  }
}

TEST_P(ConformanceTest, AWaiterThatTheHolderOutranksIsNotToldOfReservations) {
  NEEDS_EVENTS();
  Attempt holder = Party("holder", 1);
  Attempt thief = Thief("thief", 2);
  Attempt waiter = Party("waiter", 1);
  ASSERT_TRUE(Obtains(holder));
  const Watched watched = WatchAsWaiter(waiter);
  ASSERT_TRUE(Reserves(thief));
  Release(thief);
  EXPECT_TRUE(HeardNothing(watched));
}

TEST_P(ConformanceTest, AWaiterIsNotToldOfReservationsThatItMayNotTake) {
  NEEDS_EVENTS();
  Attempt holder = Party("holder", 1);
  Attempt inner = Party("holder", 1);
  inner.request.preemptible = false;
  Attempt thief = Thief("thief", 2);
  Attempt waiter = Thief("waiter", 2);
  ASSERT_TRUE(Obtains(holder));
  ASSERT_TRUE(Reserves(thief));
  ASSERT_TRUE(IsDenied(waiter));
  const Watched watched = WatchAsWaiter(waiter);
  ASSERT_EQ(Obtain(inner).outcome, ObtainOutcome::kReentered);
  EXPECT_TRUE(HeardNothing(watched)) << "the hold is not preemptible any more";
}

TEST_P(ConformanceTest, AWaiterIsToldWhenADeadThiefsReservationIsOver) {
  NEEDS_EVENTS();
  Attempt holder = Party("holder", 1);
  Attempt dead = Thief("dead", 2);
  dead.request.reservation_lease = Units(2);
  Attempt waiter = Party("waiter", 1);
  ASSERT_TRUE(Obtains(holder));
  ASSERT_TRUE(Reserves(dead));
  const Watched watched = WatchAsWaiter(waiter);
  Release(holder);
  if (exact()) {
    EXPECT_TRUE(HeardNothing(watched));
  }
  Advance(Units(2));
  NextEvent(watched, kHoldEnded);
  EXPECT_TRUE(Obtains(waiter));
}

TEST_P(ConformanceTest, AWaiterIsToldWhenTheSuccessorGivesUp) {
  NEEDS_EVENTS();
  Attempt holder = Party("holder", 1);
  Attempt thief = Thief("thief", 2);
  Attempt waiter = Party("waiter", 1);
  ASSERT_TRUE(Obtains(holder));
  ASSERT_TRUE(Reserves(thief));
  const Watched watched = WatchAsWaiter(waiter);
  Release(holder);
  EXPECT_TRUE(HeardNothing(watched));
  Release(thief);
  NextEvent(watched, kHoldEnded);
  EXPECT_TRUE(Obtains(waiter));
}

TEST_P(ConformanceTest, TheBestWaiterIsToldFirst) {
  NEEDS_EVENTS();
  const std::vector<std::pair<std::string, Priority>> waiters = {
      {"low", 1}, {"first of five", 5}, {"second of five", 5}, {"middle", 3}};
  Attempt holder = Party("holder", 9);
  ASSERT_TRUE(Obtains(holder));
  const auto told = std::make_shared<std::vector<std::string>>();  // Under the suite's mutex.
  std::vector<Attempt> attempts;
  std::vector<Watched> watched;
  for (const auto& [name, priority] : waiters) {
    attempts.push_back(Party(name, priority));
    // One client, so that one backend knows them all.
    attempts.back().backend = &first();
    watched.push_back(
        WatchAsWaiter(attempts.back(), [told, shared = shared_, name = name](const WatchEvent&) {
          absl::MutexLock lock(&shared->mu);
          told->push_back(name);
        }));
  }
  Release(holder);
  ASSERT_TRUE(WaitUntil([&] { return !told->empty(); }, "HoldEnded to any waiter"));
  Settle();
  {
    absl::MutexLock lock(&shared_->mu);
    EXPECT_EQ(told->front(), "first of five");
  }
  watched.clear();
}

TEST_P(ConformanceTest, EveryWaiterIsToldInTheEnd) {
  NEEDS_EVENTS();
  Attempt holder = Party("holder", 9);
  ASSERT_TRUE(Obtains(holder));
  std::vector<Attempt> attempts;
  std::vector<Watched> watched;
  for (int i = 0; i < 6; ++i) {
    attempts.push_back(Party(absl::StrCat("waiter ", i), -i));
    watched.push_back(WatchAsWaiter(attempts.back()));
  }
  Attempt* inside = &holder;
  for (int i = 0; i < 6 && !failed(); ++i) {
    Release(*inside);
    NextEvent(watched[i], kHoldEnded);
    ASSERT_TRUE(Obtains(attempts[i])) << i;
    watched[i].subscription.Reset();
    inside = &attempts[i];
  }
}

// ---- Subscriptions
// -------------------------------------------------------------------------------

TEST_P(ConformanceTest, AnEndedSubscriptionHearsNothing) {
  NEEDS_EVENTS();
  Attempt holder = Party("holder", 1);
  ASSERT_TRUE(Obtains(holder));
  Watched watched = WatchAsHolder(holder);
  EXPECT_TRUE(watched.subscription.active());
  watched.subscription.Reset();
  watched.subscription.Reset();
  EXPECT_FALSE(watched.subscription.active());
  Attempt thief = Thief("thief", 7);
  ASSERT_TRUE(Reserves(thief));
  EXPECT_TRUE(HeardNothing(watched));
}

TEST_P(ConformanceTest, AMovedSubscriptionGoesOn) {
  NEEDS_EVENTS();
  Attempt holder = Party("holder", 1);
  ASSERT_TRUE(Obtains(holder));
  Watched watched = WatchAsHolder(holder);
  Subscription moved = std::move(watched.subscription);
  watched.subscription.Reset();
  Attempt thief = Thief("thief", 7);
  ASSERT_TRUE(Reserves(thief));
  NextEvent(watched, kYieldRequested);
}

TEST_P(ConformanceTest, EndingASubscriptionDestroysWhatItsCallbackOwns) {
  Attempt holder = Party("holder", 1);
  ASSERT_TRUE(Obtains(holder));
  const auto owned = std::make_shared<int>(1);
  Watched as_holder = WatchAsHolder(holder, [owned](const WatchEvent&) {});
  Attempt waiter = Party("waiter", 1);
  Watched as_waiter = WatchAsWaiter(waiter, [owned](const WatchEvent&) {});
  EXPECT_GT(owned.use_count(), 1);
  as_holder.subscription.Reset();
  as_waiter.subscription.Reset();
  WaitUntil([&] { return owned.use_count() == 1; }, "the end of what the callbacks owned");
}

TEST_P(ConformanceTest, WhatACallbackOwnsMayEndHoldsAndSubscriptions) {
  // As a Lock does that is captured in its own callback.
  Attempt holder = Party("holder", 1);
  Attempt other = Party("holder", 1);
  other.resource = Resource("other");
  ASSERT_TRUE(Obtains(holder));
  ASSERT_TRUE(Obtains(other));
  struct ReleasesAtTheEnd {
    ~ReleasesAtTheEnd() {
      subscription.Reset();
      backend->Release(hold, [](absl::StatusOr<ReleaseOutcome>) {});
    }
    LockingProtocol* backend;
    HoldRef hold;
    Subscription subscription;
  };
  auto owned = std::make_shared<ReleasesAtTheEnd>();
  owned->backend = other.backend;
  owned->hold = Ref(other);
  owned->subscription = WatchAsHolder(other).subscription;
  Watched watched = WatchAsHolder(holder, [owned](const WatchEvent&) {});
  owned = nullptr;
  watched.subscription.Reset();
  Settle();
  Attempt next = Party("next");
  next.resource = other.resource;
  if (exact()) {
    EXPECT_TRUE(Obtains(next));
  }
}

TEST_P(ConformanceTest, ASubscriptionMayEndInsideItsOwnCallback) {
  NEEDS_EVENTS();
  Attempt holder = Party("holder", 1);
  ASSERT_TRUE(Obtains(holder));
  const auto subscription = std::make_shared<Subscription>();
  Watched watched =
      WatchAsHolder(holder, [subscription](const WatchEvent&) { subscription->Reset(); });
  *subscription = std::move(watched.subscription);
  Attempt thief = Thief("thief", 7);
  ASSERT_TRUE(Reserves(thief));
  NextEvent(watched, kYieldRequested);
  Release(thief);
  EXPECT_TRUE(HeardNothing(watched));
}

TEST_P(ConformanceTest, SubscriptionsOfOneAcquisitionEndSeparately) {
  NEEDS_EVENTS();
  Attempt holder = Party("holder", 1);
  ASSERT_TRUE(Obtains(holder));
  Watched one = WatchAsHolder(holder);
  Watched two = WatchAsHolder(holder);
  one.subscription.Reset();
  Attempt thief = Thief("thief", 7);
  ASSERT_TRUE(Reserves(thief));
  NextEvent(two, kYieldRequested);
  EXPECT_TRUE(HeardNothing(one));
}

TEST_P(ConformanceTest, ASubscriptionMayOutliveTheBackend) {
  Attempt holder = Party("holder", 1);
  ASSERT_TRUE(Obtains(holder));
  Watched as_holder = WatchAsHolder(holder);
  Attempt waiter = Party("waiter", 1);
  Watched as_waiter = WatchAsWaiter(waiter);
  setup_.clients.clear();
  as_holder.subscription.Reset();
  as_waiter.subscription.Reset();
}

TEST_P(ConformanceTest, AWatchOfNothingIsHarmless) {
  Attempt a = Party("a");
  const Watched nothing = WatchWith(first(), {});
  const Watched no_resource = WatchWith(first(), {.acquisition = a.id()});
  const Watched no_acquisition = WatchWith(first(), {.resource = a.resource});
  ASSERT_TRUE(Obtains(a) || Obtain(a).outcome == ObtainOutcome::kDenied);
}

// ---- Calling the backend from its callbacks
// ------------------------------------------------------

TEST_P(ConformanceTest, ACompletionMayCallTheBackend) {
  // Owned by the completions, which may come late where something is broken.
  struct Steps {
    LockingProtocol& backend;
    Attempt a;
    const absl::Duration lease;
    const std::shared_ptr<Shared> shared;
    std::optional<ReleaseOutcome> released;  // Under the suite's mutex.
  };
  const auto steps = std::make_shared<Steps>(Steps{first(), Party("a"), Long(), shared_, {}});
  Attempt& a = steps->a;
  a.request.resource = a.resource;
  a.request.owner = a.owner;
  // Obtain, extend and release, each from the completion of the one before.
  first().Obtain(a.request, [steps](const absl::StatusOr<ObtainReply>&) {
    steps->backend.Extend(Ref(steps->a), steps->lease, [steps](absl::StatusOr<ExtendReply>) {
      steps->backend.Release(Ref(steps->a), [steps](absl::StatusOr<ReleaseOutcome> outcome) {
        absl::MutexLock lock(&steps->shared->mu);
        steps->released = outcome.value_or(ReleaseOutcome::kNotHeld);
      });
    });
  });
  ASSERT_TRUE(WaitUntil([&] { return steps->released.has_value(); },
                        "the completion of the last of three steps"));
  EXPECT_EQ(*steps->released, ReleaseOutcome::kReleased);
}

TEST_P(ConformanceTest, AnEventMayCallTheBackend) {
  NEEDS_EVENTS();
  Attempt holder = Party("holder", 1);
  Attempt thief = Thief("thief", 2);
  ASSERT_TRUE(Obtains(holder));
  // The holder yields inside its callback, and the thief claims inside its own.
  const Watched holder_watched = WatchAsHolder(holder, [holder](const WatchEvent& event) {
    if (event.kind != kYieldRequested) return;
    holder.backend->Release(Ref(holder), [](absl::StatusOr<ReleaseOutcome>) {});
  });
  const auto claimed = std::make_shared<std::optional<ObtainOutcome>>();
  Watched thief_watched =
      WatchAsWaiter(thief, [thief, claimed, shared = shared_](const WatchEvent& event) {
        if (event.kind != kHoldEnded) return;
        ObtainRequest claim = thief.request;
        claim.resource = thief.resource;
        claim.owner = thief.owner;
        thief.backend->Obtain(claim, [claimed, shared](absl::StatusOr<ObtainReply> reply) {
          absl::MutexLock lock(&shared->mu);
          if (reply.ok()) *claimed = reply->outcome;
        });
      });
  Obtain(thief);
  ASSERT_TRUE(
      WaitUntil([&] { return claimed->has_value(); }, "the claim inside the thief's event"));
  EXPECT_TRUE(**claimed == ObtainOutcome::kObtained || **claimed == ObtainOutcome::kReentered)
      << **claimed;
  EXPECT_TRUE(Holds(thief));
  EXPECT_FALSE(Holds(holder));
}

TEST_P(ConformanceTest, EventsCausedInsideACallbackComeAfterIt) {
  NEEDS_EVENTS();
  Attempt holder = Party("holder", 1);
  ASSERT_TRUE(Obtains(holder));
  Attempt thief = Thief("thief", 2);
  Watched watched =
      WatchAsHolder(holder, [thief, withdrawals = 0](const WatchEvent& event) mutable {
        if (event.kind != kYieldRequested || ++withdrawals > 1) return;
        // Causes the next event of this very watch.
        thief.backend->Release(Ref(thief), [](absl::StatusOr<ReleaseOutcome>) {});
      });
  ASSERT_TRUE(Reserves(thief));
  NextEvent(watched, kYieldRequested);
  NextEvent(watched, kYieldWithdrawn);  // Checks that no two events of it ran at once.
  watched.subscription.Reset();
}

TEST_P(ConformanceTest, AnEventMayWatchAnew) {
  NEEDS_EVENTS();
  Attempt holder = Party("holder", 1);
  Attempt waiter = Party("waiter", 1);
  ASSERT_TRUE(Obtains(holder));
  // Constructed by the time the callback runs.
  const auto again = std::make_shared<std::optional<Watched>>();
  const Watched watched = WatchAsWaiter(waiter, [&, again](const WatchEvent&) {
    Watched anew = WatchAsHolder(holder);
    absl::MutexLock lock(&shared_->mu);
    if (!again->has_value()) again->emplace(std::move(anew));
  });
  Release(holder);
  ASSERT_TRUE(WaitUntil([&] { return again->has_value(); }, "HoldEnded to the waiter 'waiter'"));
  NextEvent(**again, kHoldEnded);
}

// ---- Order among waiters
// -------------------------------------------------------------------------

TEST_P(ConformanceTest, OnlyTheBestWaiterIsWoken) {
  NEEDS_ORDER();
  Attempt holder = Party("holder", 9);
  ASSERT_TRUE(Obtains(holder));
  Attempt low = Party("low", 1);
  Attempt best = Party("best", 5);
  Attempt second = Party("second", 5);
  const Watched low_watched = WatchAsWaiter(low);
  const Watched best_watched = WatchAsWaiter(best);
  const Watched second_watched = WatchAsWaiter(second);
  Release(holder);
  NextEvent(best_watched, kHoldEnded);
  EXPECT_TRUE(HeardNothing(second_watched));
  EXPECT_TRUE(HeardNothing(low_watched));
  EXPECT_TRUE(Obtains(best));
  EXPECT_TRUE(HeardNothing(second_watched)) << "nor by the claim";
}

TEST_P(ConformanceTest, NobodyOfEqualPrioritySlipsInBeforeTheWokenOne) {
  NEEDS_ORDER();
  Attempt holder = Party("holder", 5);
  Attempt waiter = Party("waiter", 5);
  ASSERT_TRUE(Obtains(holder));
  const Watched watched = WatchAsWaiter(waiter);
  Release(holder);
  for (const Priority priority : {Priority{5}, Priority{-1}}) {
    Attempt newcomer = Thief("newcomer", priority);
    const ObtainReply reply = Obtain(newcomer);
    ASSERT_EQ(reply.outcome, ObtainOutcome::kDenied);
    ASSERT_EQ(reply.other_owner, "waiter");
    ASSERT_EQ(reply.other_priority, 5);
  }
  NextEvent(watched, kHoldEnded);
  EXPECT_TRUE(Obtains(waiter));
}

TEST_P(ConformanceTest, AHigherNewcomerEntersBeforeTheWokenOne) {
  NEEDS_ORDER();
  Attempt holder = Party("holder", 5);
  Attempt waiter = Party("waiter", 5);
  Attempt newcomer = Party("newcomer", 6);
  ASSERT_TRUE(Obtains(holder));
  const Watched watched = WatchAsWaiter(waiter);
  Release(holder);
  NextEvent(watched, kHoldEnded);
  EXPECT_TRUE(Obtains(newcomer));
  NextEvent(watched, kDisplaced);
  EXPECT_TRUE(IsDenied(waiter));
  Release(newcomer);
  NextEvent(watched, kHoldEnded);
  EXPECT_TRUE(Obtains(waiter));
}

TEST_P(ConformanceTest, WaitersEnterByPriorityThenByRegistration) {
  NEEDS_ORDER();
  const std::vector<Priority> priorities = {0, 3, 1, 3, 0, 2, 3};
  const std::vector<int> expected = {1, 3, 6, 5, 2, 0, 4};
  Attempt holder = Party("holder", 9);
  ASSERT_TRUE(Obtains(holder));
  std::vector<Attempt> attempts;
  std::vector<Watched> watched;
  for (size_t i = 0; i < priorities.size(); ++i) {
    attempts.push_back(Party(absl::StrCat("waiter ", i), priorities[i]));
    watched.push_back(WatchAsWaiter(attempts.back()));
  }
  const Attempt* inside = &holder;
  for (const int next : expected) {
    Release(*inside);
    NextEvent(watched[next], kHoldEnded);
    // At once: a woken waiter that does not ask may be told again.
    ASSERT_TRUE(Obtains(attempts[next]));
    watched[next].subscription.Reset();
    for (size_t i = 0; i < attempts.size(); ++i) {
      ASSERT_TRUE(HeardNothing(watched[i])) << i << " while it is the turn of " << next;
    }
    inside = &attempts[next];
  }
}

TEST_P(ConformanceTest, ADeadWaiterCostsOneReservation) {
  NEEDS_ORDER();
  Attempt holder = Party("holder", 5);
  Attempt dead = Party("dead", 5);
  dead.request.reservation_lease = Units(2);
  Attempt next = Party("next", 5);
  ASSERT_TRUE(Obtains(holder));
  const Watched dead_watched = WatchAsWaiter(dead);
  Watched next_watched = WatchAsWaiter(next);
  Release(holder);
  NextEvent(dead_watched, kHoldEnded);
  if (exact()) {
    EXPECT_TRUE(HeardNothing(next_watched));
  }
  Advance(Units(2));
  NextEvent(next_watched, kHoldEnded);
  EXPECT_TRUE(Obtains(next));
  next_watched.subscription.Reset();
  // Next time it is passed over, or costs no more than once again.
  Attempt last = Party("last", 5);
  const Watched last_watched = WatchAsWaiter(last);
  Release(next);
  Advance(Units(2));
  NextEvent(last_watched, kHoldEnded);
  EXPECT_TRUE(Obtains(last));
}

TEST_P(ConformanceTest, SeveralDeadWaitersCostOneReservationEach) {
  NEEDS_ORDER();
  Attempt holder = Party("holder", 5);
  ASSERT_TRUE(Obtains(holder));
  std::vector<Attempt> dead;
  std::vector<Watched> dead_watched;
  for (int i = 0; i < 3; ++i) {
    dead.push_back(Party(absl::StrCat("dead ", i), 5));
    dead.back().request.reservation_lease = Units(2);
    dead_watched.push_back(WatchAsWaiter(dead.back()));
  }
  Attempt alive = Party("alive", 5);
  const Watched watched = WatchAsWaiter(alive);
  Release(holder);
  Advance(Units(6));
  NextEvent(watched, kHoldEnded);
  EXPECT_TRUE(Obtains(alive));
}

TEST_P(ConformanceTest, AWokenWaiterThatGoesPassesTheWakeUpOn) {
  NEEDS_EVENTS();
  Attempt holder = Party("holder", 5);
  Attempt leaver = Party("leaver", 5);
  Attempt next = Party("next", 5);
  ASSERT_TRUE(Obtains(holder));
  Watched leaver_watched = WatchAsWaiter(leaver);
  const Watched next_watched = WatchAsWaiter(next);
  Release(holder);
  NextEvent(leaver_watched, kHoldEnded);
  leaver_watched.subscription.Reset();
  NextEvent(next_watched, kHoldEnded);
  EXPECT_TRUE(Obtains(next));
}

TEST_P(ConformanceTest, AWokenWaiterThatWithdrawsPassesTheWakeUpOn) {
  NEEDS_EVENTS();
  Attempt holder = Party("holder", 5);
  Attempt leaver = Party("leaver", 5);
  Attempt next = Party("next", 5);
  ASSERT_TRUE(Obtains(holder));
  Watched leaver_watched = WatchAsWaiter(leaver);
  const Watched next_watched = WatchAsWaiter(next);
  Release(holder);
  NextEvent(leaver_watched, kHoldEnded);
  // Its compensation, in either order.
  leaver_watched.subscription.Reset();
  Release(leaver);
  NextEvent(next_watched, kHoldEnded);
  EXPECT_TRUE(Obtains(next));
}

TEST_P(ConformanceTest, AWaiterThatGoesBeforeItsTurnIsNotMissed) {
  NEEDS_EVENTS();
  Attempt holder = Party("holder", 5);
  Attempt leaver = Party("leaver", 5);
  Attempt next = Party("next", 5);
  ASSERT_TRUE(Obtains(holder));
  {
    const Watched leaver_watched = WatchAsWaiter(leaver);
    const Watched next_too = WatchAsWaiter(next);
  }
  const Watched watched = WatchAsWaiter(next);
  Release(holder);
  NextEvent(watched, kHoldEnded);
  EXPECT_TRUE(Obtains(next));
}

TEST_P(ConformanceTest, AReplacementKeepsThePlaceInTheOrder) {
  NEEDS_ORDER();
  Attempt holder = Party("holder", 5);
  Attempt head = Party("head", 5);
  Attempt other = Party("other", 5);
  Attempt replacement = Party("replacement", 5);
  replacement.backend = head.backend;
  ASSERT_TRUE(Obtains(holder));
  Watched head_watched = WatchAsWaiter(head);
  const Watched other_watched = WatchAsWaiter(other);
  WatchRequest request = WaiterRequest(replacement);
  request.takes_place_of = head.id();
  const Watched replacement_watched = WatchWith(*replacement.backend, request);
  head_watched.subscription.Reset();
  Release(holder);
  NextEvent(replacement_watched, kHoldEnded);
  EXPECT_TRUE(HeardNothing(other_watched));
  EXPECT_TRUE(Obtains(replacement));
}

TEST_P(ConformanceTest, AReplacementOfAnotherPriorityDoesNotInheritThePlace) {
  NEEDS_ORDER();
  Attempt holder = Party("holder", 9);
  Attempt head = Party("head", 4);
  Attempt other = Party("other", 5);
  Attempt replacement = Party("replacement", 5);
  ASSERT_TRUE(Obtains(holder));
  Watched head_watched = WatchAsWaiter(head);
  const Watched other_watched = WatchAsWaiter(other);
  WatchRequest request = WaiterRequest(replacement);
  request.takes_place_of = head.id();
  const Watched replacement_watched = WatchWith(*replacement.backend, request);
  head_watched.subscription.Reset();
  Release(holder);
  NextEvent(other_watched, kHoldEnded);
  EXPECT_TRUE(HeardNothing(replacement_watched));
}

TEST_P(ConformanceTest, AReplacementOfNobodyGoesToTheEnd) {
  NEEDS_ORDER();
  Attempt holder = Party("holder", 5);
  Attempt gone = Party("gone", 5);
  Attempt other = Party("other", 5);
  Attempt replacement = Party("replacement", 5);
  ASSERT_TRUE(Obtains(holder));
  Watched gone_watched = WatchAsWaiter(gone);
  const Watched other_watched = WatchAsWaiter(other);
  gone_watched.subscription.Reset();
  WatchRequest request = WaiterRequest(replacement);
  request.takes_place_of = gone.id();
  const Watched replacement_watched = WatchWith(*replacement.backend, request);
  Release(holder);
  NextEvent(other_watched, kHoldEnded);
  EXPECT_TRUE(HeardNothing(replacement_watched));
}

TEST_P(ConformanceTest, ABargingWaiterIsWokenWithoutAReservation) {
  NEEDS_EVENTS();
  if (!capabilities().barging) GTEST_SKIP() << "no barging";
  Attempt holder = Party("holder", 5);
  Attempt waiter = Party("waiter", 5);
  Attempt newcomer = Party("newcomer", 5);
  ASSERT_TRUE(Obtains(holder));
  WatchRequest request = WaiterRequest(waiter);
  request.barging = true;
  const Watched watched = WatchWith(*waiter.backend, request);
  Release(holder);
  NextEvent(watched, kHoldEnded);
  EXPECT_TRUE(Obtains(newcomer)) << "whoever asks first enters";
  EXPECT_TRUE(IsDenied(waiter));
  Release(newcomer);
  NextEvent(watched, kHoldEnded);
  EXPECT_TRUE(Obtains(waiter));
}

TEST_P(ConformanceTest, ABargingWaiterThatGoesPassesTheWakeUpOn) {
  NEEDS_EVENTS();
  if (!capabilities().barging) GTEST_SKIP() << "no barging";
  Attempt holder = Party("holder", 5);
  Attempt leaver = Party("leaver", 5);
  Attempt next = Party("next", 5);
  ASSERT_TRUE(Obtains(holder));
  WatchRequest request = WaiterRequest(leaver);
  request.barging = true;
  Watched leaver_watched = WatchWith(*leaver.backend, request);
  request = WaiterRequest(next);
  request.barging = true;
  const Watched next_watched = WatchWith(*next.backend, request);
  Release(holder);
  NextEvent(leaver_watched, kHoldEnded);
  leaver_watched.subscription.Reset();
  NextEvent(next_watched, kHoldEnded);
  EXPECT_TRUE(Obtains(next));
}

}  // namespace
}  // namespace latchkey

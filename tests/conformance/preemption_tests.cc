// Reservations: who may make one, how it becomes a hold, how it ends, what it means to the holder.
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "latchkey/core/lease.h"
#include "latchkey/core/protocol/locking_protocol.h"
#include "latchkey/tests/conformance/conformance.h"

namespace latchkey {
namespace {

constexpr Priority kLeast = std::numeric_limits<Priority>::min();

// ---- Who may reserve
// -----------------------------------------------------------------------------

TEST_P(ConformanceTest, AHigherPriorityReservesAndMayNotActYet) {
  Attempt holder = Party("holder", 1);
  Attempt thief = Thief("thief", 2);
  ASSERT_TRUE(Obtains(holder));
  Advance(Units(1));
  const ObtainReply reply = Obtain(thief);
  EXPECT_EQ(reply.outcome, ObtainOutcome::kReserved);
  EXPECT_EQ(reply.token, 0u) << "it holds nothing";
  EXPECT_EQ(reply.other_owner, "holder");
  EXPECT_EQ(reply.other_priority, 1);
  ExpectRemaining(reply.remaining, Long() - Units(1));
  EXPECT_EQ(reply.grace_remaining, absl::InfiniteDuration());
  EXPECT_TRUE(Holds(holder));
  EXPECT_FALSE(Holds(thief));
}

TEST_P(ConformanceTest, EqualPriorityNeverPreemptsAndNeverDisturbs) {
  for (const Priority priority : {Priority{0}, Priority{7}, kLeast}) {
    Attempt holder = Party("holder", priority);
    Attempt equal = Thief("equal", priority);
    ASSERT_TRUE(Obtains(holder));
    for (int i = 0; i < 3; ++i) ASSERT_TRUE(IsDenied(equal));
    ASSERT_EQ(Extend(holder, Long()).outcome, ExtendOutcome::kExtended);
    ASSERT_EQ(Release(holder), ReleaseOutcome::kReleased);
    ASSERT_TRUE(Obtains(equal)) << "no reservation was left behind";
    Release(equal);
  }
}

TEST_P(ConformanceTest, ALowerPriorityNeverPreempts) {
  Attempt holder = Party("holder", 5);
  Attempt lower = Thief("lower", 4);
  ASSERT_TRUE(Obtains(holder));
  EXPECT_TRUE(IsDenied(lower));
  EXPECT_EQ(Extend(holder, Long()).outcome, ExtendOutcome::kExtended);
}

TEST_P(ConformanceTest, WithoutReserveBelowNothingIsReserved) {
  Attempt holder = Party("holder", 0);
  Attempt higher = Party("higher", 100);
  ASSERT_TRUE(Obtains(holder));
  EXPECT_TRUE(IsDenied(higher));
  EXPECT_EQ(Extend(holder, Long()).outcome, ExtendOutcome::kExtended);
}

TEST_P(ConformanceTest, ReserveBelowBoundsWhatMayBeReserved) {
  Attempt holder = Party("holder", 10);
  ASSERT_TRUE(Obtains(holder));
  Attempt thief = Thief("thief", 100);
  for (const Priority bound : {kLeast, Priority{9}, Priority{10}}) {
    thief.request.reserve_below = bound;
    ASSERT_TRUE(IsDenied(thief)) << bound;
  }
  EXPECT_EQ(Extend(holder, Long()).outcome, ExtendOutcome::kExtended);
  thief.request.reserve_below = 11;
  EXPECT_TRUE(Reserves(thief));
}

TEST_P(ConformanceTest, WhoeverIsNotPreemptibleIsNeverReserved) {
  Attempt holder = Party("holder", kLeast);
  holder.request.preemptible = false;
  ASSERT_TRUE(Obtains(holder));
  Attempt thief = Thief("thief", 100);
  thief.request.grace =
      capabilities().forced_handover ? std::optional(absl::ZeroDuration()) : std::nullopt;
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(IsDenied(thief));
  EXPECT_EQ(Extend(holder, Long()).outcome, ExtendOutcome::kExtended);
}

TEST_P(ConformanceTest, AnAnonymousThiefReserves) {
  Attempt holder = Party("", 1);
  Attempt thief = Thief("", 2);
  Attempt other = Thief("", 2);
  ASSERT_TRUE(Obtains(holder));
  EXPECT_TRUE(Reserves(thief));
  EXPECT_TRUE(IsDenied(other)) << "anonymous owners are not each other";
  Release(holder);
  EXPECT_TRUE(IsDenied(other));
  EXPECT_TRUE(Obtains(thief));
}

// ---- From reservation to hold
// --------------------------------------------------------------------

TEST_P(ConformanceTest, TheSuccessorEntersWhenTheHolderHasLeft) {
  Attempt holder = Party("holder", 1);
  Attempt thief = Thief("thief", 2);
  ASSERT_TRUE(Obtains(holder));
  ASSERT_TRUE(Reserves(thief));
  EXPECT_TRUE(Reserves(thief)) << "not before";
  EXPECT_EQ(Release(holder), ReleaseOutcome::kReleased);
  EXPECT_FALSE(Holds(thief)) << "not by itself either";
  EXPECT_TRUE(Obtains(thief));
  EXPECT_GT(thief.token, holder.token);
  ExpectRemaining(Obtain(thief).remaining, Long());
  EXPECT_TRUE(Holds(thief));
}

TEST_P(ConformanceTest, TheSuccessorEntersWhenTheHoldersLeaseIsOver) {
  Attempt holder = Party("holder", 1);
  Attempt thief = Thief("thief", 2);
  holder.request.lease = Units(3);
  ASSERT_TRUE(Obtains(holder));
  ASSERT_TRUE(Reserves(thief));
  Advance(Units(3));
  EXPECT_TRUE(Obtains(thief));
  EXPECT_GT(thief.token, holder.token);
  EXPECT_EQ(Release(holder), ReleaseOutcome::kNotHeld);
  EXPECT_TRUE(Holds(thief));
}

TEST_P(ConformanceTest, TheSuccessorEntersOnlyWhenEveryHandleHasLeft) {
  Attempt outer = Party("holder", 1);
  Attempt inner = Party("holder", 1);
  Attempt thief = Thief("thief", 2);
  ASSERT_TRUE(Obtains(outer));
  Obtain(inner);
  ASSERT_TRUE(Reserves(thief));
  Release(outer);
  EXPECT_TRUE(Reserves(thief));
  Release(inner);
  EXPECT_TRUE(Obtains(thief));
}

TEST_P(ConformanceTest, TheSuccessorEntersWithTheTermsOfItsLastRequest) {
  Attempt holder = Party("holder", 1);
  Attempt thief = Thief("thief", 2);
  ASSERT_TRUE(Obtains(holder));
  ASSERT_TRUE(Reserves(thief));
  Release(holder);
  thief.request.lease = Units(50);
  thief.request.preemptible = false;
  ExpectRemaining(Obtain(thief).remaining, Units(50));
  Attempt higher = Thief("higher", 3);
  EXPECT_TRUE(IsDenied(higher));
}

TEST_P(ConformanceTest, AFreedResourceIsKeptForItsSuccessor) {
  Attempt holder = Party("holder", 1);
  Attempt thief = Thief("thief", 5);
  ASSERT_TRUE(Obtains(holder));
  ASSERT_TRUE(Reserves(thief));
  Release(holder);
  for (const Priority priority : {kLeast, Priority{1}, Priority{5}}) {
    Attempt newcomer = Thief("newcomer", priority);
    const ObtainReply reply = Obtain(newcomer);
    ASSERT_EQ(reply.outcome, ObtainOutcome::kDenied) << priority;
    ASSERT_EQ(reply.other_owner, "thief") << "who is in the way";
    ASSERT_EQ(reply.other_priority, 5);
  }
  Attempt former_holder_again = Party("holder", 1);
  EXPECT_TRUE(IsDenied(former_holder_again));
  EXPECT_TRUE(Obtains(thief));
}

TEST_P(ConformanceTest, AHigherNewcomerTakesAFreedResourceFromItsSuccessor) {
  Attempt holder = Party("holder", 1);
  Attempt thief = Thief("thief", 5);
  Attempt newcomer = Party("newcomer", 6);  // It need not be allowed to reserve.
  ASSERT_TRUE(Obtains(holder));
  ASSERT_TRUE(Reserves(thief));
  Release(holder);
  EXPECT_TRUE(Obtains(newcomer));
  EXPECT_TRUE(IsDenied(thief));
  EXPECT_EQ(Extend(newcomer, Long()).outcome, ExtendOutcome::kExtended);
}

TEST_P(ConformanceTest, AnotherAcquisitionOfTheSuccessorsOwnerIsNotTheSuccessor) {
  Attempt holder = Party("holder", 1);
  Attempt thief = Thief("thief", 5);
  Attempt twin = Thief("thief", 5);
  ASSERT_TRUE(Obtains(holder));
  ASSERT_TRUE(Reserves(thief));
  EXPECT_TRUE(IsDenied(twin));
  Release(holder);
  EXPECT_TRUE(IsDenied(twin));
  EXPECT_TRUE(Obtains(thief));
  EXPECT_EQ(Obtain(twin).outcome, ObtainOutcome::kReentered);
}

// ---- Polling
// -------------------------------------------------------------------------------------

TEST_P(ConformanceTest, PollingRepeatsTheReservation) {
  Attempt holder = Party("holder", 1);
  Attempt thief = Thief("thief", 2);
  ASSERT_TRUE(Obtains(holder));
  for (int i = 0; i < 4 && !HasFailure(); ++i) {
    const ObtainReply reply = Obtain(thief);
    ASSERT_EQ(reply.outcome, ObtainOutcome::kReserved);
    ASSERT_EQ(reply.other_owner, "holder");
    ExpectRemaining(reply.remaining, Long() - i * Units(1));
    Advance(Units(1));
  }
  EXPECT_EQ(Release(thief), ReleaseOutcome::kWithdrawn) << "one withdrawal ends it";
  EXPECT_EQ(Extend(holder, Long()).outcome, ExtendOutcome::kExtended);
}

TEST_P(ConformanceTest, PollingKeepsTheReservationAlive) {
  if (!exact()) GTEST_SKIP() << "needs exact time";
  Attempt holder = Party("holder", 1);
  Attempt thief = Thief("thief", 2);
  thief.request.reservation_lease = Units(2);
  ASSERT_TRUE(Obtains(holder));
  for (int i = 0; i < 5; ++i) {
    ASSERT_TRUE(Reserves(thief));
    Advance(Units(2) - absl::Milliseconds(1));
    ASSERT_EQ(Extend(holder, Long()).outcome, ExtendOutcome::kReserved);
  }
}

// ---- The end of a reservation
// --------------------------------------------------------------------

TEST_P(ConformanceTest, WithdrawalLeavesTheHolderUntouched) {
  Attempt holder = Party("holder", 1);
  Attempt thief = Thief("thief", 2);
  ASSERT_TRUE(Obtains(holder));
  ASSERT_TRUE(Reserves(thief));
  EXPECT_EQ(Release(thief), ReleaseOutcome::kWithdrawn);
  EXPECT_EQ(Release(thief), ReleaseOutcome::kNotHeld) << "a repetition";
  EXPECT_EQ(Extend(holder, Long()).outcome, ExtendOutcome::kExtended);
  const ObtainReply reply = Obtain(holder);
  EXPECT_EQ(reply.outcome, ObtainOutcome::kReentered);
  EXPECT_EQ(Release(holder), ReleaseOutcome::kReleased);
  Attempt anyone = Party("anyone", kLeast);
  EXPECT_TRUE(Obtains(anyone));
}

TEST_P(ConformanceTest, WithdrawalByAWrongIdDoesNothing) {
  Attempt holder = Party("holder", 1);
  Attempt thief = Thief("thief", 2);
  Attempt wrong = Thief("thief", 2);
  ASSERT_TRUE(Obtains(holder));
  ASSERT_TRUE(Reserves(thief));
  EXPECT_EQ(Release(wrong), ReleaseOutcome::kNotHeld);
  EXPECT_EQ(Extend(holder, Long()).outcome, ExtendOutcome::kReserved);
  Release(holder);
  EXPECT_TRUE(Obtains(thief));
}

TEST_P(ConformanceTest, WithdrawalAfterTheHolderLeftFreesTheResource) {
  Attempt holder = Party("holder", 1);
  Attempt thief = Thief("thief", 2);
  ASSERT_TRUE(Obtains(holder));
  ASSERT_TRUE(Reserves(thief));
  Release(holder);
  EXPECT_EQ(Release(thief), ReleaseOutcome::kWithdrawn);
  Attempt anyone = Party("anyone", kLeast);
  EXPECT_TRUE(Obtains(anyone));
}

TEST_P(ConformanceTest, ACrashedThiefLeavesTheVictimTheHolder) {
  Attempt holder = Party("holder", 1);
  Attempt thief = Thief("thief", 2);
  thief.request.reservation_lease = Units(2);
  ASSERT_TRUE(Obtains(holder));
  ASSERT_TRUE(Reserves(thief));
  Advance(Units(2));
  EXPECT_EQ(Extend(holder, Long()).outcome, ExtendOutcome::kExtended)
      << "renewal goes on as soon as the reservation is over";
  EXPECT_EQ(Release(thief), ReleaseOutcome::kNotHeld);
  EXPECT_TRUE(Reserves(thief)) << "it may come again";
}

TEST_P(ConformanceTest, ALatePollOfAWithdrawnThiefCostsAtMostOneReservation) {
  Attempt holder = Party("holder", 1);
  Attempt thief = Thief("thief", 2);
  thief.request.reservation_lease = Units(2);
  ASSERT_TRUE(Obtains(holder));
  ASSERT_TRUE(Reserves(thief));
  EXPECT_EQ(Release(thief), ReleaseOutcome::kWithdrawn);
  Obtain(thief);  // A copy of its poll that comes late.
  Advance(Units(2));
  EXPECT_EQ(Extend(holder, Long()).outcome, ExtendOutcome::kExtended);
  EXPECT_TRUE(Holds(holder));
}

TEST_P(ConformanceTest, AReservationIsOverAtItsDeadlineAndNotBefore) {
  if (!exact()) GTEST_SKIP() << "needs exact time";
  Attempt holder = Party("holder", 1);
  Attempt thief = Thief("thief", 2);
  thief.request.reservation_lease = Units(2);
  ASSERT_TRUE(Obtains(holder));
  ASSERT_TRUE(Reserves(thief));
  Advance(Units(2) - absl::Milliseconds(1));
  EXPECT_EQ(Extend(holder, Long()).outcome, ExtendOutcome::kReserved);
  Advance(absl::Milliseconds(1));
  EXPECT_EQ(Extend(holder, Long()).outcome, ExtendOutcome::kExtended);
}

TEST_P(ConformanceTest, AThiefThatCrashesAfterTheHolderLeftCostsOneReservation) {
  Attempt holder = Party("holder", 1);
  Attempt thief = Thief("thief", 5);
  thief.request.reservation_lease = Units(2);
  Attempt next = Party("next", 0);
  ASSERT_TRUE(Obtains(holder));
  ASSERT_TRUE(Reserves(thief));
  Release(holder);
  const ObtainReply reply = Obtain(next);
  EXPECT_EQ(reply.outcome, ObtainOutcome::kDenied);
  ExpectRemaining(reply.remaining, Units(2));
  Advance(Units(2));
  EXPECT_TRUE(Obtains(next));
}

TEST_P(ConformanceTest, HolderAndReservationMayEndInTheSameMoment) {
  Attempt holder = Party("holder", 1);
  Attempt thief = Thief("thief", 2);
  holder.request.lease = Units(2);
  thief.request.reservation_lease = Units(2);
  ASSERT_TRUE(Obtains(holder));
  ASSERT_TRUE(Reserves(thief));
  Advance(Units(2));
  Attempt anyone = Party("anyone", kLeast);
  EXPECT_TRUE(Obtains(anyone));
  EXPECT_EQ(Release(thief), ReleaseOutcome::kNotHeld);
  EXPECT_EQ(Release(holder), ReleaseOutcome::kNotHeld);
  EXPECT_TRUE(Holds(anyone));
}

// ---- The holder meanwhile
// ------------------------------------------------------------------------

TEST_P(ConformanceTest, ExtensionIsRefusedWhileASuccessorWaits) {
  Attempt holder = Party("holder", 1);
  Attempt thief = Thief("thief", 2);
  holder.request.lease = Units(100);
  ASSERT_TRUE(Obtains(holder));
  ASSERT_TRUE(Reserves(thief));
  Advance(Units(1));
  for (int i = 0; i < 2 && !HasFailure(); ++i) {
    const ExtendReply reply = Extend(holder, Long());
    ASSERT_EQ(reply.outcome, ExtendOutcome::kReserved);
    ExpectRemaining(reply.remaining, Units(99));
  }
  EXPECT_EQ(Extend(thief, Long()).outcome, ExtendOutcome::kNotHeld) << "a thief holds nothing";
  Release(thief);
  EXPECT_EQ(Extend(holder, Long()).outcome, ExtendOutcome::kExtended);
}

TEST_P(ConformanceTest, OneLeaseBoundsAPreemption) {
  Attempt holder = Party("holder", 1);
  Attempt thief = Thief("thief", 2);
  holder.request.lease = Units(4);
  ASSERT_TRUE(Obtains(holder));
  for (int i = 0; i < 4; ++i) {
    // The holder never yields and keeps renewing; the thief keeps asking.
    Obtain(thief);
    Extend(holder, Units(4));
    Advance(Units(1));
  }
  Obtain(thief);
  EXPECT_TRUE(Holds(thief));
}

TEST_P(ConformanceTest, TheHolderReentersWhileASuccessorWaits) {
  Attempt outer = Party("holder", 1);
  Attempt thief = Thief("thief", 5);
  Attempt inner = Party("holder", 4);
  ASSERT_TRUE(Obtains(outer));
  ASSERT_TRUE(Reserves(thief));
  EXPECT_EQ(Obtain(inner).outcome, ObtainOutcome::kReentered);
  EXPECT_EQ(Extend(inner, Long()).outcome, ExtendOutcome::kReserved) << "the successor stays";
  EXPECT_TRUE(Reserves(thief));
  Release(inner);
  Release(outer);
  EXPECT_TRUE(Obtains(thief));
}

TEST_P(ConformanceTest, AReentryOfEqualOrHigherPriorityDropsTheReservation) {
  for (const Priority raised : {5, 6}) {
    Attempt outer = Party("holder", 1);
    Attempt thief = Thief("thief", 5);
    Attempt inner = Party("holder", raised);
    ASSERT_TRUE(Obtains(outer));
    ASSERT_TRUE(Reserves(thief));
    ASSERT_EQ(Obtain(inner).outcome, ObtainOutcome::kReentered);
    ASSERT_EQ(Extend(outer, Long()).outcome, ExtendOutcome::kExtended);
    ASSERT_TRUE(IsDenied(thief));
    ASSERT_EQ(Release(thief), ReleaseOutcome::kNotHeld);
    Release(inner);
    Release(outer);
  }
}

TEST_P(ConformanceTest, AReentryThatIsNotPreemptibleDropsTheReservation) {
  Attempt outer = Party("holder", 1);
  Attempt thief = Thief("thief", 5);
  Attempt inner = Party("holder", 1);
  inner.request.preemptible = false;
  ASSERT_TRUE(Obtains(outer));
  ASSERT_TRUE(Reserves(thief));
  EXPECT_EQ(Obtain(inner).outcome, ObtainOutcome::kReentered);
  EXPECT_EQ(Extend(outer, Long()).outcome, ExtendOutcome::kExtended);
  EXPECT_TRUE(IsDenied(thief));
  EXPECT_EQ(Release(thief), ReleaseOutcome::kNotHeld) << "it has nothing to withdraw";
  Release(inner);
  EXPECT_TRUE(IsDenied(thief)) << "the hold stays what it has become";
  Release(outer);
  EXPECT_TRUE(Obtains(thief));
}

TEST_P(ConformanceTest, AVictimsLateStepsDoNotTouchTheSuccessor) {
  Attempt holder = Party("holder", 1);
  Attempt thief = Thief("thief", 2);
  ASSERT_TRUE(Obtains(holder));
  ASSERT_TRUE(Reserves(thief));
  ASSERT_EQ(Release(holder), ReleaseOutcome::kReleased);
  EXPECT_EQ(Release(holder), ReleaseOutcome::kNotHeld) << "repeated before the thief is in";
  ASSERT_TRUE(Obtains(thief));
  EXPECT_EQ(Release(holder), ReleaseOutcome::kNotHeld) << "repeated after it";
  EXPECT_EQ(Extend(holder, Long()).outcome, ExtendOutcome::kNotHeld);
  EXPECT_TRUE(Holds(thief));
  EXPECT_EQ(Extend(thief, Long()).outcome, ExtendOutcome::kExtended);
}

// ---- Chains of thieves
// ---------------------------------------------------------------------------

TEST_P(ConformanceTest, AHigherThiefDisplacesTheReservationOfTheOneBefore) {
  Attempt holder = Party("holder", 1);
  Attempt low = Thief("low", 2);
  Attempt high = Thief("high", 3);
  ASSERT_TRUE(Obtains(holder));
  ASSERT_TRUE(Reserves(low));
  ASSERT_TRUE(Reserves(high));
  EXPECT_TRUE(IsDenied(low));
  EXPECT_EQ(Release(low), ReleaseOutcome::kNotHeld) << "it has nothing to withdraw";
  EXPECT_EQ(Extend(holder, Long()).outcome, ExtendOutcome::kReserved) << "high still waits";
  Release(holder);
  EXPECT_TRUE(IsDenied(low));
  EXPECT_TRUE(Obtains(high));
}

TEST_P(ConformanceTest, AThiefOfEqualPriorityDoesNotDisplace) {
  Attempt holder = Party("holder", 1);
  Attempt one = Thief("one", 2);
  Attempt two = Thief("two", 2);
  ASSERT_TRUE(Obtains(holder));
  ASSERT_TRUE(Reserves(one));
  EXPECT_TRUE(IsDenied(two));
  Release(holder);
  EXPECT_TRUE(IsDenied(two));
  EXPECT_TRUE(Obtains(one));
}

TEST_P(ConformanceTest, OfAChainOfThievesTheHighestEntersAndNobodyBefore) {
  constexpr int kThieves = 6;
  Attempt holder = Party("holder", 0);
  ASSERT_TRUE(Obtains(holder));
  std::vector<Attempt> thieves;
  for (int i = 0; i < kThieves; ++i) {
    thieves.push_back(Thief(absl::StrCat("thief ", i), i + 1));
    ASSERT_TRUE(Reserves(thieves.back()));
    for (int before = 0; before < i; ++before) ASSERT_TRUE(IsDenied(thieves[before]));
    ASSERT_TRUE(Holds(holder));
  }
  Release(holder);
  // They come in the worst order; only the highest gets in.
  for (int i = 0; i < kThieves - 1; ++i) ASSERT_TRUE(IsDenied(thieves[i]));
  EXPECT_TRUE(Obtains(thieves.back()));
  // And then whoever is next.
  FencingToken last = thieves.back().token;
  Release(thieves.back());
  for (int i = kThieves - 2; i >= 0; --i) {
    ASSERT_TRUE(Obtains(thieves[i]));
    ASSERT_GT(thieves[i].token, last);
    last = thieves[i].token;
    Release(thieves[i]);
  }
}

TEST_P(ConformanceTest, AChainWhoseHighestGivesUpStartsAnew) {
  Attempt holder = Party("holder", 0);
  Attempt low = Thief("low", 1);
  Attempt high = Thief("high", 2);
  ASSERT_TRUE(Obtains(holder));
  ASSERT_TRUE(Reserves(low));
  ASSERT_TRUE(Reserves(high));
  EXPECT_EQ(Release(high), ReleaseOutcome::kWithdrawn);
  EXPECT_EQ(Extend(holder, Long()).outcome, ExtendOutcome::kExtended)
      << "the displaced reservation does not come back by itself";
  EXPECT_TRUE(Reserves(low)) << "but by its next poll";
}

TEST_P(ConformanceTest, AThiefThatEnteredIsPreemptedInTurn) {
  Attempt holder = Party("holder", 0);
  Attempt first_thief = Thief("first", 1);
  Attempt second_thief = Thief("second", 2);
  Attempt third_thief = Thief("third", 3);
  ASSERT_TRUE(Obtains(holder));
  ASSERT_TRUE(Reserves(first_thief));
  Release(holder);
  ASSERT_TRUE(Obtains(first_thief));
  ASSERT_TRUE(Reserves(second_thief));
  ASSERT_TRUE(Reserves(third_thief));
  EXPECT_TRUE(Holds(first_thief)) << "it has not left yet";
  Release(first_thief);
  EXPECT_TRUE(IsDenied(second_thief));
  EXPECT_TRUE(Obtains(third_thief));
}

// ---- Forced hand-over
// ----------------------------------------------------------------------------

TEST_P(ConformanceTest, WithNoGraceTheSecondRequestTakesOver) {
  if (!capabilities().forced_handover) GTEST_SKIP() << "no forced hand-over";
  Attempt holder = Party("holder", 1);
  Attempt inner = Party("holder", 1);
  Attempt thief = Thief("thief", 2);
  thief.request.grace = absl::ZeroDuration();
  ASSERT_TRUE(Obtains(holder));
  Obtain(inner);
  const ObtainReply reserved = Obtain(thief);
  EXPECT_EQ(reserved.outcome, ObtainOutcome::kReserved) << "the first one reserves";
  EXPECT_EQ(reserved.grace_remaining, absl::ZeroDuration());
  EXPECT_TRUE(Obtains(thief));
  EXPECT_GT(thief.token, holder.token);
  for (const Attempt* const old : {&holder, &inner}) {
    ASSERT_EQ(Extend(*old, Long()).outcome, ExtendOutcome::kNotHeld);
    ASSERT_EQ(Release(*old), ReleaseOutcome::kNotHeld);
  }
  EXPECT_TRUE(Holds(thief));
}

TEST_P(ConformanceTest, AGraceIsWaitedForAndCountsDown) {
  if (!capabilities().forced_handover) GTEST_SKIP() << "no forced hand-over";
  Attempt holder = Party("holder", 1);
  Attempt thief = Thief("thief", 2);
  thief.request.grace = Units(5);
  ASSERT_TRUE(Obtains(holder));
  if (exact()) {
    for (int i = 0; i < 5; ++i) {
      const ObtainReply reply = Obtain(thief);
      ASSERT_EQ(reply.outcome, ObtainOutcome::kReserved);
      ASSERT_EQ(reply.grace_remaining, Units(5 - i)) << "polling does not move the grace";
      Advance(i < 4 ? Units(1) : Units(1) - absl::Milliseconds(1));
    }
    EXPECT_TRUE(Reserves(thief)) << "not yet";
    Advance(absl::Milliseconds(1));
  } else {
    ASSERT_TRUE(Reserves(thief));
    Advance(Units(5));
  }
  EXPECT_TRUE(Obtains(thief)) << "at its very end";
  EXPECT_GT(thief.token, holder.token);
  EXPECT_FALSE(Holds(holder));
}

TEST_P(ConformanceTest, WithoutAGraceNobodyTakesOverByForce) {
  Attempt holder = Party("holder", 1);
  Attempt thief = Thief("thief", 2);
  ASSERT_TRUE(Obtains(holder));
  for (int i = 0; i < 5; ++i) {
    ASSERT_TRUE(Reserves(thief));
    Advance(exact() ? Units(50) : Units(1));
  }
  EXPECT_TRUE(Holds(holder));
}

TEST_P(ConformanceTest, AHolderThatYieldsInTimeIsNotForced) {
  if (!capabilities().forced_handover) GTEST_SKIP() << "no forced hand-over";
  Attempt holder = Party("holder", 1);
  Attempt thief = Thief("thief", 2);
  thief.request.grace = Units(100);
  ASSERT_TRUE(Obtains(holder));
  ASSERT_TRUE(Reserves(thief));
  EXPECT_EQ(Release(holder), ReleaseOutcome::kReleased);
  EXPECT_TRUE(Obtains(thief));
}

TEST_P(ConformanceTest, AGraceMayBeAskedForLater) {
  if (!capabilities().forced_handover) GTEST_SKIP() << "no forced hand-over";
  Attempt holder = Party("holder", 1);
  Attempt thief = Thief("thief", 2);
  ASSERT_TRUE(Obtains(holder));
  ASSERT_TRUE(Reserves(thief));
  Advance(Units(10));
  thief.request.grace = Units(2);
  const ObtainReply reply = Obtain(thief);
  EXPECT_EQ(reply.outcome, ObtainOutcome::kReserved) << "it counts from when it was asked for";
  ExpectRemaining(reply.grace_remaining, Units(2));
  Advance(Units(2));
  EXPECT_TRUE(Obtains(thief));
}

TEST_P(ConformanceTest, AThiefThatNoLongerAsksForAGraceDoesNotTakeOver) {
  if (!capabilities().forced_handover) GTEST_SKIP() << "no forced hand-over";
  Attempt holder = Party("holder", 1);
  Attempt thief = Thief("thief", 2);
  thief.request.grace = Units(1);
  ASSERT_TRUE(Obtains(holder));
  ASSERT_TRUE(Reserves(thief));
  Advance(Units(2));
  thief.request.grace = std::nullopt;
  EXPECT_TRUE(Reserves(thief));
  EXPECT_TRUE(Holds(holder));
}

TEST_P(ConformanceTest, AGraceIsNotInheritedByWhoeverDisplaces) {
  if (!capabilities().forced_handover) GTEST_SKIP() << "no forced hand-over";
  Attempt holder = Party("holder", 1);
  Attempt low = Thief("low", 2);
  low.request.grace = Units(1);
  Attempt high = Thief("high", 3);
  high.request.grace = Units(100);
  ASSERT_TRUE(Obtains(holder));
  ASSERT_TRUE(Reserves(low));
  Advance(Units(2));
  const ObtainReply reply = Obtain(high);
  EXPECT_EQ(reply.outcome, ObtainOutcome::kReserved);
  ExpectRemaining(reply.grace_remaining, Units(100));
  EXPECT_TRUE(Reserves(high));
  EXPECT_TRUE(IsDenied(low)) << "its grace went with its reservation";
  EXPECT_TRUE(Holds(holder));
}

TEST_P(ConformanceTest, AReservationThatRanOutStartsItsGraceAnew) {
  if (!capabilities().forced_handover) GTEST_SKIP() << "no forced hand-over";
  Attempt holder = Party("holder", 1);
  Attempt thief = Thief("thief", 2);
  thief.request.grace = Units(20);
  thief.request.reservation_lease = Units(1);
  ASSERT_TRUE(Obtains(holder));
  ASSERT_TRUE(Reserves(thief));
  Advance(Units(20));
  thief.request.reservation_lease = Long();
  const ObtainReply reply = Obtain(thief);
  EXPECT_EQ(reply.outcome, ObtainOutcome::kReserved)
      << "only a reservation that stood all the time takes over";
  ExpectRemaining(reply.grace_remaining, Units(20));
}

TEST_P(ConformanceTest, AHolderThatRoseAboveTheThiefIsNotForced) {
  if (!capabilities().forced_handover) GTEST_SKIP() << "no forced hand-over";
  Attempt holder = Party("holder", 1);
  Attempt raise = Party("holder", 5);
  Attempt thief = Thief("thief", 2);
  thief.request.grace = Units(1);
  ASSERT_TRUE(Obtains(holder));
  ASSERT_TRUE(Reserves(thief));
  Obtain(raise);
  Advance(Units(2));
  EXPECT_TRUE(IsDenied(thief));
  EXPECT_TRUE(Holds(holder));
}

TEST_P(ConformanceTest, TokensIncreaseThroughAChainOfForce) {
  if (!capabilities().forced_handover) GTEST_SKIP() << "no forced hand-over";
  Attempt holder = Party("holder", 0);
  ASSERT_TRUE(Obtains(holder));
  FencingToken last = holder.token;
  for (int i = 1; i <= 5; ++i) {
    Attempt thief = Thief(absl::StrCat("thief ", i), i);
    thief.request.grace = absl::ZeroDuration();
    ASSERT_TRUE(Reserves(thief));
    ASSERT_TRUE(Obtains(thief));
    ASSERT_GT(thief.token, last);
    last = thief.token;
  }
}

TEST_P(ConformanceTest, AGraceIsUnimplementedWhereForceIsNotOffered) {
  if (capabilities().forced_handover) GTEST_SKIP() << "forced hand-over is offered";
  Attempt holder = Party("holder", 1);
  Attempt thief = Thief("thief", 2);
  thief.request.grace = Units(1);
  ASSERT_TRUE(Obtains(holder));
  EXPECT_EQ(TryObtain(thief).status().code(), absl::StatusCode::kUnimplemented);
  EXPECT_EQ(Extend(holder, Long()).outcome, ExtendOutcome::kExtended);
}

}  // namespace
}  // namespace latchkey

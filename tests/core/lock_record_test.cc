// The reference of all backends: each line of the protocol, what is told to whom, and, on random
// steps, what holds at every moment. Replies alone are also covered by tests/conformance.
#include "latchkey/core/protocol/lock_record.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "latchkey/tests/support/random_steps.h"

namespace latchkey {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr AcquisitionId kA = {1, 1};
constexpr AcquisitionId kA2 = {1, 2};
constexpr AcquisitionId kThief = {2, 1};
constexpr AcquisitionId kHigher = {3, 1};
constexpr AcquisitionId kOther = {4, 1};

const absl::Time kStart = absl::UnixEpoch() + absl::Hours(1);

ObtainRequest Request(AcquisitionId id, std::string_view owner, Priority priority = 0) {
  return {.resource = "r",
          .acquisition = id,
          .owner = owner,
          .priority = priority,
          .lease = absl::Seconds(10),
          .reservation_lease = absl::Seconds(2)};
}

ObtainRequest ThiefRequest(AcquisitionId id, std::string_view owner, Priority priority) {
  ObtainRequest request = Request(id, owner, priority);
  request.reserve_below = std::numeric_limits<Priority>::max();
  return request;
}

// One record, and what its last step did.
class LockRecordTest : public testing::Test {
 protected:
  ObtainReply Obtain(const ObtainRequest& request) {
    effects_ = {};
    return Apply(record_, request, now_, effects_);
  }
  ReleaseOutcome Release(AcquisitionId id) {
    effects_ = {};
    return ApplyRelease(record_, id, now_, effects_);
  }
  ExtendReply Extend(AcquisitionId id, absl::Duration lease) {
    effects_ = {};
    return ApplyExtend(record_, id, lease, now_, effects_);
  }
  ConfirmReply Confirm(AcquisitionId id, FencingToken token) {
    effects_ = {};
    return ApplyConfirm(record_, id, token, now_, effects_);
  }
  void ExpireNow() {
    effects_ = {};
    Expire(record_, now_, effects_);
  }

  // "kind to ids" of each notice, in order.
  std::vector<std::string> Told() const {
    std::vector<std::string> told;
    for (const Notice& notice : effects_.notices) {
      std::string line;
      switch (notice.event.kind) {
        case WatchEventKind::kYieldRequested:
          line = "yield requested";
          break;
        case WatchEventKind::kYieldWithdrawn:
          line = "yield withdrawn";
          break;
        case WatchEventKind::kHoldEnded:
          line = notice.event.why == HoldEnd::kExpired  ? "expired"
                 : notice.event.why == HoldEnd::kStolen ? "stolen"
                                                        : "released";
          break;
        case WatchEventKind::kDisplaced:
          line = notice.event.why == HoldEnd::kExpired ? "reservation ran out" : "displaced";
          break;
      }
      for (const AcquisitionId& id : notice.to) absl::StrAppend(&line, " ", id.high, ".", id.low);
      told.push_back(line);
    }
    return told;
  }

  // A holder of priority 1 named "a" with handles kA and kA2, then a thief of priority 5.
  void HoldAndReserve() {
    Obtain(Request(kA, "a", 1));
    Obtain(Request(kA2, "a", 1));
    EXPECT_EQ(Obtain(ThiefRequest(kThief, "thief", 5)).outcome, ObtainOutcome::kReserved);
  }

  LockRecord record_;
  Effects effects_;
  absl::Time now_ = kStart;
};

// ---- Obtain
// --------------------------------------------------------------------------------------

TEST_F(LockRecordTest, AFreeRecordIsGrantedWithTheNextToken) {
  record_.fence = 41;
  const ObtainReply reply = Obtain(Request(kA, "a", 3));
  EXPECT_EQ(reply.outcome, ObtainOutcome::kObtained);
  EXPECT_EQ(reply.token, 42u);
  EXPECT_EQ(reply.remaining, absl::Seconds(10));
  EXPECT_EQ(record_.fence, 42u);
  ASSERT_TRUE(record_.holder);
  EXPECT_EQ(record_.holder->owner, "a");
  EXPECT_THAT(record_.holder->handles, ElementsAre(kA));
  EXPECT_EQ(record_.holder->priority, 3);
  EXPECT_EQ(record_.holder->token, 42u);
  EXPECT_EQ(record_.holder->deadline, kStart + absl::Seconds(10));
  EXPECT_TRUE(effects_.changed);
  EXPECT_FALSE(effects_.became_free);
  EXPECT_THAT(Told(), IsEmpty());
}

TEST_F(LockRecordTest, ARepetitionOfAGrantChangesNothing) {
  Obtain(Request(kA, "a"));
  const LockRecord before = record_;
  EXPECT_EQ(Obtain(Request(kA, "a")).outcome, ObtainOutcome::kReentered);
  EXPECT_EQ(record_, before);
  EXPECT_FALSE(effects_.changed);
}

TEST_F(LockRecordTest, ReentryAddsAHandleAndKeepsTokenAndDeadline) {
  Obtain(Request(kA, "a"));
  now_ += absl::Seconds(4);
  const ObtainReply reply = Obtain(Request(kA2, "a"));
  EXPECT_EQ(reply.outcome, ObtainOutcome::kReentered);
  EXPECT_EQ(reply.token, 1u);
  EXPECT_EQ(reply.remaining, absl::Seconds(6));
  EXPECT_THAT(record_.holder->handles, ElementsAre(kA, kA2));
  EXPECT_EQ(record_.holder->deadline, kStart + absl::Seconds(10));
  EXPECT_TRUE(effects_.changed);
}

TEST_F(LockRecordTest, AnonymousOwnersDoNotReenter) {
  Obtain(Request(kA, ""));
  EXPECT_EQ(Obtain(Request(kA2, "")).outcome, ObtainOutcome::kDenied);
  EXPECT_EQ(Obtain(Request(kA, "")).outcome, ObtainOutcome::kReentered);
}

TEST_F(LockRecordTest, ReentryThatOutranksTheSuccessorDropsIt) {
  HoldAndReserve();
  Obtain(Request(kOther, "a", 5));
  EXPECT_FALSE(record_.successor);
  EXPECT_EQ(record_.holder->priority, 5);
  EXPECT_THAT(Told(), ElementsAre("displaced 2.1", "yield withdrawn 1.1 1.2 4.1"));
}

TEST_F(LockRecordTest, ReentryBelowTheSuccessorKeepsIt) {
  HoldAndReserve();
  Obtain(Request(kOther, "a", 4));
  EXPECT_TRUE(record_.successor);
  EXPECT_EQ(record_.holder->priority, 4);
  EXPECT_THAT(Told(), IsEmpty());
}

TEST_F(LockRecordTest, ReentryThatIsNotPreemptibleDropsTheSuccessor) {
  HoldAndReserve();
  ObtainRequest inner = Request(kOther, "a", 1);
  inner.preemptible = false;
  EXPECT_EQ(Obtain(inner).outcome, ObtainOutcome::kReentered);
  EXPECT_FALSE(record_.successor);
  EXPECT_EQ(record_.holder->priority, 1);
  EXPECT_THAT(Told(), ElementsAre("displaced 2.1", "yield withdrawn 1.1 1.2 4.1"));
  EXPECT_EQ(Extend(kA, absl::Seconds(20)).outcome, ExtendOutcome::kExtended);
  EXPECT_EQ(Obtain(ThiefRequest(kThief, "thief", 5)).outcome, ObtainOutcome::kDenied);
}

TEST_F(LockRecordTest, ReentryThatIsNotPreemptibleEndsAGraceThatRan) {
  Obtain(Request(kA, "a", 1));
  ObtainRequest thief = ThiefRequest(kThief, "thief", 5);
  thief.grace = absl::Seconds(1);
  EXPECT_EQ(Obtain(thief).outcome, ObtainOutcome::kReserved);
  ObtainRequest inner = Request(kA2, "a", 1);
  inner.preemptible = false;
  Obtain(inner);
  now_ += absl::Seconds(1);
  EXPECT_EQ(Obtain(thief).outcome, ObtainOutcome::kDenied);
  EXPECT_THAT(record_.holder->handles, ElementsAre(kA, kA2));
}

TEST_F(LockRecordTest, AReservationTellsEveryHandleToYield) {
  HoldAndReserve();
  EXPECT_EQ(record_.successor->acquisition, kThief);
  EXPECT_EQ(record_.successor->owner, "thief");
  EXPECT_EQ(record_.successor->priority, 5);
  EXPECT_EQ(record_.successor->deadline, kStart + absl::Seconds(2));
  EXPECT_EQ(record_.successor->grace_end, absl::InfiniteFuture());
  EXPECT_THAT(Told(), ElementsAre("yield requested 1.1 1.2"));
  EXPECT_EQ(effects_.notices[0].event.thief_priority, 5);
  EXPECT_EQ(effects_.notices[0].event.grace_remaining, absl::InfiniteDuration());
  EXPECT_FALSE(effects_.became_free);
}

TEST_F(LockRecordTest, APollRefreshesTheReservationAndTellsTheHolderAgain) {
  HoldAndReserve();
  now_ += absl::Seconds(1);
  EXPECT_EQ(Obtain(ThiefRequest(kThief, "thief", 5)).outcome, ObtainOutcome::kReserved);
  EXPECT_EQ(record_.successor->deadline, now_ + absl::Seconds(2));
  EXPECT_THAT(Told(), ElementsAre("yield requested 1.1 1.2"));
}

TEST_F(LockRecordTest, AHigherThiefDisplacesTheReservation) {
  HoldAndReserve();
  EXPECT_EQ(Obtain(ThiefRequest(kHigher, "higher", 6)).outcome, ObtainOutcome::kReserved);
  EXPECT_EQ(record_.successor->acquisition, kHigher);
  EXPECT_THAT(Told(), ElementsAre("displaced 2.1", "yield requested 1.1 1.2"));
  EXPECT_EQ(effects_.notices[1].event.thief_priority, 6);
}

TEST_F(LockRecordTest, ADenialChangesNothingAndTellsNobody) {
  HoldAndReserve();
  const LockRecord before = record_;
  for (const ObtainRequest& request :
       {ThiefRequest(kOther, "other", 5), ThiefRequest(kOther, "other", 1),
        Request(kOther, "other", 100)}) {
    const ObtainReply reply = Obtain(request);
    EXPECT_EQ(reply.outcome, ObtainOutcome::kDenied);
    EXPECT_EQ(reply.other_owner, "a");
    EXPECT_EQ(reply.other_priority, 1);
    EXPECT_EQ(reply.remaining, absl::Seconds(10));
    EXPECT_EQ(record_, before);
    EXPECT_FALSE(effects_.changed);
    EXPECT_THAT(Told(), IsEmpty());
  }
}

TEST_F(LockRecordTest, WhoMayReserve) {
  Obtain(Request(kA, "a", 3));
  const LockRecord held = record_;
  const auto outcome = [&](Priority priority, std::optional<Priority> below) {
    record_ = held;
    ObtainRequest request = Request(kThief, "thief", priority);
    request.reserve_below = below;
    return Obtain(request).outcome;
  };
  EXPECT_EQ(outcome(4, 4), ObtainOutcome::kReserved);
  EXPECT_EQ(outcome(4, 3), ObtainOutcome::kDenied) << "the bound is not below the bound";
  EXPECT_EQ(outcome(3, 4), ObtainOutcome::kDenied) << "equal priority";
  EXPECT_EQ(outcome(2, 4), ObtainOutcome::kDenied);
  EXPECT_EQ(outcome(4, std::nullopt), ObtainOutcome::kDenied);
}

TEST_F(LockRecordTest, WhatIsNotPreemptibleIsNotReserved) {
  ObtainRequest request = Request(kA, "a", 3);
  request.preemptible = false;
  Obtain(request);
  EXPECT_EQ(Obtain(ThiefRequest(kThief, "thief", 4)).outcome, ObtainOutcome::kDenied);
  EXPECT_FALSE(record_.successor);
}

TEST_F(LockRecordTest, OneHandleThatIsNotPreemptibleMakesTheHoldSo) {
  Obtain(Request(kA, "a"));
  ObtainRequest inner = Request(kA2, "a");
  inner.preemptible = false;
  Obtain(inner);
  EXPECT_FALSE(record_.holder->preemptible);
  EXPECT_TRUE(effects_.changed);
  Obtain(Request(kOther, "a"));
  EXPECT_FALSE(record_.holder->preemptible);
}

TEST_F(LockRecordTest, OnlyTheSuccessorThatAsksForItTakesOverByForce) {
  Obtain(Request(kA, "a", 1));
  ObtainRequest thief = ThiefRequest(kThief, "thief", 5);
  thief.grace = absl::ZeroDuration();
  EXPECT_EQ(Obtain(thief).outcome, ObtainOutcome::kReserved);
  ObtainRequest higher = ThiefRequest(kHigher, "higher", 6);
  higher.grace = absl::ZeroDuration();
  EXPECT_EQ(Obtain(higher).outcome, ObtainOutcome::kReserved) << "the grace is that of another";
  higher.grace = std::nullopt;
  EXPECT_EQ(Obtain(higher).outcome, ObtainOutcome::kReserved) << "it no longer asks";
  higher.grace = absl::ZeroDuration();
  EXPECT_EQ(Obtain(higher).outcome, ObtainOutcome::kObtained);
}

TEST_F(LockRecordTest, ADenialByASuccessorNamesIt) {
  HoldAndReserve();
  Release(kA);
  Release(kA2);
  now_ += absl::Seconds(1);
  const ObtainReply reply = Obtain(Request(kOther, "other", 5));
  EXPECT_EQ(reply.outcome, ObtainOutcome::kDenied);
  EXPECT_EQ(reply.other_owner, "thief");
  EXPECT_EQ(reply.other_priority, 5);
  EXPECT_EQ(reply.remaining, absl::Seconds(1));
}

TEST_F(LockRecordTest, TheSuccessorEntersAFreedRecord) {
  HoldAndReserve();
  Release(kA);
  Release(kA2);
  const ObtainReply reply = Obtain(ThiefRequest(kThief, "thief", 5));
  EXPECT_EQ(reply.outcome, ObtainOutcome::kObtained);
  EXPECT_EQ(reply.token, 2u);
  EXPECT_FALSE(record_.successor);
  EXPECT_THAT(record_.holder->handles, ElementsAre(kThief));
  EXPECT_THAT(Told(), IsEmpty());
}

TEST_F(LockRecordTest, AHigherRequestTakesAFreedRecordAndTellsTheSuccessor) {
  HoldAndReserve();
  Release(kA);
  Release(kA2);
  EXPECT_EQ(Obtain(Request(kHigher, "higher", 6)).outcome, ObtainOutcome::kObtained);
  EXPECT_FALSE(record_.successor);
  EXPECT_THAT(Told(), ElementsAre("displaced 2.1"));
  EXPECT_FALSE(effects_.became_free);
}

TEST_F(LockRecordTest, ForcedHandOverTellsTheOldHolderAndGivesANewToken) {
  Obtain(Request(kA, "a", 1));
  ObtainRequest thief = ThiefRequest(kThief, "thief", 5);
  thief.grace = absl::Seconds(1);
  EXPECT_EQ(Obtain(thief).grace_remaining, absl::Seconds(1));
  EXPECT_EQ(record_.successor->grace_end, kStart + absl::Seconds(1));
  now_ += absl::Seconds(1);
  const ObtainReply reply = Obtain(thief);
  EXPECT_EQ(reply.outcome, ObtainOutcome::kObtained);
  EXPECT_EQ(reply.token, 2u);
  EXPECT_THAT(Told(), ElementsAre("stolen 1.1"));
  EXPECT_FALSE(effects_.became_free) << "nobody else is to be woken";
}

TEST_F(LockRecordTest, AGraceIsNotMovedByPollsAndNotTakenBack) {
  Obtain(Request(kA, "a", 1));
  ObtainRequest thief = ThiefRequest(kThief, "thief", 5);
  thief.reservation_lease = absl::Seconds(100);
  Obtain(thief);
  EXPECT_EQ(record_.successor->grace_end, absl::InfiniteFuture());
  thief.grace = absl::Seconds(3);
  Obtain(thief);
  EXPECT_EQ(record_.successor->grace_end, kStart + absl::Seconds(3));
  now_ += absl::Seconds(1);
  thief.grace = absl::Seconds(50);
  EXPECT_EQ(Obtain(thief).grace_remaining, absl::Seconds(2));
  thief.grace = std::nullopt;
  EXPECT_EQ(Obtain(thief).grace_remaining, absl::Seconds(2));
  EXPECT_EQ(record_.successor->grace_end, kStart + absl::Seconds(3));
}

// ---- Release
// -------------------------------------------------------------------------------------

TEST_F(LockRecordTest, TheLastHandleFreesTheRecordAndItsReleaseIsNoNewsToIt) {
  Obtain(Request(kA, "a"));
  Obtain(Request(kA2, "a"));
  EXPECT_EQ(Release(kA), ReleaseOutcome::kReleased);
  EXPECT_TRUE(effects_.changed);
  EXPECT_FALSE(effects_.became_free);
  EXPECT_THAT(record_.holder->handles, ElementsAre(kA2));
  EXPECT_EQ(Release(kA2), ReleaseOutcome::kReleased);
  EXPECT_TRUE(effects_.became_free);
  EXPECT_EQ(effects_.why, HoldEnd::kReleased);
  EXPECT_THAT(Told(), IsEmpty());
  EXPECT_TRUE(record_.IsFree());
  EXPECT_EQ(record_.fence, 1u) << "the fence stays";
}

TEST_F(LockRecordTest, ReleaseOfWhoIsNobodyHereChangesNothing) {
  HoldAndReserve();
  const LockRecord before = record_;
  EXPECT_EQ(Release(kOther), ReleaseOutcome::kNotHeld);
  EXPECT_EQ(record_, before);
  EXPECT_FALSE(effects_.changed);
  EXPECT_FALSE(effects_.became_free);
}

TEST_F(LockRecordTest, WithdrawalTellsTheHolderAndNotTheThief) {
  HoldAndReserve();
  const auto holder = record_.holder;
  EXPECT_EQ(Release(kThief), ReleaseOutcome::kWithdrawn);
  EXPECT_EQ(record_.holder, holder);
  EXPECT_FALSE(record_.successor);
  EXPECT_FALSE(effects_.became_free);
  EXPECT_THAT(Told(), ElementsAre("yield withdrawn 1.1 1.2"));
}

TEST_F(LockRecordTest, WithdrawalFromAFreedRecordWakesTheNext) {
  HoldAndReserve();
  Release(kA);
  Release(kA2);
  EXPECT_TRUE(effects_.became_free) << "so that the successor is told";
  EXPECT_EQ(Release(kThief), ReleaseOutcome::kWithdrawn);
  EXPECT_TRUE(effects_.became_free);
  EXPECT_TRUE(record_.IsFree());
}

// ---- Extend
// --------------------------------------------------------------------------------------

TEST_F(LockRecordTest, ExtendOnlyLengthens) {
  Obtain(Request(kA, "a"));
  EXPECT_EQ(Extend(kA, absl::Seconds(20)).remaining, absl::Seconds(20));
  EXPECT_TRUE(effects_.changed);
  EXPECT_EQ(Extend(kA, absl::Seconds(5)).remaining, absl::Seconds(20));
  EXPECT_FALSE(effects_.changed);
  EXPECT_EQ(Extend(kA, absl::InfiniteDuration()).remaining, absl::InfiniteDuration());
  EXPECT_EQ(Extend(kA, absl::Seconds(5)).remaining, absl::InfiniteDuration());
}

TEST_F(LockRecordTest, ExtendIsRefusedToWhoIsNoHandleAndWhileASuccessorStands) {
  HoldAndReserve();
  const LockRecord before = record_;
  EXPECT_EQ(Extend(kOther, absl::Seconds(99)).outcome, ExtendOutcome::kNotHeld);
  EXPECT_EQ(Extend(kThief, absl::Seconds(99)).outcome, ExtendOutcome::kNotHeld);
  const ExtendReply reply = Extend(kA, absl::Seconds(99));
  EXPECT_EQ(reply.outcome, ExtendOutcome::kReserved);
  EXPECT_EQ(reply.remaining, absl::Seconds(10));
  EXPECT_EQ(record_, before);
}

// ---- Expiry
// --------------------------------------------------------------------------------------

TEST_F(LockRecordTest, AHolderIsDroppedAtItsDeadlineAndTold) {
  Obtain(Request(kA, "a"));
  Obtain(Request(kA2, "a"));
  now_ = kStart + absl::Seconds(10) - absl::Nanoseconds(1);
  ExpireNow();
  EXPECT_FALSE(effects_.changed);
  EXPECT_TRUE(record_.holder);
  now_ = kStart + absl::Seconds(10);
  ExpireNow();
  EXPECT_TRUE(effects_.changed);
  EXPECT_TRUE(effects_.became_free);
  EXPECT_EQ(effects_.why, HoldEnd::kExpired);
  EXPECT_THAT(Told(), ElementsAre("expired 1.1 1.2"));
  EXPECT_TRUE(record_.IsFree());
}

TEST_F(LockRecordTest, AReservationIsDroppedAtItsDeadlineAndBothSidesAreTold) {
  HoldAndReserve();
  now_ += absl::Seconds(2);
  ExpireNow();
  EXPECT_TRUE(record_.holder);
  EXPECT_FALSE(record_.successor);
  EXPECT_FALSE(effects_.became_free);
  EXPECT_THAT(Told(), ElementsAre("reservation ran out 2.1", "yield withdrawn 1.1 1.2"));
}

TEST_F(LockRecordTest, AReservationThatRunsOutOnAFreedRecordWakesTheNext) {
  HoldAndReserve();
  Release(kA);
  Release(kA2);
  now_ += absl::Seconds(2);
  ExpireNow();
  EXPECT_TRUE(effects_.became_free);
  EXPECT_THAT(Told(), ElementsAre("reservation ran out 2.1"));
}

TEST_F(LockRecordTest, HolderAndReservationMayEndTogether) {
  HoldAndReserve();
  now_ += absl::Seconds(10);
  ExpireNow();
  EXPECT_TRUE(record_.IsFree());
  EXPECT_TRUE(effects_.became_free);
  EXPECT_THAT(Told(), ElementsAre("expired 1.1 1.2", "reservation ran out 2.1"));
}

TEST_F(LockRecordTest, EveryStepDropsFirstWhatIsOver) {
  const auto with_expired_hold = [&] {
    record_ = {};
    now_ = kStart;
    Obtain(Request(kA, "a"));
    now_ += absl::Seconds(10);
  };
  with_expired_hold();
  EXPECT_EQ(Obtain(Request(kA, "a")).outcome, ObtainOutcome::kObtained) << "not re-entered";
  EXPECT_THAT(Told(), ElementsAre("expired 1.1"));
  EXPECT_FALSE(effects_.became_free) << "taken in the same step";
  with_expired_hold();
  EXPECT_EQ(Release(kA), ReleaseOutcome::kNotHeld);
  EXPECT_TRUE(effects_.became_free);
  with_expired_hold();
  EXPECT_EQ(Extend(kA, absl::Seconds(1)).outcome, ExtendOutcome::kNotHeld);
  EXPECT_TRUE(effects_.became_free);
  with_expired_hold();
  EXPECT_EQ(Confirm(kA, 5).outcome, ConfirmOutcome::kNotHeld);
  EXPECT_TRUE(effects_.became_free);
}

TEST_F(LockRecordTest, InfiniteDeadlinesAreNeverOver) {
  ObtainRequest request = Request(kA, "a");
  request.lease = absl::InfiniteDuration();
  EXPECT_EQ(Obtain(request).remaining, absl::InfiniteDuration());
  now_ = absl::UnixEpoch() + absl::Hours(24 * 365 * 10000);
  ExpireNow();
  EXPECT_TRUE(record_.holder);
  EXPECT_EQ(Obtain(Request(kOther, "b")).remaining, absl::InfiniteDuration());
}

// ---- A clock that was stepped back
// ---------------------------------------------------------------

TEST_F(LockRecordTest, AHoldLastsForItsOwnLengthAtMostWhenTheClockGoesBack) {
  Obtain(Request(kA, "a"));
  now_ = kStart - absl::Hours(2);
  // Whoever looks counts, whatever its own terms are.
  ObtainRequest short_one = Request(kOther, "other");
  short_one.lease = absl::Milliseconds(1);
  EXPECT_EQ(Obtain(short_one).remaining, absl::Seconds(10));
  EXPECT_TRUE(effects_.changed) << "or every look would begin it anew";
  EXPECT_EQ(record_.holder->deadline, now_ + absl::Seconds(10));
  EXPECT_EQ(record_.holder->token, 1u);
  EXPECT_THAT(Told(), IsEmpty());
  now_ += absl::Seconds(9);
  EXPECT_EQ(Obtain(short_one).remaining, absl::Seconds(1));
  EXPECT_FALSE(effects_.changed);
  now_ += absl::Seconds(1);
  const ObtainReply next = Obtain(short_one);
  EXPECT_EQ(next.outcome, ObtainOutcome::kObtained);
  EXPECT_EQ(next.token, 2u) << "the fence does not go back with the clock";
}

TEST_F(LockRecordTest, EveryStepLooksAtTheClock) {
  const auto stepped_back = [&] {
    record_ = {};
    now_ = kStart;
    Obtain(Request(kA, "a"));
    now_ -= absl::Hours(2);
  };
  const auto left = [&] { return record_.holder->deadline - now_; };
  stepped_back();
  Release(kOther);
  EXPECT_EQ(left(), absl::Seconds(10));
  stepped_back();
  EXPECT_EQ(Extend(kA, absl::Seconds(3)).remaining, absl::Seconds(10));
  EXPECT_EQ(left(), absl::Seconds(10));
  stepped_back();
  Confirm(kOther, 1);
  EXPECT_EQ(left(), absl::Seconds(10));
  stepped_back();
  EXPECT_EQ(Obtain(Request(kA2, "a")).remaining, absl::Seconds(10)) << "re-entered";
  stepped_back();
  ExpireNow();
  EXPECT_TRUE(effects_.changed);
  EXPECT_EQ(left(), absl::Seconds(10));
}

TEST_F(LockRecordTest, AHoldsLengthIsTheLongestOfItsGrantAndItsExtensions) {
  Obtain(Request(kA, "a"));
  now_ += absl::Seconds(5);
  Extend(kA, absl::Seconds(30));
  Extend(kA, absl::Seconds(3));
  now_ -= absl::Hours(2);
  ExpireNow();
  EXPECT_EQ(record_.holder->deadline, now_ + absl::Seconds(30));
  // A step that is smaller than what has passed leaves the deadline where it is.
  now_ += absl::Seconds(25);
  ExpireNow();
  EXPECT_FALSE(effects_.changed);
  now_ -= absl::Seconds(20);
  ExpireNow();
  EXPECT_FALSE(effects_.changed);
  EXPECT_EQ(record_.holder->deadline, now_ + absl::Seconds(25));
}

TEST_F(LockRecordTest, AReservationAndItsGraceLastForTheirOwnLengthsAtMost) {
  Obtain(Request(kA, "a", 1));
  ObtainRequest thief = ThiefRequest(kThief, "thief", 5);
  thief.grace = absl::Seconds(1);
  Obtain(thief);
  now_ -= absl::Hours(2);
  ExpireNow();
  EXPECT_TRUE(effects_.changed);
  EXPECT_EQ(record_.successor->deadline, now_ + absl::Seconds(2));
  EXPECT_EQ(record_.successor->grace_end, now_ + absl::Seconds(1));
  now_ -= absl::Hours(2);
  thief.grace = absl::Seconds(50);
  EXPECT_EQ(Obtain(thief).grace_remaining, absl::Seconds(1)) << "its own, not the poll's";
  now_ += absl::Seconds(1);
  EXPECT_EQ(Obtain(thief).outcome, ObtainOutcome::kObtained);
}

TEST_F(LockRecordTest, ANomineeThatNeverClaimsKeepsTheRecordForItsReservationAtMost) {
  Nominate(record_, kThief, "waiter", 3, absl::Seconds(1), now_);
  now_ -= absl::Hours(2);
  EXPECT_EQ(Obtain(Request(kOther, "other", 3)).remaining, absl::Seconds(1));
  now_ += absl::Seconds(1);
  EXPECT_EQ(Obtain(Request(kOther, "other", 3)).outcome, ObtainOutcome::kObtained);
}

// ---- Confirm, Nominate, Describe
// -----------------------------------------------------------------

TEST_F(LockRecordTest, ConfirmRaisesTokenAndFenceTogether) {
  Obtain(Request(kA, "a"));
  EXPECT_EQ(Confirm(kA, 7).outcome, ConfirmOutcome::kConfirmed);
  EXPECT_EQ(record_.holder->token, 7u);
  EXPECT_EQ(record_.fence, 7u);
  EXPECT_TRUE(effects_.changed);
  EXPECT_EQ(Confirm(kA, 7).outcome, ConfirmOutcome::kConfirmed);
  EXPECT_FALSE(effects_.changed);
  const ConfirmReply reply = Confirm(kA, 6);
  EXPECT_EQ(reply.outcome, ConfirmOutcome::kRaise);
  EXPECT_EQ(reply.token, 7u);
  EXPECT_EQ(record_.fence, 7u);
  EXPECT_EQ(Confirm(kOther, 99).outcome, ConfirmOutcome::kNotHeld);
  EXPECT_EQ(record_.fence, 7u);
}

TEST_F(LockRecordTest, AMemberIsToldTheFenceWhereItIsGrantedNothing) {
  const auto obtain = [this](const ObtainRequest& request) {
    effects_ = {};
    return ApplyAsMember(record_, request, now_, effects_);
  };
  const MemberReply obtained = obtain(Request(kA, "a"));
  EXPECT_EQ(obtained.reply.outcome, ObtainOutcome::kObtained);
  EXPECT_EQ(obtained.reply.token, 1u);
  EXPECT_EQ(obtained.fence, 0u);
  EXPECT_TRUE(effects_.changed);
  EXPECT_EQ(Confirm(kA, 7).outcome, ConfirmOutcome::kConfirmed);
  const MemberReply denied = obtain(Request(kOther, "other"));
  EXPECT_EQ(denied.reply.outcome, ObtainOutcome::kDenied);
  EXPECT_EQ(denied.reply.other_owner, "a");
  EXPECT_EQ(denied.fence, 7u);
  EXPECT_FALSE(denied.fence_lost);
}

TEST_F(LockRecordTest, NominateReservesAFreeRecordOnly) {
  EXPECT_TRUE(Nominate(record_, kThief, "waiter", 3, absl::Seconds(1), now_));
  EXPECT_EQ(record_.successor->acquisition, kThief);
  EXPECT_EQ(record_.successor->owner, "waiter");
  EXPECT_EQ(record_.successor->priority, 3);
  EXPECT_EQ(record_.successor->deadline, now_ + absl::Seconds(1));
  EXPECT_FALSE(Nominate(record_, kHigher, "higher", 9, absl::Seconds(1), now_));
  EXPECT_EQ(Obtain(Request(kOther, "equal", 3)).outcome, ObtainOutcome::kDenied);
  EXPECT_EQ(Obtain(Request(kThief, "waiter", 3)).outcome, ObtainOutcome::kObtained);
  EXPECT_FALSE(Nominate(record_, kHigher, "higher", 9, absl::Seconds(1), now_));
}

TEST_F(LockRecordTest, DescribeShowsWhatIsThere) {
  EXPECT_FALSE(Describe(record_, "r", now_).held);
  HoldAndReserve();
  now_ += absl::Seconds(1);
  const ResourceState state = Describe(record_, "r", now_);
  EXPECT_EQ(state.resource, "r");
  EXPECT_TRUE(state.held);
  EXPECT_EQ(state.holder_owner, "a");
  EXPECT_EQ(state.holder_priority, 1);
  EXPECT_EQ(state.handles, 2);
  EXPECT_EQ(state.token, 1u);
  EXPECT_EQ(state.remaining_lease, absl::Seconds(9));
  EXPECT_TRUE(state.reserved);
  EXPECT_EQ(state.successor_owner, "thief");
  EXPECT_EQ(state.successor_priority, 5);
}

// ---- What always holds
// ---------------------------------------------------------------------------

void ExpectInvariants(const LockRecord& record, absl::Time now) {
  if (record.holder) {
    const LockRecord::Holder& holder = *record.holder;
    EXPECT_FALSE(holder.handles.empty());
    auto handles = holder.handles;
    std::sort(handles.begin(), handles.end());
    EXPECT_EQ(std::adjacent_find(handles.begin(), handles.end()), handles.end()) << "a duplicate";
    EXPECT_GT(holder.deadline, now);
    EXPECT_LE(holder.deadline, now + holder.length) << "blocks for longer than it was granted";
    EXPECT_GE(holder.token, 1u);
    EXPECT_LE(holder.token, record.fence);
  }
  if (record.successor) {
    EXPECT_GT(record.successor->deadline, now);
    EXPECT_LE(record.successor->deadline, now + record.successor->length);
    EXPECT_LE(record.successor->grace_end, now + record.successor->grace);
    if (record.holder) {
      EXPECT_GT(record.successor->priority, record.holder->priority)
          << "a successor strictly outranks the holder";
      EXPECT_TRUE(record.holder->preemptible) << "nobody waits for this holder to yield";
      EXPECT_EQ(std::count(record.holder->handles.begin(), record.holder->handles.end(),
                           record.successor->acquisition),
                0)
          << "nobody waits for itself";
    }
  }
}

TEST(LockRecordPropertyTest, HoldsOnRandomSteps) {
  const uint64_t first_seed = SeedFromEnvironment();
  for (uint64_t seed = first_seed; seed < first_seed + 400; ++seed) {
    SCOPED_TRACE(absl::StrCat("LATCHKEY_SEED=", seed));
    std::mt19937_64 random(seed);
    const auto below = [&](int n) { return static_cast<int>(random() % n); };
    const char* const owners[] = {"", "a", "b", "c"};
    LockRecord record;
    absl::Time now = kStart;
    // Ids have an owner and a priority; few of them, so that they meet often.
    for (int step = 0; step < 250; ++step) {
      const AcquisitionId id = {1, 1 + random() % 12};
      const LockRecord before = record;
      // What is over is dropped first; the step is judged by what is left then.
      LockRecord live = record;
      Effects expired;
      Expire(live, now, expired);
      Effects effects;
      switch (below(8)) {
        case 0:
        case 1:
        case 2:
        case 3: {
          ObtainRequest request =
              Request(id, owners[id.low % 4], static_cast<Priority>(id.low % 5));
          request.preemptible = below(8) != 0;
          request.lease = below(6) == 0 ? absl::InfiniteDuration() : absl::Seconds(1 + below(6));
          if (below(3) != 0) request.reserve_below = below(7);
          if (below(3) == 0) request.grace = absl::Seconds(below(4));
          const ObtainReply reply = Apply(record, request, now, effects);
          switch (reply.outcome) {
            case ObtainOutcome::kObtained:
              EXPECT_EQ(record.fence, before.fence + 1);
              EXPECT_EQ(reply.token, record.fence);
              EXPECT_FALSE(record.successor);
              EXPECT_THAT(record.holder->handles, ElementsAre(id));
              EXPECT_FALSE(effects.became_free);
              if (live.holder) {
                EXPECT_TRUE(request.grace && live.successor && live.successor->acquisition == id &&
                            live.successor->grace_end <= now)
                    << "only forced hand-over replaces a holder";
              }
              if (!live.holder && live.successor && live.successor->acquisition != id) {
                EXPECT_GT(request.priority, live.successor->priority);
              }
              break;
            case ObtainOutcome::kReentered:
              ASSERT_TRUE(live.holder);
              EXPECT_EQ(record.holder->deadline, live.holder->deadline);
              EXPECT_EQ(record.holder->token, live.holder->token);
              EXPECT_EQ(reply.token, live.holder->token);
              EXPECT_GE(record.holder->priority, live.holder->priority);
              EXPECT_GE(record.holder->priority, request.priority);
              break;
            case ObtainOutcome::kReserved:
              EXPECT_EQ(record.holder, live.holder) << "the holder is untouched";
              EXPECT_EQ(record.successor->acquisition, id);
              EXPECT_LT(record.holder->priority, *request.reserve_below);
              EXPECT_EQ(reply.token, 0u);
              break;
            case ObtainOutcome::kDenied:
              EXPECT_EQ(record, live);
              EXPECT_EQ(reply.token, 0u);
              break;
          }
          if (reply.outcome != ObtainOutcome::kReserved) {
            const LockRecord once = record;
            Effects again;
            const ObtainReply repeated = Apply(record, request, now, again);
            EXPECT_EQ(record, once) << "a repetition changes nothing";
            EXPECT_EQ(repeated.token, reply.token);
          }
          break;
        }
        case 4:
        case 5: {
          const ReleaseOutcome outcome = ApplyRelease(record, id, now, effects);
          if (outcome == ReleaseOutcome::kNotHeld) {
            EXPECT_EQ(record, live);
          }
          if (outcome == ReleaseOutcome::kWithdrawn) {
            EXPECT_EQ(record.holder, live.holder);
          }
          if (outcome == ReleaseOutcome::kReleased) {
            EXPECT_EQ(record.successor, live.successor);
            if (record.holder) {
              EXPECT_EQ(record.holder->handles.size(), live.holder->handles.size() - 1);
            }
          }
          EXPECT_EQ(effects.became_free,
                    !record.holder && (before.holder || (before.successor && !record.successor)));
          const LockRecord once = record;
          Effects again;
          EXPECT_EQ(ApplyRelease(record, id, now, again), ReleaseOutcome::kNotHeld);
          EXPECT_EQ(record, once);
          break;
        }
        case 6: {
          const ExtendReply reply =
              ApplyExtend(record, id, absl::Seconds(1 + below(5)), now, effects);
          EXPECT_EQ(record.successor, live.successor);
          if (reply.outcome != ExtendOutcome::kExtended) {
            EXPECT_EQ(record, live);
          }
          if (reply.outcome == ExtendOutcome::kExtended) {
            EXPECT_FALSE(record.successor);
            EXPECT_GE(record.holder->deadline, live.holder->deadline) << "never shortened";
          }
          break;
        }
        default:
          now += below(4) == 0 ? absl::Seconds(5 - below(60)) : absl::Milliseconds(500) * below(5);
          Expire(record, now, effects);
          break;
      }
      ExpectInvariants(record, now);
      EXPECT_GE(record.fence, before.fence) << "the fence never goes back";
      if (record != before) {
        EXPECT_TRUE(effects.changed) << "it has to be stored";
      }
      if (effects.became_free) {
        EXPECT_FALSE(record.holder);
      }
      ASSERT_FALSE(testing::Test::HasFailure()) << "at step " << step;
    }
  }
}

}  // namespace
}  // namespace latchkey

// Obtain on what is free or one's own, Release, Extend, expiry, tokens, hints, bad requests.
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "latchkey/core/lease.h"
#include "latchkey/core/protocol/locking_protocol.h"
#include "latchkey/core/protocol/quorum_member.h"
#include "latchkey/tests/conformance/conformance.h"

namespace latchkey {
namespace {

constexpr Priority kLeast = std::numeric_limits<Priority>::min();
constexpr Priority kMost = std::numeric_limits<Priority>::max();

// ---- Obtain
// --------------------------------------------------------------------------------------

TEST_P(ConformanceTest, AFreeResourceIsObtained) {
  Attempt a = Party("a");
  const ObtainReply reply = Obtain(a);
  EXPECT_EQ(reply.outcome, ObtainOutcome::kObtained);
  EXPECT_GE(reply.token, 1u);
  ExpectRemaining(reply.remaining, Long());
  EXPECT_TRUE(Holds(a));
}

TEST_P(ConformanceTest, ARepeatedObtainIsTheSameHold) {
  Attempt a = Party("a");
  ASSERT_TRUE(Obtains(a));
  const FencingToken token = a.token;
  for (int i = 0; i < 3; ++i) {
    const ObtainReply again = Obtain(a);
    ASSERT_EQ(again.outcome, ObtainOutcome::kReentered);
    ASSERT_EQ(again.token, token);
  }
  EXPECT_EQ(Release(a), ReleaseOutcome::kReleased) << "one release ends it";
  Attempt b = Party("b");
  EXPECT_TRUE(Obtains(b));
}

TEST_P(ConformanceTest, ARepeatedObtainByAnAnonymousOwnerIsTheSameHold) {
  Attempt a = Party("");
  ASSERT_TRUE(Obtains(a));
  const FencingToken token = a.token;
  EXPECT_EQ(Obtain(a).outcome, ObtainOutcome::kReentered);
  EXPECT_EQ(a.token, token);
  EXPECT_EQ(Release(a), ReleaseOutcome::kReleased);
  EXPECT_EQ(Release(a), ReleaseOutcome::kNotHeld);
}

TEST_P(ConformanceTest, ARepeatedObtainDoesNotRenewTheLease) {
  Attempt a = Party("a");
  ASSERT_TRUE(Obtains(a));
  Advance(Units(3));
  ExpectRemaining(Obtain(a).remaining, Long() - Units(3));
}

TEST_P(ConformanceTest, AnotherOwnerIsDeniedAndToldWhoIsInTheWay) {
  Attempt a = Party("the holder", 7);
  Attempt b = Party("b", 3);
  ASSERT_TRUE(Obtains(a));
  Advance(Units(1));
  const ObtainReply reply = Obtain(b);
  EXPECT_EQ(reply.outcome, ObtainOutcome::kDenied);
  EXPECT_EQ(reply.token, 0u);
  EXPECT_EQ(reply.other_owner, "the holder");
  EXPECT_EQ(reply.other_priority, 7);
  ExpectRemaining(reply.remaining, Long() - Units(1));
}

TEST_P(ConformanceTest, ADeniedObtainChangesNothing) {
  Attempt a = Party("a", 7);
  Attempt b = Party("b", 3);
  ASSERT_TRUE(Obtains(a));
  const FencingToken token = a.token;
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(IsDenied(b));
  EXPECT_EQ(Release(b), ReleaseOutcome::kNotHeld);
  EXPECT_EQ(Extend(b, Units(1)).outcome, ExtendOutcome::kNotHeld);
  EXPECT_EQ(Extend(a, Long()).outcome, ExtendOutcome::kExtended);
  EXPECT_EQ(Obtain(a).token, token);
  EXPECT_EQ(Release(a), ReleaseOutcome::kReleased);
  EXPECT_TRUE(Obtains(b));
}

TEST_P(ConformanceTest, AnonymousOwnersAreStrangersToEachOther) {
  Attempt a = Party("");
  Attempt b = Party("");
  ASSERT_TRUE(Obtains(a));
  const ObtainReply reply = Obtain(b);
  EXPECT_EQ(reply.outcome, ObtainOutcome::kDenied);
  EXPECT_EQ(reply.other_owner, "");
}

// ---- Re-entry
// ------------------------------------------------------------------------------------

TEST_P(ConformanceTest, TheSameOwnerReentersWithTheSameToken) {
  Attempt outer = Party("a");
  Attempt inner = Party("a");
  ASSERT_TRUE(Obtains(outer));
  const ObtainReply reply = Obtain(inner);
  EXPECT_EQ(reply.outcome, ObtainOutcome::kReentered);
  EXPECT_EQ(reply.token, outer.token);
  EXPECT_TRUE(Holds(outer));
  EXPECT_TRUE(Holds(inner));
}

TEST_P(ConformanceTest, ReentryTellsTheRemainingLeaseAndDoesNotRenewIt) {
  Attempt outer = Party("a");
  Attempt inner = Party("a");
  outer.request.lease = Units(100);
  ASSERT_TRUE(Obtains(outer));
  Advance(Units(3));
  ExpectRemaining(Obtain(inner).remaining, Units(97));
  inner.request.lease = Units(1);
  ExpectRemaining(Obtain(inner).remaining, Units(97));
}

TEST_P(ConformanceTest, ReentryIsCountedByHandle) {
  Attempt stranger = Party("b");
  std::vector<Attempt> handles;
  for (int i = 0; i < 4; ++i) {
    handles.push_back(Party("a"));
    const ObtainOutcome expected = i == 0 ? ObtainOutcome::kObtained : ObtainOutcome::kReentered;
    ASSERT_EQ(Obtain(handles.back()).outcome, expected);
  }
  for (const int i : {2, 0, 3}) {
    ASSERT_EQ(Release(handles[i]), ReleaseOutcome::kReleased);
    ASSERT_EQ(Release(handles[i]), ReleaseOutcome::kNotHeld) << "a repetition removes no other";
    ASSERT_FALSE(Holds(handles[i]));
    ASSERT_TRUE(IsDenied(stranger));
  }
  EXPECT_TRUE(Holds(handles[1]));
  EXPECT_EQ(Release(handles[1]), ReleaseOutcome::kReleased);
  EXPECT_TRUE(Obtains(stranger));
}

TEST_P(ConformanceTest, ManyHandlesOfOneOwner) {
  constexpr int kHandles = 40;
  std::vector<Attempt> handles;
  for (int i = 0; i < kHandles; ++i) {
    handles.push_back(Party("a"));
    Obtain(handles.back());
  }
  for (int i = 0; i < kHandles; ++i) {
    ASSERT_TRUE(Holds(handles[i]));
    ASSERT_EQ(Release(handles[i]), ReleaseOutcome::kReleased);
  }
  Attempt stranger = Party("b");
  EXPECT_TRUE(Obtains(stranger));
}

TEST_P(ConformanceTest, ReentryRaisesThePriorityAndNeverLowersIt) {
  Attempt outer = Party("a", 5);
  Attempt higher = Party("a", 10);
  Attempt lower = Party("a", 1);
  ASSERT_TRUE(Obtains(outer));
  Obtain(higher);
  Obtain(lower);
  Attempt thief = Thief("b", 10);
  const ObtainReply reply = Obtain(thief);
  EXPECT_EQ(reply.outcome, ObtainOutcome::kDenied);
  EXPECT_EQ(reply.other_priority, 10);
  EXPECT_EQ(Release(higher), ReleaseOutcome::kReleased);
  EXPECT_TRUE(IsDenied(thief)) << "the hold keeps the priority it has risen to";
  Attempt highest = Thief("c", 11);
  EXPECT_TRUE(Reserves(highest));
}

TEST_P(ConformanceTest, AHoldIsPreemptibleOnlyIfEachOfItsHandlesIs) {
  Attempt outer = Party("a");
  Attempt inner = Party("a");
  inner.request.preemptible = false;
  ASSERT_TRUE(Obtains(outer));
  Obtain(inner);
  Attempt thief = Thief("b", 10);
  EXPECT_TRUE(IsDenied(thief));
  EXPECT_EQ(Extend(outer, Long()).outcome, ExtendOutcome::kExtended);
}

TEST_P(ConformanceTest, AThiefOfTheSameOwnerReenters) {
  Attempt outer = Party("a", 1);
  Attempt thief = Thief("a", 10);
  ASSERT_TRUE(Obtains(outer));
  EXPECT_EQ(Obtain(thief).outcome, ObtainOutcome::kReentered);
}

// ---- Release
// -------------------------------------------------------------------------------------

TEST_P(ConformanceTest, ReleasingWhatWasNeverHeldDoesNothing) {
  Attempt a = Party("a");
  EXPECT_EQ(Release(a), ReleaseOutcome::kNotHeld);
  EXPECT_TRUE(Obtains(a));
}

TEST_P(ConformanceTest, ReleasingByAWrongIdDoesNothing) {
  Attempt a = Party("a");
  Attempt wrong = Party("a");
  ASSERT_TRUE(Obtains(a));
  EXPECT_EQ(Release(wrong), ReleaseOutcome::kNotHeld);
  EXPECT_TRUE(Holds(a));
  // Ids that differ in one half only are different ids.
  wrong.request.acquisition = {a.id().high, a.id().low + 1};
  EXPECT_EQ(Release(wrong), ReleaseOutcome::kNotHeld);
  wrong.request.acquisition = {a.id().high ^ 1, a.id().low};
  EXPECT_EQ(Release(wrong), ReleaseOutcome::kNotHeld);
  EXPECT_TRUE(Holds(a));
}

TEST_P(ConformanceTest, ARepeatedReleaseDoesNotTouchTheNextHolder) {
  Attempt a = Party("a");
  Attempt b = Party("b");
  ASSERT_TRUE(Obtains(a));
  EXPECT_EQ(Release(a), ReleaseOutcome::kReleased);
  ASSERT_TRUE(Obtains(b));
  for (int i = 0; i < 3; ++i) ASSERT_EQ(Release(a), ReleaseOutcome::kNotHeld);
  EXPECT_TRUE(Holds(b));
}

TEST_P(ConformanceTest, ALateReleaseDoesNotTouchTheNextHoldOfTheSameOwner) {
  Attempt a = Party("a");
  Attempt again = Party("a");
  ASSERT_TRUE(Obtains(a));
  Release(a);
  ASSERT_TRUE(Obtains(again));
  EXPECT_GT(again.token, a.token);
  EXPECT_EQ(Release(a), ReleaseOutcome::kNotHeld);
  EXPECT_TRUE(Holds(again));
}

TEST_P(ConformanceTest, ReleaseAfterTheLeaseIsOverDoesNotTouchTheNextHolder) {
  Attempt a = Party("a");
  Attempt b = Party("b");
  a.request.lease = Units(2);
  ASSERT_TRUE(Obtains(a));
  Advance(Units(2));
  EXPECT_EQ(Release(a), ReleaseOutcome::kNotHeld);
  ASSERT_TRUE(Obtains(b));
  EXPECT_EQ(Release(a), ReleaseOutcome::kNotHeld);
  EXPECT_TRUE(Holds(b));
}

// ---- Extend
// --------------------------------------------------------------------------------------

TEST_P(ConformanceTest, ExtendMakesTheHoldLastFromNow) {
  Attempt a = Party("a");
  a.request.lease = Units(10);
  ASSERT_TRUE(Obtains(a));
  Advance(Units(4));
  const ExtendReply reply = Extend(a, Units(20));
  EXPECT_EQ(reply.outcome, ExtendOutcome::kExtended);
  ExpectRemaining(reply.remaining, Units(20));
  Advance(Units(12));
  EXPECT_TRUE(Holds(a)) << "beyond its first lease";
}

TEST_P(ConformanceTest, ARepeatedExtendDoesNotAddUp) {
  Attempt a = Party("a");
  a.request.lease = Units(10);
  ASSERT_TRUE(Obtains(a));
  for (int i = 0; i < 3 && !HasFailure(); ++i) {
    ExpectRemaining(Extend(a, Units(20)).remaining, Units(20));
  }
}

TEST_P(ConformanceTest, ExtendNeverShortens) {
  Attempt a = Party("a");
  a.request.lease = Units(100);
  ASSERT_TRUE(Obtains(a));
  const ExtendReply reply = Extend(a, Units(1));
  EXPECT_EQ(reply.outcome, ExtendOutcome::kExtended);
  ExpectRemaining(reply.remaining, Units(100));
  Advance(Units(2));
  EXPECT_TRUE(Holds(a));
}

TEST_P(ConformanceTest, ExtendByOneHandleServesAll) {
  Attempt outer = Party("a");
  Attempt inner = Party("a");
  outer.request.lease = Units(10);
  ASSERT_TRUE(Obtains(outer));
  Obtain(inner);
  EXPECT_EQ(Extend(inner, Units(50)).outcome, ExtendOutcome::kExtended);
  ExpectRemaining(Obtain(outer).remaining, Units(50));
}

TEST_P(ConformanceTest, ExtendByWhoeverDoesNotHoldCreatesNothing) {
  Attempt a = Party("a");
  Attempt b = Party("b");
  EXPECT_EQ(Extend(a, Long()).outcome, ExtendOutcome::kNotHeld) << "never held";
  ASSERT_TRUE(Obtains(b));
  EXPECT_EQ(Extend(a, Long()).outcome, ExtendOutcome::kNotHeld) << "held by another";
  Release(b);
  EXPECT_EQ(Extend(b, Long()).outcome, ExtendOutcome::kNotHeld) << "released";
  EXPECT_TRUE(Obtains(a));
}

TEST_P(ConformanceTest, ExtendNeverRevives) {
  Attempt a = Party("a");
  Attempt b = Party("b");
  a.request.lease = Units(2);
  ASSERT_TRUE(Obtains(a));
  Advance(Units(2));
  EXPECT_EQ(Extend(a, Long()).outcome, ExtendOutcome::kNotHeld);
  EXPECT_TRUE(Obtains(b));
  EXPECT_EQ(Extend(a, Long()).outcome, ExtendOutcome::kNotHeld);
  EXPECT_TRUE(Holds(b));
}

// ---- Expiry
// --------------------------------------------------------------------------------------

TEST_P(ConformanceTest, AHoldEndsWithItsLease) {
  Attempt a = Party("a");
  Attempt b = Party("b");
  a.request.lease = Units(3);
  ASSERT_TRUE(Obtains(a));
  EXPECT_TRUE(IsDenied(b));
  Advance(Units(3));
  EXPECT_TRUE(Obtains(b));
  EXPECT_GT(b.token, a.token);
  EXPECT_FALSE(Holds(a));
}

TEST_P(ConformanceTest, ALeaseIsOverAtItsDeadlineAndNotBefore) {
  if (!exact()) GTEST_SKIP() << "needs exact time";
  Attempt a = Party("a");
  Attempt b = Party("b");
  a.request.lease = Units(3);
  ASSERT_TRUE(Obtains(a));
  Advance(Units(3) - absl::Milliseconds(1));
  const ObtainReply reply = Obtain(b);
  EXPECT_EQ(reply.outcome, ObtainOutcome::kDenied);
  EXPECT_EQ(reply.remaining, absl::Milliseconds(1));
  Advance(absl::Milliseconds(1));
  EXPECT_TRUE(Obtains(b)) << "the deadline itself is over";
}

TEST_P(ConformanceTest, AllHandlesEndWithTheOneLease) {
  Attempt outer = Party("a");
  Attempt inner = Party("a");
  outer.request.lease = Units(3);
  ASSERT_TRUE(Obtains(outer));
  Obtain(inner);
  Advance(Units(3));
  EXPECT_EQ(Release(inner), ReleaseOutcome::kNotHeld);
  EXPECT_EQ(Release(outer), ReleaseOutcome::kNotHeld);
}

TEST_P(ConformanceTest, TheSameAcquisitionMayObtainAgainAfterItsLeaseIsOver) {
  Attempt a = Party("a");
  a.request.lease = Units(2);
  ASSERT_TRUE(Obtains(a));
  const FencingToken before = a.token;
  Advance(Units(2));
  EXPECT_TRUE(Obtains(a)) << "a new hold, not the old one";
  EXPECT_GT(a.token, before);
}

TEST_P(ConformanceTest, AnInfiniteLeaseNeverEnds) {
  if (!capabilities().infinite_lease) GTEST_SKIP() << "no infinite leases";
  Attempt a = Party("a");
  Attempt b = Party("b");
  a.request.lease = absl::InfiniteDuration();
  EXPECT_EQ(Obtain(a).remaining, absl::InfiniteDuration());
  if (exact()) Advance(absl::Hours(24 * 365 * 100));
  const ObtainReply reply = Obtain(b);
  EXPECT_EQ(reply.outcome, ObtainOutcome::kDenied);
  EXPECT_EQ(reply.remaining, absl::InfiniteDuration());
  const ExtendReply extended = Extend(a, Units(1));
  EXPECT_EQ(extended.outcome, ExtendOutcome::kExtended);
  EXPECT_EQ(extended.remaining, absl::InfiniteDuration()) << "never shortened";
}

TEST_P(ConformanceTest, AFiniteLeaseMayBeExtendedForEver) {
  if (!capabilities().infinite_lease) GTEST_SKIP() << "no infinite leases";
  Attempt a = Party("a");
  a.request.lease = Units(3);
  ASSERT_TRUE(Obtains(a));
  EXPECT_EQ(Extend(a, absl::InfiniteDuration()).remaining, absl::InfiniteDuration());
  Advance(Units(4));
  EXPECT_TRUE(Holds(a));
}

// ---- Tokens
// --------------------------------------------------------------------------------------

TEST_P(ConformanceTest, TokensIncreaseWithEachGrant) {
  FencingToken last = 0;
  for (int i = 0; i < 20; ++i) {
    Attempt a = Party(absl::StrCat("owner ", i % 3));
    ASSERT_TRUE(Obtains(a));
    ASSERT_GT(a.token, last);
    last = a.token;
    Release(a);
  }
}

TEST_P(ConformanceTest, TokensIncreaseAcrossExpiry) {
  FencingToken last = 0;
  for (int i = 0; i < 5; ++i) {
    Attempt a = Party("a");
    a.request.lease = Units(1);
    ASSERT_TRUE(Obtains(a));
    ASSERT_GT(a.token, last);
    last = a.token;
    Advance(Units(1));
  }
}

TEST_P(ConformanceTest, TokensIncreaseAlsoWhenTheResourceWasFreeForLong) {
  Attempt before = Party("a");
  ASSERT_TRUE(Obtains(before));
  Release(before);
  Advance(exact() ? absl::Hours(24 * 365) : Units(5));
  Attempt after = Party("b");
  ASSERT_TRUE(Obtains(after));
  EXPECT_GT(after.token, before.token);
}

TEST_P(ConformanceTest, TokensIncreaseAlsoWhenManyOtherResourcesCameBetween) {
  const int others = exact() ? 3000 : 100;
  Attempt before = Party("a");
  ASSERT_TRUE(Obtains(before));
  Release(before);
  for (int i = 0; i < others; ++i) {
    Attempt other = Party("b");
    other.resource = Resource(absl::StrCat("other ", i));
    ASSERT_TRUE(Obtains(other));
    if (i % 3 != 0) Release(other);
  }
  Attempt after = Party("c");
  ASSERT_TRUE(Obtains(after));
  EXPECT_GT(after.token, before.token);
}

// ---- Hints
// ---------------------------------------------------------------------------------------

TEST_P(ConformanceTest, StepsWorkWithAndWithoutTheHint) {
  for (const bool with_hint : {true, false}) {
    Attempt a = Party("a");
    ASSERT_TRUE(Obtains(a));
    if (!with_hint) a.hint = 0;
    ASSERT_EQ(Extend(a, Long()).outcome, ExtendOutcome::kExtended);
    ASSERT_EQ(Release(a), ReleaseOutcome::kReleased);
    ASSERT_EQ(Release(a), ReleaseOutcome::kNotHeld);
  }
}

TEST_P(ConformanceTest, AStaleHintTouchesNobodyElse) {
  Attempt gone = Party("a");
  gone.resource = Resource("gone");
  ASSERT_TRUE(Obtains(gone));
  Release(gone);
  // Some of these are likely to use the storage that the hint led to.
  std::vector<Attempt> others;
  for (int i = 0; i < 300; ++i) {
    others.push_back(Party("a"));
    others.back().resource = Resource(absl::StrCat("other ", i));
    ASSERT_TRUE(Obtains(others.back()));
  }
  EXPECT_EQ(Release(gone), ReleaseOutcome::kNotHeld);
  EXPECT_EQ(Extend(gone, Long()).outcome, ExtendOutcome::kNotHeld);
  for (const Attempt& other : others) ASSERT_TRUE(Holds(other)) << other.resource;
}

TEST_P(ConformanceTest, AStaleHintStillFindsTheResourceByName) {
  Attempt a = Party("a");
  ASSERT_TRUE(Obtains(a));
  const LeaseHint stale = a.hint;
  Release(a);
  for (int i = 0; i < 50; ++i) {
    Attempt other = Party("x");
    other.resource = Resource(absl::StrCat("other ", i));
    ASSERT_TRUE(Obtains(other));
  }
  Attempt b = Party("a");
  ASSERT_TRUE(Obtains(b));
  b.hint = stale;
  EXPECT_EQ(Extend(b, Long()).outcome, ExtendOutcome::kExtended);
  EXPECT_EQ(Release(b), ReleaseOutcome::kReleased);
}

TEST_P(ConformanceTest, AHintMayStandForTheResource) {
  if (!capabilities().hint_identifies_hold) GTEST_SKIP() << "hints do not identify holds";
  Attempt a = Party("a");
  Attempt other = Party("a");
  other.resource = Resource("other");
  ASSERT_TRUE(Obtains(a));
  ASSERT_TRUE(Obtains(other));
  const HoldRef hint_only = {.acquisition = a.id(), .hint = a.hint};
  const auto extended = TryExtend(*a.backend, hint_only, Long());
  ASSERT_TRUE(extended.ok()) << extended.status();
  EXPECT_EQ(extended->outcome, ExtendOutcome::kExtended);
  const auto released = TryRelease(*a.backend, hint_only);
  ASSERT_TRUE(released.ok()) << released.status();
  EXPECT_EQ(*released, ReleaseOutcome::kReleased);
  EXPECT_EQ(Release(*a.backend, hint_only), ReleaseOutcome::kNotHeld);
  EXPECT_TRUE(Holds(other));
}

TEST_P(ConformanceTest, AHintStillStandsForTheResourceWhenMuchHappenedToIt) {
  if (!capabilities().hint_identifies_hold) GTEST_SKIP() << "hints do not identify holds";
  Attempt outer = Party("a");
  ASSERT_TRUE(Obtains(outer));
  Attempt inner = Party("a");
  Obtain(inner);
  Attempt thief = Thief("b", 5);
  ASSERT_TRUE(Reserves(thief));
  for (const Attempt* attempt : {&outer, &inner}) {
    const HoldRef hint_only = {.acquisition = attempt->id(), .hint = attempt->hint};
    ASSERT_EQ(Extend(*attempt->backend, hint_only, Long()).outcome, ExtendOutcome::kReserved);
    ASSERT_EQ(Release(*attempt->backend, hint_only), ReleaseOutcome::kReleased);
  }
  EXPECT_TRUE(Obtains(thief));
}

TEST_P(ConformanceTest, AStaleHintAloneFindsNothing) {
  if (!capabilities().hint_identifies_hold) GTEST_SKIP() << "hints do not identify holds";
  Attempt gone = Party("a");
  ASSERT_TRUE(Obtains(gone));
  Release(gone);
  Attempt next = Party("a");
  next.resource = Resource("next");
  ASSERT_TRUE(Obtains(next));
  const HoldRef hint_only = {.acquisition = gone.id(), .hint = gone.hint};
  EXPECT_EQ(Release(*gone.backend, hint_only), ReleaseOutcome::kNotHeld);
  EXPECT_EQ(Extend(*gone.backend, hint_only, Long()).outcome, ExtendOutcome::kNotHeld);
  EXPECT_TRUE(Holds(next));
  Release(next);
  // Now nothing may be left where the hint leads.
  EXPECT_EQ(Release(*gone.backend, hint_only), ReleaseOutcome::kNotHeld);
}

// ---- Names, owners, priorities
// -------------------------------------------------------------------

TEST_P(ConformanceTest, AnyBytesAreANameOfTheirOwn) {
  using namespace std::string_literals;  // NOLINT(google-build-using-namespace)
  const std::vector<std::string> names = {"a",
                                          "A",
                                          "a\0"s,
                                          "a\0b"s,
                                          "\0"s,
                                          "\0\0"s,
                                          "ab",
                                          "abc",
                                          "__proto__",
                                          "constructor",
                                          "a b",
                                          " a",
                                          "a\n",
                                          "a\r\n",
                                          "{a}",
                                          "{a}b",
                                          "a:b",
                                          "a/b",
                                          "*",
                                          "?",
                                          "%s",
                                          "%00",
                                          "\xff\xfe",
                                          "\x80",
                                          "é",
                                          "e\xcc\x81",
                                          "'; DROP TABLE locks; --",
                                          "$(rm)",
                                          "\\",
                                          "\"",
                                          "-1",
                                          "0",
                                          "nil",
                                          std::string(20, 'x'),
                                          std::string(21, 'x'),
                                          std::string(255, 'x'),
                                          std::string(256, 'x'),
                                          std::string(300, '\0')};
  std::vector<Attempt> holders;
  for (const std::string& name : names) {
    holders.push_back(Party(absl::StrCat("owner of ", name)));
    holders.back().resource = Resource(name);
    ASSERT_TRUE(Obtains(holders.back())) << testing::PrintToString(name);
  }
  for (const Attempt& holder : holders) {
    Attempt other = Party("another");
    other.resource = holder.resource;
    const ObtainReply reply = Obtain(other);
    ASSERT_EQ(reply.outcome, ObtainOutcome::kDenied) << testing::PrintToString(holder.resource);
    ASSERT_EQ(reply.other_owner, holder.owner);
    ASSERT_EQ(Release(other), ReleaseOutcome::kNotHeld);
    ASSERT_EQ(Release(holder), ReleaseOutcome::kReleased);
    ASSERT_TRUE(Obtains(other)) << testing::PrintToString(holder.resource);
  }
}

TEST_P(ConformanceTest, ANameMayBeAMebibyteLong) {
  const std::string name = Resource(std::string(1 << 20, 'n'));
  Attempt a = Party("a");
  a.resource = name;
  Attempt differs_at_the_end = Party("b");
  differs_at_the_end.resource = name + "x";
  Attempt b = Party("b");
  b.resource = name;
  ASSERT_TRUE(Obtains(a));
  EXPECT_TRUE(IsDenied(b));
  EXPECT_TRUE(Obtains(differs_at_the_end));
  EXPECT_EQ(Extend(a, Long()).outcome, ExtendOutcome::kExtended);
  EXPECT_EQ(Release(a), ReleaseOutcome::kReleased);
  EXPECT_TRUE(Obtains(b));
}

TEST_P(ConformanceTest, AnyBytesAreAnOwnerOfTheirOwn) {
  using namespace std::string_literals;  // NOLINT(google-build-using-namespace)
  const std::vector<std::string> owners = {"a",
                                           "A",
                                           "a\0"s,
                                           "\0"s,
                                           "__proto__",
                                           "a b",
                                           "\xff\xfe",
                                           "é",
                                           "\\0",
                                           "a\nb: c|d",
                                           "0",
                                           "-",
                                           std::string(5000, 'o'),
                                           " ",
                                           "nil",
                                           "false"};
  for (const std::string& owner : owners) {
    Attempt holder = Party(owner);
    ASSERT_TRUE(Obtains(holder)) << testing::PrintToString(owner);
    for (const std::string& other : owners) {
      Attempt attempt = Party(other);
      const ObtainReply reply = Obtain(attempt);
      if (other == owner) {
        ASSERT_EQ(reply.outcome, ObtainOutcome::kReentered) << testing::PrintToString(owner);
        Release(attempt);
      } else {
        ASSERT_EQ(reply.outcome, ObtainOutcome::kDenied)
            << testing::PrintToString(owner) << testing::PrintToString(other);
        ASSERT_EQ(reply.other_owner, owner);
      }
    }
    ASSERT_EQ(Release(holder), ReleaseOutcome::kReleased);
  }
}

TEST_P(ConformanceTest, AnyPriorityIsAllowed) {
  const std::vector<Priority> rising = {
      kLeast, kLeast + 1, -(Priority{1} << 53) - 1, -(Priority{1} << 53),    -1,
      0,      1,          Priority{1} << 53,        (Priority{1} << 53) + 1, kMost - 1,
      kMost};
  for (size_t h = 0; h < rising.size(); ++h) {
    for (size_t t = 0; t < rising.size(); ++t) {
      Attempt holder = Party("holder", rising[h]);
      ASSERT_TRUE(Obtains(holder));
      Attempt thief = Thief("thief", rising[t]);
      const ObtainReply reply = Obtain(thief);
      ASSERT_EQ(reply.outcome, t > h ? ObtainOutcome::kReserved : ObtainOutcome::kDenied)
          << rising[h] << " against " << rising[t];
      ASSERT_EQ(reply.other_priority, rising[h]);
      Release(thief);
      ASSERT_EQ(Release(holder), ReleaseOutcome::kReleased);
    }
  }
}

// ---- Bad requests
// --------------------------------------------------------------------------------

TEST_P(ConformanceTest, BadRequestsAreRefusedAndObtainNothing) {
  struct Case {
    const char* what;
    void (*spoil)(Attempt&);
  };
  const Case cases[] = {
      {"no resource", [](Attempt& a) { a.resource = ""; }},
      {"no acquisition", [](Attempt& a) { a.request.acquisition = {}; }},
      {"no lease", [](Attempt& a) { a.request.lease = absl::ZeroDuration(); }},
      {"negative lease", [](Attempt& a) { a.request.lease = -absl::Seconds(1); }},
      {"infinitely negative lease",
       [](Attempt& a) { a.request.lease = -absl::InfiniteDuration(); }},
      {"no reservation lease",
       [](Attempt& a) { a.request.reservation_lease = absl::ZeroDuration(); }},
      {"negative reservation lease",
       [](Attempt& a) { a.request.reservation_lease = -absl::Seconds(1); }},
  };
  for (const Case& bad : cases) {
    SCOPED_TRACE(bad.what);
    Attempt a = Thief("a", 1);
    bad.spoil(a);
    ASSERT_EQ(TryObtain(a).status().code(), absl::StatusCode::kInvalidArgument);
    Attempt b = Party("b");
    ASSERT_TRUE(Obtains(b)) << "nothing was obtained";
    ASSERT_EQ(Release(b), ReleaseOutcome::kReleased);
  }
}

TEST_P(ConformanceTest, ANegativeGraceIsRefused) {
  Attempt holder = Party("holder", 0);
  ASSERT_TRUE(Obtains(holder));
  Attempt thief = Thief("thief", 1);
  thief.request.grace = -absl::Seconds(1);
  const absl::StatusCode code = TryObtain(thief).status().code();
  EXPECT_TRUE(code == absl::StatusCode::kInvalidArgument ||
              (!capabilities().forced_handover && code == absl::StatusCode::kUnimplemented));
  EXPECT_EQ(Extend(holder, Long()).outcome, ExtendOutcome::kExtended) << "nothing was reserved";
}

TEST_P(ConformanceTest, LeasesThatAreNotOfferedAreRefused) {
  std::vector<absl::Duration> leases;
  if (!capabilities().infinite_lease) leases.push_back(absl::InfiniteDuration());
  if (capabilities().max_lease != absl::InfiniteDuration()) {
    leases.push_back(capabilities().max_lease + absl::Seconds(1));
  }
  if (leases.empty()) GTEST_SKIP() << "every lease is offered";
  for (const absl::Duration lease : leases) {
    Attempt a = Party("a");
    a.request.lease = lease;
    const absl::StatusCode code = TryObtain(a).status().code();
    ASSERT_TRUE(code == absl::StatusCode::kInvalidArgument ||
                code == absl::StatusCode::kUnimplemented)
        << code << " for a lease of " << lease;
    Attempt b = Party("b");
    ASSERT_TRUE(Obtains(b)) << "nothing was obtained";
    ASSERT_FALSE(TryExtend(*b.backend, Ref(b), lease).ok()) << lease;
    Release(b);
  }
}

TEST_P(ConformanceTest, ABadExtensionIsRefusedAndChangesNothing) {
  Attempt a = Party("a");
  ASSERT_TRUE(Obtains(a));
  for (const absl::Duration bad :
       {absl::ZeroDuration(), -absl::Seconds(1), -absl::InfiniteDuration()}) {
    ASSERT_EQ(TryExtend(*a.backend, Ref(a), bad).status().code(),
              absl::StatusCode::kInvalidArgument)
        << bad;
  }
  ExpectRemaining(Obtain(a).remaining, Long());
}

TEST_P(ConformanceTest, AReferenceThatNamesNothingReleasesNothing) {
  Attempt a = Party("a");
  ASSERT_TRUE(Obtains(a));
  for (const HoldRef& nothing :
       {HoldRef{}, HoldRef{.acquisition = a.id()}, HoldRef{.resource = a.resource}}) {
    const absl::StatusOr<ReleaseOutcome> released = TryRelease(*a.backend, nothing);
    ASSERT_TRUE(!released.ok() || *released == ReleaseOutcome::kNotHeld);
    const absl::StatusOr<ExtendReply> extended = TryExtend(*a.backend, nothing, Long());
    ASSERT_TRUE(!extended.ok() || extended->outcome == ExtendOutcome::kNotHeld);
  }
  EXPECT_TRUE(Holds(a));
}

// ---- Members of a quorum
// -------------------------------------------------------------------------------------

TEST_P(ConformanceTest, AMemberObtainsAsAnybodyDoes) {
  if (!is_member()) GTEST_SKIP() << "no member of a quorum";
  Attempt a = Party("a");
  const MemberReply obtained = ObtainAsMember(a);
  ASSERT_EQ(obtained.reply.outcome, ObtainOutcome::kObtained);
  ExpectRemaining(obtained.reply.remaining, a.request.lease);
  EXPECT_FALSE(obtained.fence_lost);
  EXPECT_TRUE(Holds(a));
  // A repetition, whichever way it is asked.
  const MemberReply again = ObtainAsMember(a);
  EXPECT_EQ(again.reply.outcome, ObtainOutcome::kReentered);
  EXPECT_EQ(again.reply.token, obtained.reply.token);
  EXPECT_EQ(Obtain(a).token, obtained.reply.token);
  EXPECT_EQ(Release(a), ReleaseOutcome::kReleased);
  Attempt b = Party("b");
  ASSERT_TRUE(Obtains(b));
  EXPECT_GT(b.token, obtained.reply.token);
}

TEST_P(ConformanceTest, AMemberSaysTheFenceWhereItGrantsNothing) {
  if (!is_member()) GTEST_SKIP() << "no member of a quorum";
  Attempt a = Party("a");
  ASSERT_TRUE(Obtains(a));
  Attempt b = Party("b");
  const auto expect_fence = [&](const MemberReply& reply, FencingToken token) {
    EXPECT_EQ(reply.reply.token, 0u);
    EXPECT_FALSE(reply.fence_lost);
    // 0: it does not say.
    EXPECT_TRUE(reply.fence == 0 || reply.fence >= token) << reply.fence << " after " << token;
  };
  const MemberReply denied = ObtainAsMember(b);
  ASSERT_EQ(denied.reply.outcome, ObtainOutcome::kDenied);
  EXPECT_EQ(denied.reply.other_owner, "a");
  expect_fence(denied, a.token);
  // Also one that a quorum has raised.
  const FencingToken raised = a.token + 100;
  ASSERT_EQ(Confirm(a, raised).outcome, ConfirmOutcome::kConfirmed);
  expect_fence(ObtainAsMember(b), raised);
  Attempt thief = Thief("thief", 9);
  const MemberReply reserved = ObtainAsMember(thief);
  ASSERT_EQ(reserved.reply.outcome, ObtainOutcome::kReserved);
  expect_fence(reserved, raised);
}

TEST_P(ConformanceTest, ConfirmRaisesTheTokenOfTheHoldAndTheFence) {
  if (!is_member()) GTEST_SKIP() << "no member of a quorum";
  Attempt a = Party("a");
  ASSERT_TRUE(Obtains(a));
  const FencingToken raised = a.token + 100;
  for (int i = 0; i < 2; ++i) {  // A repetition changes nothing.
    const ConfirmReply reply = Confirm(a, raised);
    ASSERT_EQ(reply.outcome, ConfirmOutcome::kConfirmed);
    ASSERT_EQ(reply.token, raised);
  }
  Attempt inner = Party("a");
  EXPECT_EQ(Obtain(inner).token, raised);
  Release(inner);
  Release(a);
  Attempt b = Party("b");
  ASSERT_TRUE(Obtains(b));
  EXPECT_GT(b.token, raised);
}

TEST_P(ConformanceTest, ConfirmOfTheOwnTokenIsGranted) {
  if (!is_member()) GTEST_SKIP() << "no member of a quorum";
  Attempt a = Party("a");
  ASSERT_TRUE(Obtains(a));
  const ConfirmReply reply = Confirm(a, a.token);
  EXPECT_EQ(reply.outcome, ConfirmOutcome::kConfirmed);
  EXPECT_EQ(reply.token, a.token);
}

TEST_P(ConformanceTest, ConfirmNamesALargerTokenInsteadOfLoweringIt) {
  if (!is_member()) GTEST_SKIP() << "no member of a quorum";
  Attempt a = Party("a");
  ASSERT_TRUE(Obtains(a));
  const FencingToken raised = a.token + 100;
  Confirm(a, raised);
  const ConfirmReply reply = Confirm(a, raised - 1);
  EXPECT_EQ(reply.outcome, ConfirmOutcome::kRaise);
  EXPECT_EQ(reply.token, raised);
  EXPECT_EQ(Obtain(a).token, raised);
}

TEST_P(ConformanceTest, ConfirmByWhoeverDoesNotHoldChangesNothing) {
  if (!is_member()) GTEST_SKIP() << "no member of a quorum";
  Attempt a = Party("a");
  Attempt b = Party("b");
  a.request.lease = Units(2);
  ASSERT_TRUE(Obtains(a));
  const FencingToken far = a.token + (FencingToken{1} << 40);
  EXPECT_EQ(Confirm(b, far).outcome, ConfirmOutcome::kNotHeld) << "held by another";
  Advance(Units(2));
  EXPECT_EQ(Confirm(a, far).outcome, ConfirmOutcome::kNotHeld) << "its lease is over";
  ASSERT_TRUE(Obtains(b));
  EXPECT_GT(b.token, a.token);
  EXPECT_LT(b.token, far) << "the fence did not move";
  Release(b);
  EXPECT_EQ(Confirm(b, far).outcome, ConfirmOutcome::kNotHeld) << "released";
}

// ---- Inspect
// -------------------------------------------------------------------------------------

TEST_P(ConformanceTest, InspectShowsTheHolderAndTheSuccessor) {
  if (!capabilities().inspect) GTEST_SKIP() << "no Inspect";
  Attempt a = Party("a", 3);
  Attempt inner = Party("a", 4);
  ASSERT_TRUE(Obtains(a));
  Obtain(inner);
  Advance(Units(1));
  Attempt thief = Thief("b", 9);
  ASSERT_TRUE(Reserves(thief));
  int visits = 0;
  first().Inspect(a.resource, [&](const ResourceState& state) {
    ++visits;
    EXPECT_EQ(state.resource, a.resource);
    EXPECT_TRUE(state.held);
    EXPECT_EQ(state.holder_owner, "a");
    EXPECT_EQ(state.holder_priority, 4);
    EXPECT_TRUE(state.preemptible);
    EXPECT_EQ(state.handles, 2);
    EXPECT_EQ(state.token, a.token);
    ExpectRemaining(state.remaining_lease, Long() - Units(1));
    if (exact()) {
      EXPECT_EQ(state.age, Units(1));
    }
    EXPECT_TRUE(state.reserved);
    EXPECT_EQ(state.successor_owner, "b");
    EXPECT_EQ(state.successor_priority, 9);
  });
  EXPECT_EQ(visits, 1);
}

TEST_P(ConformanceTest, InspectVisitsWhatIsHeldAndNothingElse) {
  if (!capabilities().inspect) GTEST_SKIP() << "no Inspect";
  std::vector<Attempt> holders;
  for (const char* const name : {"held", "released", "expired"}) {
    holders.push_back(Party("a"));
    holders.back().resource = Resource(name);
    if (holders.size() == 3) holders.back().request.lease = Units(1);
    ASSERT_TRUE(Obtains(holders.back()));
  }
  Release(holders[1]);
  Advance(Units(1));
  std::vector<std::string> seen;
  // Storage shared with others may hold more.
  first().Inspect(std::nullopt, [&](const ResourceState& state) {
    if (state.resource.starts_with(Resource(""))) seen.push_back(state.resource);
  });
  EXPECT_EQ(seen, std::vector<std::string>{Resource("held")});
  first().Inspect(Resource("released"), [](const ResourceState&) { FAIL(); });
  first().Inspect(Resource("never seen"), [](const ResourceState&) { FAIL(); });
}

}  // namespace
}  // namespace latchkey

// What the in-memory backend promises beyond the protocol: that it agrees with the reference on
// random steps, that leases end without anybody's call, and that what is free takes no memory.
#include "latchkey/memory_backend/memory_backend.h"

#include <malloc.h>

#include <cstdint>
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "latchkey/core/protocol/locking_protocol.h"
#include "latchkey/tests/support/random_steps.h"
#include "latchkey/tests/support/simulated_clock.h"

namespace latchkey {
namespace {

ObtainReply Obtain(LockingProtocol& backend, const ObtainRequest& request) {
  ObtainReply reply;
  backend.Obtain(request, [&reply](absl::StatusOr<ObtainReply> answer) {
    ASSERT_TRUE(answer.ok()) << answer.status();
    reply = *std::move(answer);
  });
  return reply;
}

ReleaseOutcome Release(LockingProtocol& backend, const HoldRef& hold) {
  ReleaseOutcome outcome = ReleaseOutcome::kNotHeld;
  backend.Release(hold, [&outcome](absl::StatusOr<ReleaseOutcome> answer) { outcome = *answer; });
  return outcome;
}

TEST(MemoryBackendTest, AgreesWithTheReferenceOnRandomSteps) {
  const uint64_t first = SeedFromEnvironment();
  for (uint64_t seed = first; seed < first + 400; ++seed) {
    for (const int shards : {1, 256}) {
      SimulatedClock clock;
      const auto backend = NewMemoryBackend({.clock = &clock, .shards = shards});
      RandomStepsOptions options{.seed = seed, .steps = 200, .resources = 3};
      options.advance = [&clock](absl::Duration by) { clock.AdvanceBy(by); };
      ASSERT_EQ(RunRandomSteps(*backend, options), "") << "LATCHKEY_SEED=" << seed;
    }
  }
}

// The hold that ends has no lease, so only the waiter's reservation needs the time.
TEST(MemoryBackendTest, AFiniteReservationAfterAnInfiniteHoldLastsItsTime) {
  SimulatedClock clock;
  const auto backend = NewMemoryBackend({.clock = &clock});
  const AcquisitionId holder = AcquisitionId::Next();
  const AcquisitionId waiter = AcquisitionId::Next();
  Obtain(*backend, {.resource = "r", .acquisition = holder});
  const Subscription watch = backend->Watch(
      {.resource = "r", .acquisition = waiter, .reservation_lease = absl::Seconds(5)},
      [](const WatchEvent&) {});
  EXPECT_EQ(Release(*backend, {"r", holder}), ReleaseOutcome::kReleased);
  clock.AdvanceBy(absl::Seconds(5) - absl::Nanoseconds(1));
  const ObtainRequest newcomer{
      .resource = "r", .acquisition = AcquisitionId::Next(), .lease = absl::Seconds(1)};
  EXPECT_EQ(Obtain(*backend, newcomer).outcome, ObtainOutcome::kDenied);
  clock.AdvanceBy(absl::Nanoseconds(1));
  EXPECT_EQ(Obtain(*backend, newcomer).outcome, ObtainOutcome::kObtained);
}

TEST(MemoryBackendTest, AnExpiredHoldIsGoneAlthoughNobodyCalls) {
  SimulatedClock clock;
  const auto backend = NewMemoryBackend({.clock = &clock, .shards = 1});
  for (int i = 0; i < 1000; ++i) {
    Obtain(*backend, {.resource = absl::StrCat("r", i),
                      .acquisition = AcquisitionId::Next(),
                      .lease = absl::Seconds(1 + i % 7)});
  }
  clock.AdvanceBy(absl::Seconds(7));
  EXPECT_EQ(clock.PendingTimers(), 0u) << "a timer is left although nothing is held";
  int left = 0;
  backend->Inspect(std::nullopt, [&left](const ResourceState&) { ++left; });
  EXPECT_EQ(left, 0);
}

TEST(MemoryBackendTest, InfiniteLeasesSetNoTimer) {
  SimulatedClock clock;
  const auto backend = NewMemoryBackend({.clock = &clock});
  for (int i = 0; i < 100; ++i) {
    Obtain(*backend, {.resource = absl::StrCat("r", i), .acquisition = AcquisitionId::Next()});
  }
  EXPECT_EQ(clock.PendingTimers(), 0u);
}

TEST(MemoryBackendTest, ALeaseReleasedEarlyCostsNoTimerOfItsOwn) {
  SimulatedClock clock;
  const auto backend = NewMemoryBackend({.clock = &clock, .shards = 1});
  for (int i = 0; i < 1000; ++i) {
    const AcquisitionId id = AcquisitionId::Next();
    Obtain(*backend, {.resource = "r", .acquisition = id, .lease = absl::Seconds(30)});
    EXPECT_EQ(Release(*backend, {"r", id}), ReleaseOutcome::kReleased);
  }
  EXPECT_LE(clock.PendingTimers(), 1u);
}

// The fence goes on although nothing is kept for a resource that is free.
TEST(MemoryBackendTest, TokensNeverGoBackAfterAResourceWasForgotten) {
  const auto backend = NewMemoryBackend({.shards = 2});
  FencingToken last = 0;
  for (int i = 0; i < 1000; ++i) {
    const AcquisitionId id = AcquisitionId::Next();
    const ObtainReply reply = Obtain(*backend, {.resource = "r", .acquisition = id});
    EXPECT_GT(reply.token, last);
    last = reply.token;
    Release(*backend, {"r", id, reply.hint});
    const AcquisitionId other = AcquisitionId::Next();
    Obtain(*backend, {.resource = absl::StrCat("other", i), .acquisition = other});
    Release(*backend, {absl::StrCat("other", i), other});
  }
}

TEST(MemoryBackendTest, AStaleHintNeverReachesTheSlotsNextUser) {
  const auto backend = NewMemoryBackend({.shards = 1});
  const AcquisitionId old = AcquisitionId::Next();
  const LeaseHint stale = Obtain(*backend, {.resource = "old", .acquisition = old}).hint;
  EXPECT_EQ(Release(*backend, {ResourceName(), old, stale}), ReleaseOutcome::kReleased);
  const AcquisitionId next = AcquisitionId::Next();
  const LeaseHint reused = Obtain(*backend, {.resource = "next", .acquisition = next}).hint;
  EXPECT_EQ(reused, stale) << "the test is about a slot that is used again";
  EXPECT_EQ(Release(*backend, {ResourceName(), old, stale}), ReleaseOutcome::kNotHeld);
  EXPECT_EQ(Release(*backend, {"old", old, stale}), ReleaseOutcome::kNotHeld);
  EXPECT_EQ(Release(*backend, {ResourceName(), next, reused}), ReleaseOutcome::kReleased);
  for (const LeaseHint invented : {LeaseHint{1}, LeaseHint{1} << 32 | 7, ~LeaseHint{0}}) {
    EXPECT_EQ(Release(*backend, {ResourceName(), next, invented}), ReleaseOutcome::kNotHeld);
    EXPECT_EQ(Release(*backend, {ResourceName(), AcquisitionId(), invented}),
              ReleaseOutcome::kNotHeld);
  }
}

// Sanitizers have an allocator of their own, which this cannot ask.
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
// Their events are reliable, so waiters do not poll: each must hear when asking again is worth it.
TEST(MemoryBackendTest, WaitersAboveTheHolderHearWhenAReservationInTheirWayIsGone) {
  SimulatedClock clock;
  const auto backend = NewMemoryBackend({.clock = &clock});
  const AcquisitionId holder = AcquisitionId::Next();
  Obtain(*backend, {.resource = "r", .acquisition = holder, .priority = 1});
  for (const bool withdrawn : {true, false}) {
    ObtainRequest thief{.resource = "r",
                        .acquisition = AcquisitionId::Next(),
                        .priority = 3,
                        .reserve_below = 3,
                        .reservation_lease = absl::Seconds(1)};
    ASSERT_EQ(Obtain(*backend, thief).outcome, ObtainOutcome::kReserved);
    int above = 0;
    int equal = 0;
    const auto watch = [&](Priority priority, int& heard) {
      return backend->Watch(
          {.resource = "r",
           .acquisition = AcquisitionId::Next(),
           .priority = priority,
           .reservation_lease = absl::Seconds(1)},
          [&heard](const WatchEvent& event) { heard += event.kind == WatchEventKind::kDisplaced; });
    };
    const Subscription watch_above = watch(2, above);
    const Subscription watch_equal = watch(1, equal);
    if (withdrawn) {
      EXPECT_EQ(Release(*backend, {.resource = "r", .acquisition = thief.acquisition}),
                ReleaseOutcome::kWithdrawn);
    } else {
      clock.AdvanceBy(absl::Seconds(1));
    }
    EXPECT_EQ(above, 1);
    EXPECT_EQ(equal, 0);
  }
}

TEST(MemoryBackendTest, KnowsWhatWasTakenByForceUntilItsHolderHasLetGo) {
  SimulatedClock clock;
  const auto backend = NewMemoryBackend({.clock = &clock});
  const AcquisitionId victim = AcquisitionId::Next();
  const ObtainReply held = Obtain(*backend, {.resource = "r", .acquisition = victim});
  const HoldRef hold{ResourceName(), victim, held.hint};
  EXPECT_EQ(backend->ResourceOf(hold), "r");
  const ObtainRequest thief{.resource = "r",
                            .acquisition = AcquisitionId::Next(),
                            .priority = 1,
                            .reserve_below = 1,
                            .grace = absl::ZeroDuration()};
  EXPECT_EQ(Obtain(*backend, thief).outcome, ObtainOutcome::kReserved);
  EXPECT_EQ(Obtain(*backend, thief).outcome, ObtainOutcome::kObtained);
  const auto what_became_of_it = [&] {
    std::optional<HoldEnd> why;
    static_cast<void>(
        backend->Watch({.acquisition = victim, .role = WatchRole::kHolder, .hint = held.hint},
                       [&why](const WatchEvent& event) { why = event.why; }));
    return why;
  };
  EXPECT_EQ(backend->ResourceOf(hold), "r");
  EXPECT_EQ(what_became_of_it(), HoldEnd::kStolen);
  std::optional<HoldEnd> in_the_answer;
  backend->Release(hold, [&](absl::StatusOr<ReleaseOutcome> outcome) {
    EXPECT_EQ(*outcome, ReleaseOutcome::kNotHeld);
    EXPECT_EQ(backend->ResourceOf(hold), "r");
    in_the_answer = what_became_of_it();
  });
  EXPECT_EQ(in_the_answer, HoldEnd::kStolen);
  EXPECT_EQ(backend->ResourceOf(hold), "");
  EXPECT_EQ(what_became_of_it(), HoldEnd::kExpired) << "it no longer knows";
  EXPECT_EQ(Release(*backend, {"r", thief.acquisition}), ReleaseOutcome::kReleased);
}

TEST(MemoryBackendTest, WhatIsFreeTakesNoMemory) {
  const auto backend = NewMemoryBackend();
  const auto in_use = [] { return static_cast<int64_t>(mallinfo2().uordblks); };
  std::vector<AcquisitionId> ids(100'000);
  const auto name = [](size_t i) { return absl::StrCat("a resource with a rather long name/", i); };
  // Each in turn, then all at once: plain, and with everything that hangs on a slot.
  const auto lock_all = [&](const ObtainRequest& like) {
    for (size_t i = 0; i < ids.size(); ++i) {
      ids[i] = AcquisitionId::Next();
      ObtainRequest request = like;
      const std::string resource = name(i);
      request.resource = resource;
      request.acquisition = ids[i];
      Obtain(*backend, request);
    }
  };
  const auto release_all = [&] {
    for (size_t i = 0; i < ids.size(); ++i) {
      ASSERT_EQ(Release(*backend, {name(i), ids[i]}), ReleaseOutcome::kReleased);
    }
  };
  const int64_t before = in_use();
  lock_all({});
  const int64_t held = in_use() - before;
  release_all();
  lock_all({.owner = "a named owner with a long name", .lease = absl::Hours(1)});
  release_all();
  const int64_t after = in_use() - before;
  std::cerr << "held: " << held / static_cast<int64_t>(ids.size())
            << " bytes each, left behind: " << after << " bytes in all\n";
  // What idle shards keep so that the next lock need not allocate, however many locks there were.
  EXPECT_LT(after, 256 * 4096);
}
#endif

}  // namespace
}  // namespace latchkey

// What the conformance suite cannot see: reports that come late, twice or out of order, and what is
// left behind.
#include "latchkey/core/protocol/record_watchers.h"

#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "latchkey/tests/support/simulated_clock.h"

namespace latchkey {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using enum WatchEventKind;

constexpr AcquisitionId kHolder = {1, 1};
constexpr AcquisitionId kThief = {2, 1};
constexpr AcquisitionId kWaiter = {3, 1};

class RecordWatchersTest : public testing::Test {
 protected:
  using Heard = std::shared_ptr<std::vector<WatchEventKind>>;

  std::pair<Subscription, Heard> Watch(AcquisitionId id, WatchRole role, Priority priority = 0) {
    auto heard = std::make_shared<std::vector<WatchEventKind>>();
    Subscription subscription =
        watchers_->Watch({.resource = "r", .acquisition = id, .role = role, .priority = priority},
                         [heard](const WatchEvent& event) { heard->push_back(event.kind); });
    return {std::move(subscription), heard};
  }

  LockRecord Held(absl::Time deadline = absl::InfiniteFuture()) const {
    LockRecord record{.fence = 1};
    record.holder =
        LockRecord::Holder{.owner = "a", .handles = {kHolder}, .token = 1, .deadline = deadline};
    return record;
  }

  LockRecord Reserved() const {
    LockRecord record = Held();
    record.successor =
        LockRecord::Successor{.acquisition = kThief, .owner = "thief", .priority = 5};
    return record;
  }

  SimulatedClock clock_;
  std::shared_ptr<RecordWatchers> watchers_ = RecordWatchers::Create(clock_);
};

TEST_F(RecordWatchersTest, TellsNothingBeforeTheFirstReport) {
  auto [waiter, waiter_heard] = Watch(kWaiter, WatchRole::kWaiter);
  auto [holder, holder_heard] = Watch(kHolder, WatchRole::kHolder);
  clock_.AdvanceBy(absl::Hours(1));
  EXPECT_THAT(*waiter_heard, IsEmpty());
  EXPECT_THAT(*holder_heard, IsEmpty());
  watchers_->Changed("r", 1, Held());
  EXPECT_THAT(*waiter_heard, IsEmpty());
  EXPECT_THAT(*holder_heard, IsEmpty());
}

TEST_F(RecordWatchersTest, TellsOnceHoweverOftenTheSameIsReported) {
  auto [holder, heard] = Watch(kHolder, WatchRole::kHolder);
  for (int i = 0; i < 3; ++i) watchers_->Changed("r", 2, Reserved());
  watchers_->Changed("r", 3, Reserved());
  EXPECT_THAT(*heard, ElementsAre(kYieldRequested));
}

TEST_F(RecordWatchersTest, IgnoresAReportOlderThanOneItHasSeen) {
  auto [holder, heard] = Watch(kHolder, WatchRole::kHolder);
  watchers_->Changed("r", 7, Reserved());
  watchers_->Changed("r", 6, Held());
  EXPECT_THAT(*heard, ElementsAre(kYieldRequested));
  watchers_->Changed("r", 8, Held());
  EXPECT_THAT(*heard, ElementsAre(kYieldRequested, kYieldWithdrawn));
}

TEST_F(RecordWatchersTest, MakesUpForReportsThatWereLost) {
  auto [thief, thief_heard] = Watch(kThief, WatchRole::kWaiter, 5);
  auto [waiter, waiter_heard] = Watch(kWaiter, WatchRole::kWaiter);
  watchers_->Changed("r", 1, Reserved());
  // The holder left, a third one was in and left, the reservation ran out: one report tells of all.
  watchers_->Changed("r", 9, LockRecord{.fence = 2});
  EXPECT_THAT(*thief_heard, ElementsAre(kHoldEnded));
  EXPECT_THAT(*waiter_heard, ElementsAre(kHoldEnded));
}

TEST_F(RecordWatchersTest, TellsAThiefThatAnotherIsInside) {
  auto [thief, heard] = Watch(kThief, WatchRole::kWaiter, 5);
  watchers_->Changed("r", 1, Reserved());
  LockRecord other = Held();
  other.holder->handles = {kWaiter};
  watchers_->Changed("r", 4, other);
  EXPECT_THAT(*heard, ElementsAre(kDisplaced));
}

TEST_F(RecordWatchersTest, TellsWhoeverAReservationKeptOutThatItIsGone) {
  auto [equal, equal_heard] = Watch(kWaiter, WatchRole::kWaiter, 5);
  auto [low, low_heard] = Watch({4, 1}, WatchRole::kWaiter, 0);
  auto [high, high_heard] = Watch({5, 1}, WatchRole::kWaiter, 9);
  watchers_->Changed("r", 1, Reserved());
  EXPECT_THAT(*equal_heard, IsEmpty());
  watchers_->Changed("r", 2, Held());
  EXPECT_THAT(*equal_heard, ElementsAre(kDisplaced));
  EXPECT_THAT(*low_heard, IsEmpty()) << "the holder keeps it out";
  EXPECT_THAT(*high_heard, IsEmpty()) << "nothing kept it out";
}

TEST_F(RecordWatchersTest, TellsByItselfThatTheReservationRanOut) {
  auto [equal, heard] = Watch(kWaiter, WatchRole::kWaiter, 5);
  LockRecord reserved = Reserved();
  reserved.successor->deadline = clock_.Now() + absl::Seconds(2);
  watchers_->Changed("r", 1, reserved);
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_THAT(*heard, IsEmpty());
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_THAT(*heard, ElementsAre(kDisplaced));
}

TEST_F(RecordWatchersTest, TellsAThiefThatAnotherHolderTookTheOnesPlaceUnseen) {
  auto [waiter, heard] = Watch(kWaiter, WatchRole::kWaiter, 5);
  LockRecord first = Held();
  first.holder->priority = 5;
  watchers_->Changed("r", 1, first);
  // Its release was not reported.
  LockRecord second = Held();
  second.holder->handles = {kThief};
  second.holder->token = 2;
  watchers_->Changed("r", 3, second);
  EXPECT_THAT(*heard, ElementsAre(kDisplaced)) << "this one it may reserve";
  LockRecord third = Held();
  third.holder->handles = {{7, 7}};
  third.holder->token = 3;
  watchers_->Changed("r", 5, third);
  EXPECT_THAT(*heard, ElementsAre(kDisplaced, kDisplaced)) << "and this is another one";
}

TEST_F(RecordWatchersTest, WhoMayNotReserveTheHoldIsNotToldThatAReservationIsGone) {
  auto [waiter, heard] = Watch(kWaiter, WatchRole::kWaiter, 5);
  watchers_->Changed("r", 1, Reserved());
  LockRecord fixed = Held();
  fixed.holder->preemptible = false;
  watchers_->Changed("r", 2, fixed);
  EXPECT_THAT(*heard, IsEmpty());
}

TEST_F(RecordWatchersTest, WhatCameAfterAnAnswerIsNewsAlsoIfItWasReportedBefore) {
  auto [waiter, heard] = Watch(kWaiter, WatchRole::kWaiter);
  watchers_->Changed("r", 4, LockRecord{.fence = 1});
  EXPECT_THAT(*heard, ElementsAre(kHoldEnded));
  // It asks, and is about to be denied by version 5. Its release is reported first.
  watchers_->Changed("r", 6, LockRecord{.fence = 2});
  EXPECT_THAT(*heard, ElementsAre(kHoldEnded));
  watchers_->Answered("r", kWaiter, 5, Held());
  EXPECT_THAT(*heard, ElementsAre(kHoldEnded, kHoldEnded));
}

TEST_F(RecordWatchersTest, AReservationThatWasReportedAfterItsEndIsNotMissed) {
  auto [thief, heard] = Watch(kWaiter, WatchRole::kWaiter, 5);
  watchers_->Changed("r", 4, Held());
  watchers_->Changed("r", 6, Held());
  watchers_->Answered("r", kWaiter, 5, Reserved());
  EXPECT_THAT(*heard, ElementsAre(kDisplaced));
}

TEST_F(RecordWatchersTest, AnAnswerIsShownToTheOthersToo) {
  auto [waiter, heard] = Watch(kWaiter, WatchRole::kWaiter);
  auto [holder, holder_heard] = Watch(kHolder, WatchRole::kHolder);
  watchers_->Changed("r", 4, Held());
  watchers_->Answered("r", kWaiter, 5, Reserved());
  EXPECT_THAT(*heard, IsEmpty());
  EXPECT_THAT(*holder_heard, ElementsAre(kYieldRequested));
}

TEST_F(RecordWatchersTest, AHoldersRepeatedRequestDoesNotHideThatItIsToYield) {
  auto [holder, heard] = Watch(kHolder, WatchRole::kHolder);
  watchers_->Changed("r", 4, Held());
  watchers_->Answered("r", kHolder, 5, Reserved());
  EXPECT_THAT(*heard, ElementsAre(kYieldRequested));
}

TEST_F(RecordWatchersTest, TellsOfANewThiefInPlaceOfTheOldOne) {
  auto [holder, heard] = Watch(kHolder, WatchRole::kHolder);
  watchers_->Changed("r", 1, Reserved());
  LockRecord other = Reserved();
  other.successor->acquisition = kWaiter;
  watchers_->Changed("r", 2, other);
  other.successor->grace_end = clock_.Now() + absl::Seconds(1);
  watchers_->Changed("r", 3, other);
  EXPECT_THAT(*heard, ElementsAre(kYieldRequested, kYieldRequested, kYieldRequested));
}

TEST_F(RecordWatchersTest, ChangesOfOtherResourcesAreNoNews) {
  auto [holder, heard] = Watch(kHolder, WatchRole::kHolder);
  watchers_->Changed("r", 1, Held());
  watchers_->Changed("r ", 5, Reserved());
  watchers_->Changed("", 5, Reserved());
  EXPECT_THAT(*heard, IsEmpty());
}

TEST_F(RecordWatchersTest, SetsOneTimerForTheNextDeadlineAndLeavesNoneBehind) {
  {
    auto [holder, heard] = Watch(kHolder, WatchRole::kHolder);
    watchers_->Changed("r", 1, Held(clock_.Now() + absl::Seconds(10)));
    watchers_->Changed("r", 1, Held(clock_.Now() + absl::Seconds(10)));
    EXPECT_EQ(clock_.PendingTimers(), 1u);
    watchers_->Changed("r", 2, Held(clock_.Now() + absl::Seconds(20)));
    EXPECT_EQ(clock_.PendingTimers(), 1u);
    EXPECT_EQ(clock_.NextTimer(), clock_.Now() + absl::Seconds(20));
    LockRecord reserved = Reserved();
    reserved.successor->deadline = clock_.Now() + absl::Seconds(3);
    watchers_->Changed("r", 3, reserved);
    EXPECT_EQ(clock_.NextTimer(), clock_.Now() + absl::Seconds(3));
    clock_.AdvanceBy(absl::Seconds(3));
    EXPECT_THAT(*heard, ElementsAre(kYieldRequested, kYieldWithdrawn));
    watchers_->Changed("r", 4, Held(clock_.Now() + absl::Seconds(5)));
  }
  EXPECT_EQ(clock_.PendingTimers(), 0u);
  watchers_->Changed("r", 5, Held(clock_.Now() + absl::Seconds(5)));
  EXPECT_EQ(clock_.PendingTimers(), 0u) << "nobody watches";
}

TEST_F(RecordWatchersTest, SaysWhyAHoldEnded) {
  std::vector<HoldEnd> whys;
  const auto watch = [&](WatchRole role, AcquisitionId id) {
    return watchers_->Watch({.resource = "r", .acquisition = id, .role = role},
                            [&](const WatchEvent& event) { whys.push_back(event.why); });
  };
  Subscription waiter = watch(WatchRole::kWaiter, kWaiter);
  watchers_->Changed("r", 1, Held());
  watchers_->Changed("r", 2, LockRecord{.fence = 1});
  EXPECT_THAT(whys, ElementsAre(HoldEnd::kReleased));
  watchers_->Changed("r", 3, Held(clock_.Now() + absl::Seconds(1)));
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_THAT(whys, ElementsAre(HoldEnd::kReleased, HoldEnd::kExpired));
  waiter.Reset();

  whys.clear();
  Subscription holder = watch(WatchRole::kHolder, kHolder);
  watchers_->Changed("r", 4, Held());
  LockRecord stolen = Held();
  stolen.holder->handles = {kThief};
  watchers_->Changed("r", 5, stolen);
  EXPECT_THAT(whys, ElementsAre(HoldEnd::kStolen));
}

TEST_F(RecordWatchersTest, SilenceEndsTheNewsOfOneAcquisition) {
  auto [holder, heard] = Watch(kHolder, WatchRole::kHolder);
  auto [waiter, waiter_heard] = Watch(kWaiter, WatchRole::kWaiter);
  watchers_->Changed("r", 1, Held());
  watchers_->Silence("another", kHolder);
  watchers_->Silence("r", kHolder);
  watchers_->Changed("r", 2, LockRecord{.fence = 1});
  EXPECT_THAT(*heard, IsEmpty());
  EXPECT_THAT(*waiter_heard, ElementsAre(kHoldEnded));
}

TEST_F(RecordWatchersTest, WhoeverIsLowerHearsNothingIfTheBestClaimsAtOnce) {
  std::vector<std::string> told;
  // The best claims inside its callback, and the storage reports that before it returns.
  Subscription best = watchers_->Watch(
      {.resource = "r", .acquisition = kThief, .priority = std::numeric_limits<Priority>::max()},
      [&](const WatchEvent& event) {
        if (event.kind != kHoldEnded) return;
        told.push_back("best");
        LockRecord claimed = Held();
        claimed.holder->handles = {kThief};
        watchers_->Changed("r", 3, claimed);
      });
  Subscription low = watchers_->Watch(
      {.resource = "r", .acquisition = kWaiter, .priority = std::numeric_limits<Priority>::min()},
      [&](const WatchEvent&) { told.push_back("low"); });
  watchers_->Changed("r", 1, Held());
  watchers_->Changed("r", 2, LockRecord{.fence = 1});
  EXPECT_THAT(told, ElementsAre("best"));
}

TEST_F(RecordWatchersTest, ACallbackMayEndEveryWatchAndBeginAnother) {
  std::optional<Subscription> one;
  std::optional<Subscription> two;
  std::optional<Subscription> anew;
  int anew_heard = 0;
  const auto end_all = [&](const WatchEvent&) {
    one.reset();
    two.reset();
    anew = watchers_->Watch({.resource = "r", .acquisition = kWaiter, .role = WatchRole::kHolder},
                            [&](const WatchEvent&) { ++anew_heard; });
  };
  one = watchers_->Watch({.resource = "r", .acquisition = kThief, .priority = 2}, end_all);
  two = watchers_->Watch({.resource = "r", .acquisition = kWaiter, .priority = 1},
                         [](const WatchEvent&) { FAIL() << "its watch has ended"; });
  watchers_->Changed("r", 1, LockRecord{});
  EXPECT_FALSE(one);
  EXPECT_EQ(anew_heard, 0) << "the new watch has not been shown a record yet";
  watchers_->Changed("r", 1, LockRecord{});
  EXPECT_EQ(anew_heard, 1);
}

TEST_F(RecordWatchersTest, ACallbackMayDropTheBackendAndItWithThat) {
  std::optional<Subscription> holder;
  int heard = 0;
  holder = watchers_->Watch({.resource = "r", .acquisition = kHolder, .role = WatchRole::kHolder},
                            [&](const WatchEvent&) {
                              ++heard;
                              watchers_ = nullptr;
                            });
  watchers_->Changed("r", 1, Reserved());
  EXPECT_EQ(heard, 1);
  EXPECT_EQ(watchers_, nullptr);
}

TEST_F(RecordWatchersTest, ASubscriptionMayOutliveIt) {
  auto [holder, heard] = Watch(kHolder, WatchRole::kHolder);
  watchers_->Changed("r", 1, Held(clock_.Now() + absl::Seconds(1)));
  watchers_ = nullptr;
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_THAT(*heard, IsEmpty());
  holder.Reset();
}

}  // namespace
}  // namespace latchkey

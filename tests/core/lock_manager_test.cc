// What LockManager and Lock promise, on the in-memory backend and simulated time.
#include "latchkey/core/lock_manager.h"

#include <atomic>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "latchkey/memory_backend/memory_backend.h"
#include "latchkey/tests/support/simulated_clock.h"
#include "latchkey/tests/support/simulated_executor.h"

namespace latchkey {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class LockManagerTest : public ::testing::Test {
 protected:
  LockManagerTest() : backend_(NewMemoryBackend({.clock = &clock_})), locks_(NewManager()) {}

  LockManager NewManager(LockManagerOptions options = {}) {
    options.clock = &clock_;
    return *LockManager::Create(backend_, std::move(options));
  }

  // Asks without waiting for the answer.
  struct Pending {
    std::optional<absl::StatusOr<Lock>> result;
    bool granted() const { return result && result->ok(); }
    bool failed() const { return result && !result->ok(); }
    Lock& lock() { return **result; }
    absl::Status status() const { return result ? result->status() : absl::OkStatus(); }
  };
  std::shared_ptr<Pending> Ask(std::string_view resource, const AcquireOptions& options = {}) {
    return Ask(locks_, resource, options);
  }
  std::shared_ptr<Pending> Ask(LockManager& locks, std::string_view resource,
                               const AcquireOptions& options = {}) {
    auto pending = std::make_shared<Pending>();
    locks.AcquireAsync(resource, options, [pending](absl::StatusOr<Lock> lock) {
      ASSERT_FALSE(pending->result) << "completed twice";
      pending->result = std::move(lock);
    });
    return pending;
  }

  // Nobody holds, waits or is remembered.
  void ExpectNothingLeft() {
    EXPECT_FALSE(locks_.IsBusy());
    EXPECT_THAT(locks_.Snapshot(), IsEmpty());
  }

  SimulatedClock clock_;
  std::shared_ptr<LockingProtocol> backend_;
  LockManager locks_;
};

TEST_F(LockManagerTest, LocksAndReleasesAtTheEndOfScope) {
  {
    absl::StatusOr<Lock> lock = locks_.Acquire("a");
    ASSERT_TRUE(lock.ok()) << lock.status();
    EXPECT_EQ(lock->state(), LockState::kHeld);
    EXPECT_GT(lock->fencing_token(), 0u);
    EXPECT_TRUE(locks_.IsBusy("a"));
    EXPECT_FALSE(locks_.IsBusy("b"));
  }
  ExpectNothingLeft();
}

TEST_F(LockManagerTest, TryAcquireSaysWhoHolds) {
  absl::StatusOr<Lock> held = locks_.Acquire("a", {.owner = "alice", .priority = 3});
  absl::StatusOr<Lock> lock = locks_.TryAcquire("a", {.priority = 9});
  EXPECT_EQ(ReasonOf(lock.status()), Reason::kHeldByOther);
  EXPECT_THAT(lock.status().message(), HasSubstr("'a'"));
  EXPECT_THAT(lock.status().message(), HasSubstr("'alice'"));
  EXPECT_THAT(lock.status().message(), HasSubstr("priority 3"));
  EXPECT_EQ(held->state(), LockState::kHeld) << "TryAcquire never asks anybody to yield";
}

TEST_F(LockManagerTest, GrantsInOrderOfPriorityThenArrival) {
  absl::StatusOr<Lock> held = locks_.Acquire("a", {.priority = 100});
  std::vector<std::string> order;
  std::vector<std::shared_ptr<Pending>> all;
  const auto ask = [&](std::string name, Priority priority) {
    locks_.AcquireAsync("a", {.priority = priority},
                        [&order, name](const absl::StatusOr<Lock>&) { order.push_back(name); });
  };
  ask("low 1", 1);
  ask("high 1", 7);
  ask("low 2", 1);
  ask("high 2", 7);
  ask("middle", 3);
  EXPECT_THAT(order, IsEmpty());
  ASSERT_TRUE(held->Release().ok());
  EXPECT_THAT(order, ElementsAre("high 1", "high 2", "middle", "low 1", "low 2"));
  ExpectNothingLeft();
}

TEST_F(LockManagerTest, HigherPriorityEntersOnlyAfterTheHolderYielded) {
  absl::StatusOr<Lock> holder = locks_.Acquire("lights", {.owner = "save energy"});
  int asked = 0;
  holder->OnYieldRequested([&] { ++asked; });
  std::stop_token stop = holder->stop_token();
  auto thief = Ask("lights", {.owner = "motion detected", .priority = 100});
  EXPECT_EQ(asked, 1);
  EXPECT_TRUE(stop.stop_requested());
  EXPECT_EQ(holder->state(), LockState::kYielding);
  EXPECT_TRUE(holder->IsHeld());
  EXPECT_FALSE(thief->result);
  EXPECT_TRUE(holder->Release().ok());
  ASSERT_TRUE(thief->granted());
  EXPECT_GT(thief->lock().fencing_token(), holder->fencing_token());
  thief->result.reset();
  ExpectNothingLeft();
}

TEST_F(LockManagerTest, HolderStaysWhenTheThiefGivesUp) {
  absl::StatusOr<Lock> holder = locks_.Acquire("a");
  int asked = 0;
  holder->OnYieldRequested([&] { ++asked; });
  auto thief = Ask("a", {.priority = 1, .acquire_timeout = absl::Seconds(5)});
  EXPECT_EQ(holder->state(), LockState::kYielding);
  clock_.AdvanceBy(absl::Seconds(5));
  EXPECT_EQ(ReasonOf(thief->status()), Reason::kAcquireTimeout);
  EXPECT_EQ(holder->state(), LockState::kHeld);
  // And is asked anew by the next one.
  auto next = Ask("a", {.priority = 1});
  EXPECT_EQ(asked, 2);
  EXPECT_TRUE(holder->Release().ok());
  EXPECT_TRUE(next->granted());
}

TEST_F(LockManagerTest, YieldCallbackSetLateIsCalledAtOnce) {
  absl::StatusOr<Lock> holder = locks_.Acquire("a");
  auto thief = Ask("a", {.priority = 1});
  int asked = 0;
  holder->OnYieldRequested([&] { ++asked; });
  EXPECT_EQ(asked, 1);
  EXPECT_TRUE(holder->stop_token().stop_requested());
}

TEST_F(LockManagerTest, LeaseExpiresAndTheNextEnters) {
  absl::StatusOr<Lock> holder = locks_.Acquire("a", {.lease = absl::Seconds(10)});
  auto next = Ask("a");
  std::vector<LockState> lost;
  holder->OnLost([&](LockState state) { lost.push_back(state); });
  clock_.AdvanceBy(absl::Seconds(10) - absl::Nanoseconds(1));
  EXPECT_EQ(holder->state(), LockState::kHeld);
  EXPECT_FALSE(next->result);
  clock_.AdvanceBy(absl::Nanoseconds(1));
  EXPECT_EQ(holder->state(), LockState::kExpired);
  EXPECT_THAT(lost, ElementsAre(LockState::kExpired));
  ASSERT_TRUE(next->granted());
  absl::Status released = holder->Release();
  EXPECT_EQ(ReasonOf(released), Reason::kExpired) << released;
  EXPECT_TRUE(next->lock().IsHeld()) << "a late release must not touch the successor";
}

TEST_F(LockManagerTest, ExtendMovesTheEnd) {
  absl::StatusOr<Lock> lock = locks_.Acquire("a", {.lease = absl::Seconds(10)});
  clock_.AdvanceBy(absl::Seconds(6));
  EXPECT_TRUE(lock->Extend(absl::Seconds(10)).ok());
  EXPECT_EQ(lock->remaining(), absl::Seconds(10));
  EXPECT_TRUE(lock->Extend(absl::Seconds(1)).ok());
  EXPECT_EQ(lock->remaining(), absl::Seconds(10)) << "an extension never shortens";
  clock_.AdvanceBy(absl::Seconds(10));
  EXPECT_EQ(ReasonOf(lock->Extend(absl::Seconds(10))), Reason::kExpired);
}

TEST_F(LockManagerTest, ExtendIsRefusedWhileAThiefWaits) {
  absl::StatusOr<Lock> holder = locks_.Acquire("a", {.lease = absl::Seconds(10)});
  auto thief = Ask("a", {.priority = 1});
  EXPECT_EQ(ReasonOf(holder->Extend(absl::Seconds(60))), Reason::kYieldRequested);
  clock_.AdvanceBy(absl::Seconds(10));
  EXPECT_TRUE(thief->granted());
}

TEST_F(LockManagerTest, RenewsUntilMaxHold) {
  absl::StatusOr<Lock> holder = locks_.Acquire(
      "a", {.lease = absl::Seconds(3), .auto_renew = true, .max_hold = absl::Seconds(20)});
  auto next = Ask("a");
  clock_.AdvanceBy(absl::Seconds(20) - absl::Nanoseconds(1));
  EXPECT_TRUE(holder->IsHeld());
  EXPECT_FALSE(next->result);
  clock_.AdvanceBy(absl::Nanoseconds(1));
  EXPECT_EQ(holder->state(), LockState::kExpired);
  EXPECT_TRUE(next->granted());
}

TEST_F(LockManagerTest, RenewalGoesOnWhenTheReservationIsWithdrawn) {
  absl::StatusOr<Lock> holder =
      locks_.Acquire("a", {.lease = absl::Seconds(10), .auto_renew = true});
  auto thief = Ask("a", {.priority = 1, .acquire_timeout = absl::Seconds(9)});
  clock_.AdvanceBy(absl::Seconds(9));
  EXPECT_TRUE(thief->failed());
  clock_.AdvanceBy(absl::Seconds(60));
  EXPECT_EQ(holder->state(), LockState::kHeld);
}

TEST_F(LockManagerTest, ForcedHandOverAfterTheGrace) {
  absl::StatusOr<Lock> holder = locks_.Acquire("a");
  std::vector<LockState> lost;
  holder->OnLost([&](LockState state) { lost.push_back(state); });
  auto thief = Ask("a", {.priority = 1, .preemption_grace = absl::Seconds(2)});
  EXPECT_EQ(holder->remaining(), absl::Seconds(2));
  clock_.AdvanceBy(absl::Seconds(2));
  ASSERT_TRUE(thief->granted());
  EXPECT_GT(thief->lock().fencing_token(), holder->fencing_token());
  EXPECT_THAT(lost, ElementsAre(LockState::kStolen));
  EXPECT_EQ(ReasonOf(holder->Release()), Reason::kStolen);
  EXPECT_TRUE(thief->lock().IsHeld());
}

TEST_F(LockManagerTest, ATheftThatNobodyListenedToIsStillATheft) {
  for (const bool leased : {false, true}) {
    AcquireOptions options;
    if (leased) options.lease = absl::Minutes(1);
    absl::StatusOr<Lock> looks = locks_.Acquire("a", options);
    absl::StatusOr<Lock> releases = locks_.Acquire("b", options);
    absl::StatusOr<Lock> extends = locks_.Acquire("c", options);
    const AcquireOptions force = {.priority = 1, .preemption_grace = absl::ZeroDuration()};
    absl::StatusOr<LockSet> thief = locks_.AcquireAll({"a", "b", "c"}, force);
    ASSERT_TRUE(thief.ok()) << thief.status();
    EXPECT_EQ(looks->state(), LockState::kStolen);
    EXPECT_EQ(ReasonOf(releases->Release()), Reason::kStolen);
    EXPECT_EQ(ReasonOf(extends->Extend(absl::Seconds(1))), Reason::kStolen);
    std::vector<LockState> told;
    extends->OnLost([&](LockState state) { told.push_back(state); });
    EXPECT_THAT(told, ElementsAre(LockState::kStolen));
    EXPECT_TRUE(thief->IsHeld());
  }
}

TEST_F(LockManagerTest, SameOwnerReentersAndEachHandleCounts) {
  absl::StatusOr<Lock> outer = locks_.Acquire("a", {.owner = "me"});
  auto other = Ask("a");
  absl::StatusOr<Lock> inner = locks_.Acquire("a", {.owner = "me"});
  ASSERT_TRUE(inner.ok());
  EXPECT_EQ(inner->fencing_token(), outer->fencing_token());
  EXPECT_TRUE(outer->Release().ok());
  EXPECT_FALSE(other->result);
  EXPECT_TRUE(inner->IsHeld());
  EXPECT_TRUE(inner->Release().ok());
  EXPECT_TRUE(other->granted());
}

TEST_F(LockManagerTest, ReenteringAHoldThatEndsEndsWithIt) {
  absl::StatusOr<Lock> outer = locks_.Acquire("a", {.owner = "me", .lease = absl::Seconds(10)});
  clock_.AdvanceBy(absl::Seconds(4));
  absl::StatusOr<Lock> inner = locks_.Acquire("a", {.owner = "me"});
  EXPECT_EQ(inner->remaining(), absl::Seconds(6));
  clock_.AdvanceBy(absl::Seconds(6));
  EXPECT_EQ(inner->state(), LockState::kExpired);
  EXPECT_EQ(outer->state(), LockState::kExpired);
}

TEST_F(LockManagerTest, AWaiterReentersAHoldThatEnds) {
  absl::StatusOr<Lock> held = locks_.Acquire("a", {.owner = "another", .priority = 3});
  const auto inner = Ask("a", {.owner = "me", .priority = 2});
  const auto outer = Ask("a", {.owner = "me", .priority = 3, .lease = absl::Seconds(10)});
  EXPECT_TRUE(held->Release().ok());
  ASSERT_TRUE(outer->granted());
  // The other request of the same owner need not wait for the first to leave.
  ASSERT_TRUE(inner->granted());
  EXPECT_EQ(inner->lock().remaining(), absl::Seconds(10));
  clock_.AdvanceBy(absl::Seconds(10));
  EXPECT_EQ(inner->lock().state(), LockState::kExpired);
}

TEST_F(LockManagerTest, ReenteringAHoldThatEndsUnderAnObserver) {
  LockManager observed = NewManager({.observer = std::make_shared<Observer>()});
  absl::StatusOr<Lock> outer = observed.Acquire("a", {.owner = "me", .lease = absl::Seconds(10)});
  absl::StatusOr<Lock> inner = observed.Acquire("a", {.owner = "me"});
  ASSERT_TRUE(inner.ok());
  EXPECT_EQ(inner->remaining(), absl::Seconds(10));
  absl::StatusOr<Lock> tried = observed.TryAcquire("a", {.owner = "me"});
  ASSERT_TRUE(tried.ok());
  EXPECT_EQ(tried->remaining(), absl::Seconds(10));
}

TEST_F(LockManagerTest, TimeoutFreesThePlaceAtOnce) {
  absl::StatusOr<Lock> held = locks_.Acquire("a", {.owner = "bob"});
  auto pending = Ask("a", {.acquire_timeout = absl::Seconds(1)});
  clock_.AdvanceBy(absl::Seconds(1));
  ASSERT_TRUE(pending->failed());
  EXPECT_EQ(pending->status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(pending->status().message(), HasSubstr("'bob'"));
  EXPECT_EQ(locks_.Snapshot()[0].waiters.size(), 0u);
}

TEST_F(LockManagerTest, CancelledByStopToken) {
  absl::StatusOr<Lock> held = locks_.Acquire("a");
  std::stop_source source;
  auto pending = Ask("a", {.cancel = source.get_token()});
  EXPECT_FALSE(pending->result);
  source.request_stop();
  EXPECT_EQ(ReasonOf(pending->status()), Reason::kCancelled);
  EXPECT_EQ(ReasonOf(locks_.Acquire("free", {.cancel = source.get_token()}).status()),
            Reason::kCancelled);
}

TEST_F(LockManagerTest, DestroyingTheManagerCancelsWaitersAndLeavesLocksValid) {
  std::optional<LockManager> locks = NewManager();
  absl::StatusOr<Lock> held = locks->Acquire("a");
  absl::StatusOr<Lock> leased = locks->Acquire("b", {.lease = absl::Seconds(5)});
  auto pending = Ask(*locks, "a");
  locks.reset();
  EXPECT_EQ(ReasonOf(pending->status()), Reason::kShutdown);
  EXPECT_EQ(held->state(), LockState::kHeld);
  EXPECT_EQ(leased->state(), LockState::kHeld);
  EXPECT_FALSE(locks_.TryAcquire("a").ok());
  EXPECT_TRUE(held->Release().ok());
  EXPECT_TRUE(locks_.TryAcquire("a").ok());
}

TEST_F(LockManagerTest, ALockInATaskThatTheExecutorDropsIsReleased) {
  auto executor = std::make_unique<SimulatedExecutor>();
  LockManager locks =
      *LockManager::Create(backend_, {.clock = &clock_, .executor = executor.get()});
  int told = 0;
  locks.AcquireAsync("a", {}, [&](absl::StatusOr<Lock>) { ++told; });
  EXPECT_TRUE(locks.IsBusy("a"));
  executor->DropAll();
  EXPECT_EQ(told, 0);
  EXPECT_FALSE(locks.IsBusy());
}

TEST_F(LockManagerTest, ManagersOnOneBackendRespectEachOther) {
  LockManager other = NewManager();
  absl::StatusOr<Lock> held = locks_.Acquire("a", {.priority = 1});
  auto first = Ask(other, "a");
  auto second = Ask("a");
  auto urgent = Ask(other, "a", {.priority = 5});
  EXPECT_EQ(held->state(), LockState::kYielding);
  EXPECT_TRUE(held->Release().ok());
  ASSERT_TRUE(urgent->granted());
  urgent->result.reset();
  // `first` stepped back for `urgent`, and so gave up its place before `second`.
  ASSERT_TRUE(second->granted());
  EXPECT_FALSE(first->result);
  second->result.reset();
  EXPECT_TRUE(first->granted());
}

TEST_F(LockManagerTest, AHeadThatGivesUpLeavesItsPlaceToTheNextOfItsManager) {
  LockManager other = NewManager();
  absl::StatusOr<Lock> held = locks_.Acquire("a");
  auto gives_up = Ask(other, "a", {.acquire_timeout = absl::Seconds(1)});
  auto heir = Ask(other, "a");
  auto stranger = Ask("a");
  clock_.AdvanceBy(absl::Seconds(1));
  ASSERT_TRUE(gives_up->failed());
  EXPECT_TRUE(held->Release().ok());
  ASSERT_TRUE(heir->granted());
  EXPECT_FALSE(stranger->result);
}

TEST_F(LockManagerTest, ManagersTakeTurns) {
  LockManager other = NewManager();
  absl::StatusOr<Lock> held = locks_.Acquire("a");
  std::vector<std::string> order;
  const auto ask = [&](LockManager& locks, std::string name) {
    locks.AcquireAsync("a", {},
                       [&order, name](const absl::StatusOr<Lock>&) { order.push_back(name); });
  };
  ask(locks_, "1a");
  ask(locks_, "1b");
  ask(other, "2a");
  ask(other, "2b");
  EXPECT_TRUE(held->Release().ok());
  EXPECT_THAT(order, ElementsAre("1a", "2a", "1b", "2b"));
}

TEST_F(LockManagerTest, AnEqualNewcomerDoesNotSlipInBeforeTheWokenWaiter) {
  LockManager other = NewManager();
  absl::StatusOr<Lock> held = locks_.Acquire("a");
  bool slipped_in = true;
  other.AcquireAsync("a", {},
                     [&](absl::StatusOr<Lock>) { slipped_in = locks_.TryAcquire("a").ok(); });
  EXPECT_TRUE(held->Release().ok());
  EXPECT_FALSE(slipped_in);
}

TEST_F(LockManagerTest, ChainOfThievesLetsTheHighestInFirst) {
  absl::StatusOr<Lock> held = locks_.Acquire("a");
  auto low = Ask("a", {.priority = 1});
  auto high = Ask("a", {.priority = 3});
  auto middle = Ask("a", {.priority = 2});
  EXPECT_TRUE(held->Release().ok());
  ASSERT_TRUE(high->granted());
  EXPECT_FALSE(middle->result);
  high->result.reset();
  ASSERT_TRUE(middle->granted());
  middle->result.reset();
  EXPECT_TRUE(low->granted());
}

// A named owner asks the backend although others wait, since it might re-enter. It must not become
// the successor before those of its priority that came first.
TEST_F(LockManagerTest, AThiefOfAnotherManagerTakesOverWhenTheFirstGivesUp) {
  LockManager others = NewManager();
  absl::StatusOr<Lock> held = locks_.Acquire("a");
  const auto first = Ask("a", {.priority = 5, .acquire_timeout = absl::Seconds(1)});
  const auto second = Ask(others, "a", {.priority = 5});
  EXPECT_EQ(held->state(), LockState::kYielding);
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_TRUE(first->failed());
  // Not even for a moment is the holder left alone: the second has asked it to yield.
  EXPECT_EQ(held->state(), LockState::kYielding);
  EXPECT_TRUE(held->Release().ok());
  EXPECT_TRUE(second->granted());
}

TEST_F(LockManagerTest, NamedOwnerDoesNotPreemptBeforeThoseWhoWaitedFirst) {
  LockManager other = NewManager();
  absl::StatusOr<Lock> strong = locks_.Acquire("a", {.priority = 3});
  auto first = Ask("a", {.priority = 3});
  auto weak = Ask(other, "a");
  EXPECT_TRUE(strong->Release().ok());
  ASSERT_TRUE(first->granted());
  first->result.reset();
  ASSERT_TRUE(weak->granted());
  auto second = Ask("a", {.priority = 3});
  auto named = Ask("a", {.owner = "named", .priority = 3});
  weak->result.reset();
  ASSERT_TRUE(second->granted());
  EXPECT_FALSE(named->result);
  second->result.reset();
  EXPECT_TRUE(named->granted());
}

TEST_F(LockManagerTest, BlockingCallInsideACallbackIsRefused) {
  absl::Status status;
  locks_.AcquireAsync("a", {}, [&](absl::StatusOr<Lock> lock) {
    status = locks_.Acquire("b").status();
    EXPECT_TRUE(locks_.TryAcquire("b").ok());
    EXPECT_TRUE(lock->Release().ok());
  });
  EXPECT_EQ(ReasonOf(status), Reason::kWouldBlock);
  ExpectNothingLeft();
}

TEST_F(LockManagerTest, BadInputNamesFieldAndValueAndAcquiresNothing) {
  const auto expect = [&](std::string_view resource, const AcquireOptions& options,
                          std::string_view field, std::string_view value) {
    for (const absl::Status& status :
         {locks_.Acquire(resource, options).status(), locks_.TryAcquire(resource, options).status(),
          Ask(resource, options)->status()}) {
      EXPECT_EQ(ReasonOf(status), Reason::kInvalidArgument) << status;
      EXPECT_THAT(status.message(), HasSubstr(std::string(field)));
      EXPECT_THAT(status.message(), HasSubstr(std::string(value)));
    }
    ExpectNothingLeft();
  };
  expect("", {}, "resource", "''");
  expect("a", {.lease = absl::ZeroDuration()}, "lease", "0");
  expect("a", {.lease = -absl::Seconds(1)}, "lease", "-1s");
  expect("a", {.max_hold = absl::ZeroDuration()}, "max_hold", "0");
  expect("a", {.preemption_grace = -absl::Seconds(1)}, "preemption_grace", "-1s");
  expect("a", {.acquire_timeout = -absl::Seconds(1)}, "acquire_timeout", "-1s");
  expect("a", {.max_attempts = 0}, "max_attempts", "0");
  expect("a", {.max_execution_time = absl::ZeroDuration()}, "max_execution_time", "0");
  expect("a", {.max_occupation_time = absl::ZeroDuration()}, "max_occupation_time", "0");
  EXPECT_EQ(ReasonOf(LockManager::Create(nullptr).status()), Reason::kInvalidArgument);
}

TEST_F(LockManagerTest, ReleaseIsIdempotentAndMoveAssignmentReleases) {
  absl::StatusOr<Lock> a = locks_.Acquire("a");
  absl::StatusOr<Lock> b = locks_.Acquire("b");
  *a = *std::move(b);
  EXPECT_FALSE(locks_.IsBusy("a"));
  EXPECT_TRUE(locks_.IsBusy("b"));
  EXPECT_EQ(b->state(), LockState::kEmpty);
  EXPECT_EQ(ReasonOf(b->Release()), Reason::kNotHeld);
  EXPECT_TRUE(a->Release().ok());
  EXPECT_TRUE(a->Release().ok());
  EXPECT_EQ(a->state(), LockState::kReleased);
  EXPECT_EQ(ReasonOf(a->Extend(absl::Seconds(1))), Reason::kNotHeld);
}

TEST_F(LockManagerTest, ALockMayBeReleasedInItsOwnCallback) {
  absl::StatusOr<Lock> holder = locks_.Acquire("a");
  holder->OnYieldRequested([&] { EXPECT_TRUE(holder->Release().ok()); });
  auto thief = Ask("a", {.priority = 1});
  EXPECT_TRUE(thief->granted());
}

TEST_F(LockManagerTest, NoCallbackStartsAfterTheRelease) {
  SimulatedExecutor executor;
  LockManager locks = NewManager({.executor = &executor});
  absl::StatusOr<Lock> holder = locks.Acquire("a");
  bool called = false;
  holder->OnYieldRequested([&] { called = true; });
  auto thief = Ask("a", {.priority = 1});
  EXPECT_TRUE(holder->stop_token().stop_requested())
      << "the stop token does not wait for executors";
  EXPECT_TRUE(holder->Release().ok());
  executor.RunAll();
  EXPECT_FALSE(called);
}

TEST_F(LockManagerTest, TheDestructorWaitsForACallbackOnAnotherThread) {
  const std::unique_ptr<Executor> pool = NewThreadPool(1);
  LockManager locks = NewManager({.executor = pool.get()});
  for (int round = 0; round < 100; ++round) {
    absl::Notification started;
    std::atomic<bool> ended = false;
    std::optional<Lock> holder = *locks.Acquire("a");
    holder->OnYieldRequested([&] {
      started.Notify();
      for (int i = 0; i < 10; ++i) std::this_thread::yield();
      ended = true;
    });
    auto thief = Ask("a", {.priority = 1});
    started.WaitForNotification();
    holder.reset();
    EXPECT_TRUE(ended);
    EXPECT_TRUE(thief->granted());
  }
}

TEST_F(LockManagerTest, BlockedThreadIsWoken) {
  absl::StatusOr<Lock> held = locks_.Acquire("a");
  std::atomic<bool> entered = false;
  std::thread thread([&] {
    absl::StatusOr<Lock> lock = locks_.Acquire("a");
    EXPECT_TRUE(lock.ok());
    entered = true;
  });
  while (locks_.Snapshot()[0].waiters.empty()) std::this_thread::yield();
  EXPECT_FALSE(entered);
  EXPECT_TRUE(held->Release().ok());
  thread.join();
  ExpectNothingLeft();
}

}  // namespace
}  // namespace latchkey

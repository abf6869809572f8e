// priority-redlock's behaviour, case by case: what its users rely on, in our words. Where we
// differ, the test says so, and docs/reference/from-priority-redlock.md why; that page also maps
// each case of its own test suite to one of these.
#include <algorithm>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "latchkey/core/lock_manager.h"
#include "latchkey/core/policy/retry_policy.h"
#include "latchkey/core/protocol/locking_protocol.h"
#include "latchkey/tests/support/fault_injecting_protocol.h"
#include "latchkey/tests/support/lock_manager_fixture.h"

namespace latchkey {
namespace {

using ::testing::ElementsAre;

class PriorityRedlockTest : public LockManagerFixture {
 protected:
  // A manager whose backend is a network away: each message takes 15 ms.
  LockManager NewManagerFarAway() {
    return *LockManager::Create(
        std::make_shared<FaultInjectingProtocol>(
            backend_, FaultInjectingOptions{.clock = &clock_,
                                            .faults = {.min_delay = absl::Milliseconds(15),
                                                       .max_delay = absl::Milliseconds(15)},
                                            .in_order = true}),
        {.clock = &clock_});
  }
};

// A backend that never tells anything by itself, and notes when it was asked.
class SilentProtocol : public LockingProtocol {
 public:
  SilentProtocol(std::shared_ptr<LockingProtocol> wrapped, Clock& clock)
      : wrapped_(std::move(wrapped)), clock_(clock), capabilities_(wrapped_->capabilities()) {
    capabilities_.reliable_events = false;
    capabilities_.keeps_order = false;
  }

  void Obtain(const ObtainRequest& request, ObtainCallback done) override {
    asked_.push_back(clock_.Now());
    wrapped_->Obtain(request, std::move(done));
  }
  void Release(const HoldRef& hold, ReleaseCallback done) override {
    wrapped_->Release(hold, std::move(done));
  }
  void Extend(const HoldRef& hold, absl::Duration lease, ExtendCallback done) override {
    wrapped_->Extend(hold, lease, std::move(done));
  }
  Subscription Watch(const WatchRequest&, WatchCallback) override { return {}; }
  const BackendCapabilities& capabilities() const override { return capabilities_; }

  const std::vector<absl::Time>& asked() const { return asked_; }

 private:
  const std::shared_ptr<LockingProtocol> wrapped_;
  Clock& clock_;
  BackendCapabilities capabilities_;
  std::vector<absl::Time> asked_;
};

TEST_F(PriorityRedlockTest, Defaults) {
  absl::StatusOr<Lock> lock = locks_.Acquire("lights");
  ASSERT_TRUE(lock.ok());
  EXPECT_EQ(lock->state(), LockState::kHeld);
  EXPECT_TRUE(lock->IsHeld());
  EXPECT_EQ(locks_.Snapshot()[0].state.holder_priority, 0);
  EXPECT_EQ(lock->remaining(), absl::InfiniteDuration());
}

TEST_F(PriorityRedlockTest, AnAcquireTimeThatIsOver) {
  absl::StatusOr<Lock> held = locks_.Acquire("lights", {.owner = "first"});
  EXPECT_EQ(ReasonOf(locks_.Acquire("lights", {.acquire_timeout = absl::ZeroDuration()}).status()),
            Reason::kAcquireTimeout);
  EXPECT_EQ(ReasonOf(Ask("lights", {.acquire_timeout = -absl::Seconds(1)})->status()),
            Reason::kInvalidArgument);
  auto soon = Ask("lights", {.acquire_timeout = absl::Milliseconds(5)});
  clock_.AdvanceBy(absl::Milliseconds(5));
  EXPECT_EQ(ReasonOf(soon->status()), Reason::kAcquireTimeout);
}

// Differs: there an acquire time of nothing fails even if the lock was had.
TEST_F(PriorityRedlockTest, AnAcquireTimeOfNothingTakesAFreeLock) {
  EXPECT_TRUE(locks_.Acquire("lights", {.acquire_timeout = absl::ZeroDuration()}).ok());
}

TEST_F(PriorityRedlockTest, ALockThatIsGrantedTooLateIsGivenBack) {
  LockManager far = NewManagerFarAway();
  auto late = Ask(far, "lights", {.acquire_timeout = absl::Milliseconds(20)});
  clock_.AdvanceBy(absl::Milliseconds(20));
  EXPECT_EQ(ReasonOf(late->status()), Reason::kAcquireTimeout);
  clock_.AdvanceBy(absl::Milliseconds(30));
  EXPECT_FALSE(locks_.IsBusy("lights"));
}

TEST_F(PriorityRedlockTest, TheSamePriorityBlocks) {
  absl::StatusOr<Lock> held = locks_.Acquire("lights", {.owner = "first", .priority = 5});
  auto second = Ask("lights", {.owner = "second", .priority = 5});
  EXPECT_FALSE(second->result);
  EXPECT_EQ(held->state(), LockState::kHeld);
  ASSERT_TRUE(held->Release().ok());
  EXPECT_TRUE(second->granted());
}

TEST_F(PriorityRedlockTest, ReentranceRaisesThePriority) {
  absl::StatusOr<Lock> outer = locks_.Acquire("lights", {.owner = "me", .priority = 1});
  absl::StatusOr<Lock> inner = locks_.Acquire("lights", {.owner = "me", .priority = 3});
  auto thief = Ask("lights", {.owner = "thief", .priority = 2});
  EXPECT_EQ(outer->state(), LockState::kHeld);
}

TEST_F(PriorityRedlockTest, ReentranceNeverLowersThePriority) {
  absl::StatusOr<Lock> outer = locks_.Acquire("lights", {.owner = "me", .priority = 3});
  absl::StatusOr<Lock> inner = locks_.Acquire("lights", {.owner = "me", .priority = 1});
  auto thief = Ask("lights", {.owner = "thief", .priority = 2});
  EXPECT_EQ(outer->state(), LockState::kHeld);
}

// Differs: there the inner release frees the outer lock.
TEST_F(PriorityRedlockTest, TheInnerReleaseLeavesTheOuterLock) {
  absl::StatusOr<Lock> outer = locks_.Acquire("lights", {.owner = "me"});
  absl::StatusOr<Lock> inner = locks_.Acquire("lights", {.owner = "me"});
  ASSERT_TRUE(inner->Release().ok());
  EXPECT_TRUE(outer->IsHeld());
  EXPECT_FALSE(locks_.TryAcquire("lights", {.owner = "other"}).ok());
}

TEST_F(PriorityRedlockTest, ManualRelease) {
  absl::StatusOr<Lock> lock = locks_.Acquire("lights");
  auto next = Ask("lights");
  EXPECT_TRUE(lock->Release().ok());
  EXPECT_EQ(lock->state(), LockState::kReleased);
  EXPECT_FALSE(lock->IsHeld());
  EXPECT_TRUE(next->granted());
}

// Differs: there `onRelease` hears of the holder's own release, too. Here whoever releases is told,
// and the listeners hear only of what others did.
TEST_F(PriorityRedlockTest, WhoReleasesIsTold) {
  absl::StatusOr<Lock> lock = locks_.Acquire("lights");
  lock->OnYieldRequested([] { FAIL(); });
  lock->OnLost([](LockState) { FAIL(); });
  std::vector<absl::Status> told;
  const auto note = [&](absl::Status status) { told.push_back(std::move(status)); };
  lock->ReleaseAsync(note);
  EXPECT_THAT(told, ElementsAre(absl::OkStatus()));
  lock->ReleaseAsync(note);  // Too late, and told at once.
  EXPECT_THAT(told, ElementsAre(absl::OkStatus(), absl::OkStatus()));
  lock->OnLost([](LockState) { FAIL(); });
}

TEST_F(PriorityRedlockTest, AutomaticReleaseAtTheEndOfTheLease) {
  absl::StatusOr<Lock> lock = locks_.Acquire("lights", {.lease = absl::Seconds(5)});
  std::vector<LockState> told;
  lock->OnLost([&](LockState state) { told.push_back(state); });
  auto next = Ask("lights");
  clock_.AdvanceBy(absl::Seconds(5));
  EXPECT_THAT(told, ElementsAre(LockState::kExpired));
  EXPECT_EQ(lock->state(), LockState::kExpired);
  EXPECT_TRUE(next->granted());
}

TEST_F(PriorityRedlockTest, ARedundantReleaseDoesNoHarm) {
  absl::StatusOr<Lock> lock = locks_.Acquire("lights");
  EXPECT_TRUE(lock->Release().ok());
  absl::StatusOr<Lock> next = locks_.Acquire("lights");
  EXPECT_TRUE(lock->Release().ok());
  EXPECT_TRUE(next->IsHeld());
}

TEST_F(PriorityRedlockTest, ALateListenerHearsWhatHappened) {
  absl::StatusOr<Lock> lock = locks_.Acquire("lights", {.lease = absl::Seconds(5)});
  clock_.AdvanceBy(absl::Seconds(6));
  std::vector<LockState> told;
  lock->OnLost([&](LockState state) { told.push_back(state); });
  EXPECT_THAT(told, ElementsAre(LockState::kExpired));
}

TEST_F(PriorityRedlockTest, RetriesComeEverSlower) {
  const auto policy = ExponentialBackoff({.initial = absl::Milliseconds(50)});
  absl::Duration before = absl::ZeroDuration();
  for (int attempts = 1; attempts <= 5; ++attempts) {
    const absl::Duration delay = policy->Delay({.attempts = attempts, .random = 0.5});
    EXPECT_GT(delay, before);
    before = delay;
  }
}

// Differs: here the delays are random within bounds that grow, and nobody asks again where the
// backend tells reliably that a lock is free.
TEST_F(PriorityRedlockTest, AWaiterAsksEverMoreSeldom) {
  auto silent = std::make_shared<SilentProtocol>(backend_, clock_);
  absl::StatusOr<Lock> held = locks_.Acquire("lights");
  constexpr uint64_t kSeed = 1;
  SCOPED_TRACE(kSeed);
  LockManager polls = *LockManager::Create(silent, {.clock = &clock_, .random_seed = kSeed});
  auto pending = Ask(polls, "lights", {.acquire_timeout = absl::Seconds(30)});
  for (int i = 0; i < 30000; ++i) clock_.AdvanceBy(absl::Milliseconds(1));
  EXPECT_EQ(ReasonOf(pending->status()), Reason::kAcquireTimeout);
  const std::vector<absl::Time>& asked = silent->asked();
  ASSERT_GT(asked.size(), 12u);
  // The first look and the one after it has subscribed come together.
  ASSERT_EQ(asked[0], asked[1]);
  absl::Duration bound = absl::Milliseconds(50);
  for (size_t i = 2; i < asked.size(); ++i) {
    EXPECT_LE(asked[i] - asked[i - 1], bound) << i;
    bound = std::min(bound * 2, absl::Seconds(2));
  }
  EXPECT_GT(asked.back() - asked[asked.size() - 6], asked[6] - asked[1]);
}

TEST_F(PriorityRedlockTest, Stealing) {
  absl::StatusOr<Lock> victim = locks_.Acquire("lights", {.owner = "save energy"});
  victim->OnYieldRequested([&] { EXPECT_TRUE(victim->Release().ok()); });
  auto thief = Ask("lights", {.owner = "motion detected", .priority = 100});
  ASSERT_TRUE(thief->granted());
  EXPECT_EQ(thief->lock().state(), LockState::kHeld);
}

// What is the rule there, with no grace at all, is a choice here: a victim that need not agree.
TEST_F(PriorityRedlockTest, StealingFromAVictimThatNeedNotAgree) {
  absl::StatusOr<Lock> victim = locks_.Acquire("lights", {.owner = "save energy"});
  auto thief =
      Ask("lights",
          {.owner = "motion detected", .priority = 100, .preemption_grace = absl::ZeroDuration()});
  ASSERT_TRUE(thief->granted());
  EXPECT_EQ(victim->state(), LockState::kStolen);
  EXPECT_GT(thief->lock().fencing_token(), victim->fencing_token());
}

// Differs: there the thief owns the record before the victim has left.
TEST_F(PriorityRedlockTest, ADelayedAcknowledgementKeepsTheThiefOut) {
  absl::StatusOr<Lock> victim = locks_.Acquire("lights", {.owner = "save energy"});
  bool asked = false;
  victim->OnYieldRequested([&] { asked = true; });
  auto thief = Ask("lights", {.owner = "motion detected", .priority = 100});
  EXPECT_TRUE(asked);
  clock_.AdvanceBy(absl::Seconds(30));
  EXPECT_FALSE(thief->result);
  EXPECT_TRUE(victim->IsHeld());
  ASSERT_TRUE(victim->Release().ok());
  EXPECT_TRUE(thief->granted());
}

TEST_F(PriorityRedlockTest, AVictimThatNeverAnswersLosesTheLockWithItsLease) {
  absl::StatusOr<Lock> victim = locks_.Acquire("lights", {.lease = absl::Seconds(10)});
  auto thief = Ask("lights", {.priority = 1});
  clock_.AdvanceBy(absl::Seconds(10));
  EXPECT_TRUE(thief->granted());
}

TEST_F(PriorityRedlockTest, OfTwoThievesTheHigherEntersFirst) {
  absl::StatusOr<Lock> victim = locks_.Acquire("lights");
  auto low = Ask("lights", {.owner = "low", .priority = 1});
  auto high = Ask("lights", {.owner = "high", .priority = 2});
  ASSERT_TRUE(victim->Release().ok());
  ASSERT_TRUE(high->granted());
  EXPECT_FALSE(low->result);
  high->result.reset();
  EXPECT_TRUE(low->granted());
}

TEST_F(PriorityRedlockTest, WithoutAnAcknowledgementBothThievesTimeOut) {
  absl::StatusOr<Lock> victim = locks_.Acquire("lights", {.owner = "save energy"});
  auto low = Ask("lights", {.priority = 1, .acquire_timeout = absl::Milliseconds(20)});
  clock_.AdvanceBy(absl::Milliseconds(1));
  auto high = Ask("lights", {.priority = 2, .acquire_timeout = absl::Milliseconds(20)});
  clock_.AdvanceBy(absl::Milliseconds(20));
  EXPECT_EQ(ReasonOf(low->status()), Reason::kAcquireTimeout);
  EXPECT_EQ(ReasonOf(high->status()), Reason::kAcquireTimeout);
  EXPECT_EQ(victim->state(), LockState::kHeld);
}

// Differs: there the lower thief fails, since it is told that the lock is taken.
TEST_F(PriorityRedlockTest, TheAcknowledgementOfADelayedVictimLetsTheHigherThiefIn) {
  absl::StatusOr<Lock> victim = locks_.Acquire("lights", {.owner = "save energy"});
  victim->OnYieldRequested([&] {
    clock_.RunAt(clock_.Now() + absl::Milliseconds(30),
                 [&] { EXPECT_TRUE(victim->Release().ok()); });
  });
  auto low = Ask("lights", {.priority = 1, .acquire_timeout = absl::Seconds(4)});
  clock_.AdvanceBy(absl::Milliseconds(5));
  auto high = Ask("lights", {.priority = 2});
  clock_.AdvanceBy(absl::Milliseconds(24));
  EXPECT_FALSE(low->result || high->result);
  clock_.AdvanceBy(absl::Milliseconds(1));
  ASSERT_TRUE(high->granted());
  EXPECT_FALSE(low->result);
  EXPECT_EQ(victim->state(), LockState::kReleased);
}

TEST_F(PriorityRedlockTest, AThiefThatGivesUpLeavesTheVictimTheHolder) {
  absl::StatusOr<Lock> victim = locks_.Acquire("lights");
  auto thief = Ask("lights", {.priority = 1, .acquire_timeout = absl::Seconds(1)});
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_TRUE(thief->failed());
  EXPECT_EQ(victim->state(), LockState::kHeld);
  EXPECT_FALSE(locks_.TryAcquire("lights").ok());
}

// Differs: there nothing reads it.
TEST_F(PriorityRedlockTest, AttemptsAreLimited) {
  absl::StatusOr<Lock> held = locks_.Acquire("lights");
  EXPECT_EQ(ReasonOf(Ask("lights", {.max_attempts = 1})->status()), Reason::kAttemptsExhausted);
}

TEST_F(PriorityRedlockTest, AllLightsWithOneOwnerPriorityAndLease) {
  absl::StatusOr<Lock> one = locks_.Acquire("bedroom", {.owner = "save energy"});
  auto all = AskAll({"kitchen", "bedroom"}, {.owner = "motion detected", .priority = 100});
  EXPECT_EQ(one->state(), LockState::kYielding);
  ASSERT_TRUE(one->Release().ok());
  ASSERT_TRUE(all->granted());
  EXPECT_TRUE(all->lock().Release().ok());
  ExpectNothingLeft();
}

TEST_F(PriorityRedlockTest, MembersOfASetMayDiffer) {
  auto all = std::make_shared<PendingSet>();
  const std::vector<LockRequest> requests = {
      {.resource = "kitchen", .options = {.owner = "cook", .priority = 1}},
      {.resource = "bedroom", .options = {.owner = "sleeper", .priority = 2}}};
  locks_.AcquireAllAsync(requests, LockOrder::kSorted, TellTo(all));
  ASSERT_TRUE(all->granted());
  EXPECT_TRUE(locks_.TryAcquire("kitchen", {.owner = "cook"}).ok());
  EXPECT_FALSE(locks_.TryAcquire("bedroom", {.owner = "cook"}).ok());
}

TEST_F(PriorityRedlockTest, ASetIsHeldAndReleasedAsOne) {
  auto both = AskAll({"kitchen", "bedroom"});
  ASSERT_TRUE(both->granted());
  EXPECT_EQ(both->lock().state(), LockState::kHeld);
  std::vector<absl::Status> told;
  both->lock().ReleaseAsync([&](absl::Status status) { told.push_back(std::move(status)); });
  EXPECT_THAT(told, ElementsAre(absl::OkStatus()));
  EXPECT_EQ(both->lock().state(), LockState::kReleased);
  ExpectNothingLeft();
}

// Differs: there it is an error.
TEST_F(PriorityRedlockTest, NoRequestsAtAllAreASetOfNothing) {
  auto none = AskAll({});
  ASSERT_TRUE(none->granted());
  EXPECT_EQ(none->lock().size(), 0u);
}

TEST_F(PriorityRedlockTest, ASetFailsIfItsFirstOrItsLastMemberDoes) {
  for (const char* const taken : {"bedroom", "kitchen"}) {
    absl::StatusOr<Lock> held = locks_.Acquire(taken);
    auto all = std::make_shared<PendingSet>();
    std::vector<LockRequest> requests = {{.resource = "bedroom"}, {.resource = "kitchen"}};
    for (LockRequest& request : requests) {
      request.options.acquire_timeout = absl::Milliseconds(request.resource == taken ? 20 : 60);
    }
    locks_.AcquireAllAsync(requests, LockOrder::kSorted, TellTo(all));
    clock_.AdvanceBy(absl::Milliseconds(20));
    EXPECT_EQ(ReasonOf(all->status()), Reason::kAcquireTimeout);
    ASSERT_TRUE(held->Release().ok());
    ExpectNothingLeft();
  }
}

TEST_F(PriorityRedlockTest, ASetHasOneTimeOverAll) {
  LockManager far = NewManagerFarAway();
  absl::StatusOr<Lock> held = locks_.Acquire("kitchen", {.lease = absl::Milliseconds(30)});
  auto all = std::make_shared<PendingSet>();
  far.AcquireAllAsync({"bedroom", "kitchen"}, {.acquire_timeout = absl::Milliseconds(40)},
                      TellTo(all));
  clock_.AdvanceBy(absl::Milliseconds(39));
  EXPECT_FALSE(all->result);
  clock_.AdvanceBy(absl::Milliseconds(1));
  EXPECT_EQ(ReasonOf(all->status()), Reason::kAcquireTimeout);
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_FALSE(locks_.IsBusy()) << "what was on its way is given back";
}

// Differs: there the set fails; here it asks again.
TEST_F(PriorityRedlockTest, ASetThatLosesAMemberBeforeItIsCompleteAsksAgain) {
  absl::StatusOr<Lock> held = locks_.Acquire("c");
  auto all = std::make_shared<PendingSet>();
  std::vector<LockRequest> requests = {{.resource = "a"}, {.resource = "b"}, {.resource = "c"}};
  requests[1].options.lease = absl::Milliseconds(8);
  locks_.AcquireAllAsync(requests, LockOrder::kSorted, TellTo(all));
  clock_.AdvanceBy(absl::Milliseconds(50));
  EXPECT_FALSE(all->result);
  ASSERT_TRUE(held->Release().ok());
  ASSERT_TRUE(all->granted());
  EXPECT_EQ(all->lock().state(), LockState::kHeld);
}

}  // namespace
}  // namespace latchkey

// What the handles of one hold share, and what each has of its own: the lease is the hold's, the
// end by max_hold and the release are the handle's.

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "latchkey/core/lock_context.h"
#include "latchkey/core/lock_error.h"
#include "latchkey/core/lock_manager.h"
#include "latchkey/core/protocol/locking_protocol.h"
#include "latchkey/core/stats_observer.h"
#include "latchkey/tests/support/lock_manager_fixture.h"
#include "latchkey/tests/support/lock_matchers.h"

namespace latchkey {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

// Passes everything on and counts; extensions may fail.
class CountingProtocol final : public LockingProtocol {
 public:
  explicit CountingProtocol(std::shared_ptr<LockingProtocol> wrapped)
      : capabilities_(wrapped->capabilities()), wrapped_(std::move(wrapped)) {}

  void Obtain(const ObtainRequest& request, ObtainCallback done) override {
    wrapped_->Obtain(request, std::move(done));
  }
  void Release(const HoldRef& hold, ReleaseCallback done) override {
    ++releases;
    wrapped_->Release(hold, std::move(done));
  }
  void Extend(const HoldRef& hold, absl::Duration lease, ExtendCallback done) override {
    ++extensions;
    if (answer) {
      done(*answer);
    } else {
      wrapped_->Extend(hold, lease, std::move(done));
    }
  }
  Subscription Watch(const WatchRequest& request, WatchCallback on_event) override {
    return wrapped_->Watch(request, std::move(on_event));
  }
  std::string ResourceOf(const HoldRef& hold) const override { return wrapped_->ResourceOf(hold); }
  const BackendCapabilities& capabilities() const override { return capabilities_; }

  BackendCapabilities capabilities_;
  int extensions = 0;
  int releases = 0;
  std::optional<absl::StatusOr<ExtendReply>> answer;

 private:
  const std::shared_ptr<LockingProtocol> wrapped_;
};

class ReentryTest : public LockManagerFixture {
 protected:
  Lock Enter(AcquireOptions options = {}) { return Enter(locks_, std::move(options)); }
  static Lock Enter(LockManager& locks, AcquireOptions options = {}) {
    if (options.owner.empty()) options.owner = "a";
    return *locks.TryAcquire("r", options);
  }
  void NoteLoss(Lock& lock) {
    lock.OnLost([this](LockState state) { told_.push_back(state); });
  }
  ResourceState Record() {
    const std::vector<ResourceSnapshot> all = locks_.Snapshot();
    return all.empty() ? ResourceState() : all[0].state;
  }
  // How long both are held without ever believing in more than there is.
  void ExpectBothHeldFor(absl::Duration time, Lock& one, Lock& other) {
    for (const absl::Time end = clock_.Now() + time; clock_.Now() < end;) {
      clock_.AdvanceBy(absl::Milliseconds(100));
      for (const Lock* const lock : {&one, &other}) {
        ASSERT_EQ(lock->state(), LockState::kHeld);
        ASSERT_LE(lock->remaining(), Record().remaining_lease);
      }
    }
  }

  std::vector<LockState> told_;
};

// ---- max_hold is the handle's ----

TEST_F(ReentryTest, MaxHoldEndsItsHandleAndLeavesTheHoldToTheOthers) {
  Lock outer = Enter();
  Lock inner = Enter({.max_hold = absl::Seconds(1)});
  clock_.AdvanceBy(absl::Seconds(1) - absl::Nanoseconds(1));
  EXPECT_EQ(Record().handles, 2);
  clock_.AdvanceBy(absl::Nanoseconds(1));
  EXPECT_EQ(Record().handles, 1) << "although nobody listens";
  EXPECT_EQ(inner.state(), LockState::kExpired);
  EXPECT_EQ(outer.state(), LockState::kHeld);
  EXPECT_THAT(inner.Release(), HasReason(Reason::kExpired, HasSubstr("now held by 'a'")));
  EXPECT_EQ(Record().handles, 1);
  EXPECT_TRUE(outer.Release().ok());
  ExpectNothingLeft();
}

TEST_F(ReentryTest, AHandleThatMaxHoldHasEndedDoesNotKeepTheLock) {
  Lock outer = Enter();
  Lock inner = Enter({.max_hold = absl::Seconds(1)});
  const auto waiter = Ask("r", {.owner = "z"});
  const auto thief = Ask("r", {.owner = "t", .priority = 9});
  clock_.AdvanceBy(absl::Seconds(2));
  EXPECT_FALSE(thief->granted());
  EXPECT_TRUE(outer.Release().ok());
  ASSERT_TRUE(thief->granted());
  EXPECT_TRUE(thief->lock().Release().ok());
  ASSERT_TRUE(waiter->granted());
  EXPECT_THAT(inner.Release(), HasReason(Reason::kExpired, HasSubstr("now held by 'z'")));
  EXPECT_EQ(waiter->lock().state(), LockState::kHeld);
}

TEST_F(ReentryTest, MaxHoldOfTheLastHandleFreesTheLock) {
  Lock outer = Enter();
  Lock inner = Enter({.max_hold = absl::Seconds(1)});
  EXPECT_TRUE(outer.Release().ok());
  const auto waiter = Ask("r");
  clock_.AdvanceBy(absl::Seconds(1) - absl::Nanoseconds(1));
  EXPECT_FALSE(waiter->granted());
  clock_.AdvanceBy(absl::Nanoseconds(1));
  EXPECT_TRUE(waiter->granted());
  EXPECT_THAT(inner.Release(), HasReason(Reason::kExpired, HasSubstr("now held by an anonymous")));
}

TEST_F(ReentryTest, MaxHoldOfTheFirstEntryEndsItAlthoughAnotherExtendsTheLease) {
  Lock outer = Enter({.max_hold = absl::Seconds(1)});
  Lock inner = Enter({.lease = absl::Seconds(3), .auto_renew = true});
  NoteLoss(outer);
  clock_.AdvanceBy(absl::Seconds(5));
  EXPECT_THAT(told_, ElementsAre(LockState::kExpired));
  EXPECT_EQ(Record().handles, 1);
  EXPECT_EQ(inner.state(), LockState::kHeld);
  EXPECT_TRUE(inner.Release().ok());
  ExpectNothingLeft();
}

TEST_F(ReentryTest, AHandleThatIsReleasedInTimeIsNotReleasedAgain) {
  const auto counting = std::make_shared<CountingProtocol>(backend_);
  LockManager locks = *LockManager::Create(counting, {.clock = &clock_});
  Lock outer = Enter(locks);
  {
    Lock inner = Enter(locks, {.max_hold = absl::Seconds(1)});
    EXPECT_TRUE(inner.Release().ok());
  }
  EXPECT_EQ(counting->releases, 1);
  EXPECT_EQ(clock_.PendingTimers(), 0);
  clock_.AdvanceBy(absl::Seconds(2));
  EXPECT_EQ(counting->releases, 1);
}

// Whoever looked just before the end may rely on it for as long as the margin.
TEST_F(ReentryTest, AHandleGoesBackOneMarginAfterItsMaxHold) {
  const auto counting = std::make_shared<CountingProtocol>(backend_);
  counting->capabilities_.lease_margin = absl::Milliseconds(20);
  LockManager locks = *LockManager::Create(counting, {.clock = &clock_});
  Lock outer = Enter(locks);
  Lock inner = Enter(locks, {.max_hold = absl::Seconds(1)});
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_EQ(inner.state(), LockState::kExpired);
  EXPECT_EQ(counting->releases, 0);
  clock_.AdvanceBy(absl::Milliseconds(20));
  EXPECT_EQ(counting->releases, 1);
  EXPECT_EQ(outer.state(), LockState::kHeld);
}

TEST_F(ReentryTest, AnObserverCountsAHandleThatMaxHoldHasEndedOnce) {
  const auto stats = std::make_shared<StatsObserver>();
  LockManager locks = NewManager({.observer = stats});
  Lock outer = Enter(locks);
  Lock inner = Enter(locks, {.max_hold = absl::Seconds(1)});
  EXPECT_EQ(stats->held(), 2);
  clock_.AdvanceBy(absl::Seconds(2));
  EXPECT_EQ(stats->held(), 1);
  EXPECT_TRUE(outer.Release().ok());
  EXPECT_FALSE(inner.Release().ok());
  EXPECT_EQ(stats->held(), 0);
  ExpectNothingLeft();
}

// ---- The lease is the hold's ----

TEST_F(ReentryTest, ARenewalOfTheFirstEntryCarriesTheSecond) {
  Lock outer = Enter({.lease = absl::Seconds(2), .auto_renew = true});
  clock_.AdvanceBy(absl::Seconds(1));
  Lock inner = Enter();
  NoteLoss(inner);
  ExpectBothHeldFor(absl::Seconds(20), outer, inner);
  EXPECT_TRUE(inner.Release().ok());
  EXPECT_TRUE(outer.Release().ok());
  EXPECT_THAT(told_, IsEmpty());
}

TEST_F(ReentryTest, ARenewalOfTheSecondEntryCarriesTheFirst) {
  Lock outer = Enter({.lease = absl::Seconds(2)});
  Lock inner = Enter({.lease = absl::Seconds(10), .auto_renew = true});
  NoteLoss(outer);
  ExpectBothHeldFor(absl::Seconds(60), outer, inner);
  EXPECT_TRUE(inner.Release().ok());
  EXPECT_EQ(outer.state(), LockState::kHeld);
  // From now on nobody renews it.
  clock_.AdvanceBy(absl::Seconds(10));
  EXPECT_THAT(told_, ElementsAre(LockState::kExpired));
}

TEST_F(ReentryTest, AHoldThatIsRenewedByAnotherManagerGoesOnForThisOne) {
  LockManager others = NewManager();
  Lock outer = Enter({.lease = absl::Seconds(2)});
  Lock inner = Enter(others, {.lease = absl::Seconds(2), .auto_renew = true});
  EXPECT_EQ(inner.fencing_token(), outer.fencing_token());
  ExpectBothHeldFor(absl::Seconds(20), outer, inner);
}

TEST_F(ReentryTest, AnExtensionIsLearntBeforeTheOldDeadline) {
  Lock outer = Enter({.lease = absl::Seconds(2)});
  Lock inner = Enter();
  EXPECT_TRUE(outer.Extend(absl::Seconds(10)).ok());
  clock_.AdvanceBy(absl::Seconds(2));
  EXPECT_EQ(inner.state(), LockState::kHeld);
  EXPECT_EQ(inner.remaining(), absl::Seconds(8));
  clock_.AdvanceBy(absl::Seconds(8));
  EXPECT_EQ(inner.state(), LockState::kExpired);
  EXPECT_EQ(outer.state(), LockState::kExpired);
}

TEST_F(ReentryTest, AnExtensionWithoutEndIsLearntAndThenNobodyAsks) {
  Lock outer = Enter({.lease = absl::Seconds(2)});
  Lock inner = Enter();
  EXPECT_TRUE(inner.Extend(absl::InfiniteDuration()).ok());
  clock_.AdvanceBy(absl::Seconds(2));
  EXPECT_EQ(outer.remaining(), absl::InfiniteDuration());
  EXPECT_EQ(clock_.PendingTimers(), 0);
}

TEST_F(ReentryTest, AnExtensionBeforeAReservationIsLearntWhileItStands) {
  Lock outer = Enter({.lease = absl::Seconds(2)});
  Lock inner = Enter();
  EXPECT_TRUE(outer.Extend(absl::Seconds(10)).ok());
  const auto thief = Ask("r", {.owner = "t", .priority = 9});
  clock_.AdvanceBy(absl::Seconds(3));
  EXPECT_EQ(inner.state(), LockState::kYielding);
  EXPECT_EQ(inner.remaining(), absl::Seconds(7));
  clock_.AdvanceBy(absl::Seconds(7));
  EXPECT_EQ(inner.state(), LockState::kExpired);
  EXPECT_TRUE(thief->granted());
}

TEST_F(ReentryTest, ARenewalAfterAWithdrawnReservationIsLearnt) {
  Lock outer = Enter({.lease = absl::Seconds(2), .auto_renew = true});
  Lock inner = Enter();
  NoteLoss(outer);
  NoteLoss(inner);
  const auto thief = Ask(
      "r",
      {.owner = "t", .priority = 9, .acquire_timeout = absl::Seconds(2) - absl::Nanoseconds(10)});
  clock_.AdvanceBy(absl::Seconds(2) - absl::Nanoseconds(11));
  EXPECT_EQ(inner.state(), LockState::kYielding);
  clock_.AdvanceBy(absl::Nanoseconds(1));
  EXPECT_TRUE(thief->failed());
  ExpectBothHeldFor(absl::Seconds(10), outer, inner);
  EXPECT_THAT(told_, IsEmpty());
}

// ---- Looking ----

TEST_F(ReentryTest, LookingDoesNotExtend) {
  for (const absl::Duration lease :
       {absl::Nanoseconds(1), absl::Microseconds(3), absl::Milliseconds(2), absl::Seconds(2)}) {
    SCOPED_TRACE(lease);
    Lock alone = Enter({.lease = lease});
    const auto waiter = Ask("r");
    clock_.AdvanceBy(lease - absl::Nanoseconds(1));
    EXPECT_EQ(alone.state(), LockState::kHeld);
    EXPECT_FALSE(waiter->granted());
    clock_.AdvanceBy(absl::Nanoseconds(1));
    EXPECT_EQ(alone.state(), LockState::kExpired);
    EXPECT_TRUE(waiter->granted());
  }
}

TEST_F(ReentryTest, OnlyAHoldThatMayBeSharedIsLookedAt) {
  const auto counting = std::make_shared<CountingProtocol>(backend_);
  LockManager locks = *LockManager::Create(counting, {.clock = &clock_});
  {
    Lock anonymous = *locks.TryAcquire("r", {.lease = absl::Minutes(1)});
    clock_.AdvanceBy(absl::Minutes(1));
    EXPECT_EQ(counting->extensions, 0);
  }
  {
    Lock endless = Enter(locks);
    clock_.AdvanceBy(absl::Minutes(1));
    EXPECT_EQ(counting->extensions, 0);
  }
  Lock named = Enter(locks, {.lease = absl::Minutes(1)});
  clock_.AdvanceBy(absl::Minutes(1));
  // The twelfth finds 0.4^12 of the minute left, 1.007 ms, and one more comes after 1 ms.
  EXPECT_EQ(counting->extensions, 13);
}

TEST_F(ReentryTest, WhoeverCannotLookReliesOnWhatItKnows) {
  const auto counting = std::make_shared<CountingProtocol>(backend_);
  LockManager locks = *LockManager::Create(counting, {.clock = &clock_});
  Lock outer = Enter(locks, {.lease = absl::Seconds(2)});
  Lock inner = Enter(locks);
  NoteLoss(inner);
  EXPECT_TRUE(outer.Extend(absl::Seconds(10)).ok());
  counting->answer = BackendUnavailableError("the cable is out");
  clock_.AdvanceBy(absl::Seconds(2) - absl::Nanoseconds(1));
  EXPECT_THAT(told_, IsEmpty());
  clock_.AdvanceBy(absl::Nanoseconds(1));
  EXPECT_THAT(told_, ElementsAre(LockState::kExpired));
  EXPECT_EQ(outer.state(), LockState::kHeld);
}

TEST_F(ReentryTest, AFailedLookIsRepeated) {
  const auto counting = std::make_shared<CountingProtocol>(backend_);
  LockManager locks = *LockManager::Create(counting, {.clock = &clock_});
  Lock outer = Enter(locks, {.lease = absl::Seconds(2)});
  Lock inner = Enter(locks);
  EXPECT_TRUE(outer.Extend(absl::Seconds(10)).ok());
  counting->answer = BackendUnavailableError("the cable is out");
  clock_.AdvanceBy(absl::Milliseconds(1900));
  counting->answer.reset();
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_EQ(inner.state(), LockState::kHeld);
}

TEST_F(ReentryTest, AHoldThatTheBackendForgotIsLostAtTheNextLook) {
  const auto counting = std::make_shared<CountingProtocol>(backend_);
  LockManager locks = *LockManager::Create(counting, {.clock = &clock_});
  Lock lock = Enter(locks, {.lease = absl::Seconds(10)});
  NoteLoss(lock);
  counting->answer = ExtendReply{.outcome = ExtendOutcome::kNotHeld};
  clock_.AdvanceBy(absl::Seconds(6));
  EXPECT_THAT(told_, ElementsAre(LockState::kLost));
}

// ---- Bodies ----

class ReentryOfBodiesTest : public ReentryTest {
 protected:
  // A body that takes long, and says what it heard by its end.
  auto Body(absl::Duration time) {
    return [this, time](LockContext& context) {
      clock_.AdvanceBy(time);
      return context.CheckPoint();
    };
  }
};

TEST_F(ReentryOfBodiesTest, ABodyRenewsTheFiniteHoldThatItEnters) {
  Lock outer = Enter({.lease = absl::Seconds(2)});
  EXPECT_TRUE(locks_.Run("r", {.owner = "a"}, Body(absl::Seconds(20))).ok());
  EXPECT_EQ(outer.state(), LockState::kHeld);
  EXPECT_LE(Record().remaining_lease, absl::Seconds(2)) << "never without end";
  clock_.AdvanceBy(absl::Seconds(2));
  EXPECT_EQ(outer.state(), LockState::kExpired) << "nobody renews it any more";
  ExpectNothingLeft();
}

TEST_F(ReentryOfBodiesTest, ABodyRenewsWithWhatWasLeft) {
  Lock outer = Enter({.lease = absl::Seconds(10)});
  clock_.AdvanceBy(absl::Seconds(7));
  EXPECT_TRUE(locks_.Run("r", {.owner = "a"}, Body(absl::Seconds(20))).ok());
  EXPECT_LE(Record().remaining_lease, absl::Seconds(3));
}

TEST_F(ReentryOfBodiesTest, ABodyWithALeaseOfItsOwnRenewsWithThat) {
  Lock outer = Enter({.lease = absl::Seconds(2)});
  EXPECT_TRUE(
      locks_.Run("r", {.owner = "a", .lease = absl::Minutes(1)}, Body(absl::Seconds(20))).ok());
  EXPECT_GT(Record().remaining_lease, absl::Seconds(20));
}

TEST_F(ReentryOfBodiesTest, ABodyThatIsNotToBeRenewedIsNot) {
  Lock outer = Enter({.lease = absl::Seconds(2)});
  EXPECT_THAT(locks_.Run("r", {.owner = "a", .auto_renew = false}, Body(absl::Seconds(5))),
              HasReason(Reason::kExpired, HasSubstr("lease ran out")));
}

TEST_F(ReentryOfBodiesTest, MaxHoldBoundsTheRenewal) {
  Lock outer = Enter({.lease = absl::Seconds(2)});
  EXPECT_TRUE(
      locks_.Run("r", {.owner = "a", .max_hold = absl::Seconds(6)}, Body(absl::Seconds(5))).ok());
  EXPECT_THAT(locks_.Run("r", {.owner = "a", .max_hold = absl::Seconds(6)}, Body(absl::Seconds(6))),
              HasReason(Reason::kExpired, Not(HasSubstr("renewed"))));
}

TEST_F(ReentryOfBodiesTest, ABodyUnderSeveralLocksRenewsThoseThatItEnters) {
  Lock outer = Enter({.lease = absl::Seconds(2)});
  EXPECT_TRUE(locks_.RunAll({"q", "r"}, {.owner = "a"}, Body(absl::Seconds(20))).ok());
  EXPECT_EQ(outer.state(), LockState::kHeld);
}

TEST_F(ReentryOfBodiesTest, AnAsynchronousBodyRenewsTheFiniteHoldThatItEnters) {
  Lock outer = Enter({.lease = absl::Seconds(2)});
  absl::AnyInvocable<void(absl::Status)> finish;
  std::optional<absl::Status> result;
  locks_.RunAsync(
      "r", {.owner = "a"},
      [&finish](LockContext, absl::AnyInvocable<void(absl::Status)> done) {
        finish = std::move(done);
      },
      [&result](absl::Status status) { result = std::move(status); });
  clock_.AdvanceBy(absl::Seconds(20));
  ASSERT_FALSE(result.has_value());
  finish(absl::OkStatus());
  ASSERT_TRUE(result.has_value());
  EXPECT_TRUE(result->ok()) << *result;
}

TEST_F(ReentryTest, AutoRenewRenewsTheFiniteHoldThatItEnters) {
  Lock outer = Enter({.lease = absl::Seconds(2)});
  const auto inner = Ask("r", {.owner = "a", .auto_renew = true});
  ASSERT_TRUE(inner->granted());
  ExpectBothHeldFor(absl::Seconds(20), outer, inner->lock());
}

}  // namespace
}  // namespace latchkey

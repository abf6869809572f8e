// Whether a lock that is over is expired or lost: docs/reference/errors.md has the table.

#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "latchkey/core/lock_error.h"
#include "latchkey/core/lock_manager.h"
#include "latchkey/core/protocol/locking_protocol.h"
#include "latchkey/tests/support/lock_manager_fixture.h"
#include "latchkey/tests/support/lock_matchers.h"

namespace latchkey {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// Passes everything on, but for extensions: those may fail, or be answered when the test says so.
class MoodyProtocol final : public LockingProtocol {
 public:
  explicit MoodyProtocol(std::shared_ptr<LockingProtocol> wrapped) : wrapped_(std::move(wrapped)) {}

  void Obtain(const ObtainRequest& request, ObtainCallback done) override {
    wrapped_->Obtain(request, std::move(done));
  }
  void Release(const HoldRef& hold, ReleaseCallback done) override {
    wrapped_->Release(hold, std::move(done));
  }
  void Extend(const HoldRef& hold, absl::Duration lease, ExtendCallback done) override {
    if (keeps_answers) {
      kept_.push_back(std::move(done));
    } else if (!failure.ok()) {
      done(failure);
    } else {
      wrapped_->Extend(hold, lease, std::move(done));
    }
  }
  Subscription Watch(const WatchRequest& request, WatchCallback on_event) override {
    return wrapped_->Watch(request, std::move(on_event));
  }
  std::string ResourceOf(const HoldRef& hold) const override { return wrapped_->ResourceOf(hold); }
  const BackendCapabilities& capabilities() const override { return wrapped_->capabilities(); }

  void Answer(const absl::StatusOr<ExtendReply>& reply) {
    for (ExtendCallback& done : std::exchange(kept_, {})) done(reply);
  }

  absl::Status failure;
  bool keeps_answers = false;

 private:
  const std::shared_ptr<LockingProtocol> wrapped_;
  std::vector<ExtendCallback> kept_;
};

class LossReasonsTest : public LockManagerFixture {
 protected:
  LossReasonsTest()
      : moody_(std::make_shared<MoodyProtocol>(backend_)),
        moody_locks_(*LockManager::Create(moody_, {.clock = &clock_})) {}

  Lock Renewed(AcquireOptions options = {}) {
    options.lease = absl::Seconds(30);
    options.auto_renew = true;
    Lock lock = *moody_locks_.Acquire("a", options);
    lock.OnLost([this](LockState state) { told_.push_back(state); });
    return lock;
  }

  std::shared_ptr<MoodyProtocol> moody_;
  LockManager moody_locks_;
  std::vector<LockState> told_;
};

TEST_F(LossReasonsTest, ALeaseThatNobodyRenewsExpires) {
  Lock lock = *moody_locks_.Acquire("a", {.lease = absl::Seconds(30)});
  lock.OnLost([this](LockState state) { told_.push_back(state); });
  clock_.AdvanceBy(absl::Seconds(30));
  EXPECT_THAT(told_, ElementsAre(LockState::kExpired));
  EXPECT_THAT(lock.Release(), HasReason(Reason::kExpired, HasSubstr("lease ran out")));
}

TEST_F(LossReasonsTest, ALeaseThatCouldNotBeRenewedIsLostAtItsEndAndSaysWhy) {
  Lock lock = Renewed();
  moody_->failure = BackendUnavailableError("the cable is out");
  clock_.AdvanceBy(absl::Seconds(30) - absl::Nanoseconds(1));
  EXPECT_THAT(told_, IsEmpty());
  EXPECT_EQ(lock.state(), LockState::kHeld);
  clock_.AdvanceBy(absl::Nanoseconds(1));
  EXPECT_THAT(told_, ElementsAre(LockState::kLost));
  EXPECT_THAT(lock.Extend(absl::Seconds(1)), HasReason(Reason::kLost, HasSubstr("cable is out")));
  EXPECT_THAT(lock.Release(), HasReason(Reason::kLost, HasSubstr("cable is out")));
}

TEST_F(LossReasonsTest, AFailureThatASuccessFollowsIsForgotten) {
  Lock lock = Renewed({.max_hold = absl::Minutes(10)});
  moody_->failure = BackendUnavailableError("the cable is out");
  clock_.AdvanceBy(absl::Seconds(25));
  moody_->failure = absl::OkStatus();
  clock_.AdvanceBy(absl::Minutes(10));
  EXPECT_THAT(told_, ElementsAre(LockState::kExpired)) << "by max_hold";
}

TEST_F(LossReasonsTest, AHoldThatTheBackendForgotIsLostAtTheNextRenewal) {
  Lock lock = Renewed();
  moody_->keeps_answers = true;
  clock_.AdvanceBy(absl::Seconds(20));
  moody_->Answer(ExtendReply{.outcome = ExtendOutcome::kNotHeld});
  EXPECT_THAT(told_, ElementsAre(LockState::kLost));
  EXPECT_THAT(lock.Release(), HasReason(Reason::kLost, HasSubstr("does not know")));
}

TEST_F(LossReasonsTest, WhatTheBackendSaysAfterTheEndChangesNothing) {
  for (const ExtendOutcome outcome : {ExtendOutcome::kNotHeld, ExtendOutcome::kExtended}) {
    told_.clear();
    moody_->keeps_answers = false;
    Lock lock = Renewed();
    moody_->keeps_answers = true;
    clock_.AdvanceBy(absl::Seconds(30));
    moody_->Answer(ExtendReply{.outcome = outcome, .remaining = absl::Hours(1)});
    EXPECT_THAT(told_, ElementsAre(LockState::kExpired));
    EXPECT_EQ(lock.state(), LockState::kExpired);
  }
}

TEST_F(LossReasonsTest, ALeaseThatIsRefusedSinceSomebodyWaitsExpires) {
  Lock lock = Renewed();
  const auto thief = Ask("a", {.priority = 1});
  clock_.AdvanceBy(absl::Seconds(30));
  EXPECT_THAT(told_, ElementsAre(LockState::kExpired));
  EXPECT_TRUE(thief->granted());
}

TEST_F(LossReasonsTest, ALeaseThatWouldBeRefusedExpiresAlsoIfTheBackendFails) {
  Lock lock = Renewed();
  const auto thief = Ask("a", {.priority = 1});
  moody_->failure = BackendUnavailableError("the cable is out");
  clock_.AdvanceBy(absl::Seconds(30));
  EXPECT_THAT(told_, ElementsAre(LockState::kExpired));
}

TEST_F(LossReasonsTest, MaxHoldExpiresAlsoIfTheLastRenewalsFail) {
  Lock lock = Renewed({.max_hold = absl::Seconds(45)});
  clock_.AdvanceBy(absl::Seconds(21));  // Renewed up to max_hold.
  moody_->failure = BackendUnavailableError("the cable is out");
  clock_.AdvanceBy(absl::Seconds(24));
  EXPECT_THAT(told_, ElementsAre(LockState::kExpired));
}

}  // namespace
}  // namespace latchkey

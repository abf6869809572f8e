// What users see of a quorum through one manager whose own requests compete: five servers behind
// links with a delay, on simulated time. (A quorum keeps no order among those who wait, so the
// manager has to.)
#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "latchkey/backends/quorum/quorum_backend.h"
#include "latchkey/core/lock_error.h"
#include "latchkey/core/lock_manager.h"
#include "latchkey/core/policy/admission_policy.h"
#include "latchkey/core/protocol/locking_protocol.h"
#include "latchkey/memory_backend/memory_backend.h"
#include "latchkey/tests/support/fault_injecting_protocol.h"
#include "latchkey/tests/support/simulated_clock.h"

namespace latchkey {
namespace {

class QuorumManagerTest : public ::testing::Test {
 protected:
  using Pending = std::shared_ptr<std::optional<absl::StatusOr<Lock>>>;
  static constexpr Faults kDelays = {.min_delay = absl::Milliseconds(1),
                                     .max_delay = absl::Milliseconds(5)};

  QuorumManagerTest() {
    std::vector<std::shared_ptr<LockingProtocol>> links;
    for (uint64_t seed = 1; seed <= 5; ++seed) {
      links_.push_back(std::make_shared<FaultInjectingProtocol>(
          NewMemoryBackend({.clock = &clock_}),
          FaultInjectingOptions{
              .seed = seed, .clock = &clock_, .faults = kDelays, .in_order = true}));
      links.push_back(links_.back());
    }
    backend_ = *NewQuorumBackend(std::move(links), {.clock = &clock_});
  }

  LockManager NewManager(LockManagerOptions options = {}) {
    options.clock = &clock_;
    options.random_seed = 1;
    return *LockManager::Create(backend_, std::move(options));
  }
  Pending Ask(LockManager& locks, const AcquireOptions& options = {}) {
    auto pending = std::make_shared<std::optional<absl::StatusOr<Lock>>>();
    locks.AcquireAsync("r", options,
                       [pending](absl::StatusOr<Lock> lock) { *pending = std::move(lock); });
    clock_.AdvanceBy(absl::Milliseconds(100));
    return pending;
  }
  static bool Granted(const Pending& pending) { return *pending && (*pending)->ok(); }
  static Reason ReasonOfFailure(const Pending& pending) {
    return *pending ? ReasonOf((*pending)->status()) : Reason::kNone;
  }

  static void ExpectNothingHeldBy(LockManager& locks) {
    EXPECT_FALSE(locks.IsBusy("r"));
    EXPECT_FALSE(locks.IsBusy());
    EXPECT_TRUE(locks.Snapshot().empty());
  }

  SimulatedClock clock_;
  std::vector<std::shared_ptr<FaultInjectingProtocol>> links_;
  std::shared_ptr<LockingProtocol> backend_;
};

TEST_F(QuorumManagerTest, AnOwnerEntersAgainPastThoseWhoWaitAndWhoHasNoTimeIsToldAtOnce) {
  LockManager locks = NewManager();
  Pending held = Ask(locks, {.owner = "me"});
  ASSERT_TRUE(Granted(held));
  Pending other = Ask(locks, {.owner = "somebody"});
  Pending again = Ask(locks, {.owner = "me"});
  EXPECT_TRUE(Granted(again));
  EXPECT_EQ(ReasonOfFailure(Ask(locks, {.max_attempts = 1})), Reason::kAttemptsExhausted);
  EXPECT_EQ(ReasonOfFailure(Ask(locks, {.acquire_timeout = absl::ZeroDuration()})),
            Reason::kAcquireTimeout);
  EXPECT_FALSE(other->has_value());
  again->reset();
  held->reset();
  clock_.AdvanceBy(absl::Minutes(1));
  EXPECT_TRUE(Granted(other));
}

TEST_F(QuorumManagerTest, AnOwnerThatHeldTheLockDoesNotOvertakeThoseWhoWait) {
  LockManager locks = NewManager();
  Pending held = Ask(locks, {.owner = "me"});
  Pending other = Ask(locks);
  held->reset();
  Pending again = Ask(locks, {.owner = "me"});
  clock_.AdvanceBy(absl::Seconds(10));
  EXPECT_TRUE(Granted(other));
  EXPECT_FALSE(again->has_value());
}

TEST_F(QuorumManagerTest, AFreeLockIsGrantedWhereNobodyMayWait) {
  LockManager locks = NewManager({.admission = LimitPending({.per_resource = 0})});
  Pending held = Ask(locks);
  EXPECT_TRUE(Granted(held));
  EXPECT_EQ(ReasonOfFailure(Ask(locks)), Reason::kTooManyPending);
}

TEST_F(QuorumManagerTest, AHoldThatHasEndedIsNotListedThoughItsLockLives) {
  LockManager locks = NewManager();
  Pending expired = Ask(locks, {.lease = absl::Seconds(1), .auto_renew = false});
  ASSERT_TRUE(Granted(expired));
  EXPECT_TRUE(locks.IsBusy("r"));
  clock_.AdvanceBy(absl::Seconds(2));
  ExpectNothingHeldBy(locks);
  EXPECT_EQ((**expired)->state(), LockState::kExpired);

  Pending stolen = Ask(locks, {.owner = "holder"});
  ASSERT_TRUE(Granted(stolen));
  (**stolen)->OnLost([](LockState) {});
  Pending thief = Ask(locks, {.priority = 1, .preemption_grace = absl::ZeroDuration()});
  ASSERT_TRUE(Granted(thief));
  EXPECT_FALSE((**stolen)->IsHeld());
  ASSERT_EQ(locks.Snapshot().size(), 1u);
  EXPECT_EQ(locks.Snapshot()[0].state.token, (**thief)->fencing_token());
  thief->reset();
  clock_.AdvanceBy(absl::Seconds(1));
  ExpectNothingHeldBy(locks);

  Pending lost = Ask(locks);
  ASSERT_TRUE(Granted(lost));
  Faults cut = kDelays;
  cut.drop_call = 1;
  for (size_t i = 0; i < 3; ++i) links_[i]->SetFaults(cut);
  clock_.AdvanceBy(absl::Minutes(2));
  ExpectNothingHeldBy(locks);
  EXPECT_EQ((**lost)->state(), LockState::kLost);
  ExpectNothingHeldBy(locks);
}

}  // namespace
}  // namespace latchkey

// What a manager says of a hold that has ended while its Lock is still there: nothing, whether the
// backend can tell who holds what (in memory) or the manager has to know by itself (over a link).
#include <memory>
#include <optional>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "latchkey/core/lock_manager.h"
#include "latchkey/core/protocol/locking_protocol.h"
#include "latchkey/tests/support/fault_injecting_protocol.h"
#include "latchkey/tests/support/lock_manager_fixture.h"

namespace latchkey {
namespace {

using ::testing::IsEmpty;
using ::testing::SizeIs;

enum class World { kInMemory, kOverALink };

void PrintTo(World world, std::ostream* out) {
  *out << (world == World::kInMemory ? "InMemory" : "OverALink");
}

constexpr Faults kSteady = {.min_delay = absl::Milliseconds(5), .max_delay = absl::Milliseconds(5)};

class EndedHoldsTest : public LockManagerFixture, public ::testing::WithParamInterface<World> {
 protected:
  EndedHoldsTest() {
    std::shared_ptr<LockingProtocol> backend = backend_;
    if (GetParam() == World::kOverALink) {
      link_ = std::make_shared<FaultInjectingProtocol>(
          backend_, FaultInjectingOptions{.clock = &clock_, .faults = kSteady, .in_order = true});
      backend = link_;
    }
    tested_.emplace(*LockManager::Create(backend, {.clock = &clock_, .random_seed = 1}));
  }

  void Pass() { clock_.AdvanceBy(absl::Milliseconds(50)); }
  std::shared_ptr<Pending> Hold(const AcquireOptions& options) {
    auto pending = Ask(*tested_, "r", options);
    Pass();
    EXPECT_TRUE(pending->granted()) << pending->status();
    EXPECT_TRUE(tested_->IsBusy("r"));
    EXPECT_TRUE(tested_->IsBusy());
    EXPECT_THAT(tested_->Snapshot(), SizeIs(1));
    return pending;
  }
  void ExpectNothingHeld() {
    EXPECT_FALSE(tested_->IsBusy("r"));
    EXPECT_FALSE(tested_->IsBusy());
    EXPECT_THAT(tested_->Snapshot(), IsEmpty());
  }
  // Both before anybody has looked at the lock, and after.
  void ExpectEnded(Lock& lock, LockState state) {
    ExpectNothingHeld();
    EXPECT_EQ(lock.state(), state);
    ExpectNothingHeld();
  }

  std::shared_ptr<FaultInjectingProtocol> link_;  // Null in memory.
  std::optional<LockManager> tested_;
};

TEST_P(EndedHoldsTest, ExpiredByItsLease) {
  auto held = Hold({.owner = "ann", .lease = absl::Seconds(1), .auto_renew = false});
  clock_.AdvanceBy(absl::Seconds(1));
  ExpectEnded(held->lock(), LockState::kExpired);
}

TEST_P(EndedHoldsTest, ExpiredWhileItListened) {
  auto held = Hold({.lease = absl::Seconds(1), .auto_renew = false});
  bool told = false;
  held->lock().OnLost([&told](LockState) { told = true; });
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_TRUE(told);
  ExpectEnded(held->lock(), LockState::kExpired);
}

TEST_P(EndedHoldsTest, ExpiredByItsMaxHold) {
  auto held = Hold({.owner = "ann", .max_hold = absl::Seconds(2)});
  clock_.AdvanceBy(absl::Seconds(2));
  Pass();
  ExpectEnded(held->lock(), LockState::kExpired);
}

TEST_P(EndedHoldsTest, Stolen) {
  auto held = Hold({.owner = "ann"});
  held->lock().OnLost([](LockState) {});
  auto thief = Ask(*tested_, "r", {.priority = 1, .preemption_grace = absl::Seconds(1)});
  Pass();
  EXPECT_EQ(held->lock().state(), LockState::kYielding);
  clock_.AdvanceBy(absl::Seconds(1));
  Pass();
  ASSERT_TRUE(thief->granted());
  const std::vector<ResourceSnapshot> now = tested_->Snapshot();
  ASSERT_THAT(now, SizeIs(1));
  EXPECT_TRUE(now[0].state.held);
  EXPECT_FALSE(now[0].state.reserved);
  EXPECT_EQ(now[0].state.handles, 1);
  EXPECT_EQ(now[0].state.token, thief->lock().fencing_token());
  thief->result.reset();
  Pass();
  ExpectEnded(held->lock(), LockState::kStolen);
}

TEST_P(EndedHoldsTest, ForgottenByTheBackend) {
  auto held = Hold({.owner = "ann"});
  held->lock().OnLost([](LockState) {});
  Pass();
  backend_->Release({.resource = "r", .acquisition = held->lock().acquisition()},
                    [](absl::StatusOr<ReleaseOutcome> outcome) { EXPECT_TRUE(outcome.ok()); });
  // By then it has looked for itself.
  clock_.AdvanceBy(absl::Seconds(30));
  ExpectNothingHeld();
  std::optional<absl::Status> released;
  held->lock().ReleaseAsync([&released](absl::Status status) { released = std::move(status); });
  Pass();
  ASSERT_TRUE(released.has_value());
  EXPECT_FALSE(released->ok());
  ExpectNothingHeld();
}

TEST_P(EndedHoldsTest, CutOffFromTheBackend) {
  if (link_ == nullptr) GTEST_SKIP() << "nothing lies between";
  auto held = Hold({.owner = "ann"});
  Faults cut = kSteady;
  cut.drop_call = 1;
  link_->SetFaults(cut);
  clock_.AdvanceBy(absl::Minutes(1));
  ExpectEnded(held->lock(), LockState::kLost);
}

TEST_P(EndedHoldsTest, ReleasedInVain) {
  if (link_ == nullptr) GTEST_SKIP() << "no release fails";
  auto held = Hold({.owner = "ann"});
  Faults refused = kSteady;
  refused.unavailable = 1;
  link_->SetFaults(refused);
  std::optional<absl::Status> released;
  held->lock().ReleaseAsync([&released](absl::Status status) { released = std::move(status); });
  Pass();
  ASSERT_TRUE(released.has_value());
  EXPECT_FALSE(released->ok());
  ExpectEnded(held->lock(), LockState::kReleased);
}

TEST_P(EndedHoldsTest, AHoldThatFollowsIsAlone) {
  auto ended = Hold({.owner = "ann", .lease = absl::Seconds(1), .auto_renew = false});
  clock_.AdvanceBy(absl::Seconds(2));
  auto held = Hold({.owner = "bob", .priority = 3});
  const std::vector<ResourceSnapshot> now = tested_->Snapshot();
  ASSERT_THAT(now, SizeIs(1));
  EXPECT_EQ(now[0].state.holder_owner, "bob");
  EXPECT_EQ(now[0].state.handles, 1);
  EXPECT_EQ(now[0].state.token, held->lock().fencing_token());
  EXPECT_EQ(ended->lock().state(), LockState::kExpired);
  held->lock().ReleaseAsync();
  Pass();
  ExpectNothingHeld();
}

// One handle's end is not that of the others.
TEST_P(EndedHoldsTest, AnotherHandleGoesOn) {
  auto outer = Hold({.owner = "ann"});
  auto inner = Hold({.owner = "ann", .max_hold = absl::Seconds(2)});
  clock_.AdvanceBy(absl::Seconds(3));
  EXPECT_EQ(inner->lock().state(), LockState::kExpired);
  EXPECT_TRUE(tested_->IsBusy("r"));
  const std::vector<ResourceSnapshot> now = tested_->Snapshot();
  ASSERT_THAT(now, SizeIs(1));
  EXPECT_TRUE(now[0].state.held);
  EXPECT_EQ(now[0].state.handles, 1);
  EXPECT_EQ(now[0].state.holder_owner, "ann");
}

TEST_P(EndedHoldsTest, ThoseWhoWaitAreListedWithoutAHolder) {
  if (link_ == nullptr) GTEST_SKIP() << "in memory somebody enters at once";
  auto ended = Hold({.owner = "ann", .lease = absl::Seconds(1), .auto_renew = false});
  auto next = Ask(*tested_, "r", {.owner = "bob"});
  Pass();
  Faults cut = kSteady;
  cut.drop_call = 1;
  link_->SetFaults(cut);
  clock_.AdvanceBy(absl::Seconds(1));
  const std::vector<ResourceSnapshot> now = tested_->Snapshot();
  ASSERT_THAT(now, SizeIs(1));
  EXPECT_FALSE(now[0].state.held);
  EXPECT_EQ(now[0].state.holder_owner, "");
  EXPECT_EQ(now[0].state.handles, 0);
  EXPECT_THAT(now[0].waiters, SizeIs(1));
}

INSTANTIATE_TEST_SUITE_P(Worlds, EndedHoldsTest,
                         ::testing::Values(World::kInMemory, World::kOverALink),
                         ::testing::PrintToStringParamName());

}  // namespace
}  // namespace latchkey

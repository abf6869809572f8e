// How long a waiting thief reserves, what it costs its victim if the thief dies meanwhile (S4), and
// which holds it does not get (L2): over a faulty link, as leases without end need no such care.
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "latchkey/core/lock_manager.h"
#include "latchkey/core/protocol/locking_protocol.h"
#include "latchkey/memory_backend/memory_backend.h"
#include "latchkey/tests/support/fault_injecting_protocol.h"
#include "latchkey/tests/support/simulated_clock.h"

namespace latchkey {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::Ge;
using ::testing::Le;

// Notes how long each Obtain would reserve.
class Noting : public LockingProtocol {
 public:
  Noting(std::shared_ptr<LockingProtocol> backend, std::vector<absl::Duration>& reservations)
      : backend_(std::move(backend)), reservations_(reservations) {}

  void Obtain(const ObtainRequest& request, ObtainCallback done) override {
    reservations_.push_back(request.reservation_lease);
    backend_->Obtain(request, std::move(done));
  }
  void Release(const HoldRef& hold, ReleaseCallback done) override {
    backend_->Release(hold, std::move(done));
  }
  void Extend(const HoldRef& hold, absl::Duration lease, ExtendCallback done) override {
    backend_->Extend(hold, lease, std::move(done));
  }
  Subscription Watch(const WatchRequest& request, WatchCallback on_event) override {
    return backend_->Watch(request, std::move(on_event));
  }
  const BackendCapabilities& capabilities() const override { return backend_->capabilities(); }

 private:
  const std::shared_ptr<LockingProtocol> backend_;
  std::vector<absl::Duration>& reservations_;
};

class ReservationTest : public ::testing::Test {
 protected:
  // One client on a link of its own, where every message takes so long.
  struct Client {
    std::shared_ptr<FaultInjectingProtocol> link;
    std::vector<absl::Duration> reservations;
    std::optional<LockManager> locks;
  };

  std::unique_ptr<Client> NewClient(absl::Duration delay = absl::Milliseconds(5)) {
    auto client = std::make_unique<Client>();
    client->link = std::make_shared<FaultInjectingProtocol>(
        server_, FaultInjectingOptions{.clock = &clock_,
                                       .faults = {.min_delay = delay, .max_delay = delay},
                                       .in_order = true});
    client->locks = *LockManager::Create(
        std::make_shared<Noting>(client->link, client->reservations), {.clock = &clock_});
    return client;
  }

  std::shared_ptr<std::optional<absl::StatusOr<Lock>>> Ask(Client& client,
                                                           const AcquireOptions& options) {
    auto result = std::make_shared<std::optional<absl::StatusOr<Lock>>>();
    client.locks->AcquireAsync("r", options, [result](absl::StatusOr<Lock> lock) {
      if (lock.ok()) lock->OnYieldRequested([] {});  // It listens, and stays.
      *result = std::move(lock);
    });
    return result;
  }

  static AcquireOptions Renewed(absl::Duration lease, Priority priority = 0) {
    return {.priority = priority, .lease = lease, .auto_renew = true};
  }

  SimulatedClock clock_;
  std::shared_ptr<LockingProtocol> server_ = NewMemoryBackend({.clock = &clock_});
};

TEST_F(ReservationTest, AThiefThatDiesDoesNotCostItsVictimAShorterLease) {
  // It dies at various times after it has reserved.
  for (const absl::Duration life : {absl::Milliseconds(50), absl::Milliseconds(200),
                                    absl::Milliseconds(500), absl::Milliseconds(900)}) {
    const auto holder = NewClient();
    const auto thief = NewClient();
    const auto held = Ask(*holder, Renewed(absl::Seconds(3)));
    clock_.AdvanceBy(absl::Seconds(10));
    ASSERT_TRUE(*held && (*held)->ok());
    const auto stolen = Ask(*thief, Renewed(absl::Minutes(1), 1));
    clock_.AdvanceBy(life);
    EXPECT_EQ((**held)->state(), LockState::kYielding);
    thief->link->Crash();
    clock_.AdvanceBy(absl::Minutes(2));
    EXPECT_EQ((**held)->state(), LockState::kHeld) << "died after " << life;
    (**held)->ReleaseAsync();
    clock_.AdvanceBy(absl::Minutes(2));
  }
}

// What L2 does not bound: neither leases that are renewed nor force end such a hold.
TEST_F(ReservationTest, AHoldThatCannotBePreemptedLastsAsLongAsItIsRenewed) {
  const auto holder = NewClient();
  const auto thief = NewClient();
  AcquireOptions protected_hold = Renewed(absl::Seconds(3));
  protected_hold.preemptible = false;
  const auto held = Ask(*holder, protected_hold);
  clock_.AdvanceBy(absl::Seconds(1));
  ASSERT_TRUE(*held && (*held)->ok());
  AcquireOptions forced = Renewed(absl::Seconds(3), 9);
  forced.preemption_grace = absl::ZeroDuration();
  const auto stolen = Ask(*thief, forced);
  clock_.AdvanceBy(absl::Minutes(10));
  EXPECT_EQ((**held)->state(), LockState::kHeld);
  EXPECT_FALSE(*stolen);
  (**held)->ReleaseAsync();
  clock_.AdvanceBy(absl::Minutes(1));
  EXPECT_TRUE(*stolen && (*stolen)->ok());
}

TEST_F(ReservationTest, AHoldBecomesProtectedWhileItIsReserved) {
  for (const bool by_priority : {false, true}) {
    const auto holder = NewClient();
    const auto thief = NewClient();
    AcquireOptions options = Renewed(absl::Seconds(3));
    options.owner = "holder";
    const auto held = Ask(*holder, options);
    clock_.AdvanceBy(absl::Seconds(1));
    ASSERT_TRUE(*held && (*held)->ok());
    const auto stolen = Ask(*thief, Renewed(absl::Seconds(3), 9));
    clock_.AdvanceBy(absl::Milliseconds(100));
    EXPECT_EQ((**held)->state(), LockState::kYielding);
    if (by_priority) {
      options.priority = 9;
    } else {
      options.preemptible = false;
    }
    const auto entered = Ask(*holder, options);
    clock_.AdvanceBy(absl::Minutes(10));
    ASSERT_TRUE(*entered && (*entered)->ok());
    EXPECT_EQ((**held)->state(), LockState::kHeld);
    EXPECT_FALSE(*stolen);
    (**held)->ReleaseAsync();
    (**entered)->ReleaseAsync();
    clock_.AdvanceBy(absl::Minutes(1));
    EXPECT_TRUE(*stolen && (*stolen)->ok());
    (**stolen)->ReleaseAsync();
    clock_.AdvanceBy(absl::Minutes(1));
  }
}

TEST_F(ReservationTest, MaxHoldBoundsAHoldThatCannotBePreempted) {
  const auto holder = NewClient();
  const auto thief = NewClient();
  AcquireOptions options = Renewed(absl::Seconds(3));
  options.preemptible = false;
  options.max_hold = absl::Seconds(20);
  const auto held = Ask(*holder, options);
  clock_.AdvanceBy(absl::Seconds(1));
  const auto stolen = Ask(*thief, Renewed(absl::Seconds(3), 9));
  clock_.AdvanceBy(absl::Seconds(15));
  EXPECT_FALSE(*stolen);
  clock_.AdvanceBy(absl::Seconds(10));
  EXPECT_TRUE(*stolen && (*stolen)->ok());
  EXPECT_EQ((**held)->state(), LockState::kExpired);
}

TEST_F(ReservationTest, AThiefKeepsItsReservationUntilAShorterLeaseIsOver) {
  const auto holder = NewClient();
  const auto thief = NewClient();
  const auto held = Ask(*holder, Renewed(absl::Seconds(3)));
  clock_.AdvanceBy(absl::Seconds(10));
  const auto stolen = Ask(*thief, Renewed(absl::Minutes(1), 1));
  // The holder does not listen, and its lease may not be renewed any more.
  clock_.AdvanceBy(absl::Seconds(3) + absl::Milliseconds(20));
  ASSERT_TRUE(*stolen);
  EXPECT_TRUE((*stolen)->ok());
  // A poll every so often, and not ever more of them as the end comes near.
  EXPECT_THAT(thief->reservations.size(), Le(25u));
}

TEST_F(ReservationTest, AmongEqualLeasesOneReservationIsASixthOfThem) {
  const auto holder = NewClient();
  const auto thief = NewClient();
  const auto held = Ask(*holder, Renewed(absl::Seconds(30)));
  clock_.AdvanceBy(absl::Seconds(17));  // Shortly before it is renewed.
  const auto stolen = Ask(*thief, Renewed(absl::Seconds(30), 1));
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_THAT(thief->reservations, ElementsAre(absl::Seconds(5)));
  clock_.AdvanceBy(absl::Seconds(9));
  EXPECT_THAT(thief->reservations, Each(absl::Seconds(5)));
}

TEST_F(ReservationTest, AReservationOutlastsSeveralRoundTripsHoweverLittleIsLeft) {
  const auto holder = NewClient();
  const auto thief = NewClient(absl::Milliseconds(40));
  AcquireOptions fixed = Renewed(absl::Seconds(3));
  fixed.auto_renew = false;
  const auto held = Ask(*holder, fixed);
  clock_.AdvanceBy(absl::Milliseconds(2800));
  const auto stolen = Ask(*thief, Renewed(absl::Minutes(1), 1));
  clock_.AdvanceBy(absl::Milliseconds(400));
  ASSERT_TRUE(*stolen);
  EXPECT_TRUE((*stolen)->ok());
  EXPECT_THAT(thief->reservations, Each(Ge(absl::Milliseconds(400))));
}

TEST_F(ReservationTest, AReservationThatRanOutUnderWayGrowsAgain) {
  const auto holder = NewClient();
  const auto thief = NewClient(absl::ZeroDuration());
  const auto held = Ask(*holder, Renewed(absl::Milliseconds(600)));
  clock_.AdvanceBy(absl::Seconds(10));
  const auto stolen = Ask(*thief, Renewed(absl::Minutes(1), 1));
  clock_.AdvanceBy(absl::Milliseconds(20));
  EXPECT_EQ((**held)->state(), LockState::kYielding);
  // From here on the network is so slow that a short reservation is over before the next poll.
  thief->link->SetFaults(
      {.min_delay = absl::Milliseconds(150), .max_delay = absl::Milliseconds(150)});
  clock_.AdvanceBy(absl::Seconds(5));
  ASSERT_TRUE(*stolen) << "it would wait for ever, since the holder renews in between";
  EXPECT_TRUE((*stolen)->ok());
}

}  // namespace
}  // namespace latchkey

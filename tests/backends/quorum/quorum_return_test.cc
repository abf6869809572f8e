// Servers of a quorum that were away while a lock was held, and come back: a renewal takes the hold
// there again. In simulated time, over in-memory backends. tests/model/quorum.pml has the same
// rules and what happens without them.

#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "latchkey/backends/quorum/quorum_backend.h"
#include "latchkey/core/lock_error.h"
#include "latchkey/core/lock_manager.h"
#include "latchkey/core/protocol/locking_protocol.h"
#include "latchkey/tests/backends/quorum/servers.h"
#include "latchkey/tests/support/fault_injecting_protocol.h"
#include "latchkey/tests/support/simulated_clock.h"

namespace latchkey {
namespace {

// Three servers, and a hold of one client that the third does not have, since it was away.
class QuorumReturnTest : public ::testing::Test {
 protected:
  QuorumReturnTest() {
    for (int i = 0; i < 3; ++i) {
      servers_.push_back(std::make_shared<Server>(clock_));
      gates_.push_back(std::make_shared<Gate>(servers_.back()));
    }
    quorum_ = *NewQuorumBackend({gates_.begin(), gates_.end()}, {.clock = &clock_});
    other_ = *NewQuorumBackend({servers_.begin(), servers_.end()}, {.clock = &clock_});
  }

  Server& At(int i) { return *servers_[static_cast<size_t>(i)]; }
  Gate& GateOf(int i) { return *gates_[static_cast<size_t>(i)]; }

  void HoldWithoutTheThird() {
    At(0).AdvanceTo(40);
    At(2).down = true;
    const absl::StatusOr<ObtainReply> held = Obtain(*quorum_, Request(id_));
    ASSERT_TRUE(held.ok()) << held.status();
    ASSERT_EQ(held->token, 41u);
    At(2).down = false;
  }

  static absl::StatusOr<ObtainReply> Obtain(LockingProtocol& backend,
                                            const ObtainRequest& request) {
    absl::StatusOr<ObtainReply> answer = absl::InternalError("no answer");
    backend.Obtain(request, [&](absl::StatusOr<ObtainReply> reply) { answer = std::move(reply); });
    return answer;
  }
  absl::StatusOr<ExtendReply> Extend(absl::Duration lease = absl::Seconds(5)) {
    absl::StatusOr<ExtendReply> answer = absl::InternalError("no answer");
    quorum_->Extend({.resource = "r", .acquisition = id_}, lease,
                    [&](absl::StatusOr<ExtendReply> reply) { answer = std::move(reply); });
    return answer;
  }
  bool Extends() {
    const absl::StatusOr<ExtendReply> extended = Extend();
    return extended.ok() && extended->outcome == ExtendOutcome::kExtended;
  }
  void Release() {
    quorum_->Release({.resource = "r", .acquisition = id_}, [](absl::StatusOr<ReleaseOutcome>) {});
  }
  int Holds() {
    int holds = 0;
    for (const auto& server : servers_) holds += server->Held() ? 1 : 0;
    return holds;
  }
  FencingToken NextToken() {
    const absl::StatusOr<ObtainReply> next = Obtain(*other_, Request(AcquisitionId::Next()));
    EXPECT_TRUE(next.ok()) << next.status();
    return next.ok() ? next->token : 0;
  }

  SimulatedClock clock_;
  std::vector<std::shared_ptr<Server>> servers_;
  std::vector<std::shared_ptr<Gate>> gates_;
  std::shared_ptr<LockingProtocol> quorum_;
  std::shared_ptr<LockingProtocol> other_;
  const AcquisitionId id_ = AcquisitionId::Next();
};

TEST_F(QuorumReturnTest, ARenewalTakesTheHoldOnAServerThatWasAway) {
  HoldWithoutTheThird();
  EXPECT_FALSE(At(2).Held());
  EXPECT_TRUE(Extends());
  EXPECT_TRUE(At(2).Held());
  // And counts on it from then on.
  At(0).down = true;
  EXPECT_TRUE(Extends());
  clock_.AdvanceBy(absl::Seconds(4));
  EXPECT_TRUE(Extends());
  At(0).down = false;
  Release();
  clock_.AdvanceBy(kMaxLease);
  EXPECT_EQ(Holds(), 0);
}

TEST_F(QuorumReturnTest, ItCountsFromWhenItHasConfirmedTheToken) {
  HoldWithoutTheThird();
  GateOf(2).CloseAfter(1);  // For the confirmation.
  EXPECT_TRUE(Extends());
  EXPECT_TRUE(At(2).Held());
  At(1).down = true;
  const absl::StatusOr<ExtendReply> early = Extend();
  EXPECT_EQ(ReasonOf(early.status()), Reason::kBackendUnknown) << early.status();
  GateOf(2).Open();
  EXPECT_TRUE(Extends());
}

TEST_F(QuorumReturnTest, ItDoesNotCountIfTheConfirmationFailsUntilOneSucceeds) {
  HoldWithoutTheThird();
  GateOf(2).CloseAfter(1);
  EXPECT_TRUE(Extends());
  At(2).down = true;
  GateOf(2).Open();
  // It has the hold, which a renewal finds out; but it cannot be asked for the token.
  At(2).down = false;
  At(1).down = true;
  GateOf(2).CloseAfter(0);
  std::optional<absl::StatusOr<ExtendReply>> extended;
  quorum_->Extend({.resource = "r", .acquisition = id_}, absl::Seconds(5),
                  [&](absl::StatusOr<ExtendReply> reply) { extended = std::move(reply); });
  EXPECT_FALSE(extended) << "it depends on the confirmation";
  GateOf(2).Open();
  ASSERT_TRUE(extended && extended->ok());
  EXPECT_EQ((*extended)->outcome, ExtendOutcome::kExtended);
}

TEST_F(QuorumReturnTest, TheTokenIsNotForgottenWithTheServersThatGaveIt) {
  HoldWithoutTheThird();
  EXPECT_TRUE(Extends());
  // The first is away until nobody there knows of the hold, nor of its token.
  At(0).Forget();
  At(0).down = true;
  EXPECT_TRUE(Extends());
  Release();
  At(0).down = false;
  At(1).down = true;
  EXPECT_GT(NextToken(), 41u);
}

TEST_F(QuorumReturnTest, NorWithThoseWhenAnotherGrantedLater) {
  At(0).AdvanceTo(40);
  GateOf(2).CloseAfter(0);
  ASSERT_TRUE(Obtain(*quorum_, Request(id_)).ok());
  // Its token is small, so it is asked to confirm the one that counts.
  GateOf(2).Open();
  EXPECT_TRUE(At(2).Held());
  At(0).Forget();
  At(0).down = true;
  EXPECT_TRUE(Extends());
  Release();
  At(0).down = false;
  At(1).down = true;
  EXPECT_GT(NextToken(), 41u);
}

TEST_F(QuorumReturnTest, ALateGrantCountsFromWhenItHasConfirmedTheToken) {
  At(0).AdvanceTo(40);
  GateOf(2).CloseAfter(0);
  ASSERT_TRUE(Obtain(*quorum_, Request(id_)).ok());
  GateOf(2).PassOne();  // The grant; the confirmation waits.
  At(1).down = true;
  EXPECT_FALSE(Extends());
  GateOf(2).Open();
  EXPECT_TRUE(Extends());
}

TEST_F(QuorumReturnTest, AServerWithALargerTokenCountsAndTheHoldersTokenStays) {
  At(0).AdvanceTo(40);
  At(2).down = true;
  LockManager locks = *LockManager::Create(quorum_, {.clock = &clock_});
  std::optional<absl::StatusOr<Lock>> lock;
  locks.AcquireAsync("r", {.lease = absl::Seconds(5), .auto_renew = true},
                     [&](absl::StatusOr<Lock> got) { lock = std::move(got); });
  ASSERT_TRUE(lock && lock->ok());
  ASSERT_EQ((*lock)->fencing_token(), 41u);
  At(2).down = false;
  At(2).AdvanceTo(100);
  clock_.AdvanceBy(absl::Seconds(4));
  EXPECT_TRUE(At(2).Held());
  At(1).down = true;
  clock_.AdvanceBy(absl::Minutes(1));
  EXPECT_TRUE((*lock)->IsHeld());
  EXPECT_EQ((*lock)->fencing_token(), 41u);
  At(1).down = false;
  lock.reset();
  At(2).down = true;
  EXPECT_GT(NextToken(), 41u);
  At(2).down = false;
}

TEST_F(QuorumReturnTest, NothingIsTakenWhileSomebodyWaits) {
  HoldWithoutTheThird();
  const AcquisitionId thief = AcquisitionId::Next();
  At(0).inner().Obtain(Request(thief, 9), [](absl::StatusOr<ObtainReply>) {});
  // A majority has nobody waiting; still the third is left to whoever waits at the first.
  At(2).down = true;
  EXPECT_EQ(Extend()->outcome, ExtendOutcome::kReserved);
  At(2).down = false;
  At(2).asked.clear();
  EXPECT_EQ(Extend()->outcome, ExtendOutcome::kReserved);
  EXPECT_TRUE(At(2).asked.empty());
  At(0).inner().Release({.resource = "r", .acquisition = thief},
                        [](absl::StatusOr<ReleaseOutcome>) {});
  EXPECT_TRUE(Extends());
  EXPECT_TRUE(At(2).Held());
}

TEST_F(QuorumReturnTest, NorKeptIfSomebodyHasCome) {
  HoldWithoutTheThird();
  const Subscription watch = quorum_->Watch(
      {.resource = "r", .acquisition = id_, .role = WatchRole::kHolder}, [](const WatchEvent&) {});
  GateOf(2).CloseAfter(0);
  EXPECT_TRUE(Extends());
  const AcquisitionId thief = AcquisitionId::Next();
  At(0).inner().Obtain(Request(thief, 9), [](absl::StatusOr<ObtainReply>) {});
  GateOf(2).Open();
  EXPECT_FALSE(At(2).Held());
  // The next time it is asked under a new id, since that one was released there.
  At(0).inner().Release({.resource = "r", .acquisition = thief},
                        [](absl::StatusOr<ReleaseOutcome>) {});
  EXPECT_TRUE(Extends());
  EXPECT_TRUE(At(2).Held());
  ASSERT_GE(At(2).asked.size(), 2u);
  EXPECT_NE(At(2).asked.back(), *(At(2).asked.end() - 2));
}

TEST_F(QuorumReturnTest, AServerIsAskedUnderTheSameIdUntilThatWasReleased) {
  ASSERT_TRUE(Obtain(*quorum_, Request(id_)).ok());
  for (int times = 0; times < 3; ++times) {
    At(2).down = true;
    clock_.AdvanceBy(absl::Seconds(4));
    EXPECT_TRUE(Extends());
    clock_.AdvanceBy(absl::Seconds(4));
    At(2).down = false;
    EXPECT_TRUE(Extends());
    EXPECT_TRUE(At(2).Held());
  }
  ASSERT_EQ(At(2).asked.size(), 4u);
  for (const AcquisitionId id : At(2).asked) EXPECT_EQ(id, At(2).asked[0]);
}

TEST_F(QuorumReturnTest, AReleaseFollowsARequestThatIsUnderWay) {
  HoldWithoutTheThird();
  // The caller leaves while the third server is being asked.
  At(2).on_obtain = [&] { Release(); };
  EXPECT_TRUE(Extends());
  EXPECT_EQ(Holds(), 0);
}

TEST_F(QuorumReturnTest, AReleaseInTheAnswerLeavesNothingBehind) {
  HoldWithoutTheThird();
  quorum_->Extend({.resource = "r", .acquisition = id_}, absl::Seconds(5),
                  [&](absl::StatusOr<ExtendReply>) { Release(); });
  EXPECT_EQ(Holds(), 0);
}

TEST_F(QuorumReturnTest, AHoldThatIsLostDoesNotReturn) {
  HoldWithoutTheThird();
  GateOf(2).CloseAfter(0);
  EXPECT_TRUE(Extends());
  for (int i : {0, 1}) At(i).Forget();
  EXPECT_EQ(Extend()->outcome, ExtendOutcome::kNotHeld);
  GateOf(2).Open();
  EXPECT_EQ(Holds(), 0);
  EXPECT_EQ(Extend()->outcome, ExtendOutcome::kNotHeld);
  clock_.AdvanceBy(quorum_->capabilities().lease_margin);
}

TEST_F(QuorumReturnTest, NorOneWhoseTimeIsOverWhenTheAnswerComes) {
  HoldWithoutTheThird();
  GateOf(2).CloseAfter(0);
  EXPECT_TRUE(Extends());
  clock_.AdvanceBy(absl::Seconds(6));
  GateOf(2).Open();
  EXPECT_EQ(Holds(), 0);
}

TEST_F(QuorumReturnTest, ALookTakesAServerForAsLongAsTheHoldLasts) {
  HoldWithoutTheThird();
  clock_.AdvanceBy(absl::Seconds(2));
  ASSERT_EQ(Extend(absl::Nanoseconds(1))->outcome, ExtendOutcome::kExtended);
  EXPECT_TRUE(At(2).Held());
  clock_.AdvanceBy(absl::Seconds(3));
  EXPECT_EQ(Holds(), 0);
}

TEST_F(QuorumReturnTest, AServerThatLostItsDataIsToldTheToken) {
  ASSERT_TRUE(Obtain(*quorum_, Request(id_, 0, kMaxLease)).ok());
  At(2).LoseData();
  for (absl::Duration gone; gone < kMaxLease; gone += absl::Seconds(2)) {
    EXPECT_TRUE(Extend(kMaxLease).ok());
    EXPECT_FALSE(At(2).Held());
    clock_.AdvanceBy(absl::Seconds(2));
  }
  EXPECT_TRUE(Extends());
  EXPECT_TRUE(At(2).Held());
  EXPECT_FALSE(At(2).fence_lost());
  Release();
  At(0).down = true;
  EXPECT_GT(NextToken(), 1u);
}

TEST_F(QuorumReturnTest, AHolderHearsFromAServerThatIsBack) {
  HoldWithoutTheThird();
  std::vector<WatchEventKind> told;
  const Subscription watch =
      quorum_->Watch({.resource = "r", .acquisition = id_, .role = WatchRole::kHolder},
                     [&](const WatchEvent& event) { told.push_back(event.kind); });
  EXPECT_TRUE(Extends());
  // The first server's hold ends, and comes back.
  At(0).down = true;
  clock_.AdvanceBy(absl::Seconds(4));
  EXPECT_TRUE(Extends());
  clock_.AdvanceBy(absl::Seconds(2));
  At(0).down = false;
  EXPECT_TRUE(Extends());
  EXPECT_TRUE(At(0).Held());
  EXPECT_TRUE(told.empty());
  // Whoever takes two of the three ends it, whichever they are.
  const AcquisitionId thief = AcquisitionId::Next();
  for (int i : {0, 2}) {
    At(i).inner().Obtain(Request(thief, 9), [](absl::StatusOr<ObtainReply>) {});
  }
  EXPECT_EQ(told, std::vector<WatchEventKind>{WatchEventKind::kYieldRequested});
}

// ---- What a holder is told of requests that are gone -------------------------------------------

// Three servers and a holder on the first two, who listens. A thief's request to the second is
// late.
class QuorumLateRequestTest : public QuorumReturnTest {
 protected:
  using Kinds = std::vector<WatchEventKind>;

  QuorumLateRequestTest() {
    for (const auto& server : servers_) links_.push_back(std::make_shared<Gate>(server));
    thieves_ = *NewQuorumBackend({links_.begin(), links_.end()}, {.clock = &clock_});
  }

  // The thief waits, gives up, and is gone; then the holder comes.
  void ThiefIsGoneWhenTheHolderComes() {
    At(2).down = true;
    const AcquisitionId before = AcquisitionId::Next();
    ASSERT_TRUE(Obtain(*other_, Request(before)).ok());
    links_[1]->CloseAfter(0);
    thieves_->Obtain(Request(thief_, 9), [this](absl::StatusOr<ObtainReply>) { answered_ = true; });
    other_->Release({.resource = "r", .acquisition = before},
                    [](absl::StatusOr<ReleaseOutcome>) {});
    // One server has reserved, one does not answer, one is down.
    At(0).down = true;
    thieves_->Release({.resource = "r", .acquisition = thief_},
                      [](absl::StatusOr<ReleaseOutcome>) {});
    At(0).down = false;
    clock_.AdvanceBy(absl::Seconds(2));
    ASSERT_TRUE(Obtain(*quorum_, Request(id_)).ok());
    watch_ = quorum_->Watch({.resource = "r", .acquisition = id_, .role = WatchRole::kHolder},
                            [this](const WatchEvent& event) { told_.push_back(event.kind); });
    ASSERT_TRUE(told_.empty());
  }

  std::vector<std::shared_ptr<Gate>> links_;
  std::shared_ptr<LockingProtocol> thieves_;
  const AcquisitionId thief_ = AcquisitionId::Next();
  bool answered_ = false;
  Kinds told_;
  Subscription watch_;
};

TEST_F(QuorumLateRequestTest, AServerThatHearsOfItLateTellsTheHolderAndTakesItBack) {
  ThiefIsGoneWhenTheHolderComes();
  // The request arrives, and its release behind it.
  links_[1]->Open();
  EXPECT_TRUE(answered_);
  EXPECT_EQ(told_, (Kinds{WatchEventKind::kYieldRequested, WatchEventKind::kYieldWithdrawn}));
  EXPECT_TRUE(Extends());
}

TEST_F(QuorumLateRequestTest, ACopyThatNobodyReleasesStandsForItsReservationAtMost) {
  ThiefIsGoneWhenTheHolderComes();
  At(1).inner().Obtain(Request(thief_, 9), [](absl::StatusOr<ObtainReply>) {});
  EXPECT_EQ(told_, Kinds{WatchEventKind::kYieldRequested});
  EXPECT_FALSE(Extends());
  clock_.AdvanceBy(absl::Seconds(1));  // The reservation; the lease has four seconds left.
  EXPECT_EQ(told_, (Kinds{WatchEventKind::kYieldRequested, WatchEventKind::kYieldWithdrawn}));
  EXPECT_TRUE(Extends());
  links_[1]->Open();
}

TEST_F(QuorumLateRequestTest, AWithdrawalThatWasLostIsNoticedByTheNextRenewal) {
  ThiefIsGoneWhenTheHolderComes();
  At(1).inner().Obtain(Request(thief_, 9), [](absl::StatusOr<ObtainReply>) {});
  At(1).loses_events = true;
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_EQ(told_, Kinds{WatchEventKind::kYieldRequested});
  EXPECT_TRUE(Extends());
  EXPECT_EQ(told_, (Kinds{WatchEventKind::kYieldRequested, WatchEventKind::kYieldWithdrawn}));
  links_[1]->Open();
}

// ---- Through a manager -------------------------------------------------------------------------

class QuorumOutagesTest : public ::testing::TestWithParam<int> {};

TEST_P(QuorumOutagesTest, ARenewedLockOutlivesServersThatAreAwayInTurn) {
  SimulatedClock clock;
  std::vector<std::shared_ptr<Server>> servers;
  std::vector<std::shared_ptr<LockingProtocol>> links;
  for (int i = 0; i < GetParam(); ++i) {
    servers.push_back(std::make_shared<Server>(clock));
    links.push_back(std::make_shared<FaultInjectingProtocol>(
        servers.back(), FaultInjectingOptions{.seed = static_cast<uint64_t>(i) + 1,
                                              .clock = &clock,
                                              .faults = {.min_delay = absl::Milliseconds(1),
                                                         .max_delay = absl::Milliseconds(20)},
                                              .in_order = true,
                                              .lease_margin = absl::Milliseconds(20)}));
  }
  LockManager locks = *LockManager::Create(*NewQuorumBackend(std::move(links), {.clock = &clock}),
                                           {.clock = &clock, .random_seed = 1});
  std::optional<absl::StatusOr<Lock>> lock;
  locks.AcquireAsync("r", {.lease = absl::Seconds(2), .auto_renew = true},
                     [&](absl::StatusOr<Lock> got) { lock = std::move(got); });
  clock.AdvanceBy(absl::Milliseconds(100));
  ASSERT_TRUE(lock && lock->ok());
  const FencingToken token = (*lock)->fencing_token();
  std::vector<LockState> lost;
  (*lock)->OnLost([&](LockState state) { lost.push_back(state); });
  // As many at a time as may fail, each for longer than the lease, and never more.
  const int at_once = (GetParam() - 1) / 2;
  for (int outage = 0; outage < 12; ++outage) {
    for (int i = 0; i < at_once; ++i) {
      Server& server = *servers[static_cast<size_t>((outage * at_once + i) % GetParam())];
      server.down = true;
      // Whether it forgets is the same to the holder.
      if (outage % 2 == 1) server.Forget();
    }
    clock.AdvanceBy(absl::Seconds(4));
    ASSERT_TRUE((*lock)->IsHeld()) << "in outage " << outage;
    for (const auto& server : servers) server->down = false;
    clock.AdvanceBy(absl::Seconds(4));
    ASSERT_TRUE((*lock)->IsHeld()) << "after outage " << outage;
    for (const auto& server : servers) EXPECT_TRUE(server->Held()) << "after outage " << outage;
  }
  EXPECT_TRUE(lost.empty());
  EXPECT_EQ((*lock)->fencing_token(), token);
  lock.reset();
  clock.AdvanceBy(absl::Seconds(1));
  for (const auto& server : servers) EXPECT_FALSE(server->Held());
  locks.AcquireAsync("r", {.lease = absl::Seconds(2)},
                     [&](absl::StatusOr<Lock> got) { lock = std::move(got); });
  clock.AdvanceBy(absl::Seconds(1));
  ASSERT_TRUE(lock && lock->ok());
  EXPECT_GT((*lock)->fencing_token(), token);
}

TEST_P(QuorumOutagesTest, AReleaseRightAfterARenewalLeavesNothingBehind) {
  for (int after = 0; after < 60; after += 3) {
    SimulatedClock clock;
    std::vector<std::shared_ptr<Server>> servers;
    std::vector<std::shared_ptr<LockingProtocol>> links;
    for (int i = 0; i < GetParam(); ++i) {
      servers.push_back(std::make_shared<Server>(clock));
      links.push_back(std::make_shared<FaultInjectingProtocol>(
          servers.back(), FaultInjectingOptions{.seed = static_cast<uint64_t>(after * 10 + i) + 1,
                                                .clock = &clock,
                                                .faults = {.min_delay = absl::Milliseconds(5),
                                                           .max_delay = absl::Milliseconds(15)},
                                                .in_order = true}));
    }
    const auto quorum = *NewQuorumBackend(std::move(links), {.clock = &clock});
    const AcquisitionId id = AcquisitionId::Next();
    servers[0]->down = true;
    quorum->Obtain(Request(id), [](absl::StatusOr<ObtainReply>) {});
    clock.AdvanceBy(absl::Seconds(1));
    servers[0]->down = false;
    quorum->Extend({.resource = "r", .acquisition = id}, absl::Seconds(5),
                   [](absl::StatusOr<ExtendReply>) {});
    clock.AdvanceBy(absl::Milliseconds(after));
    quorum->Release({.resource = "r", .acquisition = id}, [](absl::StatusOr<ReleaseOutcome>) {});
    clock.AdvanceBy(absl::Milliseconds(200));
    for (const auto& server : servers) EXPECT_FALSE(server->Held()) << after << " ms";
  }
}

INSTANTIATE_TEST_SUITE_P(Servers, QuorumOutagesTest, testing::Values(3, 5),
                         testing::PrintToStringParamName());

}  // namespace
}  // namespace latchkey

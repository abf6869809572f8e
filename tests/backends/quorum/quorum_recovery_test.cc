// What a quorum does about servers that lose their data, and about leases that run out while it
// waits for the rest of a majority: in simulated time, over in-memory backends and faulty links.
// tests/model/quorum.pml and quorum_liveness.pml have the same rules and what happens without them.

#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
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

class QuorumRecoveryTest : public testing::TestWithParam<int> {
 protected:
  QuorumRecoveryTest() {
    for (int i = 0; i < GetParam(); ++i) servers_.push_back(std::make_shared<Server>(clock_));
    quorum_ = Quorum();
  }

  int majority() const { return GetParam() / 2 + 1; }
  Server& At(int i) { return *servers_[static_cast<size_t>(i)]; }

  std::shared_ptr<LockingProtocol> Quorum() {
    return *NewQuorumBackend({servers_.begin(), servers_.end()}, {.clock = &clock_});
  }

  // Only these servers are up from now on.
  void OnlyFrom(int first, int count) {
    for (int i = 0; i < GetParam(); ++i) At(i).down = i < first || i >= first + count;
  }

  // The servers answer at once, so that the quorum does.
  absl::StatusOr<ObtainReply> Obtain(AcquisitionId id) { return Obtain(Request(id)); }
  absl::StatusOr<ObtainReply> Obtain(const ObtainRequest& request) {
    absl::StatusOr<ObtainReply> answer = absl::InternalError("no answer");
    quorum_->Obtain(request, [&](absl::StatusOr<ObtainReply> reply) { answer = std::move(reply); });
    return answer;
  }
  void Release(AcquisitionId id) {
    quorum_->Release({.resource = "r", .acquisition = id}, [](absl::StatusOr<ReleaseOutcome>) {});
  }

  // Somebody entered with the servers from the first on, and the largest token ever; the last of
  // them has lost its data since and has waited for all leases. The rest was down and knows of
  // nothing.
  FencingToken EnterAndLose() {
    OnlyFrom(0, majority());
    At(0).AdvanceTo(40);
    const AcquisitionId id = AcquisitionId::Next();
    const absl::StatusOr<ObtainReply> held = Obtain(id);
    EXPECT_TRUE(held.ok()) << held.status();
    Release(id);
    At(majority() - 1).LoseData();
    clock_.AdvanceBy(kMaxLease);
    return held.ok() ? held->token : 0;
  }

  SimulatedClock clock_;
  std::vector<std::shared_ptr<Server>> servers_;
  std::shared_ptr<LockingProtocol> quorum_;
};

TEST_P(QuorumRecoveryTest, AServerThatLostItsDataCountsOnlyWithWhatAMajorityOfOthersKnows) {
  const FencingToken before = EnterAndLose();
  // It and those that were down are a majority, of which nobody knows the token.
  OnlyFrom(majority() - 1, majority());
  const absl::StatusOr<ObtainReply> refused = Obtain(AcquisitionId::Next());
  EXPECT_EQ(ReasonOf(refused.status()), Reason::kBackendUnavailable) << refused.status();
  EXPECT_TRUE(absl::StrContains(refused.status().message(), "it has lost its data"))
      << refused.status();
  // Nothing stays behind.
  OnlyFrom(0, GetParam());
  const absl::StatusOr<ObtainReply> next = Obtain(AcquisitionId::Next());
  ASSERT_TRUE(next.ok()) << next.status();
  EXPECT_EQ(next->outcome, ObtainOutcome::kObtained);
  EXPECT_GT(next->token, before);
}

TEST_P(QuorumRecoveryTest, TheFenceIsReadAlsoWhereAnotherHolds) {
  const FencingToken before = EnterAndLose();
  OnlyFrom(0, GetParam());
  // Strangers hold all that know the token; what is left is a majority only with the one that lost.
  for (int i = 0; i < majority() - 1; ++i) {
    At(i).inner().Obtain(Request(AcquisitionId::Next(), 100), [](absl::StatusOr<ObtainReply>) {});
  }
  const absl::StatusOr<ObtainReply> next = Obtain(AcquisitionId::Next());
  ASSERT_TRUE(next.ok()) << next.status();
  EXPECT_EQ(next->outcome, ObtainOutcome::kObtained);
  // Also above what the strangers got.
  EXPECT_GT(next->token, before + 1);
}

TEST_P(QuorumRecoveryTest, WhatWasReadIsWrittenBack) {
  const FencingToken before = EnterAndLose();
  OnlyFrom(0, GetParam());
  for (int i = 0; i < majority() - 1; ++i) {
    At(i).inner().Obtain(Request(AcquisitionId::Next(), 100), [](absl::StatusOr<ObtainReply>) {});
  }
  const AcquisitionId id = AcquisitionId::Next();
  ASSERT_TRUE(Obtain(id).ok());
  Release(id);
  EXPECT_FALSE(At(majority() - 1).fence_lost());
  // From now on it is a server like any other.
  OnlyFrom(majority() - 1, majority());
  const absl::StatusOr<ObtainReply> next = Obtain(AcquisitionId::Next());
  ASSERT_TRUE(next.ok()) << next.status();
  EXPECT_GT(next->token, before);
}

TEST_P(QuorumRecoveryTest, AGrantFromWhenTheFenceWasLostIsNoBetterForItsAge) {
  const FencingToken before = EnterAndLose();
  // Strangers hold those that were down. So the one that lost its data grants, the others are
  // reserved, and the candidate keeps it all and waits.
  std::vector<AcquisitionId> strangers;
  for (int i = majority(); i < GetParam(); ++i) {
    strangers.push_back(AcquisitionId::Next());
    At(i).inner().Obtain(Request(strangers.back()), [](absl::StatusOr<ObtainReply>) {});
  }
  OnlyFrom(majority() - 1, majority());
  const AcquisitionId id = AcquisitionId::Next();
  const absl::StatusOr<ObtainReply> waits = Obtain(Request(id, 10));
  ASSERT_TRUE(waits.ok()) << waits.status();
  ASSERT_EQ(waits->outcome, ObtainOutcome::kReserved);
  // Meanwhile that one is a server like any other, but the grant has its token from before.
  At(majority() - 1).PassAllTokens();
  for (int i = majority(); i < GetParam(); ++i) {
    At(i).inner().Release(
        {.resource = "r", .acquisition = strangers[static_cast<size_t>(i - majority())]},
        [](absl::StatusOr<ReleaseOutcome>) {});
  }
  const absl::StatusOr<ObtainReply> refused = Obtain(Request(id, 10));
  EXPECT_FALSE(refused.ok()) << "entered with " << refused->token << " after " << before;
  // It is given back, so that a fresh one may count; and the others may be read, if they are there.
  OnlyFrom(0, GetParam());
  const absl::StatusOr<ObtainReply> next = Obtain(Request(id, 10));
  ASSERT_TRUE(next.ok()) << next.status();
  EXPECT_EQ(next->outcome, ObtainOutcome::kObtained);
  EXPECT_GT(next->token, before);
}

TEST_P(QuorumRecoveryTest, WhatIsLeftOfALostHoldStaysUntilItsHolderHasSurelyLeft) {
  OnlyFrom(0, majority());
  const AcquisitionId id = AcquisitionId::Next();
  ASSERT_TRUE(Obtain(id).ok());
  OnlyFrom(0, GetParam());
  At(0).LoseData();
  const auto grants = [&] {
    int held = 0;
    for (int i = 0; i < GetParam(); ++i) {
      At(i).inner().Inspect(std::nullopt, [&](const ResourceState& state) { held += state.held; });
    }
    return held;
  };
  ASSERT_EQ(grants(), majority() - 1);
  // The holder looked just before, and has not heard yet that it holds no majority any more.
  ExtendReply extended;
  quorum_->Extend({.resource = "r", .acquisition = id}, absl::Seconds(5),
                  [&](absl::StatusOr<ExtendReply> reply) { extended = *reply; });
  EXPECT_EQ(extended.outcome, ExtendOutcome::kNotHeld);
  EXPECT_EQ(grants(), majority() - 1);
  const absl::StatusOr<ObtainReply> other = Obtain(AcquisitionId::Next());
  EXPECT_FALSE(other.ok() && other->token != 0) << "the server that lost its data grants nothing";
  clock_.AdvanceBy(quorum_->capabilities().lease_margin);
  EXPECT_EQ(grants(), 0) << "worth nothing, and in the way of others";
}

TEST_P(QuorumRecoveryTest, AHolderThatLeavesAfterItsLossGivesBackWhatIsLeft) {
  OnlyFrom(0, majority());
  const AcquisitionId id = AcquisitionId::Next();
  ASSERT_TRUE(Obtain(id).ok());
  OnlyFrom(0, GetParam());
  At(0).LoseData();
  quorum_->Extend({.resource = "r", .acquisition = id}, absl::Seconds(5),
                  [](absl::StatusOr<ExtendReply>) {});
  Release(id);
  for (int i = 0; i < GetParam(); ++i) {
    At(i).inner().Inspect(std::nullopt, [](const ResourceState&) { FAIL() << "left behind"; });
  }
  clock_.AdvanceBy(quorum_->capabilities().lease_margin);
}

INSTANTIATE_TEST_SUITE_P(Servers, QuorumRecoveryTest, testing::Values(3, 5),
                         testing::PrintToStringParamName());

// ---- The order of reading ----------------------------------------------------------------------

TEST(QuorumReadBackTest, FencesThatWereReadBeforeTheWaitWasOverDoNotCount) {
  SimulatedClock clock;
  std::vector<std::shared_ptr<Server>> servers;
  std::vector<std::shared_ptr<Gate>> to_first;
  std::vector<std::shared_ptr<Gate>> to_second;
  for (int i = 0; i < 3; ++i) {
    servers.push_back(std::make_shared<Server>(clock));
    to_first.push_back(std::make_shared<Gate>(servers.back()));
    to_second.push_back(std::make_shared<Gate>(servers.back()));
  }
  const auto first = *NewQuorumBackend({to_first.begin(), to_first.end()}, {.clock = &clock});
  const auto second = *NewQuorumBackend({to_second.begin(), to_second.end()}, {.clock = &clock});

  // 0 s: The first client has token 41 from server 0, and its confirmation on server 1, which is
  // far behind, takes a while.
  servers[0]->AdvanceTo(40);
  to_first[1]->CloseAfter(1);
  to_first[2]->CloseAfter(0);
  const AcquisitionId a = AcquisitionId::Next();
  std::optional<absl::StatusOr<ObtainReply>> first_got;
  first->Obtain(Request(a, 0, kMaxLease),
                [&](absl::StatusOr<ObtainReply> reply) { first_got = std::move(reply); });
  ASSERT_FALSE(first_got);
  // 1 s: Server 0 loses its data, and grants nothing for 10 s.
  clock.AdvanceBy(absl::Seconds(1));
  servers[0]->LoseData();
  // 5 s: The second client asks. Server 1 tells it an old fence, server 2 grants; the question to
  // server 0 takes long.
  clock.AdvanceBy(absl::Seconds(4));
  to_second[0]->CloseAfter(0);
  std::optional<absl::StatusOr<ObtainReply>> second_got;
  second->Obtain(Request(AcquisitionId::Next(), 0, kMaxLease),
                 [&](absl::StatusOr<ObtainReply> reply) { second_got = std::move(reply); });
  ASSERT_FALSE(second_got);
  // 6 s: The first is confirmed, enters while its lease on server 0 is live, and leaves. Somebody
  // else takes server 1.
  clock.AdvanceBy(absl::Seconds(1));
  to_first[1]->Open();
  ASSERT_TRUE(first_got && first_got->ok());
  ASSERT_EQ((*first_got)->outcome, ObtainOutcome::kObtained);
  ASSERT_EQ((*first_got)->token, 41u);
  first->Release({.resource = "r", .acquisition = a}, [](absl::StatusOr<ReleaseOutcome>) {});
  servers[1]->inner().Obtain(Request(AcquisitionId::Next(), 0, kMaxLease),
                             [](absl::StatusOr<ObtainReply>) {});
  // 11 s: Server 0 hears the second client. Its wait is over.
  clock.AdvanceBy(absl::Seconds(5));
  to_second[0]->Open();
  ASSERT_TRUE(second_got && second_got->ok());
  EXPECT_EQ((*second_got)->outcome, ObtainOutcome::kObtained);
  EXPECT_GT((*second_got)->token, 42u);
  to_first[2]->Open();  // Every call is answered at last.
}

TEST(QuorumReadBackTest, AConfirmationThatFailsWhileFencesAreReadIsAskedForAgain) {
  SimulatedClock clock;
  std::vector<std::shared_ptr<Server>> servers;
  std::vector<std::shared_ptr<Gate>> gates;
  for (int i = 0; i < 5; ++i) {
    servers.push_back(std::make_shared<Server>(clock));
    gates.push_back(std::make_shared<Gate>(servers.back()));
  }
  const auto quorum = *NewQuorumBackend({gates.begin(), gates.end()}, {.clock = &clock});
  // The first server has lost its data, and a stranger holds the third with a token far ahead.
  servers[0]->LoseData();
  clock.AdvanceBy(kMaxLease);
  servers[2]->AdvanceTo(40);
  servers[2]->inner().Obtain(Request(AcquisitionId::Next(), 0, kMaxLease),
                             [](absl::StatusOr<ObtainReply>) {});
  // The first, second and fourth grant: a majority, if the fences of others make up for the first.
  // So these are read, and what was read is to be confirmed, before the last one is asked whether
  // it grants: behind its gate the confirmation waits, and that question after it.
  gates[0]->CloseAfter(1);
  gates[1]->CloseAfter(2);
  gates[3]->CloseAfter(2);
  gates[4]->CloseAfter(1);
  std::optional<absl::StatusOr<ObtainReply>> got;
  quorum->Obtain(Request(AcquisitionId::Next(), 0, kMaxLease),
                 [&](absl::StatusOr<ObtainReply> reply) { got = std::move(reply); });
  ASSERT_FALSE(got);
  // Its confirmation fails, and its grant is seen again.
  servers[4]->down = true;
  gates[4]->PassOne();
  servers[4]->down = false;
  gates[4]->PassOne();
  // Another's confirmation fails, too, so that everything depends on the last server.
  servers[3]->down = true;
  gates[3]->PassOne();
  for (const auto& gate : gates) gate->Open();
  ASSERT_TRUE(got) << "it waits for a confirmation that is not under way";
  ASSERT_TRUE(got->ok()) << got->status();
  EXPECT_EQ((*got)->outcome, ObtainOutcome::kObtained);
  EXPECT_EQ((*got)->token, 42u);
}

TEST(QuorumReadBackTest, WhatAReadingMayHaveObtainedIsGivenBack) {
  SimulatedClock clock;
  std::vector<std::shared_ptr<Server>> servers;
  for (int i = 0; i < 3; ++i) servers.push_back(std::make_shared<Server>(clock));
  const auto quorum = *NewQuorumBackend({servers.begin(), servers.end()}, {.clock = &clock});
  servers[2]->LoseData();
  clock.AdvanceBy(kMaxLease);
  // A stranger holds the first, and leaves just before that is read. Whether it has granted then,
  // nobody hears.
  const AcquisitionId stranger = AcquisitionId::Next();
  servers[0]->inner().Obtain(Request(stranger), [](absl::StatusOr<ObtainReply>) {});
  servers[0]->on_obtain = [&] {
    servers[0]->on_obtain = [&] {
      servers[0]->inner().Release({.resource = "r", .acquisition = stranger},
                                  [](absl::StatusOr<ReleaseOutcome>) {});
      servers[0]->loses_answer = true;
    };
  };
  std::optional<absl::StatusOr<ObtainReply>> got;
  quorum->Obtain(Request(AcquisitionId::Next()),
                 [&](absl::StatusOr<ObtainReply> reply) { got = std::move(reply); });
  ASSERT_TRUE(got);
  ASSERT_FALSE(got->ok() && (*got)->token != 0);
  EXPECT_EQ(servers[0]->asked.size(), 2u);
  for (const auto& server : servers) EXPECT_FALSE(server->Held());
}

TEST(QuorumReleaseTest, AnObtainThatIsOvertakenByItsReleaseLeavesNothingBehind) {
  SimulatedClock clock;
  std::vector<std::shared_ptr<Server>> servers;
  std::vector<std::shared_ptr<Gate>> gates;
  for (int i = 0; i < 3; ++i) {
    servers.push_back(std::make_shared<Server>(clock));
    gates.push_back(std::make_shared<Gate>(servers.back()));
  }
  const auto quorum = *NewQuorumBackend({gates.begin(), gates.end()}, {.clock = &clock});
  // While the last server is about to be asked, the answers of the others come: they are down.
  for (int i = 0; i < 2; ++i) {
    servers[i]->down = true;
    gates[i]->CloseAfter(0);
  }
  servers[2]->on_obtain = [&] {
    gates[0]->Open();
    gates[1]->Open();
  };
  std::optional<absl::Status> got;
  quorum->Obtain(Request(AcquisitionId::Next()),
                 [&](absl::StatusOr<ObtainReply> reply) { got = reply.status(); });
  ASSERT_TRUE(got);
  EXPECT_EQ(ReasonOf(*got), Reason::kBackendUnavailable) << *got;
  bool held = false;
  servers[2]->inner().Inspect("r", [&](const ResourceState& state) { held = state.held; });
  EXPECT_FALSE(held);
}

TEST(QuorumValidityTest, AHoldIsCountedFromWhenItWasAskedForAndIsOverWithTheMajority) {
  SimulatedClock clock;
  std::vector<std::shared_ptr<Server>> servers;
  std::vector<std::shared_ptr<Gate>> gates;
  for (int i = 0; i < 3; ++i) {
    servers.push_back(std::make_shared<Server>(clock));
    gates.push_back(std::make_shared<Gate>(servers.back()));
  }
  LockManager locks = *LockManager::Create(
      *NewQuorumBackend({gates.begin(), gates.end()}, {.clock = &clock}), {.clock = &clock});
  // The second server is slow, and the third is never heard of.
  gates[1]->CloseAfter(0);
  gates[2]->CloseAfter(0);
  std::optional<absl::StatusOr<Lock>> got;
  locks.AcquireAsync("r", {.lease = absl::Seconds(5), .auto_renew = false},
                     [&](absl::StatusOr<Lock> lock) { got = std::move(lock); });
  clock.AdvanceBy(absl::Seconds(2));
  ASSERT_FALSE(got);
  gates[1]->Open();
  ASSERT_TRUE(got && got->ok());
  const absl::Duration margin = absl::Milliseconds(1);
  EXPECT_EQ((*got)->remaining(), absl::Seconds(3) - margin)
      << "on the second server it lasts for 5 s from now, but that is not known";
  std::vector<LockState> told;
  (*got)->OnLost([&told](LockState state) { told.push_back(state); });
  clock.AdvanceBy(absl::Seconds(3) - margin - absl::Nanoseconds(1));
  EXPECT_TRUE((*got)->IsHeld());
  EXPECT_TRUE(told.empty());
  clock.AdvanceBy(absl::Nanoseconds(1));
  EXPECT_EQ(told, std::vector<LockState>{LockState::kExpired});
  got.reset();
  // An answer that takes as long as the lease is no grant: it asks anew.
  for (int i : {0, 1}) gates[i]->CloseAfter(0);
  locks.AcquireAsync("s", {.lease = absl::Seconds(5), .auto_renew = false},
                     [&](absl::StatusOr<Lock> lock) { got = std::move(lock); });
  clock.AdvanceBy(absl::Seconds(5));
  ASSERT_FALSE(got);
  for (const auto& gate : gates) gate->Open();
  while (!got) ASSERT_TRUE(clock.AdvanceToNextTimer());
  ASSERT_TRUE(got->ok()) << got->status();
  EXPECT_EQ((*got)->remaining(), absl::Seconds(5) - margin);
}

// ---- Waiting for the rest of a majority --------------------------------------------------------

// Everybody else: takes whatever is free with low priority, for as long as it may, and never
// leaves.
class Crowd {
 public:
  explicit Crowd(std::vector<std::shared_ptr<Server>> servers) : servers_(std::move(servers)) {}

  void Take(size_t server, absl::Duration lease) {
    servers_[server]->inner().Obtain(Request(AcquisitionId::Next(), 0, lease),
                                     [](absl::StatusOr<ObtainReply>) {});
  }
  void TakeWhatIsFree() {
    for (size_t i = 0; i < servers_.size(); ++i) Take(i, kMaxLease);
  }

 private:
  const std::vector<std::shared_ptr<Server>> servers_;
};

TEST(QuorumWaitingTest, ACandidateKeepsWhatItHasWhileItWaitsForTheRest) {
  SimulatedClock clock;
  std::vector<std::shared_ptr<Server>> servers;
  for (int i = 0; i < 3; ++i) servers.push_back(std::make_shared<Server>(clock));
  const auto quorum = *NewQuorumBackend({servers.begin(), servers.end()}, {.clock = &clock});
  Crowd crowd(servers);
  // Leases of the crowd end after 5 and 10 s; that of the candidate is one second long.
  crowd.Take(1, absl::Seconds(5));
  crowd.Take(2, absl::Seconds(10));
  const AcquisitionId id = AcquisitionId::Next();
  const absl::Time start = clock.Now();
  absl::Time entered = absl::InfiniteFuture();
  while (entered == absl::InfiniteFuture() && clock.Now() < start + absl::Minutes(2)) {
    quorum->Obtain(Request(id, 10, absl::Seconds(1)), [&](absl::StatusOr<ObtainReply> reply) {
      ASSERT_TRUE(reply.ok()) << reply.status();
      if (reply->outcome == ObtainOutcome::kObtained) entered = clock.Now();
    });
    crowd.TakeWhatIsFree();
    clock.AdvanceBy(absl::Milliseconds(100));
    crowd.TakeWhatIsFree();
  }
  // The second server is free after 5 s, and the first is ours.
  EXPECT_LE(entered, start + absl::Seconds(5) + absl::Milliseconds(200));
}

TEST(QuorumWaitingTest, ACandidateWithoutAMajorityInSightGivesBackWhatItHas) {
  SimulatedClock clock;
  std::vector<std::shared_ptr<Server>> servers;
  for (int i = 0; i < 3; ++i) servers.push_back(std::make_shared<Server>(clock));
  const auto quorum = *NewQuorumBackend({servers.begin(), servers.end()}, {.clock = &clock});
  // An equal candidate has reserved one server, and another is held by an equal: one is no use.
  AcquisitionId rival = AcquisitionId::Next();
  servers[1]->inner().Obtain(Request(AcquisitionId::Next(), 0), [](absl::StatusOr<ObtainReply>) {});
  servers[1]->inner().Obtain(Request(rival, 10), [](absl::StatusOr<ObtainReply>) {});
  servers[2]->inner().Obtain(Request(rival, 10), [](absl::StatusOr<ObtainReply>) {});
  std::optional<ObtainOutcome> outcome;
  quorum->Obtain(Request(AcquisitionId::Next(), 10),
                 [&](absl::StatusOr<ObtainReply> reply) { outcome = reply->outcome; });
  EXPECT_EQ(outcome, ObtainOutcome::kDenied);
  bool held = false;
  servers[0]->inner().Inspect("r", [&](const ResourceState& state) { held = state.held; });
  EXPECT_FALSE(held);
}

// ---- All of it together ------------------------------------------------------------------------

// Clients with managers of their own, over links that delay and lose, take and leave one lock again
// and again, while now one and now another server loses its data or cannot be reached.
class Lives {
 public:
  Lives(int servers, uint64_t seed) : random_(seed) {
    for (int i = 0; i < servers; ++i) servers_.push_back(std::make_shared<Server>(clock_));
    clients_.resize(3);
    for (size_t i = 0; i < clients_.size(); ++i) {
      std::vector<std::shared_ptr<LockingProtocol>> links;
      for (size_t j = 0; j < servers_.size(); ++j) {
        links.push_back(std::make_shared<FaultInjectingProtocol>(
            servers_[j], FaultInjectingOptions{.seed = random_(),
                                               .clock = &clock_,
                                               .faults = {.min_delay = absl::Milliseconds(1),
                                                          .max_delay = absl::Milliseconds(40),
                                                          .drop_call = 0.01,
                                                          .drop_reply = 0.01,
                                                          .drop_event = 0.1},
                                               .in_order = true,
                                               .answer_timeout = absl::Milliseconds(300),
                                               .lease_margin = absl::Milliseconds(1)}));
      }
      clients_[i].locks =
          *LockManager::Create(*NewQuorumBackend(std::move(links), {.clock = &clock_}),
                               {.clock = &clock_, .random_seed = random_() | 1});
      Ask(i);
    }
    Trouble();
  }

  ~Lives() {
    over_ = true;
    for (Client& client : clients_) client.lock.reset();
    for (Client& client : clients_) client.locks.reset();
    clock_.AdvanceBy(absl::Minutes(1));
  }

  void For(absl::Duration duration) { clock_.AdvanceBy(duration); }

  int entries() const { return entries_; }
  int losses() const { return losses_; }
  const std::string& broken() const { return broken_; }

 private:
  struct Client {
    std::optional<LockManager> locks = {};
    std::optional<Lock> lock = {};
  };

  absl::Duration Some(absl::Duration most) {
    return most * std::uniform_real_distribution<>(0, 1)(random_);
  }

  void Ask(size_t i) {
    AcquireOptions options{.priority = static_cast<Priority>(random_() % 3),
                           .lease = absl::Milliseconds(500) + Some(absl::Seconds(4)),
                           .auto_renew = random_() % 2 == 0,
                           .acquire_timeout = absl::Seconds(20)};
    clients_[i].locks->AcquireAsync("r", options, [this, i](absl::StatusOr<Lock> lock) {
      if (over_) return;
      if (!lock.ok()) return Later(Some(absl::Milliseconds(200)), [this, i] { Ask(i); });
      Enter(i, *std::move(lock));
    });
  }

  void Enter(size_t i, Lock lock) {
    if (!lock.IsHeld()) return Later(absl::Milliseconds(10), [this, i] { Ask(i); });
    for (size_t j = 0; j < clients_.size(); ++j) {
      if (j != i && clients_[j].lock && clients_[j].lock->IsHeld()) Break("two are inside");
    }
    if (lock.fencing_token() <= last_token_) {
      Break(absl::StrCat("token ", lock.fencing_token(), " after ", last_token_));
    }
    last_token_ = lock.fencing_token();
    ++entries_;
    clients_[i].lock = std::move(lock);
    Later(Some(absl::Seconds(1)), [this, i] {
      clients_[i].lock.reset();
      Later(Some(absl::Milliseconds(300)), [this, i] { Ask(i); });
    });
  }

  // A minority is in trouble at any time: deaf, or waiting after a loss of data.
  void Trouble() {
    for (const auto& server : servers_) server->down = false;
    const size_t most = (servers_.size() - 1) / 2;
    size_t troubled = 0;
    for (const auto& server : servers_) troubled += server->recovering() ? 1 : 0;
    size_t lost = 0;
    for (const auto& server : servers_) lost += server->fence_lost() ? 1 : 0;
    if (troubled < most && lost < most && random_() % 2 == 0) {
      servers_[random_() % servers_.size()]->LoseData();
      ++losses_;
      ++troubled;
    }
    while (troubled < most) {
      Server& server = *servers_[random_() % servers_.size()];
      if (server.recovering() || server.down) continue;
      server.down = true;
      ++troubled;
    }
    Later(absl::Seconds(2) + Some(absl::Seconds(8)), [this] { Trouble(); });
  }

  void Later(absl::Duration delay, absl::AnyInvocable<void()> what) {
    clock_.RunAt(clock_.Now() + delay, [this, what = std::move(what)]() mutable {
      if (!over_) what();
    });
  }

  void Break(std::string what) {
    if (broken_.empty()) broken_ = std::move(what);
  }

  std::mt19937_64 random_;
  SimulatedClock clock_;
  std::vector<std::shared_ptr<Server>> servers_;
  std::vector<Client> clients_;
  bool over_ = false;
  FencingToken last_token_ = 0;
  int entries_ = 0;
  int losses_ = 0;
  std::string broken_;
};

class QuorumLossTest : public testing::TestWithParam<int> {};

constexpr uint64_t kSeeds = 10;

TEST_P(QuorumLossTest, TokensGrowAndOneIsInsideWhateverAMinorityForgets) {
  int entries = 0;
  int losses = 0;
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    Lives run(GetParam(), seed);
    run.For(absl::Minutes(3));
    ASSERT_EQ(run.broken(), "") << "seed " << seed;
    entries += run.entries();
    losses += run.losses();
  }
  EXPECT_GT(losses, static_cast<int>(kSeeds));
  EXPECT_GT(entries, static_cast<int>(kSeeds) * 30);
}

INSTANTIATE_TEST_SUITE_P(Servers, QuorumLossTest, testing::Values(3, 5),
                         testing::PrintToStringParamName());

}  // namespace
}  // namespace latchkey

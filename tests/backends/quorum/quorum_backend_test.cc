// Quorums whose servers disagree, fail or answer late, over in-memory backends and over a protocol
// that answers when the test says so.

#include "latchkey/backends/quorum/quorum_backend.h"

#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "latchkey/core/clock.h"
#include "latchkey/core/lock_error.h"
#include "latchkey/core/lock_manager.h"
#include "latchkey/core/protocol/locking_protocol.h"
#include "latchkey/core/protocol/quorum_member.h"
#include "latchkey/memory_backend/memory_backend.h"
#include "latchkey/tests/support/await.h"
#include "latchkey/tests/support/simulated_clock.h"

namespace latchkey {
namespace {

// Passes everything on, unless it is down, or until it is let go on.
class Server final : public LockingProtocol, public QuorumMember {
 public:
  enum class Mode {
    kWorks,
    kDown,
    kRefuses,      // Nothing is executed.
    kLosesAnswer,  // Executed, and the outcome is unknown.
    kSlow,         // Executed; answers wait for Answer().
  };

  void Obtain(const ObtainRequest& request, ObtainCallback done) override {
    BeginObtain();
    Pass<ObtainReply>([&](auto reply) { inner_->Obtain(request, std::move(reply)); },
                      std::move(done));
  }
  QuorumMember* quorum_member() override { return is_member ? this : nullptr; }
  void ObtainAsMember(const ObtainRequest& request, MemberCallback done) override {
    BeginObtain();
    Pass<MemberReply>(
        [&](auto reply) { inner_->quorum_member()->ObtainAsMember(request, std::move(reply)); },
        std::move(done));
  }
  void Release(const HoldRef& hold, ReleaseCallback done) override {
    ++releases;
    if (for_releases) mode = *for_releases;
    Pass<ReleaseOutcome>([&](auto reply) { inner_->Release(hold, std::move(reply)); },
                         std::move(done));
  }
  void Extend(const HoldRef& hold, absl::Duration lease, ExtendCallback done) override {
    Pass<ExtendReply>([&](auto reply) { inner_->Extend(hold, lease, std::move(reply)); },
                      std::move(done));
  }
  void Confirm(const HoldRef& hold, FencingToken token, ConfirmCallback done) override {
    ++confirms;
    if (confirms_slowly) mode = Mode::kSlow;
    Pass<ConfirmReply>(
        [&](auto reply) { inner_->quorum_member()->Confirm(hold, token, std::move(reply)); },
        std::move(done));
  }
  Subscription Watch(const WatchRequest& request, WatchCallback on_event) override {
    return inner_->Watch(request, std::move(on_event));
  }
  const BackendCapabilities& capabilities() const override { return capabilities_; }
  // Before the quorum is made.
  BackendCapabilities& describe() { return capabilities_; }

  void Answer() {
    mode = Mode::kWorks;
    while (!held_.empty()) {
      auto answer = std::move(held_.front());
      held_.pop_front();
      answer();
    }
  }

  // What waits for an answer gets none.
  void LoseAnswers() {
    lost_ = true;
    Answer();
    lost_ = false;
  }

  // Somebody else takes the resource by force, here alone.
  void Steal(std::string_view resource) {
    const AcquisitionId thief = AcquisitionId::Next();
    for (int i = 0; i < 2; ++i) {
      inner_->Obtain({.resource = resource,
                      .acquisition = thief,
                      .priority = 99,
                      .reserve_below = 99,
                      .grace = absl::ZeroDuration()},
                     [](absl::StatusOr<ObtainReply>) {});
    }
  }

  bool Held(std::string_view resource) {
    bool held = false;
    inner_->Inspect(resource, [&held](const ResourceState& state) { held = state.held; });
    return held;
  }

  // Gives tokens of this resource away, so that this server's fence is ahead.
  void Advance(std::string_view resource, int grants) {
    for (int i = 0; i < grants; ++i) {
      const AcquisitionId id = AcquisitionId::Next();
      inner_->Obtain({.resource = resource, .acquisition = id}, [](absl::StatusOr<ObtainReply>) {});
      inner_->Release({.resource = resource, .acquisition = id},
                      [](absl::StatusOr<ReleaseOutcome>) {});
    }
  }

  LockingProtocol& inner() { return *inner_; }

  bool is_member = true;
  Mode mode = Mode::kWorks;
  bool confirms_slowly = false;
  std::optional<Mode> for_releases = std::nullopt;  // Takes this mode when one comes.
  std::function<void()> before_obtain;              // Once.
  int obtains = 0;
  int releases = 0;
  int confirms = 0;

 private:
  void BeginObtain() {
    ++obtains;
    if (before_obtain) std::exchange(before_obtain, nullptr)();
  }

  template <typename T, typename Call, typename Done>
  void Pass(Call call, Done done) {
    switch (mode) {
      case Mode::kDown:
        done(BackendUnavailableError("it is down"));
        return;
      case Mode::kRefuses:
        done(BackendRefusedError("wrong password"));
        return;
      case Mode::kLosesAnswer:
        call([](absl::StatusOr<T>) {});
        done(BackendUnknownError("the answer is lost"));
        return;
      case Mode::kWorks:
        call(std::move(done));
        return;
      case Mode::kSlow: {
        auto reply = std::make_shared<absl::StatusOr<T>>(absl::InternalError("none"));
        call([reply](absl::StatusOr<T> r) { *reply = std::move(r); });
        held_.push_back([this, reply, done = std::move(done)]() mutable {
          if (lost_) *reply = BackendUnknownError("the answer is lost");
          done(std::move(*reply));
        });
        return;
      }
    }
  }

  // One shard, so that one counter makes all tokens.
  std::shared_ptr<LockingProtocol> inner_ = NewMemoryBackend({.shards = 1});
  BackendCapabilities capabilities_ = inner_->capabilities();
  std::deque<absl::AnyInvocable<void()>> held_;
  bool lost_ = false;
};

struct Cluster {
  explicit Cluster(int n) {
    std::vector<std::shared_ptr<LockingProtocol>> protocols;
    for (int i = 0; i < n; ++i) {
      servers.push_back(std::make_shared<Server>());
      protocols.push_back(servers.back());
    }
    quorum = *NewQuorumBackend(protocols);
    other = *NewQuorumBackend(protocols);
  }
  int HeldOn(std::string_view resource) {
    int held = 0;
    for (auto& server : servers) held += server->Held(resource) ? 1 : 0;
    return held;
  }
  std::vector<std::shared_ptr<Server>> servers;
  std::shared_ptr<LockingProtocol> quorum;
  std::shared_ptr<LockingProtocol> other;
};

ObtainRequest Request(AcquisitionId id, Priority priority = 0) {
  return {.resource = "r",
          .acquisition = id,
          .priority = priority,
          .lease = absl::Hours(1),
          .reserve_below = priority,
          .reservation_lease = absl::Minutes(1)};
}

absl::StatusOr<ObtainReply> Obtain(LockingProtocol& backend, const ObtainRequest& request) {
  return Await<ObtainReply>([&](auto done) { backend.Obtain(request, std::move(done)); });
}

absl::StatusOr<ReleaseOutcome> Release(LockingProtocol& backend, AcquisitionId id) {
  return Await<ReleaseOutcome>(
      [&](auto done) { backend.Release({.resource = "r", .acquisition = id}, std::move(done)); });
}

TEST(QuorumBackendTest, NeedsProtocolsThatAreThereDifferentAndMembers) {
  EXPECT_EQ(ReasonOf(NewQuorumBackend({}).status()), Reason::kInvalidArgument);
  const auto one = NewMemoryBackend();
  EXPECT_EQ(ReasonOf(NewQuorumBackend({one, nullptr}).status()), Reason::kInvalidArgument);
  EXPECT_EQ(ReasonOf(NewQuorumBackend({one, one}).status()), Reason::kInvalidArgument);
  EXPECT_TRUE(NewQuorumBackend({one}).ok());

  const auto stranger = std::make_shared<Server>();
  stranger->is_member = false;
  const absl::Status refused = NewQuorumBackend({one, stranger}).status();
  EXPECT_EQ(ReasonOf(refused), Reason::kNotSupported) << refused;
  EXPECT_TRUE(absl::StrContains(refused.message(), "protocols[1], 'memory'")) << refused;
}

TEST(QuorumBackendTest, AServerAloneNeedsNotBeAMember) {
  const auto server = std::make_shared<Server>();
  server->is_member = false;
  const auto quorum = *NewQuorumBackend({server});
  const AcquisitionId holder = AcquisitionId::Next();
  EXPECT_EQ(Obtain(*quorum, Request(holder))->outcome, ObtainOutcome::kObtained);
  EXPECT_EQ(Obtain(*quorum, Request(AcquisitionId::Next()))->outcome, ObtainOutcome::kDenied);
  EXPECT_EQ(*Release(*quorum, holder), ReleaseOutcome::kReleased);
  server->mode = Server::Mode::kDown;
  EXPECT_EQ(ReasonOf(Obtain(*quorum, Request(AcquisitionId::Next())).status()),
            Reason::kBackendUnavailable);
}

TEST(QuorumBackendTest, PromisesWhatTheLeastOfItsServersDoes) {
  const auto one = std::make_shared<Server>();
  const auto two = std::make_shared<Server>();
  one->describe().clock_drift = 0.02;
  one->describe().max_lease = absl::Seconds(20);
  two->describe().lease_margin = absl::Milliseconds(30);
  two->describe().default_lease = absl::Seconds(10);
  two->describe().infinite_lease = false;
  two->describe().forced_handover = false;
  const BackendCapabilities common = (*NewQuorumBackend({one, two}))->capabilities();
  EXPECT_EQ(common.clock_drift, 0.02);
  EXPECT_EQ(common.lease_margin, absl::Milliseconds(30));
  EXPECT_EQ(common.max_lease, absl::Seconds(20));
  EXPECT_EQ(common.default_lease, absl::Seconds(10));
  EXPECT_FALSE(common.infinite_lease);
  EXPECT_FALSE(common.forced_handover);
}

TEST(QuorumBackendTest, RefusesServersWhoseDefaultLeaseNoRequestCouldUse) {
  // Each is fine by itself: one has short leases, the other a margin for long pauses.
  const auto one = std::make_shared<Server>();
  const auto two = std::make_shared<Server>();
  for (const auto& server : {one, two}) server->describe().infinite_lease = false;
  one->describe().default_lease = absl::Milliseconds(60);
  one->describe().lease_margin = absl::Milliseconds(20);
  two->describe().default_lease = absl::Seconds(30);
  two->describe().lease_margin = absl::Milliseconds(100);
  EXPECT_TRUE(NewQuorumBackend({one}).ok());
  EXPECT_TRUE(NewQuorumBackend({two}).ok());
  const absl::Status refused = NewQuorumBackend({two, one}).status();
  EXPECT_EQ(ReasonOf(refused), Reason::kInvalidArgument) << refused;
  EXPECT_TRUE(absl::StrContains(refused.message(), "protocols[1]") &&
              absl::StrContains(refused.message(), "default_lease") &&
              absl::StrContains(refused.message(), "60ms") &&
              absl::StrContains(refused.message(), "300ms") &&
              absl::StrContains(refused.message(), "protocols[0]"))
      << refused;
  one->describe().default_lease = absl::Milliseconds(300);
  EXPECT_TRUE(NewQuorumBackend({one, two}).ok());
  // The longest lease of one bounds the default of the others.
  one->describe().default_lease = absl::Seconds(30);
  one->describe().max_lease = absl::Milliseconds(299);
  const absl::Status too_short = NewQuorumBackend({one, two}).status();
  EXPECT_EQ(ReasonOf(too_short), Reason::kInvalidArgument) << too_short;
  EXPECT_TRUE(absl::StrContains(too_short.message(), "max_lease")) << too_short;
  // Where leases may be infinite, the default is.
  for (const auto& server : {one, two}) server->describe().infinite_lease = true;
  EXPECT_TRUE(NewQuorumBackend({one, two}).ok());
}

TEST(QuorumBackendTest, DoesNotClaimToAnswerAtOnce) {
  // Its servers do; but of two requests that meet, one thread may run both completions.
  Cluster cluster(3);
  EXPECT_TRUE(cluster.servers[0]->capabilities().answers_at_once);
  EXPECT_FALSE(cluster.quorum->capabilities().answers_at_once);
}

TEST(QuorumBackendTest, AMajorityIsEnoughAndTheDeadDoNotDelayIt) {
  Cluster cluster(5);
  cluster.servers[0]->mode = Server::Mode::kDown;
  cluster.servers[3]->mode = Server::Mode::kDown;
  const AcquisitionId a = AcquisitionId::Next();
  const auto reply = Obtain(*cluster.quorum, Request(a));
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(reply->outcome, ObtainOutcome::kObtained);
  EXPECT_EQ(cluster.HeldOn("r"), 3);
  EXPECT_EQ(Release(*cluster.quorum, a).value(), ReleaseOutcome::kReleased);
  EXPECT_EQ(cluster.HeldOn("r"), 0);
}

TEST(QuorumBackendTest, AnswersAsSoonAsAMajorityHasDecided) {
  Cluster cluster(3);
  cluster.servers[2]->mode = Server::Mode::kSlow;
  const AcquisitionId a = AcquisitionId::Next();
  const auto reply = Obtain(*cluster.quorum, Request(a));  // Would hang otherwise.
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(reply->outcome, ObtainOutcome::kObtained);
  cluster.servers[2]->Answer();
  // The late grant belongs to the hold, and goes with it.
  EXPECT_EQ(cluster.HeldOn("r"), 3);
  EXPECT_EQ(Release(*cluster.quorum, a).value(), ReleaseOutcome::kReleased);
  EXPECT_EQ(cluster.HeldOn("r"), 0);
}

TEST(QuorumBackendTest, WithoutAMajorityNothingIsKeptAndEveryVoteIsTold) {
  Cluster cluster(3);
  cluster.servers[0]->mode = Server::Mode::kDown;
  cluster.servers[2]->mode = Server::Mode::kDown;
  const auto reply = Obtain(*cluster.quorum, Request(AcquisitionId::Next()));
  EXPECT_EQ(ReasonOf(reply.status()), Reason::kBackendUnavailable) << reply.status();
  const std::string message(reply.status().message());
  EXPECT_TRUE(absl::StrContains(message, "server 1: it is down")) << message;
  EXPECT_TRUE(absl::StrContains(message, "server 2: granted")) << message;
  EXPECT_TRUE(absl::StrContains(message, "server 3: it is down")) << message;
  EXPECT_EQ(cluster.HeldOn("r"), 0);
}

TEST(QuorumBackendTest, AnUnknownOutcomeIsCompensated) {
  Cluster cluster(3);
  cluster.servers[0]->mode = Server::Mode::kLosesAnswer;
  cluster.servers[1]->mode = Server::Mode::kLosesAnswer;
  const auto reply = Obtain(*cluster.quorum, Request(AcquisitionId::Next()));
  EXPECT_EQ(ReasonOf(reply.status()), Reason::kBackendUnknown) << reply.status();
  EXPECT_EQ(cluster.HeldOn("r"), 0);
}

TEST(QuorumBackendTest, ASplitVoteIsGivenBackByBoth) {
  Cluster cluster(3);
  // Strangers hold one server each; nobody has two.
  const AcquisitionId stranger = AcquisitionId::Next();
  Obtain(cluster.servers[0]->inner(), Request(stranger)).IgnoreError();
  cluster.servers[1]->mode = Server::Mode::kDown;
  const auto reply = Obtain(*cluster.quorum, Request(AcquisitionId::Next()));
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(reply->outcome, ObtainOutcome::kDenied);
  EXPECT_EQ(cluster.HeldOn("r"), 1);
}

TEST(QuorumBackendTest, ServersThatAgreeNeedNoSecondRound) {
  Cluster cluster(5);
  const auto reply = Obtain(*cluster.quorum, Request(AcquisitionId::Next()));
  ASSERT_TRUE(reply.ok()) << reply.status();
  for (const auto& server : cluster.servers) EXPECT_EQ(server->confirms, 0);
}

TEST(QuorumBackendTest, TheTokenIsTheLargestOfTheMajorityAndIsWrittenBack) {
  Cluster cluster(3);
  cluster.servers[1]->Advance("r", 40);
  const AcquisitionId a = AcquisitionId::Next();
  const auto reply = Obtain(*cluster.quorum, Request(a));
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(reply->token, 41u);
  Release(*cluster.quorum, a).IgnoreError();
  // The one that was ahead is gone; a majority of the others remembers.
  cluster.servers[1]->mode = Server::Mode::kDown;
  const auto next = Obtain(*cluster.quorum, Request(AcquisitionId::Next()));
  ASSERT_TRUE(next.ok()) << next.status();
  EXPECT_GT(next->token, 41u);
}

TEST(QuorumBackendTest, NobodyIsInsideBeforeAMajorityHasConfirmed) {
  Cluster cluster(3);
  cluster.servers[0]->Advance("r", 10);
  cluster.servers[2]->mode = Server::Mode::kDown;
  const AcquisitionId a = AcquisitionId::Next();
  std::optional<absl::StatusOr<ObtainReply>> reply;
  // The grants come, and then the second server keeps its confirmation back.
  cluster.servers[1]->mode = Server::Mode::kSlow;
  cluster.quorum->Obtain(Request(a), [&](absl::StatusOr<ObtainReply> r) { reply = std::move(r); });
  EXPECT_FALSE(reply.has_value());
  cluster.servers[1]->Answer();
  ASSERT_TRUE(reply.has_value());
  ASSERT_TRUE(reply->ok()) << reply->status();
  EXPECT_EQ(cluster.servers[1]->confirms, 1);
  EXPECT_EQ((*reply)->token, 11u);
}

TEST(QuorumBackendTest, AThiefWaitsForAMajorityAndEntersWhenTheHolderHasLeft) {
  Cluster cluster(3);
  const AcquisitionId a = AcquisitionId::Next();
  const AcquisitionId b = AcquisitionId::Next();
  const auto held = Obtain(*cluster.quorum, Request(a));
  const auto reserved = Obtain(*cluster.other, Request(b, 5));
  ASSERT_TRUE(reserved.ok()) << reserved.status();
  EXPECT_EQ(reserved->outcome, ObtainOutcome::kReserved);
  EXPECT_EQ(Release(*cluster.quorum, a).value(), ReleaseOutcome::kReleased);
  const auto entered = Obtain(*cluster.other, Request(b, 5));
  ASSERT_TRUE(entered.ok()) << entered.status();
  EXPECT_EQ(entered->outcome, ObtainOutcome::kObtained);
  EXPECT_GT(entered->token, held->token);
}

TEST(QuorumBackendTest, OfCompetingThievesTheDisplacedMinorityWithdraws) {
  Cluster cluster(3);
  const AcquisitionId a = AcquisitionId::Next();
  Obtain(*cluster.quorum, Request(a)).IgnoreError();
  // An equal thief has one server's reservation; ours gets the two others.
  const AcquisitionId equal = AcquisitionId::Next();
  Obtain(cluster.servers[0]->inner(), Request(equal, 5)).IgnoreError();
  const AcquisitionId b = AcquisitionId::Next();
  const auto ours = Obtain(*cluster.other, Request(b, 5));
  ASSERT_TRUE(ours.ok()) << ours.status();
  EXPECT_EQ(ours->outcome, ObtainOutcome::kReserved);
  // A higher one takes all; ours is told so when it asks, and leaves nothing behind.
  const AcquisitionId c = AcquisitionId::Next();
  EXPECT_EQ(Obtain(*cluster.quorum, Request(c, 9))->outcome, ObtainOutcome::kReserved);
  EXPECT_EQ(Obtain(*cluster.other, Request(b, 5))->outcome, ObtainOutcome::kDenied);
  EXPECT_EQ(Release(*cluster.quorum, a).value(), ReleaseOutcome::kReleased);
  EXPECT_EQ(Obtain(*cluster.quorum, Request(c, 9))->outcome, ObtainOutcome::kObtained);
}

TEST(QuorumBackendTest, AMajorityExtendsAndAMinorityDoesNot) {
  Cluster cluster(3);
  const AcquisitionId a = AcquisitionId::Next();
  Obtain(*cluster.quorum, Request(a)).IgnoreError();
  auto extend = [&] {
    return Await<ExtendReply>([&](auto done) {
      cluster.quorum->Extend({.resource = "r", .acquisition = a}, absl::Hours(2), std::move(done));
    });
  };
  cluster.servers[0]->mode = Server::Mode::kDown;
  EXPECT_EQ(extend()->outcome, ExtendOutcome::kExtended);
  cluster.servers[1]->mode = Server::Mode::kDown;
  EXPECT_EQ(ReasonOf(extend().status()), Reason::kBackendUnknown);
  cluster.servers[0]->mode = Server::Mode::kWorks;
  cluster.servers[1]->mode = Server::Mode::kWorks;
  EXPECT_EQ(extend()->outcome, ExtendOutcome::kExtended);
}

// How often a holder has been told that its hold is over.
struct Ends {
  Ends(LockingProtocol& backend, AcquisitionId id)
      : subscription(backend.Watch({.resource = "r", .acquisition = id, .role = WatchRole::kHolder},
                                   [this](const WatchEvent& event) {
                                     ends += event.kind == WatchEventKind::kHoldEnded;
                                   })) {}
  int ends = 0;
  Subscription subscription;
};

absl::StatusOr<ExtendReply> Extend(LockingProtocol& backend, AcquisitionId id) {
  return Await<ExtendReply>([&](auto done) {
    backend.Extend({.resource = "r", .acquisition = id}, absl::Hours(2), std::move(done));
  });
}

TEST(QuorumBackendTest, AnExtensionLastsAsLongAsOnTheLastServerOfTheMajority) {
  Cluster cluster(5);
  const AcquisitionId a = AcquisitionId::Next();
  Obtain(*cluster.quorum, Request(a)).IgnoreError();
  for (int i : {3, 4}) cluster.servers[i]->mode = Server::Mode::kDown;
  EXPECT_GT(Extend(*cluster.quorum, a)->remaining, absl::Minutes(100));
  // Without the first server the fourth is needed, which has only heard of the hour.
  cluster.servers[0]->mode = Server::Mode::kDown;
  for (int i : {3, 4}) cluster.servers[i]->mode = Server::Mode::kWorks;
  const auto extended = Await<ExtendReply>([&](auto done) {
    cluster.quorum->Extend({.resource = "r", .acquisition = a}, absl::Minutes(1), std::move(done));
  });
  ASSERT_TRUE(extended.ok()) << extended.status();
  EXPECT_EQ(extended->outcome, ExtendOutcome::kExtended);
  EXPECT_LE(extended->remaining, absl::Hours(1));
  EXPECT_GT(extended->remaining, absl::Minutes(30));
}

TEST(QuorumBackendTest, AServerThatExtendsCountsOnceItHasConfirmedWhateverBecameOfTheFirstAnswer) {
  Cluster cluster(3);
  // The first server is ahead, so that the others are to confirm. The second one's word is enough;
  // that of the third is lost when that is decided.
  cluster.servers[0]->Advance("r", 10);
  cluster.servers[1]->mode = Server::Mode::kSlow;
  cluster.servers[2]->confirms_slowly = true;
  const AcquisitionId a = AcquisitionId::Next();
  std::optional<absl::StatusOr<ObtainReply>> held;
  cluster.quorum->Obtain(Request(a), [&](absl::StatusOr<ObtainReply> r) { held = std::move(r); });
  ASSERT_EQ(cluster.servers[2]->confirms, 1);
  cluster.servers[1]->Answer();
  ASSERT_TRUE(held && held->ok());
  cluster.servers[2]->LoseAnswers();
  cluster.servers[2]->confirms_slowly = false;
  Ends told(*cluster.quorum, a);
  EXPECT_EQ(Extend(*cluster.quorum, a)->outcome, ExtendOutcome::kExtended);
  EXPECT_EQ(cluster.servers[2]->confirms, 2);
  // All three have extended, so that two are left.
  cluster.servers[0]->Steal("r");
  EXPECT_EQ(told.ends, 0);
  EXPECT_EQ(Extend(*cluster.quorum, a)->outcome, ExtendOutcome::kExtended);
  cluster.servers[1]->Steal("r");
  EXPECT_EQ(told.ends, 1) << "now it has lost its majority";
}

TEST(QuorumBackendTest, AServerThatExtendedKeepsTheHoldThoughItsFirstAnswerIsLost) {
  Cluster cluster(3);
  cluster.servers[2]->mode = Server::Mode::kSlow;
  const AcquisitionId a = AcquisitionId::Next();
  const auto held = Obtain(*cluster.quorum, Request(a));
  ASSERT_TRUE(held.ok()) << held.status();
  Ends told(*cluster.quorum, a);
  // The third has granted it, which nobody has heard yet, and extends it with the second: what the
  // holder believes rests on these two.
  cluster.servers[2]->mode = Server::Mode::kWorks;
  cluster.servers[0]->mode = Server::Mode::kDown;
  EXPECT_EQ(Extend(*cluster.quorum, a)->outcome, ExtendOutcome::kExtended);
  cluster.servers[0]->Steal("r");
  EXPECT_EQ(told.ends, 0);
  cluster.servers[2]->LoseAnswers();
  EXPECT_TRUE(cluster.servers[2]->Held("r")) << "given back while the holder counts on it";
  EXPECT_EQ(told.ends, 0);
  EXPECT_EQ(Extend(*cluster.quorum, a)->outcome, ExtendOutcome::kExtended);
  EXPECT_EQ(Release(*cluster.quorum, a).value(), ReleaseOutcome::kReleased);
  EXPECT_FALSE(cluster.servers[2]->Held("r"));
}

TEST(QuorumBackendTest, AnAnswerThatIsLaterThanTheConfirmationChangesNothing) {
  Cluster cluster(3);
  cluster.servers[0]->Advance("r", 10);
  cluster.servers[2]->mode = Server::Mode::kSlow;
  const AcquisitionId a = AcquisitionId::Next();
  ASSERT_EQ(Obtain(*cluster.quorum, Request(a))->token, 11u);
  // The third has granted with a smaller token, which nobody has heard yet.
  cluster.servers[2]->mode = Server::Mode::kWorks;
  EXPECT_EQ(Extend(*cluster.quorum, a)->outcome, ExtendOutcome::kExtended);
  EXPECT_EQ(cluster.servers[2]->confirms, 1);
  cluster.servers[2]->Answer();
  EXPECT_EQ(cluster.servers[2]->confirms, 1);
  cluster.servers[0]->mode = Server::Mode::kDown;
  EXPECT_EQ(Extend(*cluster.quorum, a)->outcome, ExtendOutcome::kExtended);
}

TEST(QuorumBackendTest, AReleaseIsRepeatable) {
  Cluster cluster(3);
  const AcquisitionId a = AcquisitionId::Next();
  EXPECT_EQ(Release(*cluster.quorum, a).value(), ReleaseOutcome::kNotHeld);
  Obtain(*cluster.quorum, Request(a)).IgnoreError();
  EXPECT_EQ(Release(*cluster.quorum, a).value(), ReleaseOutcome::kReleased);
  EXPECT_EQ(Release(*cluster.quorum, a).value(), ReleaseOutcome::kNotHeld);
}

TEST(QuorumBackendTest, AReleaseThatAMajorityDoesNotAnswerIsUnknown) {
  Cluster cluster(3);
  const AcquisitionId a = AcquisitionId::Next();
  Obtain(*cluster.quorum, Request(a)).IgnoreError();
  cluster.servers[0]->mode = Server::Mode::kDown;
  cluster.servers[1]->mode = Server::Mode::kDown;
  EXPECT_EQ(ReasonOf(Release(*cluster.quorum, a).status()), Reason::kBackendUnknown);
}

// ---- What a failure says -----------------------------------------------------------------------

TEST(QuorumOutcomesTest, WhatIsDownEverywhereDidNothing) {
  Cluster cluster(3);
  const AcquisitionId a = AcquisitionId::Next();
  Obtain(*cluster.quorum, Request(a)).IgnoreError();
  for (auto& server : cluster.servers) server->mode = Server::Mode::kDown;
  EXPECT_EQ(ReasonOf(Obtain(*cluster.other, Request(AcquisitionId::Next())).status()),
            Reason::kBackendUnavailable);
  EXPECT_EQ(ReasonOf(Extend(*cluster.quorum, a).status()), Reason::kBackendUnavailable);
  EXPECT_EQ(ReasonOf(Release(*cluster.quorum, a).status()), Reason::kBackendUnavailable);
}

TEST(QuorumOutcomesTest, WhatAMajorityCannotBeHadForIsRefusedAndWhatMayPassIsNot) {
  for (const size_t refusing : {1, 2, 3}) {
    Cluster cluster(3);
    const AcquisitionId a = AcquisitionId::Next();
    Obtain(*cluster.quorum, Request(a)).IgnoreError();
    for (size_t i = 0; i < 3; ++i) {
      cluster.servers[i]->mode = i < refusing ? Server::Mode::kRefuses : Server::Mode::kDown;
    }
    const Reason reason = refusing == 1 ? Reason::kBackendUnavailable : Reason::kBackendRefused;
    const absl::Status obtained = Obtain(*cluster.other, Request(AcquisitionId::Next())).status();
    EXPECT_EQ(ReasonOf(obtained), reason) << obtained;
    EXPECT_TRUE(absl::StrContains(obtained.message(), "wrong password")) << obtained;
    EXPECT_EQ(ReasonOf(Extend(*cluster.quorum, a).status()), reason);
    EXPECT_EQ(ReasonOf(Release(*cluster.quorum, a).status()), reason);
  }
}

TEST(QuorumOutcomesTest, AMinorityThatRefusesDoesNotMatter) {
  Cluster cluster(3);
  cluster.servers[0]->mode = Server::Mode::kRefuses;
  const AcquisitionId a = AcquisitionId::Next();
  EXPECT_TRUE(Obtain(*cluster.quorum, Request(a)).ok());
  EXPECT_TRUE(Extend(*cluster.quorum, a).ok());
  EXPECT_TRUE(Release(*cluster.quorum, a).ok());
}

TEST(QuorumOutcomesTest, WhatOneServerMayHaveDoneIsUnknown) {
  Cluster cluster(3);
  const AcquisitionId a = AcquisitionId::Next();
  Obtain(*cluster.quorum, Request(a)).IgnoreError();
  cluster.servers[2]->mode = Server::Mode::kDown;
  cluster.servers[1]->mode = Server::Mode::kDown;
  cluster.servers[0]->mode = Server::Mode::kLosesAnswer;
  EXPECT_EQ(ReasonOf(Obtain(*cluster.other, Request(AcquisitionId::Next())).status()),
            Reason::kBackendUnknown);
  EXPECT_EQ(ReasonOf(Extend(*cluster.quorum, a).status()), Reason::kBackendUnknown);
  EXPECT_EQ(ReasonOf(Release(*cluster.quorum, a).status()), Reason::kBackendUnknown);
}

// Two servers are down, and the first has not said yet what it did.
template <typename T>
struct Undecided {
  Undecided(Cluster& cluster,
            absl::FunctionRef<void(absl::AnyInvocable<void(absl::StatusOr<T>)>)> begin) {
    cluster.servers[2]->mode = Server::Mode::kDown;
    cluster.servers[1]->mode = Server::Mode::kDown;
    cluster.servers[0]->mode = Server::Mode::kSlow;
    begin([this](absl::StatusOr<T> reply) { answer = std::move(reply); });
    EXPECT_FALSE(answer) << "it depends on the first one what can be said";
  }
  Reason reason() const { return answer ? ReasonOf(answer->status()) : Reason::kNone; }
  std::optional<absl::StatusOr<T>> answer;
};

TEST(QuorumOutcomesTest, ARequestThatFailsHearsFromAllWhatTheyDid) {
  for (const bool lost : {false, true}) {
    Cluster cluster(3);
    Undecided<ObtainReply> obtain(cluster, [&](auto done) {
      cluster.quorum->Obtain(Request(AcquisitionId::Next()), std::move(done));
    });
    lost ? cluster.servers[0]->LoseAnswers() : cluster.servers[0]->Answer();
    EXPECT_EQ(obtain.reason(), lost ? Reason::kBackendUnknown : Reason::kBackendUnavailable);
    EXPECT_EQ(cluster.HeldOn("r"), 0);
  }
}

TEST(QuorumOutcomesTest, ARequestThatFailsHasGivenBackWhatItHadOrSaysSo) {
  for (const bool lost : {false, true}) {
    Cluster cluster(3);
    cluster.servers[2]->mode = Server::Mode::kDown;
    cluster.servers[1]->mode = Server::Mode::kDown;
    cluster.servers[0]->for_releases = Server::Mode::kSlow;
    std::optional<absl::StatusOr<ObtainReply>> answer;
    cluster.quorum->Obtain(Request(AcquisitionId::Next()),
                           [&](absl::StatusOr<ObtainReply> reply) { answer = std::move(reply); });
    EXPECT_FALSE(answer);
    lost ? cluster.servers[0]->LoseAnswers() : cluster.servers[0]->Answer();
    ASSERT_TRUE(answer);
    EXPECT_EQ(ReasonOf(answer->status()),
              lost ? Reason::kBackendUnknown : Reason::kBackendUnavailable)
        << answer->status();
  }
  Cluster cluster(3);
  cluster.servers[2]->mode = Server::Mode::kDown;
  cluster.servers[1]->mode = Server::Mode::kDown;
  cluster.servers[0]->for_releases = Server::Mode::kDown;
  const auto left = Obtain(*cluster.quorum, Request(AcquisitionId::Next()));
  EXPECT_EQ(cluster.HeldOn("r"), 1);
  EXPECT_EQ(ReasonOf(left.status()), Reason::kBackendUnknown) << left.status();
  EXPECT_TRUE(absl::StrContains(left.status().message(), "server 1: not given back"))
      << left.status();
}

// A request that is asked again and again, of whose first round something was left on the first
// server. Strangers hold the others.
class QuorumLeftoversTest : public ::testing::Test {
 protected:
  QuorumLeftoversTest() {
    for (int i = 0; i < 3; ++i) {
      servers_.push_back(std::make_shared<Server>());
      servers_.back()->describe().infinite_lease = false;
      servers_.back()->describe().max_lease = absl::Hours(1);
    }
    quorum_ = *NewQuorumBackend({servers_.begin(), servers_.end()}, {.clock = &clock_});
  }

  void StrangersHold(std::vector<int> which) {
    for (const int i : which) {
      Obtain(At(i).inner(), Request(AcquisitionId::Next(), 0)).IgnoreError();
    }
  }
  Server& At(int i) { return *servers_[static_cast<size_t>(i)]; }
  void All(Server::Mode mode) {
    for (const auto& server : servers_) server->mode = mode;
  }
  absl::StatusOr<ObtainReply> Ask(Priority priority = 0) {
    return Obtain(*quorum_, Request(id_, priority));
  }
  bool Denied() {
    const absl::StatusOr<ObtainReply> reply = Ask();
    return reply.ok() && reply->outcome == ObtainOutcome::kDenied;
  }
  // What the request says when nobody can be asked any more.
  absl::Status AskTheDead() {
    All(Server::Mode::kDown);
    return Ask().status();
  }

  SimulatedClock clock_;
  std::vector<std::shared_ptr<Server>> servers_;
  std::shared_ptr<LockingProtocol> quorum_;
  const AcquisitionId id_ = AcquisitionId::Next();
};

TEST_F(QuorumLeftoversTest, AnAnswerDoesNotSettleWhatWasDroppedBeforeAndNotGivenBack) {
  StrangersHold({1, 2});
  At(0).mode = Server::Mode::kLosesAnswer;
  At(0).for_releases = Server::Mode::kDown;
  At(1).mode = Server::Mode::kDown;
  ASSERT_EQ(ReasonOf(Ask().status()), Reason::kBackendUnknown);
  ASSERT_TRUE(At(0).Held("r"));
  At(1).mode = Server::Mode::kWorks;
  ASSERT_TRUE(Denied());
  const absl::Status last = AskTheDead();
  EXPECT_EQ(ReasonOf(last), Reason::kBackendUnknown) << last;
  EXPECT_TRUE(absl::StrContains(last.message(), "server 1: not given back: it is down")) << last;
  // For as long as it may be there.
  clock_.AdvanceBy(absl::Hours(1));
  EXPECT_EQ(ReasonOf(AskTheDead()), Reason::kBackendUnavailable);
}

// Does something when it is next asked for the time.
class InterruptedClock final : public Clock {
 public:
  absl::Time Now() override {
    if (interrupt != nullptr) std::exchange(interrupt, nullptr)();
    return clock_.Now();
  }
  TimerId RunAt(absl::Time when, absl::AnyInvocable<void()> callback) override {
    return clock_.RunAt(when, std::move(callback));
  }
  bool Cancel(TimerId timer) override { return clock_.Cancel(timer); }

  absl::AnyInvocable<void()> interrupt;

 private:
  SimulatedClock clock_;
};

// Of an earlier round, on another thread.
TEST_F(QuorumLeftoversTest, TheLastAnswerForgetsNothingOfARequestThatHasJustBegun) {
  InterruptedClock clock;
  quorum_ = *NewQuorumBackend({servers_.begin(), servers_.end()}, {.clock = &clock});
  const AcquisitionId stranger = AcquisitionId::Next();
  for (const int i : {1, 2}) Obtain(At(i).inner(), Request(stranger, 0)).IgnoreError();
  At(0).for_releases = Server::Mode::kSlow;
  ASSERT_TRUE(Denied());
  At(0).for_releases.reset();
  for (const int i : {1, 2}) {
    At(i).inner().Release({.resource = "r", .acquisition = stranger},
                          [](absl::StatusOr<ReleaseOutcome>) {});
  }
  clock.interrupt = [&] { At(0).Answer(); };
  const absl::StatusOr<ObtainReply> reply = Ask();
  ASSERT_TRUE(reply.ok()) << reply.status();
  ASSERT_EQ(reply->outcome, ObtainOutcome::kObtained);
  EXPECT_EQ(clock.interrupt, nullptr);
  EXPECT_EQ(Await<ReleaseOutcome>([&](auto done) {
              quorum_->Release({.resource = "r", .acquisition = id_}, std::move(done));
            }).value(),
            ReleaseOutcome::kReleased);
  EXPECT_FALSE(At(0).Held("r"));
}

TEST_F(QuorumLeftoversTest, NorDoesADenialWhatItCouldNotGiveBack) {
  StrangersHold({1, 2});
  At(0).for_releases = Server::Mode::kDown;
  ASSERT_TRUE(Denied());
  ASSERT_TRUE(At(0).Held("r"));
  EXPECT_EQ(ReasonOf(AskTheDead()), Reason::kBackendUnknown);
}

TEST_F(QuorumLeftoversTest, WhatWasGivenBackIsSettled) {
  StrangersHold({1, 2});
  ASSERT_TRUE(Denied());
  ASSERT_FALSE(At(0).Held("r"));
  EXPECT_EQ(ReasonOf(AskTheDead()), Reason::kBackendUnavailable);
}

TEST_F(QuorumLeftoversTest, AReleaseThatIsUnderWayIsAwaited) {
  for (const bool lost : {false, true}) {
    const AcquisitionId id = AcquisitionId::Next();
    All(Server::Mode::kWorks);
    if (!lost) StrangersHold({1, 2});
    At(0).for_releases = Server::Mode::kSlow;
    const absl::StatusOr<ObtainReply> denied = Obtain(*quorum_, Request(id));
    ASSERT_TRUE(denied.ok()) << denied.status();
    ASSERT_EQ(denied->outcome, ObtainOutcome::kDenied);
    At(0).for_releases = std::nullopt;
    All(Server::Mode::kDown);
    std::optional<absl::Status> last;
    quorum_->Obtain(Request(id), [&](absl::StatusOr<ObtainReply> reply) { last = reply.status(); });
    EXPECT_FALSE(last) << "it depends on the release what can be said: " << *last;
    lost ? At(0).LoseAnswers() : At(0).Answer();
    ASSERT_TRUE(last);
    EXPECT_EQ(ReasonOf(*last), lost ? Reason::kBackendUnknown : Reason::kBackendUnavailable)
        << *last;
  }
}

TEST_F(QuorumLeftoversTest, WhatACandidateKeepsWhileItWaitsIsNotNothing) {
  StrangersHold({1, 2});
  const absl::StatusOr<ObtainReply> waits = Ask(5);
  ASSERT_TRUE(waits.ok()) << waits.status();
  ASSERT_EQ(waits->outcome, ObtainOutcome::kReserved);
  ASSERT_TRUE(At(0).Held("r"));
  const absl::Status last = AskTheDead();
  EXPECT_EQ(ReasonOf(last), Reason::kBackendUnknown) << last;
  EXPECT_TRUE(absl::StrContains(last.message(), "server 1: not given back yet")) << last;
  // It keeps it for as long as it goes on, and the release that ends it finds all of it.
  All(Server::Mode::kWorks);
  ASSERT_TRUE(Release(*quorum_, id_).ok());
  EXPECT_FALSE(At(0).Held("r"));
  for (const int i : {1, 2}) {
    At(i).inner().Inspect("r", [](const ResourceState& state) { EXPECT_FALSE(state.reserved); });
  }
}

TEST_F(QuorumLeftoversTest, ADenialLeavesNothingOfWhatACandidateKept) {
  StrangersHold({1, 2});
  ASSERT_EQ(Ask(5)->outcome, ObtainOutcome::kReserved);
  // A higher one has reserved the others; the first cannot be asked, and hears of the release.
  for (const int i : {1, 2}) {
    Obtain(At(i).inner(), Request(AcquisitionId::Next(), 9)).IgnoreError();
  }
  At(0).mode = Server::Mode::kDown;
  At(0).for_releases = Server::Mode::kWorks;
  ASSERT_EQ(Ask(5)->outcome, ObtainOutcome::kDenied);
  EXPECT_FALSE(At(0).Held("r"));
}

TEST_F(QuorumLeftoversTest, AReleaseFollowsTheRequestThatAnotherThreadIsAboutToMake) {
  // While the last server is about to be asked, the others' answers come, so that the round is
  // over.
  At(0).mode = At(1).mode = Server::Mode::kSlow;
  At(2).before_obtain = [this] {
    EXPECT_EQ(At(2).releases, 0);
    At(0).LoseAnswers();
    At(1).LoseAnswers();
    EXPECT_EQ(At(2).releases, 0) << "it would find nothing";
  };
  At(2).for_releases = Server::Mode::kDown;
  EXPECT_EQ(ReasonOf(Ask().status()), Reason::kBackendUnknown);
  EXPECT_EQ(At(2).releases, 1);
  ASSERT_TRUE(At(2).Held("r"));
  StrangersHold({0, 1});
  ASSERT_TRUE(Denied());
  EXPECT_EQ(ReasonOf(AskTheDead()), Reason::kBackendUnknown);
}

TEST_F(QuorumLeftoversTest, AnAcquireThatEndsInAnOutageSaysSo) {
  LockManager locks = *LockManager::Create(quorum_, {.clock = &clock_, .random_seed = 1});
  StrangersHold({1, 2});
  At(0).for_releases = Server::Mode::kDown;
  std::optional<absl::Status> ended;
  locks.AcquireAsync("r", {.outage_patience = absl::Seconds(1)},
                     [&ended](absl::StatusOr<Lock> lock) { ended = lock.status(); });
  ASSERT_FALSE(ended) << *ended;
  All(Server::Mode::kDown);
  clock_.AdvanceBy(absl::Minutes(1));
  ASSERT_TRUE(ended);
  EXPECT_EQ(ReasonOf(*ended), Reason::kBackendUnknown) << *ended;
}

// ---- Waiters that are woken --------------------------------------------------------------------

TEST(QuorumWakeUpTest, AServerThatIsNotAskedAfterAFailureHearsOfItAndWakesAnotherWaiter) {
  Cluster cluster(3);
  Server& last = *cluster.servers[2];
  const AcquisitionId stranger = AcquisitionId::Next();
  Obtain(last.inner(), Request(stranger)).IgnoreError();
  const AcquisitionId waiter = AcquisitionId::Next();
  const Subscription first = cluster.quorum->Watch(
      {.resource = "r", .acquisition = waiter, .barging = true}, [](const WatchEvent&) {});
  int woken = 0;
  const Subscription second =
      last.inner().Watch({.resource = "r", .acquisition = AcquisitionId::Next(), .barging = true},
                         [&woken](const WatchEvent& event) {
                           woken += event.kind == WatchEventKind::kHoldEnded ? 1 : 0;
                         });
  // The last server is free, and has told the first waiter alone.
  Release(last.inner(), stranger).IgnoreError();
  ASSERT_EQ(woken, 0);
  cluster.servers[0]->mode = Server::Mode::kDown;
  cluster.servers[1]->mode = Server::Mode::kDown;
  EXPECT_EQ(ReasonOf(Obtain(*cluster.quorum, Request(waiter)).status()),
            Reason::kBackendUnavailable);
  ASSERT_EQ(last.obtains, 0) << "it is too late to ask";
  EXPECT_EQ(woken, 1);
}

TEST(QuorumOutcomesTest, AnExtensionAndAReleaseThatFailHearFromAllWhatTheyDid) {
  for (const bool lost : {false, true}) {
    Cluster cluster(3);
    const AcquisitionId a = AcquisitionId::Next();
    cluster.servers[0]->mode = Server::Mode::kDown;
    Obtain(*cluster.quorum, Request(a)).IgnoreError();
    // The first does not have it, so that its word decides.
    Undecided<ExtendReply> extend(cluster, [&](auto done) {
      cluster.quorum->Extend({.resource = "r", .acquisition = a}, absl::Hours(2), std::move(done));
    });
    lost ? cluster.servers[0]->LoseAnswers() : cluster.servers[0]->Answer();
    EXPECT_EQ(extend.reason(), lost ? Reason::kBackendUnknown : Reason::kBackendUnavailable);
    Undecided<ReleaseOutcome> release(cluster, [&](auto done) {
      cluster.quorum->Release({.resource = "r", .acquisition = a}, std::move(done));
    });
    // Whether it had something to release or not, it has been asked, so something was done.
    lost ? cluster.servers[0]->LoseAnswers() : cluster.servers[0]->Answer();
    EXPECT_EQ(release.reason(), Reason::kBackendUnknown);
  }
}

}  // namespace
}  // namespace latchkey

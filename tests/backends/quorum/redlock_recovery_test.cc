// A quorum of real servers of which one loses its data, or the hold.

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "latchkey/backends/quorum/quorum_backend.h"
#include "latchkey/backends/redis/redis_backend.h"
#include "latchkey/core/lock_error.h"
#include "latchkey/core/protocol/locking_protocol.h"
#include "latchkey/core/protocol/quorum_member.h"
#include "latchkey/tests/backends/redis/stored_hold.h"
#include "latchkey/tests/support/await.h"
#include "latchkey/tests/support/redis_server.h"

namespace latchkey {
namespace {

constexpr absl::Duration kMaxLease = absl::Milliseconds(500);

ObtainRequest Request() {
  return {.resource = "r", .acquisition = AcquisitionId::Next(), .lease = kMaxLease};
}

absl::StatusOr<ObtainReply> Obtain(LockingProtocol& backend, const ObtainRequest& request) {
  return Await<ObtainReply>([&](auto done) { backend.Obtain(request, std::move(done)); });
}

TEST(RedlockRecoveryTest, AfterTheLongestLeaseAServerCountsAgainWithTheFencesOfTheOthers) {
  RedisServer servers[3];
  std::vector<std::shared_ptr<LockingProtocol>> clients;
  for (const RedisServer& server : servers) {
    clients.push_back(*ConnectRedisBackend({.url = server.url(),
                                            .new_server = true,
                                            .max_lease = kMaxLease,
                                            .default_lease = kMaxLease,
                                            .lease_margin = absl::Milliseconds(1)}));
  }
  const auto quorum = *NewQuorumBackend(clients);
  servers[0].Command({"FLUSHALL"});

  // A stranger keeps one of the others, so that a majority needs the one that lost its data.
  const AcquisitionId stranger = AcquisitionId::Next();
  FencingToken strangers = 0;
  absl::StatusOr<ObtainReply> reply = absl::UnknownError("not asked yet");
  const absl::Time start = absl::Now();
  do {
    ObtainRequest held = Request();
    held.acquisition = stranger;
    const absl::StatusOr<ObtainReply> kept = Obtain(*clients[1], held);
    ASSERT_TRUE(kept.ok()) << kept.status();
    strangers = kept->token;
    reply = Obtain(*quorum, Request());
    ASSERT_LT(absl::Now() - start, kHangGuard);
  } while (!reply.ok() || reply->outcome != ObtainOutcome::kObtained);
  EXPECT_GT(reply->token, strangers);
  EXPECT_GE(absl::Now() - start, kMaxLease);
}

TEST(RedlockRecoveryTest, WithoutTheFencesOfAMajorityOfOthersItDoesNotCount) {
  RedisServer servers[3];
  std::vector<std::shared_ptr<LockingProtocol>> clients;
  for (const RedisServer& server : servers) {
    clients.push_back(*ConnectRedisBackend({.url = server.url(),
                                            .new_server = true,
                                            .max_lease = kMaxLease,
                                            .default_lease = kMaxLease,
                                            .lease_margin = absl::Milliseconds(1)}));
  }
  const auto quorum = *NewQuorumBackend(clients);
  servers[0].Command({"FLUSHALL"});
  servers[1].Kill();
  absl::StatusOr<ObtainReply> reply = absl::UnknownError("not asked yet");
  const absl::Time start = absl::Now();
  do {
    reply = Obtain(*quorum, Request());
    // On a slow machine a lease may be over before the answers are there, which counts as a denial.
    ASSERT_TRUE(!reply.ok() || reply->outcome == ObtainOutcome::kDenied);
    ASSERT_LT(absl::Now() - start, kHangGuard);
  } while (!absl::StrContains(reply.status().message(), "it has lost its data"));
}

// Tells when an Obtain or the confirmations have been answered, and the quorum has heard of it.
class Listener final : public LockingProtocol, public QuorumMember {
 public:
  explicit Listener(std::shared_ptr<LockingProtocol> server) : server_(std::move(server)) {}

  void Obtain(const ObtainRequest& request, ObtainCallback done) override {
    server_->Obtain(request, AndTell(std::move(done)));
  }
  QuorumMember* quorum_member() override { return this; }
  void ObtainAsMember(const ObtainRequest& request, MemberCallback done) override {
    server_->quorum_member()->ObtainAsMember(request, AndTell(std::move(done)));
  }
  void Release(const HoldRef& hold, ReleaseCallback done) override {
    server_->Release(hold, std::move(done));
  }
  void Extend(const HoldRef& hold, absl::Duration lease, ExtendCallback done) override {
    server_->Extend(hold, lease, std::move(done));
  }
  void Confirm(const HoldRef& hold, FencingToken token, ConfirmCallback done) override {
    {
      absl::MutexLock lock(&confirms_->mutex);
      ++confirms_->sent;
    }
    server_->quorum_member()->Confirm(
        hold, token, [confirms = confirms_, done = std::move(done)](auto reply) mutable {
          done(std::move(reply));
          absl::MutexLock lock(&confirms->mutex);
          ++confirms->answered;
        });
  }
  Subscription Watch(const WatchRequest& request, WatchCallback on_event) override {
    return server_->Watch(request, std::move(on_event));
  }
  const BackendCapabilities& capabilities() const override { return server_->capabilities(); }

  bool AwaitObtain() { return obtained_->Take().has_value(); }
  // Until each of the confirmations, and at least `count`, has been answered.
  bool AwaitConfirms(int count) {
    absl::MutexLock lock(&confirms_->mutex);
    const auto all_are = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(confirms_->mutex) {
      return confirms_->answered >= count && confirms_->answered == confirms_->sent;
    };
    return confirms_->mutex.AwaitWithTimeout(absl::Condition(&all_are), kHangGuard);
  }
  int confirms() const {
    absl::MutexLock lock(&confirms_->mutex);
    return confirms_->sent;
  }

 private:
  template <typename Done>
  Done AndTell(Done done) const {
    return [mailbox = obtained_, done = std::move(done)](auto reply) mutable {
      done(std::move(reply));
      mailbox->Put(true);
    };
  }

  struct Confirms {
    absl::Mutex mutex;
    int sent ABSL_GUARDED_BY(mutex) = 0;
    int answered ABSL_GUARDED_BY(mutex) = 0;
  };

  const std::shared_ptr<LockingProtocol> server_;
  const std::shared_ptr<Mailbox<bool>> obtained_ = std::make_shared<Mailbox<bool>>();
  const std::shared_ptr<Confirms> confirms_ = std::make_shared<Confirms>();
};

TEST(RedlockRecoveryTest, ARenewalTakesTheHoldAgainWhereItIsGone) {
  RedisServer servers[3];
  std::vector<std::shared_ptr<Listener>> clients;
  for (const RedisServer& server : servers) {
    clients.push_back(std::make_shared<Listener>(
        *ConnectRedisBackend({.url = server.url(), .new_server = true})));
  }
  const auto quorum = *NewQuorumBackend({clients.begin(), clients.end()});
  const AcquisitionId id = AcquisitionId::Next();
  constexpr absl::Duration kLease = absl::Seconds(50);
  const absl::StatusOr<ObtainReply> held =
      Obtain(*quorum, {.resource = "r", .acquisition = id, .lease = kLease});
  ASSERT_TRUE(held.ok()) << held.status();
  const auto extends = [&] {
    const absl::StatusOr<ExtendReply> extended = Await<ExtendReply>([&](auto done) {
      quorum->Extend({.resource = "r", .acquisition = id}, kLease, std::move(done));
    });
    EXPECT_TRUE(extended.ok()) << extended.status();
    return extended.ok() && extended->outcome == ExtendOutcome::kExtended;
  };
  // Also what each of them was asked to confirm then, which is up to the millisecond of its clock.
  for (const auto& client : clients) ASSERT_TRUE(client->AwaitObtain() && client->AwaitConfirms(0));
  // Each in turn, twice; never two at once.
  for (int turn = 0; turn < 6; ++turn) {
    const RedisServer& server = servers[turn % 3];
    Listener& client = *clients[static_cast<size_t>(turn % 3)];
    const int confirms = client.confirms();
    server.Command({"DEL", "latchkey:{r}"});
    ASSERT_TRUE(extends()) << "in turn " << turn;
    ASSERT_TRUE(client.AwaitConfirms(confirms + 1)) << "in turn " << turn;
    EXPECT_GT(StoredDeadline(server, "r"), 0);
  }
  EXPECT_EQ(Await<ReleaseOutcome>([&](auto done) {
              quorum->Release({.resource = "r", .acquisition = id}, std::move(done));
            }).value(),
            ReleaseOutcome::kReleased);
  const absl::StatusOr<ObtainReply> next = Obtain(*quorum, Request());
  ASSERT_TRUE(next.ok()) << next.status();
  EXPECT_GT(next->token, held->token);
}

}  // namespace
}  // namespace latchkey

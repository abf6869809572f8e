// What users see: lock managers on a real server, several in this process, and others in processes
// of their own that are killed and paused. The test's first argument is the path of lock_client.
//
// Where a test has to be exact about time, the manager's clock is simulated and the server's is
// real: a lease is then never over on the server before the test is.

#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "latchkey/backends/redis/redis_backend.h"
#include "latchkey/core/lock_error.h"
#include "latchkey/core/lock_manager.h"
#include "latchkey/core/policy/admission_policy.h"
#include "latchkey/tests/backends/redis/client_process.h"
#include "latchkey/tests/backends/redis/stored_hold.h"
#include "latchkey/tests/support/await.h"
#include "latchkey/tests/support/redis_server.h"
#include "latchkey/tests/support/simulated_clock.h"
#include "latchkey/tests/support/tcp_proxy.h"

namespace latchkey {
namespace {

std::string client_path;

using Backend = std::shared_ptr<LockingProtocol>;

std::string UrlOf(const TcpProxy& proxy) {
  return absl::StrCat("redis://127.0.0.1:", proxy.port());
}

Backend Connect(std::string url) {
  auto backend = ConnectRedisBackend(
      {.url = std::move(url), .max_reconnect_delay = absl::Milliseconds(50), .new_server = true});
  EXPECT_TRUE(backend.ok()) << backend.status();
  return backend.ok() ? *std::move(backend) : nullptr;
}

LockManager NewManager(Backend backend, LockManagerOptions options = {}) {
  return *LockManager::Create(std::move(backend), std::move(options));
}

LockManager NewManager(const RedisServer& server, LockManagerOptions options = {}) {
  return NewManager(Connect(server.url()), std::move(options));
}

// A request that does not wait for its answer.
struct Request {
  std::shared_ptr<Mailbox<std::shared_ptr<absl::StatusOr<Lock>>>> mailbox =
      std::make_shared<Mailbox<std::shared_ptr<absl::StatusOr<Lock>>>>();

  absl::StatusOr<Lock> Take() {
    auto taken = mailbox->Take();
    return taken ? std::move(**taken) : absl::InternalError("no answer");
  }
  bool settled() { return !mailbox->All().empty(); }
};

Request Ask(LockManager& locks, std::string_view resource, const AcquireOptions& options = {}) {
  Request request;
  locks.AcquireAsync(resource, options, [mailbox = request.mailbox](absl::StatusOr<Lock> lock) {
    mailbox->Put(std::make_shared<absl::StatusOr<Lock>>(std::move(lock)));
  });
  return request;
}

// Forwards, and says when an Extend has been answered and dealt with.
class Spy : public LockingProtocol {
 public:
  explicit Spy(Backend inner) : inner_(std::move(inner)) {}

  void Obtain(const ObtainRequest& request, ObtainCallback done) override {
    inner_->Obtain(request, std::move(done));
  }
  void Release(const HoldRef& hold, ReleaseCallback done) override {
    inner_->Release(hold, std::move(done));
  }
  void Extend(const HoldRef& hold, absl::Duration lease, ExtendCallback done) override {
    ++sent_;
    inner_->Extend(hold, lease,
                   [this, done = std::move(done)](absl::StatusOr<ExtendReply> reply) mutable {
                     const bool extended = reply.ok() && reply->outcome == ExtendOutcome::kExtended;
                     done(std::move(reply));
                     extended_.Put(extended);
                   });
  }
  Subscription Watch(const WatchRequest& request, WatchCallback on_event) override {
    return inner_->Watch(request, std::move(on_event));
  }
  const BackendCapabilities& capabilities() const override { return inner_->capabilities(); }

  int sent() const { return sent_; }
  // Whether the next one extended; none if there was none.
  std::optional<bool> AwaitExtension() { return extended_.Take(); }

 private:
  const Backend inner_;
  std::atomic<int> sent_ = 0;
  Mailbox<bool> extended_;
};

// Returns once everything that was asked of the server before has been answered: it serves one
// connection in order. Also waits for a connection.
void Settle(LockManager& locks) {
  const absl::Time give_up = absl::Now() + Patience::Of();
  while (!locks.TryAcquire("settle").ok()) {
    if (absl::Now() < give_up) continue;
    Patience::WasInVain();
    FAIL() << "waited in vain for an answer of the server";
  }
}

bool IsHeldOn(const RedisServer& server, std::string_view resource) {
  return StoredDeadline(server, resource) != 0;
}

// Although the Lock of a hold that has ended is still there.
void ExpectNothingHeldBy(LockManager& locks) {
  EXPECT_FALSE(locks.IsBusy("r"));
  EXPECT_FALSE(locks.IsBusy());
  for (const ResourceSnapshot& snapshot : locks.Snapshot()) {
    ADD_FAILURE() << snapshot.state.resource << " is listed, with the holder '"
                  << snapshot.state.holder_owner << "'";
  }
}

// Microseconds, as StoredDeadline.
int64_t TimeOf(const RedisServer& server) {
  const std::vector<std::string> parts = absl::StrSplit(server.Command({"TIME"}), '\n');
  int64_t seconds = 0;
  int64_t micros = 0;
  EXPECT_TRUE(parts.size() == 2 && absl::SimpleAtoi(parts[0], &seconds) &&
              absl::SimpleAtoi(parts[1], &micros));
  return seconds * 1'000'000 + micros;
}

// ---- Two managers in one process ---------------------------------------------------------------

TEST(RedisManagerTest, AReleaseLetsTheOtherClientIn) {
  RedisServer server;
  LockManager one = NewManager(server);
  LockManager two = NewManager(server);
  absl::StatusOr<Lock> held = one.Acquire("r");
  ASSERT_TRUE(held.ok()) << held.status();
  Request next = Ask(two, "r");
  EXPECT_FALSE(next.settled());
  EXPECT_TRUE(held->Release().ok());
  absl::StatusOr<Lock> got = next.Take();
  ASSERT_TRUE(got.ok()) << got.status();
  EXPECT_GT(got->fencing_token(), held->fencing_token());
}

TEST(RedisManagerTest, TryAcquireSaysWhoHolds) {
  RedisServer server;
  LockManager one = NewManager(server);
  LockManager two = NewManager(server);
  absl::StatusOr<Lock> held = one.Acquire("r", {.owner = "the first"});
  const absl::Status refused = two.TryAcquire("r").status();
  EXPECT_EQ(ReasonOf(refused), Reason::kHeldByOther) << refused;
  EXPECT_TRUE(absl::StrContains(refused.message(), "the first")) << refused;
}

TEST(RedisManagerTest, AHolderIsToldAndYieldsAndTheThiefEnters) {
  RedisServer server;
  LockManager one = NewManager(server);
  LockManager two = NewManager(server);
  absl::StatusOr<Lock> victim = one.Acquire("r", {.priority = 1});
  ASSERT_TRUE(victim.ok());
  Mailbox<bool> told;
  victim->OnYieldRequested([&told] { told.Put(true); });
  Request thief = Ask(two, "r", {.priority = 2});
  ASSERT_TRUE(told.Take());
  EXPECT_EQ(victim->state(), LockState::kYielding);
  EXPECT_FALSE(thief.settled()) << "a thief never replaces the holder";
  EXPECT_TRUE(victim->Release().ok());
  EXPECT_TRUE(thief.Take().ok());
}

TEST(RedisManagerTest, AStolenHoldIsNotListedThoughItsLockLives) {
  RedisServer server;
  LockManager one = NewManager(server);
  LockManager two = NewManager(server);
  absl::StatusOr<Lock> held = one.Acquire("r", {.owner = "holder"});
  ASSERT_TRUE(held.ok()) << held.status();
  Mailbox<LockState> lost;
  held->OnLost([&lost](LockState state) { lost.Put(state); });
  absl::StatusOr<Lock> stolen =
      two.Acquire("r", {.priority = 1, .preemption_grace = absl::ZeroDuration()});
  ASSERT_TRUE(stolen.ok()) << stolen.status();
  EXPECT_EQ(lost.Take(), LockState::kStolen);
  ExpectNothingHeldBy(one);
  EXPECT_TRUE(two.IsBusy("r"));
  ASSERT_EQ(two.Snapshot().size(), 1u);
  EXPECT_EQ(two.Snapshot()[0].state.token, stolen->fencing_token());
}

TEST(RedisManagerTest, AThiefThatGivesUpLeavesTheHolderWhereItWas) {
  RedisServer server;
  SimulatedClock clock;
  SimulatedClock thiefs_clock;
  auto spy = std::make_shared<Spy>(Connect(server.url()));
  LockManager one = NewManager(spy, {.clock = &clock});
  LockManager two = NewManager(server, {.clock = &thiefs_clock});
  absl::StatusOr<Lock> victim = one.Acquire("r", {.lease = absl::Seconds(20), .auto_renew = true});
  ASSERT_TRUE(victim.ok()) << victim.status();
  Mailbox<bool> told;
  victim->OnYieldRequested([&told] { told.Put(true); });
  Request thief = Ask(two, "r", {.priority = 2, .acquire_timeout = absl::Seconds(1)});
  ASSERT_TRUE(told.Take());
  // Renewal is refused meanwhile, so that one lease bounds the preemption.
  clock.AdvanceBy(absl::Seconds(13));
  EXPECT_EQ(spy->AwaitExtension(), false);
  EXPECT_EQ(victim->state(), LockState::kYielding);
  thiefs_clock.AdvanceBy(absl::Seconds(1));
  EXPECT_EQ(ReasonOf(thief.Take().status()), Reason::kAcquireTimeout);
  // It goes on as soon as the reservation is gone.
  while (victim->state() != LockState::kHeld) {
  }
  clock.RunDue();
  EXPECT_EQ(spy->AwaitExtension(), true);
  EXPECT_GT(victim->remaining(), absl::Seconds(15));
}

// Others of the same manager wait for the lock; who asks for itself all the same?
TEST(RedisManagerTest, AnOwnerEntersAgainPastThoseWhoWaitAndWhoHasNoTimeIsToldAtOnce) {
  RedisServer server;
  LockManager locks = NewManager(server);
  absl::StatusOr<Lock> held = locks.Acquire("r", {.owner = "me"});
  ASSERT_TRUE(held.ok()) << held.status();
  Request other = Ask(locks, "r", {.owner = "somebody"});
  Settle(locks);
  absl::StatusOr<Lock> again = locks.Acquire("r", {.owner = "me"});
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->fencing_token(), held->fencing_token());
  EXPECT_EQ(ReasonOf(locks.Acquire("r", {.max_attempts = 1}).status()), Reason::kAttemptsExhausted);
  EXPECT_EQ(ReasonOf(locks.Acquire("r", {.acquire_timeout = absl::ZeroDuration()}).status()),
            Reason::kAcquireTimeout);
  absl::StatusOr<LockSet> set = locks.AcquireAll({"free", "r"}, {.owner = "me"});
  EXPECT_TRUE(set.ok()) << set.status();
  set = absl::CancelledError();
  EXPECT_TRUE(again->Release().ok());
  EXPECT_FALSE(other.settled());
  EXPECT_TRUE(held->Release().ok());
  EXPECT_TRUE(other.Take().ok());
}

TEST(RedisManagerTest, AnOwnerEntersThroughAManagerWhoseOthersWait) {
  RedisServer server;
  LockManager one = NewManager(server);
  LockManager two = NewManager(server);
  absl::StatusOr<Lock> held = one.Acquire("r", {.owner = "me"});
  Request other = Ask(two, "r");
  Settle(two);
  EXPECT_TRUE(two.Acquire("r", {.owner = "me"}).ok());
  EXPECT_FALSE(other.settled());
}

TEST(RedisManagerTest, AFreeLockIsGrantedWhereNobodyMayWait) {
  RedisServer server;
  LockManager locks = NewManager(server, {.admission = LimitPending({.per_resource = 0})});
  absl::StatusOr<Lock> held = locks.Acquire("r");
  ASSERT_TRUE(held.ok()) << held.status();
  EXPECT_EQ(ReasonOf(locks.Acquire("r").status()), Reason::kTooManyPending);
  EXPECT_EQ(ReasonOf(locks.Acquire("r", {.priority = 1}).status()), Reason::kTooManyPending);
  EXPECT_TRUE(held->Release().ok());
}

// What a server may refuse: reported at once by those who ask, and no hang.
TEST(RedisManagerTest, WhatTheServerRefusesIsReportedAtOnceAndSaysWhy) {
  struct Case {
    std::vector<std::string> command;
    Reason reason;
    const char* says;
  };
  for (const Case& c : {
           Case{{"SET", "latchkey:{r}", "something else"},
                Reason::kBackendRefused,
                "holds something else"},
           Case{{"SET", "latchkey:{r}:waiting", "something else"},
                Reason::kBackendRefused,
                "holds something else"},
           Case{{"CONFIG", "SET", "maxmemory", "1"}, Reason::kBackendUnavailable, "out of memory"},
           Case{{"REPLICAOF", "127.0.0.1", "1"}, Reason::kBackendUnavailable, "replica"},
           Case{{"ACL", "SETUSER", "default", "-evalsha", "-eval"},
                Reason::kBackendRefused,
                "lacks a permission"},
           Case{{"FLUSHALL"}, Reason::kBackendUnavailable, "recovering"},
       }) {
    RedisServer server;
    LockManager locks = NewManager(server);
    LockManager other = NewManager(server);
    std::optional<absl::StatusOr<Lock>> held;
    // A waiting list is looked at only by somebody who waits.
    if (absl::StrContains(absl::StrJoin(c.command, " "), ":waiting")) {
      held = other.Acquire("r");
      ASSERT_TRUE((*held).ok());
    }
    EXPECT_NE(server.Command(c.command).substr(0, 3), "ERR") << c.command[0];
    const absl::Status status = locks
                                    .Acquire("r", {.acquire_timeout = absl::Hours(1),
                                                   .outage_patience = absl::ZeroDuration()})
                                    .status();
    EXPECT_EQ(ReasonOf(status), c.reason) << status;
    EXPECT_TRUE(absl::StrContains(status.message(), c.says)) << status;
    if (!held) continue;
    EXPECT_TRUE((*held)->Release().ok()) << "a release does not need the list";
    EXPECT_TRUE(locks.TryAcquire("r").ok());
  }
}

// ---- Renewal -----------------------------------------------------------------------------------

TEST(RedisManagerTest, RenewalComesBeforeAThirdOfTheLeaseIsLeft) {
  RedisServer server;
  SimulatedClock clock;
  auto spy = std::make_shared<Spy>(Connect(server.url()));
  LockManager locks = NewManager(spy, {.clock = &clock});
  absl::StatusOr<Lock> lock = locks.Acquire("r", {.lease = absl::Seconds(30), .auto_renew = true});
  ASSERT_TRUE(lock.ok()) << lock.status();
  for (int i = 0; i < 5; ++i) {
    const int64_t deadline = StoredDeadline(server, "r");
    const absl::Time valid_until = clock.Now() + lock->remaining();
    clock.AdvanceBy(absl::Seconds(20) - absl::Milliseconds(1));
    EXPECT_EQ(spy->AwaitExtension(), true);
    EXPECT_EQ(spy->sent(), i + 1);
    EXPECT_GT(StoredDeadline(server, "r"), deadline);
    EXPECT_GT(clock.Now() + lock->remaining(), valid_until);
  }
}

TEST(RedisManagerTest, AFailedRenewalIsNoLossAndIsTriedAgain) {
  RedisServer server;
  TcpProxy proxy(server.socket_path());
  SimulatedClock clock;
  auto spy = std::make_shared<Spy>(Connect(UrlOf(proxy)));
  LockManager locks = NewManager(spy, {.clock = &clock});
  absl::StatusOr<Lock> lock = locks.Acquire("r", {.lease = absl::Seconds(30), .auto_renew = true});
  ASSERT_TRUE(lock.ok()) << lock.status();
  Mailbox<LockState> lost;
  lock->OnLost([&lost](LockState state) { lost.Put(state); });
  proxy.Refuse(true);
  proxy.CutAll();
  clock.AdvanceBy(absl::Seconds(20));
  EXPECT_EQ(spy->AwaitExtension(), false);
  for (int i = 0; i < 3; ++i) {
    clock.AdvanceBy((lock->remaining()) / 3);
    EXPECT_EQ(spy->AwaitExtension(), false);
    EXPECT_EQ(lock->state(), LockState::kHeld);
  }
  proxy.Refuse(false);
  Settle(locks);
  clock.AdvanceBy(lock->remaining() / 3);
  EXPECT_EQ(spy->AwaitExtension(), true);
  EXPECT_EQ(lock->state(), LockState::kHeld);
  EXPECT_GT(lock->remaining(), absl::Seconds(25));
  EXPECT_TRUE(lost.All().empty());
}

TEST(RedisManagerTest, TheLocalDeadlineAndNotTheFirstErrorIsTheLoss) {
  RedisServer server;
  TcpProxy proxy(server.socket_path());
  SimulatedClock clock;
  auto spy = std::make_shared<Spy>(Connect(UrlOf(proxy)));
  LockManager locks = NewManager(spy, {.clock = &clock});
  absl::StatusOr<Lock> lock = locks.Acquire("r", {.lease = absl::Seconds(30), .auto_renew = true});
  ASSERT_TRUE(lock.ok()) << lock.status();
  Mailbox<LockState> lost;
  lock->OnLost([&lost](LockState state) { lost.Put(state); });
  const absl::Time deadline = clock.Now() + lock->remaining();
  proxy.Refuse(true);
  proxy.CutAll();
  clock.AdvanceBy(absl::Seconds(20));
  EXPECT_EQ(spy->AwaitExtension(), false);
  clock.AdvanceTo(deadline - absl::Nanoseconds(1));
  EXPECT_EQ(lock->state(), LockState::kHeld);
  EXPECT_TRUE(lost.All().empty());
  EXPECT_TRUE(locks.IsBusy("r"));
  clock.AdvanceTo(deadline);
  EXPECT_EQ(lost.Take(), LockState::kLost);
  EXPECT_EQ(lock->state(), LockState::kLost);
  ExpectNothingHeldBy(locks);
  const absl::Status status = lock->Release();
  EXPECT_EQ(ReasonOf(status), Reason::kLost) << status;
  EXPECT_TRUE(absl::StrContains(status.message(), "could not be renewed")) << status;
}

TEST(RedisManagerTest, MaxHoldEndsAHoldThatIsRenewed) {
  RedisServer server;
  SimulatedClock clock;
  auto spy = std::make_shared<Spy>(Connect(server.url()));
  LockManager locks = NewManager(spy, {.clock = &clock});
  absl::StatusOr<Lock> lock = locks.Acquire(
      "r", {.lease = absl::Seconds(20), .auto_renew = true, .max_hold = absl::Seconds(30)});
  ASSERT_TRUE(lock.ok()) << lock.status();
  Mailbox<LockState> lost;
  lock->OnLost([&lost](LockState state) { lost.Put(state); });
  clock.AdvanceBy(absl::Seconds(14));
  EXPECT_EQ(spy->AwaitExtension(), true);
  clock.AdvanceBy(absl::Seconds(16) - absl::Nanoseconds(1));
  EXPECT_TRUE(lost.All().empty());
  clock.AdvanceBy(absl::Nanoseconds(1));
  EXPECT_EQ(lost.Take(), LockState::kExpired);
  EXPECT_EQ(lock->remaining(), absl::ZeroDuration());
  ExpectNothingHeldBy(locks);
  // The server was never asked for more than that.
  EXPECT_LE(StoredDeadline(server, "r") - TimeOf(server), 20'000'000);
}

TEST(RedisManagerTest, WhatAnotherClientExtendsIsLearntByLooking) {
  RedisServer server;
  SimulatedClock clock;
  auto spy = std::make_shared<Spy>(Connect(server.url()));
  LockManager locks = NewManager(spy, {.clock = &clock});
  LockManager others = NewManager(server, {.clock = &clock});
  const AcquireOptions options = {.owner = "a", .lease = absl::Seconds(20), .auto_renew = false};
  absl::StatusOr<Lock> outer = locks.Acquire("r", options);
  ASSERT_TRUE(outer.ok()) << outer.status();
  absl::StatusOr<Lock> inner = others.Acquire("r", options);
  ASSERT_TRUE(inner.ok()) << inner.status();
  EXPECT_EQ(inner->fencing_token(), outer->fencing_token());
  EXPECT_TRUE(inner->Extend(absl::Seconds(60)).ok());
  const int64_t deadline = StoredDeadline(server, "r");
  EXPECT_LT(outer->remaining(), absl::Seconds(20));
  clock.AdvanceBy(absl::Seconds(14));
  EXPECT_EQ(spy->AwaitExtension(), true);
  EXPECT_EQ(StoredDeadline(server, "r"), deadline) << "looking changes nothing";
  EXPECT_GT(outer->remaining(), absl::Seconds(40));
  EXPECT_TRUE(inner->Release().ok());
  EXPECT_TRUE(outer->Release().ok());
  EXPECT_FALSE(IsHeldOn(server, "r"));
}

TEST(RedisManagerTest, MaxHoldOfOneHandleLeavesTheLockToTheOthers) {
  RedisServer server;
  SimulatedClock clock;
  LockManager locks = NewManager(server, {.clock = &clock});
  absl::StatusOr<Lock> outer = locks.Acquire("r", {.owner = "a"});
  ASSERT_TRUE(outer.ok()) << outer.status();
  absl::StatusOr<Lock> inner = locks.Acquire("r", {.owner = "a", .max_hold = absl::Seconds(5)});
  ASSERT_TRUE(inner.ok()) << inner.status();
  clock.AdvanceBy(absl::Seconds(6));
  EXPECT_EQ(inner->state(), LockState::kExpired);
  EXPECT_EQ(outer->state(), LockState::kHeld);
  EXPECT_TRUE(outer->Release().ok());
  EXPECT_FALSE(IsHeldOn(server, "r")) << "although the other one was not released";
}

TEST(RedisManagerTest, NoRenewalFollowsARelease) {
  RedisServer server;
  TcpProxy proxy(server.socket_path());
  SimulatedClock clock;
  auto spy = std::make_shared<Spy>(Connect(UrlOf(proxy)));
  LockManager locks = NewManager(spy, {.clock = &clock});
  absl::StatusOr<Lock> lock = locks.Acquire("r", {.lease = absl::Seconds(30), .auto_renew = true});
  ASSERT_TRUE(lock.ok()) << lock.status();
  // A renewal is under way when the lock is released; it must not bring the hold back.
  proxy.HoldReplies(true);
  clock.AdvanceBy(absl::Seconds(20));
  EXPECT_EQ(spy->sent(), 1);
  Mailbox<absl::Status> released;
  lock->ReleaseAsync([&released](absl::Status status) { released.Put(std::move(status)); });
  proxy.HoldReplies(false);
  const auto status = released.Take();
  ASSERT_TRUE(status);
  EXPECT_TRUE(status->ok()) << *status;
  EXPECT_FALSE(IsHeldOn(server, "r"));
  EXPECT_TRUE(spy->AwaitExtension());
  clock.AdvanceBy(absl::Hours(1));
  EXPECT_EQ(spy->sent(), 1);
  EXPECT_EQ(clock.PendingTimers(), 0u);
  EXPECT_FALSE(IsHeldOn(server, "r"));
}

TEST(RedisManagerTest, FlushedDataIsALossAtTheNextRenewal) {
  RedisServer server;
  SimulatedClock clock;
  LockManager locks = NewManager(server, {.clock = &clock});
  absl::StatusOr<Lock> lock = locks.Acquire("r", {.lease = absl::Seconds(30), .auto_renew = true});
  ASSERT_TRUE(lock.ok()) << lock.status();
  Mailbox<LockState> lost;
  lock->OnLost([&lost](LockState state) { lost.Put(state); });
  Settle(locks);
  server.Command({"FLUSHALL"});
  // Nobody has told it yet. Nobody else is let in either: the server recovers first.
  EXPECT_EQ(lock->state(), LockState::kHeld);
  EXPECT_TRUE(locks.IsBusy("r"));
  clock.AdvanceBy(absl::Seconds(20));
  EXPECT_EQ(lost.Take(), LockState::kLost);
  ExpectNothingHeldBy(locks);
  EXPECT_EQ(ReasonOf(lock->Release()), Reason::kLost);
}

TEST(RedisManagerTest, FlushedDataIsALossForWhoeverBeginsToListen) {
  RedisServer server;
  LockManager locks = NewManager(server);
  absl::StatusOr<Lock> lock = locks.Acquire("r");
  ASSERT_TRUE(lock.ok()) << lock.status();
  server.Command({"FLUSHALL"});
  Mailbox<LockState> lost;
  lock->OnLost([&lost](LockState state) { lost.Put(state); });
  // The server says of every hold that it has forgotten that it is over. The lease is not.
  EXPECT_EQ(lost.Take(), LockState::kLost);
}

TEST(RedisManagerTest, FlushedDataIsALossForWhoeverExtendsOrReleasesWithinTheLease) {
  RedisServer server;
  SimulatedClock clock;
  LockManager locks = NewManager(server, {.clock = &clock});
  absl::StatusOr<Lock> one = locks.Acquire("r", {.lease = absl::Seconds(30), .auto_renew = false});
  absl::StatusOr<Lock> two = locks.Acquire("s", {.lease = absl::Seconds(30), .auto_renew = false});
  ASSERT_TRUE(one.ok() && two.ok());
  server.Command({"FLUSHALL"});
  EXPECT_EQ(ReasonOf(one->Extend(absl::Seconds(10))), Reason::kLost);
  EXPECT_EQ(ReasonOf(one->Release()), Reason::kLost);
  EXPECT_EQ(ReasonOf(two->Release()), Reason::kLost);
}

TEST(RedisManagerTest, FlushedDataWithoutRenewalIsToldAtTheLocalDeadline) {
  RedisServer server;
  SimulatedClock clock;
  LockManager locks = NewManager(server, {.clock = &clock});
  absl::StatusOr<Lock> lock = locks.Acquire("r", {.lease = absl::Seconds(30), .auto_renew = false});
  ASSERT_TRUE(lock.ok()) << lock.status();
  Mailbox<LockState> lost;
  lock->OnLost([&lost](LockState state) { lost.Put(state); });
  // It listens before the loss, and does not ask afterwards: then the clock is all that it has.
  Settle(locks);
  server.Command({"FLUSHALL"});
  const absl::Duration left = lock->remaining();
  clock.AdvanceBy(left - absl::Nanoseconds(1));
  EXPECT_GT(lock->remaining(), absl::ZeroDuration());
  EXPECT_TRUE(lost.All().empty());
  clock.AdvanceBy(absl::Nanoseconds(1));
  ExpectNothingHeldBy(locks);
  EXPECT_EQ(lost.Take(), LockState::kExpired);
  EXPECT_EQ(lock->state(), LockState::kExpired);
  EXPECT_EQ(ReasonOf(lock->Release()), Reason::kExpired);
}

// ---- Deadlocks ---------------------------------------------------------------------------------

// Two owners hold a and b, and each wants what the other holds.
void ExpectADeadlockIsFound(std::shared_ptr<const RetryPolicy> retry) {
  RedisServer server;
  // Nothing is polled, unless the simulated time moves.
  SimulatedClock clock;
  LockManager locks = NewManager(server, {.clock = &clock, .retry = std::move(retry)});
  absl::StatusOr<Lock> a = locks.Acquire("a", {.owner = "ann"});
  absl::StatusOr<Lock> b = locks.Acquire("b", {.owner = "bob"});
  ASSERT_TRUE(a.ok() && b.ok());
  Request ann = Ask(locks, "b", {.owner = "ann"});
  Request bob = Ask(locks, "a", {.owner = "bob", .priority = -1});
  const absl::Status status = bob.Take().status();
  EXPECT_EQ(ReasonOf(status), Reason::kDeadlock) << status;
  EXPECT_TRUE(absl::StrContains(status.message(), "waits for 'b', held by 'bob'")) << status;
  EXPECT_FALSE(ann.settled()) << "one is enough";
  EXPECT_TRUE(b->Release().ok());
  EXPECT_TRUE(ann.Take().ok());
}

TEST(RedisManagerTest, OwnersThatWaitForEachOtherAreFound) { ExpectADeadlockIsFound(nullptr); }

TEST(RedisManagerTest, OwnersThatWaitForEachOtherAreFoundThoughNobodyPolls) {
  ExpectADeadlockIsFound(NoRetry());
}

TEST(RedisManagerTest, OwnersOfTwoClientsThatWaitForEachOtherEndByTheirTimeout) {
  RedisServer server;
  SimulatedClock clock;
  LockManager one = NewManager(server, {.clock = &clock});
  LockManager two = NewManager(server, {.clock = &clock});
  absl::StatusOr<Lock> a = one.Acquire("a", {.owner = "ann"});
  absl::StatusOr<Lock> b = two.Acquire("b", {.owner = "bob"});
  Request ann = Ask(one, "b", {.owner = "ann", .acquire_timeout = absl::Seconds(1)});
  Request bob = Ask(two, "a", {.owner = "bob", .acquire_timeout = absl::Seconds(2)});
  // Each backend of a process has a graph of its own, as every process has.
  clock.AdvanceBy(absl::Seconds(1));
  EXPECT_EQ(ReasonOf(ann.Take().status()), Reason::kAcquireTimeout);
  EXPECT_TRUE(a->Release().ok());
  EXPECT_TRUE(bob.Take().ok());
}

// ---- Processes ---------------------------------------------------------------------------------

class Client : public ClientProcess {
 public:
  explicit Client(std::string url, std::vector<std::string> options = {})
      : ClientProcess(Arguments(std::move(url), std::move(options))) {
    EXPECT_TRUE(Hear("ready"));
  }

  // Acquires and returns the token, or 0.
  FencingToken Acquire(std::string_view resource, std::string_view terms = "") {
    Say(absl::StrCat("acquire ", resource, " ", terms));
    return Number(Hear(absl::StrCat("acquired ", resource, " ")));
  }
  // The token with which it writes, holding or not.
  FencingToken Write(std::string_view resource) {
    Say(absl::StrCat("write ", resource));
    return Number(Hear(absl::StrCat("write ", resource, " ")));
  }
  std::string State(std::string_view resource) {
    Say(absl::StrCat("state ", resource));
    return Hear(absl::StrCat("state ", resource, " ")).value_or("");
  }

 private:
  static std::vector<std::string> Arguments(std::string url, std::vector<std::string> options) {
    std::vector<std::string> arguments = {client_path, std::move(url)};
    arguments.insert(arguments.end(), options.begin(), options.end());
    return arguments;
  }
  static FencingToken Number(const std::optional<std::string>& line) {
    FencingToken token = 0;
    if (line) {
      const std::vector<std::string> words = absl::StrSplit(*line, ' ');
      EXPECT_TRUE(absl::SimpleAtoi(words.back(), &token)) << *line;
    }
    return token;
  }
};

// A resource that checks fencing tokens.
class Store {
 public:
  bool Write(FencingToken token) {
    if (token < seen_) return false;
    seen_ = token;
    return true;
  }

 private:
  FencingToken seen_ = 0;
};

TEST(RedisManagerTest, AVictimInAnotherProcessIsToldAndYieldsAndTheThiefEnters) {
  RedisServer server;
  Client victim(server.url());
  Client thief(server.url());
  const FencingToken first = victim.Acquire("r", "priority=1 yields=1");
  ASSERT_GT(first, 0u);
  EXPECT_GT(thief.Acquire("r", "priority=2"), first);
  EXPECT_TRUE(victim.Hear("yield r"));
  EXPECT_EQ(victim.State("r"), "state r Released");
  EXPECT_FALSE(victim.HasSaid("lost")) << "what it said before is heard by now";
}

TEST(RedisManagerTest, WhenAHolderIsKilledTheNextEntersAtTheEndOfItsLease) {
  RedisServer server;
  LockManager locks = NewManager(server);
  Client holder(server.url());
  const FencingToken first = holder.Acquire("r", "lease_ms=1000 renew=1");
  ASSERT_GT(first, 0u);
  Request next = Ask(locks, "r");
  holder.Kill();
  const int64_t deadline = StoredDeadline(server, "r");
  absl::StatusOr<Lock> got = next.Take();
  ASSERT_TRUE(got.ok()) << got.status();
  EXPECT_GE(TimeOf(server), deadline);
  EXPECT_GT(got->fencing_token(), first);
}

TEST(RedisManagerTest, APausedVictimIsOverAtTheEndOfItsLeaseAndItsStaleWriteIsRefused) {
  RedisServer server;
  Store store;
  LockManager locks = NewManager(server);
  Client victim(server.url());
  const FencingToken old = victim.Acquire("r", "lease_ms=700 renew=1");
  ASSERT_TRUE(store.Write(old));
  victim.Pause();
  const int64_t deadline = StoredDeadline(server, "r");
  absl::StatusOr<Lock> thief = locks.Acquire("r", {.priority = 1});
  ASSERT_TRUE(thief.ok()) << thief.status();
  EXPECT_GE(TimeOf(server), deadline) << "it was not asked whether it has left";
  ASSERT_TRUE(store.Write(thief->fencing_token()));
  victim.Continue();
  // It writes without looking, as after a pause between look and write.
  EXPECT_EQ(victim.Write("r"), old);
  EXPECT_FALSE(store.Write(old));
  EXPECT_EQ(victim.State("r"), "state r Expired");
  EXPECT_TRUE(store.Write(thief->fencing_token()));
  EXPECT_TRUE(thief->IsHeld());
}

TEST(RedisManagerTest, APausedVictimIsOverAtTheEndOfTheGrace) {
  RedisServer server;
  Store store;
  LockManager locks = NewManager(server);
  Client victim(server.url());
  const FencingToken old = victim.Acquire("r", "lease_ms=50000 renew=1");
  ASSERT_TRUE(store.Write(old));
  // From here on it listens.
  ASSERT_NE(victim.Acquire("settle"), 0u);
  victim.Pause();
  const int64_t deadline = StoredDeadline(server, "r");
  absl::StatusOr<Lock> thief =
      locks.Acquire("r", {.priority = 1, .preemption_grace = absl::Milliseconds(200)});
  ASSERT_TRUE(thief.ok()) << thief.status();
  EXPECT_LT(TimeOf(server), deadline);
  ASSERT_TRUE(store.Write(thief->fencing_token()));
  victim.Continue();
  EXPECT_EQ(victim.Write("r"), old);
  EXPECT_FALSE(store.Write(old));
  EXPECT_TRUE(victim.Hear("lost r Stolen"));
}

TEST(RedisManagerTest, AKilledWaiterHoldsNobodyUp) {
  RedisServer server;
  LockManager locks = NewManager(server);
  absl::StatusOr<Lock> held = locks.Acquire("r");
  Client waiter(server.url());
  waiter.Say("acquire r priority=-1");
  while (server.Command({"ZCARD", "latchkey:{r}:waiting"}) != "1") {
  }
  waiter.Kill();
  Request next = Ask(locks, "r", {.priority = -2});
  EXPECT_TRUE(held->Release().ok());
  EXPECT_TRUE(next.Take().ok());
}

// ---- The end of a process ----------------------------------------------------------------------

TEST(RedisManagerTest, AProcessThatEndsWaitsForTheReleaseThatIsUnderWay) {
  RedisServer server;
  TcpProxy proxy(server.socket_path());
  Client client(UrlOf(proxy), {"shutdown_timeout_ms=40000", "command_timeout_ms=40000"});
  ASSERT_GT(client.Acquire("r"), 0u);
  // The release gets no further than the link, while the lock, the manager and main end.
  proxy.HoldRequests(true);
  client.Say("drop r");
  EXPECT_TRUE(client.Hear("dropped r"));
  client.CloseInput();
  proxy.AwaitHeldRequests();
  EXPECT_FALSE(client.HasEnded());
  EXPECT_TRUE(IsHeldOn(server, "r"));
  proxy.HoldRequests(false);
  EXPECT_EQ(client.AwaitExit(), 0);
  EXPECT_FALSE(IsHeldOn(server, "r"));
}

TEST(RedisManagerTest, AProcessThatEndsWaitsForNoLongerThanTheShutdownTimeout) {
  RedisServer server;
  TcpProxy proxy(server.socket_path());
  Client client(UrlOf(proxy), {"shutdown_timeout_ms=100", "command_timeout_ms=3600000"});
  ASSERT_GT(client.Acquire("r"), 0u);
  proxy.HoldRequests(true);
  client.CloseInput();
  EXPECT_EQ(client.AwaitExit(), 0);
  EXPECT_TRUE(IsHeldOn(server, "r"));
}

TEST(RedisManagerTest, NothingIsLeftOfProcessesThatEnd) {
  RedisServer server;
  for (int i = 0; i < 20; ++i) {
    Client client(server.url(), {"shutdown_timeout_ms=40000"});
    ASSERT_GT(client.Acquire("r"), 0u);
    ASSERT_GT(client.Acquire("s"), 0u);
    // With the lock first, or with the manager first.
    if (i % 2 == 0) client.Say("drop r");
    client.CloseInput();
    ASSERT_EQ(client.AwaitExit(), 0);
    ASSERT_FALSE(IsHeldOn(server, "r")) << i;
    ASSERT_FALSE(IsHeldOn(server, "s")) << i;
  }
}

}  // namespace
}  // namespace latchkey

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  if (argc < 2) {
    fprintf(stderr, "usage: redis_manager_test PATH_OF_LOCK_CLIENT\n");
    return 1;
  }
  latchkey::client_path = argv[1];
  return RUN_ALL_TESTS();
}

// Servers that are set up in the ways that docs/how-to/run-on-redis.md names, or warns of: users
// with the permissions that it lists and with fewer, databases, eviction, and what else may be at
// our keys.

#include <algorithm>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "latchkey/backends/redis/redis_backend.h"
#include "latchkey/core/lock_error.h"
#include "latchkey/core/lock_manager.h"
#include "latchkey/tests/support/await.h"
#include "latchkey/tests/support/redis_server.h"

namespace latchkey {
namespace {

std::string UrlOf(const RedisServer& server, std::string_view login = "") {
  return absl::StrCat("redis://", login, "127.0.0.1:", server.port());
}

absl::StatusOr<LockManager> Connect(RedisBackendOptions options) {
  absl::StatusOr<std::shared_ptr<LockingProtocol>> backend =
      ConnectRedisBackend(std::move(options));
  if (!backend.ok()) return backend.status();
  return LockManager::Create(*std::move(backend));
}

// run-on-redis.md quotes this.
constexpr std::string_view kAcl = R"(
ACL SETUSER latchkey on >PASSWORD ~latchkey:* &latchkey:* -@all +ping +info +select +time
    +subscribe +publish +script|load +eval +evalsha +get +set +hget +hmget +hset +hdel +pexpire
    +zadd +zrange +zrem +zremrangebyrank
)";

// And some more rules.
void SetUser(const RedisServer& server, std::vector<std::string> more = {}) {
  std::vector<std::string> command =
      absl::StrSplit(kAcl, absl::ByAnyChar(" \n"), absl::SkipEmpty());
  command.insert(command.end(), more.begin(), more.end());
  std::string answer = server.Command(command);
  if (absl::StrContains(answer, "'&latchkey:*'")) {
    // Redis before 6.2 has no permissions for channels.
    command.erase(std::find(command.begin(), command.end(), "&latchkey:*"));
    answer = server.Command(command);
  }
  ASSERT_EQ(answer, "OK");
}

TEST(RedisSetupsTest, AUserWithThePermissionsOfTheManualCanDoEverything) {
  RedisServer server({.tcp = true});
  SetUser(server);
  RedisBackendOptions options = {.url = absl::StrCat(UrlOf(server, "latchkey:PASSWORD@"), "/2"),
                                 .new_server = true};
  absl::StatusOr<LockManager> one = Connect(options);
  absl::StatusOr<LockManager> two = Connect(options);
  ASSERT_TRUE(one.ok()) << one.status();
  ASSERT_TRUE(two.ok()) << two.status();
  // Holding, renewing, waiting, being woken, preempting, giving up and releasing.
  absl::StatusOr<Lock> held = one->Acquire("r", {.owner = "me"});
  ASSERT_TRUE(held.ok()) << held.status();
  Mailbox<bool> yield;
  held->OnYieldRequested([&yield] { yield.Put(true); });
  EXPECT_TRUE(held->Extend(absl::Seconds(40)).ok());
  EXPECT_TRUE(one->Acquire("r", {.owner = "me"}).ok());
  EXPECT_EQ(ReasonOf(two->TryAcquire("r").status()), Reason::kHeldByOther);
  auto waiter = std::make_shared<Mailbox<std::shared_ptr<absl::StatusOr<Lock>>>>();
  auto thief = std::make_shared<Mailbox<std::shared_ptr<absl::StatusOr<Lock>>>>();
  two->AcquireAsync("r", {}, [waiter](absl::StatusOr<Lock> lock) {
    waiter->Put(std::make_shared<absl::StatusOr<Lock>>(std::move(lock)));
  });
  two->AcquireAsync("r", {.priority = 7}, [thief](absl::StatusOr<Lock> lock) {
    thief->Put(std::make_shared<absl::StatusOr<Lock>>(std::move(lock)));
  });
  ASSERT_TRUE(yield.Take()) << "the notice is published";
  EXPECT_TRUE(held->Release().ok());
  const auto stolen = thief->Take();
  ASSERT_TRUE(stolen && (*stolen)->ok()) << (stolen ? (*stolen)->status() : absl::OkStatus());
  EXPECT_TRUE((**stolen)->Release().ok());
  const auto woken = waiter->Take();
  ASSERT_TRUE(woken && (*woken)->ok()) << (woken ? (*woken)->status() : absl::OkStatus());
  // All of it with the scripts that the greeting has loaded, and none refused by the server.
  EXPECT_FALSE(absl::StrContains(server.Command({"ACL", "LOG"}), "latchkey"))
      << server.Command({"ACL", "LOG"});
}

TEST(RedisSetupsTest, InfoAndScriptLoadAreDispensable) {
  RedisServer server({.tcp = true});
  SetUser(server, {"-info", "-script"});
  absl::StatusOr<LockManager> locks =
      Connect({.url = UrlOf(server, "latchkey:PASSWORD@"), .new_server = true});
  ASSERT_TRUE(locks.ok()) << locks.status();
  EXPECT_TRUE(locks->Acquire("r").ok());
}

TEST(RedisSetupsTest, AUserWithoutAPermissionIsToldWhichCommandIsRefused) {
  RedisServer server({.tcp = true});
  SetUser(server, {"-subscribe"});
  const absl::Status unsubscribed =
      Connect({.url = UrlOf(server, "latchkey:PASSWORD@"), .new_server = true}).status();
  EXPECT_EQ(ReasonOf(unsubscribed), Reason::kBackendRefused) << unsubscribed;
  EXPECT_TRUE(absl::StrContains(unsubscribed.message(), "SUBSCRIBE")) << unsubscribed;
  // Of keys that it may not use as well.
  ASSERT_EQ(server.Command({"ACL", "SETUSER", "latchkey", "+subscribe"}), "OK");
  ASSERT_EQ(server.Command({"ACL", "SETUSER", "latchkey", "resetkeys", "~other:*"}), "OK");
  const absl::Status no_keys = Connect({.url = UrlOf(server, "latchkey:PASSWORD@")}).status();
  EXPECT_EQ(ReasonOf(no_keys), Reason::kBackendRefused) << no_keys;
  EXPECT_TRUE(absl::StrContains(no_keys.message(), "lacks a permission")) << no_keys;
  // Of one resource's key it is told when it asks.
  ASSERT_EQ(server.Command({"ACL", "SETUSER", "latchkey", "~latchkey:marker", "~latchkey:{mine}*"}),
            "OK");
  absl::StatusOr<LockManager> locks =
      Connect({.url = UrlOf(server, "latchkey:PASSWORD@"), .new_server = true});
  ASSERT_TRUE(locks.ok()) << locks.status();
  EXPECT_TRUE(locks->Acquire("mine").ok());
  const absl::Status refused = locks->Acquire("theirs").status();
  EXPECT_EQ(ReasonOf(refused), Reason::kBackendRefused) << refused;
  EXPECT_TRUE(absl::StrContains(refused.message(), "lacks a permission")) << refused;
}

// Whichever of the commands in the manual it is: nobody is told to try later, nothing is repeated,
// and nothing is left behind. (Not all: whoever waits alone does without -zrange and -zrem, and
// nobody needs to publish.)
TEST(RedisSetupsTest, EveryPermissionThatIsMissingIsARefusal) {
  for (const std::string_view missing : {"-select", "-time", "-subscribe", "-evalsha", "-get",
                                         "-hget", "-hmget", "-hset", "-pexpire", "-zadd"}) {
    RedisServer server({.tcp = true});
    SetUser(server);
    absl::StatusOr<LockManager> others =
        Connect({.url = absl::StrCat(UrlOf(server), "/2"), .new_server = true});
    ASSERT_TRUE(others.ok()) << others.status();
    ASSERT_EQ(server.Command({"ACL", "SETUSER", "latchkey", std::string(missing)}), "OK");
    absl::StatusOr<LockManager> locks =
        Connect({.url = absl::StrCat(UrlOf(server, "latchkey:PASSWORD@"), "/2")});
    absl::Status refused = locks.status();
    if (refused.ok()) {
      // The waiting list is looked at by those who have to wait, or wake somebody.
      absl::StatusOr<Lock> held = others->Acquire("r");
      ASSERT_TRUE(held.ok()) << held.status();
      refused = locks->Acquire("r", {.acquire_timeout = absl::Hours(1)}).status();
      EXPECT_TRUE(held->Release().ok());
    }
    EXPECT_EQ(ReasonOf(refused), Reason::kBackendRefused) << missing << ": " << refused;
    EXPECT_TRUE(others->TryAcquire("r").ok()) << missing;
  }
}

TEST(RedisSetupsTest, AWrongUserIsToldAndNeitherNameNorPasswordIsShown) {
  RedisServer server({.tcp = true});
  SetUser(server);
  const absl::Status wrong = Connect({.url = UrlOf(server, "mallory:PASSWORD@")}).status();
  EXPECT_EQ(ReasonOf(wrong), Reason::kBackendRefused) << wrong;
  EXPECT_TRUE(absl::StrContains(wrong.message(), "refuses the login")) << wrong;
  EXPECT_FALSE(absl::StrContains(wrong.message(), "mallory")) << wrong;
  EXPECT_FALSE(absl::StrContains(wrong.message(), "PASSWORD")) << wrong;
}

TEST(RedisSetupsTest, AReleaseThatFoundNoLoginIsRepeatedWhenItIsMendedAndARefusedOneIsNot) {
  RedisServer server({.tcp = true});
  SetUser(server);
  RedisBackendOptions options{.url = UrlOf(server, "latchkey:PASSWORD@"),
                              .max_reconnect_delay = absl::Milliseconds(50),
                              .new_server = true,
                              .max_lease = absl::Hours(1),
                              .default_lease = absl::Hours(1)};
  absl::StatusOr<LockManager> locks = Connect(options);
  options.url = UrlOf(server);
  absl::StatusOr<LockManager> others = Connect(options);
  ASSERT_TRUE(locks.ok() && others.ok()) << locks.status() << others.status();
  absl::StatusOr<Lock> no_permission = locks->Acquire("permission");
  absl::StatusOr<Lock> no_login = locks->Acquire("login");
  ASSERT_TRUE(no_permission.ok() && no_login.ok());

  ASSERT_EQ(server.Command({"ACL", "SETUSER", "latchkey", "-hset"}), "OK");
  EXPECT_EQ(ReasonOf(no_permission->Release()), Reason::kBackendRefused);
  ASSERT_EQ(server.Command({"ACL", "SETUSER", "latchkey", "+hset", "off"}), "OK");
  server.Command({"CLIENT", "KILL", "USER", "latchkey"});
  const absl::Time start = absl::Now();
  while (ReasonOf(locks->TryAcquire("another").status()) != Reason::kBackendRefused) {
    ASSERT_LT(absl::Now() - start, kHangGuard);
  }
  EXPECT_EQ(ReasonOf(no_login->Release()), Reason::kBackendRefused);
  EXPECT_EQ(ReasonOf(others->TryAcquire("login").status()), Reason::kHeldByOther);

  ASSERT_EQ(server.Command({"ACL", "SETUSER", "latchkey", "on"}), "OK");
  const absl::Status freed = others->Acquire("login", {.acquire_timeout = kHangGuard}).status();
  EXPECT_TRUE(freed.ok()) << freed;
  EXPECT_EQ(ReasonOf(others->TryAcquire("permission").status()), Reason::kHeldByOther);
}

TEST(RedisSetupsTest, ADatabaseThatTheServerDoesNotHaveIsTold) {
  RedisServer server({.tcp = true});
  const absl::Status status = Connect({.url = absl::StrCat(UrlOf(server), "/16")}).status();
  EXPECT_EQ(ReasonOf(status), Reason::kBackendRefused) << status;
  EXPECT_TRUE(absl::StrContains(status.message(), "SELECT")) << status;
}

TEST(RedisSetupsTest, EvictionUnderAHeldLockIsALossAndThenARecovery) {
  RedisServer server({.tcp = true});
  absl::StatusOr<LockManager> locks = Connect({.url = UrlOf(server), .new_server = true});
  ASSERT_TRUE(locks.ok()) << locks.status();
  absl::StatusOr<Lock> lock = locks->Acquire("r");
  ASSERT_TRUE(lock.ok()) << lock.status();
  // Everything goes, the marker as well, which is how the server knows that it has lost data.
  ASSERT_EQ(server.Command({"CONFIG", "SET", "maxmemory-policy", "allkeys-random"}), "OK");
  ASSERT_EQ(server.Command({"CONFIG", "SET", "maxmemory", "1"}), "OK");
  server.Command({"SET", "another", "value"});
  ASSERT_EQ(server.Command({"DBSIZE"}), "0");
  ASSERT_EQ(server.Command({"CONFIG", "SET", "maxmemory", "0"}), "OK");
  EXPECT_EQ(ReasonOf(lock->Extend(absl::Seconds(20))), Reason::kLost);
  const absl::Status status =
      locks->Acquire("r", {.outage_patience = absl::ZeroDuration()}).status();
  EXPECT_EQ(ReasonOf(status), Reason::kBackendUnavailable) << status;
  EXPECT_TRUE(absl::StrContains(status.message(), "recovering")) << status;
}

TEST(RedisSetupsTest, TokensGrowThoughRecordsAreEvicted) {
  RedisServer server({.tcp = true});
  absl::StatusOr<LockManager> locks = Connect({.url = UrlOf(server), .new_server = true});
  ASSERT_TRUE(locks.ok()) << locks.status();
  FencingToken last = 0;
  for (int i = 0; i < 20; ++i) {
    absl::StatusOr<Lock> lock = locks->Acquire("r");
    ASSERT_TRUE(lock.ok()) << lock.status();
    // Though this process' clock proposes nothing, and one millisecond has room for many of these.
    EXPECT_GT(lock->fencing_token(), last);
    last = lock->fencing_token();
    // Not at all, while it is held, or when it is free again.
    if (i % 3 == 1) {
      ASSERT_EQ(server.Command({"DEL", "latchkey:{r}"}), "1");
    }
    EXPECT_EQ(ReasonOf(lock->Release()), i % 3 == 1 ? Reason::kLost : Reason::kNone);
    if (i % 3 == 2) {
      ASSERT_EQ(server.Command({"DEL", "latchkey:{r}"}), "1");
    }
  }
}

TEST(RedisSetupsTest, SomethingElseAtTheMarkerIsToldWithItsName) {
  RedisServer server({.tcp = true});
  absl::StatusOr<LockManager> locks = Connect({.url = UrlOf(server), .new_server = true});
  ASSERT_TRUE(locks.ok()) << locks.status();
  server.Command({"DEL", "latchkey:marker"});
  server.Command({"LPUSH", "latchkey:marker", "mine"});
  const absl::Status status = locks->Acquire("r").status();
  EXPECT_EQ(ReasonOf(status), Reason::kBackendRefused) << status;
  EXPECT_TRUE(absl::StrContains(status.message(), "'latchkey:marker', holds something else"))
      << status;
  EXPECT_EQ(server.Command({"LRANGE", "latchkey:marker", "0", "-1"}), "mine");
}

TEST(RedisSetupsTest, ABackendHasOneThreadHoweverManyLocks) {
  RedisServer server;
  const auto threads = [] {
    int count = 0;
    for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
      count += task.exists() ? 1 : 0;
    }
    return count;
  };
  const int before = threads();
  const auto backend =
      ConnectRedisBackend({.url = server.url(), .command_connections = 3, .new_server = true});
  ASSERT_TRUE(backend.ok()) << backend.status();
  EXPECT_EQ(threads(), before + 1);
  std::vector<Subscription> watches;
  for (int i = 0; i < 500; ++i) {
    const std::string resource = absl::StrCat("r", i);
    const AcquisitionId id = AcquisitionId::Next();
    const auto reply = Await<ObtainReply>([&](auto done) {
      (*backend)->Obtain({.resource = resource, .acquisition = id, .lease = absl::Seconds(20)},
                         std::move(done));
    });
    ASSERT_TRUE(reply.ok()) << reply.status();
    watches.push_back(
        (*backend)->Watch({.resource = resource, .acquisition = id, .role = WatchRole::kHolder},
                          [](const WatchEvent&) {}));
  }
  EXPECT_EQ(threads(), before + 1);
  // Three for commands, one for events, and the one that asks.
  const std::string clients = server.Command({"INFO", "clients"});
  EXPECT_TRUE(absl::StrContains(clients, "connected_clients:5")) << clients;
}

}  // namespace
}  // namespace latchkey

// Threads that block in a call read the connection themselves: what others ask meanwhile, what ends
// their wait, and what happens to the connection then.
#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <random>
#include <stop_token>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "latchkey/backends/quorum/quorum_backend.h"
#include "latchkey/backends/redis/redis_backend.h"
#include "latchkey/core/lock_error.h"
#include "latchkey/core/lock_manager.h"
#include "latchkey/tests/support/await.h"
#include "latchkey/tests/support/redis_server.h"
#include "latchkey/tests/support/tcp_proxy.h"

namespace latchkey {
namespace {

using Backend = std::shared_ptr<LockingProtocol>;

// Asks again and again; what it waits for happens in another process.
void Eventually(absl::FunctionRef<bool()> is_so) {
  const absl::Time guard = absl::Now() + kHangGuard;
  while (!is_so()) {
    ASSERT_LT(absl::Now(), guard) << "it never happened";
    std::this_thread::yield();
  }
}

// A server behind a proxy, and one client of it.
struct Fixture {
  explicit Fixture(absl::Duration command_timeout = kHangGuard) : proxy(server.socket_path()) {
    auto connected = ConnectRedisBackend({.url = absl::StrCat("redis://127.0.0.1:", proxy.port()),
                                          .command_timeout = command_timeout,
                                          .max_reconnect_delay = absl::Milliseconds(20),
                                          .new_server = true});
    EXPECT_TRUE(connected.ok()) << connected.status();
    backend = *std::move(connected);
    locks.emplace(*LockManager::Create(backend));
    // From now on the connection is left to this thread, and to its like.
    EXPECT_TRUE(Works());
  }

  bool IsHeld(std::string_view resource) const {
    const std::string end =
        server.Command({"HGET", absl::StrCat("latchkey:{", resource, "}"), "hd"});
    return end != "(nil)" && end != "0";
  }

  // Nothing is under way afterwards.
  bool Works() {
    auto lock = locks->TryAcquire("a");
    return lock.ok() && lock->Release().ok();
  }

  RedisServer server;
  TcpProxy proxy;
  Backend backend;
  std::optional<LockManager> locks;
};

TEST(BlockingCallsTest, AnIdleConnectionThatBreaksIsReplacedBeforeTheNextCall) {
  Fixture it;
  for (int i = 0; i < 3; ++i) {
    it.proxy.CutAll();
    // Nobody calls, and yet it is noticed.
    Eventually([&] { return it.proxy.connections() == 2; });
    Eventually([&] { return it.Works(); });
  }
}

TEST(BlockingCallsTest, AHalfClosedConnectionIsReplaced) {
  Fixture it;
  for (int i = 0; i < 3; ++i) {
    it.proxy.HalfClose();
    Eventually([&] { return it.Works(); });
  }
}

TEST(BlockingCallsTest, AThreadThatWaitsForAnAnswerHearsOfTheTimeout) {
  Fixture it(absl::Milliseconds(50));
  it.proxy.HoldReplies(true);
  const auto lock = it.locks->TryAcquire("a");
  EXPECT_EQ(ReasonOf(lock.status()), Reason::kBackendUnknown) << lock.status();
  it.proxy.HoldReplies(false);
  Eventually([&] { return it.Works(); });
}

// Without time to wait nobody waits for a connection that takes long to be made, alone or in a
// quorum.
TEST(BlockingCallsTest, AServerThatStandsStillKeepsNobodyForLongerThanTheCommandTimeout) {
  constexpr int kServers = 3;
  std::vector<std::unique_ptr<RedisServer>> servers;
  std::vector<Backend> backends;
  for (int i = 0; i < kServers; ++i) {
    servers.push_back(std::make_unique<RedisServer>());
    auto connected = ConnectRedisBackend({.url = servers.back()->url(),
                                          .connect_timeout = absl::Hours(1),
                                          .command_timeout = absl::Milliseconds(100),
                                          .new_server = true});
    ASSERT_TRUE(connected.ok()) << connected.status();
    backends.push_back(*std::move(connected));
  }
  LockManager one = *LockManager::Create(backends[0]);
  LockManager all = *LockManager::Create(*NewQuorumBackend(backends));
  ASSERT_TRUE(one.TryAcquire("a").ok());
  ASSERT_TRUE(all.TryAcquire("b").ok());
  for (const auto& server : servers) server->Pause();
  for (LockManager* locks : {&one, &all}) {
    for (int i = 0; i < 3; ++i) {
      const absl::Status tried = locks->TryAcquire("c").status();
      const absl::Status asked =
          locks->Acquire("c", {.acquire_timeout = absl::ZeroDuration()}).status();
      for (const absl::Status& status : {tried, asked}) {
        const Reason reason = ReasonOf(status);
        EXPECT_TRUE(reason == Reason::kBackendUnknown || reason == Reason::kBackendUnavailable)
            << status;
      }
    }
  }
  for (const auto& server : servers) server->Continue();
  Eventually([&] { return one.TryAcquire("c").ok(); });
  Eventually([&] { return all.TryAcquire("d").ok(); });
}

TEST(BlockingCallsTest, AThreadThatWaitsForAnAnswerHearsOfACancellation) {
  Fixture it;
  it.proxy.HoldReplies(true);
  std::stop_source cancel;
  std::thread other([&] {
    it.proxy.AwaitHeldReplies();
    cancel.request_stop();
  });
  const auto lock = it.locks->Acquire("a", {.cancel = cancel.get_token()});
  EXPECT_EQ(ReasonOf(lock.status()), Reason::kCancelled) << lock.status();
  other.join();
  // It was granted after all, and taken back.
  it.proxy.HoldReplies(false);
  Eventually([&] { return !it.IsHeld("a"); });
  EXPECT_TRUE(it.Works());
}

TEST(BlockingCallsTest, WhatOthersAskMeanwhileIsAnswered) {
  Fixture it;
  it.proxy.HoldReplies(true);
  Mailbox<bool> answers;
  std::thread asks([&] {
    it.proxy.AwaitHeldReplies();
    it.locks->AcquireAsync("b", {}, [&](absl::StatusOr<Lock> lock) { answers.Put(lock.ok()); });
    std::thread waits([&] { answers.Put(it.locks->Acquire("c").ok()); });
    it.proxy.HoldReplies(false);
    waits.join();
  });
  EXPECT_TRUE(it.locks->Acquire("a").ok());
  asks.join();
  EXPECT_EQ(answers.Take(), true);
  EXPECT_EQ(answers.Take(), true);
}

TEST(BlockingCallsTest, ADenialIsFollowedByTheGrant) {
  Fixture it;
  const auto other = ConnectRedisBackend({.url = it.server.url()});
  ASSERT_TRUE(other.ok());
  LockManager others = *LockManager::Create(*other);
  auto held = others.Acquire("a", {.owner = "other"});
  ASSERT_TRUE(held.ok()) << held.status();
  std::thread releases([&] {
    Eventually([&] { return it.server.Command({"ZCARD", "latchkey:{a}:waiting"}) == "1"; });
    EXPECT_TRUE(held->Release().ok());
  });
  auto lock = it.locks->Acquire("a");
  EXPECT_TRUE(lock.ok()) << lock.status();
  EXPECT_TRUE(lock->Extend(absl::Seconds(60)).ok());
  EXPECT_TRUE(lock->Release().ok());
  releases.join();
}

TEST(BlockingCallsTest, ScriptsThatTheServerForgotAreSentAgain) {
  Fixture it;
  EXPECT_EQ(it.server.Command({"SCRIPT", "FLUSH"}), "OK");
  auto lock = it.locks->Acquire("a");
  ASSERT_TRUE(lock.ok()) << lock.status();
  EXPECT_EQ(it.server.Command({"SCRIPT", "FLUSH"}), "OK");
  EXPECT_TRUE(lock->Release().ok());
  EXPECT_FALSE(it.IsHeld("a"));
}

TEST(BlockingCallsTest, GarbageIsAnUnknownOutcomeAndTheConnectionIsReplaced) {
  Fixture it;
  for (const std::string_view garbage :
       {"garbage\r\n", "*1000000000\r\n", ":1\r\n:2\r\n", "\xff\xfe", "+OK\r\n"}) {
    it.proxy.HoldRequests(true);
    std::thread says([&] {
      it.proxy.AwaitHeldRequests();
      it.proxy.SayToClients(garbage);
    });
    const auto lock = it.locks->TryAcquire("a");
    EXPECT_EQ(ReasonOf(lock.status()), Reason::kBackendUnknown) << garbage << lock.status();
    says.join();
    it.proxy.HoldRequests(false);
    Eventually([&] { return it.Works(); });
  }
}

TEST(BlockingCallsTest, WhatIsSaidUnaskedToAnIdleConnectionEndsIt) {
  Fixture it;
  it.proxy.SayToClients("-ERR max number of clients reached\r\n");
  it.proxy.CutAll();
  Eventually([&] { return it.Works(); });
}

// Several threads, and requests without one, take turns on one connection that breaks from time to
// time: every call comes back, and there are never two inside.
TEST(BlockingCallsTest, ThreadsAndCallbacksShareAConnectionThatBreaks) {
  constexpr int kKeys = 3;
  constexpr int kThreads = 3;
  constexpr int kLanes = 2;
  constexpr int kPairs = 120;
  const unsigned seed = std::random_device()();
  SCOPED_TRACE(absl::StrCat("seed ", seed));
  Fixture it;
  std::atomic<int> inside[kKeys] = {};
  std::atomic<int> granted = 0;
  const auto use = [&](int key) {
    EXPECT_EQ(++inside[key], 1);
    --inside[key];
    ++granted;
  };
  const auto name = [](int key) { return absl::StrCat("key ", key); };
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 random(seed + static_cast<unsigned>(t));
      for (int i = 0; i < kPairs; ++i) {
        const int key = static_cast<int>(random() % kKeys);
        auto lock = it.locks->Acquire(name(key));
        if (!lock.ok()) continue;  // The connection broke too often, or at a bad time.
        use(key);
        if (random() % 4 != 0) lock->Release().IgnoreError();
        if (t == 0 && random() % 10 == 0) it.proxy.CutAll();
      }
    });
  }
  Mailbox<bool> over;
  struct Lane {
    std::mt19937 random;
    int left = kPairs;
  };
  std::vector<Lane> lanes;
  for (unsigned i = 0; i < kLanes; ++i) lanes.push_back({.random = std::mt19937(~seed + i)});
  std::function<void(Lane&)> next = [&](Lane& lane) {
    if (lane.left-- == 0) return over.Put(true);
    const int key = static_cast<int>(lane.random() % kKeys);
    it.locks->AcquireAsync(name(key), {}, [&, key](absl::StatusOr<Lock> lock) {
      if (!lock.ok()) return next(lane);
      use(key);
      lock->ReleaseAsync([&](absl::Status) { next(lane); });
    });
  };
  for (Lane& lane : lanes) next(lane);
  for (std::thread& thread : threads) thread.join();
  for (int i = 0; i < kLanes; ++i) EXPECT_TRUE(over.Take());
  EXPECT_GT(granted, kPairs);
}

TEST(BlockingCallsTest, AThreadReadsAllServersOfAQuorum) {
  std::vector<std::unique_ptr<Fixture>> servers;
  std::vector<Backend> backends;
  for (int i = 0; i < 3; ++i) {
    servers.push_back(std::make_unique<Fixture>());
    backends.push_back(servers.back()->backend);
  }
  LockManager locks = *LockManager::Create(*NewQuorumBackend(backends));
  FencingToken last = 0;
  const auto pair = [&] {
    auto lock = locks.Acquire("a");
    ASSERT_TRUE(lock.ok()) << lock.status();
    EXPECT_GT(lock->fencing_token(), last);
    last = lock->fencing_token();
    EXPECT_TRUE(lock->Extend(absl::Seconds(60)).ok());
    EXPECT_TRUE(lock->Release().ok());
  };
  for (int i = 0; i < 20; ++i) pair();
  // A minority that answers late is not waited for, and is read all the same.
  servers[2]->proxy.HoldReplies(true);
  pair();
  servers[2]->proxy.HoldReplies(false);
  Eventually([&] { return !servers[2]->IsHeld("a"); });
  pair();
}

}  // namespace
}  // namespace latchkey

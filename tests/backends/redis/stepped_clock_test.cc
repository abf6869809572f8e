// A real server whose wall clock is stepped while it runs. Back, it must cost nobody more than the
// length of what is in the way; forward, it ends leases early; tokens grow whatever it does. The
// test's first argument is the path of tests/support:stepped_clock.so.
//
// The random steps of scripts_test go through the same with every kind of record.

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "latchkey/backends/quorum/quorum_backend.h"
#include "latchkey/backends/redis/redis_backend.h"
#include "latchkey/core/lock_manager.h"
#include "latchkey/core/protocol/locking_protocol.h"
#include "latchkey/tests/support/await.h"
#include "latchkey/tests/support/redis_server.h"
#include "latchkey/tests/support/server_clock.h"

namespace latchkey {
namespace {

std::string shim_path;

// Longer than a slow machine needs, and much shorter than the clock is stepped.
constexpr absl::Duration kPatience = absl::Seconds(40);

class SteppedClockTest : public testing::Test {
 protected:
  static std::shared_ptr<LockingProtocol> Connect(RedisBackendOptions options) {
    auto backend = ConnectRedisBackend(std::move(options));
    EXPECT_TRUE(backend.ok()) << backend.status();
    return backend.ok() ? *std::move(backend) : nullptr;
  }
  std::shared_ptr<LockingProtocol> Connect() const {
    return Connect({.url = server_.url(), .new_server = true});
  }
  static absl::StatusOr<ObtainReply> Obtain(LockingProtocol& backend,
                                            const ObtainRequest& request) {
    return Await<ObtainReply>([&](auto done) { backend.Obtain(request, std::move(done)); });
  }
  static absl::StatusOr<ExtendReply> Extend(LockingProtocol& backend,
                                            const ObtainRequest& request) {
    return Await<ExtendReply>([&](auto done) {
      backend.Extend({.resource = request.resource, .acquisition = request.acquisition},
                     request.lease, std::move(done));
    });
  }
  static ObtainRequest Request(absl::Duration lease) {
    return {.resource = "r", .acquisition = AcquisitionId::Next(), .lease = lease};
  }
  // How long a server keeps what it has of "r", in seconds.
  static int64_t KeptFor(const RedisServer& server) {
    int64_t milliseconds = 0;
    EXPECT_TRUE(absl::SimpleAtoi(server.Command({"PTTL", "latchkey:{r}"}), &milliseconds));
    return milliseconds / 1000;
  }
  int64_t KeptFor() const { return KeptFor(server_); }

  ServerClock clock_{shim_path};
  RedisServer server_{{.environment = clock_.environment()}};
};

TEST_F(SteppedClockTest, TheServersClockIsStepped) {
  const auto seconds = [&] {
    int64_t seconds = 0;
    const std::string time = server_.Command({"TIME"});
    EXPECT_TRUE(absl::SimpleAtoi(time.substr(0, time.find('\n')), &seconds)) << time;
    return seconds;
  };
  const int64_t before = seconds();
  clock_.Step(-absl::Hours(2));
  const int64_t after = seconds();
  EXPECT_GE(after, before - 7200);
  EXPECT_LE(after, before - 7200 + absl::ToInt64Seconds(kPatience));
}

TEST_F(SteppedClockTest, AKilledHoldersLeaseEndsWithinItsLengthWhenTheClockGoesBack) {
  const auto killed = Connect();
  LockManager locks = *LockManager::Create(Connect());
  // Whoever asks after the step,
  const ObtainRequest first = Request(absl::Seconds(2));
  const absl::StatusOr<ObtainReply> held = Obtain(*killed, first);
  ASSERT_TRUE(held.ok()) << held.status();
  clock_.Step(-absl::Hours(2));
  absl::StatusOr<Lock> next = locks.Acquire("r", {.acquire_timeout = kPatience});
  ASSERT_TRUE(next.ok()) << next.status();
  EXPECT_GT(next->fencing_token(), held->token);
  EXPECT_LE(KeptFor(), 61) << "a lease of 30 s and 31 s, as ever";
  ASSERT_TRUE(next->Release().ok());
  // and whoever waited before it.
  const ObtainRequest second = Request(absl::Seconds(2));
  ASSERT_TRUE(Obtain(*killed, second).ok());
  auto waited = std::make_shared<Mailbox<std::shared_ptr<absl::StatusOr<Lock>>>>();
  locks.AcquireAsync("r", {.acquire_timeout = kPatience}, [waited](absl::StatusOr<Lock> lock) {
    waited->Put(std::make_shared<absl::StatusOr<Lock>>(std::move(lock)));
  });
  clock_.Step(-absl::Hours(2));
  const auto lock = waited->Take();
  ASSERT_TRUE(lock.has_value());
  EXPECT_TRUE((*lock)->ok()) << (*lock)->status();
}

TEST_F(SteppedClockTest, ALiveHolderKeepsWhatItWasPromised) {
  const auto holder = Connect();
  const auto other = Connect();
  const ObtainRequest hold = Request(absl::Seconds(60));
  ASSERT_TRUE(Obtain(*holder, hold).ok());
  clock_.Step(-absl::Hours(2));
  // Nobody's own shorter lease cuts it.
  const absl::StatusOr<ObtainReply> denied = Obtain(*other, Request(absl::Milliseconds(100)));
  ASSERT_TRUE(denied.ok()) << denied.status();
  EXPECT_EQ(denied->outcome, ObtainOutcome::kDenied);
  EXPECT_GT(denied->remaining, absl::Seconds(60) - kPatience);
  EXPECT_LE(denied->remaining, absl::Seconds(60));
  const absl::StatusOr<ExtendReply> extended = Extend(*holder, hold);
  ASSERT_TRUE(extended.ok()) << extended.status();
  EXPECT_EQ(extended->outcome, ExtendOutcome::kExtended);
}

TEST_F(SteppedClockTest, AStepForwardEndsALeaseEarly) {
  const auto holder = Connect();
  const auto other = Connect();
  const ObtainRequest hold = Request(absl::Seconds(60));
  const absl::StatusOr<ObtainReply> held = Obtain(*holder, hold);
  ASSERT_TRUE(held.ok()) << held.status();
  clock_.Step(absl::Hours(1));
  const absl::StatusOr<ObtainReply> next = Obtain(*other, Request(absl::Seconds(60)));
  ASSERT_TRUE(next.ok()) << next.status();
  EXPECT_EQ(next->outcome, ObtainOutcome::kObtained);
  EXPECT_GT(next->token, held->token) << "what the holder may still do is refused";
  const absl::StatusOr<ExtendReply> extended = Extend(*holder, hold);
  ASSERT_TRUE(extended.ok()) << extended.status();
  EXPECT_EQ(extended->outcome, ExtendOutcome::kNotHeld);
}

TEST_F(SteppedClockTest, TokensGrowWhicheverWayTheClockGoesAndWithoutTheirRecord) {
  LockManager locks = *LockManager::Create(Connect());
  FencingToken last = 0;
  for (const absl::Duration step :
       {absl::ZeroDuration(), -absl::Hours(2), absl::Hours(2), -absl::Hours(48), absl::Hours(1),
        -absl::Seconds(30), absl::Hours(48)}) {
    clock_.Step(step);
    for (const bool forget : {false, true}) {
      const absl::StatusOr<Lock> lock = locks.Acquire("r");
      ASSERT_TRUE(lock.ok()) << lock.status();
      EXPECT_GT(lock->fencing_token(), last) << step;
      last = lock->fencing_token();
      if (forget) server_.Command({"DEL", "latchkey:{r}"});
    }
  }
}

TEST_F(SteppedClockTest, AFreeRecordIsKeptForNoLongerOnceItIsUsed) {
  LockManager locks = *LockManager::Create(Connect());
  ASSERT_TRUE(locks.Acquire("r").ok());
  clock_.Step(-absl::Hours(2));
  EXPECT_GE(KeptFor(), 7200) << "nobody has looked yet";
  for (int i = 0; i < 2; ++i) {
    absl::StatusOr<Lock> lock = locks.Acquire("r");
    ASSERT_TRUE(lock.ok()) << lock.status();
    ASSERT_TRUE(lock->Release().ok());
  }
  EXPECT_LE(KeptFor(), 101);
}

TEST_F(SteppedClockTest, AFastClockInAQuorumKeepsTheRecordsOfTheOthersAndTokensGrowWithoutIt) {
  RedisServer two;
  RedisServer three;
  clock_.Step(absl::Minutes(10));
  std::vector<std::shared_ptr<LockingProtocol>> servers;
  for (const std::string& url : {server_.url(), two.url(), three.url()}) {
    servers.push_back(Connect({.url = url, .new_server = true}));
  }
  auto quorum = NewQuorumBackend(std::move(servers));
  ASSERT_TRUE(quorum.ok()) << quorum.status();
  LockManager locks = *LockManager::Create(*std::move(quorum));
  three.Pause();  // So that a majority needs the first.
  absl::StatusOr<Lock> lock = locks.Acquire("r", {.acquire_timeout = kPatience});
  ASSERT_TRUE(lock.ok()) << lock.status();
  const FencingToken token = lock->fencing_token();
  ASSERT_TRUE(lock->Release().ok());
  // The second was told that token, and it alone remembers it when the first is gone.
  EXPECT_GE(KeptFor(two), 600 - absl::ToInt64Seconds(kPatience));
  EXPECT_LE(KeptFor(two), 600 + 101);
  three.Continue();
  server_.Kill();
  lock = locks.Acquire("r", {.acquire_timeout = kPatience});
  ASSERT_TRUE(lock.ok()) << lock.status();
  EXPECT_GT(lock->fencing_token(), token);
}

TEST_F(SteppedClockTest, ARecoveryIsNotAsLongAsTheStep) {
  // Nobody vouches for this server.
  const auto backend = Connect(
      {.url = server_.url(), .max_lease = absl::Seconds(60), .default_lease = absl::Seconds(30)});
  const auto refused = [&] {
    const absl::StatusOr<ObtainReply> reply = Obtain(*backend, Request(absl::Seconds(1)));
    return std::string(reply.status().message());
  };
  EXPECT_TRUE(absl::StrContains(refused(), "grants again in 1m")) << refused();
  clock_.Step(-absl::Hours(2));
  const std::string back = refused();
  EXPECT_TRUE(absl::StrContains(back, "grants again in 1m")) << back;
  clock_.Step(absl::Seconds(80));
  EXPECT_TRUE(Obtain(*backend, Request(absl::Seconds(1))).ok()) << "it has gone on";
  // And one that is over is over.
  clock_.Step(-absl::Hours(2));
  EXPECT_TRUE(Obtain(*backend, Request(absl::Seconds(1))).ok());
}

}  // namespace
}  // namespace latchkey

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  if (argc < 2) {
    fprintf(stderr, "usage: stepped_clock_test PATH_OF_STEPPED_CLOCK_SO\n");
    return 1;
  }
  latchkey::shim_path = argv[1];
  return RUN_ALL_TESTS();
}

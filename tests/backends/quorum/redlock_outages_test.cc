// A renewed lock on three real servers, each of which is away in turn for longer than the lease,
// twice round, and never two at once. A server that is stopped, or behind a link that is dead, is
// not gone: calls to it hang until their connection is given up, new connections are made whose
// greeting nobody answers, and when it is back it first reads all that was sent meanwhile.
//
// Nothing here depends on how fast the machine is, as long as a renewal arrives within the lease:
// the test goes on when the servers' records say so.

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "latchkey/backends/quorum/quorum_backend.h"
#include "latchkey/backends/redis/redis_backend.h"
#include "latchkey/core/lock_error.h"
#include "latchkey/core/lock_manager.h"
#include "latchkey/core/protocol/locking_protocol.h"
#include "latchkey/tests/support/await.h"
#include "latchkey/tests/support/redis_server.h"
#include "latchkey/tests/support/tcp_proxy.h"

namespace latchkey {
namespace {

constexpr absl::Duration kLease = absl::Seconds(1);

enum class Outage { kServerStops, kLinkDies };

struct Site {
  std::string url(Outage kind) const {
    return kind == Outage::kServerStops ? server.url()
                                        : absl::StrCat("redis://127.0.0.1:", link.port());
  }
  void SetAway(Outage kind, bool away) {
    if (kind == Outage::kLinkDies) {
      link.HoldRequests(away);
      link.HoldReplies(away);
    } else if (away) {
      server.Pause();
    } else {
      server.Continue();
    }
  }
  // Until when the holder has the lock here, in microseconds of the clock; 0: somebody else has it,
  // or nobody.
  int64_t HeldUntil() const {
    const std::string answer =
        server.Command({"EVAL",
                        "local v = redis.call('HMGET', KEYS[1], 's', 'h') "
                        "local owner = v[2] and string.sub(v[2], 38) "
                        "return owner == 'holder' and struct.unpack('<d', v[1], 17) or 0",
                        "1", "latchkey:{r}"});
    int64_t micros = 0;
    EXPECT_TRUE(absl::SimpleAtoi(answer, &micros)) << answer;
    return micros;
  }
  // Returns when the holder has it here until later than that.
  bool AwaitHeldBeyond(int64_t micros) const {
    const absl::Time start = absl::Now();
    while (HeldUntil() <= micros) {
      if (absl::Now() - start > Patience::Of()) {
        Patience::WasInVain();
        return false;
      }
      // So that looking again leaves the processor to others.
      server.Command({"WAIT", "1", "10"});
    }
    return true;
  }

  RedisServer server;
  TcpProxy link{server.socket_path()};
};

class RedlockOutagesTest : public ::testing::TestWithParam<Outage> {
 protected:
  LockManager Connect() {
    std::vector<std::shared_ptr<LockingProtocol>> clients;
    for (const Site& site : sites_) {
      clients.push_back(*ConnectRedisBackend({.url = site.url(GetParam()),
                                              .connect_timeout = kLease / 4,
                                              .command_timeout = kLease / 4,
                                              .max_reconnect_delay = kLease / 10,
                                              .new_server = true,
                                              .default_lease = kLease}));
    }
    return *LockManager::Create(*NewQuorumBackend(std::move(clients)));
  }

  Site sites_[3];
};

TEST_P(RedlockOutagesTest, ARenewedLockOutlivesServersThatAreAwayInTurn) {
  LockManager locks = Connect();
  LockManager rivals = Connect();
  absl::StatusOr<Lock> lock =
      locks.Acquire("r", {.owner = "holder", .lease = kLease, .auto_renew = true});
  ASSERT_TRUE(lock.ok()) << lock.status();
  const FencingToken token = lock->fencing_token();
  Mailbox<LockState> lost;
  lock->OnLost([&lost](LockState state) { lost.Put(state); });
  const auto rival_is_kept_out = [&rivals] {
    EXPECT_FALSE(rivals.TryAcquire("r", {.owner = "rival"}).ok()) << "two are inside";
  };
  for (const Site& site : sites_) ASSERT_TRUE(site.AwaitHeldBeyond(0));
  for (int turn = 0; turn < 6; ++turn) {
    Site& away = sites_[turn % 3];
    away.SetAway(GetParam(), true);
    const int64_t over = absl::ToUnixMicros(absl::Now() + kLease);
    rival_is_kept_out();
    // What it had of the hold is over when the others have been renewed after that.
    for (int other : {turn + 1, turn + 2}) {
      ASSERT_TRUE(sites_[other % 3].AwaitHeldBeyond(over + absl::ToInt64Microseconds(kLease)))
          << "in turn " << turn << ": " << lock->Release();
    }
    rival_is_kept_out();
    away.SetAway(GetParam(), false);
    // It has the hold again, and has confirmed the token before it is asked to renew it.
    ASSERT_TRUE(away.AwaitHeldBeyond(over)) << "after turn " << turn << ": " << lock->Release();
    ASSERT_TRUE(away.AwaitHeldBeyond(away.HeldUntil()))
        << "after turn " << turn << ": " << lock->Release();
    ASSERT_TRUE(lost.All().empty()) << "in turn " << turn << ": " << lock->Release();
  }
  EXPECT_EQ(lock->fencing_token(), token);
  EXPECT_TRUE(lock->Release().ok());
  const absl::StatusOr<Lock> next = rivals.Acquire("r", {.owner = "rival"});
  ASSERT_TRUE(next.ok()) << next.status();
  EXPECT_GT(next->fencing_token(), token);
}

INSTANTIATE_TEST_SUITE_P(Kinds, RedlockOutagesTest,
                         testing::Values(Outage::kServerStops, Outage::kLinkDies),
                         [](const auto& info) {
                           return info.param == Outage::kServerStops ? "Servers" : "Links";
                         });

}  // namespace
}  // namespace latchkey

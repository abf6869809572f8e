// Client processes contend for a few keys with random priorities and leases, over one Redis server
// and over a quorum of five, while this process kills, pauses and restarts clients and servers, and
// cuts, delays, half-closes and refuses connections. What they protect checks fencing tokens
// (fenced_resource.h). The course of the chaos follows from a seed, which is printed; how processes
// and the kernel share the machine does not, so that a seed repeats the schedule and not the run.
//
//   chaos_test PATH_OF_CHAOS_CLIENT [--seed=N] [--rounds=N] [--seconds=N] [--clients=N]
//
// or ./bazelw test //tests/backends/redis:chaos_test --test_arg=--seed=7 --test_arg=--rounds=50
//      --test_timeout=3600 --test_output=streamed
//
// Each round is of one of these kinds; which one, the seed says (seeds that 7 divides have the
// first kind, which takes half a minute to recover and is not among those of a usual run):
//
//   | Kind           | Servers | Their data            | They are          | Judged            |
//   | -------------- | ------- | --------------------- | ----------------- | ----------------- |
//   | majority lost  | 5       | in memory; all lose   | killed at once,   | exclusion, fence  |
//   |                |         | it, while it matters  | paused            |                   |
//   | restarts       | 1       | persists every write  | killed, paused    | exclusion, fence  |
//   | links          | 1       | in memory             | paused            | exclusion, fence  |
//   | force          | 1       | in memory             | paused            | fence             |
//   | quorum         | 5       | persists every write  | killed, paused    | exclusion, fence  |
//   | minority lost  | 5       | in memory; two of the | those two killed, | exclusion, fence  |
//   |                |         | five lose it, often   | all paused        |                   |
//   | data lost      | 1       | in memory, lost once, | killed once,      | exclusion, fence  |
//   |                |         | while it matters      | paused            |                   |
//
// Clients are killed and paused, and links fail, in all of them. Where servers keep their data in
// memory, a restarted one has lost it, and its marker with it, and no client vouches for it. Then
// the recovery rule holds: alone it grants nothing until max_lease + 20 s are over; in a quorum it
// counts again after max_lease, if a majority of the others says which tokens were given, and in
// any case after 20 s more. Exclusion and fence must hold all the while, whatever is lost;
// everybody gets on once that time is over.
//
// Exclusion is judged on what the clients claim (see fenced_resource.h): a claim is made of moments
// at which a lock said that it was held, and so holds whatever was paused, killed or cut around it.
// In the kind "force" some requests take over after a short grace, and only the fence protects.
//
// Afterwards everything is made whole again. Then each client has to get each key once more, within
// the hang guard, and to end by itself; and no server may have a holder left, or, in a quorum, none
// for longer than the longest lease.

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "latchkey/backends/redis/redis_backend.h"
#include "latchkey/tests/backends/redis/client_process.h"
#include "latchkey/tests/backends/redis/fenced_resource.h"
#include "latchkey/tests/backends/redis/stored_hold.h"
#include "latchkey/tests/support/redis_server.h"
#include "latchkey/tests/support/tcp_proxy.h"

namespace latchkey {
namespace {

constexpr absl::Duration kMaxLease = absl::Seconds(2);
constexpr int kKeys = 3;

struct Flags {
  std::string client = {};
  uint64_t seed = 1;
  int rounds = 6;
  int seconds = 9;
  int clients = 0;  // 0: two to six, by the seed.
} flags;

struct Kind {
  const char* name;
  int servers;
  bool persistent;
  int mortal;  // How many of the servers are killed and restarted.
  int deaths;  // How often, all in all; -1: without a limit.
  bool forced;
  bool at_once = false;  // All mortal ones are killed together, while somebody is inside.
  bool forgets = false;  // Records are deleted under their holders, which breaks every promise.
};

constexpr Kind kKinds[] = {
    {.name = "majority lost",
     .servers = 5,
     .persistent = false,
     .mortal = 5,
     .deaths = -1,
     .forced = false,
     .at_once = true},
    {.name = "restarts",
     .servers = 1,
     .persistent = true,
     .mortal = 1,
     .deaths = -1,
     .forced = false},
    {.name = "links", .servers = 1, .persistent = false, .mortal = 0, .deaths = 0, .forced = false},
    {.name = "force", .servers = 1, .persistent = false, .mortal = 0, .deaths = 0, .forced = true},
    {.name = "quorum",
     .servers = 5,
     .persistent = true,
     .mortal = 5,
     .deaths = -1,
     .forced = false},
    {.name = "minority lost",
     .servers = 5,
     .persistent = false,
     .mortal = 2,
     .deaths = -1,
     .forced = false},
    {.name = "data lost",
     .servers = 1,
     .persistent = false,
     .mortal = 1,
     .deaths = 1,
     .forced = false,
     .at_once = true},
};

// Not in the test's own folder: the path of a socket must be short.
std::string MakeFolder() {
  std::string folder = (std::filesystem::temp_directory_path() / "latchkey-chaos-XXXXXX").string();
  if (mkdtemp(folder.data()) == nullptr) abort();
  return folder;
}

class Round {
 public:
  Round(const Kind& kind, uint64_t seed)
      : kind_(kind),
        random_(seed),
        folder_(MakeFolder()),
        socket_(folder_ + "/resource"),
        resource_(socket_) {
    for (int i = 0; i < kind_.servers; ++i) {
      servers_.push_back(
          std::make_unique<Server>(RedisServerOptions{.persistent = kind_.persistent}));
      // The one time that somebody vouches for it.
      const auto vouch = ConnectRedisBackend({.url = servers_.back()->redis.url(),
                                              .new_server = true,
                                              .max_lease = kMaxLease,
                                              .default_lease = kMaxLease});
      EXPECT_TRUE(vouch.ok()) << vouch.status();
    }
    const int clients = flags.clients > 0 ? flags.clients : static_cast<int>(Pick(2, 6));
    for (int i = 0; i < clients; ++i) {
      auto client = std::make_unique<Client>();
      for (const auto& server : servers_) {
        client->links.push_back(std::make_unique<TcpProxy>(server->redis.socket_path()));
      }
      clients_.push_back(std::move(client));
      Spawn(*clients_.back());
    }
  }

  ~Round() {
    clients_.clear();
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }

  // The chaos itself: its own schedule, and no wait for anything.
  void Rage(absl::Duration duration) {
    const absl::Time end = absl::Now() + duration;
    for (absl::Time next = absl::Now(); next < end;) {
      while (!undo_.empty() && undo_.begin()->first <= next) UndoFirst();
      absl::SleepFor(next - absl::Now());
      Strike();
      next = absl::Now() + Ms(5, 250);
    }
    while (!undo_.empty()) UndoFirst();
  }

  // Everything is whole again: everybody gets every key, and nothing is left behind.
  void Recover() {
    for (auto& client : clients_) EXPECT_TRUE(client->process->Say("finish"));
    for (auto& client : clients_) {
      for (int key = 0; key < kKeys; ++key) {
        EXPECT_TRUE(client->process->Hear(absl::StrCat("final k", key)));
      }
      const auto done = client->process->Hear("done");
      EXPECT_TRUE(done);
      if (done) Count(*done);
      EXPECT_EQ(client->process->AwaitExit(), 0);
    }
    // What a client that was killed held on a minority runs out.
    const absl::Time until = absl::Now() + (kind_.servers == 1 ? absl::ZeroDuration() : kMaxLease);
    for (size_t i = 0; i < servers_.size(); ++i) {
      for (int key = 0; key < kKeys; ++key) {
        while (IsHeld(servers_[i]->redis, key)) {
          if (absl::Now() < until) continue;
          ADD_FAILURE() << "server " << i << " has a holder of k" << key << " left";
          break;
        }
      }
    }
  }

  std::vector<std::string> Violations() const { return resource_.Judge(!kind_.forced); }

  void Judge() const {
    for (const std::string& violation : Violations()) ADD_FAILURE() << violation;
    const FencedResource::Counts counts = resource_.counts();
    EXPECT_GE(counts.acquisitions, static_cast<int64_t>(clients_.size()) * kKeys);
    std::cout << "  " << clients_.size() << " clients: " << counts.acquisitions << " acquisitions, "
              << counts.writes << " more writes, " << counts.stale_claims
              << " refused after a look, " << counts.stale_careless << " refused without one\n  "
              << "blows:";
    for (const auto& [blow, count] : blows_) std::cout << " " << blow << "=" << count;
    std::cout << "\n  clients that lived to the end:";
    for (const auto& [what, count] : said_) std::cout << " " << what << "=" << count;
    std::cout << std::endl;
  }

 private:
  struct Server {
    explicit Server(RedisServerOptions options) : redis(std::move(options)) {}
    RedisServer redis;
    bool well = true;  // Neither dead nor paused.
  };
  struct Client {
    std::vector<std::unique_ptr<TcpProxy>> links = {};  // One to each server.
    std::unique_ptr<ClientProcess> process = nullptr;
    bool well = true;
  };

  int64_t Pick(int64_t least, int64_t most) {
    return std::uniform_int_distribution<int64_t>(least, most)(random_);
  }
  absl::Duration Ms(int64_t least, int64_t most) { return absl::Milliseconds(Pick(least, most)); }

  void Spawn(Client& client) {
    std::vector<std::string> arguments = {flags.client,
                                          absl::StrCat(random_()),
                                          absl::StrCat(kKeys),
                                          kind_.forced ? "force" : "plain",
                                          socket_,
                                          absl::StrCat(absl::ToInt64Milliseconds(kMaxLease))};
    for (const auto& link : client.links) {
      arguments.push_back(absl::StrCat("redis://127.0.0.1:", link->port()));
    }
    client.process = std::make_unique<ClientProcess>(std::move(arguments));
  }

  void UndoFirst() {
    absl::SleepFor(undo_.begin()->first - absl::Now());
    std::function<void()> undo = std::move(undo_.begin()->second);
    undo_.erase(undo_.begin());
    undo();
  }
  void After(absl::Duration delay, std::function<void()> undo) {
    undo_.emplace(absl::Now() + delay, std::move(undo));
  }

  // One blow at random. What is down already is left alone.
  void Strike() {
    Client& client =
        *clients_[static_cast<size_t>(Pick(0, static_cast<int64_t>(clients_.size()) - 1))];
    Server& server = *servers_[static_cast<size_t>(Pick(0, kind_.servers - 1))];
    TcpProxy& link = *client.links[static_cast<size_t>(Pick(0, kind_.servers - 1))];
    const int64_t blow = Pick(0, kind_.forgets ? 31 : 15);
    // All are drawn in every case, so that the schedule depends on the seed alone.
    const absl::Duration brief = Ms(1, 300);
    const absl::Duration longer = Ms(50, 2500);
    switch (blow) {
      case 0:
        if (!std::exchange(client.well, false)) return;
        Note("kill client");
        client.process->Kill();
        return After(brief, [this, &client] {
          Spawn(client);
          client.well = true;
        });
      case 1:
      case 2:
      case 3:
        if (!std::exchange(client.well, false)) return;
        Note("pause client");
        client.process->Pause();
        return After(blow == 1 ? brief : longer, [&client] {
          client.process->Continue();
          client.well = true;
        });
      case 4:
      case 5: {
        if (kind_.mortal == 0 || deaths_ == kind_.deaths) return;
        if (kind_.at_once) {
          // What is lost has to matter.
          if (resource_.idle() > absl::Milliseconds(10)) return;
          ++deaths_;
          Note("kill all servers");
          for (auto& each : servers_) {
            if (std::exchange(each->well, false)) Kill(*each, brief / 10);
          }
          return;
        }
        Server& mortal = *servers_[static_cast<size_t>(Pick(0, kind_.mortal - 1))];
        if (!std::exchange(mortal.well, false)) return;
        ++deaths_;
        Note("kill server");
        return Kill(mortal, blow == 4 ? longer / 2 : brief);
      }
      case 6:
      case 7:
        // One server alone would be away most of the time.
        if (kind_.servers == 1 && blow == 7) return;
        if (!std::exchange(server.well, false)) return;
        Note("pause server");
        server.redis.Pause();
        return After(blow == 6 ? longer / 2 : brief, [&server] {
          server.redis.Continue();
          server.well = true;
        });
      case 8:
      case 9:
        Note("cut link");
        return link.CutAll();
      case 10:
        Note("half-close link");
        return link.HalfClose();
      case 11:
        Note("refuse link");
        link.Refuse(true);
        link.CutAll();
        return After(longer / 2, [&link] { link.Refuse(false); });
      case 12:
      case 13:
        Note("delay replies");
        link.HoldReplies(true);
        return After(blow == 12 ? longer / 2 : brief, [&link] { link.HoldReplies(false); });
      case 14:
      case 15:
        Note("delay requests");
        link.HoldRequests(true);
        return After(blow == 14 ? longer / 2 : brief, [&link] { link.HoldRequests(false); });
      default:
        if (!server.well) return;
        Note("delete record");
        server.redis.Command({"DEL", absl::StrCat("latchkey:{k", blow % kKeys, "}")});
    }
  }

  void Kill(Server& server, absl::Duration until) {
    server.redis.Kill();
    After(until, [&server] {
      server.redis.Start();
      server.well = true;
    });
  }

  void Note(const std::string& blow) { ++blows_[blow]; }

  // Adds up a client's "done NAME=NUMBER ...".
  void Count(std::string_view done) {
    for (const std::string_view word : absl::StrSplit(done, ' ')) {
      const std::pair<std::string, std::string> parts = absl::StrSplit(word, '=');
      int64_t count = 0;
      if (absl::SimpleAtoi(parts.second, &count)) said_[parts.first] += count;
    }
  }

  static bool IsHeld(const RedisServer& server, int key) {
    const int64_t deadline = StoredDeadline(server, absl::StrCat("k", key));
    if (deadline == 0) return false;
    int64_t seconds = 0;
    int64_t micros = 0;
    const std::vector<std::string> now = absl::StrSplit(server.Command({"TIME"}), '\n');
    EXPECT_TRUE(now.size() == 2 && absl::SimpleAtoi(now[0], &seconds) &&
                absl::SimpleAtoi(now[1], &micros));
    return seconds * 1'000'000 + micros < deadline;
  }

  const Kind& kind_;
  std::mt19937_64 random_;
  const std::string folder_;
  const std::string socket_;
  FencedResource resource_;
  std::vector<std::unique_ptr<Server>> servers_;
  std::vector<std::unique_ptr<Client>> clients_;
  std::multimap<absl::Time, std::function<void()>> undo_;  // What ends when.
  int deaths_ = 0;
  std::map<std::string, int64_t> blows_;
  std::map<std::string, int64_t> said_;
};

TEST(ChaosTest, NoStaleWriteIsAcceptedAndNoTwoAreInsideAndEverybodyGetsOn) {
  for (int i = 0; i < flags.rounds && !HasFailure(); ++i) {
    const uint64_t seed = flags.seed + static_cast<uint64_t>(i);
    const Kind& kind = kKinds[seed % std::size(kKinds)];
    SCOPED_TRACE(absl::StrCat("--seed=", seed, " --rounds=1"));
    std::cout << "seed " << seed << ": " << kind.name << std::endl;
    const absl::Time start = absl::Now();
    Round round(kind, seed);
    round.Rage(absl::Seconds(flags.seconds));
    round.Recover();
    round.Judge();
    std::cout << "  "
              << absl::FormatDuration(absl::Trunc(absl::Now() - start, absl::Milliseconds(1)))
              << std::endl;
  }
}

// So that one can believe the test above.
TEST(ChaosTest, ARecordThatIsDeletedUnderItsHolderIsFoundOut) {
  constexpr Kind kForgetful = {.name = "forgetful",
                               .servers = 1,
                               .persistent = false,
                               .mortal = 0,
                               .deaths = 0,
                               .forced = false,
                               .forgets = true};
  std::vector<std::string> violations;
  for (uint64_t seed = flags.seed; seed < flags.seed + 10 && violations.empty(); ++seed) {
    Round round(kForgetful, seed);
    round.Rage(absl::Seconds(2));
    violations = round.Violations();
  }
  ASSERT_FALSE(violations.empty());
  std::cout << violations.size() << " found, such as: " << violations.front() << std::endl;
}

// ---- The judge ---------------------------------------------------------------------------------

TEST(FencedResourceTest, RefusesSmallerTokens) {
  FencedResource resource("");
  EXPECT_EQ(resource.Handle("enter k a 5 100 110"), "ok");
  EXPECT_EQ(resource.Handle("write k a 5 120"), "ok");
  EXPECT_EQ(resource.Handle("enter k b 6 130 140"), "ok");
  EXPECT_EQ(resource.Handle("write k a 5 0"), "stale");
  EXPECT_EQ(resource.Handle("enter other a 1 100 110"), "ok");
  EXPECT_TRUE(resource.Judge(true).empty());
}

TEST(FencedResourceTest, FindsTwoInside) {
  FencedResource resource("");
  resource.Handle("enter k a 5 100 110");
  resource.Handle("enter k b 6 115 116");
  resource.Handle("write k a 5 114");
  EXPECT_TRUE(resource.Judge(true).empty());
  EXPECT_EQ(resource.Handle("write k a 5 117"), "stale");
  EXPECT_EQ(resource.Judge(true).size(), 1u);
  EXPECT_TRUE(resource.Judge(false).empty());
}

TEST(FencedResourceTest, FindsOneInsideBehindAnother) {
  FencedResource resource("");
  resource.Handle("enter k a 5 100 200");
  resource.Handle("enter k b 6 210 300");
  resource.Handle("enter k c 7 220 230");
  resource.Handle("enter k d 8 290 310");
  EXPECT_EQ(resource.Judge(true).size(), 2u);
}

TEST(FencedResourceTest, FindsATokenGivenTwiceAndOneThatGoesBack) {
  FencedResource resource("");
  resource.Handle("enter k a 5 100 110");
  resource.Handle("enter k b 5 120 130");
  EXPECT_EQ(resource.Judge(false).size(), 1u);
  FencedResource other("");
  other.Handle("enter k a 5 100 110");
  other.Handle("enter k b 4 120 130");
  EXPECT_EQ(other.Judge(true).size(), 1u);
}

bool ReadNumber(std::string_view argument, std::string_view name, auto& number) {
  return absl::ConsumePrefix(&argument, name) && absl::SimpleAtoi(argument, &number);
}

}  // namespace
}  // namespace latchkey

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  using latchkey::flags;
  for (int i = 1; i < argc; ++i) {
    if (i == 1) {
      flags.client = argv[i];
    } else if (!latchkey::ReadNumber(argv[i], "--seed=", flags.seed) &&
               !latchkey::ReadNumber(argv[i], "--rounds=", flags.rounds) &&
               !latchkey::ReadNumber(argv[i], "--seconds=", flags.seconds) &&
               !latchkey::ReadNumber(argv[i], "--clients=", flags.clients)) {
      std::cerr << "what is " << argv[i] << "?\n";
      return 1;
    }
  }
  if (flags.client.empty()) {
    std::cerr << "usage: chaos_test PATH_OF_CHAOS_CLIENT [--seed=N] [--rounds=N] [--seconds=N] "
                 "[--clients=N]\n";
    return 1;
  }
  return RUN_ALL_TESTS();
}

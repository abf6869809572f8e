// What locks on Redis cost, beside the least that a program can do with hiredis (raw_redis.h), in
// the same run: one client, eight, a quorum of five servers, and the hand-over between two
// processes.
//
//   ./bazelw run --config=opt //benchmarks:redis_benchmark
//   ./bazelw run --config=opt //benchmarks:redis_benchmark -- --sections=one,handover --rounds=51
//
// It starts the servers itself, on loopback, and ends them. All contestants of a section take turns
// of a fraction of a second, so that whatever else the machine does meets all of them, and "x raw"
// is the median over the rounds of what one reached divided by what the first one reached in the
// same round. Needs redis-server on PATH.
#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/synchronization/blocking_counter.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "benchmarks/raw_redis.h"
#include "latchkey/backends/quorum/quorum_backend.h"
#include "latchkey/backends/redis/redis_backend.h"
#include "latchkey/backends/redis/wire.h"
#include "latchkey/core/lock_manager.h"
#include "latchkey/tests/support/redis_server.h"

ABSL_FLAG(std::vector<std::string>, sections,
          std::vector<std::string>({"one", "eight", "quorum", "handover"}),
          "which to run: one, eight, quorum, handover");
ABSL_FLAG(int, rounds, 21, "how many turns each contestant gets; at least 1");
ABSL_FLAG(int, turn_ms, 200, "how long one turn lasts, in milliseconds");
ABSL_FLAG(int, handovers, 1500, "how many hand-overs of each kind");
ABSL_FLAG(bool, quick, false, "a few short turns: shows that it works, and measures nothing");
ABSL_FLAG(int, waiter, 0, "for its own use: be the process that waits, on the server at this port");

namespace latchkey::benchmarks {
namespace {

constexpr int kClients = 8;
constexpr int kServers = 5;
constexpr char kKey[] = "orders/0000012345";

// ---- What is measured --------------------------------------------------------------------------

struct Contestant {
  std::string name;
  // Works until the given moment (NowNanos) and appends how long each pair took, in nanoseconds.
  std::function<void(int64_t until, std::vector<int64_t>& took)> run;
  std::string aim = {};

  // Results.
  std::vector<int64_t> took = {};
  std::vector<double> rates = {};  // Pairs in a second, round by round.
  double client_cpu = 0;           // Seconds.
  double server_cpu = 0;
};

double CpuSeconds(clockid_t clock) {
  timespec used;
  if (clock_gettime(clock, &used) != 0) return 0;
  return static_cast<double>(used.tv_sec) + static_cast<double>(used.tv_nsec) * 1e-9;
}

double CpuOf(const std::vector<std::unique_ptr<RedisServer>>& servers) {
  double sum = 0;
  for (const auto& server : servers) {
    clockid_t clock;
    if (clock_getcpuclockid(server->pid(), &clock) == 0) sum += CpuSeconds(clock);
  }
  return sum;
}

double Micros(int64_t nanos) { return static_cast<double>(nanos) * 1e-3; }

// `sorted` is not empty.
double Percentile(const std::vector<int64_t>& sorted, double percent) {
  const auto at = static_cast<size_t>(percent / 100 * static_cast<double>(sorted.size() - 1) + 0.5);
  return Micros(sorted[at]);
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

void Check(const absl::Status& status) {
  if (!status.ok()) Die(status.message());
}

// The first contestant is what the others are compared with.
void RunSection(std::string_view title, const std::vector<std::unique_ptr<RedisServer>>& servers,
                std::vector<Contestant> contestants) {
  const int rounds = std::max(1, absl::GetFlag(FLAGS_rounds));
  const int64_t turn = int64_t{std::max(1, absl::GetFlag(FLAGS_turn_ms))} * 1'000'000;
  // A turn that does not count: connections, scripts and memory are there after it.
  std::vector<int64_t> warm_up;
  for (Contestant& one : contestants) one.run(NowNanos() + turn / 4, warm_up);
  for (int round = 0; round < rounds; ++round) {
    for (size_t i = 0; i < contestants.size(); ++i) {
      // Each comes after each other one as often.
      Contestant& one = contestants[(i + static_cast<size_t>(round)) % contestants.size()];
      const size_t before = one.took.size();
      const double client = CpuSeconds(CLOCK_PROCESS_CPUTIME_ID);
      const double server = CpuOf(servers);
      const int64_t start = NowNanos();
      one.run(start + turn, one.took);
      const double seconds = static_cast<double>(NowNanos() - start) * 1e-9;
      one.rates.push_back(static_cast<double>(one.took.size() - before) / seconds);
      one.client_cpu += CpuSeconds(CLOCK_PROCESS_CPUTIME_ID) - client;
      one.server_cpu += CpuOf(servers) - server;
    }
  }

  absl::PrintF("\n%s\n", title);
  absl::PrintF("%-44s %9s %6s %9s %6s %8s %8s %8s %8s %11s %11s\n", "", "pairs/s", "x raw",
               "spread", "aim", "p50 us", "p90", "p99", "p99.9", "client cpu", "server cpu");
  for (Contestant& one : contestants) {
    std::vector<double> ratios;
    for (size_t i = 0; i < one.rates.size(); ++i) {
      ratios.push_back(one.rates[i] / contestants[0].rates[i]);
    }
    std::sort(ratios.begin(), ratios.end());
    std::sort(one.took.begin(), one.took.end());
    const double pairs = static_cast<double>(one.took.size());
    absl::PrintF("%-44s %9.0f %6.2f %4.2f-%4.2f %6s %8.0f %8.0f %8.0f %8.0f %11.1f %11.1f\n",
                 one.name, Median(one.rates), Median(ratios), ratios[ratios.size() / 4],
                 ratios[ratios.size() * 3 / 4], one.aim, Percentile(one.took, 50),
                 Percentile(one.took, 90), Percentile(one.took, 99), Percentile(one.took, 99.9),
                 one.client_cpu * 1e6 / pairs, one.server_cpu * 1e6 / pairs);
  }
  fflush(stdout);
}

// ---- Clients -----------------------------------------------------------------------------------

std::unique_ptr<RedisServer> StartServer() {
  return std::make_unique<RedisServer>(RedisServerOptions{.tcp = true});
}

std::shared_ptr<LockingProtocol> Backend(int port) {
  auto backend =
      ConnectRedisBackend({.url = absl::StrCat("redis://127.0.0.1:", port), .new_server = true});
  Check(backend.status());
  return *std::move(backend);
}

LockManager Manager(std::shared_ptr<LockingProtocol> backend) {
  auto locks = LockManager::Create(std::move(backend));
  Check(locks.status());
  return *std::move(locks);
}

std::string KeyOf(int client) { return absl::StrCat("orders/000001234", client); }

// One blocking client after another pair; `pair` acquires and releases.
template <typename Pair>
void Repeat(int64_t until, std::vector<int64_t>& took, Pair pair) {
  for (int64_t before = NowNanos(); before < until;) {
    pair();
    const int64_t now = NowNanos();
    took.push_back(now - before);
    before = now;
  }
}

void AcquireAndRelease(LockManager& locks, std::string_view key) {
  absl::StatusOr<Lock> lock = locks.Acquire(key);
  Check(lock.status());
  Check(lock->Release());
}

// The same on several threads at once; `pair(thread)`.
template <typename Pair>
void RepeatOnThreads(int64_t until, std::vector<int64_t>& took, Pair pair) {
  std::vector<std::vector<int64_t>> each(kClients);
  std::vector<std::thread> threads;
  for (int i = 0; i < kClients; ++i) {
    threads.emplace_back([&, i] { Repeat(until, each[static_cast<size_t>(i)], [&] { pair(i); }); });
  }
  for (std::thread& thread : threads) thread.join();
  for (const auto& one : each) took.insert(took.end(), one.begin(), one.end());
}

// Several locks in flight without a thread for each: acquire, then release, then again.
class Lanes {
 public:
  Lanes(LockManager& locks, int64_t until) : locks_(locks), until_(until) {}

  void Run(std::vector<int64_t>& took) {
    for (int i = 0; i < kClients; ++i) lanes_.push_back({.key = KeyOf(i)});
    for (Lane& lane : lanes_) Begin(lane);
    running_.Wait();
    for (const Lane& lane : lanes_) took.insert(took.end(), lane.took.begin(), lane.took.end());
  }

 private:
  struct Lane {
    std::string key;
    int64_t begun = 0;
    std::vector<int64_t> took = {};
  };

  void Begin(Lane& lane) {
    lane.begun = NowNanos();
    locks_.AcquireAsync(lane.key, {}, [this, &lane](absl::StatusOr<Lock> lock) {
      Check(lock.status());
      lock->ReleaseAsync([this, &lane](absl::Status released) {
        Check(released);
        const int64_t now = NowNanos();
        lane.took.push_back(now - lane.begun);
        if (now < until_) {
          Begin(lane);
        } else {
          running_.DecrementCount();
        }
      });
    });
  }

  LockManager& locks_;
  const int64_t until_;
  std::vector<Lane> lanes_;
  absl::BlockingCounter running_{kClients};
};

// ---- Sections ----------------------------------------------------------------------------------

void OneClient() {
  std::vector<std::unique_ptr<RedisServer>> servers;
  servers.push_back(StartServer());
  const int port = servers[0]->port();
  RawClient raw(port);
  RawShared shared(port);
  LockManager locks = Manager(Backend(port));
  const std::string key = kKey;
  std::vector<Contestant> all;
  all.push_back(
      {.name = "raw hiredis, blocking", .run = [&](int64_t until, std::vector<int64_t>& took) {
         Repeat(until, took, [&] { raw.Pair("raw:orders/0000012345"); });
       }});
  all.push_back({.name = "raw hiredis on an I/O thread",
                 .run = [&](int64_t until, std::vector<int64_t>& took) {
                   Repeat(until, took, [&] { shared.Pair("shared:orders/0000012345", "token"); });
                 }});
  all.push_back({.name = "Latchkey, Acquire and Release",
                 .run =
                     [&](int64_t until, std::vector<int64_t>& took) {
                       Repeat(until, took, [&] { AcquireAndRelease(locks, key); });
                     },
                 .aim = ">=0.90"});
  all.push_back({.name = "Latchkey, Acquire and ~Lock (does not wait)",
                 .run = [&](int64_t until, std::vector<int64_t>& took) {
                   Repeat(until, took, [&] { Check(locks.Acquire(key).status()); });
                 }});
  RunSection("One client that blocks, one server", servers, std::move(all));
}

void EightClients() {
  std::vector<std::unique_ptr<RedisServer>> servers;
  servers.push_back(StartServer());
  const int port = servers[0]->port();
  RawPipeline pipeline(port);
  RawShared shared(port);
  LockManager locks = Manager(Backend(port));
  std::vector<std::string> keys;
  for (int i = 0; i < kClients; ++i) keys.push_back(absl::StrCat("raw:", KeyOf(i)));
  std::vector<Contestant> all;
  all.push_back(
      {.name = "raw hiredis, pipelined, no threads",
       .run = [&](int64_t until, std::vector<int64_t>& took) { pipeline.Run(keys, until, took); }});
  all.push_back({.name = "raw hiredis on an I/O thread, 8 threads",
                 .run = [&](int64_t until, std::vector<int64_t>& took) {
                   RepeatOnThreads(until, took, [&](int i) {
                     shared.Pair(absl::StrCat("shared:", i), absl::StrCat("token ", i));
                   });
                 }});
  all.push_back(
      {.name = "Latchkey, callbacks, no threads",
       .run = [&](int64_t until, std::vector<int64_t>& took) { Lanes(locks, until).Run(took); },
       .aim = ">=0.90"});
  all.push_back({.name = "Latchkey, 8 threads that block",
                 .run = [&](int64_t until, std::vector<int64_t>& took) {
                   RepeatOnThreads(until, took, [&](int i) { AcquireAndRelease(locks, KeyOf(i)); });
                 }});
  RunSection("Eight clients that share one connection, one server", servers, std::move(all));
}

void QuorumOfFive() {
  std::vector<std::unique_ptr<RedisServer>> servers;
  std::vector<int> ports;
  std::vector<std::shared_ptr<LockingProtocol>> backends;
  for (int i = 0; i < kServers; ++i) {
    servers.push_back(StartServer());
    ports.push_back(servers.back()->port());
    backends.push_back(Backend(ports.back()));
  }
  RawMajority raw(ports);
  auto quorum = NewQuorumBackend(std::move(backends));
  Check(quorum.status());
  LockManager locks = Manager(*std::move(quorum));
  const std::string key = kKey;
  std::vector<Contestant> all;
  all.push_back({.name = "raw hiredis, first majority",
                 .run = [&](int64_t until, std::vector<int64_t>& took) {
                   Repeat(until, took, [&] { raw.Pair("raw:orders/0000012345"); });
                 }});
  all.push_back({.name = "Latchkey, Acquire and Release",
                 .run =
                     [&](int64_t until, std::vector<int64_t>& took) {
                       Repeat(until, took, [&] { AcquireAndRelease(locks, key); });
                     },
                 .aim = ">=0.90"});
  RunSection("One client that blocks, a quorum of five servers", servers, std::move(all));
}

// ---- The hand-over -----------------------------------------------------------------------------

constexpr char kChannel[] = "benchmark";
constexpr char kRawKey[] = "raw:handover";

// What the waiting process does: a command is a byte on standard input, its answer the time at
// which it got what it waited for.
int RunWaiter(int port) {
  RawClient subscriber(port);
  subscriber.Subscribe(kChannel);
  RawClient raw(port);
  LockManager locks = Manager(Backend(port));
  for (char command; read(STDIN_FILENO, &command, 1) == 1;) {
    int64_t got = 0;
    switch (command) {
      case '?':  // Is it ready?
        break;
      case 'p':
        subscriber.AwaitMessage();
        got = NowNanos();
        break;
      case 't':
        subscriber.AwaitMessage();
        if (!raw.TryAcquire(kRawKey, "waiter")) Die("a raw lock is not free");
        got = NowNanos();
        raw.Release(kRawKey, "waiter");
        break;
      case 'l': {
        absl::StatusOr<Lock> lock = locks.Acquire(kKey);
        got = NowNanos();
        Check(lock.status());
        Check(lock->Release());
        break;
      }
      default:
        Die("the waiting process does not know this command");
    }
    if (write(STDOUT_FILENO, &got, sizeof got) != sizeof got) return EXIT_FAILURE;
  }
  return EXIT_SUCCESS;
}

// The process that waits: this program once more.
class Waiter {
 public:
  explicit Waiter(int port) {
    int commands[2];
    int answers[2];
    if (pipe2(commands, O_CLOEXEC) != 0 || pipe2(answers, O_CLOEXEC) != 0) Die("no pipe");
    const std::string flag = absl::StrCat("--waiter=", port);
    const pid_t parent = getpid();
    pid_ = fork();
    if (pid_ < 0) Die("cannot fork");
    if (pid_ == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      if (getppid() != parent) _exit(EXIT_FAILURE);
      dup2(commands[0], STDIN_FILENO);
      dup2(answers[1], STDOUT_FILENO);
      execl("/proc/self/exe", "redis_benchmark", flag.c_str(), nullptr);
      _exit(EXIT_FAILURE);
    }
    close(commands[0]);
    close(answers[1]);
    commands_ = commands[1];
    answers_ = answers[0];
    Tell('?');
    Answer();
  }

  ~Waiter() {
    close(commands_);
    waitpid(pid_, nullptr, 0);
    close(answers_);
  }

  void Tell(char command) {
    if (write(commands_, &command, 1) != 1) Die("the waiting process has ended");
  }

  // When it got what it waited for (NowNanos).
  int64_t Answer() {
    int64_t got = 0;
    if (read(answers_, &got, sizeof got) != sizeof got) Die("the waiting process has ended");
    return got;
  }

 private:
  pid_t pid_;
  int commands_;
  int answers_;
};

void HandOver() {
  const std::unique_ptr<RedisServer> server = StartServer();
  const int port = server->port();
  RawClient raw(port);
  LockManager locks = Manager(Backend(port));
  Waiter waiter(port);
  const std::string waiting_list = redis::WaitingListKey("latchkey:", kKey);
  // Asleep, as it would be after waiting for long.
  const auto let_it_sleep = [] { absl::SleepFor(absl::Microseconds(500)); };

  struct Kind {
    std::string name;
    std::string aim = {};
    std::vector<int64_t> took = {};
  };
  std::vector<Kind> kinds = {
      {.name = "raw publish, received"},
      {.name = "raw release and publish, SET NX answered"},
      {.name = "Latchkey, Release to the return of Acquire", .aim = "<=1.30"},
  };
  for (int i = 0, handovers = std::max(1, absl::GetFlag(FLAGS_handovers)); i < handovers; ++i) {
    {
      waiter.Tell('p');
      let_it_sleep();
      const int64_t start = NowNanos();
      raw.Publish(kChannel);
      kinds[0].took.push_back(waiter.Answer() - start);
    }
    {
      if (!raw.TryAcquire(kRawKey, "holder")) Die("a raw lock is not free");
      waiter.Tell('t');
      let_it_sleep();
      const int64_t start = NowNanos();
      raw.Release(kRawKey, "holder");
      raw.Publish(kChannel);
      kinds[1].took.push_back(waiter.Answer() - start);
    }
    {
      absl::StatusOr<Lock> lock = locks.Acquire(kKey);
      Check(lock.status());
      waiter.Tell('l');
      while (server->Command({"ZCARD", waiting_list}) != "1") std::this_thread::yield();
      let_it_sleep();
      const int64_t start = NowNanos();
      Check(lock->Release());
      kinds[2].took.push_back(waiter.Answer() - start);
    }
  }

  absl::PrintF("\nHand-over from one process to another, one server\n");
  absl::PrintF("%-44s %9s %6s %6s %8s %8s\n", "", "p50 us", "x raw", "aim", "p90", "p99");
  double raw_p50 = 0;
  for (Kind& kind : kinds) {
    std::sort(kind.took.begin(), kind.took.end());
    const double p50 = Percentile(kind.took, 50);
    if (raw_p50 == 0) raw_p50 = p50;
    absl::PrintF("%-44s %9.0f %6.2f %6s %8.0f %8.0f\n", kind.name, p50, p50 / raw_p50, kind.aim,
                 Percentile(kind.took, 90), Percentile(kind.took, 99));
  }
  fflush(stdout);
}

int Main() {
  if (const int port = absl::GetFlag(FLAGS_waiter); port != 0) return RunWaiter(port);
  if (absl::GetFlag(FLAGS_quick)) {
    absl::SetFlag(&FLAGS_rounds, 2);
    absl::SetFlag(&FLAGS_turn_ms, 20);
    absl::SetFlag(&FLAGS_handovers, 10);
  }
  absl::PrintF(
      "A pair is an acquire and a release, both answered. cpu: processor time for a pair, us.\n");
  for (const std::string& section : absl::GetFlag(FLAGS_sections)) {
    if (section == "one") {
      OneClient();
    } else if (section == "eight") {
      EightClients();
    } else if (section == "quorum") {
      QuorumOfFive();
    } else if (section == "handover") {
      HandOver();
    } else {
      Die(absl::StrCat("--sections: there is no '", section, "'"));
    }
  }
  return EXIT_SUCCESS;
}

}  // namespace
}  // namespace latchkey::benchmarks

int main(int argc, char** argv) {
  absl::SetProgramUsageMessage("what locks on Redis cost, beside raw hiredis");
  absl::ParseCommandLine(argc, argv);
  return latchkey::benchmarks::Main();
}

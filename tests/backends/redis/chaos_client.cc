// One client of the chaos test: asks for locks without end, with random priorities and leases, and
// writes to a fenced resource while it holds one.
//
//   chaos_client SEED KEYS MODE RESOURCE_SOCKET MAX_LEASE_MS URL...
//
// Several URLs are the servers of a quorum. With the mode "force", some requests take over by force
// after a short grace; the other mode is "plain". It goes on
// until it reads "finish": then it takes each key once more, says `final KEY` for each, `done` with
// what it has counted, and returns from main. On the end of its input it ends at once.

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <iostream>
#include <map>
#include <random>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "latchkey/backends/quorum/quorum_backend.h"
#include "latchkey/backends/redis/redis_backend.h"
#include "latchkey/core/lock_error.h"
#include "latchkey/core/lock_manager.h"

namespace latchkey {
namespace {

// The clock of claims: the one that the library uses, shared by all processes.
int64_t NowNs() {
  timespec now;
  clock_gettime(CLOCK_BOOTTIME, &now);
  return int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

[[noreturn]] void Fail(std::string_view what) {
  std::cerr << "chaos_client: " << what << "\n";
  _exit(1);
}

// The resource; see fenced_resource.h.
class Resource {
 public:
  explicit Resource(const std::string& path) : fd_(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    strncpy(address.sun_path, path.c_str(), sizeof address.sun_path - 1);
    if (connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
      Fail(absl::StrCat("no resource: ", strerror(errno)));
    }
  }
  ~Resource() { close(fd_); }

  bool Write(std::string line) {
    line += '\n';
    if (send(fd_, line.data(), line.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(line.size())) {
      Fail("the resource is gone");
    }
    std::string answer;
    for (char c = 0; c != '\n';) {
      const ssize_t size = recv(fd_, &c, 1, 0);
      if (size < 0 && errno == EINTR) continue;
      if (size <= 0) Fail("the resource is gone");
      answer += c;
    }
    return answer == "ok\n";
  }

 private:
  const int fd_;
};

struct Settings {
  uint64_t seed = 0;
  int keys = 0;
  bool forced = false;
  std::string resource = {};
  absl::Duration max_lease = {};
  std::vector<std::string> urls = {};
};

absl::StatusOr<LockManager> Connect(const Settings& settings) {
  std::vector<std::shared_ptr<LockingProtocol>> servers;
  for (const std::string& url : settings.urls) {
    auto server = ConnectRedisBackend({.url = url,
                                       .connect_timeout = absl::Milliseconds(300),
                                       .command_timeout = absl::Milliseconds(300),
                                       .reconnect_delay = absl::Milliseconds(5),
                                       .max_reconnect_delay = absl::Milliseconds(100),
                                       .wait_for_connection = false,
                                       .max_lease = settings.max_lease,
                                       .default_lease = settings.max_lease / 2,
                                       .waiter_lease = absl::Seconds(1)});
    if (!server.ok()) return server.status();
    servers.push_back(*std::move(server));
  }
  if (servers.size() == 1) return LockManager::Create(std::move(servers[0]));
  auto quorum = NewQuorumBackend(std::move(servers));
  if (!quorum.ok()) return quorum.status();
  return LockManager::Create(*std::move(quorum));
}

class ChaosClient {
 public:
  ChaosClient(const Settings& settings, LockManager& locks)
      : settings_(settings), locks_(locks), resource_(settings.resource), random_(settings.seed) {}

  void Work(const std::atomic<bool>& stop) {
    while (!stop) {
      AcquireOptions options{
          .priority = Pick(-2, 3),
          // Often too short for what follows, and with time to spare.
          .lease = settings_.max_lease * Pick(1, 16) / 16,
          .auto_renew = Pick(0, 1) == 1,
          .acquire_timeout = absl::Milliseconds(Pick(0, Pick(0, 1) == 0 ? 100 : 1500)),
      };
      if (settings_.forced && Pick(0, 2) == 0) {
        options.preemption_grace = absl::Milliseconds(Pick(0, 100));
      }
      const std::string key = absl::StrCat("k", Pick(0, settings_.keys - 1));
      absl::StatusOr<Lock> lock =
          Pick(0, 9) == 0 ? locks_.TryAcquire(key, options) : locks_.Acquire(key, options);
      const int64_t from = NowNs();
      if (!lock.ok()) {
        ++counts_[std::string(ReasonName(ReasonOf(lock.status())))];
        // Not in a tight loop where nobody answers.
        absl::SleepFor(absl::Milliseconds(Pick(1, 20)));
        continue;
      }
      ++counts_["Acquired"];
      Use(key, *lock, from);
      if (Pick(0, 1) == 1) {
        const absl::Status released = lock->Release();
        if (!released.ok()) ++counts_[absl::StrCat("Release", ReasonName(ReasonOf(released)))];
      }
    }
  }

  // Takes every key once; false if that is not to be had.
  bool TakeAll() {
    for (int i = 0; i < settings_.keys; ++i) {
      const std::string key = absl::StrCat("k", i);
      const absl::Time until = absl::Now() + absl::Seconds(40);
      for (;;) {
        absl::StatusOr<Lock> lock = locks_.Acquire(key, {.acquire_timeout = until - absl::Now()});
        if (lock.ok()) {
          Use(key, *lock, NowNs());
          break;
        }
        // The first answers after a fault may still be errors.
        const Reason reason = ReasonOf(lock.status());
        if ((reason != Reason::kBackendUnavailable && reason != Reason::kBackendUnknown) ||
            absl::Now() > until) {
          std::cerr << "chaos_client: " << lock.status() << "\n";
          return false;
        }
        absl::SleepFor(absl::Milliseconds(20));
      }
      std::cout << "final " << key << std::endl;
    }
    return true;
  }

  const std::map<std::string, int64_t>& counts() const { return counts_; }

 private:
  int64_t Pick(int64_t least, int64_t most) {
    return std::uniform_int_distribution<int64_t>(least, most)(random_);
  }

  void Use(const std::string& key, Lock& lock, int64_t from) {
    const std::string who =
        absl::StrCat(key, " ", lock.acquisition().ToString(), " ", lock.fencing_token(), " ");
    const std::stop_token leave = lock.stop_token();
    const int64_t writes = Pick(0, 3) == 0 ? Pick(6, 20) : Pick(1, 6);
    bool entered = false;
    for (int64_t i = 0; i < writes; ++i) {
      const int64_t until = NowNs();
      if (!lock.IsHeld()) {
        // As somebody who looked before the pause, and not after it.
        if (entered) Write(absl::StrCat("write ", who, "0"));
        return;
      }
      const bool accepted = Write(entered ? absl::StrCat("write ", who, until)
                                          : absl::StrCat("enter ", who, from, " ", until));
      entered = true;
      if (!accepted) return;
      // Most yield when asked, some finish what they do first.
      if (leave.stop_requested() && Pick(0, 3) != 0) return;
      absl::SleepFor(absl::Milliseconds(Pick(0, 3) == 0 ? Pick(0, 250) : Pick(0, 10)));
    }
  }

  bool Write(std::string line) {
    const bool accepted = resource_.Write(std::move(line));
    if (!accepted) ++counts_["Refused"];
    return accepted;
  }

  const Settings& settings_;
  LockManager& locks_;
  Resource resource_;
  std::mt19937_64 random_;
  std::map<std::string, int64_t> counts_;
};

int Main(const Settings& settings) {
  absl::StatusOr<LockManager> locks = Connect(settings);
  if (!locks.ok()) Fail(locks.status().ToString());
  ChaosClient client(settings, *locks);
  std::atomic<bool> stop = false;
  std::thread worker([&] { client.Work(stop); });
  std::string line;
  const bool finish = std::getline(std::cin, line) && line == "finish";
  stop = true;
  worker.join();
  if (!finish || !client.TakeAll()) return 1;
  std::cout << "done";
  for (const auto& [what, count] : client.counts()) std::cout << " " << what << "=" << count;
  std::cout << std::endl;
  return 0;
}

}  // namespace
}  // namespace latchkey

int main(int argc, char** argv) {
  latchkey::Settings settings;
  int64_t max_lease_ms = 0;
  if (argc < 7 || !absl::SimpleAtoi(argv[1], &settings.seed) ||
      !absl::SimpleAtoi(argv[2], &settings.keys) || !absl::SimpleAtoi(argv[5], &max_lease_ms)) {
    std::cerr << "usage: chaos_client SEED KEYS MODE RESOURCE_SOCKET MAX_LEASE_MS URL...\n";
    return 1;
  }
  settings.forced = std::string_view(argv[3]) == "force";
  settings.resource = argv[4];
  settings.max_lease = absl::Milliseconds(max_lease_ms);
  settings.urls.assign(argv + 6, argv + argc);
  return latchkey::Main(settings);
}

// One process with a lock manager on Redis, for tests of what happens between processes. It does
// what it is told on standard input, one command a line, and says what happens:
//
//   lock_client URL [OPTION=VALUE...]      options: see OptionsFrom
//
//   acquire NAME [OPTION=VALUE...]         -> acquired NAME TOKEN | failed NAME REASON
//                                          options: see TermsFrom; returns at once
//   release NAME                           -> released NAME STATUS
//   drop NAME                              ~Lock -> dropped NAME
//   state NAME                             -> state NAME STATE
//   write NAME                             -> write NAME TOKEN: without looking whether it holds
//
// On its own it says `yield NAME` when asked to yield (and, with yields=1, releases) and
// `lost NAME STATE`. It ends by returning from main when its input does; what it holds goes with
// the destructors.

#include <stdio.h>

#include <iostream>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "latchkey/backends/redis/redis_backend.h"
#include "latchkey/core/lock_error.h"
#include "latchkey/core/lock_manager.h"

namespace latchkey {
namespace {

using Words = std::vector<std::string>;

void Print(std::string_view line) {
  static absl::Mutex mutex(absl::kConstInit);
  absl::MutexLock lock(&mutex);
  fprintf(stdout, "%.*s\n", static_cast<int>(line.size()), line.data());
  fflush(stdout);
}

// The number in `NAME=number`, if there is one.
std::optional<int64_t> Find(const Words& words, std::string_view name) {
  for (const std::string& word : words) {
    const std::pair<std::string, std::string> parts = absl::StrSplit(word, absl::MaxSplits('=', 1));
    int64_t number = 0;
    if (parts.first == name && absl::SimpleAtoi(parts.second, &number)) return number;
  }
  return std::nullopt;
}

void Set(const Words& words, std::string_view name, absl::Duration& duration) {
  if (const auto ms = Find(words, name)) duration = absl::Milliseconds(*ms);
}

RedisBackendOptions OptionsFrom(const Words& words) {
  RedisBackendOptions options{.url = words[0], .new_server = true};
  Set(words, "shutdown_timeout_ms", options.shutdown_timeout);
  Set(words, "command_timeout_ms", options.command_timeout);
  Set(words, "max_lease_ms", options.max_lease);
  Set(words, "default_lease_ms", options.default_lease);
  return options;
}

AcquireOptions TermsFrom(const Words& words) {
  AcquireOptions terms;
  if (const auto priority = Find(words, "priority")) terms.priority = *priority;
  if (const auto ms = Find(words, "lease_ms")) terms.lease = absl::Milliseconds(*ms);
  if (const auto ms = Find(words, "grace_ms")) terms.preemption_grace = absl::Milliseconds(*ms);
  if (const auto renew = Find(words, "renew")) terms.auto_renew = *renew != 0;
  Set(words, "timeout_ms", terms.acquire_timeout);
  return terms;
}

// The locks by name. A callback of one may come while another is acquired.
class Locks {
 public:
  ~Locks() {
    std::map<std::string, std::shared_ptr<Lock>> locks;
    absl::MutexLock guard(&mutex_);
    locks.swap(locks_);
  }
  void Put(const std::string& name, Lock lock) {
    absl::MutexLock guard(&mutex_);
    locks_[name] = std::make_shared<Lock>(std::move(lock));
  }
  std::shared_ptr<Lock> Get(const std::string& name) {
    absl::MutexLock guard(&mutex_);
    const auto found = locks_.find(name);
    return found == locks_.end() ? std::make_shared<Lock>() : found->second;
  }
  void Drop(const std::string& name) {
    std::shared_ptr<Lock> lock = Get(name);
    {
      absl::MutexLock guard(&mutex_);
      locks_.erase(name);
    }
  }

 private:
  absl::Mutex mutex_;
  std::map<std::string, std::shared_ptr<Lock>> locks_ ABSL_GUARDED_BY(mutex_);
};

void Obtained(Locks& locks, const std::string& name, bool yields, absl::StatusOr<Lock> lock) {
  if (!lock.ok()) {
    Print(absl::StrCat("failed ", name, " ", ReasonName(ReasonOf(lock.status())), " ",
                       lock.status().message()));
    return;
  }
  const FencingToken token = lock->fencing_token();
  locks.Put(name, *std::move(lock));
  const std::shared_ptr<Lock> held = locks.Get(name);
  held->OnLost(
      [name](LockState state) { Print(absl::StrCat("lost ", name, " ", LockStateName(state))); });
  // Before it may be asked for anything else.
  Print(absl::StrCat("acquired ", name, " ", token));
  held->OnYieldRequested([&locks, name, yields] {
    Print(absl::StrCat("yield ", name));
    if (yields) locks.Get(name)->ReleaseAsync();
  });
}

int Main(const Words& arguments) {
  auto backend = ConnectRedisBackend(OptionsFrom(arguments));
  if (!backend.ok()) {
    std::cerr << backend.status() << "\n";
    return 1;
  }
  Locks locks;  // Outlives the manager, whose callbacks look here.
  absl::StatusOr<LockManager> manager = LockManager::Create(*std::move(backend));
  if (!manager.ok()) return 1;
  Print("ready");
  for (std::string line; std::getline(std::cin, line);) {
    const Words words = absl::StrSplit(line, ' ');
    const std::string& command = words[0];
    const std::string name = words.size() > 1 ? words[1] : "";
    if (command == "acquire") {
      const bool yields = Find(words, "yields").value_or(0) != 0;
      manager->AcquireAsync(name, TermsFrom(words),
                            [&locks, name, yields](absl::StatusOr<Lock> lock) {
                              Obtained(locks, name, yields, std::move(lock));
                            });
    } else if (command == "release") {
      const absl::Status status = locks.Get(name)->Release();
      Print(
          absl::StrCat("released ", name, " ", status.ok() ? "OK" : ReasonName(ReasonOf(status))));
    } else if (command == "drop") {
      locks.Drop(name);
      Print(absl::StrCat("dropped ", name));
    } else if (command == "state") {
      Print(absl::StrCat("state ", name, " ", LockStateName(locks.Get(name)->state())));
    } else if (command == "write") {
      Print(absl::StrCat("write ", name, " ", locks.Get(name)->fencing_token()));
    } else {
      Print(absl::StrCat("what is '", line, "'?"));
    }
  }
  return 0;
}

}  // namespace
}  // namespace latchkey

int main(int argc, char** argv) {
  if (argc < 2) {
    std::cerr << "usage: lock_client URL [OPTION=VALUE...]\n";
    return 1;
  }
  return latchkey::Main(latchkey::Words(argv + 1, argv + argc));
}

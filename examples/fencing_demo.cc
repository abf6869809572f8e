// A process that holds the lock is paused for longer than its lease, another one takes the lock,
// and then the first one goes on and writes. No lock service can stop that write; the store can,
// because the fencing token that comes with it is smaller than one it has already seen.
//
// Run it on a Redis server that nobody else uses:
//   ./bazelw run //examples:fencing_demo -- redis://localhost
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <iostream>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "latchkey/backends/redis/redis_backend.h"
#include "latchkey/core/lock_manager.h"

namespace {

// [store]
// What is protected. It remembers the largest token it has seen, and refuses smaller ones.
class Store {
 public:
  absl::Status Write(std::string value, latchkey::FencingToken token) {
    if (token < seen_) {
      return absl::FailedPreconditionError(
          absl::StrCat("token ", token, " is stale, ", seen_, " was here"));
    }
    seen_ = token;
    value_ = std::move(value);
    return absl::OkStatus();
  }
  const std::string& value() const { return value_; }

 private:
  latchkey::FencingToken seen_ = 0;
  std::string value_;
};
// [store]

absl::StatusOr<latchkey::LockManager> Connect(const std::string& url) {
  auto backend = latchkey::ConnectRedisBackend({.url = url, .new_server = true});
  if (!backend.ok()) return backend.status();
  return latchkey::LockManager::Create(*std::move(backend));
}

bool Fail(const absl::Status& status) {
  std::cerr << status << "\n";
  return false;
}

void Send(int to, latchkey::FencingToken token) {
  if (write(to, &token, sizeof token) != sizeof token) _exit(EXIT_FAILURE);
}

latchkey::FencingToken Receive(int from) {
  latchkey::FencingToken token = 0;
  return read(from, &token, sizeof token) == sizeof token ? token : 0;
}

// The process that is paused. It writes to the store by sending its token. False if anything went
// wrong.
bool HoldAndBePaused(const std::string& url, int store) {
  absl::StatusOr<latchkey::LockManager> locks = Connect(url);
  if (!locks.ok()) return Fail(locks.status());
  absl::StatusOr<latchkey::Lock> lock = locks->Acquire(
      "report", {.owner = "the paused one", .lease = absl::Seconds(1), .auto_renew = true});
  if (!lock.ok()) return Fail(lock.status());
  Send(store, lock->fencing_token());
  if (!lock->IsHeld()) return false;
  // It has just looked, and all is well. Now the whole process stands still, renewal included, as
  // it may anywhere: in a debugger, while it is swapped out, when its virtual machine is moved.
  raise(SIGSTOP);
  Send(store, lock->fencing_token());
  return lock->state() == latchkey::LockState::kExpired;  // Only now does it look again.
}

// The other process, which also is the store. True if all comes as promised.
bool TakeOver(const std::string& url, pid_t paused, int writes) {
  const latchkey::FencingToken old_token = Receive(writes);
  int status = 0;
  if (old_token == 0 || waitpid(paused, &status, WUNTRACED) != paused || !WIFSTOPPED(status)) {
    return false;
  }
  std::cout << "the paused one holds the lock, token " << old_token << "\n";

  Store store;
  absl::StatusOr<latchkey::LockManager> locks = Connect(url);
  if (!locks.ok()) return Fail(locks.status());
  // Comes back when the lease is over.
  absl::StatusOr<latchkey::Lock> other = locks->Acquire("report", {.owner = "the other one"});
  if (!other.ok()) return Fail(other.status());
  std::cout << "its lease is over; the other one holds the lock, token " << other->fencing_token()
            << "\n";
  if (absl::Status written = store.Write("new", other->fencing_token()); !written.ok()) {
    return Fail(written);
  }

  kill(paused, SIGCONT);
  const absl::Status stale = store.Write("old", Receive(writes));
  std::cout << "the paused one goes on and writes: " << stale.message() << "\n";
  std::cout << "the store has: " << store.value() << "\n";
  return !stale.ok() && store.value() == "new";
}

int Main(const std::string& url) {
  int pipe_ends[2];
  if (pipe(pipe_ends) != 0) return EXIT_FAILURE;
  // Each process connects on its own: a connection must not be carried over a fork.
  const pid_t paused = fork();
  if (paused == 0) return HoldAndBePaused(url, pipe_ends[1]) ? EXIT_SUCCESS : EXIT_FAILURE;
  close(pipe_ends[1]);
  const bool refused = TakeOver(url, paused, pipe_ends[0]);
  if (!refused) kill(paused, SIGKILL);
  int status = 0;
  waitpid(paused, &status, 0);
  const bool noticed = WIFEXITED(status) && WEXITSTATUS(status) == EXIT_SUCCESS;
  return refused && noticed ? EXIT_SUCCESS : EXIT_FAILURE;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: fencing_demo redis://HOST[:PORT]\n";
    return EXIT_FAILURE;
  }
  return Main(argv[1]);
}

// A holder is paused for longer than its lease, somebody else takes the lock, and then the first
// one wakes up and writes. No lock service can stop that write; the store can, because the fencing
// token that comes with it is smaller than one it has already seen.
//
// Run it on a Redis server that nobody else uses:
//   ./bazelw run //examples:fencing_demo -- redis://localhost
#include <cstdlib>
#include <iostream>
#include <string>

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

int Fail(const absl::Status& status) {
  std::cerr << status << "\n";
  return EXIT_FAILURE;
}

int Main(const std::string& url) {
  Store store;
  absl::StatusOr<latchkey::LockManager> first = Connect(url);
  if (!first.ok()) return Fail(first.status());
  absl::StatusOr<latchkey::LockManager> second = Connect(url);
  if (!second.ok()) return Fail(second.status());

  // A short lease that nobody renews stands for a process that is paused in the middle of its work.
  absl::StatusOr<latchkey::Lock> paused =
      first->Acquire("report", {.owner = "the paused one", .lease = absl::Milliseconds(300)});
  if (!paused.ok()) return Fail(paused.status());
  const latchkey::FencingToken old_token = paused->fencing_token();
  std::cout << "the paused one holds the lock, token " << old_token << "\n";

  // Comes back when the lease is over.
  absl::StatusOr<latchkey::Lock> other = second->Acquire("report", {.owner = "the other one"});
  if (!other.ok()) return Fail(other.status());
  std::cout << "its lease is over; the other one holds the lock, token " << other->fencing_token()
            << "\n";
  if (absl::Status written = store.Write("new", other->fencing_token()); !written.ok()) {
    return Fail(written);
  }

  // It does not know yet, or looked a moment too early.
  const absl::Status stale = store.Write("old", old_token);
  std::cout << "the paused one wakes up and writes: " << stale.message() << "\n";
  std::cout << "the store has: " << store.value() << "\n";
  return !stale.ok() && store.value() == "new" && other->fencing_token() > old_token ? EXIT_SUCCESS
                                                                                     : EXIT_FAILURE;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: fencing_demo redis://HOST[:PORT]\n";
    return EXIT_FAILURE;
  }
  return Main(argv[1]);
}

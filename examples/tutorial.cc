// The steps of docs/tutorial.md, each a function of its own.
//
// Run them with:  ./bazelw run //examples:tutorial            (all of them)
//                 ./bazelw run //examples:tutorial -- fencing (one)
#include <atomic>
#include <coroutine>
#include <cstdlib>
#include <iostream>
#include <string>
#include <string_view>
#include <thread>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "latchkey/core/coroutine.h"
#include "latchkey/core/lock_error.h"
#include "latchkey/core/lock_manager.h"
#include "latchkey/core/locker.h"
#include "latchkey/core/transaction.h"
#include "latchkey/memory_backend/memory_backend.h"

namespace {

using latchkey::Lock;
using latchkey::LockManager;
using latchkey::Reason;

// What the locks protect: an account that must not be changed by two at once.
struct Account {
  int balance = 100;
  latchkey::FencingToken newest_token = 0;

  // Refuses whoever had the lock before somebody else got it.
  bool Set(int to, latchkey::FencingToken token) {
    if (token < newest_token) return false;
    newest_token = token;
    balance = to;
    return true;
  }
};

// ---- 1. Blocking ----

bool Blocking(LockManager& locks) {
  Account account;
  // [blocking]
  {
    absl::StatusOr<Lock> lock = locks.Acquire("account/7", {.owner = "interest"});
    if (!lock.ok()) return false;
    account.Set(account.balance + 5, lock->fencing_token());
  }  // ~Lock releases.
  // [blocking]

  // [timeout]
  absl::StatusOr<Lock> held = locks.Acquire("account/7", {.owner = "audit"});
  absl::StatusOr<Lock> late =
      locks.Acquire("account/7", {.owner = "interest", .acquire_timeout = absl::Milliseconds(10)});
  std::cout << late.status().message() << "\n";  // Says who holds it.
  // [timeout]
  return account.balance == 105 && latchkey::ReasonOf(late.status()) == Reason::kAcquireTimeout;
}

// ---- 2. Fencing ----

bool Fencing(LockManager& locks) {
  Account account;
  // [fencing]
  absl::StatusOr<Lock> slow = locks.Acquire("account/7", {.lease = absl::Milliseconds(10)});
  if (!slow.ok()) return false;
  absl::Notification expired;
  slow->OnLost([&](latchkey::LockState) { expired.Notify(); });
  expired.WaitForNotification();  // It takes a nap, and its lease runs out.

  absl::StatusOr<Lock> quick = locks.Acquire("account/7");
  if (!quick.ok()) return false;
  const bool accepted = account.Set(1, quick->fencing_token());
  const bool refused = !account.Set(2, slow->fencing_token());  // An old token.
  // [fencing]
  std::cout << "the quick one's write is " << (accepted ? "accepted" : "refused")
            << ", the slow one's is " << (refused ? "refused" : "accepted") << "\n";
  return accepted && refused && account.balance == 1;
}

// ---- 3. Priority ----

bool PriorityStep(LockManager& locks) {
  // [priority]
  absl::StatusOr<Lock> report = locks.Acquire("account/7", {.owner = "report"});
  if (!report.ok()) return false;
  std::thread payment([&] {
    // Enters only when the report has left.
    absl::StatusOr<Lock> lock = locks.Acquire("account/7", {.owner = "payment", .priority = 10});
    if (lock.ok()) std::cout << "the payment is inside\n";
  });
  const std::stop_token stop = report->stop_token();
  while (!stop.stop_requested()) std::this_thread::yield();  // It reads line after line.
  std::cout << "the report is asked to yield; it puts its pen down and leaves\n";
  const absl::Status released = report->Release();
  payment.join();
  // [priority]
  return released.ok();
}

// ---- 4. Coroutines ----

// [task]
// Any coroutine type will do; this one starts at once and runs on its own.
struct Task {
  struct promise_type {
    Task get_return_object() { return {}; }
    std::suspend_never initial_suspend() noexcept { return {}; }
    std::suspend_never final_suspend() noexcept { return {}; }
    void return_void() {}
    void unhandled_exception() { std::abort(); }
  };
};
// [task]

// [coroutine]
Task AddInterest(LockManager& locks, Account& account, absl::Notification& done) {
  absl::StatusOr<Lock> lock =
      co_await locks.CoAcquire("account/7", {.owner = "interest", .priority = 1});
  if (lock.ok()) account.Set(account.balance + 5, lock->fencing_token());
  done.Notify();
}
// [coroutine]

bool Coroutine(LockManager& locks) {
  Account account;
  absl::Notification done;
  absl::StatusOr<Lock> lock = locks.Acquire("account/7", {.preemptible = false});
  if (!lock.ok()) return false;
  AddInterest(locks, account, done);  // Waits, without a thread.
  const bool waited = !done.HasBeenNotified();
  std::cout << "the coroutine " << (waited ? "waits" : "does not wait") << "\n";
  lock->ReleaseAsync();
  done.WaitForNotification();
  std::cout << "it has added its interest: " << account.balance << "\n";
  return waited && account.balance == 105;
}

// ---- 5. Transactions ----

// [transaction]
latchkey::Transaction<int> Report(Account& account, latchkey::TransactionContext& ctx) {
  int sum = 0;
  for (int line = 1; line <= 3; ++line) {
    sum += account.balance;
    co_await ctx.Sleep(absl::Milliseconds(2));  // A checkpoint, as every co_await.
  }
  co_return sum;
}

latchkey::Transaction<void> Pay(Account& account, latchkey::TransactionContext& ctx) {
  account.Set(account.balance - 30, ctx.fencing_token());
  co_return;
}
// [transaction]

bool TransactionStep(LockManager& locks) {
  // [start]
  Account account;
  latchkey::Locker accounts(locks, "account/7", account, {.owner = "report"});
  auto report = accounts.Start(Report, latchkey::AlwaysRestart());
  auto payment = accounts.With({.owner = "payment", .priority = 10}).Start(Pay);
  const absl::Status paid = payment.Wait();
  const absl::StatusOr<int> sum = report.Wait();
  // [start]
  std::cout << "the report says " << sum.value_or(0) << "\n";
  // All lines before the payment or, as a rule, all after it: never a mixture.
  return paid.ok() && sum.ok() && (*sum == 3 * 100 || *sum == 3 * 70);
}

int Main(std::string_view only) {
  absl::StatusOr<LockManager> locks = LockManager::Create(latchkey::NewMemoryBackend());
  if (!locks.ok()) return 1;
  const std::pair<std::string_view, bool (*)(LockManager&)> steps[] = {
      {"blocking", Blocking},           {"fencing", Fencing},
      {"priority", PriorityStep},       {"coroutine", Coroutine},
      {"transaction", TransactionStep},
  };
  int failures = 0;
  int steps_taken = 0;
  for (const auto& [name, step] : steps) {
    if (!only.empty() && only != name) continue;
    ++steps_taken;
    std::cout << "-- " << name << "\n";
    if (!step(*locks)) {
      std::cout << "   went wrong\n";
      ++failures;
    }
  }
  if (steps_taken == 0) {
    std::cerr << "there is no step '" << only << "', but:";
    for (const auto& [name, step] : steps) std::cerr << " " << name;
    std::cerr << "\n";
    return 1;
  }
  return failures;
}

}  // namespace

int main(int argc, char** argv) { return Main(argc > 1 ? argv[1] : ""); }

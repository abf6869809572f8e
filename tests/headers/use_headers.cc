// A program that instantiates what the public headers inline into a user's code, for values of
// several kinds: small ones are kept in registers, where g++ 12 looks for uninitialised reads.
#include <coroutine>
#include <cstdio>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "latchkey/backends/quorum/quorum_backend.h"
#include "latchkey/backends/redis/redis_backend.h"
#include "latchkey/benchmarks/trace.h"
#include "latchkey/core/clock.h"
#include "latchkey/core/coroutine.h"
#include "latchkey/core/executor.h"
#include "latchkey/core/lease.h"
#include "latchkey/core/lock.h"
#include "latchkey/core/lock_context.h"
#include "latchkey/core/lock_error.h"
#include "latchkey/core/lock_manager.h"
#include "latchkey/core/lock_set.h"
#include "latchkey/core/locker.h"
#include "latchkey/core/observer.h"
#include "latchkey/core/policy/admission_policy.h"
#include "latchkey/core/policy/preemption_policy.h"
#include "latchkey/core/policy/queue_policy.h"
#include "latchkey/core/policy/retry_policy.h"
#include "latchkey/core/protocol/lock_record.h"
#include "latchkey/core/protocol/locking_protocol.h"
#include "latchkey/core/protocol/record_watchers.h"
#include "latchkey/core/scoped_owner.h"
#include "latchkey/core/stats_observer.h"
#include "latchkey/core/transaction.h"
#include "latchkey/memory_backend/memory_backend.h"

namespace {

struct Cell {
  int value = 7;
};

struct Large {
  int number = 0;
  std::string text;
  std::vector<int> list;
};

template <typename T>
T From(const Cell& cell) {
  if constexpr (std::is_same_v<T, std::unique_ptr<int>>) {
    return std::make_unique<int>(cell.value);
  } else if constexpr (std::is_same_v<T, std::string>) {
    return std::to_string(cell.value);
  } else if constexpr (std::is_same_v<T, Large>) {
    return {.number = cell.value, .text = "seven", .list = {cell.value}};
  } else if constexpr (std::is_same_v<T, std::optional<int>>) {
    return cell.value;
  } else {
    return static_cast<T>(cell.value);
  }
}

// A coroutine of the program's own.
struct Task {
  struct promise_type {
    Task get_return_object() { return {}; }
    std::suspend_never initial_suspend() noexcept { return {}; }
    std::suspend_never final_suspend() noexcept { return {}; }
    void return_void() {}
    void unhandled_exception() {}
  };
};

template <typename T>
Task Await(latchkey::LockManager& locks, const Cell& cell, latchkey::TransactionHandle<T> handle,
           int& good) {
  const absl::StatusOr<T> end = co_await handle;
  good += end.ok() ? 0 : 1;  // It was taken before.
  const absl::StatusOr<latchkey::Lock> lock =
      co_await locks.CoAcquire("a" + std::to_string(cell.value), {.owner = "me", .priority = 1});
  good += lock.ok() ? 1 : 0;
  absl::StatusOr<latchkey::LockSet> set = co_await locks.CoAcquireAll({"b", "c"});
  good += set.ok() ? 1 : 0;
  const T value = co_await latchkey::AwaitCallback<T>(
      [&](latchkey::Completion<T> done) { done(From<T>(cell)); });
  const absl::StatusOr<T> result = co_await latchkey::AwaitCallback<absl::StatusOr<T>>(
      [&](latchkey::Completion<absl::StatusOr<T>> done) { done(From<T>(cell)); });
  good += result.ok() ? 1 : 0;
  co_await latchkey::SleepFor(absl::Nanoseconds(-1));
  static_cast<void>(value);
}

template <typename T>
int Use(latchkey::LockManager& locks) {
  int good = 0;
  Cell cell;
  Cell other;
  const latchkey::Locker cells(locks, "cell", cell);
  const latchkey::Locker others(locks, "other", other, {.priority = 1});
  const auto body = [](Cell& mine, latchkey::TransactionContext& ctx) -> latchkey::Transaction<T> {
    co_await ctx.CheckPoint();
    const bool slept = co_await ctx.Interruptible(ctx.Sleep(absl::Nanoseconds(-1)));
    const std::optional<T> value = co_await ctx.Interruptible(
        latchkey::AwaitCallback<T>([&](latchkey::Completion<T> done) { done(From<T>(mine)); }));
    if (!slept || !value) co_return absl::InternalError("interrupted");
    co_return From<T>(mine);
  };
  auto handle =
      cells.Start(body, [](const latchkey::Loss& loss) -> latchkey::RecoveryAction<T, Cell> {
        if (loss.count > 3) return latchkey::Reject();
        return latchkey::Restart();
      });
  absl::StatusOr<T> result = handle.Wait();
  good += result.ok() ? 1 : 0;
  T taken = *std::move(result);
  static_cast<void>(taken);
  cells.Start(body).OnDone([&](absl::StatusOr<T> end) { good += end.ok() ? 1 : 0; });
  auto both = latchkey::Join(cells, others)
                  .Start([](Cell& a, Cell& b,
                            latchkey::TransactionContext& ctx) -> latchkey::Transaction<T> {
                    co_await ctx.CheckPoint();
                    co_return From<T>(a.value > b.value ? a : b);
                  });
  good += both.Wait().ok() ? 1 : 0;
  Await<T>(locks, cell, handle, good);

  const absl::StatusOr<T> run = locks.Run("run", {}, [&](latchkey::LockContext& context) {
    if (!context.CheckPoint().ok()) return absl::StatusOr<T>(absl::InternalError("stop"));
    return absl::StatusOr<T>(From<T>(cell));
  });
  good += run.ok() ? 1 : 0;
  absl::StatusOr<T> run_all = locks.RunAll(
      {"a", "b"}, {}, [&](latchkey::LockContext&) -> absl::StatusOr<T> { return From<T>(cell); });
  if (run_all.ok()) taken = *std::move(run_all);
  good += locks.Run("run", {}, [](latchkey::LockContext&) { return absl::OkStatus(); }).ok();
  locks.RunAsync<T>(
      "run", {},
      [&](latchkey::LockContext, latchkey::LockManager::FinishWith<T> finish) {
        finish(From<T>(cell));
      },
      [&](absl::StatusOr<T> end) { good += end.ok() ? 1 : 0; });
  return good;
}

int UseLocks(latchkey::LockManager& locks) {
  absl::StatusOr<latchkey::Lock> lock =
      locks.Acquire("a", {.owner = "me", .lease = absl::Seconds(5), .auto_renew = true});
  if (!lock.ok()) return 0;
  lock->OnYieldRequested([] {});
  lock->OnLost([](latchkey::LockState) {});
  const latchkey::NonPreemptibleScope scope(*lock);
  latchkey::Lock moved = *std::move(lock);
  absl::StatusOr<latchkey::LockSet> set = locks.AcquireAll({"b", "c"});
  if (!set.ok()) return 0;
  latchkey::LockSet moved_set;
  moved_set = *std::move(set);
  const latchkey::ScopedOwner owner("task");
  latchkey::BindOwner([] {})();
  return (moved.Extend(absl::Seconds(1)).ok() && moved.Release().ok() ? 1 : 0) +
         (moved_set.Release().ok() ? 1 : 0) + static_cast<int>(locks.Snapshot().size());
}

}  // namespace

int main() {
  std::ostringstream trace;
  const auto recorder = std::make_shared<latchkey::benchmarks::TraceRecorder>(trace);
  const std::shared_ptr<latchkey::LockingProtocol> memory = latchkey::NewMemoryBackend();
  absl::StatusOr<std::shared_ptr<latchkey::LockingProtocol>> one =
      latchkey::NewQuorumBackend({memory});
  if (!one.ok()) return 1;
  absl::StatusOr<latchkey::LockManager> locks =
      latchkey::LockManager::Create(memory, {.admission = latchkey::AdmitAll(),
                                             .queue = latchkey::PriorityQueue(),
                                             .preemption = latchkey::PreemptLower(),
                                             .retry = latchkey::FixedDelay(absl::Milliseconds(1)),
                                             .observer = recorder});
  if (!locks.ok()) return 1;
  const latchkey::RedisBackendOptions redis;
  const std::unique_ptr<latchkey::Executor> pool = latchkey::NewThreadPool(1);
  const auto watchers = latchkey::RecordWatchers::Create(latchkey::RealClock());
  latchkey::StatsObserver stats;
  int good = UseLocks(*locks);
  good += Use<int>(*locks);
  good += Use<bool>(*locks);
  good += Use<double>(*locks);
  good += Use<std::string>(*locks);
  good += Use<std::unique_ptr<int>>(*locks);
  good += Use<std::optional<int>>(*locks);
  good += Use<Large>(*locks);
  std::printf("%d good, %s\n", good, redis.url.c_str());
  return stats.PrometheusText("latchkey").empty() || good == 0 ? 1 : 0;
}

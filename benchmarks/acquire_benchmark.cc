// What it costs to take and give back a lock, beside three peers in the same run.
//
//   bazelw run --config=opt //benchmarks:acquire_benchmark -- --benchmark_filter=uncontended
//
// The library is measured through its public API with everything on: fencing tokens, priorities,
// expiry, policies. "Time" is the real time that passed, divided by the acquires and releases of
// all threads together; "CPU" is processor time of the main thread alone, and `cpu_ns` that of all.
// On a machine that others use, compare lines of one run only, and look at medians
// (--benchmark_repetitions=9 --benchmark_enable_random_interleaving=true).
#include <coroutine>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/log/check.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "benchmark/benchmark.h"
#include "benchmarks/harness.h"
#include "benchmarks/peers.h"
#include "latchkey/core/coroutine.h"
#include "latchkey/core/lock_manager.h"
#include "latchkey/core/stats_observer.h"
#include "latchkey/memory_backend/memory_backend.h"

namespace latchkey::benchmarks {
namespace {

LockManager NewManager(LockManagerOptions options = {}) {
  absl::StatusOr<LockManager> manager = LockManager::Create(NewMemoryBackend(), std::move(options));
  CHECK_OK(manager);
  return *std::move(manager);
}

// The library in the shape of the peers.
class Latchkey {
 public:
  class [[nodiscard]] Guard {
   public:
    Guard(Latchkey& table, const std::string& key) : lock_(table.manager_.Acquire(key)) {
      CHECK_OK(lock_);
    }

   private:
    absl::StatusOr<Lock> lock_;
  };

  // First come, first served among equals: the default.
  Latchkey() : manager_(NewManager()) {}
  explicit Latchkey(LockManagerOptions options) : manager_(NewManager(std::move(options))) {}

  Guard Acquire(const std::string& key) { return Guard(*this, key); }

  LockManager& manager() { return manager_; }

 private:
  LockManager manager_;
};

struct Barging : Latchkey {
  Barging() : Latchkey({.queue = PriorityQueue({.barging = true})}) {}
};

// ---- One thread ---------------------------------------------------------------------------------

template <typename Table>
void Uncontended(benchmark::State& state) {
  const auto table = std::make_unique<Table>();
  const std::string key = Key(12345);
  for (auto _ : state) {
    auto guard = table->Acquire(key);
    benchmark::DoNotOptimize(&guard);
  }
}

template <typename Table>
void ManyKeys(benchmark::State& state, int64_t count) {
  const auto table = std::make_unique<Table>();
  const std::vector<std::string> keys = ShuffledKeys(count);
  size_t next = 0;
  for (auto _ : state) {
    auto guard = table->Acquire(keys[next]);
    benchmark::DoNotOptimize(&guard);
    if (++next == keys.size()) next = 0;
  }
}

// Takes `count` locks, looks at the memory, and gives them back. The keys do not count.
template <typename Table, typename Held>
void HoldMany(benchmark::State& state, int64_t count) {
  const std::vector<std::string> keys = ShuffledKeys(count);
  int64_t bytes = 0;
  while (state.KeepRunningBatch(count)) {
    state.PauseTiming();
    auto table = std::make_unique<Table>();
    const int64_t before = HeapInUse();
    auto held = std::make_unique<Held>();
    held->Reserve(keys.size());
    state.ResumeTiming();
    for (const std::string& key : keys) held->Take(*table, key);
    state.PauseTiming();
    bytes = HeapInUse() - before;
    state.ResumeTiming();
    held.reset();
    state.PauseTiming();
    table.reset();
    state.ResumeTiming();
  }
  state.counters["bytes_per_lock"] = static_cast<double>(bytes) / static_cast<double>(count);
}

// Guards that cannot be moved.
template <typename Table>
struct HeldInDeque {
  void Reserve(size_t) {}
  void Take(Table& table, const std::string& key) { guards.emplace_back(table, key); }
  std::deque<typename Table::Guard> guards;
};

struct HeldLocks {
  void Reserve(size_t count) { locks.reserve(count); }
  void Take(Latchkey& table, const std::string& key) {
    absl::StatusOr<Lock> lock = table.manager().Acquire(key);
    CHECK_OK(lock);
    locks.push_back(*std::move(lock));
  }
  std::vector<Lock> locks;
};

// One key, with options.
void WithOptions(benchmark::State& state, const AcquireOptions& options,
                 LockManagerOptions manager_options = {}) {
  LockManager manager = NewManager(std::move(manager_options));
  const std::string key = Key(12345);
  for (auto _ : state) {
    absl::StatusOr<Lock> lock = manager.Acquire(key, options);
    benchmark::DoNotOptimize(lock);
  }
}

void Async(benchmark::State& state) {
  LockManager manager = NewManager();
  const std::string key = Key(12345);
  int64_t granted = 0;
  for (auto _ : state) {
    manager.AcquireAsync(key, {},
                         [&granted](absl::StatusOr<Lock> lock) { granted += lock.ok() ? 1 : 0; });
  }
  CHECK_EQ(granted, static_cast<int64_t>(state.iterations()));
}

// A holder, somebody more urgent who reserves the lock, the holder's acknowledgement, the
// hand-over.
void Preempt(benchmark::State& state) {
  LockManager manager = NewManager();
  const std::string key = Key(12345);
  int64_t granted = 0;
  for (auto _ : state) {
    absl::StatusOr<Lock> holder = manager.Acquire(key);
    CHECK_OK(holder);
    holder->OnYieldRequested([&holder] { holder->ReleaseAsync(); });
    manager.AcquireAsync(key, {.priority = 1},
                         [&granted](absl::StatusOr<Lock> lock) { granted += lock.ok() ? 1 : 0; });
  }
  CHECK_EQ(granted, static_cast<int64_t>(state.iterations()));
}

// Callbacks that queue on one key, each again as soon as it was its turn: one iteration is one
// hand-over, with `count - 1` waiting all the time.
class CallbackRing {
 public:
  CallbackRing(LockManager& manager, std::string key) : manager_(manager), key_(std::move(key)) {}

  void Enter() {
    manager_.AcquireAsync(key_, {}, [this](absl::StatusOr<Lock> lock) {
      CHECK_OK(lock);
      if (left_ <= 0) return;
      --left_;
      Enter();
    });
  }
  void Start(int waiters, int64_t hand_overs) {
    left_ = 0;
    absl::StatusOr<Lock> first = manager_.Acquire(key_);
    CHECK_OK(first);
    left_ = hand_overs;
    for (int i = 0; i < waiters; ++i) Enter();
  }

 private:
  LockManager& manager_;
  const std::string key_;
  int64_t left_ = 0;
};

void CallbackWaiters(benchmark::State& state, int waiters) {
  LockManager manager = NewManager();
  CallbackRing ring(manager, Key(12345));
  while (state.KeepRunningBatch(state.max_iterations)) {
    ring.Start(waiters, static_cast<int64_t>(state.max_iterations));
  }
  state.SetItemsProcessed(static_cast<int64_t>(state.iterations()));
}

// A coroutine that nobody awaits and that ends by itself.
struct Detached {
  struct promise_type {
    Detached get_return_object() { return {}; }
    std::suspend_never initial_suspend() noexcept { return {}; }
    std::suspend_never final_suspend() noexcept { return {}; }
    void return_void() {}
    void unhandled_exception() { std::terminate(); }
  };
};

// Takes its turn again and again until there are none left.
Detached TakeTurns(LockManager& manager, const std::string& key, int64_t& left) {
  while (left > 0) {
    absl::StatusOr<Lock> lock = co_await manager.CoAcquire(key);
    CHECK_OK(lock);
    if (left > 0) --left;
  }
}

// Coroutines that queue on one key: one iteration is one hand-over, with `count - 1` waiting all
// the time.
void Waiters(benchmark::State& state, int waiters) {
  LockManager manager = NewManager();
  const std::string key = Key(12345);
  while (state.KeepRunningBatch(state.max_iterations)) {
    absl::StatusOr<Lock> first = manager.Acquire(key);
    CHECK_OK(first);
    int64_t left = static_cast<int64_t>(state.max_iterations);
    for (int i = 0; i < waiters; ++i) TakeTurns(manager, key, left);
    CHECK_OK(first->Release());
    CHECK_EQ(left, 0);
  }
  state.SetItemsProcessed(static_cast<int64_t>(state.iterations()));
}

void RunBody(benchmark::State& state) {
  LockManager manager = NewManager();
  const std::string key = Key(12345);
  int64_t entered = 0;
  for (auto _ : state) {
    CHECK_OK(manager.Run(key, {}, [&entered](LockContext&) {
      ++entered;
      return absl::OkStatus();
    }));
  }
  CHECK_EQ(entered, static_cast<int64_t>(state.iterations()));
}

// ---- Cost does not grow -------------------------------------------------------------------------

void BesideHeld(benchmark::State& state, int64_t count) {
  LockManager manager = NewManager();
  std::vector<Lock> held;
  held.reserve(static_cast<size_t>(count));
  for (const std::string& other : ShuffledKeys(count)) {
    absl::StatusOr<Lock> lock = manager.Acquire(other);
    CHECK_OK(lock);
    held.push_back(*std::move(lock));
  }
  const std::string key = Key(count);
  for (auto _ : state) {
    absl::StatusOr<Lock> lock = manager.Acquire(key);
    benchmark::DoNotOptimize(lock);
  }
}

void BesideWaiters(benchmark::State& state, int count) {
  LockManager manager = NewManager({.admission = AdmitAll()});
  const std::string busy = Key(1);
  absl::StatusOr<Lock> holder = manager.Acquire(busy);
  CHECK_OK(holder);
  for (int i = 0; i < count; ++i) manager.AcquireAsync(busy, {}, [](absl::StatusOr<Lock>) {});
  const std::string key = Key(12345);
  for (auto _ : state) {
    absl::StatusOr<Lock> lock = manager.Acquire(key);
    benchmark::DoNotOptimize(lock);
  }
}

// ---- Several threads ----------------------------------------------------------------------------

template <typename Table>
void Disjoint(benchmark::State& state, int threads) {
  const auto table = std::make_unique<Table>();
  std::vector<std::string> keys;
  for (int i = 0; i < threads; ++i) keys.push_back(Key(12345 + 7 * i));
  RunTeam(state, threads, [&](int thread) {
    const std::string key = keys[static_cast<size_t>(thread)];
    const int64_t rounds = (static_cast<int64_t>(state.max_iterations) + thread) / threads;
    for (int64_t i = 0; i < rounds; ++i) {
      auto guard = table->Acquire(key);
      benchmark::DoNotOptimize(&guard);
    }
  });
}

template <typename Table>
void Contended(benchmark::State& state, int threads) {
  const auto table = std::make_unique<Table>();
  const std::string key = Key(12345);
  RunContended(state, threads, [&table, &key] { return table->Acquire(key); });
}

// -------------------------------------------------------------------------------------------------

using Run = std::function<void(benchmark::State&)>;

void Register(std::string_view who, std::string_view what, Run run) {
  benchmark::RegisterBenchmark(absl::StrCat("BM_", who, "/", what).c_str(), std::move(run));
}

template <typename Table, typename Held>
void RegisterCommon(std::string_view who) {
  Register(who, "uncontended", Uncontended<Table>);
  Register(who, "keys:1000000", [](auto& state) { ManyKeys<Table>(state, 1000000); });
  Register(who, "disjoint/threads:1", [](auto& state) { Disjoint<Table>(state, 1); });
  Register(who, "disjoint/threads:2", [](auto& state) { Disjoint<Table>(state, 2); });
  Register(who, "held:1000000", [](auto& state) { HoldMany<Table, Held>(state, 1000000); });
}

void RegisterAll() {
  RegisterCommon<Floor, HeldInDeque<Floor>>("Floor");
  RegisterCommon<HandWritten, HeldInDeque<HandWritten>>("HandWritten");
  RegisterCommon<Tbb, HeldInDeque<Tbb>>("Tbb");
  RegisterCommon<Latchkey, HeldLocks>("Latchkey");

  for (const int threads : {2, 8}) {
    const std::string contended = absl::StrCat("contended/threads:", threads);
    Register("Floor", contended, [=](auto& state) { Contended<Floor>(state, threads); });
    Register("HandWritten", contended,
             [=](auto& state) { Contended<HandWritten>(state, threads); });
    Register("Tbb", contended, [=](auto& state) { Contended<Tbb>(state, threads); });
    Register("Latchkey", contended, [=](auto& state) { Contended<Barging>(state, threads); });
    Register("Latchkey", absl::StrCat("contended_fifo/threads:", threads),
             [=](auto& state) { Contended<Latchkey>(state, threads); });
  }

  Register("Latchkey", "preempt", Preempt);
  Register("Latchkey", "waiters:1000", [](auto& state) { Waiters(state, 1000); });
  Register("Latchkey", "callback_waiters:1000", [](auto& state) { CallbackWaiters(state, 1000); });
  Register("Latchkey", "run", RunBody);
  Register("Latchkey", "async", Async);
  Register("Latchkey", "lease:30s",
           [](auto& state) { WithOptions(state, {.lease = absl::Seconds(30)}); });
  Register("Latchkey", "owner", [](auto& state) { WithOptions(state, {.owner = "worker 17"}); });
  Register("Latchkey", "observer", [](auto& state) {
    WithOptions(state, {}, {.observer = std::make_shared<StatsObserver>()});
  });
  Register("Latchkey", "uncontended_beside_held:1000000",
           [](auto& state) { BesideHeld(state, 1000000); });
  Register("Latchkey", "uncontended_beside_waiters:10000",
           [](auto& state) { BesideWaiters(state, 10000); });
}

}  // namespace
}  // namespace latchkey::benchmarks

int main(int argc, char** argv) {
  latchkey::benchmarks::RegisterAll();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}

// What the benchmarks share: keys, pinned teams of threads, and how much memory is in use.
#ifndef LATCHKEY_BENCHMARKS_HARNESS_H_
#define LATCHKEY_BENCHMARKS_HARNESS_H_

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "benchmark/benchmark.h"

namespace latchkey::benchmarks {

// "orders/0000012345".
std::string Key(int64_t number);

// `count` different keys in an order that has nothing to do with where they lie in memory.
std::vector<std::string> ShuffledKeys(int64_t count);

// Bytes in use on the heap, as the allocator counts them (glibc: chunk headers included).
int64_t HeapInUse();

// Processor time used by the calling thread, in nanoseconds.
int64_t ThreadNanos();

// Pins the calling thread to the `index`-th (modulo how many there are) of the processors that the
// process may use, until destroyed. Does nothing where the system does not allow it.
class ScopedPin {
 public:
  explicit ScopedPin(int index);
  ~ScopedPin();
  ScopedPin(const ScopedPin&) = delete;
  ScopedPin& operator=(const ScopedPin&) = delete;

 private:
  std::vector<unsigned char> before_;
};

// Runs `work(thread)` once on each of `threads` pinned threads, the calling one being thread 0, and
// measures from the moment when all are ready until all are done. The work as a whole is one batch
// of `state.max_iterations` iterations. Sets the counter `cpu_ns`, processor time for each
// iteration, which says more than real time on a machine that others use, too.
void RunTeam(benchmark::State& state, int threads, const std::function<void(int)>& work);

// Sends several threads through one critical section until it was entered `state.max_iterations`
// times. `acquire()` blocks and returns a guard. Fails the benchmark if two threads were ever
// inside at once. Sets the counter `fairness`: the smallest share of a thread divided by the
// largest.
template <typename Acquire>
void RunContended(benchmark::State& state, int threads, Acquire acquire) {
  int64_t entered = 0;  // Guarded by the lock under test.
  std::atomic<bool> occupied = false;
  std::atomic<bool> overlapped = false;
  std::vector<int64_t> shares(static_cast<size_t>(threads));
  const int64_t target = static_cast<int64_t>(state.max_iterations);
  RunTeam(state, threads, [&](int thread) {
    int64_t mine = 0;
    for (bool more = true; more;) {
      auto guard = acquire();
      // A load and a store rather than an exchange: cheap, and two threads that go through here
      // together are caught sooner or later. So are lost updates of `entered`.
      if (occupied.load(std::memory_order_relaxed)) overlapped = true;
      occupied.store(true, std::memory_order_relaxed);
      more = entered < target;
      if (more) ++entered, ++mine;
      occupied.store(false, std::memory_order_relaxed);
    }
    shares[static_cast<size_t>(thread)] = mine;
  });
  int64_t sum = 0;
  for (const int64_t share : shares) sum += share;
  if (overlapped || sum != target) state.SkipWithError("two threads were inside at once");
  const auto [least, most] = std::minmax_element(shares.begin(), shares.end());
  state.counters["fairness"] = static_cast<double>(*least) / static_cast<double>(*most);
}

}  // namespace latchkey::benchmarks

#endif  // LATCHKEY_BENCHMARKS_HARNESS_H_

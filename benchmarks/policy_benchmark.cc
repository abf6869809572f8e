// What each policy costs in real time while threads contend for one key.
//
//   bazelw run --config=opt //benchmarks:policy_benchmark
//
// Threads contend for one key and do next to nothing under the lock, so that the policy is what
// costs. With `priorities:2` each of them asks with 0 and 1 in turn. "Time" is the real time that
// passed, divided by the locks that all threads took together; `cpu_ns` is their processor time,
// likewise. What a policy *gives* is for policy_simulator to say.
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "absl/log/check.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "benchmark/benchmark.h"
#include "benchmarks/harness.h"
#include "latchkey/core/lock_manager.h"
#include "latchkey/memory_backend/memory_backend.h"

namespace latchkey::benchmarks {
namespace {

// Gives back when asked to: every hold here is shorter than a notice would take to arrive.
void Contended(benchmark::State& state, int threads, int64_t priorities,
               const std::function<LockManagerOptions()>& options) {
  absl::StatusOr<LockManager> manager = LockManager::Create(NewMemoryBackend(), options());
  CHECK_OK(manager);
  const std::string key = Key(12345);
  RunContended(state, threads, [&manager, &key, priorities] {
    // Each thread goes through the priorities.
    static thread_local int64_t turn = 0;
    absl::StatusOr<Lock> lock = manager->Acquire(key, {.priority = turn++ % priorities});
    CHECK_OK(lock);
    return lock;
  });
}

void Register(std::string_view name, const std::function<LockManagerOptions()>& options) {
  for (const int threads : {1, 2, 8}) {
    for (const int64_t priorities : {1, 2}) {
      benchmark::RegisterBenchmark(
          absl::StrCat("BM_Policy/", name, "/priorities:", priorities, "/threads:", threads)
              .c_str(),
          [=](benchmark::State& state) { Contended(state, threads, priorities, options); });
    }
  }
}

void RegisterAll() {
  Register("default", [] { return LockManagerOptions{}; });
  Register("fifo",
           [] { return LockManagerOptions{.queue = FifoQueue(), .preemption = NeverPreempt()}; });
  Register("priority_never", [] { return LockManagerOptions{.preemption = NeverPreempt()}; });
  Register("ageing_never", [] {
    return LockManagerOptions{.queue = AgeingQueue({.step = absl::Milliseconds(1)}),
                              .preemption = NeverPreempt()};
  });
  Register("margin", [] { return LockManagerOptions{.preemption = PreemptByMargin(10)}; });
  Register("forced", [] { return LockManagerOptions{.preemption = ForceAfter(absl::Seconds(1))}; });
  Register("barging", [] { return LockManagerOptions{.queue = PriorityQueue({.barging = true})}; });
  Register("barging_never", [] {
    return LockManagerOptions{.queue = PriorityQueue({.barging = true}),
                              .preemption = NeverPreempt()};
  });
  Register("shed_lowest", [] { return LockManagerOptions{.admission = ShedLowestPriority()}; });
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

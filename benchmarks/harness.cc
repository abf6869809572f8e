#include "benchmarks/harness.h"

#include <malloc.h>
#include <pthread.h>
#include <sched.h>
#include <time.h>

#include <atomic>
#include <cstring>
#include <random>
#include <thread>

#include "absl/strings/str_format.h"

namespace latchkey::benchmarks {

std::string Key(int64_t number) { return absl::StrFormat("orders/%010d", number); }

std::vector<std::string> ShuffledKeys(int64_t count) {
  std::vector<std::string> keys;
  keys.reserve(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) keys.push_back(Key(i));
  std::shuffle(keys.begin(), keys.end(), std::mt19937_64(1));
  return keys;
}

int64_t HeapInUse() {
  const struct mallinfo2 info = mallinfo2();
  return static_cast<int64_t>(info.uordblks + info.hblkhd);
}

int64_t ThreadNanos() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return int64_t{now.tv_sec} * 1000000000 + now.tv_nsec;
}

ScopedPin::ScopedPin(int index) {
  cpu_set_t allowed;
  if (pthread_getaffinity_np(pthread_self(), sizeof allowed, &allowed) != 0) return;
  int place = index % CPU_COUNT(&allowed);
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed) || place-- > 0) continue;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    if (pthread_setaffinity_np(pthread_self(), sizeof one, &one) != 0) return;
    before_.resize(sizeof allowed);
    std::memcpy(before_.data(), &allowed, sizeof allowed);
    return;
  }
}

ScopedPin::~ScopedPin() {
  if (before_.empty()) return;
  cpu_set_t allowed;
  std::memcpy(&allowed, before_.data(), sizeof allowed);
  pthread_setaffinity_np(pthread_self(), sizeof allowed, &allowed);
}

void RunTeam(benchmark::State& state, int threads, const std::function<void(int)>& work) {
  std::atomic<int> ready = 0;
  std::atomic<bool> go = false;
  std::atomic<int64_t> nanos = 0;
  // Thread 0's pin ends with this function; it must not be handed on to the others.
  std::vector<std::thread> others;
  for (int i = 1; i < threads; ++i) {
    others.emplace_back([&, i] {
      const ScopedPin pin(i);
      ++ready;
      while (!go) std::this_thread::yield();
      const int64_t before = ThreadNanos();
      work(i);
      nanos += ThreadNanos() - before;
      --ready;
    });
  }
  while (ready != threads - 1) std::this_thread::yield();
  {
    const ScopedPin pin(0);
    while (state.KeepRunningBatch(state.max_iterations)) {
      go = true;
      const int64_t before = ThreadNanos();
      work(0);
      nanos += ThreadNanos() - before;
      while (ready != 0) std::this_thread::yield();
    }
  }
  for (std::thread& other : others) other.join();
  state.counters["cpu_ns"] = static_cast<double>(nanos) / static_cast<double>(state.max_iterations);
}

}  // namespace latchkey::benchmarks

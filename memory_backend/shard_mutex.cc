#include "latchkey/memory_backend/shard_mutex.h"

#include <algorithm>
#include <thread>

#include "absl/time/clock.h"
#include "absl/time/time.h"

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace latchkey::memory_backend_internal {
namespace {

constexpr int kSpins = 60;
constexpr int kYields = 20;
constexpr absl::Duration kShortestNap = absl::Microseconds(20);
constexpr absl::Duration kLongestNap = absl::Milliseconds(1);

void Pause() {
#if defined(__x86_64__) || defined(__i386__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

void ShardMutex::LockSlowly() {
  absl::Duration nap = kShortestNap;
  for (int tries = 0;; ++tries) {
    // Only looks while it is taken: trying would fetch the cache line away from the holder.
    if (!taken_.load(std::memory_order_relaxed) &&
        !taken_.exchange(true, std::memory_order_acquire)) {
      return;
    }
    if (tries < kSpins) {
      Pause();
    } else if (tries < kSpins + kYields) {
      std::this_thread::yield();
    } else {
      absl::SleepFor(nap);
      nap = std::min(2 * nap, kLongestNap);
    }
  }
}

}  // namespace latchkey::memory_backend_internal

// The mutex of one shard of the in-memory backend: for sections of some ten nanoseconds that every
// acquire and every release goes through.
//
// A general mutex pays for its queue of sleepers with a second locked instruction, in unlock, which
// is a quarter of what an uncontended acquire and release cost here. This one has no queue: unlock
// is a plain store. Whoever finds it taken spins for a moment, then yields the processor, then naps
// for longer and longer (as folly's MicroSpinLock and Abseil's SpinLock do), so that a holder which
// the system has suspended gets to run. Those who wait for a *resource* never wait here: they queue
// in the manager and sleep.
//
// Thread safety: all methods may be called from any thread; Unlock only by the thread that locked.
#ifndef LATCHKEY_MEMORY_BACKEND_SHARD_MUTEX_H_
#define LATCHKEY_MEMORY_BACKEND_SHARD_MUTEX_H_

#include <atomic>

#include "absl/base/optimization.h"
#include "absl/base/thread_annotations.h"

namespace latchkey::memory_backend_internal {

class ABSL_LOCKABLE ShardMutex {
 public:
  ShardMutex() = default;
  ShardMutex(const ShardMutex&) = delete;
  ShardMutex& operator=(const ShardMutex&) = delete;

  void Lock() ABSL_EXCLUSIVE_LOCK_FUNCTION() {
    if (ABSL_PREDICT_FALSE(taken_.exchange(true, std::memory_order_acquire))) LockSlowly();
  }
  void Unlock() ABSL_UNLOCK_FUNCTION() { taken_.store(false, std::memory_order_release); }

  // Tells the thread annotations what they cannot see; checks nothing.
  void AssertHeld() const ABSL_ASSERT_EXCLUSIVE_LOCK() {}

 private:
  void LockSlowly();

  std::atomic<bool> taken_{false};
};

class ABSL_SCOPED_LOCKABLE ShardMutexLock {
 public:
  explicit ShardMutexLock(ShardMutex* mutex) ABSL_EXCLUSIVE_LOCK_FUNCTION(mutex) : mutex_(*mutex) {
    mutex_.Lock();
  }
  ~ShardMutexLock() ABSL_UNLOCK_FUNCTION() { mutex_.Unlock(); }
  ShardMutexLock(const ShardMutexLock&) = delete;
  ShardMutexLock& operator=(const ShardMutexLock&) = delete;

 private:
  ShardMutex& mutex_;
};

}  // namespace latchkey::memory_backend_internal

#endif  // LATCHKEY_MEMORY_BACKEND_SHARD_MUTEX_H_

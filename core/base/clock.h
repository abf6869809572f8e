// Clock is the library's only source of time: what the time is, and a call when it has come.
//
// The real one is RealClock(); tests use SimulatedClock (tests/support/simulated_clock.h), so that
// minutes of waiting take microseconds and every run is the same. Give the same Clock to a manager
// and to an in-memory backend.
//
// Thread safety: all methods may be called from any thread, also with a mutex of the library held.
// They must not throw.
#ifndef LATCHKEY_CORE_BASE_CLOCK_H_
#define LATCHKEY_CORE_BASE_CLOCK_H_

#include <cstdint>

#include "absl/functional/any_invocable.h"
#include "absl/time/time.h"

namespace latchkey {

class Clock {
 public:
  virtual ~Clock() = default;

  // Monotonic (it never goes back), and counting the time that the machine is suspended. The epoch
  // means nothing: use differences only.
  virtual absl::Time Now() = 0;

  // The same time scale, possibly some milliseconds behind, and cheaper. For ages in diagnostics.
  virtual absl::Time CoarseNow() { return Now(); }

  // CoarseNow() as nanoseconds since the Unix epoch, for those who store it for every lock.
  virtual int64_t CoarseNanos() { return absl::ToUnixNanos(CoarseNow()); }

  // Names a scheduled call; 0 is none.
  using TimerId = uint64_t;

  // Calls `callback`, which is not null, once, as soon as possible after `when` (at once if that is
  // past, but never before RunAt returns control to an outer RunAt's callback: calls do not nest).
  // It runs on the clock's own thread, with no mutex of the clock held, and must be short and must
  // not block: hand longer work to an Executor. It must not throw; the real clock logs what it
  // throws. `absl::InfiniteFuture()` never comes.
  virtual TimerId RunAt(absl::Time when, absl::AnyInvocable<void()> callback) = 0;

  // Cancels a call. True: it will not run. False: it ran, runs now on some thread, or the id is
  // none. Never waits, so it may be called with any mutex held; the callback must own what it
  // touches.
  virtual bool Cancel(TimerId timer) = 0;
};

// The real clock: CLOCK_BOOTTIME, and one thread that is started when the first timer is set. Lives
// until the process ends; nobody owns it.
Clock& RealClock();

}  // namespace latchkey

#endif  // LATCHKEY_CORE_BASE_CLOCK_H_

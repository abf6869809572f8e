// SimulatedClock is a Clock that stands still until a test moves it, so that minutes of waiting
// take microseconds and every run is the same.
//
//   SimulatedClock clock;
//   clock.RunAt(clock.Now() + absl::Seconds(5), [&] { fired = true; });
//   clock.AdvanceBy(absl::Seconds(5));   // fired == true; Now() is five seconds later
//
// Thread safety: all methods may be called from any thread. Timers run one at a time, on whichever
// thread advances.
#ifndef LATCHKEY_TESTS_SUPPORT_SIMULATED_CLOCK_H_
#define LATCHKEY_TESTS_SUPPORT_SIMULATED_CLOCK_H_

#include <cstddef>
#include <map>
#include <thread>
#include <unordered_map>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "latchkey/core/clock.h"

namespace latchkey {

class SimulatedClock : public Clock {
 public:
  // An hour after the epoch, so that a test may subtract without meeting negative times.
  explicit SimulatedClock(absl::Time start = absl::UnixEpoch() + absl::Hours(1)) : now_(start) {}

  // Timers that are set do not run any more. What their callbacks own may still call the clock
  // while it is destroyed with them; nobody else may.
  ~SimulatedClock() override;

  SimulatedClock(const SimulatedClock&) = delete;
  SimulatedClock& operator=(const SimulatedClock&) = delete;

  absl::Time Now() override;

  // As Clock says. Nothing runs here, not even what is due already: it runs when the clock is next
  // advanced (RunDue() advances by nothing), or within the advance that is under way.
  TimerId RunAt(absl::Time when, absl::AnyInvocable<void()> callback) override;

  bool Cancel(TimerId timer) override;

  // Moves the time to `when` and runs what is due by then (`<= when`), on the calling thread, in
  // the order of time and then of scheduling, each with Now() at the time it was set for. Timers
  // that are set meanwhile and are due are included. A time that is past only runs what is due.
  //
  // If another thread is advancing, waits until it is done. Inside a timer's callback it extends
  // the advance under way to `when`, and returns before that has happened.
  void AdvanceTo(absl::Time when);
  void AdvanceBy(absl::Duration duration);

  // Runs what is due now.
  void RunDue() { AdvanceTo(absl::InfinitePast()); }

  // Advances to the next timer and runs all that is due then. False if there is no timer.
  bool AdvanceToNextTimer();

  // How many timers are set and have not begun to run.
  size_t PendingTimers() const;

  // When the next timer is due; infinite future if there is none.
  absl::Time NextTimer() const;

 private:
  mutable absl::Mutex mu_;
  absl::Time now_ ABSL_GUARDED_BY(mu_);
  // How far the advance under way goes.
  absl::Time target_ ABSL_GUARDED_BY(mu_) = absl::InfinitePast();
  // The thread that advances; none if default-constructed.
  std::thread::id advancing_ ABSL_GUARDED_BY(mu_);
  TimerId last_id_ ABSL_GUARDED_BY(mu_) = 0;
  std::map<std::pair<absl::Time, TimerId>, absl::AnyInvocable<void()>> timers_ ABSL_GUARDED_BY(mu_);
  std::unordered_map<TimerId, absl::Time> when_ ABSL_GUARDED_BY(mu_);
};

}  // namespace latchkey

#endif  // LATCHKEY_TESTS_SUPPORT_SIMULATED_CLOCK_H_

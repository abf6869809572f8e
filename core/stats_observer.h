// StatsObserver counts what happens to a manager's locks and prints it for Prometheus.
//
//   auto stats = std::make_shared<StatsObserver>();
//   LockManager::Create(NewMemoryBackend(), {.observer = stats});
//   ...
//   response.body = stats->PrometheusText();
//
// Names of resources are not part of it, since they have no bound.
//
// Thread safety: all methods may be called from any thread. Several managers may share one; it
// counts all of them together.
#ifndef LATCHKEY_CORE_STATS_OBSERVER_H_
#define LATCHKEY_CORE_STATS_OBSERVER_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "latchkey/core/base/lock_error.h"
#include "latchkey/core/base/observer.h"

namespace latchkey {

// How often durations fell into fixed ranges.
class DurationHistogram {
 public:
  // The upper ends of the ranges, in seconds; the last one has none.
  static constexpr std::array<double, 14> kBounds = {1e-6, 1e-5, 1e-4, 1e-3, 5e-3, 1e-2, 5e-2,
                                                     0.1,  0.5,  1,    5,    10,   30,   60};

  // A negative duration counts as zero, and one of more than 100 years as 100 years.
  void Add(absl::Duration duration);

  // How many in all, and how many of them at most kBounds[i] (all, if `i` is the last range).
  int64_t count() const { return CountUpTo(kBounds.size()); }
  int64_t CountUpTo(size_t i) const;
  // Of all durations; exact to the nanosecond, and never less than before.
  absl::Duration sum() const;

 private:
  void AddSlowly(absl::Duration duration);

  std::array<std::atomic<int64_t>, kBounds.size() + 1> ranges_{};
  // The sum is both together. What is in the first is moved to the second before it overflows.
  std::atomic<int64_t> nanoseconds_{0};
  mutable absl::Mutex mu_;
  absl::Duration carried_ ABSL_GUARDED_BY(mu_);
};

class StatsObserver : public Observer {
 public:
  int64_t acquired() const { return wait_time_.count(); }
  int64_t released() const { return hold_time_.count(); }
  int64_t preempted() const { return Read(preempted_); }
  int64_t stolen() const { return Read(stolen_); }
  int64_t expired() const { return Read(expired_); }
  int64_t lost() const { return Read(lost_); }
  // How many failed, for all reasons or for one.
  int64_t denied() const;
  int64_t denied(Reason reason) const { return Read(denied_[static_cast<size_t>(reason)]); }
  // How many hold, and wait, now. An owner that has entered a lock twice holds it twice here, as
  // everything is counted by handle.
  int64_t held() const { return acquired() - released() - stolen() - expired() - lost(); }
  int64_t waiting() const { return Read(waiting_); }

  // From the request to the grant; from the grant to the release.
  const DurationHistogram& wait_time() const { return wait_time_; }
  const DurationHistogram& hold_time() const { return hold_time_; }

  // All of it in Prometheus' text format, version 0.0.4. Every name begins with `prefix` and '_';
  // with an empty one it has neither. A name may consist of letters, digits, '_' and ':' and begin
  // with no digit: whatever else is in `prefix` becomes '_', and one that begins with a digit gets
  // a
  // '_' before it.
  std::string PrometheusText(std::string_view prefix = "latchkey") const;

  void OnAcquired(const Subject& who, absl::Duration waited) override;
  void OnDenied(const Subject& who, absl::Duration waited, const absl::Status& why) override;
  void OnQueueLength(std::string_view resource, int64_t length, int64_t change) override;
  void OnPreempted(const Subject& who, Priority thief_priority) override;
  void OnStolen(const Subject& who) override;
  void OnExpired(const Subject& who) override;
  void OnLost(const Subject& who) override;
  void OnReleased(const Subject& who, absl::Duration held) override;

 private:
  using Counter = std::atomic<int64_t>;
  static constexpr size_t kReasons = static_cast<size_t>(Reason::kMovedFrom) + 1;

  static int64_t Read(const Counter& counter) { return counter.load(std::memory_order_relaxed); }
  static void Count(Counter& counter) { counter.fetch_add(1, std::memory_order_relaxed); }

  Counter waiting_{0};
  Counter preempted_{0};
  Counter stolen_{0};
  Counter expired_{0};
  Counter lost_{0};
  std::array<Counter, kReasons> denied_{};
  DurationHistogram wait_time_;
  DurationHistogram hold_time_;
};

}  // namespace latchkey

#endif  // LATCHKEY_CORE_STATS_OBSERVER_H_

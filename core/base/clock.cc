#include "latchkey/core/base/clock.h"

#include <time.h>

#include <algorithm>
#include <map>
#include <thread>
#include <unordered_map>
#include <utility>

#include "absl/base/no_destructor.h"
#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "latchkey/core/base/contain.h"

namespace latchkey {
namespace {

absl::Time ReadClock(clockid_t id) {
  timespec now;
  clock_gettime(id, &now);
  return absl::TimeFromTimespec(now);
}

class RealClockImpl : public Clock {
 public:
  absl::Time Now() override { return ReadClock(CLOCK_BOOTTIME); }

  // There is no coarse CLOCK_BOOTTIME; the two differ only by the time spent suspended, which was
  // measured once.
  absl::Time CoarseNow() override { return ReadClock(CLOCK_MONOTONIC_COARSE) + suspended_; }

  int64_t CoarseNanos() override {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec + suspended_nanos_;
  }

  TimerId RunAt(absl::Time when, absl::AnyInvocable<void()> callback) override {
    if (when == absl::InfiniteFuture()) return 0;
    absl::MutexLock lock(&mu_);
    if (!started_) {
      started_ = true;
      std::thread([this] { Loop(); }).detach();
    }
    const TimerId id = ++last_id_;
    calls_.emplace(std::make_pair(when, id), std::move(callback));
    due_.emplace(id, when);
    if (when < looks_at_) wake_.Signal();
    return id;
  }

  bool Cancel(TimerId timer) override {
    if (timer == 0) return false;
    absl::AnyInvocable<void()> dropped;  // Destroyed after the mutex is free.
    absl::MutexLock lock(&mu_);
    const auto due = due_.find(timer);
    if (due == due_.end()) return false;
    const auto call = calls_.find({due->second, timer});
    dropped = std::move(call->second);
    calls_.erase(call);
    due_.erase(due);
    return true;
  }

 private:
  // Wakes at least this often, since waiting itself does not count the time spent suspended.
  static constexpr absl::Duration kLongestNap = absl::Seconds(1);

  void Loop() ABSL_LOCKS_EXCLUDED(mu_) {
    absl::ReleasableMutexLock lock(&mu_);
    TimerId known = 0;
    for (;;) {
      if (calls_.empty() && known == last_id_) {
        looks_at_ = absl::InfiniteFuture();
        wake_.Wait(&mu_);
        looks_at_ = absl::InfinitePast();
        continue;
      }
      known = last_id_;
      const absl::Time now = Now();
      // What was set and cancelled by now is likely to be set again.
      const absl::Duration nap =
          calls_.empty() ? kLongestNap : std::min(calls_.begin()->first.first - now, kLongestNap);
      if (nap > absl::ZeroDuration()) {
        looks_at_ = now + nap;
        wake_.WaitWithTimeout(&mu_, nap);
        looks_at_ = absl::InfinitePast();
        continue;
      }
      auto node = calls_.extract(calls_.begin());
      due_.erase(node.key().second);
      mu_.Unlock();
      internal::RunContained("a call of the clock", "", node.mapped());
      node.mapped() = nullptr;
      mu_.Lock();
    }
  }

  const absl::Duration suspended_ = ReadClock(CLOCK_BOOTTIME) - ReadClock(CLOCK_MONOTONIC);
  const int64_t suspended_nanos_ = absl::ToInt64Nanoseconds(suspended_);
  absl::Mutex mu_;
  absl::CondVar wake_;
  bool started_ ABSL_GUARDED_BY(mu_) = false;
  // When the thread will look at the calls without being woken; the past while it is awake. A call
  // that was cancelled leaves it as it was: leases are set and cancelled all the time, and waking a
  // thread costs more than the rest of it.
  absl::Time looks_at_ ABSL_GUARDED_BY(mu_) = absl::InfinitePast();
  TimerId last_id_ ABSL_GUARDED_BY(mu_) = 0;
  // By time, then by order of scheduling: both find and cancel in O(log n).
  std::map<std::pair<absl::Time, TimerId>, absl::AnyInvocable<void()>> calls_ ABSL_GUARDED_BY(mu_);
  std::unordered_map<TimerId, absl::Time> due_ ABSL_GUARDED_BY(mu_);
};

}  // namespace

Clock& RealClock() {
  static absl::NoDestructor<RealClockImpl> clock;
  return *clock;
}

}  // namespace latchkey

#include "latchkey/tests/support/simulated_clock.h"

#include <algorithm>

namespace latchkey {

SimulatedClock::~SimulatedClock() {
  // One at a time, without the mutex: what a callback owns may cancel others, and set new ones.
  for (;;) {
    std::map<std::pair<absl::Time, TimerId>, absl::AnyInvocable<void()>>::node_type timer;
    absl::MutexLock lock(&mu_);
    if (timers_.empty()) return;
    timer = timers_.extract(timers_.begin());
    when_.erase(timer.key().second);
  }
}

absl::Time SimulatedClock::Now() {
  absl::MutexLock lock(&mu_);
  return now_;
}

Clock::TimerId SimulatedClock::RunAt(absl::Time when, absl::AnyInvocable<void()> callback) {
  if (when == absl::InfiniteFuture()) return 0;
  absl::MutexLock lock(&mu_);
  const TimerId id = ++last_id_;
  timers_.emplace(std::make_pair(when, id), std::move(callback));
  when_.emplace(id, when);
  return id;
}

bool SimulatedClock::Cancel(TimerId timer) {
  absl::AnyInvocable<void()> dropped;  // Destroyed after the mutex is free.
  absl::MutexLock lock(&mu_);
  const auto when = when_.find(timer);
  if (when == when_.end()) return false;
  const auto entry = timers_.find({when->second, timer});
  dropped = std::move(entry->second);
  timers_.erase(entry);
  when_.erase(when);
  return true;
}

void SimulatedClock::AdvanceTo(absl::Time when) {
  const std::thread::id me = std::this_thread::get_id();
  absl::ReleasableMutexLock lock(&mu_);
  if (advancing_ == me) {
    target_ = std::max(target_, when);
    return;
  }
  const auto nobody_advances = [this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) {
    return advancing_ == std::thread::id();
  };
  mu_.Await(absl::Condition(&nobody_advances));
  advancing_ = me;
  target_ = std::max(now_, when);
  while (!timers_.empty() && timers_.begin()->first.first <= target_) {
    auto timer = timers_.extract(timers_.begin());
    when_.erase(timer.key().second);
    now_ = std::max(now_, timer.key().first);
    mu_.Unlock();
    timer.mapped()();
    timer.mapped() = nullptr;
    mu_.Lock();
  }
  now_ = target_;
  advancing_ = std::thread::id();
}

void SimulatedClock::AdvanceBy(absl::Duration duration) { AdvanceTo(Now() + duration); }

bool SimulatedClock::AdvanceToNextTimer() {
  const absl::Time next = NextTimer();
  if (next == absl::InfiniteFuture()) return false;
  AdvanceTo(next);
  return true;
}

size_t SimulatedClock::PendingTimers() const {
  absl::MutexLock lock(&mu_);
  return timers_.size();
}

absl::Time SimulatedClock::NextTimer() const {
  absl::MutexLock lock(&mu_);
  return timers_.empty() ? absl::InfiniteFuture() : timers_.begin()->first.first;
}

}  // namespace latchkey

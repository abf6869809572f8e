// The office lights: three tasks, each a real thread, that want the same lights with different
// urgency.
//
//   save energy       priority 0    switches lights off when it can, and yields when it is asked to
//   motion detected   priority 100  takes the light from it, but enters only after it has yielded
//   security          priority 200  wants the kitchen and the bedroom light, both at once
//
// Run it with:  ./bazelw run //examples:office_lights
#include <chrono>
#include <iostream>
#include <string>
#include <string_view>
#include <thread>

#include "absl/status/statusor.h"
#include "absl/strings/str_format.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "latchkey/core/lock_manager.h"
#include "latchkey/memory_backend/memory_backend.h"

namespace {

using latchkey::Lock;
using latchkey::LockManager;
using latchkey::LockSet;

// Prints who did what, and when.
class Timeline {
 public:
  void Note(std::string_view who, std::string_view what) {
    const absl::MutexLock lock(&mu_);
    const double ms = absl::ToDoubleMilliseconds(absl::Now() - begin_);
    std::cout << absl::StreamFormat("%7.1f ms  %-16s %s\n", ms, who, what);
  }

 private:
  absl::Mutex mu_;
  const absl::Time begin_ = absl::Now();
};

// Someone's work under the lock: a few steps, stopped between two of them if asked to.
template <typename AnyLock>
bool Work(Timeline& timeline, std::string_view who, AnyLock& lock, int steps) {
  const std::stop_token stop = lock.stop_token();
  for (int step = 1; step <= steps; ++step) {
    if (stop.stop_requested()) {
      timeline.Note(who, "is asked to yield; cleans up and leaves");
      return false;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return true;
}

int Main() {
  absl::StatusOr<LockManager> locks = LockManager::Create(latchkey::NewMemoryBackend());
  if (!locks.ok()) {
    std::cerr << locks.status() << "\n";
    return 1;
  }
  Timeline timeline;
  absl::Notification energy_inside;
  absl::Notification motion_inside;
  absl::Notification security_inside;
  int failures = 0;

  std::thread save_energy([&] {
    constexpr std::string_view kWho = "save energy";
    for (int round = 1; round <= 2; ++round) {
      timeline.Note(kWho, "wants the kitchen light");
      absl::StatusOr<Lock> lock = locks->Acquire("kitchen light", {.owner = "save energy"});
      if (!lock.ok()) {
        timeline.Note(kWho, lock.status().message());
        return;
      }
      timeline.Note(kWho, absl::StrFormat("HOLDS the kitchen light (fencing token %d)",
                                          lock->fencing_token()));
      if (round == 1) energy_inside.Notify();
      // In the first round it goes on until somebody more important comes.
      const bool finished = Work(timeline, kWho, *lock, round == 1 ? 1'000'000 : 3);
      timeline.Note(
          kWho, finished ? "is done; releases the kitchen light" : "releases the kitchen light");
    }
  });

  std::thread motion_detected([&] {
    constexpr std::string_view kWho = "motion detected";
    energy_inside.WaitForNotification();
    timeline.Note(kWho, "wants the kitchen light, priority 100");
    absl::StatusOr<Lock> lock =
        locks->Acquire("kitchen light", {.owner = "motion detected", .priority = 100});
    if (!lock.ok()) {
      timeline.Note(kWho, lock.status().message());
      return;
    }
    timeline.Note(
        kWho, absl::StrFormat("HOLDS the kitchen light (fencing token %d)", lock->fencing_token()));
    motion_inside.Notify();
    const bool finished = Work(timeline, kWho, *lock, 1'000'000);
    if (finished) ++failures;
    timeline.Note(kWho, "releases the kitchen light");
  });

  std::thread security([&] {
    constexpr std::string_view kWho = "security";
    motion_inside.WaitForNotification();
    timeline.Note(kWho, "wants the kitchen and the bedroom light as one, priority 200");
    absl::StatusOr<LockSet> both = locks->AcquireAll({"kitchen light", "bedroom light"},
                                                     {.owner = "security", .priority = 200});
    if (!both.ok()) {
      timeline.Note(kWho, both.status().message());
      return;
    }
    timeline.Note(kWho, "HOLDS both lights");
    security_inside.Notify();
    Work(timeline, kWho, *both, 3);
    timeline.Note(kWho, "is done; releases both lights");
  });

  save_energy.join();
  motion_detected.join();
  security.join();
  timeline.Note("everybody", "is done; nothing is locked any more");
  if (!security_inside.HasBeenNotified() || locks->IsBusy()) ++failures;
  return failures;
}

}  // namespace

int main() { return Main(); }

// Policies: who waits, in what order, and who may take whose lock. The how-to pages quote this
// file.
#include <cstdint>
#include <iostream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/numeric/int128.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "latchkey/core/lock_manager.h"
#include "latchkey/core/policy/admission_policy.h"
#include "latchkey/core/policy/preemption_policy.h"
#include "latchkey/core/policy/queue_policy.h"
#include "latchkey/core/policy/retry_policy.h"
#include "latchkey/core/stats_observer.h"
#include "latchkey/memory_backend/memory_backend.h"

namespace {

using latchkey::AcquireOptions;
using latchkey::Lock;
using latchkey::LockContext;
using latchkey::LockManager;

// Requests of one class of urgency, whatever their exact priority, in the order of their arrival.
class ByClass : public latchkey::QueuePolicy {
 public:
  absl::int128 Rank(const latchkey::WaitingRequest& request) const override {
    const latchkey::Priority urgency = request.priority / 100;
    return -absl::int128(urgency);
  }
};

// People may interrupt machines (priorities below 100), and nobody else anybody.
class PeopleFirst : public latchkey::PreemptionPolicy {
 public:
  latchkey::PreemptionDecision Decide(latchkey::Priority priority) const override {
    if (priority < 100) return {};
    return {.reserve_below = 100};
  }
};

// Rejects what is not urgent as soon as ten wait.
class KeepRoomForTheUrgent : public latchkey::AdmissionPolicy {
 public:
  latchkey::Admission Decide(const latchkey::AdmissionContext& context) const override {
    const bool crowded = context.pending_on_resource >= 10;
    return crowded && context.priority < 100 ? latchkey::Admission::kReject
                                             : latchkey::Admission::kAdmit;
  }
};

// Asks again when the lease in the way ends, and not before.
class WhenItEnds : public latchkey::RetryPolicy {
 public:
  absl::Duration Delay(const latchkey::RetryContext& context) const override {
    return context.remaining_lease + absl::Milliseconds(10) * context.random;
  }
};

bool OwnPolicies() {
  absl::StatusOr<LockManager> locks = LockManager::Create(
      latchkey::NewMemoryBackend(), {.admission = std::make_shared<KeepRoomForTheUrgent>(),
                                     .queue = std::make_shared<ByClass>(),
                                     .preemption = std::make_shared<PeopleFirst>(),
                                     .retry = std::make_shared<WhenItEnds>()});
  absl::StatusOr<Lock> machine = locks->Acquire("lights", {.priority = 5});
  bool asked = false;
  machine->OnYieldRequested([&] { asked = true; });
  locks->AcquireAsync("lights", {.priority = 9}, [](absl::StatusOr<Lock>) {});
  if (asked) return false;
  locks->AcquireAsync("lights", {.priority = 150}, [](absl::StatusOr<Lock>) {});
  return asked;
}

bool ReadyMade() {
  auto stats = std::make_shared<latchkey::StatsObserver>();
  absl::StatusOr<LockManager> locks = LockManager::Create(
      latchkey::NewMemoryBackend(),
      {.admission = latchkey::ShedLowestPriority({.per_resource = 100}),
       .queue = latchkey::AgeingQueue({.step = absl::Milliseconds(100)}),
       .preemption = latchkey::ForceAfter(absl::Seconds(2), latchkey::PreemptByMargin(10)),
       .observer = stats});
  if (!locks.ok()) return false;

  // One request may have policies of its own.
  absl::StatusOr<Lock> polite = locks->Acquire("lights", {.priority = 50,
                                                          .acquire_timeout = absl::Seconds(5),
                                                          .preemption = latchkey::NeverPreempt()});
  return polite.ok() && stats->acquired() == 1;
}

bool Bodies() {
  absl::StatusOr<LockManager> locks = LockManager::Create(latchkey::NewMemoryBackend());
  const AcquireOptions options = {.acquire_timeout = absl::Seconds(5),
                                  .max_execution_time = absl::Minutes(1)};
  absl::StatusOr<int> pages =
      locks->Run("report", options, [](LockContext& context) -> absl::StatusOr<int> {
        int written = 0;
        while (written < 10) {
          if (absl::Status stop = context.CheckPoint(); !stop.ok()) return stop;
          ++written;
        }
        latchkey::NonPreemptibleScope commit(context);
        return written;  // Nobody interrupts the commit.
      });

  // A body that finishes later: the lock is held until `finish` is called.
  std::vector<LockManager::FinishWith<int>> jobs;
  int printed = 0;
  locks->RunAsync<int>(
      "printer", options,
      [&](LockContext, LockManager::FinishWith<int> finish) { jobs.push_back(std::move(finish)); },
      [&](absl::StatusOr<int> sheets) { printed += sheets.value_or(0); });
  jobs.front()(12);

  // Under several locks as one.
  absl::Status night = locks->RunAll({"kitchen light", "bedroom light"}, {.priority = 100},
                                     [](LockContext& context) { return context.CheckPoint(); });
  return pages.ok() && *pages == 10 && printed == 12 && night.ok();
}

bool LookingIn() {
  auto stats = std::make_shared<latchkey::StatsObserver>();
  absl::StatusOr<LockManager> locks =
      LockManager::Create(latchkey::NewMemoryBackend(), {.observer = stats});
  absl::StatusOr<Lock> held = locks->Acquire("orders/42", {.owner = "billing", .priority = 3});
  locks->AcquireAsync("orders/42", {.owner = "audit"}, [](absl::StatusOr<Lock>) {});

  for (const latchkey::ResourceSnapshot& resource : locks->Snapshot()) {
    std::cerr << resource.state.resource << " is held by " << resource.state.holder_owner << ", "
              << resource.waiters.size() << " wait\n";
  }
  const std::string metrics = stats->PrometheusText();  // latchkey_waiting 1 ...
  return locks->IsBusy("orders/42") && !locks->IsBusy("orders/43") &&
         metrics.find("latchkey_waiting 1") != std::string::npos;
}

bool Reasons() {
  absl::StatusOr<LockManager> locks = LockManager::Create(latchkey::NewMemoryBackend());
  absl::StatusOr<Lock> held = locks->Acquire("orders/42", {.owner = "billing"});

  absl::StatusOr<Lock> lock =
      locks->Acquire("orders/42", {.acquire_timeout = absl::ZeroDuration()});
  switch (latchkey::ReasonOf(lock.status())) {
    case latchkey::Reason::kNone:
      return false;
    case latchkey::Reason::kAcquireTimeout:
      std::cerr << lock.status().message() << "\n";  // ... held by 'billing' with priority 0
      return true;
    default:
      return false;
  }
}

}  // namespace

int main() {
  const bool right = OwnPolicies() && ReadyMade() && Bodies() && LookingIn() && Reasons();
  std::cout << (right ? "all as it should be\n" : "something is wrong\n");
  return right ? 0 : 1;
}

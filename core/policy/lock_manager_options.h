// What a LockManager is made with. Every field has a default.
#ifndef LATCHKEY_CORE_POLICY_LOCK_MANAGER_OPTIONS_H_
#define LATCHKEY_CORE_POLICY_LOCK_MANAGER_OPTIONS_H_

#include <cstdint>
#include <memory>

#include "latchkey/core/base/clock.h"
#include "latchkey/core/base/executor.h"
#include "latchkey/core/base/observer.h"
#include "latchkey/core/policy/admission_policy.h"
#include "latchkey/core/policy/preemption_policy.h"
#include "latchkey/core/policy/queue_policy.h"
#include "latchkey/core/policy/retry_policy.h"

namespace latchkey {

struct LockManagerOptions {
  // Null: RealClock(), InlineExecutor().
  Clock* clock = nullptr;
  Executor* executor = nullptr;

  // Null: LimitPending(), PriorityQueue(), PreemptLower(), ExponentialBackoff().
  std::shared_ptr<const AdmissionPolicy> admission = nullptr;
  std::shared_ptr<const QueuePolicy> queue = nullptr;
  std::shared_ptr<const PreemptionPolicy> preemption = nullptr;
  std::shared_ptr<const RetryPolicy> retry = nullptr;

  // Hears what happens; null: nobody.
  std::shared_ptr<Observer> observer = nullptr;

  // Seeds the jitter of back-off, for runs that can be repeated; 0: from the system.
  uint64_t random_seed = 0;

  // Fail a request (kDeadlock) that would wait for ever because named owners wait for each other in
  // a cycle. Every wait of a named owner counts, also one with a timeout, for a hold whose lease
  // will end, or for a holder that was asked to yield; not one that takes by force after a grace,
  // and not one of a set that gives back what it holds to whoever waits for that.
  bool detect_deadlocks = true;
};

}  // namespace latchkey

#endif  // LATCHKEY_CORE_POLICY_LOCK_MANAGER_OPTIONS_H_

// PreemptionPolicy decides which holders a request may take the lock from, and how long it waits
// for them to yield.
//
//   locks.Acquire("lights", {.priority = 100, .preemption = ForceAfter(absl::Seconds(2))});
//
// Whatever it says, only a strictly lower priority is ever preempted, and a holder that is not
// `preemptible` never is, by force or not: it is waited for, however long it renews its lease.
//
// Thread safety: policies are stateless and called from any thread, also at once. They must not
// call the library, not block and not throw. If a method throws all the same, the request that it
// was asked about fails with kInternal (Reason::kException).
#ifndef LATCHKEY_CORE_POLICY_PREEMPTION_POLICY_H_
#define LATCHKEY_CORE_POLICY_PREEMPTION_POLICY_H_

#include <memory>
#include <optional>

#include "absl/time/time.h"
#include "latchkey/core/base/lease.h"

namespace latchkey {

struct PreemptionDecision {
  // Holders whose priority is below this (and below the request's own) may be asked to yield. None:
  // no holder may.
  std::optional<Priority> reserve_below = std::nullopt;
  // How long such a holder has; a negative one counts as zero. Infinite: until it yields or its
  // lease ends (acknowledged). Finite: then the lock is taken by force, and only the fencing token
  // protects the resource from a holder that has not noticed.
  absl::Duration grace = absl::InfiniteDuration();
};

class PreemptionPolicy {
 public:
  virtual ~PreemptionPolicy() = default;
  // Called once for each request, before it first asks the backend.
  virtual PreemptionDecision Decide(Priority priority) const = 0;
};

// Every holder of strictly lower priority, acknowledged: the default.
std::shared_ptr<const PreemptionPolicy> PreemptLower();

// Only holders at least `margin` below; a margin under 1 counts as 1.
std::shared_ptr<const PreemptionPolicy> PreemptByMargin(Priority margin);

// Nobody: priority only orders the queue.
std::shared_ptr<const PreemptionPolicy> NeverPreempt();

// As `base` (null: PreemptLower()), by force after `grace`; a negative one counts as zero.
std::shared_ptr<const PreemptionPolicy> ForceAfter(
    absl::Duration grace, std::shared_ptr<const PreemptionPolicy> base = nullptr);

}  // namespace latchkey

#endif  // LATCHKEY_CORE_POLICY_PREEMPTION_POLICY_H_

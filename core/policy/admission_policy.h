// AdmissionPolicy decides whether a request may wait at all, so that every queue has a bound.
//
// It is asked when it is certain that the request would have to wait: it has been denied, or has
// reserved, or others wait already. A free lock needs no admission, and a request whose first
// answer is under way counts for nobody.
//
// Thread safety: policies are stateless and called from any thread, also at once. They must not
// call the library, not block and not throw. If a method throws all the same, the request that it
// was asked about fails with kInternal (Reason::kException), and nobody is shed for it.
#ifndef LATCHKEY_CORE_POLICY_ADMISSION_POLICY_H_
#define LATCHKEY_CORE_POLICY_ADMISSION_POLICY_H_

#include <cstdint>
#include <limits>
#include <memory>
#include <string>

#include "latchkey/core/base/lease.h"

namespace latchkey {

// What a policy may look at when a request would begin to wait.
struct AdmissionContext {
  Priority priority = 0;
  // How many wait for the resource, and in the whole manager, not counting this one. Whoever gave
  // up no longer counts.
  int64_t pending_on_resource = 0;
  int64_t pending_in_total = 0;
  // The lowest priority among those who wait for the resource; meaningless if nobody does.
  Priority lowest_pending_priority = 0;
};

enum class Admission {
  kAdmit,
  kReject,      // Fails with kTooManyPending.
  kShedLowest,  // Admits it, and the last of the lowest priority on this resource fails instead.
};

class AdmissionPolicy {
 public:
  virtual ~AdmissionPolicy() = default;
  virtual Admission Decide(const AdmissionContext& context) const = 0;
  // For the error of whoever is not admitted, or is shed, in these circumstances: which limit was
  // met, and how many wait. By default it says how many wait.
  virtual std::string Explain(const AdmissionContext& context) const;
};

struct PendingLimits {
  static constexpr int64_t kUnlimited = std::numeric_limits<int64_t>::max();
  // How many may wait; 0: nobody. A negative number counts as 0.
  int64_t per_resource = 1000;
  int64_t in_total = kUnlimited;
};

// No bound.
std::shared_ptr<const AdmissionPolicy> AdmitAll();

// At most so many; later ones are rejected. With its defaults (1000 for each resource) this is the
// default policy.
std::shared_ptr<const AdmissionPolicy> LimitPending(PendingLimits limits = {});

// At most so many; when the resource's queue or the total is full, a request of higher priority
// than the lowest that waits for the same resource takes its place, and that one is rejected.
std::shared_ptr<const AdmissionPolicy> ShedLowestPriority(PendingLimits limits = {});

}  // namespace latchkey

#endif  // LATCHKEY_CORE_POLICY_ADMISSION_POLICY_H_

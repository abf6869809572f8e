// RetryPolicy decides when a waiting request asks the backend again although nothing woke it.
//
// Backends that deliver events reliably (the in-memory one) need no such polling and are not asked
// again; for the others a poll bounds what a lost notification costs. On every backend the policy
// says how long a set (AcquireAll) pauses that lost a reservation or a member before it was
// complete, and gave everything back.
//
// Thread safety: policies are stateless and called from any thread, also at once. They must not
// call the library, not block and not throw. If a method throws all the same, the request that it
// was asked about fails with kInternal (Reason::kException).
#ifndef LATCHKEY_CORE_POLICY_RETRY_POLICY_H_
#define LATCHKEY_CORE_POLICY_RETRY_POLICY_H_

#include <memory>

#include "absl/time/time.h"

namespace latchkey {

struct RetryContext {
  // How often this request was answered "denied" so far; after a failure of the backend, how many
  // failures there were in a row; for a set that pauses, how often it has done so. At least 1.
  int attempts = 1;
  // What is left of the lease that is in the way; infinite if it has no end, after a failure of the
  // backend, and for a set. Waiting much longer than this wastes time.
  absl::Duration remaining_lease = absl::InfiniteDuration();
  // A fresh random number, uniform in [0, 1).
  double random = 0;
};

class RetryPolicy {
 public:
  virtual ~RetryPolicy() = default;
  // How long to wait before asking again; infinite: only when woken, and after a failure of the
  // backend not at all, so that the request fails with it. The manager waits at least 1 ms,
  // whatever it says, so that no policy keeps a thread busy; and after a failure at most half of
  // the time for which the request goes on (AcquireOptions::outage_patience).
  virtual absl::Duration Delay(const RetryContext& context) const = 0;
};

struct BackoffOptions {
  absl::Duration initial = absl::Milliseconds(50);  // Positive.
  absl::Duration max = absl::Seconds(2);            // At least `initial`.
  double multiplier = 2;                            // At least 1.
};

// Exponential back-off with full jitter, bounded by the remaining lease: the default. The n-th
// delay is uniform between 0 and min(initial * multiplier^(n-1), max), and when the lease in the
// way ends sooner, that end plus a jitter of a tenth. (Marc Brooker, "Exponential Backoff And
// Jitter", AWS Architecture Blog, 2015.)
std::shared_ptr<const RetryPolicy> ExponentialBackoff(BackoffOptions options = {});

// Always the same delay.
std::shared_ptr<const RetryPolicy> FixedDelay(absl::Duration delay);

// Only when woken. On a backend whose notifications may be lost, a request may then wait until its
// timeout; one that the backend fails ends with that failure.
std::shared_ptr<const RetryPolicy> NoRetry();

}  // namespace latchkey

#endif  // LATCHKEY_CORE_POLICY_RETRY_POLICY_H_

#include "latchkey/core/policy/retry_policy.h"

#include <algorithm>
#include <cmath>

namespace latchkey {
namespace {

class BackoffPolicy : public RetryPolicy {
 public:
  explicit BackoffPolicy(const BackoffOptions& options) : options_(options) {}
  absl::Duration Delay(const RetryContext& context) const override {
    const double growth = std::pow(std::max(options_.multiplier, 1.0), context.attempts - 1);
    const absl::Duration ceiling = std::min(options_.initial * growth, options_.max);
    const absl::Duration delay = ceiling * context.random;
    // No sense in asking much later than the lease in the way ends.
    const absl::Duration lease_end = context.remaining_lease * (1 + context.random / 10);
    return std::min(delay, lease_end);
  }

 private:
  const BackoffOptions options_;
};

class FixedDelayPolicy : public RetryPolicy {
 public:
  explicit FixedDelayPolicy(absl::Duration delay) : delay_(delay) {}
  absl::Duration Delay(const RetryContext&) const override { return delay_; }

 private:
  const absl::Duration delay_;
};

}  // namespace

std::shared_ptr<const RetryPolicy> ExponentialBackoff(BackoffOptions options) {
  return std::make_shared<BackoffPolicy>(options);
}

std::shared_ptr<const RetryPolicy> FixedDelay(absl::Duration delay) {
  return std::make_shared<FixedDelayPolicy>(delay);
}

std::shared_ptr<const RetryPolicy> NoRetry() { return FixedDelay(absl::InfiniteDuration()); }

}  // namespace latchkey

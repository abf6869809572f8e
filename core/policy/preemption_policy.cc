#include "latchkey/core/policy/preemption_policy.h"

#include <algorithm>
#include <limits>
#include <utility>

namespace latchkey {
namespace {

class MarginPolicy : public PreemptionPolicy {
 public:
  explicit MarginPolicy(Priority margin) : margin_(std::max<Priority>(margin, 1)) {}
  PreemptionDecision Decide(Priority priority) const override {
    // holder <= priority - margin, that is holder < priority - (margin - 1).
    constexpr Priority kLowest = std::numeric_limits<Priority>::min();
    const Priority below = margin_ - 1;
    if (priority < kLowest + below) return {};  // Nothing is that low.
    return {.reserve_below = priority - below};
  }

 private:
  const Priority margin_;
};

class NeverPolicy : public PreemptionPolicy {
 public:
  PreemptionDecision Decide(Priority) const override { return {}; }
};

class ForcePolicy : public PreemptionPolicy {
 public:
  ForcePolicy(absl::Duration grace, std::shared_ptr<const PreemptionPolicy> base)
      : grace_(std::max(grace, absl::ZeroDuration())), base_(std::move(base)) {}
  PreemptionDecision Decide(Priority priority) const override {
    PreemptionDecision decision = base_->Decide(priority);
    decision.grace = std::min(decision.grace, grace_);
    return decision;
  }

 private:
  const absl::Duration grace_;
  const std::shared_ptr<const PreemptionPolicy> base_;
};

}  // namespace

std::shared_ptr<const PreemptionPolicy> PreemptLower() { return PreemptByMargin(1); }

std::shared_ptr<const PreemptionPolicy> PreemptByMargin(Priority margin) {
  return std::make_shared<MarginPolicy>(margin);
}

std::shared_ptr<const PreemptionPolicy> NeverPreempt() { return std::make_shared<NeverPolicy>(); }

std::shared_ptr<const PreemptionPolicy> ForceAfter(absl::Duration grace,
                                                   std::shared_ptr<const PreemptionPolicy> base) {
  if (base == nullptr) base = PreemptLower();
  return std::make_shared<ForcePolicy>(grace, std::move(base));
}

}  // namespace latchkey

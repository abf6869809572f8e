#include "latchkey/core/policy/admission_policy.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace latchkey {
namespace {

class AdmitAllPolicy : public AdmissionPolicy {
 public:
  Admission Decide(const AdmissionContext&) const override { return Admission::kAdmit; }
};

class LimitPolicy : public AdmissionPolicy {
 public:
  LimitPolicy(PendingLimits limits, bool shed)
      : limits_{.per_resource = std::max<int64_t>(limits.per_resource, 0),
                .in_total = std::max<int64_t>(limits.in_total, 0)},
        shed_(shed) {}
  Admission Decide(const AdmissionContext& context) const override {
    const bool resource_full = context.pending_on_resource >= limits_.per_resource;
    const bool all_full = context.pending_in_total >= limits_.in_total;
    if (!resource_full && !all_full) return Admission::kAdmit;
    // Shedding makes room on the resource, and with it in total.
    if (shed_ && context.pending_on_resource > 0 &&
        context.priority > context.lowest_pending_priority) {
      return Admission::kShedLowest;
    }
    return Admission::kReject;
  }
  std::string Explain(const AdmissionContext& context) const override {
    if (context.pending_on_resource >= limits_.per_resource) {
      return absl::StrCat(context.pending_on_resource, " for this resource; per_resource is ",
                          limits_.per_resource);
    }
    return absl::StrCat(context.pending_in_total, " in this manager; in_total is ",
                        limits_.in_total);
  }

 private:
  const PendingLimits limits_;
  const bool shed_;
};

}  // namespace

std::string AdmissionPolicy::Explain(const AdmissionContext& context) const {
  return absl::StrCat(context.pending_on_resource, " for this resource, ", context.pending_in_total,
                      " in this manager");
}

std::shared_ptr<const AdmissionPolicy> AdmitAll() { return std::make_shared<AdmitAllPolicy>(); }

std::shared_ptr<const AdmissionPolicy> LimitPending(PendingLimits limits) {
  return std::make_shared<LimitPolicy>(limits, false);
}

std::shared_ptr<const AdmissionPolicy> ShedLowestPriority(PendingLimits limits) {
  return std::make_shared<LimitPolicy>(limits, true);
}

}  // namespace latchkey

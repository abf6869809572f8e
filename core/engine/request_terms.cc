#include "latchkey/core/engine/request_terms.h"

#include <algorithm>
#include <optional>
#include <string>

#include "absl/base/optimization.h"
#include "absl/log/check.h"
#include "absl/strings/str_cat.h"
#include "latchkey/core/base/contain.h"
#include "latchkey/core/base/lock_error.h"
#include "latchkey/core/engine/request_errors.h"
#include "latchkey/core/lock/manager_context.h"

namespace latchkey::internal {
namespace {

// Rule C2 takes a margin off each lease. Less than three of them leave a renewal no time.
constexpr int kMarginsToRenew = 3;

absl::Status InvalidField(std::string_view resource, std::string_view field, std::string_view rule,
                          std::string_view value) {
  return MakeError(Reason::kInvalidArgument,
                   absl::StrCat(field, " must ", rule, ", but is ", value, " (locking ",
                                ResourceForMessage(resource), ")"));
}

absl::Status CheckPositive(std::string_view resource, std::string_view field,
                           absl::Duration value) {
  if (value > absl::ZeroDuration()) return absl::OkStatus();
  return InvalidField(resource, field, "be positive", absl::FormatDuration(value));
}

absl::Status CheckNotNegative(std::string_view resource, std::string_view field,
                              absl::Duration value) {
  if (value >= absl::ZeroDuration()) return absl::OkStatus();
  return InvalidField(resource, field, "not be negative", absl::FormatDuration(value));
}

absl::Status CheckLease(const BackendCapabilities& backend, std::string_view resource,
                        absl::Duration lease) {
  if (auto bad = CheckPositive(resource, "lease", lease); !bad.ok()) return bad;
  const bool offered =
      lease == absl::InfiniteDuration() ? backend.infinite_lease : lease <= backend.max_lease;
  if (offered) return absl::OkStatus();
  return MakeError(
      Reason::kNotSupported,
      absl::StrCat("backend '", backend.name, "' offers no lease of ", absl::FormatDuration(lease),
                   " (at most ", absl::FormatDuration(backend.max_lease), "), wanted for ",
                   ResourceForMessage(resource)));
}

bool AreOffered(const BackendCapabilities& backend, const AcquireOptions& options) {
  const std::optional<absl::Duration>& lease = options.lease;
  return !lease || (*lease == absl::InfiniteDuration()
                        ? backend.infinite_lease
                        : *lease > absl::ZeroDuration() && *lease <= backend.max_lease);
}

bool AreValid(const AcquireOptions& options) {
  const absl::Duration zero = absl::ZeroDuration();
  return options.max_hold > zero &&
         (!options.preemption_grace || *options.preemption_grace >= zero) &&
         options.acquire_timeout >= zero && options.outage_patience >= zero &&
         options.max_attempts >= 1 && options.max_execution_time > zero &&
         options.max_occupation_time > zero;
}

// Says which option is not, if one is not valid, or not offered.
absl::Status CheckOptions(const BackendCapabilities& backend, std::string_view resource,
                          const AcquireOptions& options) {
  if (resource.empty()) {
    return MakeError(Reason::kInvalidArgument, "resource must not be empty, but is ''");
  }
  absl::Status bad;
  if (options.lease && !(bad = CheckLease(backend, resource, *options.lease)).ok()) return bad;
  if (!(bad = CheckPositive(resource, "max_hold", options.max_hold)).ok()) return bad;
  if (options.preemption_grace) {
    bad = CheckNotNegative(resource, "preemption_grace", *options.preemption_grace);
    if (!bad.ok()) return bad;
  }
  bad = CheckNotNegative(resource, "acquire_timeout", options.acquire_timeout);
  if (!bad.ok()) return bad;
  bad = CheckNotNegative(resource, "outage_patience", options.outage_patience);
  if (!bad.ok()) return bad;
  if (options.max_attempts < 1) {
    return InvalidField(resource, "max_attempts", "be positive",
                        absl::StrCat(options.max_attempts));
  }
  bad = CheckPositive(resource, "max_execution_time", options.max_execution_time);
  if (!bad.ok()) return bad;
  return CheckPositive(resource, "max_occupation_time", options.max_occupation_time);
}

// Of a lease that is renewed: can it be?
absl::Status CheckRenewable(const BackendCapabilities& backend, std::string_view resource,
                            const AcquireOptions& options, absl::Duration lease) {
  const absl::Duration least = kMarginsToRenew * backend.lease_margin;
  if (lease >= least) return absl::OkStatus();
  const std::string rule =
      absl::StrCat("be at least ", absl::FormatDuration(least), " to be renewed (", kMarginsToRenew,
                   " times lease_margin of backend '", backend.name, "')");
  return InvalidField(resource, options.lease ? "lease" : "default_lease", rule,
                      absl::FormatDuration(lease));
}

absl::Status WorkOutLease(const BackendCapabilities& backend, std::string_view resource,
                          const AcquireOptions& options, RequestTerms& terms) {
  terms.max_hold = options.max_hold;
  if (options.lease) {
    terms.lease = *options.lease;
  } else if (!backend.infinite_lease) {
    terms.lease = std::min(backend.default_lease, backend.max_lease);
  }
  // Where the lease would have no end, max_hold is the lease, or, where finite leases are not that
  // long, what it is renewed up to.
  const bool endless = !options.lease || *options.lease == absl::InfiniteDuration();
  if (terms.max_hold < terms.lease) terms.lease = std::min(terms.max_hold, backend.max_lease);
  const bool finite = terms.lease != absl::InfiniteDuration();
  terms.auto_renew = finite && terms.lease < terms.max_hold && options.auto_renew.value_or(endless);
  if (terms.auto_renew) {
    absl::Status bad = CheckRenewable(backend, resource, options, terms.lease);
    if (ABSL_PREDICT_FALSE(!bad.ok())) return bad;
  }
  if (finite && ABSL_PREDICT_FALSE(SafeTimeOf(terms.lease, backend) <= absl::ZeroDuration())) {
    return MakeError(Reason::kNotSupported,
                     absl::StrCat("a lease of ", absl::FormatDuration(terms.lease), " on backend '",
                                  backend.name, "' is over before it begins (lease_margin ",
                                  absl::FormatDuration(backend.lease_margin), "), wanted for ",
                                  ResourceForMessage(resource)));
  }
  terms.renew_reentered = options.auto_renew.value_or(false);
  if (!backend.infinite_lease) {
    terms.reservation_lease = std::max(terms.lease / kReservationPart, kShortestReservation);
  }
  return absl::OkStatus();
}

absl::Status WorkOutPreemption(const BackendCapabilities& backend,
                               const PreemptionPolicy* preemption, std::string_view resource,
                               const AcquireOptions& options, RequestTerms& terms) {
  const PreemptionPolicy* const policy =
      options.preemption != nullptr ? options.preemption.get() : preemption;
  if (policy == nullptr) {
    terms.reserve_below = kReserveBelowAll;
  } else {
    PreemptionDecision decision;
    absl::Status thrown = StatusOfContained("PreemptionPolicy::Decide", "",
                                            [&] { decision = policy->Decide(terms.priority); });
    if (!thrown.ok()) return CouldNotLock(resource, thrown);
    terms.reserve_below = decision.reserve_below;
    if (decision.grace != absl::InfiniteDuration()) {
      terms.grace = std::max(decision.grace, absl::ZeroDuration());
    }
  }
  if (options.preemption_grace) {
    terms.grace.reset();
    if (*options.preemption_grace != absl::InfiniteDuration()) {
      terms.grace = options.preemption_grace;
    }
  }
  if (!terms.grace || backend.forced_handover) return absl::OkStatus();
  return MakeError(
      Reason::kNotSupported,
      absl::StrCat("backend '", backend.name, "' offers no forced hand-over (preemption_grace ",
                   absl::FormatDuration(*terms.grace), "), wanted for ",
                   ResourceForMessage(resource)));
}

}  // namespace

absl::Status MakeTerms(const BackendCapabilities& backend, const PreemptionPolicy* preemption,
                       std::string_view ambient_owner, std::string_view resource,
                       const AcquireOptions& options, RequestTerms& terms) {
  if (ABSL_PREDICT_FALSE(resource.empty() || !AreValid(options) || !AreOffered(backend, options))) {
    absl::Status bad = CheckOptions(backend, resource, options);
    DCHECK(!bad.ok()) << "an option was refused that has nothing wrong";
    return bad;
  }
  terms.owner = options.owner.empty() ? ambient_owner : std::string_view(options.owner);
  terms.priority = options.priority;
  terms.preemptible = options.preemptible;
  absl::Status bad = WorkOutLease(backend, resource, options, terms);
  if (ABSL_PREDICT_FALSE(!bad.ok())) return bad;
  return WorkOutPreemption(backend, preemption, resource, options, terms);
}

ObtainRequest RequestOf(const ResourceName& resource, AcquisitionId id, const RequestTerms& terms) {
  return {.resource = resource,
          .acquisition = id,
          .owner = terms.owner,
          .priority = terms.priority,
          .preemptible = terms.preemptible,
          .lease = terms.lease,
          .reserve_below = terms.reserve_below,
          .reservation_lease = terms.reservation_lease,
          .grace = terms.grace};
}

}  // namespace latchkey::internal

// RequestTerms are what a request asks its backend for: its options, with the defaults of the
// manager and of the backend filled in. Pure functions, without a clock and without a backend.
//
// Most requests are plain: nothing in their options would have to be worked out. For those
// PlainTerms says in a few steps what MakeTerms would come to.
#ifndef LATCHKEY_CORE_ENGINE_REQUEST_TERMS_H_
#define LATCHKEY_CORE_ENGINE_REQUEST_TERMS_H_

#include <limits>
#include <optional>
#include <string_view>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "latchkey/core/base/lease.h"
#include "latchkey/core/policy/acquire_options.h"
#include "latchkey/core/policy/preemption_policy.h"
#include "latchkey/core/protocol/locking_protocol.h"

namespace latchkey::internal {

struct RequestTerms {
  std::string_view owner = {};  // Borrowed.
  Priority priority = 0;
  bool preemptible = true;
  absl::Duration lease = absl::InfiniteDuration();
  absl::Duration reservation_lease = absl::InfiniteDuration();
  bool auto_renew = false;
  // Renew what is entered again, too, if that has an end although this request asks for none.
  bool renew_reentered = false;
  absl::Duration max_hold = absl::InfiniteDuration();
  std::optional<Priority> reserve_below = std::nullopt;
  std::optional<absl::Duration> grace = std::nullopt;

  friend bool operator==(const RequestTerms&, const RequestTerms&) = default;
};

// Rule C8: a reservation is short beside the lease that it waits for, so that a thief which dies
// leaves its victim the time to renew: at most this part of that, and never shorter than that time.
inline constexpr int kReservationPart = 6;
inline constexpr absl::Duration kShortestReservation = absl::Milliseconds(1);

// Checks the options, and works the terms out. `ambient_owner` is that of the surrounding
// ScopedOwner; `preemption` is the manager's policy, null: whoever is lower. The terms view the
// options, or the ambient owner.
absl::Status MakeTerms(const BackendCapabilities& backend, const PreemptionPolicy* preemption,
                       std::string_view ambient_owner, std::string_view resource,
                       const AcquireOptions& options, RequestTerms& terms);

// Is there nothing in the options that MakeTerms would have to work out, on a backend with infinite
// leases, without a preemption policy and without an ambient owner?
inline bool ArePlain(const AcquireOptions& options) {
  return !options.lease && options.max_hold == absl::InfiniteDuration() &&
         !options.preemption_grace && options.preemption == nullptr &&
         options.acquire_timeout >= absl::ZeroDuration() &&
         options.outage_patience >= absl::ZeroDuration() && options.max_attempts >= 1 &&
         options.max_execution_time > absl::ZeroDuration() &&
         options.max_occupation_time > absl::ZeroDuration();
}

// What a plain request reserves below: whoever is lower gives way.
inline constexpr Priority kReserveBelowAll = std::numeric_limits<Priority>::max();

// The terms of plain options.
inline RequestTerms PlainTerms(std::string_view owner, const AcquireOptions& options) {
  return {.owner = owner,
          .priority = options.priority,
          .preemptible = options.preemptible,
          .renew_reentered = options.auto_renew.value_or(false),
          .reserve_below = kReserveBelowAll};
}

// For the backend. It views the resource and the terms.
ObtainRequest RequestOf(const ResourceName& resource, AcquisitionId id, const RequestTerms& terms);

}  // namespace latchkey::internal

#endif  // LATCHKEY_CORE_ENGINE_REQUEST_TERMS_H_

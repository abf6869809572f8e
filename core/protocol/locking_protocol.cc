#include "latchkey/core/protocol/locking_protocol.h"

#include <ostream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "latchkey/core/base/lock_error.h"

namespace latchkey {
namespace {

absl::Status Invalid(std::string_view field, std::string_view problem) {
  return MakeError(Reason::kInvalidArgument, absl::StrCat(field, " ", problem));
}

absl::Status CheckName(const ResourceName& resource, LeaseHint hint, AcquisitionId acquisition,
                       const BackendCapabilities& capabilities) {
  if (resource.empty() && (hint == 0 || !capabilities.hint_identifies_hold)) {
    return Invalid("resource", "is empty");
  }
  if (acquisition.IsNone()) return Invalid("acquisition", "is none");
  return absl::OkStatus();
}

}  // namespace

std::string_view ObtainOutcomeName(ObtainOutcome outcome) {
  switch (outcome) {
    case ObtainOutcome::kObtained:
      return "Obtained";
    case ObtainOutcome::kReentered:
      return "Reentered";
    case ObtainOutcome::kReserved:
      return "Reserved";
    case ObtainOutcome::kDenied:
      return "Denied";
  }
  return "?";
}

std::string_view ReleaseOutcomeName(ReleaseOutcome outcome) {
  switch (outcome) {
    case ReleaseOutcome::kReleased:
      return "Released";
    case ReleaseOutcome::kWithdrawn:
      return "Withdrawn";
    case ReleaseOutcome::kNotHeld:
      return "NotHeld";
  }
  return "?";
}

std::string_view ExtendOutcomeName(ExtendOutcome outcome) {
  switch (outcome) {
    case ExtendOutcome::kExtended:
      return "Extended";
    case ExtendOutcome::kReserved:
      return "Reserved";
    case ExtendOutcome::kNotHeld:
      return "NotHeld";
  }
  return "?";
}

std::string_view WatchEventKindName(WatchEventKind kind) {
  switch (kind) {
    case WatchEventKind::kYieldRequested:
      return "YieldRequested";
    case WatchEventKind::kYieldWithdrawn:
      return "YieldWithdrawn";
    case WatchEventKind::kHoldEnded:
      return "HoldEnded";
    case WatchEventKind::kDisplaced:
      return "Displaced";
  }
  return "?";
}

std::string_view HoldEndName(HoldEnd why) {
  switch (why) {
    case HoldEnd::kReleased:
      return "Released";
    case HoldEnd::kExpired:
      return "Expired";
    case HoldEnd::kStolen:
      return "Stolen";
  }
  return "?";
}

std::string_view WatchRoleName(WatchRole role) {
  switch (role) {
    case WatchRole::kWaiter:
      return "Waiter";
    case WatchRole::kHolder:
      return "Holder";
  }
  return "?";
}

std::ostream& operator<<(std::ostream& out, ObtainOutcome outcome) {
  return out << ObtainOutcomeName(outcome);
}

std::ostream& operator<<(std::ostream& out, ReleaseOutcome outcome) {
  return out << ReleaseOutcomeName(outcome);
}

std::ostream& operator<<(std::ostream& out, ExtendOutcome outcome) {
  return out << ExtendOutcomeName(outcome);
}

std::ostream& operator<<(std::ostream& out, WatchEventKind kind) {
  return out << WatchEventKindName(kind);
}

std::ostream& operator<<(std::ostream& out, HoldEnd why) { return out << HoldEndName(why); }

std::ostream& operator<<(std::ostream& out, WatchRole role) { return out << WatchRoleName(role); }

absl::Status CheckLease(std::string_view field, absl::Duration lease,
                        const BackendCapabilities& capabilities) {
  if (lease <= absl::ZeroDuration()) {
    return Invalid(field, absl::StrCat("is ", absl::FormatDuration(lease), ", not positive"));
  }
  const bool infinite = lease == absl::InfiniteDuration();
  if (infinite ? !capabilities.infinite_lease : lease > capabilities.max_lease) {
    return MakeError(Reason::kNotSupported,
                     absl::StrCat(field, " is ", absl::FormatDuration(lease), ", but backend '",
                                  capabilities.name, "' offers at most ",
                                  absl::FormatDuration(capabilities.max_lease),
                                  infinite ? ", not forever" : ""));
  }
  return absl::OkStatus();
}

absl::Status CheckRequest(const ObtainRequest& request, const BackendCapabilities& capabilities) {
  if (request.resource.empty()) return Invalid("resource", "is empty");
  if (request.acquisition.IsNone()) return Invalid("acquisition", "is none");
  absl::Status status = CheckLease("lease", request.lease, capabilities);
  if (!status.ok() || !request.reserve_below) return status;
  // Only a request that may reserve uses the rest.
  status = CheckLease("reservation_lease", request.reservation_lease, capabilities);
  if (!status.ok() || !request.grace) return status;
  if (*request.grace < absl::ZeroDuration()) {
    return Invalid("grace", absl::StrCat("is ", absl::FormatDuration(*request.grace)));
  }
  if (!capabilities.forced_handover) {
    return MakeError(Reason::kNotSupported,
                     absl::StrCat("grace is set, but backend '", capabilities.name,
                                  "' has no forced hand-over"));
  }
  return absl::OkStatus();
}

absl::Status CheckRequest(const HoldRef& hold, const BackendCapabilities& capabilities) {
  return CheckName(hold.resource, hold.hint, hold.acquisition, capabilities);
}

absl::Status CheckRequest(const WatchRequest& request, const BackendCapabilities& capabilities) {
  return CheckName(request.resource, request.hint, request.acquisition, capabilities);
}

void LockingProtocol::Inspect(std::optional<ResourceName> resource,
                              absl::FunctionRef<void(const ResourceState&)> visitor) const {
  static_cast<void>(resource);
  static_cast<void>(visitor);
}

std::string LockingProtocol::ResourceOf(const HoldRef& hold) const {
  return std::string(hold.resource.bytes());
}

}  // namespace latchkey

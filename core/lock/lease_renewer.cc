#include "latchkey/core/lock/lease_renewer.h"

#include <algorithm>
#include <utility>

#include "latchkey/core/lock/hold.h"

namespace latchkey::internal {
namespace {

// It asks when this much of the time until the end is over, so that the answer is there before a
// third of the lease is left.
constexpr double kAskAfter = 0.6;
// After a failure it is tried again this often before the end.
constexpr double kRetryAfter = 0.25;
// Never at once: renewing a lease of nanoseconds would keep a thread busy. Such a one ends.
constexpr absl::Duration kShortestPause = absl::Milliseconds(1);
// An extension never shortens, and answers what is left. By so little it asks for the answer only.
constexpr absl::Duration kJustLooking = absl::Nanoseconds(1);

}  // namespace

LeaseRenewer::LeaseRenewer(const HoldTerms& terms)
    : lease_(terms.lease),
      hold_end_(terms.hold_end),
      renews_(terms.auto_renew),
      shared_(terms.MayBeShared()),
      valid_until_(terms.valid_until) {}

void LeaseRenewer::ExtendTo(absl::Time valid_until) {
  valid_until_ = std::max(valid_until_, valid_until);
}

absl::Time LeaseRenewer::NextAsk(absl::Time now) const {
  return IfBeforeTheEnd(now + std::max((valid_until_ - now) * kAskAfter, kShortestPause));
}

std::optional<absl::Duration> LeaseRenewer::Begin(absl::Time now) {
  if (std::exchange(asking_, true)) return std::nullopt;
  return std::min(renews_ ? lease_ : kJustLooking, hold_end_ - now);
}

absl::Time LeaseRenewer::Answered(const absl::StatusOr<ExtendReply>& reply, absl::Time now) {
  asking_ = false;
  if (renews_) error_ = reply.status();
  // A refusal answers the question of one that only looks.
  if (reply.ok() && (reply->outcome == ExtendOutcome::kExtended || !renews_)) return NextAsk(now);
  // One failure is not a loss; the end of the lease is. A refusal may end with the reservation.
  return IfBeforeTheEnd(now + std::max((valid_until_ - now) * kRetryAfter, kShortestPause));
}

bool LeaseRenewer::WasCutOff(absl::Time now, const BackendCapabilities& backend) const {
  if (error_.ok() || now >= hold_end_) return false;
  // A lease that was granted up to max_hold ends there, but for what is taken off each lease.
  return hold_end_ - valid_until_ > lease_ * backend.clock_drift + backend.lease_margin;
}

}  // namespace latchkey::internal

// LeaseRenewer is what a hold knows of its lease: up to when it may rely on it, and when it asks
// the backend for more, or for what other handles of the same hold have made of it. It decides and
// does nothing itself: it has no clock and no backend.
//
//   Begin(now)        -> how long to extend for; nothing if that is under way
//   Answered(reply)   -> when to ask again
//
// Thread safety: none; the hold's mutex guards it.
#ifndef LATCHKEY_CORE_LOCK_LEASE_RENEWER_H_
#define LATCHKEY_CORE_LOCK_LEASE_RENEWER_H_

#include <optional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "latchkey/core/protocol/locking_protocol.h"

namespace latchkey::internal {

struct HoldTerms;

class LeaseRenewer {
 public:
  explicit LeaseRenewer(const HoldTerms& terms);

  // The lease as far as it may be relied on (rule C2); infinite: it has no end.
  absl::Time valid_until() const { return valid_until_; }
  // An extension never shortens.
  void ExtendTo(absl::Time valid_until);

  // Does it ask the backend at all?
  bool asks() const { return valid_until_ != absl::InfiniteFuture() && (renews_ || shared_); }
  // When it asks next if all is well, seen from now; infinite: not any more.
  absl::Time NextAsk(absl::Time now) const;
  // It asks now: how long for, at most to the end of the hold. None: a question is under way.
  std::optional<absl::Duration> Begin(absl::Time now);
  // When to ask again after that answer; infinite: not any more.
  absl::Time Answered(const absl::StatusOr<ExtendReply>& reply, absl::Time now);
  bool is_asking() const { return asking_; }

  // Of a lease that is over by now, and that nobody waited for: would it have been renewed, had the
  // backend not failed?
  bool WasCutOff(absl::Time now, const BackendCapabilities& backend) const;
  // What the last renewal failed with.
  const absl::Status& error() const { return error_; }

 private:
  absl::Time IfBeforeTheEnd(absl::Time at) const {
    return at < hold_end_ ? at : absl::InfiniteFuture();
  }

  const absl::Duration lease_;
  const absl::Time hold_end_;  // From max_hold.
  const bool renews_;
  const bool shared_;  // Other handles may extend it.
  absl::Time valid_until_;
  bool asking_ = false;
  absl::Status error_;
};

}  // namespace latchkey::internal

#endif  // LATCHKEY_CORE_LOCK_LEASE_RENEWER_H_

#include "latchkey/core/lock/loss.h"

#include <atomic>
#include <string>

#include "absl/strings/str_cat.h"
#include "latchkey/core/base/ref_counted.h"

namespace latchkey::internal {
namespace {

std::string_view HowLost(LockState state) {
  switch (state) {
    case LockState::kStolen:
      return "was taken by force, since the grace was over before it was released";
    case LockState::kExpired:
      return "expired: its lease ran out before it was released";
    default:
      return "was lost: the backend does not know the hold any more";
  }
}

}  // namespace

bool IsLoss(LockState state) {
  return state == LockState::kStolen || state == LockState::kExpired || state == LockState::kLost;
}

bool IsLoss(Reason reason) {
  return reason == Reason::kStolen || reason == Reason::kExpired || reason == Reason::kLost;
}

Reason ReasonOfLoss(LockState state) {
  switch (state) {
    case LockState::kStolen:
      return Reason::kStolen;
    case LockState::kExpired:
      return Reason::kExpired;
    default:
      return Reason::kLost;
  }
}

std::string LockForMessage(std::string_view resource, FencingToken token) {
  if (resource.empty()) return absl::StrCat("the lock with fencing token ", token);
  return absl::StrCat("the lock on ", ResourceForMessage(resource), " (fencing token ", token, ")");
}

absl::Status LossError(LockState state, const LockingProtocol& backend, std::string_view resource,
                       FencingToken token) {
  std::string message = LockForMessage(resource, token);
  if (state == LockState::kReleased) {
    return MakeError(Reason::kNotHeld, absl::StrCat(message, " was already released"));
  }
  absl::StrAppend(&message, " ", HowLost(state));
  if (!resource.empty()) {
    backend.Inspect(ResourceName(resource), [&message](const ResourceState& now) {
      if (!now.held) return;
      absl::StrAppend(&message, "; now held by ", OwnerForMessage(now.holder_owner),
                      " with priority ", now.holder_priority);
    });
  }
  return MakeError(ReasonOfLoss(state), message);
}

HoldEnd AskWhatBecameOf(LockingProtocol& backend, const HoldRef& hold) {
  // Others would answer too late, and would have said it by an event.
  if (!backend.capabilities().answers_at_once) return HoldEnd::kExpired;
  struct Heard : RefCounted<Heard> {
    std::atomic<HoldEnd> why = HoldEnd::kExpired;
  };
  const auto heard = RefPtr<Heard>::Adopt(new Heard);
  backend
      .Watch({.resource = hold.resource,
              .acquisition = hold.acquisition,
              .role = WatchRole::kHolder,
              .hint = hold.hint},
             [heard](const WatchEvent& event) {
               if (event.kind == WatchEventKind::kHoldEnded) heard->why = event.why;
             })
      .Reset();
  return heard->why;
}

}  // namespace latchkey::internal

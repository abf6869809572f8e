#include "latchkey/core/protocol/lock_record.h"

#include <algorithm>
#include <utility>

namespace latchkey {
namespace {

absl::Duration Left(absl::Time deadline, absl::Time now) {
  return deadline == absl::InfiniteFuture() ? absl::InfiniteDuration() : deadline - now;
}

bool IsFiniteOver(absl::Time& deadline, absl::Duration length, absl::Time now, Effects& effects) {
  if (deadline > now + length) {
    deadline = now + length;
    effects.changed = true;
  }
  return deadline <= now;
}

// Whether it is over. What ends later than its own length from now, since the clock went back, is
// brought to that first. What is infinite, as most in memory is, costs no call.
inline bool IsOver(absl::Time& deadline, absl::Duration length, absl::Time now, Effects& effects) {
  return deadline != absl::InfiniteFuture() && IsFiniteOver(deadline, length, now, effects);
}

bool IsHandle(const LockRecord& record, AcquisitionId acquisition) {
  if (!record.holder) return false;
  const auto& handles = record.holder->handles;
  return std::find(handles.begin(), handles.end(), acquisition) != handles.end();
}

bool IsSuccessor(const LockRecord& record, AcquisitionId acquisition) {
  return record.successor && record.successor->acquisition == acquisition;
}

void Tell(Effects& effects, AcquisitionList to, WatchEvent event) {
  effects.notices.push_back({std::move(to), event});
}

// The successor loses its reservation to somebody or something else.
void Displace(LockRecord& record, Effects& effects) {
  Tell(effects, {record.successor->acquisition}, {.kind = WatchEventKind::kDisplaced});
  record.successor.reset();
  effects.changed = true;
}

void EndHold(LockRecord& record, HoldEnd why, Effects& effects) {
  if (why != HoldEnd::kReleased) {
    Tell(effects, record.holder->handles, {.kind = WatchEventKind::kHoldEnded, .why = why});
  }
  record.holder.reset();
  effects.changed = true;
  effects.became_free = true;
  effects.why = why;
}

// The reservation ends without a hold coming of it, and nobody takes its place.
void WithdrawReservation(LockRecord& record, Effects& effects) {
  record.successor.reset();
  effects.changed = true;
  if (record.holder) {
    Tell(effects, record.holder->handles, {.kind = WatchEventKind::kYieldWithdrawn});
  } else {
    effects.became_free = true;
  }
}

ObtainReply Grant(LockRecord& record, const ObtainRequest& request, absl::Time now,
                  Effects& effects) {
  record.successor.reset();
  record.holder = LockRecord::Holder{
      .owner = std::string(request.owner),
      .handles = {request.acquisition},
      .priority = request.priority,
      .preemptible = request.preemptible,
      .token = ++record.fence,
      .deadline = now + request.lease,
      .length = request.lease,
  };
  effects.changed = true;
  effects.became_free = false;  // Taken within the same step.
  return {.outcome = ObtainOutcome::kObtained,
          .token = record.holder->token,
          .remaining = request.lease};
}

ObtainReply Reenter(LockRecord& record, const ObtainRequest& request, absl::Time now,
                    Effects& effects) {
  LockRecord::Holder& holder = *record.holder;
  if (!IsHandle(record, request.acquisition)) {
    holder.handles.push_back(request.acquisition);
    effects.changed = true;
  }
  if (request.priority > holder.priority) {
    holder.priority = request.priority;
    effects.changed = true;
  }
  if (holder.preemptible && !request.preemptible) {
    holder.preemptible = false;
    effects.changed = true;
  }
  if (record.successor && (record.successor->priority <= holder.priority || !holder.preemptible)) {
    Displace(record, effects);
    Tell(effects, holder.handles, {.kind = WatchEventKind::kYieldWithdrawn});
  }
  return {.outcome = ObtainOutcome::kReentered,
          .token = holder.token,
          .remaining = Left(holder.deadline, now)};
}

ObtainReply Reserve(LockRecord& record, const ObtainRequest& request, absl::Time now,
                    Effects& effects) {
  const bool refresh = IsSuccessor(record, request.acquisition);
  if (!refresh && record.successor) Displace(record, effects);
  if (!refresh) {
    record.successor = LockRecord::Successor{
        .acquisition = request.acquisition,
        .owner = std::string(request.owner),
        .priority = request.priority,
    };
  }
  LockRecord::Successor& successor = *record.successor;
  successor.deadline = now + request.reservation_lease;
  successor.length = request.reservation_lease;
  // The grace runs from the first reservation that asked for one; polling does not move it.
  const bool grace_begins = request.grace && successor.grace_end == absl::InfiniteFuture();
  if (grace_begins) {
    successor.grace_end = now + *request.grace;
    successor.grace = *request.grace;
  }
  effects.changed = true;
  const LockRecord::Holder& holder = *record.holder;
  // Events may be lost, so each poll tells the holder again; a holder that has heard it ignores it.
  Tell(effects, holder.handles,
       {.kind = WatchEventKind::kYieldRequested,
        .grace_remaining = Left(successor.grace_end, now),
        .thief_priority = request.priority});
  return {.outcome = ObtainOutcome::kReserved,
          .remaining = Left(holder.deadline, now),
          .grace_remaining = Left(successor.grace_end, now),
          .other_owner = holder.owner,
          .other_priority = holder.priority};
}

ObtainReply Deny(const LockRecord& record, absl::Time now) {
  if (record.holder) {
    return {.outcome = ObtainOutcome::kDenied,
            .remaining = Left(record.holder->deadline, now),
            .other_owner = record.holder->owner,
            .other_priority = record.holder->priority};
  }
  return {.outcome = ObtainOutcome::kDenied,
          .remaining = Left(record.successor->deadline, now),
          .other_owner = record.successor->owner,
          .other_priority = record.successor->priority};
}

}  // namespace

void Expire(LockRecord& record, absl::Time now, Effects& effects) {
  if (record.holder && IsOver(record.holder->deadline, record.holder->length, now, effects)) {
    EndHold(record, HoldEnd::kExpired, effects);
  }
  if (!record.successor) return;
  LockRecord::Successor& successor = *record.successor;
  IsOver(successor.grace_end, successor.grace, now, effects);  // Nobody minds before it asks.
  if (IsOver(successor.deadline, successor.length, now, effects)) {
    Tell(effects, {successor.acquisition},
         {.kind = WatchEventKind::kDisplaced, .why = HoldEnd::kExpired});
    WithdrawReservation(record, effects);
  }
}

ObtainReply Apply(LockRecord& record, const ObtainRequest& request, absl::Time now,
                  Effects& effects) {
  Expire(record, now, effects);

  // An anonymous owner is equal to none but its own acquisition.
  const bool same_owner =
      record.holder && (request.owner.empty() ? IsHandle(record, request.acquisition)
                                              : record.holder->owner == request.owner);
  if (same_owner) return Reenter(record, request, now, effects);

  const bool may_succeed = !record.successor || IsSuccessor(record, request.acquisition) ||
                           request.priority > record.successor->priority;
  if (!record.holder) {
    if (!may_succeed) return Deny(record, now);
    if (record.successor && !IsSuccessor(record, request.acquisition)) Displace(record, effects);
    return Grant(record, request, now, effects);
  }

  const bool may_reserve = record.holder->preemptible && request.reserve_below.has_value() &&
                           record.holder->priority < request.priority &&
                           record.holder->priority < *request.reserve_below;
  if (!may_reserve || !may_succeed) return Deny(record, now);
  if (request.grace && IsSuccessor(record, request.acquisition) &&
      record.successor->grace_end <= now) {
    EndHold(record, HoldEnd::kStolen, effects);
    return Grant(record, request, now, effects);
  }
  return Reserve(record, request, now, effects);
}

ReleaseOutcome ApplyRelease(LockRecord& record, AcquisitionId acquisition, absl::Time now,
                            Effects& effects) {
  Expire(record, now, effects);
  if (IsHandle(record, acquisition)) {
    auto& handles = record.holder->handles;
    handles.erase(std::find(handles.begin(), handles.end(), acquisition));
    effects.changed = true;
    if (handles.empty()) EndHold(record, HoldEnd::kReleased, effects);
    return ReleaseOutcome::kReleased;
  }
  if (IsSuccessor(record, acquisition)) {
    WithdrawReservation(record, effects);
    return ReleaseOutcome::kWithdrawn;
  }
  return ReleaseOutcome::kNotHeld;
}

ExtendReply ApplyExtend(LockRecord& record, AcquisitionId acquisition, absl::Duration lease,
                        absl::Time now, Effects& effects) {
  Expire(record, now, effects);
  if (!IsHandle(record, acquisition)) return {.outcome = ExtendOutcome::kNotHeld};
  LockRecord::Holder& holder = *record.holder;
  if (record.successor) {
    return {.outcome = ExtendOutcome::kReserved, .remaining = Left(holder.deadline, now)};
  }
  if (now + lease > holder.deadline) {
    holder.deadline = now + lease;
    holder.length = std::max(holder.length, lease);
    effects.changed = true;
  }
  return {.outcome = ExtendOutcome::kExtended, .remaining = Left(holder.deadline, now)};
}

bool Nominate(LockRecord& record, AcquisitionId acquisition, std::string_view owner,
              Priority priority, absl::Duration reservation_lease, absl::Time now) {
  if (!record.IsFree()) return false;
  record.successor = LockRecord::Successor{
      .acquisition = acquisition,
      .owner = std::string(owner),
      .priority = priority,
      .deadline = now + reservation_lease,
      .length = reservation_lease,
  };
  return true;
}

ResourceState Describe(const LockRecord& record, std::string_view resource, absl::Time now) {
  ResourceState state{.resource = std::string(resource)};
  if (record.holder) {
    state.held = true;
    state.holder_owner = record.holder->owner;
    state.holder_priority = record.holder->priority;
    state.preemptible = record.holder->preemptible;
    state.handles = static_cast<int>(record.holder->handles.size());
    state.token = record.holder->token;
    state.remaining_lease = Left(record.holder->deadline, now);
  }
  if (record.successor) {
    state.reserved = true;
    state.successor_owner = record.successor->owner;
    state.successor_priority = record.successor->priority;
  }
  return state;
}

MemberReply ApplyAsMember(LockRecord& record, const ObtainRequest& request, absl::Time now,
                          Effects& effects) {
  MemberReply reply{.reply = Apply(record, request, now, effects)};
  if (reply.reply.token == 0) reply.fence = record.fence;
  return reply;
}

ConfirmReply ApplyConfirm(LockRecord& record, AcquisitionId acquisition, FencingToken token,
                          absl::Time now, Effects& effects) {
  Expire(record, now, effects);
  if (!IsHandle(record, acquisition)) return {.outcome = ConfirmOutcome::kNotHeld};
  LockRecord::Holder& holder = *record.holder;
  if (holder.token > token) return {.outcome = ConfirmOutcome::kRaise, .token = holder.token};
  if (holder.token < token || record.fence < token) effects.changed = true;
  record.fence = std::max(record.fence, token);
  holder.token = token;
  return {.outcome = ConfirmOutcome::kConfirmed, .token = token};
}

}  // namespace latchkey

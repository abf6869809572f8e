#include "latchkey/core/lock/hold.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "latchkey/core/base/callback_scope.h"
#include "latchkey/core/base/contain.h"
#include "latchkey/core/base/lock_error.h"
#include "latchkey/core/lock/loss.h"
#include "latchkey/core/lock/manager_context.h"

namespace latchkey::internal {

Hold::Hold(ManagerShard* shard, HoldTerms&& terms)
    : shard_(shard), terms_(std::move(terms)), lease_(terms_) {}

Hold::~Hold() { shard_->Unref(); }

ManagerContext& Hold::context() const { return *shard_->context; }

Observer::Subject Hold::Subject() const {
  return {.resource = terms_.resource,
          .owner = terms_.owner,
          .priority = terms_.priority,
          .acquisition = terms_.id};
}

void Hold::Start() {
  ManagerContext& context = *shard_->context;
  if (!context.capabilities().inspect) shard_->Add(*this);
  {
    absl::MutexLock lock(&mu_);
    if (lease_.asks()) ArmRenewTimer(lease_.NextAsk(context.clock().Now()));
  }
  if (terms_.hold_end != absl::InfiniteFuture() && terms_.MayBeShared()) {
    // The lease may be that of another handle and last longer. The margin is for whoever looked
    // just before the end.
    absl::MutexLock lock(&mu_);
    overdue_timer_ =
        context.clock().RunAt(terms_.hold_end + context.capabilities().lease_margin,
                              [hold = RefPtr<Hold>::Share(this)] { hold->EndOverdue(); });
  }
  // An observer wants to hear of what befalls the hold, also where its holder does not listen.
  if (context.observer() != nullptr) Listen();
}

// ---- Looking ----

absl::Time Hold::End() const {
  return std::min(std::min(lease_.valid_until(), grace_end_), terms_.hold_end);
}

bool Hold::TimeMatters() const { return End() != absl::InfiniteFuture(); }

void Hold::LookAtClock(Signals& signals) {
  if (!Exclusive(state_) || !TimeMatters()) return;
  const absl::Time now = shard_->context->clock().Now();
  if (now < End()) return;
  const bool lease_over = now >= std::min(lease_.valid_until(), terms_.hold_end);
  // With somebody waiting a renewal would have been refused.
  cut_off_ = lease_over && state_ != LockState::kYielding &&
             lease_.WasCutOff(now, shard_->context->capabilities());
  Lose(!lease_over ? LockState::kStolen
       : cut_off_  ? LockState::kLost
                   : LockState::kExpired,
       signals);
}

void Hold::Lose(LockState state, Signals& signals) {
  if (!Exclusive(state_)) return;
  state_ = state;
  signals.lost = true;
  signals.stop = true;
  signals.state = state;
  CancelTimers();
}

LockState Hold::State() {
  Listen();
  Signals signals;
  LockState state;
  {
    absl::MutexLock lock(&mu_);
    LookAtClock(signals);
    state = state_;
  }
  Fire(signals);
  return state;
}

absl::Duration Hold::Remaining() {
  const RefPtr<Hold> keep = RefPtr<Hold>::Share(this);  // As in Fire.
  if (!Exclusive(State())) return absl::ZeroDuration();
  absl::MutexLock lock(&mu_);
  if (!Exclusive(state_)) return absl::ZeroDuration();
  if (!TimeMatters()) return absl::InfiniteDuration();
  return std::max(End() - shard_->context->clock().Now(), absl::ZeroDuration());
}

ResourceState Hold::Describe() {
  ResourceState state{.resource = terms_.resource,
                      .holder_owner = terms_.owner,
                      .holder_priority = terms_.priority,
                      .handles = 1,
                      .token = terms_.token};
  const absl::Time now = shard_->context->clock().Now();
  absl::MutexLock lock(&mu_);
  state.held = Exclusive(state_) && now < End();
  state.reserved = state.held && state_ == LockState::kYielding;
  if (terms_.acquired != absl::InfinitePast()) state.age = now - terms_.acquired;
  if (End() != absl::InfiniteFuture()) state.remaining_lease = End() - now;
  return state;
}

// ---- Listening ----

void Hold::Listen() {
  {
    absl::MutexLock lock(&mu_);
    if (listening_ || !Exclusive(state_)) return;
    listening_ = true;
    ArmEndTimer();
  }
  // Without the mutex: what already happened is told at once.
  Subscription subscription = shard_->context->backend().Watch(
      {.resource = ResourceName(terms_.resource),
       .acquisition = terms_.id,
       .role = WatchRole::kHolder,
       .owner = terms_.owner,
       .priority = terms_.priority,
       .hint = terms_.hint},
      [hold = RefPtr<Hold>::Share(this)](const WatchEvent& event) { hold->OnEvent(event); });
  absl::MutexLock lock(&mu_);
  // If it ended meanwhile, the subscription goes with this scope.
  if (Exclusive(state_)) std::swap(subscription_, subscription);
}

void Hold::OnEvent(const WatchEvent& event) {
  Signals signals;
  {
    absl::MutexLock lock(&mu_);
    LookAtClock(signals);
    if (Exclusive(state_)) {
      switch (event.kind) {
        case WatchEventKind::kYieldRequested: {
          if (event.grace_remaining != absl::InfiniteDuration()) {
            const BackendCapabilities& backend = shard_->context->capabilities();
            const absl::Time end = shard_->context->clock().Now() +
                                   event.grace_remaining * (1 - backend.clock_drift) -
                                   backend.lease_margin;
            grace_end_ = std::min(grace_end_, end);
            ArmEndTimer();
          }
          if (state_ == LockState::kHeld) {
            state_ = LockState::kYielding;
            yield_untold_ = true;
            thief_priority_ = event.thief_priority;
            if (deferrals_ > 0) {
              stop_deferred_ = true;
            } else {
              signals.yield = true;
              signals.stop = true;
              signals.thief_priority = thief_priority_;
            }
          }
          LookAtClock(signals);
          break;
        }
        case WatchEventKind::kYieldWithdrawn:
          if (state_ == LockState::kYielding) {
            state_ = LockState::kHeld;
            yield_untold_ = false;
            stop_deferred_ = false;
            grace_end_ = absl::InfiniteFuture();
            ArmEndTimer();
            // Renewal was refused meanwhile.
            if (lease_.asks() && !lease_.is_asking()) {
              ArmRenewTimer(shard_->context->clock().Now());
            }
          }
          break;
        case WatchEventKind::kHoldEnded:
          // Its lease is not over, or the clock would have said so just now.
          Lose(event.why == HoldEnd::kStolen ? LockState::kStolen : LockState::kLost, signals);
          break;
        case WatchEventKind::kDisplaced:
          break;  // For waiters.
      }
    }
  }
  Fire(signals);
}

std::stop_token Hold::StopToken() {
  bool request = false;
  std::stop_source source;
  {
    absl::MutexLock lock(&mu_);
    if (!stop_) stop_.emplace();
    source = *stop_;
    request = stop_wanted_;
  }
  if (request) source.request_stop();
  State();  // Listens, and notes what the clock says.
  return source.get_token();
}

absl::Status Hold::Check() {
  const LockState state = State();
  if (state == LockState::kHeld) return absl::OkStatus();
  if (state != LockState::kYielding) return LossError(state);
  {
    absl::MutexLock lock(&mu_);
    if (deferrals_ > 0 || state_ != LockState::kYielding) return absl::OkStatus();
  }
  return MakeError(Reason::kYieldRequested,
                   absl::StrCat(NameForMessage(), " should be given back: ", WhoWaits()));
}

void Hold::Defer() {
  State();  // Listens, so that it can tell afterwards what it kept back.
  absl::MutexLock lock(&mu_);
  ++deferrals_;
}

void Hold::EndDeferral() {
  Signals signals;
  {
    absl::MutexLock lock(&mu_);
    if (--deferrals_ == 0 && state_ == LockState::kYielding) {
      signals.yield = yield_untold_;
      signals.stop = std::exchange(stop_deferred_, false);
      signals.thief_priority = thief_priority_;
    }
  }
  Fire(signals);
}

void Hold::OnYieldRequested(absl::AnyInvocable<void()> callback) {
  if (!callbacks_.SetYield(callback)) return;
  bool now = false;
  {
    absl::MutexLock lock(&mu_);
    now = state_ == LockState::kYielding && yield_untold_ && deferrals_ == 0;
  }
  if (now) {
    Fire({.yield = true});
  } else {
    State();
  }
}

void Hold::OnLost(absl::AnyInvocable<void(LockState)> callback) {
  if (!callbacks_.SetLost(callback)) return;
  Signals signals;
  {
    absl::MutexLock lock(&mu_);
    signals.state = state_;
    signals.lost = IsLoss(state_);
  }
  if (signals.lost) {
    shard_->context->RunUser([hold = RefPtr<Hold>::Share(this), state = signals.state] {
      hold->RunLostCallback(state);
    });
  } else {
    State();
  }
}

void Hold::Fire(Signals signals) {
  if (!signals.stop && !signals.yield && !signals.lost) return;
  // What is called below may drop the lock.
  const RefPtr<Hold> keep = RefPtr<Hold>::Share(this);
  std::optional<std::stop_source> source;
  Subscription ended;
  {
    absl::MutexLock lock(&mu_);
    if (signals.stop) {
      stop_wanted_ = true;
      source = stop_;
    }
    if (signals.lost) ended = std::move(subscription_);
  }
  if (Observer* const observer = shard_->context->observer()) {
    if (signals.yield && signals.stop) observer->OnPreempted(Subject(), signals.thief_priority);
  }
  if (signals.lost) NoteLoss(signals.state);
  if (source) {
    CallbackScope scope;
    source->request_stop();
  }
  if (signals.yield && callbacks_.had_yield()) {
    shard_->context->RunUser([hold = RefPtr<Hold>::Share(this)] { hold->RunYieldCallback(); });
  }
  if (signals.lost && callbacks_.had_lost()) {
    shard_->context->RunUser([hold = RefPtr<Hold>::Share(this), state = signals.state] {
      hold->RunLostCallback(state);
    });
  }
}

void Hold::RunYieldCallback() {
  CallbackSlots::YieldCallback callback;
  {
    absl::MutexLock lock(&mu_);
    // Withdrawn, lost, told or deferred meanwhile: then there is nothing to say now.
    if (!yield_untold_ || state_ != LockState::kYielding || deferrals_ > 0) return;
    callback = callbacks_.BeginYield();
    if (callback == nullptr) return;
    yield_untold_ = false;
  }
  RunContained(
      [this] { return absl::StrCat("the OnYieldRequested callback of ", NameForMessage()); },
      callback);
  callbacks_.EndYield(std::move(callback));
}

void Hold::RunLostCallback(LockState state) {
  CallbackSlots::LostCallback callback = callbacks_.BeginLost();
  if (callback == nullptr) return;
  RunContained([this] { return absl::StrCat("the OnLost callback of ", NameForMessage()); },
               [&] { callback(state); });
  callbacks_.EndLost();
}

// ---- Time ----

void Hold::CancelTimers() {
  Cancel(end_timer_);
  Cancel(renew_timer_);
}

void Hold::Cancel(Clock::TimerId& timer) {
  if (timer != 0) shard_->context->clock().Cancel(std::exchange(timer, 0));
}

// Only somebody who listens needs to be told; others look at the clock when they ask.
void Hold::ArmEndTimer() {
  Clock& clock = shard_->context->clock();
  Cancel(end_timer_);
  if (!listening_ || !Exclusive(state_) || !TimeMatters()) return;
  end_timer_ = clock.RunAt(End(), [hold = RefPtr<Hold>::Share(this)] { hold->OnEndTimer(); });
}

void Hold::OnEndTimer() {
  Signals signals;
  {
    absl::MutexLock lock(&mu_);
    end_timer_ = 0;
    LookAtClock(signals);
    // An extension may have moved the end while this was on its way.
    if (Exclusive(state_)) ArmEndTimer();
  }
  Fire(signals);
}

void Hold::EndOverdue() {
  Signals signals;
  {
    absl::MutexLock lock(&mu_);
    overdue_timer_ = 0;
    if (released_) return;
    LookAtClock(signals);
  }
  Fire(signals);
  // What it answers changes nothing: the loss has been told.
  shard_->context->backend().Release(
      ThisHold(), [hold = RefPtr<Hold>::Share(this)](const absl::StatusOr<ReleaseOutcome>&) {});
}

// ---- Lease ----

void Hold::ArmRenewTimer(absl::Time at) {
  Clock& clock = shard_->context->clock();
  Cancel(renew_timer_);
  if (at == absl::InfiniteFuture()) return;
  renew_timer_ = clock.RunAt(at, [hold = RefPtr<Hold>::Share(this)] { hold->Renew(); });
}

void Hold::Renew() {
  ManagerContext& context = *shard_->context;
  const absl::Time sent = context.clock().Now();
  Signals signals;
  std::optional<absl::Duration> lease;
  {
    absl::MutexLock lock(&mu_);
    LookAtClock(signals);
    if (Exclusive(state_) && !released_) lease = lease_.Begin(sent);
  }
  Fire(signals);
  if (!lease) return;
  context.backend().Extend(
      ThisHold(), *lease,
      [hold = RefPtr<Hold>::Share(this), sent](absl::StatusOr<ExtendReply> reply) {
        hold->OnRenewed(sent, std::move(reply));
      });
}

void Hold::OnRenewed(absl::Time sent, absl::StatusOr<ExtendReply> reply) {
  static_cast<void>(ApplyExtension(sent, reply));
  absl::MutexLock lock(&mu_);
  if (!Exclusive(state_) || released_) return;
  ArmRenewTimer(lease_.Answered(reply, shard_->context->clock().Now()));
}

absl::Status Hold::ApplyExtension(absl::Time sent, const absl::StatusOr<ExtendReply>& reply) {
  if (!reply.ok()) {
    return WithContext(absl::StrCat("could not extend ", NameForMessage()), reply.status());
  }
  LockState gone = LockState::kLost;
  if (reply->outcome == ExtendOutcome::kNotHeld) gone = WhatBecameOfIt();
  Signals signals;
  LockState state;
  bool refused = false;
  {
    absl::MutexLock lock(&mu_);
    LookAtClock(signals);
    if (Exclusive(state_)) {
      switch (reply->outcome) {
        case ExtendOutcome::kReserved:
          refused = true;
          [[fallthrough]];  // Another handle may have extended it before.
        case ExtendOutcome::kExtended:
          lease_.ExtendTo(shard_->context->ValidUntil(sent, reply->remaining));
          ArmEndTimer();
          break;
        case ExtendOutcome::kNotHeld:
          Lose(gone, signals);
          break;
      }
    }
    state = state_;
  }
  Fire(signals);
  if (!Exclusive(state)) return LossError(state);
  if (!refused) return absl::OkStatus();
  return MakeError(Reason::kYieldRequested,
                   absl::StrCat(NameForMessage(), " was not extended: ", WhoWaits()));
}

void Hold::Extend(absl::Duration lease, absl::AnyInvocable<void(absl::Status)> done) {
  if (lease <= absl::ZeroDuration()) {
    done(MakeError(Reason::kInvalidArgument,
                   absl::StrCat("lease must be positive, but is ", absl::FormatDuration(lease),
                                " (extending ", NameForMessage(), ")")));
    return;
  }
  ManagerContext& context = *shard_->context;
  const BackendCapabilities& backend = context.capabilities();
  if (lease != absl::InfiniteDuration() && context.TimeOf(lease) <= absl::ZeroDuration()) {
    done(MakeError(Reason::kNotSupported,
                   absl::StrCat("a lease of ", absl::FormatDuration(lease), " on backend '",
                                backend.name, "' is over before it begins (lease_margin ",
                                absl::FormatDuration(backend.lease_margin), "), wanted for ",
                                NameForMessage())));
    return;
  }
  if ((lease == absl::InfiniteDuration() && !backend.infinite_lease) ||
      (lease != absl::InfiniteDuration() && lease > backend.max_lease)) {
    done(MakeError(
        Reason::kNotSupported,
        absl::StrCat("backend '", backend.name, "' offers no lease of ",
                     absl::FormatDuration(lease), " (extending ", NameForMessage(), ")")));
    return;
  }
  const absl::Time sent = context.clock().Now();
  Signals signals;
  LockState state;
  {
    absl::MutexLock lock(&mu_);
    LookAtClock(signals);
    state = state_;
    lease = std::min(lease, terms_.hold_end - sent);
  }
  Fire(signals);
  if (!Exclusive(state)) {
    done(LossError(state));
    return;
  }
  context.backend().Extend(
      ThisHold(), lease,
      [hold = RefPtr<Hold>::Share(this), sent, done = std::move(done)](
          absl::StatusOr<ExtendReply> reply) mutable { done(hold->ApplyExtension(sent, reply)); });
}

std::string Hold::KnownName() {
  std::string name = terms_.resource;
  if (name.empty()) {
    // A plain lock that got its own life later. The backend knows the name, but not for ever.
    name = shard_->context->backend().ResourceOf(ThisHold());
    absl::MutexLock lock(&mu_);
    if (name.empty()) {
      name = found_name_;
    } else {
      found_name_ = name;
    }
  }
  return name;
}

std::string Hold::WhoWaits() {
  State();  // It may not have listened so far.
  std::string who = "somebody";
  Priority priority;
  bool known;
  {
    absl::MutexLock lock(&mu_);
    known = state_ == LockState::kYielding;
    priority = thief_priority_;
  }
  if (const std::string name = KnownName(); !name.empty()) {
    shard_->context->backend().Inspect(latchkey::ResourceName(name), [&](const ResourceState& now) {
      if (!now.reserved) return;
      known = true;
      who = OwnerForMessage(now.successor_owner);
      priority = now.successor_priority;
    });
  }
  return known ? absl::StrCat(who, " with priority ", priority, " waits for it")
               : "somebody of higher priority waits for it";
}

LockState Hold::WhatBecameOfIt() {
  {
    absl::MutexLock lock(&mu_);
    if (shard_->context->clock().Now() >= End()) return LockState::kExpired;
  }
  return AskWhatBecameOf(shard_->context->backend(), ThisHold()) == HoldEnd::kStolen
             ? LockState::kStolen
             : LockState::kLost;
}

absl::Status Hold::LossError(LockState state) {
  bool cut_off;
  absl::Status why;
  {
    absl::MutexLock lock(&mu_);
    cut_off = cut_off_;
    why = lease_.error();
  }
  if (cut_off) {
    return MakeError(Reason::kLost,
                     absl::StrCat(NameForMessage(), " was lost: its lease ran out while it could ",
                                  "not be renewed: ", why.message()));
  }
  return internal::LossError(state, shard_->context->backend(), KnownName(), terms_.token);
}

// ---- Release ----

void Hold::Release(absl::AnyInvocable<void(absl::Status)> done) {
  callbacks_.Close();
  ManagerContext& context = *shard_->context;
  Subscription subscription;
  Signals signals;
  LockState before;
  {
    absl::MutexLock lock(&mu_);
    released_ = true;
    LookAtClock(signals);
    before = state_;
    CancelTimers();
    Cancel(overdue_timer_);
    subscription = std::move(subscription_);
    if (Exclusive(state_)) state_ = LockState::kReleased;
  }
  Fire(signals);
  subscription.Reset();
  if (!context.capabilities().inspect) shard_->Remove(*this);
  if (before == LockState::kReleased) {
    done(absl::OkStatus());
    return;
  }
  absl::Duration held;
  if (context.observer() != nullptr) held = context.clock().Now() - terms_.acquired;
  // Also if it is lost by our clock: the backend's may be behind, and then others wait for nothing.
  context.backend().Release(
      ThisHold(), [hold = RefPtr<Hold>::Share(this), before, held,
                   done = std::move(done)](absl::StatusOr<ReleaseOutcome> outcome) mutable {
        done(hold->OnReleaseAnswered(before, held, outcome));
      });
}

absl::Status Hold::OnReleaseAnswered(LockState before, absl::Duration held,
                                     const absl::StatusOr<ReleaseOutcome>& outcome) {
  if (!Exclusive(before)) return LossError(before);
  if (outcome.ok() && *outcome != ReleaseOutcome::kReleased) {
    // It was lost before, and nobody had told.
    const LockState state = WhatBecameOfIt();
    {
      absl::MutexLock lock(&mu_);
      state_ = state;
    }
    NoteLoss(state);
    return LossError(state);
  }
  if (Observer* const observer = shard_->context->observer()) observer->OnReleased(Subject(), held);
  if (outcome.ok()) return absl::OkStatus();
  return WithContext(absl::StrCat("could not release ", NameForMessage()), outcome.status());
}

void Hold::NoteLoss(LockState state) {
  Observer* const observer = shard_->context->observer();
  if (observer == nullptr) return;
  if (state == LockState::kStolen) observer->OnStolen(Subject());
  if (state == LockState::kExpired) observer->OnExpired(Subject());
  if (state == LockState::kLost) observer->OnLost(Subject());
}

}  // namespace latchkey::internal

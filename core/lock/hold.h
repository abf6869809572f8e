// Hold is a lock with a life of its own: a finite lease, renewal, listeners, an observer, or a
// backend that needs the resource's name back. Plain locks (core/lock.h) have none until somebody
// listens to them.
//
// Thread safety: all methods may be called from any thread.
#ifndef LATCHKEY_CORE_LOCK_HOLD_H_
#define LATCHKEY_CORE_LOCK_HOLD_H_

#include <optional>
#include <stop_token>
#include <string>
#include <string_view>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "latchkey/core/base/clock.h"
#include "latchkey/core/base/lease.h"
#include "latchkey/core/base/observer.h"
#include "latchkey/core/base/ref_counted.h"
#include "latchkey/core/lock/callback_slots.h"
#include "latchkey/core/lock/lease_renewer.h"
#include "latchkey/core/lock/lock.h"
#include "latchkey/core/lock/loss.h"
#include "latchkey/core/protocol/locking_protocol.h"

namespace latchkey::internal {

class ManagerContext;
struct ManagerShard;

// What a hold starts from.
struct HoldTerms {
  std::string resource = {};  // May be empty where the hint identifies the hold.
  std::string owner = {};
  Priority priority = 0;
  AcquisitionId id = {};
  FencingToken token = 0;
  LeaseHint hint = 0;
  absl::Duration lease = absl::InfiniteDuration();
  bool auto_renew = false;
  // By the manager's clock; infinite past if the clock was not asked (infinite lease, no observer).
  absl::Time acquired = absl::InfinitePast();
  absl::Time valid_until = absl::InfiniteFuture();
  absl::Time hold_end = absl::InfiniteFuture();  // From max_hold.

  // One hold of a named owner may have several handles, also of other managers: then others may
  // extend it, and it goes on when this one ends.
  bool MayBeShared() const { return !owner.empty(); }
};

class Hold : public RefCounted<Hold> {
 public:
  // Takes over one of the shard's live references.
  Hold(ManagerShard* shard, HoldTerms&& terms);

  // Begins what the terms ask for. Apart from the constructor, since events may come at once.
  void Start();

  LockState State();
  absl::Duration Remaining();
  std::stop_token StopToken();
  void OnYieldRequested(absl::AnyInvocable<void()> callback);
  void OnLost(absl::AnyInvocable<void(LockState)> callback);

  // Ends all callbacks (see ~Lock), then gives the lock back. `done` runs exactly once, on whatever
  // thread the backend answers.
  void Release(absl::AnyInvocable<void(absl::Status)> done);
  void Extend(absl::Duration lease, absl::AnyInvocable<void(absl::Status)> done);

  // OK; or why the holder should leave: the lock is lost, or somebody waits for it and no
  // NonPreemptibleScope defers that.
  absl::Status Check();
  // Between these two, as often as they are nested, the holder is not told that it should yield.
  void Defer();
  void EndDeferral();

  const HoldTerms& terms() const { return terms_; }
  // For messages: "the lock on 'a' (fencing token 7)".
  std::string NameForMessage() ABSL_LOCKS_EXCLUDED(mu_) {
    return LockForMessage(KnownName(), terms_.token);
  }
  // The resource, which the backend may be asked for; empty if it is not known any more.
  std::string KnownName() ABSL_LOCKS_EXCLUDED(mu_);
  ManagerContext& context() const;
  ResourceState Describe();

 private:
  friend class RefCounted<Hold>;
  ~Hold();

  // What to do once the mutex is free.
  struct Signals {
    bool stop = false;
    bool yield = false;
    bool lost = false;
    LockState state = LockState::kHeld;
    Priority thief_priority = 0;
  };

  static bool Exclusive(LockState state) {
    return state == LockState::kHeld || state == LockState::kYielding;
  }
  // The moment from which the hold is not exclusive any more.
  absl::Time End() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool TimeMatters() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Notes what the clock says.
  void LookAtClock(Signals& signals) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Lose(LockState state, Signals& signals) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Cancel(Clock::TimerId& timer) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void CancelTimers() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void ArmEndTimer() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Infinite: not at all.
  void ArmRenewTimer(absl::Time at) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status LossError(LockState state) ABSL_LOCKS_EXCLUDED(mu_);
  // For messages: "'thief' with priority 9 waits for it".
  std::string WhoWaits() ABSL_LOCKS_EXCLUDED(mu_);
  // What became of a hold that the backend says is gone, although nobody told.
  LockState WhatBecameOfIt() ABSL_LOCKS_EXCLUDED(mu_);

  void Listen() ABSL_LOCKS_EXCLUDED(mu_);
  void OnEvent(const WatchEvent& event) ABSL_LOCKS_EXCLUDED(mu_);
  void OnEndTimer() ABSL_LOCKS_EXCLUDED(mu_);
  // When max_hold is over.
  void EndOverdue() ABSL_LOCKS_EXCLUDED(mu_);
  void Renew() ABSL_LOCKS_EXCLUDED(mu_);
  void OnRenewed(absl::Time sent, absl::StatusOr<ExtendReply> reply) ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status ApplyExtension(absl::Time sent, const absl::StatusOr<ExtendReply>& reply)
      ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status OnReleaseAnswered(LockState before, absl::Duration held,
                                 const absl::StatusOr<ReleaseOutcome>& outcome)
      ABSL_LOCKS_EXCLUDED(mu_);
  // Tells the observer.
  void NoteLoss(LockState state);
  void Fire(Signals signals) ABSL_LOCKS_EXCLUDED(mu_);
  void RunYieldCallback() ABSL_LOCKS_EXCLUDED(mu_);
  void RunLostCallback(LockState state) ABSL_LOCKS_EXCLUDED(mu_);
  HoldRef ThisHold() const { return {ResourceName(terms_.resource), terms_.id, terms_.hint}; }
  Observer::Subject Subject() const;

  ManagerShard* const shard_;
  const HoldTerms terms_;
  CallbackSlots callbacks_;

  absl::Mutex mu_;
  LockState state_ ABSL_GUARDED_BY(mu_) = LockState::kHeld;
  LeaseRenewer lease_ ABSL_GUARDED_BY(mu_);
  absl::Time grace_end_ ABSL_GUARDED_BY(mu_) = absl::InfiniteFuture();
  bool listening_ ABSL_GUARDED_BY(mu_) = false;
  Subscription subscription_ ABSL_GUARDED_BY(mu_);
  std::optional<std::stop_source> stop_ ABSL_GUARDED_BY(mu_);
  bool stop_wanted_ ABSL_GUARDED_BY(mu_) = false;  // For a token asked for later.
  bool yield_untold_ ABSL_GUARDED_BY(mu_) = false;
  Priority thief_priority_ ABSL_GUARDED_BY(mu_) = 0;
  int deferrals_ ABSL_GUARDED_BY(mu_) = 0;
  bool stop_deferred_ ABSL_GUARDED_BY(mu_) = false;
  Clock::TimerId end_timer_ ABSL_GUARDED_BY(mu_) = 0;
  Clock::TimerId renew_timer_ ABSL_GUARDED_BY(mu_) = 0;
  Clock::TimerId overdue_timer_ ABSL_GUARDED_BY(mu_) = 0;
  bool cut_off_ ABSL_GUARDED_BY(mu_) = false;   // Lost since it could not be renewed.
  bool released_ ABSL_GUARDED_BY(mu_) = false;  // Its own release is under way, or over.
  // The resource, if the terms leave it out and a message needed it.
  std::string found_name_ ABSL_GUARDED_BY(mu_);
};

}  // namespace latchkey::internal

#endif  // LATCHKEY_CORE_LOCK_HOLD_H_

// Lock is the proof of holding a resource: move-only, released when it goes out of scope.
//
//   absl::StatusOr<Lock> lock = locks.Acquire("orders/42");
//   if (!lock.ok()) return lock.status();
//   lock->OnYieldRequested([&] { stop = true; });  // somebody of higher priority waits
//   store.Write(data, lock->fencing_token());      // the store refuses smaller tokens than it saw
//   return lock->Release();                        // or let ~Lock do it
//
// State machine:
//
//   | State      | Exclusive? | Meaning                                     | Next               |
//   | ---------- | ---------- | ------------------------------------------- | ------------------ |
//   | kEmpty     | no         | moved from, or default-constructed          |                    |
//   | kHeld      | yes        | nobody of higher priority wants it          | any of the below   |
//   | kYielding  | yes, until | a higher priority has reserved it; the      | kReleased, kHeld   |
//   |            | its lease  | stop token is requested                     | (withdrawn),       |
//   |            | or grace   |                                             | kStolen, kExpired, |
//   |            | ends       |                                             | kLost              |
//   | kReleased  | no         | given back                                  |                    |
//   | kStolen    | no         | the grace was over before it was released   |                    |
//   | kExpired   | no         | the lease ran out: nobody renewed it, or    |                    |
//   |            |            | somebody waits, or this process was paused  |                    |
//   | kLost      | no         | before the lease ended the backend did not  |                    |
//   |            |            | know the hold any more; or it ended while   |                    |
//   |            |            | the backend failed to renew it              |                    |
//
// The clock comes first: whatever the backend says once the lease is over, nobody learns from it
// what became of the hold before. So a hold that the backend forgot is kLost for whoever asks in
// time (a renewal, Extend, Release, an event), and kExpired for whoever never asked.
//
// Exclusive means: nobody else is inside, provided that this thread was not paused between looking
// and acting for longer than the backend's lease margin. Past that, only the fencing token
// protects.
//
// Callbacks must not throw. What one throws is logged, with the resource's name, and goes nowhere
// else; the lock is as if it had returned. (A std::stop_callback that throws ends the process: the
// standard library sees to that.)
//
// Thread safety: thread-compatible, like std::unique_ptr: one thread at a time. What it hands out
// (stop tokens) and what it calls back may be used on any thread.
// Lifetime: a Lock stays valid when its manager is destroyed. It keeps the backend alive. The
// manager's Clock and Executor must outlive it.
#ifndef LATCHKEY_CORE_LOCK_LOCK_H_
#define LATCHKEY_CORE_LOCK_LOCK_H_

#include <cstdint>
#include <iosfwd>
#include <stop_token>
#include <string_view>
#include <utility>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "latchkey/core/base/lease.h"

namespace latchkey {

namespace internal {
class Hold;
struct LockMaker;
struct LockSetRep;
struct ManagerShard;
}  // namespace internal

enum class LockState { kEmpty, kHeld, kYielding, kReleased, kStolen, kExpired, kLost };

// "Held", "Yielding", ...
std::string_view LockStateName(LockState state);
std::ostream& operator<<(std::ostream& out, LockState state);

class LockSet;

class [[nodiscard]] Lock {
 public:
  // Empty.
  Lock() = default;
  Lock(Lock&& other) noexcept
      : target_(std::exchange(other.target_, kNothing)),
        id_(other.id_),
        token_(other.token_),
        hint_(other.hint_) {}
  // Releases what is held first.
  Lock& operator=(Lock&& other) noexcept;
  // Releases. Never blocks on a network: the release is handed to the backend. When it returns,
  // none of this lock's callbacks runs or will run; it waits for one that runs on another thread,
  // and not for itself when called inside one.
  ~Lock() {
    if (target_ > kReleasedPlain) Drop();
  }

  // The number to pass along with every write to the protected resource. 0 if empty.
  FencingToken fencing_token() const { return target_ == kNothing ? 0 : token_; }

  // The acquisition behind this lock; none if empty.
  AcquisitionId acquisition() const { return target_ == kNothing ? AcquisitionId() : id_; }

  // The state by now; looks at the clock where the lease is finite.
  LockState state() const;

  // Whether the state is exclusive: kHeld or kYielding.
  bool IsHeld() const {
    const LockState now = state();
    return now == LockState::kHeld || now == LockState::kYielding;
  }

  // How long the lock is exclusive at least, unless extended: infinite with an infinite lease and
  // no forced preemption under way, zero if not held. What other handles of the hold have extended
  // is learnt some time later, see AcquireOptions::lease.
  absl::Duration remaining() const;

  // Requested to stop when somebody of higher priority asks for the lock, and when it is lost;
  // stays requested. A stop callback runs on the thread that brings the news and must not block.
  std::stop_token stop_token() const;

  // Calls `callback` on the manager's executor when somebody of higher priority asks for the lock;
  // at once if that already happened. Once for each time: a request that is withdrawn may be
  // followed by another. Replaces an earlier callback; null: removes it. The way to yield is to
  // stop, then release.
  void OnYieldRequested(absl::AnyInvocable<void()> callback);

  // Calls `callback` on the manager's executor when the lock is stolen, expired or lost, with that
  // state; at once if that already happened. At most once. Replaces an earlier callback; null:
  // removes it.
  void OnLost(absl::AnyInvocable<void(LockState)> callback);

  // Gives the lock back and waits for the backend. OK if it was held until now, or released before.
  // kAborted (kStolen, kExpired, kLost) if it was lost: nothing is released then, and a successor
  // is not touched. kUnknown or kUnavailable if the backend could not be asked; whether it tries
  // again by itself is the backend's affair (the Redis one does), and the end of the lease settles
  // it in any case. kFailedPrecondition on an empty lock, and inside a callback of the library if
  // the backend does not answer at once (the release is under way then). Once it has returned, no
  // callback of this lock runs or starts, as after ~Lock.
  absl::Status Release();

  // The same without waiting; `done` runs on the manager's executor with the status, also if this
  // Lock is gone by then. Null: nobody wants to know.
  void ReleaseAsync(absl::AnyInvocable<void(absl::Status)> done = nullptr);

  // Makes the lock last for at least `lease` (positive) from now, in place, as far as its
  // `max_hold` allows: OK if that cuts it short, and remaining() says what came of it. Never
  // shortens it. kUnimplemented: longer than the backend offers, or no longer than what it takes
  // off each lease (`clock_drift`, `lease_margin`). kAborted with kYieldRequested: refused, since
  // somebody of higher priority waits; the lock is held for the rest of its lease. kAborted with
  // another reason: lost. kUnavailable, kUnknown: could not ask; the lock is held for the rest of
  // its lease. kFailedPrecondition: not held, or called inside a callback of the library and the
  // backend does not answer at once.
  absl::Status Extend(absl::Duration lease);

  // The same without waiting; `done` runs on the manager's executor, also if this Lock is gone.
  // Null: nobody wants to know.
  void ExtendAsync(absl::Duration lease, absl::AnyInvocable<void(absl::Status)> done = nullptr);

 private:
  friend class internal::Hold;
  friend struct internal::LockMaker;
  friend struct internal::LockSetRep;
  friend class LockSet;

  // What target_ says: nothing held; released in the plain form; else a pointer, to a ManagerShard
  // (the plain form: the backend knows everything there is to know), or, with kHoldTag set, to a
  // Hold (a lock with a life of its own: finite lease, listeners, renewal).
  static constexpr uintptr_t kNothing = 0;
  static constexpr uintptr_t kReleasedPlain = 2;
  static constexpr uintptr_t kHoldTag = 1;

  Lock(internal::ManagerShard* shard, AcquisitionId id, FencingToken token, LeaseHint hint)
      : target_(reinterpret_cast<uintptr_t>(shard)), id_(id), token_(token), hint_(hint) {}
  // Takes over one reference.
  explicit Lock(internal::Hold* hold);

  internal::ManagerShard* plain() const {
    return reinterpret_cast<internal::ManagerShard*>(target_);
  }
  internal::Hold* hold() const {
    return (target_ & kHoldTag) != 0 ? reinterpret_cast<internal::Hold*>(target_ & ~kHoldTag)
                                     : nullptr;
  }
  // Gives a plain lock a life of its own, when somebody wants to listen to it.
  internal::Hold& NeedHold() const;
  void Drop();
  // Releases; `done` runs on whatever thread the backend answers.
  void ReleaseDirect(absl::AnyInvocable<void(absl::Status)> done);

  mutable uintptr_t target_ = kNothing;
  AcquisitionId id_;
  FencingToken token_ = 0;
  LeaseHint hint_ = 0;
};
static_assert(sizeof(Lock) == 40, "a held lock has a budget of memory");

// How an asynchronous request ends.
using AcquireCallback = absl::AnyInvocable<void(absl::StatusOr<Lock>)>;

}  // namespace latchkey

#endif  // LATCHKEY_CORE_LOCK_LOCK_H_

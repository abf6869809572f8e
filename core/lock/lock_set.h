// LockSet is the proof of holding several resources as one: all or none of them, released together.
//
//   absl::StatusOr<LockSet> both = locks.AcquireAll({"kitchen light", "bedroom light"});
//   if (!both.ok()) return both.status();
//   both->OnYieldRequested([&] { stop = true; });      // asked of one: asked of the set
//   store.Write(both->fencing_token("kitchen light"), ...);
//   return both->Release();                            // or let ~LockSet do it
//
// Its states are those of Lock (core/lock.h): kHeld while every member is, kYielding as soon as one
// was asked to yield, and lost (kStolen, kExpired, kLost) as soon as one is: what a set protects,
// it protects only as a whole. The way to yield is to stop, then to release the set. Its callbacks
// must not throw; see Lock.
//
// Thread safety: thread-compatible, like std::unique_ptr: one thread at a time. What it hands out
// (stop tokens) and what it calls back may be used on any thread.
// Lifetime: as that of Lock.
#ifndef LATCHKEY_CORE_LOCK_LOCK_SET_H_
#define LATCHKEY_CORE_LOCK_LOCK_SET_H_

#include <cstddef>
#include <memory>
#include <stop_token>
#include <string>
#include <string_view>
#include <vector>

#include "absl/base/attributes.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "latchkey/core/base/lease.h"
#include "latchkey/core/lock/lock.h"

namespace latchkey {

namespace internal {
class SetRequest;
struct LockSetRep;
}  // namespace internal

class [[nodiscard]] LockSet {
 public:
  // Empty: kEmpty, as a set that was moved from. (The set of no resources, which AcquireAll grants
  // for an empty list, is kHeld until it is released.)
  LockSet();
  LockSet(LockSet&& other) noexcept;
  // Releases what is held first.
  LockSet& operator=(LockSet&& other) noexcept;
  // Releases all members, as ~Lock does.
  ~LockSet();

  // The members, in the order in which they were acquired. The views live as long as the set.
  size_t size() const;
  std::vector<std::string_view> resources() const ABSL_ATTRIBUTE_LIFETIME_BOUND;

  // The number to pass along with every write to that resource; 0 if it is no member.
  FencingToken fencing_token(std::string_view resource) const;

  // See above; looks at the clock where leases are finite.
  LockState state() const;
  bool IsHeld() const {
    const LockState now = state();
    return now == LockState::kHeld || now == LockState::kYielding;
  }

  // The shortest of its members' times; infinite for a set without members.
  absl::Duration remaining() const;

  // Requested to stop when any member is asked to yield or is lost; see Lock::stop_token().
  std::stop_token stop_token() const;

  // Calls `callback` on the manager's executor when the set, which nobody wanted until then, is
  // asked to yield: at once if that already happened. Null removes an earlier callback. See
  // Lock::OnYieldRequested().
  void OnYieldRequested(absl::AnyInvocable<void()> callback);

  // Calls `callback` on the manager's executor when the first member is lost, with its state. At
  // most once. Null removes an earlier callback. See Lock::OnLost().
  void OnLost(absl::AnyInvocable<void(LockState)> callback);

  // Gives all members back, whatever becomes of some of them, and waits for the backend. Of several
  // errors: a loss, or else what is in the caller's hands, or else the backend's failure, the first
  // of its kind in the order of the members; see Lock::Release(). kBackendUnavailable,
  // kBackendRefused, kNotSupported: none was released; if others were, or may have been, it is
  // kBackendUnknown.
  absl::Status Release();

  // The same without waiting; `done` runs on the manager's executor, also if this set is gone.
  // Null: nobody wants to know.
  void ReleaseAsync(absl::AnyInvocable<void(absl::Status)> done = nullptr);

  // Makes every member last for at least `lease` from now, as far as its `max_hold` allows; all are
  // tried. Of several errors one is told, as by Release(). See Lock::Extend().
  absl::Status Extend(absl::Duration lease);

 private:
  friend class internal::SetRequest;
  friend struct internal::LockSetRep;
  friend class NonPreemptibleScope;

  explicit LockSet(std::unique_ptr<internal::LockSetRep> rep);
  std::string NamesForMessage() const;

  std::unique_ptr<internal::LockSetRep> rep_;
};

// How an asynchronous request for several ends.
using AcquireAllCallback = absl::AnyInvocable<void(absl::StatusOr<LockSet>)>;

}  // namespace latchkey

#endif  // LATCHKEY_CORE_LOCK_LOCK_SET_H_

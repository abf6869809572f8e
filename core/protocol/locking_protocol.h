// LockingProtocol is what a backend implements: the few atomic steps on one record for each
// resource, on whatever storage the backend owns. Users of locks never call it; LockManager does.
//
// To put locks on a storage of your own, read this header, then docs/how-to/write-a-backend.md. If
// the storage can compare-and-swap, `core/protocol/lock_record.h` has every step as one pure
// function, and a backend is little more than a loop around it. `tests/conformance` tells whether
// it is right. What only speed needs comes last (Speed extensions), and what only a quorum of your
// backend needs is in quorum_member.h; a backend may do without either.
//
// The record of a resource has a holder (one owner, with one or more handles), at most one
// successor (a reservation), and the fence: the last fencing token ever given, which never goes
// back and survives the record. A thief never replaces the holder: it becomes the successor, the
// holder is told to yield, and only when the holder has left, or its lease is over, does the
// successor become the holder. That is what makes preemption safe.
//
// Rules that hold for every step:
//   * It is atomic on the record.
//   * It first drops a holder or successor whose deadline is over (`deadline <= now`), by the
//     *backend's* clock (the server's, if there is a server). Clients' clocks play no part.
//   * It is idempotent: repeating it, also late and out of order, does no harm.
//   * Its completion runs exactly once: on success, on failure, and when the backend is destroyed
//     or unreachable. It may run before the call returns, or later on any thread; never while the
//     backend holds a mutex (it may call the backend again); it does not throw and does not block.
//   * If the outcome is not known (sent, no reply), the status is kUnknown: the step may have been
//     executed, or may still be. If it was certainly not executed, the status is kUnavailable. Make
//     them with BackendUnknownError and BackendUnavailableError (core/lock_error.h). The caller
//     repeats the step, or compensates with Release by acquisition id.
//   * If it was certainly not executed, and will not be until somebody mends what the message names
//     (a login, a permission), the status is kFailedPrecondition (BackendRefusedError): the caller
//     does not repeat the step, but for a renewal, which it tries until the lease is over.
//   * kInvalidArgument and kUnimplemented mean that it was not executed, either. An error with any
//     other code may hide anything, and counts as kUnknown (MayHaveBeenDone).
//
// Thread safety: all methods may be called from any number of threads at once. None may throw: what
// goes wrong is told by the completion.
// Lifetime: a backend outlives nothing by itself; LockManager and Lock share its ownership. Views
// in a request (resource, owner) are only valid during the call: copy what is needed later.
#ifndef LATCHKEY_CORE_PROTOCOL_LOCKING_PROTOCOL_H_
#define LATCHKEY_CORE_PROTOCOL_LOCKING_PROTOCOL_H_

#include <cstdint>
#include <iosfwd>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/base/attributes.h"
#include "absl/functional/any_invocable.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "latchkey/core/base/lease.h"

namespace latchkey {

class QuorumMember;

// What a backend can do. The manager adapts to it, and refuses with kUnimplemented what an option
// asks for and the backend lacks. Constant over a backend's life.
struct BackendCapabilities {
  // For messages: "memory", "redis", "quorum of 5".
  std::string name = "backend";

  // May `lease` and `reservation_lease` be infinite? If false, leases are finite and renewed.
  bool infinite_lease = false;

  // The longest finite lease accepted, and the lease used where the user names none and infinite
  // ones are not offered.
  absl::Duration max_lease = absl::InfiniteDuration();
  absl::Duration default_lease = absl::Seconds(30);

  // How far the client's monotonic clock may run apart from the backend's, as a fraction, and the
  // time that is taken off each lease on the client's side for reaction and delivery. A holder
  // considers its lease over at `sent + lease * (1 - clock_drift) - lease_margin`.
  double clock_drift = 0;
  absl::Duration lease_margin = absl::ZeroDuration();

  // Does every completion run before the call returns? Then an acquire needs no queue entry of its
  // own while nobody is in the way, and blocking calls work inside callbacks.
  bool answers_at_once = false;

  // Does an event always follow what it tells of, so that a waiter need not poll? False for
  // anything with a network in it.
  bool reliable_events = false;

  // When a hold ends and waiters are watching, does the best of them (priority, then first
  // registration) become the successor, so that nobody of equal or lower priority slips in?
  bool keeps_order = false;

  // Can a waiter be woken without that reservation (WatchRequest::barging), so that whoever comes
  // first enters?
  bool barging = true;

  // Is forced hand-over (ObtainRequest::grace) implemented?
  bool forced_handover = true;

  // Is Inspect implemented?
  bool inspect = false;

  // Does the hint alone identify a hold? See Speed extensions.
  bool hint_identifies_hold = false;
};

// ---- Obtain ----

struct ObtainRequest {
  // Not empty. Valid only during the call.
  ResourceName resource = {};
  // Which attempt this is. Repeating a request with the same id is a repetition, or the poll of a
  // waiting thief, never a second acquisition. Resource, owner and priority are those of the first
  // request with this id; the other terms may change from one to the next, and the last ones count.
  AcquisitionId acquisition = {};
  // Who asks. Empty: an anonymous owner, equal to none but the same acquisition itself. Valid only
  // during the call.
  std::string_view owner = {};
  Priority priority = 0;
  // May the resulting hold be reserved by somebody of higher priority?
  bool preemptible = true;
  // How long the hold lasts unless extended; positive, infinite only where the backend offers it.
  absl::Duration lease = absl::InfiniteDuration();
  // Which holders this request may reserve: those whose priority is below both `priority` and
  // this. None: never reserve, only take what is free.
  std::optional<Priority> reserve_below = std::nullopt;
  // How long a reservation lasts unless polled again; positive.
  absl::Duration reservation_lease = absl::InfiniteDuration();
  // If set, the reservation may take over by force once it has stood for this long (not negative).
  // None: it waits for the holder's release or lease end, however long.
  std::optional<absl::Duration> grace = std::nullopt;
};

enum class ObtainOutcome {
  kObtained,   // A new hold, with a new token.
  kReentered,  // The same owner already holds: one more handle (or a repetition) on that hold.
  kReserved,   // The successor, which may NOT act yet: watch, poll, wait for the holder to leave.
  kDenied,     // Nothing changed.
};

struct ObtainReply {
  ObtainOutcome outcome = ObtainOutcome::kDenied;

  // kObtained, kReentered: the hold's token.
  FencingToken token = 0;

  // kObtained, kReentered: what is left of the hold's own lease (for kReentered, of the lease it
  // already had: re-entry never renews). kReserved: what is left of the victim's lease. kDenied:
  // what is left of the lease, or reservation, that is in the way.
  absl::Duration remaining = absl::ZeroDuration();

  // kReserved: what is left of the grace; infinite without forced hand-over.
  absl::Duration grace_remaining = absl::InfiniteDuration();

  // kReserved: the victim. kDenied: who is in the way (the holder, or a successor that may claim
  // a resource just freed). Empty owner: anonymous.
  std::string other_owner = {};
  Priority other_priority = 0;

  // kObtained, kReentered: to be handed back with the next steps. See Speed extensions.
  LeaseHint hint = 0;
};

using ObtainCallback = absl::AnyInvocable<void(absl::StatusOr<ObtainReply>)>;

// ---- Release, Extend ----

// One hold, or one reservation, as named by the acquisition that made it.
struct HoldRef {
  // Not empty, but for Speed extensions.
  ResourceName resource = {};
  AcquisitionId acquisition = {};
  // What Obtain returned, or 0. See Speed extensions.
  LeaseHint hint = 0;
};

enum class ReleaseOutcome {
  kReleased,   // The handle is gone. With the last handle of an owner the hold has ended.
  kWithdrawn,  // The reservation is gone; the holder was not touched.
  kNotHeld,    // Neither holder nor successor: a repetition, or the hold was lost before.
};

using ReleaseCallback = absl::AnyInvocable<void(absl::StatusOr<ReleaseOutcome>)>;

enum class ExtendOutcome {
  kExtended,  // The lease now ends no earlier than now + the lease asked for.
  kReserved,  // Refused: a successor waits, so that one lease bounds a preemption.
  kNotHeld,   // The acquisition is no handle of the hold. Nothing is ever created anew.
};

struct ExtendReply {
  ExtendOutcome outcome = ExtendOutcome::kNotHeld;
  // kExtended, kReserved: what is left of the lease.
  absl::Duration remaining = absl::ZeroDuration();
};

using ExtendCallback = absl::AnyInvocable<void(absl::StatusOr<ExtendReply>)>;

// ---- Watch ----

enum class WatchEventKind {
  kYieldRequested,  // To a holder: somebody of higher priority has reserved the lock.
  kYieldWithdrawn,  // To a holder: that reservation is gone, and nobody else stands in its place.
  kHoldEnded,       // To a waiter: the resource is free for it to claim (it or somebody better was
                    // woken first). To a holder: its own hold ended without its release.
  kDisplaced,       // To a waiting thief: its reservation was taken over, or is void. To another
                    // waiter above the holder: the reservation that stood in its way is gone. Ask.
};

// Why a hold ended. Where a backend no longer knows, it says kExpired. It may remember what was
// taken by force until the release of that hold has been answered; then a holder that did not
// listen can still ask, with a Watch.
enum class HoldEnd { kReleased, kExpired, kStolen };

struct WatchEvent {
  WatchEventKind kind = WatchEventKind::kHoldEnded;
  // kHoldEnded: why. kDisplaced: kExpired if the reservation itself ran out.
  HoldEnd why = HoldEnd::kReleased;
  // kYieldRequested: what is left of the grace; infinite without forced hand-over.
  absl::Duration grace_remaining = absl::InfiniteDuration();
  // kYieldRequested: the priority of the one that waits.
  Priority thief_priority = 0;
};

// Whether a watch is that of a holder, or of somebody who waits. It makes the difference for a
// holder that lost its hold before it subscribed: it hears kHoldEnded at once and does not count as
// a waiter.
enum class WatchRole { kWaiter, kHolder };

struct WatchRequest {
  // Not empty, but for Speed extensions.
  ResourceName resource = {};
  // Whose events: a handle of the holder, or an acquisition that waits.
  AcquisitionId acquisition = {};
  WatchRole role = WatchRole::kWaiter;

  // For waiters:
  std::string_view owner = {};
  Priority priority = 0;
  // Wake without a reservation; whoever asks first then enters.
  bool barging = false;
  // How long the reservation of the woken waiter lasts where the backend keeps order.
  absl::Duration reservation_lease = absl::InfiniteDuration();
  // If set, take over this acquisition's place in the order, provided its priority is the same and
  // its watch still stands. For a manager that replaces the head of its queue.
  AcquisitionId takes_place_of = {};

  // A waiter's Obtain follows at once. See Speed extensions.
  bool asks_next = false;
  // A holder's: what Obtain returned, or 0. See Speed extensions.
  LeaseHint hint = 0;
};

using WatchCallback = absl::AnyInvocable<void(const WatchEvent&)>;

// Stands for an interest in events; destroying it ends the interest. Movable. An event that another
// thread has already begun to deliver may still arrive after that, so the callback must own what it
// touches. Destruction never blocks on a callback and may happen inside one.
class Subscription {
 public:
  Subscription() = default;
  explicit Subscription(absl::AnyInvocable<void() &&> cancel) : cancel_(std::move(cancel)) {}
  Subscription(Subscription&& other) noexcept : cancel_(std::exchange(other.cancel_, nullptr)) {}
  Subscription& operator=(Subscription&& other) noexcept {
    if (this != &other) {
      Reset();
      cancel_ = std::exchange(other.cancel_, nullptr);
    }
    return *this;
  }
  ~Subscription() { Reset(); }

  // Ends the interest now. Idempotent.
  void Reset() {
    if (auto cancel = std::exchange(cancel_, nullptr)) std::move(cancel)();
  }

  bool active() const { return cancel_ != nullptr; }

 private:
  absl::AnyInvocable<void() &&> cancel_;
};

// ---- Inspect ----

// One resource as the backend sees it, for Snapshot() and diagnostics.
struct ResourceState {
  std::string resource = {};
  bool held = false;
  std::string holder_owner = {};  // Empty: anonymous.
  Priority holder_priority = 0;
  bool preemptible = true;
  int handles = 0;
  FencingToken token = 0;
  absl::Duration age = absl::ZeroDuration();  // Since the hold began, to the accuracy of the clock.
  absl::Duration remaining_lease = absl::InfiniteDuration();
  bool reserved = false;
  std::string successor_owner = {};
  Priority successor_priority = 0;
};

// ---- The interface ----

class LockingProtocol {
 public:
  virtual ~LockingProtocol() = default;

  // Asks for the resource, in this order:
  //   1. The same owner holds: add the handle; the hold's priority becomes the larger of both, and
  //      it stays preemptible only if both are; a successor that could not reserve it any more (it
  //      does not outrank it, or the hold is not preemptible) is dropped (kDisplaced), and the
  //      lease is not renewed. -> kReentered.
  //   2. Nobody holds, and there is no successor, or it is this acquisition, or this priority is
  //      above the successor's (which is displaced): a new hold with token = ++fence. -> kObtained.
  //   3. The holder is preemptible, its priority is below both `priority` and `reserve_below`, and
  //      there is no successor, or it is this acquisition, or this priority is above the
  //      successor's: become, or refresh, the successor and tell the holder (kYieldRequested) and a
  //      displaced successor. -> kReserved. If this acquisition already was the successor, asks
  //      with a `grace`, and the end of grace noted at its first reservation is over: take the
  //      hold over with a new token (the old holder hears kHoldEnded). -> kObtained.
  //   4. Otherwise nothing changes. -> kDenied.
  // Errors: kUnavailable (not executed), kUnknown (may have been executed), kInvalidArgument,
  // kUnimplemented (a lease or option that the capabilities exclude).
  virtual void Obtain(const ObtainRequest& request, ObtainCallback done) = 0;

  // Removes exactly this handle, or this reservation, and nothing else: the holder's release, the
  // victim's acknowledgement and the thief's withdrawal are this one step. When the hold ends with
  // it, the successor or else the best waiter is told. Call it only after leaving the protected
  // section.
  virtual void Release(const HoldRef& hold, ReleaseCallback done) = 0;

  // Makes the hold last until at least now + `lease` (positive). Never shortens one, never revives
  // one, and is refused while a successor waits. The answer says what is left, so a manager asks
  // for a nanosecond to learn what other handles have made of the lease.
  virtual void Extend(const HoldRef& hold, absl::Duration lease, ExtendCallback done) = 0;

  // Registers for the events of one acquisition. What already happened is told at once (also
  // before Watch returns): a yield already requested, or a resource already free for this waiter.
  // So the caller subscribes, and what it saw before cannot be missed. `on_event` may run on any
  // thread, several times, never while the backend holds a mutex, never for two events at once. It
  // does not block. Events are hints: losing all of them costs time, never safety.
  //
  // The watch of a waiter goes on when it has become the holder. An acquisition's own Release is no
  // news to it. A waiter that was woken and whose watch ends before it has claimed passes the
  // wake-up on, and its reservation of the free resource goes. So a waiter that means to claim
  // keeps its watch until it has been answered, and one that gives up ends its watch before or
  // after its Release, as it likes. A waiter hears kHoldEnded again if it did not get the resource
  // that it was woken for.
  virtual Subscription Watch(const WatchRequest& request, WatchCallback on_event) = 0;

  virtual const BackendCapabilities& capabilities() const ABSL_ATTRIBUTE_LIFETIME_BOUND = 0;

  // Calls `visitor` for every resource that is held or reserved, or for the one named. Does not
  // block on a network. Optional (`capabilities().inspect`); the default visits nothing. The
  // visitor must not call the backend.
  virtual void Inspect(std::optional<ResourceName> resource,
                       absl::FunctionRef<void(const ResourceState&)> visitor) const;

  // What a backend implements beside this so that a quorum can be made of it (quorum_member.h);
  // null: it cannot. Always the same, and lives as long as the backend. A protocol that passes
  // everything on to another passes on the member's calls, too, or returns null.
  virtual QuorumMember* quorum_member() ABSL_ATTRIBUTE_LIFETIME_BOUND { return nullptr; }

  // For messages: the resource of a hold whose name the caller did not keep. Optional, see Speed
  // extensions; the default knows what the caller says. Does not block on a network.
  virtual std::string ResourceOf(const HoldRef& hold) const;
};

// ---- Checks ----

// For backends: refuses what no step may be asked to do, so that each need not write it anew. OK,
// or
//   kInvalidArgument   an empty resource, no acquisition id, a lease or reservation lease that is
//                      not positive, a negative grace; names the field and its value;
//   kUnimplemented     an infinite or too long lease, or a grace, that `capabilities` exclude.
absl::Status CheckRequest(const ObtainRequest& request, const BackendCapabilities& capabilities);
absl::Status CheckRequest(const HoldRef& hold, const BackendCapabilities& capabilities);
absl::Status CheckRequest(const WatchRequest& request, const BackendCapabilities& capabilities);

// The same for one lease; `field` is its name in the message.
absl::Status CheckLease(std::string_view field, absl::Duration lease,
                        const BackendCapabilities& capabilities);

// ---- Names ----

// As in the enum without the "k": "Obtained", "YieldRequested". Streams print them, too.
std::string_view ObtainOutcomeName(ObtainOutcome outcome);
std::string_view ReleaseOutcomeName(ReleaseOutcome outcome);
std::string_view ExtendOutcomeName(ExtendOutcome outcome);
std::string_view WatchEventKindName(WatchEventKind kind);
std::string_view HoldEndName(HoldEnd why);
std::string_view WatchRoleName(WatchRole role);

std::ostream& operator<<(std::ostream& out, ObtainOutcome outcome);
std::ostream& operator<<(std::ostream& out, ReleaseOutcome outcome);
std::ostream& operator<<(std::ostream& out, ExtendOutcome outcome);
std::ostream& operator<<(std::ostream& out, WatchEventKind kind);
std::ostream& operator<<(std::ostream& out, HoldEnd why);
std::ostream& operator<<(std::ostream& out, WatchRole role);

// ---- Speed extensions ----
//
// A backend may ignore all of these. It is right without them, and so is a caller that does not use
// them.
//
// Hints (`hint` in ObtainReply, HoldRef and WatchRequest). With a grant a backend may give a number
// of its own, which leads it back to the hold without a look-up by name. Callers hand it back with
// every step on that hold, or 0. It says where to look, and no more: it may be stale, and lead to
// another hold or to nothing, so the acquisition has to be a handle of what is found there. If it
// is not, the name counts. A backend without hints leaves it 0.
//
// Holds without a name (`capabilities().hint_identifies_hold`). Where that is true, a HoldRef with
// a hint, and a holder's WatchRequest with one, may have an empty `resource`, so that a Lock need
// not carry its name. The price is ResourceOf: it tells the name of such a hold as long as that
// lasts, and if it was taken by force, until its release has been answered; empty: it is not known
// any more.
//
// One request instead of two (`WatchRequest::asks_next`). An Obtain of the same acquisition follows
// at once. So a backend to which registering a waiter is a request of its own may wait for the
// answer to that Obtain, and register only a waiter that was not granted the lock.

}  // namespace latchkey

#endif  // LATCHKEY_CORE_PROTOCOL_LOCKING_PROTOCOL_H_

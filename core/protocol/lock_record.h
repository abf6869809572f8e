// The protocol as a pure function: one record, one step, one moment -> a reply, and who is to be
// told. This is the reference for every backend. One on a compare-and-swap store loads a record,
// applies the step and swaps; the in-memory backend and the Redis scripts are tested against it.
//
//   LockRecord record;
//   Effects effects;
//   ObtainReply reply = Apply(record, ObtainRequest{...}, now, effects);
//   // store `record` if `effects.changed`, then deliver `effects.notices`
//
// Thread safety: none needed; everything is a value.
#ifndef LATCHKEY_CORE_PROTOCOL_LOCK_RECORD_H_
#define LATCHKEY_CORE_PROTOCOL_LOCK_RECORD_H_

#include <optional>
#include <string>
#include <string_view>

#include "absl/container/inlined_vector.h"
#include "absl/time/time.h"
#include "latchkey/core/base/lease.h"
#include "latchkey/core/protocol/locking_protocol.h"
#include "latchkey/core/protocol/quorum_member.h"

namespace latchkey {

// Most holds have one handle.
using AcquisitionList = absl::InlinedVector<AcquisitionId, 1>;

struct LockRecord {
  struct Holder {
    std::string owner = {};  // Empty: anonymous.
    // The acquisitions that hold; at least one. In order of entry, no duplicates.
    AcquisitionList handles = {};
    Priority priority = 0;
    bool preemptible = true;
    FencingToken token = 0;
    absl::Time deadline = absl::InfiniteFuture();
    // The longest that it was ever granted or extended for.
    absl::Duration length = absl::InfiniteDuration();

    friend bool operator==(const Holder&, const Holder&) = default;
  };

  struct Successor {
    AcquisitionId acquisition = {};
    std::string owner = {};
    Priority priority = 0;
    absl::Time deadline = absl::InfiniteFuture();
    // What it last reserved for.
    absl::Duration length = absl::InfiniteDuration();
    // When it may take over by force; infinite: never. And after how long a grace.
    absl::Time grace_end = absl::InfiniteFuture();
    absl::Duration grace = absl::InfiniteDuration();

    friend bool operator==(const Successor&, const Successor&) = default;
  };

  // The last token ever given. Never goes back, and must survive the rest of the record.
  FencingToken fence = 0;
  std::optional<Holder> holder = std::nullopt;
  std::optional<Successor> successor = std::nullopt;

  // Neither held nor reserved: a backend may drop everything but the fence.
  bool IsFree() const { return !holder && !successor; }

  friend bool operator==(const LockRecord&, const LockRecord&) = default;
};

// Whom a step concerns besides its caller.
struct Notice {
  // Every handle of the holder concerned, or the one waiting thief.
  AcquisitionList to = {};
  WatchEvent event = {};
};

struct Effects {
  // The record differs from before, so it has to be stored.
  bool changed = false;
  // The resource was held before and is not any more, or lost its successor while nobody held it:
  // tell the successor if there is one, else the best waiter.
  bool became_free = false;
  // Why, if became_free because a hold ended.
  HoldEnd why = HoldEnd::kReleased;
  absl::InlinedVector<Notice, 1> notices = {};
};

// Drops a holder or successor whose deadline is over, and brings one that lies further ahead than
// its own length to now + length: a clock that was stepped back must not block anybody for the size
// of the step, and what is truly left is never more than the length. Every Apply begins with it; a
// backend calls it alone when a deadline passes and somebody has to be told.
void Expire(LockRecord& record, absl::Time now, Effects& effects);

// The steps. Each is described at its method of LockingProtocol. `now` is the backend's clock. It
// may be stepped back at any time; one that is stepped forward ends leases early (A1).
// Preconditions: the request's fields are valid (the manager and the backend check them).
ObtainReply Apply(LockRecord& record, const ObtainRequest& request, absl::Time now,
                  Effects& effects);
ReleaseOutcome ApplyRelease(LockRecord& record, AcquisitionId acquisition, absl::Time now,
                            Effects& effects);
ExtendReply ApplyExtend(LockRecord& record, AcquisitionId acquisition, absl::Duration lease,
                        absl::Time now, Effects& effects);

// For backends that keep order: if nobody holds and nobody has reserved, the waiter becomes the
// successor for `reservation_lease`, so that nobody of equal or lower priority slips in before it
// claims. Returns whether it did.
bool Nominate(LockRecord& record, AcquisitionId acquisition, std::string_view owner,
              Priority priority, absl::Duration reservation_lease, absl::Time now);

// What of the record a person wants to see.
ResourceState Describe(const LockRecord& record, std::string_view resource, absl::Time now);

// The steps of a QuorumMember. The first is Apply, with the record's fence where nothing is
// granted; whether that was lost is the backend's to say.
MemberReply ApplyAsMember(LockRecord& record, const ObtainRequest& request, absl::Time now,
                          Effects& effects);
ConfirmReply ApplyConfirm(LockRecord& record, AcquisitionId acquisition, FencingToken token,
                          absl::Time now, Effects& effects);

}  // namespace latchkey

#endif  // LATCHKEY_CORE_PROTOCOL_LOCK_RECORD_H_

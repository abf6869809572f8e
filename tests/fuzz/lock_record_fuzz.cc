// core/lock_record by itself: any steps at any times, whichever way the clock goes, keep what the
// protocol promises of a record, and repeating a step changes nothing more.
//
// Bytes are steps: a kind, who takes it, and its terms.
#include <algorithm>
#include <optional>
#include <string>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "latchkey/core/protocol/lock_record.h"
#include "latchkey/tests/fuzz/fuzz_input.h"

namespace latchkey {
namespace {

constexpr int kParties = 8;
constexpr std::string_view kOwners[] = {"", "", "", "ann", "ann", "bob", "bob", "cid"};

bool IsHandle(const LockRecord& record, AcquisitionId id) {
  if (!record.holder) return false;
  const AcquisitionList& handles = record.holder->handles;
  return std::find(handles.begin(), handles.end(), id) != handles.end();
}

bool IsSuccessor(const LockRecord& record, AcquisitionId id) {
  return record.successor && record.successor->acquisition == id;
}

class Steps {
 public:
  explicit Steps(FuzzInput& input) : input_(input) {
    for (Priority& priority : priorities_) priority = input.SomeInt64();
  }

  void Go() {
    while (!input_.empty()) {
      const LockRecord before = record_;
      Take();
      CheckRecord(before);
    }
  }

 private:
  absl::Duration SomeLease() {
    const absl::Duration lease = input_.SomeDuration();
    return lease > absl::ZeroDuration() ? lease : absl::Seconds(1);
  }

  void Take() {
    const int party = input_.Below(kParties);
    const AcquisitionId id = {1, static_cast<uint64_t>(party) + 1};
    LockRecord expired = record_;
    Effects of_time;
    switch (input_.Below(6)) {
      case 0:
      case 1: {
        ObtainRequest request{.acquisition = id,
                              .owner = kOwners[party],
                              .priority = priorities_[party],
                              .preemptible = !input_.Flag(),
                              .lease = SomeLease()};
        if (input_.Flag()) request.reserve_below = input_.SomeInt64();
        if (input_.Flag()) request.reservation_lease = SomeLease();
        if (input_.Flag()) {
          request.grace = std::max(input_.SomeDuration(), absl::ZeroDuration());
        }
        Expire(expired, now_, of_time);
        Obtain(request, expired);
        break;
      }
      case 2: {
        Expire(expired, now_, of_time);
        Effects effects;
        const ReleaseOutcome outcome = ApplyRelease(record_, id, now_, effects);
        CheckEffects(effects);
        FuzzCheck((outcome == ReleaseOutcome::kReleased) == IsHandle(expired, id), "released");
        FuzzCheck((outcome == ReleaseOutcome::kWithdrawn) ==
                      (IsSuccessor(expired, id) && !IsHandle(expired, id)),
                  "withdrawn");
        FuzzCheck(!IsHandle(record_, id), "released, and still a handle");
        if (outcome == ReleaseOutcome::kNotHeld) FuzzCheck(record_ == expired, "nothing to do");
        if (outcome == ReleaseOutcome::kWithdrawn) {
          FuzzCheck(record_.holder == expired.holder, "a withdrawal touched the holder");
        }
        break;
      }
      case 3: {
        Expire(expired, now_, of_time);
        const absl::Duration lease = SomeLease();
        Effects effects;
        const ExtendReply reply = ApplyExtend(record_, id, lease, now_, effects);
        CheckEffects(effects);
        if (reply.outcome == ExtendOutcome::kExtended) {
          FuzzCheck(!record_.successor, "extended under a reservation");
          FuzzCheck(record_.holder->deadline >= expired.holder->deadline, "shortened");
          FuzzCheck(record_.holder->deadline >= now_ + lease, "not as long as asked for");
          FuzzCheck(reply.remaining > absl::ZeroDuration(), "extended to nothing");
        } else {
          FuzzCheck(record_ == expired, "refused, and changed");
        }
        break;
      }
      case 4: {
        Expire(expired, now_, of_time);
        const FencingToken token =
            record_.fence + input_.Below(5) - std::min<FencingToken>(record_.fence, 2);
        Effects effects;
        const ConfirmReply reply = ApplyConfirm(record_, id, token, now_, effects);
        CheckEffects(effects);
        if (reply.outcome == ConfirmOutcome::kConfirmed) {
          FuzzCheck(record_.holder->token == token && reply.token == token, "another token");
        } else {
          FuzzCheck(record_ == expired, "not confirmed, and changed");
        }
        break;
      }
      default:
        if (input_.Flag()) {
          now_ += std::clamp(input_.SomeDuration(), -absl::Hours(300), absl::Hours(300));
          Effects effects;
          Expire(record_, now_, effects);
          CheckEffects(effects);
        } else if (Nominate(record_, id, kOwners[party], priorities_[party], SomeLease(), now_)) {
          FuzzCheck(IsSuccessor(record_, id) && !record_.holder, "nominated");
        }
    }
  }

  void Obtain(const ObtainRequest& request, const LockRecord& expired) {
    Effects effects;
    const ObtainReply reply = Apply(record_, request, now_, effects);
    CheckEffects(effects);
    const AcquisitionId id = request.acquisition;
    switch (reply.outcome) {
      case ObtainOutcome::kObtained:
        FuzzCheck(reply.token == expired.fence + 1 && reply.token == record_.fence, "token");
        FuzzCheck(IsHandle(record_, id) && record_.holder->handles.size() == 1, "no hold");
        FuzzCheck(!record_.successor, "a successor outlived a grant");
        if (expired.holder) {
          // By force, and only what it had reserved, for as long as it said.
          FuzzCheck(request.grace && IsSuccessor(expired, id) &&
                        expired.successor->grace_end <= now_ && expired.holder->preemptible &&
                        expired.holder->priority < request.priority,
                    "two hold at once");
        } else if (expired.successor && !IsSuccessor(expired, id)) {
          FuzzCheck(request.priority > expired.successor->priority, "barged past a reservation");
        }
        break;
      case ObtainOutcome::kReentered:
        FuzzCheck(IsHandle(record_, id), "entered, and no handle");
        FuzzCheck(expired.holder && record_.holder->owner == expired.holder->owner &&
                      record_.holder->owner == request.owner,
                  "entered the hold of another");
        FuzzCheck(reply.token == expired.holder->token, "a token of its own");
        FuzzCheck(record_.holder->deadline == expired.holder->deadline, "a re-entry renewed");
        FuzzCheck(record_.holder->priority >= request.priority, "priority");
        break;
      case ObtainOutcome::kReserved:
        FuzzCheck(record_.holder == expired.holder, "a thief touched the holder");
        FuzzCheck(IsSuccessor(record_, id), "reserved, and no successor");
        FuzzCheck(record_.holder->preemptible && record_.holder->priority < request.priority &&
                      request.reserve_below && record_.holder->priority < *request.reserve_below,
                  "reserved what it may not");
        if (expired.successor && !IsSuccessor(expired, id)) {
          FuzzCheck(expired.successor->priority < request.priority, "displaced an equal");
        }
        break;
      case ObtainOutcome::kDenied:
        FuzzCheck(record_ == expired, "denied, and changed");
        FuzzCheck(reply.token == 0, "denied, with a token");
        break;
    }
    // A repetition is no second acquisition. With a grace of nothing the repetition of a
    // reservation is the hand-over.
    if (reply.outcome == ObtainOutcome::kReserved && request.grace) return;
    const LockRecord after = record_;
    Effects more;
    const ObtainReply again = Apply(record_, request, now_, more);
    FuzzCheck(record_.fence == after.fence, "a repetition took a token");
    FuzzCheck(again.token == reply.token, "a repetition got another token");
    if (reply.outcome == ObtainOutcome::kObtained || reply.outcome == ObtainOutcome::kReentered) {
      FuzzCheck(again.outcome == ObtainOutcome::kReentered, "a repetition did not enter");
      // A named owner's repeated request may find its own thief's reservation outranked: that
      // happened at the first already.
      FuzzCheck(record_ == after, "a repetition changed the record");
    } else {
      FuzzCheck(again.outcome == reply.outcome && record_ == after, "a repetition differs");
    }
  }

  void CheckEffects(const Effects& effects) {
    if (effects.became_free) {
      FuzzCheck(effects.changed && !record_.holder, "free, but held or unchanged");
    }
    for (const Notice& notice : effects.notices) {
      FuzzCheck(!notice.to.empty(), "a notice to nobody");
      if (notice.event.kind == WatchEventKind::kYieldRequested) {
        FuzzCheck(record_.holder && record_.holder->handles == notice.to && record_.successor &&
                      record_.successor->priority == notice.event.thief_priority,
                  "asked the wrong one to yield");
      }
    }
  }

  // A length of more than there is time makes a deadline without end, which is never cut.
  bool EndsWithin(absl::Time deadline, absl::Duration length) const {
    constexpr absl::Duration kAges = absl::Hours(1'000'000'000'000);
    return deadline <= now_ + length || (deadline == absl::InfiniteFuture() && length > kAges);
  }

  void CheckRecord(const LockRecord& before) const {
    FuzzCheck(record_.fence >= before.fence, "the fence went back");
    if (record_.holder) {
      const LockRecord::Holder& holder = *record_.holder;
      FuzzCheck(!holder.handles.empty(), "a hold without handles");
      for (size_t i = 0; i < holder.handles.size(); ++i) {
        for (size_t k = 0; k < i; ++k) {
          FuzzCheck(holder.handles[i] != holder.handles[k], "a handle twice");
        }
      }
      FuzzCheck(holder.owner.empty() ? holder.handles.size() == 1 : true,
                "an anonymous hold with several handles");
      FuzzCheck(holder.token >= 1 && holder.token <= record_.fence, "a token above the fence");
      if (before.holder && before.holder->handles == holder.handles) {
        FuzzCheck(
            holder.deadline >= std::min(before.holder->deadline, now_ + before.holder->length),
            "a hold was shortened");
      }
      FuzzCheck(EndsWithin(holder.deadline, holder.length), "a hold longer than it was granted");
    }
    if (record_.successor) {
      FuzzCheck(EndsWithin(record_.successor->deadline, record_.successor->length) &&
                    EndsWithin(record_.successor->grace_end, record_.successor->grace),
                "a reservation longer than it was asked for");
      if (record_.holder) {
        FuzzCheck(record_.successor->priority > record_.holder->priority,
                  "reserved by an equal or a lesser");
        FuzzCheck(!IsHandle(record_, record_.successor->acquisition), "holds and has reserved");
      }
    }
    const ResourceState shown = Describe(record_, "r", now_);
    FuzzCheck(
        shown.held == record_.holder.has_value() && shown.reserved == record_.successor.has_value(),
        "described otherwise");
  }

  FuzzInput& input_;
  Priority priorities_[kParties] = {};
  absl::Time now_ = absl::UnixEpoch() + absl::Hours(1);
  LockRecord record_;
};

}  // namespace
}  // namespace latchkey

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  latchkey::FuzzInput input(data, size);
  latchkey::Steps(input).Go();
  return 0;
}

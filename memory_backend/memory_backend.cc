#include "latchkey/memory_backend/memory_backend.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/attributes.h"
#include "absl/base/optimization.h"
#include "absl/base/thread_annotations.h"
#include "absl/container/inlined_vector.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "latchkey/core/base/lock_error.h"
#include "latchkey/core/protocol/lock_record.h"
#include "latchkey/core/protocol/quorum_member.h"
#include "latchkey/memory_backend/lost_holds.h"
#include "latchkey/memory_backend/shard_mutex.h"
#include "latchkey/memory_backend/slot_table.h"

namespace latchkey {
namespace memory_backend_internal {

struct Shard;

// One subscription. Events are queued while a shard's mutex is held, which fixes their order, and
// delivered after it was released, by one thread at a time.
class Watcher {
 public:
  Watcher(const WatchRequest& request, WatchCallback on_event)
      : acquisition(request.acquisition),
        role(request.role),
        owner(request.owner),
        priority(request.priority),
        barging(request.barging),
        reservation_lease(request.reservation_lease),
        on_event_(std::move(on_event)) {}

  const AcquisitionId acquisition;
  const WatchRole role;
  const std::string owner;
  const Priority priority;
  const bool barging;
  const absl::Duration reservation_lease;
  // Guarded by the shard's mutex: the place in the order, and whether it let a nomination lapse, so
  // that it comes after those that did not.
  uint64_t place = 0;
  bool lapsed = false;
  // One that barges was woken and has not asked since: it is on its way, and need not be told again
  // at each release until it gets there.
  bool woken = false;

  // Where it is registered, set once before anybody else sees it. The slot stays while the watcher
  // is in it, and the backend until the subscription ends.
  Shard* shard = nullptr;
  SlotIndex slot = kNoSlot;
  std::shared_ptr<LockingProtocol> backend;

  void Push(const WatchEvent& event) ABSL_LOCKS_EXCLUDED(mu_) {
    ShardMutexLock lock(&mu_);
    events_.push_back(event);
  }

  void Deliver() ABSL_LOCKS_EXCLUDED(mu_) {
    mu_.Lock();
    if (delivering_) {
      mu_.Unlock();
      return;
    }
    delivering_ = true;
    while (!cancelled_ && !events_.empty()) {
      const WatchEvent event = events_.front();
      events_.erase(events_.begin());
      mu_.Unlock();
      on_event_(event);
      mu_.Lock();
    }
    delivering_ = false;
    mu_.Unlock();
  }

  void Cancel() ABSL_LOCKS_EXCLUDED(mu_) {
    ShardMutexLock lock(&mu_);
    cancelled_ = true;
  }

 private:
  WatchCallback on_event_;  // Called by one thread at a time, as `delivering_` sees to.
  ShardMutex mu_;
  absl::InlinedVector<WatchEvent, 2> events_ ABSL_GUARDED_BY(mu_);
  bool delivering_ ABSL_GUARDED_BY(mu_) = false;
  bool cancelled_ ABSL_GUARDED_BY(mu_) = false;
};

// What a slot needs beyond the plain case. It comes in two forms, so that what is common stays
// cheap. In the light one, while `full` is false, the slot's single handle still says who holds,
// and `owner`, `preemptible` and `deadline` what else there is to the hold. If the handle is none,
// nobody holds: some wait, and `nominee` may be the one that is next. In the full one `record` says
// everything, and the slot's own fields and those above mean nothing.
struct Extra {
  SlotIndex slot = kNoSlot;
  bool full = false;
  bool preemptible = true;
  std::string owner;
  absl::Time deadline = absl::InfiniteFuture();
  // The successor of nobody, for as long as it takes it to ask. One of `watchers`.
  Watcher* nominee = nullptr;

  LockRecord record;  // Its fence is unused but during a step: the shard has it.
  std::vector<std::shared_ptr<Watcher>> watchers;
  // Is, or was, there a waiter whose reservation ends? Then waking it takes the time.
  bool timed_waiters = false;

  // The next moment at which something here is over, and the place in the shard's heap of such
  // moments; infinite and none if nothing is.
  absl::Time next_deadline = absl::InfiniteFuture();
  uint32_t heap_place = kNotInHeap;
  static constexpr uint32_t kNotInHeap = ~uint32_t{0};
};

// Those to be told once the mutex is free.
using Outbox = absl::InlinedVector<std::shared_ptr<Watcher>, 2>;

struct ABSL_CACHELINE_ALIGNED Shard {
  ShardMutex mu;
  FencingToken fence ABSL_GUARDED_BY(mu) = 0;
  SlotTable table ABSL_GUARDED_BY(mu);
  // A binary heap by `next_deadline`.
  std::vector<Extra*> deadlines ABSL_GUARDED_BY(mu);
  // Extras not in use, kept for their allocations.
  std::vector<std::unique_ptr<Extra>> spare_extras ABSL_GUARDED_BY(mu);
  uint64_t last_place ABSL_GUARDED_BY(mu) = 0;
  Clock::TimerId timer ABSL_GUARDED_BY(mu) = 0;
  absl::Time timer_at ABSL_GUARDED_BY(mu) = absl::InfiniteFuture();
};

namespace {

// What an idle shard keeps, so that the next lock need not allocate.
constexpr size_t kMostSpareExtras = 2;
constexpr size_t kMostIdleDeadlines = 16;
constexpr size_t kLongestName = std::numeric_limits<uint32_t>::max();

class MemoryBackend : public LockingProtocol,
                      public QuorumMember,
                      public std::enable_shared_from_this<MemoryBackend> {
 public:
  explicit MemoryBackend(const MemoryBackendOptions& options)
      : clock_(options.clock != nullptr ? *options.clock : RealClock()),
        shards_(ShardCount(options)) {
    capabilities_.name = "memory";
    capabilities_.infinite_lease = true;
    capabilities_.answers_at_once = true;
    capabilities_.reliable_events = true;
    capabilities_.keeps_order = true;
    capabilities_.barging = true;
    capabilities_.forced_handover = true;
    capabilities_.inspect = true;
    capabilities_.hint_identifies_hold = true;
  }

  ~MemoryBackend() override {
    for (Shard& shard : shards_) {
      ShardMutexLock lock(&shard.mu);
      if (shard.timer_at != absl::InfiniteFuture()) clock_.Cancel(shard.timer);
      shard.table.ForEach([](SlotIndex, Slot& slot) { delete slot.extra; });
    }
  }

  const BackendCapabilities& capabilities() const override { return capabilities_; }

  void Obtain(const ObtainRequest& request, ObtainCallback done) override {
    if (absl::Status bad = Check(request); ABSL_PREDICT_FALSE(!bad.ok())) {
      done(std::move(bad));
      return;
    }
    const uint32_t shard_number = ShardNumber(request.resource);
    Shard& shard = shards_[shard_number];
    ObtainReply reply;
    const uint32_t hash = static_cast<uint32_t>(request.resource.hash());
    shard.mu.Lock();
    SlotIndex index = shard.table.Find(request.resource, hash);
    if (ABSL_PREDICT_TRUE(index == kNoSlot)) {
      index = shard.table.Insert(request.resource, hash);
      GrantFree(shard, index, request, reply);
      shard.mu.Unlock();
      reply.hint = HintOf(shard_number, index);
    } else {
      ObtainTaken(shard, index, request, reply);
      if (reply.token != 0) reply.hint = HintOf(shard_number, index);
    }
    done(std::move(reply));
  }

  void Release(const HoldRef& hold, ReleaseCallback done) override {
    ReleaseOutcome outcome = ReleaseOutcome::kNotHeld;
    if (Shard* shard = ShardOf(hold)) {
      shard->mu.Lock();
      const SlotIndex index = FindHold(*shard, hold);
      if (ABSL_PREDICT_FALSE(index == kNoSlot)) {
        shard->mu.Unlock();
      } else if (const Slot& slot = shard->table.At(index);
                 ABSL_PREDICT_TRUE(slot.extra == nullptr)) {
        if (slot.handle == hold.acquisition) {
          shard->table.Erase(index);
          outcome = ReleaseOutcome::kReleased;
        }
        shard->mu.Unlock();
      } else {
        outcome = ReleaseExtra(*shard, index, hold.acquisition);
      }
    }
    done(outcome);
    // Whoever was told may have asked first what became of the hold.
    if (ABSL_PREDICT_FALSE(outcome == ReleaseOutcome::kNotHeld)) lost_.Forget(hold.acquisition);
  }

  void Extend(const HoldRef& hold, absl::Duration lease, ExtendCallback done) override {
    if (absl::Status bad = CheckLease("lease", lease, capabilities_);
        ABSL_PREDICT_FALSE(!bad.ok())) {
      done(std::move(bad));
      return;
    }
    ExtendReply reply;
    Outbox outbox;
    if (Shard* shard = ShardOf(hold)) {
      ShardMutexLock lock(&shard->mu);
      const SlotIndex index = FindHold(*shard, hold);
      if (index != kNoSlot) {
        StepFull(*shard, index, lease != absl::InfiniteDuration(), outbox,
                 [&](LockRecord& record, absl::Time now, Effects& effects) {
                   reply = ApplyExtend(record, hold.acquisition, lease, now, effects);
                 });
      }
    }
    Deliver(outbox);
    done(reply);
  }

  QuorumMember* quorum_member() override { return this; }

  void ObtainAsMember(const ObtainRequest& request, MemberCallback done) override {
    absl::StatusOr<MemberReply> answer = MemberReply();
    Obtain(request, [&answer](absl::StatusOr<ObtainReply> reply) {
      if (reply.ok()) {
        answer->reply = *std::move(reply);
      } else {
        answer = reply.status();
      }
    });
    if (answer.ok() && answer->reply.token == 0) {
      // Read after the step, so it is no smaller than what was given up to then.
      Shard& shard = shards_[ShardNumber(request.resource)];
      ShardMutexLock lock(&shard.mu);
      answer->fence = shard.fence;
    }
    done(std::move(answer));
  }

  void Confirm(const HoldRef& hold, FencingToken token, ConfirmCallback done) override {
    ConfirmReply reply;
    Outbox outbox;
    if (Shard* shard = ShardOf(hold)) {
      ShardMutexLock lock(&shard->mu);
      const SlotIndex index = FindHold(*shard, hold);
      if (index != kNoSlot) {
        StepFull(*shard, index, false, outbox,
                 [&](LockRecord& record, absl::Time now, Effects& effects) {
                   reply = ApplyConfirm(record, hold.acquisition, token, now, effects);
                 });
      }
    }
    Deliver(outbox);
    done(reply);
  }

  Subscription Watch(const WatchRequest& request, WatchCallback on_event) override {
    const HoldRef hold{request.resource, request.acquisition, request.hint};
    Shard* const shard = ShardOf(hold);
    if (shard == nullptr) return Subscription();
    auto watcher = std::make_shared<Watcher>(request, std::move(on_event));
    watcher->shard = shard;
    Outbox outbox;
    bool lost;
    {
      ShardMutexLock lock(&shard->mu);
      SlotIndex index = FindHold(*shard, hold);
      lost = request.role == WatchRole::kHolder ? !IsHandle(*shard, index, request.acquisition)
                                                : index == kNoSlot && request.resource.empty();
      if (lost) {
        // Lost before it subscribed; a waiter must name the resource.
        watcher->Push(
            {.kind = WatchEventKind::kHoldEnded,
             .why = lost_.Find(request.acquisition) ? HoldEnd::kStolen : HoldEnd::kExpired});
        outbox.push_back(watcher);
      } else {
        if (index == kNoSlot) {
          index =
              shard->table.Insert(request.resource, static_cast<uint32_t>(request.resource.hash()));
        }
        watcher->slot = index;
        watcher->backend = shared_from_this();
        if (!WatchLightly(*shard, index, watcher, request.takes_place_of, outbox)) {
          StepFull(*shard, index, request.reservation_lease != absl::InfiniteDuration(), outbox,
                   [&](LockRecord& record, absl::Time now, Effects& effects) {
                     shard->mu.AssertHeld();
                     Expire(record, now, effects);
                     AddWatcher(*shard, *shard->table.At(index).extra, watcher,
                                request.takes_place_of);
                     TellNewWatcher(*shard->table.At(index).extra, watcher, now, effects, outbox);
                   });
        }
      }
    }
    Deliver(outbox);
    if (lost) return Subscription();
    return Subscription([watcher = std::move(watcher)]() mutable {
      // Moved, so that what keeps the two alive ends with this call.
      const std::shared_ptr<Watcher> gone = std::move(watcher);
      const std::shared_ptr<LockingProtocol> self = std::move(gone->backend);
      gone->Cancel();
      static_cast<MemoryBackend&>(*self).RemoveWatcher(gone);
    });
  }

  std::string ResourceOf(const HoldRef& hold) const override {
    if (!hold.resource.empty()) return std::string(hold.resource.bytes());
    if (Shard* const shard = ShardOf(hold)) {
      ShardMutexLock lock(&shard->mu);
      const SlotIndex index = FindHold(*shard, hold);
      if (index != kNoSlot) return std::string(shard->table.At(index).name());
    }
    return lost_.Find(hold.acquisition).value_or("");
  }

  void Inspect(std::optional<ResourceName> resource,
               absl::FunctionRef<void(const ResourceState&)> visitor) const override {
    // Timers may be late, so what is over counts as gone by the clock.
    const absl::Time now = clock_.Now();
    for (uint32_t number = 0; number < shards_.size(); ++number) {
      if (resource && ShardNumber(*resource) != number) continue;
      Shard& shard = shards_[number];
      std::vector<ResourceState> states;
      {
        ShardMutexLock lock(&shard.mu);
        const auto visit = [&](SlotIndex, Slot& slot) {
          LockRecord record =
              slot.extra != nullptr && slot.extra->full ? slot.extra->record : RecordOf(slot);
          Effects ignored;
          Expire(record, now, ignored);
          if (record.IsFree()) return;
          ResourceState& state = states.emplace_back(Describe(record, slot.name(), now));
          if (state.held) {
            state.age = std::max(absl::ZeroDuration(), now - absl::FromUnixNanos(slot.began));
          }
        };
        if (resource) {
          const SlotIndex index =
              shard.table.Find(*resource, static_cast<uint32_t>(resource->hash()));
          if (index != kNoSlot) visit(index, shard.table.At(index));
        } else {
          shard.table.ForEach(visit);
        }
      }
      for (const ResourceState& state : states) visitor(state);
    }
  }

 private:
  static size_t ShardCount(const MemoryBackendOptions& options) {
    size_t count = 1;
    while (count < 65536 && count < static_cast<size_t>(std::max(options.shards, 1))) count *= 2;
    return count;
  }

  // ---- Checks ----

  // The hot path's part of CheckRequest: what it lets pass is right.
  absl::Status Check(const ObtainRequest& request) const {
    if (ABSL_PREDICT_TRUE(!request.resource.empty() &&
                          request.resource.bytes().size() <= kLongestName &&
                          !request.acquisition.IsNone() && request.lease > absl::ZeroDuration() &&
                          request.reservation_lease > absl::ZeroDuration() && !request.grace)) {
      return absl::OkStatus();
    }
    return CheckSlowly(request);
  }

  ABSL_ATTRIBUTE_NOINLINE absl::Status CheckSlowly(const ObtainRequest& request) const {
    if (request.resource.bytes().size() > kLongestName) {
      return MakeError(Reason::kInvalidArgument,
                       absl::StrCat("resource must be shorter than 4 GiB, but has ",
                                    request.resource.bytes().size(), " bytes"));
    }
    return CheckRequest(request, capabilities_);
  }

  // ---- Finding ----

  uint32_t ShardNumber(const ResourceName& resource) const {
    // The table uses the low bits.
    return static_cast<uint32_t>((uint64_t{resource.hash()} >> 40) & (shards_.size() - 1));
  }

  // The shard in the upper half plus one, so that a hint is never 0; the slot in the lower half.
  static LeaseHint HintOf(uint32_t shard_number, SlotIndex index) {
    return (LeaseHint{shard_number} + 1) << 32 | index;
  }

  Shard* ShardOf(const HoldRef& hold) const {
    if (!hold.resource.empty()) return &shards_[ShardNumber(hold.resource)];
    const uint64_t number = (hold.hint >> 32) - 1;
    return number < shards_.size() ? &shards_[number] : nullptr;
  }

  static bool IsHandle(Shard& shard, SlotIndex index, AcquisitionId acquisition)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard.mu) {
    if (index == kNoSlot) return false;
    const Slot& slot = shard.table.At(index);
    if (slot.extra == nullptr || !slot.extra->full) {
      return slot.handle == acquisition && !acquisition.IsNone();
    }
    if (!slot.extra->record.holder) return false;
    const AcquisitionList& handles = slot.extra->record.holder->handles;
    return std::find(handles.begin(), handles.end(), acquisition) != handles.end();
  }

  // The slot that a hold's hint or name leads to. A hint may be stale, and its slot in use for
  // another resource by now; only if the acquisition is a handle there, it is the right one.
  ABSL_ATTRIBUTE_ALWAYS_INLINE static SlotIndex FindHold(Shard& shard, const HoldRef& hold)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard.mu) {
    if (hold.hint != 0 && !hold.acquisition.IsNone()) {
      const SlotIndex index = static_cast<SlotIndex>(hold.hint);
      const Slot* const slot = shard.table.TryAt(index);
      if (slot != nullptr) {
        if (ABSL_PREDICT_TRUE(slot->handle == hold.acquisition)) return index;
        if (slot->extra != nullptr && IsHandle(shard, index, hold.acquisition)) return index;
      }
    }
    if (hold.resource.empty()) return kNoSlot;
    return shard.table.Find(hold.resource, static_cast<uint32_t>(hold.resource.hash()));
  }

  // ---- The cheap cases ----

  // A resource that nobody holds: nothing to drop, nobody to ask.
  ABSL_ATTRIBUTE_ALWAYS_INLINE void GrantFree(Shard& shard, SlotIndex index,
                                              const ObtainRequest& request, ObtainReply& reply)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard.mu) {
    Slot& slot = shard.table.At(index);
    slot.handle = request.acquisition;
    slot.token = ++shard.fence;
    slot.priority = request.priority;
    slot.began = clock_.CoarseNanos();
    if (ABSL_PREDICT_FALSE(request.lease != absl::InfiniteDuration() || !request.owner.empty() ||
                           !request.preemptible)) {
      NoteExtra(shard, index, request);
    }
    reply.outcome = ObtainOutcome::kObtained;
    reply.token = slot.token;
    reply.remaining = request.lease;
  }

  // What a fresh hold has beyond the plain case.
  ABSL_ATTRIBUTE_NOINLINE void NoteExtra(Shard& shard, SlotIndex index,
                                         const ObtainRequest& request)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard.mu) {
    Extra& extra = NeedExtra(shard, index);
    extra.owner.assign(request.owner);
    extra.preemptible = request.preemptible;
    if (request.lease != absl::InfiniteDuration()) {
      extra.deadline = clock_.Now() + request.lease;
      SetDeadline(shard, extra, extra.deadline);
    }
  }

  // ---- The light form ----

  // The three steps below decide by the light form where that is easy. False, and nothing done:
  // only the record can tell.

  bool ObtainLightly(Shard& shard, SlotIndex index, const ObtainRequest& request,
                     ObtainReply& reply) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard.mu) {
    Slot& slot = shard.table.At(index);
    Extra* const extra = slot.extra;
    if (extra != nullptr && extra->full) return false;
    if (!slot.handle.IsNone()) {
      if (slot.handle == request.acquisition) return false;
      bool preemptible = true;
      if (extra != nullptr) {
        if (extra->deadline != absl::InfiniteFuture()) return false;
        if (!extra->owner.empty() && extra->owner == request.owner) return false;
        preemptible = extra->preemptible;
        reply.other_owner = extra->owner;
      }
      if (preemptible && request.reserve_below && slot.priority < request.priority &&
          slot.priority < *request.reserve_below) {
        return false;
      }
      reply.outcome = ObtainOutcome::kDenied;
      reply.remaining = absl::InfiniteDuration();
      reply.other_priority = slot.priority;
      return true;
    }
    // Nobody holds, so there is an extra, for those who wait.
    if (extra->nominee != nullptr) {
      if (extra->nominee->acquisition != request.acquisition) return false;
      for (const std::shared_ptr<Watcher>& watcher : extra->watchers) {
        if (watcher->priority > request.priority) return false;
      }
      extra->nominee = nullptr;
    }
    GrantFree(shard, index, request, reply);
    return true;
  }

  bool ReleaseLightly(Shard& shard, SlotIndex index, AcquisitionId acquisition, Outbox& outbox)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard.mu) {
    Slot& slot = shard.table.At(index);
    Extra& extra = *slot.extra;
    if (extra.full || slot.handle != acquisition || acquisition.IsNone() || extra.timed_waiters ||
        IsOver(extra.deadline)) {
      return false;
    }
    if (extra.watchers.empty()) {
      Free(shard, index);
      return true;
    }
    slot.handle = AcquisitionId();
    extra.owner.clear();
    extra.preemptible = true;
    extra.deadline = absl::InfiniteFuture();
    SetDeadline(shard, extra, absl::InfiniteFuture());
    WakeNextLightly(extra, outbox);
    return true;
  }

  bool WatchLightly(Shard& shard, SlotIndex index, const std::shared_ptr<Watcher>& watcher,
                    AcquisitionId takes_place_of, Outbox& outbox)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard.mu) {
    Extra& extra = NeedExtra(shard, index);
    if (extra.full || IsOver(extra.deadline)) return false;
    const bool held = !shard.table.At(index).handle.IsNone();
    const bool timed =
        extra.timed_waiters || watcher->reservation_lease != absl::InfiniteDuration();
    if (!held && (timed || extra.nominee != nullptr)) return false;
    AddWatcher(shard, extra, watcher, takes_place_of);
    if (!held) WakeNextLightly(extra, outbox);
    return true;
  }

  // Nobody holds, and nobody is the next: chooses and tells the one that is.
  static void WakeNextLightly(Extra& extra, Outbox& outbox) {
    const std::shared_ptr<Watcher>* const best = WakeBest(extra, HoldEnd::kReleased, outbox);
    if (best != nullptr && MayBeNominated(**best)) extra.nominee = best->get();
  }

  // ---- The general case ----

  static LockRecord RecordOf(const Slot& slot) {
    LockRecord record;
    if (!slot.handle.IsNone()) {
      record.holder = LockRecord::Holder{
          .handles = {slot.handle}, .priority = slot.priority, .token = slot.token};
      if (slot.extra != nullptr) {
        record.holder->owner = slot.extra->owner;
        record.holder->preemptible = slot.extra->preemptible;
        record.holder->deadline = slot.extra->deadline;
      }
    } else if (slot.extra != nullptr && slot.extra->nominee != nullptr) {
      const Watcher& nominee = *slot.extra->nominee;
      Nominate(record, nominee.acquisition, nominee.owner, nominee.priority,
               absl::InfiniteDuration(), absl::UnixEpoch());
    }
    return record;
  }

  // Moves a slot to the form in which `record` says everything.
  Extra& Fill(Shard& shard, SlotIndex index) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard.mu) {
    Slot& slot = shard.table.At(index);
    Extra& extra = NeedExtra(shard, index);
    if (!extra.full) {
      extra.record = RecordOf(slot);
      extra.full = true;
      extra.nominee = nullptr;
      slot.handle = AcquisitionId();
    }
    return extra;
  }

  // And back, if the record says no more than the light form can.
  static void Lighten(Slot& slot, Extra& extra) {
    std::optional<LockRecord::Holder>& holder = extra.record.holder;
    if (extra.record.successor || (holder && holder->handles.size() != 1)) return;
    if (holder) {
      slot.handle = holder->handles.front();
      slot.priority = holder->priority;
      slot.token = holder->token;
      extra.owner = std::move(holder->owner);
      extra.preemptible = holder->preemptible;
      extra.deadline = holder->deadline;
      holder.reset();
    } else {
      extra.owner.clear();
      extra.preemptible = true;
      extra.deadline = absl::InfiniteFuture();
    }
    extra.full = false;
  }

  // Takes one step on the full record and sees to everything that follows from it. The clock is
  // read only where a time plays a part.
  template <typename Step>
  void StepFull(Shard& shard, SlotIndex index, bool needs_time, Outbox& outbox, Step step)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard.mu) {
    Extra& extra = Fill(shard, index);
    // Every step compares what there is with the time. This clock is never stepped back, so no
    // deadline lies further ahead of it than its length, and the light form does without lengths.
    const bool graced =
        extra.record.successor && extra.record.successor->grace_end != absl::InfiniteFuture();
    const bool timed = needs_time || graced || extra.timed_waiters ||
                       extra.next_deadline != absl::InfiniteFuture();
    const absl::Time now = timed ? clock_.Now() : absl::UnixEpoch();
    const FencingToken token_before = extra.record.holder ? extra.record.holder->token : 0;
    const AcquisitionId successor_before =
        extra.record.successor ? extra.record.successor->acquisition : AcquisitionId();
    extra.record.fence = shard.fence;
    Effects effects;
    step(extra.record, now, effects);
    shard.fence = extra.record.fence;
    if (extra.record.holder && extra.record.holder->token != token_before) {
      shard.table.At(index).began = clock_.CoarseNanos();
    }
    for (const Notice& notice : effects.notices) {
      const bool stolen =
          notice.event.kind == WatchEventKind::kHoldEnded && notice.event.why == HoldEnd::kStolen;
      for (const AcquisitionId& to : notice.to) {
        if (stolen) lost_.Note(to, shard.table.At(index).name());
        Tell(extra, to, notice.event, outbox);
      }
    }
    if (effects.became_free) WakeNext(extra, effects.why, now, outbox);
    if (!successor_before.IsNone() && extra.record.holder && !extra.record.successor) {
      WakeThieves(extra, successor_before, outbox);
    }
    Settle(shard, index);
  }

  // The parts of Obtain and Release that the cheap cases should not carry with them. Both unlock.
  ABSL_ATTRIBUTE_NOINLINE void ObtainTaken(Shard& shard, SlotIndex index,
                                           const ObtainRequest& request, ObtainReply& reply)
      ABSL_UNLOCK_FUNCTION(shard.mu) {
    Outbox outbox;
    StepObtain(shard, index, request, reply, outbox);
    shard.mu.Unlock();
    Deliver(outbox);
  }
  ABSL_ATTRIBUTE_NOINLINE ReleaseOutcome ReleaseExtra(Shard& shard, SlotIndex index,
                                                      AcquisitionId acquisition)
      ABSL_UNLOCK_FUNCTION(shard.mu) {
    Outbox outbox;
    const ReleaseOutcome outcome = StepRelease(shard, index, acquisition, outbox);
    shard.mu.Unlock();
    Deliver(outbox);
    return outcome;
  }

  void StepObtain(Shard& shard, SlotIndex index, const ObtainRequest& request, ObtainReply& reply,
                  Outbox& outbox) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard.mu) {
    const Slot& slot = shard.table.At(index);
    if (slot.extra != nullptr) {
      for (const std::shared_ptr<Watcher>& watcher : slot.extra->watchers) {
        if (watcher->acquisition != request.acquisition) continue;
        watcher->lapsed = false;
        watcher->woken = false;
      }
    }
    if (ObtainLightly(shard, index, request, reply)) return;
    const bool needs_time = request.lease != absl::InfiniteDuration() ||
                            request.reservation_lease != absl::InfiniteDuration() ||
                            request.grace.has_value();
    StepFull(shard, index, needs_time, outbox,
             [&](LockRecord& record, absl::Time now, Effects& effects) {
               reply = Apply(record, request, now, effects);
             });
  }

  ReleaseOutcome StepRelease(Shard& shard, SlotIndex index, AcquisitionId acquisition,
                             Outbox& outbox) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard.mu) {
    if (ReleaseLightly(shard, index, acquisition, outbox)) return ReleaseOutcome::kReleased;
    ReleaseOutcome outcome = ReleaseOutcome::kNotHeld;
    StepFull(shard, index, false, outbox,
             [&](LockRecord& record, absl::Time now, Effects& effects) {
               outcome = ApplyRelease(record, acquisition, now, effects);
             });
    return outcome;
  }

  bool IsOver(absl::Time deadline) {
    return deadline != absl::InfiniteFuture() && deadline <= clock_.Now();
  }

  // ---- Watchers ----

  static void Send(const std::shared_ptr<Watcher>& watcher, const WatchEvent& event,
                   Outbox& outbox) {
    watcher->Push(event);
    outbox.push_back(watcher);
  }

  static void Tell(Extra& extra, AcquisitionId to, const WatchEvent& event, Outbox& outbox) {
    for (const std::shared_ptr<Watcher>& watcher : extra.watchers) {
      if (watcher->acquisition != to) continue;
      Send(watcher, event, outbox);
      if (event.kind == WatchEventKind::kDisplaced && event.why == HoldEnd::kExpired) {
        watcher->lapsed = true;
      }
    }
  }

  static bool ComesBefore(const Watcher& a, const Watcher& b) {
    if (a.lapsed != b.lapsed) return b.lapsed;
    if (a.priority != b.priority) return a.priority > b.priority;
    return a.place < b.place;
  }

  // The resource is free: its successor, or else the best waiter, may claim it.
  static void WakeNext(Extra& extra, HoldEnd why, absl::Time now, Outbox& outbox) {
    if (extra.record.holder) return;
    if (extra.record.successor) {
      Tell(extra, extra.record.successor->acquisition,
           {.kind = WatchEventKind::kHoldEnded, .why = why}, outbox);
      return;
    }
    const std::shared_ptr<Watcher>* const best = WakeBest(extra, why, outbox);
    if (best == nullptr || !MayBeNominated(**best)) return;
    const Watcher& woken = **best;
    Nominate(extra.record, woken.acquisition, woken.owner, woken.priority, woken.reservation_lease,
             now);
  }

  // Tells the best waiter, if there is one and it has not been told before, and returns it.
  static const std::shared_ptr<Watcher>* WakeBest(Extra& extra, HoldEnd why, Outbox& outbox) {
    const std::shared_ptr<Watcher>* best = nullptr;
    for (const std::shared_ptr<Watcher>& watcher : extra.watchers) {
      if (watcher->role != WatchRole::kWaiter) continue;
      if (best == nullptr || ComesBefore(*watcher, **best)) best = &watcher;
    }
    if (best == nullptr) return nullptr;
    Watcher& woken = **best;
    if (woken.barging) {
      if (woken.woken) return nullptr;
      woken.woken = true;
    }
    Send(*best, {.kind = WatchEventKind::kHoldEnded, .why = why}, outbox);
    return best;
  }

  // One that let its chance pass is woken again, but nobody waits for it any more.
  static bool MayBeNominated(const Watcher& watcher) { return !watcher.barging && !watcher.lapsed; }

  // The reservation of `gone` stands no more, and the holder stays. Whoever was denied because of
  // that reservation could have one now.
  static void WakeThieves(Extra& extra, AcquisitionId gone, Outbox& outbox) {
    const LockRecord::Holder& holder = *extra.record.holder;
    if (!holder.preemptible) return;
    std::vector<std::shared_ptr<Watcher>> thieves;
    for (const std::shared_ptr<Watcher>& watcher : extra.watchers) {
      if (watcher->role == WatchRole::kWaiter && watcher->priority > holder.priority &&
          watcher->acquisition != gone) {
        thieves.push_back(watcher);
      }
    }
    std::sort(thieves.begin(), thieves.end(),
              [](const auto& a, const auto& b) { return ComesBefore(*a, *b); });
    for (const std::shared_ptr<Watcher>& thief : thieves) {
      Send(thief, {.kind = WatchEventKind::kDisplaced}, outbox);
    }
  }

  static void AddWatcher(Shard& shard, Extra& extra, const std::shared_ptr<Watcher>& watcher,
                         AcquisitionId takes_place_of) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard.mu) {
    watcher->place = ++shard.last_place;
    if (!takes_place_of.IsNone()) {
      for (const std::shared_ptr<Watcher>& other : extra.watchers) {
        if (other->acquisition == takes_place_of && other->role == WatchRole::kWaiter &&
            other->priority == watcher->priority) {
          std::swap(other->place, watcher->place);
          break;
        }
      }
    }
    extra.watchers.push_back(watcher);
    if (watcher->reservation_lease != absl::InfiniteDuration()) extra.timed_waiters = true;
  }

  // What it would have heard already had it been there before.
  static void TellNewWatcher(Extra& extra, const std::shared_ptr<Watcher>& watcher, absl::Time now,
                             const Effects& effects, Outbox& outbox) {
    const LockRecord& record = extra.record;
    if (watcher->role == WatchRole::kHolder) {
      if (record.holder && record.successor) {
        const LockRecord::Successor& successor = *record.successor;
        Send(watcher,
             {.kind = WatchEventKind::kYieldRequested,
              .grace_remaining = successor.grace_end == absl::InfiniteFuture()
                                     ? absl::InfiniteDuration()
                                     : successor.grace_end - now,
              .thief_priority = successor.priority},
             outbox);
      }
      return;
    }
    // A step that has just freed the resource wakes the next itself.
    if (effects.became_free || record.holder) return;
    if (!record.successor || record.successor->acquisition == watcher->acquisition) {
      WakeNext(extra, HoldEnd::kReleased, now, outbox);
    }
  }

  void RemoveWatcher(const std::shared_ptr<Watcher>& watcher) {
    Shard& shard = *watcher->shard;
    Outbox outbox;
    {
      ShardMutexLock lock(&shard.mu);
      const SlotIndex index = watcher->slot;
      const Slot& slot = shard.table.At(index);
      Extra& extra = *slot.extra;
      extra.watchers.erase(std::find(extra.watchers.begin(), extra.watchers.end(), watcher));
      const bool waited = watcher->role == WatchRole::kWaiter;
      const bool light =
          !extra.full && (slot.handle.IsNone() ? !extra.timed_waiters : !IsOver(extra.deadline));
      if (light) {
        if (slot.handle.IsNone()) {
          if (extra.nominee == watcher.get()) extra.nominee = nullptr;
          if (extra.watchers.empty()) {
            Free(shard, index);
          } else if (waited && extra.nominee == nullptr) {
            // Whoever was woken and goes without a claim passes the wake-up on.
            WakeNextLightly(extra, outbox);
          }
        }
      } else {
        StepFull(shard, index, false, outbox,
                 [&](LockRecord& record, absl::Time now, Effects& effects) {
                   Expire(record, now, effects);
                   // The same.
                   if (record.holder || !waited) return;
                   if (record.successor && record.successor->acquisition == watcher->acquisition) {
                     record.successor.reset();
                   }
                   if (!record.successor) effects.became_free = true;
                 });
      }
    }
    Deliver(outbox);
  }

  static void Deliver(Outbox& outbox) {
    for (const std::shared_ptr<Watcher>& watcher : outbox) watcher->Deliver();
  }

  // ---- Slots, extras and deadlines ----

  static Extra& NeedExtra(Shard& shard, SlotIndex index) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard.mu) {
    Slot& slot = shard.table.At(index);
    if (slot.extra != nullptr) return *slot.extra;
    if (shard.spare_extras.empty()) {
      slot.extra = new Extra;
    } else {
      slot.extra = shard.spare_extras.back().release();
      shard.spare_extras.pop_back();
    }
    slot.extra->slot = index;
    return *slot.extra;
  }

  void Free(Shard& shard, SlotIndex index) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard.mu) {
    Slot& slot = shard.table.At(index);
    if (Extra* const extra = std::exchange(slot.extra, nullptr)) {
      SetDeadline(shard, *extra, absl::InfiniteFuture());
      if (shard.spare_extras.size() < kMostSpareExtras) {
        extra->full = false;
        extra->nominee = nullptr;
        extra->preemptible = true;
        extra->timed_waiters = false;
        extra->owner.clear();
        extra->deadline = absl::InfiniteFuture();
        extra->record.holder.reset();
        extra->record.successor.reset();
        shard.spare_extras.emplace_back(extra);
      } else {
        delete extra;
      }
    }
    shard.table.Erase(index);
  }

  // After a step: frees the slot if nothing is left in it, else notes when it is due next.
  void Settle(Shard& shard, SlotIndex index) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard.mu) {
    Slot& slot = shard.table.At(index);
    Extra& extra = *slot.extra;
    if (extra.record.IsFree() && extra.watchers.empty()) {
      Free(shard, index);
      return;
    }
    absl::Time next = absl::InfiniteFuture();
    if (extra.record.holder) next = extra.record.holder->deadline;
    if (extra.record.successor) next = std::min(next, extra.record.successor->deadline);
    SetDeadline(shard, extra, next);
    Lighten(slot, extra);
  }

  void SetDeadline(Shard& shard, Extra& extra, absl::Time at)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard.mu) {
    if (extra.next_deadline == at) return;
    extra.next_deadline = at;
    std::vector<Extra*>& heap = shard.deadlines;
    if (at == absl::InfiniteFuture()) {
      const uint32_t place = std::exchange(extra.heap_place, Extra::kNotInHeap);
      Extra* const last = heap.back();
      heap.pop_back();
      if (last != &extra) {
        last->heap_place = place;
        heap[place] = last;
        Sift(heap, place);
      }
      if (heap.empty() && heap.capacity() > kMostIdleDeadlines) heap.shrink_to_fit();
      return;
    }
    if (extra.heap_place == Extra::kNotInHeap) {
      extra.heap_place = static_cast<uint32_t>(heap.size());
      heap.push_back(&extra);
    }
    Sift(heap, extra.heap_place);
    ArmTimer(shard);
  }

  static void Sift(std::vector<Extra*>& heap, uint32_t place) {
    const auto swap = [&heap](uint32_t a, uint32_t b) {
      std::swap(heap[a], heap[b]);
      heap[a]->heap_place = a;
      heap[b]->heap_place = b;
    };
    while (place > 0 && heap[place]->next_deadline < heap[(place - 1) / 2]->next_deadline) {
      swap(place, (place - 1) / 2);
      place = (place - 1) / 2;
    }
    for (;;) {
      uint32_t least = place;
      for (uint32_t child = 2 * place + 1; child <= 2 * place + 2 && child < heap.size(); ++child) {
        if (heap[child]->next_deadline < heap[least]->next_deadline) least = child;
      }
      if (least == place) return;
      swap(place, least);
      place = least;
    }
  }

  // Leaves a timer that would come early in place: leases are mostly released long before their
  // end, and re-arming for each would cost more than a wake-up for nothing.
  void ArmTimer(Shard& shard) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard.mu) {
    if (shard.deadlines.empty()) return;
    const absl::Time at = shard.deadlines.front()->next_deadline;
    if (shard.timer_at <= at) return;
    clock_.Cancel(shard.timer);
    shard.timer_at = at;
    shard.timer = clock_.RunAt(at, [weak = weak_from_this(), &shard] {
      if (const std::shared_ptr<MemoryBackend> self = weak.lock()) self->OnTimer(shard);
    });
  }

  void OnTimer(Shard& shard) ABSL_LOCKS_EXCLUDED(shard.mu) {
    Outbox outbox;
    {
      ShardMutexLock lock(&shard.mu);
      shard.timer_at = absl::InfiniteFuture();
      const absl::Time now = clock_.Now();
      while (!shard.deadlines.empty() && shard.deadlines.front()->next_deadline <= now) {
        StepFull(shard, shard.deadlines.front()->slot, true, outbox,
                 [](LockRecord& record, absl::Time at, Effects& effects) {
                   Expire(record, at, effects);
                 });
      }
      ArmTimer(shard);
    }
    Deliver(outbox);
  }

  Clock& clock_;
  BackendCapabilities capabilities_;
  mutable std::vector<Shard> shards_;
  LostHolds lost_;
};

}  // namespace
}  // namespace memory_backend_internal

std::shared_ptr<LockingProtocol> NewMemoryBackend(MemoryBackendOptions options) {
  return std::make_shared<memory_backend_internal::MemoryBackend>(options);
}

}  // namespace latchkey

#include "latchkey/core/engine/wait_queue.h"

#include <algorithm>
#include <utility>

#include "absl/base/optimization.h"
#include "absl/log/check.h"

namespace latchkey::internal {
namespace {

auto Find(WaiterList& list, const Waiter& waiter) {
  return std::find_if(list.begin(), list.end(),
                      [&](const auto& other) { return other.get() == &waiter; });
}

void Add(WaiterList& list, Waiter& waiter) {
  if (Find(list, waiter) == list.end()) list.push_back(RefPtr<Waiter>::Share(&waiter));
}

inline void Erase(WaiterList& list, const Waiter& waiter) {
  if (ABSL_PREDICT_TRUE(list.empty())) return;
  const auto found = Find(list, waiter);
  if (found != list.end()) list.erase(found);
}

// Those who belong in the backend's order; either may be null.
struct Front {
  Waiter* head;
  Waiter* thief;
  bool Has(const Waiter* waiter) const { return waiter == head || waiter == thief; }
};

Waiter* NextToRegister(const WaitQueue& queue, const Front& front) {
  if (ABSL_PREDICT_FALSE(!queue.successors.empty())) return queue.successors.back().get();
  if (front.head != nullptr && !front.head->registered) return front.head;
  if (front.thief != nullptr && !front.thief->registered) return front.thief;
  return nullptr;
}

Waiter* NextToRetire(const WaitQueue& queue, const Front& front) {
  for (const RefPtr<Waiter>& waiter : queue.registered) {
    // A successor must go on polling until it is displaced. And whoever is about to ask may be the
    // successor, although the last it heard was otherwise.
    const bool stays =
        front.Has(waiter.get()) || waiter->reserved || waiter->question != Waiter::Question::kIdle;
    if (!stays) return waiter.get();
  }
  return nullptr;
}

Waiter* NextToLook(const WaitQueue& queue) {
  Waiter* looks = nullptr;
  for (const RefPtr<Waiter>& waiter : queue.registered) {
    if (!waiter->in_queue()) continue;
    // One of them asks anyway; after a failure, in due time.
    if (waiter->is_due() || waiter->failing() ||
        (waiter->is_asking() && waiter->asked.number > queue.look_after)) {
      return nullptr;
    }
    if (looks == nullptr && !waiter->is_asking()) looks = waiter.get();
  }
  return looks;  // Null: whoever comes to the front asks for that.
}

Waiter* NextToAsk(const WaitQueue& queue) {
  for (const RefPtr<Waiter>& waiter : queue.registered) {
    if (waiter->in_queue() && waiter->question == Waiter::Question::kDue) return waiter.get();
  }
  for (const RefPtr<Waiter>& waiter : queue.alone) {
    // It may have been registered since, and asks for that.
    if (!waiter->registered && waiter->question == Waiter::Question::kDue) return waiter.get();
  }
  return nullptr;
}

}  // namespace

// ---- Who is in it ----

Waiter* WaitQueue::thief() const {
  if (may_preempt == 0) return nullptr;
  // As a rule everybody may.
  Waiter* thief = most_urgent();
  if (ABSL_PREDICT_TRUE(!holder_priority && thief->terms.reserve_below)) return thief;
  thief = nullptr;
  const auto look = [&](Waiter& waiter) {
    const std::optional<Priority>& below = waiter.terms.reserve_below;
    if (holder_priority && waiter.terms.priority <= *holder_priority) return false;
    if (!below || (holder_priority && *below <= *holder_priority)) return true;
    thief = &waiter;
    return false;
  };
  if (ranked_by_priority) {
    order.ForEach(look);
  } else {
    priorities.ForEach(look);
  }
  return thief;
}

Waiter* WaitQueue::least_urgent() const {
  if (joining == 0) return ranked_by_priority ? order.last() : priorities.last();
  const auto waits = [](const Waiter& waiter) { return waiter.phase == Waiter::Phase::kWaiting; };
  return ranked_by_priority ? order.LastOf(waits) : priorities.LastOf(waits);
}

AdmissionContext WaitQueue::AdmissionOf(const Waiter& waiter, const Waiter* lowest,
                                        int64_t pending_in_total) const {
  AdmissionContext context{.priority = waiter.terms.priority,
                           .pending_on_resource = pending(),
                           .pending_in_total = pending_in_total};
  if (lowest != nullptr) context.lowest_pending_priority = lowest->terms.priority;
  return context;
}

std::vector<ResourceSnapshot::Waiter> WaitQueue::Describe(absl::Time now) const {
  std::vector<ResourceSnapshot::Waiter> waiters;
  order.ForEach([&](const Waiter& waiter) {
    if (waiter.phase != Waiter::Phase::kWaiting) return true;
    waiters.push_back({.owner = std::string(waiter.owner),
                       .priority = waiter.terms.priority,
                       .waited = std::max(now - waiter.enqueued, absl::ZeroDuration()),
                       .reserved = waiter.reserved});
    return true;
  });
  std::stable_partition(waiters.begin(), waiters.end(),
                        [](const auto& waiter) { return waiter.reserved; });
  return waiters;
}

absl::int128 WaitQueue::RankToSkip(const Waiter& waiter, absl::int128 own) const {
  if (ranked_by_priority) return own;
  absl::int128 rank = own;
  order.ForEach([&](const Waiter& other) {
    if (other.terms.priority != waiter.terms.priority) return true;
    rank = std::min(own, other.in_order.rank);
    return false;
  });
  return rank;
}

void WaitQueue::Insert(Waiter& waiter, absl::int128 rank, bool in_front, Waiter::Phase phase) {
  waiter.MoveTo(phase);
  waiter.queue = this;
  waiter.came_after = questions;
  waiter.Ref();
  order.Insert(waiter, rank, in_front);
  if (!ranked_by_priority) {
    priorities.Insert(waiter, -absl::int128(waiter.terms.priority), in_front);
  }
  if (waiter.terms.reserve_below) ++may_preempt;
  if (phase == Waiter::Phase::kJoining) ++joining;
  holder_priority.reset();  // So that it asks, if it may preempt.
}

void WaitQueue::Admit(Waiter& waiter) {
  waiter.MoveTo(Waiter::Phase::kWaiting);
  --joining;
}

void WaitQueue::Remove(Waiter& waiter) {
  order.Erase(waiter);
  if (!ranked_by_priority) priorities.Erase(waiter);
  if (waiter.terms.reserve_below) --may_preempt;
  if (waiter.phase == Waiter::Phase::kJoining) --joining;
  Erase(successors, waiter);
  Erase(alone, waiter);
  waiter.MoveTo(Waiter::Phase::kEnded);
  waiter.queue = nullptr;
  (waiter.outcome.ok() ? granted : refused).push_back(RefPtr<Waiter>::Adopt(&waiter));
}

// ---- What is next ----

QueueStep WaitQueue::NextStep() const {
  // Whoever was granted the lock is told first. Those who ended without it come after the next head
  // has registered, since it takes their place in the backend's order.
  if (!granted.empty()) return {.kind = QueueStep::kTellGranted};
  const Front front{.head = head(), .thief = thief()};
  if (Waiter* const waiter = NextToRegister(*this, front)) {
    return {.kind = QueueStep::kRegister, .waiter = waiter};
  }
  if (Waiter* const waiter = NextToRetire(*this, front)) {
    return {.kind = QueueStep::kRetire, .waiter = waiter};
  }
  if (!refused.empty()) return {.kind = QueueStep::kTellRefused};
  if (ABSL_PREDICT_FALSE(look_after >= 0)) {
    if (Waiter* const waiter = NextToLook(*this)) {
      return {.kind = QueueStep::kAsk, .to_look = true, .waiter = waiter};
    }
  }
  if (Waiter* const waiter = NextToAsk(*this)) return {.kind = QueueStep::kAsk, .waiter = waiter};
  return {};
}

AcquisitionId WaitQueue::PlaceFor(const Waiter& waiter) const {
  AcquisitionId place;
  if (ABSL_PREDICT_TRUE(registered.empty())) return place;
  const Front front{.head = head(), .thief = thief()};
  for (const RefPtr<Waiter>& other : registered) {
    const bool leaves = !other->in_queue() || !front.Has(other.get());
    if (leaves && other->terms.priority == waiter.terms.priority) place = other->id;
  }
  return place;
}

bool WaitQueue::NeedsToAsk(const Waiter& waiter, const Waiter* holder) {
  if (holder == nullptr || !holder->outcome.ok() ||
      holder->grant.remaining != absl::InfiniteDuration()) {
    return true;
  }
  // The answer could be more than a denial, or more would come of it. (Whoever takes the lock by
  // force comes before `waiter` in any case.)
  return waiter.phase == Waiter::Phase::kJoining ||
         waiter.terms.priority > holder->terms.priority || waiter.reserved ||
         !waiter.owner.empty() || waiter.max_attempts != AcquireOptions::kUnlimited ||
         waiter.acquire_timeout == absl::ZeroDuration();
}

void WaitQueue::Register(Waiter& waiter, bool asks) {
  DCHECK(!waiter.registered);
  waiter.registered = true;
  Erase(successors, waiter);
  registered.push_back(RefPtr<Waiter>::Share(&waiter));
  if (asks) {
    // It subscribes first and then looks, each time that it comes to the front.
    waiter.BecomeDue(/*to_look=*/true);
  } else {
    waiter.BecomeNotDue();
  }
}

RefPtr<Waiter> WaitQueue::Retire(Waiter& waiter) {
  DCHECK(waiter.registered);
  waiter.registered = false;
  const auto found = Find(registered, waiter);
  RefPtr<Waiter> retired = std::move(*found);
  std::swap(*found, registered.back());
  registered.pop_back();
  return retired;
}

void WaitQueue::Send(Waiter& waiter) {
  waiter.BecomeSent();
  Erase(alone, waiter);
  waiter.asked.number = ++questions;
}

void WaitQueue::Take(WaiterList& from, WaiterList& now, WaiterList& last) {
  for (RefPtr<Waiter>& waiter : from) {
    if (waiter->registered) Erase(registered, *waiter);
    (waiter->told_directly() ? now : last).push_back(std::move(waiter));
  }
  from.clear();
}

void WaitQueue::AskAlone(Waiter& waiter) {
  waiter.BecomeDue(/*to_look=*/true);
  Add(alone, waiter);
}

void WaitQueue::NeedsRegistration(Waiter& waiter) {
  if (!waiter.registered) Add(successors, waiter);
}

}  // namespace latchkey::internal

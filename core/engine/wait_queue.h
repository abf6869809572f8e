// WaitQueue is those who wait for one resource: in what order, who of them is registered with the
// backend, and what is to be done next for them.
//
// Of a queue only its head, and the *thief*, the most urgent waiter that may preempt, are
// registered with the backend (Watch) and ask it (Obtain): when they come to the front, when an
// event wakes them, and when a poll is due. NextStep() decides; it changes nothing, and needs
// neither a clock nor a backend. QueueDriver carries the step out.
//
// Thread safety: none; the mutex of the queue's shard guards it.
#ifndef LATCHKEY_CORE_ENGINE_WAIT_QUEUE_H_
#define LATCHKEY_CORE_ENGINE_WAIT_QUEUE_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/numeric/int128.h"
#include "absl/time/time.h"
#include "latchkey/core/base/lease.h"
#include "latchkey/core/engine/outage.h"
#include "latchkey/core/engine/wait_order.h"
#include "latchkey/core/engine/waiter.h"
#include "latchkey/core/lock/resource_snapshot.h"
#include "latchkey/core/policy/admission_policy.h"

namespace latchkey::internal {

// What is to be done next for a queue.
struct QueueStep {
  enum Kind {
    kIdle,         // Nothing, until something comes.
    kTellGranted,  // Tell those who were granted the lock.
    kRegister,     // Register `waiter` with the backend.
    kRetire,       // End the registration of `waiter`, which is behind others again.
    kTellRefused,  // Tell those who ended without it.
    kAsk,          // Ask the backend for `waiter`.
  };
  Kind kind = kIdle;
  bool to_look = false;      // Of kAsk: only to learn who holds the lock.
  Waiter* waiter = nullptr;  // Of kRegister, kRetire, kAsk.
};

struct WaitQueue {
  explicit WaitQueue(bool ranks_by_priority) : ranked_by_priority(ranks_by_priority) {}

  // In the order in which they are next. It holds one reference to each.
  WaitOrder<Waiter, &Waiter::in_order> order;
  // The same by priority: for shedding, and for finding who may preempt. Left empty where `order`
  // says the same.
  WaitOrder<Waiter, &Waiter::in_priorities> priorities;
  const bool ranked_by_priority;
  int64_t may_preempt = 0;  // How many of them.
  int64_t joining = 0;      // The same.

  // Those that are registered with the backend: at most the head, the thief, and those on the way
  // out.
  WaiterList registered;
  // Those that became the successor before they had a place there: they have to be registered, too.
  WaiterList successors;
  // Those that are to ask although they are not registered.
  WaiterList alone;
  // Those that ended and were not told yet.
  WaiterList granted;
  WaiterList refused;
  int64_t questions = 0;  // How many were asked.
  int64_t answered = 0;   // How many were, when the last answer came.
  // Somebody needs the answer to a question later than this one; -1: nobody does.
  int64_t look_after = -1;
  // What the backend has said instead of answers to any of them since then; null: nothing. Those
  // who wait behind others ask nothing, and are as impatient.
  std::unique_ptr<Outage> outage;
  // What was heard of the holder last; kept only for orders other than by priority, where nobody
  // may stand before the head but who could take the lock from that holder.
  std::optional<Priority> holder_priority;

  int64_t told_pending = 0;  // pending() as the observer, if there is one, was told it last.
  bool driven = false;       // Somebody works on it.

  // ---- Who is in it ----

  bool empty() const { return order.empty(); }
  // How many wait, by what the backend has answered.
  int64_t pending() const { return order.size() - joining; }
  // Null if it is empty.
  Waiter* head() const { return order.first(); }
  Waiter* thief() const;
  Waiter* most_urgent() const { return ranked_by_priority ? order.first() : priorities.first(); }
  // Of those that wait already.
  Waiter* least_urgent() const;
  // What the admission policy is told about one that would like to wait. `lowest` is the least
  // urgent.
  AdmissionContext AdmissionOf(const Waiter& waiter, const Waiter* lowest,
                               int64_t pending_in_total) const;
  // Those that wait: the successor, if it is one of them, and then the others in their order.
  std::vector<ResourceSnapshot::Waiter> Describe(absl::Time now) const;
  // The rank of one that skips the queue: that of the first of its priority, unless `own` comes
  // before that. Many policies give no two requests the same.
  absl::int128 RankToSkip(const Waiter& waiter, absl::int128 own) const;

  // Puts it in, or takes it out. Coming in, it waits, or is joining. `in_front` of its equals?
  void Insert(Waiter& waiter, absl::int128 rank, bool in_front, Waiter::Phase phase);
  void Admit(Waiter& waiter);  // It was joining.
  // The queue's reference goes to `granted`, or to `refused` if its outcome is an error.
  void Remove(Waiter& waiter);

  // ---- What is next ----

  QueueStep NextStep() const;
  // Of one that is to register: the registration whose place it takes in the backend's order, none
  // if zero.
  AcquisitionId PlaceFor(const Waiter& waiter) const;
  // Whether one that is to register has to ask then. Not if `holder`, who was in this queue (null:
  // nobody), has the lock for as long as it likes, and asking would only tell that.
  static bool NeedsToAsk(const Waiter& waiter, const Waiter* holder);

  // Notes that a step has begun.
  void Register(Waiter& waiter, bool asks);
  RefPtr<Waiter> Retire(Waiter& waiter);
  void Send(Waiter& waiter);
  // Takes those of `from` to tell them: to `now` who is told directly, else to `last`. They are
  // registered no more.
  void Take(WaiterList& from, WaiterList& now, WaiterList& last);

  // Has it ask once, wherever it stands.
  void AskAlone(Waiter& waiter);
  // It is the successor, so it has to hear when the holder has left, wherever it stands.
  void NeedsRegistration(Waiter& waiter);
};

}  // namespace latchkey::internal

#endif  // LATCHKEY_CORE_ENGINE_WAIT_QUEUE_H_

#include "latchkey/core/engine/queue_driver.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "absl/base/optimization.h"
#include "absl/strings/str_cat.h"
#include "latchkey/core/base/blocker.h"
#include "latchkey/core/engine/first_ask.h"

namespace latchkey::internal {
namespace {

// Where barging is allowed, a blocked thread that was woken competes with those that come by. After
// this time it has been overtaken often enough, and the lock is handed to it (as Go's sync.Mutex
// does, since 1.9).
constexpr absl::Duration kPatience = absl::Milliseconds(10);

}  // namespace

// ---- Steps ----

void QueueDriver::Drive(QueueShard& shard, const ResourceName& resource) {
  shard.mu.Lock();
  DriveAndUnlock(shard, resource, shard.Find(resource));
}

void QueueDriver::DriveAndUnlock(QueueShard& shard, const ResourceName& resource,
                                 WaitQueue* const found) {
  if (found == nullptr || found->driven) {
    // Whoever works on it looks again before it stops.
    shard.mu.Unlock();
    return;
  }
  WaitQueue& queue = *found;
  queue.driven = true;
  WaiterList told_last;  // Their code may take its time.
  for (;;) {
    const QueueStep step = queue.NextStep();
    switch (step.kind) {
      case QueueStep::kTellGranted:
        Tell(shard, resource, queue, queue.granted, told_last);
        break;
      case QueueStep::kRegister:
        Register(shard, queue, *step.waiter, told_last);
        break;
      case QueueStep::kRetire:
        Retire(shard, queue, *step.waiter);
        break;
      case QueueStep::kTellRefused:
        Tell(shard, resource, queue, queue.refused, told_last);
        break;
      case QueueStep::kAsk:
        Ask(shard, step);
        break;
      case QueueStep::kIdle:
        StopAndUnlock(shard, resource, queue, told_last);
        return;
    }
  }
}

void QueueDriver::Tell(QueueShard& shard, const ResourceName& resource, WaitQueue& queue,
                       WaiterList& ended, WaiterList& told_last) {
  WaiterList now;
  queue.Take(ended, now, told_last);
  if (now.empty()) return;
  const LengthChange change = ChangeOf(queue);
  shard.mu.Unlock();
  TellLength(resource, change);
  for (const RefPtr<Waiter>& waiter : now) Complete(*waiter);
  now.clear();
  shard.mu.Lock();
}

void QueueDriver::Register(QueueShard& shard, WaitQueue& queue, Waiter& next,
                           const WaiterList& told_last) {
  RefPtr<Waiter> waiter = RefPtr<Waiter>::Share(&next);
  const AcquisitionId takes_place_of = queue.PlaceFor(next);
  // An event tells when the holder has left, where none is lost.
  const Waiter* const holder =
      engine_.capabilities().reliable_events && !told_last.empty() && !LooksForDeadlocks()
          ? told_last.back().get()
          : nullptr;
  const bool asks = WaitQueue::NeedsToAsk(next, holder);
  queue.Register(next, asks);
  if (!asks) {
    next.holder =
        HeardHolder{.owner = std::string(holder->owner), .priority = holder->terms.priority};
  }
  // Not before an answer that is under way, where it asked before it was registered.
  const bool asks_next = next.question == Waiter::Question::kDue;
  shard.mu.Unlock();
  Subscription subscription =
      engine_.backend().Watch({.resource = waiter->resource,
                               .acquisition = waiter->id,
                               .owner = waiter->owner,
                               .priority = waiter->terms.priority,
                               .barging = engine_.barging(),
                               .reservation_lease = waiter->terms.reservation_lease,
                               .takes_place_of = takes_place_of,
                               .asks_next = asks_next},
                              [this, waiter](const WatchEvent& event) { OnEvent(waiter, event); });
  shard.mu.Lock();
  if (waiter->registered && waiter->in_queue()) {
    waiter->subscription = std::move(subscription);
    return;
  }
  // It left meanwhile. What that ends may call back.
  shard.mu.Unlock();
  subscription.Reset();
  waiter = RefPtr<Waiter>();
  shard.mu.Lock();
}

void QueueDriver::Retire(QueueShard& shard, WaitQueue& queue, Waiter& waiter) {
  RefPtr<Waiter> retired = queue.Retire(waiter);
  Subscription subscription = std::move(retired->subscription);
  const Clock::TimerId poll = std::exchange(retired->poll_timer, 0);
  // It does not ask until it comes back.
  if (retired->outage != nullptr) retired->outage->EndRow();
  shard.mu.Unlock();
  if (poll != 0) engine_.clock().Cancel(poll);
  subscription.Reset();
  retired = RefPtr<Waiter>();
  shard.mu.Lock();
}

void QueueDriver::Ask(QueueShard& shard, const QueueStep& step) {
  RefPtr<Waiter> waiter = RefPtr<Waiter>::Share(step.waiter);
  Waiter& asked = *waiter;
  asked.shard->mu.AssertHeld();
  if (step.to_look) asked.BecomeDue(/*to_look=*/true);
  const ObtainRequest request = BeginToAsk(asked);
  shard.mu.Unlock();
  if (!engine_.capabilities().answers_at_once) {
    engine_.backend().Obtain(
        request, [this, waiter](absl::StatusOr<ObtainReply> answer) { OnAnswer(*waiter, answer); });
    waiter = RefPtr<Waiter>();
    shard.mu.Lock();
    return;
  }
  absl::StatusOr<ObtainReply> answer = AskNow(engine_.backend(), request);
  shard.mu.Lock();
  const bool withdraw = TakeAnswer(asked, answer);
  const bool suspects = HasSuspects();
  if (!withdraw && !suspects) return;
  shard.mu.Unlock();
  if (withdraw) Withdraw(asked);
  if (suspects) ResolveDeadlocks();
  shard.mu.Lock();
}

void QueueDriver::StopAndUnlock(QueueShard& shard, const ResourceName& resource, WaitQueue& queue,
                                const WaiterList& told_last) {
  queue.driven = false;
  const LengthChange change = ChangeOf(queue);
  if (queue.empty()) {
    // Everything it had was told or is on its way.
    shard.queues.erase(shard.queues.find(resource.bytes(), resource.hash()));
  }
  shard.mu.Unlock();
  TellLength(resource, change);
  for (const RefPtr<Waiter>& waiter : told_last) Complete(*waiter);
}

ObtainRequest QueueDriver::BeginToAsk(Waiter& waiter) {
  waiter.queue->Send(waiter);
  waiter.asked.unregistered = !waiter.registered && !engine_.capabilities().answers_at_once;
  const bool timed =
      waiter.time_matters || waiter.terms.grace.has_value() || engine_.NeedsTime(waiter.terms);
  waiter.asked.at = timed ? engine_.clock().Now() : kUntimed;
  if (engine_.detector() != nullptr) waiter.asked.graph_time = engine_.detector()->Now();
  ObtainRequest request = RequestOf(waiter.resource, waiter.id, waiter.terms);
  request.reservation_lease = waiter.reservation_lease;
  if (waiter.asked.unregistered && !engine_.barging()) {
    // Those who wait there already were first to ask the holder to yield.
    const Waiter* const ahead = waiter.queue->most_urgent();
    if (ahead != &waiter && ahead->terms.priority >= waiter.terms.priority) {
      request.reserve_below.reset();
    }
  }
  return request;
}

QueueDriver::LengthChange QueueDriver::ChangeOf(WaitQueue& queue) const {
  if (engine_.observer() == nullptr) return {};
  const int64_t length = queue.pending();
  return {length, length - std::exchange(queue.told_pending, length)};
}

void QueueDriver::TellLength(const ResourceName& resource, const LengthChange& change) {
  if (change.by != 0) {
    engine_.observer()->OnQueueLength(resource.bytes(), change.length, change.by);
  }
}

// ---- What comes ----

void QueueDriver::OnAnswer(Waiter& waiter, const absl::StatusOr<ObtainReply>& answer) {
  QueueShard& shard = *waiter.shard;
  bool withdraw;
  LengthChange change;
  {
    absl::MutexLock lock(&shard.mu);
    waiter.shard->mu.AssertHeld();
    withdraw = TakeAnswer(waiter, answer);
    if (waiter.in_queue()) change = ChangeOf(*waiter.queue);
  }
  TellLength(waiter.resource, change);
  if (withdraw) Withdraw(waiter);
  if (HasSuspects()) ResolveDeadlocks();
  Drive(shard, waiter.resource);
}

void QueueDriver::Compete(const RefPtr<Waiter>& waiter) {
  Waiter& w = *waiter;
  ObtainRequest request;
  {
    absl::MutexLock lock(&w.shard->mu);
    // It is out of the queue, or somebody asks for it.
    if (!w.in_queue() || w.is_asking()) return;
    request = BeginToAsk(w);
    // If it re-enters a hold that ends, there is nobody to ask again for one that is not
    // registered.
    w.asked.at = engine_.clock().Now();
  }
  absl::StatusOr<ObtainReply> answer = AskNow(engine_.backend(), request);
  for (Spin spin; answer.ok() && answer->outcome == ObtainOutcome::kDenied && spin.Again();) {
    answer = AskNow(engine_.backend(), request);
  }
  OnAnswer(w, answer);
}

void QueueDriver::OnEvent(const RefPtr<Waiter>& waiter, const WatchEvent& event) {
  QueueShard& shard = *waiter->shard;
  shard.mu.Lock();
  bool ask = waiter->in_queue();
  if (!ask) {
  } else if (event.kind == WatchEventKind::kDisplaced) {
    waiter->LoseReservation();
  } else if (event.kind != WatchEventKind::kHoldEnded) {
    ask = false;
  } else if (waiter->blocker != nullptr && !waiter->is_asking() &&
             engine_.clock().Now() - waiter->enqueued < kPatience) {
    // A lock that is handed to a thread which has yet to wake up stands idle meanwhile.
    waiter->blocker->Nudge();
    ask = false;
  }
  if (!ask) {
    shard.mu.Unlock();
    return;
  }
  waiter->BecomeDue();
  DriveAndUnlock(shard, waiter->resource, waiter->queue);
}

void QueueDriver::PollAt(Waiter& waiter, absl::Time at) {
  if (waiter.poll_timer != 0) engine_.clock().Cancel(std::exchange(waiter.poll_timer, 0));
  if (at == absl::InfiniteFuture()) return;
  waiter.poll_at = at;
  waiter.poll_timer =
      engine_.clock().RunAt(at, [this, keep = RefPtr<Waiter>::Share(&waiter)] { OnPoll(*keep); });
}

void QueueDriver::OnPoll(Waiter& waiter) {
  QueueShard& shard = *waiter.shard;
  shard.mu.Lock();
  if (!waiter.in_queue()) {
    shard.mu.Unlock();
    return;
  }
  waiter.poll_timer = 0;
  if (waiter.registered) {
    waiter.BecomeDue();
  } else {
    waiter.queue->AskAlone(waiter);
  }
  DriveAndUnlock(shard, waiter.resource, waiter.queue);
}

// ---- Deadlocks ----

bool QueueDriver::IsCertain(const DeadlockDetector::Cycle& cycle) {
  for (const DeadlockDetector::Link& link : cycle.links) {
    if (link.certain) continue;
    if (!engine_.capabilities().inspect) return false;
    bool held = false;
    engine_.backend().Inspect(link.waiter->resource, [&](const ResourceState& state) {
      held = state.held && state.holder_owner == link.holder;
    });
    if (!held) return false;
  }
  return engine_.detector()->Stands(cycle);
}

void QueueDriver::AskAboutHolders(const DeadlockDetector::Cycle& cycle) {
  for (const DeadlockDetector::Link& link : cycle.links) {
    if (link.certain) continue;
    QueueShard& shard = *static_cast<const Waiter&>(*link.waiter).shard;
    bool ask = false;
    {
      absl::MutexLock lock(&shard.mu);
      WaitQueue* const queue = shard.Find(link.waiter->resource);
      if (queue == nullptr) continue;
      // Any answer about this resource will do.
      ask =
          std::none_of(queue->registered.begin(), queue->registered.end(), [&](const auto& other) {
            return other->in_queue() && other->is_asking() &&
                   other->asked.graph_time >= link.certain_from;
          });
      if (ask) queue->look_after = queue->questions;
    }
    if (ask) shard.driver.Drive(shard, link.waiter->resource);
  }
}

void QueueDriver::ResolveDeadlocks() {
  for (const DeadlockDetector::Cycle& cycle : engine_.detector()->TakeSuspects()) {
    if (!IsCertain(cycle)) {
      if (!engine_.capabilities().inspect) AskAboutHolders(cycle);
      continue;
    }
    auto& victim = static_cast<Waiter&>(cycle.Victim());
    {
      absl::MutexLock lock(&victim.shard->mu);
      victim.cycle = cycle.ToString();
    }
    victim.shard->driver.GiveUp(victim, Reason::kDeadlock);
  }
}

}  // namespace latchkey::internal

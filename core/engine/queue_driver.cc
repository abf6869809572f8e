#include "latchkey/core/engine/queue_driver.h"

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "absl/base/optimization.h"
#include "absl/strings/str_cat.h"
#include "latchkey/core/base/blocker.h"
#include "latchkey/core/base/contain.h"
#include "latchkey/core/base/lock_error.h"
#include "latchkey/core/engine/first_ask.h"
#include "latchkey/core/engine/request_errors.h"

namespace latchkey::internal {
namespace {

// Where barging is allowed, a blocked thread that was woken competes with those that come by. After
// this time it has been overtaken often enough, and the lock is handed to it (as Go's sync.Mutex
// does, since 1.9).
constexpr absl::Duration kPatience = absl::Milliseconds(10);

// For the log, if it throws.
constexpr std::string_view kCallback = "the callback of a request";

}  // namespace

// ---- Coming and going ----

void QueueDriver::Enqueue(const RefPtr<Waiter>& waiter, const AcquireOptions& options,
                          const absl::StatusOr<ObtainReply>* first) {
  Waiter& w = *waiter;
  QueueShard& shard = *w.shard;
  // Before it can be found by anybody: the callback may run at once.
  if (options.cancel.stop_possible()) {
    w.stop.emplace(options.cancel, Waiter::StopFn{&w, [](Waiter& cancelled) {
                                                    cancelled.shard->driver.GiveUp(
                                                        cancelled, Reason::kCancelled);
                                                  }});
  }
  const bool has_timeout =
      w.acquire_timeout > absl::ZeroDuration() && w.acquire_timeout != absl::InfiniteDuration();
  const bool asks = first == nullptr && !engine_.capabilities().answers_at_once;
  const bool failed = first != nullptr && !first->ok();
  const ObtainReply* const reply = first != nullptr && !failed ? &**first : nullptr;
  // What else looks at this moment is for people.
  const bool exact = has_timeout || failed || w.outage_patience != absl::InfiniteDuration() ||
                     !engine_.by_priority() || w.blocker != nullptr ||
                     engine_.observer() != nullptr;
  w.enqueued = exact ? engine_.clock().Now() : engine_.clock().CoarseNow();
  const absl::StatusOr<absl::int128> rank = engine_.RankOf(w);
  LengthChange change;

  shard.mu.Lock();
  w.shard->mu.AssertHeld();  // The same, for the thread annotations.
  WaitQueue* known = shard.Find(w.resource);
  if (known == nullptr) {
    known = (shard.queues[w.resource.bytes()] = std::make_unique<WaitQueue>(engine_.by_priority()))
                .get();
  }
  WaitQueue& queue = *known;
  const bool joins =
      failed || (asks && (queue.pending() == 0 || engine_.GoesDirectly(w.terms, options)));
  if (reply != nullptr && reply->token == 0) w.HearOf(*reply);

  absl::Status refused = WhyNotToWait(w, queue, first, rank, options.cancel.stop_requested());
  if (refused.ok() && !joins) refused = Admit(queue, w);
  if (refused.ok()) {
    queue.Insert(w, options.skip_queue ? queue.RankToSkip(w, *rank) : *rank, options.skip_queue,
                 joins ? Waiter::Phase::kJoining : Waiter::Phase::kWaiting);
    shard.waiting.fetch_add(1, std::memory_order_relaxed);
    if (joins) {
      if (asks) queue.AskAlone(w);
    } else {
      NoteWaiting(w);
      change = ChangeOf(queue);
      // Its owner may hold the lock, or wait in a cycle: it needs to know.
      if (asks && !w.owner.empty()) queue.look_after = queue.questions;
      // It may be less patient than those that ask.
      if (queue.outage != nullptr && w.outage_patience != absl::InfiniteDuration()) {
        HeadAsksBy(queue, w.enqueued +
                              std::max(w.outage_patience / 2, EngineContext::kShortestRetryDelay));
      }
    }
    if (failed) {
      HandleFirstAnswer(w, *first);
    } else if (first != nullptr) {
      HandleAnswer(w, *first);
    }
    // Without time to wait, the first answer decides.
    if (w.in_queue() && has_timeout) ArmTimeout(waiter);
  } else {
    w.MoveTo(Waiter::Phase::kEnded);
    w.outcome = std::move(refused);
    w.withdraws =
        w.maybe_obtained() || (reply != nullptr && reply->outcome == ObtainOutcome::kReserved);
    queue.refused.push_back(waiter);
  }
  const bool suspects = HasSuspects();
  if (engine_.observer() == nullptr && !suspects) {
    DriveAndUnlock(shard, w.resource, &queue);
    return;
  }
  shard.mu.Unlock();
  TellLength(w.resource, change);
  if (suspects) ResolveDeadlocks();
  Drive(shard, w.resource);
}

absl::Status QueueDriver::WhyNotToWait(Waiter& waiter, const WaitQueue& queue,
                                       const absl::StatusOr<ObtainReply>* first,
                                       const absl::StatusOr<absl::int128>& rank,
                                       bool cancelled) const {
  const ObtainReply* const reply = first != nullptr && first->ok() ? &**first : nullptr;
  Reason reason = Reason::kNone;
  if (cancelled) {
    reason = Reason::kCancelled;
  } else if (engine_.IsShutDown()) {
    reason = Reason::kShutdown;
  } else if (waiter.max_attempts == 1 && reply != nullptr &&
             reply->outcome == ObtainOutcome::kDenied) {
    reason = Reason::kAttemptsExhausted;
  } else if (waiter.acquire_timeout == absl::ZeroDuration() && reply != nullptr &&
             reply->token == 0) {
    reason = Reason::kAcquireTimeout;
  } else if (rank.ok()) {
    return absl::OkStatus();
  }
  if (first != nullptr && !first->ok()) NoteFailure(waiter, first->status());
  return reason == Reason::kNone ? PolicyErrorOf(waiter, rank.status())
                                 : GiveUpErrorOf(waiter, queue, reason);
}

absl::Status QueueDriver::Admit(WaitQueue& queue, const Waiter& waiter) {
  const AdmissionPolicy& policy =
      waiter.admission != nullptr ? *waiter.admission : engine_.admission();
  Waiter* const lowest = queue.least_urgent();
  const AdmissionContext context =
      queue.AdmissionOf(waiter, lowest, engine_.pending().load(std::memory_order_relaxed));
  Admission admission = Admission::kAdmit;
  std::string explained;
  absl::Status thrown =
      StatusOfContained("AdmissionPolicy::Decide", "", [&] { admission = policy.Decide(context); });
  const bool sheds = admission == Admission::kShedLowest && lowest != nullptr;
  if (thrown.ok() && (sheds || admission == Admission::kReject)) {
    thrown = StatusOfContained("AdmissionPolicy::Explain", "",
                               [&] { explained = policy.Explain(context); });
  }
  if (!thrown.ok()) return PolicyErrorOf(waiter, thrown);
  if (admission == Admission::kReject) {
    return GiveUpErrorOf(waiter, queue, Reason::kTooManyPending,
                         absl::StrCat(" (", explained, ")"));
  }
  if (sheds) {
    lowest->shard->mu.AssertHeld();
    Finish(*lowest,
           GiveUpErrorOf(*lowest, queue, Reason::kTooManyPending,
                         absl::StrCat(" (", explained, "), and it was shed for one of priority ",
                                      waiter.terms.priority)),
           MayHaveLeftSomething(*lowest));
  }
  return absl::OkStatus();
}

void QueueDriver::NoteWaiting(Waiter& waiter) {
  engine_.pending().fetch_add(1, std::memory_order_relaxed);
  if (engine_.detector() != nullptr && !waiter.owner.empty()) engine_.detector()->Add(waiter);
}

void QueueDriver::ArmTimeout(const RefPtr<Waiter>& waiter) {
  waiter->timeout_timer = engine_.clock().RunAt(
      waiter->enqueued + waiter->acquire_timeout,
      [waiter] { waiter->shard->driver.GiveUp(*waiter, Reason::kAcquireTimeout); });
}

void QueueDriver::Finish(Waiter& waiter, absl::Status why, bool withdraws) {
  if (waiter.phase == Waiter::Phase::kWaiting) {
    engine_.pending().fetch_sub(1, std::memory_order_relaxed);
    if (engine_.detector() != nullptr && !waiter.owner.empty()) engine_.detector()->Remove(waiter);
  }
  waiter.shard->waiting.fetch_sub(1, std::memory_order_relaxed);
  waiter.outcome = std::move(why);
  // If an Obtain is under way, its answer decides what there is to withdraw.
  waiter.withdraws = withdraws;
  waiter.queue->Remove(waiter);
}

void QueueDriver::GiveUp(Waiter& waiter, Reason reason) {
  QueueShard& shard = *waiter.shard;
  // Completing it below may drop what else keeps it alive.
  const RefPtr<Waiter> keep = RefPtr<Waiter>::Share(&waiter);
  {
    absl::MutexLock lock(&shard.mu);
    waiter.shard->mu.AssertHeld();
    if (!waiter.in_queue()) return;
    // A backend that has failed all the time is the reason, not the limit on that time.
    const bool outage =
        reason == Reason::kAcquireTimeout && FailingSince(waiter) <= waiter.enqueued;
    Finish(waiter, outage ? OutageErrorOf(waiter) : GiveUpErrorOf(waiter, *waiter.queue, reason),
           MayHaveLeftSomething(waiter));
  }
  Drive(shard, waiter.resource);
}

void QueueDriver::ShutDown(QueueShard& shard) {
  std::vector<std::string> resources;
  {
    absl::MutexLock lock(&shard.mu);
    for (auto& [resource, queue] : shard.queues) {
      resources.push_back(resource);
      // Those at the front know who holds the lock, so all errors are made before they leave.
      std::vector<std::pair<Waiter*, absl::Status>> waiters;
      queue->order.ForEach([&, this, in = queue.get()](Waiter& waiter) {
        waiters.emplace_back(&waiter, GiveUpErrorOf(waiter, *in, Reason::kShutdown));
        return true;
      });
      for (auto& [waiter, error] : waiters) {
        waiter->shard->mu.AssertHeld();
        Finish(*waiter, std::move(error), MayHaveLeftSomething(*waiter));
      }
    }
  }
  for (const std::string& resource : resources) Drive(shard, ResourceName(resource));
}

// Events may come late, so only its answers say whether it never was the successor. Where the
// backend keeps order it may have been woken, and be the successor without having asked.
bool QueueDriver::MayHaveLeftSomething(const Waiter& waiter) const {
  return waiter.ever_reserved || waiter.maybe_obtained() || !engine_.capabilities().answers_at_once;
}

bool QueueDriver::LeavesSomething(const Waiter& waiter) const {
  // One that is registered may have been woken, too.
  return waiter.registered ? MayHaveLeftSomething(waiter)
                           : waiter.ever_reserved || waiter.maybe_obtained();
}

void QueueDriver::Complete(Waiter& waiter) {
  if (waiter.poll_timer != 0) engine_.clock().Cancel(waiter.poll_timer);
  if (waiter.timeout_timer != 0) engine_.clock().Cancel(waiter.timeout_timer);
  if (waiter.withdraws) Withdraw(waiter);
  waiter.subscription.Reset();
  if (Observer* const seen = engine_.observer()) {
    const Observer::Subject who{waiter.resource.bytes(), waiter.owner, waiter.terms.priority,
                                waiter.id};
    const absl::Duration waited = engine_.clock().Now() - waiter.enqueued;
    if (waiter.outcome.ok()) {
      seen->OnAcquired(who, waited);
    } else if (waiter.listener != Listener::kSet) {  // A set reports for all of its members.
      seen->OnDenied(who, waited, waiter.outcome);
    }
  }
  // Its callback, if it runs now, is the one that brought us here, or finds nothing to do.
  waiter.stop.reset();
  const auto lock_of = [&] {
    waiter.shard->Ref();  // The lock's.
    return LockOf(engine_, *waiter.shard, waiter.resource, waiter.id, waiter.terms, waiter.asked.at,
                  waiter.grant);
  };
  absl::StatusOr<Lock> lock =
      waiter.outcome.ok() ? absl::StatusOr<Lock>(lock_of()) : absl::StatusOr<Lock>(waiter.outcome);
  AcquireCallback done = std::move(waiter.done);
  if (waiter.told_directly()) {
    done(std::move(lock));
    return;
  }
  engine_.CallUser(
      kCallback,
      [keep = RefPtr<Waiter>::Share(&waiter)]() -> std::string_view {
        return keep->resource.bytes();
      },
      [done = std::move(done), lock = std::move(lock)]() mutable { done(std::move(lock)); });
}

void QueueDriver::Withdraw(const Waiter& waiter) {
  engine_.backend().Release({waiter.resource, waiter.id, 0}, [](absl::StatusOr<ReleaseOutcome>) {});
}

std::string QueueDriver::HolderForMessage(const Waiter& waiter) {
  absl::MutexLock lock(&waiter.shard->mu);
  return waiter.holder ? absl::StrCat(" ", IsHeldBy(*waiter.holder, waiter.reserved)) : "";
}

std::optional<Outage> QueueDriver::OutageOf(const Waiter& waiter) {
  absl::MutexLock lock(&waiter.shard->mu);
  Outage outage = Heard(waiter, waiter.queue);
  // Whatever befell others before it came.
  outage.BeginNoEarlierThan(waiter.enqueued);
  if (waiter.is_asking()) outage.NoteUnanswered();
  if (outage.failures() == 0 && !outage.unsettled()) return std::nullopt;
  return outage;
}

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

// How requests come to wait, and how they leave: one part of QueueDriver.

#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "latchkey/core/base/contain.h"
#include "latchkey/core/base/lock_error.h"
#include "latchkey/core/engine/first_ask.h"
#include "latchkey/core/engine/queue_driver.h"
#include "latchkey/core/engine/request_errors.h"

namespace latchkey::internal {
namespace {

// For the log, if it throws.
constexpr std::string_view kCallback = "the callback of a request";

bool HasTimeout(const Waiter& waiter) {
  return waiter.acquire_timeout > absl::ZeroDuration() &&
         waiter.acquire_timeout != absl::InfiniteDuration();
}

}  // namespace

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
  const bool failed = first != nullptr && !first->ok();
  // What else looks at this moment is for people.
  const bool exact = HasTimeout(w) || failed || w.outage_patience != absl::InfiniteDuration() ||
                     !engine_.by_priority() || w.blocker != nullptr ||
                     engine_.observer() != nullptr;
  w.enqueued = exact ? engine_.clock().Now() : engine_.clock().CoarseNow();
  const absl::StatusOr<absl::int128> rank = engine_.RankOf(w);

  shard.mu.Lock();
  w.shard->mu.AssertHeld();  // The same, for the thread annotations.
  WaitQueue* queue = shard.Find(w.resource);
  if (queue == nullptr) {
    auto& created = shard.queues[w.resource.bytes()];
    created = std::make_unique<WaitQueue>(engine_.by_priority());
    queue = created.get();
  }
  const LengthChange change = Come(w, *queue, options, first, rank);
  const bool suspects = HasSuspects();
  if (engine_.observer() == nullptr && !suspects) {
    DriveAndUnlock(shard, w.resource, queue);
    return;
  }
  shard.mu.Unlock();
  TellLength(w.resource, change);
  if (suspects) ResolveDeadlocks();
  Drive(shard, w.resource);
}

QueueDriver::LengthChange QueueDriver::Come(Waiter& w, WaitQueue& queue,
                                            const AcquireOptions& options,
                                            const absl::StatusOr<ObtainReply>* first,
                                            const absl::StatusOr<absl::int128>& rank) {
  LengthChange change;
  const bool asks = first == nullptr && !engine_.capabilities().answers_at_once;
  const bool failed = first != nullptr && !first->ok();
  const ObtainReply* const reply = first != nullptr && !failed ? &**first : nullptr;
  const bool joins =
      failed || (asks && (queue.pending() == 0 || engine_.GoesDirectly(w.terms, options)));
  if (reply != nullptr && reply->token == 0) w.HearOf(*reply);

  absl::Status refused = WhyNotToWait(w, queue, first, rank, options.cancel.stop_requested());
  if (refused.ok() && !joins) refused = Admit(queue, w);
  if (!refused.ok()) {
    w.MoveTo(Waiter::Phase::kEnded);
    w.outcome = std::move(refused);
    w.withdraws =
        w.maybe_obtained() || (reply != nullptr && reply->outcome == ObtainOutcome::kReserved);
    queue.refused.push_back(RefPtr<Waiter>::Share(&w));
    return change;
  }
  queue.Insert(w, options.skip_queue ? queue.RankToSkip(w, *rank) : *rank, options.skip_queue,
               joins ? Waiter::Phase::kJoining : Waiter::Phase::kWaiting);
  w.shard->waiting.fetch_add(1, std::memory_order_relaxed);
  if (joins) {
    if (asks) queue.AskAlone(w);
  } else {
    NoteWaiting(w);
    change = ChangeOf(queue);
    // Its owner may hold the lock, or wait in a cycle: it needs to know.
    if (asks && !w.owner.empty()) queue.look_after = queue.questions;
    // It may be less patient than those that ask.
    if (queue.outage != nullptr && w.outage_patience != absl::InfiniteDuration()) {
      HeadAsksBy(queue,
                 w.enqueued + std::max(w.outage_patience / 2, EngineContext::kShortestRetryDelay));
    }
  }
  if (failed) {
    HandleFirstAnswer(w, *first);
  } else if (first != nullptr) {
    HandleAnswer(w, *first);
  }
  // Without time to wait, the first answer decides.
  if (w.in_queue() && HasTimeout(w)) ArmTimeout(RefPtr<Waiter>::Share(&w));
  return change;
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

}  // namespace latchkey::internal

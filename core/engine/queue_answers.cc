// What the backend's answers, and its silence, mean for those who wait: one part of QueueDriver.

#include <algorithm>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "latchkey/core/base/lock_error.h"
#include "latchkey/core/engine/first_ask.h"
#include "latchkey/core/engine/queue_driver.h"
#include "latchkey/core/engine/request_errors.h"

namespace latchkey::internal {
namespace {

// Rule C8, for a victim that has little left: if by the answer the reservation is longer than this
// part of that, it becomes a sixth of it.
constexpr int kMostOfTheRest = 2;
// So many times as long as an answer took, at least: the next poll is to come in time (rule C5).
constexpr int kRoundTripsReserved = 5;
// Rule C5: it is polled well within that time.
constexpr double kPollPart = 0.4;

}  // namespace

// ---- Answers ----

bool QueueDriver::TakeAnswer(Waiter& waiter, const absl::StatusOr<ObtainReply>& answer) {
  waiter.BecomeAnswered();
  if (!waiter.in_queue()) {
    // It gave up meanwhile; the answer says what is left behind.
    if (WaitQueue* const queue = waiter.shard->Find(waiter.resource)) {
      NoteLateAnswer(*queue, answer);
    }
    return answer.ok() ? answer->outcome != ObtainOutcome::kDenied
                       : MayHaveBeenDone(answer.status());
  }
  if (waiter.phase == Waiter::Phase::kJoining) {
    HandleFirstAnswer(waiter, answer);
  } else {
    HandleAnswer(waiter, answer);
  }
  waiter.asked.unregistered = false;
  return false;
}

void QueueDriver::HandleFirstAnswer(Waiter& waiter, const absl::StatusOr<ObtainReply>& answer) {
  if (answer.ok() && answer->token == 0) {
    waiter.HearOf(*answer);
    const bool denied = answer->outcome == ObtainOutcome::kDenied;
    const bool may_wait =
        waiter.acquire_timeout > absl::ZeroDuration() && !(denied && waiter.max_attempts == 1);
    if (may_wait && !Join(waiter, /*withdraws=*/!denied)) return;
  }
  HandleAnswer(waiter, answer);
  // What came may be no answer: then it asks again, and waits until it may.
  if (waiter.phase == Waiter::Phase::kJoining) Join(waiter, /*withdraws=*/true);
}

bool QueueDriver::Join(Waiter& waiter, bool withdraws) {
  if (absl::Status refused = Admit(*waiter.queue, waiter); !refused.ok()) {
    Finish(waiter, std::move(refused), withdraws);
    return false;
  }
  waiter.queue->Admit(waiter);
  NoteWaiting(waiter);
  return true;
}

void QueueDriver::HandleAnswer(Waiter& waiter, const absl::StatusOr<ObtainReply>& answer) {
  WaitQueue& queue = *waiter.queue;
  if (!answer.ok()) {
    const bool is_outage = NoteOutage(waiter, answer.status());
    OnFailure(waiter, answer.status());
    if (is_outage) EndImpatient(queue);
    return;
  }
  NoteAnswer(queue);
  // It settles what became of all attempts before, which had the same id.
  std::unique_ptr<Outage> outage = std::move(waiter.outage);
  if (answer->token == 0 && !engine_.by_priority()) queue.holder_priority = answer->other_priority;
  switch (answer->outcome) {
    case ObtainOutcome::kObtained:
    case ObtainOutcome::kReentered:
      OnGranted(waiter, *answer, std::move(outage));
      return;
    case ObtainOutcome::kReserved:
      OnReserved(waiter, *answer);
      return;
    case ObtainOutcome::kDenied:
      OnDenied(waiter, *answer);
      return;
  }
}

void QueueDriver::OnGranted(Waiter& waiter, const ObtainReply& reply,
                            std::unique_ptr<Outage> outage) {
  if (reply.remaining != absl::InfiniteDuration() && waiter.asked.at == kUntimed) {
    // It re-entered a hold that ends. Asking again is idempotent, and tells by when.
    waiter.time_matters = true;
    waiter.outage = std::make_unique<Outage>();
    waiter.outage->NoteUnsettled(kNoEndTold);
    if (waiter.registered) {
      waiter.BecomeDue();
    } else {
      waiter.queue->AskAlone(waiter);
    }
    return;
  }
  const absl::Time until = engine_.ValidUntil(waiter.asked.at, reply.remaining);
  if (until != absl::InfiniteFuture() && until <= engine_.clock().Now()) {
    // The answer took as long as the lease: whatever it says is over. Asking again is idempotent,
    // but may go on like this for ever.
    waiter.outage = std::move(outage);
    OnFailure(waiter,
              BackendUnknownError(absl::StrCat(
                  "backend '", engine_.capabilities().name, "' took longer than the lease of ",
                  absl::FormatDuration(reply.remaining), " to grant it")));
    return;
  }
  if (!engine_.by_priority()) waiter.queue->holder_priority = waiter.terms.priority;
  waiter.grant = Grant(reply);
  Finish(waiter, absl::OkStatus(), /*withdraws=*/false);
}

void QueueDriver::OnReserved(Waiter& waiter, const ObtainReply& reply) {
  waiter.looks = false;
  const absl::Duration asked_for = waiter.reservation_lease;
  if (asked_for != absl::InfiniteDuration()) {
    waiter.reservation_lease = ReservationLease(waiter, reply.remaining);
  }
  waiter.reserved = true;
  waiter.ever_reserved = true;
  waiter.victim_has_left = reply.remaining;
  waiter.HearOf(reply);
  absl::Time next = absl::InfiniteFuture();
  if (waiter.reservation_lease < asked_for) {
    // Asking again shortens it.
    waiter.BecomeDue();
  } else if (asked_for != absl::InfiniteDuration()) {
    next = waiter.asked.at + asked_for * kPollPart;
  }
  if (reply.grace_remaining != absl::InfiniteDuration()) {
    next = std::min(next, waiter.asked.at + reply.grace_remaining);
  }
  if (waiter.acquire_timeout == absl::ZeroDuration()) {
    Finish(waiter, GiveUpErrorOf(waiter, *waiter.queue, Reason::kAcquireTimeout),
           /*withdraws=*/true);
    return;
  }
  // One that had just come, or was nudged and then overtaken.
  waiter.queue->NeedsRegistration(waiter);
  NoteHolder(waiter);
  NoteLook(waiter);
  PollAt(waiter, next);
}

void QueueDriver::OnDenied(Waiter& waiter, const ObtainReply& reply) {
  if (!std::exchange(waiter.looks, false)) ++waiter.attempts;
  waiter.LoseReservation();
  waiter.HearOf(reply);
  if (waiter.attempts >= waiter.max_attempts) {
    Finish(waiter, GiveUpErrorOf(waiter, *waiter.queue, Reason::kAttemptsExhausted),
           /*withdraws=*/false);
    return;
  }
  if (waiter.acquire_timeout == absl::ZeroDuration()) {
    Finish(waiter, GiveUpErrorOf(waiter, *waiter.queue, Reason::kAcquireTimeout),
           /*withdraws=*/false);
    return;
  }
  NoteHolder(waiter);
  NoteLook(waiter);
  // One that is not registered asks when its turn comes.
  if (engine_.capabilities().reliable_events || !waiter.registered) return;
  const absl::StatusOr<absl::Duration> delay =
      engine_.RetryDelay(waiter.retry.get(), {.attempts = waiter.attempts,
                                              .remaining_lease = reply.remaining,
                                              .random = engine_.Random()});
  if (delay.ok()) {
    PollAt(waiter, engine_.clock().Now() + *delay);
  } else {
    Finish(waiter, PolicyErrorOf(waiter, delay.status()), MayHaveLeftSomething(waiter));
  }
}

absl::Duration QueueDriver::ReservationLease(const Waiter& waiter,
                                             absl::Duration victim_has) const {
  const absl::Duration now = waiter.reservation_lease;
  if (waiter.reserved) {
    // It renewed although we had reserved, so that was over before our poll came.
    const bool too_short = victim_has > waiter.victim_has_left;
    return too_short ? std::min(2 * now, waiter.terms.reservation_lease) : now;
  }
  if (now <= victim_has / kMostOfTheRest) return now;
  const absl::Duration round_trip = engine_.clock().Now() - waiter.asked.at;
  return std::min(now, std::max({victim_has / kReservationPart, round_trip * kRoundTripsReserved,
                                 kShortestReservation}));
}

void QueueDriver::NoteLook(const Waiter& waiter) const {
  if (waiter.asked.unregistered) return;
  WaitQueue& queue = *waiter.queue;
  if (waiter.asked.number > queue.look_after) queue.look_after = -1;
  if (engine_.capabilities().answers_at_once || waiter.holder->owner.empty()) return;
  queue.order.ForEach([&](Waiter& other) {
    // What was asked before it came says nothing: the owner may have left since.
    if (!other.registered && other.question == Waiter::Question::kIdle &&
        other.phase == Waiter::Phase::kWaiting && other.came_after < waiter.asked.number &&
        other.owner == waiter.holder->owner) {
      queue.AskAlone(other);
    }
    return true;
  });
}

void QueueDriver::NoteHolder(const Waiter& waiter) const {
  if (!LooksForDeadlocks()) return;
  engine_.detector()->SetHolder(waiter, waiter.holder->owner, waiter.asked.graph_time);
}

// ---- Outages ----

void QueueDriver::OnFailure(Waiter& waiter, const absl::Status& failure) {
  NoteFailure(waiter, failure);
  const absl::Time now = engine_.clock().Now();
  const absl::Time patient_until = FailingSince(waiter) + waiter.outage_patience;
  // It may pass: asking again is idempotent, and settles what an unknown outcome left open.
  const bool again =
      MayPass(failure) && waiter.acquire_timeout > absl::ZeroDuration() && now < patient_until;
  absl::StatusOr<absl::Duration> delay = absl::InfiniteDuration();
  if (again) {
    delay = engine_.RetryDelay(waiter.retry.get(),
                               {.attempts = waiter.outage->failures(), .random = engine_.Random()});
  }
  if (!delay.ok() || *delay == absl::InfiniteDuration()) {
    Finish(waiter, delay.ok() ? OutageErrorOf(waiter) : PolicyErrorOf(waiter, delay.status()),
           LeavesSomething(waiter));
    return;
  }
  // No more than half of the time that it has left, so that it asks in time when the outage is over
  // before that.
  const absl::Time last = std::min(patient_until, waiter.enqueued + waiter.acquire_timeout);
  PollAt(waiter,
         now + std::max(std::min(*delay, (last - now) / 2), EngineContext::kShortestRetryDelay));
}

absl::Time QueueDriver::BeganToAsk(const Waiter& waiter) const {
  // One that has had no answer yet has asked since it came.
  if (waiter.phase != Waiter::Phase::kWaiting) return waiter.enqueued;
  return waiter.asked.at == kUntimed ? engine_.clock().Now() : waiter.asked.at;
}

void QueueDriver::NoteFailure(Waiter& waiter, const absl::Status& failure) const {
  if (waiter.outage == nullptr) waiter.outage = std::make_unique<Outage>();
  waiter.outage->Note(failure, BeganToAsk(waiter));
}

bool QueueDriver::NoteOutage(const Waiter& waiter, const absl::Status& failure) const {
  WaitQueue& queue = *waiter.queue;
  // An answer that came meanwhile is news of more than what was asked before it.
  const bool is_late = waiter.asked.number != 0 && waiter.asked.number <= queue.answered;
  if (!MayPass(failure) || is_late) return false;
  if (queue.outage == nullptr) queue.outage = std::make_unique<Outage>();
  queue.outage->Note(failure, BeganToAsk(waiter));
  return true;
}

void QueueDriver::NoteAnswer(WaitQueue& queue) {
  queue.answered = queue.questions;
  queue.outage.reset();
}

void QueueDriver::NoteLateAnswer(WaitQueue& queue, const absl::StatusOr<ObtainReply>& answer) {
  if (answer.ok()) {
    NoteAnswer(queue);
  } else if (MayPass(answer.status())) {
    // The queue may have begun anew since it was asked for.
    if (queue.outage == nullptr) queue.outage = std::make_unique<Outage>();
    queue.outage->Note(answer.status(), engine_.clock().Now());
    EndImpatient(queue);
  }
}

absl::Time QueueDriver::FailingSince(const Waiter& waiter) {
  absl::Time since = absl::InfiniteFuture();
  if (waiter.outage != nullptr) since = waiter.outage->since();
  if (const Outage* const outage = waiter.queue->outage.get()) {
    since = std::min(since, std::max(waiter.enqueued, outage->since()));
  }
  return since;
}

void QueueDriver::EndImpatient(WaitQueue& queue) {
  const absl::Time now = engine_.clock().Now();
  absl::Time next = absl::InfiniteFuture();
  WaiterList ended;
  queue.order.ForEach([&](Waiter& waiter) {
    // Of one that asks, its own answer decides.
    if (waiter.phase != Waiter::Phase::kWaiting || waiter.question != Waiter::Question::kIdle) {
      return true;
    }
    const absl::Time patient_until = FailingSince(waiter) + waiter.outage_patience;
    if (patient_until > now) {
      next = std::min(next, patient_until);
    } else {
      ended.push_back(RefPtr<Waiter>::Share(&waiter));
    }
    return true;
  });
  for (const RefPtr<Waiter>& waiter : ended) {
    waiter->shard->mu.AssertHeld();
    Finish(*waiter, OutageErrorOf(*waiter), LeavesSomething(*waiter));
  }
  if (next != absl::InfiniteFuture()) {
    HeadAsksBy(queue, now + std::max((next - now) / 2, EngineContext::kShortestRetryDelay));
  }
}

void QueueDriver::HeadAsksBy(WaitQueue& queue, absl::Time at) {
  Waiter* const head = queue.head();
  // One that is not registered yet asks when it is.
  if (head == nullptr || !head->registered || head->question != Waiter::Question::kIdle) return;
  if (head->poll_timer != 0 && head->poll_at <= at) return;
  head->shard->mu.AssertHeld();
  if (!head->failing()) head->is_to_look = true;
  PollAt(*head, at);
}

Outage QueueDriver::Heard(const Waiter& waiter, const WaitQueue* queue) {
  Outage outage;
  if (waiter.outage != nullptr) outage = *waiter.outage;
  if (queue != nullptr && queue->outage != nullptr) outage.NoteOfOthers(*queue->outage);
  return outage;
}

absl::Status QueueDriver::OutageErrorOf(const Waiter& waiter) const {
  Outage outage = Heard(waiter, waiter.queue);
  if (waiter.is_asking()) outage.NoteUnanswered();
  return CouldNotLock(waiter.resource, outage.Error(engine_.clock().Now()));
}

absl::Status QueueDriver::PolicyErrorOf(const Waiter& waiter, const absl::Status& thrown) const {
  return PolicyError(waiter.resource, thrown,
                     Heard(waiter, waiter.queue).ForMessage(engine_.clock().Now()));
}

absl::Status QueueDriver::GiveUpErrorOf(const Waiter& waiter, const WaitQueue& queue, Reason reason,
                                        std::string_view detail) const {
  // Whoever stands behind others in the queue never asked; those before it did.
  const Waiter* informed = waiter.holder ? &waiter : nullptr;
  for (const RefPtr<Waiter>& other : queue.registered) {
    if (informed == nullptr && other->in_queue() && other->holder) informed = other.get();
  }
  const Outage outage = Heard(waiter, &queue);
  const std::string trouble = outage.ForMessage(engine_.clock().Now());
  return GiveUpError({.resource = waiter.resource.bytes(),
                      .reason = reason,
                      .acquire_timeout = waiter.acquire_timeout,
                      .max_attempts = waiter.max_attempts,
                      .detail = detail,
                      .cycle = waiter.cycle,
                      .holder = informed != nullptr ? &*informed->holder : nullptr,
                      .asked_to_yield = informed != nullptr && informed->reserved,
                      .trouble = trouble,
                      .unanswered = waiter.is_asking(),
                      .unknown = outage.ended_unknown()});
}

}  // namespace latchkey::internal

#include "latchkey/core/engine/set_request.h"

#include <algorithm>
#include <initializer_list>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "latchkey/core/base/lock_error.h"
#include "latchkey/core/base/scoped_owner.h"
#include "latchkey/core/lock/lock_set_rep.h"
#include "latchkey/core/lock/loss.h"

namespace latchkey::internal {
namespace {

// Where the retry policy names none.
constexpr absl::Duration kLongestPause = absl::Milliseconds(100);

}  // namespace

RefPtr<SetRequest> SetRequest::New(ManagerCore& core, std::vector<LockRequest> requests,
                                   LockOrder order) {
  if (order == LockOrder::kSorted) {
    std::stable_sort(
        requests.begin(), requests.end(),
        [](const LockRequest& a, const LockRequest& b) { return a.resource < b.resource; });
  }
  std::vector<std::unique_ptr<Member>> members;
  absl::flat_hash_map<std::string_view, Member*> seen;
  // Its steps may run on other threads. Where the order allows cycles, an owner shows them.
  std::string owner(ScopedOwner::Current());
  if (owner.empty() && order == LockOrder::kAsGiven && core.detector() != nullptr) {
    owner = absl::StrCat("set ", AcquisitionId::Next().ToString());
  }
  for (LockRequest& request : requests) {
    if (request.options.owner.empty()) request.options.owner = owner;
    const auto twin = seen.find(request.resource);
    if (twin != seen.end()) {
      // As if the owner entered again: the higher priority, and preemptible only if both are.
      Member& first = *twin->second;
      first.options.priority = std::max(first.options.priority, request.options.priority);
      first.options.preemptible &= request.options.preemptible;
      continue;
    }
    auto& member = members.emplace_back(std::make_unique<Member>());
    member->resource = std::move(request.resource);
    member->options = std::move(request.options);
    seen[member->resource] = member.get();
  }
  return RefPtr<SetRequest>::Adopt(new SetRequest(core, std::move(members)));
}

absl::Status SetRequest::Check() {
  for (const std::unique_ptr<Member>& member : members_) {
    absl::Status bad =
        core_.TermsOf(ResourceName(member->resource), member->options, member->terms);
    if (!bad.ok()) return bad;
  }
  return absl::OkStatus();
}

SetRequest::SetRequest(ManagerCore& core, std::vector<std::unique_ptr<Member>> members)
    : core_(core),
      members_(std::move(members)),
      plan_(members_.size(), core.capabilities().answers_at_once) {
  for (const std::unique_ptr<Member>& member : members_) {
    timeout_ = std::min(timeout_, member->options.acquire_timeout);
    outage_patience_ = std::min(outage_patience_, member->options.outage_patience);
    max_attempts_ = std::min(max_attempts_, member->options.max_attempts);
  }
  if (!members_.empty()) {
    shard_ = &core_.ShardOf(ResourceName(members_[0]->resource));
    shard_->Ref();
  }
}

SetRequest::~SetRequest() {
  inbox_.Cancel();
  members_.clear();
  if (shard_ != nullptr) shard_->Unref();
}

bool SetRequest::MayFollow(Phase before, Phase after) {
  const auto is = [before](std::initializer_list<Phase> some) {
    return std::find(some.begin(), some.end(), before) != some.end();
  };
  using enum Phase;
  switch (after) {
    case kNew:
      return false;
    case kAsking:
      return is({kNew, kAsking, kQueueing, kReserving, kExtending});
    case kQueueing:
      return is({kAsking, kQueueing, kReserving, kPausing, kExtending});
    case kReserving:
      return is({kAsking, kReserving});
    case kPausing:
      return is({kAsking, kQueueing, kReserving, kExtending});
    case kExtending:
      return is({kAsking, kQueueing, kReserving});
    case kReturning:
      return is({kAsking, kQueueing, kReserving, kExtending});
    case kEnded:
      return before != kEnded;
  }
  return false;
}

// ---- Who runs it ----

absl::StatusOr<LockSet> SetRequest::Wait() {
  static_cast<void>(inbox_.Enter());  // The turn is this thread's, to the end.
  Begin();
  while (!result_) Handle(inbox_.Await());
  return *std::move(result_);
}

void SetRequest::Start(AcquireAllCallback done) {
  done_ = std::move(done);
  if (absl::Status bad = Check(); !bad.ok()) {
    MoveTo(Phase::kEnded);
    Finish(std::move(bad));
    return;
  }
  static_cast<void>(inbox_.Enter());
  Begin();
  HandleEvents();
  // What comes after this asks the executor.
}

void SetRequest::Shutdown() { Post({.kind = Event::kGiveUp, .reason = Reason::kShutdown}); }

void SetRequest::Post(Event event) {
  if (inbox_.Post(std::move(event))) HandleLater();
}

void SetRequest::PostYield(int64_t round) {
  // What is asked of several members is asked of the set.
  const auto same = [round](const Event& other) {
    return other.kind == Event::kYield && other.round == round;
  };
  if (inbox_.PostOnce({.kind = Event::kYield, .round = round}, same)) HandleLater();
}

void SetRequest::HandleLater() {
  core_.RunUser([ticket = Ticket(this)]() mutable { ticket.Take()->HandleEvents(); });
}

void SetRequest::HandleEvents() {
  inbox_.Deliver([this](Event event) { Handle(std::move(event)); });
}

void SetRequest::OnDropped() {
  // Nothing will run there any more, so this is told to whoever can still be reached.
  End(MakeError(Reason::kShutdown, absl::StrCat(Who(), ": its executor has shut down")));
}

// ---- The rounds ----

void SetRequest::Begin() {
  if (core_.observer() != nullptr) began_ = core_.clock().Now();
  for (const std::unique_ptr<Member>& member : members_) {
    const std::stop_token& cancel = member->options.cancel;
    if (!cancel.stop_possible()) continue;
    if (member != members_.front() && cancel == members_.front()->options.cancel) continue;
    cancels_.push_back(std::make_unique<std::stop_callback<CancelFn>>(cancel, CancelFn{this}));
    if (cancel.stop_requested()) {
      GiveUp(Reason::kCancelled);
      return;
    }
  }
  if (!core_.capabilities().answers_at_once && !PrepareToWait()) return;
  TakeStep();
}

bool SetRequest::PrepareToWait() {
  if (known_ != Known::kNo) return true;
  known_ = Known::kYes;
  if (!core_.AddSetRequest(this)) {
    GiveUp(Reason::kShutdown);
    return false;
  }
  if (timeout_ == absl::InfiniteDuration() || timeout_ == absl::ZeroDuration()) return true;
  timeout_timer_ =
      core_.clock().RunAt(core_.clock().Now() + timeout_, [self = RefPtr<SetRequest>::Share(this)] {
        self->Post({.kind = Event::kGiveUp, .reason = Reason::kAcquireTimeout});
      });
  return true;
}

void SetRequest::Handle(Event event) {
  if (event.kind == Event::kGiveUp) {
    GiveUp(event.reason);
    return;
  }
  if (event.kind == Event::kReturned) {
    if (returns_.AllAnswered()) EndFailed();
    return;
  }
  if (event.round != round_) {
    // Granted to an earlier round.
    if (event.lock && event.lock->ok()) Return(**std::move(event.lock));
    return;
  }
  switch (event.kind) {
    case Event::kAsked:
      OnAsked(std::move(event));
      return;
    case Event::kGranted:
      OnGranted(std::move(event));
      return;
    case Event::kYield:
      Restart();
      return;
    case Event::kPaused:
      WaitFor(event.index, Phase::kQueueing);
      return;
    case Event::kExtended:
      DCHECK(phase_ == Phase::kExtending);
      if (--answers_due_ == 0) Succeed();
      return;
    case Event::kReturned:
    case Event::kGiveUp:
      return;
  }
}

void SetRequest::Take(const SetStep& step) {
  switch (step.kind) {
    case SetStep::kAsk:
      Ask(step.member);
      return;
    case SetStep::kQueue:
      GiveBack(step.member + 1);
      WaitFor(step.member, Phase::kQueueing);
      return;
    case SetStep::kReserve:
      WaitFor(step.member, Phase::kReserving);
      return;
    case SetStep::kComplete:
      Complete();
      return;
  }
}

void SetRequest::Ask(size_t from) {
  MoveTo(Phase::kAsking);
  const SetPlan::Batch batch = plan_.BeginBatch(from);
  for (size_t i = batch.begin; i < batch.end; ++i) {
    if (plan_.IsHeld(i)) continue;
    // Answers that come at once are in the inbox, too.
    ++answers_due_;
    const ResourceName name(members_[i]->resource);
    TryToLockAsync(core_, core_.ShardOf(name), name, members_[i]->options,
                   [self = RefPtr<SetRequest>::Share(this), round = round_, i](
                       absl::StatusOr<Lock> lock, std::optional<ObtainReply> reply) {
                     self->Post({.kind = Event::kAsked,
                                 .round = round,
                                 .index = i,
                                 .lock = std::move(lock),
                                 .reply = std::move(reply)});
                   });
  }
}

void SetRequest::OnAsked(Event event) {
  DCHECK(phase_ == Phase::kAsking);
  Member& member = *members_[event.index];
  answered_ |= event.lock->ok() || event.reply;
  if (event.lock->ok()) {
    Keep(event.index, **std::move(event.lock));
  } else if (event.reply) {
    plan_.Hear(event.index, StandingOf(member, *event.reply));
  } else {
    member.failure = event.lock->status();
    plan_.Hear(event.index, Standing::kFailed);
  }
  if (--answers_due_ == 0) OnAllAsked();
}

void SetRequest::Keep(size_t index, Lock lock) {
  Member& member = *members_[index];
  member.lock = std::move(lock);
  member.other_known = false;
  plan_.Hear(index, Standing::kHeld);
  unheard_.push_back(index);
}

Standing SetRequest::StandingOf(Member& member, const ObtainReply& reply) {
  member.other_known = true;
  member.other_owner = reply.other_owner;
  member.other_priority = reply.other_priority;
  const auto outranks = [&](Priority other) {
    return member.terms.reserve_below && other < member.terms.priority &&
           other < *member.terms.reserve_below;
  };
  const ResourceName name(member.resource);
  if (!outranks(reply.other_priority) || core_.IsAnyoneAhead(name, member.terms.priority)) {
    return Standing::kHard;
  }
  // Where the backend can tell, look closer.
  Standing standing = Standing::kSoft;
  core_.backend().Inspect(name, [&](const ResourceState& state) {
    if (!state.held || !outranks(state.holder_priority) || !state.preemptible ||
        (state.reserved && state.successor_priority >= member.terms.priority)) {
      standing = Standing::kHard;
    }
  });
  return standing;
}

void SetRequest::OnAllAsked() {
  const absl::Status failed = NoteFailures();
  const SetStep step = plan_.NextStep();
  if (step.kind == SetStep::kQueue || step.kind == SetStep::kReserve) {
    blocked_ = step.member;
    if (!failed.ok()) {
      Fail(failed);
      return;
    }
    if (timeout_ == absl::ZeroDuration()) {
      GiveUp(Reason::kAcquireTimeout);
      return;
    }
    // To hear nothing is no attempt; whoever waits for that member asks again in due time.
    const bool heard = plan_.standing(step.member) != Standing::kFailed;
    if (step.kind == SetStep::kQueue && heard && !CountAttempt()) return;
  }
  Take(step);
}

absl::Status SetRequest::NoteFailures() {
  const absl::Time now = core_.clock().Now();
  const Member* lasting = nullptr;  // Asking again would not help.
  bool any = false;
  for (size_t i = plan_.batch().begin; i < plan_.batch().end; ++i) {
    if (plan_.standing(i) != Standing::kFailed) continue;
    const Member& member = *members_[i];
    any = true;
    if (MayPass(member.failure)) {
      outage_.Note(member.failure, now);
    } else {
      lasting = &member;
    }
  }
  if (lasting != nullptr) outage_.Note(lasting->failure, now);
  if (!any) outage_.EndRow();
  const bool ends =
      lasting != nullptr ||
      (any && (timeout_ == absl::ZeroDuration() || now >= outage_.since() + outage_patience_));
  return ends ? outage_.Error(now) : absl::OkStatus();
}

void SetRequest::WaitFor(size_t index, Phase phase) {
  if (!PrepareToWait()) return;
  Listen();
  MoveTo(phase);
  blocked_ = index;
  known_ = Known::kWaited;
  wait_stop_.emplace();
  AcquireOptions options = members_[index]->options;
  options.cancel = wait_stop_->get_token();
  options.acquire_timeout = absl::InfiniteDuration();
  options.outage_patience = outage_patience_;
  if (outage_.failures() > 0) {
    const absl::Duration gone = core_.clock().Now() - outage_.since();
    options.outage_patience = std::max(outage_patience_ - gone, absl::ZeroDuration());
  }
  options.max_attempts = phase == Phase::kReserving ? 1 : AcquireOptions::kUnlimited;
  waiter_ = core_.AcquireMember(
      members_[index]->resource, options,
      [self = RefPtr<SetRequest>::Share(this), round = round_, index](absl::StatusOr<Lock> lock) {
        self->Post(
            {.kind = Event::kGranted, .round = round, .index = index, .lock = std::move(lock)});
      });
}

void SetRequest::OnGranted(Event event) {
  DCHECK(phase_ == Phase::kQueueing || phase_ == Phase::kReserving);
  wait_stop_.reset();
  NoteOutageOfWaiter();
  waiter_ = {};
  if (event.lock->ok()) {
    answered_ = true;
    outage_.EndRow();
    Keep(event.index, **std::move(event.lock));
    TakeStep();
    return;
  }
  const absl::Status& status = event.lock->status();
  if (phase_ != Phase::kReserving || ReasonOf(status) != Reason::kAttemptsExhausted) {
    FailAsWaiter(status);
    return;
  }
  // Somebody else was faster. It must not keep what it has while it waits its turn.
  if (!CountAttempt()) return;
  EndRound();
  BackOff(event.index);
}

absl::StatusOr<absl::Duration> SetRequest::RetryDelay(size_t index) {
  return core_.RetryDelay(members_[index]->options.retry.get(),
                          {.attempts = ++failures_, .random = core_.Random()});
}

void SetRequest::BackOff(size_t index) {
  const absl::StatusOr<absl::Duration> delay = RetryDelay(index);
  if (!delay.ok()) {
    Fail(delay.status());
  } else if (*delay == absl::InfiniteDuration()) {  // NoRetry: only when woken.
    WaitFor(index, Phase::kQueueing);
  } else {
    WaitAfter(*delay, index);
  }
}

void SetRequest::WaitAfter(absl::Duration delay, size_t index) {
  MoveTo(Phase::kPausing);
  pause_timer_ = core_.clock().RunAt(
      core_.clock().Now() + delay, [self = RefPtr<SetRequest>::Share(this), round = round_, index] {
        self->Post({.kind = Event::kPaused, .round = round, .index = index});
      });
}

void SetRequest::Restart() {
  const bool waiting = phase_ == Phase::kQueueing || phase_ == Phase::kReserving;
  bool lost = false;
  for (size_t i = 0; i < plan_.held_end(); ++i) {
    lost |= plan_.IsHeld(i) && !members_[i]->lock.IsHeld();
  }
  if (IsAsking()) outage_.NoteUnanswered();
  EndRound();
  if (!lost) {
    // As a rule whoever is more urgent is through by the time that this set has its next answer.
    // But another handle of its owner may keep what it has given back, and lets it enter again,
    // only to be asked to yield once more: to go on at once would be for ever.
    const absl::Time now = core_.clock().Now();
    const bool again = now - restarted_ < EngineContext::kShortestRetryDelay;
    restarted_ = now;
    if (!again) {
      TakeStep();
      return;
    }
    const absl::StatusOr<absl::Duration> delay = RetryDelay(blocked_);
    if (!delay.ok()) {
      Fail(delay.status());
    } else {
      WaitAfter(*delay == absl::InfiniteDuration() ? kLongestPause : *delay, blocked_);
    }
    return;
  }
  // A lease that was over before the set was complete may be over as soon the next time. To ask for
  // everything at once would go on for ever, and keep a thread busy.
  if (waiting) {
    WaitFor(blocked_, Phase::kQueueing);
  } else {
    BackOff(blocked_);
  }
}

void SetRequest::StopWaiting() {
  if (!wait_stop_) return;
  // Its answer, if it comes, is of a round gone by.
  std::stop_source stop = *std::move(wait_stop_);
  wait_stop_.reset();
  NoteOutageOfWaiter();
  waiter_ = {};
  stop.request_stop();
}

void SetRequest::NoteOutageOfWaiter() {
  if (!waiter_) return;
  if (const std::optional<Outage> outage = QueueDriver::OutageOf(*waiter_)) outage_.Note(*outage);
}

void SetRequest::GiveBack(size_t index) {
  for (size_t i = index; i < plan_.held_end(); ++i) {
    members_[i]->on_yield.reset();
    if (plan_.IsHeld(i)) Return(std::move(members_[i]->lock));
  }
  plan_.GiveBack(index);
}

void SetRequest::EndRound() {
  ++round_;
  answers_due_ = 0;
  GiveBack(0);
  StopWaiting();
}

void SetRequest::Return(Lock lock) {
  if (phase_ == Phase::kEnded) return;  // It goes, whatever the backend says.
  returns_.Begin();
  LockSetRep::Release(lock, [self = RefPtr<SetRequest>::Share(this)](const absl::Status& status) {
    // What was lost before is gone, too.
    const bool gone = status.ok() || IsLoss(ReasonOf(status));
    if (self->returns_.End(gone ? absl::OkStatus() : status)) {
      self->Post({.kind = Event::kReturned});
    }
  });
}

void SetRequest::Listen() {
  for (const size_t index : unheard_) {
    Member& member = *members_[index];
    if (!plan_.IsHeld(index) || member.on_yield) continue;
    member.on_yield.emplace(member.lock.stop_token(), YieldFn{this, round_});
  }
  unheard_.clear();
}

bool SetRequest::CountAttempt() {
  if (++attempts_ < max_attempts_) return true;
  GiveUp(Reason::kAttemptsExhausted);
  return false;
}

}  // namespace latchkey::internal

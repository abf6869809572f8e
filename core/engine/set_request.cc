#include "latchkey/core/engine/set_request.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "latchkey/core/base/callback_scope.h"
#include "latchkey/core/base/lock_error.h"
#include "latchkey/core/base/scoped_owner.h"
#include "latchkey/core/lock/hold.h"
#include "latchkey/core/lock/lock_set_rep.h"

namespace latchkey::internal {
namespace {

// Where the retry policy names none.
constexpr absl::Duration kLongestPause = absl::Milliseconds(100);
// So many members it asks for at once after a wait, where that saves time; then twice as many each
// time that none of them was in the way.
constexpr size_t kAskedAfterAWait = 8;

// Does a member's request end so by what the manager decided, and not by what the backend said?
bool IsOfManager(Reason reason) {
  switch (reason) {
    case Reason::kAcquireTimeout:
    case Reason::kAttemptsExhausted:
    case Reason::kTooManyPending:
    case Reason::kCancelled:
    case Reason::kShutdown:
    case Reason::kDeadlock:
    case Reason::kException:
      return true;
    default:
      return false;
  }
}

bool IsLoss(Reason reason) {
  return reason == Reason::kStolen || reason == Reason::kExpired || reason == Reason::kLost;
}

// A limit that ends it without saying whether anything was done.
bool IsLimit(Reason reason) {
  return reason == Reason::kAcquireTimeout || reason == Reason::kAttemptsExhausted;
}

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
  // Its steps may run on other threads. Where the order allows circles, an owner shows them.
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
    : core_(core), members_(std::move(members)) {
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
  {
    absl::MutexLock lock(&mu_);
    closed_ = true;
  }
  members_.clear();
  if (shard_ != nullptr) shard_->Unref();
}

// ---- Who runs it ----

absl::StatusOr<LockSet> SetRequest::Wait() {
  {
    absl::MutexLock lock(&mu_);
    scheduled_ = true;  // By this thread, to the end.
  }
  Begin();
  for (;;) {
    Step();
    absl::MutexLock lock(&mu_);
    const auto news = [this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) {
      return result_.has_value() || !inbox_.empty();
    };
    mu_.Await(absl::Condition(&news));
    if (result_) return *std::move(result_);
  }
}

void SetRequest::Start(AcquireAllCallback done) {
  done_ = std::move(done);
  if (absl::Status bad = Check(); !bad.ok()) {
    Finish(std::move(bad));
    return;
  }
  {
    absl::MutexLock lock(&mu_);
    scheduled_ = true;
  }
  Begin();
  Step();
  // What comes after this asks the executor.
}

void SetRequest::Shutdown() { Post({.kind = Event::kGiveUp, .reason = Reason::kShutdown}); }

// The right to step, for a task: an executor that shuts down may drop it.
class SetRequest::Ticket {
 public:
  explicit Ticket(SetRequest* request) : request_(RefPtr<SetRequest>::Share(request)) {}
  Ticket(Ticket&&) noexcept = default;
  Ticket& operator=(Ticket&&) = delete;
  ~Ticket() {
    if (request_) Take()->OnDropped();
  }
  RefPtr<SetRequest> Take() { return std::move(request_); }

 private:
  RefPtr<SetRequest> request_;
};

void SetRequest::Post(Event event) {
  {
    absl::MutexLock lock(&mu_);
    if (closed_) return;
    inbox_.push_back(std::move(event));
    if (scheduled_) return;
    scheduled_ = true;
  }
  core_.RunUser([ticket = Ticket(this)]() mutable { ticket.Take()->Step(); });
}

void SetRequest::OnDropped() {
  if (finished_) return;
  // Nothing will run there any more, so this is told to whoever can still be reached.
  End(MakeError(Reason::kShutdown, absl::StrCat(Who(), ": its executor has shut down")));
}

void SetRequest::Step() {
  // Handling may drop every other reference.
  const RefPtr<SetRequest> self = RefPtr<SetRequest>::Share(this);
  for (;;) {
    std::vector<Event> events;
    {
      absl::MutexLock lock(&mu_);
      if (inbox_.empty()) {
        if (!blocking_) scheduled_ = false;
        return;
      }
      events.swap(inbox_);
    }
    for (Event& event : events) Handle(event);
  }
}

// ---- The rounds ----

void SetRequest::Begin() {
  blocking_ = done_ == nullptr;
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
  if (!core_.capabilities().answers_at_once) {
    PrepareToWait();
    ask_at_once_ = members_.size();
  }
  if (!finished_) BeginPass(0);
}

void SetRequest::PrepareToWait() {
  if (std::exchange(prepared_, true)) return;
  if (!core_.AddSetRequest(this)) {
    GiveUp(Reason::kShutdown);
    return;
  }
  if (timeout_ == absl::InfiniteDuration() || timeout_ == absl::ZeroDuration()) return;
  const Clock::TimerId timer =
      core_.clock().RunAt(core_.clock().Now() + timeout_, [self = RefPtr<SetRequest>::Share(this)] {
        self->Post({.kind = Event::kGiveUp, .reason = Reason::kAcquireTimeout});
      });
  absl::MutexLock lock(&mu_);
  timeout_timer_ = timer;
}

void SetRequest::Handle(Event& event) {
  if (finished_) return;
  if (event.kind == Event::kGiveUp) {
    GiveUp(event.reason);
    return;
  }
  if (event.kind == Event::kReturned) {
    {
      absl::MutexLock lock(&mu_);
      if (returns_due_ > 0) return;
    }
    EndFailed();
    return;
  }
  if (event.round != round_) {
    // Granted to an earlier round.
    if (event.lock && event.lock->ok()) Return(**std::move(event.lock));
    return;
  }
  switch (event.kind) {
    case Event::kAsked: {
      --answers_due_;
      answered_ |= event.lock->ok() || event.reply;
      if (event.lock->ok()) {
        Take(event.index, **std::move(event.lock));
      } else if (event.reply) {
        Note(*members_[event.index], *event.reply);
      } else {
        members_[event.index]->failure = event.lock->status();
      }
      if (answers_due_ == 0) AllAsked();
      return;
    }
    case Event::kGranted:
      OnGranted(event);
      return;
    case Event::kYield:
      Restart();
      return;
    case Event::kBackedOff:
      WaitFor(event.index, /*reserve_only=*/false);
      return;
    case Event::kExtended:
      if (--answers_due_ == 0) Succeed();
      return;
    case Event::kReturned:
    case Event::kGiveUp:
      return;
  }
}

void SetRequest::BeginPass(size_t from) {
  pass_begin_ = asked_end_ = from;
  answers_due_ = 0;  // What was asked before does not matter any more.
  AskSome();
}

void SetRequest::AskSome() {
  asked_begin_ = asked_end_;
  for (; asked_end_ < members_.size() && answers_due_ < ask_at_once_; ++asked_end_) {
    const size_t i = asked_end_;
    if (members_[i]->held) continue;
    members_[i]->failure = absl::OkStatus();
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
  if (answers_due_ == 0) AllAsked();
}

void SetRequest::Take(size_t index, Lock lock) {
  Member& member = *members_[index];
  member.lock = std::move(lock);
  member.held = true;
  member.other_known = false;
  held_end_ = std::max(held_end_, index + 1);
  unheard_.push_back(&member);
}

void SetRequest::Note(Member& member, const ObtainReply& reply) {
  member.other_known = true;
  member.other_owner = reply.other_owner;
  member.other_priority = reply.other_priority;
  const auto outranks = [&](Priority other) {
    return member.terms.reserve_below && other < member.terms.priority &&
           other < *member.terms.reserve_below;
  };
  const ResourceName name(member.resource);
  member.soft = outranks(reply.other_priority) && !core_.IsAnyoneAhead(name, member.terms.priority);
  if (!member.soft) return;
  // Where the backend can tell, look closer.
  core_.backend().Inspect(name, [&](const ResourceState& state) {
    if (!state.held || !outranks(state.holder_priority) || !state.preemptible ||
        (state.reserved && state.successor_priority >= member.terms.priority)) {
      member.soft = false;
    }
  });
}

void SetRequest::AllAsked() {
  const auto in_the_way = [](const Member& member) {
    return !member.held && (!member.soft || !member.failure.ok());
  };
  size_t hard = asked_begin_;
  while (hard < asked_end_ && !in_the_way(*members_[hard])) ++hard;
  const absl::Status failed = NoteFailures();
  if (hard < asked_end_) {
    blocked_ = hard;
    if (!failed.ok()) {
      Fail(failed);
      return;
    }
    if (timeout_ == absl::ZeroDuration()) {
      GiveUp(Reason::kAcquireTimeout);
      return;
    }
    // To hear nothing is no attempt; whoever waits for that member asks again in due time.
    if (members_[hard]->failure.ok() && !CountAttempt()) return;
    GiveBack(hard + 1);
    WaitFor(hard, /*reserve_only=*/false);
    return;
  }
  if (!core_.capabilities().answers_at_once) {
    ask_at_once_ = std::min(2 * ask_at_once_, members_.size());
  }
  if (asked_end_ < members_.size()) {
    AskSome();
    return;
  }
  const size_t first = FirstMissing(0);
  if (first == members_.size()) {
    Complete();
    return;
  }
  if (first < pass_begin_) {  // What it knows of that one is old.
    BeginPass(0);
    return;
  }
  blocked_ = first;
  if (timeout_ == absl::ZeroDuration()) {
    GiveUp(Reason::kAcquireTimeout);
    return;
  }
  WaitFor(first, /*reserve_only=*/true);
}

size_t SetRequest::FirstMissing(size_t from) const {
  while (from < members_.size() && members_[from]->held) ++from;
  return from;
}

absl::Status SetRequest::NoteFailures() {
  const absl::Time now = core_.clock().Now();
  const Member* lasting = nullptr;  // Asking again would not help.
  bool any = false;
  for (size_t i = asked_begin_; i < asked_end_; ++i) {
    const Member& member = *members_[i];
    if (member.held || member.failure.ok()) continue;
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

void SetRequest::WaitFor(size_t index, bool reserve_only) {
  PrepareToWait();
  if (finished_) return;
  Listen();
  blocked_ = index;
  reserving_ = reserve_only;
  waited_ = true;
  wait_stop_.emplace();
  AcquireOptions options = members_[index]->options;
  options.cancel = wait_stop_->get_token();
  options.acquire_timeout = absl::InfiniteDuration();
  options.outage_patience = outage_patience_;
  if (outage_.failures() > 0) {
    const absl::Duration gone = core_.clock().Now() - outage_.since();
    options.outage_patience = std::max(outage_patience_ - gone, absl::ZeroDuration());
  }
  options.max_attempts = reserve_only ? 1 : AcquireOptions::kUnlimited;
  waiter_ = core_.AcquireMember(
      members_[index]->resource, options,
      [self = RefPtr<SetRequest>::Share(this), round = round_, index](absl::StatusOr<Lock> lock) {
        self->Post(
            {.kind = Event::kGranted, .round = round, .index = index, .lock = std::move(lock)});
      });
}

void SetRequest::OnGranted(Event& event) {
  wait_stop_.reset();
  NoteOutageOfWaiter();
  waiter_ = {};
  if (event.lock->ok()) {
    answered_ = true;
    outage_.EndRow();
    Take(event.index, **std::move(event.lock));
    if (!reserving_) {
      BeginPass(given_back_from_);
      return;
    }
    const size_t next = FirstMissing(event.index + 1);
    if (next < members_.size()) {
      WaitFor(next, /*reserve_only=*/true);
    } else {
      Complete();
    }
    return;
  }
  const absl::Status& status = event.lock->status();
  const Reason reason = ReasonOf(status);
  if (!reserving_ || reason != Reason::kAttemptsExhausted) {
    const absl::Time now = core_.clock().Now();
    if (!outage_.unsettled() || MayHaveBeenDone(status)) {
      Fail(status);
    } else if (IsOfManager(reason)) {
      Fail(MakeError(reason, absl::StrCat(status.message(), outage_.ForMessage(now))));
    } else {
      Fail(outage_.Error(now));
    }
    return;
  }
  // Somebody else was faster. It must not keep what it has while it waits its turn.
  if (!CountAttempt()) return;
  GiveBack(0);
  ++round_;
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
    WaitFor(index, /*reserve_only=*/false);
  } else {
    WaitAfter(*delay, index);
  }
}

void SetRequest::WaitAfter(absl::Duration delay, size_t index) {
  const Clock::TimerId timer = core_.clock().RunAt(
      core_.clock().Now() + delay, [self = RefPtr<SetRequest>::Share(this), round = round_, index] {
        self->Post({.kind = Event::kBackedOff, .round = round, .index = index});
      });
  absl::MutexLock lock(&mu_);
  backoff_timer_ = timer;
}

void SetRequest::Restart() {
  const bool waiting = wait_stop_.has_value();
  bool lost = false;
  for (const std::unique_ptr<Member>& member : members_) {
    lost |= member->held && !member->lock.IsHeld();
  }
  if (IsAsking()) outage_.NoteUnanswered();
  answers_due_ = 0;
  ++round_;
  GiveBack(0);
  StopWaiting();
  if (!lost) {
    // As a rule whoever is more urgent is through by the time that this set has its next answer.
    // But another handle of its owner may keep what it has given back, and lets it enter again,
    // only to be asked to yield once more: to go on at once would be for ever.
    const absl::Time now = core_.clock().Now();
    const bool again = now - restarted_ < EngineContext::kShortestRetryDelay;
    restarted_ = now;
    if (!again) {
      BeginPass(0);
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
    WaitFor(blocked_, /*reserve_only=*/false);
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

bool SetRequest::IsAsking() const {
  return answers_due_ > 0 && std::any_of(members_.begin(), members_.end(),
                                         [](const auto& member) { return !member->held; });
}

void SetRequest::NoteOutageOfWaiter() {
  if (!waiter_) return;
  if (const std::optional<Outage> outage = QueueDriver::OutageOf(*waiter_)) outage_.Note(*outage);
}

void SetRequest::GiveBack(size_t index) {
  for (size_t i = index; i < held_end_; ++i) {
    Member& member = *members_[i];
    member.on_yield.reset();
    if (std::exchange(member.held, false)) Return(std::move(member.lock));
  }
  held_end_ = std::min(held_end_, index);
  given_back_from_ = index;
  ask_at_once_ = core_.capabilities().answers_at_once ? 1 : kAskedAfterAWait;
}

void SetRequest::Return(Lock lock) {
  if (finished_) return;  // It goes, whatever the backend says.
  {
    absl::MutexLock mutex(&mu_);
    ++returns_due_;
  }
  LockSetRep::Release(lock, [self = RefPtr<SetRequest>::Share(this)](const absl::Status& status) {
    self->OnReturned(status);
  });
}

void SetRequest::OnReturned(const absl::Status& status) {
  {
    absl::MutexLock lock(&mu_);
    --returns_due_;
    // What was lost before is gone, too.
    if (!status.ok() && !IsLoss(ReasonOf(status))) not_returned_ = status;
    if (!awaits_returns_ || returns_due_ > 0) return;
  }
  Post({.kind = Event::kReturned});
}

void SetRequest::NoteReturns() {
  absl::MutexLock lock(&mu_);
  if (!not_returned_.ok()) outage_.NoteUnsettled(not_returned_.message());
}

void SetRequest::Listen() {
  for (Member* const member : unheard_) {
    if (!member->held || member->on_yield) continue;
    member->on_yield.emplace(member->lock.stop_token(), YieldFn{this, round_});
  }
  unheard_.clear();
}

bool SetRequest::CountAttempt() {
  if (++attempts_ < max_attempts_) return true;
  GiveUp(Reason::kAttemptsExhausted);
  return false;
}

// ---- The end ----

void SetRequest::Complete() {
  // The first members waited for the last ones: their leases begin now.
  std::vector<Member*> aged;
  if (waited_) {
    for (const std::unique_ptr<Member>& member : members_) {
      const bool finite = member->terms.lease != absl::InfiniteDuration();
      if (finite && !member->terms.auto_renew) aged.push_back(member.get());
    }
  }
  if (aged.empty()) {
    Succeed();
    return;
  }
  Listen();
  answers_due_ = aged.size();
  for (Member* const member : aged) {
    // Whatever it answers: a loss, or somebody that waits, is told as a yield.
    LockSetRep::HoldOf(member->lock)
        .Extend(member->terms.lease,
                [self = RefPtr<SetRequest>::Share(this), round = round_](const absl::Status&) {
                  self->Post({.kind = Event::kExtended, .round = round});
                });
  }
}

void SetRequest::Succeed() {
  auto rep = std::make_unique<LockSetRep>();
  rep->members.reserve(members_.size());
  for (const std::unique_ptr<Member>& member : members_) {
    member->on_yield.reset();
    rep->members.push_back({member->resource, std::move(member->lock)});
    member->held = false;
  }
  Finish(LockSet(std::move(rep)));
}

void SetRequest::GiveUp(Reason reason) {
  if (!failure_.ok()) {  // What it waits for is only how exactly to say that.
    EndFailed();
    return;
  }
  std::string message = absl::StrCat(Who(), ": ", WhyGivenUp(reason));
  if (reason == Reason::kAcquireTimeout) {
    absl::StrAppend(&message, " (", absl::FormatDuration(timeout_), ")");
  }
  if (reason == Reason::kAttemptsExhausted) absl::StrAppend(&message, " (", max_attempts_, ")");
  if (blocked_ < members_.size()) {
    const Member& member = *members_[blocked_];
    // Who waits knows better than what was heard before.
    std::string holder = waiter_ ? QueueDriver::HolderForMessage(*waiter_) : "";
    answered_ |= !holder.empty();
    if (holder.empty() && member.other_known) {
      holder = absl::StrCat(" is held by ", OwnerForMessage(member.other_owner), " with priority ",
                            member.other_priority);
    }
    if (!holder.empty()) {
      absl::StrAppend(&message, "; ", ResourceForMessage(member.resource), holder);
    }
  }
  NoteOutageOfWaiter();
  NoteReturns();
  // The limit is met without a word on what became of an attempt.
  const bool unknown = IsLimit(reason) && outage_.ended_unknown();
  if (IsAsking()) outage_.NoteUnanswered();
  const absl::Time now = core_.clock().Now();
  if (reason == Reason::kAcquireTimeout && !answered_ && outage_.failures() > 0) {
    // A backend that has failed all the time is the reason, not the limit on that time.
    End(WithContext(Who(), outage_.Error(now)));
    return;
  }
  absl::StrAppend(&message, outage_.ForMessage(now));
  End(MakeError(unknown ? Reason::kBackendUnknown : reason, message));
}

void SetRequest::Fail(const absl::Status& status) {
  absl::Status failure = WithContext(Who(), status);
  if (IsOfManager(ReasonOf(status)) || MayHaveBeenDone(status)) {
    End(std::move(failure));
    return;
  }
  failure_ = std::move(failure);
  answers_due_ = 0;
  ++round_;
  GiveBack(0);
  StopWaiting();
  {
    absl::MutexLock lock(&mu_);
    awaits_returns_ = true;
    if (returns_due_ > 0) return;
  }
  EndFailed();
}

void SetRequest::EndFailed() {
  std::string open;
  {
    absl::MutexLock lock(&mu_);
    if (!not_returned_.ok()) {
      open = std::string(not_returned_.message());
    } else if (returns_due_ > 0) {
      open = "that is not answered yet";
    }
  }
  absl::Status failure = failure_;
  if (!open.empty()) {
    failure = BackendUnknownError(absl::StrCat(
        failure.message(), "; and what it had locked may not have been given back: ", open));
  }
  End(std::move(failure));
}

std::string SetRequest::Who() const { return absl::StrCat("could not lock all of ", Names()); }

std::string SetRequest::Names() const {
  std::vector<std::string_view> names;
  for (const std::unique_ptr<Member>& member : members_) names.push_back(member->resource);
  return ResourcesForMessage(names);
}

void SetRequest::End(absl::Status status) {
  finished_ = true;  // Nothing that follows from giving back matters any more.
  if (Observer* const seen = core_.observer(); seen != nullptr && blocked_ < members_.size()) {
    const Member& member = *members_[blocked_];
    seen->OnDenied({member.resource, member.terms.owner, member.terms.priority, {}},
                   core_.clock().Now() - began_, status);
  }
  GiveBack(0);
  StopWaiting();
  Finish(std::move(status));
}

void SetRequest::Finish(absl::StatusOr<LockSet> result) {
  finished_ = true;
  ++round_;
  if (prepared_) core_.RemoveSetRequest(this);
  Clock::TimerId timeout;
  Clock::TimerId backoff;
  std::vector<Event> left;
  {
    absl::MutexLock lock(&mu_);
    closed_ = true;
    left.swap(inbox_);
    timeout = std::exchange(timeout_timer_, 0);
    backoff = std::exchange(backoff_timer_, 0);
  }
  core_.clock().Cancel(timeout);
  core_.clock().Cancel(backoff);
  left.clear();
  cancels_.clear();
  if (blocking_) {
    absl::MutexLock lock(&mu_);
    result_ = std::move(result);
    return;
  }
  core_.RunUser([self = RefPtr<SetRequest>::Share(this), done = std::move(done_),
                 result = std::move(result)]() mutable {
    RunContained([&self] { return absl::StrCat("the callback of a request for ", self->Names()); },
                 [&] { done(std::move(result)); });
  });
}

}  // namespace latchkey::internal

// How a request for several locks ends.

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "latchkey/core/base/contain.h"
#include "latchkey/core/base/lease.h"
#include "latchkey/core/base/lock_error.h"
#include "latchkey/core/engine/outage.h"
#include "latchkey/core/engine/queue_driver.h"
#include "latchkey/core/engine/request_errors.h"
#include "latchkey/core/engine/set_request.h"
#include "latchkey/core/lock/hold.h"
#include "latchkey/core/lock/lock_set_rep.h"

namespace latchkey::internal {
namespace {

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

// A limit that ends it without saying whether anything was done.
bool IsLimit(Reason reason) {
  return reason == Reason::kAcquireTimeout || reason == Reason::kAttemptsExhausted;
}

}  // namespace

void SetRequest::Complete() {
  // The first members waited for the last ones: their leases begin now.
  std::vector<Member*> aged;
  if (known_ == Known::kWaited) {
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
  MoveTo(Phase::kExtending);
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
  MoveTo(Phase::kEnded);
  auto rep = std::make_unique<LockSetRep>();
  rep->members.reserve(members_.size());
  for (const std::unique_ptr<Member>& member : members_) {
    member->on_yield.reset();
    rep->members.push_back({member->resource, std::move(member->lock)});
  }
  Finish(LockSet(std::move(rep)));
}

void SetRequest::GiveUp(Reason reason) {
  if (phase_ == Phase::kReturning) {  // What it waits for is only how exactly to say that.
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
  // What could not be given back is open as well.
  if (const absl::Status kept = returns_.kept(); !kept.ok()) outage_.NoteUnsettled(kept.message());
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

void SetRequest::FailAsWaiter(const absl::Status& status) {
  const Reason reason = ReasonOf(status);
  const absl::Time now = core_.clock().Now();
  if (!outage_.unsettled() || MayHaveBeenDone(status)) {
    Fail(status);
  } else if (IsOfManager(reason)) {
    Fail(MakeError(reason, absl::StrCat(status.message(), outage_.ForMessage(now))));
  } else {
    Fail(outage_.Error(now));
  }
}

void SetRequest::Fail(const absl::Status& status) {
  absl::Status failure = WithContext(Who(), status);
  if (IsOfManager(ReasonOf(status)) || MayHaveBeenDone(status)) {
    End(std::move(failure));
    return;
  }
  MoveTo(Phase::kReturning);
  failure_ = std::move(failure);
  EndRound();
  if (!returns_.Await()) EndFailed();
}

void SetRequest::EndFailed() {
  DCHECK(phase_ == Phase::kReturning);
  const bool answered = returns_.AllAnswered();  // Before it looks at what they said.
  const absl::Status kept = returns_.kept();
  if (kept.ok() && answered) {
    End(failure_);
    return;
  }
  End(BackendUnknownError(absl::StrCat(failure_.message(),
                                       "; and what it had locked may not have been given back: ",
                                       kept.ok() ? "that is not answered yet" : kept.message())));
}

std::string SetRequest::Who() const { return absl::StrCat("could not lock all of ", Names()); }

std::string SetRequest::Names() const {
  std::vector<std::string_view> names;
  for (const std::unique_ptr<Member>& member : members_) names.push_back(member->resource);
  return ResourcesForMessage(names);
}

void SetRequest::End(absl::Status status) {
  MoveTo(Phase::kEnded);  // Nothing that follows from giving back matters any more.
  if (Observer* const seen = core_.observer(); seen != nullptr && blocked_ < members_.size()) {
    const Member& member = *members_[blocked_];
    seen->OnDenied({member.resource, member.terms.owner, member.terms.priority, {}},
                   core_.clock().Now() - began_, status);
  }
  EndRound();
  Finish(std::move(status));
}

void SetRequest::Finish(absl::StatusOr<LockSet> result) {
  if (known_ != Known::kNo) core_.RemoveSetRequest(this);
  inbox_.Cancel();
  core_.clock().Cancel(std::exchange(timeout_timer_, 0));
  core_.clock().Cancel(std::exchange(pause_timer_, 0));
  cancels_.clear();
  if (done_ == nullptr) {
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

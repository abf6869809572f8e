#include "latchkey/core/run_state.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "latchkey/core/base/callback_scope.h"
#include "latchkey/core/lock/lock_set_rep.h"

namespace latchkey {
namespace internal {

AcquireOptions OptionsForRun(const AcquireOptions& options) {
  AcquireOptions adapted = options;
  // One that makes no sense is refused by its own name.
  if (options.max_occupation_time > absl::ZeroDuration()) {
    adapted.acquire_timeout = std::min(options.acquire_timeout, options.max_occupation_time);
  }
  if (!adapted.auto_renew) adapted.auto_renew = true;
  return adapted;
}

absl::Status RunNotBegun(const AcquireOptions& options, absl::Status status) {
  const Reason reason = ReasonOf(status);
  if (options.max_occupation_time >= options.acquire_timeout ||
      (reason != Reason::kAcquireTimeout && reason != Reason::kBackendUnknown)) {
    return status;
  }
  // It was waited for with this limit under another name, which the caller never gave.
  const std::string limit =
      absl::StrCat(" is over (", absl::FormatDuration(options.max_occupation_time), ")");
  const std::string meant =
      absl::StrCat("max_occupation_time", limit, " before the body could begin");
  const std::string said = absl::StrCat("acquire_timeout", limit);
  std::string message(status.message());
  const size_t at = message.find(said);
  if (at != std::string::npos) message.replace(at, said.size(), meant);
  if (reason == Reason::kAcquireTimeout) return MakeError(Reason::kOccupationTimeout, message);
  return at == std::string::npos ? status : BackendUnknownError(message);
}

RunState::RunState(Clock& clock, std::string_view resource, const AcquireOptions& options,
                   Held held)
    : clock_(clock),
      max_execution_(options.max_execution_time),
      max_occupation_(options.max_occupation_time),
      held_(std::move(held)) {
  absl::MutexLock lock(&mu_);
  if (const Lock* const one = std::get_if<Lock>(&held_)) {
    members_.push_back({std::string(resource), one->fencing_token()});
    return;
  }
  const LockSet& set = std::get<LockSet>(held_);
  for (const std::string_view name : set.resources()) {
    members_.push_back({std::string(name), set.fencing_token(name)});
  }
}

std::shared_ptr<RunState> RunState::Start(Clock& clock, std::string_view resource,
                                          const AcquireOptions& options, absl::Time asked,
                                          Held held) {
  auto state = std::make_shared<RunState>(clock, resource, options, std::move(held));
  state->Arm(asked);
  return state;
}

FencingToken RunState::fencing_token(std::string_view resource) const {
  const auto found = std::lower_bound(
      members_.begin(), members_.end(), resource,
      [](const Member& member, std::string_view name) { return member.resource < name; });
  return found == members_.end() || found->resource != resource ? 0 : found->token;
}

std::string RunState::Name() const {
  if (members_.empty()) return "no lock";
  std::vector<std::string_view> names;
  for (const Member& member : members_) names.push_back(member.resource);
  return absl::StrCat(names.size() == 1 ? "the lock on " : "the set of locks on ",
                      ResourcesForMessage(names));
}

void RunState::Arm(absl::Time asked) {
  if (max_execution_ == absl::InfiniteDuration() && max_occupation_ == absl::InfiniteDuration()) {
    return;
  }
  const absl::Time now = clock_.Now();
  const auto call = [self = shared_from_this()](Reason reason) {
    return [self, reason] { self->OnLimit(reason); };
  };
  absl::MutexLock lock(&mu_);
  execution_timer_ = clock_.RunAt(now + max_execution_, call(Reason::kExecutionTimeout));
  if (max_occupation_ != absl::InfiniteDuration()) {
    occupation_timer_ = clock_.RunAt(asked + max_occupation_, call(Reason::kOccupationTimeout));
  }
}

void RunState::OnLimit(Reason reason) {
  std::optional<std::stop_source> stop;
  {
    absl::MutexLock lock(&mu_);
    if (done_) return;
    if (limit_ == Reason::kNone) limit_ = reason;
    stop = stop_;
  }
  if (stop) {
    CallbackScope scope;
    stop->request_stop();
  }
}

absl::Status RunState::LimitError(Reason reason) const {
  const bool execution = reason == Reason::kExecutionTimeout;
  return MakeError(
      reason,
      absl::StrCat("the body that runs under ", Name(), " took longer than ",
                   execution ? "max_execution_time" : "max_occupation_time", " (",
                   absl::FormatDuration(execution ? max_execution_ : max_occupation_), ")"));
}

std::optional<std::vector<RefPtr<Hold>>> RunState::SharedHolds() {
  absl::MutexLock lock(&mu_);
  if (done_) return std::nullopt;
  return LockSetRep::HoldsOf(held_);
}

absl::Status RunState::CheckPoint() {
  const std::optional<std::vector<RefPtr<Hold>>> holds = SharedHolds();
  if (!holds) return MakeError(Reason::kNotHeld, absl::StrCat(Name(), " was already released"));
  absl::Status yield;
  for (const RefPtr<Hold>& hold : *holds) {
    const absl::Status status = hold->Check();
    if (status.ok()) continue;
    if (ReasonOf(status) != Reason::kYieldRequested) return Named(status);
    if (yield.ok()) yield = status;
  }
  {
    absl::MutexLock lock(&mu_);
    if (limit_ != Reason::kNone) return LimitError(limit_);
  }
  return yield.ok() ? yield : Named(yield);
}

absl::Status RunState::DroppedError() const {
  return MakeError(Reason::kCancelled, absl::StrCat("the body that ran under ", Name(),
                                                    " dropped its callback without calling it"));
}

absl::Status RunState::Named(const absl::Status& status) const {
  return MakeError(ReasonOf(status),
                   absl::StrCat("running under ", Name(), ": ", status.message()));
}

std::stop_token RunState::StopToken() {
  const std::optional<std::vector<RefPtr<Hold>>> holds = SharedHolds();
  if (!holds) return {};
  std::stop_source source;
  bool stopped;
  {
    absl::MutexLock lock(&mu_);
    if (stop_) return stop_->get_token();
    stop_.emplace();
    source = *stop_;
    stopped = limit_ != Reason::kNone;
  }
  // Without the mutex, since they may run at once, and what they run may come back here.
  StopCalls stops;
  for (const RefPtr<Hold>& hold : *holds) {
    stops.push_back(
        std::make_unique<std::stop_callback<StopFn>>(hold->StopToken(), StopFn{source}));
  }
  if (stopped) source.request_stop();
  absl::MutexLock lock(&mu_);
  if (!done_) held_stops_ = std::move(stops);
  return source.get_token();
}

RunState::Held RunState::Take() {
  Clock::TimerId execution;
  Clock::TimerId occupation;
  StopCalls stops;
  Held held;
  {
    absl::MutexLock guard(&mu_);
    done_ = true;
    execution = std::exchange(execution_timer_, 0);
    occupation = std::exchange(occupation_timer_, 0);
    stops = std::move(held_stops_);
    held = std::move(held_);
  }
  clock_.Cancel(execution);
  clock_.Cancel(occupation);
  return held;
}

absl::Status RunState::Verdict(const absl::Status& body, const absl::Status& released) {
  const auto verdict = [&body](absl::Status status) {
    if (body.ok() || body == status) return status;
    return MakeError(ReasonOf(status),
                     absl::StrCat(status.message(), "; the body said: ", body.ToString()));
  };
  switch (ReasonOf(released)) {
    case Reason::kStolen:
    case Reason::kExpired:
    case Reason::kLost:
      // Others may have been inside meanwhile, whatever the body believes.
      return ReasonOf(body) == ReasonOf(released) ? body : verdict(Named(released));
    default:
      break;
  }
  absl::MutexLock lock(&mu_);
  if (limit_ == Reason::kNone) return body;
  return ReasonOf(body) == limit_ ? body : verdict(LimitError(limit_));
}

RunGuard::~RunGuard() { const RunState::Held released = context_.state_->Take(); }

absl::Status RunGuard::Finish(const absl::Status& body) {
  RunState::Held held = context_.state_->Take();
  const absl::Status released = std::visit([](auto& locks) { return locks.Release(); }, held);
  const absl::Status verdict = context_.state_->Verdict(body, released);
  return verdict == body ? absl::OkStatus() : verdict;
}

}  // namespace internal

absl::Status LockContext::CheckPoint() const { return state_->CheckPoint(); }

std::stop_token LockContext::stop_token() const { return state_->StopToken(); }

FencingToken LockContext::fencing_token() const { return state_->fencing_token(); }

FencingToken LockContext::fencing_token(std::string_view resource) const {
  return state_->fencing_token(resource);
}

NonPreemptibleScope::NonPreemptibleScope(const Lock& lock) {
  if (lock.IsHeld()) {
    Add(internal::RefPtr<internal::Hold>::Share(&internal::LockSetRep::HoldOf(lock)));
  }
}

NonPreemptibleScope::NonPreemptibleScope(const LockSet& locks) {
  if (!locks.IsHeld()) return;
  for (internal::LockSetRep::Member& member : locks.rep_->members) {
    Add(internal::RefPtr<internal::Hold>::Share(&internal::LockSetRep::HoldOf(member.lock)));
  }
}

NonPreemptibleScope::NonPreemptibleScope(const LockContext& context) {
  const auto holds = context.state_->SharedHolds();
  if (!holds) return;
  for (const internal::RefPtr<internal::Hold>& hold : *holds) Add(hold);
}

NonPreemptibleScope::~NonPreemptibleScope() {
  for (const internal::RefPtr<internal::Hold>& hold : holds_) hold->EndDeferral();
}

void NonPreemptibleScope::Add(internal::RefPtr<internal::Hold> hold) {
  if (!hold) return;
  hold->Defer();
  holds_.push_back(std::move(hold));
}

}  // namespace latchkey

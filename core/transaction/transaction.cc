#include "latchkey/core/transaction/transaction.h"

#include <exception>
#include <utility>

#include "absl/strings/str_cat.h"
#include "latchkey/core/base/callback_scope.h"
#include "latchkey/core/base/contain.h"
#include "latchkey/core/base/misuse.h"
#include "latchkey/core/engine/manager_core.h"
#include "latchkey/core/lock/lock_set_rep.h"
#include "latchkey/core/lock/loss.h"

namespace latchkey::internal {
namespace {

Reason ReasonToLeave(LockState state) {
  return IsLoss(state) ? ReasonOfLoss(state) : Reason::kYieldRequested;
}

std::string_view WhyLeft(Reason reason) {
  switch (reason) {
    case Reason::kStolen:
      return "was taken by force, since the grace was over before it was released";
    case Reason::kExpired:
      return "expired before it was released";
    case Reason::kLost:
      return "was lost: the backend does not know the hold any more, or failed to renew it";
    default:
      return "was given up for somebody of higher priority";
  }
}

}  // namespace

absl::Status StatusOfCurrentException() {
  return ErrorOfCurrentException("a transaction's body", "");
}

CoreRef::CoreRef(ManagerCore* core) : core_(core) {
  if (core == nullptr) DieOfMisuse("a Locker was made with a lock manager that was moved from");
  core_->Ref();
}

CoreRef::~CoreRef() { core_->Unref(); }

// ---- The relay ----

// Awaits of a body are given this coroutine to resume instead of the body, so that the lock is
// looked at before the body goes on. One serves all awaits of a run, one after the other.
class TransactionRun::Relay {
 public:
  struct promise_type {
    Relay get_return_object() {
      return Relay{std::coroutine_handle<promise_type>::from_promise(*this)};
    }
    std::suspend_always initial_suspend() noexcept { return {}; }
    std::suspend_always final_suspend() noexcept { return {}; }
    void return_void() {}
    void unhandled_exception() { std::terminate(); }
  };

  // Tells the run while the relay is suspended, so that the run may use it again, or destroy it.
  struct Tell {
    TransactionRun* run;
    bool await_ready() const noexcept { return false; }
    void await_suspend(std::coroutine_handle<>) const { run->AwaitIsOver(); }
    void await_resume() const noexcept {}
  };

  static Relay New(TransactionRun* run) {
    for (;;) co_await Tell{run};
  }

  std::coroutine_handle<> coroutine;
};

// ---- Awaits that are left ----

namespace {

struct Detached {
  struct promise_type {
    Detached get_return_object() { return {}; }
    std::suspend_never initial_suspend() noexcept { return {}; }
    std::suspend_never final_suspend() noexcept { return {}; }
    void return_void() {}
    void unhandled_exception() { std::terminate(); }
  };
};

struct StartIt {
  DetachedAwait* await;
  bool await_ready() const { return await->Ready(); }
  bool await_suspend(std::coroutine_handle<> coroutine) const { return await->Start(coroutine); }
  void await_resume() const {}
};

Detached Run(std::unique_ptr<DetachedAwait> await) {
  try {
    co_await StartIt{await.get()};
    await->Finish();
  } catch (...) {
    await->Fail(std::current_exception());
  }
}

}  // namespace

void RunDetached(std::unique_ptr<DetachedAwait> await) { Run(std::move(await)); }

// ---- From outside ----

TransactionRun::TransactionRun(CoreRef core, std::vector<std::string> resources,
                               AcquireOptions options)
    : core_(std::move(core)),
      resources_(std::move(resources)),
      owner_(current_owner != nullptr ? *current_owner : nullptr),
      options_(std::move(options)),
      relay_(Relay::New(this).coroutine) {}

TransactionRun::~TransactionRun() { relay_.destroy(); }

void TransactionRun::Start() {
  Ref();  // Its own, until Finish.
  static_cast<void>(strand_.Enter());
  UseOptions(std::move(options_));
  if (options_.max_occupation_time != absl::InfiniteDuration()) {
    occupation_timer_ = clock().RunAt(
        clock().Now() + options_.max_occupation_time, [run = RefPtr<TransactionRun>::Share(this)] {
          run->Stop(Reason::kOccupationTimeout, "max_occupation_time is over");
        });
  }
  Acquire();
  // The request was made here, in the caller's order; all the rest is the executor's.
  if (strand_.Abandon()) Post();
}

void TransactionRun::StartWith(absl::Status error) {
  Ref();
  End(std::move(error));
}

void TransactionRun::StartWithoutBody() {
  StartWith(MakeError(
      Reason::kInvalidArgument,
      absl::StrCat("body must not be null, but is null (locking ", ResourcesForMessage(), ")")));
}

void TransactionRun::Cancel() { Stop(Reason::kCancelled, "it was cancelled by the caller"); }

void TransactionRun::Stop(Reason reason, std::string_view why) {
  {
    absl::MutexLock lock(&mu_);
    if (done_ || !stop_.ok()) return;
    stop_ = MakeError(
        reason, absl::StrCat("the transaction on ", ResourcesForMessage(), " was ended: ", why));
  }
  Post();
}

bool TransactionRun::done() const {
  absl::MutexLock lock(&mu_);
  return done_;
}

bool TransactionRun::WaitUntilDone() {
  absl::MutexLock lock(&mu_);
  if (!done_ && CallbackScope::Active()) return false;
  mu_.Await(absl::Condition(&done_));
  return true;
}

absl::Status TransactionRun::WaitError() const {
  return WouldBlockError("Wait()", absl::StrCat("a transaction on ", ResourcesForMessage()));
}

void TransactionRun::WhenDone(absl::AnyInvocable<void()> callback) {
  {
    absl::MutexLock lock(&mu_);
    if (!done_) {
      std::swap(when_done_, callback);
      return;
    }
  }
  if (callback == nullptr) return;
  core_->RunUser([run = RefPtr<TransactionRun>::Share(this),
                  callback = std::move(callback)]() mutable { run->TellDone(callback); });
}

void TransactionRun::TellDone(absl::AnyInvocable<void()>& callback) {
  RunContained(
      [this] { return absl::StrCat("the callback of a transaction on ", ResourcesForMessage()); },
      callback);
}

void TransactionRun::Give(Answer answer) {
  {
    absl::MutexLock lock(&mu_);
    answer_ = std::move(answer);
  }
  Post();
}

void TransactionRun::AwaitIsOver() {
  {
    absl::MutexLock lock(&mu_);
    await_over_ = true;
  }
  Post();
}

void TransactionRun::OnGrant(absl::StatusOr<HeldLocks> locks) {
  {
    absl::MutexLock lock(&mu_);
    granted_ = std::move(locks);
  }
  Drive();
}

void TransactionRun::OnDropped() {
  {
    absl::MutexLock lock(&mu_);
    if (done_) return;
    const absl::Status error =
        MakeError(Reason::kShutdown, absl::StrCat("the transaction on ", ResourcesForMessage(),
                                                  " was ended: its executor has shut down"));
    if (stop_.ok()) stop_ = error;
    if (phase_ == Phase::kAcquiring && !granted_) granted_ = error;
    if (phase_ == Phase::kReleasing && !released_) released_ = error;
  }
  // There is no better place left.
  CallbackScope scope;
  Drive();
}

// ---- For bodies ----

Clock& TransactionRun::clock() const { return core_->clock(); }

absl::Status TransactionRun::stop_status() const {
  absl::MutexLock lock(&mu_);
  return stop_;
}

LockState TransactionRun::HeldState() {
  if (const Lock* const lock = std::get_if<Lock>(&locks_)) return lock->state();
  if (const LockSet* const set = std::get_if<LockSet>(&locks_)) return set->state();
  return LockState::kEmpty;
}

bool TransactionRun::MustLeave() { return !stop_status().ok() || HeldState() != LockState::kHeld; }

FencingToken TransactionRun::token(std::string_view resource) const {
  if (const LockSet* const set = std::get_if<LockSet>(&locks_)) {
    return set->fencing_token(resource);
  }
  const Lock* const lock = std::get_if<Lock>(&locks_);
  return lock != nullptr && resource == resources_.front() ? lock->fencing_token() : 0;
}

FencingToken TransactionRun::first_token() const { return token(resources_.front()); }

std::string TransactionRun::ResourcesForMessage() const {
  return internal::ResourcesForMessage({resources_.begin(), resources_.end()});
}

// ---- Steps ----

void TransactionRun::Post() {
  core_->RunUser([ticket = Ticket(this)]() mutable { ticket.Take()->Drive(); });
}

void TransactionRun::Drive() {
  const auto keep = RefPtr<TransactionRun>::Share(this);
  const OwnerInForce in_force(owner_ != nullptr ? &owner_ : nullptr);
  strand_.Run([this] {
    while (Step()) {
    }
  });
}

bool TransactionRun::Step() {
  Phase phase;
  {
    absl::MutexLock lock(&mu_);
    phase = phase_;
  }
  switch (phase) {
    case Phase::kAcquiring:
      return StepAcquiring();
    case Phase::kRunning:
      return StepRunning();
    case Phase::kAwaiting:
      return StepAwaiting();
    case Phase::kReleasing:
      return StepReleasing();
    case Phase::kRecovering:
      return StepRecovering();
    case Phase::kNew:
    case Phase::kDone:
      return false;
  }
  return false;
}

void TransactionRun::Enter(Phase phase) {
  absl::MutexLock lock(&mu_);
  phase_ = phase;
}

void TransactionRun::UseOptions(AcquireOptions options) {
  cancel_callback_.reset();
  options_ = std::move(options);
  if (options_.cancel.stop_possible()) cancel_callback_.emplace(options_.cancel, CancelFn{this});
}

void TransactionRun::Acquire() {
  if (core_->IsShutDown()) {
    End(MakeError(Reason::kShutdown, absl::StrCat("could not lock ", ResourcesForMessage(),
                                                  ": the lock manager was destroyed")));
    return;
  }
  Enter(Phase::kAcquiring);
  acquire_stop_ = std::stop_source();
  AcquireOptions options = options_;
  options.cancel = acquire_stop_.get_token();
  if (resources_.size() == 1) {
    core_->AcquireAsync(resources_.front(), options,
                        [ticket = Ticket(this)](absl::StatusOr<Lock> lock) mutable {
                          const auto run = ticket.Take();
                          if (lock.ok()) {
                            run->OnGrant(*std::move(lock));
                          } else {
                            run->OnGrant(lock.status());
                          }
                        });
    return;
  }
  std::vector<LockRequest> requests;
  for (const std::string& resource : resources_) {
    requests.push_back({.resource = resource, .options = options});
  }
  core_->AcquireAllAsync(std::move(requests), LockOrder::kSorted,
                         [ticket = Ticket(this)](absl::StatusOr<LockSet> locks) mutable {
                           const auto run = ticket.Take();
                           if (locks.ok()) {
                             run->OnGrant(*std::move(locks));
                           } else {
                             run->OnGrant(locks.status());
                           }
                         });
}

bool TransactionRun::StepAcquiring() {
  std::optional<absl::StatusOr<HeldLocks>> granted;
  absl::Status stop;
  {
    absl::MutexLock lock(&mu_);
    std::swap(granted, granted_);
    stop = stop_;
  }
  if (!granted) {
    // The grant, or its refusal, comes in any case.
    if (!stop.ok()) acquire_stop_.request_stop();
    return false;
  }
  if (!granted->ok()) {
    End(stop.ok() ? granted->status() : stop);
    return true;
  }
  locks_ = **std::move(granted);
  if (!stop.ok()) {
    ReleaseLocks();
    return true;
  }
  OnHeld();
  Enter(Phase::kRunning);
  if (body_) return true;
  if (absl::Status none = MakeBody(); !none.ok()) {
    // As if it had returned that.
    returned_ = true;
    SetError(std::move(none));
    ReleaseLocks();
  }
  return true;
}

absl::Status TransactionRun::MakeBody() {
  ++attempt_;
  try {
    body_ = NewBody();
  } catch (...) {
    return StatusOfCurrentException();
  }
  if (body_) return absl::OkStatus();
  return MakeError(Reason::kInvalidArgument,
                   absl::StrCat("body must return a transaction of its own, but returned an empty ",
                                "one (locking ", ResourcesForMessage(), ")"));
}

void TransactionRun::OnHeld() {
  int64_t hold;
  {
    absl::MutexLock lock(&mu_);
    hold = ++hold_number_;
  }
  const auto keep = RefPtr<TransactionRun>::Share(this);
  std::visit(
      [&keep](auto& locks) {
        if constexpr (!std::is_same_v<std::decay_t<decltype(locks)>, std::monostate>) {
          locks.OnYieldRequested([keep] { keep->Drive(); });
          locks.OnLost([keep](LockState) { keep->Drive(); });
        }
      },
      locks_);
  if (options_.max_execution_time != absl::InfiniteDuration()) {
    execution_timer_ = clock().RunAt(clock().Now() + options_.max_execution_time, [keep, hold] {
      {
        absl::MutexLock lock(&keep->mu_);
        if (keep->hold_number_ != hold) return;
      }
      keep->Stop(Reason::kExecutionTimeout, "max_execution_time is over");
    });
  }
}

bool TransactionRun::StepRunning() {
  const LockState state = HeldState();
  const bool under_way = pending_ != nullptr && pending_->RunsAlready();
  if (!under_way && (state != LockState::kHeld || !stop_status().ok())) {
    loss_.reason = ReasonToLeave(state);
    loss_.status = MakeError(loss_.reason, absl::StrCat("the lock on ", ResourcesForMessage(), " ",
                                                        WhyLeft(loss_.reason)));
    ReleaseLocks();
    return true;
  }
  if (pending_ != nullptr) {
    {
      absl::MutexLock lock(&mu_);
      await_over_ = false;
    }
    cancel_tried_ = false;
    awaiting_ = std::exchange(pending_, nullptr);
    if (awaiting_->Start(relay_)) Enter(Phase::kAwaiting);
    return true;
  }
  body_.resume();
  if (body_.done()) {
    body_ = nullptr;
    returned_ = true;
    TakeResult();
    ReleaseLocks();
  }
  return true;
}

bool TransactionRun::StepAwaiting() {
  bool over;
  {
    absl::MutexLock lock(&mu_);
    over = std::exchange(await_over_, false);
  }
  if (!over && !cancel_tried_ && MustLeave()) {
    cancel_tried_ = true;
    RunContained(
        [this] {
          return absl::StrCat("await_cancel() in a transaction on ", ResourcesForMessage());
        },
        [&] { over = awaiting_->Cancel(); });
  }
  if (over) Enter(Phase::kRunning);
  return over;
}

void TransactionRun::ReleaseLocks() {
  clock().Cancel(std::exchange(execution_timer_, 0));
  {
    absl::MutexLock lock(&mu_);
    ++hold_number_;
    phase_ = Phase::kReleasing;
    released_.reset();
  }
  absl::AnyInvocable<void(absl::Status)> done = [ticket =
                                                     Ticket(this)](absl::Status status) mutable {
    const auto run = ticket.Take();
    {
      absl::MutexLock lock(&run->mu_);
      run->released_ = std::move(status);
    }
    run->Drive();
  };
  if (Lock* const lock = std::get_if<Lock>(&locks_)) lock->ReleaseAsync(std::move(done));
  if (LockSet* const set = std::get_if<LockSet>(&locks_)) set->ReleaseAsync(std::move(done));
}

bool TransactionRun::StepReleasing() {
  std::optional<absl::Status> released;
  absl::Status stop;
  {
    absl::MutexLock lock(&mu_);
    std::swap(released, released_);
    stop = stop_;
  }
  if (!released) return false;
  locks_ = std::monostate();
  if (returned_) {
    // Whatever else keeps a release from succeeding, the lock was held until the body returned.
    if (!ResultIsError() && IsLoss(ReasonOf(*released))) SetError(*std::move(released));
    Finish();
  } else if (!stop.ok()) {
    End(std::move(stop));
  } else {
    loss_.count = ++losses_;
    Enter(Phase::kRecovering);
    try {
      AskRecovery(loss_);
    } catch (...) {
      // Whatever the handler has answered besides.
      End(ErrorOfCurrentException(
          absl::StrCat("the recovery handler of a transaction on ", ResourcesForMessage()), ""));
    }
  }
  return true;
}

bool TransactionRun::StepRecovering() {
  std::optional<Answer> answer;
  absl::Status stop;
  {
    absl::MutexLock lock(&mu_);
    std::swap(answer, answer_);
    stop = stop_;
  }
  if (!stop.ok()) {
    End(std::move(stop));
    return true;
  }
  if (!answer) return false;
  if (answer->kind == AnswerKind::kReject) {
    absl::Status status = std::move(answer->status).value_or(loss_.status);
    if (status.ok()) status = absl::InternalError("a recovery handler rejected with an OK status");
    End(std::move(status));
    return true;
  }
  if (answer->options) UseOptions(*std::move(answer->options));
  if (answer->kind != AnswerKind::kResume) {
    body_ = nullptr;
    pending_ = nullptr;
    DestroyBody();
    if (answer->kind == AnswerKind::kReplace && !UseReplacement()) {
      End(MakeError(Reason::kInvalidArgument,
                    absl::StrCat("the body of Replace() must not be null, but is null (locking ",
                                 ResourcesForMessage(), ")")));
      return true;
    }
  }
  Acquire();
  return true;
}

void TransactionRun::End(absl::Status error) {
  body_ = nullptr;
  pending_ = nullptr;
  DestroyBody();
  SetError(std::move(error));
  Finish();
}

void TransactionRun::Finish() {
  clock().Cancel(std::exchange(occupation_timer_, 0));
  cancel_callback_.reset();
  absl::AnyInvocable<void()> when_done;
  {
    absl::MutexLock lock(&mu_);
    phase_ = Phase::kDone;
    done_ = true;
    when_done = std::move(when_done_);
  }
  if (when_done != nullptr) TellDone(when_done);
  Unref();
}

}  // namespace latchkey::internal

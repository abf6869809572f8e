// Transactions: bodies that give up their lock at safe points when somebody more urgent wants it,
// and go on, start over, are replaced or fail when it is back.
//
//   latchkey::Transaction<void> Party(Lights& lights, latchkey::TransactionContext& ctx) {
//     for (;;) {
//       lights.NextColour();
//       co_await ctx.Sleep(absl::Seconds(1));    // every co_await is a checkpoint
//     }
//   }
//   latchkey::Locker lights(locks, "lights", hall_lights);              // core/locker.h
//   auto party = lights.Start(Party, latchkey::AlwaysResume());
//
// A body is a function that returns Transaction<T>; it is given the resource and a context. While
// it runs, the lock is held. Every `co_await` in it, and `co_await ctx.CheckPoint()`, is a
// *checkpoint*: the lock is looked at before the await starts and before the body goes on. If the
// lock is wanted by a higher priority, or lost, then
//
//   1. an await that runs is completed first, or given up at once if it is wrapped in
//      ctx.Interruptible(...); the body stays suspended;
//   2. the lock is released, which lets the other one enter;
//   3. the recovery handler is asked what shall become of the body:
//        Resume()         goes on where it stopped, once the lock is held again;
//        Restart()        destroys it and starts it anew, once the lock is held again;
//        Replace(other)   destroys it and starts another body, say a roll-back, likewise;
//        Reject(status)   destroys it and ends the transaction. This is the default.
//      The first three may bring new options for the lock. The handler may answer later.
//
// A body never goes on from a checkpoint without the lock. Each hold has a new fencing token.
// Between checkpoints it holds the lock as everybody does: until its lease ends, or the grace of a
// thief that is allowed to take it by force.
//
// A body's own error, and its return, end the transaction; handlers are not asked. If the lock was
// lost, unnoticed, by the time the body returned, the result is that loss (kAborted) and the value
// is dropped, since another might have been inside. An exception from a body becomes kInternal
// (kException) with its message, and so does one from what makes the body, or from its recovery
// handler. One that starting an await throws is the body's, as in any coroutine.
//
// A body that is destroyed at a checkpoint has already given up the lock: the destructors of its
// variables must not touch the resource. To roll back, use Replace, which holds the lock.
//
// Threads: the body, the handler and callbacks run on the manager's executor, one at a time for
// each transaction, never nested. Awaits resume there also if what they wait for ends elsewhere.
// Lifetime: resources and whatever bodies and handlers refer to must outlive the transaction. The
// manager may go first: what runs goes on, and what has to wait ends with kShutdown.
#ifndef LATCHKEY_CORE_TRANSACTION_H_
#define LATCHKEY_CORE_TRANSACTION_H_

#include <concepts>
#include <coroutine>
#include <cstdint>
#include <exception>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "absl/base/attributes.h"
#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "latchkey/core/acquire_options.h"
#include "latchkey/core/clock.h"
#include "latchkey/core/coroutine.h"
#include "latchkey/core/executor.h"
#include "latchkey/core/internal/contain.h"
#include "latchkey/core/internal/misuse.h"
#include "latchkey/core/internal/ref_counted.h"
#include "latchkey/core/lease.h"
#include "latchkey/core/lock.h"
#include "latchkey/core/lock_error.h"
#include "latchkey/core/lock_set.h"
#include "latchkey/core/scoped_owner.h"

namespace latchkey {

class TransactionContext;
template <typename T>
class Transaction;

// What a transaction of type T ends with: absl::Status for `void` and for absl::Status, else
// absl::StatusOr<T>.
template <typename T>
using TransactionResult =
    std::conditional_t<std::is_void_v<T> || std::is_same_v<T, absl::Status>, absl::Status,
                       absl::StatusOr<internal::NothingForVoid<T>>>;

// ---- Recovery ----

// Why a transaction gave up its lock.
struct Loss {
  // kYieldRequested: in time, for somebody of higher priority. kStolen, kExpired, kLost: too late.
  Reason reason = Reason::kNone;
  // The same as an error that names the resources; kAborted.
  absl::Status status = {};
  // How often this transaction has given up its lock, this time included.
  int count = 0;
};

struct ResumeAction {
  std::optional<AcquireOptions> options;
};
struct RestartAction {
  std::optional<AcquireOptions> options;
};
template <typename Body>
struct ReplaceAction {
  Body body;
  std::optional<AcquireOptions> options;
};
struct RejectAction {
  std::optional<absl::Status> status;
};

// The answers of a recovery handler. New options take the place of the transaction's from there on.
inline ResumeAction Resume(std::optional<AcquireOptions> options = std::nullopt) {
  return {std::move(options)};
}
inline RestartAction Restart(std::optional<AcquireOptions> options = std::nullopt) {
  return {std::move(options)};
}
template <typename Body>
ReplaceAction<std::decay_t<Body>> Replace(Body&& body,
                                          std::optional<AcquireOptions> options = std::nullopt) {
  return {std::forward<Body>(body), std::move(options)};
}
// None: the status of the loss. An OK status is taken for kInternal.
inline RejectAction Reject(std::optional<absl::Status> status = std::nullopt) {
  return {std::move(status)};
}

namespace internal {
enum class AnswerKind { kResume, kRestart, kReplace, kReject };
}  // namespace internal

// A body over the resources R..., as it is kept: called once for each attempt.
template <typename T, typename... R>
using TransactionBody = absl::AnyInvocable<Transaction<T>(R&..., TransactionContext&)>;

// Any of the answers, for a transaction of type T over the resources R.... Handlers that give
// different answers name it as their return type:
//
//   [](const Loss& loss) -> RecoveryAction<void, Lights> {
//     if (loss.count > 3) return Reject();
//     return Restart();
//   }
template <typename T, typename... R>
class RecoveryAction {
 public:
  // NOLINTBEGIN(google-explicit-constructor): it is a sum of these.
  RecoveryAction(ResumeAction action)
      : kind_(internal::AnswerKind::kResume), options_(std::move(action.options)) {}
  RecoveryAction(RestartAction action)
      : kind_(internal::AnswerKind::kRestart), options_(std::move(action.options)) {}
  template <typename Body>
  RecoveryAction(ReplaceAction<Body> action)
      : kind_(internal::AnswerKind::kReplace),
        options_(std::move(action.options)),
        body_(std::move(action.body)) {}
  RecoveryAction(RejectAction action)
      : kind_(internal::AnswerKind::kReject), status_(std::move(action.status)) {}
  // NOLINTEND(google-explicit-constructor)

 private:
  template <typename, typename...>
  friend class Recovery;

  internal::AnswerKind kind_;
  std::optional<AcquireOptions> options_;
  std::optional<absl::Status> status_;
  TransactionBody<T, R...> body_;
};

namespace internal {

class ManagerCore;
class TransactionRun;
template <typename T, typename... R>
class TransactionRunOf;

// Keeps a manager's core alive.
class CoreRef {
 public:
  explicit CoreRef(ManagerCore* core);
  CoreRef(const CoreRef& other) : CoreRef(other.core_) {}
  CoreRef& operator=(const CoreRef&) = delete;
  ~CoreRef();
  ManagerCore* get() const { return core_; }
  ManagerCore* operator->() const { return core_; }

 private:
  ManagerCore* const core_;
};

// An await of a body, as its run sees it. It lives in the body's frame.
class CheckedAwait {
 public:
  // Starts it; `relay` is resumed when it is over. False: it is over already.
  virtual bool Start(std::coroutine_handle<> relay) = 0;
  // Gives it up. True: `relay` will not be resumed.
  virtual bool Cancel() { return false; }
  // Is what it waits for under way already? Then it is completed like an await that runs.
  virtual bool RunsAlready() const { return false; }

 protected:
  ~CheckedAwait() = default;
};

// What a transaction has locked.
using HeldLocks = std::variant<std::monostate, Lock, LockSet>;

// A transaction that was started, without its types. A state machine: whatever happens (a grant, an
// await that is over, a request to yield, an answer) is noted under the mutex, and one thread at a
// time (Drive) makes the steps that follow from it, without the mutex. So neither the body nor the
// handler is ever entered twice or from inside each other.
class TransactionRun : public RefCounted<TransactionRun> {
 public:
  TransactionRun(CoreRef core, std::vector<std::string> resources, AcquireOptions options);
  virtual ~TransactionRun();

  // Begins. It keeps itself alive until it is done.
  void Start();
  // Begins and fails at once.
  void StartWith(absl::Status error);
  void StartWithoutBody();
  void Cancel();
  bool done() const;
  // Waits until it is done. False: that could hang here.
  bool WaitUntilDone();
  // Calls `callback` on the executor when it is done. One at a time.
  void WhenDone(absl::AnyInvocable<void()> callback);
  // The error for a wait that could hang.
  absl::Status WaitError() const;

  // For bodies, on the thread that drives.
  bool MustLeave();
  void Suspended(CheckedAwait* await) { pending_ = await; }
  FencingToken token(std::string_view resource) const;
  FencingToken first_token() const;
  int attempt() const { return attempt_; }
  Clock& clock() const;

  // For the relay.
  void AwaitIsOver();

 protected:
  struct Answer {
    AnswerKind kind = AnswerKind::kReject;
    std::optional<AcquireOptions> options;
    std::optional<absl::Status> status;
  };
  // Hands over the answer to the last AskRecovery.
  void Give(Answer answer);

  // Creates the body; its promise knows this run. Null: it was given an empty one. May throw.
  virtual std::coroutine_handle<> NewBody() = 0;
  virtual void DestroyBody() = 0;
  // Takes the result from the body, which has returned, and destroys it.
  virtual void TakeResult() = 0;
  // The result is an error instead; OK if it is one already.
  virtual void SetError(absl::Status error) = 0;
  virtual bool ResultIsError() const = 0;
  // May throw.
  virtual void AskRecovery(Loss loss) = 0;
  // Takes over the body of a Replace. False: it is null.
  virtual bool UseReplacement() = 0;

 private:
  friend class RefCounted<TransactionRun>;
  enum class Phase { kNew, kAcquiring, kRunning, kAwaiting, kReleasing, kRecovering, kDone };
  class Relay;
  class Ticket;

  // Something has happened: on the executor, drives.
  void Post();
  void Drive();
  // Makes one step. False: there is nothing to do until something happens.
  bool Step();
  bool StepAcquiring();
  bool StepRunning();
  bool StepAwaiting();
  bool StepReleasing();
  bool StepRecovering();
  void Enter(Phase phase);
  // Makes the body. An error if there is none.
  absl::Status MakeBody();
  void Acquire();
  void OnGrant(absl::StatusOr<HeldLocks> locks);
  void OnHeld();
  void ReleaseLocks();
  void End(absl::Status error);
  void Finish();
  void TellDone(absl::AnyInvocable<void()>& callback);
  void Stop(Reason reason, std::string_view why);
  // The executor dropped a task: nothing will run there any more.
  void OnDropped();
  absl::Status stop_status() const;
  LockState HeldState();
  Loss LossNow();
  std::string ResourcesForMessage() const;
  void UseOptions(AcquireOptions options);

  const CoreRef core_;
  const std::vector<std::string> resources_;
  const SharedOwner owner_;  // In force where it was started, and for its body; null: none.

  // Touched only by the thread that drives (and by Start, before).
  AcquireOptions options_;
  HeldLocks locks_;
  std::coroutine_handle<> body_;
  CheckedAwait* pending_ = nullptr;   // Of the body, and not started.
  CheckedAwait* awaiting_ = nullptr;  // Started, and not over.
  bool cancel_tried_ = false;
  bool returned_ = false;  // The body.
  Loss loss_;
  int losses_ = 0;
  int attempt_ = 0;
  std::coroutine_handle<> relay_;
  std::stop_source acquire_stop_;
  struct CancelFn {
    TransactionRun* run;
    void operator()() const { run->Cancel(); }
  };
  std::optional<std::stop_callback<CancelFn>> cancel_callback_;
  Clock::TimerId occupation_timer_ = 0;
  Clock::TimerId execution_timer_ = 0;

  mutable absl::Mutex mu_;
  bool driving_ ABSL_GUARDED_BY(mu_) = false;
  bool again_ ABSL_GUARDED_BY(mu_) = false;
  Phase phase_ ABSL_GUARDED_BY(mu_) = Phase::kNew;
  std::optional<absl::StatusOr<HeldLocks>> granted_ ABSL_GUARDED_BY(mu_);
  bool await_over_ ABSL_GUARDED_BY(mu_) = false;
  std::optional<absl::Status> released_ ABSL_GUARDED_BY(mu_);
  std::optional<Answer> answer_ ABSL_GUARDED_BY(mu_);
  absl::Status stop_ ABSL_GUARDED_BY(mu_);  // Not OK: why it shall end.
  int64_t hold_number_ ABSL_GUARDED_BY(mu_) = 0;
  bool done_ ABSL_GUARDED_BY(mu_) = false;
  absl::AnyInvocable<void()> when_done_ ABSL_GUARDED_BY(mu_);
};

}  // namespace internal

// A recovery that waits for its answer: call it once, now or later, on any thread. A second call,
// and one after it was moved from, end the process with a message. Destroyed without an answer, it
// rejects.
//
//   [&](Recovery<void, Lights> recovery) {
//     queue.push_back(std::move(recovery));       // somebody else decides, later
//   }
template <typename T, typename... R>
class Recovery {
 public:
  Recovery(Recovery&&) noexcept = default;
  Recovery& operator=(Recovery&&) noexcept = delete;
  ~Recovery() {
    if (run_) (*this)(Reject());
  }

  const Loss& loss() const ABSL_ATTRIBUTE_LIFETIME_BOUND { return loss_; }

  void operator()(RecoveryAction<T, R...> action);

 private:
  friend class internal::TransactionRunOf<T, R...>;
  Recovery(internal::RefPtr<internal::TransactionRunOf<T, R...>> run, Loss loss)
      : run_(std::move(run)), loss_(std::move(loss)) {}

  internal::RefPtr<internal::TransactionRunOf<T, R...>> run_;
  Loss loss_;
};

// A handler as it is kept. Made from a function of a Loss that returns an answer, or from one of a
// Recovery, which answers when it likes. It is called on the executor. One that throws ends the
// transaction with kInternal (kException); null rejects.
template <typename T, typename... R>
class RecoveryHandler {
 public:
  template <typename Handler>
  requires std::is_invocable_r_v<RecoveryAction<T, R...>, Handler&, const Loss&>
  // NOLINTNEXTLINE(google-explicit-constructor)
  RecoveryHandler(Handler handler)
      : call_([handler = std::move(handler)](Recovery<T, R...> recovery) mutable {
          const Loss loss = recovery.loss();
          recovery(handler(loss));
        }) {}
  template <typename Handler>
  requires(!std::same_as<Handler, RecoveryHandler> &&
           std::is_invocable_r_v<void, Handler&, Recovery<T, R...>>)
      // NOLINTNEXTLINE(google-explicit-constructor)
      RecoveryHandler(Handler handler)
      : call_(std::move(handler)) {}

  void operator()(Recovery<T, R...> recovery) {
    if (call_ != nullptr) call_(std::move(recovery));
  }

 private:
  absl::AnyInvocable<void(Recovery<T, R...>)> call_;
};

// Handlers that always give the same answer, for any transaction.
inline auto AlwaysResume(std::optional<AcquireOptions> options = std::nullopt) {
  return [options = std::move(options)](const Loss&) { return Resume(options); };
}
inline auto AlwaysRestart(std::optional<AcquireOptions> options = std::nullopt) {
  return [options = std::move(options)](const Loss&) { return Restart(options); };
}
// The default.
inline auto AlwaysReject() {
  return [](const Loss&) { return Reject(); };
}

// ---- Bodies ----

namespace internal {

template <typename A>
concept HasMemberCoAwait = requires(A&& awaitable) {
  std::forward<A>(awaitable).operator co_await();
};
template <typename A>
concept HasFreeCoAwait = requires(A&& awaitable) {
  operator co_await(std::forward<A>(awaitable));
};

template <typename A>
decltype(auto) GetAwaiter(A&& awaitable) {
  if constexpr (HasMemberCoAwait<A>) {
    return std::forward<A>(awaitable).operator co_await();
  } else if constexpr (HasFreeCoAwait<A>) {
    return operator co_await(std::forward<A>(awaitable));
  } else {
    return std::forward<A>(awaitable);
  }
}

template <typename A>
using AwaiterOf = decltype(GetAwaiter(std::declval<A>()));
template <typename A>
using AwaitResult = decltype(std::declval<AwaiterOf<A>&>().await_resume());

template <typename Awaiter>
concept Cancellable = requires(Awaiter& awaiter) {
  { awaiter.await_cancel() } -> std::same_as<bool>;
};

// Lets `coroutine` wait, whatever way of starting the awaiter has. False: it need not.
template <typename Awaiter>
bool StartAwaiter(Awaiter& awaiter, std::coroutine_handle<> coroutine) {
  using Suspended = decltype(awaiter.await_suspend(coroutine));
  if constexpr (std::is_void_v<Suspended>) {
    awaiter.await_suspend(coroutine);
    return true;
  } else if constexpr (std::is_same_v<Suspended, bool>) {
    return awaiter.await_suspend(coroutine);
  } else {
    const std::coroutine_handle<> next = awaiter.await_suspend(coroutine);
    if (next == coroutine) return false;
    RunContained("a coroutine", "", [next] { next.resume(); });
    return true;
  }
}

struct CheckPointRequest {};

// Stays suspended while the lock has to be left, and does nothing else.
class CheckPointAwait final : public CheckedAwait {
 public:
  explicit CheckPointAwait(TransactionRun* run) : run_(run) {}
  bool await_ready() { return !run_->MustLeave(); }
  void await_suspend(std::coroutine_handle<>) { run_->Suspended(this); }
  void await_resume() {}
  bool Start(std::coroutine_handle<> /*relay*/) override { return false; }

 private:
  TransactionRun* run_;
};

// Any other await. `Awaiter` may be a reference, to what lives in the body's frame.
template <typename Awaiter>
class AnyAwait : public CheckedAwait {
 public:
  template <typename A>
  AnyAwait(TransactionRun* run, A&& awaitable)
      : run_(run), awaiter_(GetAwaiter(std::forward<A>(awaitable))) {}

  bool await_ready() {
    if (run_->MustLeave()) return false;
    asked_ = true;
    return awaiter_.await_ready();
  }
  bool RunsAlready() const override {
    return requires { std::remove_reference_t<Awaiter>::kRunsAlready; };
  }
  void await_suspend(std::coroutine_handle<>) { run_->Suspended(this); }
  decltype(auto) await_resume() {
    if (thrown_) std::rethrow_exception(std::exchange(thrown_, nullptr));
    return awaiter_.await_resume();
  }

  bool Start(std::coroutine_handle<> relay) override {
    // What it throws is the body's, and not that of the thread that drives it.
    try {
      if (!asked_ && awaiter_.await_ready()) return false;
      return StartAwaiter(awaiter_, relay);
    } catch (...) {
      thrown_ = std::current_exception();
      return false;
    }
  }

 protected:
  TransactionRun* run_;
  Awaiter awaiter_;
  bool asked_ = false;         // Whether it is ready.
  std::exception_ptr thrown_;  // By its start.
};

// Carries what ctx.Interruptible() wraps to the promise.
template <typename A>
struct InterruptibleRequest {
  A awaitable;  // A reference to what has a name, else the awaitable itself.
};

// An await that is given up when the lock has to be left.
template <typename Awaiter>
class InterruptibleAwait final : public AnyAwait<Awaiter> {
 public:
  using AnyAwait<Awaiter>::AnyAwait;

  bool Start(std::coroutine_handle<> relay) override {
    // The lock was left before this could begin: the body is told, as it would be a moment later.
    if (!this->asked_ && !this->RunsAlready()) {
      interrupted_ = true;
      return false;
    }
    return AnyAwait<Awaiter>::Start(relay);
  }
  bool Cancel() override {
    interrupted_ = this->awaiter_.await_cancel();
    return interrupted_;
  }
  auto await_resume() {
    using T = decltype(this->awaiter_.await_resume());
    if constexpr (std::is_void_v<T>) {
      if (!interrupted_) AnyAwait<Awaiter>::await_resume();
      return !interrupted_;
    } else {
      std::optional<std::decay_t<T>> result;
      if (!interrupted_) result.emplace(AnyAwait<Awaiter>::await_resume());
      return result;
    }
  }

 private:
  bool interrupted_ = false;
};

// An await that nobody needs to wait for.
class DetachedAwait {
 public:
  virtual ~DetachedAwait() = default;
  virtual bool Ready() = 0;
  virtual bool Start(std::coroutine_handle<> coroutine) = 0;
  virtual void Finish() = 0;
  // Instead of Finish; also if that threw.
  virtual void Fail(std::exception_ptr why) = 0;
};
// Awaits it in a coroutine of its own, then finishes it.
void RunDetached(std::unique_ptr<DetachedAwait> await);

// What came of such an await: what it threw, or its value.
template <typename T>
using DetachedResult = std::variant<std::exception_ptr, NothingForVoid<T>>;

// Starts an awaitable that cannot be cancelled in a coroutine of its own, where it can be left.
template <typename T, typename A>
struct StartDetached {
  A awaitable;

  void operator()(Completion<DetachedResult<T>> done) {
    class Await final : public DetachedAwait {
     public:
      Await(A awaitable, Completion<DetachedResult<T>> done)
          : awaitable_(std::move(awaitable)),
            awaiter_(GetAwaiter(std::move(awaitable_))),
            done_(std::move(done)) {}
      bool Ready() override { return awaiter_.await_ready(); }
      bool Start(std::coroutine_handle<> coroutine) override {
        return StartAwaiter(awaiter_, coroutine);
      }
      void Finish() override {
        if constexpr (std::is_void_v<T>) {
          awaiter_.await_resume();
          done_(std::in_place_index<1>);
        } else {
          done_(std::in_place_index<1>, awaiter_.await_resume());
        }
      }
      void Fail(std::exception_ptr why) override { done_(std::in_place_index<0>, std::move(why)); }

     private:
      A awaitable_;
      AwaiterOf<A> awaiter_;
      Completion<DetachedResult<T>> done_;
    };
    RunDetached(std::make_unique<Await>(std::move(awaitable), std::move(done)));
  }
};

// Waits for that.
template <typename T, typename Start>
class DetachedAwaiter : public CallbackAwaiter<DetachedResult<T>, Start> {
 public:
  using Base = CallbackAwaiter<DetachedResult<T>, Start>;
  using Base::Base;

  T await_resume() {
    DetachedResult<T> result = Base::await_resume();
    if (result.index() == 0) std::rethrow_exception(std::get<0>(result));
    if constexpr (!std::is_void_v<T>) return std::get<1>(std::move(result));
  }
};

}  // namespace internal

// What a body is told about its transaction. It lives as long as the transaction and must be used
// by its body alone.
class TransactionContext {
 public:
  explicit TransactionContext(internal::TransactionRun* run) : run_(run) {}
  TransactionContext(const TransactionContext&) = delete;
  TransactionContext& operator=(const TransactionContext&) = delete;

  // The number to pass along with every write to the resource. It changes at checkpoints: read it
  // anew after each await. With several resources, that of the first, or of the one named; 0 if it
  // is none of them.
  FencingToken fencing_token() const { return run_->first_token(); }
  FencingToken fencing_token(std::string_view resource) const { return run_->token(resource); }

  // 1 for the first body, and one more for each Restart and Replace. Resume does not count.
  int attempt() const { return run_->attempt(); }

  // Would a checkpoint give up the lock now? For loops that compute for long.
  bool ShouldYield() const { return run_->MustLeave(); }

  // `co_await ctx.CheckPoint()`: a checkpoint and nothing else. It lets nobody else run.
  internal::CheckPointRequest CheckPoint() const { return {}; }

  // `co_await ctx.Sleep(d)`: waits by the manager's clock, with the lock held.
  SleepAwaiter Sleep(absl::Duration duration) const ABSL_ATTRIBUTE_LIFETIME_BOUND {
    return SleepFor(duration, run_->clock());  // The run takes it to its executor.
  }

  // `co_await ctx.Interruptible(awaitable)`: the same await, but if the lock has to be left
  // meanwhile it is given up at once. Its value is then none: an empty std::optional, or false
  // where `co_await awaitable` has no value. The body sees that only if it is resumed.
  //
  // Locks, sleeps and callbacks (coroutine.h) are cancelled; a started transaction is told to
  // cancel, and waited for until its next checkpoint. Anything else, which must then be passed as a
  // temporary, goes on behind the scenes and is forgotten: it must not refer to the body's
  // variables.
  template <typename A>
  auto Interruptible(A& awaitable ABSL_ATTRIBUTE_LIFETIME_BOUND) const {
    using Awaiter = std::remove_reference_t<internal::AwaiterOf<A&>>;
    static_assert(internal::Cancellable<Awaiter>, "pass it with std::move");
    return internal::InterruptibleRequest<A&>{awaitable};
  }
  template <typename A>
  requires(!std::is_lvalue_reference_v<A>) auto Interruptible(A&& awaitable) const {
    using Awaiter = std::remove_reference_t<internal::AwaiterOf<A>>;
    if constexpr (internal::Cancellable<Awaiter>) {
      // What cannot be moved must be awaited in the expression that makes it.
      using Kept = std::conditional_t<std::is_move_constructible_v<A>, A, A&&>;
      return internal::InterruptibleRequest<Kept>{std::forward<A>(awaitable)};
    } else {
      using T = std::decay_t<internal::AwaitResult<A>>;
      using Start = internal::StartDetached<T, std::decay_t<A>>;
      using Detached = internal::DetachedAwaiter<T, Start>;
      return internal::InterruptibleRequest<Detached>{
          Detached(Start{std::forward<A>(awaitable)}, &InlineExecutor())};
    }
  }

 private:
  internal::TransactionRun* const run_;
};

namespace internal {

absl::Status StatusOfCurrentException();

class TransactionPromiseBase {
 public:
  std::suspend_always initial_suspend() noexcept { return {}; }
  std::suspend_always final_suspend() noexcept { return {}; }

  CheckPointAwait await_transform(CheckPointRequest) { return CheckPointAwait(run); }
  template <typename A>
  auto await_transform(InterruptibleRequest<A>&& request) {
    return InterruptibleAwait<AwaiterOf<A>>(run, std::forward<A>(request.awaitable));
  }
  template <typename A>
  auto await_transform(A&& awaitable) {
    return AnyAwait<AwaiterOf<A>>(run, std::forward<A>(awaitable));
  }

  TransactionRun* run = nullptr;
};

template <typename T>
class TransactionPromise : public TransactionPromiseBase {
 public:
  void return_value(TransactionResult<T> value) { result.emplace(std::move(value)); }
  void unhandled_exception() { result.emplace(StatusOfCurrentException()); }
  std::optional<TransactionResult<T>> result;
};

template <>
class TransactionPromise<void> : public TransactionPromiseBase {
 public:
  void return_void() { result.emplace(); }
  void unhandled_exception() { result.emplace(StatusOfCurrentException()); }
  std::optional<absl::Status> result;
};

}  // namespace internal

// The coroutine type of a body. T is what `co_return` takes; where there is a value to return, an
// absl::Status or absl::StatusOr<T> may be returned as well. Made by calling the body, started by a
// Locker.
template <typename T>
class [[nodiscard]] Transaction {
 public:
  struct promise_type : internal::TransactionPromise<T> {
    Transaction get_return_object() {
      return Transaction(std::coroutine_handle<promise_type>::from_promise(*this));
    }
  };

  Transaction() = default;
  Transaction(Transaction&& other) noexcept : body_(std::exchange(other.body_, nullptr)) {}
  Transaction& operator=(Transaction&& other) noexcept {
    std::swap(body_, other.body_);
    return *this;
  }
  ~Transaction() {
    if (body_) body_.destroy();
  }

 private:
  template <typename, typename...>
  friend class internal::TransactionRunOf;
  explicit Transaction(std::coroutine_handle<promise_type> body) : body_(body) {}
  std::coroutine_handle<promise_type> body_;
};

namespace internal {

// The run of a transaction whose result is T, whatever its resources are.
template <typename T>
class TransactionRunFor : public TransactionRun {
 public:
  using TransactionRun::TransactionRun;

  // When done, once.
  TransactionResult<T> Take() {
    if (std::exchange(taken_, true)) {
      return MakeError(Reason::kNotHeld, "the result of this transaction was already taken");
    }
    // Straight from its place to the caller: of a variable on the way g++ 12 would say, in the
    // caller's code, that it may be uninitialized.
    return *std::move(result_);
  }

 protected:
  std::optional<TransactionResult<T>> result_;

 private:
  bool taken_ = false;
};

template <typename T, typename... R>
class TransactionRunOf final : public TransactionRunFor<T> {
 public:
  TransactionRunOf(CoreRef core, std::vector<std::string> names, AcquireOptions options,
                   std::tuple<R*...> resources, TransactionBody<T, R...> body,
                   RecoveryHandler<T, R...> handler)
      : TransactionRunFor<T>(std::move(core), std::move(names), std::move(options)),
        resources_(resources),
        make_(std::move(body)),
        handler_(std::move(handler)),
        context_(this) {}

  void GiveAction(AnswerKind kind, std::optional<AcquireOptions> options,
                  std::optional<absl::Status> status, TransactionBody<T, R...> body) {
    // One answer for each question, so nobody else touches this until it is given.
    replacement_ = std::move(body);
    this->Give({kind, std::move(options), std::move(status)});
  }

 private:
  std::coroutine_handle<> NewBody() override {
    transaction_ =
        std::apply([this](R*... resource) { return make_(*resource..., context_); }, resources_);
    if (transaction_.body_) transaction_.body_.promise().run = this;
    return transaction_.body_;
  }
  void DestroyBody() override { transaction_ = Transaction<T>(); }
  void TakeResult() override {
    this->result_ = std::move(transaction_.body_.promise().result);
    DestroyBody();
  }
  void SetError(absl::Status error) override { this->result_.emplace(std::move(error)); }
  bool ResultIsError() const override { return !this->result_->ok(); }
  void AskRecovery(Loss loss) override {
    handler_(Recovery<T, R...>(RefPtr<TransactionRunOf>::Share(this), std::move(loss)));
  }
  bool UseReplacement() override {
    make_ = std::move(replacement_);
    return make_ != nullptr;
  }

  const std::tuple<R*...> resources_;
  TransactionBody<T, R...> make_;
  TransactionBody<T, R...> replacement_;
  RecoveryHandler<T, R...> handler_;
  TransactionContext context_;
  Transaction<T> transaction_;
};

}  // namespace internal

template <typename T, typename... R>
void Recovery<T, R...>::operator()(RecoveryAction<T, R...> action) {
  const auto run = std::move(run_);
  if (!run) internal::DieOfMisuse("a Recovery was called twice, or after it was moved from");
  run->GiveAction(action.kind_, std::move(action.options_), std::move(action.status_),
                  std::move(action.body_));
}

// ---- Handles ----

// A transaction that was started. Dropping the handle lets the transaction go on. The result can be
// taken once, in one of the three ways; taken again it is kFailedPrecondition.
//
// Thread safety: Cancel and done may be called on any thread; the rest by one at a time.
template <typename T>
class [[nodiscard]] TransactionHandle {
 public:
  explicit TransactionHandle(internal::RefPtr<internal::TransactionRunFor<T>> run)
      : run_(std::move(run)) {}
  // Copies are handles of the same transaction. Moving copies: there is no handle of none.
  TransactionHandle(const TransactionHandle&) = default;
  TransactionHandle& operator=(const TransactionHandle&) = default;

  // Whether it has ended.
  bool done() const { return run_->done(); }

  // Asks it to end with kCancelled: at its next checkpoint, or at once if it waits for the lock,
  // for the answer of its recovery handler, or inside Interruptible. The handler is not asked. A
  // result that comes first stands.
  void Cancel() { run_->Cancel(); }

  // Waits for the end. kFailedPrecondition inside a callback of the library.
  TransactionResult<T> Wait() {
    if (!run_->WaitUntilDone()) return run_->WaitError();
    return run_->Take();
  }

  // Calls `callback` once with the result, on the executor, possibly before this returns. Replaces
  // an earlier callback; null: removes it. What it throws is logged.
  void OnDone(absl::AnyInvocable<void(TransactionResult<T>)> callback) {
    if (callback == nullptr) {
      run_->WhenDone(nullptr);
      return;
    }
    run_->WhenDone(
        [run = run_.get(), callback = std::move(callback)]() mutable { callback(run->Take()); });
  }

  // `co_await handle`: its result. In a body, this is one await: to give up an inner transaction
  // when the outer lock is wanted, use ctx.Interruptible(handle). A coroutine that is destroyed
  // here leaves the transaction alone.
  class Awaiter {
   public:
    // For bodies: see CheckedAwait::RunsAlready.
    static constexpr bool kRunsAlready = true;
    explicit Awaiter(internal::RefPtr<internal::TransactionRunFor<T>> run) : run_(std::move(run)) {}
    // One that was moved from is another awaiter of the same transaction.
    Awaiter(Awaiter&& other) noexcept : run_(other.run_), wait_(std::move(other.wait_)) {}
    Awaiter& operator=(Awaiter&&) = delete;
    ~Awaiter() {
      if (wait_) wait_->Abandon();
    }
    bool await_ready() const { return run_->done(); }
    bool await_suspend(std::coroutine_handle<> coroutine) {
      const auto wait = internal::RefPtr<Wait>::Adopt(new Wait);
      wait->set_coroutine(coroutine);
      wait_ = wait;
      run_->WhenDone([wait] {
        if (wait->End()) wait->Resume();
      });
      return wait->Suspend();
    }
    TransactionResult<T> await_resume() {
      wait_ = {};
      return run_->Take();
    }
    // Asks the transaction to cancel; it is still waited for.
    bool await_cancel() {
      run_->Cancel();
      return false;
    }

   private:
    using Wait = internal::ValueSuspension<internal::Nothing>;
    internal::RefPtr<internal::TransactionRunFor<T>> run_;
    internal::RefPtr<Wait> wait_;
  };
  Awaiter operator co_await() const { return Awaiter(run_); }

 private:
  internal::RefPtr<internal::TransactionRunFor<T>> run_;
};

}  // namespace latchkey

#endif  // LATCHKEY_CORE_TRANSACTION_H_

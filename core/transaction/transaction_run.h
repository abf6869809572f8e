// TransactionRun is a transaction that was started, without its types. See transaction.h.
#ifndef LATCHKEY_CORE_TRANSACTION_TRANSACTION_RUN_H_
#define LATCHKEY_CORE_TRANSACTION_TRANSACTION_RUN_H_

#include <coroutine>
#include <cstdint>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "latchkey/core/base/clock.h"
#include "latchkey/core/base/lease.h"
#include "latchkey/core/base/lock_error.h"
#include "latchkey/core/base/ref_counted.h"
#include "latchkey/core/base/scoped_owner.h"
#include "latchkey/core/base/strand.h"
#include "latchkey/core/lock/lock.h"
#include "latchkey/core/lock/lock_set.h"
#include "latchkey/core/policy/acquire_options.h"
#include "latchkey/core/transaction/recovery.h"

namespace latchkey {

namespace internal {

class ManagerCore;

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
// time, which has the strand, makes the steps that follow from it (Drive), without the mutex. So
// neither the body nor the handler is ever entered twice or from inside each other.
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
  friend class Ticket<TransactionRun>;
  enum class Phase { kNew, kAcquiring, kRunning, kAwaiting, kReleasing, kRecovering, kDone };
  class Relay;

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

  Strand strand_;

  // Touched only by the thread that has the strand.
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

}  // namespace latchkey

#endif  // LATCHKEY_CORE_TRANSACTION_TRANSACTION_RUN_H_

// Transactions: bodies that give up their lock at safe points when somebody more urgent wants it,
// and go on, start over, are replaced or fail when it is back.
//
//   latchkey::Transaction<void> Party(Lights& lights, latchkey::TransactionContext& ctx) {
//     for (;;) {
//       lights.NextColour();
//       co_await ctx.Sleep(absl::Seconds(1));    // every co_await is a checkpoint
//     }
//   }
//   latchkey::Locker lights(locks, "lights", hall_lights);              // locker.h
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
#ifndef LATCHKEY_CORE_TRANSACTION_TRANSACTION_H_
#define LATCHKEY_CORE_TRANSACTION_TRANSACTION_H_

#include <coroutine>
#include <optional>
#include <string_view>
#include <type_traits>
#include <utility>

#include "absl/base/attributes.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "latchkey/core/base/lease.h"
#include "latchkey/core/base/ref_counted.h"
#include "latchkey/core/coroutine.h"
#include "latchkey/core/transaction/recovery.h"

namespace latchkey {

namespace internal {
class TransactionRun;
struct CheckPointRequest {};
template <typename T>
class TransactionPromise;
template <typename T>
class TransactionRunFor;
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
  FencingToken fencing_token() const;
  FencingToken fencing_token(std::string_view resource) const;

  // 1 for the first body, and one more for each Restart and Replace. Resume does not count.
  int attempt() const;

  // Would a checkpoint give up the lock now? For loops that compute for long.
  bool ShouldYield() const;

  // `co_await ctx.CheckPoint()`: a checkpoint and nothing else. It lets nobody else run.
  internal::CheckPointRequest CheckPoint() const { return {}; }

  // `co_await ctx.Sleep(d)`: waits by the manager's clock, with the lock held.
  SleepAwaiter Sleep(absl::Duration duration) const ABSL_ATTRIBUTE_LIFETIME_BOUND;

  // `co_await ctx.Interruptible(awaitable)`: the same await, but if the lock has to be left
  // meanwhile it is given up at once. Its value is then none: an empty std::optional, or false
  // where `co_await awaitable` has no value. The body sees that only if it is resumed.
  //
  // Locks, sleeps and callbacks (coroutine.h) are cancelled; a started transaction is told to
  // cancel, and waited for until its next checkpoint. Anything else, which must then be passed as a
  // temporary, goes on behind the scenes and is forgotten: it must not refer to the body's
  // variables.
  template <typename A>
  auto Interruptible(A& awaitable ABSL_ATTRIBUTE_LIFETIME_BOUND) const;
  template <typename A>
  requires(!std::is_lvalue_reference_v<A>) auto Interruptible(A&& awaitable) const;

 private:
  internal::TransactionRun* const run_;
};

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

// What a transaction of type T ends with: absl::Status for `void` and for absl::Status, else
// absl::StatusOr<T>.
template <typename T>
using TransactionResult =
    std::conditional_t<std::is_void_v<T> || std::is_same_v<T, absl::Status>, absl::Status,
                       absl::StatusOr<internal::NothingForVoid<T>>>;

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

// How it works.
#include "latchkey/core/transaction/transaction_run_of.h"  // IWYU pragma: export

#endif  // LATCHKEY_CORE_TRANSACTION_TRANSACTION_H_

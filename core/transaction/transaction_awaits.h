// The awaits of a body, as its run sees them. See transaction.h.
#ifndef LATCHKEY_CORE_TRANSACTION_TRANSACTION_AWAITS_H_
#define LATCHKEY_CORE_TRANSACTION_TRANSACTION_AWAITS_H_

#include <concepts>
#include <coroutine>
#include <exception>
#include <memory>
#include <optional>
#include <type_traits>
#include <utility>
#include <variant>

#include "latchkey/core/base/contain.h"
#include "latchkey/core/base/executor.h"
#include "latchkey/core/coroutine.h"
#include "latchkey/core/transaction/transaction_run.h"

namespace latchkey {

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

}  // namespace latchkey

#endif  // LATCHKEY_CORE_TRANSACTION_TRANSACTION_AWAITS_H_

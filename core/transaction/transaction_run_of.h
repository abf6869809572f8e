// The run of a transaction with its types, and what transaction.h leaves to be defined.
#ifndef LATCHKEY_CORE_TRANSACTION_TRANSACTION_RUN_OF_H_
#define LATCHKEY_CORE_TRANSACTION_TRANSACTION_RUN_OF_H_

#include <coroutine>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "latchkey/core/base/executor.h"
#include "latchkey/core/base/lock_error.h"
#include "latchkey/core/base/misuse.h"
#include "latchkey/core/base/ref_counted.h"
#include "latchkey/core/policy/acquire_options.h"
#include "latchkey/core/transaction/recovery.h"
#include "latchkey/core/transaction/transaction.h"
#include "latchkey/core/transaction/transaction_awaits.h"
#include "latchkey/core/transaction/transaction_run.h"

namespace latchkey {

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

// ---- TransactionContext ----

inline FencingToken TransactionContext::fencing_token() const { return run_->first_token(); }

inline FencingToken TransactionContext::fencing_token(std::string_view resource) const {
  return run_->token(resource);
}

inline int TransactionContext::attempt() const { return run_->attempt(); }

inline bool TransactionContext::ShouldYield() const { return run_->MustLeave(); }

inline SleepAwaiter TransactionContext::Sleep(absl::Duration duration) const {
  return SleepFor(duration, run_->clock());  // The run takes it to its executor.
}

template <typename A>
auto TransactionContext::Interruptible(A& awaitable) const {
  using Awaiter = std::remove_reference_t<internal::AwaiterOf<A&>>;
  static_assert(internal::Cancellable<Awaiter>, "pass it with std::move");
  return internal::InterruptibleRequest<A&>{awaitable};
}
template <typename A>
requires(!std::is_lvalue_reference_v<A>) auto TransactionContext::Interruptible(
    A&& awaitable) const {
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

}  // namespace latchkey

#endif  // LATCHKEY_CORE_TRANSACTION_TRANSACTION_RUN_OF_H_

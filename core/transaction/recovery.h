// What becomes of a transaction that has given up its lock: the answers, and who gives them. See
// transaction.h.
#ifndef LATCHKEY_CORE_TRANSACTION_RECOVERY_H_
#define LATCHKEY_CORE_TRANSACTION_RECOVERY_H_

#include <concepts>
#include <optional>
#include <type_traits>
#include <utility>

#include "absl/base/attributes.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "latchkey/core/base/lock_error.h"
#include "latchkey/core/base/ref_counted.h"
#include "latchkey/core/policy/acquire_options.h"

namespace latchkey {

class TransactionContext;
template <typename T>
class Transaction;

namespace internal {
template <typename T, typename... R>
class TransactionRunOf;
}  // namespace internal

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

}  // namespace latchkey

#endif  // LATCHKEY_CORE_TRANSACTION_RECOVERY_H_

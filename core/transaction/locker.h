// Locker binds a resource's name, the object that the lock protects, and default options, so that
// transactions on it are started with one call:
//
//   latchkey::Locker lights(locks, "lights", hall_lights, {.owner = "party"});
//   latchkey::TransactionHandle<void> party = lights.Start(Party, latchkey::AlwaysResume());
//   lights.With({.owner = "alarm", .priority = 100}).Start(Alarm);
//
// Several lockers that are joined lock all of their resources as one (LockManager::AcquireAll), and
// give the body one object for each; a joined locker can be joined again:
//
//   latchkey::Locker both = latchkey::Join(kitchen, bedroom, {.priority = 100});
//   both.Start([](Light& kitchen, Light& bedroom, latchkey::TransactionContext& ctx)
//                  -> latchkey::Transaction<void> { ... });
//
// core/transaction.h says what bodies and recovery handlers are.
//
// Thread safety: a Locker is a value; Start may be called from any thread.
// Lifetime: the objects must outlive the transactions on them. The manager need not outlive the
// locker: what is started after its end fails with kShutdown.
#ifndef LATCHKEY_CORE_TRANSACTION_LOCKER_H_
#define LATCHKEY_CORE_TRANSACTION_LOCKER_H_

#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/base/attributes.h"
#include "latchkey/core/base/lock_error.h"
#include "latchkey/core/base/ref_counted.h"
#include "latchkey/core/lock_manager.h"
#include "latchkey/core/policy/acquire_options.h"
#include "latchkey/core/transaction/transaction.h"

namespace latchkey {

namespace internal {

// The T of the Transaction<T> that a body returns.
template <typename T>
struct TransactionTraits;
template <typename T>
struct TransactionTraits<Transaction<T>> {
  using Type = T;
};
template <typename Body, typename... R>
using BodyType =
    typename TransactionTraits<std::invoke_result_t<Body&, R&..., TransactionContext&>>::Type;

}  // namespace internal

template <typename... R>
class Locker {
 public:
  // Over one resource.
  template <typename Only>
  requires std::is_same_v<std::tuple<Only>, std::tuple<R...>> Locker(
      LockManager& locks, std::string name, Only& resource ABSL_ATTRIBUTE_LIFETIME_BOUND,
      AcquireOptions defaults = {})
      : core_(locks.core_),
        names_({std::move(name)}),
        resources_(&resource),
        options_(std::move(defaults)) {}

  // Moving copies: there is no locker of nothing.
  Locker(const Locker&) = default;
  Locker& operator=(const Locker&) = delete;

  // The same with other options.
  Locker With(AcquireOptions options) const {
    Locker other = *this;
    other.options_ = std::move(options);
    return other;
  }

  const AcquireOptions& options() const ABSL_ATTRIBUTE_LIFETIME_BOUND { return options_; }

  // Starts a transaction: waits for the lock, runs `body` under it, gives it back. `recovery` is
  // asked when the lock was given up on the way; by default the transaction then fails.
  //
  // `body` is a function of (R&..., TransactionContext&) that returns Transaction<T>. It is kept
  // for as long as the transaction runs, and so are its captures. In an expression that contains
  // `co_await`, give a lambda with captures a name first: g++ 12 would destroy them twice.
  //
  // Errors, in the result: those of LockManager::Acquire; the status of a rejection;
  // kExecutionTimeout (max_execution_time, counted for each hold), kOccupationTimeout
  // (max_occupation_time, counted from here to the end), kCancelled (the handle's Cancel, or
  // options.cancel), after which the body is not resumed from its next checkpoint;
  // kInvalidArgument: joined lockers of different managers, or a null body.
  template <typename Body>
  auto Start(Body body) const {
    return Start(std::move(body), AlwaysReject());
  }
  template <typename Body, typename Handler>
  auto Start(Body body, Handler recovery) const {
    using T = internal::BodyType<Body, R...>;
    using Run = internal::TransactionRunOf<T, R...>;
    TransactionBody<T, R...> kept(std::move(body));
    const bool runs = kept != nullptr;
    const auto run =
        internal::RefPtr<Run>::Adopt(new Run(core_, names_, options_, resources_, std::move(kept),
                                             RecoveryHandler<T, R...>(std::move(recovery))));
    if (!one_manager_) {
      run->StartWith(
          MakeError(Reason::kInvalidArgument,
                    "joined lockers must be of one lock manager, but are of different ones"));
    } else if (!runs) {
      run->StartWithoutBody();
    } else {
      run->Start();
    }
    return TransactionHandle<T>(internal::RefPtr<internal::TransactionRunFor<T>>::Share(run.get()));
  }

 private:
  template <typename...>
  friend class Locker;
  template <typename... A, typename... B>
  friend Locker<A..., B...> Join(const Locker<A...>& a, const Locker<B...>& b,
                                 AcquireOptions options);

  struct Joined {};
  template <typename A, typename B>
  Locker(Joined, const A& a, const B& b, AcquireOptions options)
      : core_(a.core_),
        names_(a.names_),
        resources_(std::tuple_cat(a.resources_, b.resources_)),
        options_(std::move(options)),
        one_manager_(a.one_manager_ && b.one_manager_ && a.core_.get() == b.core_.get()) {
    names_.insert(names_.end(), b.names_.begin(), b.names_.end());
  }

  internal::CoreRef core_;
  std::vector<std::string> names_;
  std::tuple<R*...> resources_;
  AcquireOptions options_;
  bool one_manager_ = true;
};

template <typename Only>
Locker(LockManager&, std::string, Only&, AcquireOptions) -> Locker<Only>;
template <typename Only>
Locker(LockManager&, std::string, Only&) -> Locker<Only>;

// A locker over the resources of both, first those of `a`. Its options are these, not theirs.
template <typename... A, typename... B>
Locker<A..., B...> Join(const Locker<A...>& a, const Locker<B...>& b, AcquireOptions options = {}) {
  using Both = Locker<A..., B...>;
  return Both(typename Both::Joined(), a, b, std::move(options));
}

}  // namespace latchkey

#endif  // LATCHKEY_CORE_TRANSACTION_LOCKER_H_

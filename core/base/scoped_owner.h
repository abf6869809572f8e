// ScopedOwner gives a task an owner that all its requests inherit, so that what it calls may enter
// a lock again that it holds already, without handing an owner's name through every function.
//
//   void Task() {
//     ScopedOwner me;                        // or ScopedOwner me("billing");
//     absl::StatusOr<Lock> lock = locks.Acquire("orders/42");
//     UpdateTotals();                        // locks "orders/42" again: enters
//   }
//
// A request inherits it if its `owner` is empty. So do the callbacks of that request, of the locks
// that it yields, and the bodies of Run, RunAsync and transactions: they run with the owner that
// was in force when they were handed over, on whatever thread that is. A callback that was handed
// over without an owner has none, whoever runs it. For tasks that you hand to threads of your own
// there is BindOwner().
//
// Run, RunAll and their asynchronous forms with an `owner` of their own put that in force for their
// body, as if it began with a ScopedOwner.
//
// A ScopedOwner belongs to its thread's stack, so it must not span a `co_await`: the coroutine may
// go on on another thread, and the owner would stay in force on this one. Make it where the
// coroutine is started instead:
//
//   ScopedOwner me("billing");
//   BillAll(locks);  // a coroutine; it keeps the owner, on whatever thread its awaits resume it
//
// Every await of coroutine.h hands the owner on; others may not. Within a body one can always name
// the owner: `co_await locks.CoAcquire(key, {.owner = "billing"})`. A debug build stops at a
// ScopedOwner that is destroyed out of turn.
//
// An owner is taken for one task: two threads that share one both enter what either holds.
//
// Thread safety: it belongs to the thread that made it, and goes before what was in force earlier
// on that thread, in the order of a stack.
#ifndef LATCHKEY_CORE_BASE_SCOPED_OWNER_H_
#define LATCHKEY_CORE_BASE_SCOPED_OWNER_H_

#include <cassert>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "absl/base/attributes.h"
#include "absl/functional/any_invocable.h"

namespace latchkey {

namespace internal {

// The owner in force on this thread; null: none.
using SharedOwner = std::shared_ptr<const std::string>;
inline thread_local constinit const SharedOwner* current_owner = nullptr;

// Puts an owner, or none, in force for the time of its life.
class OwnerInForce {
 public:
  // Borrows `owner`, which must outlive this.
  explicit OwnerInForce(const SharedOwner* owner ABSL_ATTRIBUTE_LIFETIME_BOUND)
      : owner_(owner), before_(std::exchange(current_owner, owner)) {}
  ~OwnerInForce() {
    assert(current_owner == owner_ && "an owner ends out of turn: does it span a co_await?");
    current_owner = before_;
  }
  OwnerInForce(const OwnerInForce&) = delete;
  OwnerInForce& operator=(const OwnerInForce&) = delete;

 private:
  [[maybe_unused]] const SharedOwner* const owner_;
  const SharedOwner* const before_;
};

// Puts a named owner in force; without a name, what is in force stays.
class NamedOwnerInForce {
 public:
  explicit NamedOwnerInForce(std::string_view name)
      : owner_(name.empty() ? nullptr : std::make_shared<const std::string>(name)),
        in_force_(owner_ == nullptr ? current_owner : &owner_) {}

 private:
  const SharedOwner owner_;
  const OwnerInForce in_force_;
};

// The callback, which runs with the owner that is in force now.
template <typename... Args>
absl::AnyInvocable<void(Args...)> WithOwner(absl::AnyInvocable<void(Args...)> callback) {
  if (current_owner == nullptr || callback == nullptr) return callback;
  return [owner = *current_owner, callback = std::move(callback)](Args... args) mutable {
    const OwnerInForce in_force(&owner);
    callback(std::forward<Args>(args)...);
  };
}

}  // namespace internal

class [[nodiscard]] ScopedOwner {
 public:
  // A fresh owner, unlike any other.
  ScopedOwner();
  // `owner` is any bytes; empty: none, so that nothing is inherited.
  explicit ScopedOwner(std::string owner);
  ScopedOwner(const ScopedOwner&) = delete;
  ScopedOwner& operator=(const ScopedOwner&) = delete;

  // The owner's name.
  const std::string& name() const ABSL_ATTRIBUTE_LIFETIME_BOUND { return *owner_; }

  // The owner that a request made here would inherit; empty: none.
  static std::string_view Current() {
    return internal::current_owner == nullptr ? std::string_view() : **internal::current_owner;
  }

 private:
  const internal::SharedOwner owner_;
  const internal::OwnerInForce in_force_;
};

// The same task, which will run with the owner that is in force now.
inline absl::AnyInvocable<void()> BindOwner(absl::AnyInvocable<void()> task) {
  return internal::WithOwner(std::move(task));
}

}  // namespace latchkey

#endif  // LATCHKEY_CORE_BASE_SCOPED_OWNER_H_

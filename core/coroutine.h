// Awaitables: locks, timers and callbacks for coroutines of any type.
//
//   Task Bill(latchkey::LockManager& locks) {            // any coroutine type
//     absl::StatusOr<latchkey::Lock> lock =
//         co_await locks.CoAcquire("orders/42", {.owner = "billing", .priority = 5});
//     if (!lock.ok()) co_return;
//     Reply reply = co_await latchkey::AwaitCallback<Reply>(
//         [&](latchkey::Completion<Reply> done) { server.Ask(question, std::move(done)); });
//   }                                                     // ~Lock releases
//
// Resumption: at once, without suspending, if there is nothing to wait for; else on the executor
// (the manager's for locks), which by default is the thread that brings the news, through a
// trampoline: a chain of 100,000 resumptions uses constant stack at every level of optimisation.
// CoAcquire makes no allocation unless it has to wait.
//
// Owners: a coroutine goes on with the owner (scoped_owner.h) that was in force when it awaited, so
// one that is started under a ScopedOwner keeps that owner to its end. A ScopedOwner in its own
// body must not span a co_await.
//
// Cancellation: destroying a coroutine that waits here ends the wait; whatever was granted
// meanwhile is given back. As with every coroutine, it must not be destroyed while another thread
// resumes it: destroy it on the thread where it would be resumed, or end the wait from anywhere
// with `options.cancel`, which resumes it with kCancelled. If the executor shuts down and drops the
// task that was to resume it, it stays suspended until it is destroyed.
//
// Thread safety: an awaiter belongs to one coroutine. A Completion may be called on any thread.
// Lifetime: an awaiter may be kept and awaited later. It copies what was a temporary when it was
// made: the resource's name, and what the options name. It borrows what has a name of its own (a
// string, an AcquireOptions) or is a view (a string_view, a `const char*`): those, and the manager,
// must live until it has been awaited.
#ifndef LATCHKEY_CORE_COROUTINE_H_
#define LATCHKEY_CORE_COROUTINE_H_

#include <array>
#include <atomic>
#include <concepts>
#include <coroutine>
#include <cstddef>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/base/attributes.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "latchkey/core/base/callback_scope.h"
#include "latchkey/core/base/clock.h"
#include "latchkey/core/base/contain.h"
#include "latchkey/core/base/executor.h"
#include "latchkey/core/base/lease.h"
#include "latchkey/core/base/misuse.h"
#include "latchkey/core/base/ref_counted.h"
#include "latchkey/core/base/scoped_owner.h"
#include "latchkey/core/lock/lock.h"
#include "latchkey/core/lock/lock_set.h"
#include "latchkey/core/policy/acquire_options.h"

namespace latchkey {

namespace internal {
class ManagerCore;
struct SetWait;
struct Waiter;
}  // namespace internal

// What follows borrows for one expression: it is made where it is passed, and neither copied nor
// moved, since what it borrows may be a temporary of that expression.

// A value of type T that is somewhere else: made from anything that converts to T, and copied from
// there when it is wanted, which must be before the expression ends.
template <typename T>
class Borrowed {
 public:
  // A T made from no arguments.
  constexpr Borrowed() = default;
  Borrowed(const Borrowed&) = delete;
  Borrowed& operator=(const Borrowed&) = delete;
  template <typename From>
  requires(std::convertible_to<const From&, T> && !std::same_as<From, Borrowed>)
      // NOLINTNEXTLINE(google-explicit-constructor): it stands for the value.
      constexpr Borrowed(const From& from ABSL_ATTRIBUTE_LIFETIME_BOUND)
      : from_(&from), copy_([](const void* p) -> T { return *static_cast<const From*>(p); }) {}

  T Copy() const { return from_ == nullptr ? T() : copy_(from_); }

 private:
  const void* from_ = nullptr;
  T (*copy_)(const void*) = nullptr;
};

// A name that is somewhere else, as a View of it, and whether that is a temporary string: whoever
// keeps the name longer than the expression has to copy it then.
template <typename View>
class BorrowedName {
 public:
  constexpr BorrowedName() = default;
  BorrowedName(const BorrowedName&) = delete;
  BorrowedName& operator=(const BorrowedName&) = delete;
  // NOLINTBEGIN(google-explicit-constructor): it stands for the name.
  constexpr BorrowedName(const char* name ABSL_ATTRIBUTE_LIFETIME_BOUND) : view_(name) {}
  constexpr BorrowedName(std::string_view name ABSL_ATTRIBUTE_LIFETIME_BOUND) : view_(name) {}
  constexpr BorrowedName(const View& name ABSL_ATTRIBUTE_LIFETIME_BOUND) requires(
      !std::same_as<View, std::string_view>)
      : view_(name) {}
  BorrowedName(const std::string& name ABSL_ATTRIBUTE_LIFETIME_BOUND) : view_(name) {}
  BorrowedName(std::string&& name) : view_(name), temporary_(true) {}
  BorrowedName(const std::string&& name) : view_(name), temporary_(true) {}
  operator std::string_view() const { return view_; }
  // NOLINTEND(google-explicit-constructor)

  const View& view() const { return view_; }
  bool temporary() const { return temporary_; }

 private:
  View view_ = {};
  bool temporary_ = false;
};

// AcquireOptions for a `co_await` expression: the same fields with the same meaning, but borrowed,
// so that braces can be written there:
//
//   co_await locks.CoAcquire(key, {.owner = user, .cancel = source.get_token()})
//
// It exists because g++ 12 breaks aggregates in `co_await` expressions whose members have
// destructors: it copies them byte by byte, and destroys both copies. Members without destructors
// are safe; the assertion below keeps them so.
//
// Write the braces where the options are passed: one that has a name, or comes from a function, may
// borrow what is gone by then, and does not compile there. What is to have a name is an
// AcquireOptions.
struct CoAcquireOptions {
  BorrowedName<std::string_view> owner = {};
  Priority priority = 0;
  bool preemptible = true;
  std::optional<absl::Duration> lease = std::nullopt;
  std::optional<bool> auto_renew = std::nullopt;
  absl::Duration max_hold = absl::InfiniteDuration();
  std::optional<absl::Duration> preemption_grace = std::nullopt;
  absl::Duration acquire_timeout = absl::InfiniteDuration();
  absl::Duration outage_patience = absl::InfiniteDuration();
  int max_attempts = AcquireOptions::kUnlimited;
  bool skip_queue = false;
  Borrowed<std::stop_token> cancel = {};
  absl::Duration max_execution_time = absl::InfiniteDuration();
  absl::Duration max_occupation_time = absl::InfiniteDuration();
  Borrowed<std::shared_ptr<const AdmissionPolicy>> admission = {};
  Borrowed<std::shared_ptr<const PreemptionPolicy>> preemption = {};
  Borrowed<std::shared_ptr<const RetryPolicy>> retry = {};

  // The same as AcquireOptions.
  AcquireOptions Copy() const&&;
};
static_assert(std::is_trivially_destructible_v<CoAcquireOptions> &&
              !std::is_move_constructible_v<CoAcquireOptions>);

namespace internal {

template <typename T>
concept AnyCoAcquireOptions = std::same_as<std::remove_cvref_t<T>, CoAcquireOptions>;

}  // namespace internal

// The names for CoAcquireAll, borrowed: up to 16 written in braces, or a vector.
class CoResources {
 public:
  static constexpr size_t kMost = 16;

  CoResources(const CoResources&) = delete;
  CoResources& operator=(const CoResources&) = delete;
  template <typename... Names>
  requires(sizeof...(Names) > 0 && (std::convertible_to<const Names&, std::string_view> && ...))
      // NOLINTNEXTLINE(google-explicit-constructor): it stands for the names.
      CoResources(const Names&... names ABSL_ATTRIBUTE_LIFETIME_BOUND)
      : few_{std::string_view(names)...}, few_size_(sizeof...(names)) {
    static_assert(sizeof...(names) <= kMost, "put that many names into a vector");
  }
  // NOLINTNEXTLINE(google-explicit-constructor)
  CoResources(const std::vector<std::string>& names ABSL_ATTRIBUTE_LIFETIME_BOUND) : many_(names) {}

  std::vector<std::string> Copy() const;

 private:
  std::array<std::string_view, kMost> few_ = {};
  size_t few_size_ = 0;
  absl::Span<const std::string> many_ = {};
};
static_assert(std::is_trivially_destructible_v<CoResources>);

namespace internal {

// One suspension, shared by the awaiter and by whoever will end it. One of the two decides its
// outcome: the first to move `phase_` away from waiting.
class Suspension {
 public:
  // On the awaiter's side, after what ends the suspension has been started. True: the coroutine
  // stays suspended. False: it ended already, so the coroutine goes on where it is.
  bool Suspend() {
    Phase starting = kStarting;
    return phase_.compare_exchange_strong(starting, kWaiting, std::memory_order_acq_rel);
  }

  // On the other side, once. True: call Resume() on the executor.
  bool End() {
    Phase phase = phase_.load(std::memory_order_acquire);
    while (phase == kStarting || phase == kWaiting) {
      if (phase_.compare_exchange_weak(phase, kEnded, std::memory_order_acq_rel)) {
        return phase == kWaiting;
      }
    }
    return false;
  }

  // Resumes the coroutine, unless it was abandoned since.
  void Resume() {
    Phase ended = kEnded;
    if (!phase_.compare_exchange_strong(ended, kResumed, std::memory_order_acq_rel)) return;
    if (owner_ == nullptr) {
      coroutine_.resume();
    } else {
      const OwnerInForce in_force(&owner_);
      coroutine_.resume();
    }
  }

  // On the awaiter's side, while suspended: the coroutine shall not be resumed any more. False if
  // that is too late.
  bool Abandon() {
    Phase phase = phase_.load(std::memory_order_acquire);
    while (phase == kWaiting || phase == kEnded) {
      if (phase_.compare_exchange_weak(phase, kAbandoned, std::memory_order_acq_rel)) return true;
    }
    return false;
  }

  bool abandoned() const { return phase_.load(std::memory_order_acquire) == kAbandoned; }
  // Before it suspends. It will go on with the owner that is in force now.
  void set_coroutine(std::coroutine_handle<> coroutine) {
    coroutine_ = coroutine;
    if (current_owner != nullptr) owner_ = *current_owner;
  }

 private:
  enum Phase { kStarting, kWaiting, kEnded, kResumed, kAbandoned };

  std::atomic<Phase> phase_ = kStarting;
  std::coroutine_handle<> coroutine_;
  SharedOwner owner_;
};

// A suspension that ends with a value.
template <typename T>
struct ValueSuspension : Suspension, RefCounted<ValueSuspension<T>> {
  std::optional<T> value;
};

// Resumes on `executor`. If that does not take it, this counts as dropped.
template <typename T>
void ResumeOn(Executor& executor, RefPtr<ValueSuspension<T>> suspension) {
  RunContained("Executor::Execute", "", [&] {
    executor.Execute([suspension = std::move(suspension)] {
      CallbackScope scope;
      RunContained("a coroutine", "", [&] { suspension->Resume(); });
    });
  });
}

inline constexpr std::string_view kAwaiterMovedFrom =
    "an awaiter was awaited after it was moved from, or moved while it was awaited";

struct Nothing {};
template <typename T>
using NothingForVoid = std::conditional_t<std::is_void_v<T>, Nothing, T>;

}  // namespace internal

// ---- Locks ----

// What LockManager::CoAcquire returns. It asks for the lock when it is awaited.
class [[nodiscard]] LockAwaiter {
 public:
  // A null core is that of a manager which was moved from.
  LockAwaiter(internal::ManagerCore* core, const BorrowedName<ResourceName>& resource,
              const CoAcquireOptions& options);
  LockAwaiter(internal::ManagerCore* core, const BorrowedName<ResourceName>& resource,
              const AcquireOptions* options ABSL_ATTRIBUTE_LIFETIME_BOUND);
  // Before it is awaited only.
  LockAwaiter(LockAwaiter&& other) noexcept;
  LockAwaiter& operator=(LockAwaiter&&) = delete;
  ~LockAwaiter() { await_cancel(); }

  bool await_ready() const { return false; }
  bool await_suspend(std::coroutine_handle<> coroutine);
  absl::StatusOr<Lock> await_resume();

  // Ends the wait. True: the coroutine will not be resumed. False: it did not wait, or it is being
  // resumed already.
  bool await_cancel();

 private:
  using Wait = internal::ValueSuspension<absl::StatusOr<Lock>>;

  void SetName(const BorrowedName<ResourceName>& resource);

  internal::ManagerCore* core_;
  std::string name_;       // The resource's, if that was a temporary.
  ResourceName resource_;  // May be over `name_`.
  AcquireOptions copied_;
  std::string_view owner_;  // Borrowed; if not empty, instead of that of `copied_`.
  const AcquireOptions* options_ = nullptr;  // If not null, instead of both.
  bool moved_from_ = false;
  std::optional<absl::StatusOr<Lock>> result_;
  // The wait, if there is one. The waiter keeps the manager's core alive.
  internal::RefPtr<Wait> wait_;
  internal::Waiter* waiter_ = nullptr;  // Owns one reference.
};

// What LockManager::CoAcquireAll returns. It asks for the locks when it is awaited. It allocates,
// and borrows nothing.
class [[nodiscard]] LockSetAwaiter {
 public:
  LockSetAwaiter(internal::ManagerCore* core, std::vector<std::string> resources,
                 AcquireOptions options)
      : core_(core), resources_(std::move(resources)), options_(std::move(options)) {}
  // Before it is awaited only.
  LockSetAwaiter(LockSetAwaiter&& other) noexcept
      : core_(other.core_),
        resources_(std::move(other.resources_)),
        options_(std::move(other.options_)),
        moved_from_(std::exchange(other.moved_from_, true)),
        wait_(std::exchange(other.wait_, nullptr)) {}
  LockSetAwaiter& operator=(LockSetAwaiter&&) = delete;
  ~LockSetAwaiter() { await_cancel(); }

  bool await_ready() const { return false; }
  bool await_suspend(std::coroutine_handle<> coroutine);
  absl::StatusOr<LockSet> await_resume();
  // As that of LockAwaiter.
  bool await_cancel();

 private:
  internal::ManagerCore* core_;
  std::vector<std::string> resources_;
  AcquireOptions options_;
  bool moved_from_ = false;
  internal::SetWait* wait_ = nullptr;  // Owns one reference.
};

// ---- Callbacks ----

// Ends an AwaitCallback: call it once with the value, on any thread. A second call, and one after
// it was moved from, end the process with a message. If it is destroyed without having been called,
// the coroutine is resumed with kCancelled if T can hold a status; else it stays suspended until it
// is destroyed.
template <typename T>
class Completion {
 public:
  Completion(Completion&&) noexcept = default;
  Completion& operator=(Completion&&) noexcept = delete;
  ~Completion() {
    if constexpr (std::is_constructible_v<internal::NothingForVoid<T>, absl::Status>) {
      if (suspension_) {
        Finish(absl::CancelledError("a callback that a coroutine waits for was dropped"));
      }
    }
  }

  template <typename... Args>
  requires std::is_constructible_v<internal::NothingForVoid<T>, Args...>
  void operator()(Args&&... args) { Finish(std::forward<Args>(args)...); }

 private:
  template <typename, typename>
  friend class CallbackAwaiter;
  using Wait = internal::ValueSuspension<internal::NothingForVoid<T>>;

  Completion(internal::RefPtr<Wait> suspension, Executor* executor)
      : suspension_(std::move(suspension)), executor_(executor) {}

  template <typename... Args>
  void Finish(Args&&... args) {
    if (!suspension_) {
      internal::DieOfMisuse("a Completion was called twice, or after it was moved from");
    }
    // If that throws, it was not called.
    suspension_->value.emplace(std::forward<Args>(args)...);
    internal::RefPtr<Wait> suspension = std::move(suspension_);
    if (suspension->End()) internal::ResumeOn(*executor_, std::move(suspension));
  }

  internal::RefPtr<Wait> suspension_;
  Executor* executor_;
};

// What AwaitCallback returns.
template <typename T, typename Start>
class [[nodiscard]] CallbackAwaiter {
 public:
  CallbackAwaiter(Start start, Executor* executor ABSL_ATTRIBUTE_LIFETIME_BOUND)
      : start_(std::move(start)), executor_(executor) {}
  // Before it is awaited only.
  CallbackAwaiter(CallbackAwaiter&& other) noexcept(std::is_nothrow_move_constructible_v<Start>)
      : start_(std::move(other.start_)),
        executor_(std::exchange(other.executor_, nullptr)),
        wait_(std::move(other.wait_)) {}
  CallbackAwaiter& operator=(CallbackAwaiter&&) = delete;
  ~CallbackAwaiter() { await_cancel(); }

  bool await_ready() const { return false; }
  bool await_suspend(std::coroutine_handle<> coroutine) {
    if (executor_ == nullptr) internal::DieOfMisuse(internal::kAwaiterMovedFrom);
    const auto wait = internal::RefPtr<Wait>::Adopt(new Wait);
    wait->set_coroutine(coroutine);
    wait_ = wait;
    start_(Completion<T>(wait, executor_));
    return wait->Suspend();
  }
  T await_resume() {
    const internal::RefPtr<Wait> wait = std::move(wait_);
    if (!wait) internal::DieOfMisuse(internal::kAwaiterMovedFrom);
    if constexpr (!std::is_void_v<T>) return *std::move(wait->value);
  }
  // Ends the wait: the callback's value is dropped when it comes. True: the coroutine will not be
  // resumed. False: it did not wait, or it is being resumed already.
  bool await_cancel() {
    const bool abandoned = wait_ && wait_->Abandon();
    wait_ = {};
    return abandoned;
  }

 private:
  using Wait = internal::ValueSuspension<internal::NothingForVoid<T>>;

  Start start_;
  Executor* executor_;
  internal::RefPtr<Wait> wait_;
};

// Turns a callback API into something to await: `start(Completion<T>)` is called when the coroutine
// has been suspended, and starts the work; the coroutine goes on with what the completion is called
// with, on `executor`, or at once if that happens before `start` returns.
//
//   int answer = co_await AwaitCallback<int>([&](Completion<int> done) { Ask(std::move(done)); });
//
// A lambda written in the expression may capture references and plain values only, since g++ 12
// would destroy other captures twice; one with a name is copied and may capture anything.
template <typename T, typename Start>
requires std::invocable < std::decay_t<Start>
&, Completion < T >>
       CallbackAwaiter<T, std::decay_t<Start>> AwaitCallback(
           Start&& start, Executor& executor ABSL_ATTRIBUTE_LIFETIME_BOUND = InlineExecutor()) {
  static_assert(std::is_lvalue_reference_v<Start> || std::is_trivially_destructible_v<Start>,
                "give this function object a name before the co_await expression");
  return {std::forward<Start>(start), &executor};
}

// ---- Time ----

// What SleepUntil and SleepFor return.
class [[nodiscard]] SleepAwaiter {
 public:
  SleepAwaiter(Clock* clock ABSL_ATTRIBUTE_LIFETIME_BOUND,
               Executor* executor ABSL_ATTRIBUTE_LIFETIME_BOUND, absl::Time when)
      : clock_(clock), executor_(executor), when_(when) {}
  // Before it is awaited only.
  SleepAwaiter(SleepAwaiter&&) = default;
  SleepAwaiter& operator=(SleepAwaiter&&) = delete;
  ~SleepAwaiter() { await_cancel(); }

  bool await_ready() const { return when_ <= clock_->Now(); }
  bool await_suspend(std::coroutine_handle<> coroutine);
  void await_resume() { wait_ = {}; }
  // As those above.
  bool await_cancel();

 private:
  using Wait = internal::ValueSuspension<internal::Nothing>;

  Clock* clock_;
  Executor* executor_;
  absl::Time when_;
  Clock::TimerId timer_ = 0;
  internal::RefPtr<Wait> wait_;
};

// Waits until `clock` says `when`, or for `duration`, without occupying a thread. The coroutine
// goes on on `executor`. Both must outlive the wait.
inline SleepAwaiter SleepUntil(
    absl::Time when, Clock& clock ABSL_ATTRIBUTE_LIFETIME_BOUND = RealClock(),
    Executor& executor ABSL_ATTRIBUTE_LIFETIME_BOUND = InlineExecutor()) {
  return SleepAwaiter(&clock, &executor, when);
}
inline SleepAwaiter SleepFor(absl::Duration duration,
                             Clock& clock ABSL_ATTRIBUTE_LIFETIME_BOUND = RealClock(),
                             Executor& executor ABSL_ATTRIBUTE_LIFETIME_BOUND = InlineExecutor()) {
  return SleepUntil(clock.Now() + duration, clock, executor);
}

}  // namespace latchkey

#endif  // LATCHKEY_CORE_COROUTINE_H_

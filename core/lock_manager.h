// LockManager is what users call: it decides by policy who waits, in what order, how long and how
// often, and asks a backend (a LockingProtocol) to grant the locks.
//
//   absl::StatusOr<LockManager> locks = LockManager::Create(NewMemoryBackend());
//   absl::StatusOr<Lock> lock =
//       locks->Acquire("orders/42", {.priority = 5, .acquire_timeout = absl::Seconds(2)});
//   if (!lock.ok()) return lock.status();  // says who holds it and why we gave up
//
// Several managers may share one backend and respect each other's locks; managers on different
// backends do not see each other.
//
// Callbacks, of whatever kind, must not throw. One that does is caught where it was called: what it
// threw goes to the log, with the resource's name, and nowhere else. Bodies may throw, see Run and
// RunAsync. (A std::stop_callback that throws ends the process: the standard library sees to that.)
//
// Thread safety: all methods may be called from any thread, except move and destruction.
// Lifetime: destroying a manager cancels what waits (kCancelled, with kShutdown); locks that are
// out stay valid. No other call may be in progress on another thread, but for blocking acquires,
// which end. The Clock and the Executor must outlive the manager and its locks.
#ifndef LATCHKEY_CORE_LOCK_MANAGER_H_
#define LATCHKEY_CORE_LOCK_MANAGER_H_

#include <concepts>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/base/attributes.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "latchkey/core/base/clock.h"
#include "latchkey/core/base/executor.h"
#include "latchkey/core/base/lease.h"
#include "latchkey/core/base/lock_error.h"
#include "latchkey/core/base/observer.h"
#include "latchkey/core/base/scoped_owner.h"
#include "latchkey/core/coroutine.h"
#include "latchkey/core/lock/lock.h"
#include "latchkey/core/lock/lock_set.h"
#include "latchkey/core/lock/resource_snapshot.h"
#include "latchkey/core/lock_context.h"
#include "latchkey/core/policy/acquire_options.h"
#include "latchkey/core/policy/lock_manager_options.h"
#include "latchkey/core/protocol/locking_protocol.h"

namespace latchkey {

class LockManager {
 public:
  // Errors: kInvalidArgument (a null backend), kUnimplemented (a queue policy that allows barging
  // on a backend that cannot), kInternal (a queue policy that throws).
  static absl::StatusOr<LockManager> Create(std::shared_ptr<LockingProtocol> backend,
                                            LockManagerOptions options = {});

  // One that was moved from may be destroyed, or assigned to. Other calls on it fail with
  // kFailedPrecondition (kMovedFrom), by their status or by their callback, which InlineExecutor()
  // runs. Those that have neither end the process with a message.
  LockManager(LockManager&& other) noexcept;
  LockManager& operator=(LockManager&& other) noexcept;
  ~LockManager();

  // Waits for the lock. `resource` is any bytes but none. Errors: see lock_error.h; the message
  // names the resource, who is in the way, and why it gave up. kFailedPrecondition inside a
  // callback of the library, where waiting could hang it.
  absl::StatusOr<Lock> Acquire(ResourceName resource, const AcquireOptions& options);
  absl::StatusOr<Lock> Acquire(ResourceName resource);  // With default options.

  // Takes the lock if that needs no waiting and nobody has to yield; else kUnavailable
  // (kHeldByOther). It may wait for one answer of the backend, which `cancel` ends; inside a
  // callback of the library it works if the backend answers at once. `acquire_timeout`,
  // `outage_patience`, `max_attempts` and `skip_queue` play no part.
  absl::StatusOr<Lock> TryAcquire(ResourceName resource, const AcquireOptions& options = {});

  // Calls `done` exactly once on the executor, with the lock or the reason why not; possibly before
  // this returns. Destroying the manager, `options.cancel` and the timeout end the wait. Null:
  // nobody wants to know; a lock that is granted is released at once.
  void AcquireAsync(ResourceName resource, const AcquireOptions& options, AcquireCallback done);

  // Waits for all of these resources, or none; duplicates are dropped, and an empty list succeeds
  // at once with a set of nothing. Nobody is asked to yield as long as another member is known not
  // to be had anyway (where the backend cannot tell whether a holder is preemptible, it is taken
  // to be). If a member is taken away before the set is complete, everything is given back and
  // asked for anew. With an empty list nothing is looked at: invalid options and a `cancel` that
  // was requested to stop make no error.
  //
  // The timeout, and the patience with a backend that fails, are one over all. An attempt, as in
  // `max_attempts`, is a round in which some member was not to be had even by preemption. Leases
  // count from the moment when the set is complete, as far as `max_hold` allows. Errors: as
  // Acquire. Before it says that nothing was done (unavailable, refused), what it had is given
  // back, and it waits to hear of that, as long as it may wait; else it is kBackendUnknown.
  //
  // `options` are those of the resources that are only named. With requests that have options of
  // their own, each member has its owner and its priority; of timeouts, patience and attempts the
  // smallest counts, and any `cancel` cancels all. Of duplicates the first counts, with the highest
  // priority, and preemptible only if all are.
  absl::StatusOr<LockSet> AcquireAll(LockRequests what, const AcquireOptions& options = {},
                                     LockOrder order = LockOrder::kSorted);
  absl::StatusOr<LockSet> AcquireAll(LockRequests what, LockOrder order) {
    return AcquireAll(std::move(what), {}, order);
  }

  // The same without waiting; see AcquireAsync, also for a null `done`.
  void AcquireAllAsync(LockRequests what, const AcquireOptions& options, AcquireAllCallback done) {
    StartAll(std::move(what), options, LockOrder::kSorted, std::move(done));
  }
  void AcquireAllAsync(LockRequests what, LockOrder order, AcquireAllCallback done) {
    StartAll(std::move(what), {}, order, std::move(done));
  }

  // `co_await locks.CoAcquire(...)` waits for the lock in a coroutine of any type; see coroutine.h.
  // The options are written in braces, or are a named AcquireOptions, which must outlive the wait.
  // Errors: as Acquire. Resumes on the executor, or goes on at once if the lock is free.
  LockAwaiter CoAcquire(BorrowedName<ResourceName> resource ABSL_ATTRIBUTE_LIFETIME_BOUND,
                        const CoAcquireOptions&& options = {}) ABSL_ATTRIBUTE_LIFETIME_BOUND {
    return LockAwaiter(core_, resource, options);
  }
  template <std::same_as<AcquireOptions> Options>
  LockAwaiter CoAcquire(BorrowedName<ResourceName> resource ABSL_ATTRIBUTE_LIFETIME_BOUND,
                        const Options& options ABSL_ATTRIBUTE_LIFETIME_BOUND)
      ABSL_ATTRIBUTE_LIFETIME_BOUND {
    return LockAwaiter(core_, resource, &options);
  }
  // A temporary AcquireOptions in a co_await expression would not survive g++ 12, and
  // CoAcquireOptions that were made elsewhere may borrow what is gone: write the braces alone, or
  // give an AcquireOptions a name.
  template <std::same_as<AcquireOptions> Options>
  LockAwaiter CoAcquire(BorrowedName<ResourceName> resource, const Options&& options) = delete;
  template <internal::AnyCoAcquireOptions Options>
  LockAwaiter CoAcquire(BorrowedName<ResourceName> resource, Options&& options) = delete;

  // `co_await locks.CoAcquireAll({"kitchen light", "bedroom light"}, {.priority = 100})`: all of
  // them or none. Errors: as AcquireAll.
  LockSetAwaiter CoAcquireAll(CoResources resources,
                              const CoAcquireOptions&& options = {}) ABSL_ATTRIBUTE_LIFETIME_BOUND {
    return LockSetAwaiter(core_, resources.Copy(), std::move(options).Copy());
  }
  template <std::same_as<AcquireOptions> Options>
  LockSetAwaiter CoAcquireAll(CoResources resources,
                              const Options& options) ABSL_ATTRIBUTE_LIFETIME_BOUND {
    return LockSetAwaiter(core_, resources.Copy(), options);
  }
  template <std::same_as<AcquireOptions> Options>
  LockSetAwaiter CoAcquireAll(CoResources resources, const Options&& options) = delete;
  template <internal::AnyCoAcquireOptions Options>
  LockSetAwaiter CoAcquireAll(CoResources resources, Options&& options) = delete;

  // Runs `body(LockContext&)` under the lock, on the calling thread, and returns what it returns:
  // absl::Status or absl::StatusOr<T>. A finite lease is renewed until it returns (unless
  // `auto_renew` is false), also that of a hold which it enters again: by its own lease, or if that
  // is infinite, by what was left. The lock is released then. What it throws goes on to the caller
  // after the release. If `owner` is given, it is in force for the body, as with a ScopedOwner:
  // what the body locks without naming an owner enters what that one holds.
  //
  // `max_execution_time` (from the start of the body) and `max_occupation_time` (from this call)
  // ask the body to stop, see LockContext, and never free the lock under it. If one was over,
  // the result is kDeadlineExceeded (kExecutionTimeout, kOccupationTimeout), also if the body said
  // OK. If the lock was lost while the body ran, the result is kAborted in every case: past the
  // lease only the fencing token protected it. Other errors: as Acquire, and the body's own.
  template <typename Body>
  auto Run(ResourceName resource, const AcquireOptions& options, Body&& body)
      -> std::invoke_result_t<Body, LockContext&> {
    return RunUnder(BeginRun(resource, options), options.owner, std::forward<Body>(body));
  }

  // The same under several locks as one (AcquireAll): a request to yield, or a loss, of one of them
  // is one of all. An empty list runs the body at once, under nothing. The owner that is in force
  // for the body, and the limits on it, are those of `options`.
  template <typename Body>
  auto RunAll(LockRequests what, const AcquireOptions& options, Body&& body)
      -> std::invoke_result_t<Body, LockContext&> {
    return RunUnder(BeginRunAll(std::move(what), options), options.owner, std::forward<Body>(body));
  }

  // Both for bodies that finish later: `body` runs on the executor, and the lock is held until it,
  // or whoever it handed that to, calls `finish` with its status. Only the first call counts; a
  // `finish` that is destroyed without a call counts as kCancelled, from when the body has
  // returned. What the body throws, unless it had called `finish`, counts as kInternal (kException)
  // with its text. A given `owner` is in force for the body until it returns, and for the callbacks
  // that it hands over. `done` (null: nobody wants
  // to know) runs once, on the executor, with the result, after the release. kInvalidArgument: a
  // null body.
  using FinishCallback = absl::AnyInvocable<void(absl::Status)>;
  using AsyncBody = absl::AnyInvocable<void(LockContext context, FinishCallback finish)>;
  void RunAsync(ResourceName resource, const AcquireOptions& options, AsyncBody body,
                absl::AnyInvocable<void(absl::Status)> done);
  void RunAllAsync(LockRequests what, const AcquireOptions& options, AsyncBody body,
                   absl::AnyInvocable<void(absl::Status)> done);

  // The same for bodies with a value: `finish` takes, and `done` gets, an absl::StatusOr<T>.
  //
  //   locks.RunAsync<Report>(
  //       "report", {},
  //       [&](LockContext context, LockManager::FinishWith<Report> finish) {
  //         server.Ask(question, std::move(finish));
  //       },
  //       [](absl::StatusOr<Report> report) { ... });
  template <typename T>
  using FinishWith = absl::AnyInvocable<void(absl::StatusOr<T>)>;
  template <typename T>
  using AsyncBodyWith = absl::AnyInvocable<void(LockContext context, FinishWith<T> finish)>;
  template <typename T>
  void RunAsync(ResourceName resource, const AcquireOptions& options, AsyncBodyWith<T> body,
                FinishWith<T> done) {
    auto [plain_body, plain_done] = WithoutValue<T>(std::move(body), std::move(done));
    RunAsync(resource, options, std::move(plain_body), std::move(plain_done));
  }
  template <typename T>
  void RunAllAsync(LockRequests what, const AcquireOptions& options, AsyncBodyWith<T> body,
                   FinishWith<T> done) {
    auto [plain_body, plain_done] = WithoutValue<T>(std::move(body), std::move(done));
    RunAllAsync(std::move(what), options, std::move(plain_body), std::move(plain_done));
  }

  // Does anybody hold, ask for or wait for the resource? For any resource at all? Holders are those
  // of whatever manager where the backend can tell (BackendCapabilities::inspect), else of this
  // one, as in a snapshot; those who ask and wait are this manager's. A resource that is free, but
  // set aside for somebody who waited through another manager, is busy where the backend can tell.
  bool IsBusy(ResourceName resource) const;
  bool IsBusy() const;

  // Every resource that is held, reserved or waited for, in no particular order.
  std::vector<ResourceSnapshot> Snapshot() const;

  const BackendCapabilities& capabilities() const ABSL_ATTRIBUTE_LIFETIME_BOUND;

  // Where this manager's time and threads come from.
  Clock& clock() const;
  Executor& executor() const;

 private:
  template <typename...>
  friend class Locker;

  explicit LockManager(internal::ManagerCore* core) : core_(core) {}

  absl::StatusOr<LockContext> BeginRun(ResourceName resource, const AcquireOptions& options);
  absl::StatusOr<LockContext> BeginRunAll(LockRequests what, const AcquireOptions& options);
  void StartAll(LockRequests what, const AcquireOptions& options, LockOrder order,
                AcquireAllCallback done);

  template <typename Body>
  static auto RunUnder(absl::StatusOr<LockContext> context, std::string_view owner, Body&& body)
      -> std::invoke_result_t<Body, LockContext&> {
    using Result = std::invoke_result_t<Body, LockContext&>;
    if (!context.ok()) return Result(context.status());
    internal::RunGuard guard(*context);
    Result result = [&]() -> Result {
      const internal::NamedOwnerInForce in_force(owner);
      return std::forward<Body>(body)(guard.context());
    }();
    if (absl::Status verdict = guard.Finish(internal::StatusOf(result)); !verdict.ok()) {
      return Result(std::move(verdict));
    }
    return result;
  }

  // A body and its end, which pass the value by.
  template <typename T>
  static std::pair<AsyncBody, FinishCallback> WithoutValue(AsyncBodyWith<T> body,
                                                           FinishWith<T> done) {
    std::pair<AsyncBody, FinishCallback> plain;
    const auto value = std::make_shared<internal::FirstValue<T>>();
    if (body != nullptr) {
      plain.first = [value, body = std::move(body)](LockContext context,
                                                    FinishCallback finish) mutable {
        body(std::move(context),
             [value, finish = std::move(finish)](absl::StatusOr<T> result) mutable {
               if (value->Set(result)) finish(std::move(result).status());
             });
      };
    }
    if (done != nullptr) {
      plain.second = [value, done = std::move(done)](absl::Status status) mutable {
        done(status.ok() ? absl::StatusOr<T>(value->Take()) : absl::StatusOr<T>(std::move(status)));
      };
    }
    return plain;
  }

  // Tells it on the executor.
  void TellAsync(FinishCallback done, absl::Status status);
  // Ends the process, in the name of that call, if this was moved from.
  internal::ManagerCore& NeedCore(std::string_view call) const;

  internal::ManagerCore* core_;  // Null: moved from.
};

}  // namespace latchkey

#endif  // LATCHKEY_CORE_LOCK_MANAGER_H_

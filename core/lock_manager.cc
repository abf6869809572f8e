#include "latchkey/core/lock_manager.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "absl/base/no_destructor.h"
#include "absl/base/optimization.h"
#include "absl/strings/str_cat.h"
#include "latchkey/core/base/callback_scope.h"
#include "latchkey/core/base/contain.h"
#include "latchkey/core/base/lock_error.h"
#include "latchkey/core/base/misuse.h"
#include "latchkey/core/base/scoped_owner.h"
#include "latchkey/core/engine/manager_core.h"
#include "latchkey/core/lock/lock_set_rep.h"
#include "latchkey/core/run_state.h"

namespace latchkey {

namespace {

// There is no executor left but this one.
template <typename Done>
void TellMovedFrom(Done done, std::string_view call) {
  if (done == nullptr) return;
  InlineExecutor().Execute(
      [done = std::move(done), error = internal::MovedFromError(call)]() mutable {
        internal::CallbackScope scope;
        done(std::move(error));
      });
}

}  // namespace

absl::StatusOr<LockManager> LockManager::Create(std::shared_ptr<LockingProtocol> backend,
                                                LockManagerOptions options) {
  if (backend == nullptr) {
    return MakeError(Reason::kInvalidArgument, "backend must not be null, but is null");
  }
  const BackendCapabilities& capabilities = backend->capabilities();
  internal::QueueTraits queue;
  if (options.queue != nullptr) {
    absl::Status thrown = internal::StatusOfContained(
        "QueuePolicy::AllowsBarging", "", [&] { queue.barging = options.queue->AllowsBarging(); });
    if (!thrown.ok()) return thrown;
    thrown = internal::StatusOfContained("QueuePolicy::RanksByPriority", "", [&] {
      queue.by_priority = options.queue->RanksByPriority();
    });
    if (!thrown.ok()) return thrown;
  }
  if (queue.barging && !capabilities.barging) {
    return MakeError(Reason::kNotSupported,
                     absl::StrCat("backend '", capabilities.name,
                                  "' cannot honour a queue policy that allows barging"));
  }
  return LockManager(new internal::ManagerCore(std::move(backend), std::move(options), queue));
}

LockManager::LockManager(LockManager&& other) noexcept
    : core_(std::exchange(other.core_, nullptr)) {}

LockManager& LockManager::operator=(LockManager&& other) noexcept {
  if (this != &other) {
    if (core_ != nullptr) core_->Shutdown();
    core_ = std::exchange(other.core_, nullptr);
  }
  return *this;
}

LockManager::~LockManager() {
  if (core_ != nullptr) core_->Shutdown();
}

internal::ManagerCore& LockManager::NeedCore(std::string_view call) const {
  if (core_ == nullptr) internal::DieOfMisuse(internal::MovedFromError(call).message());
  return *core_;
}

absl::StatusOr<Lock> LockManager::Acquire(ResourceName resource, const AcquireOptions& options) {
  if (ABSL_PREDICT_FALSE(core_ == nullptr)) return internal::MovedFromError("Acquire()");
  return core_->Acquire(resource, options);
}

absl::StatusOr<Lock> LockManager::Acquire(ResourceName resource) {
  if (ABSL_PREDICT_FALSE(core_ == nullptr)) return internal::MovedFromError("Acquire()");
  // Made once: constructing and destroying them would cost a tenth of an uncontended acquire.
  static const absl::NoDestructor<AcquireOptions> defaults;
  return core_->Acquire(resource, *defaults);
}

absl::StatusOr<Lock> LockManager::TryAcquire(ResourceName resource, const AcquireOptions& options) {
  if (core_ == nullptr) return internal::MovedFromError("TryAcquire()");
  return core_->TryAcquire(resource, options);
}

void LockManager::AcquireAsync(ResourceName resource, const AcquireOptions& options,
                               AcquireCallback done) {
  if (core_ == nullptr) return TellMovedFrom(std::move(done), "AcquireAsync()");
  core_->AcquireAsync(resource, options, std::move(done));
}

namespace {

absl::Time AskedAt(Clock& clock, const AcquireOptions& options) {
  return options.max_occupation_time == absl::InfiniteDuration() ? absl::InfinitePast()
                                                                 : clock.Now();
}

// Of a body under several locks: the limits on it are those of `options`, also over requests with
// options of their own.
struct RunAllRequests {
  RunAllRequests(LockRequests what, const AcquireOptions& options)
      : requests(std::move(what).With(options)), limits(options) {
    for (LockRequest& request : requests) {
      limits.acquire_timeout = std::min(limits.acquire_timeout, request.options.acquire_timeout);
      request.options.max_execution_time = options.max_execution_time;
      request.options.max_occupation_time = options.max_occupation_time;
      request.options = internal::OptionsForRun(request.options);
    }
  }

  std::vector<std::string> resources() const {
    std::vector<std::string> names;
    for (const LockRequest& request : requests) names.push_back(request.resource);
    return names;
  }

  std::vector<LockRequest> requests;
  AcquireOptions limits;  // Those options, with the time that all have together.
};

}  // namespace

absl::StatusOr<LockSet> LockManager::AcquireAll(LockRequests what, const AcquireOptions& options,
                                                LockOrder order) {
  if (core_ == nullptr) return internal::MovedFromError("AcquireAll()");
  return core_->AcquireAll(std::move(what).With(options), order);
}

void LockManager::StartAll(LockRequests what, const AcquireOptions& options, LockOrder order,
                           AcquireAllCallback done) {
  if (core_ == nullptr) return TellMovedFrom(std::move(done), "AcquireAllAsync()");
  core_->AcquireAllAsync(std::move(what).With(options), order, std::move(done));
}

absl::StatusOr<LockContext> LockManager::BeginRun(ResourceName resource,
                                                  const AcquireOptions& options) {
  if (core_ == nullptr) return internal::MovedFromError("Run()");
  const absl::Time asked = AskedAt(core_->clock(), options);
  absl::StatusOr<Lock> lock = core_->Acquire(resource, internal::OptionsForRun(options));
  if (!lock.ok()) return internal::RunNotBegun(options, lock.status());
  return internal::RunState::Start(core_->clock(), resource, options, asked, *std::move(lock))
      ->context();
}

absl::StatusOr<LockContext> LockManager::BeginRunAll(LockRequests what,
                                                     const AcquireOptions& options) {
  if (core_ == nullptr) return internal::MovedFromError("RunAll()");
  const absl::Time asked = AskedAt(core_->clock(), options);
  RunAllRequests all(std::move(what), options);
  absl::StatusOr<LockSet> set = core_->AcquireAll(std::move(all.requests), LockOrder::kSorted);
  if (!set.ok()) return internal::RunNotBegun(all.limits, set.status());
  return internal::RunState::Start(core_->clock(), "", options, asked, *std::move(set))->context();
}

namespace {

// A body of RunAsync that has begun.
class AsyncRun {
 public:
  AsyncRun(std::shared_ptr<internal::RunState> state, LockManager::FinishCallback done)
      : state_(std::move(state)), done_(std::move(done)) {}
  ~AsyncRun() { Finish(state_->DroppedError()); }

  // Only the first call counts; false: this was a later one.
  bool Finish(absl::Status body) {
    if (finished_.exchange(true)) return false;
    internal::RunState::Held held = state_->Take();
    auto answered = [state = state_, done = std::move(done_),
                     body = std::move(body)](const absl::Status& released) mutable {
      if (done != nullptr) done(state->Verdict(body, released));
    };
    std::visit([&](auto& locks) { locks.ReleaseAsync(std::move(answered)); }, held);
    return true;
  }

 private:
  const std::shared_ptr<internal::RunState> state_;
  LockManager::FinishCallback done_;
  std::atomic<bool> finished_ = false;
};

// What follows an acquire of RunAsync and RunAllAsync. `name` is that of a single lock.
struct RunWhenLocked {
  Clock& clock;
  std::string name;
  AcquireOptions options;
  absl::Time asked;
  LockManager::AsyncBody body;
  LockManager::FinishCallback done;

  template <typename Locks>
  void operator()(absl::StatusOr<Locks> locks) {
    if (!locks.ok()) {
      if (done != nullptr) done(internal::RunNotBegun(options, locks.status()));
      return;
    }
    auto state = internal::RunState::Start(clock, name, options, asked, *std::move(locks));
    // Kept until the body has returned, so that what it throws comes before what it drops.
    const auto run = std::make_shared<AsyncRun>(state, std::move(done));
    const internal::NamedOwnerInForce in_force(options.owner);
    try {
      body(state->context(), [run](absl::Status status) { run->Finish(std::move(status)); });
    } catch (...) {
      const std::string who = absl::StrCat("the body that ran under ", state->Name());
      if (!run->Finish(internal::ErrorOfCurrentException(who, ""))) {
        internal::LogCurrentException(absl::StrCat(who, ", and had finished,"), "");
      }
    }
  }
};

absl::Status NullBody(std::string_view names) {
  return MakeError(Reason::kInvalidArgument,
                   absl::StrCat("body must not be null, but is null (locking ", names, ")"));
}

std::string NamesForMessage(const std::vector<std::string>& resources) {
  return internal::ResourcesForMessage({resources.begin(), resources.end()});
}

// `resources` are for the log, if the callback throws.
LockManager::FinishCallback DoneOf(std::vector<std::string> resources,
                                   LockManager::FinishCallback done) {
  if (done == nullptr) return done;
  return [resources = std::move(resources),
          done = internal::WithOwner(std::move(done))](absl::Status status) mutable {
    internal::RunContained(
        [&] { return absl::StrCat("the callback of a body on ", NamesForMessage(resources)); },
        [&] { done(std::move(status)); });
  };
}

}  // namespace

void LockManager::RunAsync(ResourceName resource, const AcquireOptions& options, AsyncBody body,
                           absl::AnyInvocable<void(absl::Status)> done) {
  if (core_ == nullptr) return TellMovedFrom(std::move(done), "RunAsync()");
  done = DoneOf({std::string(resource.bytes())}, std::move(done));
  if (body == nullptr) {
    TellAsync(std::move(done), NullBody(ResourceForMessage(resource)));
    return;
  }
  Clock& clock = core_->clock();
  core_->AcquireAsync(resource, internal::OptionsForRun(options),
                      RunWhenLocked{clock, std::string(resource.bytes()), options,
                                    AskedAt(clock, options), std::move(body), std::move(done)});
}

void LockManager::RunAllAsync(LockRequests what, const AcquireOptions& options, AsyncBody body,
                              absl::AnyInvocable<void(absl::Status)> done) {
  if (core_ == nullptr) return TellMovedFrom(std::move(done), "RunAllAsync()");
  RunAllRequests all(std::move(what), options);
  const std::vector<std::string> resources = all.resources();
  done = DoneOf(resources, std::move(done));
  if (body == nullptr) {
    TellAsync(std::move(done), NullBody(NamesForMessage(resources)));
    return;
  }
  Clock& clock = core_->clock();
  core_->AcquireAllAsync(std::move(all.requests), LockOrder::kSorted,
                         RunWhenLocked{clock, "", std::move(all.limits), AskedAt(clock, options),
                                       std::move(body), std::move(done)});
}

void LockManager::TellAsync(FinishCallback done, absl::Status status) {
  if (done == nullptr) return;
  core_->RunUser(
      [done = std::move(done), status = std::move(status)]() mutable { done(std::move(status)); });
}

bool LockManager::IsBusy(ResourceName resource) const {
  return NeedCore("IsBusy()").IsBusy(resource);
}

bool LockManager::IsBusy() const { return NeedCore("IsBusy()").IsBusy(); }

std::vector<ResourceSnapshot> LockManager::Snapshot() const {
  return NeedCore("Snapshot()").Snapshot();
}

const BackendCapabilities& LockManager::capabilities() const {
  return NeedCore("capabilities()").capabilities();
}

Clock& LockManager::clock() const { return NeedCore("clock()").clock(); }

Executor& LockManager::executor() const { return NeedCore("executor()").executor(); }

}  // namespace latchkey

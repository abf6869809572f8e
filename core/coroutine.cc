#include "latchkey/core/coroutine.h"

#include <optional>
#include <string>
#include <utility>

#include "latchkey/core/base/lock_error.h"
#include "latchkey/core/engine/manager_core.h"

namespace latchkey {
namespace {

// What there is to say about a request besides its owner, which may be too long to copy without an
// allocation.
AcquireOptions WithoutOwner(const CoAcquireOptions& from) {
  return {.priority = from.priority,
          .preemptible = from.preemptible,
          .lease = from.lease,
          .auto_renew = from.auto_renew,
          .max_hold = from.max_hold,
          .preemption_grace = from.preemption_grace,
          .acquire_timeout = from.acquire_timeout,
          .outage_patience = from.outage_patience,
          .max_attempts = from.max_attempts,
          .skip_queue = from.skip_queue,
          .cancel = from.cancel.Copy(),
          .max_execution_time = from.max_execution_time,
          .max_occupation_time = from.max_occupation_time,
          .admission = from.admission.Copy(),
          .preemption = from.preemption.Copy(),
          .retry = from.retry.Copy()};
}

}  // namespace

AcquireOptions CoAcquireOptions::Copy() const&& {
  AcquireOptions options = WithoutOwner(*this);
  options.owner = std::string(owner.view());
  return options;
}

LockAwaiter::LockAwaiter(internal::ManagerCore* core, const BorrowedName<ResourceName>& resource,
                         const CoAcquireOptions& options)
    : core_(core), copied_(WithoutOwner(options)) {
  SetName(resource);
  if (options.owner.temporary()) {
    copied_.owner = std::string(options.owner.view());
  } else {
    owner_ = options.owner;
  }
}

LockAwaiter::LockAwaiter(internal::ManagerCore* core, const BorrowedName<ResourceName>& resource,
                         const AcquireOptions* options)
    : core_(core), options_(options) {
  SetName(resource);
}

LockAwaiter::LockAwaiter(LockAwaiter&& other) noexcept
    : core_(other.core_),
      name_(std::move(other.name_)),
      resource_(other.resource_),
      copied_(std::move(other.copied_)),
      owner_(other.owner_),
      options_(other.options_),
      moved_from_(std::exchange(other.moved_from_, true)),
      result_(std::move(other.result_)),
      wait_(std::move(other.wait_)),
      waiter_(std::exchange(other.waiter_, nullptr)) {
  if (!name_.empty()) resource_ = resource_.WithBytes(name_);
}

void LockAwaiter::SetName(const BorrowedName<ResourceName>& resource) {
  resource_ = resource.view();
  if (!resource.temporary()) return;
  name_ = std::string(resource_.bytes());
  resource_ = resource_.WithBytes(name_);
}

bool LockAwaiter::await_suspend(std::coroutine_handle<> coroutine) {
  if (core_ == nullptr || moved_from_) {
    result_ = moved_from_ ? MakeError(Reason::kMovedFrom, internal::kAwaiterMovedFrom)
                          : internal::MovedFromError("CoAcquire()");
    return false;
  }
  const AcquireOptions& options = options_ != nullptr ? *options_ : copied_;
  std::optional<internal::OpenRequest> open;
  result_ = core_->Begin(resource_, options, owner_, open);
  if (result_) return false;

  const auto wait = internal::RefPtr<Wait>::Adopt(new Wait);
  wait->set_coroutine(coroutine);
  wait_ = wait;
  internal::RefPtr<internal::Waiter> waiter = core_->Wait(
      resource_, options, *open,
      [wait](absl::StatusOr<Lock> lock) {
        // Nobody wants it any more: the lock goes at once.
        if (wait->abandoned()) return;
        wait->value = std::move(lock);
        if (wait->End()) wait->Resume();
      },
      internal::Listener::kCallback);
  waiter_ = waiter.Release();
  return wait->Suspend();
}

absl::StatusOr<Lock> LockAwaiter::await_resume() {
  if (result_) return *std::move(result_);
  const internal::RefPtr<Wait> wait = std::move(wait_);
  if (!wait) internal::DieOfMisuse(internal::kAwaiterMovedFrom);
  internal::RefPtr<internal::Waiter>::Adopt(std::exchange(waiter_, nullptr));
  return *std::move(wait->value);
}

bool LockAwaiter::await_cancel() {
  const internal::RefPtr<Wait> wait = std::move(wait_);
  const auto waiter = internal::RefPtr<internal::Waiter>::Adopt(std::exchange(waiter_, nullptr));
  if (!wait || !wait->Abandon()) return false;
  core_->Cancel(*waiter);
  return true;
}

// ---- Several locks ----

std::vector<std::string> CoResources::Copy() const {
  std::vector<std::string> names(few_.begin(), few_.begin() + few_size_);
  names.insert(names.end(), many_.begin(), many_.end());
  return names;
}

namespace internal {

// The wait for a set. It is cancelled as the caller's `cancel` is, and by the awaiter's end.
struct SetWait : Suspension, RefCounted<SetWait> {
  struct Forward {
    std::stop_source stop;
    void operator()() { stop.request_stop(); }
  };
  std::stop_source stop;
  std::optional<std::stop_callback<Forward>> callers_stop;
  std::optional<absl::StatusOr<LockSet>> value;
};

}  // namespace internal

bool LockSetAwaiter::await_suspend(std::coroutine_handle<> coroutine) {
  using internal::SetWait;
  const auto wait = internal::RefPtr<SetWait>::Adopt(new SetWait);
  wait->set_coroutine(coroutine);
  wait_ = internal::RefPtr<SetWait>(wait).Release();
  if (core_ == nullptr || moved_from_) {
    wait->value = moved_from_ ? MakeError(Reason::kMovedFrom, internal::kAwaiterMovedFrom)
                              : internal::MovedFromError("CoAcquireAll()");
    return false;
  }
  AcquireOptions options = options_;
  if (options.cancel.stop_possible()) {
    wait->callers_stop.emplace(std::move(options.cancel), SetWait::Forward{wait->stop});
  }
  options.cancel = wait->stop.get_token();
  std::vector<LockRequest> requests;
  for (const std::string& name : resources_) {
    requests.push_back({.resource = name, .options = options});
  }
  core_->AcquireAllAsync(std::move(requests), LockOrder::kSorted,
                         [wait](absl::StatusOr<LockSet> locks) {
                           if (wait->abandoned()) return;
                           wait->value = std::move(locks);
                           if (wait->End()) wait->Resume();
                         });
  return wait->Suspend();
}

absl::StatusOr<LockSet> LockSetAwaiter::await_resume() {
  const auto wait = internal::RefPtr<internal::SetWait>::Adopt(std::exchange(wait_, nullptr));
  if (!wait) internal::DieOfMisuse(internal::kAwaiterMovedFrom);
  return *std::move(wait->value);
}

bool LockSetAwaiter::await_cancel() {
  const auto wait = internal::RefPtr<internal::SetWait>::Adopt(std::exchange(wait_, nullptr));
  if (!wait || !wait->Abandon()) return false;
  wait->stop.request_stop();
  return true;
}

// ---- Time ----

bool SleepAwaiter::await_suspend(std::coroutine_handle<> coroutine) {
  const auto wait = internal::RefPtr<Wait>::Adopt(new Wait);
  wait->set_coroutine(coroutine);
  wait_ = wait;
  timer_ = clock_->RunAt(when_, [wait, executor = executor_] {
    if (wait->End()) internal::ResumeOn(*executor, wait);
  });
  return wait->Suspend();
}

bool SleepAwaiter::await_cancel() {
  const internal::RefPtr<Wait> wait = std::move(wait_);
  if (!wait || !wait->Abandon()) return false;
  clock_->Cancel(timer_);
  return true;
}

}  // namespace latchkey

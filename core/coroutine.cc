#include "latchkey/core/coroutine.h"

#include <string>
#include <utility>

#include "latchkey/core/internal/manager_core.h"
#include "latchkey/core/scoped_owner.h"

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

AcquireOptions CoAcquireOptions::Copy() const {
  AcquireOptions options = WithoutOwner(*this);
  options.owner = std::string(owner);
  return options;
}

bool LockAwaiter::await_suspend(std::coroutine_handle<> coroutine) {
  std::optional<AcquireOptions> copied;
  std::string_view owner;
  if (options_ == nullptr) {
    copied = WithoutOwner(borrowed_);
    owner = borrowed_.owner;
  }
  const AcquireOptions& options = copied ? *copied : *options_;
  internal::Attempt attempt;
  result_ = core_->Begin(resource_, options, owner, attempt);
  if (result_) return false;

  const auto wait = internal::RefPtr<Wait>::Adopt(new Wait);
  wait->set_coroutine(coroutine);
  wait_ = wait;
  internal::RefPtr<internal::Waiter> waiter =
      core_->Wait(resource_, options, attempt,
                  internal::WithOwner(AcquireCallback([wait](absl::StatusOr<Lock> lock) {
                    // Nobody wants it any more: the lock goes at once.
                    if (wait->abandoned()) return;
                    wait->value = std::move(lock);
                    if (wait->End()) wait->Resume();
                  })));
  waiter_ = waiter.Release();
  return wait->Suspend();
}

absl::StatusOr<Lock> LockAwaiter::await_resume() {
  if (result_) return *std::move(result_);
  const internal::RefPtr<Wait> wait = std::move(wait_);
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

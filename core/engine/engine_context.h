// EngineContext is what the parts of one manager's engine share beside what its locks know of it:
// the policies, what follows from them and from the backend, and how many wait.
//
// Thread safety: all methods may be called from any thread.
#ifndef LATCHKEY_CORE_ENGINE_ENGINE_CONTEXT_H_
#define LATCHKEY_CORE_ENGINE_ENGINE_CONTEXT_H_

#include <atomic>
#include <cstdint>
#include <memory>

#include "absl/base/optimization.h"
#include "absl/numeric/int128.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "latchkey/core/base/lease.h"
#include "latchkey/core/base/scoped_owner.h"
#include "latchkey/core/engine/deadlock_detector.h"
#include "latchkey/core/engine/request_terms.h"
#include "latchkey/core/engine/waiter.h"
#include "latchkey/core/lock/manager_context.h"
#include "latchkey/core/policy/acquire_options.h"
#include "latchkey/core/policy/lock_manager_options.h"
#include "latchkey/core/protocol/locking_protocol.h"

namespace latchkey::internal {

// What a queue policy says of all requests.
struct QueueTraits {
  bool barging = false;
  bool by_priority = true;
};

class EngineContext : public ManagerContext {
 public:
  static constexpr absl::Duration kShortestRetryDelay = absl::Milliseconds(1);

  // `queue` is what the policy in the options says.
  EngineContext(std::shared_ptr<LockingProtocol> backend, LockManagerOptions options,
                const QueueTraits& queue);

  // The terms of a request for this manager and its backend.
  absl::Status TermsOf(const ResourceName& resource, const AcquireOptions& options,
                       RequestTerms& terms) const {
    std::string_view ambient;
    if (ABSL_PREDICT_FALSE(current_owner != nullptr)) ambient = **current_owner;
    return MakeTerms(capabilities_, options_.preemption.get(), ambient, resource, options, terms);
  }
  // Is it a request with nothing in it that its terms would have to work out: its hold is plain,
  // and the backend answers at once?
  bool IsPlain(const ResourceName& resource, const AcquireOptions& options) const {
    return plain_manager_ && current_owner == nullptr && !resource.empty() && ArePlain(options);
  }
  // Does a request ask the backend whoever waits?
  bool GoesDirectly(const RequestTerms& terms, const AcquireOptions& options) const {
    // One attempt, or no time, means that there is no waiting. A named owner may hold the lock
    // already. If it does not, it must not find the lock free before those who wait have heard of
    // that. Where answers take their time that is likely, so there the backend has to see to it.
    const bool may_reenter =
        !terms.owner.empty() && (capabilities_.answers_at_once || backend_keeps_order_);
    return barging_ || may_reenter || options.max_attempts == 1 ||
           options.acquire_timeout == absl::ZeroDuration();
  }
  // Does its lock need a life of its own?
  bool NeedsHold(const RequestTerms& terms) const {
    return terms.lease != absl::InfiniteDuration() || observer_ != nullptr ||
           !capabilities_.hint_identifies_hold || !capabilities_.answers_at_once ||
           !capabilities_.inspect;
  }
  // Has the clock to be read when it asks?
  bool NeedsTime(const RequestTerms& terms) const {
    return terms.lease != absl::InfiniteDuration() || !capabilities_.answers_at_once;
  }

  bool barging() const { return barging_; }
  // Does the queues' order follow priority alone?
  bool by_priority() const { return by_priority_; }
  // Null: deadlocks are not looked for.
  DeadlockDetector* detector() const { return detector_.get(); }
  const AdmissionPolicy& admission() const { return *options_.admission; }

  // The queue policy's rank. Error: the policy threw.
  absl::StatusOr<absl::int128> RankOf(const Waiter& waiter) const;
  // What the policy says, and no less than a pause that keeps no thread busy. Null: the manager's.
  // Error: the policy threw.
  absl::StatusOr<absl::Duration> RetryDelay(const RetryPolicy* policy,
                                            const RetryContext& context) const;
  // A random number in [0, 1) for jitter.
  double Random();

  // Requests that wait on all of this manager's resources.
  std::atomic<int64_t>& pending() { return pending_; }
  // Has the manager been destroyed?
  bool IsShutDown() const { return shut_down_.load(); }

 protected:
  ~EngineContext() override;

  const LockManagerOptions options_;
  const bool barging_;
  const bool by_priority_;
  // Nobody who asks overtakes those who wait: the backend keeps the same order as the queues.
  const bool backend_keeps_order_;
  const std::shared_ptr<DeadlockDetector> detector_;
  // The backend answers at once and needs neither leases nor names to be told, nobody observes, and
  // whoever is lower is preempted: see IsPlain().
  const bool plain_manager_;
  std::atomic<int64_t> pending_{0};
  std::atomic<uint64_t> random_state_;
  std::atomic<bool> shut_down_{false};
};

}  // namespace latchkey::internal

#endif  // LATCHKEY_CORE_ENGINE_ENGINE_CONTEXT_H_

// ManagerCore is the engine of one LockManager. It ties the parts together and does little itself:
//
//   request_terms   what a request asks for, checked and with the defaults filled in
//   first_ask       the first question, with which most requests end
//   wait_queue      who waits for a resource, and what is to be done next for them
//   queue_driver    does it; takes in what comes
//   set_request     several locks as one
//
// It lives as long as its manager or any of its locks.
//
// Thread safety: all methods may be called from any thread, with no mutex held.
#ifndef LATCHKEY_CORE_ENGINE_MANAGER_CORE_H_
#define LATCHKEY_CORE_ENGINE_MANAGER_CORE_H_

#include <array>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "latchkey/core/base/lease.h"
#include "latchkey/core/base/ref_counted.h"
#include "latchkey/core/engine/engine_context.h"
#include "latchkey/core/engine/first_ask.h"
#include "latchkey/core/engine/queue_driver.h"
#include "latchkey/core/engine/queue_shard.h"
#include "latchkey/core/engine/waiter.h"
#include "latchkey/core/lock/hold.h"
#include "latchkey/core/lock/lock.h"
#include "latchkey/core/lock/lock_set.h"
#include "latchkey/core/lock/resource_snapshot.h"
#include "latchkey/core/policy/acquire_options.h"
#include "latchkey/core/policy/lock_manager_options.h"

namespace latchkey::internal {

class SetRequest;

class ManagerCore final : public EngineContext {
 public:
  ManagerCore(std::shared_ptr<LockingProtocol> backend, LockManagerOptions options,
              const QueueTraits& queue);

  // The manager's destructor: ends the waiting and gives up its references. The core deletes itself
  // with the last lock.
  void Shutdown();

  absl::StatusOr<Lock> Acquire(const ResourceName& resource, const AcquireOptions& options);
  absl::StatusOr<Lock> TryAcquire(ResourceName resource, const AcquireOptions& options) {
    return TryToLock(*this, ShardOf(resource), resource, options);
  }
  void AcquireAsync(ResourceName resource, const AcquireOptions& options, AcquireCallback done);
  absl::StatusOr<LockSet> AcquireAll(std::vector<LockRequest> requests, LockOrder order);
  void AcquireAllAsync(std::vector<LockRequest> requests, LockOrder order, AcquireAllCallback done);

  // The two halves of AcquireAsync, for awaitables, which need no callback unless they wait.
  //
  // Begin asks the backend if that takes no waiting. The lock or the error; none: go on with Wait.
  // A non-empty `owner` replaces that of the options; it must outlive `open`.
  std::optional<absl::StatusOr<Lock>> Begin(const ResourceName& resource,
                                            const AcquireOptions& options, std::string_view owner,
                                            std::optional<OpenRequest>& open);
  // Queues, and uses `open` up. `done` runs exactly once, as the listener says, possibly before
  // this returns.
  RefPtr<Waiter> Wait(const ResourceName& resource, const AcquireOptions& options,
                      OpenRequest& open, AcquireCallback&& done, Listener listener);
  // Ends the wait with kCancelled, if it has not ended yet. `done` still runs.
  void Cancel(Waiter& waiter) { driver_.GiveUp(waiter, Reason::kCancelled); }

  bool IsBusy(ResourceName resource);
  bool IsBusy();
  std::vector<ResourceSnapshot> Snapshot();

  // Keep the core alive beyond its manager.
  void Ref() { shards_[0].Ref(); }
  void Unref() { shards_[0].Unref(); }

  // ---- For sets ----

  QueueShard& ShardOf(const ResourceName& resource) {
    return shards_[(resource.hash() >> 20) % kShards];
  }
  // For a member of a set that holds others: told with no executor in between, on whatever thread
  // the news comes. Null: it need not wait.
  RefPtr<Waiter> AcquireMember(ResourceName resource, const AcquireOptions& options,
                               AcquireCallback&& done) {
    return Start(resource, options, std::move(done), Listener::kSet);
  }
  // Does anybody wait for it whose priority is as high, and who comes first?
  bool IsAnyoneAhead(const ResourceName& resource, Priority priority) {
    return !barging_ && ShardOf(resource).IsAnyoneAhead(resource, priority);
  }
  // Sets that wait are told when the manager goes. False: it is going.
  bool AddSetRequest(SetRequest* request) ABSL_LOCKS_EXCLUDED(sets_mu_);
  void RemoveSetRequest(SetRequest* request) ABSL_LOCKS_EXCLUDED(sets_mu_);

 private:
  static constexpr size_t kShards = 64;

  ~ManagerCore() override;

  // For a blocking request that did not get its lock by asking plainly.
  absl::StatusOr<Lock> WaitHere(QueueShard& shard, const ResourceName& resource,
                                const AcquireOptions& options, PlainTry tried);
  absl::Status WouldBlock(const ResourceName& resource, const AcquireOptions& options) const;
  // Calls `done` as the listener says. Null: it need not wait.
  RefPtr<Waiter> Start(const ResourceName& resource, const AcquireOptions& options,
                       AcquireCallback&& done, Listener listener);
  // The same for a request that did not get its lock by asking plainly. What to tell it now; or
  // nothing, and the `waiter`.
  absl::StatusOr<Lock> StartToWait(QueueShard& shard, const ResourceName& resource,
                                   const AcquireOptions& options, PlainTry tried,
                                   AcquireCallback&& done, Listener listener,
                                   RefPtr<Waiter>& waiter);
  // What those of the handles hold that have not lost it by now.
  static std::vector<ResourceState> HeldBy(const std::vector<RefPtr<Hold>>& handles);

  QueueDriver driver_;
  std::array<QueueShard, kShards> shards_;

  absl::Mutex sets_mu_;
  absl::flat_hash_map<SetRequest*, RefPtr<SetRequest>> sets_ ABSL_GUARDED_BY(sets_mu_);
};

}  // namespace latchkey::internal

#endif  // LATCHKEY_CORE_ENGINE_MANAGER_CORE_H_

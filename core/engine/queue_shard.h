// QueueShard is a part of a manager's resources: the queues of those of them that somebody waits
// for.
#ifndef LATCHKEY_CORE_ENGINE_QUEUE_SHARD_H_
#define LATCHKEY_CORE_ENGINE_QUEUE_SHARD_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/base/optimization.h"
#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "latchkey/core/base/lease.h"
#include "latchkey/core/engine/wait_queue.h"
#include "latchkey/core/lock/manager_context.h"

namespace latchkey::internal {

class QueueDriver;

struct ABSL_CACHELINE_ALIGNED QueueShard : ManagerShard {
  QueueShard(ManagerContext& of, QueueDriver& by) : ManagerShard(of), driver(by) {}

  // Waiters on resources of this shard.
  std::atomic<int64_t> waiting{0};

  QueueDriver& driver;  // Who works on them.

  absl::Mutex mu;
  absl::flat_hash_map<std::string, std::unique_ptr<WaitQueue>> queues ABSL_GUARDED_BY(mu);

  // Null: nobody waits.
  WaitQueue* Find(const ResourceName& resource) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    // A name's hash is the one that the table would compute.
    const auto found = queues.find(resource.bytes(), resource.hash());
    return found == queues.end() ? nullptr : found->second.get();
  }

  // Does anybody wait for the resource?
  bool HasWaiters(const ResourceName& resource) ABSL_LOCKS_EXCLUDED(mu) {
    return ABSL_PREDICT_FALSE(waiting.load(std::memory_order_relaxed) != 0) && Has(resource);
  }

  // Does anybody wait for it whose priority is as high?
  bool IsAnyoneAhead(const ResourceName& resource, Priority priority) ABSL_LOCKS_EXCLUDED(mu) {
    if (waiting.load(std::memory_order_relaxed) == 0) return false;
    absl::MutexLock lock(&mu);
    const WaitQueue* const queue = Find(resource);
    return queue != nullptr && !queue->empty() && queue->most_urgent()->terms.priority >= priority;
  }

 private:
  bool Has(const ResourceName& resource) ABSL_LOCKS_EXCLUDED(mu) {
    absl::MutexLock lock(&mu);
    const WaitQueue* const queue = Find(resource);
    return queue != nullptr && !queue->empty();
  }
};

}  // namespace latchkey::internal

#endif  // LATCHKEY_CORE_ENGINE_QUEUE_SHARD_H_

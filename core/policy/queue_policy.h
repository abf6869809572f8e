// QueuePolicy decides who is next among those who wait for one resource in one manager.
//
//   LockManagerOptions options{.queue = AgeingQueue({.step = absl::Milliseconds(100)})};
//
// Preemption jumps any order: whoever may take the lock from its holder asks for it at once.
// Custom orders hold within one manager; between managers it is priority, then first come.
//
// Thread safety: policies are stateless and called from any thread, also at once. They must not
// call the library, not block and not throw. If Rank throws all the same, the request that it was
// asked about fails with kInternal (Reason::kException); if another method does,
// LockManager::Create.
#ifndef LATCHKEY_CORE_POLICY_QUEUE_POLICY_H_
#define LATCHKEY_CORE_POLICY_QUEUE_POLICY_H_

#include <memory>

#include "absl/numeric/int128.h"
#include "absl/time/time.h"
#include "latchkey/core/base/lease.h"

namespace latchkey {

// What a policy may look at.
struct WaitingRequest {
  Priority priority = 0;
  // By the manager's clock.
  absl::Time enqueued = absl::InfinitePast();
};

class QueuePolicy {
 public:
  virtual ~QueuePolicy() = default;

  // The smallest rank is next. Called once for each request, before it begins to wait. Among equal
  // ranks the first come is next. A request with `skip_queue` gets the rank of the first of its
  // priority that waits, if that is smaller than its own, and goes before those of its rank.
  virtual absl::int128 Rank(const WaitingRequest& request) const = 0;

  // The rest is asked once, by LockManager::Create.
  // May a request that has just arrived take a free lock before those who wait? Allowing it gives
  // more throughput under contention and less fairness. The manager refuses it (kUnimplemented at
  // Create) on a backend that cannot honour it.
  virtual bool AllowsBarging() const { return false; }

  // True if ranks follow priority alone, which saves the manager some work.
  virtual bool RanksByPriority() const { return false; }
};

struct QueueOptions {
  bool barging = false;
};

// Highest priority first, and first come first served among equals: the default.
std::shared_ptr<const QueuePolicy> PriorityQueue(QueueOptions options = {});

// First come first served, whatever the priority. `skip_queue` goes to the front of them all.
std::shared_ptr<const QueuePolicy> FifoQueue(QueueOptions options = {});

struct AgeingOptions {
  // Waiting for this long counts as much as one step of priority; positive. With priorities of 0 to
  // 9 and a step of 100 ms nobody is overtaken by later comers for longer than 0.9 s.
  absl::Duration step = absl::Seconds(1);
  bool barging = false;
};

// Waiting raises the rank, so that nobody starves. A step that is not positive counts as 1 ns.
std::shared_ptr<const QueuePolicy> AgeingQueue(AgeingOptions options = {});

}  // namespace latchkey

#endif  // LATCHKEY_CORE_POLICY_QUEUE_POLICY_H_

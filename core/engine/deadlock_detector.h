// DeadlockDetector knows which named owners of this process wait for whom on one backend, and finds
// cycles: owners that wait for each other for ever.
//
// An owner is taken for one task: while it waits, it does not release what it holds. What is known
// of a holder may be old, so a cycle is only suspected at first. It is certain once every hold in
// it was seen after its owner had begun to wait, for from then on nothing can have changed.
//
// Anonymous owners cannot be told from each other, and are not in it. Managers that share a backend
// share the graph. Nothing here is looked at while nobody with a name waits.
//
// Thread safety: all methods may be called from any thread. Its mutex is taken under
// QueueShard::mu, and nothing is called under it.
#ifndef LATCHKEY_CORE_ENGINE_DEADLOCK_DETECTOR_H_
#define LATCHKEY_CORE_ENGINE_DEADLOCK_DETECTOR_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/synchronization/mutex.h"
#include "latchkey/core/base/lease.h"
#include "latchkey/core/base/ref_counted.h"
#include "latchkey/core/protocol/locking_protocol.h"

namespace latchkey::internal {

// One who waits, as far as the detector is concerned. It deletes itself with its last reference.
struct CycleWait : RefCounted<CycleWait> {
  CycleWait(const ResourceName& what, std::string_view who) : resource(what), owner(who) {}
  CycleWait(const CycleWait&) = delete;
  CycleWait& operator=(const CycleWait&) = delete;
  virtual ~CycleWait() = default;

  // Constant while it is added. Both over bytes that live as long.
  const ResourceName resource;
  const std::string_view owner;
  Priority priority = 0;
  // It takes the lock by force after a while, so it does not wait for ever.
  bool takes_by_force = false;
  // It gives back what its owner holds when somebody of higher priority wants that.
  bool gives_way = false;

 private:
  friend class DeadlockDetector;

  // Guarded by the detector's mutex.
  bool added_ = false;
  uint64_t since_ = 0;  // When it began to wait.
  size_t place_ = 0;    // Among its owner's waits.
};

class DeadlockDetector {
 public:
  // One step of a cycle: `waiter`, who waits for a resource that `holder` holds.
  struct Link {
    RefPtr<CycleWait> waiter;
    std::string holder;
    bool certain = false;
    // When the holder began to wait: what was asked then or later makes the link certain.
    uint64_t certain_from = 0;
  };
  // Each one's holder is the owner of the next one's waiter.
  struct Cycle {
    std::vector<Link> links;
    // "'a' waits for 'x', held by 'b', who waits for ...", of the first few and the last.
    std::string ToString() const;
    // Who has to give up: the lowest priority, and among equals the last to begin.
    CycleWait& Victim() const;
  };

  // The one graph of a backend.
  static std::shared_ptr<DeadlockDetector> Of(const LockingProtocol* backend);

  // Counts what happens, so that one can tell what came first.
  uint64_t Now() const { return time_.load(std::memory_order_relaxed); }
  // Does anybody with a name wait?
  bool active() const { return waits_count_.load(std::memory_order_relaxed) > 0; }

  // `waiter`, which has an owner with a name, waits from now on, until it is removed.
  void Add(CycleWait& waiter) ABSL_LOCKS_EXCLUDED(mu_);
  // Nothing happens if it was not added.
  void Remove(CycleWait& waiter) ABSL_LOCKS_EXCLUDED(mu_);
  // A backend that was asked at `asked` (see Now()) said who holds what `waiter` waits for.
  void SetHolder(const CycleWait& waiter, std::string_view holder, uint64_t asked)
      ABSL_LOCKS_EXCLUDED(mu_);

  bool HasSuspects() const { return suspects_count_.load(std::memory_order_relaxed) > 0; }
  std::vector<Cycle> TakeSuspects() ABSL_LOCKS_EXCLUDED(mu_);
  // Does everybody in it still wait, for the same as far as is known?
  bool Stands(const Cycle& cycle) ABSL_LOCKS_EXCLUDED(mu_);

 private:
  struct Wait {
    CycleWait* waiter;
    uint64_t since;
  };
  struct Resource {
    int waits = 0;  // By owners with names.
    std::string holder;
    uint64_t asked = 0;
  };

  void Search(std::string_view resource) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool Reach(std::string_view owner, const CycleWait* entered_by, std::string_view target,
             absl::flat_hash_set<std::string_view>& seen, std::vector<Wait>& path)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  std::atomic<uint64_t> time_{1};
  std::atomic<int64_t> waits_count_{0};
  std::atomic<int64_t> suspects_count_{0};

  absl::Mutex mu_;
  absl::flat_hash_map<std::string, std::vector<Wait>> waits_ ABSL_GUARDED_BY(mu_);
  absl::flat_hash_map<std::string, Resource> resources_ ABSL_GUARDED_BY(mu_);
  std::vector<Cycle> suspects_ ABSL_GUARDED_BY(mu_);
};

}  // namespace latchkey::internal

#endif  // LATCHKEY_CORE_ENGINE_DEADLOCK_DETECTOR_H_

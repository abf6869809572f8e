// WaitGraph knows which named owners of this process wait for whom on one backend, and finds
// circles: owners that wait for each other for ever.
//
// An owner is taken for one task: while it waits, it does not release what it holds. What is known
// of a holder may be old, so a circle is only suspected at first. It is certain once every hold in
// it was seen after its owner had begun to wait, for from then on nothing can have changed.
//
// Anonymous owners cannot be told from each other, and are not in it. Managers that share a backend
// share the graph. Nothing here is looked at while nobody with a name waits.
//
// Thread safety: all methods may be called from any thread. Its mutex is taken under
// CoreShard::mu, and nothing is called under it.
#ifndef LATCHKEY_CORE_INTERNAL_WAIT_GRAPH_H_
#define LATCHKEY_CORE_INTERNAL_WAIT_GRAPH_H_

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
#include "latchkey/core/internal/ref_counted.h"
#include "latchkey/core/lease.h"
#include "latchkey/core/locking_protocol.h"

namespace latchkey::internal {

struct Waiter;

class WaitGraph {
 public:
  // One step of a circle: `waiter`, who waits for a resource that `holder` holds.
  struct Link {
    RefPtr<Waiter> waiter;
    std::string holder;
    bool certain = false;
    // When the holder began to wait: what was asked then or later makes the link certain.
    uint64_t certain_from = 0;
  };
  // Each one's holder is the owner of the next one's waiter.
  struct Circle {
    std::vector<Link> links;
    // "'a' waits for 'x', held by 'b', who waits for ...", of the first few and the last.
    std::string ToString() const;
    // Who has to give up: the lowest priority, and among equals the last to begin.
    Waiter& Victim() const;
  };

  // The one graph of a backend.
  static std::shared_ptr<WaitGraph> Of(const LockingProtocol* backend);

  // Counts what happens, so that one can tell what came first.
  uint64_t Now() const { return time_.load(std::memory_order_relaxed); }
  // Does anybody with a name wait?
  bool active() const { return waits_count_.load(std::memory_order_relaxed) > 0; }

  // `waiter`, which has an owner with a name, waits from now on, until it is removed.
  void Add(Waiter& waiter) ABSL_LOCKS_EXCLUDED(mu_);
  void Remove(Waiter& waiter) ABSL_LOCKS_EXCLUDED(mu_);
  // A backend that was asked at `asked` (see Now()) said who holds what `waiter` waits for.
  void SetHolder(const Waiter& waiter, std::string_view holder, uint64_t asked)
      ABSL_LOCKS_EXCLUDED(mu_);

  bool HasSuspects() const { return suspects_count_.load(std::memory_order_relaxed) > 0; }
  std::vector<Circle> TakeSuspects() ABSL_LOCKS_EXCLUDED(mu_);
  // Does everybody in it still wait, for the same as far as is known?
  bool Stands(const Circle& circle) ABSL_LOCKS_EXCLUDED(mu_);

 private:
  struct Wait {
    Waiter* waiter;
    uint64_t since;
  };
  struct Resource {
    int waits = 0;  // By owners with names.
    std::string holder;
    uint64_t asked = 0;
  };

  void Search(std::string_view resource) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool Reach(std::string_view owner, const Waiter* entered_by, std::string_view target,
             absl::flat_hash_set<std::string_view>& seen, std::vector<Wait>& path)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  std::atomic<uint64_t> time_{1};
  std::atomic<int64_t> waits_count_{0};
  std::atomic<int64_t> suspects_count_{0};

  absl::Mutex mu_;
  absl::flat_hash_map<std::string, std::vector<Wait>> waits_ ABSL_GUARDED_BY(mu_);
  absl::flat_hash_map<std::string, Resource> resources_ ABSL_GUARDED_BY(mu_);
  std::vector<Circle> suspects_ ABSL_GUARDED_BY(mu_);
};

}  // namespace latchkey::internal

#endif  // LATCHKEY_CORE_INTERNAL_WAIT_GRAPH_H_

// ManagerContext is what the locks of one manager have in common, and all that a lock knows of the
// manager that it came from: the backend, the time, the threads, and who listens. It lives as long
// as any of them, also beyond the manager.
//
// Thread safety: all methods may be called from any thread.
#ifndef LATCHKEY_CORE_LOCK_MANAGER_CONTEXT_H_
#define LATCHKEY_CORE_LOCK_MANAGER_CONTEXT_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/base/optimization.h"
#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_set.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "latchkey/core/base/callback_scope.h"
#include "latchkey/core/base/clock.h"
#include "latchkey/core/base/contain.h"
#include "latchkey/core/base/executor.h"
#include "latchkey/core/base/inline_turn.h"
#include "latchkey/core/base/observer.h"
#include "latchkey/core/base/ref_counted.h"
#include "latchkey/core/protocol/locking_protocol.h"

namespace latchkey::internal {

class Hold;

// What the drift of clocks and the margin leave of a lease that the backend grants (rule C2).
inline absl::Duration SafeTimeOf(absl::Duration lease, const BackendCapabilities& backend) {
  const absl::Duration safe = backend.clock_drift == 0 ? lease : lease * (1 - backend.clock_drift);
  return safe - backend.lease_margin;
}

class ManagerContext {
 public:
  // `clock` and `executor` must outlive it; `observer`, which must not throw, may be null.
  ManagerContext(std::shared_ptr<LockingProtocol> backend, std::shared_ptr<Observer> observer,
                 Clock& clock, Executor& executor)
      : backend_(std::move(backend)),
        capabilities_(backend_->capabilities()),
        observer_(std::move(observer)),
        clock_(clock),
        executor_(executor),
        inline_executor_(&executor_ == &InlineExecutor()) {}
  ManagerContext(const ManagerContext&) = delete;
  ManagerContext& operator=(const ManagerContext&) = delete;

  LockingProtocol& backend() { return *backend_; }
  // For what may outlive the manager and its locks.
  const std::shared_ptr<LockingProtocol>& SharedBackend() const { return backend_; }
  Clock& clock() { return clock_; }
  Executor& executor() { return executor_; }
  Observer* observer() { return observer_.get(); }
  const BackendCapabilities& capabilities() const { return capabilities_; }

  // Runs `task`, which does not throw, on the executor as user code.
  template <typename Task>
  void RunUser(Task task) {
    auto scoped = [task = std::move(task)]() mutable {
      CallbackScope scope;
      Task mine = std::move(task);  // What it captured may be user code, too, and ends in here.
      mine();
    };
    if (inline_executor_) {
      InlineTurn turn;
      if (turn.mine()) return scoped();
      return InlineTurn::Later(std::move(scoped));
    }
    // A task that it does not take is dropped, as one that shuts down may do.
    RunContained("Executor::Execute", "", [&] { executor_.Execute(std::move(scoped)); });
  }
  // Runs a callback of the user's on the executor. What it throws ends there, see contain.h; the
  // rest is for the log. `where` is a literal, and `resource()` says the name, then.
  template <typename Name, typename Task>
  requires std::is_invocable_v<const Name&>
  void CallUser(std::string_view where, Name resource, Task task) {
    if (inline_executor_) {
      InlineTurn turn;
      if (turn.mine()) return RunHere(where, resource(), task);
    }
    RunUser([where, resource = std::move(resource), task = std::move(task)]() mutable {
      RunContained(where, resource(), task);
    });
  }
  // The same with a name that must outlive this call.
  template <typename Task>
  void CallUser(std::string_view where, std::string_view resource, Task task) {
    if (inline_executor_) {
      InlineTurn turn;
      if (turn.mine()) return RunHere(where, resource, task);
    }
    RunUser([where, resource = std::string(resource), task = std::move(task)]() mutable {
      RunContained(where, resource, task);
    });
  }

  // What drift and margin leave of a finite lease (rule C2).
  absl::Duration TimeOf(absl::Duration lease) const { return SafeTimeOf(lease, capabilities_); }
  // The moment up to which a lease that was asked for at `sent` is safe to rely on.
  absl::Time ValidUntil(absl::Time sent, absl::Duration remaining) const {
    if (remaining == absl::InfiniteDuration()) return absl::InfiniteFuture();
    return sent + TimeOf(remaining);
  }

 private:
  template <typename Task>
  static void RunHere(std::string_view where, std::string_view resource, Task& task) {
    CallbackScope scope;
    Task mine = std::move(task);
    RunContained(where, resource, mine);
  }

 protected:
  friend struct ManagerShard;
  virtual ~ManagerContext() = default;

  const std::shared_ptr<LockingProtocol> backend_;
  const BackendCapabilities& capabilities_;
  const std::shared_ptr<Observer> observer_;  // Null: nobody observes.
  Clock& clock_;
  Executor& executor_;
  const bool inline_executor_;
  // The shards that somebody still refers to. The context deletes itself with the last.
  std::atomic<int64_t> open_shards_{0};
};

// One of the parts that a manager's locks are spread over, so that they do not all count on the
// same cache line.
struct ManagerShard {
  explicit ManagerShard(ManagerContext& of) : context(&of) {
    of.open_shards_.fetch_add(1, std::memory_order_relaxed);
  }

  ManagerContext* const context;
  // One for the manager itself, one for each lock, hold and waiter.
  std::atomic<int64_t> live{1};

  void Ref() { live.fetch_add(1, std::memory_order_relaxed); }
  // May delete the context.
  void Unref() {
    if (ABSL_PREDICT_FALSE(live.fetch_sub(1, std::memory_order_acq_rel) == 1)) Close();
  }

  // Holds of this shard, where the backend cannot tell who holds what. Each removes itself.
  void Add(Hold& hold) ABSL_LOCKS_EXCLUDED(holds_mu);
  void Remove(Hold& hold) ABSL_LOCKS_EXCLUDED(holds_mu);
  std::vector<RefPtr<Hold>> Holds() ABSL_LOCKS_EXCLUDED(holds_mu);

 private:
  void Close();

  absl::Mutex holds_mu;
  absl::flat_hash_set<Hold*> holds ABSL_GUARDED_BY(holds_mu);
};

// Keeps a shard, and with it the context, alive.
class LiveRef {
 public:
  explicit LiveRef(ManagerShard& shard) : shard_(&shard) { shard_->Ref(); }
  LiveRef(LiveRef&& other) noexcept : shard_(std::exchange(other.shard_, nullptr)) {}
  LiveRef& operator=(LiveRef&&) = delete;
  // Leaves the reference to the caller.
  void Release() { shard_ = nullptr; }
  ~LiveRef() {
    if (shard_ != nullptr) shard_->Unref();
  }

 private:
  ManagerShard* shard_;
};

}  // namespace latchkey::internal

#endif  // LATCHKEY_CORE_LOCK_MANAGER_CONTEXT_H_

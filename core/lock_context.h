// LockContext is what a body sees of the lock, or the set of locks, that it runs under
// (LockManager::Run, RunAll).
//
//   absl::Status status = locks.Run("report", {.max_execution_time = absl::Minutes(5)},
//                                   [&](LockContext& context) -> absl::Status {
//     for (const Page& page : pages) {
//       if (absl::Status stop = context.CheckPoint(); !stop.ok()) return stop;
//       store.Write(page, context.fencing_token());
//     }
//     return absl::OkStatus();
//   });
//
// A body that runs longer than it may keeps its lock: it is asked to stop, and the lock is released
// when it returns. It may lose the lock as any holder may (core/lock.h), which CheckPoint() tells.
//
// Thread safety: all methods may be called from any thread. Copies are the same context. It may be
// kept after the body has finished: then it says that the lock was released.
#ifndef LATCHKEY_CORE_LOCK_CONTEXT_H_
#define LATCHKEY_CORE_LOCK_CONTEXT_H_

#include <atomic>
#include <memory>
#include <optional>
#include <stop_token>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "latchkey/core/base/lease.h"
#include "latchkey/core/base/ref_counted.h"
#include "latchkey/core/lock/hold.h"
#include "latchkey/core/lock/lock.h"
#include "latchkey/core/lock/lock_set.h"

namespace latchkey {

namespace internal {
class RunGuard;
class RunState;
}  // namespace internal

class LockContext {
 public:
  // Moving copies: there is no context that is none.
  LockContext(const LockContext&) = default;
  LockContext& operator=(const LockContext&) = default;

  // OK as long as the body may go on. Call it between two steps of the work, and return what it
  // says. kAborted: the lock is lost (kStolen, kExpired, kLost), or somebody of higher priority
  // waits for it (kYieldRequested). kDeadlineExceeded: max_execution_time or max_occupation_time is
  // over.
  absl::Status CheckPoint() const;

  // Requested to stop as soon as CheckPoint() would fail; stays requested.
  std::stop_token stop_token() const;

  // The number to pass along with every write to the protected resource. Under several locks, that
  // of the first in their order, or of the one named; 0 if it is none of them.
  FencingToken fencing_token() const;
  FencingToken fencing_token(std::string_view resource) const;

 private:
  friend class internal::RunGuard;
  friend class internal::RunState;
  friend class NonPreemptibleScope;

  explicit LockContext(std::shared_ptr<internal::RunState> state) : state_(std::move(state)) {}

  std::shared_ptr<internal::RunState> state_;
};

// A phase that must not be interrupted: while it lives, the holder is not told that it should
// yield (no stop token is requested, no callback is called, CheckPoint() is OK), and is told
// afterwards if somebody still waits.
//
//   {
//     NonPreemptibleScope commit(*lock);
//     ...
//   }
//
// It is of the handle that it was made with: another handle of the same owner on the same resource
// is told. It puts off the news and nothing else: the state says kYielding, a lease that was not
// renewed because somebody waits still ends, and so does the grace of a forced hand-over. A loss is
// told at once. For a hold that nobody may ask for at all there is AcquireOptions::preemptible.
//
// Thread safety: one thread makes and destroys it. It may outlive the lock.
class [[nodiscard]] NonPreemptibleScope {
 public:
  explicit NonPreemptibleScope(const Lock& lock);
  explicit NonPreemptibleScope(const LockSet& locks);
  explicit NonPreemptibleScope(const LockContext& context);
  NonPreemptibleScope(const NonPreemptibleScope&) = delete;
  NonPreemptibleScope& operator=(const NonPreemptibleScope&) = delete;
  ~NonPreemptibleScope();

 private:
  void Add(internal::RefPtr<internal::Hold> hold);

  std::vector<internal::RefPtr<internal::Hold>> holds_;
};

namespace internal {

// Releases when a body has returned, or thrown.
class RunGuard {
 public:
  explicit RunGuard(const LockContext& context) : context_(context) {}
  RunGuard(const RunGuard&) = delete;
  RunGuard& operator=(const RunGuard&) = delete;
  ~RunGuard();

  LockContext& context() { return context_; }
  // Releases; OK if the body's result, whose status this is, is what the caller gets.
  absl::Status Finish(const absl::Status& body);

 private:
  LockContext context_;
};

// The value of a body that finishes later, until its caller gets it.
template <typename T>
class FirstValue {
 public:
  // Takes the value over, if there is one. False: there was a result before.
  bool Set(absl::StatusOr<T>& result) {
    if (set_.exchange(true)) return false;
    if (result.ok()) value_.emplace(*std::move(result));
    return true;
  }
  T Take() { return *std::move(value_); }

 private:
  std::atomic<bool> set_ = false;
  std::optional<T> value_;
};

// The status of what a body returned.
inline const absl::Status& StatusOf(const absl::Status& status) { return status; }
template <typename T>
const absl::Status& StatusOf(const absl::StatusOr<T>& result) {
  return result.status();
}

}  // namespace internal

}  // namespace latchkey

#endif  // LATCHKEY_CORE_LOCK_CONTEXT_H_

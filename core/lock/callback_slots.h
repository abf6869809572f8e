// CallbackSlots hold what a lock's holder wants to be called for, one callback for each kind of
// news, and see to it that none runs any more once they are closed.
//
// Thread safety: all methods may be called from any thread. Its mutex may be taken under the
// hold's; nothing is called under it.
#ifndef LATCHKEY_CORE_LOCK_CALLBACK_SLOTS_H_
#define LATCHKEY_CORE_LOCK_CALLBACK_SLOTS_H_

#include <algorithm>
#include <atomic>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/synchronization/mutex.h"
#include "latchkey/core/lock/lock.h"

namespace latchkey::internal {

class CallbackSlots {
 public:
  using YieldCallback = absl::AnyInvocable<void()>;
  using LostCallback = absl::AnyInvocable<void(LockState)>;

  // False: they are closed, and nothing changes. The old callback ends in the caller's hands.
  bool SetYield(YieldCallback& callback) ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    if (closed_) return false;
    std::swap(on_yield_, callback);
    had_yield_.store(true, std::memory_order_release);
    return true;
  }
  bool SetLost(LostCallback& callback) ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    if (closed_) return false;
    std::swap(on_lost_, callback);
    had_lost_.store(true, std::memory_order_release);
    return true;
  }

  // Was one ever set? Whether there is one to run now, Begin...() says.
  bool had_yield() const { return had_yield_.load(std::memory_order_acquire); }
  bool had_lost() const { return had_lost_.load(std::memory_order_acquire); }

  // Takes the callback to run it on this thread, which has to call the other function afterwards.
  // Null: there is none, or it shall not run any more.
  YieldCallback BeginYield() ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    if (closed_ || on_yield_ == nullptr) return nullptr;
    running_.push_back(std::this_thread::get_id());
    return std::exchange(on_yield_, nullptr);
  }
  // It stays, unless it was replaced.
  void EndYield(YieldCallback callback) ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    if (on_yield_ == nullptr && !closed_) on_yield_ = std::move(callback);
    NoteEnd();
  }
  // The same; it runs once.
  LostCallback BeginLost() ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    if (closed_ || on_lost_ == nullptr) return nullptr;
    running_.push_back(std::this_thread::get_id());
    return std::exchange(on_lost_, nullptr);
  }
  void EndLost() ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    NoteEnd();
  }

  // From now on none begins. Waits for one that runs on another thread, not for one that runs on
  // this one. The callbacks end with the mutex free.
  void Close() ABSL_LOCKS_EXCLUDED(mu_) {
    YieldCallback on_yield;
    LostCallback on_lost;
    absl::MutexLock lock(&mu_);
    closed_ = true;
    on_yield = std::move(on_yield_);
    on_lost = std::move(on_lost_);
    if (running_.empty()) return;
    const auto alone = [this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) {
      const auto self = std::this_thread::get_id();
      return std::all_of(running_.begin(), running_.end(),
                         [&](std::thread::id id) { return id == self; });
    };
    mu_.Await(absl::Condition(&alone));
  }

 private:
  void NoteEnd() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    running_.erase(std::find(running_.begin(), running_.end(), std::this_thread::get_id()));
  }

  std::atomic<bool> had_yield_{false};
  std::atomic<bool> had_lost_{false};
  absl::Mutex mu_;
  YieldCallback on_yield_ ABSL_GUARDED_BY(mu_);
  LostCallback on_lost_ ABSL_GUARDED_BY(mu_);
  std::vector<std::thread::id> running_ ABSL_GUARDED_BY(mu_);
  bool closed_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace latchkey::internal

#endif  // LATCHKEY_CORE_LOCK_CALLBACK_SLOTS_H_

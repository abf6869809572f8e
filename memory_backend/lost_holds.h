// LostHolds remembers the holds that were taken by force, until their holders have let go of them:
// a holder that did not listen asks later what became of its lock, and which one that was.
//
// Thread safety: all methods may be called from any thread. Its mutex is taken under a shard's.
#ifndef LATCHKEY_MEMORY_BACKEND_LOST_HOLDS_H_
#define LATCHKEY_MEMORY_BACKEND_LOST_HOLDS_H_

#include <atomic>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "latchkey/core/base/lease.h"

namespace latchkey::memory_backend_internal {

class LostHolds {
 public:
  void Note(AcquisitionId handle, std::string_view resource) ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    if (holds_.size() >= kMost) return;
    holds_.emplace(handle, resource);
    size_.store(holds_.size(), std::memory_order_release);
  }

  // The resource of a hold that was taken by force.
  std::optional<std::string> Find(AcquisitionId handle) const ABSL_LOCKS_EXCLUDED(mu_) {
    if (empty()) return std::nullopt;
    absl::MutexLock lock(&mu_);
    const auto found = holds_.find(handle);
    if (found == holds_.end()) return std::nullopt;
    return found->second;
  }

  void Forget(AcquisitionId handle) ABSL_LOCKS_EXCLUDED(mu_) {
    if (empty()) return;
    absl::MutexLock lock(&mu_);
    if (holds_.erase(handle) == 0) return;
    size_.store(holds_.size(), std::memory_order_release);
    // A map that was large once is not kept.
    if (holds_.empty()) holds_ = {};
  }

 private:
  // Clients that never release what they have lost must not fill the memory.
  static constexpr size_t kMost = 65536;

  bool empty() const { return size_.load(std::memory_order_acquire) == 0; }

  std::atomic<size_t> size_ = 0;
  mutable absl::Mutex mu_;
  absl::flat_hash_map<AcquisitionId, std::string> holds_ ABSL_GUARDED_BY(mu_);
};

}  // namespace latchkey::memory_backend_internal

#endif  // LATCHKEY_MEMORY_BACKEND_LOST_HOLDS_H_

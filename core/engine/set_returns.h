// SetReturns counts what a request for several locks has given back on its way, until the backend
// has answered.
//
// Thread safety: all methods may be called from any thread.
#ifndef LATCHKEY_CORE_ENGINE_SET_RETURNS_H_
#define LATCHKEY_CORE_ENGINE_SET_RETURNS_H_

#include <cstddef>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"

namespace latchkey::internal {

class SetReturns {
 public:
  // One lock is about to be given back.
  void Begin() ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    ++due_;
  }
  // The answer to that: OK, or why the backend may have kept it. True: it is the last one, and
  // awaited.
  bool End(const absl::Status& status) ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    --due_;
    if (!status.ok()) kept_ = status;
    return awaited_ && due_ == 0;
  }
  // From now on the last answer is awaited. False: all are there.
  bool Await() ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    awaited_ = true;
    return due_ > 0;
  }
  bool AllAnswered() const ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    return due_ == 0;
  }
  // Why the backend may have kept something; OK: no answer has said so.
  absl::Status kept() const ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    return kept_;
  }

 private:
  mutable absl::Mutex mu_;
  size_t due_ ABSL_GUARDED_BY(mu_) = 0;
  absl::Status kept_ ABSL_GUARDED_BY(mu_);
  bool awaited_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace latchkey::internal

#endif  // LATCHKEY_CORE_ENGINE_SET_RETURNS_H_

// Marks the time during which user code is called back, so that blocking calls can refuse to run
// inside it instead of hanging the thread that everybody waits for. Nor does it inherit the owner
// of the task that happens to run on that thread.
#ifndef LATCHKEY_CORE_BASE_CALLBACK_SCOPE_H_
#define LATCHKEY_CORE_BASE_CALLBACK_SCOPE_H_

#include <string_view>

#include "absl/status/status.h"
#include "latchkey/core/base/scoped_owner.h"

namespace latchkey::internal {

class CallbackScope {
 public:
  CallbackScope() { ++depth_; }
  ~CallbackScope() { --depth_; }
  CallbackScope(const CallbackScope&) = delete;
  CallbackScope& operator=(const CallbackScope&) = delete;

  // Is this thread inside a callback of the library?
  static bool Active() { return depth_ > 0; }

 private:
  static inline thread_local int depth_ = 0;

  const OwnerInForce nobody_{nullptr};
};

// kFailedPrecondition (kWouldBlock) for a call named `call` on what is named in words.
absl::Status WouldBlockError(std::string_view call, std::string_view what);

// kFailedPrecondition (kMovedFrom) for such a call on a lock manager.
absl::Status MovedFromError(std::string_view call);

}  // namespace latchkey::internal

#endif  // LATCHKEY_CORE_BASE_CALLBACK_SCOPE_H_

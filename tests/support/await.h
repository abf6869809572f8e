// Turns the callback form into a value for tests: waits until the callback came, or fails the test
// after a time that only a hang meets.
//
//   auto reply = Await<ObtainReply>([&](auto done) { backend.Obtain(request, std::move(done)); });
#ifndef LATCHKEY_TESTS_SUPPORT_AWAIT_H_
#define LATCHKEY_TESTS_SUPPORT_AWAIT_H_

#include <algorithm>
#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace latchkey {

// No test waits so long unless something hangs.
inline constexpr absl::Duration kHangGuard = absl::Seconds(45);

// How long to wait for what should come, in this process: each wait that was in vain halves the
// time for those that follow. By then the test has failed, and has only to end. Thread-safe.
class Patience {
 public:
  static absl::Duration Of(absl::Duration whole = kHangGuard) {
    constexpr int kMostHalvings = 10;
    return whole / (1 << std::min(in_vain_.load(), kMostHalvings));
  }
  static void WasInVain() { ++in_vain_; }

 private:
  inline static std::atomic<int> in_vain_{0};
};

template <typename T>
absl::StatusOr<T> Await(
    absl::FunctionRef<void(absl::AnyInvocable<void(absl::StatusOr<T>)>)> begin) {
  struct State {
    absl::Mutex mutex;
    std::optional<absl::StatusOr<T>> result ABSL_GUARDED_BY(mutex);
  };
  auto state = std::make_shared<State>();
  begin([state](absl::StatusOr<T> result) {
    absl::MutexLock lock(&state->mutex);
    state->result = std::move(result);
  });
  absl::MutexLock lock(&state->mutex);
  auto settled = [&state] {
    state->mutex.AssertReaderHeld();
    return state->result.has_value();
  };
  if (!state->mutex.AwaitWithTimeout(absl::Condition(&settled), Patience::Of())) {
    Patience::WasInVain();
    return absl::InternalError("the callback never came");
  }
  return *std::move(state->result);
}

// A list that one thread appends to and another waits on. Thread-safe.
template <typename T>
class Mailbox {
 public:
  void Put(T item) {
    absl::MutexLock lock(&mutex_);
    items_.push_back(std::move(item));
  }

  // Waits until an item is there that `wanted` accepts, and removes it with all before it. Nothing
  // if it hangs.
  std::optional<T> Take(std::function<bool(const T&)> wanted = [](const T&) { return true; }) {
    absl::MutexLock lock(&mutex_);
    size_t at = 0;
    auto found = [&] {
      mutex_.AssertReaderHeld();
      for (at = 0; at < items_.size(); ++at) {
        if (wanted(items_[at])) return true;
      }
      return false;
    };
    if (!mutex_.AwaitWithTimeout(absl::Condition(&found), Patience::Of())) {
      Patience::WasInVain();
      return std::nullopt;
    }
    T item = std::move(items_[at]);
    items_.erase(items_.begin(), items_.begin() + static_cast<std::ptrdiff_t>(at) + 1);
    return item;
  }

  std::vector<T> All() {
    absl::MutexLock lock(&mutex_);
    return items_;
  }

 private:
  absl::Mutex mutex_;
  std::vector<T> items_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace latchkey

#endif  // LATCHKEY_TESTS_SUPPORT_AWAIT_H_

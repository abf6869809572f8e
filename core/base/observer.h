// Observer hears what happens to the locks of a manager: for metrics, logs and traces. Override
// what you want to hear; StatsObserver is one that counts.
//
//   class LossLog : public latchkey::Observer {
//     void OnLost(const Subject& who) override { log_.Append("lost: ", who.resource); }
//     ...
//   };
//   LockManager::Create(NewMemoryBackend(), {.observer = std::make_shared<LossLog>()});
//
// Events are of handles: an owner that enters a lock which it holds already is granted it again,
// and gives it back as often.
//
// Thread safety: called from any thread, also at once, with no mutex of the library held. Methods
// must be quick, must not block, must not call the manager, and must not throw. What one throws all
// the same is logged and changes nothing about the request.
#ifndef LATCHKEY_CORE_BASE_OBSERVER_H_
#define LATCHKEY_CORE_BASE_OBSERVER_H_

#include <cstdint>
#include <string_view>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "latchkey/core/base/lease.h"

namespace latchkey {

class Observer {
 public:
  // What an event is about. The views are valid during the call only.
  struct Subject {
    std::string_view resource;
    std::string_view owner;  // Empty: anonymous.
    Priority priority = 0;
    AcquisitionId acquisition = {};
  };

  virtual ~Observer() = default;

  // A request was granted after waiting for `waited`.
  virtual void OnAcquired(const Subject& who, absl::Duration waited) {
    static_cast<void>(who), static_cast<void>(waited);
  }
  // A request failed: not admitted, timed out, cancelled, attempts used up, deadlock, backend down.
  virtual void OnDenied(const Subject& who, absl::Duration waited, const absl::Status& why) {
    static_cast<void>(who), static_cast<void>(waited), static_cast<void>(why);
  }
  // The number of a manager's requests that wait for a resource has changed, by `change`, to
  // `length`. Calls on several threads may come in another order than the changes: to know how many
  // wait in the end, or wait through several managers, add up `change`.
  virtual void OnQueueLength(std::string_view resource, int64_t length, int64_t change) {
    static_cast<void>(resource), static_cast<void>(length), static_cast<void>(change);
  }
  // A holder of this manager was asked to yield to somebody of `thief_priority`.
  virtual void OnPreempted(const Subject& who, Priority thief_priority) {
    static_cast<void>(who), static_cast<void>(thief_priority);
  }
  // A hold of this manager was taken by force, ran out, or was found to be gone.
  virtual void OnStolen(const Subject& who) { static_cast<void>(who); }
  virtual void OnExpired(const Subject& who) { static_cast<void>(who); }
  virtual void OnLost(const Subject& who) { static_cast<void>(who); }
  // A hold was given back after `held`. Told when the backend has answered, so the next holder's
  // OnAcquired may come first. One that turns out to have been lost before is a loss instead.
  virtual void OnReleased(const Subject& who, absl::Duration held) {
    static_cast<void>(who), static_cast<void>(held);
  }
};

}  // namespace latchkey

#endif  // LATCHKEY_CORE_BASE_OBSERVER_H_

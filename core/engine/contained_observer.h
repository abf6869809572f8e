// ContainedObserver passes everything on to the user's observer, and keeps what that throws from
// reaching the request that it was told of.
//
// Thread safety: as Observer.
#ifndef LATCHKEY_CORE_ENGINE_CONTAINED_OBSERVER_H_
#define LATCHKEY_CORE_ENGINE_CONTAINED_OBSERVER_H_

#include <memory>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "latchkey/core/base/contain.h"
#include "latchkey/core/base/observer.h"

namespace latchkey::internal {

class ContainedObserver final : public Observer {
 public:
  explicit ContainedObserver(std::shared_ptr<Observer> observer) : observer_(std::move(observer)) {}

  void OnAcquired(const Subject& who, absl::Duration waited) override {
    RunContained("Observer::OnAcquired", who.resource, [&] { observer_->OnAcquired(who, waited); });
  }
  void OnDenied(const Subject& who, absl::Duration waited, const absl::Status& why) override {
    RunContained("Observer::OnDenied", who.resource,
                 [&] { observer_->OnDenied(who, waited, why); });
  }
  void OnQueueLength(std::string_view resource, int64_t length, int64_t change) override {
    RunContained("Observer::OnQueueLength", resource,
                 [&] { observer_->OnQueueLength(resource, length, change); });
  }
  void OnPreempted(const Subject& who, Priority thief_priority) override {
    RunContained("Observer::OnPreempted", who.resource,
                 [&] { observer_->OnPreempted(who, thief_priority); });
  }
  void OnStolen(const Subject& who) override {
    RunContained("Observer::OnStolen", who.resource, [&] { observer_->OnStolen(who); });
  }
  void OnExpired(const Subject& who) override {
    RunContained("Observer::OnExpired", who.resource, [&] { observer_->OnExpired(who); });
  }
  void OnLost(const Subject& who) override {
    RunContained("Observer::OnLost", who.resource, [&] { observer_->OnLost(who); });
  }
  void OnReleased(const Subject& who, absl::Duration held) override {
    RunContained("Observer::OnReleased", who.resource, [&] { observer_->OnReleased(who, held); });
  }

 private:
  const std::shared_ptr<Observer> observer_;
};

}  // namespace latchkey::internal

#endif  // LATCHKEY_CORE_ENGINE_CONTAINED_OBSERVER_H_

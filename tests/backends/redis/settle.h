// For conformance on real servers.
#ifndef LATCHKEY_TESTS_BACKENDS_REDIS_SETTLE_H_
#define LATCHKEY_TESTS_BACKENDS_REDIS_SETTLE_H_

#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "latchkey/core/locking_protocol.h"
#include "latchkey/tests/support/await.h"

namespace latchkey {

// Returns once everything that the server told this client before has arrived: a message goes the
// same way after it.
inline void AwaitEventsOf(LockingProtocol& client) {
  const std::string resource = absl::StrCat("settle ", AcquisitionId::Next().ToString());
  const AcquisitionId holder = AcquisitionId::Next();
  const AcquisitionId thief = AcquisitionId::Next();
  auto arrived = std::make_shared<absl::Notification>();
  auto obtain = [&](AcquisitionId id, Priority priority) {
    Await<ObtainReply>([&](auto done) {
      client.Obtain({.resource = resource,
                     .acquisition = id,
                     .priority = priority,
                     .lease = absl::Seconds(20),
                     .reserve_below = priority,
                     .reservation_lease = absl::Seconds(20)},
                    std::move(done));
    }).IgnoreError();
  };
  obtain(thief, 1);
  const Subscription subscription =
      client.Watch({.resource = resource, .acquisition = thief, .role = WatchRole::kHolder},
                   [arrived](const WatchEvent&) {
                     if (!arrived->HasBeenNotified()) arrived->Notify();
                   });
  obtain(holder, 2);
  arrived->WaitForNotificationWithTimeout(kHangGuard);
  for (const AcquisitionId id : {holder, thief}) {
    Await<ReleaseOutcome>([&](auto done) {
      client.Release({.resource = resource, .acquisition = id}, std::move(done));
    }).IgnoreError();
  }
}

}  // namespace latchkey

#endif  // LATCHKEY_TESTS_BACKENDS_REDIS_SETTLE_H_

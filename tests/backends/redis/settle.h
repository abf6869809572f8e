// For conformance on real servers.
#ifndef LATCHKEY_TESTS_BACKENDS_REDIS_SETTLE_H_
#define LATCHKEY_TESTS_BACKENDS_REDIS_SETTLE_H_

#include <memory>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "latchkey/core/protocol/locking_protocol.h"
#include "latchkey/tests/support/await.h"

namespace latchkey {

// Returns once everything that the server told this client before has arrived: a message goes the
// same way after it. If that does not come, the test has failed.
inline void AwaitEventsOf(LockingProtocol& client) {
  const std::string resource = absl::StrCat("settle ", AcquisitionId::Next().ToString());
  const AcquisitionId holder = AcquisitionId::Next();
  const AcquisitionId thief = AcquisitionId::Next();
  auto arrived = std::make_shared<absl::Notification>();
  auto obtain = [&](AcquisitionId id, Priority priority) {
    return Await<ObtainReply>([&](auto done) {
      client.Obtain({.resource = resource,
                     .acquisition = id,
                     .priority = priority,
                     .lease = absl::Seconds(20),
                     .reserve_below = priority,
                     .reservation_lease = absl::Seconds(20)},
                    std::move(done));
    });
  };
  const absl::StatusOr<ObtainReply> held = obtain(thief, 1);
  const Subscription subscription =
      client.Watch({.resource = resource, .acquisition = thief, .role = WatchRole::kHolder},
                   [arrived](const WatchEvent&) {
                     if (!arrived->HasBeenNotified()) arrived->Notify();
                   });
  const absl::StatusOr<ObtainReply> reserved = obtain(holder, 2);
  if (!held.ok() || !reserved.ok() || reserved->outcome != ObtainOutcome::kReserved) {
    ADD_FAILURE() << "nothing could be reserved to await the events by: " << held.status() << ", "
                  << reserved.status();
  } else if (!arrived->WaitForNotificationWithTimeout(Patience::Of())) {
    Patience::WasInVain();
    ADD_FAILURE() << "waited in vain for " << WatchEventKind::kYieldRequested
                  << ", which comes after all other events";
  }
  for (const AcquisitionId id : {holder, thief}) {
    Await<ReleaseOutcome>([&](auto done) {
      client.Release({.resource = resource, .acquisition = id}, std::move(done));
    }).IgnoreError();
  }
}

}  // namespace latchkey

#endif  // LATCHKEY_TESTS_BACKENDS_REDIS_SETTLE_H_

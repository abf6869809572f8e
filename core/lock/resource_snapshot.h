// ResourceSnapshot is what LockManager::Snapshot() says of one resource. A plain value.
#ifndef LATCHKEY_CORE_LOCK_RESOURCE_SNAPSHOT_H_
#define LATCHKEY_CORE_LOCK_RESOURCE_SNAPSHOT_H_

#include <string>
#include <vector>

#include "absl/time/time.h"
#include "latchkey/core/base/lease.h"
#include "latchkey/core/protocol/locking_protocol.h"

namespace latchkey {

// What a manager knows of one resource, for diagnostics.
struct ResourceSnapshot {
  // The holder and its successor, of whatever manager where the backend can tell, else of this one.
  ResourceState state = {};
  // Those of this manager that wait, in the order in which they are next: the successor, if it is
  // one of them, and then by the queue policy.
  struct Waiter {
    std::string owner = {};
    Priority priority = 0;
    absl::Duration waited = absl::ZeroDuration();
    bool reserved = false;  // It is the successor.
  };
  std::vector<Waiter> waiters = {};
};

}  // namespace latchkey

#endif  // LATCHKEY_CORE_LOCK_RESOURCE_SNAPSHOT_H_

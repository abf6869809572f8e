// The backend for use inside one process: a sharded table of records.
//
//   absl::StatusOr<LockManager> locks = LockManager::Create(NewMemoryBackend());
//
// It implements every step of the protocol exactly as core/lock_record does, and is tested against
// it. Leases may be infinite (the default) and otherwise really expire: a timer drops the hold and
// wakes the next waiter although nobody calls. Any byte string is a resource's name. A resource
// that is free again takes no memory: fencing tokens come from one counter for each shard, so they
// never go back although nothing is kept for a name that was locked once.
//
// Capabilities: infinite leases, reliable events, order kept among the waiters of all managers,
// barging, forced hand-over, Inspect. It may be a member of a quorum.
//
// Thread safety: all methods may be called from any thread.
#ifndef LATCHKEY_MEMORY_BACKEND_MEMORY_BACKEND_H_
#define LATCHKEY_MEMORY_BACKEND_MEMORY_BACKEND_H_

#include <memory>

#include "latchkey/core/base/clock.h"
#include "latchkey/core/protocol/locking_protocol.h"

namespace latchkey {

struct MemoryBackendOptions {
  // Tells the time and wakes when leases end; null: RealClock(). Must outlive the backend and every
  // lock on it. Not used while all leases are infinite, but for the coarse time of a hold's begin.
  Clock* clock = nullptr;

  // In how many independently locked parts the table is split; rounded up to a power of two, at
  // least 1 and at most 65,536.
  int shards = 256;
};

// A backend with no locks. Never null, never fails. Managers and locks share its ownership.
std::shared_ptr<LockingProtocol> NewMemoryBackend(MemoryBackendOptions options = {});

}  // namespace latchkey

#endif  // LATCHKEY_MEMORY_BACKEND_MEMORY_BACKEND_H_

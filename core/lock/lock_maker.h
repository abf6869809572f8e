// LockMaker makes the Locks that the engine grants.
#ifndef LATCHKEY_CORE_LOCK_LOCK_MAKER_H_
#define LATCHKEY_CORE_LOCK_LOCK_MAKER_H_

#include "latchkey/core/base/lease.h"
#include "latchkey/core/lock/hold.h"
#include "latchkey/core/lock/lock.h"
#include "latchkey/core/lock/manager_context.h"

namespace latchkey::internal {

struct LockMaker {
  // A plain lock: the backend knows everything there is to know. Takes over a live reference of the
  // shard's.
  static Lock Plain(ManagerShard& shard, AcquisitionId id, FencingToken token, LeaseHint hint) {
    return Lock(&shard, id, token, hint);
  }
  // One with a life of its own. The same.
  static Lock WithHold(ManagerShard& shard, HoldTerms&& terms);
};

}  // namespace latchkey::internal

#endif  // LATCHKEY_CORE_LOCK_LOCK_MAKER_H_

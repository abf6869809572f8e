// What became of a lock that is not held any more, and how to say so.
#ifndef LATCHKEY_CORE_LOCK_LOSS_H_
#define LATCHKEY_CORE_LOCK_LOSS_H_

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "latchkey/core/base/lease.h"
#include "latchkey/core/base/lock_error.h"
#include "latchkey/core/lock/lock.h"
#include "latchkey/core/protocol/locking_protocol.h"

namespace latchkey::internal {

// Is the lock in this state lost? Does a step that ends with this reason say so?
bool IsLoss(LockState state);
bool IsLoss(Reason reason);
// Of a state that is a loss.
Reason ReasonOfLoss(LockState state);
// For messages. The resource may be empty: not known.
std::string LockForMessage(std::string_view resource, FencingToken token);
// The error of a lock that is not held any more; says who holds the resource now where the backend
// can tell at once.
absl::Status LossError(LockState state, const LockingProtocol& backend, std::string_view resource,
                       FencingToken token);
// Why a hold ended that the backend says is gone; kExpired if it cannot tell. Before, or in, the
// answer to its release.
HoldEnd AskWhatBecameOf(LockingProtocol& backend, const HoldRef& hold);

}  // namespace latchkey::internal

#endif  // LATCHKEY_CORE_LOCK_LOSS_H_

// One backend made of several independent ones: a lock is held while a majority of them grants it.
// Over N Redis servers this is Redlock, with fencing tokens and preemption.
//
//   std::vector<std::shared_ptr<LockingProtocol>> servers;
//   for (const std::string& url : urls) {
//     servers.push_back(*ConnectRedisBackend({.url = url, .wait_for_connection = false}));
//   }
//   auto locks = LockManager::Create(*NewQuorumBackend(std::move(servers)));
//
// All are asked at once, and the answer is given as soon as a majority has decided. A hold counts
// only where q = N/2 + 1 of them grant it *and* have confirmed the same fencing token; it is valid
// until the q-th largest of their deadlines. What a minority granted is given back. An extension
// gives the hold to servers that were away, unless somebody waits for it. What this does and does
// not promise is in docs/reference/backends.md.
#ifndef LATCHKEY_BACKENDS_QUORUM_QUORUM_BACKEND_H_
#define LATCHKEY_BACKENDS_QUORUM_QUORUM_BACKEND_H_

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "latchkey/core/base/clock.h"
#include "latchkey/core/protocol/locking_protocol.h"

namespace latchkey {

struct QuorumOptions {
  // By which deadlines are compared; null: RealClock(). Must outlive the backend and its locks.
  Clock* clock = nullptr;
};

// `protocols`: at least one, none null, none twice; an odd number makes sense. They fail
// independently, or the quorum is worth no more than one of them. Each must serve the requests of
// one acquisition in the order in which they are made, and repeat a release that failed by itself,
// as the ready-made backends do. Errors: kInvalidArgument, also if the shortest default lease among
// them is below three times the largest lease_margin; kUnimplemented if one of several is no
// QuorumMember.
//
// A step fails with kUnavailable only if no server has done anything, or if each has given back
// what it had granted, also in earlier rounds of the same request; if one server may have done
// something that nobody can tell, with kUnknown.
// If so many servers refuse that the others are no majority, it fails with kFailedPrecondition
// (kBackendRefused).
//
// Thread safety and lifetime: as LockingProtocol; shares the ownership of the protocols.
// Capabilities: what all of them have in common; order among waiters is not kept.
absl::StatusOr<std::shared_ptr<LockingProtocol>> NewQuorumBackend(
    std::vector<std::shared_ptr<LockingProtocol>> protocols, QuorumOptions options = {});

}  // namespace latchkey

#endif  // LATCHKEY_BACKENDS_QUORUM_QUORUM_BACKEND_H_

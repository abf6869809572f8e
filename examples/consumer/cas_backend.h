// Locks on a store that can compare-and-swap: the worked example of docs/how-to/write-a-backend.md.
#ifndef EXAMPLES_CONSUMER_CAS_BACKEND_H_
#define EXAMPLES_CONSUMER_CAS_BACKEND_H_

#include <memory>

#include "cas_store.h"
#include "latchkey/core/clock.h"
#include "latchkey/core/protocol/locking_protocol.h"

namespace example {

// `clock` is the storage's clock and must outlive the backend and every lock on it.
std::shared_ptr<latchkey::LockingProtocol> NewCasBackend(std::shared_ptr<CasStore> store,
                                                         latchkey::Clock& clock);

}  // namespace example

#endif  // EXAMPLES_CONSUMER_CAS_BACKEND_H_

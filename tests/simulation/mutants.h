// Five classic bugs, put on purpose into a backend that is right, so that the simulation can show
// that it finds them. A test that cannot fail proves nothing.
//
// Thread safety: none; for the one thread of a simulation, over a backend that answers at once and
// can be inspected.
#ifndef LATCHKEY_TESTS_SIMULATION_MUTANTS_H_
#define LATCHKEY_TESTS_SIMULATION_MUTANTS_H_

#include <memory>
#include <string_view>

#include "latchkey/core/clock.h"
#include "latchkey/core/locking_protocol.h"

namespace latchkey {

enum class Bug {
  kNone,
  // A free resource goes to whoever asks, although somebody has reserved it.
  kBargesPastReservation,
  // A holder that is asked to yield counts as gone before it has left.
  kAcknowledgesBeforeYielding,
  // Release frees the resource, whoever holds it.
  kReleasesWithoutCompare,
  // Extend sets the end of the lease, also to an earlier time.
  kExtensionShortens,
  // Of those who wait, every third that should be woken is not.
  kLosesWakeUps,
};

std::string_view BugName(Bug bug);

// `backend` with that bug. `clock` is the backend's.
std::shared_ptr<LockingProtocol> WithBug(Bug bug, std::shared_ptr<LockingProtocol> backend,
                                         Clock& clock);

}  // namespace latchkey

#endif  // LATCHKEY_TESTS_SIMULATION_MUTANTS_H_

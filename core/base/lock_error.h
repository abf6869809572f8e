// Why something failed, as an absl::Status that carries a typed reason.
//
//   absl::StatusOr<Lock> lock = locks.Acquire("orders/42", {.acquire_timeout = absl::Seconds(5)});
//   if (ReasonOf(lock.status()) == Reason::kAcquireTimeout) ...
//
// Thread safety: pure functions.
#ifndef LATCHKEY_CORE_BASE_LOCK_ERROR_H_
#define LATCHKEY_CORE_BASE_LOCK_ERROR_H_

#include <iosfwd>
#include <string_view>

#include "absl/status/status.h"

namespace latchkey {

enum class Reason {
  kNone,                // OK, or a status that did not come from this library.
  kAcquireTimeout,      // kDeadlineExceeded: not granted within acquire_timeout.
  kExecutionTimeout,    // kDeadlineExceeded: the body ran longer than max_execution_time.
  kOccupationTimeout,   // kDeadlineExceeded: wait and body took longer than max_occupation_time.
  kAttemptsExhausted,   // kUnavailable: denied max_attempts times.
  kHeldByOther,         // kUnavailable: held, and the request was not to wait.
  kTooManyPending,      // kResourceExhausted: the admission policy refused, or shed it.
  kCancelled,           // kCancelled: by the caller, or the `finish` of a body was dropped.
  kShutdown,            // kCancelled: the manager was destroyed, or its executor dropped the task.
  kStolen,              // kAborted: the grace was over before the holder yielded.
  kExpired,             // kAborted: the lease ran out, and not for a failure of the backend.
  kLost,                // kAborted: the backend no longer knows the hold, or could not renew it.
  kYieldRequested,      // kAborted: the holder was asked to yield and has not lost the lock yet.
  kDeadlock,            // kAborted: waiting would close a cycle.
  kBackendUnavailable,  // kUnavailable: the backend could not be reached; nothing was done.
  kBackendUnknown,      // kUnknown: the step may have been executed; it is being compensated.
  kBackendRefused,      // kFailedPrecondition: the backend refuses (login, permission, database);
                        // nothing was done, and asking again is of no use before that is mended.
  kInvalidArgument,     // kInvalidArgument: names the field and its value.
  kNotSupported,        // kUnimplemented: this backend lacks what an option asks for.
  kWouldBlock,          // kFailedPrecondition: a blocking call inside a callback of the library.
  kNotHeld,             // kFailedPrecondition: the lock is empty or was already released.
  kException,           // kInternal: a body, a policy or other code of the user's threw.
  kMovedFrom,           // kFailedPrecondition: the lock manager was moved from, or the awaiter of a
                        // lock or a set was, before it was awaited.
};

// The reason's name, as in the enum without the "k": "AcquireTimeout".
std::string_view ReasonName(Reason reason);
std::ostream& operator<<(std::ostream& out, Reason reason);

// The status code that belongs to a reason (see the table above); kOk for kNone.
absl::StatusCode CodeOf(Reason reason);

// A status with the code of `reason`, this message, and the reason as a payload.
absl::Status MakeError(Reason reason, std::string_view message);

// Reads the reason back; kNone for OK and for statuses made elsewhere.
Reason ReasonOf(const absl::Status& status);

// The same error with "what: " before its message; the reason and other payloads are kept. OK
// stays.
absl::Status WithContext(std::string_view what, const absl::Status& status);

// For backends: nothing was done / the outcome is not known / nothing was done, and the caller is
// not to repeat it.
absl::Status BackendUnavailableError(std::string_view message);
absl::Status BackendUnknownError(std::string_view message);
absl::Status BackendRefusedError(std::string_view message);

// Of a backend's error: may the step have been executed, or be executed yet? Where the error has no
// reason, its code decides; one that the protocol does not name (core/protocol/locking_protocol.h)
// may hide anything.
bool MayHaveBeenDone(const absl::Status& error);

}  // namespace latchkey

#endif  // LATCHKEY_CORE_BASE_LOCK_ERROR_H_

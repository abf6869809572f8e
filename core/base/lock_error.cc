#include "latchkey/core/base/lock_error.h"

#include <array>
#include <optional>
#include <ostream>
#include <string>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace latchkey {
namespace {

constexpr absl::string_view kReasonPayload = "latchkey/reason";

struct ReasonRow {
  Reason reason;
  std::string_view name;
  absl::StatusCode code;
};

constexpr std::array kReasons = {
    ReasonRow{Reason::kNone, "None", absl::StatusCode::kOk},
    ReasonRow{Reason::kAcquireTimeout, "AcquireTimeout", absl::StatusCode::kDeadlineExceeded},
    ReasonRow{Reason::kExecutionTimeout, "ExecutionTimeout", absl::StatusCode::kDeadlineExceeded},
    ReasonRow{Reason::kOccupationTimeout, "OccupationTimeout", absl::StatusCode::kDeadlineExceeded},
    ReasonRow{Reason::kAttemptsExhausted, "AttemptsExhausted", absl::StatusCode::kUnavailable},
    ReasonRow{Reason::kHeldByOther, "HeldByOther", absl::StatusCode::kUnavailable},
    ReasonRow{Reason::kTooManyPending, "TooManyPending", absl::StatusCode::kResourceExhausted},
    ReasonRow{Reason::kCancelled, "Cancelled", absl::StatusCode::kCancelled},
    ReasonRow{Reason::kShutdown, "Shutdown", absl::StatusCode::kCancelled},
    ReasonRow{Reason::kStolen, "Stolen", absl::StatusCode::kAborted},
    ReasonRow{Reason::kExpired, "Expired", absl::StatusCode::kAborted},
    ReasonRow{Reason::kLost, "Lost", absl::StatusCode::kAborted},
    ReasonRow{Reason::kYieldRequested, "YieldRequested", absl::StatusCode::kAborted},
    ReasonRow{Reason::kDeadlock, "Deadlock", absl::StatusCode::kAborted},
    ReasonRow{Reason::kBackendUnavailable, "BackendUnavailable", absl::StatusCode::kUnavailable},
    ReasonRow{Reason::kBackendUnknown, "BackendUnknown", absl::StatusCode::kUnknown},
    ReasonRow{Reason::kBackendRefused, "BackendRefused", absl::StatusCode::kFailedPrecondition},
    ReasonRow{Reason::kInvalidArgument, "InvalidArgument", absl::StatusCode::kInvalidArgument},
    ReasonRow{Reason::kNotSupported, "NotSupported", absl::StatusCode::kUnimplemented},
    ReasonRow{Reason::kWouldBlock, "WouldBlock", absl::StatusCode::kFailedPrecondition},
    ReasonRow{Reason::kNotHeld, "NotHeld", absl::StatusCode::kFailedPrecondition},
    ReasonRow{Reason::kException, "Exception", absl::StatusCode::kInternal},
    ReasonRow{Reason::kMovedFrom, "MovedFrom", absl::StatusCode::kFailedPrecondition},
};

const ReasonRow& RowOf(Reason reason) {
  for (const ReasonRow& row : kReasons) {
    if (row.reason == reason) return row;
  }
  return kReasons[0];
}

}  // namespace

std::string_view ReasonName(Reason reason) { return RowOf(reason).name; }

std::ostream& operator<<(std::ostream& out, Reason reason) { return out << ReasonName(reason); }

absl::StatusCode CodeOf(Reason reason) { return RowOf(reason).code; }

absl::Status MakeError(Reason reason, std::string_view message) {
  absl::Status status(CodeOf(reason), message);
  status.SetPayload(kReasonPayload, absl::Cord(ReasonName(reason)));
  return status;
}

Reason ReasonOf(const absl::Status& status) {
  const std::optional<absl::Cord> payload = status.GetPayload(kReasonPayload);
  if (!payload) return Reason::kNone;
  for (const ReasonRow& row : kReasons) {
    if (*payload == row.name) return row.reason;
  }
  return Reason::kNone;
}

absl::Status WithContext(std::string_view what, const absl::Status& status) {
  if (status.ok()) return status;
  absl::Status result(status.code(), absl::StrCat(what, ": ", status.message()));
  status.ForEachPayload([&result](absl::string_view url, const absl::Cord& payload) {
    result.SetPayload(url, payload);
  });
  return result;
}

absl::Status BackendUnavailableError(std::string_view message) {
  return MakeError(Reason::kBackendUnavailable, message);
}

absl::Status BackendUnknownError(std::string_view message) {
  return MakeError(Reason::kBackendUnknown, message);
}

absl::Status BackendRefusedError(std::string_view message) {
  return MakeError(Reason::kBackendRefused, message);
}

bool MayHaveBeenDone(const absl::Status& error) {
  const Reason reason = ReasonOf(error);
  if (reason != Reason::kNone) return reason == Reason::kBackendUnknown;
  switch (error.code()) {
    case absl::StatusCode::kOk:
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kUnimplemented:
      return false;
    default:
      return true;
  }
}

}  // namespace latchkey

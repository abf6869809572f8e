// What a request says when it ends without its lock: all the wording, in one place. Pure functions
// of plain facts; who collects them decides.
#ifndef LATCHKEY_CORE_ENGINE_REQUEST_ERRORS_H_
#define LATCHKEY_CORE_ENGINE_REQUEST_ERRORS_H_

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "latchkey/core/base/lease.h"
#include "latchkey/core/base/lock_error.h"
#include "latchkey/core/protocol/locking_protocol.h"

namespace latchkey::internal {

// Who holds a lock, as far as a request has heard.
struct HeardHolder {
  std::string owner;
  Priority priority = 0;
};

// "is held by 'bob' with priority 3, which was asked to yield".
std::string IsHeldBy(const HeardHolder& holder, bool asked_to_yield);

// Why a request ended without a lock: "acquire_timeout is over".
std::string_view WhyGivenUp(Reason reason);

// What the backend, or a policy, said about this resource.
absl::Status CouldNotLock(std::string_view resource, const absl::Status& why);

// The caller cancelled a request that had not begun to wait; `unanswered`: it had asked.
absl::Status CancelledError(std::string_view resource, bool unanswered);

// A request that does not wait was told this.
absl::Status HeldByOtherError(std::string_view resource, const ObtainReply& answer);

// A policy threw; `trouble` is what there was with the backend, see Outage::ForMessage.
absl::Status PolicyError(std::string_view resource, const absl::Status& thrown,
                         std::string_view trouble);

// What there is to say about a request that gives up.
struct GiveUpFacts {
  std::string_view resource = {};
  Reason reason = Reason::kNone;
  absl::Duration acquire_timeout = absl::InfiniteDuration();
  int max_attempts = 0;
  std::string_view detail = {};         // Follows the reason.
  std::string_view cycle = {};          // Of a deadlock.
  const HeardHolder* holder = nullptr;  // Null: not known.
  bool asked_to_yield = false;
  std::string_view trouble = {};
  bool unanswered = false;  // An attempt is under way.
  // It is not known what became of an attempt, and no answer will tell.
  bool unknown = false;
};
absl::Status GiveUpError(const GiveUpFacts& facts);

}  // namespace latchkey::internal

#endif  // LATCHKEY_CORE_ENGINE_REQUEST_ERRORS_H_

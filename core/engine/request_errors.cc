#include "latchkey/core/engine/request_errors.h"

#include "absl/strings/str_cat.h"

namespace latchkey::internal {
namespace {

constexpr std::string_view kNotAnswered =
    "; an attempt is not answered yet, and what it obtains is given back";

}  // namespace

std::string IsHeldBy(const HeardHolder& holder, bool asked_to_yield) {
  return absl::StrCat("is held by ", OwnerForMessage(holder.owner), " with priority ",
                      holder.priority, asked_to_yield ? ", which was asked to yield" : "");
}

std::string_view WhyGivenUp(Reason reason) {
  switch (reason) {
    case Reason::kAcquireTimeout:
      return "acquire_timeout is over";
    case Reason::kCancelled:
      return "the caller cancelled the request";
    case Reason::kShutdown:
      return "the lock manager was destroyed";
    case Reason::kDeadlock:
      return "waiting would never end";
    case Reason::kTooManyPending:
      return "too many requests wait already";
    case Reason::kAttemptsExhausted:
      return "max_attempts are used up";
    default:
      return ReasonName(reason);
  }
}

absl::Status CouldNotLock(std::string_view resource, const absl::Status& why) {
  return WithContext(absl::StrCat("could not lock ", ResourceForMessage(resource)), why);
}

absl::Status CancelledError(std::string_view resource, bool unanswered) {
  return MakeError(Reason::kCancelled,
                   absl::StrCat("locking ", ResourceForMessage(resource),
                                " was cancelled by the caller", unanswered ? kNotAnswered : ""));
}

absl::Status HeldByOtherError(std::string_view resource, const ObtainReply& answer) {
  return MakeError(
      Reason::kHeldByOther,
      absl::StrCat("could not lock ", ResourceForMessage(resource), " without waiting: it ",
                   IsHeldBy({.owner = answer.other_owner, .priority = answer.other_priority},
                            /*asked_to_yield=*/false)));
}

absl::Status PolicyError(std::string_view resource, const absl::Status& thrown,
                         std::string_view trouble) {
  return MakeError(ReasonOf(thrown), absl::StrCat("could not lock ", ResourceForMessage(resource),
                                                  ": ", thrown.message(), trouble));
}

absl::Status GiveUpError(const GiveUpFacts& facts) {
  std::string message = absl::StrCat("could not lock ", ResourceForMessage(facts.resource), ": ",
                                     WhyGivenUp(facts.reason));
  if (facts.reason == Reason::kAcquireTimeout) {
    absl::StrAppend(&message, " (", absl::FormatDuration(facts.acquire_timeout), ")");
  }
  if (facts.reason == Reason::kAttemptsExhausted) {
    absl::StrAppend(&message, " (", facts.max_attempts, ")");
  }
  absl::StrAppend(&message, facts.detail);
  if (facts.reason == Reason::kDeadlock) {
    absl::StrAppend(&message, ": ", facts.cycle);
  } else if (facts.holder != nullptr) {
    absl::StrAppend(&message, "; held by ", OwnerForMessage(facts.holder->owner), " with priority ",
                    facts.holder->priority);
    if (facts.asked_to_yield) absl::StrAppend(&message, ", which was asked to yield");
  }
  absl::StrAppend(&message, facts.trouble);
  if (facts.unanswered) absl::StrAppend(&message, kNotAnswered);
  // The time is over without a word on what became of an attempt.
  const bool unknown = facts.unknown && facts.reason == Reason::kAcquireTimeout;
  return MakeError(unknown ? Reason::kBackendUnknown : facts.reason, message);
}

}  // namespace latchkey::internal

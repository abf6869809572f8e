// Outage is what a request has heard from its backend instead of an answer: how often, since when,
// and whether any of it may have been executed all the same. It says what the request ends with if
// no answer comes any more.
//
// Unavailable means that nothing was done. So an attempt whose outcome is not known makes the whole
// request's outcome unknown, whatever failed after it, until an answer settles it.
//
// Thread safety: none; whoever owns the request guards it.
#ifndef LATCHKEY_CORE_ENGINE_OUTAGE_H_
#define LATCHKEY_CORE_ENGINE_OUTAGE_H_

#include <algorithm>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace latchkey::internal {

// May the same step succeed when it is asked for again later?
bool MayPass(const absl::Status& failure);

class Outage {
 public:
  // A step failed that was asked for at `began`.
  void Note(const absl::Status& failure, absl::Time began);
  // The same of another attempt on behalf of the same request.
  void Note(const Outage& other);
  // Others asked in vain for what this request wants, which has heard of no failure by itself.
  // Nothing that they asked for was done for it.
  void NoteOfOthers(const Outage& others);
  // Before this time it concerned others only.
  void BeginNoEarlierThan(absl::Time came) { since_ = std::max(since_, came); }
  // A step may have been executed, or was, although that is not what its request ends with.
  void NoteUnsettled(std::string_view why);
  // A step is under way that will not be waited for.
  void NoteUnanswered();
  // The backend answers again. That settles nothing about attempts with another acquisition id.
  void EndRow() {
    failures_ = 0;
    since_ = absl::InfiniteFuture();
  }

  // Since the last answer.
  int failures() const { return failures_; }
  // When the first of those was asked for.
  absl::Time since() const { return since_; }
  // Is the outcome of an attempt not known?
  bool unsettled() const { return !unsettled_.ok(); }
  // Was the backend's answer to one of them that it does not know? (Else they are only unanswered.)
  bool ended_unknown() const { return ended_unknown_; }

  // What a request ends with for this; something must have been noted.
  absl::Status Error(absl::Time now) const;
  // For the message of a request that ends for another reason: "; the backend failed 3 times in 2s:
  // no route". May be empty.
  std::string ForMessage(absl::Time now) const;

 private:
  int failures_ = 0;
  absl::Time since_ = absl::InfiniteFuture();
  absl::Status last_;
  absl::Status unsettled_;  // The last of them.
  bool ended_unknown_ = false;
};

}  // namespace latchkey::internal

#endif  // LATCHKEY_CORE_ENGINE_OUTAGE_H_

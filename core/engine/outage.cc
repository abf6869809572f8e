#include "latchkey/core/engine/outage.h"

#include <algorithm>
#include <string_view>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "latchkey/core/base/lock_error.h"

namespace latchkey::internal {
namespace {

std::string HowLong(absl::Duration time) {
  return absl::FormatDuration(absl::Ceil(time, absl::Milliseconds(1)));
}

absl::Status Rephrased(const absl::Status& status, std::string_view message) {
  absl::Status result(status.code(), message);
  status.ForEachPayload([&result](std::string_view url, const absl::Cord& payload) {
    result.SetPayload(url, payload);
  });
  return result;
}

}  // namespace

bool MayPass(const absl::Status& failure) {
  const Reason reason = ReasonOf(failure);
  return reason == Reason::kBackendUnavailable || reason == Reason::kBackendUnknown;
}

void Outage::Note(const absl::Status& failure, absl::Time began) {
  ++failures_;
  since_ = std::min(since_, began);
  last_ = failure;
  if (!MayHaveBeenDone(failure)) return;
  unsettled_ = failure;
  ended_unknown_ = true;
}

void Outage::Note(const Outage& other) {
  failures_ += other.failures_;
  since_ = std::min(since_, other.since_);
  if (!other.last_.ok()) last_ = other.last_;
  if (other.ended_unknown() || !unsettled()) unsettled_ = other.unsettled_;
  ended_unknown_ |= other.ended_unknown_;
}

void Outage::NoteOfOthers(const Outage& others) {
  if (failures_ > 0 || others.failures_ == 0) return;
  failures_ = others.failures_;
  since_ = others.since_;
  last_ = MayHaveBeenDone(others.last_) ? BackendUnavailableError(others.last_.message())
                                        : others.last_;
}

void Outage::NoteUnsettled(std::string_view why) {
  unsettled_ = BackendUnknownError(why);
  ended_unknown_ = true;
}

void Outage::NoteUnanswered() {
  if (!unsettled()) unsettled_ = BackendUnknownError("it is not answered yet");
}

absl::Status Outage::Error(absl::Time now) const {
  std::string message(last_.message());
  if (failures_ > 1) {
    absl::StrAppend(&message, " (tried ", failures_, " times in ", HowLong(now - since_), ")");
  }
  if (!unsettled() || MayHaveBeenDone(last_)) return Rephrased(last_, message);
  absl::StrAppend(&message, "; but another attempt may have been executed, and is undone: ",
                  unsettled_.message());
  return Rephrased(unsettled_, message);
}

std::string Outage::ForMessage(absl::Time now) const {
  std::string message;
  if (failures_ > 0) {
    message = absl::StrCat(
        "; the backend failed",
        failures_ == 1 ? "" : absl::StrCat(" ", failures_, " times in ", HowLong(now - since_)),
        ": ", last_.message());
  }
  if (unsettled()) {
    absl::StrAppend(&message, "; an attempt may have been executed, and is undone");
    if (failures_ == 0 || !MayHaveBeenDone(last_)) {
      absl::StrAppend(&message, ": ", unsettled_.message());
    }
  }
  return message;
}

}  // namespace latchkey::internal

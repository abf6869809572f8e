#include "latchkey/core/engine/set_plan.h"

#include <algorithm>

namespace latchkey::internal {

SetPlan::SetPlan(size_t members, bool one_at_a_time)
    : one_at_a_time_(one_at_a_time),
      standings_(members, Standing::kUnknown),
      at_once_(one_at_a_time ? 1 : members) {}

SetStep SetPlan::NextStep() const {
  for (size_t i = batch_.begin; i < batch_.end; ++i) {
    if (standings_[i] == Standing::kHard || standings_[i] == Standing::kFailed) {
      return {SetStep::kQueue, i};
    }
  }
  const size_t size = standings_.size();
  if (const size_t next = FirstMissing(batch_.end); next < size) return {SetStep::kAsk, next};
  if (missing_ == size) return {SetStep::kComplete};
  // What it knows of one that comes before this pass is old.
  return {missing_ < pass_begin_ ? SetStep::kAsk : SetStep::kReserve, missing_};
}

SetPlan::Batch SetPlan::BeginBatch(size_t from) {
  const bool goes_on = batch_.begin < batch_.end;  // None of those was in the way.
  if (goes_on && !one_at_a_time_) at_once_ = std::min(2 * at_once_, standings_.size());
  if (from < batch_.end) pass_begin_ = from;
  batch_ = {from, from};
  for (size_t asked = 0; batch_.end < standings_.size() && asked < at_once_; ++batch_.end) {
    if (!IsHeld(batch_.end)) ++asked;
  }
  return batch_;
}

void SetPlan::Hear(size_t member, Standing standing) {
  standings_[member] = standing;
  if (standing != Standing::kHeld) return;
  held_end_ = std::max(held_end_, member + 1);
  missing_ = FirstMissing(missing_);
}

void SetPlan::GiveBack(size_t from) {
  for (size_t i = from; i < held_end_; ++i) standings_[i] = Standing::kUnknown;
  held_end_ = std::min(held_end_, from);
  missing_ = std::min(missing_, from);
  pass_begin_ = from;
  batch_ = {from, from};
  at_once_ = one_at_a_time_ ? 1 : kAskedAfterAWait;
}

size_t SetPlan::FirstMissing(size_t from) const {
  while (from < standings_.size() && IsHeld(from)) ++from;
  return from;
}

}  // namespace latchkey::internal

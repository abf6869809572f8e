// EventMailbox is what one receiver still has to hear of: events from any thread, handled in the
// order in which they came, one at a time, and with no mutex held.
//
//   void Post(Event event) {
//     if (!mailbox_.Post(std::move(event))) return;    // It will be handled, or nobody cares.
//     mailbox_.Deliver([this](Event event) { Handle(event); });
//   }
//
// Whoever posts into a mailbox that nobody reads gets the turn to read it, until it is empty; so no
// event is handled inside another. The turn may be passed on with a Ticket (strand.h), to have
// events handled on an executor; or it is kept, by a thread that waits for the events (Await), or
// while each event leads to a step that ends later (Next, when it has). Where only the latest state
// counts, a Strand does with less.
//
// Thread safety: all methods may be called from any thread, also from the handler; Next, Deliver
// and Await by the one that has the turn. Events are moved under the mailbox's own mutex, and
// destroyed without it.
// Lifetime: while it has the turn, a thread keeps alive what the mailbox is part of.
#ifndef LATCHKEY_CORE_BASE_EVENT_MAILBOX_H_
#define LATCHKEY_CORE_BASE_EVENT_MAILBOX_H_

#include <algorithm>
#include <cstddef>
#include <optional>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/log/check.h"
#include "absl/synchronization/mutex.h"

namespace latchkey::internal {

template <typename Event>
class EventMailbox {
 public:
  EventMailbox() = default;
  EventMailbox(const EventMailbox&) = delete;
  EventMailbox& operator=(const EventMailbox&) = delete;

  // Puts the event behind all others; drops it if the mailbox is cancelled. True: the caller has
  // the turn.
  [[nodiscard]] bool Post(Event event) ABSL_LOCKS_EXCLUDED(mu_) {
    return PostOnce(std::move(event), [](const Event&) { return false; });
  }

  // The same, but drops the event also if one that says as much is still to be handled: one for
  // which `same(other)` is true, which runs under the mutex.
  template <typename Same>
  [[nodiscard]] bool PostOnce(Event event, const Same& same) ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    if (cancelled_) return false;
    // From the end: what repeats itself does so at once, as a rule.
    if (std::any_of(events_.rbegin(), events_.rend() - Signed(gone_), same)) return false;
    events_.push_back(std::move(event));
    return !std::exchange(taken_, true);
  }

  // Takes the turn without an event. False: another has it.
  [[nodiscard]] bool Enter() ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    return !std::exchange(taken_, true);
  }

  // The next event. None: there is no more, and the caller has the turn no longer.
  std::optional<Event> Next() ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    DCHECK(taken_) << "who reads has the turn";
    if (gone_ < events_.size()) return Pop();
    taken_ = false;
    return std::nullopt;
  }

  // Handles events until there are no more. `handle(Event)` must not throw.
  template <typename Handle>
  void Deliver(const Handle& handle) ABSL_LOCKS_EXCLUDED(mu_) {
    while (std::optional<Event> event = Next()) handle(*std::move(event));
  }

  // Waits for the next event, and keeps the turn. Must not be cancelled.
  Event Await() ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    DCHECK(taken_ && !cancelled_) << "who waits has the turn, and something to wait for";
    const auto any = [this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return gone_ < events_.size(); };
    mu_.Await(absl::Condition(&any));
    return Pop();
  }

  // From now on no event comes in, and none is taken out, not by a Deliver further up the stack
  // either. One that another thread has taken out already is still handled there. Those that are
  // left end here.
  void Cancel() ABSL_LOCKS_EXCLUDED(mu_) {
    std::vector<Event> left;
    absl::MutexLock lock(&mu_);
    cancelled_ = true;
    events_.swap(left);
    gone_ = 0;
  }

 private:
  // So many that are gone are kept before the others move up.
  static constexpr size_t kMostGone = 64;

  static std::ptrdiff_t Signed(size_t count) { return static_cast<std::ptrdiff_t>(count); }

  Event Pop() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    Event event = std::move(events_[gone_++]);
    if (gone_ == events_.size()) {
      events_.clear();
      gone_ = 0;
    } else if (gone_ >= kMostGone && gone_ >= events_.size() / 2) {
      events_.erase(events_.begin(), events_.begin() + Signed(gone_));
      gone_ = 0;
    }
    return event;
  }

  absl::Mutex mu_;
  // A queue whose first `gone_` were moved out. It allocates nothing while one at a time comes.
  std::vector<Event> events_ ABSL_GUARDED_BY(mu_);
  size_t gone_ ABSL_GUARDED_BY(mu_) = 0;
  bool taken_ ABSL_GUARDED_BY(mu_) = false;  // The turn.
  bool cancelled_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace latchkey::internal

#endif  // LATCHKEY_CORE_BASE_EVENT_MAILBOX_H_

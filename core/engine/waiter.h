// Waiter is one request that waits for its lock, or is about to.
//
// Where it stands is its phase:
//
//   kNew      made, not in a queue yet
//   kJoining  in the queue, but its first answer is not there yet, nor is it admitted: it counts as
//             waiting for nobody but those who come after it in the order
//   kWaiting  in the queue
//   kEnded    out of it, with a grant or an error
//
// and what it has to do with the backend is its question:
//
//   kIdle         it asks nothing
//   kDue          it is to ask as soon as somebody works on the queue
//   kSent         an Obtain is under way
//   kSentAndDue   the same, and it is to ask again behind that
//
// A phase only goes down that list. A question that is under way when the waiter ends is answered
// all the same: then the answer says what there is to give back.
//
// Thread safety: the first part is constant once the waiter is in a queue; the rest is guarded by
// shard->mu, but for `done` and for those that have been taken out to be told.
#ifndef LATCHKEY_CORE_ENGINE_WAITER_H_
#define LATCHKEY_CORE_ENGINE_WAITER_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <string_view>
#include <utility>

#include "absl/container/inlined_vector.h"
#include "absl/log/check.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "latchkey/core/base/blocker.h"
#include "latchkey/core/base/clock.h"
#include "latchkey/core/base/lease.h"
#include "latchkey/core/base/ref_counted.h"
#include "latchkey/core/engine/deadlock_detector.h"
#include "latchkey/core/engine/outage.h"
#include "latchkey/core/engine/request_errors.h"
#include "latchkey/core/engine/request_terms.h"
#include "latchkey/core/engine/wait_order.h"
#include "latchkey/core/lock/lock.h"
#include "latchkey/core/policy/acquire_options.h"
#include "latchkey/core/protocol/locking_protocol.h"

namespace latchkey::internal {

struct QueueShard;
struct WaitQueue;

// What a grant says that a lock is made of.
struct Grant {
  Grant() = default;
  explicit Grant(const ObtainReply& reply)
      : token(reply.token),
        hint(reply.hint),
        remaining(reply.remaining),
        reentered(reply.outcome == ObtainOutcome::kReentered) {}

  FencingToken token = 0;
  LeaseHint hint = 0;
  absl::Duration remaining = absl::InfiniteDuration();
  bool reentered = false;
};

// Who is told how it ended, and how.
enum class Listener {
  kCallback,  // User code, on the executor.
  kThread,    // A thread that is blocked, or an awaitable: directly.
  kSet,       // A set that holds others: directly. It gives back what it holds to the more urgent.
};

struct Waiter final : CycleWait {
  enum class Phase : uint8_t { kNew, kJoining, kWaiting, kEnded };
  enum class Question : uint8_t { kIdle, kDue, kSent, kSentAndDue };

  // In one allocation with its names. A null shard: for tests of what needs none.
  static RefPtr<Waiter> New(QueueShard* shard, const ResourceName& resource,
                            const RequestTerms& terms, const AcquireOptions& options,
                            AcquireCallback&& done);
  ~Waiter() override;
  static void operator delete(void* memory) { ::operator delete(memory); }

  bool in_queue() const { return phase == Phase::kJoining || phase == Phase::kWaiting; }
  bool is_due() const { return question == Question::kDue || question == Question::kSentAndDue; }
  bool is_asking() const {
    return question == Question::kSent || question == Question::kSentAndDue;
  }
  // Told at once by whoever works on the queue?
  bool told_directly() const { return listener != Listener::kCallback; }

  void MoveTo(Phase next) {
    DCHECK(phase < next) << "a waiter's phase only goes forward";
    phase = next;
  }
  // It is to ask. If that is to look, what it is told then counts as no attempt of its own.
  void BecomeDue(bool to_look = false) {
    DCHECK(phase != Phase::kEnded) << "one that has ended asks nothing";
    question = is_asking() ? Question::kSentAndDue : Question::kDue;
    is_to_look |= to_look;
  }
  void BecomeNotDue() {
    question = is_asking() ? Question::kSent : Question::kIdle;
    is_to_look = false;
  }
  void BecomeSent() {
    DCHECK(in_queue()) << "who asks is in the queue";
    DCHECK(!is_asking()) << "one question at a time";
    question = Question::kSent;
    // Until an attempt was counted there is nothing to look again for.
    if (std::exchange(is_to_look, false) && attempts > 0) looks = true;
  }
  void BecomeAnswered() {
    DCHECK(is_asking()) << "an answer is to a question";
    question = question == Question::kSentAndDue ? Question::kDue : Question::kIdle;
  }

  bool failing() const { return outage != nullptr && outage->failures() > 0; }
  // An answer was lost: the backend may think that it holds.
  bool maybe_obtained() const { return outage != nullptr && outage->unsettled(); }
  // For another victim it begins anew.
  void LoseReservation() {
    reserved = false;
    reservation_lease = terms.reservation_lease;
  }
  void HearOf(const ObtainReply& reply) {
    holder = HeardHolder{.owner = reply.other_owner, .priority = reply.other_priority};
  }

  // ---- Constant ----

  QueueShard* const shard;
  RequestTerms terms;  // Its owner is CycleWait::owner.
  const absl::Duration acquire_timeout;
  const absl::Duration outage_patience;
  const int max_attempts;
  const std::shared_ptr<const RetryPolicy> retry;          // Null: the manager's.
  const std::shared_ptr<const AdmissionPolicy> admission;  // The same.
  AcquisitionId id;
  absl::Time enqueued;
  Listener listener = Listener::kCallback;
  // That of a thread which competes for the lock itself when it is woken; else null.
  Blocker* blocker = nullptr;

  // ---- Guarded by shard->mu ----

  Phase phase = Phase::kNew;
  Question question = Question::kIdle;
  WaitQueue* queue = nullptr;  // While it is in one.
  WaitLink<Waiter> in_order;
  WaitLink<Waiter> in_priorities;
  bool registered = false;  // With the backend, or about to be.
  Subscription subscription;
  Clock::TimerId poll_timer = 0;
  absl::Time poll_at;  // When that is due.
  Clock::TimerId timeout_timer = 0;

  // Of the question that it asked last.
  struct Asked {
    absl::Time at;
    int64_t number = 0;         // Among those of its queue.
    uint64_t graph_time = 0;    // See DeadlockDetector::Now().
    bool unregistered = false;  // Sent without its being registered.
  };
  Asked asked;
  int64_t came_after = 0;     // The last question of its queue before it came.
  bool looks = false;         // The next answer belongs to an attempt that was counted already.
  bool is_to_look = false;    // That goes for the question that is due.
  bool time_matters = false;  // Although it asks for a lease without end: the answer has one.
  int attempts = 0;
  std::unique_ptr<Outage> outage;  // Since the last answer; null: none.

  bool reserved = false;  // It is the successor of a holder, as far as it has heard.
  bool ever_reserved = false;
  // How long it reserves; may be shorter than the terms have it, for a victim that has little left.
  absl::Duration reservation_lease;
  absl::Duration victim_has_left;  // By the last answer, while it is reserved.
  std::optional<HeardHolder> holder;
  std::string cycle;  // If it fails for that.

  // How it ended: OK and the grant, or why there is none.
  absl::Status outcome;
  Grant grant;
  bool withdraws = false;  // Tell the backend that it does not want the lock any more.
  AcquireCallback done;

  struct StopFn {
    Waiter* waiter;
    void (*cancel)(Waiter& waiter);
    void operator()() const { cancel(*waiter); }
  };
  std::optional<std::stop_callback<StopFn>> stop;

 private:
  Waiter(QueueShard* in_shard, const ResourceName& name, std::string_view who,
         const RequestTerms& from, const AcquireOptions& options, AcquireCallback&& call);
};

using WaiterList = absl::InlinedVector<RefPtr<Waiter>, 2>;

// When a question was sent, if the clock was not read for it: the backend answers at once, and the
// lease asked for has no end.
inline constexpr absl::Time kUntimed = absl::UnixEpoch();

}  // namespace latchkey::internal

#endif  // LATCHKEY_CORE_ENGINE_WAITER_H_

// QueueDriver carries out what a queue's next step says, and takes in what comes of it: answers,
// events, timers, and requests that come and go.
//
// One thread at a time works on a queue (Drive): WaitQueue::NextStep() decides under the shard's
// mutex, and a function for each kind of step acts without it, so that the backend, and whoever is
// told, may call back. Whoever finds a queue at work leaves what it brought to that thread, which
// looks again before it stops.
//
// Where the backend does not answer at once, a request that asks directly takes its place in the
// queue before it asks, and is *joining* until the answer is there (ADR 11).
//
// Thread safety: all methods may be called from any thread, with no mutex held but where they say
// so. Lock order: QueueShard::mu, then the detector's or a clock's own mutex.
#ifndef LATCHKEY_CORE_ENGINE_QUEUE_DRIVER_H_
#define LATCHKEY_CORE_ENGINE_QUEUE_DRIVER_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "latchkey/core/engine/deadlock_detector.h"
#include "latchkey/core/engine/engine_context.h"
#include "latchkey/core/engine/outage.h"
#include "latchkey/core/engine/queue_shard.h"
#include "latchkey/core/engine/wait_queue.h"
#include "latchkey/core/engine/waiter.h"
#include "latchkey/core/policy/acquire_options.h"
#include "latchkey/core/protocol/locking_protocol.h"

namespace latchkey::internal {

class QueueDriver {
 public:
  // `engine` must outlive it.
  explicit QueueDriver(EngineContext& engine) : engine_(engine) {}

  // Lets the waiter wait. Calls its `done` in every case, exactly once. `first` is the answer to
  // its first question; null: it has yet to ask, from the queue.
  void Enqueue(const RefPtr<Waiter>& waiter, const AcquireOptions& options,
               const absl::StatusOr<ObtainReply>* first);
  // Ends the wait, if it has not ended yet. `done` still runs.
  void GiveUp(Waiter& waiter, Reason reason);
  // On a thread that was nudged: tries to take the lock before somebody else does.
  void Compete(const RefPtr<Waiter>& waiter);
  // Ends all who wait on the shard's resources.
  void ShutDown(QueueShard& shard);

  // For messages: " is held by 'bob' with priority 3, which was asked to yield"; empty if it has
  // not heard who holds.
  static std::string HolderForMessage(const Waiter& waiter);
  // What it has heard instead of answers, if anything.
  static std::optional<Outage> OutageOf(const Waiter& waiter);

 private:
  // What the observer has yet to be told of a queue's length. Every change is told once, whoever is
  // first to do so, before those who wait are told how it ended for them.
  struct LengthChange {
    int64_t length = 0;
    int64_t by = 0;
  };

  // ---- Coming and going (queue_entry.cc) ----

  // Puts it into the queue, if nothing speaks against that, and takes in its first answer.
  LengthChange Come(Waiter& w, WaitQueue& queue, const AcquireOptions& options,
                    const absl::StatusOr<ObtainReply>* first,
                    const absl::StatusOr<absl::int128>& rank)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(w.shard->mu);
  // What speaks against its waiting, whatever else waits. `first` is the first answer, if there is
  // one.
  absl::Status WhyNotToWait(Waiter& waiter, const WaitQueue& queue,
                            const absl::StatusOr<ObtainReply>* first,
                            const absl::StatusOr<absl::int128>& rank, bool cancelled) const;
  // Asks the admission policy whether this request may wait, and makes room if it says so. The
  // error of a request that may not.
  absl::Status Admit(WaitQueue& queue, const Waiter& waiter)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(waiter.shard->mu);
  // It waits from now on: counts, and may be in a cycle.
  void NoteWaiting(Waiter& waiter) ABSL_EXCLUSIVE_LOCKS_REQUIRED(waiter.shard->mu);
  void ArmTimeout(const RefPtr<Waiter>& waiter);
  // Takes a waiter out of its queue with this result. The caller drives the queue afterwards.
  void Finish(Waiter& waiter, absl::Status why, bool withdraws)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(waiter.shard->mu);
  // With the mutex free: cleans up after one that was taken out to be told, and tells it.
  void Complete(Waiter& waiter);
  // Tells the backend that it does not want the lock any more.
  void Withdraw(const Waiter& waiter);
  // Has the backend to be told that this waiter does not want the lock any more?
  bool MayHaveLeftSomething(const Waiter& waiter) const;
  // The same of one that has just failed.
  bool LeavesSomething(const Waiter& waiter) const;

  // ---- Steps ----

  void Drive(QueueShard& shard, const ResourceName& resource) ABSL_LOCKS_EXCLUDED(shard.mu);
  // The same with the mutex held, which it frees. Null: nothing to do.
  void DriveAndUnlock(QueueShard& shard, const ResourceName& resource, WaitQueue* queue)
      ABSL_UNLOCK_FUNCTION(shard.mu);
  // Each frees the mutex for a while.
  void Tell(QueueShard& shard, const ResourceName& resource, WaitQueue& queue, WaiterList& ended,
            WaiterList& told_last) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard.mu);
  void Register(QueueShard& shard, WaitQueue& queue, Waiter& next, const WaiterList& told_last)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard.mu);
  void Retire(QueueShard& shard, WaitQueue& queue, Waiter& waiter)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard.mu);
  void Ask(QueueShard& shard, const QueueStep& step) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard.mu);
  // Nothing is left to do but to tell those.
  void StopAndUnlock(QueueShard& shard, const ResourceName& resource, WaitQueue& queue,
                     const WaiterList& told_last) ABSL_UNLOCK_FUNCTION(shard.mu);
  // Notes that it is about to be asked for.
  ObtainRequest BeginToAsk(Waiter& waiter) ABSL_EXCLUSIVE_LOCKS_REQUIRED(waiter.shard->mu);
  LengthChange ChangeOf(WaitQueue& queue) const;
  void TellLength(const ResourceName& resource, const LengthChange& change);

  // ---- What comes ----

  void OnAnswer(Waiter& waiter, const absl::StatusOr<ObtainReply>& answer);
  void OnEvent(const RefPtr<Waiter>& waiter, const WatchEvent& event);
  void OnPoll(Waiter& waiter);
  // Has it ask at that time, unless it asks before.
  void PollAt(Waiter& waiter, absl::Time at) ABSL_EXCLUSIVE_LOCKS_REQUIRED(waiter.shard->mu);

  // ---- Answers (queue_answers.cc) ----

  // True: the lock was granted to one that gave up, and has to be withdrawn without the mutex.
  bool TakeAnswer(Waiter& waiter, const absl::StatusOr<ObtainReply>& answer)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(waiter.shard->mu);
  // The answer of one that is joining: ends it, or lets it wait if the admission policy does.
  void HandleFirstAnswer(Waiter& waiter, const absl::StatusOr<ObtainReply>& answer)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(waiter.shard->mu);
  // From now on it waits, unless it is refused.
  bool Join(Waiter& waiter, bool withdraws) ABSL_EXCLUSIVE_LOCKS_REQUIRED(waiter.shard->mu);
  void HandleAnswer(Waiter& waiter, const absl::StatusOr<ObtainReply>& answer)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(waiter.shard->mu);
  void OnGranted(Waiter& waiter, const ObtainReply& reply, std::unique_ptr<Outage> outage)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(waiter.shard->mu);
  void OnReserved(Waiter& waiter, const ObtainReply& reply)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(waiter.shard->mu);
  void OnDenied(Waiter& waiter, const ObtainReply& reply)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(waiter.shard->mu);
  // The backend failed: asks again after a pause, or ends it.
  void OnFailure(Waiter& waiter, const absl::Status& failure)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(waiter.shard->mu);
  // How long this waiter, which was just told that it has reserved, is to reserve from now on; its
  // victim's lease has this much left.
  absl::Duration ReservationLease(const Waiter& waiter, absl::Duration victim_has) const;
  // What a registered waiter was told of the holder: those that the holder's owner sent ask now,
  // since they can enter again. (At once, they did so when they came.)
  void NoteLook(const Waiter& waiter) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(waiter.shard->mu);
  void NoteHolder(const Waiter& waiter) const;

  // ---- Outages (queue_answers.cc) ----

  void NoteFailure(Waiter& waiter, const absl::Status& failure) const;
  // The same for all that wait where it does. False: it is a failure of its own, or old news.
  bool NoteOutage(const Waiter& waiter, const absl::Status& failure) const;
  static void NoteAnswer(WaitQueue& queue);
  // The answer of one that has given up is news for those that still wait there.
  void NoteLateAnswer(WaitQueue& queue, const absl::StatusOr<ObtainReply>& answer);
  // When what it asked last was asked.
  absl::Time BeganToAsk(const Waiter& waiter) const;
  // Since when the backend has failed to answer it, or those that ask before it; infinite future if
  // it has not.
  static absl::Time FailingSince(const Waiter& waiter);
  // After an outage was noted: ends those that wait and are out of patience, and has the backend
  // asked again before others are.
  void EndImpatient(WaitQueue& queue);
  // Has the head of the queue ask by then.
  void HeadAsksBy(WaitQueue& queue, absl::Time at);
  // What it has heard instead of answers, and from `queue`, if that is not null.
  static Outage Heard(const Waiter& waiter, const WaitQueue* queue);
  absl::Status OutageErrorOf(const Waiter& waiter) const;
  absl::Status PolicyErrorOf(const Waiter& waiter, const absl::Status& thrown) const;
  // `queue` is that in which it waits, or would have. `detail` follows the reason in words.
  absl::Status GiveUpErrorOf(const Waiter& waiter, const WaitQueue& queue, Reason reason,
                             std::string_view detail = {}) const;

  // ---- Deadlocks ----

  bool LooksForDeadlocks() const {
    return engine_.detector() != nullptr && engine_.detector()->active();
  }
  bool HasSuspects() const {
    return engine_.detector() != nullptr && engine_.detector()->HasSuspects();
  }
  // Makes sure of the cycles that the detector suspects, and ends them. With no mutex held.
  void ResolveDeadlocks();
  bool IsCertain(const DeadlockDetector::Cycle& cycle);
  // Where Inspect is missing: has the holders asked for anew that are not certain yet.
  static void AskAboutHolders(const DeadlockDetector::Cycle& cycle);

  EngineContext& engine_;
};

}  // namespace latchkey::internal

#endif  // LATCHKEY_CORE_ENGINE_QUEUE_DRIVER_H_

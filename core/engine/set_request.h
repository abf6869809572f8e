// SetRequest is one AcquireAll under way.
//
// How it goes, in passes over the members in the order of the set. It asks for each without
// reserving any: what is free it takes. If that was all, it is done. A member that is in the way is
// *soft* if its holder may be asked to yield, else *hard*. At the first that is hard it gives back
// what comes after that, waits for that one in its queue, and goes on behind it: so nobody is asked
// to yield for a set that is known not to be had anyway, and since what it holds while it waits in
// a queue comes before what it waits for, sets in sorted order cannot wait for each other in a
// cycle. If all that is missing is soft, as one pass from the beginning has seen, it reserves one
// after the other and waits for it. If it loses a reservation to somebody else, it gives everything
// back, lets a random time pass, waits for that member in its queue, and begins anew.
//
// A set is often waited for while another set gives it back, member by member. So what it asks for
// at once behind a member that it had to wait for, and would give back if the next one is hard, is
// in proportion to what it has gained since: all in all it asks for each member a few times,
// however many there are.
//
// It may be preempted, too: if a member that it holds is asked to yield, or is lost, it gives
// everything back and begins anew.
//
// If the backend fails or refuses, it gives everything back and ends when it has heard that nothing
// is held any more: only then that error is true.
//
// What comes next is decided by SetPlan (set_plan.h), which needs no clock and no backend; done
// here (set_request.cc); and how it ends is told in set_request_end.cc.
//
// Thread safety: what happens is posted into a mailbox from any thread; one thread at a time
// handles it: the caller's for the blocking form, and the executor's for the other.
#ifndef LATCHKEY_CORE_ENGINE_SET_REQUEST_H_
#define LATCHKEY_CORE_ENGINE_SET_REQUEST_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <vector>

#include "absl/log/check.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "latchkey/core/base/clock.h"
#include "latchkey/core/base/event_mailbox.h"
#include "latchkey/core/base/lock_error.h"
#include "latchkey/core/base/ref_counted.h"
#include "latchkey/core/base/strand.h"
#include "latchkey/core/engine/manager_core.h"
#include "latchkey/core/engine/outage.h"
#include "latchkey/core/engine/request_terms.h"
#include "latchkey/core/engine/set_plan.h"
#include "latchkey/core/engine/set_returns.h"
#include "latchkey/core/engine/waiter.h"
#include "latchkey/core/lock/lock.h"
#include "latchkey/core/lock/lock_set.h"
#include "latchkey/core/policy/acquire_options.h"
#include "latchkey/core/protocol/locking_protocol.h"

namespace latchkey::internal {

class SetRequest : public RefCounted<SetRequest> {
 public:
  // Sorts, and drops duplicates.
  static RefPtr<SetRequest> New(ManagerCore& core, std::vector<LockRequest> requests,
                                LockOrder order);

  // Of all options. First of all.
  absl::Status Check();
  absl::StatusOr<LockSet> Wait();
  // Checks them, too.
  void Start(AcquireAllCallback done);
  // The manager is being destroyed.
  void Shutdown();
  // For messages: "'a', 'b'".
  std::string Names() const;

 private:
  friend class RefCounted<SetRequest>;
  friend class Ticket<SetRequest>;

  // Where it stands. MayFollow() says from where to where it may go.
  enum class Phase : uint8_t {
    kNew,
    kAsking,     // For those members that its plan has asked; the answers are due.
    kQueueing,   // Waits for a member in its queue.
    kReserving,  // Waits for a member as its successor, and for nothing else.
    kPausing,    // Holds nothing, and lets some time pass before it waits for a member.
    kExtending,  // Holds all, and has the leases begin anew.
    kReturning,  // Has failed, and waits until all is given back.
    kEnded,
  };
  static bool MayFollow(Phase before, Phase after);

  // What it has told the manager, which it does not do before it has to.
  enum class Known : uint8_t {
    kNo,      // Nothing.
    kYes,     // That it is there; and its timeout runs.
    kWaited,  // The same, and it has waited: what it holds is getting old.
  };

  struct Event {
    enum Kind { kAsked, kGranted, kYield, kPaused, kExtended, kReturned, kGiveUp };
    Kind kind = kYield;
    int64_t round = 0;
    size_t index = 0;
    std::optional<absl::StatusOr<Lock>> lock = std::nullopt;
    std::optional<ObtainReply> reply = std::nullopt;
    Reason reason = Reason::kNone;
  };
  struct YieldFn {
    SetRequest* request;
    int64_t round;
    void operator()() const { request->PostYield(round); }
  };
  struct CancelFn {
    SetRequest* request;
    void operator()() const {
      request->Post({.kind = Event::kGiveUp, .reason = Reason::kCancelled});
    }
  };
  struct Member {
    std::string resource;
    AcquireOptions options;
    RequestTerms terms;  // Its owner views options.owner.
    Lock lock = {};
    absl::Status failure = {};  // What came instead of an answer.
    // Who was in the way.
    bool other_known = false;
    std::string other_owner = {};
    Priority other_priority = 0;
    std::optional<std::stop_callback<YieldFn>> on_yield = {};
  };

  SetRequest(ManagerCore& core, std::vector<std::unique_ptr<Member>> members);
  ~SetRequest();

  void Post(Event event);
  void PostYield(int64_t round);
  // Has the executor do it.
  void HandleLater();
  void HandleEvents();
  // The executor dropped the task that was to handle events.
  void OnDropped();

  // ---- The rest is called by the thread that handles events ----

  void MoveTo(Phase next) {
    DCHECK(MayFollow(phase_, next)) << "a set does not come from there to here";
    phase_ = next;
  }
  void Begin();
  // The timeout, and the news that the manager is destroyed. False: that has ended it.
  bool PrepareToWait();
  void Handle(Event event);
  void OnAsked(Event event);
  void OnGranted(Event event);

  // ---- What its plan says ----

  void TakeStep() { Take(plan_.NextStep()); }
  void Take(const SetStep& step);
  void Ask(size_t from);
  // All that it asked for are answered.
  void OnAllAsked();
  // Notes about which of those that were asked last the backend failed to answer. The error if the
  // set ends for that.
  absl::Status NoteFailures();
  void Keep(size_t index, Lock lock);
  // May its holder be asked to yield?
  Standing StandingOf(Member& member, const ObtainReply& reply);
  // `phase`: kQueueing or kReserving.
  void WaitFor(size_t index, Phase phase);
  // Gives everything back and begins anew; if it has lost a member, or does so again and again, not
  // with all at once.
  void Restart();
  // Waits for this member, after a pause; to be called with nothing held.
  void BackOff(size_t index);
  void WaitAfter(absl::Duration delay, size_t index);
  absl::StatusOr<absl::Duration> RetryDelay(size_t index);
  void StopWaiting();
  // Is it still to hear whether it holds what it has asked for?
  bool IsAsking() const { return phase_ == Phase::kAsking && answers_due_ > 0; }
  // What its waiter has heard instead of answers is the set's.
  void NoteOutageOfWaiter();
  // Gives back the members from `index` on.
  void GiveBack(size_t index);
  // Gives back all, also what is still on the way; nothing of this round matters any more.
  void EndRound();
  void Return(Lock lock);
  // Hears when a member that it holds is wanted by others.
  void Listen();
  // False if there are no more attempts, and it has given up.
  bool CountAttempt();

  // ---- The end (set_request_end.cc) ----

  void Complete();
  void Succeed();
  void GiveUp(Reason reason);
  // With what its waiter ended with.
  void FailAsWaiter(const absl::Status& status);
  // Gives everything back, and ends with this: where it says that nothing was done, once that is
  // known to be so, and else as unknown.
  void Fail(const absl::Status& status);
  void EndFailed();
  void End(absl::Status status);
  void Finish(absl::StatusOr<LockSet> result);
  std::string Who() const;

  ManagerCore& core_;
  QueueShard* shard_ = nullptr;  // Keeps the core alive; null for a set of nothing.
  // By pointer, since stop callbacks cannot move.
  std::vector<std::unique_ptr<Member>> members_;
  absl::Duration timeout_ = absl::InfiniteDuration();
  absl::Duration outage_patience_ = absl::InfiniteDuration();
  int max_attempts_ = AcquireOptions::kUnlimited;

  EventMailbox<Event> inbox_;
  SetReturns returns_;

  // Used by the thread that handles events.
  AcquireAllCallback done_;  // Null: a thread waits for `result_`.
  std::optional<absl::StatusOr<LockSet>> result_;
  Phase phase_ = Phase::kNew;
  Known known_ = Known::kNo;
  SetPlan plan_;
  int64_t round_ = 0;  // A round ends when everything is given back.
  int attempts_ = 0;
  int failures_ = 0;  // Reservations and members lost.
  // Each member is asked for with an acquisition id of its own, so no answer settles what others
  // have left open.
  Outage outage_;
  bool answered_ = false;        // Was there any answer?
  absl::Status failure_;         // kReturning: what it ends with.
  size_t answers_due_ = 0;       // kAsking, kExtending.
  std::vector<size_t> unheard_;  // Taken since it listened last.
  size_t blocked_ = 0;           // The member that it waits for, or that was last in the way.
  absl::Time began_;
  absl::Time restarted_ = absl::InfinitePast();
  std::optional<std::stop_source> wait_stop_;
  RefPtr<Waiter> waiter_;  // Of the member that it waits for; may be null.
  std::vector<std::unique_ptr<std::stop_callback<CancelFn>>> cancels_;
  Clock::TimerId timeout_timer_ = 0;
  Clock::TimerId pause_timer_ = 0;
};

}  // namespace latchkey::internal

#endif  // LATCHKEY_CORE_ENGINE_SET_REQUEST_H_

// SetRequest is one AcquireAll under way.
//
// How it goes, in passes over the members in the order of the set. It asks for each without
// reserving any: what is free it takes. If that was all, it is done. A member that is in the way is
// *soft* if its holder may be asked to yield, else *hard*. At the first that is hard it gives back
// what comes after that, waits for that one in its queue, and goes on behind it: so nobody is asked
// to yield for a set that is known not to be had anyway, and since what it holds while it waits in
// a queue comes before what it waits for, sets in sorted order cannot wait for each other in a
// circle. If all that is missing is soft, as one pass from the beginning has seen, it reserves one
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
// Thread safety: what happens is posted into an inbox from any thread; one thread at a time empties
// it (Step). That is the caller's thread for the blocking form, and the executor's for the other.
#ifndef LATCHKEY_CORE_ENGINE_SET_REQUEST_H_
#define LATCHKEY_CORE_ENGINE_SET_REQUEST_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "latchkey/core/base/ref_counted.h"
#include "latchkey/core/engine/manager_core.h"
#include "latchkey/core/engine/outage.h"
#include "latchkey/core/lock/lock_set.h"

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
  class Ticket;

  struct Event {
    enum Kind { kAsked, kGranted, kYield, kBackedOff, kExtended, kReturned, kGiveUp };
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
    void operator()() const { request->Post({.kind = Event::kYield, .round = round}); }
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
    bool held = false;
    bool soft = false;
    absl::Status failure = {};  // What came instead of an answer.
    // Who was in the way.
    bool other_known = false;
    std::string other_owner = {};
    Priority other_priority = 0;
    std::optional<std::stop_callback<YieldFn>> on_yield = {};
  };

  SetRequest(ManagerCore& core, std::vector<std::unique_ptr<Member>> members);
  ~SetRequest();

  void Post(Event event) ABSL_LOCKS_EXCLUDED(mu_);
  // Empties the inbox. At most one thread at a time.
  void Step() ABSL_LOCKS_EXCLUDED(mu_);
  // The executor dropped the task that was to step.
  void OnDropped() ABSL_LOCKS_EXCLUDED(mu_);

  // The rest is called by the thread that steps.
  void Begin();
  // The timeout, and the news that the manager is destroyed.
  void PrepareToWait();
  void Handle(Event& event);
  // Asks for what is missing from `from` on, and then for what is missing before.
  void BeginPass(size_t from);
  void AskSome();
  void AllAsked();
  // Notes about which of those that were asked last the backend failed to answer. The error if the
  // set ends for that.
  absl::Status NoteFailures();
  // The first from `from` on that is not held; the number of members if there is none.
  size_t FirstMissing(size_t from) const;
  void Take(size_t index, Lock lock);
  void Note(Member& member, const ObtainReply& reply);
  void WaitFor(size_t index, bool reserve_only);
  void OnGranted(Event& event);
  // Gives everything back and begins anew; if it has lost a member, or does so again and again, not
  // with all at once.
  void Restart();
  // Waits for this member, after a pause; to be called with nothing held.
  void BackOff(size_t index);
  void WaitAfter(absl::Duration delay, size_t index);
  absl::StatusOr<absl::Duration> RetryDelay(size_t index);
  void StopWaiting();
  // Does it ask for members that it does not hold?
  bool IsAsking() const;
  // What its waiter has heard instead of answers is the set's.
  void NoteOutageOfWaiter();
  // Gives back the members from `index` on; the next pass begins there.
  void GiveBack(size_t index);
  void Return(Lock lock) ABSL_LOCKS_EXCLUDED(mu_);
  void OnReturned(const absl::Status& status) ABSL_LOCKS_EXCLUDED(mu_);
  // What could not be given back is open as well.
  void NoteReturns() ABSL_LOCKS_EXCLUDED(mu_);
  // Hears when a member that it holds is wanted by others.
  void Listen();
  // False if there are no more attempts, and it has given up.
  bool CountAttempt();
  void Complete();
  void Succeed();
  void GiveUp(Reason reason);
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
  AcquireAllCallback done_;  // Null: a thread waits.

  // Used by the thread that steps.
  bool blocking_ = false;
  bool prepared_ = false;
  bool finished_ = false;
  bool waited_ = false;
  bool reserving_ = false;  // Waits as a successor, and for nothing else.
  int64_t round_ = 0;
  int attempts_ = 0;
  int failures_ = 0;  // Reservations and members lost.
  // Each member is asked for with an acquisition id of its own, so no answer settles what others
  // have left open.
  Outage outage_;
  bool answered_ = false;  // Was there any answer?
  absl::Status failure_;   // What it ends with once all is given back; OK: it goes on.
  size_t answers_due_ = 0;
  // Of this pass: where it began, what was asked last and is not answered, and what is asked next.
  size_t pass_begin_ = 0;
  size_t asked_begin_ = 0;
  size_t asked_end_ = 0;
  size_t ask_at_once_ = 1;
  size_t held_end_ = 0;           // None from here on is held.
  size_t given_back_from_ = 0;    // Where it goes on with what it waits for.
  std::vector<Member*> unheard_;  // Taken since it listened last.
  size_t blocked_ = 0;            // The member that it waits for, or that was last in the way.
  absl::Time began_;
  absl::Time restarted_ = absl::InfinitePast();
  std::optional<std::stop_source> wait_stop_;
  RefPtr<Waiter> waiter_;  // Of the member that it waits for; may be null.
  std::vector<std::unique_ptr<std::stop_callback<CancelFn>>> cancels_;

  absl::Mutex mu_;
  std::vector<Event> inbox_ ABSL_GUARDED_BY(mu_);
  bool scheduled_ ABSL_GUARDED_BY(mu_) = false;  // Somebody steps, or is about to.
  Clock::TimerId timeout_timer_ ABSL_GUARDED_BY(mu_) = 0;
  Clock::TimerId backoff_timer_ ABSL_GUARDED_BY(mu_) = 0;
  bool closed_ ABSL_GUARDED_BY(mu_) = false;  // Nothing that comes matters any more.
  // What it has given back, on the way as well: how many are not answered yet, and why the backend
  // may have kept some.
  size_t returns_due_ ABSL_GUARDED_BY(mu_) = 0;
  absl::Status not_returned_ ABSL_GUARDED_BY(mu_);
  bool awaits_returns_ ABSL_GUARDED_BY(mu_) = false;
  std::optional<absl::StatusOr<LockSet>> result_ ABSL_GUARDED_BY(mu_);
};

}  // namespace latchkey::internal

#endif  // LATCHKEY_CORE_ENGINE_SET_REQUEST_H_

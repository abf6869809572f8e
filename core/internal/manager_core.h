// ManagerCore is what a LockManager and its locks share: the backend, the policies, and the queues
// of those who wait.
//
// How a request goes: it asks the backend directly if nobody waits for the resource, and in the few
// cases in which the queue does not matter (GoesDirectly). If the answer is not a grant, it waits:
// as a Waiter in the resource's WaitQueue, if the admission policy lets it. Of a queue only its
// head, and the most urgent waiter that may preempt, are registered with the backend (Watch) and
// ask it (Obtain): when they come to the front, when an event wakes them, and when a poll is due.
// What it fails to answer them is an outage of all that wait there (WaitQueue::outage).
//
// One thread at a time works on a queue (Pump): it decides under the shard's mutex what to do next
// and does it without the mutex, so that the backend, and whoever is told, may call back.
//
// Where the backend does not answer at once, a request that asks directly takes its place in the
// queue before it asks, and is *joining* until the answer is there: it counts as waiting for nobody
// but those who come after it in the order.
//
// Lock order: CoreShard::mu or sets_mu_, then the WaitGraph's or a clock's own mutex. No other
// mutex is taken under it: the backend, executors and user code are called with none held.
#ifndef LATCHKEY_CORE_INTERNAL_MANAGER_CORE_H_
#define LATCHKEY_CORE_INTERNAL_MANAGER_CORE_H_

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/optimization.h"
#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/container/inlined_vector.h"
#include "absl/functional/any_invocable.h"
#include "absl/numeric/int128.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "latchkey/core/internal/blocker.h"
#include "latchkey/core/internal/callback_scope.h"
#include "latchkey/core/internal/contain.h"
#include "latchkey/core/internal/hold.h"
#include "latchkey/core/internal/inline_turn.h"
#include "latchkey/core/internal/outage.h"
#include "latchkey/core/internal/ref_counted.h"
#include "latchkey/core/internal/wait_graph.h"
#include "latchkey/core/internal/wait_order.h"
#include "latchkey/core/lock_manager.h"
#include "latchkey/core/scoped_owner.h"

namespace latchkey::internal {

class ManagerCore;
class SetRequest;
struct WaitQueue;

// For messages: why a request ended without a lock.
std::string_view WhyGivenUp(Reason reason);

// What a request asks for, with the manager's and the backend's defaults filled in.
struct Plan {
  std::string_view owner = {};
  Priority priority = 0;
  bool preemptible = true;
  absl::Duration lease = absl::InfiniteDuration();
  absl::Duration reservation_lease = absl::InfiniteDuration();
  bool auto_renew = false;
  // Renew what is entered again, too, if that has an end although this request asks for none.
  bool renew_reentered = false;
  absl::Duration max_hold = absl::InfiniteDuration();
  std::optional<Priority> reserve_below = std::nullopt;
  std::optional<absl::Duration> grace = std::nullopt;
};

// A request between its first look at the backend and the queue.
struct Attempt {
  Plan plan = {};
  AcquisitionId id = {};
  std::optional<absl::StatusOr<ObtainReply>> first = std::nullopt;
  absl::Time asked_at = {};
};

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

// One request that waits. Fields without a remark are constant once it is in a queue.
struct Waiter : RefCounted<Waiter> {
  // In one allocation with its names.
  static RefPtr<Waiter> New(CoreShard* shard, const ResourceName& resource, const Plan& plan,
                            const AcquireOptions& options, AcquireCallback done);
  ~Waiter();
  static void operator delete(void* memory) { ::operator delete(memory); }

  CoreShard* const shard;
  // Over bytes of its own.
  const ResourceName resource;
  const std::string_view owner;
  Plan plan;  // Its owner is `owner`.
  const absl::Duration acquire_timeout;
  const absl::Duration outage_patience;
  const int max_attempts;
  const std::shared_ptr<const RetryPolicy> retry;          // Null: the manager's.
  const std::shared_ptr<const AdmissionPolicy> admission;  // The same.
  AcquisitionId id;
  absl::Time enqueued;
  // Does `done` signal a blocked thread? Then it is called directly.
  bool direct = false;
  // That thread's, if it competes for the lock itself when woken.
  Blocker* blocker = nullptr;

  // Gives back what its set holds when somebody of higher priority wants that.
  bool gives_way = false;
  // Set by the WaitGraph: when it began to wait, and where it is among its owner's waits.
  uint64_t waits_since = 0;
  size_t place_in_graph = 0;

  // The rest is guarded by shard->mu, but for `done` and what `TakeFinished` has taken.
  WaitQueue* queue = nullptr;  // Null: not waiting any more.
  WaitLink<Waiter> in_order;
  WaitLink<Waiter> in_priorities;
  bool registered = false;  // Registered with the backend, or about to be.
  bool asking = false;      // An Obtain is under way.
  bool ask_due = false;
  bool joining = false;   // Its first answer is not there yet, nor is it admitted.
  bool alone = false;     // The Obtain under way was sent without its being registered.
  bool looking = false;   // The next answer belongs to an attempt that was counted already.
  bool look_due = false;  // That goes for the Obtain that is due.
  bool reserved = false;  // It is the successor of a holder, as far as it has heard.
  bool ever_reserved = false;
  bool time_matters = false;  // Although it asks for a lease without end: the answer has one.
  bool in_graph = false;
  uint64_t graph_time = 0;  // When it was asked last, see WaitGraph::Now().
  std::string circle;       // If it fails for that.
  int attempts = 0;
  std::unique_ptr<Outage> outage;  // Since the last answer; null: none.
  absl::Time asked_at;
  // Numbers of its queue's questions: the one that it asked last, and the last before it came.
  int64_t question = 0;
  int64_t came_after = 0;
  // How long it reserves; may be shorter than the plan has it, for a victim that has little left.
  absl::Duration reservation_lease;
  absl::Duration victim_has_left;  // By the last answer, while it is reserved.
  std::string other_owner;
  Priority other_priority = 0;
  bool other_known = false;
  Subscription subscription;
  Clock::TimerId poll_timer = 0;
  absl::Time poll_at;  // When that is due.
  Clock::TimerId timeout_timer = 0;
  // How it ended: OK and the grant, or why there is none.
  absl::Status outcome;
  Grant grant;
  bool withdraw = false;  // Tell the backend that it does not want the lock any more.
  AcquireCallback done;

  bool failing() const { return outage != nullptr && outage->failures() > 0; }
  // An answer was lost: the backend may think that it holds.
  bool maybe_obtained() const { return outage != nullptr && outage->unsettled(); }

  // For another victim it begins anew.
  void LoseReservation() {
    reserved = false;
    reservation_lease = plan.reservation_lease;
  }

  struct StopFn {
    Waiter* waiter;
    void operator()() const;
  };
  std::optional<std::stop_callback<StopFn>> stop;

 private:
  Waiter(CoreShard* in_shard, const ResourceName& name, std::string_view who, const Plan& from,
         const AcquireOptions& options, AcquireCallback call);
};

using WaiterList = absl::InlinedVector<RefPtr<Waiter>, 2>;

// Those who wait for one resource. Guarded by the shard's mutex.
struct WaitQueue {
  explicit WaitQueue(bool ranks_by_priority) : ranked_by_priority(ranks_by_priority) {}

  // In the order in which they are next. It holds one reference to each.
  WaitOrder<Waiter, &Waiter::in_order> order;
  // The same by priority: for shedding, and for finding who may preempt. Left empty where `order`
  // says the same.
  WaitOrder<Waiter, &Waiter::in_priorities> priorities;
  const bool ranked_by_priority;
  int64_t may_preempt = 0;  // How many of them.
  int64_t joining = 0;      // The same.
  int64_t questions = 0;    // How many were asked.
  int64_t answered = 0;     // How many were, when the last answer came.
  // What the backend has said instead of answers to any of them since then; null: nothing. Those
  // who wait behind others ask nothing, and are as impatient.
  std::unique_ptr<Outage> outage;
  // Somebody needs the answer to a question later than this one; -1: nobody does.
  int64_t look_after = -1;

  bool empty() const { return order.empty(); }
  // How many wait, by what the backend has answered.
  int64_t pending() const { return order.size() - joining; }
  // That number as the observer, if there is one, was told it last.
  int64_t told_pending = 0;
  Waiter* most_urgent() const { return ranked_by_priority ? order.first() : priorities.first(); }
  // Of those that wait already.
  Waiter* least_urgent() const {
    if (joining == 0) return ranked_by_priority ? order.last() : priorities.last();
    const auto waits = [](const Waiter& waiter) { return !waiter.joining; };
    return ranked_by_priority ? order.LastOf(waits) : priorities.LastOf(waits);
  }

  // Those that are registered with the backend: at most the head, the thief, and those on the way
  // out.
  WaiterList registered;
  // Those that became the successor before they had a place here: they have to be registered, too.
  WaiterList successors;
  // Those that are to ask although they are not registered.
  WaiterList alone;
  WaiterList finished;  // Not told yet.
  // What was heard of the holder last; kept only for orders other than by priority, where nobody
  // may stand before the head but who could take the lock from that holder.
  std::optional<Priority> holder_priority;
  bool pumping = false;
};

struct ABSL_CACHELINE_ALIGNED CoreShard {
  ManagerCore* core = nullptr;
  // One for the manager itself, one for each lock, hold and waiter.
  std::atomic<int64_t> live{1};
  // Waiters on resources of this shard.
  std::atomic<int64_t> waiting{0};

  absl::Mutex mu;
  absl::flat_hash_map<std::string, std::unique_ptr<WaitQueue>> queues ABSL_GUARDED_BY(mu);
  // Where the backend cannot tell who holds what.
  absl::flat_hash_set<Hold*> holds ABSL_GUARDED_BY(mu);

  void Ref() { live.fetch_add(1, std::memory_order_relaxed); }
  // May delete the core.
  void Unref();
};

// What a queue policy says of all requests.
struct QueueTraits {
  bool barging = false;
  bool by_priority = true;
};

class ManagerCore {
 public:
  // `queue` is what the policy in the options says.
  ManagerCore(std::shared_ptr<LockingProtocol> backend, LockManagerOptions options,
              const QueueTraits& queue);

  // The manager's destructor: ends the waiting and gives up its references. The core deletes itself
  // with the last lock.
  void Shutdown();

  absl::StatusOr<Lock> Acquire(const ResourceName& resource, const AcquireOptions& options);
  absl::StatusOr<Lock> TryAcquire(ResourceName resource, const AcquireOptions& options);
  void AcquireAsync(ResourceName resource, const AcquireOptions& options, AcquireCallback done);
  absl::StatusOr<LockSet> AcquireAll(std::vector<LockRequest> requests, LockOrder order);
  void AcquireAllAsync(std::vector<LockRequest> requests, LockOrder order, AcquireAllCallback done);

  // The two halves of AcquireAsync, for awaitables, which need no callback unless they wait.
  //
  // Begin asks the backend if that takes no waiting. The lock or the error; none: go on with Wait.
  // A non-empty `owner` replaces that of the options; it must outlive the attempt.
  std::optional<absl::StatusOr<Lock>> Begin(const ResourceName& resource,
                                            const AcquireOptions& options, std::string_view owner,
                                            Attempt& attempt);
  // Queues, and uses the attempt up. `done` runs exactly once, on the executor or directly,
  // possibly before this returns.
  RefPtr<Waiter> Wait(const ResourceName& resource, const AcquireOptions& options, Attempt& attempt,
                      AcquireCallback done, bool direct = false, bool gives_way = false);
  // Ends the wait with kCancelled, if it has not ended yet. `done` still runs.
  void Cancel(Waiter& waiter) { GiveUp(waiter, Reason::kCancelled); }

  bool IsBusy(ResourceName resource);
  bool IsBusy();
  std::vector<ResourceSnapshot> Snapshot();

  // Keep the core alive beyond its manager.
  void Ref() { shards_[0].Ref(); }
  void Unref() { shards_[0].Unref(); }
  // Has the manager been destroyed?
  bool IsShutDown() const { return shut_down_.load(); }

  LockingProtocol& backend() { return *backend_; }
  Clock& clock() { return clock_; }
  Executor& executor() { return executor_; }
  Observer* observer() { return observer_.get(); }
  const BackendCapabilities& capabilities() const { return capabilities_; }
  // Runs `task`, which does not throw, on the executor as user code.
  template <typename Task>
  void RunUser(Task task) {
    auto scoped = [task = std::move(task)]() mutable {
      CallbackScope scope;
      Task mine = std::move(task);  // What it captured may be user code, too, and ends in here.
      mine();
    };
    if (inline_executor_) {
      InlineTurn turn;
      if (turn.mine()) return scoped();
      return InlineTurn::Later(std::move(scoped));
    }
    // A task that it does not take is dropped, as one that shuts down may do.
    RunContained("Executor::Execute", "", [&] { executor_.Execute(std::move(scoped)); });
  }
  // Runs a callback of the user's on the executor. What it throws ends there, see contain.h; the
  // rest is for the log. `where` is a literal; `resource` must outlive this call.
  template <typename Task>
  void CallUser(std::string_view where, std::string_view resource, Task task) {
    if (inline_executor_) {
      InlineTurn turn;
      if (turn.mine()) {
        CallbackScope scope;
        Task mine = std::move(task);
        RunContained(where, resource, mine);
        return;
      }
    }
    RunUser([where, resource = std::string(resource), task = std::move(task)]() mutable {
      RunContained(where, resource, task);
    });
  }
  // What drift and margin leave of a finite lease (rule C2).
  absl::Duration TimeOf(absl::Duration lease) const;
  // The moment up to which a lease that was asked for at `sent` is safe to rely on.
  absl::Time ValidUntil(absl::Time sent, absl::Duration remaining) const;
  // A random number in [0, 1) for jitter.
  double Random();
  // What the policy says, and no less than a pause that keeps no thread busy. Null: the manager's.
  // Error: the policy threw.
  absl::StatusOr<absl::Duration> RetryDelay(const RetryPolicy* policy,
                                            const RetryContext& context) const;

 private:
  friend class SetRequest;
  friend struct CoreShard;
  friend struct Waiter;

  static constexpr size_t kShards = 64;
  static constexpr absl::Duration kShortestRetryDelay = absl::Milliseconds(1);

  ~ManagerCore();

  CoreShard& ShardOf(const ResourceName& resource) {
    return shards_[(resource.hash() >> 20) % kShards];
  }

  // A request with nothing in it that the plan would have to work out: its hold is plain, and the
  // backend answers at once.
  bool IsPlain(const ResourceName& resource, const AcquireOptions& options) const {
    return plain_manager_ && current_owner == nullptr && !resource.empty() && !options.lease &&
           options.max_hold == absl::InfiniteDuration() && !options.preemption_grace &&
           options.preemption == nullptr && options.acquire_timeout >= absl::ZeroDuration() &&
           options.outage_patience >= absl::ZeroDuration() && options.max_attempts >= 1 &&
           options.max_execution_time > absl::ZeroDuration() &&
           options.max_occupation_time > absl::ZeroDuration();
  }
  // Asks the backend for a plain request. Without a grant, `other` says what came instead. Takes a
  // live reference for the lock if there is one.
  Lock AskPlainly(CoreShard& shard, const ResourceName& resource, AcquisitionId id,
                  const AcquireOptions& options, std::string_view owner,
                  std::unique_ptr<absl::StatusOr<ObtainReply>>& other);

  absl::Status CheckOptions(const ResourceName& resource, const AcquireOptions& options) const;
  // Of a lease that is renewed: can it be?
  absl::Status CheckRenewable(const ResourceName& resource, const AcquireOptions& options,
                              absl::Duration lease) const;
  absl::Status MakePlan(const ResourceName& resource, const AcquireOptions& options,
                        Plan& plan) const;
  ObtainRequest RequestOf(const ResourceName& resource, AcquisitionId id, const Plan& plan) const;
  absl::StatusOr<ObtainReply> AskNow(const ObtainRequest& request);
  // If `request` entered a hold that ends, and was sent without looking at the clock: asks again,
  // which is idempotent, to learn when. If that fails, `answer` is unknown, and may be undone.
  void LearnEnd(const ObtainRequest& request, absl::Time& sent,
                absl::StatusOr<ObtainReply>& answer);
  // Does a request ask the backend whoever waits?
  bool GoesDirectly(const Plan& plan, const AcquireOptions& options) const;
  // Past a queue, a request may only re-enter or take what is free, unless it comes before all that
  // wait there: they were first to ask the holder to yield.
  void YieldToQueue(CoreShard& shard, const ResourceName& resource, ObtainRequest& request);
  bool SomebodyIsAhead(CoreShard& shard, const ResourceName& resource, Priority priority);
  bool SomebodyWaits(CoreShard& shard, const ResourceName& resource) {
    return ABSL_PREDICT_FALSE(shard.waiting.load(std::memory_order_relaxed) != 0) &&
           HasWaiters(shard, resource);
  }
  bool HasWaiters(CoreShard& shard, const ResourceName& resource);
  // What the observer has yet to be told of a queue's length. Every change is told once, whoever is
  // first to do so, before those who wait are told how it ended for them.
  struct QueueChange {
    int64_t length = 0;
    int64_t by = 0;
  };
  QueueChange ChangeOf(WaitQueue& queue);
  void Tell(const ResourceName& resource, const QueueChange& change);
  // The queue policy's rank of it. Error: the policy threw.
  absl::StatusOr<absl::int128> RankOf(const Waiter& waiter) const;
  // The rank of one that skips the queue: that of the first of its priority, unless its own comes
  // before that. Many policies give no two requests the same.
  static absl::int128 RankToSkip(const Waiter& waiter, const WaitQueue& queue, absl::int128 own)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(waiter.shard->mu);
  // Asks the admission policy whether this request may wait, and makes room if it says so. The
  // error of a request that may not.
  absl::Status Admit(WaitQueue& queue, const Waiter& waiter)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(waiter.shard->mu);
  WaitQueue* FindQueue(CoreShard& shard, const ResourceName& resource)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard.mu);
  bool NeedsHold(const Plan& plan) const;
  // The lock of a grant. Takes over a live reference.
  Lock Granted(CoreShard& shard, const ResourceName& resource, AcquisitionId id, const Plan& plan,
               absl::Time sent, const Grant& grant);

  // For a member of a set that holds others: told with no executor in between, on whatever thread
  // the news comes.
  // Null: it need not wait.
  RefPtr<Waiter> AcquireMember(ResourceName resource, const AcquireOptions& options,
                               AcquireCallback done) {
    return StartAcquire(resource, options, std::move(done), /*member=*/true);
  }
  RefPtr<Waiter> StartAcquire(ResourceName resource, const AcquireOptions& options,
                              AcquireCallback done, bool member);
  // For messages: " is held by 'bob' with priority 3, which was asked to yield"; empty if it has
  // not heard who holds.
  static std::string HolderForMessage(const Waiter& waiter);
  // What it has heard instead of answers, if anything.
  static std::optional<Outage> OutageOf(const Waiter& waiter);
  // The same, from `queue`, if any, as well.
  static Outage Heard(const Waiter& waiter, const WaitQueue* queue);
  // Takes the lock if it is free; else `done` gets the answer beside the error. Told directly.
  // `options` must outlive the call of `done`.
  using TryCallback = absl::AnyInvocable<void(absl::StatusOr<Lock>, std::optional<ObtainReply>)>;
  void TryAsync(ResourceName resource, const AcquireOptions& options, TryCallback done);
  // Tells the observer of a request that failed at once.
  void NoteDenied(const ResourceName& resource, const Plan& plan, const absl::Status& why);
  static absl::Status HeldByOther(std::string_view resource, const ObtainReply& answer);

  // For sets that wait. False: the manager is being destroyed.
  bool AddSetRequest(SetRequest* request) ABSL_LOCKS_EXCLUDED(sets_mu_);
  void RemoveSetRequest(SetRequest* request) ABSL_LOCKS_EXCLUDED(sets_mu_);

  absl::StatusOr<Lock> AcquireGenerally(const ResourceName& resource,
                                        const AcquireOptions& options);
  absl::StatusOr<Lock> AcquireSlowly(CoreShard& shard, const ResourceName& resource,
                                     const Plan& plan, const AcquireOptions& options,
                                     AcquisitionId id,
                                     std::optional<absl::StatusOr<ObtainReply>> first,
                                     absl::Time asked_at);
  // Lets the waiter wait. Calls `done` in every case. `first` is the answer to its first question,
  // if that was asked already; else it asks from the queue.
  void Enqueue(const RefPtr<Waiter>& waiter, const AcquireOptions& options,
               std::optional<absl::StatusOr<ObtainReply>> first);
  // Takes a waiter out of its queue with this result; false if it was out already. The caller pumps
  // the queue afterwards.
  bool Finish(Waiter& waiter, absl::Status why, bool withdraw)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(waiter.shard->mu);
  void GiveUp(Waiter& waiter, Reason reason);
  // Tells the graph what an answer said.
  void NoteHolder(const Waiter& waiter) ABSL_EXCLUSIVE_LOCKS_REQUIRED(waiter.shard->mu);
  // Makes sure of the circles that the graph suspects, and ends them. With no mutex held.
  void ResolveDeadlocks();
  bool IsCertain(const WaitGraph::Circle& circle) const;
  // Where Inspect is missing: has the holders asked for anew that are not certain yet.
  static void AskAboutHolders(const WaitGraph::Circle& circle);
  // Has the backend to be told that this waiter does not want the lock any more?
  bool MayHaveLeftSomething(const Waiter& waiter) const;
  // `queue` is that in which it waits, or would have. `detail` follows the reason in words.
  absl::Status GiveUpError(const Waiter& waiter, const WaitQueue& queue, Reason reason,
                           std::string_view detail = {}) const;
  void Complete(Waiter& waiter);

  void Pump(CoreShard& shard, const ResourceName& resource) ABSL_LOCKS_EXCLUDED(shard.mu);
  // The same with the mutex held, which it frees. Null: nothing to do.
  void PumpAndUnlock(CoreShard& shard, const ResourceName& resource, WaitQueue* queue)
      ABSL_UNLOCK_FUNCTION(shard.mu);
  // Moves those finished with, or without, a grant to `direct` if a blocked thread is to be told,
  // which is done at once, and else to `callbacks`. False if there are none.
  bool TakeFinished(WaitQueue& queue, bool granted, WaiterList& direct, WaiterList& callbacks);
  // Is it certain that asking would not get this new head the lock?
  bool WouldBeDenied(Waiter& head, const WaiterList& callbacks) const;
  Waiter* ThiefOf(WaitQueue& queue) const;
  void HandleAnswer(Waiter& waiter, absl::StatusOr<ObtainReply>&& answer)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(waiter.shard->mu);
  // The backend failed: asks again after a pause, or ends it.
  void HandleFailure(Waiter& waiter, const absl::Status& failure)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(waiter.shard->mu);
  void NoteFailure(Waiter& waiter, const absl::Status& failure);
  // The same for all that wait where it does. False: it is a failure of its own, or old news.
  bool NoteOutage(const Waiter& waiter, const absl::Status& failure)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(waiter.shard->mu);
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
  // Has the backend to be told that this waiter, which has just failed, is gone?
  bool LeavesSomething(const Waiter& waiter) const {
    // One that is registered may have been woken, too.
    return waiter.registered ? MayHaveLeftSomething(waiter)
                             : waiter.ever_reserved || waiter.maybe_obtained();
  }
  // What it ends with for that.
  absl::Status OutageError(const Waiter& waiter) const;
  // What it ends with if a policy threw.
  absl::Status PolicyError(const Waiter& waiter, const absl::Status& thrown) const;
  // How long this waiter, which was just told that it has reserved, is to reserve from now on; its
  // victim's lease has this much left.
  absl::Duration ReservationLease(const Waiter& waiter, absl::Duration victim_has)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(waiter.shard->mu);
  void PollAt(Waiter& waiter, absl::Time at) ABSL_EXCLUSIVE_LOCKS_REQUIRED(waiter.shard->mu);
  // If somebody needs to know who holds the lock: has one of those ask that are registered, unless
  // that is under way.
  static void LookAgain(WaitQueue& queue);
  // Notes that it is about to be asked for.
  ObtainRequest BeginToAsk(Waiter& waiter) ABSL_EXCLUSIVE_LOCKS_REQUIRED(waiter.shard->mu);
  // Has it ask once, wherever it stands.
  static void AskAlone(Waiter& waiter) ABSL_EXCLUSIVE_LOCKS_REQUIRED(waiter.shard->mu);
  // What a registered waiter was told of the holder: those that the holder's owner sent ask now,
  // since they can enter again. (At once, they did so when they came.)
  void NoteLook(const Waiter& waiter) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(waiter.shard->mu);
  // The answer of one that is joining: ends it, or lets it wait if the admission policy does.
  void HandleFirstAnswer(Waiter& waiter, absl::StatusOr<ObtainReply>&& answer)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(waiter.shard->mu);
  // From now on it waits, unless it is refused.
  bool Join(Waiter& waiter, bool withdraw) ABSL_EXCLUSIVE_LOCKS_REQUIRED(waiter.shard->mu);
  // What the answer leaves to do without the mutex: the lock was granted to one that gave up.
  bool TakeAnswer(Waiter& waiter, absl::StatusOr<ObtainReply>&& answer)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(waiter.shard->mu);
  void GiveBack(const Waiter& waiter);
  // On a thread that was nudged: tries to take the lock before somebody else does.
  void Compete(const RefPtr<Waiter>& waiter);
  void OnAnswer(Waiter& waiter, absl::StatusOr<ObtainReply>&& answer);
  void OnEvent(const RefPtr<Waiter>& waiter, const WatchEvent& event);

  // What those of the handles hold that have not lost it by now.
  static std::vector<ResourceState> HeldBy(const std::vector<RefPtr<Hold>>& handles);

  const std::shared_ptr<LockingProtocol> backend_;
  const BackendCapabilities& capabilities_;
  const LockManagerOptions options_;
  const std::shared_ptr<Observer> observer_;  // Null: nobody observes.
  Clock& clock_;
  Executor& executor_;
  const bool inline_executor_;
  const bool barging_;
  const bool by_priority_;  // The queues' order follows priority alone.
  // Nobody who asks overtakes those who wait: the backend keeps the same order as the queues.
  const bool backend_keeps_order_;
  const std::shared_ptr<WaitGraph> graph_;  // Null: deadlocks are not looked for.
  // The backend answers at once and needs neither leases nor names to be told, nobody observes, and
  // whoever is lower is preempted: see IsPlain().
  const bool plain_manager_;
  CoreShard shards_[kShards];
  std::atomic<int64_t> open_shards_{kShards};
  std::atomic<int64_t> pending_{0};
  std::atomic<uint64_t> random_state_;
  std::atomic<bool> shut_down_{false};

  absl::Mutex sets_mu_;
  absl::flat_hash_map<SetRequest*, RefPtr<SetRequest>> sets_ ABSL_GUARDED_BY(sets_mu_);
};

inline void CoreShard::Unref() {
  if (ABSL_PREDICT_FALSE(live.fetch_sub(1, std::memory_order_acq_rel) == 1)) {
    if (core->open_shards_.fetch_sub(1, std::memory_order_acq_rel) == 1) delete core;
  }
}

}  // namespace latchkey::internal

#endif  // LATCHKEY_CORE_INTERNAL_MANAGER_CORE_H_

#include "latchkey/core/internal/manager_core.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <new>
#include <random>
#include <utility>

#include "absl/base/attributes.h"
#include "absl/strings/str_cat.h"
#include "latchkey/core/blocked_thread.h"
#include "latchkey/core/internal/blocker.h"
#include "latchkey/core/internal/callback_scope.h"
#include "latchkey/core/internal/contain.h"
#include "latchkey/core/internal/contained_observer.h"
#include "latchkey/core/internal/set_request.h"
#include "latchkey/core/lock_error.h"
#include "latchkey/core/scoped_owner.h"

namespace latchkey::internal {
namespace {

// Rule C8: a reservation is short beside the lease that it waits for, so that a thief which dies
// leaves its victim the time to renew. At first nothing is known but the thief's own lease, of
// which it takes a sixth. If by the answer that is more than half of what the victim has left, it
// takes a sixth of that instead; see ReservationLease.
constexpr int kReservationPart = 6;
constexpr int kMostOfTheRest = 2;
constexpr absl::Duration kShortestReservation = absl::Milliseconds(1);
// So many times as long as an answer took, at least: the next poll is to come in time (rule C5).
constexpr int kRoundTripsReserved = 5;
// Rule C5: it is polled well within that time.
constexpr double kPollPart = 0.4;

// Where barging is allowed, a blocked thread that was woken competes with those that come by. After
// this time it has been overtaken often enough, and the lock is handed to it (as Go's sync.Mutex
// does, since 1.9).
constexpr absl::Duration kPatience = absl::Milliseconds(10);
// Whoever has less time than this to wait does not try again before it queues.
constexpr absl::Duration kTimeToSpin = absl::Milliseconds(1);

// When a request was sent, if the clock was not read for it: the backend answers at once, and the
// lease asked for has no end.
constexpr absl::Time kUntimed = absl::UnixEpoch();

// For the log, if it throws.
constexpr std::string_view kCallback = "the callback of a request";

// Rule C2 takes a margin off each lease. Less than three of them leave a renewal no time.
constexpr int kMarginsToRenew = 3;

absl::Status InvalidField(std::string_view resource, std::string_view field, std::string_view rule,
                          std::string_view value) {
  return MakeError(Reason::kInvalidArgument,
                   absl::StrCat(field, " must ", rule, ", but is ", value, " (locking ",
                                ResourceForMessage(resource), ")"));
}

// What the backend, or a policy, said about this resource.
absl::Status CouldNotLock(std::string_view resource, const absl::Status& why) {
  return WithContext(absl::StrCat("could not lock ", ResourceForMessage(resource)), why);
}

// It is undone.
constexpr std::string_view kNoEndTold =
    "it entered a hold that ends, and the backend did not say when";

constexpr std::string_view kNotAnswered =
    "; an attempt is not answered yet, and what it obtains is given back";

absl::Status CancelledError(std::string_view resource, std::string_view detail = {}) {
  return MakeError(Reason::kCancelled, absl::StrCat("locking ", ResourceForMessage(resource),
                                                    " was cancelled by the caller", detail));
}

uint64_t RandomSeed(uint64_t wanted) {
  if (wanted != 0) return wanted;
  std::random_device device;
  return (uint64_t{device()} << 32) | device();
}

}  // namespace

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

// ---- Waiter ----

RefPtr<Waiter> Waiter::New(CoreShard* shard, const ResourceName& resource, const Plan& plan,
                           const AcquireOptions& options, AcquireCallback done) {
  const std::string_view name = resource.bytes();
  const std::string_view owner = plan.owner;
  void* const memory = ::operator new(sizeof(Waiter) + name.size() + owner.size());
  char* const bytes = static_cast<char*>(memory) + sizeof(Waiter);
  std::copy(name.begin(), name.end(), bytes);
  std::copy(owner.begin(), owner.end(), bytes + name.size());
  return RefPtr<Waiter>::Adopt(new (memory) Waiter(shard, resource.WithBytes({bytes, name.size()}),
                                                   {bytes + name.size(), owner.size()}, plan,
                                                   options, std::move(done)));
}

Waiter::Waiter(CoreShard* in_shard, const ResourceName& name, std::string_view who,
               const Plan& from, const AcquireOptions& options, AcquireCallback call)
    : shard(in_shard),
      resource(name),
      owner(who),
      plan(from),
      acquire_timeout(options.acquire_timeout),
      outage_patience(options.outage_patience),
      max_attempts(options.max_attempts),
      retry(options.retry),
      admission(options.admission),
      reservation_lease(from.reservation_lease),
      done(std::move(call)) {
  plan.owner = owner;
  shard->Ref();
}

Waiter::~Waiter() { shard->Unref(); }

void Waiter::StopFn::operator()() const {
  waiter->shard->core->GiveUp(*waiter, Reason::kCancelled);
}

// ---- Construction ----

ManagerCore::ManagerCore(std::shared_ptr<LockingProtocol> backend, LockManagerOptions options,
                         const QueueTraits& queue)
    : backend_(std::move(backend)),
      capabilities_(backend_->capabilities()),
      options_([&options] {
        if (options.admission == nullptr) options.admission = LimitPending();
        if (options.queue == nullptr) options.queue = PriorityQueue();
        if (options.retry == nullptr) options.retry = ExponentialBackoff();
        return std::move(options);
      }()),
      observer_(options_.observer == nullptr
                    ? nullptr
                    : std::make_shared<ContainedObserver>(options_.observer)),
      clock_(options_.clock != nullptr ? *options_.clock : RealClock()),
      executor_(options_.executor != nullptr ? *options_.executor : InlineExecutor()),
      inline_executor_(&executor_ == &InlineExecutor()),
      barging_(queue.barging),
      by_priority_(queue.by_priority),
      backend_keeps_order_(capabilities_.keeps_order && by_priority_),
      graph_(options_.detect_deadlocks ? WaitGraph::Of(backend_.get()) : nullptr),
      plain_manager_(options_.preemption == nullptr && observer_ == nullptr &&
                     capabilities_.infinite_lease && capabilities_.hint_identifies_hold &&
                     capabilities_.answers_at_once && capabilities_.inspect),
      random_state_(RandomSeed(options_.random_seed)) {
  for (CoreShard& shard : shards_) shard.core = this;
}

ManagerCore::~ManagerCore() = default;

void ManagerCore::Shutdown() {
  shut_down_.store(true);
  absl::flat_hash_map<SetRequest*, RefPtr<SetRequest>> sets;
  {
    absl::MutexLock lock(&sets_mu_);
    sets.swap(sets_);
  }
  for (const auto& [raw, request] : sets) request->Shutdown();
  sets.clear();
  for (CoreShard& shard : shards_) {
    std::vector<std::string> resources;
    {
      absl::MutexLock lock(&shard.mu);
      for (auto& [resource, queue] : shard.queues) {
        resources.push_back(resource);
        // Those at the front know who holds the lock, so all errors are made before they leave.
        std::vector<std::pair<Waiter*, absl::Status>> waiters;
        queue->order.ForEach([&, this, in = queue.get()](Waiter& waiter) {
          waiters.emplace_back(&waiter, GiveUpError(waiter, *in, Reason::kShutdown));
          return true;
        });
        for (auto& [waiter, error] : waiters) {
          waiter->shard->mu.AssertHeld();
          Finish(*waiter, std::move(error), MayHaveLeftSomething(*waiter));
        }
      }
    }
    for (const std::string& resource : resources) Pump(shard, resource);
  }
  // The last of them may delete this.
  CoreShard* const shards = shards_;
  for (size_t i = 0; i < kShards; ++i) shards[i].Unref();
}

// ---- Requests ----

absl::Status ManagerCore::CheckOptions(const ResourceName& resource,
                                       const AcquireOptions& options) const {
  if (resource.empty()) {
    return MakeError(Reason::kInvalidArgument, "resource must not be empty, but is ''");
  }
  const auto positive = [&](std::string_view field, absl::Duration value) {
    return value > absl::ZeroDuration()
               ? absl::OkStatus()
               : InvalidField(resource, field, "be positive", absl::FormatDuration(value));
  };
  const auto not_negative = [&](std::string_view field, absl::Duration value) {
    return value >= absl::ZeroDuration()
               ? absl::OkStatus()
               : InvalidField(resource, field, "not be negative", absl::FormatDuration(value));
  };
  if (options.lease) {
    if (auto bad = positive("lease", *options.lease); !bad.ok()) return bad;
    if (*options.lease == absl::InfiniteDuration() ? !capabilities_.infinite_lease
                                                   : *options.lease > capabilities_.max_lease) {
      return MakeError(Reason::kNotSupported,
                       absl::StrCat("backend '", capabilities_.name, "' offers no lease of ",
                                    absl::FormatDuration(*options.lease), " (at most ",
                                    absl::FormatDuration(capabilities_.max_lease), "), wanted for ",
                                    ResourceForMessage(resource)));
    }
  }
  if (auto bad = positive("max_hold", options.max_hold); !bad.ok()) return bad;
  if (options.preemption_grace) {
    auto bad = not_negative("preemption_grace", *options.preemption_grace);
    if (!bad.ok()) return bad;
  }
  if (auto bad = not_negative("acquire_timeout", options.acquire_timeout); !bad.ok()) return bad;
  if (auto bad = not_negative("outage_patience", options.outage_patience); !bad.ok()) return bad;
  if (options.max_attempts < 1) {
    return InvalidField(resource, "max_attempts", "be positive",
                        absl::StrCat(options.max_attempts));
  }
  if (auto bad = positive("max_execution_time", options.max_execution_time); !bad.ok()) return bad;
  return positive("max_occupation_time", options.max_occupation_time);
}

absl::Status ManagerCore::CheckRenewable(const ResourceName& resource,
                                         const AcquireOptions& options,
                                         absl::Duration lease) const {
  const absl::Duration least = kMarginsToRenew * capabilities_.lease_margin;
  if (lease >= least) return absl::OkStatus();
  const std::string rule =
      absl::StrCat("be at least ", absl::FormatDuration(least), " to be renewed (", kMarginsToRenew,
                   " times lease_margin of backend '", capabilities_.name, "')");
  return InvalidField(resource, options.lease ? "lease" : "default_lease", rule,
                      absl::FormatDuration(lease));
}

absl::Status ManagerCore::MakePlan(const ResourceName& resource, const AcquireOptions& options,
                                   Plan& plan) const {
  if (absl::Status bad = CheckOptions(resource, options); ABSL_PREDICT_FALSE(!bad.ok())) return bad;
  plan.owner = options.owner;
  if (plan.owner.empty() && ABSL_PREDICT_FALSE(current_owner != nullptr)) {
    plan.owner = **current_owner;
  }
  plan.priority = options.priority;
  plan.preemptible = options.preemptible;
  plan.max_hold = options.max_hold;
  if (options.lease) {
    plan.lease = *options.lease;
  } else if (!capabilities_.infinite_lease) {
    plan.lease = std::min(capabilities_.default_lease, capabilities_.max_lease);
  }
  // Where the lease would have no end, max_hold is the lease, or, where finite leases are not that
  // long, what it is renewed up to.
  const bool endless = !options.lease || *options.lease == absl::InfiniteDuration();
  if (plan.max_hold < plan.lease) plan.lease = std::min(plan.max_hold, capabilities_.max_lease);
  const bool finite = plan.lease != absl::InfiniteDuration();
  plan.auto_renew = finite && plan.lease < plan.max_hold && options.auto_renew.value_or(endless);
  if (plan.auto_renew) {
    absl::Status bad = CheckRenewable(resource, options, plan.lease);
    if (ABSL_PREDICT_FALSE(!bad.ok())) return bad;
  }
  if (finite && ABSL_PREDICT_FALSE(TimeOf(plan.lease) <= absl::ZeroDuration())) {
    return MakeError(Reason::kNotSupported,
                     absl::StrCat("a lease of ", absl::FormatDuration(plan.lease), " on backend '",
                                  capabilities_.name, "' is over before it begins (lease_margin ",
                                  absl::FormatDuration(capabilities_.lease_margin),
                                  "), wanted for ", ResourceForMessage(resource)));
  }
  plan.renew_reentered = options.auto_renew.value_or(false);
  if (!capabilities_.infinite_lease) {
    plan.reservation_lease = std::max(plan.lease / kReservationPart, kShortestReservation);
  }
  const PreemptionPolicy* const policy =
      options.preemption != nullptr ? options.preemption.get() : options_.preemption.get();
  if (policy == nullptr) {
    plan.reserve_below = std::numeric_limits<Priority>::max();
  } else {
    PreemptionDecision decision;
    absl::Status thrown = StatusOfContained("PreemptionPolicy::Decide", "",
                                            [&] { decision = policy->Decide(plan.priority); });
    if (!thrown.ok()) return CouldNotLock(resource, thrown);
    plan.reserve_below = decision.reserve_below;
    if (decision.grace != absl::InfiniteDuration()) {
      plan.grace = std::max(decision.grace, absl::ZeroDuration());
    }
  }
  if (options.preemption_grace) {
    plan.grace.reset();
    if (*options.preemption_grace != absl::InfiniteDuration()) {
      plan.grace = options.preemption_grace;
    }
  }
  if (plan.grace && !capabilities_.forced_handover) {
    return MakeError(Reason::kNotSupported,
                     absl::StrCat("backend '", capabilities_.name,
                                  "' offers no forced hand-over (preemption_grace ",
                                  absl::FormatDuration(*plan.grace), "), wanted for ",
                                  ResourceForMessage(resource)));
  }
  return absl::OkStatus();
}

ObtainRequest ManagerCore::RequestOf(const ResourceName& resource, AcquisitionId id,
                                     const Plan& plan) const {
  return {.resource = resource,
          .acquisition = id,
          .owner = plan.owner,
          .priority = plan.priority,
          .preemptible = plan.preemptible,
          .lease = plan.lease,
          .reserve_below = plan.reserve_below,
          .reservation_lease = plan.reservation_lease,
          .grace = plan.grace};
}

bool ManagerCore::GoesDirectly(const Plan& plan, const AcquireOptions& options) const {
  // One attempt, or no time, means that there is no waiting. A named owner may hold the lock
  // already. If it does not, it must not find the lock free before those who wait have heard of
  // that. Where answers take their time that is likely, so there the backend has to see to it.
  const bool may_reenter =
      !plan.owner.empty() && (capabilities_.answers_at_once || backend_keeps_order_);
  return barging_ || may_reenter || options.max_attempts == 1 ||
         options.acquire_timeout == absl::ZeroDuration();
}

WaitQueue* ManagerCore::FindQueue(CoreShard& shard, const ResourceName& resource) {
  // A name's hash is the one that the table would compute.
  const auto found = shard.queues.find(resource.bytes(), resource.hash());
  return found == shard.queues.end() ? nullptr : found->second.get();
}

bool ManagerCore::SomebodyIsAhead(CoreShard& shard, const ResourceName& resource,
                                  Priority priority) {
  if (barging_ || shard.waiting.load(std::memory_order_relaxed) == 0) return false;
  absl::MutexLock lock(&shard.mu);
  const WaitQueue* const queue = FindQueue(shard, resource);
  return queue != nullptr && !queue->empty() && queue->most_urgent()->plan.priority >= priority;
}

bool ManagerCore::HasWaiters(CoreShard& shard, const ResourceName& resource) {
  absl::MutexLock lock(&shard.mu);
  const WaitQueue* const queue = FindQueue(shard, resource);
  return queue != nullptr && !queue->empty();
}

void ManagerCore::YieldToQueue(CoreShard& shard, const ResourceName& resource,
                               ObtainRequest& request) {
  if (SomebodyIsAhead(shard, resource, request.priority)) request.reserve_below.reset();
}

bool ManagerCore::NeedsHold(const Plan& plan) const {
  return plan.lease != absl::InfiniteDuration() || observer_ != nullptr ||
         !capabilities_.hint_identifies_hold || !capabilities_.answers_at_once ||
         !capabilities_.inspect;
}

absl::Duration ManagerCore::TimeOf(absl::Duration lease) const {
  const absl::Duration safe =
      capabilities_.clock_drift == 0 ? lease : lease * (1 - capabilities_.clock_drift);
  return safe - capabilities_.lease_margin;
}

absl::Time ManagerCore::ValidUntil(absl::Time sent, absl::Duration remaining) const {
  if (remaining == absl::InfiniteDuration()) return absl::InfiniteFuture();
  return sent + TimeOf(remaining);
}

absl::StatusOr<absl::Duration> ManagerCore::RetryDelay(const RetryPolicy* policy,
                                                       const RetryContext& context) const {
  const RetryPolicy& retry = policy != nullptr ? *policy : *options_.retry;
  absl::Duration delay;
  absl::Status thrown =
      StatusOfContained("RetryPolicy::Delay", "", [&] { delay = retry.Delay(context); });
  if (!thrown.ok()) return thrown;
  return std::max(delay, kShortestRetryDelay);
}

double ManagerCore::Random() {
  // SplitMix64 (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", 2014).
  uint64_t z = random_state_.fetch_add(0x9e3779b97f4a7c15, std::memory_order_relaxed);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  z ^= z >> 31;
  return static_cast<double>(z >> 11) * 0x1.0p-53;
}

Lock ManagerCore::Granted(CoreShard& shard, const ResourceName& resource, AcquisitionId id,
                          const Plan& plan, absl::Time sent, const Grant& grant) {
  const absl::Duration remaining = grant.remaining;
  if (ABSL_PREDICT_TRUE(remaining == absl::InfiniteDuration())) {
    if (!NeedsHold(plan)) return Lock(&shard, id, grant.token, grant.hint);
  }
  HoldTerms terms{.resource = std::string(resource.bytes()),
                  .owner = std::string(plan.owner),
                  .priority = plan.priority,
                  .id = id,
                  .token = grant.token,
                  .hint = grant.hint,
                  .lease = plan.lease,
                  .auto_renew = plan.auto_renew};
  terms.valid_until = ValidUntil(sent, remaining);
  if (grant.reentered && plan.renew_reentered && remaining != absl::InfiniteDuration()) {
    // By what is left of it where this request asks for no end: that must not make it endless.
    terms.auto_renew = true;
    if (plan.lease == absl::InfiniteDuration()) terms.lease = remaining;
  }
  if (plan.max_hold != absl::InfiniteDuration()) terms.hold_end = sent + plan.max_hold;
  if (observer_ != nullptr) terms.acquired = clock_.Now();
  auto* const hold = new Hold(&shard, std::move(terms));
  hold->Start();
  return Lock(hold);
}

absl::StatusOr<ObtainReply> ManagerCore::AskNow(const ObtainRequest& request) {
  absl::StatusOr<ObtainReply> answer = absl::StatusOr<ObtainReply>(ObtainReply());
  backend_->Obtain(request,
                   [&answer](absl::StatusOr<ObtainReply> reply) { answer = std::move(reply); });
  return answer;
}

void ManagerCore::LearnEnd(const ObtainRequest& request, absl::Time& sent,
                           absl::StatusOr<ObtainReply>& answer) {
  if (sent != kUntimed || !answer.ok() || answer->token == 0 ||
      answer->remaining == absl::InfiniteDuration()) {
    return;
  }
  sent = clock_.Now();
  answer = AskNow(request);
  if (!answer.ok()) {
    answer = BackendUnknownError(absl::StrCat(kNoEndTold, ": ", answer.status().message()));
  }
}

ABSL_ATTRIBUTE_ALWAYS_INLINE inline Lock ManagerCore::AskPlainly(
    CoreShard& shard, const ResourceName& resource, AcquisitionId id, const AcquireOptions& options,
    std::string_view owner, std::unique_ptr<absl::StatusOr<ObtainReply>>& other) {
  FencingToken token = 0;
  LeaseHint hint = 0;
  // By reference, since the answer is large.
  const auto done = [&token, &hint, &other](absl::StatusOr<ObtainReply>&& answer) {
    if (ABSL_PREDICT_TRUE(answer.ok() && answer->token != 0 &&
                          answer->remaining == absl::InfiniteDuration())) {
      token = answer->token;
      hint = answer->hint;
    } else {
      other = std::make_unique<absl::StatusOr<ObtainReply>>(std::move(answer));
    }
  };
  // One by one: an initialiser would first clear the whole of it.
  ObtainRequest request;
  request.resource = resource;
  request.acquisition = id;
  request.owner = owner;
  request.priority = options.priority;
  request.preemptible = options.preemptible;
  request.reserve_below = std::numeric_limits<Priority>::max();
  backend_->Obtain(request,
                   [&done](absl::StatusOr<ObtainReply>&& answer) { done(std::move(answer)); });
  if (ABSL_PREDICT_FALSE(token == 0)) return Lock();
  shard.Ref();
  return Lock(&shard, id, token, hint);
}

absl::StatusOr<Lock> ManagerCore::Acquire(const ResourceName& resource,
                                          const AcquireOptions& options) {
  if (ABSL_PREDICT_TRUE(IsPlain(resource, options) && !CallbackScope::Active() &&
                        !options.cancel.stop_requested())) {
    CoreShard& shard = ShardOf(resource);
    if (ABSL_PREDICT_TRUE(barging_ || !SomebodyWaits(shard, resource))) {
      const AcquisitionId id = AcquisitionId::Next();
      std::unique_ptr<absl::StatusOr<ObtainReply>> other;
      Lock lock = AskPlainly(shard, resource, id, options, options.owner, other);
      if (ABSL_PREDICT_TRUE(other == nullptr)) return lock;
      // The lock is likely to be free again before this thread would be asleep.
      const bool may_spin = barging_ && options.max_attempts == AcquireOptions::kUnlimited &&
                            options.acquire_timeout >= kTimeToSpin;
      for (Spin spin; may_spin && other->ok() && (*other)->outcome == ObtainOutcome::kDenied &&
                      spin.Again();) {
        other.reset();
        lock = AskPlainly(shard, resource, id, options, options.owner, other);
        if (other == nullptr) return lock;
      }
      Plan plan;
      if (absl::Status bad = MakePlan(resource, options, plan); !bad.ok()) return bad;
      absl::Time asked_at = kUntimed;
      LearnEnd(RequestOf(resource, id, plan), asked_at, *other);
      if (other->ok() && (*other)->token != 0) {
        shard.Ref();
        return Granted(shard, resource, id, plan, asked_at, Grant(**other));
      }
      return AcquireSlowly(shard, resource, plan, options, id, std::move(*other), asked_at);
    }
  }
  return AcquireGenerally(resource, options);
}

absl::StatusOr<Lock> ManagerCore::AcquireGenerally(const ResourceName& resource,
                                                   const AcquireOptions& options) {
  Plan plan;
  if (absl::Status bad = MakePlan(resource, options, plan); ABSL_PREDICT_FALSE(!bad.ok())) {
    return bad;
  }
  if (ABSL_PREDICT_FALSE(CallbackScope::Active()))
    return WouldBlockError("Acquire()", ResourceForMessage(resource));
  CoreShard& shard = ShardOf(resource);
  shard.Ref();
  const AcquisitionId id = AcquisitionId::Next();
  std::optional<absl::StatusOr<ObtainReply>> first;
  absl::Time asked_at;
  if (ABSL_PREDICT_TRUE(capabilities_.answers_at_once) &&
      (GoesDirectly(plan, options) || !SomebodyWaits(shard, resource)) &&
      !options.cancel.stop_requested()) {
    if (plan.lease != absl::InfiniteDuration()) asked_at = clock_.Now();
    ObtainRequest request = RequestOf(resource, id, plan);
    YieldToQueue(shard, resource, request);
    absl::StatusOr<ObtainReply> answer = AskNow(request);
    LearnEnd(request, asked_at, answer);
    if (ABSL_PREDICT_TRUE(answer.ok() && answer->token != 0)) {
      if (Observer* const seen = observer()) {
        seen->OnAcquired({resource, plan.owner, plan.priority, id}, absl::ZeroDuration());
      }
      return Granted(shard, resource, id, plan, asked_at, Grant(*answer));
    }
    first = std::move(answer);
  }
  absl::StatusOr<Lock> lock =
      AcquireSlowly(shard, resource, plan, options, id, std::move(first), asked_at);
  shard.Unref();
  return lock;
}

absl::StatusOr<Lock> ManagerCore::AcquireSlowly(CoreShard& shard, const ResourceName& resource,
                                                const Plan& plan, const AcquireOptions& options,
                                                AcquisitionId id,
                                                std::optional<absl::StatusOr<ObtainReply>> first,
                                                absl::Time asked_at) {
  Blocker blocker;
  std::optional<BlockedThread> fetcher;
  if (!capabilities_.answers_at_once) fetcher.emplace(id);
  absl::StatusOr<Lock> result = absl::StatusOr<Lock>(Lock());
  const RefPtr<Waiter> waiter = Waiter::New(&shard, resource, plan, options,
                                            [&blocker, &result](absl::StatusOr<Lock> outcome) {
                                              result = std::move(outcome);
                                              blocker.SetReady();
                                            });
  waiter->id = id;
  waiter->direct = true;
  if (barging_ && capabilities_.answers_at_once) waiter->blocker = &blocker;
  waiter->asked_at = asked_at;
  Enqueue(waiter, options, std::move(first));
  if (fetcher) fetcher->Await(blocker);
  while (blocker.Wait() == Blocker::kNudged) Compete(waiter);
  return result;
}

std::optional<absl::StatusOr<Lock>> ManagerCore::Begin(const ResourceName& resource,
                                                       const AcquireOptions& options,
                                                       std::string_view owner, Attempt& attempt) {
  Plan& plan = attempt.plan;
  attempt.id = AcquisitionId::Next();
  CoreShard& shard = ShardOf(resource);
  if (owner.empty()) owner = options.owner;
  if (ABSL_PREDICT_TRUE(IsPlain(resource, options))) {
    // What MakePlan would come to.
    plan.owner = owner;
    plan.priority = options.priority;
    plan.preemptible = options.preemptible;
    plan.renew_reentered = options.auto_renew.value_or(false);
    plan.reserve_below = std::numeric_limits<Priority>::max();
    if (!options.cancel.stop_requested() && (barging_ || !SomebodyWaits(shard, resource))) {
      std::unique_ptr<absl::StatusOr<ObtainReply>> other;
      Lock lock = AskPlainly(shard, resource, attempt.id, options, owner, other);
      if (ABSL_PREDICT_TRUE(other == nullptr)) return lock;
      LearnEnd(RequestOf(resource, attempt.id, plan), attempt.asked_at, *other);
      if (!other->ok() || (*other)->token == 0) {
        attempt.first = std::move(*other);
        return std::nullopt;
      }
      shard.Ref();
      return Granted(shard, resource, attempt.id, plan, attempt.asked_at, Grant(**other));
    }
  } else {
    if (absl::Status bad = MakePlan(resource, options, plan); !bad.ok()) return bad;
    if (!owner.empty()) plan.owner = owner;
  }
  if (!capabilities_.answers_at_once || options.cancel.stop_requested() ||
      (!GoesDirectly(plan, options) && SomebodyWaits(shard, resource))) {
    return std::nullopt;
  }
  if (plan.lease != absl::InfiniteDuration()) attempt.asked_at = clock_.Now();
  ObtainRequest request = RequestOf(resource, attempt.id, plan);
  YieldToQueue(shard, resource, request);
  absl::StatusOr<ObtainReply> answer = AskNow(request);
  LearnEnd(request, attempt.asked_at, answer);
  if (!answer.ok() || answer->token == 0) {
    attempt.first = std::move(answer);
    return std::nullopt;
  }
  if (Observer* const seen = observer()) {
    seen->OnAcquired({resource, plan.owner, plan.priority, attempt.id}, absl::ZeroDuration());
  }
  shard.Ref();
  return Granted(shard, resource, attempt.id, plan, attempt.asked_at, Grant(*answer));
}

RefPtr<Waiter> ManagerCore::Wait(const ResourceName& resource, const AcquireOptions& options,
                                 Attempt& attempt, AcquireCallback done, bool direct,
                                 bool gives_way) {
  RefPtr<Waiter> waiter =
      Waiter::New(&ShardOf(resource), resource, attempt.plan, options, std::move(done));
  waiter->id = attempt.id;
  waiter->direct = direct;
  waiter->gives_way = gives_way;
  waiter->asked_at = attempt.asked_at;
  Enqueue(waiter, options, std::move(attempt.first));
  return waiter;
}

void ManagerCore::AcquireAsync(ResourceName resource, const AcquireOptions& options,
                               AcquireCallback done) {
  if (done == nullptr) done = [](const absl::StatusOr<Lock>&) {};  // Its end releases the lock.
  StartAcquire(resource, options, WithOwner(std::move(done)), /*member=*/false);
}

RefPtr<Waiter> ManagerCore::StartAcquire(ResourceName resource, const AcquireOptions& options,
                                         AcquireCallback done, bool member) {
  // Whoever is told may destroy the manager.
  CoreShard& shard = ShardOf(resource);
  shard.Ref();
  Attempt attempt;
  RefPtr<Waiter> waiter;
  std::optional<absl::StatusOr<Lock>> now = Begin(resource, options, {}, attempt);
  if (!now) {
    waiter =
        Wait(resource, options, attempt, std::move(done), /*direct=*/member, /*gives_way=*/member);
  } else if (member) {
    done(*std::move(now));
  } else {
    CallUser(kCallback, resource.bytes(),
             [done = std::move(done), lock = *std::move(now)]() mutable { done(std::move(lock)); });
  }
  shard.Unref();
  return waiter;
}

absl::StatusOr<Lock> ManagerCore::TryAcquire(ResourceName resource, const AcquireOptions& options) {
  Plan plan;
  if (absl::Status bad = MakePlan(resource, options, plan); !bad.ok()) return bad;
  plan.reserve_below.reset();
  plan.grace.reset();
  if (options.cancel.stop_requested()) return CancelledError(resource);
  CoreShard& shard = ShardOf(resource);
  const AcquisitionId id = AcquisitionId::Next();
  absl::Time asked_at = plan.lease != absl::InfiniteDuration() || !capabilities_.answers_at_once
                            ? clock_.Now()
                            : kUntimed;

  // The answer may come after this call has returned, if it is given up.
  struct Shared : RefCounted<Shared> {
    Blocker blocker;
    absl::Mutex mu;
    std::optional<absl::StatusOr<ObtainReply>> answer ABSL_GUARDED_BY(mu);
    bool abandoned ABSL_GUARDED_BY(mu) = false;

    // False: the answer is there. After true, it is given back when it comes.
    bool Abandon() {
      absl::MutexLock lock(&mu);
      abandoned = !answer.has_value();
      return abandoned;
    }
  };
  const auto shared = RefPtr<Shared>::Adopt(new Shared);
  std::optional<BlockedThread> fetcher;
  if (!CallbackScope::Active()) fetcher.emplace(id);
  backend_->Obtain(RequestOf(resource, id, plan), [shared, backend = backend_, id,
                                                   name = std::string(resource.bytes())](
                                                      absl::StatusOr<ObtainReply> reply) {
    {
      absl::MutexLock lock(&shared->mu);
      if (!shared->abandoned) {
        shared->answer = std::move(reply);
        shared->blocker.SetReady();
        return;
      }
    }
    if (reply.ok() ? reply->token != 0 : MayHaveBeenDone(reply.status())) {
      backend->Release({ResourceName(name), id, 0}, [](absl::StatusOr<ReleaseOutcome>) {});
    }
  });
  if (!shared->blocker.IsReady()) {
    if (fetcher) {
      const auto give_up = [&shared] {
        if (shared->Abandon()) shared->blocker.SetReady();
      };
      std::optional<std::stop_callback<decltype(give_up)>> on_cancel;
      if (options.cancel.stop_possible()) on_cancel.emplace(options.cancel, give_up);
      fetcher->Await(shared->blocker);
      shared->blocker.Wait();
    } else if (shared->Abandon()) {
      return WouldBlockError("TryAcquire()", ResourceForMessage(resource));
    }
  }
  absl::StatusOr<ObtainReply> answer = absl::StatusOr<ObtainReply>(ObtainReply());
  bool cancelled;
  {
    absl::MutexLock lock(&shared->mu);
    cancelled = shared->abandoned;
    if (!cancelled) answer = *std::move(shared->answer);
  }
  if (cancelled) {
    // Where it follows the question, it need not wait for the answer.
    backend_->Release({resource, id, 0}, [](absl::StatusOr<ReleaseOutcome>) {});
    absl::Status error = CancelledError(resource, kNotAnswered);
    NoteDenied(resource, plan, error);
    return error;
  }
  LearnEnd(RequestOf(resource, id, plan), asked_at, answer);
  if (!answer.ok()) {
    if (MayHaveBeenDone(answer.status())) {
      backend_->Release({resource, id, 0}, [](absl::StatusOr<ReleaseOutcome>) {});
    }
    absl::Status refused = CouldNotLock(resource, answer.status());
    NoteDenied(resource, plan, refused);
    return refused;
  }
  if (answer->token == 0) {
    absl::Status held = HeldByOther(resource, *answer);
    NoteDenied(resource, plan, held);
    return held;
  }
  if (Observer* const seen = observer()) {
    seen->OnAcquired({resource, plan.owner, plan.priority, id}, absl::ZeroDuration());
  }
  shard.Ref();
  return Granted(shard, resource, id, plan, asked_at, Grant(*answer));
}

void ManagerCore::NoteDenied(const ResourceName& resource, const Plan& plan,
                             const absl::Status& why) {
  if (Observer* const seen = observer()) {
    seen->OnDenied({resource, plan.owner, plan.priority, {}}, absl::ZeroDuration(), why);
  }
}

absl::Status ManagerCore::HeldByOther(std::string_view resource, const ObtainReply& answer) {
  return MakeError(
      Reason::kHeldByOther,
      absl::StrCat("could not lock ", ResourceForMessage(resource),
                   " without waiting: it is held by ", OwnerForMessage(answer.other_owner),
                   " with priority ", answer.other_priority));
}

void ManagerCore::TryAsync(ResourceName resource, const AcquireOptions& options, TryCallback done) {
  Plan plan;
  if (absl::Status bad = MakePlan(resource, options, plan); !bad.ok()) {
    done(std::move(bad), std::nullopt);
    return;
  }
  plan.reserve_below.reset();
  plan.grace.reset();
  CoreShard& shard = ShardOf(resource);
  shard.Ref();
  const AcquisitionId id = AcquisitionId::Next();
  absl::Time asked_at = plan.lease != absl::InfiniteDuration() || !capabilities_.answers_at_once
                            ? clock_.Now()
                            : kUntimed;
  backend_->Obtain(
      RequestOf(resource, id, plan),
      [this, &shard, name = std::string(resource.bytes()), hashed = resource, id, plan,
       owner = std::string(plan.owner), asked_at,
       done = std::move(done)](absl::StatusOr<ObtainReply> answer) mutable {
        const ResourceName resource = hashed.WithBytes(name);
        plan.owner = owner;
        LearnEnd(RequestOf(resource, id, plan), asked_at, answer);
        if (answer.ok() && answer->token != 0) {
          if (Observer* const seen = observer()) {
            seen->OnAcquired({resource, plan.owner, plan.priority, id}, absl::ZeroDuration());
          }
          done(Granted(shard, resource, id, plan, asked_at, Grant(*answer)), std::nullopt);
          return;
        }
        if (answer.ok()) {
          absl::Status held = HeldByOther(resource, *answer);
          done(std::move(held), *std::move(answer));
        } else {
          if (MayHaveBeenDone(answer.status())) {
            backend_->Release({resource, id, 0}, [](absl::StatusOr<ReleaseOutcome>) {});
          }
          done(CouldNotLock(resource, answer.status()), std::nullopt);
        }
        shard.Unref();
      });
}

// ---- Sets ----

absl::StatusOr<LockSet> ManagerCore::AcquireAll(std::vector<LockRequest> requests,
                                                LockOrder order) {
  const RefPtr<SetRequest> request = SetRequest::New(*this, std::move(requests), order);
  if (absl::Status bad = request->Check(); !bad.ok()) return bad;
  if (CallbackScope::Active()) return WouldBlockError("AcquireAll()", request->Names());
  return request->Wait();
}

void ManagerCore::AcquireAllAsync(std::vector<LockRequest> requests, LockOrder order,
                                  AcquireAllCallback done) {
  if (done == nullptr) done = [](const absl::StatusOr<LockSet>&) {};
  SetRequest::New(*this, std::move(requests), order)->Start(WithOwner(std::move(done)));
}

bool ManagerCore::AddSetRequest(SetRequest* request) {
  absl::MutexLock lock(&sets_mu_);
  if (shut_down_.load()) return false;
  sets_.emplace(request, RefPtr<SetRequest>::Share(request));
  return true;
}

void ManagerCore::RemoveSetRequest(SetRequest* request) {
  RefPtr<SetRequest> last;  // Goes without the mutex.
  absl::MutexLock lock(&sets_mu_);
  const auto found = sets_.find(request);
  if (found == sets_.end()) return;
  std::swap(last, found->second);
  sets_.erase(found);
}

// ---- Waiting ----

void ManagerCore::Enqueue(const RefPtr<Waiter>& waiter, const AcquireOptions& options,
                          std::optional<absl::StatusOr<ObtainReply>> first) {
  Waiter& w = *waiter;
  CoreShard& shard = *w.shard;
  Observer* const seen = observer();
  // Before it can be found by anybody: the callback may run at once.
  if (options.cancel.stop_possible()) w.stop.emplace(options.cancel, Waiter::StopFn{&w});
  const bool has_timeout =
      w.acquire_timeout > absl::ZeroDuration() && w.acquire_timeout != absl::InfiniteDuration();
  const bool asks = !first && !capabilities_.answers_at_once;
  const bool failed = first && !first->ok();
  ObtainReply* const reply = first && !failed ? &**first : nullptr;
  // What else looks at this moment is for people.
  const bool exact = has_timeout || failed || w.outage_patience != absl::InfiniteDuration() ||
                     !by_priority_ || w.blocker != nullptr || seen != nullptr;
  w.enqueued = exact ? clock_.Now() : clock_.CoarseNow();
  const absl::StatusOr<absl::int128> rank = RankOf(w);
  QueueChange change;
  absl::Status refused;

  shard.mu.Lock();
  w.shard->mu.AssertHeld();  // The same, for the thread annotations.
  WaitQueue* known = FindQueue(shard, w.resource);
  if (known == nullptr) {
    known = (shard.queues[w.resource.bytes()] = std::make_unique<WaitQueue>(by_priority_)).get();
  }
  WaitQueue& queue = *known;
  const bool joins = failed || (asks && (queue.pending() == 0 || GoesDirectly(w.plan, options)));
  const auto refuse = [&](Reason reason) {
    if (failed) NoteFailure(w, first->status());
    return GiveUpError(w, queue, reason);
  };

  if (reply != nullptr && reply->token == 0) {
    w.other_known = true;
    w.other_owner = reply->other_owner;
    w.other_priority = reply->other_priority;
  }

  if (options.cancel.stop_requested()) {
    refused = refuse(Reason::kCancelled);
  } else if (shut_down_.load()) {
    refused = refuse(Reason::kShutdown);
  } else if (w.max_attempts == 1 && reply != nullptr && reply->outcome == ObtainOutcome::kDenied) {
    refused = refuse(Reason::kAttemptsExhausted);
  } else if (w.acquire_timeout == absl::ZeroDuration() && reply != nullptr && reply->token == 0) {
    refused = refuse(Reason::kAcquireTimeout);
  } else if (!rank.ok()) {
    if (failed) NoteFailure(w, first->status());
    refused = PolicyError(w, rank.status());
  } else if (!joins && !(refused = Admit(queue, w)).ok()) {
    // Nothing changes for it.
  } else {
    w.queue = &queue;
    w.came_after = queue.questions;
    w.Ref();  // The queue's.
    queue.order.Insert(w, options.skip_queue ? RankToSkip(w, queue, *rank) : *rank,
                       options.skip_queue);
    if (!by_priority_) {
      queue.priorities.Insert(w, -absl::int128(w.plan.priority), options.skip_queue);
    }
    if (w.plan.reserve_below) ++queue.may_preempt;
    shard.waiting.fetch_add(1, std::memory_order_relaxed);
    queue.holder_priority.reset();  // So that it asks, if it may preempt.
    if (joins) {
      w.joining = true;
      ++queue.joining;
      if (asks) AskAlone(w);
    } else {
      pending_.fetch_add(1, std::memory_order_relaxed);
      change = ChangeOf(queue);
      if (graph_ != nullptr && !w.owner.empty()) graph_->Add(w);
      // Its owner may hold the lock, or wait in a circle: it needs to know.
      if (asks && !w.owner.empty()) queue.look_after = queue.questions;
      // It may be less patient than those that ask.
      if (queue.outage != nullptr && w.outage_patience != absl::InfiniteDuration()) {
        HeadAsksBy(queue, w.enqueued + std::max(w.outage_patience / 2, kShortestRetryDelay));
      }
    }
    if (failed) {
      HandleFirstAnswer(w, *std::move(first));
    } else if (first) {
      HandleAnswer(w, *std::move(first));
    }
    // Without time to wait, the first answer decides.
    if (w.queue != nullptr && has_timeout) {
      w.timeout_timer = clock_.RunAt(w.enqueued + w.acquire_timeout, [waiter] {
        waiter->shard->core->GiveUp(*waiter, Reason::kAcquireTimeout);
      });
    }
  }
  if (!refused.ok()) {
    w.outcome = std::move(refused);
    w.withdraw =
        w.maybe_obtained() || (reply != nullptr && reply->outcome == ObtainOutcome::kReserved);
    queue.finished.push_back(waiter);
  }
  const bool suspects = graph_ != nullptr && graph_->HasSuspects();
  if (seen == nullptr && !suspects) {
    PumpAndUnlock(shard, w.resource, &queue);
    return;
  }
  shard.mu.Unlock();
  Tell(w.resource, change);
  if (suspects) ResolveDeadlocks();
  Pump(shard, w.resource);
}

ManagerCore::QueueChange ManagerCore::ChangeOf(WaitQueue& queue) {
  if (observer_ == nullptr) return {};
  const int64_t length = queue.pending();
  return {length, length - std::exchange(queue.told_pending, length)};
}

void ManagerCore::Tell(const ResourceName& resource, const QueueChange& change) {
  if (change.by != 0) observer()->OnQueueLength(resource.bytes(), change.length, change.by);
}

absl::StatusOr<absl::int128> ManagerCore::RankOf(const Waiter& waiter) const {
  absl::int128 rank;
  absl::Status thrown = StatusOfContained("QueuePolicy::Rank", "", [&] {
    rank = options_.queue->Rank({.priority = waiter.plan.priority, .enqueued = waiter.enqueued});
  });
  if (!thrown.ok()) return thrown;
  return rank;
}

absl::int128 ManagerCore::RankToSkip(const Waiter& waiter, const WaitQueue& queue,
                                     absl::int128 own) {
  if (queue.ranked_by_priority) return own;
  absl::int128 rank = own;
  queue.order.ForEach([&](const Waiter& other) {
    if (other.plan.priority != waiter.plan.priority) return true;
    rank = std::min(own, other.in_order.rank);
    return false;
  });
  return rank;
}

absl::Status ManagerCore::Admit(WaitQueue& queue, const Waiter& waiter) {
  const AdmissionPolicy& policy =
      waiter.admission != nullptr ? *waiter.admission : *options_.admission;
  AdmissionContext context{.priority = waiter.plan.priority,
                           .pending_on_resource = queue.pending(),
                           .pending_in_total = pending_.load(std::memory_order_relaxed)};
  Waiter* const lowest = queue.least_urgent();
  if (lowest != nullptr) context.lowest_pending_priority = lowest->plan.priority;
  Admission admission = Admission::kAdmit;
  std::string explained;
  absl::Status thrown =
      StatusOfContained("AdmissionPolicy::Decide", "", [&] { admission = policy.Decide(context); });
  const bool sheds = admission == Admission::kShedLowest && lowest != nullptr;
  if (thrown.ok() && (sheds || admission == Admission::kReject)) {
    thrown = StatusOfContained("AdmissionPolicy::Explain", "",
                               [&] { explained = policy.Explain(context); });
  }
  if (!thrown.ok()) return PolicyError(waiter, thrown);
  if (admission == Admission::kReject) {
    return GiveUpError(waiter, queue, Reason::kTooManyPending, absl::StrCat(" (", explained, ")"));
  }
  if (sheds) {
    lowest->shard->mu.AssertHeld();
    Finish(*lowest,
           GiveUpError(*lowest, queue, Reason::kTooManyPending,
                       absl::StrCat(" (", explained, "), and it was shed for one of priority ",
                                    waiter.plan.priority)),
           MayHaveLeftSomething(*lowest));
  }
  return absl::OkStatus();
}

bool ManagerCore::Finish(Waiter& waiter, absl::Status why, bool withdraw) {
  WaitQueue* const queue = std::exchange(waiter.queue, nullptr);
  if (queue == nullptr) return false;
  queue->order.Erase(waiter);
  if (!queue->ranked_by_priority) queue->priorities.Erase(waiter);
  if (waiter.plan.reserve_below) --queue->may_preempt;
  if (waiter.in_graph) graph_->Remove(waiter);
  const auto leave = [&waiter](WaiterList& list) {
    if (ABSL_PREDICT_TRUE(list.empty())) return;
    const auto found = std::find_if(list.begin(), list.end(),
                                    [&](const auto& other) { return other.get() == &waiter; });
    if (found != list.end()) list.erase(found);
  };
  leave(queue->successors);
  leave(queue->alone);
  waiter.shard->waiting.fetch_sub(1, std::memory_order_relaxed);
  if (std::exchange(waiter.joining, false)) {
    --queue->joining;
  } else {
    pending_.fetch_sub(1, std::memory_order_relaxed);
  }
  waiter.outcome = std::move(why);
  // If an Obtain is under way, its answer decides what there is to withdraw.
  waiter.withdraw = withdraw;
  queue->finished.push_back(RefPtr<Waiter>::Adopt(&waiter));
  return true;
}

void ManagerCore::GiveUp(Waiter& waiter, Reason reason) {
  CoreShard& shard = *waiter.shard;
  // Completing it below may drop what else keeps it alive.
  const RefPtr<Waiter> keep = RefPtr<Waiter>::Share(&waiter);
  {
    absl::MutexLock lock(&shard.mu);
    waiter.shard->mu.AssertHeld();
    if (waiter.queue == nullptr) return;
    // A backend that has failed all the time is the reason, not the limit on that time.
    const bool outage =
        reason == Reason::kAcquireTimeout && FailingSince(waiter) <= waiter.enqueued;
    Finish(waiter, outage ? OutageError(waiter) : GiveUpError(waiter, *waiter.queue, reason),
           MayHaveLeftSomething(waiter));
  }
  Pump(shard, waiter.resource);
}

// Events may come late, so only its answers say whether it never was the successor. Where the
// backend keeps order it may have been woken, and be the successor without having asked.
bool ManagerCore::MayHaveLeftSomething(const Waiter& waiter) const {
  return waiter.ever_reserved || waiter.maybe_obtained() || !capabilities_.answers_at_once;
}

std::string ManagerCore::HolderForMessage(const Waiter& waiter) {
  absl::MutexLock lock(&waiter.shard->mu);
  if (!waiter.other_known) return "";
  return absl::StrCat(" is held by ", OwnerForMessage(waiter.other_owner), " with priority ",
                      waiter.other_priority, waiter.reserved ? ", which was asked to yield" : "");
}

std::optional<Outage> ManagerCore::OutageOf(const Waiter& waiter) {
  absl::MutexLock lock(&waiter.shard->mu);
  Outage outage = Heard(waiter, waiter.queue);
  // Whatever befell others before it came.
  outage.BeginNoEarlierThan(waiter.enqueued);
  if (waiter.asking) outage.NoteUnanswered();
  if (outage.failures() == 0 && !outage.unsettled()) return std::nullopt;
  return outage;
}

Outage ManagerCore::Heard(const Waiter& waiter, const WaitQueue* queue) {
  Outage outage;
  if (waiter.outage != nullptr) outage = *waiter.outage;
  if (queue != nullptr && queue->outage != nullptr) outage.NoteOfOthers(*queue->outage);
  return outage;
}

absl::Status ManagerCore::OutageError(const Waiter& waiter) const {
  Outage outage = Heard(waiter, waiter.queue);
  if (waiter.asking) outage.NoteUnanswered();
  return CouldNotLock(waiter.resource, outage.Error(clock_.Now()));
}

absl::Status ManagerCore::PolicyError(const Waiter& waiter, const absl::Status& thrown) const {
  const std::string trouble = Heard(waiter, waiter.queue).ForMessage(clock_.Now());
  return MakeError(ReasonOf(thrown),
                   absl::StrCat("could not lock ", ResourceForMessage(waiter.resource), ": ",
                                thrown.message(), trouble));
}

absl::Status ManagerCore::GiveUpError(const Waiter& waiter, const WaitQueue& queue, Reason reason,
                                      std::string_view detail) const {
  std::string message = absl::StrCat("could not lock ", ResourceForMessage(waiter.resource), ": ",
                                     WhyGivenUp(reason));
  if (reason == Reason::kAcquireTimeout) {
    absl::StrAppend(&message, " (", absl::FormatDuration(waiter.acquire_timeout), ")");
  }
  if (reason == Reason::kAttemptsExhausted) {
    absl::StrAppend(&message, " (", waiter.max_attempts, ")");
  }
  absl::StrAppend(&message, detail);
  // Whoever stands behind others in the queue never asked; those before it did.
  const Waiter* informed = waiter.other_known ? &waiter : nullptr;
  for (const RefPtr<Waiter>& other : queue.registered) {
    if (other->queue == nullptr) continue;
    if (informed == nullptr && other->other_known) informed = other.get();
  }
  if (reason == Reason::kDeadlock) {
    absl::StrAppend(&message, ": ", waiter.circle);
  } else if (informed != nullptr) {
    absl::StrAppend(&message, "; held by ", OwnerForMessage(informed->other_owner),
                    " with priority ", informed->other_priority);
    if (informed->reserved) absl::StrAppend(&message, ", which was asked to yield");
  }
  const Outage outage = Heard(waiter, &queue);
  absl::StrAppend(&message, outage.ForMessage(clock_.Now()));
  if (waiter.asking) absl::StrAppend(&message, kNotAnswered);
  // The time is over without a word on what became of an attempt.
  const bool unknown = reason == Reason::kAcquireTimeout && outage.ended_unknown();
  return MakeError(unknown ? Reason::kBackendUnknown : reason, message);
}

// ---- Deadlocks
// -------------------------------------------------------------------------------------------

void ManagerCore::NoteHolder(const Waiter& waiter) {
  if (graph_ == nullptr || waiter.queue == nullptr || !graph_->active()) return;
  graph_->SetHolder(waiter, waiter.other_owner, waiter.graph_time);
}

bool ManagerCore::IsCertain(const WaitGraph::Circle& circle) const {
  for (const WaitGraph::Link& link : circle.links) {
    if (link.certain) continue;
    if (!capabilities_.inspect) return false;
    bool held = false;
    backend_->Inspect(link.waiter->resource, [&](const ResourceState& state) {
      held = state.held && state.holder_owner == link.holder;
    });
    if (!held) return false;
  }
  return graph_->Stands(circle);
}

void ManagerCore::AskAboutHolders(const WaitGraph::Circle& circle) {
  for (const WaitGraph::Link& link : circle.links) {
    if (link.certain) continue;
    CoreShard& shard = *link.waiter->shard;
    bool ask = false;
    {
      absl::MutexLock lock(&shard.mu);
      WaitQueue* const queue = shard.core->FindQueue(shard, link.waiter->resource);
      if (queue == nullptr) continue;
      // Any answer about this resource will do.
      ask =
          std::none_of(queue->registered.begin(), queue->registered.end(), [&](const auto& other) {
            other->shard->mu.AssertHeld();
            return other->queue != nullptr && other->asking &&
                   other->graph_time >= link.certain_from;
          });
      if (ask) queue->look_after = queue->questions;
    }
    if (ask) shard.core->Pump(shard, link.waiter->resource);
  }
}

void ManagerCore::ResolveDeadlocks() {
  for (const WaitGraph::Circle& circle : graph_->TakeSuspects()) {
    if (!IsCertain(circle)) {
      if (!capabilities_.inspect) AskAboutHolders(circle);
      continue;
    }
    Waiter& victim = circle.Victim();
    {
      absl::MutexLock lock(&victim.shard->mu);
      victim.circle = circle.ToString();
    }
    victim.shard->core->GiveUp(victim, Reason::kDeadlock);
  }
}

// With the mutex free: cleans up after a waiter that `TakeFinished` has taken, and tells it.
void ManagerCore::Complete(Waiter& waiter) {
  if (waiter.poll_timer != 0) clock_.Cancel(waiter.poll_timer);
  if (waiter.timeout_timer != 0) clock_.Cancel(waiter.timeout_timer);
  if (waiter.withdraw) GiveBack(waiter);
  waiter.subscription.Reset();
  if (Observer* const seen = observer()) {
    const Observer::Subject who{waiter.resource.bytes(), waiter.owner, waiter.plan.priority,
                                waiter.id};
    const absl::Duration waited = clock_.Now() - waiter.enqueued;
    if (waiter.outcome.ok()) {
      seen->OnAcquired(who, waited);
    } else if (!waiter.gives_way) {  // A set reports for all of its members.
      seen->OnDenied(who, waited, waiter.outcome);
    }
  }
  // Its callback, if it runs now, is the one that brought us here, or finds nothing to do.
  waiter.stop.reset();
  absl::StatusOr<Lock> lock = Lock();
  if (!waiter.outcome.ok()) {
    lock = waiter.outcome;
  } else {
    waiter.shard->Ref();
    lock = Granted(*waiter.shard, waiter.resource, waiter.id, waiter.plan, waiter.asked_at,
                   waiter.grant);
  }
  AcquireCallback done = std::move(waiter.done);
  if (waiter.direct) {
    done(std::move(lock));
    return;
  }
  CallUser(kCallback, waiter.resource.bytes(),
           [done = std::move(done), lock = std::move(lock)]() mutable { done(std::move(lock)); });
}

void ManagerCore::GiveBack(const Waiter& waiter) {
  backend_->Release({waiter.resource, waiter.id, 0}, [](absl::StatusOr<ReleaseOutcome>) {});
}

// ---- The pump ----

Waiter* ManagerCore::ThiefOf(WaitQueue& queue) const {
  if (queue.may_preempt == 0) return nullptr;
  Waiter* thief = nullptr;
  const auto look = [&](Waiter& waiter) {
    if (queue.holder_priority && waiter.plan.priority <= *queue.holder_priority) return false;
    if (!waiter.plan.reserve_below ||
        (queue.holder_priority && *waiter.plan.reserve_below <= *queue.holder_priority)) {
      return true;
    }
    thief = &waiter;
    return false;
  };
  if (queue.ranked_by_priority) {
    queue.order.ForEach(look);
  } else {
    queue.priorities.ForEach(look);
  }
  return thief;
}

bool ManagerCore::TakeFinished(WaitQueue& queue, bool granted, WaiterList& direct,
                               WaiterList& callbacks) {
  bool any = false;
  for (size_t i = 0; i < queue.finished.size();) {
    if (queue.finished[i]->outcome.ok() != granted) {
      ++i;
      continue;
    }
    RefPtr<Waiter> waiter = std::move(queue.finished[i]);
    queue.finished.erase(queue.finished.begin() + i);
    for (size_t k = 0; k < queue.registered.size(); ++k) {
      if (queue.registered[k] != waiter) continue;
      queue.registered.erase(queue.registered.begin() + k);
      break;
    }
    (waiter->direct ? direct : callbacks).push_back(std::move(waiter));
    any = true;
  }
  return any;
}

bool ManagerCore::WouldBeDenied(Waiter& head, const WaiterList& callbacks) const {
  // Somebody of this queue has the lock, for as long as it likes, and does not know it yet. An
  // event tells when it has gone. (Whoever takes it by force comes before `head` in any case.)
  if (!capabilities_.reliable_events || callbacks.empty()) return false;
  const Waiter& holder = *callbacks.back();
  if (!holder.outcome.ok() || holder.grant.remaining != absl::InfiniteDuration()) return false;
  // The answer could be more than a denial, or more would come of it.
  if (head.joining || head.plan.priority > holder.plan.priority || head.reserved ||
      !head.owner.empty() || head.max_attempts != AcquireOptions::kUnlimited ||
      head.acquire_timeout == absl::ZeroDuration() || (graph_ != nullptr && graph_->active())) {
    return false;
  }
  head.other_known = true;
  head.other_owner = std::string(holder.owner);
  head.other_priority = holder.plan.priority;
  return true;
}

void ManagerCore::Pump(CoreShard& shard, const ResourceName& resource) {
  shard.mu.Lock();
  PumpAndUnlock(shard, resource, FindQueue(shard, resource));
}

void ManagerCore::PumpAndUnlock(CoreShard& shard, const ResourceName& resource,
                                WaitQueue* const found) {
  if (found == nullptr || found->pumping) {
    // Whoever pumps looks again before it stops.
    shard.mu.Unlock();
    return;
  }
  WaitQueue& queue = *found;
  queue.pumping = true;
  WaiterList direct;
  WaiterList callbacks;  // Told at the end: their code may take its time.
  const auto tell_direct = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard.mu) {
    if (direct.empty()) return;
    const QueueChange change = ChangeOf(queue);
    shard.mu.Unlock();
    Tell(resource, change);
    for (const RefPtr<Waiter>& waiter : direct) Complete(*waiter);
    direct.clear();
    shard.mu.Lock();
  };
  for (;;) {
    // Whoever was granted the lock is told first. Those who gave up come after the next head has
    // registered, since it takes their place in the backend's order.
    if (!queue.finished.empty() && TakeFinished(queue, /*granted=*/true, direct, callbacks)) {
      tell_direct();
      continue;
    }

    // Who should be registered with the backend?
    Waiter* const head = queue.order.first();
    Waiter* const thief = ThiefOf(queue);
    RefPtr<Waiter> enter;
    Waiter* successor = nullptr;
    if (!queue.successors.empty()) {
      successor = queue.successors.back().get();
      queue.successors.pop_back();
    }
    for (Waiter* const waiter : {successor, head, thief}) {
      if (waiter != nullptr && !waiter->registered) {
        waiter->registered = true;
        waiter->ask_due = !WouldBeDenied(*waiter, callbacks);
        // It subscribes first and then looks, each time that it comes to the front.
        waiter->look_due = waiter->ask_due;
        enter = RefPtr<Waiter>::Share(waiter);
        queue.registered.push_back(enter);
        break;
      }
    }
    if (enter) {
      AcquisitionId predecessor;
      for (const RefPtr<Waiter>& other : queue.registered) {
        const bool leaves =
            other->queue == nullptr || (other.get() != head && other.get() != thief);
        if (other != enter && leaves && other->plan.priority == enter->plan.priority) {
          predecessor = other->id;
        }
      }
      // Not before an answer that is under way, where it asked before it was registered.
      const bool asks_next = enter->ask_due && !enter->asking;
      shard.mu.Unlock();
      Subscription subscription =
          backend_->Watch({.resource = enter->resource,
                           .acquisition = enter->id,
                           .owner = enter->plan.owner,
                           .priority = enter->plan.priority,
                           .barging = barging_,
                           .reservation_lease = enter->plan.reservation_lease,
                           .takes_place_of = predecessor,
                           .asks_next = asks_next},
                          [this, enter](const WatchEvent& event) { OnEvent(enter, event); });
      shard.mu.Lock();
      if (enter->registered && enter->queue != nullptr) {
        enter->subscription = std::move(subscription);
      } else {
        shard.mu.Unlock();
        subscription.Reset();
        enter = RefPtr<Waiter>();
        shard.mu.Lock();
      }
      continue;
    }

    RefPtr<Waiter> retire;
    for (RefPtr<Waiter>& waiter : queue.registered) {
      waiter->shard->mu.AssertHeld();
      // A successor must go on polling until it is displaced.
      // And whoever is about to ask may be the successor, although the last it heard was otherwise.
      if (waiter.get() == head || waiter.get() == thief || waiter->reserved || waiter->asking ||
          waiter->ask_due) {
        continue;
      }
      waiter->registered = false;
      retire = std::move(waiter);
      std::swap(waiter, queue.registered.back());
      queue.registered.pop_back();
      break;
    }
    if (retire) {
      Subscription subscription = std::move(retire->subscription);
      const Clock::TimerId poll = std::exchange(retire->poll_timer, 0);
      // It does not ask until it comes back.
      if (retire->outage != nullptr) retire->outage->EndRow();
      shard.mu.Unlock();
      if (poll != 0) clock_.Cancel(poll);
      subscription.Reset();
      retire = RefPtr<Waiter>();
      shard.mu.Lock();
      continue;
    }

    if (!queue.finished.empty() && TakeFinished(queue, /*granted=*/false, direct, callbacks)) {
      tell_direct();
      continue;
    }

    if (ABSL_PREDICT_FALSE(queue.look_after >= 0)) LookAgain(queue);
    RefPtr<Waiter> ask;
    for (const RefPtr<Waiter>& waiter : queue.registered) {
      if (waiter->queue != nullptr && waiter->ask_due && !waiter->asking) {
        ask = waiter;
        break;
      }
    }
    while (!ask && !queue.alone.empty()) {
      RefPtr<Waiter> next = std::move(queue.alone.front());
      queue.alone.erase(queue.alone.begin());
      next->shard->mu.AssertHeld();
      // It may have been registered since, and asks for that.
      if (!next->registered && next->ask_due && !next->asking) ask = std::move(next);
    }
    if (!ask) break;
    Waiter& asked = *ask;
    asked.shard->mu.AssertHeld();
    const ObtainRequest request = BeginToAsk(asked);
    shard.mu.Unlock();
    if (!capabilities_.answers_at_once) {
      backend_->Obtain(request, [this, ask](absl::StatusOr<ObtainReply> answer) {
        OnAnswer(*ask, std::move(answer));
      });
      ask = RefPtr<Waiter>();
      shard.mu.Lock();
      continue;
    }
    absl::StatusOr<ObtainReply> answer = AskNow(request);
    shard.mu.Lock();
    const bool give_back = TakeAnswer(asked, std::move(answer));
    const bool suspects = graph_ != nullptr && graph_->HasSuspects();
    if (give_back || suspects) {
      shard.mu.Unlock();
      if (give_back) GiveBack(asked);
      if (suspects) ResolveDeadlocks();
      shard.mu.Lock();
    }
  }
  queue.pumping = false;
  const QueueChange change = ChangeOf(queue);
  if (queue.empty()) {
    // Everything it had was told or is on its way.
    shard.queues.erase(shard.queues.find(resource.bytes(), resource.hash()));
  }
  shard.mu.Unlock();
  Tell(resource, change);
  for (const RefPtr<Waiter>& waiter : callbacks) Complete(*waiter);
}

ObtainRequest ManagerCore::BeginToAsk(Waiter& waiter) {
  waiter.asking = true;
  waiter.ask_due = false;
  waiter.alone = !waiter.registered && !capabilities_.answers_at_once;
  if (std::exchange(waiter.look_due, false) && waiter.attempts > 0) waiter.looking = true;
  waiter.question = ++waiter.queue->questions;
  const bool timed = waiter.time_matters || !capabilities_.answers_at_once ||
                     waiter.plan.lease != absl::InfiniteDuration() || waiter.plan.grace.has_value();
  waiter.asked_at = timed ? clock_.Now() : kUntimed;
  if (graph_ != nullptr) waiter.graph_time = graph_->Now();
  ObtainRequest request = RequestOf(waiter.resource, waiter.id, waiter.plan);
  request.reservation_lease = waiter.reservation_lease;
  if (waiter.alone && !barging_) {
    // See YieldToQueue.
    const Waiter* const ahead = waiter.queue->most_urgent();
    if (ahead != &waiter && ahead->plan.priority >= waiter.plan.priority) {
      request.reserve_below.reset();
    }
  }
  return request;
}

void ManagerCore::AskAlone(Waiter& waiter) {
  waiter.ask_due = true;
  waiter.look_due = true;
  waiter.queue->alone.push_back(RefPtr<Waiter>::Share(&waiter));
}

void ManagerCore::LookAgain(WaitQueue& queue) {
  Waiter* looks = nullptr;
  for (const RefPtr<Waiter>& waiter : queue.registered) {
    waiter->shard->mu.AssertHeld();
    if (waiter->queue == nullptr) continue;
    // After a failure it asks again in due time.
    if (waiter->ask_due || waiter->failing() ||
        (waiter->asking && waiter->question > queue.look_after)) {
      return;
    }
    if (looks == nullptr) looks = waiter.get();
  }
  if (looks == nullptr) return;  // Whoever comes to the front asks for that.
  looks->shard->mu.AssertHeld();
  looks->ask_due = true;
  looks->look_due = true;
}

void ManagerCore::NoteLook(const Waiter& waiter) const {
  if (waiter.alone) return;
  if (waiter.question > waiter.queue->look_after) waiter.queue->look_after = -1;
  if (capabilities_.answers_at_once || waiter.other_owner.empty()) return;
  waiter.queue->order.ForEach([&waiter](Waiter& other) {
    other.shard->mu.AssertHeld();
    // What was asked before it came says nothing: the owner may have left since.
    if (!other.registered && !other.asking && !other.ask_due && !other.joining &&
        other.came_after < waiter.question && other.owner == waiter.other_owner) {
      AskAlone(other);
    }
    return true;
  });
}

void ManagerCore::Compete(const RefPtr<Waiter>& waiter) {
  Waiter& w = *waiter;
  ObtainRequest request;
  {
    absl::MutexLock lock(&w.shard->mu);
    // It is out of the queue, or somebody asks for it.
    if (w.queue == nullptr || w.asking) return;
    request = BeginToAsk(w);
    // If it re-enters a hold that ends, there is nobody to ask again for one that is not
    // registered.
    w.asked_at = clock_.Now();
  }
  absl::StatusOr<ObtainReply> answer = AskNow(request);
  for (Spin spin; answer.ok() && answer->outcome == ObtainOutcome::kDenied && spin.Again();) {
    answer = AskNow(request);
  }
  OnAnswer(w, std::move(answer));
}

void ManagerCore::OnAnswer(Waiter& waiter, absl::StatusOr<ObtainReply>&& answer) {
  CoreShard& shard = *waiter.shard;
  bool give_back;
  QueueChange change;
  {
    absl::MutexLock lock(&shard.mu);
    waiter.shard->mu.AssertHeld();
    give_back = TakeAnswer(waiter, std::move(answer));
    if (waiter.queue != nullptr) change = ChangeOf(*waiter.queue);
  }
  Tell(waiter.resource, change);
  if (give_back) GiveBack(waiter);
  if (graph_ != nullptr && graph_->HasSuspects()) ResolveDeadlocks();
  Pump(shard, waiter.resource);
}

bool ManagerCore::TakeAnswer(Waiter& waiter, absl::StatusOr<ObtainReply>&& answer) {
  waiter.asking = false;
  if (waiter.queue == nullptr) {
    // It gave up meanwhile; the answer says what is left behind.
    return answer.ok() ? answer->outcome != ObtainOutcome::kDenied
                       : MayHaveBeenDone(answer.status());
  }
  if (waiter.joining) {
    HandleFirstAnswer(waiter, std::move(answer));
  } else {
    HandleAnswer(waiter, std::move(answer));
  }
  waiter.alone = false;
  return false;
}

void ManagerCore::HandleFirstAnswer(Waiter& waiter, absl::StatusOr<ObtainReply>&& answer) {
  if (answer.ok() && answer->token == 0) {
    waiter.other_known = true;
    waiter.other_owner = answer->other_owner;
    waiter.other_priority = answer->other_priority;
    const bool denied = answer->outcome == ObtainOutcome::kDenied;
    const bool may_wait =
        waiter.acquire_timeout > absl::ZeroDuration() && !(denied && waiter.max_attempts == 1);
    if (may_wait && !Join(waiter, /*withdraw=*/!denied)) return;
  }
  HandleAnswer(waiter, std::move(answer));
  // What came may be no answer: then it asks again, and waits until it may.
  if (waiter.queue != nullptr && waiter.joining) Join(waiter, /*withdraw=*/true);
}

bool ManagerCore::Join(Waiter& waiter, bool withdraw) {
  if (absl::Status refused = Admit(*waiter.queue, waiter); !refused.ok()) {
    Finish(waiter, std::move(refused), withdraw);
    return false;
  }
  waiter.joining = false;
  --waiter.queue->joining;
  pending_.fetch_add(1, std::memory_order_relaxed);
  if (graph_ != nullptr && !waiter.owner.empty()) graph_->Add(waiter);
  return true;
}

void ManagerCore::HandleAnswer(Waiter& waiter, absl::StatusOr<ObtainReply>&& answer) {
  WaitQueue& queue = *waiter.queue;
  if (!answer.ok()) {
    const bool is_outage = NoteOutage(waiter, answer.status());
    HandleFailure(waiter, answer.status());
    if (is_outage) EndImpatient(queue);
    return;
  }
  queue.answered = queue.questions;
  queue.outage.reset();
  // It settles what became of all attempts before, which had the same id.
  std::unique_ptr<Outage> outage = std::move(waiter.outage);
  if (answer->token == 0 && !by_priority_) queue.holder_priority = answer->other_priority;
  switch (answer->outcome) {
    case ObtainOutcome::kObtained:
    case ObtainOutcome::kReentered: {
      if (answer->remaining != absl::InfiniteDuration() && waiter.asked_at == kUntimed) {
        // It re-entered a hold that ends. Asking again is idempotent, and tells by when.
        waiter.time_matters = true;
        waiter.outage = std::make_unique<Outage>();
        waiter.outage->NoteUnsettled(kNoEndTold);
        if (waiter.registered) {
          waiter.ask_due = true;
        } else {
          AskAlone(waiter);
        }
        return;
      }
      const absl::Time until = ValidUntil(waiter.asked_at, answer->remaining);
      if (until != absl::InfiniteFuture() && until <= clock_.Now()) {
        // The answer took as long as the lease: whatever it says is over. Asking again is
        // idempotent, but may go on like this for ever.
        waiter.outage = std::move(outage);
        HandleFailure(waiter,
                      BackendUnknownError(absl::StrCat(
                          "backend '", capabilities_.name, "' took longer than the lease of ",
                          absl::FormatDuration(answer->remaining), " to grant it")));
        return;
      }
      if (!by_priority_) queue.holder_priority = waiter.plan.priority;
      waiter.grant = Grant(*answer);
      Finish(waiter, absl::OkStatus(), false);
      return;
    }
    case ObtainOutcome::kReserved: {
      waiter.looking = false;
      const absl::Duration asked_for = waiter.reservation_lease;
      if (asked_for != absl::InfiniteDuration()) {
        waiter.reservation_lease = ReservationLease(waiter, answer->remaining);
      }
      waiter.reserved = true;
      waiter.ever_reserved = true;
      waiter.victim_has_left = answer->remaining;
      waiter.other_known = true;
      waiter.other_owner = std::move(answer->other_owner);
      waiter.other_priority = answer->other_priority;
      absl::Time next = absl::InfiniteFuture();
      if (waiter.reservation_lease < asked_for) {
        // Asking again shortens it.
        waiter.ask_due = true;
      } else if (asked_for != absl::InfiniteDuration()) {
        next = waiter.asked_at + asked_for * kPollPart;
      }
      if (answer->grace_remaining != absl::InfiniteDuration()) {
        const absl::Time asked = waiter.asked_at;
        next = std::min(next, asked + answer->grace_remaining);
      }
      if (waiter.acquire_timeout == absl::ZeroDuration()) {
        Finish(waiter, GiveUpError(waiter, *waiter.queue, Reason::kAcquireTimeout), true);
        return;
      }
      // One that had just come, or was nudged and then overtaken: without a place it would never
      // hear that the holder has left.
      if (!waiter.registered) waiter.queue->successors.push_back(RefPtr<Waiter>::Share(&waiter));
      NoteHolder(waiter);
      NoteLook(waiter);
      PollAt(waiter, next);
      return;
    }
    case ObtainOutcome::kDenied: {
      if (!std::exchange(waiter.looking, false)) ++waiter.attempts;
      waiter.LoseReservation();
      waiter.other_known = true;
      waiter.other_owner = std::move(answer->other_owner);
      waiter.other_priority = answer->other_priority;
      if (waiter.attempts >= waiter.max_attempts) {
        Finish(waiter, GiveUpError(waiter, *waiter.queue, Reason::kAttemptsExhausted), false);
        return;
      }
      if (waiter.acquire_timeout == absl::ZeroDuration()) {
        Finish(waiter, GiveUpError(waiter, *waiter.queue, Reason::kAcquireTimeout), false);
        return;
      }
      NoteHolder(waiter);
      NoteLook(waiter);
      // One that is not registered asks when its turn comes.
      if (capabilities_.reliable_events || !waiter.registered) return;
      const absl::StatusOr<absl::Duration> delay = RetryDelay(
          waiter.retry.get(),
          {.attempts = waiter.attempts, .remaining_lease = answer->remaining, .random = Random()});
      if (delay.ok()) {
        PollAt(waiter, clock_.Now() + *delay);
      } else {
        Finish(waiter, PolicyError(waiter, delay.status()), MayHaveLeftSomething(waiter));
      }
      return;
    }
  }
}

absl::Time ManagerCore::BeganToAsk(const Waiter& waiter) const {
  // One that has had no answer yet has asked since it came.
  if (waiter.joining || waiter.queue == nullptr) return waiter.enqueued;
  return waiter.asked_at == kUntimed ? clock_.Now() : waiter.asked_at;
}

void ManagerCore::NoteFailure(Waiter& waiter, const absl::Status& failure) {
  if (waiter.outage == nullptr) waiter.outage = std::make_unique<Outage>();
  waiter.outage->Note(failure, BeganToAsk(waiter));
}

bool ManagerCore::NoteOutage(const Waiter& waiter, const absl::Status& failure) {
  WaitQueue& queue = *waiter.queue;
  // An answer that came meanwhile is news of more than what was asked before it.
  const bool is_late = waiter.question != 0 && waiter.question <= queue.answered;
  if (!MayPass(failure) || is_late) return false;
  if (queue.outage == nullptr) queue.outage = std::make_unique<Outage>();
  queue.outage->Note(failure, BeganToAsk(waiter));
  return true;
}

absl::Time ManagerCore::FailingSince(const Waiter& waiter) {
  absl::Time since = absl::InfiniteFuture();
  if (waiter.outage != nullptr) since = waiter.outage->since();
  if (const Outage* const outage = waiter.queue->outage.get()) {
    since = std::min(since, std::max(waiter.enqueued, outage->since()));
  }
  return since;
}

void ManagerCore::EndImpatient(WaitQueue& queue) {
  const absl::Time now = clock_.Now();
  absl::Time next = absl::InfiniteFuture();
  WaiterList ended;
  queue.order.ForEach([&](Waiter& waiter) {
    // Of one that asks, its own answer decides.
    if (waiter.joining || waiter.asking || waiter.ask_due) return true;
    const absl::Time patient_until = FailingSince(waiter) + waiter.outage_patience;
    if (patient_until > now) {
      next = std::min(next, patient_until);
    } else {
      ended.push_back(RefPtr<Waiter>::Share(&waiter));
    }
    return true;
  });
  for (const RefPtr<Waiter>& waiter : ended) {
    waiter->shard->mu.AssertHeld();
    Finish(*waiter, OutageError(*waiter), LeavesSomething(*waiter));
  }
  if (next != absl::InfiniteFuture()) {
    HeadAsksBy(queue, now + std::max((next - now) / 2, kShortestRetryDelay));
  }
}

void ManagerCore::HeadAsksBy(WaitQueue& queue, absl::Time at) {
  Waiter* const head = queue.order.first();
  // One that is not registered yet asks when it is.
  if (head == nullptr || !head->registered || head->asking || head->ask_due) return;
  if (head->poll_timer != 0 && head->poll_at <= at) return;
  head->shard->mu.AssertHeld();
  if (!head->failing()) head->look_due = true;
  PollAt(*head, at);
}

void ManagerCore::HandleFailure(Waiter& waiter, const absl::Status& failure) {
  NoteFailure(waiter, failure);
  const absl::Time now = clock_.Now();
  const absl::Time patient_until = FailingSince(waiter) + waiter.outage_patience;
  // It may pass: asking again is idempotent, and settles what an unknown outcome left open.
  const bool again =
      MayPass(failure) && waiter.acquire_timeout > absl::ZeroDuration() && now < patient_until;
  absl::StatusOr<absl::Duration> delay = absl::InfiniteDuration();
  if (again) {
    delay =
        RetryDelay(waiter.retry.get(), {.attempts = waiter.outage->failures(), .random = Random()});
  }
  if (!delay.ok() || *delay == absl::InfiniteDuration()) {
    Finish(waiter, delay.ok() ? OutageError(waiter) : PolicyError(waiter, delay.status()),
           LeavesSomething(waiter));
    return;
  }
  // No more than half of the time that it has left, so that it asks in time when the outage is over
  // before that.
  const absl::Time last = std::min(patient_until, waiter.enqueued + waiter.acquire_timeout);
  PollAt(waiter, now + std::max(std::min(*delay, (last - now) / 2), kShortestRetryDelay));
}

absl::Duration ManagerCore::ReservationLease(const Waiter& waiter, absl::Duration victim_has) {
  const absl::Duration now = waiter.reservation_lease;
  if (waiter.reserved) {
    // It renewed although we had reserved, so that was over before our poll came.
    const bool too_short = victim_has > waiter.victim_has_left;
    return too_short ? std::min(2 * now, waiter.plan.reservation_lease) : now;
  }
  if (now <= victim_has / kMostOfTheRest) return now;
  const absl::Duration round_trip = clock_.Now() - waiter.asked_at;
  return std::min(now, std::max({victim_has / kReservationPart, round_trip * kRoundTripsReserved,
                                 kShortestReservation}));
}

void ManagerCore::PollAt(Waiter& waiter, absl::Time at) {
  if (waiter.poll_timer != 0) clock_.Cancel(std::exchange(waiter.poll_timer, 0));
  if (at == absl::InfiniteFuture()) return;
  waiter.poll_at = at;
  waiter.poll_timer = clock_.RunAt(at, [this, waiter = RefPtr<Waiter>::Share(&waiter)] {
    CoreShard& shard = *waiter->shard;
    shard.mu.Lock();
    if (waiter->queue == nullptr) {
      shard.mu.Unlock();
      return;
    }
    waiter->shard->mu.AssertHeld();
    waiter->poll_timer = 0;
    if (waiter->registered) {
      waiter->ask_due = true;
    } else {
      AskAlone(*waiter);
    }
    PumpAndUnlock(shard, waiter->resource, waiter->queue);
  });
}

void ManagerCore::OnEvent(const RefPtr<Waiter>& waiter, const WatchEvent& event) {
  CoreShard& shard = *waiter->shard;
  shard.mu.Lock();
  bool ask = waiter->queue != nullptr;
  if (!ask) {
  } else if (event.kind == WatchEventKind::kDisplaced) {
    waiter->LoseReservation();
  } else if (event.kind != WatchEventKind::kHoldEnded) {
    ask = false;
  } else if (waiter->blocker != nullptr && !waiter->asking &&
             clock_.Now() - waiter->enqueued < kPatience) {
    // A lock that is handed to a thread which has yet to wake up stands idle meanwhile.
    waiter->blocker->Nudge();
    ask = false;
  }
  if (!ask) {
    shard.mu.Unlock();
    return;
  }
  waiter->ask_due = true;
  PumpAndUnlock(shard, waiter->resource, waiter->queue);
}

// ---- Looking in ----

std::vector<ResourceState> ManagerCore::HeldBy(const std::vector<RefPtr<Hold>>& handles) {
  std::vector<ResourceState> states;
  for (const RefPtr<Hold>& handle : handles) {
    // Its Lock may outlive the hold.
    if (ResourceState state = handle->Describe(); state.held) states.push_back(std::move(state));
  }
  return states;
}

bool ManagerCore::IsBusy() {
  for (CoreShard& shard : shards_) {
    if (shard.waiting.load(std::memory_order_relaxed) > 0) return true;
    std::vector<RefPtr<Hold>> holds;
    {
      absl::MutexLock lock(&shard.mu);
      for (Hold* const hold : shard.holds) holds.push_back(RefPtr<Hold>::Share(hold));
    }
    if (!HeldBy(holds).empty()) return true;
  }
  // A resource that is free, but reserved, is not to be had either.
  bool busy = false;
  backend_->Inspect(std::nullopt,
                    [&busy](const ResourceState& state) { busy |= state.held || state.reserved; });
  return busy;
}

bool ManagerCore::IsBusy(ResourceName resource) {
  CoreShard& shard = ShardOf(resource);
  std::vector<RefPtr<Hold>> holds;
  {
    absl::MutexLock lock(&shard.mu);
    const WaitQueue* const queue = FindQueue(shard, resource);
    if (queue != nullptr && !queue->empty()) return true;
    for (Hold* const hold : shard.holds) {
      if (hold->terms().resource == resource.bytes()) holds.push_back(RefPtr<Hold>::Share(hold));
    }
  }
  if (!HeldBy(holds).empty()) return true;
  bool busy = false;
  backend_->Inspect(resource,
                    [&busy](const ResourceState& state) { busy |= state.held || state.reserved; });
  return busy;
}

std::vector<ResourceSnapshot> ManagerCore::Snapshot() {
  absl::flat_hash_map<std::string, ResourceSnapshot> resources;
  backend_->Inspect(std::nullopt, [&resources](const ResourceState& state) {
    resources[state.resource].state = state;
  });
  const absl::Time now = clock_.Now();
  for (CoreShard& shard : shards_) {
    std::vector<RefPtr<Hold>> holds;
    {
      absl::MutexLock lock(&shard.mu);
      for (Hold* const hold : shard.holds) holds.push_back(RefPtr<Hold>::Share(hold));
      for (const auto& [resource, queue] : shard.queues) {
        if (queue->pending() == 0) continue;
        ResourceSnapshot& snapshot = resources[resource];
        snapshot.state.resource = resource;
        queue->order.ForEach([&](const Waiter& waiter) {
          if (waiter.joining) return true;
          snapshot.waiters.push_back(
              {.owner = std::string(waiter.owner),
               .priority = waiter.plan.priority,
               .waited = std::max(now - waiter.enqueued, absl::ZeroDuration()),
               .reserved = waiter.reserved});
          return true;
        });
        std::stable_partition(
            snapshot.waiters.begin(), snapshot.waiters.end(),
            [](const ResourceSnapshot::Waiter& waiter) { return waiter.reserved; });
      }
    }
    for (ResourceState& state : HeldBy(holds)) {
      ResourceSnapshot& snapshot = resources[state.resource];
      if (snapshot.state.held) state.handles += snapshot.state.handles;
      snapshot.state = std::move(state);
    }
  }
  std::vector<ResourceSnapshot> snapshots;
  for (auto& [resource, snapshot] : resources) snapshots.push_back(std::move(snapshot));
  return snapshots;
}

}  // namespace latchkey::internal

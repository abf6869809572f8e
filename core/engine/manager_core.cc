#include "latchkey/core/engine/manager_core.h"

#include <algorithm>
#include <cstddef>
#include <string>
#include <utility>

#include "absl/base/optimization.h"
#include "latchkey/core/base/blocked_thread.h"
#include "latchkey/core/base/blocker.h"
#include "latchkey/core/base/callback_scope.h"
#include "latchkey/core/base/lock_error.h"
#include "latchkey/core/base/scoped_owner.h"
#include "latchkey/core/engine/set_request.h"

namespace latchkey::internal {
namespace {

// For the log, if it throws.
constexpr std::string_view kCallback = "the callback of a request";

// As many shards as there are indices, each made in place.
template <size_t... I>
std::array<QueueShard, sizeof...(I)> AllOf(ManagerContext& context, QueueDriver& driver,
                                           std::index_sequence<I...>) {
  return {{(static_cast<void>(I), QueueShard(context, driver))...}};
}

}  // namespace

ManagerCore::ManagerCore(std::shared_ptr<LockingProtocol> backend, LockManagerOptions options,
                         const QueueTraits& queue)
    : EngineContext(std::move(backend), std::move(options), queue),
      driver_(*this),
      shards_(AllOf(*this, driver_, std::make_index_sequence<kShards>())) {}

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
  for (QueueShard& shard : shards_) driver_.ShutDown(shard);
  // The last of them may delete this.
  QueueShard* const shards = shards_.data();
  for (size_t i = 0; i < kShards; ++i) shards[i].Unref();
}

// ---- Requests ----

absl::StatusOr<Lock> ManagerCore::Acquire(const ResourceName& resource,
                                          const AcquireOptions& options) {
  if (ABSL_PREDICT_FALSE(CallbackScope::Active())) return WouldBlock(resource, options);
  QueueShard& shard = ShardOf(resource);
  return AskFirst<absl::StatusOr<Lock>>(
      *this, shard, resource, options, options.owner,
      [&](PlainTry tried) { return WaitHere(shard, resource, options, std::move(tried)); });
}

absl::Status ManagerCore::WouldBlock(const ResourceName& resource,
                                     const AcquireOptions& options) const {
  RequestTerms terms;
  absl::Status bad = TermsOf(resource, options, terms);
  return bad.ok() ? WouldBlockError("Acquire()", ResourceForMessage(resource)) : bad;
}

absl::StatusOr<Lock> ManagerCore::WaitHere(QueueShard& shard, const ResourceName& resource,
                                           const AcquireOptions& options, PlainTry tried) {
  OpenRequest open(shard);
  Lock at_once =
      GoOn(*this, shard, resource, options, options.owner, /*spins=*/true, std::move(tried), open);
  if (IsLock(at_once)) return at_once;
  if (!open.error.ok()) return open.error;
  Blocker blocker;
  std::optional<BlockedThread> fetcher;
  if (!capabilities_.answers_at_once) fetcher.emplace(open.id);
  absl::StatusOr<Lock> result = absl::StatusOr<Lock>(Lock());
  const RefPtr<Waiter> waiter = Waiter::New(&shard, resource, open.terms, options,
                                            [&blocker, &result](absl::StatusOr<Lock> outcome) {
                                              result = std::move(outcome);
                                              blocker.SetReady();
                                            });
  waiter->id = open.id;
  waiter->listener = Listener::kThread;
  if (barging_ && capabilities_.answers_at_once) waiter->blocker = &blocker;
  waiter->asked.at = open.asked_at;
  driver_.Enqueue(waiter, options, open.first.get());
  if (fetcher) fetcher->Await(blocker);
  while (blocker.Wait() == Blocker::kNudged) driver_.Compete(waiter);
  return result;
}

std::optional<absl::StatusOr<Lock>> ManagerCore::Begin(const ResourceName& resource,
                                                       const AcquireOptions& options,
                                                       std::string_view owner,
                                                       std::optional<OpenRequest>& open) {
  using Result = std::optional<absl::StatusOr<Lock>>;
  if (owner.empty()) owner = options.owner;
  QueueShard& shard = ShardOf(resource);
  return AskFirst<Result>(*this, shard, resource, options, owner, [&](PlainTry tried) {
    open.emplace(shard);
    Lock lock =
        GoOn(*this, shard, resource, options, owner, /*spins=*/false, std::move(tried), *open);
    if (IsLock(lock)) return Result(std::move(lock));
    return open->error.ok() ? Result() : Result(open->error);
  });
}

RefPtr<Waiter> ManagerCore::Wait(const ResourceName& resource, const AcquireOptions& options,
                                 OpenRequest& open, AcquireCallback&& done, Listener listener) {
  RefPtr<Waiter> waiter =
      Waiter::New(&ShardOf(resource), resource, open.terms, options, std::move(done));
  waiter->id = open.id;
  waiter->listener = listener;
  waiter->gives_way = listener == Listener::kSet;
  waiter->asked.at = open.asked_at;
  driver_.Enqueue(waiter, options, open.first.get());
  return waiter;
}

void ManagerCore::AcquireAsync(ResourceName resource, const AcquireOptions& options,
                               AcquireCallback done) {
  if (done == nullptr) done = [](const absl::StatusOr<Lock>&) {};  // Its end releases the lock.
  Start(resource, options, WithOwner(std::move(done)), Listener::kCallback);
}

RefPtr<Waiter> ManagerCore::Start(const ResourceName& resource, const AcquireOptions& options,
                                  AcquireCallback&& done, Listener listener) {
  // Whoever is told may destroy the manager.
  QueueShard& shard = ShardOf(resource);
  shard.Ref();
  RefPtr<Waiter> waiter;
  absl::StatusOr<Lock> now = AskFirst<absl::StatusOr<Lock>>(
      *this, shard, resource, options, options.owner, [&](PlainTry tried) {
        return StartToWait(shard, resource, options, std::move(tried), std::move(done), listener,
                           waiter);
      });
  if (waiter) {
    // It is told when its time has come.
  } else if (listener == Listener::kSet) {
    done(std::move(now));
  } else {
    CallUser(kCallback, resource.bytes(),
             [done = std::move(done), lock = std::move(now)]() mutable { done(std::move(lock)); });
  }
  shard.Unref();
  return waiter;
}

absl::StatusOr<Lock> ManagerCore::StartToWait(QueueShard& shard, const ResourceName& resource,
                                              const AcquireOptions& options, PlainTry tried,
                                              AcquireCallback&& done, Listener listener,
                                              RefPtr<Waiter>& waiter) {
  OpenRequest open(shard);
  Lock lock =
      GoOn(*this, shard, resource, options, options.owner, /*spins=*/false, std::move(tried), open);
  if (IsLock(lock)) return lock;
  if (!open.error.ok()) return open.error;
  waiter = Wait(resource, options, open, std::move(done), listener);
  return Lock();
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
  for (QueueShard& shard : shards_) {
    if (shard.waiting.load(std::memory_order_relaxed) > 0) return true;
    if (!HeldBy(shard.Holds()).empty()) return true;
  }
  // A resource that is free, but reserved, is not to be had either.
  bool busy = false;
  backend_->Inspect(std::nullopt,
                    [&busy](const ResourceState& state) { busy |= state.held || state.reserved; });
  return busy;
}

bool ManagerCore::IsBusy(ResourceName resource) {
  QueueShard& shard = ShardOf(resource);
  if (shard.HasWaiters(resource)) return true;
  for (const RefPtr<Hold>& hold : shard.Holds()) {
    if (hold->terms().resource == resource.bytes() && hold->Describe().held) return true;
  }
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
  for (QueueShard& shard : shards_) {
    {
      absl::MutexLock lock(&shard.mu);
      for (const auto& [resource, queue] : shard.queues) {
        if (queue->pending() == 0) continue;
        ResourceSnapshot& snapshot = resources[resource];
        snapshot.state.resource = resource;
        snapshot.waiters = queue->Describe(now);
      }
    }
    for (ResourceState& state : HeldBy(shard.Holds())) {
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

#include "latchkey/tests/simulation/simulation.h"

#include <algorithm>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <stop_token>
#include <utility>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "latchkey/backends/quorum/quorum_backend.h"
#include "latchkey/core/lock_context.h"
#include "latchkey/core/lock_error.h"
#include "latchkey/core/lock_manager.h"
#include "latchkey/core/locker.h"
#include "latchkey/core/protocol/quorum_member.h"
#include "latchkey/core/transaction.h"
#include "latchkey/memory_backend/memory_backend.h"
#include "latchkey/tests/support/simulated_clock.h"

namespace latchkey {
namespace {

constexpr absl::Duration kMargin = absl::Milliseconds(20);
constexpr double kDrift = 0.01;
constexpr absl::Duration kAnswerTimeout = absl::Milliseconds(500);
// What every lease is bounded by where servers may lose their data.
constexpr absl::Duration kMaxLease = absl::Seconds(10);
// The last priority: whoever has it comes before all others.
constexpr Priority kHighest = 1000;

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  // SplitMix64 (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", 2014).
  uint64_t Next() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  int Int(int low, int high) { return low + static_cast<int>(Next() % (high - low + 1)); }
  bool OneIn(int n) { return Next() % n == 0; }
  absl::Duration Between(absl::Duration low, absl::Duration high) {
    return low + absl::Milliseconds(Next() % (absl::ToInt64Milliseconds(high - low) + 1));
  }

 private:
  uint64_t state_;
};

std::string ResourceOf(int number) { return absl::StrCat("r", number); }

// Runs `after` after each timer, so that everything is checked after every event.
class ObservedClock : public Clock {
 public:
  ObservedClock(SimulatedClock& clock, std::function<void()> after)
      : clock_(clock), after_(std::move(after)) {}

  absl::Time Now() override { return clock_.Now(); }
  TimerId RunAt(absl::Time when, absl::AnyInvocable<void()> callback) override {
    return clock_.RunAt(when, [this, callback = std::move(callback)]() mutable {
      callback();
      callback = nullptr;
      after_();
    });
  }
  bool Cancel(TimerId timer) override { return clock_.Cancel(timer); }

 private:
  SimulatedClock& clock_;
  const std::function<void()> after_;
};

// A server of a quorum that may lose its data. It keeps the rule of recovery: nothing is granted
// before every lease from before the loss is over, and from then on it says of each resource that
// its fence is lost, until a quorum has confirmed a token there.
class LosingServer : public LockingProtocol, public QuorumMember {
 public:
  explicit LosingServer(Clock& clock) : clock_(clock), capabilities_(Empty()->capabilities()) {
    capabilities_.infinite_lease = false;
    capabilities_.max_lease = kMaxLease;
    capabilities_.default_lease = kMaxLease / 2;
    inner_ = Empty();
  }

  void LoseData() {
    inner_ = Empty();
    ++losses_;
    recovered_at_ = clock_.Now() + kMaxLease;
    known_.clear();
  }
  // Until it is back it executes nothing and says nothing. What it has goes on: leases run out.
  void GoAway() { away_ = true; }
  void ComeBack() { away_ = false; }
  bool IsThere() const { return !away_ && clock_.Now() >= recovered_at_; }
  bool Knows(const std::string& resource) const {
    return losses_ == 0 || (clock_.Now() >= recovered_at_ && known_.contains(resource));
  }

  void Obtain(const ObtainRequest& request, ObtainCallback done) override {
    if (away_) return done(Away());
    if (!Knows(std::string(request.resource.bytes()))) return done(Recovering());
    inner_->Obtain(request, std::move(done));
  }
  QuorumMember* quorum_member() override { return this; }
  void ObtainAsMember(const ObtainRequest& request, MemberCallback done) override {
    if (away_) return done(Away());
    if (clock_.Now() < recovered_at_) return done(Recovering());
    const bool lost = !Knows(std::string(request.resource.bytes()));
    const auto answer = [lost, &done](absl::StatusOr<MemberReply> reply) {
      if (reply.ok() && lost) {
        reply->fence_lost = true;
        reply->fence = 0;
      }
      done(std::move(reply));
    };
    inner_->quorum_member()->ObtainAsMember(request, answer);
  }
  void Release(const HoldRef& hold, ReleaseCallback done) override {
    if (away_) return done(Away());
    inner_->Release(hold, std::move(done));
  }
  void Extend(const HoldRef& hold, absl::Duration lease, ExtendCallback done) override {
    if (away_) return done(Away());
    inner_->Extend(hold, lease, std::move(done));
  }
  void Confirm(const HoldRef& hold, FencingToken token, ConfirmCallback done) override {
    if (away_) return done(Away());
    const std::string resource(hold.resource.bytes());
    inner_->quorum_member()->Confirm(hold, token, [&](absl::StatusOr<ConfirmReply> reply) {
      if (reply.ok() && reply->outcome == ConfirmOutcome::kConfirmed) known_.insert(resource);
      done(std::move(reply));
    });
  }
  Subscription Watch(const WatchRequest& request, WatchCallback on_event) override {
    // What was watched before a loss is forgotten with the rest.
    return inner_->Watch(request, [this, losses = losses_, on_event = std::move(on_event)](
                                      const WatchEvent& event) mutable {
      if (losses == losses_ && !away_) on_event(event);
    });
  }
  const BackendCapabilities& capabilities() const override { return capabilities_; }
  void Inspect(std::optional<ResourceName> resource,
               absl::FunctionRef<void(const ResourceState&)> visitor) const override {
    inner_->Inspect(resource, visitor);
  }

 private:
  static absl::Status Away() { return BackendUnavailableError("it is away"); }
  static absl::Status Recovering() { return BackendUnavailableError("it is recovering"); }

  // One shard, so that one counter makes all tokens; it begins at 1 again.
  std::shared_ptr<LockingProtocol> Empty() const {
    return NewMemoryBackend({.clock = &clock_, .shards = 1});
  }

  Clock& clock_;
  BackendCapabilities capabilities_;
  std::shared_ptr<LockingProtocol> inner_;
  bool away_ = false;
  int losses_ = 0;
  absl::Time recovered_at_ = absl::InfinitePast();
  std::set<std::string> known_;  // Since the last loss.
};

// Looks at what a server grants.
class Tap : public LockingProtocol, public QuorumMember {
 public:
  using OnGrant = std::function<void(const ObtainRequest&, const ObtainReply&)>;
  using OnStep = std::function<void(const ResourceName&)>;
  using OnSay = std::function<void(AcquisitionId, std::string_view)>;

  Tap(std::shared_ptr<LockingProtocol> backend, OnGrant on_grant, OnStep on_step, OnSay say)
      : backend_(std::move(backend)),
        on_grant_(std::move(on_grant)),
        on_step_(std::move(on_step)),
        say_(std::move(say)) {}

  void Obtain(const ObtainRequest& request, ObtainCallback done) override {
    absl::StatusOr<ObtainReply> answer = ObtainReply();
    backend_->Obtain(request, [&](absl::StatusOr<ObtainReply> reply) {
      if (reply.ok()) LookAtGrant(request, *reply);
      answer = std::move(reply);
    });
    LookAtAnswer(request, answer.ok() ? &*answer : nullptr);
    done(std::move(answer));
  }
  QuorumMember* quorum_member() override {
    return backend_->quorum_member() != nullptr ? this : nullptr;
  }
  void ObtainAsMember(const ObtainRequest& request, MemberCallback done) override {
    absl::StatusOr<MemberReply> answer = MemberReply();
    backend_->quorum_member()->ObtainAsMember(request, [&](absl::StatusOr<MemberReply> reply) {
      if (reply.ok()) LookAtGrant(request, reply->reply);
      answer = std::move(reply);
    });
    LookAtAnswer(request, answer.ok() ? &answer->reply : nullptr);
    done(std::move(answer));
  }
  void Release(const HoldRef& hold, ReleaseCallback done) override {
    if (say_ != nullptr) say_(hold.acquisition, "releases");
    backend_->Release(hold, std::move(done));
  }
  void Extend(const HoldRef& hold, absl::Duration lease, ExtendCallback done) override {
    backend_->Extend(hold, lease, std::move(done));
  }
  void Confirm(const HoldRef& hold, FencingToken token, ConfirmCallback done) override {
    backend_->quorum_member()->Confirm(hold, token, std::move(done));
  }
  Subscription Watch(const WatchRequest& request, WatchCallback on_event) override {
    if (say_ == nullptr) return backend_->Watch(request, std::move(on_event));
    say_(request.acquisition, "watches");
    return backend_->Watch(
        request, [say = say_, id = request.acquisition,
                  on_event = std::move(on_event)](const WatchEvent& event) mutable {
          constexpr std::string_view kKinds[] = {"yield requested", "yield withdrawn", "hold ended",
                                                 "displaced"};
          say(id, absl::StrCat("is told: ", kKinds[static_cast<int>(event.kind)]));
          on_event(event);
        });
  }
  const BackendCapabilities& capabilities() const override { return backend_->capabilities(); }
  void Inspect(std::optional<ResourceName> resource,
               absl::FunctionRef<void(const ResourceState&)> visitor) const override {
    backend_->Inspect(resource, visitor);
  }

 private:
  void LookAtGrant(const ObtainRequest& request, const ObtainReply& reply) {
    if (reply.outcome == ObtainOutcome::kObtained) on_grant_(request, reply);
  }
  // Null: it failed.
  void LookAtAnswer(const ObtainRequest& request, const ObtainReply* reply) {
    if (say_ != nullptr && reply != nullptr) {
      constexpr std::string_view kOutcomes[] = {"obtained", "re-entered", "reserved", "denied"};
      say_(request.acquisition, absl::StrCat("asks with priority ", request.priority, ": ",
                                             kOutcomes[static_cast<int>(reply->outcome)]));
    }
    on_step_(request.resource);
  }

  const std::shared_ptr<LockingProtocol> backend_;
  const OnGrant on_grant_;
  const OnStep on_step_;
  const OnSay say_;
};

// The resource that locks protect: it refuses a token smaller than one it has seen.
struct Protected {
  FencingToken largest = 0;
  FencingToken last_entered = 0;
  // Whose these are.
  const struct Work* wrote_largest = nullptr;
  const struct Work* entered_last = nullptr;
};

struct Client {
  int number = 0;
  std::vector<std::shared_ptr<FaultInjectingProtocol>> links;
  Clock* clock = nullptr;
  std::shared_ptr<LockingProtocol> backend;
  LockManagerOptions options;
  std::optional<LockManager> manager;
  bool dead = false;
  bool paused = false;
  absl::Time last_pause_end = absl::InfinitePast();
};

// One request, from asking to the end of its work.
struct Work {
  int number = 0;
  Op op;
  Client* client = nullptr;
  // kRunning: a transaction, which waits and is inside by turns.
  enum { kWaiting, kInside, kRunning, kDone } state = kWaiting;
  absl::Time asked;  // By the client's clock.
  absl::Time asked_at;
  absl::Time settled_at = absl::InfiniteFuture();
  absl::Time left_at = absl::InfiniteFuture();
  Lock lock;
  LockSet set;
  // kRun.
  std::optional<LockContext> context;
  LockManager::FinishCallback finish;
  std::optional<std::stop_callback<std::function<void()>>> on_stop;
  bool run_ended = false;
  // kTransaction.
  std::optional<TransactionHandle<void>> transaction;
  class Simulation* simulation = nullptr;
  std::stop_source cancel;
  // It looked, and is about to write; it does not leave before that.
  int about_to_write = 0;
  bool about_to_leave = false;

  bool together() const { return op.resources.size() > 1; }
  bool IsHeld() const {
    if (context) {
      const Reason reason = ReasonOf(context->CheckPoint());
      return reason == Reason::kNone || reason == Reason::kYieldRequested;
    }
    return together() ? set.IsHeld() : lock.IsHeld();
  }
  FencingToken Token(int resource) const {
    if (context) return context->fencing_token(ResourceOf(resource));
    return together() ? set.fencing_token(ResourceOf(resource)) : lock.fencing_token();
  }
  bool Uses(int resource) const {
    return std::find(op.resources.begin(), op.resources.end(), resource) != op.resources.end();
  }
  std::string Name() const { return absl::StrCat("request ", number); }
};

class Simulation {
 public:
  Simulation(const Scenario& scenario, bool trace)
      : scenario_(scenario),
        tracing_(trace),
        clock_(base_, [this] { AfterEvent(); }),
        start_(base_.Now()),
        protected_(scenario.resources) {
    const int servers = scenario.world == World::kQuorum ? 3 : 1;
    for (int i = 0; i < servers; ++i) {
      last_token_.emplace_back();
      granted_.emplace_back();
      std::shared_ptr<LockingProtocol> server;
      if (scenario.world == World::kQuorum) {
        losing_servers_.push_back(std::make_shared<LosingServer>(clock_));
        server = losing_servers_.back();
      } else {
        server = NewMemoryBackend({.clock = &clock_, .shards = 1});
      }
      servers_.push_back(std::make_shared<Tap>(
          std::move(server),
          [this, i](const ObtainRequest& request, const ObtainReply& reply) {
            OnGrantAtServer(i, request, reply);
          },
          [this, i](const ResourceName& resource) { LookAtServer(i, resource); },
          // Links have a story of their own.
          !trace || scenario.world != World::kDirect
              ? Tap::OnSay()
              : [this](AcquisitionId id, std::string_view words) {
                  const auto number = names_.emplace(id, names_.size() + 1).first->second;
                  Say("    acquisition ", number, " ", words);
                }));
    }
    for (const Policies& policies : scenario.policies) {
      by_priority_ &= policies.queue == Policies::Queue::kPriority &&
                      policies.preemption == Policies::Preemption::kLower;
    }
    for (int i = 0; i < scenario.clients; ++i) clients_.push_back(NewClient(i));
    for (const Op& op : scenario.ops) {
      if (op.lease) longest_lease_ = std::max(longest_lease_, *op.lease);
      if (op.grace) forced_ = true;
      if (op.kind == Op::Kind::kLoseData || op.kind == Op::Kind::kAway) may_lose_data_ = true;
      last_op_ = std::max(last_op_, op.at);
    }
  }

  Outcome Run() {
    for (const Op& op : scenario_.ops) {
      clock_.RunAt(start_ + op.at, [this, op] { Begin(op); });
    }
    Advance(start_ + last_op_ + absl::Milliseconds(500), [] { return false; });
    if (Good()) HealAndFinish();
    End();
    outcome_.violation = violation_;
    outcome_.trace = trace_;
    return outcome_;
  }

 private:
  bool Good() const { return violation_.empty(); }
  bool Linked() const { return scenario_.world != World::kDirect; }
  bool Clean() const {
    return scenario_.world == World::kDirect || scenario_.world == World::kDelays;
  }
  std::string When() {
    return absl::FormatDuration(absl::Trunc(base_.Now() - start_, absl::Microseconds(1)));
  }
  template <typename... Words>
  void Say(const Words&... words) {
    if (tracing_) absl::StrAppend(&trace_, "  ", When(), ": ", words..., "\n");
  }
  template <typename... Words>
  void Violate(std::string_view what, const Words&... words) {
    if (!Good()) return;
    violation_ = absl::StrCat(what, ": ", words..., " (at ", When(), ")");
    Say("BROKEN: ", violation_);
  }

  // ---- Clients ----

  Client* NewClient(int number) {
    all_clients_.push_back(std::make_unique<Client>());
    Client& client = *all_clients_.back();
    client.number = number;
    const uint64_t seed = scenario_.seed * 1000 + all_clients_.size() * 10;
    std::shared_ptr<LockingProtocol> backend = servers_[0];
    client.clock = &clock_;
    if (Linked()) {
      std::vector<std::shared_ptr<LockingProtocol>> links;
      const bool known = number < static_cast<int>(scenario_.clock_rates.size());
      for (size_t i = 0; i < servers_.size(); ++i) {
        FaultInjectingOptions options{
            .seed = seed + i,
            .clock = &clock_,
            .faults = scenario_.faults,
            .in_order = scenario_.in_order || servers_.size() > 1,
            .answer_timeout = kAnswerTimeout,
            .client_clock_rate = known ? scenario_.clock_rates[number] : 1,
            .clock_drift = kDrift,
            .lease_margin = kMargin,
        };
        if (tracing_) {
          options.trace = [this, number, i](std::string_view words) {
            Say("    client ", number, servers_.size() > 1 ? absl::StrCat(", server ", i) : "",
                ": ", words);
          };
        }
        client.links.push_back(
            std::make_shared<FaultInjectingProtocol>(servers_[i], std::move(options)));
        links.push_back(client.links.back());
      }
      client.clock = &client.links[0]->client_clock();
      backend = links.size() == 1 ? links[0] : *NewQuorumBackend(links, {.clock = client.clock});
    }
    client.backend = backend;
    client.options = {.clock = client.clock, .random_seed = seed + 9, .detect_deadlocks = false};
    if (number < static_cast<int>(scenario_.policies.size())) {
      SetPolicies(scenario_.policies[number], client.options);
    }
    client.manager = *LockManager::Create(client.backend, client.options);
    return &client;
  }

  static void SetPolicies(const Policies& policies, LockManagerOptions& options) {
    switch (policies.queue) {
      case Policies::Queue::kPriority:
        break;
      case Policies::Queue::kFifo:
        options.queue = FifoQueue();
        break;
      case Policies::Queue::kAgeing:
        options.queue = AgeingQueue();
        break;
      case Policies::Queue::kBarging:
        options.queue = PriorityQueue({.barging = true});
        break;
    }
    switch (policies.preemption) {
      case Policies::Preemption::kLower:
        break;
      case Policies::Preemption::kByMargin:
        options.preemption = PreemptByMargin(2);
        break;
      case Policies::Preemption::kNever:
        options.preemption = NeverPreempt();
        break;
    }
    switch (policies.retry) {
      case Policies::Retry::kBackoff:
        break;
      case Policies::Retry::kFixed:
        options.retry = FixedDelay(absl::Milliseconds(300));
        break;
      case Policies::Retry::kNone:
        options.retry = NoRetry();
        break;
    }
    switch (policies.admission) {
      case Policies::Admit::kMany:
        break;
      case Policies::Admit::kFew:
        options.admission = LimitPending({.per_resource = 2});
        break;
      case Policies::Admit::kShed:
        options.admission = ShedLowestPriority({.per_resource = 2});
        break;
    }
  }

  void Crash(Client& client) {
    client.dead = true;
    for (const auto& link : client.links) link->Crash();
    Say("client ", client.number, " is dead");
    for (const auto& work : works_) {
      if (work->client == &client && work->state != Work::kDone) {
        work->state = Work::kDone;
        work->settled_at = base_.Now();
      }
    }
  }

  void Begin(const Op& op) {
    if (ending_) return;
    if (clients_[op.client]->dead) {
      clients_[op.client] = NewClient(op.client);
      Say("client ", op.client, " starts anew");
    }
    Client& client = *clients_[op.client];
    switch (op.kind) {
      case Op::Kind::kPause:
        if (client.links.empty() || client.paused) return;
        client.paused = true;
        for (const auto& link : client.links) link->Pause();
        clock_.RunAt(base_.Now() + op.pause, [this, &client] { Resume(client); });
        return;
      case Op::Kind::kCrash:
        if (!client.links.empty()) client.links[0]->CrashAfter(op.steps);
        return;
      case Op::Kind::kNewManager:
        // A paused client does it when it goes on.
        client.clock->RunAt(client.clock->Now(), [this, &client] {
          if (!client.dead && !ending_) MakeNewManager(client);
        });
        return;
      case Op::Kind::kLoseData:
        LoseData(op.server);
        return;
      case Op::Kind::kAway:
        GoAway(op.server, op.pause);
        return;
      case Op::Kind::kAcquire:
        // A paused client asks when it goes on.
        client.clock->RunAt(client.clock->Now(), [this, &client, op] {
          if (!client.dead && !ending_) Ask(client, op);
        });
        return;
    }
  }

  void MakeNewManager(Client& client) {
    Say("client ", client.number, " destroys its manager and makes another");
    ++outcome_.new_managers;
    client.manager.reset();
    client.options.random_seed += 5;
    client.manager = *LockManager::Create(client.backend, client.options);
  }

  // A quorum stands the loss of one server's data at a time, and the next one once the servers that
  // stay know every fence.
  void LoseData(int server) {
    for (size_t i = 0; i < losing_servers_.size(); ++i) {
      if (static_cast<int>(i) == server) continue;
      for (int resource = 0; resource < scenario_.resources; ++resource) {
        if (!losing_servers_[i]->Knows(ResourceOf(resource))) return;
      }
    }
    Say("server ", server, " loses its data");
    ++outcome_.losses;
    losing_servers_[server]->LoseData();
    last_token_[server].clear();
  }

  // A quorum stands that one server is not there.
  void GoAway(int server, absl::Duration pause) {
    for (const auto& other : losing_servers_) {
      if (!other->IsThere()) return;
    }
    Say("server ", server, " is away");
    ++outcome_.outages;
    losing_servers_[server]->GoAway();
    clock_.RunAt(base_.Now() + pause, [this, server] {
      Say("server ", server, " is back");
      losing_servers_[server]->ComeBack();
    });
  }

  void Resume(Client& client) {
    if (!client.paused) return;
    client.paused = false;
    client.last_pause_end = base_.Now();
    for (const auto& link : client.links) link->Resume();
  }

  // ---- Work ----

  void Ask(Client& client, const Op& op) {
    works_.push_back(std::make_unique<Work>());
    Work& work = *works_.back();
    work.number = static_cast<int>(works_.size());
    work.op = op;
    work.client = &client;
    work.asked = client.clock->Now();
    work.asked_at = base_.Now();
    if (op.kind == Op::Kind::kAcquire && op.cancel_after != absl::InfiniteDuration()) {
      After(work, op.cancel_after, [&work] { work.cancel.request_stop(); });
    }
    AcquireOptions options{
        .owner = op.owner < 0 ? "" : absl::StrCat("owner ", op.owner),
        .priority = op.priority,
        .preemptible = op.preemptible,
        .lease = op.lease,
        .auto_renew = op.auto_renew,
        .max_hold = op.max_hold,
        .preemption_grace = op.grace,
        .acquire_timeout = op.timeout,
        .max_attempts = op.style == Op::Style::kTry ? 1 : AcquireOptions::kUnlimited,
        .skip_queue = op.skip_queue,
        .cancel = work.cancel.get_token(),
    };
    Say(work.Name(), " of client ", client.number, " asks for ", Resources(op), ", priority ",
        op.priority);
    std::vector<std::string> resources;
    for (const int resource : op.resources) resources.push_back(ResourceOf(resource));
    if (op.style == Op::Style::kTransaction) {
      StartTransaction(work, options);
    } else if (op.style == Op::Style::kRun) {
      const auto body = [this, &work](LockContext context, LockManager::FinishCallback finish) {
        ++outcome_.runs;
        work.context = std::move(context);
        work.finish = std::move(finish);
        Settle(work, absl::OkStatus());
      };
      const auto done = [this, &work](const absl::Status& status) { RunEnds(work, status); };
      if (work.together()) {
        client.manager->RunAllAsync(resources, options, body, done);
      } else {
        client.manager->RunAsync(resources[0], options, body, done);
      }
    } else if (op.style == Op::Style::kTry && !Linked()) {
      absl::StatusOr<Lock> lock = client.manager->TryAcquire(resources[0], options);
      if (lock.ok()) work.lock = *std::move(lock);
      Settle(work, lock.ok() ? absl::OkStatus() : lock.status());
    } else if (work.together()) {
      client.manager->AcquireAllAsync(resources, options, [this, &work](auto set) {
        if (set.ok()) work.set = *std::move(set);
        Settle(work, set.ok() ? absl::OkStatus() : set.status());
      });
    } else {
      client.manager->AcquireAsync(ResourceOf(op.resources[0]), options,
                                   [this, &work](absl::StatusOr<Lock> lock) {
                                     if (lock.ok()) work.lock = *std::move(lock);
                                     Settle(work, lock.ok() ? absl::OkStatus() : lock.status());
                                   });
    }
  }

  static std::string Resources(const Op& op) {
    return absl::StrJoin(op.resources, " and ", [](std::string* out, int resource) {
      absl::StrAppend(out, ResourceOf(resource));
    });
  }

  void After(Work& work, absl::Duration delay, std::function<void()> then) {
    work.client->clock->RunAt(work.client->clock->Now() + delay, [this, &work, then] {
      if (!work.client->dead && !ending_) then();
    });
  }

  void Settle(Work& work, const absl::Status& status) {
    if (work.client->dead) return;
    if (work.state != Work::kWaiting) {
      Violate("exactly once", work.Name(), " was answered twice");
      return;
    }
    work.settled_at = base_.Now();
    const absl::Time now = work.client->clock->Now();
    Say(work.Name(), status.ok() ? absl::StrCat(" enters with token ", Tokens(work))
                                 : absl::StrCat(" fails: ", status.message()));
    if (now > work.asked + work.op.timeout + absl::Milliseconds(1) &&
        work.client->last_pause_end < work.asked_at + work.op.timeout * (1 - 2 * kDrift)) {
      Violate("L3", work.Name(), " was answered ", absl::FormatDuration(now - work.asked),
              " after it asked, in spite of its timeout");
    }
    if (!status.ok()) {
      work.state = Work::kDone;
      const Reason reason = ReasonOf(status);
      const bool tried = work.op.style == Op::Style::kTry &&
                         (reason == Reason::kHeldByOther || reason == Reason::kAttemptsExhausted);
      const bool limited =
          reason == Reason::kTooManyPending && work.client->options.admission != nullptr;
      const bool expected = reason == Reason::kAcquireTimeout || reason == Reason::kCancelled ||
                            reason == Reason::kShutdown || tried || limited ||
                            (!Clean() && (reason == Reason::kBackendUnavailable ||
                                          reason == Reason::kBackendUnknown));
      if (!expected && !ending_) {
        Violate("unexpected error", work.Name(), ": ", status.ToString());
      }
      return;
    }
    work.state = Work::kInside;
    ++outcome_.grants;
    if (work.IsHeld()) {
      for (const int resource : work.op.resources) {
        CheckEntry(work, resource, work.Token(resource));
      }
    }
    const auto lost = [this, &work](LockState state) { OnLost(work, state); };
    const auto yield = [this, &work] {
      Say(work.Name(), " is asked to yield");
      CheckDisturbed(work);
      if (work.op.reaction == absl::InfiniteDuration()) return;
      After(work, work.op.reaction, [this, &work] { Leave(work); });
    };
    if (work.context) {
      work.on_stop.emplace(work.context->stop_token(), [this, &work, lost, yield] {
        After(work, absl::ZeroDuration(), [&work, lost, yield] {
          if (work.state != Work::kInside) return;
          const Reason reason = ReasonOf(work.context->CheckPoint());
          if (reason == Reason::kNone) return;  // Withdrawn meanwhile.
          if (reason == Reason::kYieldRequested) return yield();
          lost(reason == Reason::kExpired  ? LockState::kExpired
               : reason == Reason::kStolen ? LockState::kStolen
                                           : LockState::kLost);
        });
      });
    } else if (work.together()) {
      work.set.OnLost(lost);
      work.set.OnYieldRequested(yield);
    } else {
      work.lock.OnLost(lost);
      work.lock.OnYieldRequested(yield);
    }
    const absl::Duration work_time = work.op.work;
    LookThenWrite(work);
    if (work_time == absl::InfiniteDuration() && leave_at_once_) {
      After(work, absl::ZeroDuration(), [this, &work] { Leave(work); });
    }
    if (work_time != absl::InfiniteDuration()) {
      After(work, work_time * 0.5, [this, &work] { LookThenWrite(work); });
      After(work, work_time, [this, &work] { Leave(work); });
    }
    if (work.op.extend_at) {
      After(work, *work.op.extend_at, [this, &work] {
        if (work.state != Work::kInside || work.together() || work.context) return;
        Say(work.Name(), " extends by ", absl::FormatDuration(work.op.extend_by));
        work.lock.ExtendAsync(work.op.extend_by, [](const absl::Status&) {});
      });
    }
  }

  // S2: tokens grow in the order of grants. In a quorum two handles of one owner that were trying
  // at the same time may have theirs in either order (ADR 7).
  bool MayBeSmaller(const Work& work, const Work* than) {
    return scenario_.world == World::kQuorum && than != nullptr && work.op.owner >= 0 &&
           work.op.owner == than->op.owner && work.asked_at <= than->left_at;
  }

  void CheckEntry(const Work& work, int resource, FencingToken token) {
    Protected& guarded = protected_[resource];
    if (!forced_ && token < guarded.last_entered && !MayBeSmaller(work, guarded.entered_last)) {
      Violate("S2", work.Name(), " enters ", ResourceOf(resource), " with token ", token, ", but ",
              guarded.last_entered, " was inside before");
    }
    if (token < guarded.last_entered) return;
    guarded.last_entered = token;
    guarded.entered_last = &work;
  }

  void Write(const Work& work, int number, FencingToken token, bool paused) {
    Protected& resource = protected_[number];
    const bool accepted = token >= resource.largest;
    Say(work.Name(), " writes to ", ResourceOf(number), " with token ", token,
        accepted ? "" : ", which is refused");
    if (!accepted && !forced_ && !paused && !MayBeSmaller(work, resource.wrote_largest)) {
      Violate("S1", "a write of ", work.Name(), " to ", ResourceOf(number), " with token ", token,
              " was refused, since ", resource.largest, " was there already");
    }
    if (!accepted) return;
    resource.largest = token;
    resource.wrote_largest = &work;
  }

  void RunEnds(Work& work, const absl::Status& status) {
    if (work.client->dead || ending_) return;
    if (std::exchange(work.run_ended, true)) {
      Violate("exactly once", work.Name(), " ended twice");
    } else if (work.state == Work::kWaiting) {
      Settle(work, status);
    } else if (work.state == Work::kInside) {
      Violate("run", work.Name(), " ended before its body: ", status.ToString());
    } else if (const Reason reason = ReasonOf(status); !status.ok() && reason != Reason::kExpired &&
                                                       reason != Reason::kStolen &&
                                                       reason != Reason::kLost) {
      Violate("unexpected error", work.Name(), " ends: ", status.ToString());
    }
  }

  // ---- Transactions ----

  // Works in steps, with a checkpoint after each.
  static Transaction<void> Body(Work& work, TransactionContext& context) {
    constexpr int kSteps = 4;
    for (int step = 0; step < kSteps; ++step) {
      work.simulation->TakeStep(work, context);
      co_await context.Sleep(work.op.work / kSteps);
    }
    work.simulation->TakeStep(work, context);
  }

  // It holds the lock here, by what the library says, so nobody else does.
  void TakeStep(Work& work, TransactionContext& context) {
    if (work.client->dead || ending_) return;
    ++outcome_.steps;
    const int resource = work.op.resources[0];
    const FencingToken token = context.fencing_token();
    CheckEntry(work, resource, token);
    Write(work, resource, token, work.client->paused);
    if (forced_) return;
    for (const auto& other : works_) {
      if (other->state == Work::kInside && other->Uses(resource) && other->IsHeld() &&
          (work.op.owner < 0 || other->op.owner != work.op.owner)) {
        Violate("S1", work.Name(), " takes a step, and ", other->Name(), " is inside ",
                ResourceOf(resource));
      }
    }
  }

  void StartTransaction(Work& work, const AcquireOptions& options) {
    work.state = Work::kRunning;
    work.simulation = this;
    ++outcome_.grants;
    const auto recover = [this, &work](const Loss& loss) -> RecoveryAction<void, Work> {
      ++outcome_.gave_way;
      Say(work.Name(), " gives up its lock: ", loss.status.message());
      if (!work.client->dead && !ending_) {
        if (loss.reason == Reason::kYieldRequested) {
          CheckDisturbed(work);
        } else if (!forced_ && !may_lose_data_ && loss.reason != Reason::kExpired &&
                   !IsCutOff(work, loss.status)) {
          Violate("S4", work.Name(), " lost its lock: ", loss.status.ToString());
        }
      }
      if (work.op.recovery == Op::Recovery::kReject || loss.count > 5) return Reject();
      if (work.op.recovery == Op::Recovery::kRestart) return Restart();
      return latchkey::Resume();
    };
    work.transaction = Locker(*work.client->manager, ResourceOf(work.op.resources[0]), work)
                           .With(options)
                           .Start(Body, recover);
    work.transaction->OnDone([this, &work](const absl::Status& status) {
      if (ending_) return;
      if (work.state != Work::kRunning) {
        Violate("exactly once", work.Name(), " ended twice");
        return;
      }
      work.state = Work::kDone;
      work.settled_at = work.left_at = base_.Now();
      Say(work.Name(), " ends: ", status.ok() ? "done" : status.message());
      const Reason reason = ReasonOf(status);
      const bool expected =
          status.ok() || reason == Reason::kAcquireTimeout || reason == Reason::kCancelled ||
          reason == Reason::kShutdown || reason == Reason::kYieldRequested ||
          reason == Reason::kExpired || reason == Reason::kLost || reason == Reason::kStolen ||
          (reason == Reason::kTooManyPending && work.client->options.admission != nullptr) ||
          (!Clean() &&
           (reason == Reason::kBackendUnavailable || reason == Reason::kBackendUnknown));
      if (!expected) Violate("unexpected error", work.Name(), ": ", status.ToString());
    });
  }

  std::string Tokens(const Work& work) const {
    return absl::StrJoin(work.op.resources, ", ", [&work](std::string* out, int resource) {
      absl::StrAppend(out, work.Token(resource));
    });
  }

  // What a user does: look whether the lock is held, then use the resource, at most the margin
  // later.
  void LookThenWrite(Work& work) {
    if (work.state != Work::kInside || !work.IsHeld()) return;
    const bool paused = work.client->paused;
    std::vector<FencingToken> tokens;
    for (const int resource : work.op.resources) tokens.push_back(work.Token(resource));
    const bool late = Linked() && (++writes_ % 2) == 0;
    const auto write = [this, &work, tokens, paused] {
      for (size_t i = 0; i < tokens.size(); ++i) {
        Write(work, work.op.resources[i], tokens[i], paused);
      }
    };
    if (late) {
      ++work.about_to_write;
      clock_.RunAt(base_.Now() + kMargin * 0.9, [this, &work, write] {
        write();
        if (--work.about_to_write == 0 && work.about_to_leave) Leave(work);
      });
    } else {
      write();
    }
  }

  void Leave(Work& work) {
    if (work.state != Work::kInside) return;
    if (work.about_to_write > 0) {
      work.about_to_leave = true;
      return;
    }
    work.state = Work::kDone;
    work.left_at = base_.Now();
    Say(work.Name(), " leaves");
    if (work.context) {
      work.on_stop.reset();
      LockManager::FinishCallback finish = std::move(work.finish);
      finish(absl::OkStatus());
    } else if (work.number % 2 == 0 && !work.together()) {
      work.lock.ReleaseAsync();
    } else {
      work.lock = Lock();
      work.set = LockSet();
    }
  }

  // At the end of a lease, which faulty links kept from being renewed. The clock said so, and
  // nobody took the lock away. Only single locks say it in these words.
  bool IsCutOff(const Work& work, const absl::Status& why) const {
    if (Clean() || !work.op.auto_renew || ReasonOf(why) != Reason::kLost) return false;
    return work.together() || work.transaction ||
           absl::StrContains(why.message(), "not be renewed");
  }

  void OnLost(Work& work, LockState state) {
    if (work.client->dead || work.state != Work::kInside) return;
    Say(work.Name(), ": ", LockStateName(state));
    const auto judge = [this, &work, state](const absl::Status& why) {
      if (IsCutOff(work, why)) return;
      Violate("S4", work.Name(),
              " lost its lock, which nobody may take by force: ", LockStateName(state));
    };
    if (!forced_ && !may_lose_data_ && state != LockState::kExpired) {
      if (work.context) {
        judge(work.context->CheckPoint());
      } else if (work.together()) {
        judge(state == LockState::kLost ? MakeError(Reason::kLost, "") : absl::OkStatus());
      } else {
        work.lock.ExtendAsync(absl::Seconds(1), judge);
      }
    }
    // With links that lose nothing, only a thief keeps a lease from being renewed.
    if (Clean() && work.op.auto_renew && work.op.max_hold == absl::InfiniteDuration() &&
        !work.together()) {
      const absl::Time since = base_.Now() - *work.op.lease - absl::Seconds(1);
      bool excused = false;
      for (const auto& other : works_) {
        excused |= other->op.priority > work.op.priority && other->settled_at > since &&
                   other->Uses(work.op.resources[0]);
        // It may have entered a hold that somebody else does not renew.
        excused |= other.get() != &work && other->op.owner >= 0 && other->op.owner == work.op.owner;
      }
      if (!excused) Violate("S4", "the lease of ", work.Name(), " was not renewed");
    }
    Leave(work);
  }

  // S3: somebody of higher priority must be there.
  void CheckDisturbed(const Work& work) {
    for (const auto& other : works_) {
      if (other->op.priority > work.op.priority) {
        for (const int resource : work.op.resources) {
          if (other->Uses(resource)) return;
        }
      }
    }
    Violate("S3", work.Name(), " was asked to yield, but nobody has a higher priority");
  }

  // ---- Looking at the server ----

  void OnGrantAtServer(int server, const ObtainRequest& request, const ObtainReply& reply) {
    const std::string resource(request.resource.bytes());
    if (!granted_[server].insert(request.acquisition).second) ++outcome_.returns;
    FencingToken& last = last_token_[server][resource];
    if (reply.token <= last) {
      Violate("S2", resource, " was granted with token ", reply.token, " after ", last);
    }
    last = reply.token;
    if (Clean() && by_priority_ && Good()) CheckOrder(resource, request);
  }

  // Where no message is lost, nobody is overtaken by a lower priority once it had the time to
  // register: it must have been its manager's first for so long.
  void CheckOrder(const std::string& resource, const ObtainRequest& request) {
    const absl::Duration time_to_register = scenario_.faults.max_delay * 4;
    const absl::Time since = base_.Now() - time_to_register;
    const auto uses = [&resource](const Work& work) {
      return ResourceOf(work.op.resources[0]) == resource || work.together();
    };
    for (const auto& waiting : works_) {
      const Work& w = *waiting;
      if (w.state != Work::kWaiting || w.together() || !uses(w) || w.client->dead ||
          w.op.priority <= request.priority || w.asked_at >= since) {
        continue;
      }
      bool first = true;
      for (const auto& other : works_) {
        first &= other == waiting || other->client != w.client || !uses(*other) ||
                 other->settled_at < since || other->op.priority < w.op.priority;
      }
      if (first) {
        Violate("order", "a request of priority ", request.priority, " got ", resource, " before ",
                w.Name(), " of priority ", w.op.priority, ", which waits for it");
      }
    }
  }

  void LookAtServer(int server, const ResourceName& resource) {
    servers_[server]->Inspect(resource, [&](const ResourceState& state) {
      if (state.held && state.reserved && state.successor_priority <= state.holder_priority) {
        Violate("S3", resource.bytes(), " is held with priority ", state.holder_priority,
                " and reserved with ", state.successor_priority);
      }
      if (state.held && state.reserved && !state.preemptible) {
        Violate("S3", resource.bytes(), " is reserved, although its holder is not preemptible");
      }
    });
  }

  // ---- After every event ----

  void AfterEvent() {
    ++outcome_.events;
    for (Client* const client : clients_) {
      if (client->dead) continue;
      for (const auto& link : client->links) {
        if (link->crashed()) {
          Crash(*client);
          break;
        }
      }
    }
    if (forced_ || !Good()) return;
    std::vector<const Work*> inside;
    for (int resource = 0; resource < scenario_.resources; ++resource) {
      inside.clear();
      for (size_t i = 0; i < works_.size(); ++i) {
        const Work& work = *works_[i];
        if (work.state == Work::kInside && work.Uses(resource)) inside.push_back(&work);
      }
      if (inside.size() < 2) continue;
      const Work* first = nullptr;
      for (const Work* const work : inside) {
        if (!work->IsHeld()) continue;
        if (first != nullptr && (first->op.owner < 0 || first->op.owner != work->op.owner)) {
          Violate("S1", first->Name(), " and ", work->Name(), " are both inside ",
                  ResourceOf(resource));
        }
        first = work;
      }
    }
  }

  // ---- The end ----

  // Until `until`, or `done`, or a violation. True if done.
  bool Advance(absl::Time until, const std::function<bool()>& done) {
    while (Good() && !done()) {
      const absl::Time next = base_.NextTimer();
      if (next > until) {
        base_.AdvanceTo(until);
        return done();
      }
      base_.AdvanceTo(next);
    }
    return Good();
  }

  void HealAndFinish() {
    Say("from here on nothing goes wrong any more");
    Faults healed;
    healed.max_delay = std::min(scenario_.faults.max_delay, absl::Milliseconds(50));
    scenario_.faults = healed;
    for (const auto& server : losing_servers_) server->ComeBack();
    for (Client* const client : clients_) {
      for (const auto& link : client->links) {
        link->SetFaults(healed);
        link->CrashAfter(1'000'000'000);
      }
      Resume(*client);
    }
    // Those that were paused ask now for what they wanted meanwhile.
    Advance(base_.Now(), [] { return false; });

    // L2: the highest priority enters within the longest lease, whatever holders do.
    Client* const first = NewClient(scenario_.clients);
    clients_.push_back(first);
    absl::Duration bound = longest_lease_ + absl::Seconds(5);
    bool promised = scenario_.world != World::kQuorum;
    for (const auto& work : works_) {
      if (work->state == Work::kDone) continue;
      // A step of a transaction is not cut short.
      if (work->state == Work::kRunning) promised = false;
      if (!work->op.lease || !work->op.preemptible) promised = false;
      // Those of the same owner hand the hold to each other.
      if (work->op.owner >= 0) promised = false;
    }
    if (!promised) bound = absl::Minutes(10);
    std::vector<Work*> highest;
    for (int resource = 0; resource < scenario_.resources; ++resource) {
      Op op{.at = base_.Now() - start_,
            .client = scenario_.clients,
            .resources = {resource},
            .priority = kHighest,
            .work = absl::Milliseconds(100)};
      if (Linked()) op.lease = absl::Seconds(5), op.auto_renew = true;
      Ask(*first, op);
      highest.push_back(works_.back().get());
    }
    // Where leases have no end, it takes the holders to leave.
    if (!promised) LeaveAll();
    const auto entered = [&highest] {
      return std::all_of(highest.begin(), highest.end(),
                         [](const Work* work) { return work->state != Work::kWaiting; });
    };
    if (!Advance(base_.Now() + bound, entered)) {
      Violate("L2", "the highest priority did not enter within ", absl::FormatDuration(bound));
      return;
    }

    // L1: with preemption over and holders that leave, everybody is served.
    LeaveAll();
    const auto served = [this] {
      return std::all_of(works_.begin(), works_.end(),
                         [](const auto& work) { return work->state == Work::kDone; });
    };
    if (!Advance(base_.Now() + absl::Minutes(30), served)) {
      for (const auto& work : works_) {
        if (work->state == Work::kWaiting) {
          Violate("L1", work->Name(), " still waits, although everybody else has left");
        }
      }
      Violate("L1", "somebody does not leave");
      return;
    }

    // Nothing is left once the leases of the crashed are over.
    Advance(base_.Now() + longest_lease_ * 2 + absl::Seconds(10), [] { return false; });
    for (size_t i = 0; i < servers_.size(); ++i) {
      servers_[i]->Inspect(std::nullopt, [&](const ResourceState& state) {
        Violate("left behind", state.resource, " is still ",
                state.held ? absl::StrCat("held with token ", state.token) : "reserved",
                servers_.size() > 1 ? absl::StrCat(" at server ", i) : "");
      });
    }
    for (Client* const client : clients_) {
      if (!client->dead && client->manager->IsBusy()) {
        Violate("left behind", "the manager of client ", client->number, " is busy");
      }
    }
  }

  // All whose work has no end of its own, now and from now on.
  void LeaveAll() {
    leave_at_once_ = true;
    for (size_t i = 0; i < works_.size(); ++i) {
      Work& work = *works_[i];
      if (work.state == Work::kInside && work.op.work == absl::InfiniteDuration()) Leave(work);
    }
  }

  void End() {
    ending_ = true;
    const bool good = Good();
    for (const auto& work : works_) {
      work->lock = Lock();
      work->set = LockSet();
      work->on_stop.reset();
      work->finish = nullptr;
      work->context.reset();
      if (work->transaction) work->transaction->Cancel();
    }
    for (const auto& client : all_clients_) client->manager.reset();
    base_.AdvanceBy(absl::Minutes(2));
    for (const auto& client : all_clients_) client->links.clear();
    base_.AdvanceBy(absl::Minutes(1));
    if (good && base_.PendingTimers() != 0) {
      Violate("left behind", base_.PendingTimers(), " timers");
    }
  }

  Scenario scenario_;
  const bool tracing_;
  SimulatedClock base_;
  ObservedClock clock_;
  const absl::Time start_;
  std::vector<std::shared_ptr<LosingServer>> losing_servers_;  // In the world kQuorum.
  std::vector<std::shared_ptr<LockingProtocol>> servers_;
  std::vector<std::map<std::string, FencingToken>> last_token_;
  std::vector<std::set<AcquisitionId>> granted_;
  std::vector<Protected> protected_;
  std::map<AcquisitionId, size_t> names_;  // In the order of their first step.
  std::vector<std::unique_ptr<Client>> all_clients_;
  std::vector<Client*> clients_;  // Those that live.
  std::deque<std::unique_ptr<Work>> works_;
  absl::Duration longest_lease_ = absl::Seconds(5);
  absl::Duration last_op_ = {};
  bool forced_ = false;
  bool may_lose_data_ = false;
  bool by_priority_ = true;  // All managers queue by priority and preempt whatever is lower.
  bool leave_at_once_ = false;
  bool ending_ = false;
  int64_t writes_ = 0;
  Outcome outcome_;
  std::string violation_;
  std::string trace_;
};

std::string Kind(const std::string& violation) { return violation.substr(0, violation.find(':')); }

std::string Describe(const Op& op) {
  std::string words = absl::StrCat(
      absl::FormatDuration(op.at), ": client ", op.client,
      op.kind == Op::Kind::kPause   ? absl::StrCat(" pauses for ", absl::FormatDuration(op.pause))
      : op.kind == Op::Kind::kCrash ? absl::StrCat(" crashes after ", op.steps, " steps")
      : op.kind == Op::Kind::kNewManager ? " destroys its manager"
      : op.kind == Op::Kind::kLoseData   ? absl::StrCat(": server ", op.server, " loses its data")
      : op.kind == Op::Kind::kAway
          ? absl::StrCat(": server ", op.server, " is away for ", absl::FormatDuration(op.pause))
          : "");
  if (op.kind != Op::Kind::kAcquire) return words;
  absl::StrAppend(
      &words,
      op.style == Op::Style::kTry           ? " tries "
      : op.style == Op::Style::kRun         ? " runs under "
      : op.style == Op::Style::kTransaction ? " starts a transaction on "
                                            : " asks for ",
      absl::StrJoin(op.resources, " and ",
                    [](std::string* out, int r) { absl::StrAppend(out, ResourceOf(r)); }),
      " with priority ", op.priority);
  if (op.owner >= 0) absl::StrAppend(&words, ", owner ", op.owner);
  if (!op.preemptible) absl::StrAppend(&words, ", not preemptible");
  if (op.lease) absl::StrAppend(&words, ", lease ", absl::FormatDuration(*op.lease));
  if (op.auto_renew) absl::StrAppend(&words, " renewed");
  if (op.max_hold != absl::InfiniteDuration()) {
    absl::StrAppend(&words, ", at most ", absl::FormatDuration(op.max_hold));
  }
  if (op.grace) absl::StrAppend(&words, ", by force after ", absl::FormatDuration(*op.grace));
  if (op.timeout != absl::InfiniteDuration()) {
    absl::StrAppend(&words, ", timeout ", absl::FormatDuration(op.timeout));
  }
  if (op.cancel_after != absl::InfiniteDuration()) {
    absl::StrAppend(&words, ", cancelled after ", absl::FormatDuration(op.cancel_after));
  }
  if (op.skip_queue) absl::StrAppend(&words, ", skips the queue");
  absl::StrAppend(&words, "; works for ", absl::FormatDuration(op.work));
  if (op.reaction != absl::InfiniteDuration()) {
    absl::StrAppend(&words, ", yields within ", absl::FormatDuration(op.reaction));
  }
  if (op.extend_at) {
    absl::StrAppend(&words, ", after ", absl::FormatDuration(*op.extend_at), " extends by ",
                    absl::FormatDuration(op.extend_by));
  }
  return words;
}

}  // namespace

std::string_view WorldName(World world) {
  switch (world) {
    case World::kDirect:
      return "direct";
    case World::kDelays:
      return "delays";
    case World::kFaulty:
      return "faulty";
    case World::kForced:
      return "forced";
    case World::kQuorum:
      return "quorum";
  }
  return "?";
}

Scenario MakeScenario(uint64_t seed, World world) {
  Random random(seed * 16 + static_cast<uint64_t>(world));
  const bool direct = world == World::kDirect;
  const bool clean = direct || world == World::kDelays;
  Scenario scenario{.seed = seed, .world = world};
  scenario.clients = random.Int(2, 4);
  // Within one process tokens and queues depend on how names are hashed, which differs from run to
  // run; with one resource they do not.
  scenario.resources = direct ? 1 : random.Int(1, 3);
  scenario.in_order = random.OneIn(2);
  if (!direct) {
    scenario.faults.max_delay = random.Between(absl::Milliseconds(1), absl::Milliseconds(40));
    for (int i = 0; i < scenario.clients; ++i) {
      scenario.clock_rates.push_back(random.OneIn(2) ? 1 : 1 + random.Int(-9, 9) * kDrift / 10);
    }
  }
  if (!clean) {
    const auto chance = [&random](int percent) {
      return random.OneIn(2) ? 0 : random.Int(1, percent) / 100.0;
    };
    if (random.OneIn(4)) scenario.faults.max_delay = absl::Milliseconds(700);
    scenario.faults.unavailable = chance(20);
    scenario.faults.drop_call = chance(20);
    scenario.faults.drop_reply = chance(20);
    scenario.faults.duplicate_call = chance(30);
    scenario.faults.drop_event = chance(50);
    scenario.faults.duplicate_event = chance(30);
  }

  const bool owners = random.OneIn(4);
  const bool may_refuse = random.OneIn(4);
  const bool loses_data = world == World::kQuorum && random.OneIn(2);
  const bool goes_away = world == World::kQuorum && random.OneIn(2);
  const bool other_styles = random.OneIn(2);
  // A client that crashed cannot end its transactions.
  const bool transactions = other_styles && random.OneIn(2);
  if (random.OneIn(3)) {
    for (int i = 0; i < scenario.clients; ++i) {
      Policies policies;
      if (random.OneIn(2)) policies.queue = static_cast<Policies::Queue>(random.Int(0, 3));
      if (random.OneIn(3)) {
        policies.preemption = static_cast<Policies::Preemption>(random.Int(0, 2));
      }
      // Without retries a waiter needs every event.
      if (random.OneIn(3))
        policies.retry = static_cast<Policies::Retry>(random.Int(0, clean ? 2 : 1));
      if (random.OneIn(3)) policies.admission = static_cast<Policies::Admit>(random.Int(0, 2));
      scenario.policies.push_back(policies);
    }
  }
  const int requests = random.Int(3, 12);
  const absl::Duration span = random.Between(absl::Seconds(1), absl::Seconds(15));
  for (int i = 0; i < requests; ++i) {
    Op op{.at = random.Between(absl::ZeroDuration(), span),
          .client = random.Int(0, scenario.clients - 1)};
    if (loses_data && random.OneIn(5)) {
      op.kind = Op::Kind::kLoseData;
      op.server = random.Int(0, 2);
    } else if (goes_away && random.OneIn(4)) {
      op.kind = Op::Kind::kAway;
      op.server = random.Int(0, 2);
      op.pause = random.Between(absl::Milliseconds(500), absl::Seconds(8));
    } else if (other_styles && random.OneIn(12)) {
      op.kind = Op::Kind::kNewManager;
    } else if (!clean && !transactions && random.OneIn(8)) {
      op.kind = Op::Kind::kCrash;
      op.steps = random.Int(0, 12);
    } else if (!clean && random.OneIn(8)) {
      op.kind = Op::Kind::kPause;
      op.pause = random.OneIn(2) ? random.Between(absl::Milliseconds(1), absl::Milliseconds(100))
                                 : random.Between(absl::Seconds(1), absl::Seconds(12));
    } else {
      op.resources = {random.Int(0, scenario.resources - 1)};
      if (scenario.resources > 1 && random.OneIn(6)) {
        const int other = random.Int(0, scenario.resources - 1);
        if (other != op.resources[0]) op.resources.push_back(other);
      }
      if (owners && random.OneIn(2)) op.owner = random.Int(0, 1);
      op.priority = random.Int(0, 3);
      op.preemptible = !(may_refuse && random.OneIn(3));
      if (!direct || random.OneIn(4)) {
        op.lease = random.Between(absl::Seconds(1), absl::Seconds(10));
        op.auto_renew = random.OneIn(2);
        if (random.OneIn(8)) op.max_hold = random.Between(absl::Seconds(1), absl::Seconds(20));
      }
      if (world == World::kForced && random.OneIn(2)) {
        op.grace = random.Between(absl::ZeroDuration(), absl::Seconds(3));
      }
      if (random.OneIn(3)) {
        op.timeout = random.Between(absl::Milliseconds(1), absl::Seconds(8));
      } else if (random.OneIn(5)) {
        op.cancel_after = random.Between(absl::Milliseconds(1), absl::Seconds(8));
      }
      op.skip_queue = random.OneIn(8);
      op.work = random.OneIn(6) ? absl::InfiniteDuration()
                                : random.Between(absl::Milliseconds(1), absl::Seconds(8));
      if (!op.preemptible && op.work == absl::InfiniteDuration()) op.work = absl::Seconds(5);
      if (goes_away && random.OneIn(2)) {
        // The lease ends within an outage, and the work does not: the hold is to come back.
        op.lease = random.Between(absl::Milliseconds(500), absl::Seconds(3));
        op.auto_renew = true;
        op.max_hold = absl::InfiniteDuration();
        op.work = random.Between(absl::Seconds(4), absl::Seconds(20));
      }
      if (random.OneIn(2)) {
        op.reaction = random.Between(absl::ZeroDuration(), absl::Milliseconds(500));
      }
      if (other_styles && random.OneIn(2)) op.style = static_cast<Op::Style>(random.Int(1, 3));
      if (op.style == Op::Style::kTransaction) {
        op.recovery = static_cast<Op::Recovery>(random.Int(0, 2));
        if (op.work == absl::InfiniteDuration()) op.work = absl::Seconds(5);
        op.resources.resize(1);
        if (!transactions) op.style = Op::Style::kLock;
      }
      if (op.style == Op::Style::kTry) op.resources.resize(1);
      if (op.lease && random.OneIn(4)) {
        op.extend_at = random.Between(absl::ZeroDuration(), absl::Seconds(2));
        op.extend_by = random.Between(absl::Milliseconds(50), absl::Seconds(10));
      }
    }
    scenario.ops.push_back(std::move(op));
  }
  return scenario;
}

Outcome Simulate(const Scenario& scenario, bool trace) { return Simulation(scenario, trace).Run(); }

Scenario Shrink(Scenario scenario) {
  const std::string kind = Kind(Simulate(scenario).violation);
  const auto still = [&kind](const Scenario& smaller) {
    return Kind(Simulate(smaller).violation) == kind;
  };
  for (bool progress = true; progress;) {
    progress = false;
    for (size_t i = scenario.ops.size(); i-- > 0;) {
      Scenario smaller = scenario;
      smaller.ops.erase(smaller.ops.begin() + static_cast<ptrdiff_t>(i));
      if (still(smaller)) {
        scenario = std::move(smaller);
        progress = true;
      }
    }
    if (!scenario.policies.empty()) {
      Scenario smaller = scenario;
      smaller.policies.clear();
      if (still(smaller)) {
        scenario = std::move(smaller);
        progress = true;
      }
    }
    for (double Faults::*const fault :
         {&Faults::unavailable, &Faults::drop_call, &Faults::drop_reply, &Faults::duplicate_call,
          &Faults::drop_event, &Faults::duplicate_event}) {
      if (scenario.faults.*fault == 0) continue;
      Scenario smaller = scenario;
      smaller.faults.*fault = 0;
      if (still(smaller)) {
        scenario = std::move(smaller);
        progress = true;
      }
    }
    for (size_t i = 0; i < scenario.ops.size(); ++i) {
      const auto simpler = [&](auto change) {
        Scenario smaller = scenario;
        change(smaller.ops[i]);
        if (Describe(smaller.ops[i]) != Describe(scenario.ops[i]) && still(smaller)) {
          scenario = std::move(smaller);
          progress = true;
        }
      };
      if (scenario.ops[i].kind != Op::Kind::kAcquire) continue;
      simpler([](Op& op) { op.style = Op::Style::kLock; });
      simpler([](Op& op) { op.resources.resize(1); });
      simpler([](Op& op) { op.owner = -1; });
      simpler([](Op& op) { op.preemptible = true; });
      simpler([](Op& op) { op.auto_renew = false; });
      simpler([](Op& op) { op.max_hold = absl::InfiniteDuration(); });
      simpler([](Op& op) { op.cancel_after = absl::InfiniteDuration(); });
      simpler([](Op& op) { op.timeout = absl::InfiniteDuration(); });
      simpler([](Op& op) { op.skip_queue = false; });
      simpler([](Op& op) { op.extend_at.reset(); });
      simpler([](Op& op) { op.reaction = absl::InfiniteDuration(); });
    }
  }
  return scenario;
}

std::string Explain(const Scenario& scenario) {
  const Outcome outcome = Simulate(scenario, /*trace=*/true);
  const Faults& faults = scenario.faults;
  std::string words = absl::StrCat(
      "seed ", scenario.seed, ", world '", WorldName(scenario.world), "'\n",
      outcome.violation.empty() ? "nothing wrong" : outcome.violation, "\nlinks: up to ",
      absl::FormatDuration(faults.max_delay), scenario.in_order ? ", in order" : "", "; refused ",
      faults.unavailable, ", calls lost ", faults.drop_call, ", answers lost ", faults.drop_reply,
      ", calls repeated ", faults.duplicate_call, ", events lost ", faults.drop_event,
      ", events repeated ", faults.duplicate_event, "\n");
  for (size_t i = 0; i < scenario.policies.size(); ++i) {
    constexpr std::string_view kQueues[] = {"by priority", "first come", "ageing", "barging"};
    constexpr std::string_view kPreemptions[] = {"lower", "by a margin of 2", "nobody"};
    constexpr std::string_view kRetries[] = {"backing off", "at a fixed pace", "never"};
    constexpr std::string_view kAdmissions[] = {"many", "two", "two, sheds the lowest"};
    const Policies& policies = scenario.policies[i];
    absl::StrAppend(&words, "client ", i, ": queue ", kQueues[static_cast<int>(policies.queue)],
                    "; preempts ", kPreemptions[static_cast<int>(policies.preemption)],
                    "; asks again ", kRetries[static_cast<int>(policies.retry)], "; admits ",
                    kAdmissions[static_cast<int>(policies.admission)], "\n");
  }
  std::vector<Op> ops = scenario.ops;
  std::stable_sort(ops.begin(), ops.end(), [](const Op& a, const Op& b) { return a.at < b.at; });
  for (const Op& op : ops) absl::StrAppend(&words, "  ", Describe(op), "\n");
  absl::StrAppend(&words, "what happened:\n", outcome.trace);
  return words;
}

}  // namespace latchkey

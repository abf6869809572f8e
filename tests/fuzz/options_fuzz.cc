// What users fill in: AcquireOptions, LockManagerOptions, the policies' options, the protocols of a
// quorum. What the headers allow is accepted, everything else is refused with kInvalidArgument (or
// kUnimplemented where the backend lacks it) naming the field; what is accepted never makes the
// manager send a backend a request that its capabilities exclude, and every callback runs exactly
// once, on simulated time.
//
// Bytes pick the backend's capabilities and the policies, then requests, extensions and time.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "latchkey/backends/quorum/quorum_backend.h"
#include "latchkey/core/lease.h"
#include "latchkey/core/lock_error.h"
#include "latchkey/core/lock_manager.h"
#include "latchkey/core/policy/admission_policy.h"
#include "latchkey/core/policy/preemption_policy.h"
#include "latchkey/core/policy/queue_policy.h"
#include "latchkey/core/policy/retry_policy.h"
#include "latchkey/core/protocol/locking_protocol.h"
#include "latchkey/memory_backend/memory_backend.h"
#include "latchkey/tests/fuzz/fuzz_input.h"
#include "latchkey/tests/support/simulated_clock.h"

namespace latchkey {
namespace {

// The in-memory backend, of which it says that it can do less; holds the manager to that.
class Restricted : public LockingProtocol {
 public:
  Restricted(std::shared_ptr<LockingProtocol> backend, BackendCapabilities capabilities,
             Clock& clock)
      : backend_(std::move(backend)), capabilities_(std::move(capabilities)), clock_(clock) {}

  void Obtain(const ObtainRequest& request, ObtainCallback done) override {
    Trace("obtain", request.resource, request.acquisition, request.lease);
    Check(CheckRequest(request, capabilities_));
    backend_->Obtain(request, std::move(done));
  }
  void Release(const HoldRef& hold, ReleaseCallback done) override {
    Trace("release", hold.resource, hold.acquisition, absl::ZeroDuration());
    Check(CheckRequest(hold, capabilities_));
    backend_->Release(hold, std::move(done));
  }
  void Extend(const HoldRef& hold, absl::Duration lease, ExtendCallback done) override {
    Trace("extend", hold.resource, hold.acquisition, lease);
    Check(CheckRequest(hold, capabilities_));
    // What a user asks for in Lock::Extend is the backend's to check.
    if (absl::Status bad = CheckLease("lease", lease, capabilities_); !bad.ok()) return done(bad);
    backend_->Extend(hold, lease, std::move(done));
  }
  Subscription Watch(const WatchRequest& request, WatchCallback on_event) override {
    Trace("watch", request.resource, request.acquisition, request.reservation_lease);
    Check(CheckRequest(request, capabilities_));
    return backend_->Watch(request, std::move(on_event));
  }
  const BackendCapabilities& capabilities() const override { return capabilities_; }

 private:
  // LATCHKEY_FUZZ_TRACE=1 shows what the manager asks for, to find out about an input.
  void Trace(std::string_view step, const ResourceName& resource, AcquisitionId acquisition,
             absl::Duration duration) const {
    static const bool wanted = std::getenv("LATCHKEY_FUZZ_TRACE") != nullptr;
    if (!wanted) return;
    std::fprintf(stderr, "%s\n",
                 absl::StrCat(absl::FormatTime(clock_.Now(), absl::UTCTimeZone()), " ", step, " ",
                              ResourceForMessage(resource), " #", acquisition.low % 1000, " ",
                              absl::FormatDuration(duration))
                     .c_str());
  }

  static void Check(const absl::Status& status) {
    FuzzCheck(status.ok(),
              absl::StrCat("the manager asked for what it may not: ", status.ToString()));
  }

  const std::shared_ptr<LockingProtocol> backend_;
  const BackendCapabilities capabilities_;
  Clock& clock_;
};

bool IsPositive(absl::Duration duration) { return duration > absl::ZeroDuration(); }
bool IsNegative(absl::Duration duration) { return duration < absl::ZeroDuration(); }

// Callbacks that were promised, and ran.
struct Promises {
  int made = 0;
  int kept = 0;
};

// Notes whether it runs exactly once.
class Promise {
 public:
  explicit Promise(Promises& promises) : promises_(&promises) { ++promises.made; }
  Promise(Promise&& other) noexcept : promises_(std::exchange(other.promises_, nullptr)) {}
  void Keep() {
    FuzzCheck(promises_ != nullptr, "a callback ran twice");
    ++std::exchange(promises_, nullptr)->kept;
  }

 private:
  Promises* promises_;
};

class Scenario {
 public:
  explicit Scenario(FuzzInput& input) : input_(input) {
    capabilities_.name = "restricted";
    capabilities_.answers_at_once = true;
    capabilities_.infinite_lease = input.Flag();
    capabilities_.max_lease = input.OneOf(
        {absl::InfiniteDuration(), absl::Seconds(60), absl::Milliseconds(10), absl::Hours(24)});
    capabilities_.default_lease = absl::Seconds(30);
    capabilities_.clock_drift = input.OneOf({0.0, 0.01, 0.5});
    capabilities_.lease_margin =
        input.OneOf({absl::ZeroDuration(), absl::Milliseconds(20), absl::Hours(1)});
    capabilities_.reliable_events = input.Flag();
    capabilities_.keeps_order = true;
    capabilities_.barging = input.Flag();
    capabilities_.forced_handover = input.Flag();
  }

  void Go() {
    LockManagerOptions options{.clock = &clock_,
                               .admission = SomeAdmission(),
                               .queue = SomeQueue(),
                               .preemption = SomePreemption(),
                               .retry = SomeRetry(),
                               .random_seed = 1,
                               .detect_deadlocks = input_.Flag()};
    const bool barging = options.queue != nullptr && options.queue->AllowsBarging();
    absl::StatusOr<LockManager> manager = LockManager::Create(
        std::make_shared<Restricted>(NewMemoryBackend({.clock = &clock_, .shards = 1}),
                                     capabilities_, clock_),
        options);
    FuzzCheck(manager.ok() == (!barging || capabilities_.barging), "Create");
    if (!manager.ok()) return;
    {
      std::optional<LockManager> locks(*std::move(manager));
      for (int i = 0; i < 40 && !input_.empty(); ++i) Step(*locks);
      locks.reset();
    }
    held_.clear();
    finishes_.clear();
    FuzzCheck(promises_.made == promises_.kept,
              absl::StrCat(promises_.made, " callbacks, ", promises_.kept, " of them ran"));
  }

 private:
  // ---- Options ----

  std::shared_ptr<const AdmissionPolicy> SomeAdmission() {
    switch (input_.Below(4)) {
      case 0:
        return AdmitAll();
      case 1:
        return LimitPending({.per_resource = input_.SomeInt64(), .in_total = input_.SomeInt64()});
      case 2:
        return ShedLowestPriority({.per_resource = input_.SomeInt64()});
      default:
        return nullptr;
    }
  }

  std::shared_ptr<const QueuePolicy> SomeQueue() {
    switch (input_.Below(4)) {
      case 0:
        return PriorityQueue({.barging = input_.Flag()});
      case 1:
        return FifoQueue({.barging = input_.Flag()});
      case 2:
        return AgeingQueue({.step = input_.SomeDuration(), .barging = input_.Flag()});
      default:
        return nullptr;
    }
  }

  std::shared_ptr<const PreemptionPolicy> SomePreemption() {
    switch (input_.Below(5)) {
      case 0:
        return PreemptByMargin(input_.SomeInt64());
      case 1:
        return NeverPreempt();
      case 2:
        policy_forces_ = true;
        return ForceAfter(input_.SomeDuration());
      default:
        return nullptr;
    }
  }

  std::shared_ptr<const RetryPolicy> SomeRetry() {
    switch (input_.Below(5)) {
      case 0:
        return FixedDelay(input_.SomeDuration());
      case 1:
        return ExponentialBackoff({.initial = input_.SomeDuration(),
                                   .max = input_.SomeDuration(),
                                   .multiplier = input_.OneOf({0.0, -1.0, 1.0, 2.0, 1e300})});
      case 2:
        return NoRetry();
      default:
        return nullptr;
    }
  }

  // Mostly the default, or few requests would get past the checks.
  absl::Duration Mostly(absl::Duration otherwise) {
    return input_.Below(4) == 0 ? input_.SomeDuration() : otherwise;
  }

  AcquireOptions SomeOptions() {
    AcquireOptions options;
    options.owner = input_.OneOf<std::string>({"", "", "ann", "bob", std::string("\0\xff", 2)});
    options.priority = input_.SomeInt64();
    options.preemptible = !input_.Flag();
    if (input_.Below(3) == 0) options.lease = input_.SomeDuration();
    if (input_.Below(4) == 0) options.auto_renew = input_.Flag();
    options.max_hold = Mostly(options.max_hold);
    if (input_.Below(4) == 0) options.preemption_grace = input_.SomeDuration();
    options.acquire_timeout = Mostly(options.acquire_timeout);
    if (input_.Below(4) == 0) options.max_attempts = static_cast<int>(input_.SomeInt64());
    options.skip_queue = input_.Flag();
    if (input_.Flag()) options.cancel = stop_.get_token();
    options.max_execution_time = Mostly(options.max_execution_time);
    options.max_occupation_time = Mostly(options.max_occupation_time);
    if (input_.Below(4) == 0) options.admission = SomeAdmission();
    if (input_.Below(4) == 0) options.retry = SomeRetry();
    options.outage_patience = Mostly(options.outage_patience);
    return options;
  }

  bool AreValid(std::string_view resource, const AcquireOptions& o) const {
    return !resource.empty() && CanBeRenewed(o) && (!o.lease || IsPositive(*o.lease)) &&
           IsPositive(o.max_hold) && (!o.preemption_grace || !IsNegative(*o.preemption_grace)) &&
           !IsNegative(o.acquire_timeout) && !IsNegative(o.outage_patience) &&
           o.max_attempts >= 1 && IsPositive(o.max_execution_time) &&
           IsPositive(o.max_occupation_time);
  }

  absl::Duration LeaseOf(const AcquireOptions& o) const {
    const absl::Duration lease =
        o.lease.value_or(capabilities_.infinite_lease
                             ? absl::InfiniteDuration()
                             : std::min(capabilities_.default_lease, capabilities_.max_lease));
    return o.max_hold < lease ? std::min(o.max_hold, capabilities_.max_lease) : lease;
  }

  bool CanBeRenewed(const AcquireOptions& o) const {
    const absl::Duration lease = LeaseOf(o);
    const bool renewed = lease < o.max_hold &&
                         o.auto_renew.value_or(!o.lease || *o.lease == absl::InfiniteDuration());
    return !renewed || lease >= 3 * capabilities_.lease_margin;
  }

  bool AreSupported(const AcquireOptions& o) const {
    const bool lease =
        !o.lease || (*o.lease == absl::InfiniteDuration() ? capabilities_.infinite_lease
                                                          : *o.lease <= capabilities_.max_lease);
    const absl::Duration time =
        LeaseOf(o) * (1 - capabilities_.clock_drift) - capabilities_.lease_margin;
    const bool force =
        o.preemption_grace ? *o.preemption_grace != absl::InfiniteDuration() : policy_forces_;
    return lease && time > absl::ZeroDuration() && (!force || capabilities_.forced_handover);
  }

  // A refusal of options that are right, or none of options that are not.
  void CheckVerdict(std::string_view resource, const AcquireOptions& options,
                    const absl::Status& status) const {
    const Reason reason = ReasonOf(status);
    FuzzCheck(status.ok() || reason != Reason::kNone, "an error without a reason");
    const bool valid = AreValid(resource, options);
    const bool supported = AreSupported(options);
    // Of two faults either may be told.
    if (!valid && !supported && reason == Reason::kNotSupported) return;
    FuzzCheck((reason == Reason::kInvalidArgument) == !valid,
              absl::StrCat("valid: ", valid, ", but ", status.ToString()));
    if (!valid) {
      bool named = false;
      for (const std::string_view field :
           {"resource", "lease", "max_hold", "preemption_grace", "acquire_timeout", "max_attempts",
            "max_execution_time", "max_occupation_time", "outage_patience"}) {
        named |= absl::StrContains(status.message(), field);
      }
      FuzzCheck(named, absl::StrCat("no field is named: ", status.message()));
      return;
    }
    // A policy that forces may do so after an infinite grace.
    if (policy_forces_ && !options.preemption_grace) return;
    FuzzCheck((reason == Reason::kNotSupported) == !supported,
              absl::StrCat("supported: ", supported, ", but ", status.ToString()));
  }

  // ---- Steps ----

  std::string SomeResource() { return input_.OneOf<std::string>({"a", "a", "b", "c", ""}); }

  void Keep(absl::StatusOr<Lock> lock) {
    if (lock.ok()) held_.push_back(*std::move(lock));
  }

  void Step(LockManager& locks) {
    switch (input_.Below(9)) {
      case 0: {
        const std::string resource = SomeResource();
        const AcquireOptions options = SomeOptions();
        absl::StatusOr<Lock> lock = locks.TryAcquire(resource, options);
        CheckVerdict(resource, options, lock.status());
        Keep(std::move(lock));
        break;
      }
      case 1:
      case 2: {
        const std::string resource = SomeResource();
        const AcquireOptions options = SomeOptions();
        locks.AcquireAsync(resource, options,
                           [this, resource, options,
                            promise = Promise(promises_)](absl::StatusOr<Lock> lock) mutable {
                             promise.Keep();
                             CheckVerdict(resource, options, lock.status());
                             Keep(std::move(lock));
                           });
        break;
      }
      case 3: {
        const AcquireOptions options = SomeOptions();
        locks.AcquireAllAsync({SomeResource(), SomeResource()}, options,
                              [promise = Promise(promises_)](absl::StatusOr<LockSet> set) mutable {
                                promise.Keep();
                                FuzzCheck(set.ok() || ReasonOf(set.status()) != Reason::kNone,
                                          "an error without a reason");
                              });
        break;
      }
      case 4: {
        const std::string resource = SomeResource();
        const AcquireOptions options = SomeOptions();
        locks.RunAsync(
            resource, options,
            [this](LockContext context, LockManager::FinishCallback finish) {
              FuzzCheck(context.fencing_token() > 0, "no token");
              finishes_.push_back(std::move(finish));
            },
            [promise = Promise(promises_)](absl::Status status) mutable {
              promise.Keep();
              FuzzCheck(status.ok() || ReasonOf(status) != Reason::kNone,
                        "an error without a reason");
            });
        break;
      }
      case 5:
        if (held_.empty()) break;
        {
          Lock& lock = held_[input_.Byte() % held_.size()];
          const absl::Duration lease = input_.SomeDuration();
          const bool held = lock.IsHeld();
          const absl::Status status = lock.Extend(lease);
          FuzzCheck(!status.ok() || (IsPositive(lease) && held), "extended by what is no lease");
          FuzzCheck(status.ok() || ReasonOf(status) != Reason::kNone, "an error without a reason");
        }
        break;
      case 6:
        if (held_.empty()) break;
        {
          const size_t which = input_.Byte() % held_.size();
          Lock lock = std::move(held_[which]);
          held_.erase(held_.begin() + static_cast<std::ptrdiff_t>(which));
          if (input_.Flag()) static_cast<void>(lock.Release());
        }
        if (input_.Flag() && !finishes_.empty()) {
          LockManager::FinishCallback finish = std::move(finishes_.front());
          finishes_.pop_front();
          finish(absl::OkStatus());
        }
        break;
      case 7:
        for (int i = input_.Below(8); i >= 0; --i) {
          // Where there is a timer for the end of time, it is not reached.
          if (clock_.NextTimer() > clock_.Now() + absl::Hours(24 * 365)) break;
          clock_.AdvanceToNextTimer();
        }
        break;
      default:
        if (input_.Below(8) == 0) {
          stop_.request_stop();
          stop_ = std::stop_source();
        } else {
          clock_.AdvanceBy(absl::Milliseconds(input_.Byte()));
        }
    }
    static_cast<void>(locks.Snapshot());
  }

  FuzzInput& input_;
  SimulatedClock clock_;
  BackendCapabilities capabilities_;
  bool policy_forces_ = false;
  std::stop_source stop_;
  Promises promises_;
  std::vector<Lock> held_;
  std::deque<LockManager::FinishCallback> finishes_;
};

// Which protocols a quorum takes.
void Quorum(FuzzInput& input) {
  SimulatedClock clock;
  const std::shared_ptr<LockingProtocol> known[] = {
      NewMemoryBackend({.clock = &clock, .shards = 1}),
      NewMemoryBackend({.clock = &clock, .shards = 1}),
      std::make_shared<Restricted>(NewMemoryBackend({.clock = &clock, .shards = 1}),
                                   BackendCapabilities{.name = "no member"}, clock),
      nullptr};
  int uses[4] = {};
  std::vector<std::shared_ptr<LockingProtocol>> protocols;
  for (int left = input.Below(6); left > 0; --left) {
    const int which = input.Below(4);
    ++uses[which];
    protocols.push_back(known[which]);
  }
  const bool valid =
      !protocols.empty() && uses[0] <= 1 && uses[1] <= 1 && uses[2] <= 1 && uses[3] == 0;
  const bool supported = protocols.size() == 1 || uses[2] == 0;
  const auto quorum = NewQuorumBackend(protocols, {.clock = &clock});
  FuzzCheck(quorum.ok() == (valid && supported),
            absl::StrCat("a quorum: ", quorum.status().ToString()));
  if (!valid) {
    FuzzCheck(ReasonOf(quorum.status()) == Reason::kInvalidArgument ||
                  ReasonOf(quorum.status()) == Reason::kNotSupported,
              "another reason");
  }
}

}  // namespace
}  // namespace latchkey

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  latchkey::FuzzInput input(data, size);
  if (input.Below(16) == 15) {
    latchkey::Quorum(input);
  } else {
    latchkey::Scenario(input).Go();
  }
  return 0;
}

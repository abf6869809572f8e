#include "latchkey/tests/support/fault_injecting_protocol.h"

#include <algorithm>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "latchkey/core/lock_error.h"

namespace latchkey {
namespace {

using Task = absl::AnyInvocable<void()>;

// A call that waits for its answer; whoever comes first with one takes `done`.
template <typename Reply>
using Done = absl::AnyInvocable<void(absl::StatusOr<Reply>)>;

std::string Outcome(const absl::StatusOr<ObtainReply>& reply) {
  if (!reply.ok()) return std::string(reply.status().message());
  switch (reply->outcome) {
    case ObtainOutcome::kObtained:
      return absl::StrCat("obtained, token ", reply->token);
    case ObtainOutcome::kReentered:
      return absl::StrCat("re-entered, token ", reply->token);
    case ObtainOutcome::kReserved:
      return "reserved";
    case ObtainOutcome::kDenied:
      return "denied";
  }
  return "?";
}

std::string Outcome(const absl::StatusOr<MemberReply>& reply) {
  if (!reply.ok()) return std::string(reply.status().message());
  return Outcome(absl::StatusOr<ObtainReply>(reply->reply));
}

std::string Outcome(const absl::StatusOr<ReleaseOutcome>& reply) {
  if (!reply.ok()) return std::string(reply.status().message());
  return *reply == ReleaseOutcome::kReleased    ? "released"
         : *reply == ReleaseOutcome::kWithdrawn ? "withdrawn"
                                                : "not held";
}

std::string Outcome(const absl::StatusOr<ExtendReply>& reply) {
  if (!reply.ok()) return std::string(reply.status().message());
  return reply->outcome == ExtendOutcome::kExtended   ? "extended"
         : reply->outcome == ExtendOutcome::kReserved ? "refused, since somebody waits"
                                                      : "not held";
}

std::string Outcome(const absl::StatusOr<ConfirmReply>& reply) {
  if (!reply.ok()) return std::string(reply.status().message());
  return reply->outcome == ConfirmOutcome::kConfirmed ? "confirmed"
         : reply->outcome == ConfirmOutcome::kRaise   ? "raise"
                                                      : "not held";
}

std::string_view EventName(WatchEventKind kind) {
  switch (kind) {
    case WatchEventKind::kYieldRequested:
      return "yield requested";
    case WatchEventKind::kYieldWithdrawn:
      return "yield withdrawn";
    case WatchEventKind::kHoldEnded:
      return "hold ended";
    case WatchEventKind::kDisplaced:
      return "displaced";
  }
  return "?";
}

}  // namespace

// Messages on their way keep it alive.
class FaultInjectingProtocol::Link : public std::enable_shared_from_this<Link>, public Clock {
 public:
  Link(std::shared_ptr<LockingProtocol> wrapped, FaultInjectingOptions options)
      : wrapped_(std::move(wrapped)),
        options_(std::move(options)),
        clock_(options_.clock != nullptr ? *options_.clock : RealClock()),
        start_(clock_.Now()),
        faults_(options_.faults),
        random_(options_.seed) {}

  // ---- The client's clock ----

  absl::Time Now() override { return ToClient(clock_.Now()); }

  TimerId RunAt(absl::Time when, Task callback) override {
    if (when == absl::InfiniteFuture()) return 0;
    TimerId id;
    {
      absl::MutexLock lock(&mu_);
      id = ++last_timer_;
      if (crashed_) return id;
      timers_.emplace(id, Timer{.callback = std::move(callback)});
    }
    const TimerId at_clock =
        clock_.RunAt(ToNetwork(when), [link = shared_from_this(), id] { link->OnTimer(id); });
    absl::MutexLock lock(&mu_);
    const auto timer = timers_.find(id);
    if (timer != timers_.end()) timer->second.at_clock = at_clock;
    return id;
  }

  bool Cancel(TimerId id) override {
    Task dropped;
    TimerId at_clock;
    {
      absl::MutexLock lock(&mu_);
      const auto timer = timers_.find(id);
      if (timer == timers_.end()) return false;
      dropped = std::move(timer->second.callback);
      at_clock = timer->second.at_clock;
      timers_.erase(timer);
    }
    clock_.Cancel(at_clock);
    return true;
  }

  // ---- The client's life ----

  void SetFaults(const Faults& faults) {
    absl::MutexLock lock(&mu_);
    faults_ = faults;
  }

  void Pause() {
    Trace("the client is paused");
    absl::MutexLock lock(&mu_);
    paused_ = true;
  }

  void Resume() {
    Trace("the client goes on");
    std::vector<Task> backlog;
    {
      absl::MutexLock lock(&mu_);
      paused_ = false;
      backlog.swap(backlog_);
    }
    for (Task& task : backlog) Post(clock_.Now(), std::move(task));
  }

  void Crash() {
    std::vector<Task> open;
    std::vector<std::shared_ptr<Watching>> watching;
    std::map<TimerId, Timer> timers;
    std::vector<Task> backlog;
    {
      absl::MutexLock lock(&mu_);
      if (crashed_) return;
      crashed_ = true;
      paused_ = false;
      for (auto& [id, give_up] : open_) open.push_back(std::move(give_up));
      open_.clear();
      timers.swap(timers_);
      backlog.swap(backlog_);
      for (auto& [id, watch] : watches_) watching.push_back(watch);
      watches_.clear();
    }
    Trace("the client crashes");
    for (auto& [id, timer] : timers) clock_.Cancel(timer.at_clock);
    for (const auto& watch : watching) {
      clock_.RunAt(clock_.Now() + options_.disconnect_after, [watch] { watch->End(); });
    }
    // What these free may call the link again.
    Post(clock_.Now(), [open = std::move(open)]() mutable {
      for (Task& give_up : open) give_up();
    });
  }

  void CrashAfter(int64_t steps) {
    {
      absl::MutexLock lock(&mu_);
      crash_at_ = steps_ + steps;
      if (steps > 0) return;
    }
    Crash();
  }

  bool crashed() const {
    absl::MutexLock lock(&mu_);
    return crashed_;
  }

  int64_t steps() const {
    absl::MutexLock lock(&mu_);
    return steps_;
  }

  // The client lets go of the link.
  void Close() {
    std::map<uint64_t, Task> open;
    {
      absl::MutexLock lock(&mu_);
      open.swap(open_);
    }
    for (auto& [id, give_up] : open) give_up();
  }

  // ---- Calls ----

  template <typename Reply>
  void CallObtain(const ObtainRequest& request,
                  void (*obtain)(LockingProtocol&, const ObtainRequest&, Done<Reply>),
                  Done<Reply> done) {
    Call<Reply>(
        absl::StrCat("obtain ", ResourceForMessage(request.resource.bytes()), " with priority ",
                     request.priority),
        [obtain, request, resource = std::string(request.resource.bytes()),
         owner = std::string(request.owner)](LockingProtocol& backend, Done<Reply> answer) {
          ObtainRequest copy = request;
          copy.resource = request.resource.WithBytes(resource);
          copy.owner = owner;
          obtain(backend, copy, std::move(answer));
        },
        std::move(done));
  }

  // `execute` makes the call on the wrapped backend; it may run twice.
  template <typename Reply>
  void Call(std::string what, std::function<void(LockingProtocol&, Done<Reply>)> execute,
            Done<Reply> done) {
    auto pending = std::make_shared<Done<Reply>>(std::move(done));
    if (CountStep(what)) {
      Post(clock_.Now(), [pending] {
        std::exchange(*pending, nullptr)(BackendUnavailableError("the client has crashed"));
      });
      return;
    }
    uint64_t id;
    {
      absl::MutexLock lock(&mu_);
      id = ++last_call_;
      open_.emplace(id, [pending] {
        std::exchange(*pending, nullptr)(BackendUnknownError("nobody answers"));
      });
      if (paused_) {
        backlog_.push_back([link = shared_from_this(), id, what = std::move(what),
                            execute = std::move(execute), pending]() mutable {
          link->Send<Reply>(id, std::move(what), std::move(execute), std::move(pending));
        });
        return;
      }
    }
    Send<Reply>(id, std::move(what), std::move(execute), std::move(pending));
  }

  Subscription Watch(const WatchRequest& request, WatchCallback on_event) {
    const std::string what = absl::StrCat("watch ", Name(request.resource));
    if (CountStep(what)) return Subscription();
    auto watch = std::make_shared<Watching>();
    watch->on_event = std::move(on_event);
    uint64_t id;
    bool lost;
    absl::Time arrival;
    {
      absl::MutexLock lock(&mu_);
      id = ++last_call_;
      watches_.emplace(id, watch);
      lost = Happens(faults_.drop_call);
      arrival = ArrivalOfCall();
    }
    if (lost) {
      Trace(absl::StrCat(what, " is lost"));
    } else {
      clock_.RunAt(arrival, [link = shared_from_this(), watch, request = request,
                             resource = std::string(request.resource.bytes()),
                             owner = std::string(request.owner)]() mutable {
        request.resource = request.resource.WithBytes(resource);
        request.owner = owner;
        {
          absl::MutexLock lock(&watch->mu);
          if (watch->ended) return;
        }
        Subscription subscription = link->wrapped_->Watch(
            // Weak, since the subscription, which `watch` owns, keeps the backend alive.
            request,
            [weak_link = std::weak_ptr<Link>(link), weak_watch = std::weak_ptr<Watching>(watch),
             resource](const WatchEvent& event) {
              const auto link = weak_link.lock();
              const auto watch = weak_watch.lock();
              if (link != nullptr && watch != nullptr) link->OnEvent(watch, resource, event);
            });
        absl::MutexLock lock(&watch->mu);
        // Otherwise it goes with this scope, without the mutex.
        if (!watch->ended) std::swap(watch->subscription, subscription);
      });
    }
    return Subscription([link = shared_from_this(), id, watch] { link->Unwatch(id, watch); });
  }

 private:
  struct Timer {
    Task callback;
    TimerId at_clock = 0;
  };

  // One Watch, on both sides of the network.
  struct Watching {
    absl::Mutex mu;
    // The client's side. Kept until the last event that is on its way is gone.
    WatchCallback on_event;
    bool muted ABSL_GUARDED_BY(mu) = false;
    // The backend's side.
    Subscription subscription ABSL_GUARDED_BY(mu);
    bool ended ABSL_GUARDED_BY(mu) = false;

    void End() {
      Subscription last;
      absl::MutexLock lock(&mu);
      ended = true;
      std::swap(last, subscription);
    }
  };

  absl::Time ToClient(absl::Time network) const {
    if (options_.client_clock_rate == 1) return network;
    return start_ + (network - start_) * options_.client_clock_rate;
  }
  absl::Time ToNetwork(absl::Time client) const {
    if (options_.client_clock_rate == 1) return client;
    // Rounded up: a timer must not find that its time has not come.
    return start_ + (client - start_) / options_.client_clock_rate + absl::Nanoseconds(1);
  }

  static std::string Name(const ResourceName& resource) {
    return ResourceForMessage(resource.bytes());
  }

  void Trace(std::string_view words) const {
    if (options_.trace != nullptr) options_.trace(words);
  }

  // SplitMix64 (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", 2014).
  double Random() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    uint64_t z = random_ += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    z ^= z >> 31;
    return static_cast<double>(z >> 11) * 0x1.0p-53;
  }
  bool Happens(double probability) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return Random() < probability;
  }
  absl::Duration Delay() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return faults_.min_delay + (faults_.max_delay - faults_.min_delay) * Random();
  }
  absl::Time ArrivalOfCall() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    absl::Time arrival = clock_.Now() + Delay();
    if (options_.in_order) arrival = last_call_arrival_ = std::max(arrival, last_call_arrival_);
    return arrival;
  }
  absl::Time ArrivalAtClient() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    absl::Time arrival = clock_.Now() + Delay();
    if (options_.in_order) arrival = last_arrival_ = std::max(arrival, last_arrival_);
    return arrival;
  }

  // True: the client has crashed, perhaps just now.
  bool CountStep(std::string_view what) {
    bool crash = false;
    {
      absl::MutexLock lock(&mu_);
      if (crashed_) return true;
      if (crash_at_ && steps_ >= *crash_at_) {
        crash = true;
      } else {
        ++steps_;
      }
    }
    if (crash) {
      Trace(absl::StrCat("before this step: ", what));
      Crash();
    }
    return crash;
  }

  // Runs on the client once it is `when` there and it is not paused.
  void Post(absl::Time when, Task task) {
    clock_.RunAt(when, [link = shared_from_this(), task = std::move(task)]() mutable {
      {
        absl::MutexLock lock(&link->mu_);
        if (link->paused_) {
          link->backlog_.push_back(std::move(task));
          return;
        }
      }
      task();
    });
  }

  void OnTimer(TimerId id) {
    Task callback;
    {
      absl::MutexLock lock(&mu_);
      const auto timer = timers_.find(id);
      if (timer == timers_.end()) return;
      if (paused_) {
        // It stays cancellable until the client goes on.
        backlog_.push_back([link = shared_from_this(), id] { link->OnTimer(id); });
        return;
      }
      callback = std::move(timer->second.callback);
      timers_.erase(timer);
    }
    callback();
  }

  template <typename Reply>
  void Send(uint64_t id, std::string what,
            std::function<void(LockingProtocol&, Done<Reply>)> execute,
            std::shared_ptr<Done<Reply>> pending) {
    enum class Fate { kUnavailable, kCallLost, kReplyLost, kAnswered } fate;
    absl::Time arrival;
    absl::Time back;
    std::optional<absl::Time> again;
    {
      absl::MutexLock lock(&mu_);
      fate = Happens(faults_.unavailable)  ? Fate::kUnavailable
             : Happens(faults_.drop_call)  ? Fate::kCallLost
             : Happens(faults_.drop_reply) ? Fate::kReplyLost
                                           : Fate::kAnswered;
      if (fate != Fate::kCallLost) arrival = ArrivalOfCall();
      if (fate == Fate::kUnavailable) back = std::max(arrival, ArrivalAtClient());
      if ((fate == Fate::kReplyLost || fate == Fate::kAnswered) &&
          Happens(faults_.duplicate_call)) {
        again = options_.in_order ? arrival : arrival + Delay();
      }
    }
    switch (fate) {
      case Fate::kUnavailable:
        Trace(absl::StrCat(what, " is refused"));
        Post(back, [link = shared_from_this(), id, pending] {
          link->Answer<Reply>(id, pending, BackendUnavailableError("refused by the link"));
        });
        return;
      case Fate::kCallLost:
        Trace(absl::StrCat(what, " is lost"));
        break;
      case Fate::kReplyLost:
      case Fate::kAnswered:
        Trace(absl::StrCat(what, " is sent"));
        clock_.RunAt(arrival, [link = shared_from_this(), id, pending, what, execute,
                               lost = fate == Fate::kReplyLost] {
          execute(*link->wrapped_,
                  [link, id, pending, what, lost](absl::StatusOr<Reply> reply) mutable {
                    link->Trace(absl::StrCat(what, ": ", Outcome(reply),
                                             lost ? "; the answer is lost" : ""));
                    if (!lost) link->Return<Reply>(id, pending, std::move(reply));
                  });
        });
        break;
    }
    if (again) {
      clock_.RunAt(*again, [link = shared_from_this(), what, execute = std::move(execute)] {
        execute(*link->wrapped_, [link, what](absl::StatusOr<Reply> reply) {
          link->Trace(absl::StrCat(what, ", repeated: ", Outcome(reply)));
        });
      });
    }
    Post(clock_.Now() + options_.answer_timeout, [link = shared_from_this(), id, pending] {
      link->Answer<Reply>(id, pending, BackendUnknownError("no answer in time"));
    });
  }

  // The answer leaves the backend.
  template <typename Reply>
  void Return(uint64_t id, std::shared_ptr<Done<Reply>> pending, absl::StatusOr<Reply> reply) {
    absl::Time back;
    {
      absl::MutexLock lock(&mu_);
      back = ArrivalAtClient();
    }
    Post(back, [link = shared_from_this(), id, pending = std::move(pending),
                reply = std::move(reply)]() mutable {
      link->Answer<Reply>(id, pending, std::move(reply));
    });
  }

  // The answer is there. Once only.
  template <typename Reply>
  void Answer(uint64_t id, const std::shared_ptr<Done<Reply>>& pending,
              absl::StatusOr<Reply> reply) {
    {
      absl::MutexLock lock(&mu_);
      if (open_.count(id) == 0) return;
    }
    if (CountStep("an answer")) return;
    {
      absl::MutexLock lock(&mu_);
      if (open_.erase(id) == 0) return;
    }
    std::exchange(*pending, nullptr)(std::move(reply));
  }

  void OnEvent(const std::shared_ptr<Watching>& watch, const std::string& resource,
               const WatchEvent& event) {
    int copies = 1;
    absl::Time arrival[2];
    {
      absl::MutexLock lock(&mu_);
      if (crashed_) return;
      if (Happens(faults_.drop_event)) {
        copies = 0;
      } else if (Happens(faults_.duplicate_event)) {
        copies = 2;
      }
      for (int i = 0; i < copies; ++i) arrival[i] = ArrivalAtClient();
    }
    if (options_.trace != nullptr) {
      Trace(absl::StrCat("event ", EventName(event.kind), " for ", ResourceForMessage(resource),
                         copies == 0   ? " is lost"
                         : copies == 2 ? " is sent twice"
                                       : " is sent"));
    }
    for (int i = 0; i < copies; ++i) {
      Post(arrival[i], [link = shared_from_this(), watch, event] {
        {
          absl::MutexLock lock(&watch->mu);
          if (watch->muted) return;
        }
        if (!link->CountStep("an event")) watch->on_event(event);
      });
    }
  }

  void Unwatch(uint64_t id, const std::shared_ptr<Watching>& watch) {
    {
      absl::MutexLock lock(&watch->mu);
      watch->muted = true;
    }
    absl::Time arrival;
    {
      absl::MutexLock lock(&mu_);
      if (watches_.erase(id) == 0) return;  // The crash has seen to it.
      arrival = ArrivalOfCall();
    }
    clock_.RunAt(arrival, [watch] { watch->End(); });
  }

  const std::shared_ptr<LockingProtocol> wrapped_;
  const FaultInjectingOptions options_;
  Clock& clock_;
  const absl::Time start_;

  mutable absl::Mutex mu_;
  Faults faults_ ABSL_GUARDED_BY(mu_);
  uint64_t random_ ABSL_GUARDED_BY(mu_);
  bool paused_ ABSL_GUARDED_BY(mu_) = false;
  bool crashed_ ABSL_GUARDED_BY(mu_) = false;
  int64_t steps_ ABSL_GUARDED_BY(mu_) = 0;
  std::optional<int64_t> crash_at_ ABSL_GUARDED_BY(mu_);
  uint64_t last_call_ ABSL_GUARDED_BY(mu_) = 0;
  absl::Time last_call_arrival_ ABSL_GUARDED_BY(mu_) = absl::InfinitePast();
  absl::Time last_arrival_ ABSL_GUARDED_BY(mu_) = absl::InfinitePast();
  // Calls without an answer, and how to end them without one.
  std::map<uint64_t, Task> open_ ABSL_GUARDED_BY(mu_);
  std::map<uint64_t, std::shared_ptr<Watching>> watches_ ABSL_GUARDED_BY(mu_);
  TimerId last_timer_ ABSL_GUARDED_BY(mu_) = 0;
  std::map<TimerId, Timer> timers_ ABSL_GUARDED_BY(mu_);
  // What waits for the client to go on, in this order.
  std::vector<Task> backlog_ ABSL_GUARDED_BY(mu_);
};

FaultInjectingProtocol::FaultInjectingProtocol(std::shared_ptr<LockingProtocol> wrapped,
                                               FaultInjectingOptions options)
    : capabilities_(wrapped->capabilities()), is_member_(wrapped->quorum_member() != nullptr) {
  capabilities_.name = absl::StrCat("faulty ", capabilities_.name);
  capabilities_.infinite_lease = false;
  capabilities_.answers_at_once = false;
  capabilities_.hint_identifies_hold = false;
  capabilities_.inspect = false;
  // A Watch that is overtaken by the Obtain after it subscribes too late for what that one saw.
  if (options.faults.drop_event > 0 || options.faults.drop_call > 0 ||
      (!options.in_order && options.faults.max_delay > options.faults.min_delay)) {
    capabilities_.reliable_events = false;
  }
  capabilities_.clock_drift = std::max(capabilities_.clock_drift, options.clock_drift);
  capabilities_.lease_margin = std::max(capabilities_.lease_margin, options.lease_margin);
  link_ = std::make_shared<Link>(std::move(wrapped), std::move(options));
}

FaultInjectingProtocol::~FaultInjectingProtocol() { link_->Close(); }

Clock& FaultInjectingProtocol::client_clock() { return *link_; }
void FaultInjectingProtocol::SetFaults(const Faults& faults) { link_->SetFaults(faults); }
void FaultInjectingProtocol::Pause() { link_->Pause(); }
void FaultInjectingProtocol::Resume() { link_->Resume(); }
void FaultInjectingProtocol::Crash() { link_->Crash(); }
void FaultInjectingProtocol::CrashAfter(int64_t steps) { link_->CrashAfter(steps); }
bool FaultInjectingProtocol::crashed() const { return link_->crashed(); }
int64_t FaultInjectingProtocol::steps() const { return link_->steps(); }

void FaultInjectingProtocol::Obtain(const ObtainRequest& request, ObtainCallback done) {
  if (absl::Status bad = CheckRequest(request, capabilities_); !bad.ok()) {
    done(std::move(bad));
    return;
  }
  link_->CallObtain<ObtainReply>(
      request,
      [](LockingProtocol& backend, const ObtainRequest& copy, ObtainCallback answer) {
        backend.Obtain(copy, std::move(answer));
      },
      std::move(done));
}

void FaultInjectingProtocol::ObtainAsMember(const ObtainRequest& request, MemberCallback done) {
  if (absl::Status bad = CheckRequest(request, capabilities_); !bad.ok()) {
    done(std::move(bad));
    return;
  }
  link_->CallObtain<MemberReply>(
      request,
      [](LockingProtocol& backend, const ObtainRequest& copy, MemberCallback answer) {
        backend.quorum_member()->ObtainAsMember(copy, std::move(answer));
      },
      std::move(done));
}

void FaultInjectingProtocol::Release(const HoldRef& hold, ReleaseCallback done) {
  link_->Call<ReleaseOutcome>(
      absl::StrCat("release ", ResourceForMessage(hold.resource.bytes())),
      [hold, resource = std::string(hold.resource.bytes())](LockingProtocol& backend,
                                                            ReleaseCallback answer) {
        backend.Release({hold.resource.WithBytes(resource), hold.acquisition, hold.hint},
                        std::move(answer));
      },
      std::move(done));
}

void FaultInjectingProtocol::Extend(const HoldRef& hold, absl::Duration lease,
                                    ExtendCallback done) {
  if (absl::Status bad = CheckLease("lease", lease, capabilities_); !bad.ok()) {
    done(std::move(bad));
    return;
  }
  link_->Call<ExtendReply>(
      absl::StrCat("extend ", ResourceForMessage(hold.resource.bytes()), " by ",
                   absl::FormatDuration(lease)),
      [hold, lease, resource = std::string(hold.resource.bytes())](LockingProtocol& backend,
                                                                   ExtendCallback answer) {
        backend.Extend({hold.resource.WithBytes(resource), hold.acquisition, hold.hint}, lease,
                       std::move(answer));
      },
      std::move(done));
}

void FaultInjectingProtocol::Confirm(const HoldRef& hold, FencingToken token,
                                     ConfirmCallback done) {
  link_->Call<ConfirmReply>(
      absl::StrCat("confirm ", ResourceForMessage(hold.resource.bytes()), " with token ", token),
      [hold, token, resource = std::string(hold.resource.bytes())](LockingProtocol& backend,
                                                                   ConfirmCallback answer) {
        backend.quorum_member()->Confirm(
            {hold.resource.WithBytes(resource), hold.acquisition, hold.hint}, token,
            std::move(answer));
      },
      std::move(done));
}

Subscription FaultInjectingProtocol::Watch(const WatchRequest& request, WatchCallback on_event) {
  return link_->Watch(request, std::move(on_event));
}

}  // namespace latchkey

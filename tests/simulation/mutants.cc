#include "latchkey/tests/simulation/mutants.h"

#include <limits>
#include <map>
#include <optional>
#include <string>
#include <utility>

#include "absl/time/time.h"

namespace latchkey {
namespace {

class Mutant : public LockingProtocol {
 public:
  Mutant(Bug bug, std::shared_ptr<LockingProtocol> backend, Clock& clock)
      : state_(std::make_shared<State>(State{bug, std::move(backend), clock})) {}

  void Obtain(const ObtainRequest& request, ObtainCallback done) override {
    const std::string resource(request.resource.bytes());
    State& state = *state_;
    ObtainRequest changed = request;
    if (state.bug == Bug::kBargesPastReservation) {
      state.backend->Inspect(request.resource, [&](const ResourceState& seen) {
        // Before the highest priority any reservation gives way.
        if (!seen.held && seen.reserved) changed.priority = std::numeric_limits<Priority>::max();
      });
    }
    state.backend->Obtain(changed,
                          [state = state_, resource, id = request.acquisition,
                           done = std::move(done)](absl::StatusOr<ObtainReply> reply) mutable {
                            if (reply.ok() && reply->outcome == ObtainOutcome::kObtained)
                              state->holder[resource] = id;
                            done(std::move(reply));
                          });
  }

  void Release(const HoldRef& hold, ReleaseCallback done) override {
    const std::string resource(hold.resource.bytes());
    if (state_->bug != Bug::kReleasesWithoutCompare) {
      state_->backend->Release(hold, std::move(done));
      return;
    }
    HoldRef whoever = hold;
    whoever.hint = 0;
    whoever.acquisition = state_->holder[resource];
    state_->backend->Release(hold, [](absl::StatusOr<ReleaseOutcome>) {});
    if (whoever.acquisition.IsNone()) whoever = hold;
    state_->backend->Release(whoever, std::move(done));
  }

  void Extend(const HoldRef& hold, absl::Duration lease, ExtendCallback done) override {
    State& state = *state_;
    if (state.bug != Bug::kExtensionShortens) {
      state.backend->Extend(hold, lease, std::move(done));
      return;
    }
    std::optional<ExtendReply> answer;
    state.backend->Extend(hold, lease, [&](absl::StatusOr<ExtendReply> reply) {
      if (reply.ok()) answer = *reply;
    });
    if (answer && answer->outcome == ExtendOutcome::kExtended) {
      state.clock.Cancel(state.ends[hold.acquisition]);
      state.ends[hold.acquisition] = state.clock.RunAt(
          state.clock.Now() + lease,
          [state = state_, resource = std::string(hold.resource.bytes()), id = hold.acquisition] {
            state->backend->Release({ResourceName(resource), id, 0},
                                    [](absl::StatusOr<ReleaseOutcome>) {});
          });
      answer->remaining = lease;
    }
    done(answer ? *answer : ExtendReply());
  }

  void Confirm(const HoldRef& hold, FencingToken token, ConfirmCallback done) override {
    state_->backend->Confirm(hold, token, std::move(done));
  }

  Subscription Watch(const WatchRequest& request, WatchCallback on_event) override {
    const std::string resource(request.resource.bytes());
    return state_->backend->Watch(
        request, [state = state_, resource, id = request.acquisition, role = request.role,
                  on_event = std::move(on_event)](const WatchEvent& event) mutable {
          if (state->bug == Bug::kAcknowledgesBeforeYielding &&
              event.kind == WatchEventKind::kYieldRequested) {
            state->backend->Release({ResourceName(resource), id, 0},
                                    [](absl::StatusOr<ReleaseOutcome>) {});
          }
          if (state->bug == Bug::kLosesWakeUps && event.kind == WatchEventKind::kHoldEnded &&
              role == WatchRole::kWaiter && ++state->woken % 3 == 0) {
            return;
          }
          on_event(event);
        });
  }

  const BackendCapabilities& capabilities() const override {
    return state_->backend->capabilities();
  }

  void Inspect(std::optional<ResourceName> resource,
               absl::FunctionRef<void(const ResourceState&)> visitor) const override {
    state_->backend->Inspect(resource, visitor);
  }

 private:
  struct State {
    const Bug bug;
    const std::shared_ptr<LockingProtocol> backend;
    Clock& clock;
    std::map<std::string, AcquisitionId> holder = {};
    std::map<AcquisitionId, Clock::TimerId> ends = {};
    int woken = 0;
  };

  const std::shared_ptr<State> state_;
};

}  // namespace

std::string_view BugName(Bug bug) {
  switch (bug) {
    case Bug::kNone:
      return "none";
    case Bug::kBargesPastReservation:
      return "barging past a reservation";
    case Bug::kAcknowledgesBeforeYielding:
      return "acknowledging before yielding";
    case Bug::kReleasesWithoutCompare:
      return "release without compare";
    case Bug::kExtensionShortens:
      return "an extension that shortens";
    case Bug::kLosesWakeUps:
      return "a lost wake-up";
  }
  return "?";
}

std::shared_ptr<LockingProtocol> WithBug(Bug bug, std::shared_ptr<LockingProtocol> backend,
                                         Clock& clock) {
  if (bug == Bug::kNone) return backend;
  return std::make_shared<Mutant>(bug, std::move(backend), clock);
}

}  // namespace latchkey

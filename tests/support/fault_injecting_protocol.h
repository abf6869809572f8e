// FaultInjectingProtocol stands between a client and a backend and does, from a seed, what networks
// and machines do: it delays, drops, repeats and reorders calls, answers and events, says that the
// backend is unavailable (nothing was executed) or that the outcome is unknown (executed or not),
// pauses the client, and crashes it between any two steps.
//
// For users who want to know whether their own code stands that, and for the simulation of the
// library itself. One instance is one client's link; several clients share what it wraps:
//
//   SimulatedClock clock;
//   auto server = NewMemoryBackend({.clock = &clock});
//   auto link = std::make_shared<FaultInjectingProtocol>(
//       server, FaultInjectingOptions{.seed = seed,
//                                     .clock = &clock,
//                                     .faults = {.max_delay = absl::Milliseconds(20),
//                                                .drop_reply = 0.1}});
//   auto locks = LockManager::Create(link, {.clock = &link->client_clock(), .random_seed = seed});
//   ... AcquireAsync, then clock.AdvanceBy(...) ...
//
// On simulated time the same seed and the same calls bring the same faults.
// tests/support/fault_injecting_protocol_test.cc shows how code under locks is tested with it.
//
// What it says of itself: as the wrapped backend, but answers never come at once, events are
// reliable only if no message can be lost or overtaken by another, the hint alone identifies
// nothing, nothing can be inspected, and leases are finite: a crashed client, or an Obtain that
// arrives late, would hold for ever. It may be a member of a quorum if the wrapped one may.
//
// Thread safety: all methods may be called from any thread.
#ifndef LATCHKEY_TESTS_SUPPORT_FAULT_INJECTING_PROTOCOL_H_
#define LATCHKEY_TESTS_SUPPORT_FAULT_INJECTING_PROTOCOL_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string_view>

#include "absl/time/time.h"
#include "latchkey/core/clock.h"
#include "latchkey/core/protocol/locking_protocol.h"
#include "latchkey/core/protocol/quorum_member.h"

namespace latchkey {

// How often what goes wrong. Probabilities are in [0, 1], each drawn for each message.
struct Faults {
  // Every message (a call, its answer, an event) takes a time drawn evenly from these two.
  absl::Duration min_delay = absl::ZeroDuration();
  absl::Duration max_delay = absl::ZeroDuration();

  // The call is refused: kUnavailable, not executed.
  double unavailable = 0;
  // The call is lost: not executed; kUnknown once `answer_timeout` is over. A lost Watch hears
  // nothing.
  double drop_call = 0;
  // The answer is lost: executed; kUnknown once `answer_timeout` is over.
  double drop_reply = 0;
  // The call is executed twice, the second time as late as another message may be.
  double duplicate_call = 0;

  double drop_event = 0;
  double duplicate_event = 0;
};

struct FaultInjectingOptions {
  uint64_t seed = 1;

  // The time of the network and of the backend; null: RealClock(). Must outlive the link and what
  // uses it.
  Clock* clock = nullptr;

  Faults faults = {};

  // Calls arrive in the order in which they were made, and so do answers and events: as on one
  // connection. Otherwise different delays reorder them. A quorum needs it of its servers.
  bool in_order = false;

  // How long the client waits for an answer before it says kUnknown; also if it is only late.
  absl::Duration answer_timeout = absl::Seconds(1);

  // How long the backend takes to notice that a crashed client watches no more.
  absl::Duration disconnect_after = absl::Seconds(1);

  // How fast the client's clock runs, 1 being right. For what the locks promise, it must be within
  // `clock_drift` of 1.
  double client_clock_rate = 1;

  // What the manager is told to expect (BackendCapabilities).
  double clock_drift = 0;
  absl::Duration lease_margin = absl::ZeroDuration();

  // Hears in words what the link does, in the order in which it happens; null: nobody. Called with
  // no mutex held.
  std::function<void(std::string_view)> trace = nullptr;
};

class FaultInjectingProtocol : public LockingProtocol, public QuorumMember {
 public:
  // `wrapped` must not be null; its ownership is shared.
  FaultInjectingProtocol(std::shared_ptr<LockingProtocol> wrapped, FaultInjectingOptions options);
  // Calls that were not answered are, with kUnknown. What is on its way still arrives.
  ~FaultInjectingProtocol() override;

  FaultInjectingProtocol(const FaultInjectingProtocol&) = delete;
  FaultInjectingProtocol& operator=(const FaultInjectingProtocol&) = delete;

  // The clock on the client's machine: it has the client's rate, and its timers do not run while
  // the client is paused, or after a crash. Lives as long as the link.
  Clock& client_clock();

  // From now on these faults, for messages not sent yet. Events that could not be lost before must
  // not be lost now: `capabilities` are constant.
  void SetFaults(const Faults& faults);

  // Stops the client: its timers and all that arrives for it wait, and so do the calls that it
  // makes all the same, until Resume. What it had sent is executed.
  void Pause();
  void Resume();

  // Ends the client: from now on nothing leaves it, its timers do not run and it hears no events.
  // Its open calls are answered with kUnknown and later ones with kUnavailable, for the sake of
  // whoever has to free memory. What it had sent is executed. The backend notices after
  // `disconnect_after`.
  void Crash();
  // Does so after this many more steps, a step being a call made, an answer or an event heard.
  void CrashAfter(int64_t steps);
  bool crashed() const;

  // How many steps there were (see CrashAfter).
  int64_t steps() const;

  // LockingProtocol:
  void Obtain(const ObtainRequest& request, ObtainCallback done) override;
  void Release(const HoldRef& hold, ReleaseCallback done) override;
  void Extend(const HoldRef& hold, absl::Duration lease, ExtendCallback done) override;
  Subscription Watch(const WatchRequest& request, WatchCallback on_event) override;
  const BackendCapabilities& capabilities() const override { return capabilities_; }
  QuorumMember* quorum_member() override { return is_member_ ? this : nullptr; }

  // QuorumMember, if `quorum_member()` says so:
  void ObtainAsMember(const ObtainRequest& request, MemberCallback done) override;
  void Confirm(const HoldRef& hold, FencingToken token, ConfirmCallback done) override;

 private:
  class Link;

  BackendCapabilities capabilities_;
  const bool is_member_;
  std::shared_ptr<Link> link_;
};

}  // namespace latchkey

#endif  // LATCHKEY_TESTS_SUPPORT_FAULT_INJECTING_PROTOCOL_H_

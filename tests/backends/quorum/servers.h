// Servers of a quorum for tests: one that may be away, or lose its data, and a gate in front of it
// that keeps calls back. Their resource is "r".
#ifndef LATCHKEY_TESTS_BACKENDS_QUORUM_SERVERS_H_
#define LATCHKEY_TESTS_BACKENDS_QUORUM_SERVERS_H_

#include <functional>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "latchkey/core/clock.h"
#include "latchkey/core/lock_error.h"
#include "latchkey/core/protocol/locking_protocol.h"
#include "latchkey/core/protocol/quorum_member.h"
#include "latchkey/memory_backend/memory_backend.h"

namespace latchkey {

inline constexpr absl::Duration kMaxLease = absl::Seconds(10);

// A server that may lose its data. Its tokens come from nothing else, and begin at 1 again. It
// follows the rule of recovery: nothing is granted before every lease from before the loss is over;
// and from then on it says that its fence is lost, until some quorum has written one.
class Server final : public LockingProtocol, public QuorumMember {
 public:
  explicit Server(Clock& clock) : clock_(clock), capabilities_(Empty()->capabilities()) {
    capabilities_.infinite_lease = false;
    capabilities_.max_lease = kMaxLease;
    capabilities_.default_lease = kMaxLease / 2;
    capabilities_.lease_margin = absl::Milliseconds(1);
    capabilities_.answers_at_once = false;
    capabilities_.reliable_events = false;
    capabilities_.hint_identifies_hold = false;
    inner_ = Empty();
  }

  void LoseData() {
    inner_ = Empty();
    recovered_at_ = clock_.Now() + kMaxLease;
    fence_lost_ = true;
  }

  void Obtain(const ObtainRequest& request, ObtainCallback done) override {
    if (absl::Status status = BeginObtain(request); !status.ok()) return done(std::move(status));
    if (fence_lost_) return done(BackendUnavailableError("it is recovering"));
    inner_->Obtain(request, [unheard = std::exchange(loses_answer, false),
                             done = std::move(done)](absl::StatusOr<ObtainReply> reply) mutable {
      if (unheard) return done(BackendUnknownError("the answer is lost"));
      done(std::move(reply));
    });
  }
  QuorumMember* quorum_member() override { return this; }
  void ObtainAsMember(const ObtainRequest& request, MemberCallback done) override {
    if (absl::Status status = BeginObtain(request); !status.ok()) return done(std::move(status));
    InnerMember().ObtainAsMember(
        request, [lost = fence_lost_, unheard = std::exchange(loses_answer, false),
                  done = std::move(done)](absl::StatusOr<MemberReply> reply) mutable {
          if (unheard) return done(BackendUnknownError("the answer is lost"));
          if (reply.ok() && lost) {
            reply->fence_lost = true;
            reply->fence = 0;
          }
          done(std::move(reply));
        });
  }
  void Release(const HoldRef& hold, ReleaseCallback done) override {
    if (down) return done(BackendUnavailableError("it is down"));
    inner_->Release(hold, std::move(done));
  }
  void Extend(const HoldRef& hold, absl::Duration lease, ExtendCallback done) override {
    if (down) return done(BackendUnavailableError("it is down"));
    inner_->Extend(hold, lease, std::move(done));
  }
  void Confirm(const HoldRef& hold, FencingToken token, ConfirmCallback done) override {
    if (down) return done(BackendUnavailableError("it is down"));
    InnerMember().Confirm(hold, token, [this, done = std::move(done)](auto reply) mutable {
      if (reply.ok() && reply->outcome == ConfirmOutcome::kConfirmed) fence_lost_ = false;
      done(std::move(reply));
    });
  }
  Subscription Watch(const WatchRequest& request, WatchCallback on_event) override {
    if (down) return Subscription();
    return inner_->Watch(request,
                         [this, on_event = std::move(on_event)](const WatchEvent& event) mutable {
                           if (!loses_events) on_event(event);
                         });
  }
  const BackendCapabilities& capabilities() const override { return capabilities_; }

  // Its clock has passed every token that was given before. Holds keep theirs.
  void PassAllTokens() { fence_lost_ = false; }

  bool recovering() const { return clock_.Now() < recovered_at_; }
  bool fence_lost() const { return fence_lost_; }

  // Gives tokens away, so that its fence is at `token`.
  void AdvanceTo(FencingToken token) {
    for (FencingToken given = 0; given < token;) {
      const AcquisitionId id = AcquisitionId::Next();
      inner_->Obtain({.resource = "r", .acquisition = id, .lease = kMaxLease},
                     [&](absl::StatusOr<ObtainReply> reply) { given = reply->token; });
      inner_->Release({.resource = "r", .acquisition = id}, [](absl::StatusOr<ReleaseOutcome>) {});
    }
  }

  // As where the record is not kept for as long as it is needed: nobody can tell.
  void Forget() { inner_ = Empty(); }

  bool Held() const {
    bool held = false;
    inner_->Inspect("r", [&held](const ResourceState& state) { held = state.held; });
    return held;
  }

  LockingProtocol& inner() { return *inner_; }

  bool down = false;
  bool loses_events = false;
  bool loses_answer = false;         // To the next Obtain.
  std::function<void()> on_obtain;   // Once, before the next one is served.
  std::vector<AcquisitionId> asked;  // By Obtain.

 private:
  absl::Status BeginObtain(const ObtainRequest& request) {
    if (on_obtain) std::exchange(on_obtain, nullptr)();
    asked.push_back(request.acquisition);
    if (down) return BackendUnavailableError("it is down");
    if (recovering()) return BackendUnavailableError("it is recovering");
    return absl::OkStatus();
  }

  QuorumMember& InnerMember() { return *inner_->quorum_member(); }

  // One shard, so that one counter makes all tokens.
  std::shared_ptr<LockingProtocol> Empty() const {
    return NewMemoryBackend({.clock = &clock_, .shards = 1});
  }

  Clock& clock_;
  BackendCapabilities capabilities_;
  std::shared_ptr<LockingProtocol> inner_;
  absl::Time recovered_at_ = absl::InfinitePast();
  bool fence_lost_ = false;
};

inline ObtainRequest Request(AcquisitionId id, Priority priority = 0,
                             absl::Duration lease = absl::Seconds(5)) {
  return {.resource = "r",
          .acquisition = id,
          .priority = priority,
          .lease = lease,
          .reserve_below = priority,
          .reservation_lease = absl::Seconds(1)};
}

// Keeps calls back until the test says so.
class Gate final : public LockingProtocol, public QuorumMember {
 public:
  explicit Gate(std::shared_ptr<LockingProtocol> inner) : inner_(std::move(inner)) {}

  void Obtain(const ObtainRequest& request, ObtainCallback done) override {
    // The views live as long as the attempt, which waits for the answer.
    Pass([this, request, done = std::move(done)]() mutable {
      inner_->Obtain(request, std::move(done));
    });
  }
  QuorumMember* quorum_member() override { return this; }
  void ObtainAsMember(const ObtainRequest& request, MemberCallback done) override {
    Pass([this, request, done = std::move(done)]() mutable {
      inner_->quorum_member()->ObtainAsMember(request, std::move(done));
    });
  }
  void Release(const HoldRef& hold, ReleaseCallback done) override {
    inner_->Release(hold, std::move(done));
  }
  void Extend(const HoldRef& hold, absl::Duration lease, ExtendCallback done) override {
    inner_->Extend(hold, lease, std::move(done));
  }
  void Confirm(const HoldRef& hold, FencingToken token, ConfirmCallback done) override {
    Pass([this, hold, token, done = std::move(done)]() mutable {
      inner_->quorum_member()->Confirm(hold, token, std::move(done));
    });
  }
  Subscription Watch(const WatchRequest& request, WatchCallback on_event) override {
    return inner_->Watch(request, std::move(on_event));
  }
  const BackendCapabilities& capabilities() const override { return inner_->capabilities(); }

  // After this many more calls.
  void CloseAfter(int calls) { calls_ = calls; }
  // Lets the call pass that has waited for longest.
  void PassOne() {
    ASSERT_FALSE(waiting_.empty());
    auto call = std::move(waiting_.front());
    waiting_.erase(waiting_.begin());
    call();
  }
  void Open() {
    calls_ = std::numeric_limits<int>::max();
    for (auto& call : std::exchange(waiting_, {})) call();
  }

 private:
  void Pass(absl::AnyInvocable<void()> call) {
    if (calls_-- > 0) return call();
    calls_ = 0;
    waiting_.push_back(std::move(call));
  }

  const std::shared_ptr<LockingProtocol> inner_;
  int calls_ = std::numeric_limits<int>::max();
  std::vector<absl::AnyInvocable<void()>> waiting_;
};

}  // namespace latchkey

#endif  // LATCHKEY_TESTS_BACKENDS_QUORUM_SERVERS_H_

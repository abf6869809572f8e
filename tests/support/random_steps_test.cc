// Shows that the comparison finds faults: a backend that does one small thing wrong is caught.
#include "latchkey/tests/support/random_steps.h"

#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "latchkey/core/protocol/locking_protocol.h"
#include "latchkey/core/protocol/quorum_member.h"
#include "latchkey/memory_backend/memory_backend.h"
#include "latchkey/tests/support/simulated_clock.h"

namespace latchkey {
namespace {

// A correct backend but for what a test makes it do.
class FaultyBackend : public LockingProtocol, public QuorumMember {
 public:
  explicit FaultyBackend(Clock& clock) : correct_(NewMemoryBackend({.clock = &clock})) {}

  std::function<void(ObtainRequest&)> on_obtain = [](ObtainRequest&) {};
  std::function<void(ObtainReply&)> on_obtained = [](ObtainReply&) {};
  std::function<void(MemberReply&)> on_answered_as_member = [](MemberReply&) {};
  std::function<void(ReleaseOutcome&)> on_released = [](ReleaseOutcome&) {};
  std::function<void(absl::Duration&)> on_extend = [](absl::Duration&) {};
  std::function<bool(const WatchEvent&)> passes = [](const WatchEvent&) { return true; };

  void Obtain(const ObtainRequest& request, ObtainCallback done) override {
    ObtainRequest changed = request;
    on_obtain(changed);
    correct_->Obtain(changed,
                     [this, done = std::move(done)](absl::StatusOr<ObtainReply> reply) mutable {
                       if (reply.ok()) on_obtained(*reply);
                       done(std::move(reply));
                     });
  }
  void Release(const HoldRef& hold, ReleaseCallback done) override {
    correct_->Release(hold,
                      [this, done = std::move(done)](absl::StatusOr<ReleaseOutcome> reply) mutable {
                        if (reply.ok()) on_released(*reply);
                        done(reply);
                      });
  }
  void Extend(const HoldRef& hold, absl::Duration lease, ExtendCallback done) override {
    on_extend(lease);
    correct_->Extend(hold, lease, std::move(done));
  }
  Subscription Watch(const WatchRequest& request, WatchCallback on_event) override {
    return correct_->Watch(request,
                           [this, on_event = std::move(on_event)](const WatchEvent& event) mutable {
                             if (passes(event)) on_event(event);
                           });
  }
  QuorumMember* quorum_member() override { return this; }
  void ObtainAsMember(const ObtainRequest& request, MemberCallback done) override {
    ObtainRequest changed = request;
    on_obtain(changed);
    correct_->quorum_member()->ObtainAsMember(
        changed, [this, done = std::move(done)](absl::StatusOr<MemberReply> reply) mutable {
          if (reply.ok()) {
            on_obtained(reply->reply);
            on_answered_as_member(*reply);
          }
          done(std::move(reply));
        });
  }
  void Confirm(const HoldRef& hold, FencingToken token, ConfirmCallback done) override {
    correct_->quorum_member()->Confirm(hold, token, std::move(done));
  }
  const BackendCapabilities& capabilities() const override { return correct_->capabilities(); }

 private:
  std::shared_ptr<LockingProtocol> correct_;
};

// The first difference within a hundred runs; "" if none.
std::string FirstDifference(const std::function<void(FaultyBackend&)>& break_it) {
  for (int i = 0; i < 100; ++i) {
    SimulatedClock clock;
    FaultyBackend backend(clock);
    break_it(backend);
    RandomStepsOptions options{.seed = SeedFromEnvironment() + i};
    options.advance = [&](absl::Duration duration) { clock.AdvanceBy(duration); };
    std::string difference = RunRandomSteps(backend, options);
    if (!difference.empty()) return difference;
  }
  return "";
}

TEST(RandomStepsTest, FindNothingInACorrectBackend) {
  EXPECT_EQ(FirstDifference([](FaultyBackend&) {}), "");
}

TEST(RandomStepsTest, TheSameSeedTakesTheSameSteps) {
  const auto run = [](uint64_t seed) {
    SimulatedClock clock;
    FaultyBackend backend(clock);
    int obtains = 0;
    absl::Duration total;
    backend.on_obtain = [&](ObtainRequest& request) {
      ++obtains;
      if (request.lease != absl::InfiniteDuration()) total += request.lease * obtains;
    };
    RandomStepsOptions options{.seed = seed};
    options.advance = [&](absl::Duration duration) { clock.AdvanceBy(duration); };
    EXPECT_EQ(RunRandomSteps(backend, options), "");
    return std::make_pair(obtains, total);
  };
  EXPECT_EQ(run(7), run(7));
  EXPECT_NE(run(7), run(8));
}

TEST(RandomStepsTest, FindALeaseThatIsTooLong) {
  EXPECT_NE(FirstDifference([](FaultyBackend& backend) {
              backend.on_obtain = [](ObtainRequest& r) { r.lease += absl::Nanoseconds(1); };
            }),
            "");
}

TEST(RandomStepsTest, FindAReservationThatIsTooShort) {
  EXPECT_NE(FirstDifference([](FaultyBackend& backend) {
              backend.on_obtain = [](ObtainRequest& r) { r.reservation_lease /= 2; };
            }),
            "");
}

TEST(RandomStepsTest, FindAForgottenBound) {
  EXPECT_NE(FirstDifference([](FaultyBackend& backend) {
              backend.on_obtain = [](ObtainRequest& r) {
                if (r.reserve_below) r.reserve_below = 1000;
              };
            }),
            "");
}

TEST(RandomStepsTest, FindAForgottenGrace) {
  EXPECT_NE(FirstDifference([](FaultyBackend& backend) {
              backend.on_obtain = [](ObtainRequest& r) { r.grace = std::nullopt; };
            }),
            "");
}

TEST(RandomStepsTest, FindAHoldThatShouldNotBePreemptible) {
  EXPECT_NE(FirstDifference([](FaultyBackend& backend) {
              backend.on_obtain = [](ObtainRequest& r) { r.preemptible = true; };
            }),
            "");
}

TEST(RandomStepsTest, FindAWrongOutcome) {
  EXPECT_NE(FirstDifference([](FaultyBackend& backend) {
              backend.on_released = [](ReleaseOutcome& outcome) {
                if (outcome == ReleaseOutcome::kWithdrawn) outcome = ReleaseOutcome::kReleased;
              };
            }),
            "");
}

TEST(RandomStepsTest, FindATokenThatDoesNotGrow) {
  EXPECT_NE(FirstDifference([](FaultyBackend& backend) {
              backend.on_obtained = [](ObtainReply& reply) {
                if (reply.token > 3) reply.token = 3;
              };
            }),
            "");
}

TEST(RandomStepsTest, FindAFenceThatIsTooLow) {
  EXPECT_NE(FirstDifference([](FaultyBackend& backend) {
              backend.on_answered_as_member = [](MemberReply& reply) {
                if (reply.fence > 1) --reply.fence;
              };
            }),
            "");
}

TEST(RandomStepsTest, FindAFenceThatIsSaidToBeLost) {
  EXPECT_NE(FirstDifference([](FaultyBackend& backend) {
              backend.on_answered_as_member = [](MemberReply& reply) { reply.fence_lost = true; };
            }),
            "");
}

TEST(RandomStepsTest, FindAnExtensionThatIsTooShort) {
  EXPECT_NE(FirstDifference([](FaultyBackend& backend) {
              backend.on_extend = [](absl::Duration& lease) { lease /= 2; };
            }),
            "");
}

TEST(RandomStepsTest, FindEachKindOfEventThatIsLost) {
  for (const WatchEventKind kind :
       {WatchEventKind::kYieldRequested, WatchEventKind::kYieldWithdrawn,
        WatchEventKind::kHoldEnded, WatchEventKind::kDisplaced}) {
    EXPECT_NE(FirstDifference([kind](FaultyBackend& backend) {
                backend.passes = [kind](const WatchEvent& event) { return event.kind != kind; };
              }),
              "")
        << static_cast<int>(kind);
  }
}

}  // namespace
}  // namespace latchkey

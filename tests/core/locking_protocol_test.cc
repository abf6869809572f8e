// What core/locking_protocol itself does: checks of requests, subscriptions, the optional steps.
#include "latchkey/core/protocol/locking_protocol.h"

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "latchkey/core/lock_error.h"
#include "latchkey/core/protocol/quorum_member.h"

namespace latchkey {
namespace {

using ::testing::HasSubstr;

ObtainRequest ValidRequest() {
  return {.resource = "r", .acquisition = {1, 2}, .lease = absl::Seconds(1)};
}

TEST(NamesTest, OutcomesAndEventsHaveNamesThatStreamsPrint) {
  const auto expect = [](auto value, std::string_view name, std::string_view expected) {
    EXPECT_EQ(name, expected);
    EXPECT_EQ(testing::PrintToString(value), expected);
  };
  const auto obtain = [&](ObtainOutcome outcome, std::string_view expected) {
    expect(outcome, ObtainOutcomeName(outcome), expected);
  };
  obtain(ObtainOutcome::kObtained, "Obtained");
  obtain(ObtainOutcome::kReentered, "Reentered");
  obtain(ObtainOutcome::kReserved, "Reserved");
  obtain(ObtainOutcome::kDenied, "Denied");
  const auto release = [&](ReleaseOutcome outcome, std::string_view expected) {
    expect(outcome, ReleaseOutcomeName(outcome), expected);
  };
  release(ReleaseOutcome::kReleased, "Released");
  release(ReleaseOutcome::kWithdrawn, "Withdrawn");
  release(ReleaseOutcome::kNotHeld, "NotHeld");
  const auto extend = [&](ExtendOutcome outcome, std::string_view expected) {
    expect(outcome, ExtendOutcomeName(outcome), expected);
  };
  extend(ExtendOutcome::kExtended, "Extended");
  extend(ExtendOutcome::kReserved, "Reserved");
  extend(ExtendOutcome::kNotHeld, "NotHeld");
  const auto confirm = [&](ConfirmOutcome outcome, std::string_view expected) {
    expect(outcome, ConfirmOutcomeName(outcome), expected);
  };
  confirm(ConfirmOutcome::kConfirmed, "Confirmed");
  confirm(ConfirmOutcome::kRaise, "Raise");
  confirm(ConfirmOutcome::kNotHeld, "NotHeld");
  const auto event = [&](WatchEventKind kind, std::string_view expected) {
    expect(kind, WatchEventKindName(kind), expected);
  };
  event(WatchEventKind::kYieldRequested, "YieldRequested");
  event(WatchEventKind::kYieldWithdrawn, "YieldWithdrawn");
  event(WatchEventKind::kHoldEnded, "HoldEnded");
  event(WatchEventKind::kDisplaced, "Displaced");
  const auto end = [&](HoldEnd why, std::string_view expected) {
    expect(why, HoldEndName(why), expected);
  };
  end(HoldEnd::kReleased, "Released");
  end(HoldEnd::kExpired, "Expired");
  end(HoldEnd::kStolen, "Stolen");
  expect(WatchRole::kWaiter, WatchRoleName(WatchRole::kWaiter), "Waiter");
  expect(WatchRole::kHolder, WatchRoleName(WatchRole::kHolder), "Holder");
}

TEST(CheckRequestTest, AcceptsWhatIsValid) {
  EXPECT_EQ(CheckRequest(ValidRequest(), {}), absl::OkStatus());
  EXPECT_EQ(CheckRequest(HoldRef{.resource = "r", .acquisition = {1, 2}}, {}), absl::OkStatus());
  EXPECT_EQ(CheckRequest(WatchRequest{.resource = "r", .acquisition = {1, 2}}, {}),
            absl::OkStatus());
}

TEST(CheckRequestTest, RefusesAnEmptyResourceOrNoAcquisition) {
  ObtainRequest no_resource = ValidRequest();
  no_resource.resource = "";
  EXPECT_EQ(ReasonOf(CheckRequest(no_resource, {})), Reason::kInvalidArgument);
  EXPECT_THAT(CheckRequest(no_resource, {}).message(), HasSubstr("resource is empty"));
  ObtainRequest no_acquisition = ValidRequest();
  no_acquisition.acquisition = {};
  EXPECT_EQ(ReasonOf(CheckRequest(no_acquisition, {})), Reason::kInvalidArgument);
  EXPECT_EQ(ReasonOf(CheckRequest(HoldRef{.resource = "r"}, {})), Reason::kInvalidArgument);
  EXPECT_EQ(ReasonOf(CheckRequest(WatchRequest{.acquisition = {1, 2}}, {})),
            Reason::kInvalidArgument);
}

TEST(CheckRequestTest, AHintReplacesTheResourceOnlyWhereItIdentifiesTheHold) {
  const HoldRef hint_only = {.acquisition = {1, 2}, .hint = 7};
  EXPECT_FALSE(CheckRequest(hint_only, {}).ok());
  EXPECT_EQ(CheckRequest(hint_only, {.hint_identifies_hold = true}), absl::OkStatus());
  EXPECT_FALSE(CheckRequest(HoldRef{.acquisition = {1, 2}}, {.hint_identifies_hold = true}).ok());
}

TEST(CheckRequestTest, RefusesLeasesThatAreNotPositiveAndSaysWhich) {
  for (const absl::Duration bad :
       {absl::ZeroDuration(), -absl::Seconds(5), -absl::InfiniteDuration()}) {
    ObtainRequest request = ValidRequest();
    request.lease = bad;
    const absl::Status status = CheckRequest(request, {.infinite_lease = true});
    EXPECT_EQ(ReasonOf(status), Reason::kInvalidArgument);
    EXPECT_THAT(status.message(), HasSubstr("lease is " + absl::FormatDuration(bad)));
    EXPECT_EQ(ReasonOf(CheckLease("lease", bad, {})), Reason::kInvalidArgument);
  }
}

TEST(CheckRequestTest, RefusesLeasesThatTheBackendDoesNotOffer) {
  const BackendCapabilities capabilities = {.name = "mine", .max_lease = absl::Seconds(10)};
  EXPECT_EQ(CheckLease("lease", absl::Seconds(10), capabilities), absl::OkStatus());
  EXPECT_EQ(ReasonOf(CheckLease("lease", absl::Seconds(11), capabilities)), Reason::kNotSupported);
  const absl::Status infinite = CheckLease("lease", absl::InfiniteDuration(), capabilities);
  EXPECT_EQ(ReasonOf(infinite), Reason::kNotSupported);
  EXPECT_THAT(infinite.message(), HasSubstr("'mine' offers at most 10s"));
  EXPECT_EQ(CheckLease("lease", absl::InfiniteDuration(), {.infinite_lease = true}),
            absl::OkStatus());
}

TEST(CheckRequestTest, LooksAtTheReservationOnlyIfOneMayBeMade) {
  ObtainRequest request = ValidRequest();
  request.reservation_lease = -absl::Seconds(1);
  request.grace = -absl::Seconds(1);
  EXPECT_EQ(CheckRequest(request, {}), absl::OkStatus());
  request.reserve_below = 5;
  EXPECT_THAT(CheckRequest(request, {}).message(), HasSubstr("reservation_lease is -1s"));
  request.reservation_lease = absl::Seconds(1);
  EXPECT_THAT(CheckRequest(request, {}).message(), HasSubstr("grace is -1s"));
  request.grace = absl::ZeroDuration();
  EXPECT_EQ(CheckRequest(request, {}), absl::OkStatus());
  EXPECT_EQ(ReasonOf(CheckRequest(request, {.forced_handover = false})), Reason::kNotSupported);
}

TEST(SubscriptionTest, EndsOnceWhetherResetMovedOrDestroyed) {
  int ended = 0;
  {
    Subscription a([&] { ++ended; });
    EXPECT_TRUE(a.active());
    Subscription b = std::move(a);
    EXPECT_FALSE(a.active());  // NOLINT(bugprone-use-after-move): it says so.
    EXPECT_EQ(ended, 0);
    b.Reset();
    EXPECT_FALSE(b.active());
    b.Reset();
    EXPECT_EQ(ended, 1);
    b = Subscription([&] { ++ended; });
    b = Subscription();
    EXPECT_EQ(ended, 2) << "assigning ends what was there";
    b = Subscription([&] { ++ended; });
  }
  EXPECT_EQ(ended, 3);
}

TEST(SubscriptionTest, MayBeResetFromItsOwnEnd) {
  int ended = 0;
  std::optional<Subscription> subscription;
  subscription.emplace([&] {
    ++ended;
    subscription->Reset();
  });
  subscription->Reset();
  EXPECT_EQ(ended, 1);
}

class MinimalBackend : public LockingProtocol {
 public:
  void Obtain(const ObtainRequest&, ObtainCallback done) override { done(ObtainReply{}); }
  void Release(const HoldRef&, ReleaseCallback done) override { done(ReleaseOutcome::kNotHeld); }
  void Extend(const HoldRef&, absl::Duration, ExtendCallback done) override { done(ExtendReply{}); }
  Subscription Watch(const WatchRequest&, WatchCallback) override { return {}; }
  const BackendCapabilities& capabilities() const override { return capabilities_; }

 private:
  BackendCapabilities capabilities_ = {.name = "minimal"};
};

TEST(LockingProtocolTest, ABackendIsNoMemberOfAQuorumUnlessItSaysSo) {
  MinimalBackend backend;
  EXPECT_EQ(backend.quorum_member(), nullptr);
}

TEST(LockingProtocolTest, AResourceIsWhatTheCallerSaysUnlessABackendKnowsMore) {
  MinimalBackend backend;
  EXPECT_EQ(backend.ResourceOf({.resource = "r", .acquisition = {1, 2}}), "r");
}

TEST(LockingProtocolTest, InspectVisitsNothingUnlessABackendDoes) {
  MinimalBackend backend;
  backend.Inspect(std::nullopt, [](const ResourceState&) { FAIL(); });
}

}  // namespace
}  // namespace latchkey

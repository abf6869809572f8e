// When a hold asks for its lease, decided without a clock and without a backend. What it makes of
// that is in lock_manager_test and loss_reasons_test.

#include "latchkey/core/lock/lease_renewer.h"

#include <optional>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "latchkey/core/base/lock_error.h"
#include "latchkey/core/lock/hold.h"
#include "latchkey/core/protocol/locking_protocol.h"

namespace latchkey::internal {
namespace {

constexpr absl::Time kStart = absl::UnixEpoch();
constexpr absl::Duration kLease = absl::Seconds(10);

HoldTerms Renewed() {
  return {.lease = kLease, .auto_renew = true, .valid_until = kStart + kLease};
}

ExtendReply Extended() { return {.outcome = ExtendOutcome::kExtended, .remaining = kLease}; }
ExtendReply Refused() { return {.outcome = ExtendOutcome::kReserved, .remaining = kLease}; }

TEST(LeaseRenewerTest, ALeaseWithoutAnEndIsNotAskedFor) {
  EXPECT_FALSE(LeaseRenewer({.auto_renew = true}).asks());
  EXPECT_FALSE(LeaseRenewer({.lease = kLease, .valid_until = kStart + kLease}).asks());
  EXPECT_TRUE(LeaseRenewer(Renewed()).asks());
  EXPECT_TRUE(
      LeaseRenewer({.owner = "ann", .lease = kLease, .valid_until = kStart + kLease}).asks())
      << "another handle of ann's may extend it";
}

TEST(LeaseRenewerTest, AsksInTimeToBeDoneBeforeAThirdIsLeft) {
  const LeaseRenewer lease(Renewed());
  EXPECT_EQ(lease.NextAsk(kStart), kStart + absl::Seconds(6));
}

TEST(LeaseRenewerTest, NeverAsksAtOnce) {
  const LeaseRenewer lease(
      {.lease = absl::Nanoseconds(1), .auto_renew = true, .valid_until = kStart});
  EXPECT_EQ(lease.NextAsk(kStart), kStart + absl::Milliseconds(1));
}

TEST(LeaseRenewerTest, OneQuestionAtATime) {
  LeaseRenewer lease(Renewed());
  EXPECT_EQ(lease.Begin(kStart), kLease);
  EXPECT_TRUE(lease.is_asking());
  EXPECT_EQ(lease.Begin(kStart), std::nullopt);
  lease.Answered(Extended(), kStart);
  EXPECT_FALSE(lease.is_asking());
  EXPECT_EQ(lease.Begin(kStart), kLease);
}

TEST(LeaseRenewerTest, OneThatOnlyLooksExtendsByNothing) {
  LeaseRenewer lease({.owner = "ann", .lease = kLease, .valid_until = kStart + kLease});
  EXPECT_LE(*lease.Begin(kStart), absl::Nanoseconds(1));
  EXPECT_EQ(lease.Answered(Refused(), kStart), lease.NextAsk(kStart)) << "it has its answer";
}

TEST(LeaseRenewerTest, AnExtensionNeverShortens) {
  LeaseRenewer lease(Renewed());
  lease.ExtendTo(kStart + absl::Seconds(5));
  EXPECT_EQ(lease.valid_until(), kStart + kLease);
  lease.ExtendTo(kStart + absl::Seconds(20));
  EXPECT_EQ(lease.valid_until(), kStart + absl::Seconds(20));
}

TEST(LeaseRenewerTest, AfterAFailureOrARefusalItIsTriedAgainSooner) {
  LeaseRenewer lease(Renewed());
  const absl::Time late = kStart + absl::Seconds(6);
  lease.Begin(late);
  EXPECT_EQ(lease.Answered(BackendUnavailableError("no route"), late), late + absl::Seconds(1));
  EXPECT_FALSE(lease.error().ok());
  lease.Begin(late);
  EXPECT_EQ(lease.Answered(Refused(), late), late + absl::Seconds(1));
  EXPECT_TRUE(lease.error().ok());
}

TEST(LeaseRenewerTest, NothingGoesBeyondTheEndOfTheHold) {
  HoldTerms terms = Renewed();
  terms.hold_end = kStart + absl::Seconds(8);
  LeaseRenewer lease(terms);
  EXPECT_EQ(lease.Begin(kStart + absl::Seconds(6)), absl::Seconds(2));
  lease.ExtendTo(kStart + absl::Seconds(16));
  EXPECT_EQ(lease.Answered(Extended(), kStart + absl::Seconds(6)), absl::InfiniteFuture());
}

TEST(LeaseRenewerTest, ALeaseThatCouldNotBeRenewedWasCutOff) {
  const BackendCapabilities backend{.lease_margin = absl::Milliseconds(20)};
  LeaseRenewer lease(Renewed());
  const absl::Time end = kStart + kLease;
  EXPECT_FALSE(lease.WasCutOff(end, backend)) << "nothing failed";
  lease.Begin(kStart);
  lease.Answered(BackendUnavailableError("no route"), kStart);
  EXPECT_TRUE(lease.WasCutOff(end, backend));
}

TEST(LeaseRenewerTest, OneThatLastedAsLongAsTheHoldMayWasNot) {
  const BackendCapabilities backend{.lease_margin = absl::Milliseconds(20)};
  HoldTerms terms = Renewed();
  terms.hold_end = kStart + kLease + absl::Milliseconds(10);
  LeaseRenewer lease(terms);
  lease.Begin(kStart);
  lease.Answered(BackendUnavailableError("no route"), kStart);
  EXPECT_FALSE(lease.WasCutOff(kStart + kLease, backend));
  EXPECT_FALSE(lease.WasCutOff(terms.hold_end, backend));
}

}  // namespace
}  // namespace latchkey::internal

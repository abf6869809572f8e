// What a request asks for, worked out without a clock and without a backend. The errors of single
// options are in lock_manager_test and error_messages_test.

#include "latchkey/core/engine/request_terms.h"

#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "latchkey/core/base/lock_error.h"
#include "latchkey/core/policy/acquire_options.h"
#include "latchkey/core/policy/preemption_policy.h"
#include "latchkey/core/protocol/locking_protocol.h"

namespace latchkey::internal {
namespace {

BackendCapabilities InMemory() {
  return {.name = "memory", .infinite_lease = true, .forced_handover = true};
}

BackendCapabilities OverALink() {
  return {.name = "link",
          .infinite_lease = false,
          .max_lease = absl::Minutes(1),
          .default_lease = absl::Seconds(30),
          .lease_margin = absl::Milliseconds(20),
          .forced_handover = true};
}

RequestTerms TermsOf(const BackendCapabilities& backend, const AcquireOptions& options,
                     const PreemptionPolicy* preemption = nullptr) {
  RequestTerms terms;
  const absl::Status status = MakeTerms(backend, preemption, "", "r", options, terms);
  EXPECT_TRUE(status.ok()) << status;
  return terms;
}

TEST(RequestTermsTest, PlainTermsAreWhatMakeTermsComesTo) {
  const std::vector<AcquireOptions> kPlain = {
      {},
      {.owner = "ann"},
      {.priority = -3},
      {.preemptible = false},
      {.auto_renew = true},
      {.auto_renew = false},
      {.acquire_timeout = absl::ZeroDuration()},
      {.outage_patience = absl::ZeroDuration()},
      {.max_attempts = 1},
      {.skip_queue = true},
      {.max_execution_time = absl::Seconds(1)},
  };
  for (size_t i = 0; i < kPlain.size(); ++i) {
    EXPECT_TRUE(ArePlain(kPlain[i])) << i;
    EXPECT_EQ(TermsOf(InMemory(), kPlain[i]), PlainTerms(kPlain[i].owner, kPlain[i])) << i;
  }
}

TEST(RequestTermsTest, WhateverHasToBeWorkedOutOrRefusedIsNotPlain) {
  const std::vector<AcquireOptions> kOthers = {
      {.lease = absl::Seconds(1)},
      {.max_hold = absl::Seconds(1)},
      {.preemption_grace = absl::Seconds(1)},
      {.acquire_timeout = absl::Seconds(-1)},
      {.outage_patience = absl::Seconds(-1)},
      {.max_attempts = 0},
      {.max_execution_time = absl::ZeroDuration()},
      {.max_occupation_time = absl::ZeroDuration()},
      {.preemption = NeverPreempt()},
  };
  for (size_t i = 0; i < kOthers.size(); ++i) EXPECT_FALSE(ArePlain(kOthers[i])) << i;
}

TEST(RequestTermsTest, LeasesWithAnEndAreRenewedByDefaultAndReservationsAreShort) {
  const RequestTerms terms = TermsOf(OverALink(), {});
  EXPECT_EQ(terms.lease, absl::Seconds(30));
  EXPECT_TRUE(terms.auto_renew);
  EXPECT_EQ(terms.reservation_lease, absl::Seconds(30) / kReservationPart);
  EXPECT_FALSE(TermsOf(OverALink(), {.lease = absl::Seconds(9)}).auto_renew);
  EXPECT_FALSE(TermsOf(OverALink(), {.auto_renew = false}).auto_renew);
}

TEST(RequestTermsTest, MaxHoldIsTheLeaseWhereThatWouldHaveNoEnd) {
  EXPECT_EQ(TermsOf(InMemory(), {.max_hold = absl::Seconds(7)}).lease, absl::Seconds(7));
  const RequestTerms renewed = TermsOf(OverALink(), {.max_hold = absl::Minutes(9)});
  EXPECT_EQ(renewed.lease, absl::Seconds(30));
  EXPECT_TRUE(renewed.auto_renew);
}

TEST(RequestTermsTest, TheRequestsPreemptionComesBeforeThePolicys) {
  const auto never = NeverPreempt();
  EXPECT_EQ(TermsOf(InMemory(), {}, never.get()).reserve_below, std::nullopt);
  const auto forced = ForceAfter(absl::Seconds(2));
  EXPECT_EQ(TermsOf(InMemory(), {}, forced.get()).grace, absl::Seconds(2));
  EXPECT_EQ(TermsOf(InMemory(), {.preemption_grace = absl::Seconds(1)}, forced.get()).grace,
            absl::Seconds(1));
  EXPECT_EQ(TermsOf(InMemory(), {.preemption_grace = absl::InfiniteDuration()}, forced.get()).grace,
            std::nullopt);
  EXPECT_EQ(TermsOf(InMemory(), {.preemption = never}, forced.get()).reserve_below, std::nullopt);
}

TEST(RequestTermsTest, TheAmbientOwnerIsForThoseWithoutOne) {
  RequestTerms terms;
  ASSERT_TRUE(MakeTerms(InMemory(), nullptr, "task", "r", {}, terms).ok());
  EXPECT_EQ(terms.owner, "task");
  const AcquireOptions named{.owner = "ann"};
  ASSERT_TRUE(MakeTerms(InMemory(), nullptr, "task", "r", named, terms).ok());
  EXPECT_EQ(terms.owner, "ann");
}

TEST(RequestTermsTest, RequestsSayWhatTheTermsSay) {
  const RequestTerms terms = TermsOf(OverALink(), {.priority = 4, .preemptible = false});
  const ObtainRequest request = RequestOf(ResourceName("r"), {1, 2}, terms);
  EXPECT_EQ(request.resource.bytes(), "r");
  EXPECT_EQ(request.acquisition, (AcquisitionId{1, 2}));
  EXPECT_EQ(request.priority, 4);
  EXPECT_FALSE(request.preemptible);
  EXPECT_EQ(request.lease, absl::Seconds(30));
  EXPECT_EQ(request.reservation_lease, terms.reservation_lease);
  EXPECT_EQ(request.reserve_below, kReserveBelowAll);
}

}  // namespace
}  // namespace latchkey::internal

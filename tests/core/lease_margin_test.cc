// What a backend takes off each lease leaves time to renew it, or the request is refused.
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "latchkey/core/lock_error.h"
#include "latchkey/core/lock_manager.h"
#include "latchkey/core/locker.h"
#include "latchkey/core/transaction.h"
#include "latchkey/tests/support/fault_injecting_protocol.h"
#include "latchkey/tests/support/lock_manager_fixture.h"

namespace latchkey {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class LeaseMarginTest : public LockManagerFixture {
 protected:
  static constexpr absl::Duration kMargin = absl::Milliseconds(20);

  LockManager Over(BackendCapabilities changed) {
    return *LockManager::Create(std::make_shared<Described>(link_, std::move(changed)),
                                {.clock = &clock_});
  }

  static void ExpectRefused(const absl::Status& status, const std::string& field,
                            const std::string& value) {
    EXPECT_EQ(ReasonOf(status), Reason::kInvalidArgument) << status;
    EXPECT_THAT(status.message(), AllOf(HasSubstr(field + " must be at least 60ms to be renewed"),
                                        HasSubstr("but is " + value), HasSubstr("'a'")));
  }

  // The link, with other capabilities.
  class Described final : public LockingProtocol {
   public:
    Described(std::shared_ptr<LockingProtocol> inner, BackendCapabilities capabilities)
        : inner_(std::move(inner)), capabilities_(std::move(capabilities)) {}
    void Obtain(const ObtainRequest& request, ObtainCallback done) override {
      inner_->Obtain(request, std::move(done));
    }
    void Release(const HoldRef& hold, ReleaseCallback done) override {
      inner_->Release(hold, std::move(done));
    }
    void Extend(const HoldRef& hold, absl::Duration lease, ExtendCallback done) override {
      inner_->Extend(hold, lease, std::move(done));
    }
    Subscription Watch(const WatchRequest& request, WatchCallback on_event) override {
      return inner_->Watch(request, std::move(on_event));
    }
    const BackendCapabilities& capabilities() const override { return capabilities_; }

   private:
    const std::shared_ptr<LockingProtocol> inner_;
    const BackendCapabilities capabilities_;
  };

  std::shared_ptr<FaultInjectingProtocol> link_ = std::make_shared<FaultInjectingProtocol>(
      backend_, FaultInjectingOptions{
                    .clock = &clock_,
                    .faults = {.max_delay = absl::Milliseconds(5)},
                    .lease_margin = kMargin,
                });
  LockManager far_ = *LockManager::Create(link_, {.clock = &clock_});
};

TEST_F(LeaseMarginTest, ALeaseOfLessThanThreeMarginsIsNotRenewed) {
  for (const int ms : {1, 20, 21, 30, 59}) {
    const AcquireOptions options = {.lease = absl::Milliseconds(ms), .auto_renew = true};
    const std::string value = absl::FormatDuration(*options.lease);
    ExpectRefused(Ask(far_, "a", options)->status(), "lease", value);
    ExpectRefused(far_.Acquire("a", options).status(), "lease", value);
    ExpectRefused(far_.TryAcquire("a", options).status(), "lease", value);
    ExpectRefused(far_.AcquireAll({"a", "b"}, options).status(), "lease", value);
    // A body's lease is renewed unless it says otherwise.
    const auto body = [](LockContext&) { return absl::OkStatus(); };
    ExpectRefused(far_.Run("a", {.lease = options.lease}, body), "lease", value);
    int resource = 0;
    Locker locker(far_, "a", resource, options);
    auto run = locker.Start([](int&, TransactionContext&) -> Transaction<void> { co_return; });
    ASSERT_TRUE(run.done());
    ExpectRefused(run.Wait(), "lease", value);
  }
  ExpectNothingLeft();
}

TEST_F(LeaseMarginTest, OneOfThreeMarginsIsKept) {
  auto kept = Ask(far_, "a", {.lease = 3 * kMargin, .auto_renew = true});
  clock_.AdvanceBy(absl::Milliseconds(10));
  ASSERT_TRUE(kept->granted());
  clock_.AdvanceBy(absl::Seconds(60));
  EXPECT_EQ(kept->lock().state(), LockState::kHeld);
}

TEST_F(LeaseMarginTest, OneThatIsNotRenewedMayBeShorter) {
  auto short_one = Ask(far_, "a", {.lease = absl::Milliseconds(30)});
  clock_.AdvanceBy(absl::Milliseconds(10));
  EXPECT_TRUE(short_one->granted());
  // Cut to it by max_hold, there is nothing to renew either.
  auto cut = Ask(far_, "b", {.auto_renew = true, .max_hold = absl::Milliseconds(30)});
  clock_.AdvanceBy(absl::Milliseconds(10));
  EXPECT_TRUE(cut->granted());
}

TEST_F(LeaseMarginTest, TheBackendsOwnLeaseIsRenewedToo) {
  BackendCapabilities short_lease = link_->capabilities();
  short_lease.default_lease = absl::Milliseconds(30);
  LockManager locks = Over(short_lease);
  ExpectRefused(Ask(locks, "a")->status(), "default_lease", "30ms");
  auto enough = Ask(locks, "a", {.lease = absl::Seconds(1), .auto_renew = true});
  clock_.AdvanceBy(absl::Milliseconds(10));
  EXPECT_TRUE(enough->granted());
}

TEST_F(LeaseMarginTest, AnExtensionThatIsOverBeforeItBeginsIsRefused) {
  auto kept = Ask(far_, "a", {.lease = absl::Seconds(1)});
  clock_.AdvanceBy(absl::Milliseconds(10));
  ASSERT_TRUE(kept->granted());
  std::vector<absl::Status> told;
  const auto note = [&](absl::Status status) { told.push_back(std::move(status)); };
  kept->lock().ExtendAsync(kMargin, note);
  ASSERT_EQ(told.size(), 1u);
  EXPECT_EQ(ReasonOf(told[0]), Reason::kNotSupported);
  EXPECT_THAT(told[0].message(), AllOf(HasSubstr("20ms"), HasSubstr("'a'")));
  kept->lock().ExtendAsync(kMargin + absl::Milliseconds(1), note);
  clock_.AdvanceBy(absl::Milliseconds(20));
  ASSERT_EQ(told.size(), 2u);
  EXPECT_EQ(told[1], absl::OkStatus());
}

}  // namespace
}  // namespace latchkey

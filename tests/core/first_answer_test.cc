// What a request gets at once where the backend's answers take their time, although others of the
// same manager wait for the resource: its owner's own lock, and the answer that it does not want to
// wait for. And whom it must not overtake for that, and what it counts as until it is answered.
#include <cstdint>
#include <memory>
#include <optional>
#include <ostream>
#include <stop_token>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "latchkey/core/lock_manager.h"
#include "latchkey/core/policy/admission_policy.h"
#include "latchkey/core/policy/preemption_policy.h"
#include "latchkey/core/policy/queue_policy.h"
#include "latchkey/core/policy/retry_policy.h"
#include "latchkey/core/protocol/locking_protocol.h"
#include "latchkey/core/stats_observer.h"
#include "latchkey/tests/support/fault_injecting_protocol.h"
#include "latchkey/tests/support/lock_manager_fixture.h"

namespace latchkey {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

// The in-memory backend as one that keeps no order among those who wait, as a quorum does: when a
// hold ends, whoever asks first enters.
class WithoutOrder : public LockingProtocol {
 public:
  explicit WithoutOrder(std::shared_ptr<LockingProtocol> inner) : inner_(std::move(inner)) {
    capabilities_ = inner_->capabilities();
    capabilities_.keeps_order = false;
  }

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
    WatchRequest unordered = request;
    unordered.barging = true;
    return inner_->Watch(unordered, std::move(on_event));
  }
  const BackendCapabilities& capabilities() const override { return capabilities_; }

 private:
  const std::shared_ptr<LockingProtocol> inner_;
  BackendCapabilities capabilities_;
};

struct Network {
  std::string name = {};
  Faults faults = {};
  bool in_order = true;
  bool keeps_order = true;
  uint64_t seed = 1;
};

void PrintTo(const Network& network, std::ostream* out) { *out << network.name; }

constexpr absl::Duration kDelay = absl::Milliseconds(5);
// Longer than a question and its answer take.
constexpr absl::Duration kRoundTrip = absl::Milliseconds(25);
const Faults kSteady = {.min_delay = kDelay, .max_delay = kDelay};

// `locks_` is next to the backend. Everybody else is behind a network.
class FirstAnswerTest : public LockManagerFixture {
 protected:
  LockManager NewFarManager(LockManagerOptions options = {},
                            const Network& network = {"", kSteady}) {
    std::shared_ptr<LockingProtocol> server = backend_;
    if (!network.keeps_order) server = std::make_shared<WithoutOrder>(backend_);
    link_ = std::make_shared<FaultInjectingProtocol>(
        server, FaultInjectingOptions{.seed = network.seed,
                                      .clock = &clock_,
                                      .faults = network.faults,
                                      .in_order = network.in_order});
    options.clock = &clock_;
    options.random_seed = 1;
    return *LockManager::Create(link_, std::move(options));
  }

  void Pass() { clock_.AdvanceBy(kRoundTrip); }
  std::shared_ptr<Pending> AskAndPass(LockManager& locks, std::string_view resource,
                                      const AcquireOptions& options = {}) {
    auto pending = Ask(locks, resource, options);
    Pass();
    return pending;
  }

  // What the backend knows.
  bool IsReserved(std::string_view resource) {
    bool reserved = false;
    backend_->Inspect(ResourceName(resource),
                      [&](const ResourceState& state) { reserved = state.reserved; });
    return reserved;
  }

  std::shared_ptr<FaultInjectingProtocol> link_;
};

class EveryNetworkTest : public FirstAnswerTest, public ::testing::WithParamInterface<Network> {
 protected:
  LockManager NewFarManager(LockManagerOptions options = {}) {
    return FirstAnswerTest::NewFarManager(std::move(options), GetParam());
  }
};

INSTANTIATE_TEST_SUITE_P(
    Networks, EveryNetworkTest,
    ::testing::Values(Network{"Prompt", {}}, Network{"Steady", kSteady},
                      Network{"Deaf", {.drop_event = 1}},
                      Network{"Reordering",
                              {.min_delay = absl::ZeroDuration(), .max_delay = 2 * kDelay},
                              /*in_order=*/false},
                      Network{"WithoutOrder", kSteady, /*in_order=*/true, /*keeps_order=*/false},
                      Network{"DeafWithoutOrder",
                              {.drop_event = 1},
                              /*in_order=*/false,
                              /*keeps_order=*/false}),
    [](const auto& info) { return info.param.name; });

// ---- Entering again ----

TEST_P(EveryNetworkTest, AnOwnerEntersItsLockAgainPastThoseWhoWait) {
  for (const bool detect_deadlocks : {true, false}) {
    LockManager far = NewFarManager({.detect_deadlocks = detect_deadlocks});
    auto mine = AskAndPass(far, "a", {.owner = "me"});
    ASSERT_TRUE(mine->granted());
    auto other = AskAndPass(far, "a");
    auto named = AskAndPass(far, "a", {.owner = "you"});
    auto again = Ask(far, "a", {.owner = "me"});
    Pass();
    Pass();
    ASSERT_TRUE(again->granted()) << again->status();
    EXPECT_EQ(again->lock().fencing_token(), mine->lock().fencing_token());
    EXPECT_FALSE(other->result) << other->status();
    EXPECT_FALSE(named->result) << named->status();
    again->result.reset();
    mine->result.reset();
    clock_.AdvanceBy(absl::Minutes(1));
    ASSERT_TRUE(other->granted());
    other->result.reset();
    clock_.AdvanceBy(absl::Minutes(1));
    EXPECT_TRUE(named->granted());
    named->result.reset();
    Pass();
    ExpectNothingLeft();
  }
}

TEST_P(EveryNetworkTest, AlsoIfAnotherManagerGaveItTheLock) {
  LockManager far = NewFarManager();
  absl::StatusOr<Lock> mine = locks_.Acquire("a", {.owner = "me"});
  auto other = AskAndPass(far, "a");
  auto again = Ask(far, "a", {.owner = "me"});
  Pass();
  Pass();
  EXPECT_TRUE(again->granted()) << again->status();
  EXPECT_FALSE(other->result);
}

TEST_P(EveryNetworkTest, AlsoIfItGotTheLockWhileItsSecondRequestWaited) {
  LockManager far = NewFarManager();
  absl::StatusOr<Lock> held = locks_.Acquire("a");
  auto mine = AskAndPass(far, "a", {.owner = "me"});
  auto other = AskAndPass(far, "a");
  auto again = AskAndPass(far, "a", {.owner = "me"});
  EXPECT_FALSE(again->result);
  EXPECT_TRUE(held->Release().ok());
  clock_.AdvanceBy(absl::Minutes(1));
  ASSERT_TRUE(mine->granted());
  EXPECT_TRUE(again->granted()) << "or nobody would ever enter again";
  EXPECT_FALSE(other->result);
}

TEST_F(FirstAnswerTest, IfTheOneWhoLooksForItGivesUpAnotherLooks) {
  LockManager far = NewFarManager({.queue = FifoQueue()});
  absl::StatusOr<Lock> mine = locks_.Acquire("a", {.owner = "me"});
  std::stop_source first_leaves;
  std::stop_source second_leaves;
  auto first = AskAndPass(far, "a", {.cancel = first_leaves.get_token()});
  auto second = AskAndPass(far, "a", {.cancel = second_leaves.get_token()});
  auto thief = AskAndPass(far, "a", {.priority = 5});
  first_leaves.request_stop();
  Pass();
  // Two may ask: the second, which is at the front, and the thief. One of them does.
  auto again = Ask(far, "a", {.owner = "me"});
  clock_.AdvanceBy(kDelay);
  second_leaves.request_stop();
  Pass();
  Pass();
  EXPECT_TRUE(again->granted());
  EXPECT_FALSE(thief->result);
}

TEST_P(EveryNetworkTest, ASetMayNameWhatItsOwnerHolds) {
  LockManager far = NewFarManager();
  auto mine = AskAndPass(far, "a", {.owner = "me"});
  auto other = AskAndPass(far, "a");
  absl::StatusOr<Lock> held = locks_.Acquire("b");
  auto set = std::make_shared<PendingSet>();
  far.AcquireAllAsync({"a", "b"}, {.owner = "me"}, TellTo(set));
  Pass();
  EXPECT_FALSE(set->result) << set->status();
  EXPECT_TRUE(held->Release().ok());
  clock_.AdvanceBy(absl::Minutes(1));
  EXPECT_TRUE(set->granted()) << set->status();
  EXPECT_FALSE(other->result);
}

TEST_P(EveryNetworkTest, ASetReservesPastThoseWhoAreLessUrgent) {
  for (const auto& queue : {PriorityQueue(), FifoQueue()}) {
    LockManager far = NewFarManager({.queue = queue});
    absl::StatusOr<Lock> a = locks_.Acquire("a");
    absl::StatusOr<Lock> b = locks_.Acquire("b");
    auto other = AskAndPass(far, "a");
    auto set = std::make_shared<PendingSet>();
    far.AcquireAllAsync({"a", "b"}, {.priority = 5}, TellTo(set));
    clock_.AdvanceBy(absl::Seconds(1));
    EXPECT_TRUE(IsReserved("a"));
    EXPECT_TRUE(a->Release().ok());
    EXPECT_TRUE(b->Release().ok());
    clock_.AdvanceBy(absl::Minutes(1));
    EXPECT_TRUE(set->granted()) << set->status();
    EXPECT_FALSE(other->result);
    set->result.reset();
    clock_.AdvanceBy(absl::Minutes(1));
    EXPECT_TRUE(other->granted());
    other->result.reset();
    Pass();
    ExpectNothingLeft();
  }
}

TEST_P(EveryNetworkTest, ASetWithoutTimeToWaitOrGivenUpLeavesNothing) {
  std::optional<LockManager> far = NewFarManager();
  absl::StatusOr<Lock> held = locks_.Acquire("b");
  auto other = AskAndPass(*far, "b");
  const auto ask = [&](const AcquireOptions& options) {
    auto set = std::make_shared<PendingSet>();
    far->AcquireAllAsync({"a", "b", "c"}, options, TellTo(set));
    return set;
  };
  auto hurried = ask({.acquire_timeout = absl::ZeroDuration()});
  Pass();
  EXPECT_EQ(ReasonOf(hurried->status()), Reason::kAcquireTimeout);
  auto once = ask({.max_attempts = 1});
  Pass();
  EXPECT_EQ(ReasonOf(once->status()), Reason::kAttemptsExhausted);
  std::stop_source stop;
  auto cancelled = ask({.cancel = stop.get_token()});
  stop.request_stop();
  EXPECT_EQ(ReasonOf(cancelled->status()), Reason::kCancelled);
  auto shut_down = ask({});
  far.reset();
  EXPECT_EQ(ReasonOf(shut_down->status()), Reason::kShutdown);
  EXPECT_TRUE(held->Release().ok());
  clock_.AdvanceBy(absl::Minutes(1));
  ExpectNothingLeft();
}

// ---- An answer now ----

TEST_P(EveryNetworkTest, OneAttemptFailsWithItsFirstAnswer) {
  LockManager far = NewFarManager({.retry = FixedDelay(absl::Hours(1))});
  auto mine = AskAndPass(far, "a", {.owner = "me"});
  auto other = AskAndPass(far, "a");
  auto once = AskAndPass(far, "a", {.max_attempts = 1});
  EXPECT_EQ(ReasonOf(once->status()), Reason::kAttemptsExhausted);
  EXPECT_THAT(once->status().message(), HasSubstr("held by 'me'"));
  auto named = AskAndPass(far, "a", {.owner = "you", .max_attempts = 1});
  EXPECT_EQ(ReasonOf(named->status()), Reason::kAttemptsExhausted);
  auto again = AskAndPass(far, "a", {.owner = "me", .max_attempts = 1});
  EXPECT_TRUE(again->granted());
  EXPECT_FALSE(other->result);
}

TEST_P(EveryNetworkTest, WithoutTimeToWaitTheFirstAnswerDecides) {
  LockManager far = NewFarManager();
  auto mine = AskAndPass(far, "a", {.owner = "me", .priority = 3});
  auto other = AskAndPass(far, "a", {.priority = 3});
  const auto now = absl::ZeroDuration();
  auto once = AskAndPass(far, "a", {.acquire_timeout = now});
  EXPECT_EQ(ReasonOf(once->status()), Reason::kAcquireTimeout);
  auto again = AskAndPass(far, "a", {.owner = "me", .acquire_timeout = now});
  EXPECT_TRUE(again->granted());
  auto thief = AskAndPass(far, "a", {.priority = 9, .acquire_timeout = now});
  EXPECT_EQ(ReasonOf(thief->status()), Reason::kAcquireTimeout);
  Pass();
  EXPECT_FALSE(IsReserved("a")) << "it has withdrawn that";
  EXPECT_FALSE(other->result);
  auto free = AskAndPass(far, "b", {.acquire_timeout = now});
  EXPECT_TRUE(free->granted());
}

TEST_F(FirstAnswerTest, ATimeoutOfNothingIsBoundedByTheBackend) {
  for (const Faults& faults : {Faults{.drop_call = 1}, Faults{.drop_reply = 1}}) {
    LockManager far = NewFarManager();
    link_->SetFaults(faults);
    auto first = Ask(far, "a", {.acquire_timeout = absl::ZeroDuration()});
    auto behind = Ask(far, "a", {.acquire_timeout = absl::ZeroDuration()});
    clock_.AdvanceBy(absl::Milliseconds(999));
    EXPECT_FALSE(first->result);
    clock_.AdvanceBy(absl::Milliseconds(1));  // FaultInjectingOptions::answer_timeout.
    EXPECT_EQ(ReasonOf(first->status()), Reason::kBackendUnknown);
    EXPECT_EQ(ReasonOf(behind->status()), Reason::kBackendUnknown);
    link_->SetFaults({});
    clock_.AdvanceBy(
        absl::Minutes(1));  // If they were granted all the same, until their leases end.
    ExpectNothingLeft();
  }
}

// ---- Whom nobody overtakes ----

// The news of a release is on its way to the one who waits. Who asks meanwhile?
struct Comer {
  std::string name;
  AcquireOptions options = {};
  bool barging = false;
  bool overtakes = false;
};

TEST_F(FirstAnswerTest, AComerWhoHoldsNothingHereDoesNotOvertakeThoseWhoWait) {
  const std::vector<Comer> comers = {
      {.name = "anonymous"},
      {.name = "named", .options = {.owner = "me"}},
      {.name = "allowed to", .options = {.owner = "me"}, .barging = true, .overtakes = true},
  };
  for (const Comer& comer : comers) {
    for (const bool keeps_order : {true, false}) {
      SCOPED_TRACE(comer.name +
                   (keeps_order ? ", backend keeps order" : ", backend without order"));
      LockManager far = NewFarManager({.queue = PriorityQueue({.barging = comer.barging})},
                                      {"", kSteady, /*in_order=*/true, keeps_order});
      // It held the lock before, which says nothing about now.
      auto before = AskAndPass(far, "a", {.owner = "me"});
      auto waits = AskAndPass(far, "a");
      before->result.reset();
      clock_.AdvanceBy(kDelay);  // It is free now, and nobody knows.
      auto comes = Ask(far, "a", comer.options);
      clock_.AdvanceBy(absl::Seconds(1));
      EXPECT_EQ(comes->granted(), comer.overtakes);
      EXPECT_EQ(waits->granted(), !comer.overtakes);
      comes->result.reset();
      waits->result.reset();
      clock_.AdvanceBy(absl::Seconds(1));
      comes->result.reset();
      waits->result.reset();
      clock_.AdvanceBy(absl::Seconds(1));
      ExpectNothingLeft();
    }
  }
}

TEST_F(FirstAnswerTest, NorDoesAMoreUrgentOneWherePriorityDoesNotCount) {
  LockManager far = NewFarManager({.queue = FifoQueue(), .preemption = NeverPreempt()});
  absl::StatusOr<Lock> held = locks_.Acquire("a");
  auto first = AskAndPass(far, "a", {.owner = "you"});
  EXPECT_TRUE(held->Release().ok());
  auto second = Ask(far, "a", {.owner = "me", .priority = 9});
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_TRUE(first->granted());
  EXPECT_FALSE(second->result);
}

TEST_F(FirstAnswerTest, OnlyTheMostUrgentReserves) {
  LockManager far = NewFarManager();
  absl::StatusOr<Lock> held = locks_.Acquire("a");
  auto thief = AskAndPass(far, "a", {.priority = 5});
  EXPECT_EQ(held->state(), LockState::kYielding);
  auto equal = AskAndPass(far, "a", {.priority = 5, .max_attempts = 1});
  EXPECT_EQ(ReasonOf(equal->status()), Reason::kAttemptsExhausted);
  auto above = AskAndPass(far, "a", {.priority = 9, .max_attempts = 1});
  EXPECT_FALSE(above->result) << "it has reserved, and polls are no attempts";
  EXPECT_TRUE(held->Release().ok());
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_TRUE(above->granted());
  EXPECT_FALSE(thief->result);
}

TEST_F(FirstAnswerTest, AnEqualDoesNotReserveBeforeTheOneWhoCameFirst) {
  LockManager far = NewFarManager({}, {"", kSteady, /*in_order=*/false});
  absl::StatusOr<Lock> held = locks_.Acquire("a");
  link_->SetFaults({.min_delay = 3 * kDelay, .max_delay = 3 * kDelay});
  auto first = Ask(far, "a", {.owner = "first", .priority = 5});
  link_->SetFaults(kSteady);
  auto second = Ask(far, "a", {.owner = "second", .priority = 5});
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_TRUE(held->Release().ok());
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_TRUE(first->granted());
  EXPECT_FALSE(second->result);
}

// Its last answer, 'held by me', may be on its way when the owner has left and asks again.
TEST_F(FirstAnswerTest, AnAnswerFromBeforeItCameSaysNothingOfItsOwner) {
  for (uint64_t seed = 1; seed <= 100; ++seed) {
    SCOPED_TRACE(absl::StrCat("seed ", seed));
    LockManager far = NewFarManager({.retry = FixedDelay(absl::Milliseconds(1))},
                                    {.faults = {.max_delay = 2 * kDelay},
                                     .in_order = false,
                                     .keeps_order = false,
                                     .seed = seed});
    auto mine = AskAndPass(far, "a", {.owner = "me"});
    auto waits = AskAndPass(far, "a");
    mine->result.reset();
    clock_.AdvanceBy(2 * kDelay);  // The release has arrived, the answer maybe not.
    auto again = Ask(far, "a", {.owner = "me"});
    while (!waits->result && !again->result) clock_.AdvanceBy(absl::Milliseconds(1));
    EXPECT_TRUE(waits->granted());
    waits->result.reset();
    again->result.reset();
    clock_.AdvanceBy(absl::Seconds(1));
    again->result.reset();
    clock_.AdvanceBy(absl::Seconds(1));
  }
}

// ---- What counts as waiting ----

TEST_P(EveryNetworkTest, AFreeLockIsGrantedWhereNobodyMayWait) {
  LockManager far = NewFarManager({.admission = LimitPending({.per_resource = 0, .in_total = 0})});
  auto free = Ask(far, "a");
  auto also = Ask(far, "b");
  auto held = Ask(far, "a");
  Pass();
  EXPECT_NE(free->granted(), held->granted());
  EXPECT_TRUE(also->granted());
  EXPECT_EQ(ReasonOf((free->failed() ? free : held)->status()), Reason::kTooManyPending);
  auto thief = AskAndPass(far, "b", {.priority = 9});
  EXPECT_EQ(ReasonOf(thief->status()), Reason::kTooManyPending);
  Pass();
  EXPECT_FALSE(IsReserved("b")) << "it has withdrawn that";
}

TEST_F(FirstAnswerTest, OnlyWhoeverWasDeniedCountsAsWaiting) {
  auto stats = std::make_shared<StatsObserver>();
  LockManager far = NewFarManager(
      {.admission = LimitPending({.per_resource = 1, .in_total = 1}), .observer = stats},
      {"", kSteady, /*in_order=*/false});
  absl::StatusOr<Lock> a = locks_.Acquire("a");
  absl::StatusOr<Lock> b = locks_.Acquire("b");
  link_->SetFaults({.min_delay = 10 * kDelay, .max_delay = 10 * kDelay});
  auto late = Ask(far, "a");
  auto elsewhere = Ask(far, "b");
  link_->SetFaults(kSteady);
  EXPECT_EQ(stats->waiting(), 0);
  EXPECT_THAT(far.Snapshot(), IsEmpty());
  EXPECT_TRUE(far.IsBusy("a")) << "somebody asks for it";

  auto early = AskAndPass(far, "a");
  EXPECT_FALSE(early->result) << "it is the only one that waits";
  EXPECT_EQ(stats->waiting(), 1);
  ASSERT_THAT(far.Snapshot(), SizeIs(1));
  EXPECT_THAT(far.Snapshot()[0].waiters, SizeIs(1));
  auto third = AskAndPass(far, "a");
  EXPECT_EQ(ReasonOf(third->status()), Reason::kTooManyPending);
  EXPECT_THAT(third->status().message(), HasSubstr("1 for this resource"));

  clock_.AdvanceBy(10 * kRoundTrip);
  EXPECT_EQ(ReasonOf(late->status()), Reason::kTooManyPending);
  EXPECT_EQ(ReasonOf(elsewhere->status()), Reason::kTooManyPending) << "one waits in total";
  EXPECT_FALSE(early->result);
  EXPECT_EQ(stats->waiting(), 1);
  EXPECT_TRUE(a->Release().ok());
  clock_.AdvanceBy(absl::Minutes(1));
  EXPECT_TRUE(early->granted());
  EXPECT_EQ(stats->waiting(), 0);
}

TEST_F(FirstAnswerTest, TwoUnderWayAreAdmittedInTheOrderOfTheirAnswers) {
  LockManager far = NewFarManager({.admission = LimitPending({.per_resource = 1})});
  absl::StatusOr<Lock> held = locks_.Acquire("a");
  auto first = Ask(far, "a");
  auto second = Ask(far, "a");
  EXPECT_FALSE(second->result);
  Pass();
  EXPECT_FALSE(first->result);
  EXPECT_EQ(ReasonOf(second->status()), Reason::kTooManyPending);
}

TEST_F(FirstAnswerTest, ThoseUnderWayQueueInTheOrderInWhichTheyCame) {
  LockManager far = NewFarManager({}, {"", kSteady, /*in_order=*/false});
  absl::StatusOr<Lock> held = locks_.Acquire("a");
  link_->SetFaults({.min_delay = 3 * kDelay, .max_delay = 3 * kDelay});
  auto first = Ask(far, "a");
  link_->SetFaults(kSteady);
  auto second = Ask(far, "a");
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_TRUE(held->Release().ok());
  clock_.AdvanceBy(absl::Minutes(1));
  EXPECT_TRUE(first->granted());
  EXPECT_FALSE(second->result);
}

TEST_F(FirstAnswerTest, OnlyWhoeverWaitsIsShed) {
  LockManager far = NewFarManager({.admission = ShedLowestPriority({.per_resource = 1})},
                                  {"", kSteady, /*in_order=*/false});
  absl::StatusOr<Lock> held = locks_.Acquire("a", {.priority = 9});
  auto waits = AskAndPass(far, "a", {.priority = 5});
  link_->SetFaults({.min_delay = 10 * kDelay, .max_delay = 10 * kDelay});
  auto under_way = Ask(far, "a", {.owner = "me", .priority = 1});
  link_->SetFaults(kSteady);
  auto hurried = AskAndPass(far, "a", {.priority = 7, .acquire_timeout = absl::ZeroDuration()});
  EXPECT_EQ(ReasonOf(hurried->status()), Reason::kAcquireTimeout);
  EXPECT_FALSE(waits->result) << "it does not wait, so it needs no room";
  auto high = AskAndPass(far, "a", {.priority = 7});
  EXPECT_EQ(ReasonOf(waits->status()), Reason::kTooManyPending);
  EXPECT_FALSE(high->result);
  EXPECT_FALSE(under_way->result);
  clock_.AdvanceBy(10 * kRoundTrip);
  EXPECT_EQ(ReasonOf(under_way->status()), Reason::kTooManyPending);
  EXPECT_FALSE(high->result);
}

// ---- Attempts ----

TEST_F(FirstAnswerTest, ComingToTheFrontIsNoSecondAttempt) {
  const Network deaf = {"", {.drop_event = 1}};
  LockManager far = NewFarManager({.retry = FixedDelay(absl::Seconds(10))}, deaf);
  absl::StatusOr<Lock> held = locks_.Acquire("a");
  std::stop_source leaves;
  auto front = AskAndPass(far, "a", {.cancel = leaves.get_token(), .retry = NoRetry()});
  auto behind = AskAndPass(far, "a", {.owner = "me", .max_attempts = 2});
  const int64_t steps = link_->steps();
  clock_.AdvanceBy(absl::Minutes(1));
  EXPECT_FALSE(behind->result);
  EXPECT_EQ(link_->steps(), steps) << "it was told once, and does not ask before its turn";
  leaves.request_stop();
  clock_.AdvanceBy(absl::Seconds(9));
  EXPECT_FALSE(behind->result) << "it looked once more, as it came to the front";
  clock_.AdvanceBy(absl::Seconds(2));
  EXPECT_EQ(ReasonOf(behind->status()), Reason::kAttemptsExhausted);
}

TEST_F(FirstAnswerTest, NorIsComingBackToTheFront) {
  for (const auto& queue : {PriorityQueue(), FifoQueue(), AgeingQueue()}) {
    LockManager far = NewFarManager({.queue = queue, .retry = NoRetry()});
    std::optional<absl::StatusOr<Lock>> held = locks_.Acquire("a", {.priority = 9});
    auto waits = AskAndPass(far, "a", {.max_attempts = 2});
    auto second = AskAndPass(far, "a", {.skip_queue = true});
    auto first = AskAndPass(far, "a", {.skip_queue = true});
    held.reset();
    for (const auto& overtaking : {first, second}) {
      Pass();
      ASSERT_TRUE(overtaking->granted()) << overtaking->status();
      EXPECT_FALSE(waits->result) << waits->status();
      Pass();
      overtaking->result.reset();
    }
    Pass();
    ASSERT_TRUE(waits->granted()) << waits->status();
    waits->result.reset();
    Pass();
  }
}

TEST_F(FirstAnswerTest, ToAskForSomebodyElseIsNoAttempt) {
  LockManager far = NewFarManager({.retry = FixedDelay(absl::Hours(1))},
                                  {"", {.drop_event = 1}, true, /*keeps_order=*/false});
  absl::StatusOr<Lock> held = locks_.Acquire("a");
  auto front = AskAndPass(far, "a", {.max_attempts = 2});
  for (int i = 0; i < 5; ++i) AskAndPass(far, "a", {.owner = "me"});
  EXPECT_FALSE(front->result) << front->status();
}

// ---- Deadlocks ----

TEST_P(EveryNetworkTest, ACircleBehindOthersIsFound) {
  for (const auto& queue : {PriorityQueue(), FifoQueue()}) {
    LockManager far = NewFarManager({.queue = queue, .retry = NoRetry()});
    auto x = AskAndPass(far, "x", {.owner = "ann"});
    auto y = AskAndPass(far, "y", {.owner = "bob"});
    auto before_ann = AskAndPass(far, "y");
    auto before_bob = AskAndPass(far, "x");
    auto ann = AskAndPass(far, "y", {.owner = "ann"});
    EXPECT_FALSE(ann->result) << ann->status();
    auto bob = AskAndPass(far, "x", {.owner = "bob"});
    Pass();
    Pass();
    EXPECT_EQ(ReasonOf(bob->status()), Reason::kDeadlock) << bob->status();
    EXPECT_FALSE(ann->result);
    EXPECT_FALSE(before_ann->result);
    EXPECT_FALSE(before_bob->result);
  }
}

// ---- The end while the first question is under way ----

TEST_P(EveryNetworkTest, CancelledBeforeItsFirstAnswerItLeavesNothing) {
  LockManager far = NewFarManager();
  for (const bool others_wait : {false, true}) {
    absl::StatusOr<Lock> held = absl::CancelledError();
    std::shared_ptr<Pending> other;
    if (others_wait) {
      held = locks_.Acquire("a", {.owner = "me"});
      other = AskAndPass(far, "a");
    }
    std::stop_source stop;
    auto pending = Ask(far, "a", {.owner = "me", .cancel = stop.get_token()});
    EXPECT_FALSE(pending->result);
    stop.request_stop();
    EXPECT_EQ(ReasonOf(pending->status()), Reason::kCancelled);
    if (others_wait) {
      EXPECT_TRUE(held->Release().ok());
    }
    clock_.AdvanceBy(absl::Minutes(1));
    if (others_wait) {
      EXPECT_TRUE(other->granted());
      other->result.reset();
    }
    Pass();
    ExpectNothingLeft();
    EXPECT_FALSE(far.IsBusy());
  }
}

TEST_P(EveryNetworkTest, DestroyingTheManagerEndsWhatIsUnderWay) {
  std::optional<LockManager> far = NewFarManager();
  auto waits = AskAndPass(*far, "a", {.owner = "me"});
  auto other = AskAndPass(*far, "a");
  auto again = Ask(*far, "a", {.owner = "me"});
  auto free = Ask(*far, "b");
  far.reset();
  EXPECT_EQ(ReasonOf(other->status()), Reason::kShutdown);
  EXPECT_EQ(ReasonOf(again->status()), Reason::kShutdown);
  EXPECT_EQ(ReasonOf(free->status()), Reason::kShutdown);
  waits->result.reset();
  clock_.AdvanceBy(absl::Minutes(1));
  ExpectNothingLeft();
}

// ---- Failures ----

TEST_F(FirstAnswerTest, AfterAnUnknownFirstAnswerItWaitsAndAsksAgainWhereverItStands) {
  LockManager far = NewFarManager({.admission = LimitPending({.per_resource = 2})});
  auto mine = AskAndPass(far, "a", {.owner = "me"});
  auto other = AskAndPass(far, "a");
  link_->SetFaults({.drop_reply = 1});
  auto again = Ask(far, "a", {.owner = "me"});
  link_->SetFaults(kSteady);
  EXPECT_THAT(far.Snapshot()[0].waiters, SizeIs(1));
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_THAT(far.Snapshot()[0].waiters, SizeIs(2)) << "it was told, though not what it asked";
  EXPECT_EQ(ReasonOf(AskAndPass(far, "a")->status()), Reason::kTooManyPending);
  clock_.AdvanceBy(absl::Seconds(10));
  EXPECT_TRUE(again->granted()) << again->status();
  EXPECT_FALSE(other->result);
}

TEST_F(FirstAnswerTest, ABackendThatCannotBeReachedEndsItAtOnceIfItIsNotPatient) {
  LockManager far = NewFarManager();
  auto mine = AskAndPass(far, "a", {.owner = "me"});
  auto other = AskAndPass(far, "a");
  link_->SetFaults({.unavailable = 1});
  auto again = AskAndPass(far, "a", {.owner = "me", .outage_patience = absl::ZeroDuration()});
  EXPECT_EQ(ReasonOf(again->status()), Reason::kBackendUnavailable);
  EXPECT_FALSE(other->result);
}

}  // namespace
}  // namespace latchkey

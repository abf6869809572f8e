// What large sets cost: how often the backend is asked, and how often a lock looks at the clock,
// both in proportion to the number of names. Counts depend on no machine.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <ostream>
#include <stop_token>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "latchkey/core/clock.h"
#include "latchkey/core/lock_manager.h"
#include "latchkey/core/protocol/locking_protocol.h"
#include "latchkey/memory_backend/memory_backend.h"
#include "latchkey/tests/support/fault_injecting_protocol.h"
#include "latchkey/tests/support/lock_manager_fixture.h"
#include "latchkey/tests/support/simulated_clock.h"

namespace latchkey {
namespace {

// Counts what passes.
class CountingProtocol : public LockingProtocol {
 public:
  explicit CountingProtocol(std::shared_ptr<LockingProtocol> inner) : inner_(std::move(inner)) {}

  int64_t obtains() const { return obtains_; }
  int64_t releases() const { return releases_; }

  void Obtain(const ObtainRequest& request, ObtainCallback done) override {
    ++obtains_;
    inner_->Obtain(request, std::move(done));
  }
  void Release(const HoldRef& hold, ReleaseCallback done) override {
    ++releases_;
    inner_->Release(hold, std::move(done));
  }
  void Extend(const HoldRef& hold, absl::Duration lease, ExtendCallback done) override {
    inner_->Extend(hold, lease, std::move(done));
  }
  Subscription Watch(const WatchRequest& request, WatchCallback on_event) override {
    return inner_->Watch(request, std::move(on_event));
  }
  const BackendCapabilities& capabilities() const override { return inner_->capabilities(); }
  std::string ResourceOf(const HoldRef& hold) const override { return inner_->ResourceOf(hold); }
  void Inspect(std::optional<ResourceName> resource,
               absl::FunctionRef<void(const ResourceState&)> visitor) const override {
    inner_->Inspect(resource, visitor);
  }

 private:
  const std::shared_ptr<LockingProtocol> inner_;
  std::atomic<int64_t> obtains_{0};
  std::atomic<int64_t> releases_{0};
};

enum class Answers { kAtOnce, kLater };

struct Case {
  Answers answers = Answers::kAtOnce;
  LockOrder order = LockOrder::kSorted;
  // The names as given are in the opposite order to that in which they are released.
  bool reversed = false;
};

std::string NameOf(const Case& c) {
  return absl::StrCat(c.answers == Answers::kAtOnce ? "AtOnce" : "Later",
                      c.order == LockOrder::kSorted ? "Sorted" : "AsGiven",
                      c.reversed ? "Reversed" : "");
}

void PrintTo(const Case& c, std::ostream* out) { *out << NameOf(c); }

// Longer than a question and its answer take.
constexpr absl::Duration kRoundTrip = absl::Milliseconds(25);
constexpr int kNames = 160;
// For each name: the sum over all that a set may have to ask, wait and be woken for.
constexpr int kObtainsPerName = 14;
constexpr int kReleasesPerName = 6;

class LockSetCostTest : public LockManagerFixture, public ::testing::WithParamInterface<Case> {
 protected:
  LockSetCostTest() {
    std::shared_ptr<LockingProtocol> server = backend_;
    if (GetParam().answers == Answers::kLater) {
      server = std::make_shared<FaultInjectingProtocol>(
          backend_, FaultInjectingOptions{.clock = &clock_,
                                          .faults = {.min_delay = absl::Milliseconds(5),
                                                     .max_delay = absl::Milliseconds(5)},
                                          .in_order = true});
    }
    counted_ = std::make_shared<CountingProtocol>(std::move(server));
    far_.emplace(*LockManager::Create(counted_, {.clock = &clock_, .random_seed = 1}));
  }

  // Sorted, and so they are released.
  static std::vector<std::string> Names(int count) {
    std::vector<std::string> names;
    for (int i = 0; i < count; ++i) names.push_back(absl::StrCat("name ", 10000 + i));
    return names;
  }
  static std::vector<LockRequest> Requests(std::vector<std::string> names,
                                           const AcquireOptions& options = {}) {
    if (GetParam().reversed) std::reverse(names.begin(), names.end());
    std::vector<LockRequest> requests;
    for (std::string& name : names) requests.push_back({std::move(name), options});
    return requests;
  }

  void Pass() { clock_.AdvanceBy(kRoundTrip); }
  // As long as something happens at all.
  void PassLong() {
    for (int i = 0; i < 4 * kNames; ++i) Pass();
  }

  std::shared_ptr<PendingSet> AskFor(std::vector<LockRequest> requests) {
    auto pending = std::make_shared<PendingSet>();
    far_->AcquireAllAsync(requests, GetParam().order, TellTo(pending));
    return pending;
  }

  // What `part` costs.
  struct Cost {
    int64_t obtains;
    int64_t releases;
  };
  Cost CostOf(absl::FunctionRef<void()> part) {
    const Cost before{counted_->obtains(), counted_->releases()};
    part();
    const Cost cost{counted_->obtains() - before.obtains, counted_->releases() - before.releases};
    RecordProperty("obtains", absl::StrCat(cost.obtains));
    RecordProperty("releases", absl::StrCat(cost.releases));
    return cost;
  }
  static void ExpectLinear(const Cost& cost, int names = kNames) {
    EXPECT_LE(cost.obtains, kObtainsPerName * names);
    EXPECT_LE(cost.releases, kReleasesPerName * names);
  }

  std::shared_ptr<CountingProtocol> counted_;
  std::optional<LockManager> far_;
};

TEST_P(LockSetCostTest, ASetIsHandedToAWaitingSet) {
  auto first = AskFor(Requests(Names(kNames)));
  Pass();
  ASSERT_TRUE(first->granted());
  std::shared_ptr<PendingSet> next;
  ExpectLinear(CostOf([&] {
    next = AskFor(Requests(Names(kNames)));
    Pass();
    ASSERT_FALSE(next->result);
    first->lock().ReleaseAsync();
    // However few it asks for at once to begin with, soon there are many.
    for (int i = 0; i < 8; ++i) Pass();
    ASSERT_TRUE(next->granted());
  }));
}

TEST_P(LockSetCostTest, ASetWaitsForLocksThatAreReleasedOneByOne) {
  std::vector<Lock> held;
  for (const std::string& name : Names(kNames)) held.push_back(*locks_.Acquire(name));
  std::shared_ptr<PendingSet> set;
  ExpectLinear(CostOf([&] {
    set = AskFor(Requests(Names(kNames)));
    Pass();
    for (Lock& lock : held) {
      ASSERT_TRUE(lock.Release().ok());
      // Time enough to ask for whatever it likes.
      for (int i = 0; i < 4; ++i) Pass();
    }
    PassLong();
    ASSERT_TRUE(set->granted());
  }));
}

TEST_P(LockSetCostTest, EverySecondMemberIsInTheWay) {
  std::vector<Lock> held;
  const std::vector<std::string> names = Names(kNames);
  for (int i = 0; i < kNames; i += 2) held.push_back(*locks_.Acquire(names[i]));
  std::shared_ptr<PendingSet> set;
  ExpectLinear(CostOf([&] {
    set = AskFor(Requests(names));
    Pass();
    for (Lock& lock : held) {
      ASSERT_TRUE(lock.Release().ok());
      for (int i = 0; i < 4; ++i) Pass();
    }
    PassLong();
    ASSERT_TRUE(set->granted());
  }));
}

// Those that may be preempted are not asked to yield while others are in the way.
TEST_P(LockSetCostTest, SomeHaveToYieldAndOthersAreReleasedOneByOne) {
  std::vector<Lock> preemptible;
  std::vector<Lock> urgent;
  int asked = 0;
  const std::vector<std::string> names = Names(kNames);
  for (int i = 0; i < kNames; ++i) {
    if (i % 2 == 0) {
      preemptible.push_back(*locks_.Acquire(names[i]));
    } else {
      urgent.push_back(*locks_.Acquire(names[i], {.priority = 9}));
    }
  }
  for (Lock& lock : preemptible) {
    lock.OnYieldRequested([&lock, &asked] {
      ++asked;
      EXPECT_TRUE(lock.Release().ok());
    });
  }
  std::shared_ptr<PendingSet> set;
  ExpectLinear(CostOf([&] {
    set = AskFor(Requests(names, {.priority = 5}));
    Pass();
    for (Lock& lock : urgent) {
      EXPECT_EQ(asked, 0);
      ASSERT_TRUE(lock.Release().ok());
      for (int i = 0; i < 4; ++i) Pass();
    }
    PassLong();
    ASSERT_TRUE(set->granted());
  }));
  EXPECT_EQ(asked, kNames / 2);
}

TEST_P(LockSetCostTest, ASetPreemptsASet) {
  auto victim = AskFor(Requests(Names(kNames)));
  Pass();
  ASSERT_TRUE(victim->granted());
  victim->lock().OnYieldRequested([&victim] { victim->lock().ReleaseAsync(); });
  std::shared_ptr<PendingSet> thief;
  ExpectLinear(CostOf([&] {
    thief = AskFor(Requests(Names(kNames), {.priority = 1}));
    PassLong();
    ASSERT_TRUE(thief->granted());
  }));
}

TEST_P(LockSetCostTest, ASetThatWaitsIsPreemptedAndAsksAnew) {
  const std::vector<std::string> names = Names(kNames);
  absl::StatusOr<Lock> last =
      locks_.Acquire(GetParam().reversed ? names.front() : names.back(), {.priority = 9});
  auto victim = AskFor(Requests(names));
  Pass();
  ASSERT_FALSE(victim->result);
  std::shared_ptr<PendingSet> thief;
  ExpectLinear(CostOf([&] {
                 thief = AskFor(Requests(names, {.priority = 1}));
                 PassLong();
                 ASSERT_FALSE(thief->result);
                 ASSERT_TRUE(last->Release().ok());
                 PassLong();
                 ASSERT_TRUE(thief->granted());
                 thief->lock().ReleaseAsync();
                 PassLong();
                 ASSERT_TRUE(victim->granted());
               }),
               3 * kNames);
}

TEST_P(LockSetCostTest, ASetThatIsCancelledWhileItWaits) {
  const std::vector<std::string> names = Names(kNames);
  absl::StatusOr<Lock> middle = locks_.Acquire(names[kNames / 2]);
  std::stop_source cancel;
  auto set = AskFor(Requests(names, {.cancel = cancel.get_token()}));
  auto behind = AskFor(Requests(names));
  Pass();
  ExpectLinear(CostOf([&] {
    cancel.request_stop();
    PassLong();
  }));
  EXPECT_EQ(ReasonOf(set->status()), Reason::kCancelled);
  ASSERT_FALSE(behind->result);
  EXPECT_TRUE(middle->Release().ok());
  PassLong();
  EXPECT_TRUE(behind->granted()) << "nothing is left behind";
}

TEST_P(LockSetCostTest, ASetWhoseTimeIsOverWhileItWaits) {
  const std::vector<std::string> names = Names(kNames);
  absl::StatusOr<Lock> middle = locks_.Acquire(names[kNames / 2]);
  auto set = AskFor(Requests(names, {.acquire_timeout = absl::Seconds(1)}));
  auto behind = AskFor(Requests(names));
  Pass();
  ExpectLinear(CostOf([&] { PassLong(); }));
  EXPECT_EQ(ReasonOf(set->status()), Reason::kAcquireTimeout);
  EXPECT_TRUE(middle->Release().ok());
  PassLong();
  EXPECT_TRUE(behind->granted());
}

// Where others of the set's manager wait for each member, too.
TEST_P(LockSetCostTest, ManyWaitForEachMember) {
  auto first = AskFor(Requests(Names(kNames)));
  Pass();
  ASSERT_TRUE(first->granted());
  std::vector<std::shared_ptr<PendingSet>> waiting;
  constexpr int kSets = 4;
  ExpectLinear(CostOf([&] {
                 for (int i = 0; i < kSets; ++i) waiting.push_back(AskFor(Requests(Names(kNames))));
                 Pass();
                 first->lock().ReleaseAsync();
                 for (const auto& set : waiting) {
                   PassLong();
                   ASSERT_TRUE(set->granted());
                   set->lock().ReleaseAsync();
                 }
               }),
               kSets * kNames);
}

// Counts how often it is looked at.
class CountingClock : public Clock {
 public:
  explicit CountingClock(SimulatedClock& inner) : inner_(inner) {}
  int64_t looks() const { return looks_; }

  absl::Time Now() override {
    ++looks_;
    return inner_.Now();
  }
  TimerId RunAt(absl::Time when, absl::AnyInvocable<void()> callback) override {
    return inner_.RunAt(when, std::move(callback));
  }
  bool Cancel(TimerId timer) override { return inner_.Cancel(timer); }

 private:
  SimulatedClock& inner_;
  std::atomic<int64_t> looks_{0};
};

// How often the clock is looked at when a set of so many names is asked to yield for each of them.
int64_t LooksOfASetThatYields(int names) {
  SimulatedClock simulated;
  CountingClock clock(simulated);
  LockManager locks =
      *LockManager::Create(NewMemoryBackend({.clock = &simulated}), {.clock = &clock});
  std::vector<std::string> wanted;
  for (int i = 0; i < names; ++i) wanted.push_back(absl::StrCat("name ", i));
  absl::StatusOr<LockSet> set = locks.AcquireAll(wanted, {.lease = absl::Hours(1)});
  EXPECT_TRUE(set.ok()) << set.status();
  int asked = 0;
  set->OnYieldRequested([&asked] { ++asked; });
  const int64_t before = clock.looks();
  std::vector<std::optional<Lock>> thieves(names);
  for (int i = 0; i < names; ++i) {
    locks.AcquireAsync(wanted[i], {.priority = 1}, [&thieves, i](absl::StatusOr<Lock> lock) {
      if (lock.ok()) thieves[i] = *std::move(lock);
    });
  }
  EXPECT_EQ(asked, 1);
  const int64_t looks = clock.looks() - before;
  EXPECT_TRUE(set->Release().ok());
  for (const auto& thief : thieves) EXPECT_TRUE(thief.has_value());
  return looks;
}

TEST(LockSetYieldCostTest, EachRequestToYieldLooksAtFewMembers) {
  const int64_t few = LooksOfASetThatYields(kNames);
  EXPECT_LE(few, 8 * kNames);
  EXPECT_LE(LooksOfASetThatYields(2 * kNames), 2 * few + kNames / 2);
}

INSTANTIATE_TEST_SUITE_P(Sets, LockSetCostTest,
                         ::testing::Values(Case{Answers::kAtOnce, LockOrder::kSorted},
                                           Case{Answers::kAtOnce, LockOrder::kAsGiven},
                                           Case{Answers::kAtOnce, LockOrder::kAsGiven, true},
                                           Case{Answers::kLater, LockOrder::kSorted},
                                           Case{Answers::kLater, LockOrder::kAsGiven},
                                           Case{Answers::kLater, LockOrder::kAsGiven, true}),
                         [](const ::testing::TestParamInfo<Case>& info) {
                           return NameOf(info.param);
                         });

}  // namespace
}  // namespace latchkey

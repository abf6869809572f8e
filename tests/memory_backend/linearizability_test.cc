// The real, threaded in-memory backend is atomic: whatever several threads ask at once, there is an
// order of the steps in which core/lock_record gives the same answers. And backends that are nearly
// right are found out, so that this says something.
//
//   bazel test //tests/memory_backend:linearizability_test --test_arg=--histories=100000
//   ... --test_arg=--seed=N    begins with this seed. The threads ask the same again; how they meet
//                              is up to the machine, so repeat it with --runs_per_test=100.
#include "latchkey/tests/support/linearizability.h"

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "latchkey/core/protocol/lock_record.h"
#include "latchkey/core/protocol/locking_protocol.h"
#include "latchkey/core/protocol/quorum_member.h"
#include "latchkey/memory_backend/memory_backend.h"
#include "latchkey/tests/support/simulated_clock.h"

namespace latchkey {

uint64_t first_seed = 1;
int histories = 3000;

namespace {

using MakeBackend = std::function<std::shared_ptr<LockingProtocol>(Clock& clock)>;

// What is wrong with the first history that cannot be explained; "" if all can be.
std::string FirstWrongHistory(const MakeBackend& make, int runs, HistoryOptions options = {}) {
  SimulatedClock clock;
  for (int i = 0; i < runs; ++i) {
    options.seed = first_seed + static_cast<uint64_t>(i);
    const std::shared_ptr<LockingProtocol> backend = make(clock);
    const std::string wrong = CheckLinearizable(RecordHistory({backend.get()}, options));
    if (!wrong.empty()) return absl::StrCat("--seed=", options.seed, ": ", wrong);
  }
  return "";
}

std::shared_ptr<LockingProtocol> OneShard(Clock& clock) {
  return NewMemoryBackend({.clock = &clock, .shards = 1});
}

TEST(MemoryLinearizabilityTest, ShortHistoriesOfThreeThreads) {
  EXPECT_EQ(FirstWrongHistory(OneShard, histories), "");
}

TEST(MemoryLinearizabilityTest, ManyThreadsOnOneResource) {
  EXPECT_EQ(FirstWrongHistory(OneShard, histories / 4, {.threads = 5, .steps = 5, .resources = 1}),
            "");
}

TEST(MemoryLinearizabilityTest, LongHistoriesOfTwoThreadsOnShards) {
  EXPECT_EQ(FirstWrongHistory(
                [](Clock& clock) { return NewMemoryBackend({.clock = &clock, .shards = 4}); },
                histories / 8, {.threads = 2, .steps = 40, .resources = 3}),
            "");
}

TEST(MemoryLinearizabilityTest, TheThreadsReallyMeet) {
  SimulatedClock clock;
  int overlaps = 0;
  // A few hundred histories are plenty, but for a machine that has other things to do.
  for (uint64_t seed = 1; seed <= 200 || (overlaps == 0 && seed <= 50'000); ++seed) {
    const auto backend = OneShard(clock);
    const History history = RecordHistory({backend.get()}, {.seed = seed});
    for (const Operation& a : history) {
      for (const Operation& b : history) {
        if (a.resource == b.resource && a.client < b.client && a.invoked < b.returned &&
            b.invoked < a.returned) {
          ++overlaps;
        }
      }
    }
  }
  RecordProperty("overlaps", overlaps);
  EXPECT_GT(overlaps, 0) << "all threads of all histories ran one after the other";
}

// ---- Negative controls -------------------------------------------------------------------------

// A backend made of core/lock_record, in which a step is taken in two parts: load, then store. A
// thread between the two gives the others the chance to get there as well.
class Torn : public LockingProtocol, public QuorumMember {
 public:
  enum class Fault {
    kNone,        // Both under the mutex: right.
    kLostWrite,   // Loads, lets go of the mutex, and stores what it made of it.
    kStaleLook,   // Inspect shows what the resource was like one step ago.
    kTokenTwice,  // A grant gives the token of the one before.
  };

  explicit Torn(Fault fault) : fault_(fault) {
    capabilities_.infinite_lease = true;
    capabilities_.answers_at_once = true;
    capabilities_.inspect = true;
  }

  void Obtain(const ObtainRequest& request, ObtainCallback done) override {
    done(Step<ObtainReply>(request.resource, [&](LockRecord& record, Effects& effects) {
      if (fault_ == Fault::kTokenTwice && record.fence > 0) --record.fence;
      return Apply(record, request, kNow, effects);
    }));
  }
  void Release(const HoldRef& hold, ReleaseCallback done) override {
    done(Step<ReleaseOutcome>(hold.resource, [&](LockRecord& record, Effects& effects) {
      return ApplyRelease(record, hold.acquisition, kNow, effects);
    }));
  }
  void Extend(const HoldRef& hold, absl::Duration lease, ExtendCallback done) override {
    done(Step<ExtendReply>(hold.resource, [&](LockRecord& record, Effects& effects) {
      return ApplyExtend(record, hold.acquisition, lease, kNow, effects);
    }));
  }
  QuorumMember* quorum_member() override { return this; }
  void ObtainAsMember(const ObtainRequest& request, MemberCallback done) override {
    done(Step<MemberReply>(request.resource, [&](LockRecord& record, Effects& effects) {
      return ApplyAsMember(record, request, kNow, effects);
    }));
  }
  void Confirm(const HoldRef& hold, FencingToken token, ConfirmCallback done) override {
    done(Step<ConfirmReply>(hold.resource, [&](LockRecord& record, Effects& effects) {
      return ApplyConfirm(record, hold.acquisition, token, kNow, effects);
    }));
  }
  Subscription Watch(const WatchRequest&, WatchCallback) override { return Subscription(); }
  void Inspect(std::optional<ResourceName> resource,
               absl::FunctionRef<void(const ResourceState&)> visitor) const override {
    absl::MutexLock lock(&mu_);
    const std::map<std::string, LockRecord>& shown =
        fault_ == Fault::kStaleLook ? before_ : records_;
    const auto found = shown.find(std::string(resource->bytes()));
    if (found != shown.end() && !found->second.IsFree()) {
      visitor(Describe(found->second, found->first, kNow));
    }
  }
  const BackendCapabilities& capabilities() const override { return capabilities_; }

 private:
  static const inline absl::Time kNow = absl::UnixEpoch();

  template <typename Reply, typename F>
  Reply Step(const ResourceName& resource, F take) {
    const std::string key(resource.bytes());
    Effects effects;
    LockRecord record;
    {
      absl::MutexLock lock(&mu_);
      record = records_[key];
      if (fault_ != Fault::kLostWrite) {
        before_[key] = record;
        const Reply reply = take(record, effects);
        records_[key] = record;
        return reply;
      }
    }
    // Until somebody else comes by, but not for ever.
    const int seen = steps_.fetch_add(1) + 1;
    for (int i = 0; i < 100 && steps_ == seen; ++i) std::this_thread::yield();
    const Reply reply = take(record, effects);
    absl::MutexLock lock(&mu_);
    records_[key] = record;
    return reply;
  }

  const Fault fault_;
  BackendCapabilities capabilities_;
  std::atomic<int> steps_ = 0;
  mutable absl::Mutex mu_;
  std::map<std::string, LockRecord> records_ ABSL_GUARDED_BY(mu_);
  std::map<std::string, LockRecord> before_ ABSL_GUARDED_BY(mu_);
};

MakeBackend With(Torn::Fault fault) {
  return [fault](Clock&) { return std::make_shared<Torn>(fault); };
}

TEST(MemoryLinearizabilityTest, ABackendThatStepsUnderOneMutexIsRight) {
  EXPECT_EQ(FirstWrongHistory(With(Torn::Fault::kNone), 300), "");
}

TEST(MemoryLinearizabilityTest, ALostWriteIsFoundWithinAHundredHistories) {
  EXPECT_NE(FirstWrongHistory(With(Torn::Fault::kLostWrite), 100), "");
}

TEST(MemoryLinearizabilityTest, AStaleLookIsFoundWithinAHundredHistories) {
  EXPECT_NE(FirstWrongHistory(With(Torn::Fault::kStaleLook), 100), "");
}

TEST(MemoryLinearizabilityTest, ATokenGivenTwiceIsFoundWithinAHundredHistories) {
  EXPECT_NE(FirstWrongHistory(With(Torn::Fault::kTokenTwice), 100), "");
}

// The in-memory backend itself, behind a cache of what is free: it looks, and grants, in two steps.
class CheckThenAct : public LockingProtocol {
 public:
  explicit CheckThenAct(std::shared_ptr<LockingProtocol> backend) : backend_(std::move(backend)) {}

  void Obtain(const ObtainRequest& request, ObtainCallback done) override {
    bool held = false;
    Priority priority = 0;
    backend_->Inspect(request.resource, [&](const ResourceState& state) {
      held = state.held;
      priority = state.holder_priority;
    });
    const int seen = steps_.fetch_add(1) + 1;
    for (int i = 0; i < 100 && steps_ == seen; ++i) std::this_thread::yield();
    if (held && request.owner.empty() && priority >= request.priority) {
      // Denied by somebody who may have left, or be this very acquisition.
      done(ObtainReply{.outcome = ObtainOutcome::kDenied,
                       .remaining = absl::InfiniteDuration(),
                       .other_priority = priority});
      return;
    }
    backend_->Obtain(request, std::move(done));
  }
  void Release(const HoldRef& hold, ReleaseCallback done) override {
    backend_->Release(hold, std::move(done));
  }
  void Extend(const HoldRef& hold, absl::Duration lease, ExtendCallback done) override {
    backend_->Extend(hold, lease, std::move(done));
  }
  QuorumMember* quorum_member() override { return backend_->quorum_member(); }
  Subscription Watch(const WatchRequest& request, WatchCallback on_event) override {
    return backend_->Watch(request, std::move(on_event));
  }
  void Inspect(std::optional<ResourceName> resource,
               absl::FunctionRef<void(const ResourceState&)> visitor) const override {
    backend_->Inspect(resource, visitor);
  }
  const BackendCapabilities& capabilities() const override { return backend_->capabilities(); }

 private:
  const std::shared_ptr<LockingProtocol> backend_;
  std::atomic<int> steps_ = 0;
};

TEST(MemoryLinearizabilityTest, CheckThenActIsFoundWithinAHundredHistories) {
  EXPECT_NE(FirstWrongHistory(
                [](Clock& clock) { return std::make_shared<CheckThenAct>(OneShard(clock)); }, 100),
            "");
}

}  // namespace
}  // namespace latchkey

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  for (int i = 1; i < argc; ++i) {
    std::string_view argument = argv[i];
    bool understood = false;
    if (absl::ConsumePrefix(&argument, "--seed=")) {
      understood = absl::SimpleAtoi(argument, &latchkey::first_seed);
    } else if (absl::ConsumePrefix(&argument, "--histories=")) {
      understood = absl::SimpleAtoi(argument, &latchkey::histories);
    }
    if (!understood) {
      std::cerr << "usage: " << argv[0] << " [--seed=N] [--histories=N]\n";
      return 2;
    }
  }
  std::cout << "--seed=" << latchkey::first_seed << " --histories=" << latchkey::histories << "\n";
  return RUN_ALL_TESTS();
}

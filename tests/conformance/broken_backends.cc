// The conformance suite over backends with one fault each, and over the same without a fault. For
// broken_backends_test.sh, which runs it and demands that the suite fails where it should, soon,
// and in words.
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "latchkey/core/clock.h"
#include "latchkey/core/lease.h"
#include "latchkey/core/lock_error.h"
#include "latchkey/core/protocol/lock_record.h"
#include "latchkey/core/protocol/locking_protocol.h"
#include "latchkey/core/protocol/record_watchers.h"
#include "latchkey/tests/conformance/conformance.h"

namespace latchkey {
namespace {

enum class Fault {
  kNone,
  kObtainIsNoTransaction,   // Two may read the record before either writes it.
  kReleaseIsNoTransaction,  // The same.
  kLosesEvents,             // All of them.
  kLosesWakeUps,            // Waiters are not told that a hold has ended.
  kLosesCompletions,        // Of every Obtain.
  kCompletesTwice,
  kRefusesEverything,  // "Unavailable".
  kAlwaysDenies,
  kAlwaysReenters,
  kLetsEverybodyIn,
  kReleasesNothing,
  kRepeatsTokens,
};

class BrokenBackend : public LockingProtocol {
 public:
  BrokenBackend(Clock& clock, Fault fault)
      : clock_(clock), fault_(fault), watchers_(RecordWatchers::Create(clock)) {}

  const BackendCapabilities& capabilities() const override { return capabilities_; }

  void Obtain(const ObtainRequest& request, ObtainCallback done) override {
    if (absl::Status bad = CheckRequest(request, capabilities_); !bad.ok()) return done(bad);
    if (fault_ == Fault::kRefusesEverything) return done(BackendUnavailableError("out of order"));
    if (fault_ == Fault::kLosesCompletions) return;
    auto [reply, entry] =
        Step<ObtainReply>(request.resource, fault_ != Fault::kObtainIsNoTransaction,
                          [&](LockRecord& record, absl::Time now, Effects& effects) {
                            if (fault_ == Fault::kLetsEverybodyIn && record.holder) {
                              record.holder.reset();
                              record.successor.reset();
                            }
                            if (fault_ == Fault::kRepeatsTokens && !record.holder) record.fence = 0;
                            return Apply(record, request, now, effects);
                          });
    watchers_->Answered(request.resource, request.acquisition, entry.version, entry.record);
    if (fault_ == Fault::kAlwaysDenies) reply = {.outcome = ObtainOutcome::kDenied};
    if (fault_ == Fault::kAlwaysReenters) reply.outcome = ObtainOutcome::kReentered;
    done(reply);
    if (fault_ == Fault::kCompletesTwice) done(reply);
  }

  void Release(const HoldRef& hold, ReleaseCallback done) override {
    if (absl::Status bad = CheckRequest(hold, capabilities_); !bad.ok()) return done(bad);
    if (fault_ == Fault::kRefusesEverything) return done(BackendUnavailableError("out of order"));
    if (fault_ == Fault::kReleasesNothing) return done(ReleaseOutcome::kReleased);
    watchers_->Silence(hold.resource, hold.acquisition);
    done(Step<ReleaseOutcome>(hold.resource, fault_ != Fault::kReleaseIsNoTransaction,
                              [&](LockRecord& record, absl::Time now, Effects& effects) {
                                return ApplyRelease(record, hold.acquisition, now, effects);
                              })
             .first);
  }

  void Extend(const HoldRef& hold, absl::Duration lease, ExtendCallback done) override {
    if (absl::Status bad = CheckRequest(hold, capabilities_); !bad.ok()) return done(bad);
    if (absl::Status bad = CheckLease("lease", lease, capabilities_); !bad.ok()) return done(bad);
    if (fault_ == Fault::kRefusesEverything) return done(BackendUnavailableError("out of order"));
    done(Step<ExtendReply>(hold.resource, /*transaction=*/true,
                           [&](LockRecord& record, absl::Time now, Effects& effects) {
                             return ApplyExtend(record, hold.acquisition, lease, now, effects);
                           })
             .first);
  }

  Subscription Watch(const WatchRequest& request, WatchCallback on_event) override {
    if (!CheckRequest(request, capabilities_).ok()) return {};
    if (fault_ == Fault::kLosesEvents) {
      on_event = [](const WatchEvent&) {};
    } else if (fault_ == Fault::kLosesWakeUps && request.role == WatchRole::kWaiter) {
      on_event = [on_event = std::move(on_event)](const WatchEvent& event) mutable {
        if (event.kind != WatchEventKind::kHoldEnded) on_event(event);
      };
    }
    Subscription subscription = watchers_->Watch(request, std::move(on_event));
    const Entry now = Load(std::string(request.resource));
    watchers_->Changed(request.resource, now.version, now.record);
    return subscription;
  }

 private:
  struct Entry {
    LockRecord record;
    uint64_t version = 0;
  };

  Entry Load(const std::string& key) {
    absl::MutexLock lock(&mu_);
    return entries_[key];
  }

  template <typename Reply, typename F>
  std::pair<Reply, Entry> Step(const ResourceName& resource, bool transaction, F step) {
    const std::string key(resource);
    Reply reply;
    Entry entry;
    Effects effects;
    if (transaction) {
      absl::MutexLock lock(&mu_);
      Entry& stored = entries_[key];
      reply = step(stored.record, clock_.Now(), effects);
      if (effects.changed) ++stored.version;
      entry = stored;
    } else {
      entry = Load(key);
      reply = step(entry.record, clock_.Now(), effects);
      // As if the storage were far away.
      for (int i = 0; i < 20; ++i) std::this_thread::yield();
      if (effects.changed) {
        absl::MutexLock lock(&mu_);
        Entry& stored = entries_[key];
        entry.version = stored.version + 1;
        stored = entry;
      }
    }
    if (effects.changed) watchers_->Changed(resource, entry.version, entry.record);
    return {std::move(reply), std::move(entry)};
  }

  const BackendCapabilities capabilities_ = {
      .name = "broken", .infinite_lease = true, .answers_at_once = true, .reliable_events = true};
  Clock& clock_;
  const Fault fault_;
  const std::shared_ptr<RecordWatchers> watchers_;
  absl::Mutex mu_;
  std::map<std::string, Entry> entries_ ABSL_GUARDED_BY(mu_);
};

ConformanceParam With(Fault fault, const std::string& name) {
  ConformanceParam param = OnSimulatedTime(
      [fault](Clock& clock) { return std::make_shared<BrokenBackend>(clock, fault); });
  param.name = name;
  param.patience = absl::Seconds(2);
  param.stress_rounds = 200;
  return param;
}

INSTANTIATE_TEST_SUITE_P(
    Backends, ConformanceTest,
    testing::Values(
        With(Fault::kNone, "Sound"), With(Fault::kObtainIsNoTransaction, "ObtainIsNoTransaction"),
        With(Fault::kReleaseIsNoTransaction, "ReleaseIsNoTransaction"),
        With(Fault::kLosesEvents, "LosesEvents"), With(Fault::kLosesWakeUps, "LosesWakeUps"),
        With(Fault::kLosesCompletions, "LosesCompletions"),
        With(Fault::kCompletesTwice, "CompletesTwice"),
        With(Fault::kRefusesEverything, "RefusesEverything"),
        With(Fault::kAlwaysDenies, "AlwaysDenies"), With(Fault::kAlwaysReenters, "AlwaysReenters"),
        With(Fault::kLetsEverybodyIn, "LetsEverybodyIn"),
        With(Fault::kReleasesNothing, "ReleasesNothing"),
        With(Fault::kRepeatsTokens, "RepeatsTokens")),
    ConformanceTestName);

}  // namespace
}  // namespace latchkey

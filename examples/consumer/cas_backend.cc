#include "cas_backend.h"

#include <string>
#include <utility>

#include "latchkey/core/protocol/lock_record.h"
#include "latchkey/core/protocol/record_watchers.h"

namespace example {
namespace {

using latchkey::Effects;
using latchkey::LockRecord;

class CasBackend : public latchkey::LockingProtocol {
 public:
  CasBackend(std::shared_ptr<CasStore> store, latchkey::Clock& clock)
      : store_(std::move(store)),
        clock_(clock),
        watchers_(latchkey::RecordWatchers::Create(clock)) {
    // The store may outlive this backend, so its feed holds only a weak reference.
    store_->Observe(
        [weak = std::weak_ptr(watchers_)](const std::string& key, const CasStore::Entry& entry) {
          if (auto watchers = weak.lock()) watchers->Changed(key, entry.version, entry.record);
        });
  }

  const latchkey::BackendCapabilities& capabilities() const override { return capabilities_; }

  void Obtain(const latchkey::ObtainRequest& request, latchkey::ObtainCallback done) override {
    if (absl::Status bad = CheckRequest(request, capabilities_); !bad.ok()) return done(bad);
    const auto [reply, entry] = Step<latchkey::ObtainReply>(
        request.resource, [&](LockRecord& record, absl::Time now, Effects& effects) {
          return Apply(record, request, now, effects);
        });
    watchers_->Answered(request.resource, request.acquisition, entry.version, entry.record);
    done(reply);
  }

  void Release(const latchkey::HoldRef& hold, latchkey::ReleaseCallback done) override {
    if (absl::Status bad = CheckRequest(hold, capabilities_); !bad.ok()) return done(bad);
    watchers_->Silence(hold.resource, hold.acquisition);
    const auto [outcome, entry] = Step<latchkey::ReleaseOutcome>(
        hold.resource, [&](LockRecord& record, absl::Time now, Effects& effects) {
          return ApplyRelease(record, hold.acquisition, now, effects);
        });
    done(outcome);
  }

  void Extend(const latchkey::HoldRef& hold, absl::Duration lease,
              latchkey::ExtendCallback done) override {
    if (absl::Status bad = CheckRequest(hold, capabilities_); !bad.ok()) return done(bad);
    if (absl::Status bad = CheckLease("lease", lease, capabilities_); !bad.ok()) return done(bad);
    const auto [reply, entry] = Step<latchkey::ExtendReply>(
        hold.resource, [&](LockRecord& record, absl::Time now, Effects& effects) {
          return ApplyExtend(record, hold.acquisition, lease, now, effects);
        });
    done(reply);
  }

  latchkey::Subscription Watch(const latchkey::WatchRequest& request,
                               latchkey::WatchCallback on_event) override {
    if (!CheckRequest(request, capabilities_).ok()) return {};
    latchkey::Subscription subscription = watchers_->Watch(request, std::move(on_event));
    const CasStore::Entry now = store_->Load(std::string(request.resource));
    watchers_->Changed(request.resource, now.version, now.record);
    return subscription;
  }

 private:
  // Applies a step to the resource's record, again if somebody else changed the record meanwhile.
  // Returns the reply and the entry that it comes from. With a store that can fail, this is where
  // its errors become BackendUnavailableError (surely not written) or BackendUnknownError (perhaps
  // written).
  template <typename Reply, typename F>
  std::pair<Reply, CasStore::Entry> Step(const latchkey::ResourceName& resource, F step) {
    const std::string key(resource);
    for (;;) {
      CasStore::Entry entry = store_->Load(key);
      Effects effects;
      const Reply reply = step(entry.record, clock_.Now(), effects);
      if (!effects.changed) return {reply, entry};
      if (store_->CompareAndSwap(key, entry.version, entry.record)) {
        ++entry.version;
        return {reply, entry};
      }
    }
  }

  // No order among waiters, no member of a quorum, no Inspect: the defaults.
  const latchkey::BackendCapabilities capabilities_ = {.name = "compare-and-swap",
                                                       .infinite_lease = true,
                                                       .answers_at_once = true,
                                                       .reliable_events = true};
  const std::shared_ptr<CasStore> store_;
  latchkey::Clock& clock_;
  const std::shared_ptr<latchkey::RecordWatchers> watchers_;
};

}  // namespace

std::shared_ptr<latchkey::LockingProtocol> NewCasBackend(std::shared_ptr<CasStore> store,
                                                         latchkey::Clock& clock) {
  return std::make_shared<CasBackend>(std::move(store), clock);
}

}  // namespace example

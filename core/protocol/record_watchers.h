// RecordWatchers is the Watch of a backend whose storage keeps a LockRecord for each resource: it
// holds the subscriptions, is shown each record as it changes, and tells every watcher what the
// record says that it has not heard yet. For those who write a backend; see
// docs/how-to/write-a-backend.md.
//
//   watchers_->Changed(resource, version, record);                  // from the storage's change
//   feed Subscription Watch(request, on_event) {
//     Subscription subscription = watchers_->Watch(request, std::move(on_event));
//     ... load, then watchers_->Changed(request.resource, version, record) ...
//   void Obtain(request, done) {
//     ... apply the step, then watchers_->Answered(..., version, record), then done ...
//
// It compares states instead of passing on what each step did (Effects::notices). So a change that
// was missed is made up for by the next, whoever subscribes late hears what already happened, and
// it does not matter in which order threads or processes report. The other side of it: what has
// come and gone between two reports is not told.
//
// A waiter that could reserve a hold, and could not before, is told to ask (kDisplaced): the
// reservation that was in its way is gone. So it need not poll: the backend's events are reliable
// if the last change of a record is reported, and Answered is called for every Obtain.
//
// When a resource is free, all who wait are told, the best first (priority, then registration), and
// each only if it still is free by then. So this serves backends that do not keep order
// (`keeps_order` false); `barging` and `takes_place_of` have no effect.
//
// Thread safety: all methods may be called from any thread. No two callbacks run at once, and none
// under a mutex; a callback may call everything here and the backend.
#ifndef LATCHKEY_CORE_PROTOCOL_RECORD_WATCHERS_H_
#define LATCHKEY_CORE_PROTOCOL_RECORD_WATCHERS_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <tuple>

#include "absl/base/attributes.h"
#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "latchkey/core/base/clock.h"
#include "latchkey/core/base/lease.h"
#include "latchkey/core/base/strand.h"
#include "latchkey/core/protocol/lock_record.h"
#include "latchkey/core/protocol/locking_protocol.h"

namespace latchkey {

class RecordWatchers : public std::enable_shared_from_this<RecordWatchers> {
 public:
  // `clock` is the backend's, by which records expire: watchers hear of that without a change of
  // the record. It must outlive this object.
  static std::shared_ptr<RecordWatchers> Create(Clock& clock ABSL_ATTRIBUTE_LIFETIME_BOUND);

  RecordWatchers(const RecordWatchers&) = delete;
  RecordWatchers& operator=(const RecordWatchers&) = delete;

  // Registers. Nothing is told before the next Changed of the resource, so call that at once. The
  // subscription may outlive this object.
  Subscription Watch(const WatchRequest& request, WatchCallback on_event) ABSL_LOCKS_EXCLUDED(mu_);

  // This is the record of `resource` now. `version` grows with each change; a report older than one
  // already seen is ignored, the same one again is not. Runs callbacks, unless another call is
  // doing so: then that one runs them.
  void Changed(const ResourceName& resource, uint64_t version, const LockRecord& record)
      ABSL_LOCKS_EXCLUDED(mu_);

  // The acquisition's Obtain is about to be answered by this record, whatever else has been
  // reported by now. So a change that came after it is news, also if it was reported first: a
  // waiter that is denied by a hold which is gone already is told to ask again. Otherwise as
  // Changed.
  void Answered(const ResourceName& resource, AcquisitionId acquisition, uint64_t version,
                const LockRecord& record) ABSL_LOCKS_EXCLUDED(mu_);

  // The acquisition is about to be released: that will be no news to its watcher, which hears
  // nothing any more.
  void Silence(const ResourceName& resource, AcquisitionId acquisition) ABSL_LOCKS_EXCLUDED(mu_);

 private:
  struct Watcher;

  struct Resource {
    int watchers = 0;
    bool known = false;  // Nothing is told before the first report.
    uint64_t version = 0;
    LockRecord record;
    Clock::TimerId timer = 0;
    absl::Time timer_at = absl::InfiniteFuture();
  };

  struct News {
    std::shared_ptr<Watcher> watcher;
    WatchEvent event;
  };

  // The best first: of one resource by priority, turned round by ~, then by registration.
  using Key = std::tuple<std::string, Priority, uint64_t>;

  explicit RecordWatchers(Clock& clock) : clock_(clock) {}

  void Remove(const Key& key) ABSL_LOCKS_EXCLUDED(mu_);
  // Tells the resource's watchers what they have not heard.
  void Tell(const std::string& resource) ABSL_LOCKS_EXCLUDED(mu_);
  // Who is to be told what, next of all; none: nobody. Called by whoever has the strand.
  std::optional<News> NextNews() ABSL_LOCKS_EXCLUDED(mu_);
  std::optional<News> NextNewsBehind(const Key& position) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void SetTimer(const std::string& resource, Resource& state) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  Clock& clock_;
  absl::Mutex mu_;
  uint64_t last_watcher_ ABSL_GUARDED_BY(mu_) = 0;
  std::map<Key, std::shared_ptr<Watcher>> watchers_ ABSL_GUARDED_BY(mu_);
  // Those that somebody watches.
  std::map<std::string, Resource> resources_ ABSL_GUARDED_BY(mu_);
  // Whose watchers are to be told; and of the one whose are being told, the last that was.
  std::set<std::string> changed_ ABSL_GUARDED_BY(mu_);
  std::optional<Key> told_ ABSL_GUARDED_BY(mu_);
  internal::Strand strand_;  // Of the thread that tells.
};

}  // namespace latchkey

#endif  // LATCHKEY_CORE_PROTOCOL_RECORD_WATCHERS_H_

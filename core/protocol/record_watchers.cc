#include "latchkey/core/protocol/record_watchers.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <utility>

namespace latchkey {
namespace {

// What a record means to one who watches it.
struct View {
  enum State { kNothing, kWaiting, kMayReserve, kReserved, kFree, kHolding, kYielding, kGone };
  State state = kNothing;
  // kMayReserve: which hold.
  FencingToken hold = 0;
  // kYielding: to whom, and by when.
  AcquisitionId thief = {};
  absl::Time grace_end = absl::InfiniteFuture();

  friend bool operator==(const View&, const View&) = default;
};

View Look(const LockRecord& record, AcquisitionId me, Priority priority, bool is_holder) {
  const bool reserved = record.successor && record.successor->acquisition == me;
  if (record.holder && std::find(record.holder->handles.begin(), record.holder->handles.end(),
                                 me) != record.holder->handles.end()) {
    if (!record.successor) return {.state = View::kHolding};
    return {.state = View::kYielding,
            .thief = record.successor->acquisition,
            .grace_end = record.successor->grace_end};
  }
  if (is_holder) return {.state = View::kGone};
  if (!record.holder && (!record.successor || reserved)) return {.state = View::kFree};
  if (reserved) return {.state = View::kReserved};
  // What policies it has to respect it knows itself.
  if (record.holder && record.holder->preemptible && record.holder->priority < priority &&
      (!record.successor || record.successor->priority < priority)) {
    return {.state = View::kMayReserve, .hold = record.holder->token};
  }
  return {.state = View::kWaiting};
}

}  // namespace

struct RecordWatchers::Watcher {
  // Constant.
  AcquisitionId acquisition;
  Priority priority;
  // Called only by the thread that has the strand.
  WatchCallback on_event;

  // Guarded by mu_.
  bool is_holder = false;  // Or was one.
  bool silent = false;
  View seen = {};
  absl::Time deadline = absl::InfiniteFuture();  // Of the last hold that it saw.

  // It waits on, and knows this record from the answer to its request. A holder does not learn from
  // an answer that it is to yield.
  void Saw(const LockRecord& record) {
    const View now = Look(record, acquisition, priority, is_holder);
    if (is_holder || now.state == View::kHolding || now.state == View::kYielding) return;
    seen = now;
    if (record.holder) deadline = record.holder->deadline;
  }

  // What the record says that the watcher has not heard.
  std::optional<WatchEvent> News(const LockRecord& record, absl::Time now) {
    if (silent) return std::nullopt;
    const View before = std::exchange(seen, Look(record, acquisition, priority, is_holder));
    const bool expired = deadline <= now;
    if (record.holder) deadline = record.holder->deadline;
    if (seen.state == View::kHolding || seen.state == View::kYielding) is_holder = true;
    if (seen == before) return std::nullopt;
    switch (seen.state) {
      case View::kYielding:
        return WatchEvent{.kind = WatchEventKind::kYieldRequested,
                          .grace_remaining = seen.grace_end - now,
                          .thief_priority = record.successor->priority};
      case View::kHolding:
        if (before.state != View::kYielding) return std::nullopt;
        return WatchEvent{.kind = WatchEventKind::kYieldWithdrawn};
      case View::kGone:
        // It did not release. If it never saw the hold, nobody knows.
        return WatchEvent{.kind = WatchEventKind::kHoldEnded,
                          .why = expired || before.state == View::kNothing ? HoldEnd::kExpired
                                                                           : HoldEnd::kStolen};
      case View::kFree:
        return WatchEvent{.kind = WatchEventKind::kHoldEnded,
                          .why = expired ? HoldEnd::kExpired : HoldEnd::kReleased};
      case View::kMayReserve:
        // What stood in its way is gone: a reservation, or a hold that it did not see ending.
        if (before.state == View::kNothing || before.state == View::kFree) return std::nullopt;
        return WatchEvent{.kind = WatchEventKind::kDisplaced};
      default:
        if (before.state != View::kReserved) return std::nullopt;
        return WatchEvent{.kind = WatchEventKind::kDisplaced};
    }
  }
};

std::shared_ptr<RecordWatchers> RecordWatchers::Create(Clock& clock) {
  return std::shared_ptr<RecordWatchers>(new RecordWatchers(clock));
}

Subscription RecordWatchers::Watch(const WatchRequest& request, WatchCallback on_event) {
  Key key;
  {
    absl::MutexLock lock(&mu_);
    key = {std::string(request.resource), ~request.priority, ++last_watcher_};
    ++resources_[std::get<0>(key)].watchers;
    watchers_[key] =
        std::make_shared<Watcher>(Watcher{.acquisition = request.acquisition,
                                          .priority = request.priority,
                                          .on_event = std::move(on_event),
                                          .is_holder = request.role == WatchRole::kHolder});
  }
  return Subscription([weak = weak_from_this(), key = std::move(key)] {
    if (const auto self = weak.lock()) self->Remove(key);
  });
}

void RecordWatchers::Remove(const Key& key) {
  std::shared_ptr<Watcher> gone;  // Destroyed after the mutex is free: it owns a callback.
  absl::MutexLock lock(&mu_);
  gone = std::move(watchers_.extract(key).mapped());
  const auto resource = resources_.find(std::get<0>(key));
  if (--resource->second.watchers > 0) return;
  clock_.Cancel(resource->second.timer);
  resources_.erase(resource);
}

void RecordWatchers::Silence(const ResourceName& resource, AcquisitionId acquisition) {
  const Key first(std::string(resource), std::numeric_limits<Priority>::min(), 0);
  absl::MutexLock lock(&mu_);
  for (auto it = watchers_.lower_bound(first);
       it != watchers_.end() && std::get<0>(it->first) == std::get<0>(first); ++it) {
    if (it->second->acquisition == acquisition) it->second->silent = true;
  }
}

void RecordWatchers::Changed(const ResourceName& resource, uint64_t version,
                             const LockRecord& record) {
  const std::string name(resource);
  {
    absl::MutexLock lock(&mu_);
    const auto found = resources_.find(name);
    if (found == resources_.end() || version < found->second.version) return;
    found->second.known = true;
    found->second.version = version;
    found->second.record = record;
  }
  Tell(name);
}

void RecordWatchers::Answered(const ResourceName& resource, AcquisitionId acquisition,
                              uint64_t version, const LockRecord& record) {
  const Key first(std::string(resource), std::numeric_limits<Priority>::min(), 0);
  {
    absl::MutexLock lock(&mu_);
    for (auto it = watchers_.lower_bound(first);
         it != watchers_.end() && std::get<0>(it->first) == std::get<0>(first); ++it) {
      if (it->second->acquisition == acquisition) it->second->Saw(record);
    }
    const auto found = resources_.find(std::get<0>(first));
    if (found == resources_.end()) return;
    if (!found->second.known || version >= found->second.version) {
      found->second.known = true;
      found->second.version = version;
      found->second.record = record;
    }
  }
  Tell(std::get<0>(first));
}

void RecordWatchers::Tell(const std::string& resource) {
  {
    absl::MutexLock lock(&mu_);
    changed_.insert(resource);
  }
  // The callbacks may drop the backend, and this with it.
  const std::shared_ptr<RecordWatchers> keep = shared_from_this();
  strand_.Run([this] {
    while (const std::optional<News> news = NextNews()) news->watcher->on_event(news->event);
  });
}

std::optional<RecordWatchers::News> RecordWatchers::NextNews() {
  absl::MutexLock lock(&mu_);
  for (;;) {
    if (!told_) {
      if (changed_.empty()) return std::nullopt;
      told_.emplace(std::move(changed_.extract(changed_.begin()).value()),
                    std::numeric_limits<Priority>::min(), 0);
    }
    std::optional<News> news = NextNewsBehind(*told_);
    if (news) return news;
    if (const auto found = resources_.find(std::get<0>(*told_)); found != resources_.end()) {
      SetTimer(found->first, found->second);
    }
    told_.reset();
  }
}

std::optional<RecordWatchers::News> RecordWatchers::NextNewsBehind(const Key& position) {
  for (auto it = watchers_.upper_bound(position);
       it != watchers_.end() && std::get<0>(it->first) == std::get<0>(position); ++it) {
    // A callback may have changed the record, or ended every watch and begun a new one. So each
    // watcher is judged by the newest.
    Resource& state = resources_.at(std::get<0>(it->first));
    if (!state.known) return std::nullopt;
    const absl::Time now = clock_.Now();
    Effects unused;
    Expire(state.record, now, unused);
    const std::optional<WatchEvent> event = it->second->News(state.record, now);
    if (!event) continue;
    told_ = it->first;
    return News{it->second, *event};
  }
  return std::nullopt;
}

void RecordWatchers::SetTimer(const std::string& resource, Resource& state) {
  absl::Time end = absl::InfiniteFuture();
  if (state.record.holder) end = state.record.holder->deadline;
  if (state.record.successor) end = std::min(end, state.record.successor->deadline);
  if (end == state.timer_at) return;
  clock_.Cancel(state.timer);
  state.timer_at = end;
  state.timer = clock_.RunAt(end, [weak = weak_from_this(), resource] {
    if (const auto self = weak.lock()) self->Tell(resource);
  });
}

}  // namespace latchkey

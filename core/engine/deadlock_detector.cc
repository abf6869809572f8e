#include "latchkey/core/engine/deadlock_detector.h"

#include <algorithm>
#include <utility>

#include "absl/base/no_destructor.h"
#include "absl/strings/str_cat.h"

namespace latchkey::internal {
namespace {

struct Registry {
  absl::Mutex mu;
  absl::flat_hash_map<const LockingProtocol*, std::weak_ptr<DeadlockDetector>> detectors
      ABSL_GUARDED_BY(mu);
};

Registry& TheRegistry() {
  static absl::NoDestructor<Registry> registry;
  return *registry;
}

// Waits that end by themselves when somebody of higher priority wants what their owner holds.
bool GivesWay(const CycleWait& waiter, Priority to) {
  return waiter.gives_way && to > waiter.priority;
}

}  // namespace

std::shared_ptr<DeadlockDetector> DeadlockDetector::Of(const LockingProtocol* backend) {
  Registry& registry = TheRegistry();
  absl::MutexLock lock(&registry.mu);
  absl::erase_if(registry.detectors, [](const auto& entry) { return entry.second.expired(); });
  std::weak_ptr<DeadlockDetector>& known = registry.detectors[backend];
  std::shared_ptr<DeadlockDetector> detector = known.lock();
  if (detector == nullptr) {
    detector = std::make_shared<DeadlockDetector>();
    known = detector;
  }
  return detector;
}

std::string DeadlockDetector::Cycle::ToString() const {
  constexpr size_t kMost = 4;
  std::string text;
  for (size_t i = 0; i < links.size(); ++i) {
    std::string_view who = ", who";
    if (i + 1 == kMost && links.size() > kMost) {
      absl::StrAppend(&text, ", and so on (", links.size(), " owners in all)");
      i = links.size() - 1;  // It closes the cycle.
      who = ", the last of whom";
    }
    const Link& link = links[i];
    absl::StrAppend(&text, text.empty() ? OwnerForMessage(link.waiter->owner) : who, " waits for ",
                    ResourceForMessage(link.waiter->resource), ", held by ",
                    OwnerForMessage(link.holder));
  }
  return text;
}

CycleWait& DeadlockDetector::Cycle::Victim() const {
  const auto worse = [](const Link& a, const Link& b) {
    if (a.waiter->priority != b.waiter->priority) {
      return a.waiter->priority < b.waiter->priority;
    }
    return a.waiter->since_ > b.waiter->since_;
  };
  return *std::min_element(links.begin(), links.end(), worse)->waiter;
}

void DeadlockDetector::Add(CycleWait& waiter) {
  absl::MutexLock lock(&mu_);
  waiter.added_ = true;
  waiter.since_ = time_.fetch_add(1, std::memory_order_relaxed) + 1;
  std::vector<Wait>& waits = waits_[waiter.owner];
  waiter.place_ = waits.size();
  waits.push_back({&waiter, waiter.since_});
  waits_count_.fetch_add(1, std::memory_order_relaxed);
  Resource& resource = resources_[waiter.resource.bytes()];
  ++resource.waits;
  if (!resource.holder.empty()) Search(waiter.resource.bytes());
}

void DeadlockDetector::Remove(CycleWait& waiter) {
  absl::MutexLock lock(&mu_);
  if (!std::exchange(waiter.added_, false)) return;
  const auto waits = waits_.find(waiter.owner);
  // An owner may wait for many resources, so the last takes its place.
  const Wait last = waits->second.back();
  waits->second[waiter.place_] = last;
  last.waiter->place_ = waiter.place_;
  waits->second.pop_back();
  if (waits->second.empty()) waits_.erase(waits);
  waits_count_.fetch_sub(1, std::memory_order_relaxed);
  const auto resource = resources_.find(waiter.resource.bytes());
  if (--resource->second.waits == 0) resources_.erase(resource);
}

void DeadlockDetector::SetHolder(const CycleWait& waiter, std::string_view holder, uint64_t asked) {
  absl::MutexLock lock(&mu_);
  const auto resource = resources_.find(waiter.resource.bytes());
  if (resource == resources_.end() || asked < resource->second.asked) return;
  resource->second.holder = std::string(holder);
  resource->second.asked = asked;
  if (!holder.empty()) Search(waiter.resource.bytes());
}

// Does the holder of `resource` wait, over however many others, for somebody who waits for
// `resource`? The cost is that of the holder's own waits, however many wait for it.
void DeadlockDetector::Search(std::string_view resource) {
  const auto start = waits_.find(resources_[resource].holder);
  if (start == waits_.end()) return;
  absl::flat_hash_set<std::string_view> seen;
  std::vector<Wait> path;
  if (!Reach(start->first, nullptr, resource, seen, path)) return;
  Cycle cycle;
  for (size_t i = 0; i < path.size(); ++i) {
    const Resource& held = resources_[path[i].waiter->resource.bytes()];
    const uint64_t since = path[(i + 1) % path.size()].since;
    cycle.links.push_back({.waiter = RefPtr<CycleWait>::Share(path[i].waiter),
                           .holder = held.holder,
                           .certain = held.asked >= since,
                           .certain_from = since});
  }
  suspects_.push_back(std::move(cycle));
  suspects_count_.fetch_add(1, std::memory_order_relaxed);
}

bool DeadlockDetector::Reach(std::string_view owner, const CycleWait* entered_by,
                             std::string_view target, absl::flat_hash_set<std::string_view>& seen,
                             std::vector<Wait>& path) {
  if (!seen.insert(owner).second) return false;
  const auto waits = waits_.find(owner);
  if (waits == waits_.end()) return false;
  for (const Wait& wait : waits->second) {
    const CycleWait& waiter = *wait.waiter;
    // One that takes by force does not wait for ever.
    if (waiter.takes_by_force) continue;
    if (entered_by != nullptr && GivesWay(waiter, entered_by->priority)) continue;
    const std::string& holder = resources_[waiter.resource.bytes()].holder;
    if (holder.empty() || holder == owner) continue;
    path.push_back(wait);
    if (waiter.resource.bytes() == target) {
      // It is the one that the first of the path is waited for by.
      if (!GivesWay(*path.front().waiter, waiter.priority)) return true;
    } else if (Reach(holder, &waiter, target, seen, path)) {
      return true;
    }
    path.pop_back();
  }
  return false;
}

std::vector<DeadlockDetector::Cycle> DeadlockDetector::TakeSuspects() {
  absl::MutexLock lock(&mu_);
  suspects_count_.store(0, std::memory_order_relaxed);
  return std::exchange(suspects_, {});
}

bool DeadlockDetector::Stands(const Cycle& cycle) {
  absl::MutexLock lock(&mu_);
  for (const Link& link : cycle.links) {
    if (!link.waiter->added_) return false;
    const auto resource = resources_.find(link.waiter->resource.bytes());
    if (resource == resources_.end() || resource->second.holder != link.holder) return false;
  }
  return true;
}

}  // namespace latchkey::internal

#include "latchkey/core/internal/wait_graph.h"

#include <algorithm>
#include <utility>

#include "absl/base/no_destructor.h"
#include "absl/strings/str_cat.h"
#include "latchkey/core/internal/manager_core.h"

namespace latchkey::internal {
namespace {

struct Registry {
  absl::Mutex mu;
  absl::flat_hash_map<const LockingProtocol*, std::weak_ptr<WaitGraph>> graphs ABSL_GUARDED_BY(mu);
};

Registry& TheRegistry() {
  static absl::NoDestructor<Registry> registry;
  return *registry;
}

// Waits that end by themselves when somebody of higher priority wants what their owner holds.
bool GivesWay(const Waiter& waiter, Priority to) {
  return waiter.gives_way && to > waiter.plan.priority;
}

}  // namespace

std::shared_ptr<WaitGraph> WaitGraph::Of(const LockingProtocol* backend) {
  Registry& registry = TheRegistry();
  absl::MutexLock lock(&registry.mu);
  absl::erase_if(registry.graphs, [](const auto& entry) { return entry.second.expired(); });
  std::weak_ptr<WaitGraph>& known = registry.graphs[backend];
  std::shared_ptr<WaitGraph> graph = known.lock();
  if (graph == nullptr) {
    graph = std::make_shared<WaitGraph>();
    known = graph;
  }
  return graph;
}

std::string WaitGraph::Circle::ToString() const {
  constexpr size_t kMost = 4;
  std::string text;
  for (size_t i = 0; i < links.size(); ++i) {
    std::string_view who = ", who";
    if (i + 1 == kMost && links.size() > kMost) {
      absl::StrAppend(&text, ", and so on (", links.size(), " owners in all)");
      i = links.size() - 1;  // It closes the circle.
      who = ", the last of whom";
    }
    const Link& link = links[i];
    absl::StrAppend(&text, text.empty() ? OwnerForMessage(link.waiter->owner) : who, " waits for ",
                    ResourceForMessage(link.waiter->resource), ", held by ",
                    OwnerForMessage(link.holder));
  }
  return text;
}

Waiter& WaitGraph::Circle::Victim() const {
  const auto worse = [](const Link& a, const Link& b) {
    if (a.waiter->plan.priority != b.waiter->plan.priority) {
      return a.waiter->plan.priority < b.waiter->plan.priority;
    }
    return a.waiter->waits_since > b.waiter->waits_since;
  };
  return *std::min_element(links.begin(), links.end(), worse)->waiter;
}

void WaitGraph::Add(Waiter& waiter) {
  absl::MutexLock lock(&mu_);
  waiter.in_graph = true;
  waiter.waits_since = time_.fetch_add(1, std::memory_order_relaxed) + 1;
  std::vector<Wait>& waits = waits_[waiter.owner];
  waiter.place_in_graph = waits.size();
  waits.push_back({&waiter, waiter.waits_since});
  waits_count_.fetch_add(1, std::memory_order_relaxed);
  Resource& resource = resources_[waiter.resource.bytes()];
  ++resource.waits;
  if (!resource.holder.empty()) Search(waiter.resource.bytes());
}

void WaitGraph::Remove(Waiter& waiter) {
  absl::MutexLock lock(&mu_);
  waiter.in_graph = false;
  const auto waits = waits_.find(waiter.owner);
  // An owner may wait for many resources, so the last takes its place.
  const Wait last = waits->second.back();
  waits->second[waiter.place_in_graph] = last;
  last.waiter->place_in_graph = waiter.place_in_graph;
  waits->second.pop_back();
  if (waits->second.empty()) waits_.erase(waits);
  waits_count_.fetch_sub(1, std::memory_order_relaxed);
  const auto resource = resources_.find(waiter.resource.bytes());
  if (--resource->second.waits == 0) resources_.erase(resource);
}

void WaitGraph::SetHolder(const Waiter& waiter, std::string_view holder, uint64_t asked) {
  absl::MutexLock lock(&mu_);
  const auto resource = resources_.find(waiter.resource.bytes());
  if (resource == resources_.end() || asked < resource->second.asked) return;
  resource->second.holder = std::string(holder);
  resource->second.asked = asked;
  if (!holder.empty()) Search(waiter.resource.bytes());
}

// Does the holder of `resource` wait, over however many others, for somebody who waits for
// `resource`? The cost is that of the holder's own waits, however many wait for it.
void WaitGraph::Search(std::string_view resource) {
  const auto start = waits_.find(resources_[resource].holder);
  if (start == waits_.end()) return;
  absl::flat_hash_set<std::string_view> seen;
  std::vector<Wait> path;
  if (!Reach(start->first, nullptr, resource, seen, path)) return;
  Circle circle;
  for (size_t i = 0; i < path.size(); ++i) {
    const Resource& held = resources_[path[i].waiter->resource.bytes()];
    const uint64_t since = path[(i + 1) % path.size()].since;
    circle.links.push_back({.waiter = RefPtr<Waiter>::Share(path[i].waiter),
                            .holder = held.holder,
                            .certain = held.asked >= since,
                            .certain_from = since});
  }
  suspects_.push_back(std::move(circle));
  suspects_count_.fetch_add(1, std::memory_order_relaxed);
}

bool WaitGraph::Reach(std::string_view owner, const Waiter* entered_by, std::string_view target,
                      absl::flat_hash_set<std::string_view>& seen, std::vector<Wait>& path) {
  if (!seen.insert(owner).second) return false;
  const auto waits = waits_.find(owner);
  if (waits == waits_.end()) return false;
  for (const Wait& wait : waits->second) {
    const Waiter& waiter = *wait.waiter;
    // One that takes by force does not wait for ever.
    if (waiter.plan.grace) continue;
    if (entered_by != nullptr && GivesWay(waiter, entered_by->plan.priority)) continue;
    const std::string& holder = resources_[waiter.resource.bytes()].holder;
    if (holder.empty() || holder == owner) continue;
    path.push_back(wait);
    if (waiter.resource.bytes() == target) {
      // It is the one that the first of the path is waited for by.
      if (!GivesWay(*path.front().waiter, waiter.plan.priority)) return true;
    } else if (Reach(holder, &waiter, target, seen, path)) {
      return true;
    }
    path.pop_back();
  }
  return false;
}

std::vector<WaitGraph::Circle> WaitGraph::TakeSuspects() {
  absl::MutexLock lock(&mu_);
  suspects_count_.store(0, std::memory_order_relaxed);
  return std::exchange(suspects_, {});
}

bool WaitGraph::Stands(const Circle& circle) {
  absl::MutexLock lock(&mu_);
  for (const Link& link : circle.links) {
    if (!link.waiter->in_graph) return false;
    const auto resource = resources_.find(link.waiter->resource.bytes());
    if (resource == resources_.end() || resource->second.holder != link.holder) return false;
  }
  return true;
}

}  // namespace latchkey::internal

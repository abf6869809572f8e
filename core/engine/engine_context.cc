#include "latchkey/core/engine/engine_context.h"

#include <algorithm>
#include <random>
#include <utility>

#include "latchkey/core/base/contain.h"
#include "latchkey/core/engine/contained_observer.h"

namespace latchkey::internal {
namespace {

uint64_t RandomSeed(uint64_t wanted) {
  if (wanted != 0) return wanted;
  std::random_device device;
  return (uint64_t{device()} << 32) | device();
}

LockManagerOptions WithPolicies(LockManagerOptions options) {
  if (options.admission == nullptr) options.admission = LimitPending();
  if (options.queue == nullptr) options.queue = PriorityQueue();
  if (options.retry == nullptr) options.retry = ExponentialBackoff();
  return options;
}

std::shared_ptr<Observer> Contained(const std::shared_ptr<Observer>& observer) {
  return observer == nullptr ? nullptr : std::make_shared<ContainedObserver>(observer);
}

}  // namespace

EngineContext::EngineContext(std::shared_ptr<LockingProtocol> backend, LockManagerOptions options,
                             const QueueTraits& queue)
    : ManagerContext(std::move(backend), Contained(options.observer),
                     options.clock != nullptr ? *options.clock : RealClock(),
                     options.executor != nullptr ? *options.executor : InlineExecutor()),
      options_(WithPolicies(std::move(options))),
      barging_(queue.barging),
      by_priority_(queue.by_priority),
      backend_keeps_order_(capabilities_.keeps_order && by_priority_),
      detector_(options_.detect_deadlocks ? DeadlockDetector::Of(backend_.get()) : nullptr),
      plain_manager_(options_.preemption == nullptr && observer_ == nullptr &&
                     capabilities_.infinite_lease && capabilities_.hint_identifies_hold &&
                     capabilities_.answers_at_once && capabilities_.inspect),
      random_state_(RandomSeed(options_.random_seed)) {}

EngineContext::~EngineContext() = default;

absl::StatusOr<absl::int128> EngineContext::RankOf(const Waiter& waiter) const {
  absl::int128 rank;
  absl::Status thrown = StatusOfContained("QueuePolicy::Rank", "", [&] {
    rank = options_.queue->Rank({.priority = waiter.terms.priority, .enqueued = waiter.enqueued});
  });
  if (!thrown.ok()) return thrown;
  return rank;
}

absl::StatusOr<absl::Duration> EngineContext::RetryDelay(const RetryPolicy* policy,
                                                         const RetryContext& context) const {
  const RetryPolicy& retry = policy != nullptr ? *policy : *options_.retry;
  absl::Duration delay;
  absl::Status thrown =
      StatusOfContained("RetryPolicy::Delay", "", [&] { delay = retry.Delay(context); });
  if (!thrown.ok()) return thrown;
  return std::max(delay, kShortestRetryDelay);
}

double EngineContext::Random() {
  // SplitMix64 (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", 2014).
  uint64_t z = random_state_.fetch_add(0x9e3779b97f4a7c15, std::memory_order_relaxed);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  z ^= z >> 31;
  return static_cast<double>(z >> 11) * 0x1.0p-53;
}

}  // namespace latchkey::internal

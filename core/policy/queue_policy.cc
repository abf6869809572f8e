#include "latchkey/core/policy/queue_policy.h"

#include <algorithm>

namespace latchkey {
namespace {

class PriorityQueuePolicy : public QueuePolicy {
 public:
  explicit PriorityQueuePolicy(QueueOptions options) : options_(options) {}
  absl::int128 Rank(const WaitingRequest& request) const override {
    return -absl::int128(request.priority);
  }
  bool AllowsBarging() const override { return options_.barging; }
  bool RanksByPriority() const override { return true; }

 private:
  const QueueOptions options_;
};

class FifoQueuePolicy : public QueuePolicy {
 public:
  explicit FifoQueuePolicy(QueueOptions options) : options_(options) {}
  absl::int128 Rank(const WaitingRequest&) const override { return 0; }
  bool AllowsBarging() const override { return options_.barging; }

 private:
  const QueueOptions options_;
};

// Rank = arrival - priority * step: the order in which "priority + time waited / step" ranks two
// waiting requests never changes with time, so it can be computed once.
class AgeingQueuePolicy : public QueuePolicy {
 public:
  explicit AgeingQueuePolicy(AgeingOptions options)
      : step_(std::max<int64_t>(absl::ToInt64Nanoseconds(options.step), 1)),
        barging_(options.barging) {}
  absl::int128 Rank(const WaitingRequest& request) const override {
    return absl::int128(absl::ToUnixNanos(request.enqueued)) -
           absl::int128(request.priority) * absl::int128(step_);
  }
  bool AllowsBarging() const override { return barging_; }

 private:
  const int64_t step_;
  const bool barging_;
};

}  // namespace

std::shared_ptr<const QueuePolicy> PriorityQueue(QueueOptions options) {
  return std::make_shared<PriorityQueuePolicy>(options);
}

std::shared_ptr<const QueuePolicy> FifoQueue(QueueOptions options) {
  return std::make_shared<FifoQueuePolicy>(options);
}

std::shared_ptr<const QueuePolicy> AgeingQueue(AgeingOptions options) {
  return std::make_shared<AgeingQueuePolicy>(options);
}

}  // namespace latchkey

#include "benchmarks/simulation.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <utility>

#include "absl/log/check.h"
#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "latchkey/core/lock_error.h"
#include "latchkey/core/lock_manager.h"
#include "latchkey/memory_backend/memory_backend.h"
#include "latchkey/tests/support/simulated_clock.h"

namespace latchkey::benchmarks {
namespace {

// The standard library's distributions differ from one implementation to the next; these do not.
class Random {
 public:
  explicit Random(uint64_t seed) : bits_(seed) {}
  // In [0, 1).
  double Uniform() { return static_cast<double>(bits_() >> 11) * 0x1.0p-53; }
  double Exponential() { return -std::log1p(-Uniform()); }

 private:
  std::mt19937_64 bits_;
};

double HoldFactor(HoldTimes kind, Random& random) {
  switch (kind) {
    case HoldTimes::kFixed:
      return 1;
    case HoldTimes::kExponential:
      return random.Exponential();
    case HoldTimes::kPareto:
      // Scale 1/3 gives mean 1 at shape 1.5.
      return std::min(100.0, std::pow(1 - random.Uniform(), -1 / 1.5) / 3);
  }
  return 1;
}

// Picks an index by its weight.
size_t Pick(const std::vector<double>& cumulative, Random& random) {
  const double at = random.Uniform() * cumulative.back();
  const auto found = std::upper_bound(cumulative.begin(), cumulative.end(), at);
  return std::min(static_cast<size_t>(found - cumulative.begin()), cumulative.size() - 1);
}

absl::Duration Percentile(const std::vector<absl::Duration>& sorted, double part) {
  if (sorted.empty()) return absl::ZeroDuration();
  const double rank = std::ceil(part * static_cast<double>(sorted.size()));
  return sorted[static_cast<size_t>(std::max(rank, 1.0)) - 1];
}

struct Job {
  const TracedRequest* request = nullptr;
  absl::Time arrival;
  absl::Duration left;  // Of the work.
  absl::Time granted;
  Lock lock;
  Clock::TimerId timer = 0;  // The end of its work, or of its delay to yield.
  bool yielding = false;
};

struct ClassTally {
  ClassResult result;
  std::vector<absl::Duration> waits;
};

struct OwnerTally {
  double speeds = 0;
  int64_t jobs = 0;
};

class Simulation {
 public:
  Simulation(const std::vector<TracedRequest>& requests, const PolicyChoice& policy,
             const SimulationOptions& options)
      : requests_(requests),
        policy_(policy),
        options_(options),
        manager_(NewManager()),
        jobs_(requests.size()) {}

  Result Run() {
    ScheduleArrival();
    for (int64_t steps = 0; clock_.AdvanceToNextTimer(); ++steps) {
      if (options_.progress != nullptr && steps % 1024 == 0) {
        options_.progress(clock_.Now() - begin_);
      }
    }
    CHECK_EQ(unsettled_, 0) << "a job is left waiting";
    return Summarize();
  }

 private:
  LockManager NewManager() {
    absl::StatusOr<LockManager> manager =
        LockManager::Create(NewMemoryBackend({.clock = &clock_}), {.clock = &clock_,
                                                                   .admission = policy_.admission,
                                                                   .queue = policy_.queue,
                                                                   .preemption = policy_.preemption,
                                                                   .random_seed = options_.seed});
    CHECK_OK(manager);
    return *std::move(manager);
  }

  ClassTally& ClassOf(const Job& job) { return classes_[job.request->priority]; }

  void ScheduleArrival() {
    if (next_ == requests_.size()) return;
    clock_.RunAt(begin_ + requests_[next_].arrival, [this] {
      Job& job = jobs_[next_];
      job.request = &requests_[next_++];
      job.arrival = clock_.Now();
      job.left = job.request->hold;
      ++unsettled_;
      ++ClassOf(job).result.requests;
      ScheduleArrival();
      Ask(job);
    });
  }

  void Ask(Job& job) {
    const AcquireOptions wanted{.priority = job.request->priority,
                                .acquire_timeout = options_.acquire_timeout};
    manager_.AcquireAsync(job.request->resource, wanted, [this, &job](absl::StatusOr<Lock> lock) {
      if (lock.ok()) {
        OnGranted(job, *std::move(lock));
      } else {
        OnRefused(job, lock.status());
      }
    });
  }

  void OnGranted(Job& job, Lock lock) {
    job.lock = std::move(lock);
    job.granted = clock_.Now();
    job.yielding = false;
    job.timer = clock_.RunAt(job.granted + job.left, [this, &job] { OnDone(job); });
    job.lock.OnLost([this, &job](LockState) { GoBack(job); });
    job.lock.OnYieldRequested([this, &job] {
      if (job.yielding) return;
      job.yielding = true;
      const absl::Time at = clock_.Now() + options_.yield_delay;
      // Work that ends sooner than that goes on to its end.
      if (at >= job.granted + job.left) return;
      clock_.Cancel(job.timer);
      job.timer = clock_.RunAt(at, [this, &job] { GoBack(job); });
    });
  }

  void OnDone(Job& job) {
    ClassTally& tally = ClassOf(job);
    ++tally.result.completed;
    tally.waits.push_back(job.granted - job.arrival);
    const absl::Duration taken = clock_.Now() - job.arrival;
    if (taken > options_.deadline) ++tally.result.deadline_misses;
    Settle(job, taken > absl::ZeroDuration() ? absl::FDivDuration(job.request->hold, taken) : 1.0);
    job.lock = Lock();
  }

  // It was preempted.
  void GoBack(Job& job) {
    clock_.Cancel(job.timer);
    ClassTally& tally = ClassOf(job);
    ++tally.result.preemptions;
    const absl::Duration worked = clock_.Now() - job.granted;
    if (options_.resume) {
      job.left = std::max(job.left - worked, absl::ZeroDuration());
    } else {
      tally.result.wasted += worked;
    }
    job.lock = Lock();
    Ask(job);
  }

  void OnRefused(Job& job, const absl::Status& status) {
    ClassTally& tally = ClassOf(job);
    if (ReasonOf(status) == Reason::kAcquireTimeout) {
      ++tally.result.timeouts;
    } else {
      ++tally.result.rejected;
    }
    if (options_.deadline != absl::InfiniteDuration()) ++tally.result.deadline_misses;
    Settle(job, 0);
  }

  void Settle(const Job& job, double speed) {
    OwnerTally& owner = owners_[job.request->owner];
    owner.speeds += speed;
    ++owner.jobs;
    --unsettled_;
    last_settled_ = clock_.Now();
  }

  static void AddPercentiles(std::vector<absl::Duration> waits, ClassResult& result) {
    std::sort(waits.begin(), waits.end());
    result.wait_p50 = Percentile(waits, 0.5);
    result.wait_p90 = Percentile(waits, 0.9);
    result.wait_p99 = Percentile(waits, 0.99);
    result.wait_max = Percentile(waits, 1);
  }

  Result Summarize() {
    Result result{.policy = policy_.name, .simulated = last_settled_ - begin_};
    std::vector<absl::Duration> waits;
    for (auto& [priority, tally] : classes_) {
      AddPercentiles(tally.waits, tally.result);
      waits.insert(waits.end(), tally.waits.begin(), tally.waits.end());
      const ClassResult& one = result.classes[priority] = tally.result;
      result.all.requests += one.requests;
      result.all.completed += one.completed;
      result.all.preemptions += one.preemptions;
      result.all.wasted += one.wasted;
      result.all.deadline_misses += one.deadline_misses;
      result.all.timeouts += one.timeouts;
      result.all.rejected += one.rejected;
    }
    AddPercentiles(std::move(waits), result.all);
    if (result.simulated > absl::ZeroDuration()) {
      result.throughput =
          static_cast<double>(result.all.completed) / absl::ToDoubleSeconds(result.simulated);
    }
    double sum = 0;
    double squares = 0;
    for (const auto& [owner, tally] : owners_) {
      const double speed = tally.speeds / static_cast<double>(tally.jobs);
      sum += speed;
      squares += speed * speed;
    }
    result.fairness = squares > 0 ? sum * sum / (static_cast<double>(owners_.size()) * squares) : 1;
    return result;
  }

  const std::vector<TracedRequest>& requests_;
  const PolicyChoice& policy_;
  const SimulationOptions& options_;
  SimulatedClock clock_;
  const absl::Time begin_ = clock_.Now();
  LockManager manager_;
  std::vector<Job> jobs_;
  size_t next_ = 0;
  int64_t unsettled_ = 0;
  absl::Time last_settled_ = begin_;
  std::map<Priority, ClassTally> classes_;
  std::map<std::string, OwnerTally> owners_;  // Ordered, so that sums do not depend on a hash.
};

}  // namespace

std::vector<TracedRequest> Generate(const WorkloadOptions& options) {
  Random random(options.seed);
  std::vector<double> by_class;
  for (const auto& [priority, weight] : options.priorities) {
    by_class.push_back((by_class.empty() ? 0 : by_class.back()) + weight);
  }
  std::vector<double> by_resource;
  for (int i = 0; i < options.resources; ++i) {
    by_resource.push_back((by_resource.empty() ? 0 : by_resource.back()) +
                          std::pow(i + 1, -options.skew));
  }
  // A client has one priority for all that it does. Clients are dealt out by weight rather than at
  // random, so that each class has its share however few there are.
  std::vector<Priority> priority_of;
  for (int i = 0; i < options.clients; ++i) {
    const double at = (i + 0.5) / options.clients * by_class.back();
    const auto found = std::upper_bound(by_class.begin(), by_class.end(), at);
    priority_of.push_back(options.priorities[static_cast<size_t>(found - by_class.begin())].first);
  }

  constexpr int kBurst = 10;
  std::vector<TracedRequest> requests;
  double at = 0;
  for (int64_t number = 0;; ++number) {
    switch (options.arrivals) {
      case Arrivals::kPoisson:
        at += random.Exponential() / options.rate;
        break;
      case Arrivals::kRegular:
        at += 1 / options.rate;
        break;
      case Arrivals::kBursts:
        if (number % kBurst == 0) at += kBurst * random.Exponential() / options.rate;
        break;
    }
    const absl::Duration arrival = absl::Seconds(at);
    if (arrival >= options.duration) return requests;
    const size_t client =
        std::min(static_cast<size_t>(random.Uniform() * options.clients), priority_of.size() - 1);
    const size_t resource = Pick(by_resource, random);
    // Whole microseconds, as in a trace.
    const absl::Duration hold =
        absl::Microseconds(std::max(1.0, std::round(absl::ToDoubleMicroseconds(options.mean_hold) *
                                                    HoldFactor(options.hold_times, random))));
    requests.push_back({.arrival = absl::Trunc(arrival, absl::Microseconds(1)),
                        .resource = absl::StrCat("resource ", resource + 1),
                        .owner = absl::StrCat("client ", client + 1),
                        .priority = priority_of[client],
                        .hold = hold});
  }
}

absl::StatusOr<PolicyChoice> ParsePolicy(std::string_view text) {
  PolicyChoice choice{.name = std::string(text)};
  for (const std::string_view part : absl::StrSplit(text, '+')) {
    const std::pair<std::string_view, std::string_view> halves =
        absl::StrSplit(part, absl::MaxSplits(':', 1));
    const auto& [word, value] = halves;
    absl::Duration duration;
    int64_t number = 0;
    const bool is_duration =
        absl::ParseDuration(std::string(value), &duration) && duration > absl::ZeroDuration();
    const bool is_number = absl::SimpleAtoi(value, &number) && number > 0;
    if (part == "fifo") {
      choice.queue = FifoQueue();
    } else if (part == "priority") {
      choice.queue = PriorityQueue();
    } else if (word == "ageing" && is_duration) {
      choice.queue = AgeingQueue({.step = duration});
    } else if (part == "never") {
      choice.preemption = NeverPreempt();
    } else if (part == "preempt") {
      choice.preemption = PreemptLower();
    } else if (word == "margin" && is_number) {
      choice.preemption = PreemptByMargin(number);
    } else if (word == "forced" && is_duration) {
      choice.preemption = ForceAfter(duration);
    } else if (part == "all") {
      choice.admission = AdmitAll();
    } else if (word == "limit" && is_number) {
      choice.admission = LimitPending({.per_resource = number});
    } else if (word == "shed" && is_number) {
      choice.admission = ShedLowestPriority({.per_resource = number});
    } else {
      return absl::InvalidArgumentError(absl::StrCat(
          "'", part, "' in policy '", text,
          "' is none of fifo, priority, ageing:STEP, never, preempt, margin:N, forced:GRACE, all, "
          "limit:N, shed:N"));
    }
  }
  return choice;
}

Result Simulate(const std::vector<TracedRequest>& requests, const PolicyChoice& policy,
                const SimulationOptions& options) {
  return Simulation(requests, policy, options).Run();
}

}  // namespace latchkey::benchmarks

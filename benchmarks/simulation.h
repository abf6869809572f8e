// Simulates a workload under a policy: the real LockManager on the real in-memory backend, on
// simulated time, in one thread. The same workload and policy give the same result every time.
//
//   const std::vector<TracedRequest> requests = Generate({.rate = 400, .clients = 50});
//   absl::StatusOr<PolicyChoice> policy = ParsePolicy("ageing:50ms+never");
//   const Result result = Simulate(requests, *policy, {});
//
// Clients: each request is one job of its owner. When it is granted the lock, it works for the time
// that it has to hold it, then gives it back. When it is asked to yield, it gives the lock back
// after `yield_delay` and starts over in the queue. Jobs lock anonymously, so that two jobs of one
// owner do not enter together.
#ifndef LATCHKEY_BENCHMARKS_SIMULATION_H_
#define LATCHKEY_BENCHMARKS_SIMULATION_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "latchkey/benchmarks/trace.h"
#include "latchkey/core/policy/admission_policy.h"
#include "latchkey/core/policy/preemption_policy.h"
#include "latchkey/core/policy/queue_policy.h"

namespace latchkey::benchmarks {

enum class Arrivals {
  kPoisson,  // Independent of each other.
  kRegular,  // Evenly spaced.
  kBursts,   // Ten at once, the bursts independent of each other.
};
enum class HoldTimes {
  kFixed,
  kExponential,
  kPareto,  // Shape 1.5, cut at 100 times the mean: few are very long.
};

struct WorkloadOptions {
  uint64_t seed = 1;
  absl::Duration duration = absl::Seconds(60);
  Arrivals arrivals = Arrivals::kPoisson;
  double rate = 100;  // Requests in a second, all clients together.
  int clients = 50;
  int resources = 1;
  double skew = 0;  // Of Zipf's law over the resources; 0: all alike.
  HoldTimes hold_times = HoldTimes::kExponential;
  absl::Duration mean_hold = absl::Milliseconds(8);
  // Priorities and how many of 100 clients have each.
  std::vector<std::pair<Priority, double>> priorities = {{0, 80}, {5, 15}, {10, 5}};
};

std::vector<TracedRequest> Generate(const WorkloadOptions& options);

// Null: the manager's default.
struct PolicyChoice {
  std::string name = {};
  std::shared_ptr<const QueuePolicy> queue = nullptr;
  std::shared_ptr<const PreemptionPolicy> preemption = nullptr;
  std::shared_ptr<const AdmissionPolicy> admission = nullptr;
};

// Parts joined by '+', in any order:
//   queue       fifo, priority, ageing:STEP (a duration)
//   preemption  never, preempt, margin:N, forced:GRACE (a duration)
//   admission   all, limit:N (pending for each resource), shed:N
// What is not named is as the manager's default. kInvalidArgument names the part that is wrong.
absl::StatusOr<PolicyChoice> ParsePolicy(std::string_view text);

struct SimulationOptions {
  uint64_t seed = 1;
  // How long a job that was asked to yield goes on.
  absl::Duration yield_delay = absl::Milliseconds(1);
  // A job that yielded goes on where it was, instead of doing its work again.
  bool resume = false;
  absl::Duration acquire_timeout = absl::InfiniteDuration();
  // A job that is done later than this after its arrival has missed its deadline.
  absl::Duration deadline = absl::InfiniteDuration();
  // Called now and then with the simulated time that has passed.
  std::function<void(absl::Duration)> progress = nullptr;
};

struct ClassResult {
  int64_t requests = 0;
  int64_t completed = 0;
  // From the arrival to the grant of the lock under which the job was completed.
  absl::Duration wait_p50 = absl::ZeroDuration();
  absl::Duration wait_p90 = absl::ZeroDuration();
  absl::Duration wait_p99 = absl::ZeroDuration();
  absl::Duration wait_max = absl::ZeroDuration();
  int64_t preemptions = 0;                       // Suffered.
  absl::Duration wasted = absl::ZeroDuration();  // Work done in vain since it was preempted.
  int64_t deadline_misses = 0;
  int64_t timeouts = 0;
  int64_t rejected = 0;
};

struct Result {
  std::string policy = {};
  absl::Duration simulated = absl::ZeroDuration();
  double throughput = 0;  // Jobs completed in a simulated second.
  // Jain's index over the owners' mean speed (hold time / time from arrival to completion; 0 for a
  // job that failed): 1 if all fare alike, 1/n if one gets everything.
  double fairness = 0;
  ClassResult all = {};
  std::map<Priority, ClassResult> classes = {};
};

Result Simulate(const std::vector<TracedRequest>& requests, const PolicyChoice& policy,
                const SimulationOptions& options);

}  // namespace latchkey::benchmarks

#endif  // LATCHKEY_BENCHMARKS_SIMULATION_H_

// Says what each policy would do to a workload: a generated one, or one recorded from a live
// program.
//
//   bazelw run --config=opt //benchmarks:policy_simulator --
//       --compare=fifo+never,priority+never,priority+preempt --csv=policies.csv
//
// Policies are written as benchmarks/simulation.h says. docs/how-to/benchmark-policies.md walks
// through a comparison. The same flags give the same output every time.
#include <unistd.h>

#include <fstream>
#include <iostream>
#include <string>
#include <utility>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "benchmarks/simulation.h"
#include "latchkey/benchmarks/trace.h"

ABSL_FLAG(std::string, policy, "priority+preempt", "the policy to simulate");
ABSL_FLAG(std::vector<std::string>, compare, {}, "several policies, side by side");
ABSL_FLAG(std::string, trace, "", "simulate this trace (CSV) instead of a generated workload");
ABSL_FLAG(std::string, write_trace, "", "write the workload to this file as a trace");
ABSL_FLAG(std::string, csv, "", "write the results to this file, too");

ABSL_FLAG(uint64_t, seed, 1, "of everything random");
ABSL_FLAG(absl::Duration, duration, absl::Seconds(60), "how long requests arrive");
ABSL_FLAG(std::string, arrivals, "poisson", "poisson, regular or bursts");
ABSL_FLAG(double, rate, 100, "requests in a second, all clients together");
ABSL_FLAG(int, clients, 50, "how many clients make them");
ABSL_FLAG(int, resources, 1, "how many resources they lock");
ABSL_FLAG(double, skew, 0, "of Zipf's law over the resources; 0: uniform");
ABSL_FLAG(std::string, hold, "exponential", "hold times: fixed, exponential or pareto");
ABSL_FLAG(absl::Duration, mean_hold, absl::Milliseconds(8), "the mean hold time");
ABSL_FLAG(std::vector<std::string>, priorities, std::vector<std::string>({"0:80", "5:15", "10:5"}),
          "PRIORITY:WEIGHT, ... of the clients");

ABSL_FLAG(absl::Duration, yield_delay, absl::Milliseconds(1),
          "how long a holder goes on that was asked to yield");
ABSL_FLAG(bool, resume, false, "a preempted job goes on where it was instead of starting over");
ABSL_FLAG(absl::Duration, acquire_timeout, absl::InfiniteDuration(), "how long a request waits");
ABSL_FLAG(absl::Duration, deadline, absl::InfiniteDuration(),
          "by when after its arrival a job should be done");
ABSL_FLAG(bool, progress, false, "show the progress also where standard error is no terminal");

namespace latchkey::benchmarks {
namespace {

int Usage(const std::string& message) {
  std::cerr << "policy_simulator: " << message << "\n";
  return 2;
}

template <typename Value>
bool Choose(const std::string& text, const std::vector<std::pair<std::string, Value>>& choices,
            Value& value) {
  for (const auto& [name, choice] : choices) {
    if (name != text) continue;
    value = choice;
    return true;
  }
  return false;
}

double Millis(absl::Duration duration) { return absl::ToDoubleMilliseconds(duration); }

void PrintLine(const std::string& policy, const std::string& priority, const ClassResult& one) {
  std::cout << absl::StrFormat("%-28s %8s %8d %8d %9.1f %9.1f %9.1f %9.1f %8d %10.1f %8d %8d %8d\n",
                               policy, priority, one.requests, one.completed, Millis(one.wait_p50),
                               Millis(one.wait_p90), Millis(one.wait_p99), Millis(one.wait_max),
                               one.preemptions, Millis(one.wasted), one.deadline_misses,
                               one.timeouts, one.rejected);
}

void PrintResults(const std::vector<Result>& results) {
  std::cout << absl::StrFormat("%-28s %10s %10s\n", "policy", "jobs/s", "fairness");
  for (const Result& result : results) {
    std::cout << absl::StrFormat("%-28s %10.2f %10.3f\n", result.policy, result.throughput,
                                 result.fairness);
  }
  std::cout << "\nwaits and wasted work in milliseconds\n"
            << absl::StrFormat("%-28s %8s %8s %8s %9s %9s %9s %9s %8s %10s %8s %8s %8s\n", "policy",
                               "priority", "requests", "done", "wait p50", "p90", "p99", "max",
                               "preempt", "wasted", "late", "timeout", "rejected");
  for (const Result& result : results) {
    PrintLine(result.policy, "all", result.all);
    for (const auto& [priority, one] : result.classes) {
      PrintLine("", absl::StrCat(priority), one);
    }
  }
}

void WriteCsv(std::ostream& out, const std::vector<Result>& results) {
  out << "policy,priority,requests,completed,throughput_per_s,fairness,wait_p50_ms,wait_p90_ms,"
         "wait_p99_ms,wait_max_ms,preemptions,wasted_ms,deadline_misses,timeouts,rejected\n";
  for (const Result& result : results) {
    const auto line = [&](const std::string& priority, const ClassResult& one) {
      const double seconds = absl::ToDoubleSeconds(result.simulated);
      out << absl::StrFormat("%s,%s,%d,%d,%.4f,%.4f,%.3f,%.3f,%.3f,%.3f,%d,%.3f,%d,%d,%d\n",
                             result.policy, priority, one.requests, one.completed,
                             seconds > 0 ? static_cast<double>(one.completed) / seconds : 0.0,
                             result.fairness, Millis(one.wait_p50), Millis(one.wait_p90),
                             Millis(one.wait_p99), Millis(one.wait_max), one.preemptions,
                             Millis(one.wasted), one.deadline_misses, one.timeouts, one.rejected);
    };
    line("all", result.all);
    for (const auto& [priority, one] : result.classes) line(absl::StrCat(priority), one);
  }
}

int Main() {
  WorkloadOptions workload{.seed = absl::GetFlag(FLAGS_seed),
                           .duration = absl::GetFlag(FLAGS_duration),
                           .rate = absl::GetFlag(FLAGS_rate),
                           .clients = absl::GetFlag(FLAGS_clients),
                           .resources = absl::GetFlag(FLAGS_resources),
                           .skew = absl::GetFlag(FLAGS_skew),
                           .mean_hold = absl::GetFlag(FLAGS_mean_hold)};
  if (!Choose(absl::GetFlag(FLAGS_arrivals),
              {{"poisson", Arrivals::kPoisson},
               {"regular", Arrivals::kRegular},
               {"bursts", Arrivals::kBursts}},
              workload.arrivals)) {
    return Usage("--arrivals must be poisson, regular or bursts");
  }
  if (!Choose(absl::GetFlag(FLAGS_hold),
              {{"fixed", HoldTimes::kFixed},
               {"exponential", HoldTimes::kExponential},
               {"pareto", HoldTimes::kPareto}},
              workload.hold_times)) {
    return Usage("--hold must be fixed, exponential or pareto");
  }
  if (!(workload.rate > 0) || workload.clients < 1 || workload.resources < 1 ||
      !(workload.skew >= 0) || workload.mean_hold <= absl::ZeroDuration() ||
      workload.duration <= absl::ZeroDuration() || workload.duration == absl::InfiniteDuration()) {
    return Usage(
        "--rate, --clients, --resources, --mean_hold and --duration must be positive and finite, "
        "--skew not negative");
  }
  workload.priorities.clear();
  for (const std::string& text : absl::GetFlag(FLAGS_priorities)) {
    const std::pair<std::string, std::string> halves = absl::StrSplit(text, ':');
    Priority priority;
    double weight;
    if (!absl::SimpleAtoi(halves.first, &priority) || !absl::SimpleAtod(halves.second, &weight) ||
        !(weight > 0)) {
      return Usage("--priorities must be like 0:80,5:15,10:5, but has '" + text + "'");
    }
    workload.priorities.emplace_back(priority, weight);
  }
  if (workload.priorities.empty()) return Usage("--priorities must not be empty");

  SimulationOptions options{.seed = workload.seed,
                            .yield_delay = absl::GetFlag(FLAGS_yield_delay),
                            .resume = absl::GetFlag(FLAGS_resume),
                            .acquire_timeout = absl::GetFlag(FLAGS_acquire_timeout),
                            .deadline = absl::GetFlag(FLAGS_deadline)};
  if (options.yield_delay < absl::ZeroDuration() ||
      options.acquire_timeout < absl::ZeroDuration() || options.deadline < absl::ZeroDuration()) {
    return Usage("--yield_delay, --acquire_timeout and --deadline must not be negative");
  }

  std::vector<std::string> names = absl::GetFlag(FLAGS_compare);
  if (names.empty()) names.push_back(absl::GetFlag(FLAGS_policy));
  std::vector<PolicyChoice> policies;
  for (const std::string& name : names) {
    absl::StatusOr<PolicyChoice> policy = ParsePolicy(name);
    if (!policy.ok()) return Usage(std::string(policy.status().message()));
    policies.push_back(*std::move(policy));
  }

  std::vector<TracedRequest> requests;
  if (const std::string path = absl::GetFlag(FLAGS_trace); !path.empty()) {
    std::ifstream file(path);
    if (!file) return Usage("cannot read " + path);
    absl::StatusOr<std::vector<TracedRequest>> trace = ReadTrace(file);
    if (!trace.ok()) return Usage(path + ": " + std::string(trace.status().message()));
    requests = *std::move(trace);
  } else {
    requests = Generate(workload);
  }
  if (const std::string path = absl::GetFlag(FLAGS_write_trace); !path.empty()) {
    std::ofstream file(path);
    WriteTraceHeader(file);
    for (const TracedRequest& request : requests) WriteTraceLine(file, request);
    if (!file.flush()) return Usage("cannot write " + path);
  }

  const bool show = absl::GetFlag(FLAGS_progress) || isatty(STDERR_FILENO) != 0;
  const absl::Duration end = requests.empty() ? absl::ZeroDuration() : requests.back().arrival;
  std::vector<Result> results;
  for (const PolicyChoice& policy : policies) {
    absl::Time last = absl::Now();
    bool shown = false;
    if (show) {
      options.progress = [&](absl::Duration passed) {
        if (absl::Now() - last < absl::Milliseconds(500)) return;
        last = absl::Now();
        shown = true;
        std::cerr << absl::StrFormat("\r%d/%d %s: %.1f of %.1f simulated seconds ",
                                     results.size() + 1, policies.size(), policy.name,
                                     absl::ToDoubleSeconds(passed), absl::ToDoubleSeconds(end))
                  << std::flush;
      };
    }
    results.push_back(Simulate(requests, policy, options));
    if (shown) std::cerr << "\n";
  }
  PrintResults(results);
  if (const std::string path = absl::GetFlag(FLAGS_csv); !path.empty()) {
    std::ofstream file(path);
    WriteCsv(file, results);
    if (!file.flush()) return Usage("cannot write " + path);
  }
  return 0;
}

}  // namespace
}  // namespace latchkey::benchmarks

int main(int argc, char** argv) {
  absl::SetProgramUsageMessage("Says what each lock policy would do to a workload.");
  const std::vector<char*> rest = absl::ParseCommandLine(argc, argv);
  if (rest.size() > 1) {
    return latchkey::benchmarks::Usage(std::string("what is '") + rest[1] + "'?");
  }
  return latchkey::benchmarks::Main();
}

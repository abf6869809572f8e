// The policy simulator gives the same answer every time, and the answer is right where one can work
// it out by hand. Traces survive being written and read.
#include "benchmarks/simulation.h"

#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "latchkey/benchmarks/trace.h"
#include "latchkey/core/lock_manager.h"
#include "latchkey/memory_backend/memory_backend.h"
#include "latchkey/tests/support/simulated_clock.h"

namespace latchkey::benchmarks {
namespace {

constexpr absl::Duration kMs = absl::Milliseconds(1);

PolicyChoice Policy(std::string_view text) {
  absl::StatusOr<PolicyChoice> policy = ParsePolicy(text);
  EXPECT_TRUE(policy.ok()) << policy.status();
  return *std::move(policy);
}

// A long job of low priority, then one each of low and high priority while it runs.
std::vector<TracedRequest> ThreeJobs() {
  return {{.arrival = 0 * kMs, .resource = "r", .owner = "a", .priority = 0, .hold = 100 * kMs},
          {.arrival = 10 * kMs, .resource = "r", .owner = "b", .priority = 0, .hold = 10 * kMs},
          {.arrival = 20 * kMs, .resource = "r", .owner = "c", .priority = 9, .hold = 10 * kMs}};
}

TEST(SimulationTest, FifoServesInTheOrderOfArrival) {
  const Result result = Simulate(ThreeJobs(), Policy("fifo+never"), {});
  EXPECT_EQ(result.all.completed, 3);
  EXPECT_EQ(result.classes.at(9).wait_max, 90 * kMs);  // 100 + 10 - 20
  EXPECT_EQ(result.classes.at(0).wait_max, 90 * kMs);  // 100 - 10
  EXPECT_EQ(result.simulated, 120 * kMs);
}

TEST(SimulationTest, PriorityServesTheMoreUrgentFirst) {
  const Result result = Simulate(ThreeJobs(), Policy("priority+never"), {});
  EXPECT_EQ(result.classes.at(9).wait_max, 80 * kMs);
  EXPECT_EQ(result.classes.at(0).wait_max, 100 * kMs);
  EXPECT_EQ(result.all.preemptions, 0);
}

TEST(SimulationTest, PreemptionMakesTheHolderYieldAndStartOver) {
  const Result result = Simulate(ThreeJobs(), Policy("priority+preempt"), {.yield_delay = 2 * kMs});
  EXPECT_EQ(result.classes.at(9).wait_max, 2 * kMs);
  EXPECT_EQ(result.all.preemptions, 1);
  EXPECT_EQ(result.all.wasted, 22 * kMs);
  // 22 in vain, 10 urgent, 10 and 100 of the others.
  EXPECT_EQ(result.simulated, 142 * kMs);
}

TEST(SimulationTest, WorkThatResumesIsNotWasted) {
  const Result result =
      Simulate(ThreeJobs(), Policy("priority+preempt"), {.yield_delay = 2 * kMs, .resume = true});
  EXPECT_EQ(result.all.wasted, absl::ZeroDuration());
  EXPECT_EQ(result.simulated, 120 * kMs);
}

TEST(SimulationTest, TimeoutsRejectionsAndLateJobsAreCounted) {
  const Result timed = Simulate(ThreeJobs(), Policy("fifo+never"), {.acquire_timeout = 50 * kMs});
  EXPECT_EQ(timed.all.timeouts, 2);
  const Result limited = Simulate(ThreeJobs(), Policy("fifo+never+limit:1"), {});
  EXPECT_EQ(limited.all.rejected, 1);
  const Result late = Simulate(ThreeJobs(), Policy("fifo+never"), {.deadline = 100 * kMs});
  EXPECT_EQ(late.all.deadline_misses, 0);
  const Result later = Simulate(ThreeJobs(), Policy("fifo+never"), {.deadline = 99 * kMs});
  EXPECT_EQ(later.all.deadline_misses, 3);
}

TEST(SimulationTest, TheSameSeedGivesTheSameResult) {
  const WorkloadOptions workload{
      .seed = 7, .duration = absl::Seconds(5), .resources = 3, .skew = 1};
  const std::vector<TracedRequest> requests = Generate(workload);
  EXPECT_EQ(requests, Generate(workload));
  for (const std::string_view policy : {"fifo+never", "ageing:10ms+preempt", "forced:5ms+shed:5"}) {
    const Result a = Simulate(requests, Policy(policy), {});
    const Result b = Simulate(requests, Policy(policy), {});
    EXPECT_EQ(a.all.completed, b.all.completed);
    EXPECT_EQ(a.all.wait_p50, b.all.wait_p50);
    EXPECT_EQ(a.all.wait_max, b.all.wait_max);
    EXPECT_EQ(a.all.preemptions, b.all.preemptions);
    EXPECT_EQ(a.fairness, b.fairness);
  }
}

TEST(SimulationTest, UnknownPoliciesAreNamed) {
  for (const std::string_view text : {"", "lifo", "ageing", "ageing:-1s", "limit:0", "fifo+"}) {
    EXPECT_EQ(ParsePolicy(text).status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
}

TEST(TraceTest, SurvivesBeingWrittenAndRead) {
  const std::vector<TracedRequest> requests = {
      {.arrival = 1 * kMs, .resource = "a,b", .owner = "say \"x\"", .priority = -3, .hold = kMs},
      {.arrival = 2 * kMs, .resource = "line\nbreak", .owner = "", .priority = 5}};
  std::stringstream stream;
  WriteTraceHeader(stream);
  // Out of order.
  WriteTraceLine(stream, requests[1]);
  WriteTraceLine(stream, requests[0]);
  const absl::StatusOr<std::vector<TracedRequest>> read = ReadTrace(stream);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(*read, requests);
}

TEST(TraceTest, ABadRecordIsNamed) {
  std::stringstream stream("arrival_us,resource,owner,priority,hold_us\n1,r,o,zero,5\n");
  const absl::Status status = ReadTrace(stream).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("record 2"), std::string_view::npos) << status;
}

TEST(TraceTest, TheRecorderWritesWhatALiveManagerDid) {
  std::stringstream stream;
  SimulatedClock clock;
  {
    auto recorder = std::make_shared<TraceRecorder>(stream, &clock);
    absl::StatusOr<LockManager> manager = LockManager::Create(
        NewMemoryBackend({.clock = &clock}), {.clock = &clock, .observer = recorder});
    ASSERT_TRUE(manager.ok());
    absl::StatusOr<Lock> first = manager->Acquire("r", {.owner = "a", .priority = 2});
    ASSERT_TRUE(first.ok());
    clock.AdvanceBy(3 * kMs);
    absl::StatusOr<Lock> second = absl::StatusOr<Lock>(Lock());
    manager->AcquireAsync("r", {.owner = "b"},
                          [&second](absl::StatusOr<Lock> lock) { second = std::move(lock); });
    clock.AdvanceBy(4 * kMs);
    EXPECT_TRUE(first->Release().ok());
    clock.AdvanceBy(5 * kMs);
    ASSERT_TRUE(second.ok());
    EXPECT_TRUE(second->Release().ok());
  }
  const absl::StatusOr<std::vector<TracedRequest>> read = ReadTrace(stream);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(*read,
            (std::vector<TracedRequest>{
                {.arrival = 0 * kMs, .resource = "r", .owner = "a", .priority = 2, .hold = 7 * kMs},
                {.arrival = 3 * kMs, .resource = "r", .owner = "b", .hold = 5 * kMs}}));
}

}  // namespace
}  // namespace latchkey::benchmarks

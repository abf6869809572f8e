// Is a backend atomic where threads really meet? Records what several threads ask of it and hear,
// and searches for an order of the steps, each at one moment between its call and its answer, in
// which core/lock_record gives these very answers. If there is none, some step was not atomic: two
// were let in, a token went back, an answer told of a state that never was.
//
//   SimulatedClock clock;                                 // which nobody moves
//   auto backend = NewMyBackend(clock);
//   const History history = RecordHistory({backend.get()}, {.seed = seed});
//   EXPECT_EQ(CheckLinearizable(history), "");
//
// For backends whose completions run before the call returns, on a clock that stands still: then no
// lease ends, and every answer is known exactly. What is recorded by other means may have steps
// without an answer.
//
// The search is that of Wing and Gong ("Testing and Verifying Concurrent Objects", Journal of
// Parallel and Distributed Computing, 1993), with Lowe's memory of states already tried ("Testing
// for Linearizability", Concurrency and Computation: Practice and Experience, 2017). Each resource
// is searched for itself: a history is linearizable if, and only if, it is so for each object
// (Herlihy and Wing, "Linearizability: A Correctness Condition for Concurrent Objects", ACM TOPLAS,
// 1990).
//
// Thread safety: pure functions, but that RecordHistory starts threads, and ends them.
#ifndef LATCHKEY_TESTS_SUPPORT_LINEARIZABILITY_H_
#define LATCHKEY_TESTS_SUPPORT_LINEARIZABILITY_H_

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/time/time.h"
#include "latchkey/core/lease.h"
#include "latchkey/core/protocol/locking_protocol.h"
#include "latchkey/core/protocol/quorum_member.h"

namespace latchkey {

// One step: what a client asked, what it heard, and between which two moments.
struct Operation {
  enum class Kind { kObtain, kRelease, kExtend, kConfirm, kInspect };
  static constexpr uint64_t kNever = ~uint64_t{0};

  int client = 0;
  // Any numbers that grow with time, all of them different.
  uint64_t invoked = 0;
  uint64_t returned = kNever;

  Kind kind = Kind::kInspect;
  std::string resource = {};
  AcquisitionId acquisition = {};
  // kObtain; see ObtainRequest.
  std::string owner = {};
  Priority priority = 0;
  bool preemptible = true;
  std::optional<Priority> reserve_below = std::nullopt;
  absl::Duration reservation_lease = absl::InfiniteDuration();
  std::optional<absl::Duration> grace = std::nullopt;
  // kObtain, kExtend.
  absl::Duration lease = absl::InfiniteDuration();
  // kConfirm.
  FencingToken token = 0;

  // The answer, of the type that belongs to `kind`. None: there was none, or it was "unknown", so
  // that the step may have happened at any time since, or never.
  std::variant<std::monostate, ObtainReply, ReleaseOutcome, ExtendReply, ConfirmReply,
               ResourceState>
      answer = {};

  bool answered() const { return answer.index() != 0; }
  // In words: "[3, 7] thread 1: obtain 'r' #2 priority 1 -> obtained, token 5".
  std::string ToString() const;
};

// In any order. All resources are free at its start.
using History = std::vector<Operation>;

// "" if it is linearizable. Else what is wrong, in words: the shortest beginning of one resource's
// history that is not, the longest order found for it, and the record that this leads to.
std::string CheckLinearizable(const History& history);

struct HistoryOptions {
  // The same seed makes the same threads ask the same; how they meet is up to the machine.
  uint64_t seed = 1;
  int threads = 3;
  int steps = 6;  // Of each thread.
  // How many resources they are spread over, and the start of their names. The backend must know
  // nothing of them yet.
  int resources = 2;
  std::string name_prefix = "linearizability/";
  // All durations are multiples of it.
  absl::Duration unit = absl::Seconds(1);
};

// Lets threads take random steps on one storage, thread i through clients[i % size].
History RecordHistory(const std::vector<LockingProtocol*>& clients, const HistoryOptions& options);

}  // namespace latchkey

#endif  // LATCHKEY_TESTS_SUPPORT_LINEARIZABILITY_H_

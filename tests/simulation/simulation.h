// A whole life of several clients in virtual time, from a seed: each has a LockManager, with
// policies of its own, and a faulty link of its own to one in-memory backend, or to a quorum of
// them, whose servers may lose their data. They take locks and sets, try, run bodies and
// transactions, and their managers may be destroyed meanwhile. What the library promises is checked
// after every event, and at the end that everybody was served and nothing is left behind.
//
//   const Scenario scenario = MakeScenario(seed, World::kFaulty);
//   const Outcome outcome = Simulate(scenario);
//   if (!outcome.violation.empty()) std::cout << Explain(Shrink(scenario));
//
// The same scenario always takes the same course.
#ifndef LATCHKEY_TESTS_SIMULATION_SIMULATION_H_
#define LATCHKEY_TESTS_SIMULATION_SIMULATION_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/time/time.h"
#include "latchkey/core/lease.h"
#include "latchkey/tests/support/fault_injecting_protocol.h"

namespace latchkey {

enum class World {
  kDirect,  // In one process: no link, infinite leases.
  kDelays,  // Links that only take time, and clocks that run apart.
  kFaulty,  // Links that do everything wrong, clients that pause and crash.
  kForced,  // The same, and requests that take over by force after a grace.
  kQuorum,  // As kFaulty, over three servers that may lose their data, or be away, one at a time.
};
constexpr World kWorlds[] = {World::kDirect, World::kDelays, World::kFaulty, World::kForced,
                             World::kQuorum};
std::string_view WorldName(World world);

// Something a client does, or that happens to it.
struct Op {
  enum class Kind {
    kAcquire,
    kPause,
    kCrash,
    kNewManager,  // Its manager is destroyed, with locks out and requests waiting; it makes
                  // another.
    kLoseData,    // A server of the quorum loses all it knows, if the others know enough.
    kAway,        // A server of the quorum hears nothing for a while, if the others are there.
  };
  // kAcquire: how it asks.
  enum class Style {
    kLock,         // AcquireAsync, or AcquireAllAsync.
    kTry,          // TryAcquire, or where answers take time one attempt.
    kRun,          // RunAsync, or RunAllAsync.
    kTransaction,  // A coroutine that gives way and comes back.
  };

  absl::Duration at = {};  // Since the beginning.
  int client = 0;
  Kind kind = Kind::kAcquire;

  // kAcquire. More than one resource: as one, with AcquireAll.
  Style style = Style::kLock;
  std::vector<int> resources = {};
  int owner = -1;  // None: anonymous.
  Priority priority = 0;
  bool preemptible = true;
  std::optional<absl::Duration> lease = {};
  bool auto_renew = false;
  absl::Duration max_hold = absl::InfiniteDuration();
  std::optional<absl::Duration> grace = {};
  absl::Duration timeout = absl::InfiniteDuration();
  absl::Duration cancel_after = absl::InfiniteDuration();
  bool skip_queue = false;
  // How long it works under the lock; infinite: until the end of the simulation.
  absl::Duration work = {};
  // How long it goes on after being asked to yield; infinite: it does not listen.
  absl::Duration reaction = absl::InfiniteDuration();
  // When it asks for an extension, and by how much.
  std::optional<absl::Duration> extend_at = {};
  absl::Duration extend_by = {};

  // kTransaction: what becomes of it when it gave up the lock.
  enum class Recovery { kResume, kRestart, kReject } recovery = Recovery::kResume;

  // kLoseData, kAway.
  int server = 0;
  // kPause, kAway: for how long.
  absl::Duration pause = {};
  // kCrash: after this many more steps of the client's link.
  int64_t steps = 0;
};

// What a client's manager decides by. The defaults are the library's.
struct Policies {
  enum class Queue { kPriority, kFifo, kAgeing, kBarging } queue = Queue::kPriority;
  enum class Preemption { kLower, kByMargin, kNever } preemption = Preemption::kLower;
  enum class Retry { kBackoff, kFixed, kNone } retry = Retry::kBackoff;
  enum class Admit { kMany, kFew, kShed } admission = Admit::kMany;
};

struct Scenario {
  uint64_t seed = 0;
  World world = World::kDirect;
  int clients = 2;
  int resources = 1;
  Faults faults = {};
  bool in_order = false;
  std::vector<double> clock_rates = {};  // One for each client.
  std::vector<Policies> policies = {};   // One for each client; none: the defaults.
  std::vector<Op> ops = {};
};

Scenario MakeScenario(uint64_t seed, World world);

struct Outcome {
  // Empty: all promises were kept. Else which was broken, a colon, and how.
  std::string violation = {};
  int64_t events = 0;
  int64_t grants = 0;
  // So that nobody tests nothing: bodies and steps of transactions run, locks that transactions
  // gave up on the way, managers replaced, servers that lost their data.
  int64_t runs = 0;
  int64_t steps = 0;
  int64_t gave_way = 0;
  int64_t new_managers = 0;
  int64_t losses = 0;
  // Servers that were away, and grants of a hold that had ended on a server and came back there.
  int64_t outages = 0;
  int64_t returns = 0;
  // What happened, if asked for.
  std::string trace = {};
};

Outcome Simulate(const Scenario& scenario, bool trace = false);

// The same violation with fewer operations and faults.
Scenario Shrink(Scenario scenario);

// The scenario, what went wrong and how it came to that, in words.
std::string Explain(const Scenario& scenario);

}  // namespace latchkey

#endif  // LATCHKEY_TESTS_SIMULATION_SIMULATION_H_

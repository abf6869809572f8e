// Compares a backend with the reference, core/lock_record: takes the same random steps on both, on
// simulated time, and looks after each step whether outcomes, remaining times, tokens and what the
// watchers know agree.
//
//   SimulatedClock clock;
//   auto backend = NewMyBackend(clock);
//   RandomStepsOptions options{.seed = seed};
//   options.advance = [&](absl::Duration d) { clock.AdvanceBy(d); };
//   EXPECT_EQ(RunRandomSteps(*backend, options), "");
//
// Thread safety: a run belongs to one thread; runs on different resources may share a backend.
#ifndef LATCHKEY_TESTS_SUPPORT_RANDOM_STEPS_H_
#define LATCHKEY_TESTS_SUPPORT_RANDOM_STEPS_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "absl/time/time.h"
#include "latchkey/core/protocol/locking_protocol.h"

namespace latchkey {

struct RandomStepsOptions {
  // The same seed takes the same steps.
  uint64_t seed = 1;
  int steps = 300;

  // Makes the choices in the place of chance, for a fuzzer: a number from 0 to `n` - 1 (`n` is at
  // most 100), or nothing when it has no more, which ends the run. Null: chance, from the seed.
  std::function<std::optional<int>(int n)> choose = nullptr;

  // How many resources the steps are spread over, and the start of their names. The backend must
  // know nothing of them yet.
  int resources = 2;
  std::string name_prefix = "random/";

  // All durations are multiples of it.
  absl::Duration unit = absl::Seconds(1);

  // Moves the backend's clock by exactly this much. Required.
  std::function<void(absl::Duration)> advance = nullptr;

  // Lets completions and events that are under way arrive, for backends that are asynchronous: a
  // completion that has not arrived after it fails the run. Null: they arrive within the call.
  std::function<void()> settle = nullptr;

  // Are the tokens of each resource 1, 2, 3, ... as in the reference? Otherwise they only have to
  // grow with each grant and to agree within a hold.
  bool exact_tokens = false;

  // Are events compared too?
  bool events = true;
};

// Returns "" if all agreed, else what differed and the steps that led there.
std::string RunRandomSteps(LockingProtocol& backend, const RandomStepsOptions& options);

// The seed that random tests start from: the environment variable LATCHKEY_SEED, or `otherwise`.
uint64_t SeedFromEnvironment(uint64_t otherwise = 1);

}  // namespace latchkey

#endif  // LATCHKEY_TESTS_SUPPORT_RANDOM_STEPS_H_

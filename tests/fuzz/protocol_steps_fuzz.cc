// The in-memory backend beside core/lock_record: whatever steps the bytes make, replies, remaining
// times, tokens and what the watchers hear agree, on simulated time. See
// tests/support/random_steps.h; here a fuzzer takes the place of chance.
//
// The first byte picks the number of resources; each byte after it is one choice.
#include <memory>
#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "latchkey/memory_backend/memory_backend.h"
#include "latchkey/tests/fuzz/fuzz_input.h"
#include "latchkey/tests/support/random_steps.h"
#include "latchkey/tests/support/simulated_clock.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace latchkey;  // NOLINT(google-build-using-namespace): extern "C".
  FuzzInput input(data, size);
  SimulatedClock clock;
  const int resources = 1 + input.Below(3);
  const std::shared_ptr<LockingProtocol> backend = NewMemoryBackend({.clock = &clock, .shards = 1});
  RandomStepsOptions options;
  options.steps = 2000;
  options.resources = resources;
  options.choose = [&](int n) -> std::optional<int> {
    if (input.empty()) return std::nullopt;
    return input.Below(n);
  };
  options.advance = [&](absl::Duration duration) { clock.AdvanceBy(duration); };
  const std::string difference = RunRandomSteps(*backend, options);
  FuzzCheck(difference.empty(), difference);
  // Whatever holds is finite or is told of; when all leases are over, nothing may be left but holds
  // without an end.
  clock.AdvanceBy(absl::Hours(1));
  backend->Inspect(std::nullopt, [](const ResourceState& state) {
    FuzzCheck(state.held || state.reserved, "something free is kept");
    FuzzCheck(!state.held || state.remaining_lease == absl::InfiniteDuration(),
              "a lease that is over still holds");
  });
  return 0;
}

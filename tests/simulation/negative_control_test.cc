// A test that cannot fail proves nothing: into each of these programs a broken copy of one of the
// library's sources was built, and the simulation has to notice within so many seeds
// (negative_control.bzl). That the same lives are good without the bug is what simulation_test
// says.
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <string>
#include <string_view>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/strip.h"
#include "gtest/gtest.h"
#include "latchkey/tests/simulation/simulation.h"

namespace latchkey {
namespace {

std::string bug;
World world = World::kDirect;
std::string finds;
uint64_t seeds = 0;

TEST(NegativeControlTest, TheBugIsFound) {
  for (uint64_t seed = 1; seed <= seeds; ++seed) {
    const Scenario scenario = MakeScenario(seed, world);
    if (!absl::StartsWith(Simulate(scenario).violation, finds)) continue;
    const Scenario small = Shrink(scenario);
    EXPECT_LE(small.ops.size(), scenario.ops.size());
    const std::string story = Explain(small);
    EXPECT_TRUE(absl::StrContains(story, "BROKEN: " + finds)) << story;
    std::cout << "'" << bug << "' is found by seed " << seed << " of at most " << seeds
              << " of world '" << WorldName(world) << "', with " << small.ops.size()
              << " operations of " << scenario.ops.size() << ":\n"
              << story;
    return;
  }
  ADD_FAILURE() << "'" << bug << "' was not found within " << seeds << " seeds";
}

}  // namespace
}  // namespace latchkey

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  for (int i = 1; i < argc; ++i) {
    std::string_view argument = argv[i];
    if (absl::ConsumePrefix(&argument, "--bug=")) {
      latchkey::bug = argument;
    } else if (absl::ConsumePrefix(&argument, "--finds=")) {
      latchkey::finds = argument;
    } else if (absl::ConsumePrefix(&argument, "--world=")) {
      for (const latchkey::World world : latchkey::kWorlds) {
        if (argument == latchkey::WorldName(world)) latchkey::world = world;
      }
    } else if (!absl::ConsumePrefix(&argument, "--seeds=") ||
               !absl::SimpleAtoi(argument, &latchkey::seeds)) {
      std::cerr << "what is " << argv[i] << "?\n";
      return 1;
    }
  }
  return RUN_ALL_TESTS();
}

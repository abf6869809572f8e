// Many lives in virtual time. Prints the seeds; --seed=N (or LATCHKEY_SEED=N) starts at N, --runs=N
// (or LATCHKEY_RUNS=N) takes N seeds of each world, --trace tells the story of the first one of
// each. A seed takes the same course each time; one that fails is shrunk and told in words.
#include "latchkey/tests/simulation/simulation.h"

#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <string>
#include <string_view>

#include "absl/strings/numbers.h"
#include "absl/strings/strip.h"
#include "gtest/gtest.h"

namespace latchkey {
namespace {

uint64_t first_seed = 1;
uint64_t runs = 100;
bool tell = false;

class SimulationTest : public ::testing::TestWithParam<World> {};

std::string ParamName(const ::testing::TestParamInfo<World>& world) {
  return std::string(WorldName(world.param));
}

TEST_P(SimulationTest, KeepsItsPromises) {
  Outcome sum;
  if (tell) std::cout << Explain(MakeScenario(first_seed, GetParam()));
  for (uint64_t seed = first_seed; seed < first_seed + runs; ++seed) {
    const Scenario scenario = MakeScenario(seed, GetParam());
    const Outcome outcome = Simulate(scenario);
    for (int64_t Outcome::*const count :
         {&Outcome::events, &Outcome::grants, &Outcome::runs, &Outcome::steps, &Outcome::gave_way,
          &Outcome::new_managers, &Outcome::losses, &Outcome::outages, &Outcome::returns}) {
      sum.*count += outcome.*count;
    }
    ASSERT_EQ(outcome.violation, "")
        << "seed " << seed << " of world '" << WorldName(GetParam()) << "', made smaller:\n"
        << Explain(Shrink(scenario));
  }
  std::cout << WorldName(GetParam()) << ": seeds " << first_seed << " to " << first_seed + runs - 1
            << ", " << sum.events << " events, " << sum.grants << " grants, " << sum.runs
            << " bodies run, " << sum.steps << " steps of transactions, which gave way "
            << sum.gave_way << " times, " << sum.new_managers << " managers replaced, "
            << sum.losses << " losses of data, " << sum.outages << " outages of servers, "
            << sum.returns << " holds that came back\n";
  if (runs < 500) return;
  EXPECT_GT(sum.grants, 0);
  EXPECT_GT(sum.runs, 0);
  EXPECT_GT(sum.steps, 0);
  EXPECT_GT(sum.gave_way, 0);
  EXPECT_GT(sum.new_managers, 0);
  if (GetParam() == World::kQuorum) {
    EXPECT_GT(sum.losses, 0);
    EXPECT_GT(sum.outages, 0);
    EXPECT_GT(sum.returns, 0);
  }
}

TEST_P(SimulationTest, TakesTheSameCourseAgain) {
  for (uint64_t seed = first_seed; seed < first_seed + 5; ++seed) {
    const Scenario scenario = MakeScenario(seed, GetParam());
    const Outcome outcome = Simulate(scenario, /*trace=*/true);
    EXPECT_FALSE(outcome.trace.empty());
    EXPECT_EQ(Simulate(scenario, /*trace=*/true).trace, outcome.trace) << "seed " << seed;
  }
}

INSTANTIATE_TEST_SUITE_P(Worlds, SimulationTest, ::testing::ValuesIn(kWorlds), ParamName);

}  // namespace
}  // namespace latchkey

namespace {

void ReadNumber(std::string_view text, uint64_t& number) {
  if (!absl::SimpleAtoi(text, &number)) {
    std::cerr << "not a number: " << text << "\n";
    std::abort();
  }
}

}  // namespace

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  if (const char* seed = std::getenv("LATCHKEY_SEED")) ReadNumber(seed, latchkey::first_seed);
  if (const char* runs = std::getenv("LATCHKEY_RUNS")) ReadNumber(runs, latchkey::runs);
  for (int i = 1; i < argc; ++i) {
    std::string_view argument = argv[i];
    if (absl::ConsumePrefix(&argument, "--seed=")) ReadNumber(argument, latchkey::first_seed);
    if (absl::ConsumePrefix(&argument, "--runs=")) ReadNumber(argument, latchkey::runs);
    if (argument == "--trace") latchkey::tell = true;
  }
  return RUN_ALL_TESTS();
}

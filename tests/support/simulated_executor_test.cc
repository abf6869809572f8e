#include "latchkey/tests/support/simulated_executor.h"

#include <memory>
#include <vector>

#include "gtest/gtest.h"

namespace latchkey {
namespace {

TEST(SimulatedExecutorTest, RunsNothingByItself) {
  SimulatedExecutor executor;
  executor.Execute([] { FAIL(); });
  EXPECT_EQ(executor.Pending(), 1u);
}

TEST(SimulatedExecutorTest, RunsTasksOneByOneInOrder) {
  SimulatedExecutor executor;
  std::vector<int> order;
  executor.Execute([&] { order.push_back(1); });
  executor.Execute([&] { order.push_back(2); });
  EXPECT_TRUE(executor.RunOne());
  EXPECT_EQ(order, (std::vector<int>{1}));
  EXPECT_TRUE(executor.RunOne());
  EXPECT_FALSE(executor.RunOne());
  EXPECT_EQ(order, (std::vector<int>{1, 2}));
}

TEST(SimulatedExecutorTest, RunAllIncludesWhatIsQueuedMeanwhileWithoutNesting) {
  SimulatedExecutor executor;
  std::vector<int> order;
  executor.Execute([&] {
    executor.Execute([&] { order.push_back(2); });
    order.push_back(1);
  });
  EXPECT_EQ(executor.RunAll(), 2u);
  EXPECT_EQ(order, (std::vector<int>{1, 2}));
}

TEST(SimulatedExecutorTest, DestroysWhatWasNotRun) {
  const auto owned = std::make_shared<int>(1);
  {
    SimulatedExecutor executor;
    executor.Execute([owned] { FAIL(); });
    EXPECT_EQ(owned.use_count(), 2);
  }
  EXPECT_EQ(owned.use_count(), 1);
}

}  // namespace
}  // namespace latchkey

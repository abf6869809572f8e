// Long chains and deep nests of transactions, on a stack that is no deeper for that.
#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gtest/gtest.h"
#include "latchkey/core/lock_manager.h"
#include "latchkey/core/locker.h"
#include "latchkey/core/transaction.h"
#include "latchkey/memory_backend/memory_backend.h"

namespace latchkey {
namespace {

absl::StatusOr<LockManager> NewManager() {
  return LockManager::Create(NewMemoryBackend(), {.admission = AdmitAll()});
}

TEST(TransactionChain, AHundredThousandQueuedTransactionsDoNotRecurse) {
  constexpr int kTransactions = 100'000;
  absl::StatusOr<LockManager> locks = NewManager();
  int count = 0;
  Locker counts(*locks, "count", count);
  absl::StatusOr<Lock> holder = locks->Acquire("count");
  int done = 0;
  for (int i = 0; i < kTransactions; ++i) {
    counts
        .Start([](int& n, TransactionContext& ctx) -> Transaction<void> {
          co_await ctx.CheckPoint();
          ++n;
        })
        .OnDone([&](const absl::Status& status) { done += status.ok(); });
  }
  EXPECT_EQ(count, 0);
  ASSERT_TRUE(holder->Release().ok());
  EXPECT_EQ(count, kTransactions);
  EXPECT_EQ(done, kTransactions);
  EXPECT_FALSE(locks->IsBusy());
}

TEST(TransactionChain, AHundredThousandTransactionsThatStartEachOtherDoNotRecurse) {
  constexpr int kTransactions = 100'000;
  absl::StatusOr<LockManager> locks = NewManager();
  int count = 0;
  Locker counts(*locks, "count", count);
  std::function<void()> next = [&] {
    counts
        .Start([](int& n, TransactionContext& ctx) -> Transaction<int> {
          co_await ctx.CheckPoint();
          co_return ++n;
        })
        .OnDone([&](absl::StatusOr<int> n) {
          if (n.ok() && *n < kTransactions) next();
        });
  };
  next();
  EXPECT_EQ(count, kTransactions);
  EXPECT_FALSE(locks->IsBusy());
}

TEST(TransactionChain, TransactionsNestedTenThousandDeepDoNotRecurse) {
  constexpr int kDepth = 10'000;
  absl::StatusOr<LockManager> locks = NewManager();
  int deepest = 0;
  std::vector<std::unique_ptr<int>> levels;
  std::function<TransactionHandle<int>(int)> start = [&](int depth) {
    levels.push_back(std::make_unique<int>(depth));
    Locker locker(*locks, "level " + std::to_string(depth), *levels.back());
    return locker.Start([&](int& level, TransactionContext&) -> Transaction<int> {
      deepest = std::max(deepest, level);
      if (level == kDepth) co_return 1;
      auto inner = start(level + 1);
      const absl::StatusOr<int> below = co_await inner;
      co_return *below + 1;
    });
  };
  EXPECT_EQ(start(1).Wait().value(), kDepth);
  EXPECT_EQ(deepest, kDepth);
  EXPECT_FALSE(locks->IsBusy());
}

TEST(TransactionChain, ALoopOfCheckpointsAndFreeLocksDoesNotRecurse) {
  absl::StatusOr<LockManager> locks = NewManager();
  int nothing = 0;
  auto handle = Locker(*locks, "first", nothing)
                    .Start([&](int&, TransactionContext& ctx) -> Transaction<int> {
                      int rounds = 0;
                      for (; rounds < 100'000; ++rounds) {
                        co_await ctx.CheckPoint();
                        absl::StatusOr<Lock> lock = co_await locks->CoAcquire("second");
                        if (!lock.ok()) break;
                      }
                      co_return rounds;
                    });
  EXPECT_EQ(handle.Wait().value(), 100'000);
}

}  // namespace
}  // namespace latchkey

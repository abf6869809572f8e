// An uncontended acquire and release allocates nothing once the backend has grown to what it needs.
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "latchkey/core/lock_manager.h"
#include "latchkey/memory_backend/memory_backend.h"

namespace {
std::atomic<int64_t> allocations{0};
}  // namespace

// NOLINTBEGIN(misc-new-delete-overloads): all forms end up in these.
void* operator new(size_t size) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  if (void* const memory = std::malloc(size == 0 ? 1 : size)) return memory;
  std::abort();
}
void* operator new(size_t size, std::align_val_t alignment) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  const size_t step = static_cast<size_t>(alignment);
  if (void* const memory = std::aligned_alloc(step, (size + step - 1) / step * step)) {
    return memory;
  }
  std::abort();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, size_t, std::align_val_t) noexcept { std::free(memory); }
// NOLINTEND(misc-new-delete-overloads)

namespace latchkey {
namespace {

// How many allocations `round` makes once it has been done some times.
template <typename Round>
int64_t AllocationsOf(Round round) {
  constexpr int kWarmUp = 100;
  constexpr int kRounds = 1000;
  for (int i = 0; i < kWarmUp; ++i) round();
  const int64_t before = allocations.load();
  for (int i = 0; i < kRounds; ++i) round();
  return allocations.load() - before;
}

class AllocationTest : public testing::Test {
 protected:
  absl::StatusOr<LockManager> locks_ = LockManager::Create(NewMemoryBackend());
  const std::string key_ = "orders/0000012345";
};

TEST_F(AllocationTest, TheCounterCounts) {
  EXPECT_GE(AllocationsOf([] { std::string(100, 'x').swap(*std::make_unique<std::string>()); }),
            2000);
}

TEST_F(AllocationTest, BlockingAcquireAndRelease) {
  EXPECT_EQ(AllocationsOf([&] {
              const absl::StatusOr<Lock> lock = locks_->Acquire(key_);
              ASSERT_TRUE(lock.ok());
            }),
            0);
}

TEST_F(AllocationTest, WithAPriority) {
  EXPECT_EQ(AllocationsOf([&] {
              const absl::StatusOr<Lock> lock = locks_->Acquire(key_, {.priority = 7});
              ASSERT_TRUE(lock.ok());
            }),
            0);
}

TEST_F(AllocationTest, WithANamedOwner) {
  EXPECT_EQ(AllocationsOf([&] {
              const absl::StatusOr<Lock> lock = locks_->Acquire(key_, {.owner = "worker 17"});
              ASSERT_TRUE(lock.ok());
            }),
            0);
}

TEST_F(AllocationTest, CallbackForm) {
  int64_t granted = 0;
  EXPECT_EQ(AllocationsOf([&] {
              locks_->AcquireAsync(key_, {}, [&granted](const absl::StatusOr<Lock>& lock) {
                granted += lock.ok() ? 1 : 0;
              });
            }),
            0);
  EXPECT_GT(granted, 0);
}

TEST_F(AllocationTest, BesideOthersThatWait) {
  const absl::StatusOr<Lock> held = locks_->Acquire("busy");
  for (int i = 0; i < 100; ++i) {
    locks_->AcquireAsync("busy", {}, [](const absl::StatusOr<Lock>&) {});
  }
  EXPECT_EQ(AllocationsOf([&] {
              const absl::StatusOr<Lock> lock = locks_->Acquire(key_);
              ASSERT_TRUE(lock.ok());
            }),
            0);
}

// The forms below give the lock a life of its own, which is what they allocate for: no more than
// this, and nothing that stays.

TEST_F(AllocationTest, AFiniteLeaseTakesAFewBlocks) {
  EXPECT_LE(AllocationsOf([&] {
              const absl::StatusOr<Lock> lock = locks_->Acquire(key_, {.lease = absl::Seconds(30)});
              ASSERT_TRUE(lock.ok());
            }),
            3 * 1000);
}

TEST_F(AllocationTest, RunTakesAFewBlocks) {
  EXPECT_LE(AllocationsOf([&] {
              const absl::Status status =
                  locks_->Run(key_, {}, [](LockContext&) { return absl::OkStatus(); });
              ASSERT_TRUE(status.ok());
            }),
            3 * 1000);
}

TEST_F(AllocationTest, ExplicitRelease) {
  EXPECT_EQ(AllocationsOf([&] {
              absl::StatusOr<Lock> lock = locks_->Acquire(key_);
              ASSERT_TRUE(lock.ok() && lock->Release().ok());
            }),
            0);
}

}  // namespace
}  // namespace latchkey

// What tests of LockManager begin with: a manager on the in-memory backend and simulated time, and
// requests that do not wait for their answer.
//
//   class MyTest : public LockManagerFixture {};
//   TEST_F(MyTest, ...) {
//     absl::StatusOr<Lock> held = locks_.Acquire("a");
//     std::shared_ptr<Pending> next = Ask("a");
//     EXPECT_FALSE(next->result);
//   }
#ifndef LATCHKEY_TESTS_SUPPORT_LOCK_MANAGER_FIXTURE_H_
#define LATCHKEY_TESTS_SUPPORT_LOCK_MANAGER_FIXTURE_H_

#include <initializer_list>
#include <memory>
#include <optional>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "latchkey/core/lock_manager.h"
#include "latchkey/memory_backend/memory_backend.h"
#include "latchkey/tests/support/simulated_clock.h"

namespace latchkey {

// The answer to a request, once it is there.
template <typename T>
struct PendingAnswer {
  std::optional<absl::StatusOr<T>> result;

  bool granted() const { return result && result->ok(); }
  bool failed() const { return result && !result->ok(); }
  T& lock() { return **result; }
  absl::Status status() const { return result ? result->status() : absl::OkStatus(); }
};

class LockManagerFixture : public ::testing::Test {
 protected:
  using Pending = PendingAnswer<Lock>;
  using PendingSet = PendingAnswer<LockSet>;

  explicit LockManagerFixture(LockManagerOptions options = {})
      : backend_(NewMemoryBackend({.clock = &clock_})), locks_(NewManager(std::move(options))) {}

  LockManager NewManager(LockManagerOptions options = {}) {
    options.clock = &clock_;
    return *LockManager::Create(backend_, std::move(options));
  }

  std::shared_ptr<Pending> Ask(std::string_view resource, const AcquireOptions& options = {}) {
    return Ask(locks_, resource, options);
  }
  std::shared_ptr<Pending> Ask(LockManager& locks, std::string_view resource,
                               const AcquireOptions& options = {}) {
    auto pending = std::make_shared<Pending>();
    locks.AcquireAsync(resource, options, [pending](absl::StatusOr<Lock> lock) {
      ASSERT_FALSE(pending->result) << "completed twice";
      pending->result = std::move(lock);
    });
    return pending;
  }
  std::shared_ptr<PendingSet> AskAll(std::initializer_list<std::string_view> resources,
                                     const AcquireOptions& options = {}) {
    auto pending = std::make_shared<PendingSet>();
    locks_.AcquireAllAsync(resources, options, TellTo(pending));
    return pending;
  }
  static AcquireAllCallback TellTo(std::shared_ptr<PendingSet> pending) {
    return [pending](absl::StatusOr<LockSet> locks) {
      ASSERT_FALSE(pending->result) << "completed twice";
      pending->result = std::move(locks);
    };
  }

  // Nobody holds, waits or is remembered.
  void ExpectNothingLeft() {
    EXPECT_FALSE(locks_.IsBusy());
    EXPECT_THAT(locks_.Snapshot(), ::testing::IsEmpty());
  }

  SimulatedClock clock_;
  std::shared_ptr<LockingProtocol> backend_;
  LockManager locks_;
};

}  // namespace latchkey

#endif  // LATCHKEY_TESTS_SUPPORT_LOCK_MANAGER_FIXTURE_H_

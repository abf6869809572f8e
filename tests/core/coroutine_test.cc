// What the awaitables promise in a coroutine type that knows nothing of this library.
#include "latchkey/core/coroutine.h"

#include <atomic>
#include <coroutine>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <optional>
#include <stop_token>
#include <string>
#include <string_view>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "latchkey/core/lock_error.h"
#include "latchkey/core/lock_manager.h"
#include "latchkey/core/scoped_owner.h"
#include "latchkey/memory_backend/memory_backend.h"
#include "latchkey/tests/support/simulated_clock.h"
#include "latchkey/tests/support/simulated_executor.h"

namespace {

// How many allocations this thread has made.
thread_local int64_t allocations = 0;

}  // namespace

void* operator new(size_t size) {
  ++allocations;
  if (void* const memory = std::malloc(size != 0 ? size : 1)) return memory;
  throw std::bad_alloc();
}
void* operator new(size_t size, const std::nothrow_t& /*tag*/) noexcept {
  ++allocations;
  return std::malloc(size != 0 ? size : 1);
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t /*size*/) noexcept { std::free(memory); }

namespace latchkey {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// The least that a coroutine type can be: starts at once, is destroyed with its owner.
class Task {
 public:
  struct promise_type {
    Task get_return_object() {
      return Task(std::coroutine_handle<promise_type>::from_promise(*this));
    }
    std::suspend_never initial_suspend() noexcept { return {}; }
    std::suspend_always final_suspend() noexcept { return {}; }
    void return_void() {}
    void unhandled_exception() { std::abort(); }
  };

  Task(Task&& other) noexcept : coroutine_(std::exchange(other.coroutine_, nullptr)) {}
  Task& operator=(Task&& other) noexcept {
    std::swap(coroutine_, other.coroutine_);
    return *this;
  }
  ~Task() { Destroy(); }

  bool done() const { return coroutine_.done(); }
  void Destroy() {
    if (coroutine_) std::exchange(coroutine_, nullptr).destroy();
  }

 private:
  explicit Task(std::coroutine_handle<promise_type> coroutine) : coroutine_(coroutine) {}
  std::coroutine_handle<promise_type> coroutine_;
};

class CoroutineTest : public ::testing::Test {
 protected:
  CoroutineTest() : backend_(NewMemoryBackend({.clock = &clock_})), locks_(NewManager()) {}

  LockManager NewManager(LockManagerOptions options = {}) {
    options.clock = &clock_;
    return *LockManager::Create(backend_, std::move(options));
  }

  SimulatedClock clock_;
  std::shared_ptr<LockingProtocol> backend_;
  LockManager locks_;
};

// Locks `key`, notes the outcome, and keeps the lock until the coroutine is destroyed.
Task Keep(LockManager& locks, std::string_view key, AcquireOptions options,
          std::optional<absl::Status>& outcome) {
  absl::StatusOr<Lock> lock = co_await locks.CoAcquire(key, options);
  outcome = lock.status();
  co_await std::suspend_always();
}

// ---- g++ 12's trouble with temporaries in co_await expressions ----

// Options of every kind, written where they are awaited.
Task WriteOptionsInPlace(LockManager& locks, std::string key, std::stop_token stop,
                         std::shared_ptr<const RetryPolicy> retry, std::vector<bool>& granted) {
  const std::string long_name(100, 'x');
  granted.push_back((co_await locks.CoAcquire(key)).ok());
  granted.push_back((co_await locks.CoAcquire(key, {})).ok());
  granted.push_back((co_await locks.CoAcquire(key, {.owner = "short"})).ok());
  granted.push_back((co_await locks.CoAcquire(key, {.owner = long_name})).ok());
  granted.push_back((co_await locks.CoAcquire(key, {.owner = std::string(100, 'y')})).ok());
  granted.push_back((co_await locks.CoAcquire(key, {.owner = "a" + std::to_string(7)})).ok());
  granted.push_back((co_await locks.CoAcquire(std::string(key), {.owner = "a"})).ok());
  granted.push_back((co_await locks.CoAcquire(key.substr(0, 20) + key.substr(20),
                                              {.owner = "alice" + std::to_string(7),
                                               .priority = 7,
                                               .acquire_timeout = absl::Seconds(5),
                                               .cancel = std::stop_token(stop),
                                               .admission = LimitPending(),
                                               .retry = retry}))
                        .ok());
  absl::StatusOr<Lock> kept = co_await locks.CoAcquire(
      key, {.owner = long_name + "!", .lease = absl::Seconds(1), .cancel = stop});
  granted.push_back(kept.ok());
}

TEST_F(CoroutineTest, OptionsMayBeWrittenInTheAwaitExpression) {
  constexpr int kAwaits = 9;
  const std::string key(40, 'r');
  const std::shared_ptr<const RetryPolicy> retry = FixedDelay(absl::Seconds(1));
  std::vector<bool> granted;
  {
    // Uncontended, nothing suspends.
    std::stop_source stop;
    Task task = WriteOptionsInPlace(locks_, key, stop.get_token(), retry, granted);
    EXPECT_TRUE(task.done());
    task.Destroy();
    EXPECT_EQ(granted, std::vector<bool>(kAwaits, true));
    EXPECT_EQ(retry.use_count(), 1) << "a temporary was destroyed too often or not at all";
  }
  for (int destroy_at = 0; destroy_at <= kAwaits; ++destroy_at) {
    // Contended, each await suspends; and the coroutine is destroyed at each of them.
    granted.clear();
    std::stop_source stop;
    absl::StatusOr<Lock> holder = locks_.Acquire(key, {.preemptible = false});
    Task task = WriteOptionsInPlace(locks_, key, stop.get_token(), retry, granted);
    for (int i = 0; i < destroy_at; ++i) {
      EXPECT_FALSE(task.done());
      // Queues behind the coroutine, so that its next await has to wait as well.
      locks_.AcquireAsync(key, {.preemptible = false},
                          [&](absl::StatusOr<Lock> lock) { holder = std::move(lock); });
      ASSERT_TRUE(holder->Release().ok());
    }
    EXPECT_EQ(task.done(), destroy_at == kAwaits);
    task.Destroy();
    ASSERT_TRUE(holder->Release().ok());
    EXPECT_EQ(granted, std::vector<bool>(destroy_at, true));
    EXPECT_EQ(retry.use_count(), 1);
    EXPECT_FALSE(locks_.IsBusy());
  }
}

TEST_F(CoroutineTest, AnAwaiterThatIsKeptOwnsWhatWasATemporary) {
  const std::shared_ptr<const RetryPolicy> retry = FixedDelay(absl::Seconds(1));
  const std::string name(40, 'n');
  std::vector<std::string> locked;
  const auto note = [&] {
    for (const ResourceSnapshot& one : locks_.Snapshot()) {
      locked.push_back(one.state.resource + " by " + one.state.holder_owner);
    }
  };
  const auto body = [&](std::stop_source stop) -> Task {
    const std::string const_name = name;
    {
      // Long ones and short ones, which a string keeps in itself.
      auto kept =
          locks_.CoAcquire(name + "!", {.owner = "owner " + name,
                                        .cancel = stop.get_token(),
                                        .retry = std::shared_ptr<const RetryPolicy>(retry)});
      auto moved = std::move(kept);
      const std::string overwrites(41, 'x');
      const absl::StatusOr<Lock> lock = co_await std::move(moved);
      EXPECT_TRUE(lock.ok());
      note();
    }
    {
      auto kept = locks_.CoAcquire(std::string("short"), {.owner = std::string("me")});
      auto moved = std::move(kept);
      const absl::StatusOr<Lock> lock = co_await std::move(moved);
      note();
    }
    {
      auto kept = locks_.CoAcquireAll({"all of " + name, std::string("b")},
                                      {.owner = "owner " + name, .cancel = stop.get_token()});
      auto moved = std::move(kept);
      const std::string overwrites(47, 'x');
      const absl::StatusOr<LockSet> lock = co_await std::move(moved);
      EXPECT_THAT(lock->resources(), ElementsAre("all of " + name, "b"));
    }
    {
      // What has a name is borrowed.
      const AcquireOptions options = {.owner = "named"};
      auto kept = locks_.CoAcquire(const_name, options);
      const absl::StatusOr<Lock> lock = co_await std::move(kept);
      note();
    }
  };
  Task task = body({});
  EXPECT_TRUE(task.done());
  task.Destroy();
  EXPECT_EQ(retry.use_count(), 1);
  EXPECT_THAT(locked, ElementsAre(name + "! by owner " + name, "short by me", name + " by named"));
  EXPECT_FALSE(locks_.IsBusy());
}

// Options for coroutines are written in braces, or have a name and the type AcquireOptions. What is
// of another kind may borrow what is gone, or would not survive g++ 12, so it does not compile.
template <typename Options>
concept LocksOneWith = requires(LockManager& locks, Options&& options) {
  locks.CoAcquire("a", std::forward<Options>(options));
};
template <typename Options>
concept LocksSeveralWith = requires(LockManager& locks, Options&& options) {
  locks.CoAcquireAll({"a", "b"}, std::forward<Options>(options));
};
template <typename Options>
concept LocksWith = LocksOneWith<Options> || LocksSeveralWith<Options>;
static_assert(LocksOneWith<AcquireOptions&> && LocksOneWith<const AcquireOptions&>);
static_assert(LocksSeveralWith<AcquireOptions&> && LocksSeveralWith<const AcquireOptions&>);
static_assert(!LocksWith<AcquireOptions> && !LocksWith<const AcquireOptions>);
static_assert(!LocksWith<CoAcquireOptions&> && !LocksWith<const CoAcquireOptions&>);
static_assert(!LocksWith<CoAcquireOptions>, "moved, or made by a function");

// The same of names.
template <typename Name>
concept Locks = requires(LockManager& locks, Name&& name) {
  locks.CoAcquire(std::forward<Name>(name));
};
template <typename Names>
concept LocksAll = requires(LockManager& locks, Names&& names) {
  locks.CoAcquireAll(std::forward<Names>(names));
};
static_assert(Locks<const char*> && Locks<std::string_view> && Locks<ResourceName&>);
static_assert(Locks<std::string> && Locks<std::string&> && Locks<const std::string&>);
static_assert(!Locks<BorrowedName<ResourceName>&> && !Locks<const BorrowedName<ResourceName>&>);
static_assert(LocksAll<std::vector<std::string>&> && LocksAll<const std::vector<std::string>&>);
static_assert(!LocksAll<CoResources&> && !LocksAll<const CoResources&>);

// What borrows cannot be kept by copying it.
template <typename T>
constexpr bool kStaysWhereItIs =
    std::is_trivially_destructible_v<T> && !std::is_copy_constructible_v<T> &&
    !std::is_move_constructible_v<T> && !std::is_copy_assignable_v<T> &&
    !std::is_move_assignable_v<T>;
static_assert(kStaysWhereItIs<CoAcquireOptions> && kStaysWhereItIs<CoResources>);
static_assert(kStaysWhereItIs<Borrowed<std::stop_token>>);
static_assert(kStaysWhereItIs<BorrowedName<ResourceName>>);

TEST_F(CoroutineTest, AnInterestInAKeptAwaiterThatWaitsEndsWithIt) {
  absl::StatusOr<Lock> holder = locks_.Acquire("orders/42");
  const auto body = [&]() -> Task {
    auto kept = locks_.CoAcquire("orders/" + std::to_string(42));
    const absl::StatusOr<Lock> lock = co_await std::move(kept);
    ADD_FAILURE() << "resumed";
  };
  {
    Task task = body();
    EXPECT_EQ(locks_.Snapshot().at(0).waiters.size(), 1u);
  }
  EXPECT_EQ(locks_.Snapshot().at(0).waiters.size(), 0u);
}

TEST_F(CoroutineTest, AFreeLockWithNamesThatLiveElsewhereAllocatesNothing) {
  LockManager locks = *LockManager::Create(NewMemoryBackend());
  const std::string name = "orders/0000012345";
  int64_t made = 0;
  const auto body = [&]() -> Task {
    for (int i = 0; i < 100; ++i) {
      const int64_t before = allocations;
      { const absl::StatusOr<Lock> lock = co_await locks.CoAcquire("orders/0000067890"); }
      {
        const absl::StatusOr<Lock> lock =
            co_await locks.CoAcquire(name, {.owner = "me", .priority = 1});
      }
      made = allocations - before;
    }
  };
  Task task = body();
  EXPECT_TRUE(task.done());
  EXPECT_EQ(made, 0);
}

TEST_F(CoroutineTest, EveryOptionReachesTheRequest) {
  // Fields in the order of their declaration; one that is forgotten keeps its default.
  const std::stop_token stop = std::stop_source().get_token();
  const auto admission = LimitPending();
  const auto preemption = PreemptLower();
  const auto retry = FixedDelay(absl::Seconds(1));
  const AcquireOptions copy = CoAcquireOptions{.owner = "o",
                                               .priority = 1,
                                               .preemptible = false,
                                               .lease = absl::Seconds(2),
                                               .auto_renew = true,
                                               .max_hold = absl::Seconds(3),
                                               .preemption_grace = absl::Seconds(4),
                                               .acquire_timeout = absl::Seconds(5),
                                               .outage_patience = absl::Seconds(9),
                                               .max_attempts = 6,
                                               .skip_queue = true,
                                               .cancel = stop,
                                               .max_execution_time = absl::Seconds(7),
                                               .max_occupation_time = absl::Seconds(8),
                                               .admission = admission,
                                               .preemption = preemption,
                                               .retry = retry}
                                  .Copy();
  EXPECT_EQ(copy.owner, "o");
  EXPECT_EQ(copy.priority, 1);
  EXPECT_FALSE(copy.preemptible);
  EXPECT_EQ(copy.lease, absl::Seconds(2));
  EXPECT_EQ(copy.auto_renew, true);
  EXPECT_EQ(copy.max_hold, absl::Seconds(3));
  EXPECT_EQ(copy.preemption_grace, absl::Seconds(4));
  EXPECT_EQ(copy.acquire_timeout, absl::Seconds(5));
  EXPECT_EQ(copy.outage_patience, absl::Seconds(9));
  EXPECT_EQ(copy.max_attempts, 6);
  EXPECT_TRUE(copy.skip_queue);
  EXPECT_EQ(copy.cancel, stop);
  EXPECT_EQ(copy.max_execution_time, absl::Seconds(7));
  EXPECT_EQ(copy.max_occupation_time, absl::Seconds(8));
  EXPECT_EQ(copy.admission, admission);
  EXPECT_EQ(copy.preemption, preemption);
  EXPECT_EQ(copy.retry, retry);
}

// ---- Locks ----

TEST_F(CoroutineTest, TakesAFreeLockWithoutSuspending) {
  std::optional<absl::Status> outcome;
  Task task = Keep(locks_, "a", {}, outcome);
  EXPECT_EQ(outcome, absl::OkStatus());
  EXPECT_TRUE(locks_.IsBusy("a"));
  task.Destroy();
  EXPECT_FALSE(locks_.IsBusy());
}

TEST_F(CoroutineTest, ResumesWithTheLockWhenItIsReleased) {
  absl::StatusOr<Lock> holder = locks_.Acquire("a");
  std::optional<absl::Status> outcome;
  Task task = Keep(locks_, "a", {}, outcome);
  EXPECT_FALSE(outcome);
  ASSERT_TRUE(holder->Release().ok());
  EXPECT_EQ(outcome, absl::OkStatus());
  EXPECT_TRUE(locks_.IsBusy("a"));
}

TEST_F(CoroutineTest, ResumesWithTheReasonWhenThereIsNoLock) {
  absl::StatusOr<Lock> holder = locks_.Acquire("a", {.owner = "alice"});
  std::optional<absl::Status> refused;
  Task bad = Keep(locks_, "", {}, refused);
  EXPECT_EQ(ReasonOf(*refused), Reason::kInvalidArgument);

  std::optional<absl::Status> timed_out;
  Task slow = Keep(locks_, "a", {.acquire_timeout = absl::Seconds(2)}, timed_out);
  std::optional<absl::Status> cancelled;
  std::stop_source stop;
  Task unwanted = Keep(locks_, "a", {.cancel = stop.get_token()}, cancelled);
  EXPECT_FALSE(timed_out);
  EXPECT_FALSE(cancelled);
  clock_.AdvanceBy(absl::Seconds(2));
  EXPECT_EQ(ReasonOf(*timed_out), Reason::kAcquireTimeout);
  EXPECT_THAT(timed_out->message(), HasSubstr("'alice'"));
  stop.request_stop();
  EXPECT_EQ(ReasonOf(*cancelled), Reason::kCancelled);
}

TEST_F(CoroutineTest, ResumesOnTheManagersExecutor) {
  SimulatedExecutor executor;
  LockManager locks = NewManager({.executor = &executor});
  absl::StatusOr<Lock> holder = locks.Acquire("a");
  std::optional<absl::Status> outcome;
  Task task = Keep(locks, "a", {}, outcome);
  ASSERT_TRUE(holder->Release().ok());
  EXPECT_FALSE(outcome) << "the resumption waits in the executor";
  executor.RunAll();
  EXPECT_EQ(outcome, absl::OkStatus());
}

TEST_F(CoroutineTest, DestroyingTheManagerEndsTheWait) {
  std::optional<LockManager> locks = NewManager();
  absl::StatusOr<Lock> holder = locks->Acquire("a");
  std::optional<absl::Status> outcome;
  Task task = Keep(*locks, "a", {}, outcome);
  locks.reset();
  EXPECT_EQ(ReasonOf(*outcome), Reason::kShutdown);
}

TEST_F(CoroutineTest, DestroyingASuspendedCoroutineCancelsItsWait) {
  absl::StatusOr<Lock> holder = locks_.Acquire("a");
  std::optional<absl::Status> first;
  std::optional<absl::Status> second;
  Task leaves = Keep(locks_, "a", {}, first);
  Task stays = Keep(locks_, "a", {}, second);
  leaves.Destroy();
  EXPECT_EQ(locks_.Snapshot().at(0).waiters.size(), 1u);
  ASSERT_TRUE(holder->Release().ok());
  EXPECT_FALSE(first);
  EXPECT_EQ(second, absl::OkStatus());
}

TEST_F(CoroutineTest, DestroyingAWaitingThiefLeavesTheHolderInPeace) {
  absl::StatusOr<Lock> holder = locks_.Acquire("a");
  std::optional<absl::Status> outcome;
  Task thief = Keep(locks_, "a", {.priority = 1}, outcome);
  EXPECT_EQ(holder->state(), LockState::kYielding);
  thief.Destroy();
  EXPECT_EQ(holder->state(), LockState::kHeld);
}

TEST_F(CoroutineTest, AGrantThatMeetsADestroyedCoroutineIsGivenBack) {
  SimulatedExecutor executor;
  LockManager locks = NewManager({.executor = &executor});
  absl::StatusOr<Lock> holder = locks.Acquire("a");
  std::optional<absl::Status> outcome;
  Task task = Keep(locks, "a", {}, outcome);
  ASSERT_TRUE(holder->Release().ok());
  EXPECT_TRUE(locks.IsBusy("a")) << "granted, and on its way through the executor";
  task.Destroy();
  executor.RunAll();
  EXPECT_FALSE(outcome);
  EXPECT_FALSE(locks.IsBusy());
}

TEST_F(CoroutineTest, CancellationAndGrantLeaveExactlyOneOutcome) {
  // Both on threads of their own; the lock must be free afterwards whoever was first.
  constexpr int kRounds = 300;
  for (int round = 0; round < kRounds; ++round) {
    absl::StatusOr<Lock> holder = locks_.Acquire("a");
    std::stop_source stop;
    std::atomic<int> outcomes = 0;
    absl::Notification resumed;
    const auto wait = [&](std::stop_token token) -> Task {
      AcquireOptions options = {.cancel = std::move(token)};
      absl::StatusOr<Lock> lock = co_await locks_.CoAcquire("a", options);
      EXPECT_TRUE(lock.ok() || ReasonOf(lock.status()) == Reason::kCancelled) << lock.status();
      ++outcomes;
      lock = absl::CancelledError();
      resumed.Notify();
    };
    Task task = wait(stop.get_token());
    std::thread releases([&] { EXPECT_TRUE(holder->Release().ok()); });
    std::thread cancels([&] { stop.request_stop(); });
    releases.join();
    cancels.join();
    resumed.WaitForNotification();
    EXPECT_EQ(outcomes, 1);
    EXPECT_FALSE(locks_.IsBusy());
  }
}

TEST_F(CoroutineTest, AHundredThousandHandOversDoNotRecurse) {
  LockManager locks = NewManager({.admission = AdmitAll()});
  constexpr int kTasks = 100'000;
  int inside = 0;
  const auto enter = [&]() -> Task {
    absl::StatusOr<Lock> lock = co_await locks.CoAcquire("a");
    if (lock.ok()) ++inside;
  };
  absl::StatusOr<Lock> holder = locks.Acquire("a");
  std::vector<Task> tasks;
  for (int i = 0; i < kTasks; ++i) tasks.push_back(enter());
  EXPECT_EQ(inside, 0);
  ASSERT_TRUE(holder->Release().ok());
  EXPECT_EQ(inside, kTasks);
  EXPECT_FALSE(locks.IsBusy());
}

TEST_F(CoroutineTest, ALoopOfFreeLocksDoesNotRecurse) {
  int rounds = 0;
  const auto loop = [&]() -> Task {
    for (; rounds < 100'000; ++rounds) {
      absl::StatusOr<Lock> lock = co_await locks_.CoAcquire("a", {.owner = "loop"});
      if (!lock.ok()) co_return;
    }
  };
  Task task = loop();
  EXPECT_TRUE(task.done());
  EXPECT_EQ(rounds, 100'000);
}

// ---- Several locks ----

TEST_F(CoroutineTest, TakesSeveralLocksAsOne) {
  const std::vector<std::string> many(1, std::string(50, 'm'));
  std::vector<absl::Status> outcomes;
  const auto body = [&]() -> Task {
    {
      absl::StatusOr<LockSet> set = co_await locks_.CoAcquireAll({"a", "b"});
      outcomes.push_back(set.status());
      EXPECT_THAT(set->resources(), ElementsAre("a", "b"));
    }
    {
      absl::StatusOr<LockSet> set = co_await locks_.CoAcquireAll(
          {"c" + std::string(50, 'c'), std::string("d")}, {.owner = "o" + std::string(50, 'o')});
      outcomes.push_back(set.status());
    }
    const AcquireOptions named = {.priority = 1};
    absl::StatusOr<LockSet> set = co_await locks_.CoAcquireAll(many, named);
    outcomes.push_back(set.status());
    outcomes.push_back((co_await locks_.CoAcquireAll({"x", ""})).status());
  };
  absl::StatusOr<Lock> holder = locks_.Acquire("b");
  Task task = body();
  EXPECT_THAT(outcomes, ElementsAre());
  ASSERT_TRUE(holder->Release().ok());
  ASSERT_TRUE(task.done());
  EXPECT_EQ(outcomes.size(), 4u);
  EXPECT_TRUE(outcomes[0].ok() && outcomes[1].ok() && outcomes[2].ok());
  EXPECT_EQ(ReasonOf(outcomes[3]), Reason::kInvalidArgument);
}

TEST_F(CoroutineTest, DestroyingACoroutineThatWaitsForSeveralLocksLeavesNothing) {
  const auto body = [&](std::stop_token stop) -> Task {
    absl::StatusOr<LockSet> set = co_await locks_.CoAcquireAll({"a", "b"}, {.cancel = stop});
    EXPECT_EQ(ReasonOf(set.status()), Reason::kCancelled);
  };
  absl::StatusOr<Lock> holder = locks_.Acquire("b");
  {
    Task task = body({});
    EXPECT_FALSE(task.done());
  }
  std::stop_source stop;
  Task task = body(stop.get_token());
  EXPECT_FALSE(task.done());
  stop.request_stop();
  EXPECT_TRUE(task.done());
  EXPECT_FALSE(locks_.IsBusy("a"));
  ASSERT_TRUE(holder->Release().ok());
  EXPECT_FALSE(locks_.IsBusy());
}

// ---- Callbacks ----

TEST_F(CoroutineTest, AwaitsWhatACallbackTells) {
  std::optional<Completion<int>> pending;
  std::vector<int> got;
  const auto body = [&]() -> Task {
    got.push_back(co_await AwaitCallback<int>([](Completion<int> done) { done(1); }));
    got.push_back(co_await AwaitCallback<int>(
        [&](Completion<int> done) { pending.emplace(std::move(done)); }));
    co_await AwaitCallback<void>([](Completion<void> done) { done(); });
    got.push_back(3);
  };
  Task task = body();
  EXPECT_THAT(got, ElementsAre(1));
  (*pending)(2);
  EXPECT_THAT(got, ElementsAre(1, 2, 3));
  EXPECT_TRUE(task.done());
}

TEST_F(CoroutineTest, ACallbackMayComeAfterItsCoroutineIsGone) {
  std::optional<Completion<std::string>> pending;
  const auto body = [&]() -> Task {
    co_await AwaitCallback<std::string>(
        [&](Completion<std::string> done) { pending.emplace(std::move(done)); });
    ADD_FAILURE() << "resumed";
  };
  Task task = body();
  task.Destroy();
  (*pending)("too late");
}

TEST_F(CoroutineTest, ADroppedCallbackIsTheStatusCancelled) {
  absl::Status status;
  const auto body = [&]() -> Task {
    status = co_await AwaitCallback<absl::Status>([](Completion<absl::Status> /*done*/) {});
  };
  Task task = body();
  EXPECT_EQ(status.code(), absl::StatusCode::kCancelled);
}

TEST_F(CoroutineTest, ACallbackOnAnotherThreadRacesWithTheSuspension) {
  std::vector<std::thread> threads;
  std::atomic<int> sum = 0;
  absl::Notification finished;
  const auto body = [&]() -> Task {
    for (int i = 0; i < 200; ++i) {
      sum += co_await AwaitCallback<int>([&](Completion<int> done) {
        threads.emplace_back([done = std::move(done)]() mutable { done(1); });
      });
    }
    finished.Notify();
  };
  Task task = body();
  finished.WaitForNotification();
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(sum, 200);
}

// ---- Time ----

TEST_F(CoroutineTest, KeepsTheOwnerThatWasInForceAtItsStart) {
  std::vector<std::string> owners;
  std::optional<Completion<int>> done;
  absl::StatusOr<Lock> a = locks_.Acquire("a");
  absl::StatusOr<Lock> b = locks_.Acquire("b");
  const auto body = [&]() -> Task {
    const auto note = [&] { owners.emplace_back(ScopedOwner::Current()); };
    note();
    const absl::StatusOr<Lock> one = co_await locks_.CoAcquire("a");
    note();
    const absl::StatusOr<Lock> again = co_await locks_.CoAcquire("a");
    EXPECT_TRUE(again.ok()) << "it enters what it holds";
    const absl::StatusOr<LockSet> set = co_await locks_.CoAcquireAll({"a", "b"});
    note();
    co_await SleepFor(absl::Seconds(1), clock_);
    note();
    co_await AwaitCallback<int>([&](Completion<int> call) { done.emplace(std::move(call)); });
    note();
  };
  std::optional<Task> task;
  {
    ScopedOwner me("me");
    task.emplace(body());
    EXPECT_EQ(ScopedOwner::Current(), "me");
  }
  EXPECT_EQ(ScopedOwner::Current(), "");
  {
    ScopedOwner other("other");  // Whoever brings the news does not matter.
    EXPECT_TRUE(a->Release().ok());
    EXPECT_TRUE(b->Release().ok());
    clock_.AdvanceBy(absl::Seconds(1));
    ASSERT_TRUE(done);
    (*done)(1);
    EXPECT_EQ(ScopedOwner::Current(), "other");
  }
  EXPECT_THAT(owners, ElementsAre("me", "me", "me", "me", "me"));
  EXPECT_TRUE(task->done());
}

TEST_F(CoroutineTest, SleepsUntilTheClockSaysSo) {
  int awake = 0;
  const auto body = [&]() -> Task {
    co_await SleepFor(absl::ZeroDuration(), clock_);
    ++awake;
    co_await SleepFor(absl::Minutes(5), clock_);
    ++awake;
  };
  Task task = body();
  EXPECT_EQ(awake, 1);
  clock_.AdvanceBy(absl::Minutes(5) - absl::Nanoseconds(1));
  EXPECT_EQ(awake, 1);
  clock_.AdvanceBy(absl::Nanoseconds(1));
  EXPECT_EQ(awake, 2);
}

TEST_F(CoroutineTest, DestroyingASleeperCancelsItsTimer) {
  const auto body = [&]() -> Task { co_await SleepFor(absl::Minutes(5), clock_); };
  {
    Task task = body();
    EXPECT_EQ(clock_.PendingTimers(), 1u);
  }
  EXPECT_EQ(clock_.PendingTimers(), 0u);
}

}  // namespace
}  // namespace latchkey

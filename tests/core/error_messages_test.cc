// Every error of the public interface says which resource, who is in the way, and why, and has its
// reason as a type.
//
// Each case gives a status, its reason, and what its message must contain. What cannot be told is
// left out of the list on purpose, and docs/reference/errors.md says so: an empty lock has no
// resource, and a plain lock that was released has forgotten its own.
#include <memory>
#include <optional>
#include <set>
#include <stop_token>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "latchkey/core/lock_error.h"
#include "latchkey/core/lock_manager.h"
#include "latchkey/core/locker.h"
#include "latchkey/core/protocol/locking_protocol.h"
#include "latchkey/core/transaction.h"
#include "latchkey/memory_backend/memory_backend.h"
#include "latchkey/tests/support/fault_injecting_protocol.h"
#include "latchkey/tests/support/lock_manager_fixture.h"

namespace latchkey {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr std::string_view kBob = "'bob' with priority 3";
constexpr std::string_view kTaken =
    "taken by force, since the grace was over before it was released; now held by 'thief' with "
    "priority 9";

// As the backend that it wraps, but it fails when it is told to.
class FailingProtocol : public LockingProtocol {
 public:
  explicit FailingProtocol(std::shared_ptr<LockingProtocol> wrapped)
      : wrapped_(std::move(wrapped)), capabilities_(wrapped_->capabilities()) {
    capabilities_.name = "fails";
    capabilities_.forced_handover = false;
    capabilities_.max_lease = absl::Minutes(1);
  }

  void FailWith(absl::Status status) { failure_ = std::move(status); }

  void Obtain(const ObtainRequest& request, ObtainCallback done) override {
    if (!failure_.ok()) return done(failure_);
    wrapped_->Obtain(request, std::move(done));
  }
  void Release(const HoldRef& hold, ReleaseCallback done) override {
    if (!failure_.ok()) return done(failure_);
    wrapped_->Release(hold, std::move(done));
  }
  void Extend(const HoldRef& hold, absl::Duration lease, ExtendCallback done) override {
    if (!failure_.ok()) return done(failure_);
    wrapped_->Extend(hold, lease, std::move(done));
  }
  Subscription Watch(const WatchRequest& request, WatchCallback on_event) override {
    return wrapped_->Watch(request, std::move(on_event));
  }
  std::string ResourceOf(const HoldRef& hold) const override { return wrapped_->ResourceOf(hold); }
  void Inspect(std::optional<ResourceName> resource,
               absl::FunctionRef<void(const ResourceState&)> visitor) const override {
    wrapped_->Inspect(resource, visitor);
  }
  const BackendCapabilities& capabilities() const override { return capabilities_; }

 private:
  const std::shared_ptr<LockingProtocol> wrapped_;
  BackendCapabilities capabilities_;
  absl::Status failure_;
};

// Admits nobody, and says no more than that.
class Refuse : public AdmissionPolicy {
 public:
  Admission Decide(const AdmissionContext&) const override { return Admission::kReject; }
};

class ErrorMessagesTest : public LockManagerFixture {
 protected:
  ErrorMessagesTest()
      : failing_(std::make_shared<FailingProtocol>(backend_)),
        fails_(*LockManager::Create(failing_, {.clock = &clock_})),
        link_(std::make_shared<FaultInjectingProtocol>(
            backend_, FaultInjectingOptions{.clock = &clock_,
                                            .faults = {.min_delay = absl::Milliseconds(1),
                                                       .max_delay = absl::Milliseconds(1)},
                                            .in_order = true})),
        far_(*LockManager::Create(link_, {.clock = &clock_})) {}

  void Check(std::string_view situation, const absl::Status& status, Reason reason,
             const std::vector<std::string_view>& said) {
    SCOPED_TRACE(absl::StrCat(situation, ": ", status.ToString()));
    seen_.insert(reason);
    EXPECT_EQ(ReasonOf(status), reason) << ReasonName(ReasonOf(status));
    EXPECT_EQ(status.code(), CodeOf(reason));
    for (const std::string_view text : said) EXPECT_THAT(status.message(), HasSubstr(text));
  }

  // Runs `call` inside a callback of the library.
  void InCallback(absl::AnyInvocable<void()> call) {
    locks_.AcquireAsync("callback", {},
                        [call = std::move(call)](absl::StatusOr<Lock>) mutable { call(); });
  }

  Lock Bob(std::string_view resource = "it") {
    absl::StatusOr<Lock> lock = locks_.Acquire(resource, {.owner = "bob", .priority = 3});
    EXPECT_TRUE(lock.ok()) << lock.status();
    return *std::move(lock);
  }

  // Takes `resource` by force from whoever holds it.
  Lock Steal(std::string_view resource = "it") {
    absl::StatusOr<Lock> lock = locks_.Acquire(
        resource, {.owner = "thief", .priority = 9, .preemption_grace = absl::ZeroDuration()});
    EXPECT_TRUE(lock.ok()) << lock.status();
    return *std::move(lock);
  }

  void ChecksOfArguments();
  void ChecksOfWaiting();
  void ChecksOfSets();
  void ChecksOfBackends();
  void ChecksOfRelease();
  void ChecksOfExtend();
  void ChecksOfBodies();
  void ChecksOfTransactions();

  std::set<Reason> seen_;
  std::shared_ptr<FailingProtocol> failing_;
  LockManager fails_;
  std::shared_ptr<FaultInjectingProtocol> link_;
  LockManager far_;
};

void ErrorMessagesTest::ChecksOfArguments() {
  const absl::Duration negative = -absl::Seconds(1);
  Check("no backend", LockManager::Create(nullptr).status(), Reason::kInvalidArgument,
        {"backend", "null"});
  Check("no name", locks_.Acquire("").status(), Reason::kInvalidArgument, {"resource", "''"});
  const std::vector<std::pair<AcquireOptions, std::string_view>> bad = {
      {{.lease = absl::ZeroDuration()}, "lease must be positive, but is 0"},
      {{.max_hold = negative}, "max_hold must be positive, but is -1s"},
      {{.preemption_grace = negative}, "preemption_grace must not be negative, but is -1s"},
      {{.acquire_timeout = negative}, "acquire_timeout must not be negative, but is -1s"},
      {{.outage_patience = negative}, "outage_patience must not be negative, but is -1s"},
      {{.max_attempts = 0}, "max_attempts must be positive, but is 0"},
      {{.max_execution_time = negative}, "max_execution_time must be positive, but is -1s"},
      {{.max_occupation_time = negative}, "max_occupation_time must be positive, but is -1s"}};
  for (const auto& [options, text] : bad) {
    Check("Acquire", locks_.Acquire("it", options).status(), Reason::kInvalidArgument,
          {text, "'it'"});
    Check("TryAcquire", locks_.TryAcquire("it", options).status(), Reason::kInvalidArgument,
          {text, "'it'"});
    Check("AcquireAsync", Ask("it", options)->status(), Reason::kInvalidArgument, {text, "'it'"});
    Check("AcquireAll", locks_.AcquireAll({"it"}, options).status(), Reason::kInvalidArgument,
          {text, "'it'"});
    Check("AcquireAllAsync", AskAll({"it"}, options)->status(), Reason::kInvalidArgument,
          {text, "'it'"});
    Check("Run",
          locks_.Run("it", options, [](LockContext&) -> absl::Status { return absl::OkStatus(); }),
          Reason::kInvalidArgument, {text, "'it'"});
  }
  Check("a lease that is too long", fails_.Acquire("it", {.lease = absl::Hours(1)}).status(),
        Reason::kNotSupported, {"'it'", "'fails'", "1h", "1m"});
  Check("a grace", fails_.Acquire("it", {.preemption_grace = absl::Seconds(1)}).status(),
        Reason::kNotSupported, {"'it'", "'fails'", "preemption_grace 1s"});
}

void ErrorMessagesTest::ChecksOfWaiting() {
  std::optional<Lock> bob = Bob();
  std::stop_source cancel;
  Check("TryAcquire", locks_.TryAcquire("it").status(), Reason::kHeldByOther, {"'it'", kBob});
  Check("no time", locks_.Acquire("it", {.acquire_timeout = absl::ZeroDuration()}).status(),
        Reason::kAcquireTimeout, {"'it'", kBob, "acquire_timeout", "(0)"});
  Check("one attempt", locks_.Acquire("it", {.max_attempts = 1}).status(),
        Reason::kAttemptsExhausted, {"'it'", kBob, "max_attempts"});
  Check("nobody may wait", Ask("it", {.admission = LimitPending({.per_resource = 0})})->status(),
        Reason::kTooManyPending,
        {"'it'", kBob, "too many requests wait already (0 for this resource; per_resource is 0)"});

  auto first = Ask("it", {.acquire_timeout = absl::Seconds(5)});
  auto behind = Ask("it", {.acquire_timeout = absl::Seconds(1)});
  auto thief = Ask("it", {.priority = 7, .acquire_timeout = absl::Seconds(2)});
  auto cancelled = Ask("it", {.cancel = cancel.get_token()});
  Check("the queue is full", Ask("it", {.admission = LimitPending({.per_resource = 4})})->status(),
        Reason::kTooManyPending, {"'it'", kBob, "(4 for this resource; per_resource is 4)"});
  Check("the manager is full", Ask("it", {.admission = LimitPending({.in_total = 3})})->status(),
        Reason::kTooManyPending, {"'it'", kBob, "(4 in this manager; in_total is 3)"});
  Check("the policy says no", Ask("it", {.admission = std::make_shared<Refuse>()})->status(),
        Reason::kTooManyPending, {"'it'", kBob, "(4 for this resource, 4 in this manager)"});
  auto low = Ask("it", {.priority = -1});
  Check("shed",
        [&] {
          Ask("it", {.acquire_timeout = absl::Seconds(1),
                     .admission = ShedLowestPriority({.per_resource = 5})});
          return low->status();
        }(),
        Reason::kTooManyPending,
        {"'it'", kBob, "(5 for this resource; per_resource is 5)", "shed for one of priority 0"});
  cancel.request_stop();
  Check("cancelled", cancelled->status(), Reason::kCancelled, {"'it'", kBob, "cancelled"});
  Check("cancelled before", Ask("it", {.cancel = cancel.get_token()})->status(), Reason::kCancelled,
        {"'it'", "cancelled"});
  Check("TryAcquire, cancelled before",
        locks_.TryAcquire("it", {.cancel = cancel.get_token()}).status(), Reason::kCancelled,
        {"'it'", "cancelled"});
  clock_.AdvanceBy(absl::Seconds(1));
  Check("timed out behind others", behind->status(), Reason::kAcquireTimeout,
        {"'it'", kBob, "(1s)"});
  clock_.AdvanceBy(absl::Seconds(1));
  Check("a thief timed out", thief->status(), Reason::kAcquireTimeout,
        {"'it'", kBob, "asked to yield"});
  clock_.AdvanceBy(absl::Seconds(3));
  Check("timed out", first->status(), Reason::kAcquireTimeout, {"'it'", kBob, "(5s)"});

  {
    std::optional<LockManager> other = NewManager();
    auto waits = Ask(*other, "it");
    auto waits_behind = Ask(*other, "it");
    other.reset();
    Check("shut down", waits->status(), Reason::kShutdown, {"'it'", kBob, "destroyed"});
    Check("shut down behind others", waits_behind->status(), Reason::kShutdown, {"'it'", kBob});
  }

  absl::StatusOr<Lock> ann = locks_.Acquire("hers", {.owner = "ann"});
  auto bob_waits = Ask("hers", {.owner = "bob"});
  auto ann_waits = Ask("it", {.owner = "ann"});
  Check("deadlock", ann_waits->status(), Reason::kDeadlock,
        {"'it'", "'bob' waits for 'hers', held by 'ann'",
         "'ann', who waits for 'it', held by 'bob'"});

  InCallback([&] {
    Check("Acquire in a callback", locks_.Acquire("it").status(), Reason::kWouldBlock,
          {"Acquire()", "'it'"});
    Check("TryAcquire in a callback", far_.TryAcquire("it").status(), Reason::kWouldBlock,
          {"TryAcquire()", "'it'"});
  });
}

void ErrorMessagesTest::ChecksOfSets() {
  Lock bob = Bob();
  std::stop_source cancel;
  Check("no time", AskAll({"a", "it"}, {.acquire_timeout = absl::ZeroDuration()})->status(),
        Reason::kAcquireTimeout, {"'a', 'it'", "'it' is held by", kBob, "(0)"});
  Check("one attempt", AskAll({"a", "it"}, {.max_attempts = 1})->status(),
        Reason::kAttemptsExhausted, {"'a', 'it'", "'it' is held by", kBob});
  Check("nobody may wait",
        AskAll({"a", "it"}, {.admission = LimitPending({.per_resource = 0})})->status(),
        Reason::kTooManyPending, {"'a', 'it'", "'it'", kBob});
  auto timeout = AskAll({"a", "it"}, {.acquire_timeout = absl::Seconds(1)});
  auto cancelled = AskAll({"a", "it"}, {.cancel = cancel.get_token()});
  clock_.AdvanceBy(absl::Seconds(1));
  cancel.request_stop();
  Check("timed out", timeout->status(), Reason::kAcquireTimeout,
        {"'a', 'it'", "'it' is held by", kBob, "(1s)"});
  Check("cancelled", cancelled->status(), Reason::kCancelled,
        {"'a', 'it'", "'it' is held by", kBob});
  EXPECT_THAT(cancelled->status().message(), Not(HasSubstr("yield")));
  {
    std::stop_source other_cancel;
    auto thief = AskAll({"a", "it"}, {.priority = 7, .acquire_timeout = absl::Seconds(1)});
    clock_.AdvanceBy(absl::Seconds(1));
    Check("a thief timed out", thief->status(), Reason::kAcquireTimeout,
          {"'a', 'it'", "'it' is held by", kBob, ", which was asked to yield"});
    thief = AskAll({"a", "it"}, {.priority = 7, .cancel = other_cancel.get_token()});
    other_cancel.request_stop();
    Check("a thief was cancelled", thief->status(), Reason::kCancelled,
          {"'a', 'it'", "'it' is held by", kBob, ", which was asked to yield"});
  }
  {
    std::optional<LockManager> other = NewManager();
    auto waits = std::make_shared<PendingSet>();
    other->AcquireAllAsync({"a", "it"}, {}, TellTo(waits));
    other.reset();
    Check("shut down", waits->status(), Reason::kShutdown, {"'a', 'it'", kBob});
  }
  InCallback([&] {
    Check("in a callback", locks_.AcquireAll({"a", "it"}).status(), Reason::kWouldBlock,
          {"AcquireAll()", "'a', 'it'"});
  });
  Check("empty, Release", LockSet().Release(), Reason::kNotHeld, {"Release()", "empty"});
  Check("empty, Extend", LockSet().Extend(absl::Seconds(1)), Reason::kNotHeld,
        {"Extend()", "empty"});

  absl::StatusOr<LockSet> set = locks_.AcquireAll({"a", "b"});
  Lock thief = Steal("b");
  Check("a member was stolen, Extend", set->Extend(absl::Seconds(1)), Reason::kStolen,
        {"'b'", kTaken});
  Check("a member was stolen, Release", set->Release(), Reason::kStolen, {"'b'", kTaken});
  Check("released, Extend", set->Extend(absl::Seconds(1)), Reason::kNotHeld,
        {"'a', 'b'", "released"});
}

void ErrorMessagesTest::ChecksOfBackends() {
  const std::vector<std::pair<absl::Status, Reason>> failures = {
      {BackendUnavailableError("connection refused"), Reason::kBackendUnavailable},
      {BackendUnknownError("no answer"), Reason::kBackendUnknown},
      {BackendRefusedError("wrong password"), Reason::kBackendRefused}};
  for (const auto& [failure, reason] : failures) {
    const std::string_view why = failure.message();
    std::optional<absl::StatusOr<Lock>> held = fails_.Acquire("it");
    std::optional<absl::StatusOr<Lock>> leased = fails_.Acquire("its", {.lease = absl::Seconds(9)});
    failing_->FailWith(failure);
    const AcquireOptions once = {.outage_patience = absl::ZeroDuration()};
    Check("Acquire", fails_.Acquire("a", once).status(), reason, {"'a'", why});
    Check("Acquire, with a lease",
          fails_.Acquire("a", {.lease = absl::Seconds(1), .outage_patience = absl::ZeroDuration()})
              .status(),
          reason, {"'a'", why});
    Check("TryAcquire", fails_.TryAcquire("a").status(), reason, {"'a'", why});
    Check("AcquireAsync", Ask(fails_, "a", once)->status(), reason, {"'a'", why});
    Check("AcquireAll", fails_.AcquireAll({"a", "b"}, once).status(), reason, {"'a', 'b'", why});
    const auto waits = Ask(fails_, "a", {.acquire_timeout = absl::Seconds(3)});
    clock_.AdvanceBy(absl::Seconds(3));
    // A refusal is told at once.
    Check("AcquireAsync, which waits", waits->status(), reason,
          {"'a'", why, reason == Reason::kBackendRefused ? why : "times in 3s"});
    Check("Extend", (*leased)->Extend(absl::Seconds(1)), reason, {"'its'", why});
    Check("Release", (*held)->Release(), reason, {"'it'", why});
    Check("Release of a lease", (*leased)->Release(), reason, {"'its'", why});
    failing_->FailWith(absl::OkStatus());
    backend_ = NewMemoryBackend({.clock = &clock_});
    failing_ = std::make_shared<FailingProtocol>(backend_);
    held.reset();
    leased.reset();
    fails_ = *LockManager::Create(failing_, {.clock = &clock_});
  }
}

void ErrorMessagesTest::ChecksOfRelease() {
  Check("empty", Lock().Release(), Reason::kNotHeld, {"Release()", "empty"});
  {
    Lock victim = Bob();
    Lock thief = Steal();
    Check("stolen, and nobody listened", victim.Release(), Reason::kStolen,
          {"'it'", kTaken, absl::StrCat("token ", victim.fencing_token())});
    EXPECT_TRUE(thief.IsHeld());
  }
  {
    Lock victim = Bob();
    Lock thief = Steal();
    EXPECT_EQ(victim.state(), LockState::kStolen);
    Check("stolen, and looked at", victim.Release(), Reason::kStolen, {"'it'", kTaken});
    Check("stolen, again", victim.Release(), Reason::kStolen, {"'it'", kTaken});
  }
  {
    Lock victim = Bob();
    victim.OnLost([](LockState) {});
    Lock thief = Steal();
    Check("stolen, and told", victim.Release(), Reason::kStolen, {"'it'", kTaken});
  }
  {
    absl::StatusOr<Lock> lock = locks_.Acquire("it", {.lease = absl::Seconds(1)});
    clock_.AdvanceBy(absl::Seconds(1));
    Check("expired", lock->Release(), Reason::kExpired, {"'it'", "lease ran out"});
  }
  {
    auto lock = Ask(far_, "it", {.lease = absl::Seconds(9), .auto_renew = false});
    clock_.AdvanceBy(absl::Milliseconds(5));
    ASSERT_TRUE(lock->granted());
    Lock thief = Steal();  // The news of it is on its way.
    std::optional<absl::Status> released;
    lock->lock().ReleaseAsync([&](absl::Status status) { released = std::move(status); });
    clock_.AdvanceBy(absl::Milliseconds(5));
    ASSERT_TRUE(released);
    Check("lost, as the backend says", *released, Reason::kLost, {"'it'", "does not know"});
  }
  auto lock = Ask(far_, "far");
  clock_.AdvanceBy(absl::Milliseconds(5));
  InCallback([&] {
    Check("in a callback", lock->lock().Release(), Reason::kWouldBlock, {"Release()", "'far'"});
  });
  auto set = std::make_shared<PendingSet>();
  far_.AcquireAllAsync({"a", "b"}, {}, TellTo(set));
  clock_.AdvanceBy(absl::Milliseconds(5));
  InCallback([&] {
    Check("a set in a callback", set->lock().Release(), Reason::kWouldBlock,
          {"Release()", "'a', 'b'"});
  });
}

void ErrorMessagesTest::ChecksOfExtend() {
  Check("empty", Lock().Extend(absl::Seconds(1)), Reason::kNotHeld, {"Extend()", "empty"});
  {
    Lock lock = Bob();
    Check("no lease", lock.Extend(absl::ZeroDuration()), Reason::kInvalidArgument,
          {"'it'", "lease must be positive, but is 0"});
    auto thief = Ask("it", {.owner = "ann", .priority = 7});
    Check("wanted", lock.Extend(absl::Seconds(1)), Reason::kYieldRequested,
          {"'it'", "'ann' with priority 7 waits for it"});
    EXPECT_TRUE(lock.Release().ok());
    Check("released, and looked at before", lock.Extend(absl::Seconds(1)), Reason::kNotHeld,
          {"released", "'it'"});
  }
  {
    Lock lock = Bob();
    EXPECT_TRUE(lock.Release().ok());
    // It keeps nothing but its token.
    Check("released", lock.Extend(absl::Seconds(1)), Reason::kNotHeld,
          {"released", absl::StrCat("token ", lock.fencing_token())});
  }
  {
    absl::StatusOr<Lock> lock = fails_.Acquire("it");
    Check("too long", lock->Extend(absl::Hours(1)), Reason::kNotSupported,
          {"'it'", "'fails'", "1h"});
  }
  {
    Lock victim = Bob();
    Lock thief = Steal();
    Check("stolen", victim.Extend(absl::Seconds(1)), Reason::kStolen, {"'it'", kTaken});
  }
  {
    absl::StatusOr<Lock> lock = locks_.Acquire("it", {.lease = absl::Seconds(1)});
    clock_.AdvanceBy(absl::Seconds(1));
    Check("expired", lock->Extend(absl::Seconds(1)), Reason::kExpired, {"'it'", "lease ran out"});
  }
}

void ErrorMessagesTest::ChecksOfBodies() {
  std::optional<LockContext> kept;
  std::shared_ptr<Pending> thief;
  const auto ok = [](LockContext&) { return absl::OkStatus(); };
  {
    Lock bob = Bob();
    Check("no lock", locks_.Run("it", {.max_attempts = 1}, ok), Reason::kAttemptsExhausted,
          {"'it'", kBob});
    std::optional<absl::Status> result;
    locks_.RunAsync(
        "it", {.max_occupation_time = absl::Seconds(1)},
        [](LockContext, LockManager::FinishCallback) { FAIL(); },
        [&](absl::Status status) { result = std::move(status); });
    clock_.AdvanceBy(absl::Seconds(1));
    Check("no lock in time", *result, Reason::kOccupationTimeout,
          {"'it'", kBob, "max_occupation_time is over (1s) before the body could begin"});
    EXPECT_THAT(result->message(), Not(HasSubstr("acquire_timeout")));
    locks_.RunAllAsync(
        {"it", "that"}, {.max_occupation_time = absl::Seconds(1)},
        [](LockContext, LockManager::FinishCallback) { FAIL(); },
        [&](absl::Status status) { result = std::move(status); });
    clock_.AdvanceBy(absl::Seconds(1));
    Check("several, no lock in time", *result, Reason::kOccupationTimeout,
          {"'it', 'that'", kBob, "max_occupation_time is over (1s) before the body could begin"});
    EXPECT_THAT(result->message(), Not(HasSubstr("acquire_timeout")));
  }
  Check("wanted",
        locks_.Run("it", {},
                   [&](LockContext& context) {
                     kept = context;
                     thief = Ask("it", {.owner = "ann", .priority = 7});
                     return context.CheckPoint();
                   }),
        Reason::kYieldRequested, {"'it'", "'ann' with priority 7 waits for it"});
  thief.reset();
  Check("over", kept->CheckPoint(), Reason::kNotHeld, {"'it'", "released"});
  Check("too long",
        locks_.Run("it", {.max_execution_time = absl::Seconds(1)},
                   [&](LockContext& context) {
                     clock_.AdvanceBy(absl::Seconds(1));
                     return context.CheckPoint();
                   }),
        Reason::kExecutionTimeout, {"'it'", "max_execution_time", "(1s)"});
  Check("occupied too long",
        locks_.Run("it", {.max_occupation_time = absl::Seconds(1)},
                   [&](LockContext&) {
                     clock_.AdvanceBy(absl::Seconds(1));
                     return absl::OkStatus();
                   }),
        Reason::kOccupationTimeout, {"'it'", "max_occupation_time", "(1s)"});
  Lock stolen;
  Check("stolen",
        locks_.Run("it", {},
                   [&](LockContext&) {
                     stolen = Steal();
                     return absl::OkStatus();
                   }),
        Reason::kStolen, {"'it'", kTaken});
  stolen = Lock();
  Check("expired",
        locks_.Run("it", {.lease = absl::Seconds(1), .auto_renew = false},
                   [&](LockContext& context) {
                     clock_.AdvanceBy(absl::Seconds(1));
                     return context.CheckPoint();
                   }),
        Reason::kExpired, {"'it'", "lease ran out"});
  Check("several, wanted",
        locks_.RunAll({"it", "that"}, {},
                      [&](LockContext& context) {
                        thief = Ask("that", {.priority = 7});
                        return context.CheckPoint();
                      }),
        Reason::kYieldRequested, {"'it', 'that'", "priority 7"});
  thief.reset();
  {
    Lock bob = Bob("that");
    Check("several, no lock", locks_.RunAll({"it", "that"}, {.max_attempts = 1}, ok),
          Reason::kAttemptsExhausted, {"'it', 'that'", "'that' is held by", kBob});
  }
  absl::Status dropped;
  locks_.RunAsync(
      "it", {}, [](LockContext, LockManager::FinishCallback) {},
      [&](absl::Status status) { dropped = std::move(status); });
  Check("never finished", dropped, Reason::kCancelled, {"'it'", "dropped its callback"});
  absl::Status null;
  locks_.RunAsync("it", {}, nullptr, [&](absl::Status status) { null = std::move(status); });
  Check("no body", null, Reason::kInvalidArgument, {"'it'", "body must not be null"});
}

void ErrorMessagesTest::ChecksOfTransactions() {
  int data = 0;
  const auto sleeps = [](int&, TransactionContext& ctx) -> Transaction<void> {
    co_await ctx.Sleep(absl::Seconds(1));
  };
  {
    Locker locker(locks_, "it", data);
    auto handle = locker.Start(sleeps);
    auto thief = Ask("it", {.priority = 7});
    clock_.AdvanceBy(absl::Seconds(1));
    Check("wanted", handle.Wait(), Reason::kYieldRequested, {"'it'"});
  }
  {
    Locker locker(locks_, "it", data, {.max_execution_time = absl::Milliseconds(500)});
    auto handle = locker.Start(sleeps);
    clock_.AdvanceBy(absl::Seconds(1));
    Check("too long", handle.Wait(), Reason::kExecutionTimeout, {"'it'", "max_execution_time"});
  }
  Lock bob = Bob();
  Locker locker(locks_, "it", data, {.acquire_timeout = absl::Seconds(1)});
  auto late = locker.Start(sleeps);
  clock_.AdvanceBy(absl::Seconds(1));
  Check("no lock", late.Wait(), Reason::kAcquireTimeout, {"'it'", kBob});
  auto cancelled = locker.Start(sleeps);
  InCallback([&] {
    Check("in a callback", cancelled.Wait(), Reason::kWouldBlock, {"Wait()", "'it'"});
  });
  cancelled.Cancel();
  Check("cancelled", cancelled.Wait(), Reason::kCancelled, {"'it'"});
}

TEST_F(ErrorMessagesTest, EachNamesTheResourceTheOtherAndTheReason) {
  ChecksOfArguments();
  ChecksOfWaiting();
  ChecksOfSets();
  ChecksOfRelease();
  ChecksOfExtend();
  ChecksOfBodies();
  ChecksOfTransactions();
  ChecksOfBackends();

  for (int reason = static_cast<int>(Reason::kAcquireTimeout);
       reason <= static_cast<int>(Reason::kNotHeld); ++reason) {
    EXPECT_TRUE(seen_.contains(static_cast<Reason>(reason)))
        << "no case ends with " << ReasonName(static_cast<Reason>(reason));
  }
}

TEST_F(ErrorMessagesTest, OddNamesAreEscapedAndLongOnesCut) {
  const std::string odd("a\n\0b\xff", 5);
  absl::StatusOr<Lock> held = locks_.Acquire(odd, {.owner = odd});
  EXPECT_THAT(locks_.TryAcquire(odd).status().message(), HasSubstr("'a\\n\\x00\\x62\\xff'"));
  const std::string long_name(10000, 'x');
  held = locks_.Acquire(long_name);
  const absl::Status cut = locks_.TryAcquire(long_name).status();
  EXPECT_LT(cut.message().size(), 300u);
  EXPECT_THAT(cut.message(), HasSubstr("(10000 bytes)"));
}

}  // namespace
}  // namespace latchkey

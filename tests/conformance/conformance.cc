#include "latchkey/tests/conformance/conformance.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "latchkey/core/protocol/quorum_member.h"
#include "latchkey/tests/support/await.h"
#include "latchkey/tests/support/simulated_clock.h"

namespace latchkey {
namespace {

// Bytes handed to a call and spoilt as soon as it returns, since they are only valid during it.
class PassingBytes {
 public:
  explicit PassingBytes(std::string_view bytes) : bytes_(bytes) {}
  ~PassingBytes() { std::fill(bytes_.begin(), bytes_.end(), '?'); }
  std::string_view view() const { return bytes_; }

 private:
  std::string bytes_;
};

ConformanceSetup SimulatedSetup(
    const std::function<std::vector<std::shared_ptr<LockingProtocol>>(Clock& clock)>& make) {
  auto clock = std::make_shared<SimulatedClock>();
  ConformanceSetup setup;
  setup.clients = make(*clock);
  setup.advance = [clock = clock.get()](absl::Duration duration) { clock->AdvanceBy(duration); };
  // What is due at once runs only when the clock is told to.
  setup.pump = [clock = clock.get()] { clock->RunDue(); };
  setup.keep_alive = std::move(clock);
  return setup;
}

}  // namespace

ConformanceParam OnSimulatedTime(
    std::function<std::vector<std::shared_ptr<LockingProtocol>>(Clock& clock)> make) {
  return {.make = [make = std::move(make)] { return SimulatedSetup(make); }, .exact_time = true};
}

ConformanceParam OnSimulatedTime(
    std::function<std::shared_ptr<LockingProtocol>(Clock& clock)> make) {
  return OnSimulatedTime(
      std::function<std::vector<std::shared_ptr<LockingProtocol>>(Clock & clock)>(
          [make = std::move(make)](Clock& clock) { return std::vector{make(clock)}; }));
}

std::string ConformanceTestName(const testing::TestParamInfo<ConformanceParam>& info) {
  return info.param.name;
}

ConformanceTest::ConformanceTest()
    : setup_(GetParam().make()), prefix_(AcquisitionId::Next().ToString()) {}

ConformanceTest::~ConformanceTest() {
  // A backend that goes cancels its timers. That its clock comes first among the fields of
  // ConformanceSetup sees to it that it is still there; here it does not depend on that.
  setup_.clients.clear();
  absl::MutexLock lock(&shared_->mu);
  EXPECT_EQ(shared_->completions_missing, 0) << "a completion never ran";
  EXPECT_EQ(shared_->completions_too_many, 0) << "a completion ran more than once";
}

// ---- Waiting ----

absl::Duration ConformanceTest::PatienceLeft() const { return Patience::Of(GetParam().patience); }

bool ConformanceTest::WaitUntil(absl::FunctionRef<bool()> done, std::string_view awaited) {
  return WaitUntil(done, [awaited] { return std::string(awaited); });
}

bool ConformanceTest::WaitUntil(absl::FunctionRef<bool()> done,
                                absl::FunctionRef<std::string()> awaited) {
  const absl::Duration patience = PatienceLeft();
  const absl::Time give_up = absl::Now() + patience;
  bool there = false;
  const auto over = [&, shared = shared_.get()] {
    shared->mu.AssertReaderHeld();
    there = done();
    return there || shared->failed;
  };
  do {
    if (setup_.pump) setup_.pump();
    absl::MutexLock lock(&shared_->mu);
    // With something to pump, the wait is only there for other threads' sake.
    if (shared_->mu.AwaitWithTimeout(absl::Condition(&over),
                                     setup_.pump ? absl::Milliseconds(1) : patience)) {
      return there;
    }
  } while (absl::Now() < give_up);
  Patience::WasInVain();
  Fail(absl::StrCat("waited in vain for ", awaited()));
  return false;
}

// ---- Failing ----

void ConformanceTest::Fail(std::string_view what) {
  {
    absl::MutexLock lock(&shared_->mu);
    if (std::exchange(shared_->failed, true)) return;
  }
  ADD_FAILURE() << what;
}

bool ConformanceTest::failed() const {
  absl::MutexLock lock(&shared_->mu);
  return shared_->failed;
}

void ConformanceTest::Settle() {
  if (setup_.pump) setup_.pump();
  if (setup_.settle) setup_.settle();
}

template <typename T>
absl::StatusOr<T> ConformanceTest::Await(
    std::string_view step,
    absl::FunctionRef<void(absl::AnyInvocable<void(absl::StatusOr<T>)>)> start) {
  struct Completion {
    bool ran = false;
    absl::StatusOr<T> value;
  };
  const auto completion = std::make_shared<Completion>();
  {
    absl::MutexLock lock(&shared_->mu);
    ++shared_->completions_missing;
  }
  start([completion, shared = shared_](absl::StatusOr<T> value) {
    absl::MutexLock lock(&shared->mu);
    if (completion->ran) {
      ++shared->completions_too_many;
      return;
    }
    completion->ran = true;
    completion->value = std::move(value);
    --shared->completions_missing;
  });
  if (!WaitUntil([&] { return completion->ran; }, absl::StrCat("the completion of ", step))) {
    return absl::InternalError("no completion");
  }
  absl::MutexLock lock(&shared_->mu);
  return completion->value;
}

// ---- Parties ----

std::string ConformanceTest::Resource(std::string_view name) const {
  return absl::StrCat(prefix_, "/", name);
}

ConformanceTest::Attempt ConformanceTest::Party(std::string_view owner, Priority priority) {
  LockingProtocol& backend = parties_++ % 2 == 0 ? first() : second();
  return {.backend = &backend,
          .resource = Resource(),
          .owner = std::string(owner),
          .request = {.acquisition = AcquisitionId::Next(),
                      .priority = priority,
                      .lease = Long(),
                      .reservation_lease = Long()}};
}

ConformanceTest::Attempt ConformanceTest::Thief(std::string_view owner, Priority priority) {
  Attempt attempt = Party(owner, priority);
  attempt.request.reserve_below = std::numeric_limits<Priority>::max();
  return attempt;
}

// ---- Steps ----

namespace {

constexpr std::string_view kRelease = "a Release";
constexpr std::string_view kExtend = "an Extend";
constexpr std::string_view kConfirm = "a Confirm";
std::string NameOfObtain(std::string_view owner) {
  return absl::StrCat("an Obtain by ", OwnerForMessage(owner));
}

}  // namespace

void ConformanceTest::Ask(const Attempt& attempt,
                          absl::FunctionRef<void(const ObtainRequest&)> obtain) {
  const PassingBytes resource(attempt.resource);
  const PassingBytes owner(attempt.owner);
  ObtainRequest request = attempt.request;
  request.resource = resource.view();
  request.owner = owner.view();
  obtain(request);
}

void ConformanceTest::Remember(Attempt& attempt, const ObtainReply& reply) {
  if (reply.outcome == ObtainOutcome::kObtained || reply.outcome == ObtainOutcome::kReentered) {
    attempt.hint = reply.hint;
    attempt.token = reply.token;
  }
}

absl::StatusOr<ObtainReply> ConformanceTest::TryObtain(Attempt& attempt) {
  absl::StatusOr<ObtainReply> reply =
      Await<ObtainReply>(NameOfObtain(attempt.owner), [&](ObtainCallback done) {
        Ask(attempt, [&](const ObtainRequest& request) {
          attempt.backend->Obtain(request, std::move(done));
        });
      });
  if (reply.ok()) Remember(attempt, *reply);
  return reply;
}

MemberReply ConformanceTest::ObtainAsMember(Attempt& attempt) {
  const std::string name = absl::StrCat(NameOfObtain(attempt.owner), " as a member");
  const MemberReply reply =
      ValueOrFail(name, Await<MemberReply>(name, [&](MemberCallback done) {
                    Ask(attempt, [&](const ObtainRequest& request) {
                      attempt.backend->quorum_member()->ObtainAsMember(request, std::move(done));
                    });
                  }));
  Remember(attempt, reply.reply);
  return reply;
}

absl::StatusOr<ReleaseOutcome> ConformanceTest::TryRelease(LockingProtocol& backend,
                                                           const HoldRef& hold) {
  return Await<ReleaseOutcome>(kRelease, [&](ReleaseCallback done) {
    const PassingBytes resource(hold.resource);
    HoldRef passed = hold;
    passed.resource = resource.view();
    backend.Release(passed, std::move(done));
  });
}

absl::StatusOr<ExtendReply> ConformanceTest::TryExtend(LockingProtocol& backend,
                                                       const HoldRef& hold, absl::Duration lease) {
  return Await<ExtendReply>(kExtend, [&](ExtendCallback done) {
    const PassingBytes resource(hold.resource);
    HoldRef passed = hold;
    passed.resource = resource.view();
    backend.Extend(passed, lease, std::move(done));
  });
}

ObtainReply ConformanceTest::Obtain(Attempt& attempt) {
  return ValueOrFail(NameOfObtain(attempt.owner), TryObtain(attempt));
}

ReleaseOutcome ConformanceTest::Release(LockingProtocol& backend, const HoldRef& hold) {
  return ValueOrFail(kRelease, TryRelease(backend, hold), ReleaseOutcome::kNotHeld);
}

ExtendReply ConformanceTest::Extend(LockingProtocol& backend, const HoldRef& hold,
                                    absl::Duration lease) {
  return ValueOrFail(kExtend, TryExtend(backend, hold, lease));
}

ConfirmReply ConformanceTest::Confirm(const Attempt& attempt, FencingToken token) {
  return ValueOrFail(kConfirm, Await<ConfirmReply>(kConfirm, [&](ConfirmCallback done) {
                       const PassingBytes resource(attempt.resource);
                       HoldRef passed = Ref(attempt);
                       passed.resource = resource.view();
                       attempt.backend->quorum_member()->Confirm(passed, token, std::move(done));
                     }));
}

std::string ConformanceTest::Describe(const Attempt& attempt, const ObtainReply& reply) {
  std::string text =
      absl::StrCat(OwnerForMessage(attempt.owner), " with priority ", attempt.request.priority,
                   " was answered ", ObtainOutcomeName(reply.outcome));
  if (reply.token != 0) {
    absl::StrAppend(&text, " with token ", reply.token);
  } else {
    absl::StrAppend(&text, "; in the way is ", OwnerForMessage(reply.other_owner),
                    " with priority ", reply.other_priority);
  }
  return text;
}

namespace {

testing::AssertionResult Check(bool right, std::string_view text) {
  return (right ? testing::AssertionSuccess() : testing::AssertionFailure()) << text;
}

}  // namespace

testing::AssertionResult ConformanceTest::IsAnswered(Attempt& attempt, ObtainOutcome expected) {
  const absl::StatusOr<ObtainReply> reply = TryObtain(attempt);
  if (reply.ok()) return Check(reply->outcome == expected, Describe(attempt, *reply));
  ValueOrFail(NameOfObtain(attempt.owner), reply);
  return Check(false, "there was no answer");
}

testing::AssertionResult ConformanceTest::Obtains(Attempt& attempt) {
  return IsAnswered(attempt, ObtainOutcome::kObtained);
}

testing::AssertionResult ConformanceTest::Reserves(Attempt& attempt) {
  return IsAnswered(attempt, ObtainOutcome::kReserved);
}

testing::AssertionResult ConformanceTest::IsDenied(Attempt& attempt) {
  return IsAnswered(attempt, ObtainOutcome::kDenied);
}

testing::AssertionResult ConformanceTest::Holds(const Attempt& attempt) {
  // So short an extension lengthens no hold that has more than that left.
  const ExtendOutcome outcome = Extend(attempt, absl::Milliseconds(1)).outcome;
  return Check(outcome != ExtendOutcome::kNotHeld,
               absl::StrCat("an extension by ", OwnerForMessage(attempt.owner), " was answered ",
                            ExtendOutcomeName(outcome)));
}

void ConformanceTest::ExpectRemaining(absl::Duration remaining, absl::Duration expected) {
  if (exact()) {
    EXPECT_EQ(remaining, expected);
  } else {
    EXPECT_LE(remaining, expected);
    EXPECT_GE(remaining, absl::ZeroDuration());
  }
}

// ---- Events ----

WatchRequest ConformanceTest::WaiterRequest(const Attempt& attempt) const {
  return {.resource = attempt.resource,
          .acquisition = attempt.id(),
          .owner = attempt.owner,
          .priority = attempt.request.priority,
          .reservation_lease = attempt.request.reservation_lease};
}

ConformanceTest::Watched ConformanceTest::WatchAsWaiter(
    const Attempt& attempt, std::function<void(const WatchEvent&)> also) {
  return WatchAs(absl::StrCat("the waiter ", OwnerForMessage(attempt.owner)), *attempt.backend,
                 WaiterRequest(attempt), std::move(also));
}

ConformanceTest::Watched ConformanceTest::WatchAsHolder(
    const Attempt& attempt, std::function<void(const WatchEvent&)> also) {
  return WatchAs(absl::StrCat("the holder ", OwnerForMessage(attempt.owner)), *attempt.backend,
                 {.resource = attempt.resource,
                  .acquisition = attempt.id(),
                  .role = WatchRole::kHolder,
                  .hint = attempt.hint},
                 std::move(also));
}

ConformanceTest::Watched ConformanceTest::WatchWith(LockingProtocol& backend,
                                                    const WatchRequest& request,
                                                    std::function<void(const WatchEvent&)> also) {
  return WatchAs(
      absl::StrCat("the ", WatchRoleName(request.role), " ", OwnerForMessage(request.owner)),
      backend, request, std::move(also));
}

ConformanceTest::Watched ConformanceTest::WatchAs(std::string who, LockingProtocol& backend,
                                                  const WatchRequest& request,
                                                  std::function<void(const WatchEvent&)> also) {
  Watched watched;
  watched.log_ = std::make_shared<Watched::Log>();
  watched.log_->who = std::move(who);
  const PassingBytes resource(request.resource);
  const PassingBytes owner(request.owner);
  WatchRequest passed = request;
  passed.resource = resource.view();
  passed.owner = owner.view();
  watched.subscription = backend.Watch(
      passed, [log = watched.log_, shared = shared_, also = std::move(also)](const WatchEvent& e) {
        {
          absl::MutexLock lock(&shared->mu);
          if (log->inside) log->overlapped = true;
          log->inside = true;
          log->events.push_back(e);
        }
        if (also) also(e);
        absl::MutexLock lock(&shared->mu);
        log->inside = false;
      });
  return watched;
}

WatchEvent ConformanceTest::NextEvent(const Watched& watched, WatchEventKind kind) {
  std::vector<WatchEvent>& events = watched.log_->events;
  const auto found = [&] {
    return std::find_if(events.begin(), events.end(),
                        [kind](const WatchEvent& event) { return event.kind == kind; });
  };
  const auto awaited = [&] {
    absl::MutexLock lock(&shared_->mu);
    return absl::StrCat(WatchEventKindName(kind), " to ", watched.log_->who, ", which heard ",
                        watched.log_->Heard());
  };
  if (!WaitUntil([&] { return found() != events.end(); }, awaited)) return {};
  absl::MutexLock lock(&shared_->mu);
  EXPECT_FALSE(watched.log_->overlapped) << "two events of one watch at once";
  const WatchEvent event = *found();
  events.erase(events.begin(), found() + 1);
  return event;
}

int ConformanceTest::Count(const Watched& watched, WatchEventKind kind) {
  Settle();
  absl::MutexLock lock(&shared_->mu);
  return static_cast<int>(
      std::count_if(watched.log_->events.begin(), watched.log_->events.end(),
                    [kind](const WatchEvent& event) { return event.kind == kind; }));
}

std::string ConformanceTest::Watched::Log::Heard() const {
  std::string heard;
  for (const WatchEvent& event : events) {
    absl::StrAppend(&heard, heard.empty() ? "" : ", ", WatchEventKindName(event.kind));
  }
  return heard.empty() ? "nothing" : heard;
}

testing::AssertionResult ConformanceTest::HeardNothing(const Watched& watched) {
  Settle();
  absl::MutexLock lock(&shared_->mu);
  return Check(watched.log_->events.empty(),
               absl::StrCat(watched.log_->who, " heard ", watched.log_->Heard()));
}

}  // namespace latchkey

// The conformance suite: what every backend must do, as tests. It is how you know that a backend of
// your own is right.
//
//   #include "latchkey/tests/conformance/conformance.h"
//
//   INSTANTIATE_TEST_SUITE_P(
//       MyBackend, ConformanceTest,
//       testing::Values(OnSimulatedTime([](Clock& clock) { return NewMyBackend(clock); })),
//       ConformanceTestName);
//
// and a cc_test that depends on //tests/conformance and gtest_main. What the backend's capabilities
// exclude is skipped, and says so.
//
// It ends, whatever the backend does, as long as the backend's calls return: every wait and every
// loop of a thread has a bound (`ConformanceParam::patience`), and stops at the first failure. Each
// wait that was in vain halves the patience of those that follow, since the backend has failed by
// then.
//
// Thread safety: the suite calls the backend from several threads.
#ifndef LATCHKEY_TESTS_CONFORMANCE_CONFORMANCE_H_
#define LATCHKEY_TESTS_CONFORMANCE_CONFORMANCE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <ostream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "latchkey/core/clock.h"
#include "latchkey/core/lease.h"
#include "latchkey/core/protocol/locking_protocol.h"
#include "latchkey/core/protocol/quorum_member.h"

namespace latchkey {

// A backend under test, with the means to make time pass. Made anew for each test.
struct ConformanceSetup {
  // Destroyed last, after the clients: the clock or the server that they need.
  std::shared_ptr<void> keep_alive = nullptr;

  // One or more clients of one storage. With several, the parties of a test are spread over them.
  std::vector<std::shared_ptr<LockingProtocol>> clients = {};

  // Lets this much time pass on the backend's clock, at least, and whatever falls due in it happen.
  std::function<void(absl::Duration)> advance = nullptr;

  // For backends whose completions or events need somebody to run them: does some of it. Called
  // over and over while a test waits. May be empty.
  std::function<void()> pump = nullptr;

  // Returns once an event that was caused before has arrived, if it arrives at all: tests that
  // expect silence call it. Empty: events arrive within the step that causes them (or in `pump`).
  std::function<void()> settle = nullptr;
};

struct ConformanceParam {
  std::function<ConformanceSetup()> make;

  // All durations in the tests are multiples of this. The longest lease asked for is 600 units; the
  // shortest is one. On a real server, choose it so long that no step takes as long as one unit.
  absl::Duration unit = absl::Seconds(1);

  // Does time stand still but for `advance`, which is exact? Then tests look at the very moments at
  // which leases end, and at remaining times to the nanosecond.
  bool exact_time = false;

  // Do events arrive on the test's (healthy) connection? A backend whose `reliable_events` is false
  // usually has them all the same, and then they are tested.
  bool events = true;

  // How often each thread of a stress test takes the lock.
  int stress_rounds = 50;

  // How long a test waits for what does not come: a completion, an event, or, while threads
  // compete, that any of them enters. It is there for backends that are broken; no step of yours
  // takes as long.
  absl::Duration patience = absl::Seconds(30);

  // Names the instance, if there are several in one binary: letters and digits only.
  std::string name = "Backend";

  friend void PrintTo(const ConformanceParam& param, std::ostream* os) { *os << param.name; }
};

// For backends that take a Clock: they run on simulated time, exactly. The first form tests one
// client, the second as many clients of one storage as `make` returns.
ConformanceParam OnSimulatedTime(
    std::function<std::shared_ptr<LockingProtocol>(Clock& clock)> make);
ConformanceParam OnSimulatedTime(
    std::function<std::vector<std::shared_ptr<LockingProtocol>>(Clock& clock)> make);

// For INSTANTIATE_TEST_SUITE_P: the parameter's name.
std::string ConformanceTestName(const testing::TestParamInfo<ConformanceParam>& info);

// The fixture. Its helpers wait for completions, whether these come at once or later.
class ConformanceTest : public testing::TestWithParam<ConformanceParam> {
 protected:
  // What one party asks for, and what it got.
  struct Attempt {
    LockingProtocol* backend = nullptr;
    std::string resource;
    std::string owner;
    // Its `resource` and `owner` are taken from the two fields above.
    ObtainRequest request;
    LeaseHint hint = 0;
    FencingToken token = 0;

    AcquisitionId id() const { return request.acquisition; }
  };

  // One subscription and what it heard. Movable; the subscription ends with it.
  class Watched {
   public:
    Subscription subscription;

   private:
    friend class ConformanceTest;
    struct Log {
      std::string who;  // For messages: "the holder 'ann'".
      // For messages, with the suite's mutex held: "nothing", or "YieldRequested, HoldEnded".
      std::string Heard() const;
      std::vector<WatchEvent> events;
      bool inside = false;
      bool overlapped = false;
    };
    std::shared_ptr<Log> log_;
  };

  ConformanceTest();
  ~ConformanceTest() override;

  // ---- The backend ----

  LockingProtocol& first() { return *setup_.clients.front(); }
  LockingProtocol& second() { return *setup_.clients.back(); }
  const BackendCapabilities& capabilities() { return first().capabilities(); }
  bool is_member() { return first().quorum_member() != nullptr; }
  bool exact() const { return GetParam().exact_time; }

  // ---- Time ----

  absl::Duration Units(double n) const { return n * GetParam().unit; }
  // A lease that does not end within a test.
  absl::Duration Long() const { return Units(600); }
  void Advance(absl::Duration duration) { setup_.advance(duration); }
  // Lets what was caused before arrive.
  void Settle();
  // Waits until `done`, which is called with the suite's mutex held, returns true. False: it did
  // not in all the suite's patience, and the test has failed with "waited in vain for " and
  // `awaited`; or the test had failed before.
  bool WaitUntil(absl::FunctionRef<bool()> done, std::string_view awaited);

  // How long that is by now, see ConformanceParam::patience.
  absl::Duration PatienceLeft() const;

  // ---- Failing ----

  // Fails the test, unless it has failed in this way before: what follows is a consequence. Waits
  // and the loops of threads end then. May be called on any thread.
  void Fail(std::string_view what);
  // Whether it has. Unlike HasFailure() for any thread.
  bool failed() const;
  // The value; or `otherwise`, after a failure that names the step.
  template <typename T>
  T ValueOrFail(std::string_view step, absl::StatusOr<T> actual, T otherwise = T()) {
    if (actual.ok()) return *std::move(actual);
    Fail(absl::StrCat(step, " failed: ", actual.status().ToString()));
    return otherwise;
  }

  // ---- Steps ----

  // A name that no other test uses, also on a server that keeps its data.
  std::string Resource(std::string_view name = "resource") const;

  // A party that asks for the test's resource with a long lease and does not reserve. Even numbers
  // go to the first client, odd ones to the second.
  Attempt Party(std::string_view owner, Priority priority = 0);
  // A party that may reserve any holder of lower priority, with a long reservation.
  Attempt Thief(std::string_view owner, Priority priority);

  // For messages: "'ann' with priority 3 was answered Denied; in the way is 'bob' with ...".
  static std::string Describe(const Attempt& attempt, const ObtainReply& reply);

  absl::StatusOr<ObtainReply> TryObtain(Attempt& attempt);
  absl::StatusOr<ReleaseOutcome> TryRelease(LockingProtocol& backend, const HoldRef& hold);
  absl::StatusOr<ExtendReply> TryExtend(LockingProtocol& backend, const HoldRef& hold,
                                        absl::Duration lease);

  // The same where only success is expected. A failure fails the test and yields a default.
  ObtainReply Obtain(Attempt& attempt);
  ReleaseOutcome Release(const Attempt& attempt) { return Release(*attempt.backend, Ref(attempt)); }
  ReleaseOutcome Release(LockingProtocol& backend, const HoldRef& hold);
  ExtendReply Extend(const Attempt& attempt, absl::Duration lease) {
    return Extend(*attempt.backend, Ref(attempt), lease);
  }
  ExtendReply Extend(LockingProtocol& backend, const HoldRef& hold, absl::Duration lease);
  // Only where the backend may be a member of a quorum (is_member()).
  MemberReply ObtainAsMember(Attempt& attempt);
  ConfirmReply Confirm(const Attempt& attempt, FencingToken token);

  // Whether `attempt` obtained a new hold now. Like those below it says in words what happened
  // instead, for EXPECT_TRUE.
  [[nodiscard]] testing::AssertionResult Obtains(Attempt& attempt);
  [[nodiscard]] testing::AssertionResult Reserves(Attempt& attempt);
  [[nodiscard]] testing::AssertionResult IsDenied(Attempt& attempt);
  // Whether the attempt is a handle of the holder, found out without changing anything.
  [[nodiscard]] testing::AssertionResult Holds(const Attempt& attempt);

  static HoldRef Ref(const Attempt& attempt) {
    return {.resource = attempt.resource, .acquisition = attempt.id(), .hint = attempt.hint};
  }

  // Checks a remaining time: `expected` exactly, or at most that and positive.
  void ExpectRemaining(absl::Duration remaining, absl::Duration expected);

  // ---- Events ----

  WatchRequest WaiterRequest(const Attempt& attempt) const;
  // `also` runs in the callback, after the event was noted.
  Watched WatchAsWaiter(const Attempt& attempt, std::function<void(const WatchEvent&)> also = {});
  Watched WatchAsHolder(const Attempt& attempt, std::function<void(const WatchEvent&)> also = {});
  Watched WatchWith(LockingProtocol& backend, const WatchRequest& request,
                    std::function<void(const WatchEvent&)> also = {});

  // Waits for an event of this kind that was not taken yet, and takes it with all before it. If
  // none comes, the test fails, and says who waited for what and what it heard instead.
  WatchEvent NextEvent(const Watched& watched, WatchEventKind kind);
  // How many events of this kind have been heard and not taken yet, once all has settled.
  int Count(const Watched& watched, WatchEventKind kind);
  testing::AssertionResult HeardNothing(const Watched& watched);

  ConformanceSetup setup_;
  // The suite's mutex: guards what callbacks note down. Shared, because a callback may come late.
  struct Shared {
    absl::Mutex mu;
    int completions_missing ABSL_GUARDED_BY(mu) = 0;
    int completions_too_many ABSL_GUARDED_BY(mu) = 0;
    bool failed ABSL_GUARDED_BY(mu) = false;  // By Fail().
  };
  const std::shared_ptr<Shared> shared_ = std::make_shared<Shared>();

 private:
  template <typename T>
  absl::StatusOr<T> Await(
      std::string_view step,
      absl::FunctionRef<void(absl::AnyInvocable<void(absl::StatusOr<T>)>)> start);
  bool WaitUntil(absl::FunctionRef<bool()> done, absl::FunctionRef<std::string()> awaited);
  static void Ask(const Attempt& attempt, absl::FunctionRef<void(const ObtainRequest&)> obtain);
  static void Remember(Attempt& attempt, const ObtainReply& reply);
  testing::AssertionResult IsAnswered(Attempt& attempt, ObtainOutcome expected);
  Watched WatchAs(std::string who, LockingProtocol& backend, const WatchRequest& request,
                  std::function<void(const WatchEvent&)> also);

  const std::string prefix_;
  int parties_ = 0;
};

}  // namespace latchkey

#endif  // LATCHKEY_TESTS_CONFORMANCE_CONFORMANCE_H_

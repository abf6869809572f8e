// What each fault does, and at the end how code that works under locks is tested with them.
#include "latchkey/tests/support/fault_injecting_protocol.h"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "latchkey/core/lock_error.h"
#include "latchkey/core/lock_manager.h"
#include "latchkey/core/protocol/locking_protocol.h"
#include "latchkey/memory_backend/memory_backend.h"
#include "latchkey/tests/support/random_steps.h"
#include "latchkey/tests/support/simulated_clock.h"

namespace latchkey {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr absl::Duration kTick = absl::Milliseconds(1);

class FaultInjectingProtocolTest : public ::testing::Test {
 protected:
  std::shared_ptr<FaultInjectingProtocol> Link(const Faults& faults, bool in_order = false) {
    return std::make_shared<FaultInjectingProtocol>(
        server_, FaultInjectingOptions{.seed = 7,
                                       .clock = &clock_,
                                       .faults = faults,
                                       .in_order = in_order,
                                       .answer_timeout = absl::Seconds(1)});
  }

  static ObtainRequest Request(AcquisitionId id, Priority priority = 0) {
    return {.resource = "r",
            .acquisition = id,
            .priority = priority,
            .lease = absl::Minutes(1),
            .reserve_below = priority,
            .reservation_lease = absl::Seconds(10)};
  }

  // The answer, once it is there.
  using Answer = std::shared_ptr<std::optional<absl::StatusOr<ObtainReply>>>;
  Answer Obtain(LockingProtocol& link, AcquisitionId id, Priority priority = 0) {
    auto answer = std::make_shared<std::optional<absl::StatusOr<ObtainReply>>>();
    link.Obtain(Request(id, priority), [answer](absl::StatusOr<ObtainReply> reply) {
      EXPECT_FALSE(answer->has_value()) << "answered twice";
      *answer = std::move(reply);
    });
    return answer;
  }

  int HandlesAtServer() const {
    int handles = 0;
    server_->Inspect("r", [&](const ResourceState& state) { handles = state.handles; });
    return handles;
  }

  static Reason Why(const Answer& answer) {
    return *answer ? ReasonOf((*answer)->status()) : Reason::kNone;
  }

  SimulatedClock clock_;
  std::shared_ptr<LockingProtocol> server_ = NewMemoryBackend({.clock = &clock_});
};

TEST_F(FaultInjectingProtocolTest, WithoutFaultsItOnlyAnswersLater) {
  const auto link = Link({});
  const Answer answer = Obtain(*link, AcquisitionId::Next());
  EXPECT_FALSE(*answer);
  clock_.RunDue();
  ASSERT_TRUE(*answer && (*answer)->ok());
  EXPECT_EQ((**answer)->outcome, ObtainOutcome::kObtained);
}

TEST_F(FaultInjectingProtocolTest, DelaysEachWay) {
  const auto link = Link({.min_delay = 10 * kTick, .max_delay = 10 * kTick});
  const Answer answer = Obtain(*link, AcquisitionId::Next());
  clock_.AdvanceBy(9 * kTick);
  EXPECT_EQ(HandlesAtServer(), 0);
  clock_.AdvanceBy(kTick);
  EXPECT_EQ(HandlesAtServer(), 1);
  EXPECT_FALSE(*answer);
  clock_.AdvanceBy(10 * kTick);
  EXPECT_TRUE(*answer);
}

TEST_F(FaultInjectingProtocolTest, RefusesWithoutExecuting) {
  const auto link = Link({.unavailable = 1});
  const Answer answer = Obtain(*link, AcquisitionId::Next());
  clock_.AdvanceBy(absl::Seconds(2));
  EXPECT_EQ(Why(answer), Reason::kBackendUnavailable);
  EXPECT_EQ(HandlesAtServer(), 0);
}

TEST_F(FaultInjectingProtocolTest, ALostCallIsNotExecutedAndItsOutcomeUnknown) {
  const auto link = Link({.drop_call = 1});
  const Answer answer = Obtain(*link, AcquisitionId::Next());
  clock_.AdvanceBy(absl::Milliseconds(999));
  EXPECT_FALSE(*answer);
  clock_.AdvanceBy(kTick);
  EXPECT_EQ(Why(answer), Reason::kBackendUnknown);
  EXPECT_EQ(HandlesAtServer(), 0);
}

TEST_F(FaultInjectingProtocolTest, ALostAnswerIsOfAnExecutedCall) {
  const auto link = Link({.drop_reply = 1});
  const Answer answer = Obtain(*link, AcquisitionId::Next());
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_EQ(Why(answer), Reason::kBackendUnknown);
  EXPECT_EQ(HandlesAtServer(), 1);
}

TEST_F(FaultInjectingProtocolTest, AnAnswerThatIsTooLateIsUnknown) {
  const auto link = Link({.min_delay = absl::Seconds(3), .max_delay = absl::Seconds(3)});
  const Answer answer = Obtain(*link, AcquisitionId::Next());
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_EQ(Why(answer), Reason::kBackendUnknown);
  EXPECT_EQ(HandlesAtServer(), 0);
  clock_.AdvanceBy(absl::Seconds(9));
  EXPECT_EQ(HandlesAtServer(), 1);
}

TEST_F(FaultInjectingProtocolTest, ARepeatedCallIsAnsweredOnce) {
  const auto link = Link({.max_delay = 20 * kTick, .duplicate_call = 1});
  const AcquisitionId id = AcquisitionId::Next();
  const Answer answer = Obtain(*link, id);
  clock_.AdvanceBy(absl::Seconds(2));
  ASSERT_TRUE(*answer && (*answer)->ok());
  EXPECT_EQ(HandlesAtServer(), 1);
}

TEST_F(FaultInjectingProtocolTest, ReordersUnlessToldNotTo) {
  for (const bool in_order : {false, true}) {
    const auto link = Link({.max_delay = 100 * kTick}, in_order);
    std::vector<int> order;
    for (int i = 0; i < 20; ++i) {
      link->Release({.resource = "other", .acquisition = AcquisitionId::Next()},
                    [&order, i](absl::StatusOr<ReleaseOutcome>) { order.push_back(i); });
    }
    clock_.AdvanceBy(absl::Seconds(2));
    ASSERT_EQ(order.size(), 20u);
    EXPECT_EQ(std::is_sorted(order.begin(), order.end()), in_order);
  }
}

TEST_F(FaultInjectingProtocolTest, EventsAreDelayedLostAndRepeated) {
  const auto tell = [&](const Faults& faults) {
    int heard = 0;
    const AcquisitionId holder = AcquisitionId::Next();
    const AcquisitionId thief = AcquisitionId::Next();
    server_->Obtain(Request(holder), [](absl::StatusOr<ObtainReply>) {});
    const auto link = Link(faults);
    const Subscription watch =
        link->Watch({.resource = "r", .acquisition = holder, .role = WatchRole::kHolder},
                    [&heard](const WatchEvent& event) {
                      heard += event.kind == WatchEventKind::kYieldRequested;
                    });
    clock_.AdvanceBy(absl::Seconds(1));
    server_->Obtain(Request(thief, 5), [](absl::StatusOr<ObtainReply>) {});
    clock_.AdvanceBy(absl::Seconds(1));
    const int result = heard;
    for (const AcquisitionId id : {thief, holder}) {
      server_->Release({.resource = "r", .acquisition = id}, [](absl::StatusOr<ReleaseOutcome>) {});
    }
    return result;
  };
  EXPECT_EQ(tell({}), 1);
  EXPECT_EQ(tell({.drop_event = 1}), 0);
  EXPECT_EQ(tell({.drop_call = 1}), 0);
  EXPECT_EQ(tell({.duplicate_event = 1}), 2);
}

TEST_F(FaultInjectingProtocolTest, AfterUnsubscribingNothingIsHeard) {
  const auto link = Link({.min_delay = kTick, .max_delay = kTick});
  int heard = 0;
  Subscription watch = link->Watch({.resource = "r", .acquisition = AcquisitionId::Next()},
                                   [&heard](const WatchEvent&) { ++heard; });
  clock_.AdvanceBy(kTick);  // Registered, and the event "free for you" is on its way.
  watch.Reset();
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_EQ(heard, 0);
}

TEST_F(FaultInjectingProtocolTest, APausedClientHearsAndDoesNothingUntilItGoesOn) {
  const auto link = Link({});
  const Answer before = Obtain(*link, AcquisitionId::Next());
  bool timer = false;
  link->client_clock().RunAt(link->client_clock().Now() + kTick, [&timer] { timer = true; });
  link->Pause();
  clock_.AdvanceBy(absl::Milliseconds(500));
  EXPECT_EQ(HandlesAtServer(), 1);  // It had been sent.
  EXPECT_FALSE(*before);
  EXPECT_FALSE(timer);
  link->Resume();
  clock_.RunDue();
  EXPECT_TRUE(*before && (*before)->ok());
  EXPECT_TRUE(timer);
}

TEST_F(FaultInjectingProtocolTest, ATimerCanBeCancelledWhileTheClientIsPaused) {
  const auto link = Link({});
  bool timer = false;
  const Clock::TimerId id =
      link->client_clock().RunAt(link->client_clock().Now() + kTick, [&timer] { timer = true; });
  link->Pause();
  clock_.AdvanceBy(absl::Seconds(1));
  EXPECT_TRUE(link->client_clock().Cancel(id));
  EXPECT_FALSE(link->client_clock().Cancel(id));
  link->Resume();
  clock_.RunDue();
  EXPECT_FALSE(timer);
}

TEST_F(FaultInjectingProtocolTest, ACrashEndsTheClientButNotWhatItSent) {
  const auto link = Link({.min_delay = kTick, .max_delay = kTick});
  const Answer before = Obtain(*link, AcquisitionId::Next());
  bool timer = false;
  link->client_clock().RunAt(link->client_clock().Now() + kTick, [&timer] { timer = true; });
  link->Crash();
  const Answer after = Obtain(*link, AcquisitionId::Next());
  clock_.AdvanceBy(absl::Seconds(5));
  EXPECT_TRUE(link->crashed());
  EXPECT_FALSE(timer);
  EXPECT_EQ(Why(before), Reason::kBackendUnknown);
  EXPECT_EQ(Why(after), Reason::kBackendUnavailable);
  EXPECT_EQ(HandlesAtServer(), 1);
}

TEST_F(FaultInjectingProtocolTest, CrashesBetweenAnyTwoSteps) {
  // Steps: the call, its answer.
  for (const int64_t steps : {0, 1, 2}) {
    const auto link = Link({});
    link->CrashAfter(steps);
    const AcquisitionId id = AcquisitionId::Next();
    const Answer answer = Obtain(*link, id);
    clock_.AdvanceBy(absl::Seconds(2));
    EXPECT_EQ(HandlesAtServer(), steps > 0 ? 1 : 0) << steps;
    ASSERT_TRUE(*answer) << steps;
    EXPECT_EQ((*answer)->ok(), steps == 2) << steps;
    EXPECT_EQ(link->steps(), steps);
    server_->Release({.resource = "r", .acquisition = id}, [](absl::StatusOr<ReleaseOutcome>) {});
  }
}

TEST_F(FaultInjectingProtocolTest, OpenCallsAreAnsweredWhenTheLinkGoes) {
  auto link = Link({.drop_call = 1});
  const Answer answer = Obtain(*link, AcquisitionId::Next());
  link.reset();
  EXPECT_EQ(Why(answer), Reason::kBackendUnknown);
}

TEST_F(FaultInjectingProtocolTest, TheClientsClockMayRunFasterOrSlower) {
  const FaultInjectingProtocol link(server_, {.clock = &clock_, .client_clock_rate = 1.5});
  Clock& mine = const_cast<FaultInjectingProtocol&>(link).client_clock();
  const absl::Time start = mine.Now();
  absl::Time rang;
  mine.RunAt(start + absl::Seconds(3), [&] { rang = mine.Now(); });
  clock_.AdvanceBy(absl::Seconds(2) - kTick);
  EXPECT_EQ(rang, absl::Time());
  clock_.AdvanceBy(2 * kTick);
  EXPECT_GE(rang, start + absl::Seconds(3));
  EXPECT_LT(rang, start + absl::Seconds(3) + kTick);
}

TEST_F(FaultInjectingProtocolTest, SaysWhatItCannotDo) {
  const auto link = Link({});
  const BackendCapabilities& plain = link->capabilities();
  EXPECT_FALSE(plain.infinite_lease);
  EXPECT_FALSE(plain.answers_at_once);
  EXPECT_FALSE(plain.hint_identifies_hold);
  EXPECT_FALSE(plain.inspect);
  EXPECT_TRUE(Link({})->capabilities().reliable_events);
  EXPECT_FALSE(Link({.max_delay = kTick})->capabilities().reliable_events);
  EXPECT_TRUE(Link({.max_delay = kTick}, /*in_order=*/true)->capabilities().reliable_events);
  EXPECT_FALSE(Link({.drop_event = 0.1})->capabilities().reliable_events);
  EXPECT_FALSE(Link({.drop_call = 0.1})->capabilities().reliable_events);
  const Answer infinite = Obtain(*Link({}), AcquisitionId::Next());
  std::optional<absl::Status> refused;
  ObtainRequest request = Request(AcquisitionId::Next());
  request.lease = absl::InfiniteDuration();
  Link({})->Obtain(request, [&](absl::StatusOr<ObtainReply> reply) { refused = reply.status(); });
  ASSERT_TRUE(refused);
  EXPECT_EQ(ReasonOf(*refused), Reason::kNotSupported);
}

// ---- How to test your own code with it ----------------------------------------------------------

// A register that several machines add to: read, think, write. Without a lock, additions get lost.
// It refuses fencing tokens smaller than the largest it has seen.
class SharedRegister {
 public:
  int value() const { return value_; }
  bool Write(FencingToken token, int value) {
    if (token < largest_) return false;
    largest_ = token;
    value_ = value;
    return true;
  }

 private:
  int value_ = 0;
  FencingToken largest_ = 0;
};

// The code under test: one machine that adds 1 to the register, `times` times.
class Adder {
 public:
  Adder(LockManager& locks, Clock& clock, SharedRegister& shared, int times)
      : locks_(locks), clock_(clock), register_(shared), left_(times) {}

  int added() const { return added_; }
  bool done() const { return left_ == 0; }

  void Start() {
    locks_.AcquireAsync("register", {.lease = absl::Seconds(3), .auto_renew = true},
                        [this](absl::StatusOr<Lock> lock) {
                          if (lock.ok()) {
                            lock_ = *std::move(lock);
                            Think(register_.value());
                          } else {  // The backend cannot be reached just now.
                            clock_.RunAt(clock_.Now() + absl::Seconds(1), [this] { Start(); });
                          }
                        });
  }

 private:
  void Think(int read) {
    clock_.RunAt(clock_.Now() + absl::Milliseconds(30), [this, read] {
      // Both are needed: the lock says whether we still hold it, the token makes sure.
      if (lock_.IsHeld() && register_.Write(lock_.fencing_token(), read + 1)) {
        ++added_;
        --left_;
      }
      lock_ = Lock();
      if (left_ > 0) Start();
    });
  }

  LockManager& locks_;
  Clock& clock_;
  SharedRegister& register_;
  Lock lock_;
  int left_;
  int added_ = 0;
};

// Runs three machines on bad links until they are done. Returns the story, the same for each seed.
std::string RunAdders(uint64_t seed) {
  SimulatedClock clock;
  const std::shared_ptr<LockingProtocol> server = NewMemoryBackend({.clock = &clock});
  SharedRegister shared;
  std::string story;
  std::vector<std::shared_ptr<FaultInjectingProtocol>> links;
  std::vector<LockManager> managers;
  std::vector<std::unique_ptr<Adder>> adders;
  managers.reserve(3);
  for (int i = 0; i < 3; ++i) {
    links.push_back(std::make_shared<FaultInjectingProtocol>(
        server, FaultInjectingOptions{.seed = seed * 3 + i,
                                      .clock = &clock,
                                      .faults = {.max_delay = absl::Milliseconds(20),
                                                 .unavailable = 0.05,
                                                 .drop_call = 0.05,
                                                 .drop_reply = 0.05,
                                                 .duplicate_call = 0.1,
                                                 .drop_event = 0.1,
                                                 .duplicate_event = 0.1},
                                      .lease_margin = absl::Milliseconds(50),
                                      .trace = [&story, i](std::string_view words) {
                                        absl::StrAppend(&story, "machine ", i, ": ", words, "\n");
                                      }}));
    managers.push_back(*LockManager::Create(
        links.back(), {.clock = &links.back()->client_clock(), .random_seed = seed * 3 + i + 1}));
    adders.push_back(
        std::make_unique<Adder>(managers.back(), links.back()->client_clock(), shared, 5));
    adders.back()->Start();
  }
  // One of them stops for a while, for longer than its lease.
  clock.RunAt(clock.Now() + absl::Milliseconds(100), [&] { links[0]->Pause(); });
  clock.RunAt(clock.Now() + absl::Seconds(9), [&] { links[0]->Resume(); });

  const absl::Time end = clock.Now() + absl::Hours(1);
  const auto all_done = [&] {
    for (const auto& adder : adders) {
      if (!adder->done()) return false;
    }
    return true;
  };
  while (!all_done() && clock.Now() < end) {
    if (!clock.AdvanceToNextTimer()) break;
  }
  EXPECT_TRUE(all_done()) << "seed " << seed << "\n" << story;
  EXPECT_EQ(shared.value(), 15) << "an addition was lost; seed " << seed << "\n" << story;
  return story;
}

TEST(TestingYourOwnCode, NoAdditionIsLostWhateverTheNetworkDoes) {
  const uint64_t first = SeedFromEnvironment(1);
  for (uint64_t seed = first; seed < first + 50 && !::testing::Test::HasFailure(); ++seed) {
    RunAdders(seed);
  }
}

TEST(TestingYourOwnCode, TheSameSeedTellsTheSameStory) {
  const std::string story = RunAdders(4);
  EXPECT_FALSE(story.empty());
  EXPECT_EQ(RunAdders(4), story);
  EXPECT_NE(RunAdders(5), story);
}

}  // namespace
}  // namespace latchkey

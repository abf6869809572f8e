// The backend against real servers: steps, events across clients, and everything that can go wrong
// between client and server.

#include "latchkey/backends/redis/redis_backend.h"

#include <atomic>
#include <cmath>
#include <cstdio>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/log_severity.h"
#include "absl/functional/function_ref.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/blocking_counter.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "latchkey/core/lock_error.h"
#include "latchkey/core/protocol/quorum_member.h"
#include "latchkey/tests/support/await.h"
#include "latchkey/tests/support/error_log.h"
#include "latchkey/tests/support/redis_server.h"
#include "latchkey/tests/support/tcp_proxy.h"

namespace latchkey {
namespace {

using Backend = std::shared_ptr<LockingProtocol>;

RedisBackendOptions OptionsFor(std::string url) {
  return {.url = std::move(url), .new_server = true};
}

Backend Connect(RedisBackendOptions options) {
  auto backend = ConnectRedisBackend(std::move(options));
  EXPECT_TRUE(backend.ok()) << backend.status();
  return backend.ok() ? *std::move(backend) : nullptr;
}

Backend Connect(const RedisServer& server) { return Connect(OptionsFor(server.url())); }

absl::StatusOr<ObtainReply> Obtain(LockingProtocol& backend, const ObtainRequest& request) {
  return Await<ObtainReply>([&](auto done) { backend.Obtain(request, std::move(done)); });
}

absl::StatusOr<ReleaseOutcome> Release(LockingProtocol& backend, std::string_view resource,
                                       AcquisitionId id) {
  return Await<ReleaseOutcome>([&](auto done) {
    backend.Release({.resource = resource, .acquisition = id}, std::move(done));
  });
}

absl::StatusOr<ExtendReply> Extend(LockingProtocol& backend, std::string_view resource,
                                   AcquisitionId id, absl::Duration lease) {
  return Await<ExtendReply>([&](auto done) {
    backend.Extend({.resource = resource, .acquisition = id}, lease, std::move(done));
  });
}

ObtainRequest Request(AcquisitionId id, Priority priority = 0,
                      absl::Duration lease = absl::Seconds(20)) {
  return {.resource = "r",
          .acquisition = id,
          .priority = priority,
          .lease = lease,
          .reserve_below = priority,
          .reservation_lease = absl::Seconds(3)};
}

ObtainOutcome OutcomeOf(const absl::StatusOr<ObtainReply>& reply) {
  EXPECT_TRUE(reply.ok()) << reply.status();
  return reply.ok() ? reply->outcome : ObtainOutcome::kDenied;
}

// ---- Steps -------------------------------------------------------------------------------------

TEST(RedisBackendTest, TwoClientsExcludeEachOther) {
  RedisServer server;
  const Backend one = Connect(server);
  const Backend two = Connect(server);
  const AcquisitionId a = AcquisitionId::Next();
  const AcquisitionId b = AcquisitionId::Next();
  ObtainRequest request = Request(a);
  request.owner = "the first";
  const auto first = Obtain(*one, request);
  ASSERT_EQ(OutcomeOf(first), ObtainOutcome::kObtained);
  const auto denied = Obtain(*two, Request(b));
  ASSERT_EQ(OutcomeOf(denied), ObtainOutcome::kDenied);
  EXPECT_EQ(denied->other_owner, "the first");
  EXPECT_GT(denied->remaining, absl::Seconds(1));
  EXPECT_EQ(Release(*one, "r", a).value(), ReleaseOutcome::kReleased);
  EXPECT_EQ(Release(*one, "r", a).value(), ReleaseOutcome::kNotHeld);
  const auto second = Obtain(*two, Request(b));
  ASSERT_EQ(OutcomeOf(second), ObtainOutcome::kObtained);
  EXPECT_GT(second->token, first->token);
}

TEST(RedisBackendTest, NamesAndOwnersMayBeAnyBytes) {
  RedisServer server;
  const Backend backend = Connect(server);
  const std::string resource("a\0}{\r\n%\xff", 8);
  const std::string owner("\0\r\n$5", 5);
  const AcquisitionId a = AcquisitionId::Next();
  ObtainRequest request = Request(a);
  request.resource = resource;
  request.owner = owner;
  ASSERT_EQ(OutcomeOf(Obtain(*backend, request)), ObtainOutcome::kObtained);
  request.acquisition = AcquisitionId::Next();
  ASSERT_EQ(OutcomeOf(Obtain(*backend, request)), ObtainOutcome::kReentered);
  request.acquisition = AcquisitionId::Next();
  request.owner = "another";
  EXPECT_EQ(Obtain(*backend, request)->other_owner, owner);
}

TEST(RedisBackendTest, ManyRequestsShareOneConnection) {
  RedisServer server;
  const Backend backend = Connect(server);
  constexpr int kLocks = 2000;
  absl::BlockingCounter left(kLocks);
  std::atomic<int> obtained = 0;
  for (int i = 0; i < kLocks; ++i) {
    const std::string resource = absl::StrCat("r", i);
    ObtainRequest request = Request(AcquisitionId::Next());
    request.resource = resource;
    backend->Obtain(request, [&](absl::StatusOr<ObtainReply> reply) {
      if (reply.ok() && reply->outcome == ObtainOutcome::kObtained) ++obtained;
      left.DecrementCount();
    });
  }
  left.Wait();
  EXPECT_EQ(obtained, kLocks);
  // One for commands, one for events, and the one that asks.
  EXPECT_TRUE(absl::StrContains(server.Command({"INFO", "clients"}), "connected_clients:3"));
}

TEST(RedisBackendTest, ExtendingNeverRevives) {
  RedisServer server;
  const Backend backend = Connect(server);
  const AcquisitionId a = AcquisitionId::Next();
  EXPECT_EQ(Extend(*backend, "r", a, absl::Seconds(1))->outcome, ExtendOutcome::kNotHeld);
  ASSERT_EQ(OutcomeOf(Obtain(*backend, Request(a, 0, absl::Seconds(5)))), ObtainOutcome::kObtained);
  const auto extended = Extend(*backend, "r", a, absl::Seconds(50));
  EXPECT_EQ(extended->outcome, ExtendOutcome::kExtended);
  EXPECT_GT(extended->remaining, absl::Seconds(40));
  EXPECT_GT(Extend(*backend, "r", a, absl::Seconds(1))->remaining, absl::Seconds(30));
}

TEST(RedisBackendTest, ConfirmRaisesTokenAndFence) {
  RedisServer server;
  const Backend backend = Connect(server);
  const AcquisitionId a = AcquisitionId::Next();
  const auto held = Obtain(*backend, Request(a));
  ASSERT_EQ(OutcomeOf(held), ObtainOutcome::kObtained);
  auto confirm = [&](FencingToken token) {
    return Await<ConfirmReply>([&](auto done) {
      backend->quorum_member()->Confirm({.resource = "r", .acquisition = a}, token,
                                        std::move(done));
    });
  };
  EXPECT_EQ(confirm(held->token - 1)->outcome, ConfirmOutcome::kRaise);
  EXPECT_EQ(confirm(held->token + 5'000'000)->outcome, ConfirmOutcome::kConfirmed);
  EXPECT_EQ(ReasonOf(confirm(0).status()), Reason::kInvalidArgument);
  EXPECT_EQ(ReasonOf(confirm(uint64_t{1} << 53).status()), Reason::kInvalidArgument);
  Release(*backend, "r", a).IgnoreError();
  EXPECT_GT(Obtain(*backend, Request(AcquisitionId::Next()))->token, held->token + 5'000'000);
}

TEST(RedisBackendTest, BadRequestsAreRefusedNamingTheField) {
  RedisServer server;
  const Backend backend = Connect(server);
  ObtainRequest request = Request(AcquisitionId::Next());
  request.resource = "";
  EXPECT_TRUE(absl::StrContains(Obtain(*backend, request).status().message(), "resource"));
  request = Request(AcquisitionId{});
  EXPECT_TRUE(absl::StrContains(Obtain(*backend, request).status().message(), "acquisition"));
  request = Request(AcquisitionId::Next(), 0, absl::InfiniteDuration());
  EXPECT_EQ(ReasonOf(Obtain(*backend, request).status()), Reason::kNotSupported);
  request = Request(AcquisitionId::Next(), 0, absl::Hours(1));
  EXPECT_TRUE(absl::StrContains(Obtain(*backend, request).status().message(), "lease is 1h"));
  request = Request(AcquisitionId::Next());
  const std::string long_name((16 << 20) + 1, 'x');
  request.resource = long_name;
  EXPECT_TRUE(absl::StrContains(Obtain(*backend, request).status().message(), "16777217 bytes"));
  request = Request(AcquisitionId::Next(), 0, absl::ZeroDuration());
  EXPECT_EQ(ReasonOf(Obtain(*backend, request).status()), Reason::kInvalidArgument);
}

// ---- Options -----------------------------------------------------------------------------------

TEST(RedisBackendTest, BadOptionsAreRefusedNamingFieldAndValue) {
  struct Case {
    RedisBackendOptions options;
    const char* named;
  };
  for (const Case& c : {
           Case{{.url = "redis://:pw@host:x"}, "port 'x'"},
           Case{{.key_prefix = "a{b"}, "key_prefix is 'a{b'"},
           Case{{.connect_timeout = absl::ZeroDuration()}, "connect_timeout is 0"},
           Case{{.command_timeout = absl::InfiniteDuration()}, "command_timeout is inf"},
           Case{{.command_connections = 0}, "command_connections is 0"},
           Case{{.max_lease = absl::Seconds(1)}, "default_lease is 30s"},
           Case{{.clock_drift = 2}, "clock_drift is 2"},
           Case{{.waiter_lease = absl::Milliseconds(1)}, "waiter_lease is 1ms"},
           Case{{.waiter_lease = absl::Hours(2)}, "waiter_lease is 2h"},
           Case{{.reconnect_delay = absl::ZeroDuration()}, "reconnect_delay is 0"},
           Case{{.reconnect_delay = absl::Seconds(3)}, "max_reconnect_delay is 2s"},
           Case{{.max_clock_skew = -absl::Seconds(1)}, "max_clock_skew is -1s"},
           Case{{.max_lease = absl::Hours(25)}, "max_lease is 25h"},
           Case{{.lease_margin = absl::Hours(1)}, "lease_margin is 1h"},
           Case{{.clock_drift = std::nan("")}, "clock_drift is nan"},
           Case{{.command_connections = 17}, "command_connections is 17"},
           Case{{.shutdown_timeout = -absl::Seconds(1)}, "shutdown_timeout is -1s"},
           Case{{.key_prefix = std::string(257, 'x')}, "at most 256 bytes"},
           Case{{.tls = {.key_file = "x"}}, "certificate_file"},
           Case{{.tls = {.certificate_file = "x"}}, "certificate_file"},
           Case{{.url = "rediss://host", .tls = {.ca_file = "nowhere.pem"}}, "nowhere.pem"},
       }) {
    const auto backend = ConnectRedisBackend(c.options);
    ASSERT_FALSE(backend.ok()) << c.named;
    EXPECT_EQ(ReasonOf(backend.status()), Reason::kInvalidArgument) << backend.status();
    EXPECT_TRUE(absl::StrContains(backend.status().message(), c.named)) << backend.status();
  }
}

// ---- Events ------------------------------------------------------------------------------------

struct Events {
  std::shared_ptr<Mailbox<WatchEvent>> mailbox = std::make_shared<Mailbox<WatchEvent>>();
  Subscription subscription = {};

  std::optional<WatchEvent> Take(WatchEventKind kind) {
    return mailbox->Take([kind](const WatchEvent& event) { return event.kind == kind; });
  }
};

Events Watch(LockingProtocol& backend, WatchRequest request) {
  Events events;
  events.subscription = backend.Watch(
      request, [mailbox = events.mailbox](const WatchEvent& event) { mailbox->Put(event); });
  return events;
}

Events WatchAsHolder(LockingProtocol& backend, AcquisitionId id) {
  return Watch(backend, {.resource = "r", .acquisition = id, .role = WatchRole::kHolder});
}

Events WatchAsWaiter(LockingProtocol& backend, AcquisitionId id, Priority priority = 0) {
  return Watch(backend, {.resource = "r",
                         .acquisition = id,
                         .priority = priority,
                         .reservation_lease = absl::Seconds(3)});
}

// Asks until it is so; fails the test if that never comes.
void Eventually(absl::FunctionRef<bool()> is_so) {
  const absl::Time end = absl::Now() + kHangGuard;
  while (!is_so()) {
    if (absl::Now() > end) {
      ADD_FAILURE() << "it never came";
      return;
    }
  }
}

// Returns when the server counts this many waiters.
void AwaitWaiters(const RedisServer& server, int count) {
  Eventually([&] {
    int found = 0;
    return absl::SimpleAtoi(server.Command({"ZCARD", "latchkey:{r}:waiting"}), &found) &&
           found == count;
  });
}

TEST(RedisBackendTest, AHolderIsToldToYieldAndAThiefEntersWhenItHas) {
  RedisServer server;
  const Backend one = Connect(server);
  const Backend two = Connect(server);
  const AcquisitionId a = AcquisitionId::Next();
  const AcquisitionId b = AcquisitionId::Next();
  ASSERT_EQ(OutcomeOf(Obtain(*one, Request(a))), ObtainOutcome::kObtained);
  Events holder = WatchAsHolder(*one, a);
  Events thief = WatchAsWaiter(*two, b, 7);
  ASSERT_EQ(OutcomeOf(Obtain(*two, Request(b, 7))), ObtainOutcome::kReserved);
  const auto yield = holder.Take(WatchEventKind::kYieldRequested);
  ASSERT_TRUE(yield);
  EXPECT_EQ(yield->thief_priority, 7);
  EXPECT_EQ(yield->grace_remaining, absl::InfiniteDuration());
  EXPECT_EQ(Extend(*one, "r", a, absl::Seconds(20))->outcome, ExtendOutcome::kReserved);
  EXPECT_EQ(Release(*one, "r", a).value(), ReleaseOutcome::kReleased);
  ASSERT_TRUE(thief.Take(WatchEventKind::kHoldEnded));
  EXPECT_EQ(OutcomeOf(Obtain(*two, Request(b, 7))), ObtainOutcome::kObtained);
}

TEST(RedisBackendTest, AHolderHearsOfAReservationThatIsOlderThanItsWatch) {
  RedisServer server;
  const Backend one = Connect(server);
  const Backend two = Connect(server);
  const AcquisitionId a = AcquisitionId::Next();
  const AcquisitionId b = AcquisitionId::Next();
  Obtain(*one, Request(a)).IgnoreError();
  Obtain(*two, Request(b, 1)).IgnoreError();
  Events holder = WatchAsHolder(*one, a);
  EXPECT_TRUE(holder.Take(WatchEventKind::kYieldRequested));
  EXPECT_EQ(Release(*two, "r", b).value(), ReleaseOutcome::kWithdrawn);
  EXPECT_TRUE(holder.Take(WatchEventKind::kYieldWithdrawn));
}

TEST(RedisBackendTest, AHolderThatLostItsHoldIsToldAtOnce) {
  RedisServer server;
  const Backend backend = Connect(server);
  Events holder = WatchAsHolder(*backend, AcquisitionId::Next());
  const auto ended = holder.Take(WatchEventKind::kHoldEnded);
  ASSERT_TRUE(ended);
  EXPECT_EQ(ended->why, HoldEnd::kExpired);
}

TEST(RedisBackendTest, AReleaseWakesTheHighestPriorityAndThenTheFirst) {
  RedisServer server;
  const Backend holder = Connect(server);
  const Backend one = Connect(server);
  const Backend two = Connect(server);
  const AcquisitionId a = AcquisitionId::Next();
  const AcquisitionId low = AcquisitionId::Next();
  const AcquisitionId first = AcquisitionId::Next();
  const AcquisitionId second = AcquisitionId::Next();
  ObtainRequest unyielding = Request(a);
  unyielding.preemptible = false;
  ASSERT_EQ(OutcomeOf(Obtain(*holder, unyielding)), ObtainOutcome::kObtained);
  Events low_events = WatchAsWaiter(*one, low, 1);
  AwaitWaiters(server, 1);
  Events first_events = WatchAsWaiter(*two, first, 5);
  AwaitWaiters(server, 2);
  Events second_events = WatchAsWaiter(*one, second, 5);
  AwaitWaiters(server, 3);

  Release(*holder, "r", a).IgnoreError();
  ASSERT_TRUE(first_events.Take(WatchEventKind::kHoldEnded));
  // Nobody of equal or lower priority slips in before it has claimed.
  EXPECT_EQ(OutcomeOf(Obtain(*one, Request(second, 5))), ObtainOutcome::kDenied);
  EXPECT_EQ(OutcomeOf(Obtain(*one, Request(low, 1))), ObtainOutcome::kDenied);
  EXPECT_EQ(OutcomeOf(Obtain(*two, Request(first, 5))), ObtainOutcome::kObtained);
  Release(*two, "r", first).IgnoreError();
  ASSERT_TRUE(second_events.Take(WatchEventKind::kHoldEnded));
  EXPECT_EQ(OutcomeOf(Obtain(*one, Request(second, 5))), ObtainOutcome::kObtained);
  EXPECT_TRUE(low_events.mailbox->All().empty());
}

TEST(RedisBackendTest, WhoeverTakesAPlaceKeepsItsOrder) {
  RedisServer server;
  const Backend backend = Connect(server);
  const AcquisitionId a = AcquisitionId::Next();
  const AcquisitionId first = AcquisitionId::Next();
  const AcquisitionId second = AcquisitionId::Next();
  const AcquisitionId heir = AcquisitionId::Next();
  Obtain(*backend, Request(a)).IgnoreError();
  Events first_events = WatchAsWaiter(*backend, first);
  Events second_events = WatchAsWaiter(*backend, second);
  Events heir_events = Watch(*backend, {.resource = "r",
                                        .acquisition = heir,
                                        .reservation_lease = absl::Seconds(3),
                                        .takes_place_of = first});
  first_events.subscription.Reset();
  Release(*backend, "r", a).IgnoreError();
  EXPECT_TRUE(heir_events.Take(WatchEventKind::kHoldEnded));
  EXPECT_EQ(OutcomeOf(Obtain(*backend, Request(second))), ObtainOutcome::kDenied);
}

TEST(RedisBackendTest, AWaiterThatGivesUpHandsItsTurnOn) {
  RedisServer server;
  const Backend backend = Connect(server);
  const AcquisitionId a = AcquisitionId::Next();
  const AcquisitionId first = AcquisitionId::Next();
  const AcquisitionId second = AcquisitionId::Next();
  Obtain(*backend, Request(a)).IgnoreError();
  Events first_events = WatchAsWaiter(*backend, first);
  Events second_events = WatchAsWaiter(*backend, second);
  Release(*backend, "r", a).IgnoreError();
  ASSERT_TRUE(first_events.Take(WatchEventKind::kHoldEnded));
  first_events.subscription.Reset();
  EXPECT_TRUE(second_events.Take(WatchEventKind::kHoldEnded));
}

TEST(RedisBackendTest, ADeadWaiterCostsOneShortReservation) {
  RedisServer server;
  const Backend holder = Connect(server);
  const AcquisitionId a = AcquisitionId::Next();
  Obtain(*holder, Request(a)).IgnoreError();
  RedisBackendOptions options = OptionsFor(server.url());
  options.shutdown_timeout = absl::ZeroDuration();
  const Backend alive = Connect(options);
  TcpProxy proxy(server.socket_path());
  options.url = absl::StrCat("redis://127.0.0.1:", proxy.port());
  const Backend dead = Connect(options);
  Events dead_events = Watch(*dead, {.resource = "r",
                                     .acquisition = AcquisitionId::Next(),
                                     .priority = 9,
                                     .reservation_lease = absl::Milliseconds(50)});
  AwaitWaiters(server, 1);
  Events events = WatchAsWaiter(*alive, AcquisitionId::Next());
  AwaitWaiters(server, 2);
  // From now on it neither hears nor speaks.
  proxy.HoldReplies(true);
  proxy.HoldRequests(true);
  Release(*holder, "r", a).IgnoreError();
  EXPECT_TRUE(events.Take(WatchEventKind::kHoldEnded));
}

TEST(RedisBackendTest, WhenALeaseRunsOutTheNextWaiterIsWokenAlthoughNoScriptRuns) {
  RedisServer server;
  const Backend one = Connect(server);
  const Backend two = Connect(server);
  const AcquisitionId a = AcquisitionId::Next();
  const AcquisitionId b = AcquisitionId::Next();
  ASSERT_EQ(OutcomeOf(Obtain(*one, Request(a, 0, absl::Milliseconds(200)))),
            ObtainOutcome::kObtained);
  Events waiter = WatchAsWaiter(*two, b);
  const auto ended = waiter.Take(WatchEventKind::kHoldEnded);
  ASSERT_TRUE(ended);
  EXPECT_EQ(ended->why, HoldEnd::kExpired);
  EXPECT_EQ(OutcomeOf(Obtain(*two, Request(b))), ObtainOutcome::kObtained);
  EXPECT_EQ(Release(*one, "r", a).value(), ReleaseOutcome::kNotHeld);
}

TEST(RedisBackendTest, WithAGraceTheThiefTakesOverAndTheHolderIsTold) {
  RedisServer server;
  const Backend one = Connect(server);
  const Backend two = Connect(server);
  const AcquisitionId a = AcquisitionId::Next();
  const AcquisitionId b = AcquisitionId::Next();
  const auto held = Obtain(*one, Request(a));
  Events holder = WatchAsHolder(*one, a);
  // It has looked before this is answered; later it would not be told why.
  ASSERT_TRUE(Extend(*one, "r", a, absl::Seconds(1)).ok());
  ObtainRequest request = Request(b, 5);
  request.grace = absl::ZeroDuration();
  ASSERT_EQ(OutcomeOf(Obtain(*two, request)), ObtainOutcome::kReserved);
  const auto stolen = Obtain(*two, request);
  ASSERT_EQ(OutcomeOf(stolen), ObtainOutcome::kObtained);
  EXPECT_GT(stolen->token, held->token);
  const auto ended = holder.Take(WatchEventKind::kHoldEnded);
  ASSERT_TRUE(ended);
  EXPECT_EQ(ended->why, HoldEnd::kStolen);
}

TEST(RedisBackendTest, AReconnectedClientLooksAtWhatItMissed) {
  RedisServer server;
  TcpProxy proxy(server.socket_path());
  const Backend one = Connect(server);
  const Backend two = Connect(OptionsFor(absl::StrCat("redis://127.0.0.1:", proxy.port())));
  const AcquisitionId a = AcquisitionId::Next();
  const AcquisitionId b = AcquisitionId::Next();
  Obtain(*one, Request(a)).IgnoreError();
  Events waiter = WatchAsWaiter(*two, b);
  AwaitWaiters(server, 1);
  proxy.Refuse(true);
  proxy.CutAll();
  // Nobody is there to hear it.
  Release(*one, "r", a).IgnoreError();
  EXPECT_TRUE(waiter.mailbox->All().empty());
  proxy.Refuse(false);
  EXPECT_TRUE(waiter.Take(WatchEventKind::kHoldEnded));
  EXPECT_EQ(OutcomeOf(Obtain(*two, Request(b))), ObtainOutcome::kObtained);
}

TEST(RedisBackendTest, NewsForAWaiterThatComesWhenItHoldsIsNoLoss) {
  RedisServer server;
  TcpProxy proxy(server.socket_path());
  const Backend one = Connect(server);
  const Backend two = Connect(OptionsFor(absl::StrCat("redis://127.0.0.1:", proxy.port())));
  const AcquisitionId a = AcquisitionId::Next();
  const AcquisitionId b = AcquisitionId::Next();
  ASSERT_EQ(OutcomeOf(Obtain(*one, Request(a))), ObtainOutcome::kObtained);
  Events waiter = WatchAsWaiter(*two, b);
  AwaitWaiters(server, 1);
  // "It is free for you" is on its way, and it asks by itself before that arrives.
  proxy.HoldRepliesTo("SUBSCRIBE");
  Release(*one, "r", a).IgnoreError();
  proxy.AwaitHeldReplies();
  ASSERT_EQ(OutcomeOf(Obtain(*two, Request(b))), ObtainOutcome::kObtained);
  Events holder = WatchAsHolder(*two, b);
  waiter.subscription.Reset();
  ASSERT_EQ(Extend(*two, "r", b, absl::Seconds(1))->outcome, ExtendOutcome::kExtended);
  proxy.GiveRepliesBack();
  // The next that it hears is what somebody does after that.
  ASSERT_EQ(OutcomeOf(Obtain(*one, Request(AcquisitionId::Next(), 3))), ObtainOutcome::kReserved);
  const auto first = holder.mailbox->Take();
  ASSERT_TRUE(first);
  EXPECT_EQ(first->kind, WatchEventKind::kYieldRequested);
}

TEST(RedisBackendTest, NoEventBeginsAfterASubscriptionHasEnded) {
  RedisServer server;
  const Backend backend = Connect(server);
  const AcquisitionId a = AcquisitionId::Next();
  Obtain(*backend, Request(a)).IgnoreError();
  Events holder = WatchAsHolder(*backend, a);
  holder.subscription.Reset();
  Obtain(*backend, Request(AcquisitionId::Next(), 3)).IgnoreError();
  Obtain(*backend, Request(AcquisitionId::Next(), 4)).IgnoreError();
  EXPECT_TRUE(holder.mailbox->All().empty());
}

// ---- What goes wrong ---------------------------------------------------------------------------

TEST(RedisBackendTest, NobodyThereIsUnavailable) {
  const auto backend =
      ConnectRedisBackend({.url = absl::StrCat("redis://127.0.0.1:", UnusedPort())});
  EXPECT_EQ(ReasonOf(backend.status()), Reason::kBackendUnavailable) << backend.status();
  EXPECT_TRUE(absl::StrContains(backend.status().message(), "refused")) << backend.status();
}

TEST(RedisBackendTest, WithoutWaitingItConnectsLater) {
  const auto backend = ConnectRedisBackend(
      {.url = absl::StrCat("redis://127.0.0.1:", UnusedPort()), .wait_for_connection = false});
  ASSERT_TRUE(backend.ok()) << backend.status();
  const auto reply = Obtain(**backend, Request(AcquisitionId::Next()));
  EXPECT_EQ(ReasonOf(reply.status()), Reason::kBackendUnavailable) << reply.status();
}

TEST(RedisBackendTest, AnUnknownHostIsNamed) {
  const auto backend = ConnectRedisBackend({.url = "redis://no-such-host.invalid"});
  EXPECT_EQ(ReasonOf(backend.status()), Reason::kBackendUnavailable) << backend.status();
  EXPECT_TRUE(absl::StrContains(backend.status().message(), "no-such-host.invalid"))
      << backend.status();
}

TEST(RedisBackendTest, AWrongPasswordIsToldAndNotShown) {
  RedisServer server({.tcp = true, .arguments = {"--requirepass", "right"}});
  const std::string host = absl::StrCat("127.0.0.1:", server.port());
  EXPECT_TRUE(ConnectRedisBackend({.url = absl::StrCat("redis://:right@", host)}).ok());
  const auto wrong = ConnectRedisBackend({.url = absl::StrCat("redis://:wr0ng@", host)});
  EXPECT_EQ(ReasonOf(wrong.status()), Reason::kBackendRefused);
  EXPECT_TRUE(absl::StrContains(wrong.status().message(), "refuses the login")) << wrong.status();
  EXPECT_FALSE(absl::StrContains(wrong.status().message(), "wr0ng")) << wrong.status();
  const auto none = ConnectRedisBackend({.url = absl::StrCat("redis://", host)});
  EXPECT_EQ(ReasonOf(none.status()), Reason::kBackendRefused);
  EXPECT_TRUE(absl::StrContains(none.status().message(), "asks for a password")) << none.status();
}

// Who waits for the connection hears at once that it was refused. The server is asked again later,
// for those who come when its password is mended.
TEST(RedisBackendTest, APasswordThatIsChangedLaterIsTheReasonOfWhatIsAskedThen) {
  RedisServer server({.arguments = {"--requirepass", "right"}});
  RedisBackendOptions options = OptionsFor(absl::StrCat("unix://:right@", server.socket_path()));
  options.connect_timeout = options.command_timeout = kHangGuard;
  options.max_reconnect_delay = absl::Milliseconds(50);
  const Backend backend = Connect(options);
  const AcquisitionId a = AcquisitionId::Next();
  ASSERT_EQ(OutcomeOf(Obtain(*backend, Request(a))), ObtainOutcome::kObtained);
  RedisServer changed({.arguments = {"--requirepass", "other"}});
  server.Kill();
  // The same path leads to another server.
  ASSERT_EQ(rename(changed.socket_path().c_str(), server.socket_path().c_str()), 0);
  absl::Status refused;
  Eventually([&] {
    refused = Extend(*backend, "r", a, absl::Seconds(20)).status();
    return ReasonOf(refused) == Reason::kBackendRefused;
  });
  EXPECT_TRUE(absl::StrContains(refused.message(), "refuses the login")) << refused;
  EXPECT_EQ(ReasonOf(Obtain(*backend, Request(a)).status()), Reason::kBackendRefused);
  EXPECT_EQ(ReasonOf(Release(*backend, "r", a).status()), Reason::kBackendRefused);
  ASSERT_EQ(rename(server.socket_path().c_str(), changed.socket_path().c_str()), 0);
  ASSERT_EQ(changed.Command({"AUTH", "other"}), "OK");
}

TEST(RedisBackendTest, AServerThatHasTooManyClientsIsNotSaidToRefuseTheLogin) {
  RedisServer server({.arguments = {"--requirepass", "right", "--maxclients", "1"}});
  const auto backend =
      ConnectRedisBackend({.url = absl::StrCat("unix://:right@", server.socket_path())});
  EXPECT_EQ(ReasonOf(backend.status()), Reason::kBackendUnavailable) << backend.status();
  EXPECT_TRUE(absl::StrContains(backend.status().message(), "too many clients"))
      << backend.status();
}

TEST(RedisBackendTest, DatabasesAndPrefixesAreSeparate) {
  RedisServer server;
  RedisBackendOptions options = OptionsFor(absl::StrCat(server.url(), "?db=3"));
  const Backend third = Connect(options);
  options.key_prefix = "other:";
  const Backend other = Connect(options);
  const Backend zeroth = Connect(server);
  for (const Backend& backend : {third, other, zeroth}) {
    EXPECT_EQ(OutcomeOf(Obtain(*backend, Request(AcquisitionId::Next()))),
              ObtainOutcome::kObtained);
  }
}

TEST(RedisBackendTest, AServerThatIsNoneIsToldFromRedis) {
  struct Case {
    std::string greeting;
    bool after_request;
  };
  for (const Case& c : {
           Case{"HTTP/1.1 400 Bad Request\r\n\r\n", true},
           Case{"SSH-2.0-OpenSSH_9.2\r\n", false},
           Case{"+OK\r\n+OK\r\n+OK\r\n", false},
           Case{"+OK\r\n+OK\r\n+OK\r\n", true},
           Case{":1\r\n*0\r\n*-1\r\n$-1\r\n", true},
           Case{"*1000000000\r\n", true},
           Case{"$999999999999999\r\n", true},
           Case{"*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n:1\r\n", true},
           Case{std::string("\0\xff\0\xff", 4), true},
           Case{"-ERR go away\r\n", false},
       }) {
    GarbageServer garbage(c.greeting, c.after_request);
    const auto backend =
        ConnectRedisBackend({.url = absl::StrCat("redis://127.0.0.1:", garbage.port()),
                             .connect_timeout = absl::Milliseconds(500)});
    EXPECT_EQ(ReasonOf(backend.status()), Reason::kBackendUnavailable)
        << c.greeting << ": " << backend.status();
  }
}

TEST(RedisBackendTest, AServerThatSaysNothingMeetsTheConnectTimeout) {
  GarbageServer silent("", true);
  const auto backend =
      ConnectRedisBackend({.url = absl::StrCat("redis://127.0.0.1:", silent.port()),
                           .connect_timeout = absl::Milliseconds(50)});
  EXPECT_TRUE(absl::StrContains(backend.status().message(), "no connection within 50ms"))
      << backend.status();
}

TEST(RedisBackendTest, AClusterIsRefused) {
  RedisServer server({.arguments = {"--cluster-enabled", "yes"}});
  const auto backend = ConnectRedisBackend(OptionsFor(server.url()));
  EXPECT_EQ(ReasonOf(backend.status()), Reason::kNotSupported) << backend.status();
  EXPECT_TRUE(absl::StrContains(backend.status().message(), "Redis Cluster")) << backend.status();
  // Which has one database alone.
  const auto database = ConnectRedisBackend(OptionsFor(absl::StrCat(server.url(), "?db=1")));
  EXPECT_EQ(ReasonOf(database.status()), Reason::kNotSupported) << database.status();
}

TEST(RedisBackendTest, SomethingElseAtOurKeyIsToldAndLeftAlone) {
  RedisServer server;
  const Backend backend = Connect(server);
  server.Command({"SET", "latchkey:{r}", "mine"});
  const auto reply = Obtain(*backend, Request(AcquisitionId::Next()));
  EXPECT_EQ(ReasonOf(reply.status()), Reason::kBackendRefused) << reply.status();
  EXPECT_TRUE(absl::StrContains(reply.status().message(), "holds something else"))
      << reply.status();
  EXPECT_TRUE(absl::StrContains(reply.status().message(), "'latchkey:{r}'")) << reply.status();
  EXPECT_EQ(server.Command({"GET", "latchkey:{r}"}), "mine");
}

TEST(RedisBackendTest, SomethingElseAtTheWaitingListIsToldToWhoWaitsAndToNobodyElse) {
  RedisServer server;
  const Backend one = Connect(server);
  const Backend two = Connect(server);
  const AcquisitionId a = AcquisitionId::Next();
  const AcquisitionId b = AcquisitionId::Next();
  ASSERT_EQ(OutcomeOf(Obtain(*one, Request(a))), ObtainOutcome::kObtained);
  server.Command({"SET", "latchkey:{r}:waiting", "mine"});
  // Who does not wait is not concerned.
  EXPECT_EQ(OutcomeOf(Obtain(*two, Request(AcquisitionId::Next()))), ObtainOutcome::kDenied);
  EXPECT_EQ(Extend(*one, "r", a, absl::Seconds(20))->outcome, ExtendOutcome::kExtended);
  // Who waits is bidden to ask again, and hears why it would wait in vain.
  Events waiter = WatchAsWaiter(*two, b);
  EXPECT_TRUE(waiter.Take(WatchEventKind::kDisplaced));
  const absl::Status refused = Obtain(*two, Request(b)).status();
  EXPECT_EQ(ReasonOf(refused), Reason::kBackendRefused) << refused;
  EXPECT_TRUE(absl::StrContains(refused.message(), "'latchkey:{r}:waiting', holds something else"))
      << refused;
  // Nothing of it stays behind, and what it is not ours is not touched.
  EXPECT_EQ(server.Command({"HKEYS", "latchkey:{r}"}), "s\nh");
  EXPECT_EQ(server.Command({"GET", "latchkey:{r}:waiting"}), "mine");
  EXPECT_EQ(server.Command({"TTL", "latchkey:{r}:waiting"}), "-1");
  // A thief can do without the list.
  const AcquisitionId thief = AcquisitionId::Next();
  Events thief_events = WatchAsWaiter(*two, thief, 7);
  ASSERT_TRUE(thief_events.Take(WatchEventKind::kDisplaced));
  EXPECT_EQ(OutcomeOf(Obtain(*two, Request(thief, 7))), ObtainOutcome::kReserved);
  EXPECT_EQ(Release(*two, "r", thief).value(), ReleaseOutcome::kWithdrawn);
  // And what is free can be had.
  EXPECT_EQ(Release(*one, "r", a).value(), ReleaseOutcome::kReleased);
  EXPECT_EQ(OutcomeOf(Obtain(*two, Request(b))), ObtainOutcome::kObtained);
}

TEST(RedisBackendTest, AReleaseFreesTheLockThoughTheWaitingListWasOverwritten) {
  RedisServer server;
  const Backend one = Connect(server);
  RedisBackendOptions options = OptionsFor(server.url());
  options.waiter_lease = absl::Milliseconds(300);
  const Backend two = Connect(options);
  const AcquisitionId a = AcquisitionId::Next();
  const AcquisitionId b = AcquisitionId::Next();
  ASSERT_EQ(OutcomeOf(Obtain(*one, Request(a))), ObtainOutcome::kObtained);
  Events waiter = WatchAsWaiter(*two, b);
  AwaitWaiters(server, 1);
  server.Command({"SET", "latchkey:{r}:waiting", "mine"});
  EXPECT_EQ(Release(*one, "r", a).value(), ReleaseOutcome::kReleased);
  // Its place is lost, and it hears so when it next looks.
  EXPECT_TRUE(waiter.Take(WatchEventKind::kDisplaced));
  EXPECT_EQ(OutcomeOf(Obtain(*two, Request(b))), ObtainOutcome::kObtained);
  EXPECT_EQ(Release(*two, "r", b).value(), ReleaseOutcome::kReleased);
  // Mended, it serves again.
  server.Command({"DEL", "latchkey:{r}:waiting"});
  const AcquisitionId c = AcquisitionId::Next();
  ASSERT_EQ(OutcomeOf(Obtain(*one, Request(c))), ObtainOutcome::kObtained);
  waiter = WatchAsWaiter(*two, AcquisitionId::Next());
  AwaitWaiters(server, 1);
  EXPECT_EQ(Release(*one, "r", c).value(), ReleaseOutcome::kReleased);
  EXPECT_TRUE(waiter.Take(WatchEventKind::kHoldEnded));
}

TEST(RedisBackendTest, AWaiterIsNoLongerRefusedWhenTheWaitingListIsMended) {
  RedisServer server;
  const Backend one = Connect(server);
  const Backend two = Connect(server);
  const AcquisitionId a = AcquisitionId::Next();
  const AcquisitionId b = AcquisitionId::Next();
  ASSERT_EQ(OutcomeOf(Obtain(*one, Request(a))), ObtainOutcome::kObtained);
  server.Command({"SET", "latchkey:{r}:waiting", "mine"});
  Events waiter = WatchAsWaiter(*two, b);
  ASSERT_TRUE(waiter.Take(WatchEventKind::kDisplaced));
  EXPECT_FALSE(Obtain(*two, Request(b)).ok());
  server.Command({"DEL", "latchkey:{r}:waiting"});
  Eventually([&] { return Obtain(*two, Request(b)).ok(); });
  AwaitWaiters(server, 1);
  EXPECT_EQ(Release(*one, "r", a).value(), ReleaseOutcome::kReleased);
  EXPECT_TRUE(waiter.Take(WatchEventKind::kHoldEnded));
}

// A server that has room for no waiter, though what is held is answered from what it has.
TEST(RedisBackendTest, AWaiterThatTheServerCannotRegisterHearsWhy) {
  struct Case {
    std::vector<std::string> command;
    Reason reason;
    const char* says;
  };
  for (const Case& c : {
           Case{{"CONFIG", "SET", "maxmemory", "1"}, Reason::kBackendUnavailable, "out of memory"},
           Case{{"REPLICAOF", "127.0.0.1", "1"}, Reason::kBackendUnavailable, "replica"},
           Case{{"ACL", "SETUSER", "default", "-zadd"},
                Reason::kBackendRefused,
                "lacks a permission"},
       }) {
    RedisServer server;
    const Backend one = Connect(server);
    const Backend two = Connect(server);
    const AcquisitionId b = AcquisitionId::Next();
    ASSERT_EQ(OutcomeOf(Obtain(*one, Request(AcquisitionId::Next()))), ObtainOutcome::kObtained);
    EXPECT_NE(server.Command(c.command).substr(0, 3), "ERR") << c.says;
    Events waiter = WatchAsWaiter(*two, b);
    EXPECT_TRUE(waiter.Take(WatchEventKind::kDisplaced)) << c.says;
    const absl::Status refused = Obtain(*two, Request(b)).status();
    EXPECT_EQ(ReasonOf(refused), c.reason) << refused;
    EXPECT_TRUE(absl::StrContains(refused.message(), c.says)) << refused;
  }
}

TEST(RedisBackendTest, OutOfMemoryIsToldAndAReleaseStillWorks) {
  RedisServer server;
  const Backend backend = Connect(server);
  const AcquisitionId a = AcquisitionId::Next();
  const AcquisitionId b = AcquisitionId::Next();
  ObtainRequest request = Request(a);
  request.owner = "me";
  ASSERT_EQ(OutcomeOf(Obtain(*backend, request)), ObtainOutcome::kObtained);
  request.acquisition = b;
  ASSERT_EQ(OutcomeOf(Obtain(*backend, request)), ObtainOutcome::kReentered);
  server.Command({"CONFIG", "SET", "maxmemory", "1"});
  ObtainRequest other = Request(AcquisitionId::Next());
  other.resource = "other";
  const auto reply = Obtain(*backend, other);
  EXPECT_EQ(ReasonOf(reply.status()), Reason::kBackendUnavailable) << reply.status();
  EXPECT_TRUE(absl::StrContains(reply.status().message(), "out of memory")) << reply.status();
  EXPECT_EQ(Release(*backend, "r", a).value(), ReleaseOutcome::kReleased);
  EXPECT_EQ(Release(*backend, "r", b).value(), ReleaseOutcome::kReleased);
}

TEST(RedisBackendTest, AFullServerWakesWhoWaitsAndLetsAThiefWithdraw) {
  RedisServer server;
  const Backend one = Connect(server);
  const Backend two = Connect(server);
  const AcquisitionId a = AcquisitionId::Next();
  const AcquisitionId b = AcquisitionId::Next();
  const AcquisitionId thief = AcquisitionId::Next();
  ASSERT_EQ(OutcomeOf(Obtain(*one, Request(a))), ObtainOutcome::kObtained);
  Events waiter = WatchAsWaiter(*two, b);
  AwaitWaiters(server, 1);
  ASSERT_EQ(OutcomeOf(Obtain(*one, Request(thief, 7))), ObtainOutcome::kReserved);
  server.Command({"CONFIG", "SET", "maxmemory", "1"});
  EXPECT_EQ(Release(*one, "r", thief).value(), ReleaseOutcome::kWithdrawn);
  EXPECT_EQ(Release(*one, "r", a).value(), ReleaseOutcome::kReleased);
  EXPECT_TRUE(waiter.Take(WatchEventKind::kHoldEnded));
  server.Command({"CONFIG", "SET", "maxmemory", "0"});
  EXPECT_EQ(OutcomeOf(Obtain(*two, Request(b))), ObtainOutcome::kObtained);
}

TEST(RedisBackendTest, AReadOnlyReplicaIsTold) {
  RedisServer master({.tcp = true});
  RedisServer replica({.tcp = true});
  replica.Command({"REPLICAOF", "127.0.0.1", absl::StrCat(master.port())});
  // A replica lets clients connect, and refuses the first write.
  const Backend backend = Connect(RedisBackendOptions{.url = replica.url()});
  const auto reply = Obtain(*backend, Request(AcquisitionId::Next()));
  EXPECT_EQ(ReasonOf(reply.status()), Reason::kBackendUnavailable) << reply.status();
  EXPECT_TRUE(absl::StrContains(reply.status().message(), "replica") ||
              absl::StrContains(reply.status().message(), "master"))
      << reply.status();
}

TEST(RedisBackendTest, NoRequestIsSentTwiceToAFreshServerAndSoServedOutOfOrder) {
  RedisServer server;
  const Backend backend = Connect(server);
  const AcquisitionId a = AcquisitionId::Next();
  Obtain(*backend, Request(a)).IgnoreError();
  Extend(*backend, "r", a, absl::Seconds(1)).IgnoreError();
  Release(*backend, "r", a).IgnoreError();
  const std::string stats = server.Command({"INFO", "commandstats"});
  EXPECT_TRUE(absl::StrContains(stats, "cmdstat_evalsha:calls=3,")) << stats;
  EXPECT_TRUE(absl::StrContains(stats, "cmdstat_eval:calls=1,")) << "to vouch: " << stats;
}

TEST(RedisBackendTest, AWaiterThatIsGrantedTheLockIsNeverRegistered) {
  RedisServer server;
  const Backend backend = Connect(server);
  const AcquisitionId a = AcquisitionId::Next();
  const Subscription watch = backend->Watch({.resource = "r", .acquisition = a, .asks_next = true},
                                            [](const WatchEvent&) {});
  EXPECT_EQ(OutcomeOf(Obtain(*backend, Request(a))), ObtainOutcome::kObtained);
  Release(*backend, "r", a).IgnoreError();
  EXPECT_FALSE(absl::StrContains(server.Command({"INFO", "commandstats"}), "cmdstat_zadd"));
}

TEST(RedisBackendTest, AWaiterThatIsRefusedIsRegisteredAndWoken) {
  RedisServer server;
  const Backend backend = Connect(server);
  const AcquisitionId a = AcquisitionId::Next();
  const AcquisitionId b = AcquisitionId::Next();
  Obtain(*backend, Request(a)).IgnoreError();
  auto events = std::make_shared<Mailbox<WatchEvent>>();
  const Subscription watch = backend->Watch(
      {.resource = "r", .acquisition = b, .reservation_lease = absl::Seconds(5), .asks_next = true},
      [events](const WatchEvent& event) { events->Put(event); });
  EXPECT_EQ(OutcomeOf(Obtain(*backend, Request(b))), ObtainOutcome::kDenied);
  Release(*backend, "r", a).IgnoreError();
  const std::optional<WatchEvent> event = events->Take();
  ASSERT_TRUE(event.has_value());
  EXPECT_EQ(event->kind, WatchEventKind::kHoldEnded);
  EXPECT_EQ(OutcomeOf(Obtain(*backend, Request(b))), ObtainOutcome::kObtained);
}

TEST(RedisBackendTest, ScriptsThatTheServerForgotAreSentAgain) {
  RedisServer server;
  const Backend backend = Connect(server);
  const AcquisitionId a = AcquisitionId::Next();
  Obtain(*backend, Request(a)).IgnoreError();
  server.Command({"SCRIPT", "FLUSH"});
  EXPECT_EQ(Extend(*backend, "r", a, absl::Seconds(1))->outcome, ExtendOutcome::kExtended);
  EXPECT_EQ(Release(*backend, "r", a).value(), ReleaseOutcome::kReleased);
}

TEST(RedisBackendTest, FlushedDataUnderAHeldLockIsALossAndThenARecovery) {
  RedisServer server;
  const Backend backend = Connect(server);
  const AcquisitionId a = AcquisitionId::Next();
  Obtain(*backend, Request(a)).IgnoreError();
  server.Command({"FLUSHALL"});
  EXPECT_EQ(Extend(*backend, "r", a, absl::Seconds(1))->outcome, ExtendOutcome::kNotHeld);
  // Others may still believe in their leases: nobody is let in.
  const auto reply = Obtain(*backend, Request(AcquisitionId::Next()));
  EXPECT_EQ(ReasonOf(reply.status()), Reason::kBackendUnavailable) << reply.status();
  EXPECT_TRUE(absl::StrContains(reply.status().message(), "recovering")) << reply.status();
}

TEST(RedisBackendTest, ANewServerThatNobodyVouchesForRecoversFirst) {
  RedisServer server;
  const ErrorLog warnings(absl::LogSeverity::kWarning);
  const Backend backend = Connect(RedisBackendOptions{.url = server.url()});
  const auto reply = Obtain(*backend, Request(AcquisitionId::Next()));
  EXPECT_TRUE(absl::StrContains(reply.status().message(), "recovering")) << reply.status();
  EXPECT_TRUE(absl::StrContains(reply.status().message(), "new_server")) << reply.status();
  // A request that waits for its end does not show it, so it is logged, too; once.
  EXPECT_FALSE(Obtain(*backend, Request(AcquisitionId::Next())).ok());
  ASSERT_EQ(warnings.lines().size(), 1u);
  EXPECT_TRUE(absl::StrContains(warnings.lines()[0], reply.status().message()))
      << warnings.lines()[0];
  // What the message says helps, to all who use the server.
  const Backend vouches = Connect(OptionsFor(server.url()));
  EXPECT_EQ(OutcomeOf(Obtain(*vouches, Request(AcquisitionId::Next()))), ObtainOutcome::kObtained);
  ObtainRequest other = Request(AcquisitionId::Next());
  other.resource = "other";
  EXPECT_EQ(OutcomeOf(Obtain(*backend, other)), ObtainOutcome::kObtained);
  EXPECT_EQ(warnings.lines().size(), 1u);
}

TEST(RedisBackendTest, NoConnectionAsksANewServerBeforeItWasVouchedFor) {
  for (int round = 0; round < 5; ++round) {
    RedisServer server;
    RedisBackendOptions options = OptionsFor(server.url());
    options.command_connections = 8;
    options.wait_for_connection = false;
    const Backend backend = Connect(options);
    auto replies = std::make_shared<Mailbox<absl::Status>>();
    constexpr int kLocks = 32;
    for (int i = 0; i < kLocks; ++i) {
      const std::string resource = absl::StrCat("r", i);
      ObtainRequest request = Request(AcquisitionId::Next());
      request.resource = resource;
      backend->Obtain(
          request, [replies](absl::StatusOr<ObtainReply> reply) { replies->Put(reply.status()); });
    }
    for (int i = 0; i < kLocks; ++i) {
      const auto status = replies->Take();
      ASSERT_TRUE(status);
      EXPECT_TRUE(status->ok()) << *status;
    }
  }
}

TEST(RedisBackendTest, WhoVouchesForAServerOnceDoesNotVouchForItAfterALoss) {
  RedisServer server;
  RedisBackendOptions options = OptionsFor(server.url());
  options.command_connections = 3;
  const Backend backend = Connect(options);
  server.Command({"FLUSHALL"});
  server.Command({"CLIENT", "KILL", "TYPE", "normal"});
  absl::StatusOr<ObtainReply> reply = absl::UnknownError("");
  Eventually([&] {
    reply = Obtain(*backend, Request(AcquisitionId::Next()));
    EXPECT_FALSE(reply.ok()) << "nobody may be let in";
    return reply.ok() || absl::StrContains(reply.status().message(), "recovering");
  });
}

TEST(RedisBackendTest, APersistentServerKeepsHoldsAndTokensOverARestart) {
  RedisServer server({.persistent = true});
  const Backend backend = Connect(server);
  const AcquisitionId a = AcquisitionId::Next();
  const auto held = Obtain(*backend, Request(a));
  ASSERT_EQ(OutcomeOf(held), ObtainOutcome::kObtained);
  server.Restart();
  // The first request may meet the dead connection.
  absl::StatusOr<ExtendReply> extended = absl::UnknownError("");
  Eventually([&] {
    extended = Extend(*backend, "r", a, absl::Seconds(20));
    return extended.ok();
  });
  ASSERT_TRUE(extended.ok()) << extended.status();
  EXPECT_EQ(extended->outcome, ExtendOutcome::kExtended);
  EXPECT_EQ(Release(*backend, "r", a).value(), ReleaseOutcome::kReleased);
  EXPECT_GT(Obtain(*backend, Request(AcquisitionId::Next()))->token, held->token);
}

TEST(RedisBackendTest, ARestartedServerWithoutItsDataRecovers) {
  RedisServer server;
  const Backend backend = Connect(server);
  Obtain(*backend, Request(AcquisitionId::Next())).IgnoreError();
  server.Restart();
  absl::StatusOr<ObtainReply> reply = absl::UnknownError("");
  Eventually([&] {
    reply = Obtain(*backend, Request(AcquisitionId::Next()));
    EXPECT_FALSE(reply.ok()) << "nobody may be let in";
    return reply.ok() || absl::StrContains(reply.status().message(), "recovering");
  });
}

TEST(RedisBackendTest, ARequestWithoutAReplyHasAnUnknownOutcomeAndCanBeCompensated) {
  RedisServer server;
  TcpProxy proxy(server.socket_path());
  RedisBackendOptions options = OptionsFor(absl::StrCat("redis://127.0.0.1:", proxy.port()));
  options.command_timeout = absl::Milliseconds(200);
  const Backend backend = Connect(options);
  const AcquisitionId a = AcquisitionId::Next();
  // Once, so that the server knows the script.
  Obtain(*backend, Request(a)).IgnoreError();
  Release(*backend, "r", a).IgnoreError();
  proxy.HoldReplies(true);
  const auto reply = Obtain(*backend, Request(a));
  EXPECT_EQ(ReasonOf(reply.status()), Reason::kBackendUnknown) << reply.status();
  EXPECT_TRUE(absl::StrContains(reply.status().message(), "no reply within 200ms"))
      << reply.status();
  // It was executed.
  const Backend other = Connect(server);
  EXPECT_EQ(OutcomeOf(Obtain(*other, Request(AcquisitionId::Next()))), ObtainOutcome::kDenied);
  proxy.HoldReplies(false);
  // The caller need not wait for the release: it is repeated in the background until it arrives.
  backend->Release({.resource = "r", .acquisition = a}, [](absl::StatusOr<ReleaseOutcome>) {});
  Events waiter = WatchAsWaiter(*other, AcquisitionId::Next());
  EXPECT_TRUE(waiter.Take(WatchEventKind::kHoldEnded));
}

// What may have been executed is never said to be "not executed", also if nobody can be asked
// again.
TEST(RedisBackendTest, WhatIsSentOverALinkThatSwallowsTheReplyAndThenRefusesIsUnknown) {
  using Ask =
      std::function<void(LockingProtocol&, AcquisitionId, std::function<void(absl::Status)>)>;
  const HoldRef none = {.resource = "r"};
  const auto of = [&none](AcquisitionId id) {
    HoldRef hold = none;
    hold.acquisition = id;
    return hold;
  };
  struct Case {
    const char* name;
    bool held_before;
    bool held_after;
    Ask ask;
  };
  for (const Case& c :
       {Case{"Obtain", false, true,
             [](LockingProtocol&backend, AcquisitionId id, auto done) {
               backend.Obtain(Request(id), [done](auto reply) { done(reply.status()); });
             }},
        Case{"Release", true, false,
             [of](LockingProtocol&backend, AcquisitionId id, auto done) {
               backend.Release(of(id), [done](auto reply) { done(reply.status()); });
             }},
        Case{"Extend", true, true,
             [of](LockingProtocol&backend, AcquisitionId id, auto done) {
               backend.Extend(of(id), absl::Seconds(40),
                              [done](auto reply) { done(reply.status()); });
             }},
        Case{"Confirm", true, true, [of](LockingProtocol&backend, AcquisitionId id, auto done) {
               backend.quorum_member()->Confirm(of(id), 1,
                                                [done](auto reply) { done(reply.status()); });
             }}}) {
    SCOPED_TRACE(c.name);
    RedisServer server;
    TcpProxy proxy(server.socket_path());
    RedisBackendOptions options = OptionsFor(absl::StrCat("redis://127.0.0.1:", proxy.port()));
    options.command_timeout = kHangGuard;
    options.max_reconnect_delay = absl::Hours(1);
    const Backend backend = Connect(options);
    const AcquisitionId a = AcquisitionId::Next();
    if (c.held_before) {
      ASSERT_EQ(OutcomeOf(Obtain(*backend, Request(a))), ObtainOutcome::kObtained);
    }
    const auto ask = [&] {
      auto answers = std::make_shared<Mailbox<absl::Status>>();
      c.ask(*backend, a, [answers](absl::Status status) { answers->Put(std::move(status)); });
      return answers;
    };
    proxy.HoldReplies(true);
    const auto first = ask();
    proxy.AwaitHeldReplies();
    proxy.Refuse(true);
    proxy.CutAll();
    const auto unknown = first->Take();
    ASSERT_TRUE(unknown);
    EXPECT_EQ(ReasonOf(*unknown), Reason::kBackendUnknown) << *unknown;
    // That it was executed the server says,
    const Backend other = Connect(server);
    EXPECT_EQ(OutcomeOf(Obtain(*other, Request(AcquisitionId::Next()))),
              c.held_after ? ObtainOutcome::kDenied : ObtainOutcome::kObtained);
    // and that the next one was not.
    absl::Status unavailable;
    Eventually([&] {
      unavailable = ask()->Take().value_or(absl::OkStatus());
      return ReasonOf(unavailable) == Reason::kBackendUnavailable;
    });
  }
}

TEST(RedisBackendTest, AReleaseThatFailsIsRepeatedInTheBackground) {
  RedisServer server;
  TcpProxy proxy(server.socket_path());
  RedisBackendOptions options = OptionsFor(absl::StrCat("redis://127.0.0.1:", proxy.port()));
  options.max_reconnect_delay = absl::Milliseconds(50);
  const Backend backend = Connect(options);
  const Backend other = Connect(server);
  const AcquisitionId a = AcquisitionId::Next();
  Obtain(*backend, Request(a)).IgnoreError();
  Events waiter = WatchAsWaiter(*other, AcquisitionId::Next());
  AwaitWaiters(server, 1);
  proxy.Refuse(true);
  proxy.CutAll();
  EXPECT_FALSE(Release(*backend, "r", a).ok());
  proxy.Refuse(false);
  EXPECT_TRUE(waiter.Take(WatchEventKind::kHoldEnded));
}

TEST(RedisBackendTest, AReleaseIsNotRepeatedForLongerThanAnyLeaseLasts) {
  RedisServer server;
  TcpProxy proxy(server.socket_path());
  RedisBackendOptions options = OptionsFor(absl::StrCat("redis://127.0.0.1:", proxy.port()));
  options.max_reconnect_delay = absl::Milliseconds(50);
  options.max_lease = options.default_lease = absl::Milliseconds(200);
  const Backend backend = Connect(options);
  const Backend other = Connect(server);
  const AcquisitionId a = AcquisitionId::Next();
  Obtain(*backend, Request(a, 0, absl::Milliseconds(200))).IgnoreError();
  proxy.Refuse(true);
  proxy.CutAll();
  EXPECT_FALSE(Release(*backend, "r", a).ok());
  {
    // The end of another lease, which is twice as long, tells the time.
    ObtainRequest longer = Request(AcquisitionId::Next(), 0, absl::Milliseconds(400));
    longer.resource = "s";
    ASSERT_EQ(OutcomeOf(Obtain(*other, longer)), ObtainOutcome::kObtained);
    Events ends = Watch(*other, {.resource = "s",
                                 .acquisition = AcquisitionId::Next(),
                                 .reservation_lease = absl::Seconds(3)});
    ASSERT_TRUE(ends.Take(WatchEventKind::kHoldEnded));
  }
  // Whatever the other one has to say has been said.
  ASSERT_TRUE(Extend(*other, "s", a, absl::Seconds(1)).ok());
  server.Command({"CONFIG", "RESETSTAT"});
  proxy.Refuse(false);
  Eventually([&] { return Extend(*backend, "r", a, absl::Milliseconds(100)).ok(); });
  ASSERT_TRUE(Extend(*backend, "r", a, absl::Milliseconds(100)).ok());
  const std::string stats = server.Command({"INFO", "commandstats"});
  EXPECT_TRUE(absl::StrContains(stats, "cmdstat_evalsha:calls=2,")) << stats;
}

TEST(RedisBackendTest, AHalfClosedConnectionIsReplaced) {
  RedisServer server;
  TcpProxy proxy(server.socket_path());
  const Backend backend = Connect(OptionsFor(absl::StrCat("redis://127.0.0.1:", proxy.port())));
  proxy.HalfClose();
  absl::StatusOr<ObtainReply> reply = absl::UnknownError("");
  const AcquisitionId a = AcquisitionId::Next();
  Eventually([&] {
    reply = Obtain(*backend, Request(a));
    return reply.ok();
  });
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_NE(reply->outcome, ObtainOutcome::kDenied);
}

TEST(RedisBackendTest, ASubscriptionThatIsSilentThoughItsConnectionLivesIsReplaced) {
  RedisServer server;
  TcpProxy proxy(server.socket_path());
  RedisBackendOptions options = OptionsFor(absl::StrCat("redis://127.0.0.1:", proxy.port()));
  options.command_timeout = absl::Milliseconds(200);
  // So that it does not find out by looking.
  options.waiter_lease = absl::Hours(1);
  const Backend waiting = Connect(options);
  const Backend holder = Connect(server);
  const AcquisitionId a = AcquisitionId::Next();
  const AcquisitionId b = AcquisitionId::Next();
  ASSERT_EQ(OutcomeOf(Obtain(*holder, Request(a))), ObtainOutcome::kObtained);
  Events waiter = WatchAsWaiter(*waiting, b);
  AwaitWaiters(server, 1);
  proxy.HoldRepliesTo("SUBSCRIBE");
  Release(*holder, "r", a).IgnoreError();
  proxy.AwaitHeldReplies();
  EXPECT_TRUE(waiter.mailbox->All().empty());
  // Commands go on all the while.
  EXPECT_TRUE(Extend(*waiting, "r", b, absl::Seconds(1)).ok());
  // It asks every five seconds whether the server is still there.
  EXPECT_TRUE(waiter.Take(WatchEventKind::kHoldEnded));
  EXPECT_EQ(OutcomeOf(Obtain(*waiting, Request(b))), ObtainOutcome::kObtained);
}

TEST(RedisBackendTest, GarbageInTheMiddleEndsTheConnectionAndIsAnUnknownOutcome) {
  RedisServer server;
  TcpProxy proxy(server.socket_path());
  const Backend backend = Connect(OptionsFor(absl::StrCat("redis://127.0.0.1:", proxy.port())));
  const Backend other = Connect(server);
  for (const std::string_view garbage :
       {"garbage\r\n", "$-7\r\n", "*1000000000\r\n", ":1\r\n:2\r\n", "\xff\xfe", "!9\r\n"}) {
    const AcquisitionId a = AcquisitionId::Next();
    proxy.HoldRequests(true);
    auto mailbox = std::make_shared<Mailbox<absl::StatusOr<ObtainReply>>>();
    backend->Obtain(Request(a), [mailbox](absl::StatusOr<ObtainReply> reply) {
      mailbox->Put(std::move(reply));
    });
    proxy.AwaitHeldRequests();
    proxy.SayToClients(garbage);
    const auto reply = mailbox->Take();
    ASSERT_TRUE(reply);
    EXPECT_EQ(ReasonOf(reply->status()), Reason::kBackendUnknown) << garbage << reply->status();
    proxy.HoldRequests(false);
    // It connects anew, and what may have been left behind can be taken back.
    Eventually([&] { return Release(*backend, "r", a).ok(); });
    const AcquisitionId b = AcquisitionId::Next();
    EXPECT_EQ(OutcomeOf(Obtain(*other, Request(b))), ObtainOutcome::kObtained) << garbage;
    Release(*other, "r", b).IgnoreError();
  }
}

TEST(RedisBackendTest, AnAnswerThatNoScriptGivesIsAnUnknownOutcome) {
  RedisServer server;
  for (const std::string_view answer :
       {":9\r\n", "+OK\r\n", "$-1\r\n", "*0\r\n", "*2\r\n:1\r\n:-5\r\n", "*2\r\n:4\r\n$1\r\nx\r\n",
        "$64\r\n1111111111111111111111111111111122222222222222222222222222222222\r\n"}) {
    TcpProxy proxy(server.socket_path());
    const Backend backend = Connect(OptionsFor(absl::StrCat("redis://127.0.0.1:", proxy.port())));
    proxy.HoldRequests(true);
    auto mailbox = std::make_shared<Mailbox<absl::StatusOr<ObtainReply>>>();
    backend->Obtain(Request(AcquisitionId::Next()), [mailbox](absl::StatusOr<ObtainReply> reply) {
      mailbox->Put(std::move(reply));
    });
    proxy.AwaitHeldRequests();
    proxy.SayToClients(answer);
    const auto reply = mailbox->Take();
    ASSERT_TRUE(reply);
    EXPECT_EQ(ReasonOf(reply->status()), Reason::kBackendUnknown) << answer << reply->status();
    EXPECT_TRUE(absl::StrContains(reply->status().message(), "not understood")) << reply->status();
  }
}

// The words of Redis 6.0, which wraps what a script met, of Redis 7 and of later ones.
TEST(RedisBackendTest, ErrorsOfAllVersionsAreUnderstood) {
  struct Case {
    const char* answer;
    Reason reason;
    const char* says;
  };
  RedisServer server;
  for (const Case& c : {
           Case{"-ERR Error running script (call to f_94c5): @user_script:20: WRONGTYPE Operation "
                "against a key holding the wrong kind of value\r\n",
                Reason::kBackendRefused, "holds something else"},
           Case{"-ERR Error running script (call to f_94c5): @user_script:20: @user_script: 20: "
                "-OOM command not allowed when used memory > 'maxmemory'.\r\n",
                Reason::kBackendUnavailable, "out of memory"},
           Case{"-@user_script: 156: -OOM command not allowed when used memory > 'maxmemory'.\r\n",
                Reason::kBackendUnavailable, "out of memory"},
           Case{"-OOM command not allowed when used memory > 'maxmemory'. script: 94c5, on "
                "@user_script:20.\r\n",
                Reason::kBackendUnavailable, "out of memory"},
           Case{"-ERR The user executing the script can't run this command or subcommand script: "
                "94c5, on @user_script:20.\r\n",
                Reason::kBackendRefused, "lacks a permission"},
           Case{"-ERR ACL failure in script: User default has no permissions to run the 'zadd' "
                "command\r\n",
                Reason::kBackendRefused, "lacks a permission"},
           Case{"-ERR something that is not WRONGTYPE or OOM at all\r\n", Reason::kBackendUnknown,
                "something that is not"},
       }) {
    TcpProxy proxy(server.socket_path());
    const Backend backend = Connect(OptionsFor(absl::StrCat("redis://127.0.0.1:", proxy.port())));
    proxy.HoldRequests(true);
    auto mailbox = std::make_shared<Mailbox<absl::StatusOr<ObtainReply>>>();
    backend->Obtain(Request(AcquisitionId::Next()), [mailbox](absl::StatusOr<ObtainReply> reply) {
      mailbox->Put(std::move(reply));
    });
    proxy.AwaitHeldRequests();
    proxy.SayToClients(c.answer);
    const auto reply = mailbox->Take();
    ASSERT_TRUE(reply);
    EXPECT_EQ(ReasonOf(reply->status()), c.reason) << reply->status();
    EXPECT_TRUE(absl::StrContains(reply->status().message(), c.says)) << reply->status();
  }
}

TEST(RedisBackendTest, APausedServerBlocksNobodyForLongerThanTheTimeout) {
  RedisServer server;
  RedisBackendOptions options = OptionsFor(server.url());
  options.command_timeout = absl::Milliseconds(100);
  options.connect_timeout = absl::Milliseconds(100);
  const Backend backend = Connect(options);
  const AcquisitionId a = AcquisitionId::Next();
  server.Pause();
  const auto unknown = Obtain(*backend, Request(a));
  EXPECT_EQ(ReasonOf(unknown.status()), Reason::kBackendUnknown) << unknown.status();
  const auto unavailable = Obtain(*backend, Request(a));
  EXPECT_FALSE(unavailable.ok());
  server.Continue();
  absl::StatusOr<ObtainReply> reply = absl::UnknownError("");
  Eventually([&] {
    reply = Obtain(*backend, Request(a));
    return reply.ok();
  });
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_NE(reply->outcome, ObtainOutcome::kDenied);
}

// Each in its own time, though the connection may take much longer: the server is there, and says
// nothing.
void ExpectEveryCallEndsInTime(LockingProtocol& backend) {
  const AcquisitionId a = AcquisitionId::Next();
  const HoldRef hold = {.resource = "r", .acquisition = a};
  std::vector<absl::Status> ends;
  ends.push_back(Obtain(backend, Request(a)).status());
  ends.push_back(Extend(backend, "r", a, absl::Seconds(1)).status());
  ends.push_back(Await<ConfirmReply>([&](auto done) {
                   backend.quorum_member()->Confirm(hold, 1, std::move(done));
                 }).status());
  ends.push_back(Release(backend, "r", a).status());
  for (const absl::Status& end : ends) {
    EXPECT_EQ(ReasonOf(end), Reason::kBackendUnavailable) << end;
    EXPECT_TRUE(absl::StrContains(end.message(), "no connection within 100ms")) << end;
  }
}

TEST(RedisBackendTest, NoCallTakesLongerThanItsTimeoutWhileTheConnectionIsMade) {
  RedisServer server;
  RedisBackendOptions options = OptionsFor(server.url());
  options.command_timeout = absl::Milliseconds(100);
  options.connect_timeout = absl::Hours(1);
  const Backend backend = Connect(options);
  const AcquisitionId a = AcquisitionId::Next();
  server.Pause();
  // It gives up the connection, and makes a new one, which the server does not greet.
  const auto unknown = Obtain(*backend, Request(a));
  EXPECT_EQ(ReasonOf(unknown.status()), Reason::kBackendUnknown) << unknown.status();
  // A call may end before the connection does; the next one then still leaves on that one.
  Eventually([&] {
    return absl::StrContains(Obtain(*backend, Request(a)).status().message(), "no connection");
  });
  ExpectEveryCallEndsInTime(*backend);
  server.Continue();
  Eventually([&] { return Release(*backend, "r", a).ok(); });
  EXPECT_EQ(OutcomeOf(Obtain(*backend, Request(a))), ObtainOutcome::kObtained);
}

TEST(RedisBackendTest, NoCallTakesLongerThanItsTimeoutWhileTheFirstConnectionIsMade) {
  GarbageServer silent("", true);
  const Backend backend = Connect({.url = absl::StrCat("redis://127.0.0.1:", silent.port()),
                                   .connect_timeout = absl::Hours(1),
                                   .command_timeout = absl::Milliseconds(100),
                                   .wait_for_connection = false});
  ExpectEveryCallEndsInTime(*backend);
}

TEST(RedisBackendTest, DestructionEndsWhatIsUnderWayOnce) {
  RedisServer server;
  RedisBackendOptions options = OptionsFor(server.url());
  options.shutdown_timeout = absl::Milliseconds(20);
  Backend backend = Connect(options);
  server.Pause();
  std::atomic<int> completions = 0;
  for (int i = 0; i < 10; ++i) {
    backend->Obtain(Request(AcquisitionId::Next()), [&](absl::StatusOr<ObtainReply> reply) {
      EXPECT_FALSE(reply.ok());
      ++completions;
    });
  }
  backend.reset();
  EXPECT_EQ(completions, 10);
  server.Continue();
}

TEST(RedisBackendTest, AReleaseJustBeforeDestructionReachesTheServer) {
  RedisServer server;
  Backend backend = Connect(server);
  const Backend other = Connect(server);
  for (int i = 0; i < 20; ++i) {
    const AcquisitionId a = AcquisitionId::Next();
    ASSERT_EQ(OutcomeOf(Obtain(*backend, Request(a))), ObtainOutcome::kObtained);
    backend->Release({.resource = "r", .acquisition = a}, [](absl::StatusOr<ReleaseOutcome>) {});
    backend.reset();
    backend = Connect(server);
  }
}

TEST(RedisBackendTest, ACallbackMayDestroyTheBackend) {
  RedisServer server;
  Backend backend = Connect(server);
  auto done = std::make_shared<Mailbox<bool>>();
  LockingProtocol* const raw = backend.get();
  raw->Obtain(Request(AcquisitionId::Next()),
              [keep = std::move(backend), done](absl::StatusOr<ObtainReply> reply) mutable {
                keep.reset();
                done->Put(reply.ok());
              });
  EXPECT_EQ(done->Take(), true);
}

}  // namespace
}  // namespace latchkey

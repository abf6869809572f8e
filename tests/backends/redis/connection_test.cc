// A connection's promises: one thread at a time reads; every address of a name is tried, at each
// attempt; and no call outlasts its time.
#include "latchkey/backends/redis/connection.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <uv.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "latchkey/backends/redis/redis_url.h"
#include "latchkey/backends/redis/scripts.h"
#include "latchkey/backends/redis/wire.h"
#include "latchkey/core/lock_error.h"
#include "latchkey/tests/support/await.h"
#include "latchkey/tests/support/redis_server.h"

namespace latchkey::redis {
namespace {

// A PING, and what to do when it is answered.
class PingCall : public Call {
 public:
  explicit PingCall(std::function<void()> on_reply) : on_reply_(std::move(on_reply)) {}

  void AppendTo(std::string& out) override { out.append(MakeCommand({"PING"})); }
  Next OnReply(const redisReply&) override {
    on_reply_();
    return Next::kDone;
  }
  bool OnReplyElsewhere(const redisReply&) override { return false; }
  void OnFailure(bool, const absl::Status& why) override { ADD_FAILURE() << why; }

 private:
  const std::function<void()> on_reply_;
};

class Listener : public Connection::Listener {
 public:
  explicit Listener(std::function<void(Connection&)> on_ready) : on_ready_(std::move(on_ready)) {}

  void OnReady(Connection& connection) override { on_ready_(connection); }
  void OnDown(Connection&, const absl::Status& why) override { ADD_FAILURE() << why; }
  void OnMessage(std::string_view) override {}
  void OnWork() override {}

 private:
  const std::function<void(Connection&)> on_ready_;
};

// Listens, and says nothing of itself.
class SilentServer {
 public:
  // `port` 0: any.
  SilentServer(const std::string& address, int port)
      : listener_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in name{};
    name.sin_family = AF_INET;
    name.sin_port = htons(static_cast<uint16_t>(port));
    inet_pton(AF_INET, address.c_str(), &name.sin_addr);
    socklen_t size = sizeof name;
    EXPECT_EQ(bind(listener_, reinterpret_cast<sockaddr*>(&name), size), 0) << strerror(errno);
    EXPECT_EQ(listen(listener_, 16), 0);
    getsockname(listener_, reinterpret_cast<sockaddr*>(&name), &size);
    port_ = ntohs(name.sin_port);
  }
  SilentServer(const SilentServer&) = delete;
  SilentServer& operator=(const SilentServer&) = delete;
  ~SilentServer() {
    if (client_ >= 0) close(client_);
    close(listener_);
  }

  int port() const { return port_; }

  // To the first who connected.
  void Say(std::string_view text) {
    if (client_ < 0) client_ = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
    EXPECT_EQ(send(client_, text.data(), text.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(text.size()));
  }

 private:
  const int listener_;
  int client_ = -1;
  int port_ = 0;
};

// Or it might borrow the connection, and read between this reply and those behind it.
TEST(ConnectionTest, NobodyElseSendsWhileAReplyIsHandledEvenIfThatSendsMore) {
  RedisServer server;
  uv_loop_t loop;
  uv_loop_init(&loop);
  Listener listener([](Connection& connection) {
    connection.Send(std::make_unique<PingCall>([&connection] {
      bool sent_before = false;
      bool sent = false;
      const auto try_to_send = [&connection](bool& did) {
        std::thread([&] {
          std::unique_ptr<Call> call = std::make_unique<PingCall>([] {});
          did = connection.SendDirectly(call, nullptr).sent;
        }).join();
      };
      try_to_send(sent_before);
      connection.Send(std::make_unique<PingCall>([&connection] { connection.Stop(); }));
      connection.Flush();
      try_to_send(sent);
      EXPECT_FALSE(sent_before);
      EXPECT_FALSE(sent);
    }));
  });
  Connection connection(&loop, {.address = *ParseRedisUrl(server.url())}, listener);
  connection.Start();
  uv_run(&loop, UV_RUN_DEFAULT);
  EXPECT_EQ(uv_loop_close(&loop), 0);
}

// What a connection told, on a loop of its own. Ends the connection when `enough` says so.
class Attempt : public Connection::Listener {
 public:
  explicit Attempt(std::function<bool(Attempt&)> enough) : enough_(std::move(enough)) {
    uv_loop_init(&loop_);
  }
  Attempt(const Attempt&) = delete;
  Attempt& operator=(const Attempt&) = delete;
  ~Attempt() override { EXPECT_EQ(uv_loop_close(&loop_), 0); }

  void OnReady(Connection& connection) override {
    ++ready;
    if (enough_(*this)) connection.Stop();
  }
  void OnDown(Connection& connection, const absl::Status& why) override {
    down.push_back(why);
    if (enough_(*this)) connection.Stop();
  }
  void OnMessage(std::string_view) override {}
  void OnWork() override {}

  void Run(const Connection::Settings& settings) {
    Connection connection(&loop_, settings, *this);
    connection.Start();
    uv_run(&loop_, UV_RUN_DEFAULT);
  }
  uv_loop_t* loop() { return &loop_; }

  int ready = 0;
  std::vector<absl::Status> down;

 private:
  const std::function<bool(Attempt&)> enough_;
  uv_loop_t loop_;
};

bool AtTheFirstWord(Attempt&) { return true; }

Connection::Settings NamedServer(int port, std::vector<std::string> addresses) {
  return {.address = {.host = "redis.example", .port = port},
          .connect_timeout = kHangGuard,
          .addresses_of = [addresses](const std::string& host) {
            EXPECT_EQ(host, "redis.example");
            return addresses;
          }};
}

TEST(ConnectionTest, AllAddressesOfANameAreTriedUntilOneIsOfUse) {
  RedisServer server({.tcp = true});
  Attempt attempt(AtTheFirstWord);
  attempt.Run(NamedServer(server.port(), {"127.0.0.9", "::1", "127.0.0.8", "127.0.0.1"}));
  EXPECT_EQ(attempt.ready, 1);
  EXPECT_TRUE(attempt.down.empty());
}

TEST(ConnectionTest, TheFirstAddressThatIsOfUseIsUsed) {
  RedisServer server({.tcp = true});
  RedisServer second({.arguments = {"--port", absl::StrCat(server.port()), "--bind", "127.0.0.2"}});
  for (const auto& [addresses, used] :
       {std::pair(std::vector<std::string>{"127.0.0.1", "127.0.0.2"}, &server),
        std::pair(std::vector<std::string>{"127.0.0.2", "127.0.0.1"}, &second)}) {
    const std::string before = used->Command({"INFO", "commandstats"});
    Attempt attempt(AtTheFirstWord);
    attempt.Run(NamedServer(server.port(), addresses));
    EXPECT_EQ(attempt.ready, 1);
    EXPECT_FALSE(absl::StrContains(before, "cmdstat_script|load"));
    EXPECT_TRUE(
        absl::StrContains(used->Command({"INFO", "commandstats"}), "cmdstat_script|load:calls=6"));
  }
}

TEST(ConnectionTest, AnAddressThatSaysNothingGetsItsPartOfTheTime) {
  RedisServer server({.tcp = true});
  SilentServer silent("127.0.0.2", server.port());
  Connection::Settings settings = NamedServer(server.port(), {"127.0.0.2", "127.0.0.1"});
  settings.connect_timeout = absl::Seconds(1);
  // If half a second is not enough for a connection, that is told, and it is tried again.
  Attempt attempt([](Attempt& attempt) { return attempt.ready > 0 || attempt.down.size() > 20; });
  attempt.Run(settings);
  EXPECT_EQ(attempt.ready, 1);
}

TEST(ConnectionTest, AServerThatRefusesTellsMoreThanAddressesWhereThereIsNone) {
  RedisServer server({.tcp = true, .arguments = {"--requirepass", "right"}});
  for (const std::vector<std::string>& addresses :
       {std::vector<std::string>{"127.0.0.9", "127.0.0.1"},
        std::vector<std::string>{"127.0.0.1", "127.0.0.9"}}) {
    Connection::Settings settings = NamedServer(server.port(), addresses);
    settings.address.password = "wrong";
    Attempt attempt(AtTheFirstWord);
    attempt.Run(settings);
    ASSERT_EQ(attempt.down.size(), 1u);
    const absl::Status& why = attempt.down.front();
    EXPECT_EQ(ReasonOf(why), Reason::kBackendRefused) << why;
    for (const std::string_view told :
         {"redis.example", "at 127.0.0.9: cannot connect", "at 127.0.0.1: the server refuses"}) {
      EXPECT_TRUE(absl::StrContains(why.message(), told)) << told << ": " << why;
    }
  }
}

TEST(ConnectionTest, ANameWithManyAddressesMakesNoEndlessMessage) {
  std::vector<std::string> addresses;
  for (int i = 1; i <= 200; ++i) addresses.push_back(absl::StrCat("127.0.0.", i));
  Attempt attempt(AtTheFirstWord);
  attempt.Run(NamedServer(UnusedPort(), addresses));
  ASSERT_EQ(attempt.down.size(), 1u);
  EXPECT_EQ(ReasonOf(attempt.down[0]), Reason::kBackendUnavailable);
  EXPECT_TRUE(absl::StrContains(attempt.down[0].message(), "and 192 more addresses"))
      << attempt.down[0];
}

TEST(ConnectionTest, ANameWithoutAddressesIsTold) {
  Attempt attempt(AtTheFirstWord);
  attempt.Run(NamedServer(1, {}));
  ASSERT_EQ(attempt.down.size(), 1u);
  EXPECT_TRUE(absl::StrContains(attempt.down[0].message(), "cannot find the host"))
      << attempt.down[0];
}

TEST(ConnectionTest, EachAttemptLooksTheNameUpAndTriesAllOfItsAddresses) {
  auto first = std::make_unique<RedisServer>(RedisServerOptions{.tcp = true});
  const int port = first->port();
  RedisServer moved({.arguments = {"--port", absl::StrCat(port), "--bind", "127.0.0.3"}});
  std::vector<std::vector<std::string>> answers = {{"127.0.0.1"}, {"127.0.0.1", "127.0.0.3"}};
  Connection::Settings settings = NamedServer(port, {});
  size_t looked_up = 0;
  settings.addresses_of = [&](const std::string&) { return answers.at(looked_up++); };
  Attempt attempt([&](Attempt& attempt) {
    first.reset();
    return attempt.ready == 2;
  });
  attempt.Run(settings);
  EXPECT_EQ(attempt.ready, 2);
  EXPECT_EQ(attempt.down.size(), 1u) << "only the end of the first connection";
  EXPECT_EQ(looked_up, 2u);
}

// A call that notes its end.
class NotedCall : public Call {
 public:
  struct End {
    std::optional<long long> reply = {};
    bool sent = false;
    absl::Status why = absl::OkStatus();
  };
  explicit NotedCall(std::optional<End>& end) : end_(end) {}

  void AppendTo(std::string& out) override { out.append(MakeCommand({"PING"})); }
  Next OnReply(const redisReply& reply) override {
    end_ = End{.reply = reply.integer};
    return Next::kDone;
  }
  bool OnReplyElsewhere(const redisReply&) override { return false; }
  void OnFailure(bool sent, const absl::Status& why) override {
    end_ = End{.sent = sent, .why = why};
  }

 private:
  std::optional<End>& end_;
};

// It does not take the connection along, which has more time left than the call has.
TEST(ConnectionTest, ACallThatHasWaitedForTheConnectionHasOnlyTheRestOfItsTimeForTheReply) {
  SilentServer server("127.0.0.1", 0);
  Attempt attempt([](Attempt&) { return false; });
  Connection connection(attempt.loop(),
                        {.address = {.host = "127.0.0.1", .port = server.port()},
                         .connect_timeout = kHangGuard,
                         .command_timeout = absl::Seconds(2)},
                        attempt);
  const auto run_until = [&](const std::function<bool()>& is_so) {
    while (!is_so()) uv_run(attempt.loop(), UV_RUN_ONCE);
  };
  std::optional<NotedCall::End> first;
  std::optional<NotedCall::End> second;
  connection.Start();
  connection.Send(std::make_unique<NotedCall>(first));
  uv_timer_t half;
  bool half_over = false;
  uv_timer_init(attempt.loop(), &half);
  half.data = &half_over;
  uv_timer_start(
      &half, [](uv_timer_t* timer) { *static_cast<bool*>(timer->data) = true; }, 1000, 0);
  run_until([&] { return half_over; });
  EXPECT_FALSE(first);
  // It greets, and does not answer.
  std::string greeting = "$1\r\n-\r\n";
  for (int step = 0; step < kSteps; ++step) greeting += "+OK\r\n";
  server.Say(greeting);
  run_until([&] { return first.has_value(); });
  EXPECT_TRUE(first->sent);
  EXPECT_TRUE(absl::StrContains(first->why.message(), "connecting included")) << first->why;
  EXPECT_TRUE(attempt.down.empty());
  if (attempt.down.empty()) {
    // Its reply is not taken for another's.
    connection.Send(std::make_unique<NotedCall>(second));
    connection.Flush();
    server.Say(":1\r\n:2\r\n");
    run_until([&] { return second.has_value(); });
    EXPECT_EQ(second->reply, 2) << second->why;
    EXPECT_TRUE(attempt.down.empty());
  }
  uv_close(reinterpret_cast<uv_handle_t*>(&half), nullptr);
  connection.Stop();
  uv_run(attempt.loop(), UV_RUN_DEFAULT);
}

}  // namespace
}  // namespace latchkey::redis

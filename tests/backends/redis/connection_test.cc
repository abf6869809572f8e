// A connection's promise to its threads: one of them at a time reads.
#include "latchkey/backends/redis/connection.h"

#include <uv.h>

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <utility>

#include "absl/status/status.h"
#include "gtest/gtest.h"
#include "latchkey/backends/redis/redis_url.h"
#include "latchkey/backends/redis/wire.h"
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

}  // namespace
}  // namespace latchkey::redis

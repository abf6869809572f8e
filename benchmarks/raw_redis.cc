#include "benchmarks/raw_redis.h"

#include <poll.h>
#include <string.h>
#include <time.h>
#include <uv.h>

#include <cstdio>
#include <cstdlib>
#include <deque>
#include <mutex>
#include <semaphore>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "hiredis/adapters/libuv.h"
#include "hiredis/async.h"

namespace latchkey::benchmarks {
namespace {

constexpr std::string_view kLeaseMs = "30000";
constexpr std::string_view kCompareAndDelete =
    "if redis.call('get',KEYS[1])==ARGV[1] then return redis.call('del',KEYS[1]) else return 0 end";

// The script's name on the server, which is the same on all.
std::string LoadScript(redisContext* context) {
  auto* reply = static_cast<redisReply*>(
      redisCommand(context, "SCRIPT LOAD %b", kCompareAndDelete.data(), kCompareAndDelete.size()));
  if (reply == nullptr || reply->type != REDIS_REPLY_STRING) Die("cannot load the script");
  std::string sha(reply->str, reply->len);
  freeReplyObject(reply);
  return sha;
}

redisContext* Connect(int port) {
  redisContext* context = redisConnect("127.0.0.1", port);
  if (context == nullptr || context->err != 0) Die("cannot connect");
  redisEnableKeepAlive(context);
  return context;
}

std::string ScriptName(int port) {
  redisContext* context = Connect(port);
  std::string sha = LoadScript(context);
  redisFree(context);
  return sha;
}

std::vector<std::string_view> AcquireCommand(std::string_view key, std::string_view token) {
  return {"SET", key, token, "NX", "PX", kLeaseMs};
}

// Constant once the first client has connected.
std::string& ScriptSha() {
  static auto& sha = *new std::string;
  return sha;
}

std::vector<std::string_view> ReleaseCommand(std::string_view key, std::string_view token) {
  return {"EVALSHA", ScriptSha(), "1", key, token};
}

struct Arguments {
  explicit Arguments(const std::vector<std::string_view>& all) {
    for (const std::string_view one : all) {
      texts.push_back(one.data());
      sizes.push_back(one.size());
    }
  }
  int count() const { return static_cast<int>(texts.size()); }

  std::vector<const char*> texts;
  std::vector<size_t> sizes;
};

bool Acquired(const redisReply* reply) {
  return reply != nullptr && reply->type == REDIS_REPLY_STATUS;
}
bool Released(const redisReply* reply) {
  return reply != nullptr && reply->type == REDIS_REPLY_INTEGER && reply->integer == 1;
}

redisAsyncContext* ConnectAsync(int port, uv_loop_t* loop) {
  if (ScriptSha().empty()) ScriptSha() = ScriptName(port);
  ScriptName(port);
  redisAsyncContext* context = redisAsyncConnect("127.0.0.1", port);
  if (context == nullptr || context->err != 0) Die("cannot connect");
  redisLibuvAttach(context, loop);
  return context;
}

void Send(redisAsyncContext* context, const std::vector<std::string_view>& command,
          redisCallbackFn* done, void* data) {
  const Arguments arguments(command);
  if (redisAsyncCommandArgv(context, done, data, arguments.count(),
                            const_cast<const char**>(arguments.texts.data()),
                            arguments.sizes.data()) != REDIS_OK) {
    Die("cannot send");
  }
}

}  // namespace

int64_t NowNanos() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

void Die(std::string_view why) {
  fprintf(stderr, "redis_benchmark: %.*s\n", static_cast<int>(why.size()), why.data());
  exit(EXIT_FAILURE);
}

// ---- RawClient ---------------------------------------------------------------------------------

RawClient::RawClient(int port) : context_(Connect(port)) {
  const std::string sha = LoadScript(context_.get());
  if (ScriptSha().empty()) ScriptSha() = sha;
}

RawClient::Reply RawClient::Command(const std::vector<std::string_view>& command) {
  Arguments arguments(command);
  Reply reply(static_cast<redisReply*>(redisCommandArgv(
      context_.get(), arguments.count(), arguments.texts.data(), arguments.sizes.data())));
  if (reply == nullptr || reply->type == REDIS_REPLY_ERROR) {
    Die(absl::StrCat(command[0], " failed: ", reply == nullptr ? context_->errstr : reply->str));
  }
  return reply;
}

bool RawClient::TryAcquire(std::string_view key, std::string_view token) {
  return Acquired(Command(AcquireCommand(key, token)).get());
}

void RawClient::Release(std::string_view key, std::string_view token) {
  if (!Released(Command(ReleaseCommand(key, token)).get())) Die("a raw lock was lost");
}

void RawClient::Pair(std::string_view key) {
  const std::string token = absl::StrCat("raw client ", ++tokens_);
  if (!TryAcquire(key, token)) Die("a raw lock is not free");
  Release(key, token);
}

void RawClient::Subscribe(std::string_view channel) { Command({"SUBSCRIBE", channel}); }

void RawClient::AwaitMessage() {
  void* reply = nullptr;
  if (redisGetReply(context_.get(), &reply) != REDIS_OK) Die("no message");
  freeReplyObject(reply);
}

void RawClient::Publish(std::string_view channel) { Command({"PUBLISH", channel, "now"}); }

// ---- RawPipeline -------------------------------------------------------------------------------

struct RawPipeline::State {
  struct Lane {
    State* state;
    std::string key;
    std::string token;
    int64_t begun;

    void Begin() {
      begun = NowNanos();
      token = absl::StrCat("raw lane ", ++state->tokens);
      Send(state->context, AcquireCommand(key, token), &OnAcquired, this);
    }
    static void OnAcquired(redisAsyncContext*, void* reply, void* data) {
      auto* lane = static_cast<Lane*>(data);
      if (!Acquired(static_cast<redisReply*>(reply))) Die("a raw lock is not free");
      Send(lane->state->context, ReleaseCommand(lane->key, lane->token), &OnReleased, lane);
    }
    static void OnReleased(redisAsyncContext*, void* reply, void* data) {
      auto* lane = static_cast<Lane*>(data);
      if (!Released(static_cast<redisReply*>(reply))) Die("a raw lock was lost");
      const int64_t now = NowNanos();
      lane->state->took->push_back(now - lane->begun);
      if (now < lane->state->until) {
        lane->Begin();
      } else if (--lane->state->running == 0) {
        uv_stop(&lane->state->loop);
      }
    }
  };

  uv_loop_t loop;
  redisAsyncContext* context;
  uint64_t tokens = 0;
  int64_t until = 0;
  size_t running = 0;
  std::vector<int64_t>* took = nullptr;
};

RawPipeline::RawPipeline(int port) : state_(std::make_unique<State>()) {
  uv_loop_init(&state_->loop);
  state_->context = ConnectAsync(port, &state_->loop);
}

RawPipeline::~RawPipeline() {
  redisAsyncFree(state_->context);
  uv_run(&state_->loop, UV_RUN_DEFAULT);
  uv_loop_close(&state_->loop);
}

void RawPipeline::Run(const std::vector<std::string>& keys, int64_t until,
                      std::vector<int64_t>& took) {
  std::vector<State::Lane> lanes;
  lanes.reserve(keys.size());
  state_->until = until;
  state_->running = keys.size();
  state_->took = &took;
  for (const std::string& key : keys) {
    lanes.push_back({.state = state_.get(), .key = key, .token = {}, .begun = 0});
    lanes.back().Begin();
  }
  uv_run(&state_->loop, UV_RUN_DEFAULT);
}

// ---- RawShared ---------------------------------------------------------------------------------

struct RawShared::State {
  struct Request {
    std::string_view key;
    std::string_view token;
    bool release;
    bool done = false;
    std::binary_semaphore answered{0};
  };

  void Post(Request& request) {
    bool first;
    {
      std::lock_guard lock(mutex);
      first = requests.empty();
      requests.push_back(&request);
    }
    if (first) uv_async_send(&wake);
    request.answered.acquire();
  }

  static void OnWake(uv_async_t* wake) {
    auto* state = static_cast<State*>(wake->data);
    std::vector<Request*> requests;
    bool stop;
    {
      std::lock_guard lock(state->mutex);
      requests.swap(state->requests);
      stop = state->stop;
    }
    for (Request* request : requests) {
      Send(state->context,
           request->release ? ReleaseCommand(request->key, request->token)
                            : AcquireCommand(request->key, request->token),
           &OnAnswer, request);
    }
    if (stop) {
      redisAsyncFree(state->context);
      uv_close(reinterpret_cast<uv_handle_t*>(wake), nullptr);
    }
  }

  static void OnAnswer(redisAsyncContext*, void* reply, void* data) {
    auto* request = static_cast<Request*>(data);
    const auto* answer = static_cast<redisReply*>(reply);
    request->done = request->release ? Released(answer) : Acquired(answer);
    request->answered.release();
  }

  uv_loop_t loop;
  uv_async_t wake;
  redisAsyncContext* context;
  std::thread thread;

  std::mutex mutex;
  std::vector<Request*> requests;
  bool stop = false;
};

RawShared::RawShared(int port) : state_(std::make_unique<State>()) {
  uv_loop_init(&state_->loop);
  uv_async_init(&state_->loop, &state_->wake, &State::OnWake);
  state_->wake.data = state_.get();
  state_->context = ConnectAsync(port, &state_->loop);
  state_->thread = std::thread([state = state_.get()] { uv_run(&state->loop, UV_RUN_DEFAULT); });
}

RawShared::~RawShared() {
  {
    std::lock_guard lock(state_->mutex);
    state_->stop = true;
  }
  uv_async_send(&state_->wake);
  state_->thread.join();
  uv_loop_close(&state_->loop);
}

void RawShared::Pair(const std::string& key, const std::string& token) {
  State::Request acquire{.key = key, .token = token, .release = false};
  state_->Post(acquire);
  if (!acquire.done) Die("a raw lock is not free");
  State::Request release{.key = key, .token = token, .release = true};
  state_->Post(release);
  if (!release.done) Die("a raw lock was lost");
}

// ---- RawMajority -------------------------------------------------------------------------------

RawMajority::RawMajority(const std::vector<int>& ports) {
  for (const int port : ports) {
    servers_.push_back({.context = Connect(port)});
    const std::string sha = LoadScript(servers_.back().context);
    if (ScriptSha().empty()) ScriptSha() = sha;
  }
}

RawMajority::~RawMajority() {
  for (Server& server : servers_) redisFree(server.context);
}

void RawMajority::Everywhere(const std::vector<std::string_view>& command) {
  Arguments arguments(command);
  ++sent_;
  for (Server& server : servers_) {
    redisAppendCommandArgv(server.context, arguments.count(), arguments.texts.data(),
                           arguments.sizes.data());
    int done = 0;
    while (done == 0) {
      if (redisBufferWrite(server.context, &done) != REDIS_OK) Die("cannot send");
    }
  }
  std::vector<pollfd> sockets;
  for (const Server& server : servers_) {
    sockets.push_back({.fd = server.context->fd, .events = POLLIN, .revents = 0});
  }
  for (size_t agreed = 0; agreed <= servers_.size() / 2;) {
    if (poll(sockets.data(), sockets.size(), -1) < 0) Die("cannot poll");
    for (size_t i = 0; i < servers_.size(); ++i) {
      if (sockets[i].revents == 0) continue;
      Server& server = servers_[i];
      if (redisBufferRead(server.context) != REDIS_OK) Die(server.context->errstr);
      for (;;) {
        void* raw = nullptr;
        if (redisGetReplyFromReader(server.context, &raw) != REDIS_OK) Die(server.context->errstr);
        if (raw == nullptr) break;
        auto* reply = static_cast<redisReply*>(raw);
        if (!Acquired(reply) && !Released(reply)) Die("a raw lock is not free, or was lost");
        freeReplyObject(reply);
        if (++server.answered == sent_) ++agreed;
      }
    }
  }
}

void RawMajority::Pair(std::string_view key) {
  const std::string token = absl::StrCat("raw majority ", ++tokens_);
  Everywhere(AcquireCommand(key, token));
  Everywhere(ReleaseCommand(key, token));
}

}  // namespace latchkey::benchmarks

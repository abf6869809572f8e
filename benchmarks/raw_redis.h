// The least that a program can do with hiredis to lock on Redis, for the redis_benchmark to
// compare with: SET key token NX PX to acquire, and a script that compares and deletes to release.
// No priorities, no fencing tokens, no re-entrancy, no waiting in order, no reconnecting; whatever
// goes wrong ends the process with a message.
#ifndef LATCHKEY_BENCHMARKS_RAW_REDIS_H_
#define LATCHKEY_BENCHMARKS_RAW_REDIS_H_

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "hiredis/hiredis.h"

namespace latchkey::benchmarks {

// Nanoseconds of the monotonic clock, which all processes of a machine share.
int64_t NowNanos();

// Says why on standard error and ends the process.
[[noreturn]] void Die(std::string_view why);

// One blocking connection to 127.0.0.1. Thread safety: none.
class RawClient {
 public:
  explicit RawClient(int port);

  // Whether the lock was free.
  bool TryAcquire(std::string_view key, std::string_view token);
  void Release(std::string_view key, std::string_view token);
  // Both, with a fresh token; the lock must be free.
  void Pair(std::string_view key);

  void Subscribe(std::string_view channel);
  void AwaitMessage();
  void Publish(std::string_view channel);

 private:
  struct Free {
    void operator()(redisContext* context) const { redisFree(context); }
    void operator()(redisReply* reply) const { freeReplyObject(reply); }
  };
  using Reply = std::unique_ptr<redisReply, Free>;

  Reply Command(const std::vector<std::string_view>& arguments);

  std::unique_ptr<redisContext, Free> context_;
  uint64_t tokens_ = 0;
};

// One asynchronous connection on a libuv loop that the calling thread runs: a number of lanes, each
// of which acquires and releases a key of its own again and again, share it. Thread safety: none.
class RawPipeline {
 public:
  explicit RawPipeline(int port);
  ~RawPipeline();

  // Runs until `until` (NowNanos) and appends how long each pair took, in nanoseconds.
  void Run(const std::vector<std::string>& keys, int64_t until, std::vector<int64_t>& took);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// The same connection on a thread of its own, for any number of threads that block until they are
// answered. Thread safety: Pair may be called from any thread.
class RawShared {
 public:
  explicit RawShared(int port);
  ~RawShared();

  // Acquires and releases `key`, which must be free. `token`: the caller's own, different in each
  // thread.
  void Pair(const std::string& key, const std::string& token);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Redlock at its barest: each command goes to all servers, and counts once a majority has answered.
// The other answers are read when they come. Thread safety: none.
class RawMajority {
 public:
  explicit RawMajority(const std::vector<int>& ports);
  ~RawMajority();

  void Pair(std::string_view key);

 private:
  struct Server {
    redisContext* context;
    uint64_t answered = 0;  // Commands.
  };

  // Sends the command to all and waits until a majority has done it.
  void Everywhere(const std::vector<std::string_view>& arguments);

  std::vector<Server> servers_;
  uint64_t sent_ = 0;
  uint64_t tokens_ = 0;
};

}  // namespace latchkey::benchmarks

#endif  // LATCHKEY_BENCHMARKS_RAW_REDIS_H_

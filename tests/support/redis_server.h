// A real redis-server for a test: started on a socket (and, if wanted, a loopback port) of its own,
// and ended with the test, also if the test is killed.
//
//   RedisServer server;                                  // aborts the test if there is none
//   ConnectRedisBackend({.url = server.url()});
//
// Thread safety: none; use it from the thread that made it. The server dies with that thread.
#ifndef LATCHKEY_TESTS_SUPPORT_REDIS_SERVER_H_
#define LATCHKEY_TESTS_SUPPORT_REDIS_SERVER_H_

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

namespace latchkey {

struct RedisServerOptions {
  // Also listen on a port of 127.0.0.1.
  bool tcp = false;
  // Keep data over Restart() (an append-only file, written before each reply).
  bool persistent = false;
  // More arguments: {"--requirepass", "secret"}.
  std::vector<std::string> arguments = {};
  // "NAME=value" each, added to this process's environment.
  std::vector<std::string> environment = {};
};

class RedisServer {
 public:
  // Starts it and waits until it answers. Without a redis-server on PATH the process ends with a
  // message that says what to install.
  explicit RedisServer(RedisServerOptions options = {});
  RedisServer(const RedisServer&) = delete;
  RedisServer& operator=(const RedisServer&) = delete;
  ~RedisServer();

  // unix://...
  std::string url() const;
  const std::string& socket_path() const { return socket_path_; }
  int port() const { return port_; }  // 0 without tcp.
  pid_t pid() const { return pid_; }
  // What it printed so far.
  std::string log() const;

  // SIGKILL; then the same server again, with its data only if persistent.
  void Kill();
  void Start();
  void Restart() {
    Kill();
    Start();
  }
  // SIGSTOP and SIGCONT: connected, and deaf.
  void Pause();
  void Continue();

  // Sends one command over a fresh connection and returns the reply as text: lines of an array
  // joined by '\n', an error as it is, an integer as digits, "(nil)" for nothing.
  std::string Command(const std::vector<std::string>& arguments) const;

 private:
  struct Output;

  RedisServerOptions options_;
  std::string folder_;
  std::string socket_path_;
  int port_ = 0;
  pid_t pid_ = -1;
  std::shared_ptr<Output> output_;
};

// A port of 127.0.0.1 that nobody listens on right now.
int UnusedPort();

}  // namespace latchkey

#endif  // LATCHKEY_TESTS_SUPPORT_REDIS_SERVER_H_

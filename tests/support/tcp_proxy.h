// Stands between a client and a server and misbehaves on demand: cuts, delays, half-closes, or
// answers by itself. Listens on a loopback port of its own and forwards to a Unix socket.
//
//   TcpProxy proxy(server.socket_path());
//   ConnectRedisBackend({.url = absl::StrCat("redis://127.0.0.1:", proxy.port())});
//   proxy.CutAll();
//
// Thread safety: all methods may be called from any thread.
#ifndef LATCHKEY_TESTS_SUPPORT_TCP_PROXY_H_
#define LATCHKEY_TESTS_SUPPORT_TCP_PROXY_H_

#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace latchkey {

class TcpProxy {
 public:
  explicit TcpProxy(std::string unix_socket_path);
  TcpProxy(const TcpProxy&) = delete;
  TcpProxy& operator=(const TcpProxy&) = delete;
  ~TcpProxy();

  int port() const { return port_; }

  // Ends every connection there is, without warning (a reset).
  void CutAll() ABSL_LOCKS_EXCLUDED(mutex_);
  // While true, new connections are accepted and ended at once.
  void Refuse(bool refuse) ABSL_LOCKS_EXCLUDED(mutex_);
  // While true, what the server says is kept back (and what clients say is still forwarded).
  void HoldReplies(bool hold) ABSL_LOCKS_EXCLUDED(mutex_);
  // The same for those connections that are there now and whose client has said this among the
  // first that it said: "SUBSCRIBE". Until they end, or the second gives them back.
  void HoldRepliesTo(std::string_view said) ABSL_LOCKS_EXCLUDED(mutex_);
  void GiveRepliesBack() ABSL_LOCKS_EXCLUDED(mutex_);
  // While true, what clients say is kept back as well.
  void HoldRequests(bool hold) ABSL_LOCKS_EXCLUDED(mutex_);
  // Says this to every client, as if the server did.
  void SayToClients(std::string_view text) ABSL_LOCKS_EXCLUDED(mutex_);
  // Ends the direction from the server on every connection; the other stays open.
  void HalfClose() ABSL_LOCKS_EXCLUDED(mutex_);

  int connections() ABSL_LOCKS_EXCLUDED(mutex_);
  // Waits until something towards clients, or towards the server, is kept back.
  void AwaitHeldReplies() ABSL_LOCKS_EXCLUDED(mutex_);
  void AwaitHeldRequests() ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  struct Pair {
    int client = -1;
    int server = -1;
    std::string to_client = {};
    std::string to_server = {};
    std::string said = {};      // The beginning of what the client said.
    bool hold_replies = false;  // On this one.
    bool half_closed = false;
    bool dead = false;
  };

  void Run() ABSL_LOCKS_EXCLUDED(mutex_);
  void Wake();
  static void Close(Pair& pair);

  const std::string path_;
  int listener_ = -1;
  int port_ = 0;
  int wake_ = -1;

  absl::Mutex mutex_;
  std::vector<Pair> pairs_ ABSL_GUARDED_BY(mutex_);
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  bool refuse_ ABSL_GUARDED_BY(mutex_) = false;
  bool hold_replies_ ABSL_GUARDED_BY(mutex_) = false;
  bool hold_requests_ ABSL_GUARDED_BY(mutex_) = false;

  std::thread thread_;
};

// A server that sends `greeting` to everyone who connects, reads, and says nothing else.
class GarbageServer {
 public:
  // With `after_request`, it waits for the first bytes of the client before it speaks.
  GarbageServer(std::string greeting, bool after_request);
  GarbageServer(const GarbageServer&) = delete;
  GarbageServer& operator=(const GarbageServer&) = delete;
  ~GarbageServer();

  int port() const { return port_; }

 private:
  void Run();

  const std::string greeting_;
  const bool after_request_;
  int listener_ = -1;
  int port_ = 0;
  int wake_ = -1;
  std::thread thread_;
};

}  // namespace latchkey

#endif  // LATCHKEY_TESTS_SUPPORT_TCP_PROXY_H_

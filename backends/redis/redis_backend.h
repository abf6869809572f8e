// Locks on one Redis server, shared by any number of processes and machines.
//
//   auto backend = latchkey::ConnectRedisBackend({.url = "redis://localhost"});
//   if (!backend.ok()) return backend.status();
//   auto locks = latchkey::LockManager::Create(*std::move(backend));
//
// Every step of the protocol is one script on the server, in the server's own time. One I/O thread
// and a small fixed number of connections serve any number of locks; requests are pipelined. Who
// waits registers on the server and is woken by a message: the highest priority first, then the
// first registered, across all processes.
//
// What it promises, and what no single server can, is in docs/reference/backends.md; how to run it
// in docs/how-to/run-on-redis.md. Needs Redis 6 or later, not a cluster.
#ifndef LATCHKEY_BACKENDS_REDIS_REDIS_BACKEND_H_
#define LATCHKEY_BACKENDS_REDIS_REDIS_BACKEND_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "latchkey/core/protocol/locking_protocol.h"

namespace latchkey {

// How to make TLS connections (rediss://). The server's certificate and its name are always
// verified.
struct RedisTlsOptions {
  // Certificates of the authorities to trust, in PEM, as a file or a folder. Both empty: those of
  // the system.
  std::string ca_file = {};
  std::string ca_folder = {};
  // Our own certificate (with its chain) and key, in PEM, if the server asks for one. Both or
  // neither.
  std::string certificate_file = {};
  std::string key_file = {};
  // The name that the server's certificate must carry, and that is sent as SNI. Empty: the URL's
  // host.
  std::string server_name = {};
};

struct RedisBackendOptions {
  // redis://user:password@host:port/database, rediss:// for TLS, unix:///path/of/socket. See
  // backends/redis/redis_url.h.
  std::string url = "redis://127.0.0.1:6379";

  // What all keys and channels begin with. Backends with different prefixes do not see each other.
  // At most 256 bytes, no braces.
  std::string key_prefix = "latchkey:";

  // How long a connection may take until it can be used (look-up of the name, TCP, TLS, login). If
  // the name has several addresses, they are tried in the order given, and each gets an equal part
  // of the time that is left. Every attempt looks the name up anew. 1 ms to 1 h.
  absl::Duration connect_timeout = absl::Seconds(2);
  // How long a request may take, also while its connection is still being made: then it was not
  // sent, and the backend is unavailable. After a reply that does not come, the connection is given
  // up, and what was under way on it ends with an unknown outcome. 1 ms to 1 h.
  absl::Duration command_timeout = absl::Seconds(2);
  // Pauses between attempts to reconnect grow from the first to the second, with jitter.
  absl::Duration reconnect_delay = absl::Milliseconds(20);
  absl::Duration max_reconnect_delay = absl::Seconds(2);
  // Connections for commands, 1 to 16; one more is for events. One resource always uses the same.
  int command_connections = 1;

  // Wait in ConnectRedisBackend until the server answers, and fail if it does not. If false, it
  // returns at once and connects in the background: for the servers of a quorum, some of which may
  // be down.
  bool wait_for_connection = true;

  // The caller knows that the server is new: no lease or token from before is out. Then the server
  // grants at once, to all clients, also if a client without this option has asked it before and it
  // recovers. Otherwise a server without our marker key counts as one that lost its data, and
  // grants nothing until every lease that may still be out there is over, and its clock is past
  // every token that was given (max_lease + 20 s). As one of a quorum it grants after max_lease, if
  // a majority of the others says which tokens were given. The backend logs a warning about each
  // such recovery that it meets.
  bool new_server = false;

  // At most how far apart the clocks of the servers of a quorum are. It counts only after a loss of
  // data: for 20 s and this time more, tokens of the server need the others' word. 0 to 1 h.
  absl::Duration max_clock_skew = absl::Seconds(1);

  // Bounds every lease. All clients of a server must use the same value. 1 ms to 24 h.
  absl::Duration max_lease = absl::Seconds(60);
  // The lease where the user names none; it is renewed. At most max_lease, and at least three times
  // lease_margin.
  absl::Duration default_lease = absl::Seconds(30);
  // See BackendCapabilities: at most how much faster the server's clock runs than ours (0 to 0.5),
  // and the margin for pauses and delivery, at most a third of max_lease.
  double clock_drift = 0.01;
  absl::Duration lease_margin = absl::Milliseconds(20);

  // How long a waiter counts on the server unless it is heard of; it reports three times as often.
  // So a dead waiter is forgotten after this time, and a lost event costs at most a third of it.
  // 30 ms to 1 h.
  absl::Duration waiter_lease = absl::Seconds(6);

  // How long the backend's destructor waits for what is under way, so that a release is not lost.
  // The last user of a backend may be the completion of a release, also on the backend's own
  // thread; then the end of the program (return from main, exit()) waits instead, as it does for
  // every release that is under way. _exit() and a signal wait for nothing. At most 1 h.
  absl::Duration shutdown_timeout = absl::Milliseconds(500);

  RedisTlsOptions tls = {};
};

// Connects. Errors: kInvalidArgument naming the option and its value; kUnavailable if the server
// cannot be reached, or is something else than Redis; kFailedPrecondition (kBackendRefused) if it
// refuses the login, lacks the database or a permission for us, or TLS does not accept it or us;
// kUnimplemented if it is part of a Redis Cluster. Blocks for at most connect_timeout, on
// wait_for_connection.
//
// Thread safety of the backend: as LockingProtocol; events run on its I/O thread, and so do
// completions, but for those that a thread inside a blocking call reads (core/blocked_thread.h):
// its own, and others that come along. It reconnects by itself, also to a server that has refused
// it. It repeats releases that fail in the background until max_lease is over, unless the server
// has answered them with a refusal. Do not use it in a child made by fork().
absl::StatusOr<std::shared_ptr<LockingProtocol>> ConnectRedisBackend(RedisBackendOptions options);

}  // namespace latchkey

#endif  // LATCHKEY_BACKENDS_REDIS_REDIS_BACKEND_H_

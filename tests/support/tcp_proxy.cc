#include "latchkey/tests/support/tcp_proxy.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <utility>

#include "absl/time/time.h"

namespace latchkey {
namespace {

int Listen(int& port) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  if (fd < 0 || bind(fd, reinterpret_cast<sockaddr*>(&address), size) != 0 || listen(fd, 64) != 0 ||
      getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) != 0) {
    fprintf(stderr, "cannot listen on the loopback interface: %s\n", strerror(errno));
    abort();
  }
  port = ntohs(address.sin_port);
  return fd;
}

int ConnectUnix(const std::string& path) {
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  strncpy(address.sun_path, path.c_str(), sizeof address.sun_path - 1);
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
    close(fd);
    return -1;
  }
  return fd;
}

// Reads what is there. False: the other side has ended.
bool ReadSome(int fd, std::string& into) {
  char buffer[16384];
  const ssize_t size = recv(fd, buffer, sizeof buffer, MSG_DONTWAIT);
  if (size > 0) into.append(buffer, static_cast<size_t>(size));
  return size > 0 || (size < 0 && (errno == EAGAIN || errno == EINTR));
}

bool WriteSome(int fd, std::string& from) {
  if (from.empty()) return true;
  const ssize_t size = send(fd, from.data(), from.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
  if (size > 0) from.erase(0, static_cast<size_t>(size));
  return size >= 0 || errno == EAGAIN || errno == EINTR;
}

// How much of what a client says first is remembered.
constexpr size_t kRemembered = 1024;

void Drain(int eventfd) {
  uint64_t count = 0;
  static_cast<void>(!read(eventfd, &count, sizeof count));
}

}  // namespace

TcpProxy::TcpProxy(std::string unix_socket_path) : path_(std::move(unix_socket_path)) {
  listener_ = Listen(port_);
  wake_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  thread_ = std::thread([this] { Run(); });
}

TcpProxy::~TcpProxy() {
  {
    absl::MutexLock lock(&mutex_);
    stop_ = true;
  }
  Wake();
  thread_.join();
  for (Pair& pair : pairs_) Close(pair);
  close(listener_);
  close(wake_);
}

void TcpProxy::Wake() {
  const uint64_t one = 1;
  static_cast<void>(!write(wake_, &one, sizeof one));
}

void TcpProxy::Close(Pair& pair) {
  if (pair.client >= 0) {
    // A reset, as from a machine that has lost its memory.
    const linger reset{.l_onoff = 1, .l_linger = 0};
    setsockopt(pair.client, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    close(pair.client);
  }
  if (pair.server >= 0) close(pair.server);
  pair.client = pair.server = -1;
  pair.dead = true;
}

void TcpProxy::CutAll() {
  {
    absl::MutexLock lock(&mutex_);
    for (Pair& pair : pairs_) pair.dead = true;
  }
  Wake();
}

void TcpProxy::Refuse(bool refuse) {
  absl::MutexLock lock(&mutex_);
  refuse_ = refuse;
}

void TcpProxy::HoldReplies(bool hold) {
  {
    absl::MutexLock lock(&mutex_);
    hold_replies_ = hold;
  }
  Wake();
}

void TcpProxy::HoldRepliesTo(std::string_view said) {
  absl::MutexLock lock(&mutex_);
  for (Pair& pair : pairs_) {
    if (pair.said.find(said) != std::string::npos) pair.hold_replies = true;
  }
}

void TcpProxy::GiveRepliesBack() {
  {
    absl::MutexLock lock(&mutex_);
    for (Pair& pair : pairs_) pair.hold_replies = false;
  }
  Wake();
}

void TcpProxy::SayToClients(std::string_view text) {
  {
    absl::MutexLock lock(&mutex_);
    for (Pair& pair : pairs_) pair.to_client.append(text);
  }
  Wake();
}

void TcpProxy::HoldRequests(bool hold) {
  {
    absl::MutexLock lock(&mutex_);
    hold_requests_ = hold;
  }
  Wake();
}

void TcpProxy::HalfClose() {
  {
    absl::MutexLock lock(&mutex_);
    for (Pair& pair : pairs_) {
      if (pair.client >= 0) shutdown(pair.client, SHUT_WR);
      pair.half_closed = true;
    }
  }
  Wake();
}

int TcpProxy::connections() {
  absl::MutexLock lock(&mutex_);
  int alive = 0;
  for (const Pair& pair : pairs_) alive += pair.dead ? 0 : 1;
  return alive;
}

void TcpProxy::AwaitHeldReplies() {
  absl::MutexLock lock(&mutex_);
  auto held = [this] {
    mutex_.AssertReaderHeld();
    for (const Pair& pair : pairs_) {
      if (!pair.dead && !pair.to_client.empty()) return true;
    }
    return false;
  };
  mutex_.AwaitWithTimeout(absl::Condition(&held), absl::Seconds(45));
}

void TcpProxy::AwaitHeldRequests() {
  absl::MutexLock lock(&mutex_);
  auto held = [this] {
    mutex_.AssertReaderHeld();
    for (const Pair& pair : pairs_) {
      if (!pair.dead && !pair.to_server.empty()) return true;
    }
    return false;
  };
  mutex_.AwaitWithTimeout(absl::Condition(&held), absl::Seconds(45));
}

void TcpProxy::Run() {
  for (;;) {
    std::vector<pollfd> fds = {{.fd = listener_, .events = POLLIN, .revents = 0},
                               {.fd = wake_, .events = POLLIN, .revents = 0}};
    {
      absl::MutexLock lock(&mutex_);
      if (stop_) return;
      for (Pair& pair : pairs_) {
        if (pair.dead) Close(pair);
      }
      std::erase_if(pairs_, [](const Pair& pair) { return pair.dead; });
      for (const Pair& pair : pairs_) {
        short client = POLLIN;
        short server = POLLIN;
        if (!pair.to_client.empty() && !hold_replies_ && !pair.hold_replies && !pair.half_closed) {
          client |= POLLOUT;
        }
        if (!pair.to_server.empty() && !hold_requests_) server |= POLLOUT;
        fds.push_back({.fd = pair.client, .events = client, .revents = 0});
        fds.push_back({.fd = pair.server, .events = server, .revents = 0});
      }
    }
    poll(fds.data(), fds.size(), -1);
    if (fds[1].revents != 0) Drain(wake_);
    absl::MutexLock lock(&mutex_);
    // Only this thread adds or removes pairs, so they are those that were polled.
    for (size_t i = 0; i < pairs_.size(); ++i) {
      Pair& pair = pairs_[i];
      if (pair.dead) continue;
      const short client = fds[2 + 2 * i].revents;
      const short server = fds[3 + 2 * i].revents;
      bool alive = true;
      if ((client & (POLLIN | POLLHUP | POLLERR)) != 0) {
        const size_t before = pair.to_server.size();
        alive = alive && ReadSome(pair.client, pair.to_server);
        if (pair.said.size() < kRemembered) {
          pair.said.append(pair.to_server, before, kRemembered - pair.said.size());
        }
      }
      if ((server & (POLLIN | POLLHUP | POLLERR)) != 0) {
        alive = alive && ReadSome(pair.server, pair.to_client);
      }
      if (!hold_requests_) alive = alive && WriteSome(pair.server, pair.to_server);
      if (pair.half_closed) {
        pair.to_client.clear();
      } else if (!hold_replies_ && !pair.hold_replies) {
        alive = alive && WriteSome(pair.client, pair.to_client);
      }
      if (!alive) pair.dead = true;
    }
    if ((fds[0].revents & POLLIN) != 0) {
      const int client = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
      if (client >= 0) {
        Pair pair{.client = client, .server = refuse_ ? -1 : ConnectUnix(path_)};
        if (pair.server < 0) {
          Close(pair);
        } else {
          pairs_.push_back(std::move(pair));
        }
      }
    }
  }
}

GarbageServer::GarbageServer(std::string greeting, bool after_request)
    : greeting_(std::move(greeting)), after_request_(after_request) {
  listener_ = Listen(port_);
  wake_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  thread_ = std::thread([this] { Run(); });
}

GarbageServer::~GarbageServer() {
  const uint64_t one = 1;
  static_cast<void>(!write(wake_, &one, sizeof one));
  thread_.join();
  close(listener_);
  close(wake_);
}

void GarbageServer::Run() {
  struct Client {
    int fd;
    bool greeted;
  };
  std::vector<Client> clients;
  for (;;) {
    std::vector<pollfd> fds = {{.fd = listener_, .events = POLLIN, .revents = 0},
                               {.fd = wake_, .events = POLLIN, .revents = 0}};
    for (const Client& client : clients) {
      fds.push_back({.fd = client.fd, .events = POLLIN, .revents = 0});
    }
    poll(fds.data(), fds.size(), -1);
    if (fds[1].revents != 0) break;
    for (size_t i = 0; i < clients.size(); ++i) {
      if (fds[2 + i].revents == 0) continue;
      std::string ignored;
      if (!ReadSome(clients[i].fd, ignored)) {
        close(clients[i].fd);
        clients[i].fd = -1;
        continue;
      }
      if (!std::exchange(clients[i].greeted, true)) {
        std::string greeting = greeting_;
        WriteSome(clients[i].fd, greeting);
      }
    }
    std::erase_if(clients, [](const Client& client) { return client.fd < 0; });
    if ((fds[0].revents & POLLIN) != 0) {
      const int fd = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
      if (fd < 0) continue;
      clients.push_back({.fd = fd, .greeted = !after_request_});
      if (!after_request_) {
        std::string greeting = greeting_;
        WriteSome(fd, greeting);
      }
    }
  }
  for (const Client& client : clients) close(client.fd);
}

}  // namespace latchkey

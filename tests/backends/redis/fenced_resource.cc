#include "latchkey/tests/backends/redis/fenced_resource.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"

namespace latchkey {
namespace {

double Ms(int64_t ns) { return static_cast<double>(ns) / 1e6; }

}  // namespace

FencedResource::FencedResource(std::string socket_path) : path_(std::move(socket_path)) {
  if (path_.empty()) return;
  listener_ = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  strncpy(address.sun_path, path_.c_str(), sizeof address.sun_path - 1);
  if (bind(listener_, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 ||
      listen(listener_, 64) != 0) {
    fprintf(stderr, "cannot listen on %s: %s\n", path_.c_str(), strerror(errno));
    abort();
  }
  wake_ = eventfd(0, EFD_CLOEXEC);
  thread_ = std::thread([this] { Run(); });
}

FencedResource::~FencedResource() {
  if (path_.empty()) return;
  const uint64_t one = 1;
  static_cast<void>(!write(wake_, &one, sizeof one));
  thread_.join();
  close(listener_);
  close(wake_);
  unlink(path_.c_str());
}

std::string FencedResource::Handle(std::string_view line) {
  const std::vector<std::string> words = absl::StrSplit(line, ' ');
  absl::MutexLock lock(&mutex_);
  return HandleLocked(words);
}

std::string FencedResource::HandleLocked(const std::vector<std::string>& words) {
  const bool enters = words[0] == "enter";
  uint64_t token = 0;
  int64_t from = 0;
  int64_t until = 0;
  if (words.size() != (enters ? 6 : 5) || (!enters && words[0] != "write") ||
      !absl::SimpleAtoi(words[3], &token) || !absl::SimpleAtoi(words.back(), &until) ||
      (enters && !absl::SimpleAtoi(words[4], &from))) {
    violations_.push_back(absl::StrCat("what is '", absl::StrJoin(words, " "), "'?"));
    return "stale";
  }
  Key& key = keys_[words[1]];
  const std::string& acquisition = words[2];
  if (enters) {
    key.claims[acquisition] = {
        .acquisition = acquisition, .token = token, .from = from, .until = until};
  } else if (until != 0) {
    const auto claim = key.claims.find(acquisition);
    if (claim == key.claims.end() || claim->second.token != token) {
      violations_.push_back(absl::StrCat(words[1], ": ", acquisition, " changed its token"));
    } else {
      claim->second.until = std::max(claim->second.until, until);
    }
  }
  if (token == key.token && acquisition != key.acquisition) {
    violations_.push_back(absl::StrCat(words[1], ": token ", token, " was given to ", acquisition,
                                       " and to ", key.acquisition));
  }
  if (token < key.token) {
    ++(until != 0 ? counts_.stale_claims : counts_.stale_careless);
    return "stale";
  }
  key.token = token;
  key.acquisition = acquisition;
  ++(enters ? counts_.acquisitions : counts_.writes);
  last_accepted_ = absl::Now();
  return "ok";
}

std::vector<std::string> FencedResource::Judge(bool exclusive) const {
  absl::MutexLock lock(&mutex_);
  std::vector<std::string> found = violations_;
  if (!exclusive) return found;
  for (const auto& [name, key] : keys_) {
    std::vector<const Claim*> claims;
    for (const auto& [acquisition, claim] : key.claims) claims.push_back(&claim);
    std::sort(claims.begin(), claims.end(),
              [](const Claim* a, const Claim* b) { return a->from < b->from; });
    const Claim* last = nullptr;  // Of those before, the one that held until last.
    for (const Claim* const claim : claims) {
      if (last != nullptr && claim->from < last->until) {
        found.push_back(absl::StrCat(name, ": two were inside: ", last->acquisition, " with token ",
                                     last->token, " until ", Ms(last->until - claim->from),
                                     " ms after ", claim->acquisition, " had entered with token ",
                                     claim->token));
      }
      if (last != nullptr && claim->token <= last->token) {
        found.push_back(absl::StrCat(name, ": the token of ", claim->acquisition, ", ",
                                     claim->token, ", is not above ", last->token, " of ",
                                     last->acquisition, ", which held before"));
      }
      if (last == nullptr || claim->until > last->until) last = claim;
    }
  }
  return found;
}

FencedResource::Counts FencedResource::counts() const {
  absl::MutexLock lock(&mutex_);
  return counts_;
}

absl::Duration FencedResource::idle() const {
  absl::MutexLock lock(&mutex_);
  return absl::Now() - last_accepted_;
}

void FencedResource::Run() {
  struct Client {
    int fd;
    std::string text;
  };
  std::vector<Client> clients;
  for (;;) {
    std::vector<pollfd> fds = {{.fd = listener_, .events = POLLIN, .revents = 0},
                               {.fd = wake_, .events = POLLIN, .revents = 0}};
    for (const Client& client : clients) {
      fds.push_back({.fd = client.fd, .events = POLLIN, .revents = 0});
    }
    if (poll(fds.data(), fds.size(), -1) < 0) continue;
    if (fds[1].revents != 0) break;
    for (size_t i = 0; i < clients.size(); ++i) {
      if (fds[2 + i].revents == 0) continue;
      Client& client = clients[i];
      char buffer[4096];
      const ssize_t size = recv(client.fd, buffer, sizeof buffer, 0);
      if (size <= 0) {
        close(client.fd);
        client.fd = -1;
        continue;
      }
      client.text.append(buffer, static_cast<size_t>(size));
      for (size_t end; (end = client.text.find('\n')) != std::string::npos;) {
        const std::string answer = absl::StrCat(Handle(client.text.substr(0, end)), "\n");
        client.text.erase(0, end + 1);
        // It asks one thing at a time, so its socket has room.
        static_cast<void>(!send(client.fd, answer.data(), answer.size(), MSG_NOSIGNAL));
      }
    }
    std::erase_if(clients, [](const Client& client) { return client.fd < 0; });
    if ((fds[0].revents & POLLIN) != 0) {
      const int fd = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
      if (fd >= 0) clients.push_back({.fd = fd, .text = {}});
    }
  }
  for (const Client& client : clients) close(client.fd);
}

}  // namespace latchkey

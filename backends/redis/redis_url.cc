#include "latchkey/backends/redis/redis_url.h"

#include <optional>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "latchkey/core/lock_error.h"

namespace latchkey::redis {
namespace {

absl::Status Bad(std::string_view part, std::string_view value, std::string_view why) {
  return MakeError(Reason::kInvalidArgument,
                   absl::StrCat("url: ", part, " '", absl::CHexEscape(value), "' ", why));
}

std::optional<std::string> PercentDecode(std::string_view text) {
  std::string result;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%') {
      result.push_back(text[i]);
      continue;
    }
    std::string byte;
    if (i + 2 >= text.size() || !absl::HexStringToBytes(text.substr(i + 1, 2), &byte)) {
      return std::nullopt;
    }
    result += byte;
    i += 2;
  }
  return result;
}

absl::Status ReadDatabase(std::string_view text, RedisAddress& address) {
  if (!absl::SimpleAtoi(text, &address.database) || address.database < 0) {
    return Bad("database", text, "is not a number of 0 or more");
  }
  return absl::OkStatus();
}

absl::Status ReadLogin(std::string_view login, RedisAddress& address) {
  const size_t colon = login.find(':');
  std::optional<std::string> user = PercentDecode(login.substr(0, colon));
  std::optional<std::string> password =
      colon == login.npos ? std::string() : PercentDecode(login.substr(colon + 1));
  // Neither is shown: people paste passwords into the wrong place.
  if (!user) return MakeError(Reason::kInvalidArgument, "url: the user has a bad % escape");
  if (!password) return MakeError(Reason::kInvalidArgument, "url: the password has a bad % escape");
  address.user = *std::move(user);
  address.password = *std::move(password);
  if (!address.user.empty() && address.password.empty()) {
    return MakeError(Reason::kInvalidArgument, "url: there is a user but no password");
  }
  return absl::OkStatus();
}

absl::Status ReadHostAndPort(std::string_view text, RedisAddress& address) {
  std::string_view host = text;
  std::optional<std::string_view> port;
  if (absl::StartsWith(text, "[")) {
    const size_t end = text.find(']');
    if (end == text.npos) return Bad("host", text, "has no closing bracket");
    host = text.substr(1, end - 1);
    std::string_view rest = text.substr(end + 1);
    if (absl::ConsumePrefix(&rest, ":")) {
      port = rest;
    } else if (!rest.empty()) {
      return Bad("host", text, "goes on after the bracket");
    }
  } else if (const size_t colon = text.find(':'); colon != text.npos) {
    host = text.substr(0, colon);
    port = text.substr(colon + 1);
  }
  if (host.empty()) return Bad("host", host, "is empty");
  for (const char c : host) {
    if (!absl::ascii_isalnum(c) && !absl::StrContains("-._:%", c)) {
      return Bad("host", host, "has a character that no host name has");
    }
  }
  address.host = std::string(host);
  if (port &&
      (!absl::SimpleAtoi(*port, &address.port) || address.port < 1 || address.port > 65535)) {
    return Bad("port", *port, "is not a number from 1 to 65535");
  }
  return absl::OkStatus();
}

}  // namespace

std::string RedisAddress::ToString() const {
  const std::string suffix = database == 0 ? "" : absl::StrCat("/", database);
  switch (transport) {
    case Transport::kUnix:
      return absl::StrCat("unix://", path, database == 0 ? "" : absl::StrCat("?db=", database));
    case Transport::kTls:
    case Transport::kTcp:
      break;
  }
  const bool v6 = absl::StrContains(host, ':');
  return absl::StrCat(transport == Transport::kTls ? "rediss://" : "redis://", v6 ? "[" : "", host,
                      v6 ? "]" : "", ":", port, suffix);
}

absl::StatusOr<RedisAddress> ParseRedisUrl(std::string_view url) {
  RedisAddress address;
  const size_t colon = url.find("://");
  const std::string_view scheme = url.substr(0, colon);
  if (colon == url.npos) {
    return MakeError(Reason::kInvalidArgument,
                     "url: has no scheme; write redis://, rediss:// or unix://");
  }
  if (scheme == "redis") {
    address.transport = Transport::kTcp;
  } else if (scheme == "rediss") {
    address.transport = Transport::kTls;
  } else if (scheme == "unix") {
    address.transport = Transport::kUnix;
  } else {
    return Bad("scheme", scheme, "is none of redis, rediss, unix");
  }
  std::string_view rest = url.substr(colon + 3);

  // The last '@' before the path: a password may hold one.
  const size_t slash = rest.find('/');
  if (const size_t at = rest.substr(0, slash).rfind('@'); at != rest.npos) {
    if (absl::Status status = ReadLogin(rest.substr(0, at), address); !status.ok()) return status;
    rest.remove_prefix(at + 1);
  }

  std::optional<std::string_view> query;
  if (const size_t mark = rest.find('?'); mark != rest.npos) {
    query = rest.substr(mark + 1);
    rest = rest.substr(0, mark);
  }

  if (address.transport == Transport::kUnix) {
    std::optional<std::string> path = PercentDecode(rest);
    if (!path) return Bad("path", rest, "has a bad % escape");
    if (!absl::StartsWith(*path, "/")) return Bad("path", *path, "is not absolute");
    address.path = *std::move(path);
    if (query) {
      std::string_view database = *query;
      if (!absl::ConsumePrefix(&database, "db=")) return Bad("query", *query, "is not db=NUMBER");
      if (absl::Status status = ReadDatabase(database, address); !status.ok()) return status;
    }
    return address;
  }

  if (query) return Bad("query", *query, "is not understood");
  const size_t path = rest.find('/');
  if (absl::Status status = ReadHostAndPort(rest.substr(0, path), address); !status.ok()) {
    return status;
  }
  if (path != rest.npos && path + 1 < rest.size()) {
    if (absl::Status status = ReadDatabase(rest.substr(path + 1), address); !status.ok()) {
      return status;
    }
  }
  return address;
}

}  // namespace latchkey::redis

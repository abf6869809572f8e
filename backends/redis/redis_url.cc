#include "latchkey/backends/redis/redis_url.h"

#include <optional>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "latchkey/core/base/lock_error.h"

namespace latchkey::redis {
namespace {

// The longest that fits into sockaddr_un with the NUL after it.
constexpr size_t kLongestPath = 107;

// A part of the URL for a message. Where an '@' is left after the login was taken off, a password
// with a '/' in it may have ended up in any part; where the scheme can be none, in that.
class Parts {
 public:
  Parts(std::string_view scheme, std::string_view rest) : hidden_(absl::StrContains(rest, '@')) {
    for (const char c : scheme) {
      if (!absl::ascii_isalnum(c) && !absl::StrContains("+-.", c)) hidden_ = true;
    }
  }

  absl::Status Bad(std::string_view part, std::string_view value, std::string_view why) const {
    if (!hidden_) {
      return MakeError(Reason::kInvalidArgument,
                       absl::StrCat("url: ", part, " '", absl::CHexEscape(value), "' ", why));
    }
    return MakeError(
        Reason::kInvalidArgument,
        absl::StrCat("url: ", part, " ", why,
                     " (it is not shown, for a password may have ended up in it: write '/' in "
                     "user and password as %2F)"));
  }

 private:
  bool hidden_;
};

std::optional<std::string> PercentDecode(std::string_view text) {
  std::string result;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%') {
      result.push_back(text[i]);
      continue;
    }
    // Checked here as well: this version of HexStringToBytes looks up bytes above 127 out of
    // bounds.
    std::string byte;
    if (i + 2 >= text.size() || !absl::ascii_isxdigit(static_cast<unsigned char>(text[i + 1])) ||
        !absl::ascii_isxdigit(static_cast<unsigned char>(text[i + 2])) ||
        !absl::HexStringToBytes(text.substr(i + 1, 2), &byte)) {
      return std::nullopt;
    }
    result += byte;
    i += 2;
  }
  return result;
}

// So that PercentDecode yields the path again, and no query begins in it.
std::string PercentEncode(std::string_view path) {
  std::string result;
  for (const char c : path) {
    if (absl::ascii_isgraph(static_cast<unsigned char>(c)) && c != '%' && c != '?') {
      result.push_back(c);
    } else {
      absl::StrAppend(&result, "%", absl::Hex(static_cast<unsigned char>(c), absl::kZeroPad2));
    }
  }
  return result;
}

absl::Status ReadDatabase(const Parts& parts, std::string_view text, RedisAddress& address) {
  if (!absl::SimpleAtoi(text, &address.database) || address.database < 0) {
    return parts.Bad("database", text, "is not a number of 0 or more");
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

absl::Status ReadHostAndPort(const Parts& parts, std::string_view text, RedisAddress& address) {
  std::string_view host = text;
  std::optional<std::string_view> port;
  if (absl::StartsWith(text, "[")) {
    const size_t end = text.find(']');
    if (end == text.npos) return parts.Bad("host", text, "has no closing bracket");
    host = text.substr(1, end - 1);
    std::string_view rest = text.substr(end + 1);
    if (absl::ConsumePrefix(&rest, ":")) {
      port = rest;
    } else if (!rest.empty()) {
      return parts.Bad("host", text, "goes on after the bracket");
    }
  } else if (const size_t colon = text.find(':'); colon != text.npos) {
    host = text.substr(0, colon);
    port = text.substr(colon + 1);
  }
  if (host.empty()) return parts.Bad("host", host, "is empty");
  for (const char c : host) {
    if (!absl::ascii_isalnum(c) && !absl::StrContains("-._:%", c)) {
      return parts.Bad("host", host, "has a character that no host name has");
    }
  }
  address.host = std::string(host);
  if (port &&
      (!absl::SimpleAtoi(*port, &address.port) || address.port < 1 || address.port > 65535)) {
    return parts.Bad("port", *port, "is not a number from 1 to 65535");
  }
  return absl::OkStatus();
}

}  // namespace

std::string RedisAddress::ToString() const {
  const std::string suffix = database == 0 ? "" : absl::StrCat("/", database);
  switch (transport) {
    case Transport::kUnix:
      return absl::StrCat("unix://", PercentEncode(path),
                          database == 0 ? "" : absl::StrCat("?db=", database));
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
  if (colon == url.npos) {
    return MakeError(Reason::kInvalidArgument,
                     "url: has no scheme; write redis://, rediss:// or unix://");
  }
  const std::string_view scheme = url.substr(0, colon);
  std::string_view rest = url.substr(colon + 3);
  // The last '@' before the path: a password may hold one.
  const size_t slash = rest.find('/');
  const size_t at = rest.substr(0, slash).rfind('@');
  std::optional<std::string_view> login;
  if (at != rest.npos) {
    login = rest.substr(0, at);
    rest.remove_prefix(at + 1);
  }
  const Parts parts(scheme, rest);

  if (scheme == "redis") {
    address.transport = Transport::kTcp;
  } else if (scheme == "rediss") {
    address.transport = Transport::kTls;
  } else if (scheme == "unix") {
    address.transport = Transport::kUnix;
  } else {
    return parts.Bad("scheme", scheme, "is none of redis, rediss, unix");
  }
  if (login) {
    if (absl::Status status = ReadLogin(*login, address); !status.ok()) return status;
  }

  std::optional<std::string_view> query;
  if (const size_t mark = rest.find('?'); mark != rest.npos) {
    query = rest.substr(mark + 1);
    rest = rest.substr(0, mark);
  }

  if (address.transport == Transport::kUnix) {
    std::optional<std::string> path = PercentDecode(rest);
    if (!path) return parts.Bad("path", rest, "has a bad % escape");
    if (!absl::StartsWith(*path, "/")) return parts.Bad("path", *path, "is not absolute");
    // Either would be cut off without a word, and another socket be connected to.
    if (path->size() > kLongestPath) {
      return parts.Bad("path", *path, absl::StrCat("is longer than ", kLongestPath, " bytes"));
    }
    if (absl::StrContains(*path, '\0')) return parts.Bad("path", *path, "has a NUL byte");
    address.path = *std::move(path);
    if (query) {
      std::string_view database = *query;
      if (!absl::ConsumePrefix(&database, "db="))
        return parts.Bad("query", *query, "is not db=NUMBER");
      if (absl::Status status = ReadDatabase(parts, database, address); !status.ok()) return status;
    }
    return address;
  }

  if (query) return parts.Bad("query", *query, "is not understood");
  const size_t path = rest.find('/');
  if (absl::Status status = ReadHostAndPort(parts, rest.substr(0, path), address); !status.ok()) {
    return status;
  }
  if (path != rest.npos && path + 1 < rest.size()) {
    if (absl::Status status = ReadDatabase(parts, rest.substr(path + 1), address); !status.ok()) {
      return status;
    }
  }
  return address;
}

}  // namespace latchkey::redis

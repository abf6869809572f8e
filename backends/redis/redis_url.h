// Where a Redis server is and how to log in, read from a URL:
//
//   redis://user:password@host:6379/0        TCP; everything but the host may be left out
//   rediss://host                            TLS over TCP
//   unix:///run/redis.sock?db=1              a socket in the file system; also unix://user:pw@/path
//
// User, password and path are percent-decoded; a path has at most 107 bytes. Passwords never appear
// in a message, not even where the URL is wrong because one has a '/' or an '@' in the wrong place.
//
// Thread safety: pure functions and values.
#ifndef LATCHKEY_BACKENDS_REDIS_REDIS_URL_H_
#define LATCHKEY_BACKENDS_REDIS_REDIS_URL_H_

#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace latchkey::redis {

enum class Transport { kTcp, kTls, kUnix };

struct RedisAddress {
  Transport transport = Transport::kTcp;
  std::string host = {};      // kTcp, kTls: a name or a numeric address, IPv6 without brackets.
  int port = 6379;            // kTcp, kTls.
  std::string path = {};      // kUnix.
  std::string user = {};      // Empty: the default user.
  std::string password = {};  // Empty: none.
  int database = 0;

  // For messages: a URL of the same server and database, without user and password.
  std::string ToString() const;
};

// Errors: kInvalidArgument naming the part of the URL and, where no password can be in it, its
// value.
absl::StatusOr<RedisAddress> ParseRedisUrl(std::string_view url);

}  // namespace latchkey::redis

#endif  // LATCHKEY_BACKENDS_REDIS_REDIS_URL_H_

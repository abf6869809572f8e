// What a server has in a resource's record, for tests that look behind the backend.
#ifndef LATCHKEY_TESTS_BACKENDS_REDIS_STORED_HOLD_H_
#define LATCHKEY_TESTS_BACKENDS_REDIS_STORED_HOLD_H_

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "latchkey/tests/support/redis_server.h"

namespace latchkey {

// The deadline of the hold in microseconds of the server's clock, whether or not it is over; 0 if
// there is none. Assumes the default key prefix.
inline int64_t StoredDeadline(const RedisServer& server, std::string_view resource) {
  const std::string answer = server.Command({"EVAL",
                                             "local s = redis.call('HGET', KEYS[1], 's') "
                                             "return s and struct.unpack('<d', s, 17) or 0",
                                             "1", absl::StrCat("latchkey:{", resource, "}")});
  int64_t micros = 0;
  EXPECT_TRUE(absl::SimpleAtoi(answer, &micros)) << answer;
  return micros;
}

}  // namespace latchkey

#endif  // LATCHKEY_TESTS_BACKENDS_REDIS_STORED_HOLD_H_

// What an error of a server means: whether it passes, whether anything was done, and what to tell.
//
//   const Refusal refusal = ReadScriptError("OOM command not allowed when ...", script);
//   refusal.reason    // kBackendUnavailable: it passes, and nothing was done.
//
// The reasons:
//   kBackendUnavailable   not executed, and it may pass by itself: memory, disk, loading, a replica
//   kBackendRefused       not executed, and it does not pass before somebody has mended the set-up:
//                         login, permissions, database, what else is at our keys
//   kNotSupported         a Redis Cluster
//   kBackendUnknown       anything else: the script may have done its work before
//
// Thread safety: pure functions.
#ifndef LATCHKEY_BACKENDS_REDIS_REFUSAL_H_
#define LATCHKEY_BACKENDS_REDIS_REFUSAL_H_

#include <string_view>

#include "latchkey/core/base/lock_error.h"

namespace latchkey::redis {

struct Refusal {
  Reason reason = Reason::kBackendUnknown;
  std::string_view meaning = {};  // Empty: there is no more to say than the server did.
};

// The error that answers a script with this text, in the words of any version of Redis.
Refusal ReadScriptError(std::string_view error, std::string_view script);

// The error that answers this command of the greeting, by which no step was asked for yet. Never
// kBackendUnknown.
Refusal ReadGreetingError(std::string_view command, std::string_view error);

// Why TLS ended. `verified`: of SSL_get_verify_result. `error`: the last of OpenSSL's queue; 0:
// none.
Reason ReadTlsError(long verified, unsigned long error);

}  // namespace latchkey::redis

#endif  // LATCHKEY_BACKENDS_REDIS_REFUSAL_H_

// The protocol's steps as Lua scripts for Redis: their text, composed from the files in scripts/,
// and the SHA-1 by which the server knows them. For the backend and its tests.
//
// Thread safety: pure functions and constants.
#ifndef LATCHKEY_BACKENDS_REDIS_SCRIPTS_H_
#define LATCHKEY_BACKENDS_REDIS_SCRIPTS_H_

#include <string>
#include <string_view>

namespace latchkey::redis {

enum class Step { kObtain, kRelease, kExtend, kConfirm, kWatch, kUnwatch };
inline constexpr int kSteps = 6;

// A script ready to be sent.
struct Script {
  std::string text;
  std::string sha1;  // 40 hexadecimal digits.
};

// The script of a step. Lives until the process ends.
const Script& ScriptOf(Step step);

// What RedisBackendOptions::new_server has the server do: see scripts/vouch.lua.
std::string_view VouchText();
std::string VouchTextWithTime(std::string_view time_source);

// The same step, but with its time from this Lua text, which must define the local `now` (in
// microseconds) instead of asking the server's clock. For tests of the scripts alone.
std::string ScriptTextWithTime(Step step, std::string_view time_source);

}  // namespace latchkey::redis

#endif  // LATCHKEY_BACKENDS_REDIS_SCRIPTS_H_

// The end of a call that nothing sensible can follow: the second one of a Completion, say.
//
// Thread safety: may be called from any thread.
#ifndef LATCHKEY_CORE_BASE_MISUSE_H_
#define LATCHKEY_CORE_BASE_MISUSE_H_

#include <string_view>

namespace latchkey::internal {

// Ends the process with this message, in every build. Calls that return a status use that instead.
[[noreturn]] void DieOfMisuse(std::string_view what);

}  // namespace latchkey::internal

#endif  // LATCHKEY_CORE_BASE_MISUSE_H_

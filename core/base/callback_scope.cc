#include "latchkey/core/base/callback_scope.h"

#include "absl/strings/str_cat.h"
#include "latchkey/core/base/lock_error.h"

namespace latchkey::internal {

absl::Status WouldBlockError(std::string_view call, std::string_view what) {
  return MakeError(
      Reason::kWouldBlock,
      absl::StrCat(call, " of ", what,
                   " would block inside a callback of the library; use the asynchronous form"));
}

absl::Status MovedFromError(std::string_view call) {
  return MakeError(Reason::kMovedFrom,
                   absl::StrCat(call, " was called on a lock manager that was moved from"));
}

}  // namespace latchkey::internal

#include "latchkey/core/base/contain.h"

#include <exception>

#include "absl/log/log.h"
#include "absl/strings/str_cat.h"
#include "latchkey/core/base/lease.h"
#include "latchkey/core/base/lock_error.h"

namespace latchkey::internal {

std::string TextOfCurrentException() {
  try {
    throw;
  } catch (const std::exception& thrown) {
    return thrown.what();
  } catch (...) {
    return "something that is no std::exception";
  }
}

absl::Status ErrorOfCurrentException(std::string_view where, std::string_view resource) {
  return MakeError(
      Reason::kException,
      absl::StrCat(where, " threw",
                   resource.empty() ? "" : absl::StrCat(" for ", ResourceForMessage(resource)),
                   ": ", TextOfCurrentException()));
}

void LogCurrentException(std::string_view where, std::string_view resource) {
  LOG(ERROR) << ErrorOfCurrentException(where, resource).message();
}

}  // namespace latchkey::internal

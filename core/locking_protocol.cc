#include "latchkey/core/locking_protocol.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "latchkey/core/lock_error.h"

namespace latchkey {

void LockingProtocol::Confirm(const HoldRef& hold, FencingToken token, ConfirmCallback done) {
  static_cast<void>(hold);
  static_cast<void>(token);
  done(MakeError(Reason::kNotSupported,
                 absl::StrCat("backend '", capabilities().name, "' does not implement Confirm")));
}

void LockingProtocol::Inspect(std::optional<ResourceName> resource,
                              absl::FunctionRef<void(const ResourceState&)> visitor) const {
  static_cast<void>(resource);
  static_cast<void>(visitor);
}

}  // namespace latchkey

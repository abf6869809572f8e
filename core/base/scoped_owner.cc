#include "latchkey/core/base/scoped_owner.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "latchkey/core/base/lease.h"

namespace latchkey {

ScopedOwner::ScopedOwner() : ScopedOwner(absl::StrCat("task ", AcquisitionId::Next().ToString())) {}

ScopedOwner::ScopedOwner(std::string owner)
    : owner_(std::make_shared<const std::string>(std::move(owner))), in_force_(&owner_) {}

}  // namespace latchkey

// Users include this; what it offers is described in core/base/scoped_owner.h.
#ifndef LATCHKEY_CORE_SCOPED_OWNER_H_
#define LATCHKEY_CORE_SCOPED_OWNER_H_

#include "latchkey/core/base/scoped_owner.h"  // IWYU pragma: export

#endif  // LATCHKEY_CORE_SCOPED_OWNER_H_

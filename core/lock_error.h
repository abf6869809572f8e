// Users include this; what it offers is described in core/base/lock_error.h.
#ifndef LATCHKEY_CORE_LOCK_ERROR_H_
#define LATCHKEY_CORE_LOCK_ERROR_H_

#include "latchkey/core/base/lock_error.h"  // IWYU pragma: export

#endif  // LATCHKEY_CORE_LOCK_ERROR_H_

// Users include this; what it offers is described in core/lock/lock_set.h.
#ifndef LATCHKEY_CORE_LOCK_SET_H_
#define LATCHKEY_CORE_LOCK_SET_H_

#include "latchkey/core/lock/lock_set.h"  // IWYU pragma: export

#endif  // LATCHKEY_CORE_LOCK_SET_H_

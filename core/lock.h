// Users include this; what it offers is described in core/lock/lock.h.
#ifndef LATCHKEY_CORE_LOCK_H_
#define LATCHKEY_CORE_LOCK_H_

#include "latchkey/core/lock/lock.h"  // IWYU pragma: export

#endif  // LATCHKEY_CORE_LOCK_H_

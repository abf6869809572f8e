// Users include this; what it offers is described in core/transaction/locker.h.
#ifndef LATCHKEY_CORE_LOCKER_H_
#define LATCHKEY_CORE_LOCKER_H_

#include "latchkey/core/transaction/locker.h"  // IWYU pragma: export

#endif  // LATCHKEY_CORE_LOCKER_H_

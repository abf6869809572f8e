// Users include this; what it offers is described in core/base/clock.h.
#ifndef LATCHKEY_CORE_CLOCK_H_
#define LATCHKEY_CORE_CLOCK_H_

#include "latchkey/core/base/clock.h"  // IWYU pragma: export

#endif  // LATCHKEY_CORE_CLOCK_H_

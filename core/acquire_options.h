// Users include this; what it offers is described in core/policy/acquire_options.h.
#ifndef LATCHKEY_CORE_ACQUIRE_OPTIONS_H_
#define LATCHKEY_CORE_ACQUIRE_OPTIONS_H_

#include "latchkey/core/policy/acquire_options.h"  // IWYU pragma: export

#endif  // LATCHKEY_CORE_ACQUIRE_OPTIONS_H_

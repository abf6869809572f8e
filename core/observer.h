// Users include this; what it offers is described in core/base/observer.h.
#ifndef LATCHKEY_CORE_OBSERVER_H_
#define LATCHKEY_CORE_OBSERVER_H_

#include "latchkey/core/base/observer.h"  // IWYU pragma: export

#endif  // LATCHKEY_CORE_OBSERVER_H_

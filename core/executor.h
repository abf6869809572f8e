// Users include this; what it offers is described in core/base/executor.h.
#ifndef LATCHKEY_CORE_EXECUTOR_H_
#define LATCHKEY_CORE_EXECUTOR_H_

#include "latchkey/core/base/executor.h"  // IWYU pragma: export

#endif  // LATCHKEY_CORE_EXECUTOR_H_

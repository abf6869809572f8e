// Users include this; what it offers is described in core/base/lease.h.
#ifndef LATCHKEY_CORE_LEASE_H_
#define LATCHKEY_CORE_LEASE_H_

#include "latchkey/core/base/lease.h"  // IWYU pragma: export

#endif  // LATCHKEY_CORE_LEASE_H_

// Users include this; what it offers is described in core/transaction/transaction.h.
#ifndef LATCHKEY_CORE_TRANSACTION_H_
#define LATCHKEY_CORE_TRANSACTION_H_

#include "latchkey/core/transaction/transaction.h"  // IWYU pragma: export

#endif  // LATCHKEY_CORE_TRANSACTION_H_

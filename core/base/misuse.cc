#include "latchkey/core/base/misuse.h"

#include "absl/log/log.h"

namespace latchkey::internal {

void DieOfMisuse(std::string_view what) { LOG(FATAL) << "latchkey: " << what; }

}  // namespace latchkey::internal

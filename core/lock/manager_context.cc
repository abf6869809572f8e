#include "latchkey/core/lock/manager_context.h"

#include "latchkey/core/lock/hold.h"

namespace latchkey::internal {

void ManagerShard::Add(Hold& hold) {
  absl::MutexLock lock(&holds_mu);
  holds.insert(&hold);
}

void ManagerShard::Remove(Hold& hold) {
  absl::MutexLock lock(&holds_mu);
  holds.erase(&hold);
}

std::vector<RefPtr<Hold>> ManagerShard::Holds() {
  std::vector<RefPtr<Hold>> shared;
  absl::MutexLock lock(&holds_mu);
  for (Hold* const hold : holds) shared.push_back(RefPtr<Hold>::Share(hold));
  return shared;
}

void ManagerShard::Close() {
  if (context->open_shards_.fetch_sub(1, std::memory_order_acq_rel) == 1) delete context;
}

}  // namespace latchkey::internal

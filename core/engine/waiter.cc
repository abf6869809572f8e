#include "latchkey/core/engine/waiter.h"

#include <algorithm>
#include <new>
#include <utility>

#include "latchkey/core/engine/queue_shard.h"

namespace latchkey::internal {

RefPtr<Waiter> Waiter::New(QueueShard* shard, const ResourceName& resource,
                           const RequestTerms& terms, const AcquireOptions& options,
                           AcquireCallback&& done) {
  const std::string_view name = resource.bytes();
  const std::string_view owner = terms.owner;
  void* const memory = ::operator new(sizeof(Waiter) + name.size() + owner.size());
  char* const bytes = static_cast<char*>(memory) + sizeof(Waiter);
  std::copy(name.begin(), name.end(), bytes);
  std::copy(owner.begin(), owner.end(), bytes + name.size());
  return RefPtr<Waiter>::Adopt(new (memory) Waiter(shard, resource.WithBytes({bytes, name.size()}),
                                                   {bytes + name.size(), owner.size()}, terms,
                                                   options, std::move(done)));
}

Waiter::Waiter(QueueShard* in_shard, const ResourceName& name, std::string_view who,
               const RequestTerms& from, const AcquireOptions& options, AcquireCallback&& call)
    : CycleWait(name, who),
      shard(in_shard),
      terms(from),
      acquire_timeout(options.acquire_timeout),
      outage_patience(options.outage_patience),
      max_attempts(options.max_attempts),
      retry(options.retry),
      admission(options.admission),
      reservation_lease(from.reservation_lease),
      done(std::move(call)) {
  terms.owner = owner;
  priority = terms.priority;
  takes_by_force = terms.grace.has_value();
  if (shard != nullptr) shard->Ref();
}

Waiter::~Waiter() {
  if (shard != nullptr) shard->Unref();
}

}  // namespace latchkey::internal

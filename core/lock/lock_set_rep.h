// What a LockSet consists of.
#ifndef LATCHKEY_CORE_LOCK_LOCK_SET_REP_H_
#define LATCHKEY_CORE_LOCK_LOCK_SET_REP_H_

#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "latchkey/core/base/lease.h"
#include "latchkey/core/base/ref_counted.h"
#include "latchkey/core/lock/hold.h"
#include "latchkey/core/lock/lock.h"
#include "latchkey/core/lock/lock_set.h"

namespace latchkey::internal {

// What the callbacks of a set's members share.
class SetListeners;

// "'a', 'b'", of the first few.
std::string ResourcesForMessage(const std::vector<std::string_view>& resources);

// Thread-compatible, like the LockSet that owns it.
struct LockSetRep {
  struct Member {
    std::string resource;
    Lock lock;
  };

  // Passes a member's request to stop on to the set.
  struct StopFn {
    std::stop_source source;
    void operator()() const {
      // The callbacks may destroy the set, and this with it.
      std::stop_source kept = source;
      kept.request_stop();
    }
  };

  LockSetRep();
  ~LockSetRep();

  // The lock's hold, which it is given if it has none. It must hold something.
  static Hold& HoldOf(const Lock& lock) { return lock.NeedHold(); }
  // See Lock::ReleaseDirect.
  static void Release(Lock& lock, absl::AnyInvocable<void(absl::Status)> done) {
    lock.ReleaseDirect(std::move(done));
  }
  // Those of all members, none of which was released.
  std::vector<RefPtr<Hold>> Holds() const;
  static std::vector<RefPtr<Hold>> HoldsOf(const std::variant<Lock, LockSet>& held);

  SetListeners& Listeners();

  // 0 if it is no member.
  FencingToken TokenOf(std::string_view resource);

  std::vector<Member> members;  // Constant once the set was handed out.
  // Made when a large set is first asked; its keys view the members.
  absl::flat_hash_map<std::string_view, const Member*> by_resource;
  bool released = false;
  RefPtr<SetListeners> listeners;
  bool hears_yield = false;
  bool hears_lost = false;
  std::optional<std::stop_source> stop;
  std::vector<std::unique_ptr<std::stop_callback<StopFn>>> stop_calls;
};

}  // namespace latchkey::internal

#endif  // LATCHKEY_CORE_LOCK_LOCK_SET_REP_H_

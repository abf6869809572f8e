// QuorumMember is what a backend implements beside LockingProtocol so that a quorum can be made of
// it (backends/quorum). A backend that is never one of several servers needs nothing of this.
//
//   class MyBackend final : public LockingProtocol, public QuorumMember {
//     ...
//     QuorumMember* quorum_member() override { return this; }
//   };
//
// Each server of a quorum gives tokens of its own. A quorum makes one out of those of a majority,
// the largest, and confirms it where a smaller one was given, so that a majority knows it: the next
// majority has a server in common with that one, and so a larger token. Two things follow for a
// server. It raises a token and its fence on request. And where it has lost its fence with its data
// it says so with what it grants, so that the quorum asks others.
//
// A backend that keeps LockRecords has both steps in core/protocol/lock_record.h: ApplyAsMember and
// ApplyConfirm. The rules at the head of locking_protocol.h hold for them, too: atomic, idempotent,
// the completion runs exactly once, what unknown and unavailable mean, thread safety, and views
// that are valid only during the call.
//
// A quorum also needs that a server serves the requests of one acquisition in the order in which
// they were made, and repeats a release that failed by itself.
#ifndef LATCHKEY_CORE_PROTOCOL_QUORUM_MEMBER_H_
#define LATCHKEY_CORE_PROTOCOL_QUORUM_MEMBER_H_

#include <iosfwd>
#include <string_view>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "latchkey/core/base/lease.h"
#include "latchkey/core/protocol/locking_protocol.h"

namespace latchkey {

struct MemberReply {
  // As of Obtain.
  ObtainReply reply = {};

  // kReserved, kDenied: no larger token than this was given or confirmed for the resource; 0 if the
  // backend does not say, or has lost its data. (For the other outcomes, `reply.token` says it.)
  FencingToken fence = 0;

  // kObtained, kReentered: the server had lost its data when this hold got its token, and a larger
  // one may have been given before. That stays so for as long as the hold has this token, also when
  // the server's clock has passed all tokens meanwhile. The hold counts only with a token above
  // what a majority of the other servers say when they are asked after this answer.
  bool fence_lost = false;
};

using MemberCallback = absl::AnyInvocable<void(absl::StatusOr<MemberReply>)>;

enum class ConfirmOutcome {
  kConfirmed,  // The hold's token is now at least the one proposed, and so is the fence.
  kRaise,      // The hold's own token is larger: propose that one instead.
  kNotHeld,
};

// As in the enum without the "k". Streams print it, too.
std::string_view ConfirmOutcomeName(ConfirmOutcome outcome);
std::ostream& operator<<(std::ostream& out, ConfirmOutcome outcome);

struct ConfirmReply {
  ConfirmOutcome outcome = ConfirmOutcome::kNotHeld;
  // kConfirmed, kRaise: the hold's token.
  FencingToken token = 0;
};

using ConfirmCallback = absl::AnyInvocable<void(absl::StatusOr<ConfirmReply>)>;

class QuorumMember {
 public:
  // As LockingProtocol::Obtain, for a caller that makes sure by itself that its token is larger
  // than all before it, by asking other servers. So a server that has lost its data, and to others
  // grants nothing until its clock vouches for its tokens, may answer as soon as no lease from
  // before is left, with `fence_lost`.
  virtual void ObtainAsMember(const ObtainRequest& request, MemberCallback done) = 0;

  // Raises the hold's token, and the fence, to `token`, if the hold's own is not larger.
  // `hold.resource` may be empty where it may with Release.
  virtual void Confirm(const HoldRef& hold, FencingToken token, ConfirmCallback done) = 0;

 protected:
  ~QuorumMember() = default;
};

}  // namespace latchkey

#endif  // LATCHKEY_CORE_PROTOCOL_QUORUM_MEMBER_H_

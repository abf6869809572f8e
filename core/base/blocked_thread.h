// BlockedThread lets a thread that waits for a backend's answer fetch the answer itself, instead of
// sleeping until a thread of the backend has fetched it and wakes it: that saves two switches of
// threads for each round trip. The pattern is known as leader and followers (Schmidt et al., 2000).
//
// Blocking calls (LockManager::Acquire, Lock::Release, ...) announce themselves by a BlockedThread
// on their stack. A backend with a connection of its own looks for it when it sends a request on
// the calling thread, and may then leave reading the connection to that thread for a while:
//
//   void Obtain(const ObtainRequest& request, ObtainCallback done) override {
//     ... send the request ...
//     if (BlockedThread* const caller = BlockedThread::WaitingFor(request.acquisition)) {
//       caller->Expect(connection, connection->descriptor(), connection->LendTo(*caller));
//     }
//   }
//
// Nothing depends on it: a backend that takes no notice works as well, only with more switches.
//
// Thread safety: a BlockedThread belongs to the thread that made it. The methods of an
// AnswerSource are called on that thread, with no mutex held.
#ifndef LATCHKEY_CORE_BASE_BLOCKED_THREAD_H_
#define LATCHKEY_CORE_BASE_BLOCKED_THREAD_H_

#include <cstdint>
#include <memory>

#include "absl/container/inlined_vector.h"
#include "latchkey/core/base/lease.h"

namespace latchkey {

namespace internal {
class Blocker;
}  // namespace internal

// Where answers come from: a connection whose reading was left to a blocked thread. `loan` is the
// number that it gave to BlockedThread::Expect.
class AnswerSource {
 public:
  virtual ~AnswerSource() = default;

  // Reads what is there without waiting, and completes what is answered; this may call back. False
  // if the thread that calls has no answer to expect from here any more, or must not read here any
  // longer, because the connection broke or was taken back. After false it is not called again,
  // unless something is expected from here anew.
  virtual bool Fetch(uint64_t loan) = 0;

  // The thread that calls reads here no longer. The last call of each that expected something here,
  // also after Fetch has returned false.
  virtual void EndFetching(uint64_t loan) = 0;
};

class BlockedThread {
 public:
  // From now on, requests of this thread for `acquisition` are waited for. The latest one made
  // counts. It must be destroyed on the same thread, in reverse order of making.
  explicit BlockedThread(AcquisitionId acquisition);
  BlockedThread(const BlockedThread&) = delete;
  BlockedThread& operator=(const BlockedThread&) = delete;
  ~BlockedThread();

  // For backends: the caller of this thread, if it is going to wait for the answer to a request for
  // `acquisition`; null: nobody waits for that here.
  static BlockedThread* WaitingFor(AcquisitionId acquisition) {
    const bool it_is =
        current_ != nullptr && (current_->acquisition_ == acquisition || current_->on_behalf_ > 0);
    return it_is ? current_ : nullptr;
  }

  // For backends over other backends: while this exists, what the thread requests of those is
  // waited for if `acquisition` is, whatever ids it goes by there.
  class OnBehalfOf {
   public:
    explicit OnBehalfOf(AcquisitionId acquisition) : thread_(WaitingFor(acquisition)) {
      if (thread_ != nullptr) ++thread_->on_behalf_;
    }
    OnBehalfOf(const OnBehalfOf&) = delete;
    OnBehalfOf& operator=(const OnBehalfOf&) = delete;
    ~OnBehalfOf() {
      if (thread_ != nullptr) --thread_->on_behalf_;
    }

   private:
    BlockedThread* const thread_;
  };

  // An answer to this thread will come from `source`, which is kept alive until EndFetching.
  // `descriptor` is ready for reading (poll) when there is something to fetch, or when Fetch would
  // return false. Replaces what was said of that source before, if that is not over yet.
  void Expect(std::shared_ptr<AnswerSource> source, int descriptor, uint64_t loan);

  // For blocking calls: fetches until `blocker` is ready or nudged, or nothing is expected any
  // more. Wait for the blocker afterwards.
  void Await(internal::Blocker& blocker);

 private:
  struct Expected {
    std::shared_ptr<AnswerSource> source;
    int descriptor;
    uint64_t loan;
    bool over = false;
  };

  void DropOver();

  static inline thread_local BlockedThread* current_ = nullptr;

  const AcquisitionId acquisition_;
  BlockedThread* const outer_;
  int on_behalf_ = 0;
  absl::InlinedVector<Expected, 1> expected_;
};

}  // namespace latchkey

#endif  // LATCHKEY_CORE_BASE_BLOCKED_THREAD_H_

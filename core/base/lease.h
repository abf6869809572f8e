// The words that everything else is written in: who asks (owner), how urgently (priority), which
// attempt it was (acquisition id), and the number that makes stale holders harmless (fencing
// token).
//
// All types here are plain values: copyable, comparable, thread-compatible.
#ifndef LATCHKEY_CORE_BASE_LEASE_H_
#define LATCHKEY_CORE_BASE_LEASE_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "absl/base/attributes.h"
#include "absl/hash/hash.h"

namespace latchkey {

// How urgent a request is. Larger wins; equal never preempts. Any int64 is allowed, also negative.
using Priority = int64_t;

// A number that grows with every grant of a resource, also across forced hand-over, expiry and
// restarts (docs/explanation/guarantees.md, S2, says what that assumes). Pass it along with each
// write to the protected resource, and let the resource refuse a smaller one than it has already
// seen: then a holder that was paused past its lease can do no harm. 0 is "no token"; the first
// grant has at least 1.
using FencingToken = uint64_t;

// Names one acquisition (one attempt to lock one resource), and with it the handle that the attempt
// yields. 128 bits: 64 from the system's random source for this process, and a counter. Never used
// again after its release. The all-zero id is "none" and is not valid in a request.
struct AcquisitionId {
  uint64_t high = 0;
  uint64_t low = 0;

  // A fresh id, unlike any other of this process and, but for a probability that can be neglected,
  // of any other process. Thread-safe, does not contend, and does not allocate. A child made by
  // fork() draws its own random half.
  static AcquisitionId Next();

  bool IsNone() const { return high == 0 && low == 0; }

  // 32 hexadecimal digits, as used on wires and in messages.
  std::string ToString() const;

  friend bool operator==(const AcquisitionId&, const AcquisitionId&) = default;
  friend auto operator<=>(const AcquisitionId&, const AcquisitionId&) = default;

  template <typename H>
  friend H AbslHashValue(H h, const AcquisitionId& id) {
    return H::combine(std::move(h), id.high, id.low);
  }
};

// What a backend said when it granted a hold, and wants to hear again with every step on it, so
// that it need not look the resource up twice. Opaque to everyone else; 0 is "none", which is
// always correct, only slower.
using LeaseHint = uint64_t;

// A resource's name (any bytes, NUL included) with its hash, so that the name is hashed once for
// each acquire however many tables look it up. Converts from and to std::string_view. Borrows the
// bytes: they must outlive it.
class ResourceName {
 public:
  ResourceName() = default;
  // NOLINTNEXTLINE(google-explicit-constructor): a name is a string with its hash beside it.
  ResourceName(std::string_view bytes ABSL_ATTRIBUTE_LIFETIME_BOUND)
      : bytes_(bytes), hash_(absl::Hash<std::string_view>{}(bytes)) {}
  // NOLINTNEXTLINE(google-explicit-constructor)
  ResourceName(const std::string& bytes ABSL_ATTRIBUTE_LIFETIME_BOUND)
      : ResourceName(std::string_view(bytes)) {}
  // NOLINTNEXTLINE(google-explicit-constructor)
  ResourceName(const char* bytes ABSL_ATTRIBUTE_LIFETIME_BOUND)
      : ResourceName(std::string_view(bytes)) {}

  // The same name over a copy of its bytes, without hashing them again.
  ResourceName WithBytes(std::string_view copy ABSL_ATTRIBUTE_LIFETIME_BOUND) const {
    ResourceName name = *this;
    name.bytes_ = copy;
    return name;
  }

  std::string_view bytes() const { return bytes_; }
  size_t hash() const { return hash_; }
  bool empty() const { return bytes_.empty(); }
  // NOLINTNEXTLINE(google-explicit-constructor)
  operator std::string_view() const { return bytes_; }

 private:
  std::string_view bytes_;
  size_t hash_ = 0;
};

// A resource's name for a message: quoted, bytes that do not print escaped, and a long name cut
// after 64 bytes with its length beside it.
std::string ResourceForMessage(std::string_view resource);

// An owner for a message: quoted and escaped like a resource, or "an anonymous owner" if empty.
std::string OwnerForMessage(std::string_view owner);

}  // namespace latchkey

#endif  // LATCHKEY_CORE_BASE_LEASE_H_

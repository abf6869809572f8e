// FuzzInput turns the bytes that a fuzzer invents into choices, numbers, texts and durations. Where
// the bytes are used up it answers 0, so that every input means something and a short one is a
// simple one.
//
//   extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
//     FuzzInput input(data, size);
//     while (!input.empty()) Step(input.Below(5), input.SomeDuration());
//     return 0;
//   }
//
// Thread safety: none.
#ifndef LATCHKEY_TESTS_FUZZ_FUZZ_INPUT_H_
#define LATCHKEY_TESTS_FUZZ_FUZZ_INPUT_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <limits>
#include <string>
#include <string_view>
#include <utility>

#include "absl/time/time.h"

namespace latchkey {

class FuzzInput {
 public:
  // The bytes must outlive it.
  FuzzInput(const uint8_t* data, size_t size) : left_(reinterpret_cast<const char*>(data), size) {}

  bool empty() const { return left_.empty(); }

  uint8_t Byte() {
    if (left_.empty()) return 0;
    const uint8_t byte = static_cast<uint8_t>(left_.front());
    left_.remove_prefix(1);
    return byte;
  }

  // From 0 to n - 1; n from 1 to 256. One byte.
  int Below(int n) { return Byte() % n; }
  bool Flag() { return (Byte() & 1) != 0; }

  template <typename T>
  T OneOf(std::initializer_list<T> values) {
    return *(values.begin() + Below(static_cast<int>(values.size())));
  }

  // Any number. Eight bytes.
  uint64_t Number() {
    uint64_t number = 0;
    for (int i = 0; i < 8; ++i) number = number << 8 | Byte();
    return number;
  }

  // At most `most` bytes (at most 255): one that says how many, and these.
  std::string Text(size_t most) {
    const size_t size = std::min({size_t{Byte()}, most, left_.size()});
    std::string text(left_.substr(0, size));
    left_.remove_prefix(size);
    return text;
  }

  // All that is left.
  std::string_view Rest() { return std::exchange(left_, {}); }

  // Also the ones that nobody means: negative, infinite, and as long as they get.
  absl::Duration SomeDuration() {
    switch (Below(16)) {
      case 0:
        return absl::ZeroDuration();
      case 1:
        return absl::Nanoseconds(1) / 4;
      case 2:
        return absl::Nanoseconds(1);
      case 3:
        return absl::Microseconds(1 + Byte());
      case 4:
        return absl::Milliseconds(1 + Byte());
      case 5:
      case 6:
        return absl::Seconds(1 + Byte());
      case 7:
        return absl::Hours(1 + Byte());
      case 8:
        return absl::InfiniteDuration();
      case 9:
        return -absl::InfiniteDuration();
      case 10:
        return absl::Seconds(std::numeric_limits<int64_t>::max());
      case 11:
        return absl::Seconds(std::numeric_limits<int64_t>::min());
      case 12:
        return absl::Nanoseconds(std::numeric_limits<int64_t>::max());
      case 13:
        return -absl::Milliseconds(1 + Byte());
      case 14:
        return absl::Nanoseconds(static_cast<int64_t>(Number()));
      default:
        return absl::Seconds(static_cast<int64_t>(Number()));
    }
  }

  int64_t SomeInt64() {
    switch (Below(6)) {
      case 0:
        return std::numeric_limits<int64_t>::min() + Byte();
      case 1:
        return std::numeric_limits<int64_t>::max() - Byte();
      case 2:
        return static_cast<int64_t>(Number());
      default:
        return static_cast<int8_t>(Byte());
    }
  }

 private:
  std::string_view left_;
};

// Ends the process as a crash does, which is how a target tells of what it found.
[[noreturn]] inline void FuzzFailure(std::string_view what) {
  std::fprintf(stderr, "FUZZ FAILURE: %.*s\n", static_cast<int>(what.size()), what.data());
  std::fflush(stderr);
  std::abort();
}

inline void FuzzCheck(bool holds, std::string_view what) {
  if (!holds) FuzzFailure(what);
}

}  // namespace latchkey

#endif  // LATCHKEY_TESTS_FUZZ_FUZZ_INPUT_H_

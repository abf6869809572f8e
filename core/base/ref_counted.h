// An intrusive reference count, for objects that a tagged pointer (Lock) or a callback keeps alive.
#ifndef LATCHKEY_CORE_BASE_REF_COUNTED_H_
#define LATCHKEY_CORE_BASE_REF_COUNTED_H_

#include <atomic>
#include <cstddef>
#include <utility>

namespace latchkey::internal {

// Base of T, which starts with one reference and deletes itself with the last.
template <typename T>
class RefCounted {
 public:
  void Ref() const { refs_.fetch_add(1, std::memory_order_relaxed); }
  void Unref() const {
    if (refs_.fetch_sub(1, std::memory_order_acq_rel) == 1) delete static_cast<const T*>(this);
  }

 protected:
  ~RefCounted() = default;

 private:
  mutable std::atomic<int> refs_{1};
};

// Owns one reference, or none.
template <typename T>
class RefPtr {
 public:
  RefPtr() = default;
  // Takes over the reference that the caller has.
  static RefPtr Adopt(T* object) {
    RefPtr pointer;
    pointer.object_ = object;
    return pointer;
  }
  // Adds a reference.
  static RefPtr Share(T* object) {
    if (object != nullptr) object->Ref();
    return Adopt(object);
  }
  RefPtr(const RefPtr& other) : RefPtr(Share(other.object_)) {}
  RefPtr(RefPtr&& other) noexcept : object_(std::exchange(other.object_, nullptr)) {}
  // Each lets go of the old object itself: where `{}` is assigned in a template, clang 14 does not
  // destroy what it makes of that.
  RefPtr& operator=(const RefPtr& other) noexcept { return *this = RefPtr(other); }
  RefPtr& operator=(RefPtr&& other) noexcept {
    RefPtr taken(std::move(other));
    std::swap(object_, taken.object_);
    return *this;
  }
  ~RefPtr() {
    if (object_ != nullptr) object_->Unref();
  }

  T* get() const { return object_; }
  T* operator->() const { return object_; }
  T& operator*() const { return *object_; }
  explicit operator bool() const { return object_ != nullptr; }
  // Gives the reference to the caller.
  T* Release() { return std::exchange(object_, nullptr); }

  friend bool operator==(const RefPtr&, const RefPtr&) = default;

 private:
  T* object_ = nullptr;
};

}  // namespace latchkey::internal

#endif  // LATCHKEY_CORE_BASE_REF_COUNTED_H_

#include "latchkey/core/stats_observer.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace latchkey {
namespace {

void AppendHeader(std::string& text, std::string_view name, std::string_view type,
                  std::string_view help) {
  absl::StrAppend(&text, "# HELP ", name, " ", help, "\n# TYPE ", name, " ", type, "\n");
}

// What names begin with, by the rules of Prometheus' data model.
std::string ValidPrefix(std::string_view wanted) {
  if (wanted.empty()) return "";
  std::string prefix = absl::ascii_isdigit(wanted[0]) ? "_" : "";
  for (const char c : wanted) prefix += absl::ascii_isalnum(c) || c == ':' ? c : '_';
  return prefix += '_';
}

// All digits there are: with fewer, a sum that has grown large would stand still.
std::string InSeconds(absl::Duration duration) {
  const int64_t seconds = absl::IDivDuration(duration, absl::Seconds(1), &duration);
  std::string text = absl::StrFormat("%d.%09d", seconds, absl::ToInt64Nanoseconds(duration));
  text.erase(text.find_last_not_of('0') + 1);
  if (text.back() == '.') text.pop_back();
  return text;
}

void AppendValue(std::string& text, std::string_view prefix, std::string_view name,
                 std::string_view type, std::string_view help, int64_t value) {
  const std::string full = absl::StrCat(prefix, name);
  AppendHeader(text, full, type, help);
  absl::StrAppend(&text, full, " ", value, "\n");
}

void AppendHistogram(std::string& text, std::string_view prefix, std::string_view name,
                     std::string_view help, const DurationHistogram& histogram) {
  const std::string full = absl::StrCat(prefix, name);
  AppendHeader(text, full, "histogram", help);
  for (size_t i = 0; i < DurationHistogram::kBounds.size(); ++i) {
    absl::StrAppend(&text, full, "_bucket{le=\"", DurationHistogram::kBounds[i], "\"} ",
                    histogram.CountUpTo(i), "\n");
  }
  const int64_t count = histogram.count();  // Once: it must be the same in both places.
  absl::StrAppend(&text, full, "_bucket{le=\"+Inf\"} ", count, "\n", full, "_sum ",
                  InSeconds(histogram.sum()), "\n", full, "_count ", count, "\n");
}

constexpr auto kNanoBounds = [] {
  std::array<int64_t, DurationHistogram::kBounds.size()> bounds{};
  for (size_t i = 0; i < bounds.size(); ++i) {
    bounds[i] = static_cast<int64_t>(DurationHistogram::kBounds[i] * 1e9 + 0.5);
  }
  return bounds;
}();

// From here on nanoseconds are carried over: after 73 years in all. Until that has happened,
// hundreds of threads may each add kLargest, and it still does not overflow.
constexpr int64_t kCarry = int64_t{1} << 61;
constexpr int64_t kLargest = int64_t{1} << 53;  // 104 days.
constexpr absl::Duration kLongest = absl::Hours(100 * 365 * 24 + 25 * 24);

}  // namespace

void DurationHistogram::Add(absl::Duration duration) {
  // Two locked instructions at most, and no arithmetic on absl::Duration, since this is called for
  // every lock.
  const int64_t nanoseconds = absl::ToInt64Nanoseconds(duration);
  size_t range = 0;
  while (range < kBounds.size() && nanoseconds > kNanoBounds[range]) ++range;
  ranges_[range].fetch_add(1, std::memory_order_relaxed);
  if (nanoseconds <= 0) return;
  if (nanoseconds > kLargest) {
    AddSlowly(std::min(duration, kLongest));
  } else if (nanoseconds_.fetch_add(nanoseconds, std::memory_order_relaxed) >= kCarry) {
    AddSlowly(absl::ZeroDuration());
  }
}

void DurationHistogram::AddSlowly(absl::Duration duration) {
  absl::MutexLock lock(&mu_);
  carried_ += duration;
  if (nanoseconds_.load(std::memory_order_relaxed) < kCarry) return;
  nanoseconds_.fetch_sub(kCarry, std::memory_order_relaxed);
  carried_ += absl::Nanoseconds(kCarry);
}

absl::Duration DurationHistogram::sum() const {
  absl::MutexLock lock(&mu_);
  return carried_ + absl::Nanoseconds(nanoseconds_.load(std::memory_order_relaxed));
}

int64_t DurationHistogram::CountUpTo(size_t i) const {
  int64_t sum = 0;
  for (size_t range = 0; range <= i; ++range) {
    sum += ranges_[range].load(std::memory_order_relaxed);
  }
  return sum;
}

int64_t StatsObserver::denied() const {
  int64_t sum = 0;
  for (const Counter& counter : denied_) sum += Read(counter);
  return sum;
}

void StatsObserver::OnAcquired(const Subject&, absl::Duration waited) { wait_time_.Add(waited); }

void StatsObserver::OnDenied(const Subject&, absl::Duration, const absl::Status& why) {
  Count(denied_[static_cast<size_t>(ReasonOf(why))]);
}

void StatsObserver::OnQueueLength(std::string_view, int64_t, int64_t change) {
  waiting_.fetch_add(change, std::memory_order_relaxed);
}

void StatsObserver::OnPreempted(const Subject&, Priority) { Count(preempted_); }
void StatsObserver::OnStolen(const Subject&) { Count(stolen_); }
void StatsObserver::OnExpired(const Subject&) { Count(expired_); }
void StatsObserver::OnLost(const Subject&) { Count(lost_); }

void StatsObserver::OnReleased(const Subject&, absl::Duration held) { hold_time_.Add(held); }

std::string StatsObserver::PrometheusText(std::string_view wanted_prefix) const {
  const std::string prefix = ValidPrefix(wanted_prefix);
  std::string text;
  AppendValue(text, prefix, "acquired_total", "counter", "Locks granted.", acquired());
  AppendValue(text, prefix, "released_total", "counter", "Locks given back.", released());
  AppendValue(text, prefix, "preempted_total", "counter", "Holders asked to yield.", preempted());
  AppendValue(text, prefix, "stolen_total", "counter", "Locks taken by force.", stolen());
  AppendValue(text, prefix, "expired_total", "counter", "Locks whose lease ran out.", expired());
  AppendValue(text, prefix, "lost_total", "counter", "Locks found to be gone.", lost());
  AppendValue(text, prefix, "held", "gauge", "Locks held now.", held());
  AppendValue(text, prefix, "waiting", "gauge", "Requests that wait now.", waiting());
  const std::string denied_name = absl::StrCat(prefix, "denied_total");
  AppendHeader(text, denied_name, "counter", "Requests that failed, by reason.");
  for (size_t i = 0; i < kReasons; ++i) {
    if (Read(denied_[i]) == 0) continue;
    absl::StrAppend(&text, denied_name, "{reason=\"", ReasonName(static_cast<Reason>(i)), "\"} ",
                    Read(denied_[i]), "\n");
  }
  AppendHistogram(text, prefix, "wait_seconds", "From the request to the grant.", wait_time_);
  AppendHistogram(text, prefix, "hold_seconds", "From the grant to the release.", hold_time_);
  return text;
}

}  // namespace latchkey

#include "latchkey/benchmarks/trace.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"

namespace latchkey::benchmarks {
namespace {

constexpr std::string_view kHeader = "arrival_us,resource,owner,priority,hold_us";

std::string Quoted(std::string_view field) {
  if (field.find_first_of(",\"\r\n") == std::string_view::npos) return std::string(field);
  return absl::StrCat("\"", absl::StrReplaceAll(field, {{"\"", "\"\""}}), "\"");
}

// Reads the fields of one record, which may span lines. False at the end of the input.
bool ReadRecord(std::istream& in, std::vector<std::string>& fields) {
  fields.assign(1, "");
  bool any = false;
  bool quoted = false;
  for (int c = in.get(); c != std::istream::traits_type::eof(); c = in.get()) {
    any = true;
    if (quoted) {
      if (c != '"') {
        fields.back().push_back(static_cast<char>(c));
      } else if (in.peek() == '"') {
        fields.back().push_back(static_cast<char>(in.get()));
      } else {
        quoted = false;
      }
    } else if (c == '"') {
      quoted = true;
    } else if (c == ',') {
      fields.emplace_back();
    } else if (c == '\n') {
      return true;
    } else if (c != '\r') {
      fields.back().push_back(static_cast<char>(c));
    }
  }
  return any;
}

}  // namespace

absl::StatusOr<std::vector<TracedRequest>> ReadTrace(std::istream& in) {
  std::vector<TracedRequest> requests;
  std::vector<std::string> fields;
  for (int record = 1; ReadRecord(in, fields); ++record) {
    if (fields.size() == 1 && fields[0].empty()) continue;
    if (record == 1 && fields[0] == "arrival_us") continue;
    int64_t arrival;
    int64_t hold;
    TracedRequest request;
    if (fields.size() != 5 || !absl::SimpleAtoi(fields[0], &arrival) || arrival < 0 ||
        fields[1].empty() || !absl::SimpleAtoi(fields[3], &request.priority) ||
        !absl::SimpleAtoi(fields[4], &hold) || hold < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("record ", record, " of the trace is not of the form ", kHeader));
    }
    request.arrival = absl::Microseconds(arrival);
    request.hold = absl::Microseconds(hold);
    request.resource = std::move(fields[1]);
    request.owner = std::move(fields[2]);
    requests.push_back(std::move(request));
  }
  std::stable_sort(
      requests.begin(), requests.end(),
      [](const TracedRequest& a, const TracedRequest& b) { return a.arrival < b.arrival; });
  return requests;
}

void WriteTraceHeader(std::ostream& out) { out << kHeader << "\n"; }

void WriteTraceLine(std::ostream& out, const TracedRequest& request) {
  out << absl::StrCat(absl::ToInt64Microseconds(request.arrival), ",", Quoted(request.resource),
                      ",", Quoted(request.owner), ",", request.priority, ",",
                      absl::ToInt64Microseconds(request.hold), "\n");
}

TraceRecorder::TraceRecorder(std::ostream& out, Clock* clock)
    : clock_(clock != nullptr ? *clock : RealClock()), out_(out) {
  absl::MutexLock lock(&mu_);
  WriteTraceHeader(out_);
}

TraceRecorder::~TraceRecorder() {
  absl::MutexLock lock(&mu_);
  out_.flush();
}

void TraceRecorder::OnAcquired(const Subject& who, absl::Duration waited) {
  const absl::Time arrival = clock_.Now() - waited;
  absl::MutexLock lock(&mu_);
  if (begin_ == absl::InfinitePast()) begin_ = arrival;
  // Grants are not in the order of arrivals: one that came before the first to be granted is put
  // beside it.
  arrivals_[who.acquisition] = std::max(arrival - begin_, absl::ZeroDuration());
}

void TraceRecorder::OnReleased(const Subject& who, absl::Duration held) {
  absl::MutexLock lock(&mu_);
  const auto found = arrivals_.find(who.acquisition);
  if (found == arrivals_.end()) return;
  WriteTraceLine(out_, {.arrival = found->second,
                        .resource = std::string(who.resource),
                        .owner = std::string(who.owner),
                        .priority = who.priority,
                        .hold = held});
  arrivals_.erase(found);
}

void TraceRecorder::Forget(const Subject& who) {
  absl::MutexLock lock(&mu_);
  arrivals_.erase(who.acquisition);
}

}  // namespace latchkey::benchmarks

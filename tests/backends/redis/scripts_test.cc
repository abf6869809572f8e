// The scripts against core/lock_record: random sequences of steps run on a real server, with the
// time given by the test, and on the reference. Replies, the stored record and the messages to
// others must agree after every step, whichever way the time goes. The waiting list and the clock
// that tokens follow, which the reference does not have, are written here a second time, in the
// plainest way.

#include "latchkey/backends/redis/scripts.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "hiredis/hiredis.h"
#include "latchkey/backends/redis/wire.h"
#include "latchkey/core/protocol/lock_record.h"
#include "latchkey/tests/support/redis_server.h"

namespace latchkey::redis {
namespace {

using Reply = std::unique_ptr<redisReply, decltype(&freeReplyObject)>;

class Connection {
 public:
  explicit Connection(const RedisServer& server)
      : context_(redisConnectUnix(server.socket_path().c_str()), &redisFree) {}

  Reply Do(const std::vector<std::string>& arguments) {
    std::vector<const char*> argv;
    std::vector<size_t> sizes;
    for (const std::string& argument : arguments) {
      argv.push_back(argument.data());
      sizes.push_back(argument.size());
    }
    return {static_cast<redisReply*>(redisCommandArgv(context_.get(), static_cast<int>(argv.size()),
                                                      argv.data(), sizes.data())),
            &freeReplyObject};
  }

  Reply Next() {
    void* reply = nullptr;
    redisGetReply(context_.get(), &reply);
    return {static_cast<redisReply*>(reply), &freeReplyObject};
  }

 private:
  std::unique_ptr<redisContext, decltype(&redisFree)> context_;
};

std::string Text(const redisReply* reply) {
  if (reply == nullptr) return "no reply";
  switch (reply->type) {
    case REDIS_REPLY_INTEGER:
      return absl::StrCat(reply->integer);
    case REDIS_REPLY_ARRAY: {
      std::vector<std::string> parts;
      for (size_t i = 0; i < reply->elements; ++i) parts.push_back(Text(reply->element[i]));
      return absl::StrCat("[", absl::StrJoin(parts, ","), "]");
    }
    case REDIS_REPLY_NIL:
      return "nil";
    default:
      return std::string(reply->str, reply->len);
  }
}

// Runs the scripts on a record of its own, with the time given.
class ScriptRunner {
 public:
  explicit ScriptRunner(const RedisServer& server) : commands_(server), events_(server) {
    commands_.Do({"SET", "p:marker", "1"});
    events_.Do({"PSUBSCRIBE", "p:client:*"});
  }

  Reply Run(Step step, absl::Time now, std::vector<std::string> arguments) {
    static const auto& texts = *new std::map<Step, std::string>{[] {
      std::map<Step, std::string> texts;
      for (int i = 0; i < kSteps; ++i) {
        const auto step = static_cast<Step>(i);
        texts[step] = ScriptTextWithTime(step, "local now = tonumber(table.remove(ARGV))\n");
      }
      return texts;
    }()};
    std::vector<std::string> command = {"EVAL", texts.at(step), "1", RecordKey("p:", resource_)};
    if (step == Step::kObtain) {
      command[2] = "2";
      command.push_back(MarkerKey("p:"));
    }
    command.insert(command.end(), arguments.begin(), arguments.end());
    command.push_back(absl::StrCat(absl::ToUnixMicros(now)));
    return commands_.Do(command);
  }

  // Messages since the last call, sorted; each as "client message". The mark tells where to stop.
  std::vector<std::string> MessagesUntilMark(int mark) {
    commands_.Do({"PUBLISH", "p:client:mark", absl::StrCat(mark)});
    std::vector<std::string> messages;
    for (;;) {
      const Reply reply = events_.Next();
      if (reply == nullptr || reply->elements != 4) return {"subscription broke"};
      const std::string channel(reply->element[2]->str, reply->element[2]->len);
      const std::string text(reply->element[3]->str, reply->element[3]->len);
      if (channel == "p:client:mark") {
        if (text == absl::StrCat(mark)) break;
        continue;
      }
      messages.push_back(absl::StrCat(channel.substr(9), " ", text));
    }
    std::sort(messages.begin(), messages.end());
    return messages;
  }

  std::map<std::string, std::string> Record() {
    const Reply reply = commands_.Do({"HGETALL", RecordKey("p:", resource_)});
    std::map<std::string, std::string> fields;
    for (size_t i = 0; i + 1 < reply->elements; i += 2) {
      fields[Text(reply->element[i])] = Text(reply->element[i + 1]);
    }
    return fields;
  }

  int64_t WaitingListSize() {
    return commands_.Do({"ZCARD", WaitingListKey("p:", resource_)})->integer;
  }

  void UseResource(std::string resource) { resource_ = std::move(resource); }
  Connection& commands() { return commands_; }

 private:
  Connection commands_;
  Connection events_;
  std::string resource_ = "r";
};

std::string ClientOf(AcquisitionId id) {
  return id.low % 2 == 0 ? "00000000000000aa" : "00000000000000bb";
}

struct Waiter {
  AcquisitionId acquisition = {};
  std::string owner = {};
  Priority priority = 0;
  int number = 0;
  absl::Time deadline = {};
  absl::Duration length = {};
  absl::Duration reservation = {};
  bool barging = false;
  bool silent = false;
};

// The reference: core/lock_record and a waiting list.
struct Model {
  LockRecord record;
  bool nominated = false;
  int registered = 0;
  std::vector<Waiter> waiters;
  std::vector<std::string> messages;
  std::optional<AcquisitionId> claimer;
  int waiters_cut = 0;

  void Send(AcquisitionId to, std::string_view kind, std::string_view rest) {
    messages.push_back(absl::StrCat(ClientOf(to), " ", kind, to.ToString(), rest));
  }

  static std::string Why(HoldEnd why) {
    return why == HoldEnd::kReleased ? "r" : why == HoldEnd::kExpired ? "x" : "s";
  }

  Waiter* Find(AcquisitionId id) {
    for (Waiter& waiter : waiters) {
      if (waiter.acquisition == id) return &waiter;
    }
    return nullptr;
  }

  void Forget(AcquisitionId id) {
    std::erase_if(waiters, [&](const Waiter& waiter) { return waiter.acquisition == id; });
  }

  void SortWaiters() {
    std::sort(waiters.begin(), waiters.end(), [](const Waiter& a, const Waiter& b) {
      return a.priority != b.priority ? a.priority > b.priority : a.number < b.number;
    });
  }

  // Whether the next waiter to be met counts; one that does not goes.
  bool Meet(std::vector<Waiter>::iterator waiter, absl::Time now) {
    if (waiter->deadline > now + waiter->length) {
      waiter->deadline = now + waiter->length;
      ++waiters_cut;
    }
    if (waiter->deadline > now) return true;
    waiters.erase(waiter);
    return false;
  }

  void MeetFirst(absl::Time now) {
    SortWaiters();
    while (!waiters.empty() && !Meet(waiters.begin(), now)) {
    }
  }

  void WakeBest(absl::Time now, HoldEnd why, AcquisitionId caller) {
    SortWaiters();
    size_t met = 0;
    std::optional<size_t> best;
    std::optional<size_t> silent;
    std::optional<size_t> next;
    while (met < waiters.size() && !next) {
      if (!Meet(waiters.begin() + static_cast<std::ptrdiff_t>(met), now)) continue;
      if (best) {
        next = met;
      } else if (!waiters[met].silent) {
        best = met;
      } else if (!silent) {
        silent = met;
      }
      ++met;
    }
    if (!best) best = silent;
    if (!best) return;
    Waiter& woken = waiters[*best];
    const Waiter* const after = next ? &waiters[*next] : nullptr;
    woken.silent = true;
    claimer = woken.acquisition;
    if (!woken.barging) {
      ASSERT_TRUE(
          Nominate(record, woken.acquisition, woken.owner, woken.priority, woken.reservation, now));
      nominated = true;
    }
    if (woken.acquisition != caller) Send(woken.acquisition, "H", Why(why));
    if (after != nullptr) {
      Send(after->acquisition, "L",
           absl::StrCat(" ", absl::ToInt64Microseconds(woken.reservation)));
    }
  }

  void Finish(const Effects& effects, absl::Time now, AcquisitionId caller) {
    for (const Notice& notice : effects.notices) {
      for (const AcquisitionId to : notice.to) {
        switch (notice.event.kind) {
          case WatchEventKind::kDisplaced:
            Send(to, "D", "");
            break;
          case WatchEventKind::kYieldWithdrawn:
            Send(to, "N", "");
            break;
          case WatchEventKind::kHoldEnded:
            Send(to, "H", Why(notice.event.why));
            break;
          case WatchEventKind::kYieldRequested:
            Send(to, "Y",
                 absl::StrCat(" ",
                              notice.event.grace_remaining == absl::InfiniteDuration()
                                  ? -1
                                  : absl::ToInt64Microseconds(notice.event.grace_remaining),
                              " ", EncodePriority(notice.event.thief_priority), " ",
                              absl::ToInt64Microseconds(record.successor->deadline - now)));
            break;
        }
      }
    }
    if (effects.became_free && !record.holder) {
      if (record.successor) {
        Send(record.successor->acquisition, "H", Why(effects.why));
      } else {
        WakeBest(now, effects.why, caller);
      }
    }
  }
};

std::string GraceText(absl::Duration grace) {
  return grace == absl::InfiniteDuration() ? "-1" : absl::StrCat(absl::ToInt64Microseconds(grace));
}

std::string MicrosText(absl::Duration duration) {
  return absl::StrCat(absl::ToInt64Microseconds(duration));
}

// The record as the server has it.
struct Stored {
  std::map<std::string, std::string> fields;
  double fence = 0;
  double kept = 0;      // Until when,
  double deadline = 0;  // of the hold,
  double length = 0;    // and its length.
  double waiting = 0;
  int more = 0;

  explicit Stored(std::map<std::string, std::string> all) : fields(std::move(all)) {
    const std::string s = fields["s"];
    auto number = [&](size_t at) {
      double value = 0;
      if (at + 8 <= s.size()) std::memcpy(&value, s.data() + at, 8);
      return value;
    };
    fence = number(0);
    kept = number(8);
    deadline = number(16);
    length = number(24);
    waiting = number(64);
    if (s.size() == 89) more = s[88];
    EXPECT_TRUE(s.empty() || s.size() == 64 || s.size() == 89) << s.size();
  }

  bool IsShort() const { return fields.at("s").size() <= 64; }
  bool HasSuccessor() const { return more % 2 == 1; }

  // As a holder and a successor would be described by ExpectedRecord().
  std::map<std::string, std::string> Describe() const {
    std::map<std::string, std::string> record;
    record["fence"] = Exactly(fence);
    if (deadline > 0) {
      const std::string& hold = fields.at("h");
      record["handles"] = absl::StrCat("h", fields.at("s").substr(32, 32), ":", hold.substr(0, 16),
                                       more >= 2 ? fields.at("hh") : "");
      record["holder"] = hold.substr(16);
      record["deadline"] = Exactly(deadline);
      record["length"] = Exactly(length);
    }
    if (HasSuccessor()) {
      record["successor"] = fields.at("sa");
      const std::string& info = fields.at("si");
      double times[4];
      std::memcpy(times, info.data(), sizeof times);
      record["reserved until"] = Exactly(times[0]);
      record["length of the reservation"] = Exactly(times[1]);
      record["grace end"] = Exactly(times[2]);
      if (times[2] != 0) record["grace"] = Exactly(times[3]);
      record["reserved for"] = info.substr(sizeof times);
    }
    return record;
  }

  static std::string Exactly(double number) { return absl::StrCat(static_cast<int64_t>(number)); }
};

std::map<std::string, std::string> ExpectedRecord(const Model& model) {
  std::map<std::string, std::string> fields;
  const LockRecord& record = model.record;
  fields["fence"] = absl::StrCat(record.fence);
  if (record.holder) {
    // So the scripts do not store it.
    EXPECT_EQ(record.holder->token, record.fence);
    for (const AcquisitionId id : record.holder->handles) {
      absl::StrAppend(&fields["handles"], "h", id.ToString(), ":", ClientOf(id));
    }
    fields["holder"] = absl::StrCat(EncodePriority(record.holder->priority),
                                    record.holder->preemptible ? 1 : 0, record.holder->owner);
    fields["deadline"] = absl::StrCat(absl::ToUnixMicros(record.holder->deadline));
    fields["length"] = MicrosText(record.holder->length);
  }
  if (const auto& successor = record.successor) {
    fields["successor"] =
        absl::StrCat(successor->acquisition.ToString(), ClientOf(successor->acquisition));
    fields["reserved until"] = absl::StrCat(absl::ToUnixMicros(successor->deadline));
    fields["length of the reservation"] = MicrosText(successor->length);
    if (successor->grace_end == absl::InfiniteFuture()) {
      fields["grace end"] = "0";
    } else {
      fields["grace end"] = absl::StrCat(absl::ToUnixMicros(successor->grace_end));
      fields["grace"] = MicrosText(successor->grace);
    }
    fields["reserved for"] = absl::StrCat(model.nominated ? 1 : 0,
                                          EncodePriority(successor->priority), successor->owner);
  }
  return fields;
}

std::string Padded(absl::Duration duration) {
  return absl::StrFormat("%016d", absl::ToInt64Microseconds(duration));
}

// A grant as its token alone, anything else as it is.
std::string ObtainText(const redisReply* reply) {
  if (reply == nullptr || reply->type != REDIS_REPLY_STRING || reply->len != kStateSize) {
    return Text(reply);
  }
  const auto token = NumberFromWire(Text(reply));
  return token ? absl::StrCat(*token) : "no token";
}

// What the client sends.
std::vector<std::string> ObtainArguments(const ObtainRequest& request, std::string_view proposal,
                                         absl::Duration max_lease = absl::ZeroDuration(),
                                         std::string_view skew = "") {
  int64_t proposed = 0;
  EXPECT_TRUE(absl::SimpleAtoi(proposal, &proposed));
  auto number = [](double value) { return std::string(reinterpret_cast<const char*>(&value), 8); };
  auto micros = [&](absl::Duration duration) {
    return number(static_cast<double>(absl::ToInt64Microseconds(duration)));
  };
  std::string numbers =
      absl::StrCat(micros(request.lease), number(static_cast<double>(proposed)), micros(max_lease));
  if (request.reserve_below) {
    absl::StrAppend(&numbers, micros(request.reservation_lease),
                    request.grace ? micros(*request.grace) : number(-1),
                    EncodePriority(*request.reserve_below));
  }
  std::vector<std::string> arguments = {
      request.acquisition.ToString(),
      absl::StrCat(ClientOf(request.acquisition), EncodePriority(request.priority),
                   request.preemptible ? 1 : 0, request.owner),
      numbers};
  if (!skew.empty()) arguments.emplace_back(skew);
  return arguments;
}

// What the marker says of the clock that tokens follow.
struct TokenClock {
  absl::Time noted = absl::InfinitePast();
  absl::Duration ahead = absl::ZeroDuration();

  void Obtain(absl::Time now, bool granted) {
    if (now < noted) {
      ahead += noted + absl::Seconds(1) + absl::Microseconds(1) - now;
      noted = now;
    } else if (granted && (noted == absl::InfinitePast() || now > noted + absl::Seconds(1))) {
      noted = now;
    }
  }
};

uint64_t Seed() {
  const char* given = std::getenv("LATCHKEY_SEED");
  uint64_t seed = 0;
  if (given != nullptr && absl::SimpleAtoi(given, &seed)) return seed;
  return std::random_device{}();
}

TEST(RedisScriptsTest, AgreeWithTheReferenceOnRandomSequences) {
  const uint64_t seed = Seed();
  SCOPED_TRACE(absl::StrCat("LATCHKEY_SEED=", seed));
  std::mt19937_64 random(seed);
  auto below = [&](int n) { return static_cast<int>(random() % static_cast<uint64_t>(n)); };
  RedisServer server;
  ScriptRunner scripts(server);
  constexpr Priority kPriorities[] = {std::numeric_limits<Priority>::min(),
                                      -1,
                                      0,
                                      7,
                                      (int64_t{1} << 53) + 1,
                                      (int64_t{1} << 53) + 2,
                                      std::numeric_limits<Priority>::max()};
  const std::string owners[] = {"", "a", "b", std::string("c\0\r\n", 4)};
  int mark = 0;
  std::map<std::string, int> seen;
  absl::Time now = absl::FromUnixSeconds(1'800'000'000);
  TokenClock token_clock;

  for (int sequence = 0; sequence < 500; ++sequence) {
    scripts.UseResource(absl::StrCat("resource ", sequence));
    Model model;
    // Few priorities at a time, so that equal ones meet.
    const Priority low = kPriorities[below(6)];
    const Priority high = kPriorities[below(7)];
    auto priority = [&] { return below(2) == 0 ? low : high; };
    std::vector<AcquisitionId> ids;
    std::map<AcquisitionId, std::string> owner_of;
    for (uint64_t i = 0; i < 7; ++i) {
      ids.push_back({0xfedcba9876543210u + i, (uint64_t{1} << 63) + i});
      owner_of[ids.back()] = owners[below(4)];
    }
    bool waited = false;  // Somebody did, in this sequence.
    for (int step = 0; step < 120; ++step) {
      now += absl::Microseconds(below(4) == 0 ? below(40) : below(4));
      // So that the record has to be kept for longer, or for less.
      if (below(100) == 0) now += absl::Seconds(30);
      // A clock that is set: anything from a little to more than all that is there.
      if (below(25) == 0) {
        const absl::Duration steps[] = {absl::Microseconds(5), absl::Microseconds(40),
                                        absl::Seconds(50), absl::Hours(2)};
        now -= steps[below(4)];
        seen["the clock went back"]++;
        const LockRecord& record = model.record;
        if (record.holder && record.holder->deadline > now + record.holder->length) {
          seen["a hold was cut"]++;
        }
        if (const auto& successor = record.successor) {
          if (successor->deadline > now + successor->length) seen["a reservation was cut"]++;
          if (successor->grace_end > now + successor->grace) seen["a grace was cut"]++;
        }
      }
      const Stored before(scripts.Record());
      const absl::Time kept_before = absl::FromUnixMicros(static_cast<int64_t>(before.kept));
      const AcquisitionId id = ids[static_cast<size_t>(below(7))];
      Effects effects;
      model.messages.clear();
      model.claimer.reset();
      std::string expected;
      std::string actual;
      std::string what;
      const int kind = below(12);
      if (kind < 5) {
        what = "obtain";
        ObtainRequest request{.resource = "r", .acquisition = id, .owner = owner_of[id]};
        request.priority = priority();
        request.preemptible = below(8) != 0;
        request.lease = below(30) == 0 ? absl::Minutes(2) : absl::Microseconds(1 + below(60));
        if (below(4) != 0) request.reserve_below = below(3) == 0 ? priority() : request.priority;
        request.reservation_lease = absl::Microseconds(1 + below(25));
        if (below(3) == 0) request.grace = absl::Microseconds(below(20));
        ObtainReply reply = Apply(model.record, request, now, effects);
        token_clock.Obtain(now, reply.outcome == ObtainOutcome::kObtained);
        if (reply.outcome == ObtainOutcome::kObtained) {
          // Tokens follow the clock, of which the reference does not know.
          const int64_t least = absl::ToUnixMicros(now + token_clock.ahead - kTokenSlack);
          if (least > static_cast<int64_t>(reply.token)) {
            reply.token = static_cast<FencingToken>(least);
            model.record.fence = model.record.holder->token = reply.token;
            seen["a token by the clock"]++;
          }
        }
        switch (reply.outcome) {
          case ObtainOutcome::kObtained:
          case ObtainOutcome::kReentered:
            expected =
                reply.outcome == ObtainOutcome::kObtained
                    ? absl::StrCat(reply.token)
                    : absl::StrCat("[2,", reply.token, ",", MicrosText(reply.remaining), "]");
            model.Forget(id);
            break;
          case ObtainOutcome::kReserved:
            expected = absl::StrCat("[3,", MicrosText(reply.remaining), ",",
                                    GraceText(reply.grace_remaining), ",", reply.other_owner, ",",
                                    EncodePriority(reply.other_priority), "]");
            // A nominee that reserves anew has become a thief.
            break;
          case ObtainOutcome::kDenied:
            expected = absl::StrCat("[4,", MicrosText(reply.remaining), ",", reply.other_owner, ",",
                                    EncodePriority(reply.other_priority), "]");
            break;
        }
        seen[expected[0] == '[' ? expected.substr(0, 2) : "obtained"]++;
        // Whoever asks is alive.
        if (Waiter* waiter = model.Find(id)) waiter->silent = false;
        if (reply.outcome == ObtainOutcome::kReserved) model.nominated = false;
        model.Finish(effects, now, id);
        actual = ObtainText(scripts.Run(Step::kObtain, now, ObtainArguments(request, "0")).get());
      } else if (kind < 7) {
        what = "release";
        const ReleaseOutcome outcome = ApplyRelease(model.record, id, now, effects);
        expected = absl::StrCat(static_cast<int>(outcome) + 1);
        seen[absl::StrCat("release ", expected)]++;
        model.Finish(effects, now, id);
        actual = Text(scripts.Run(Step::kRelease, now, {id.ToString()}).get());
      } else if (kind == 7) {
        what = "extend";
        const absl::Duration lease = absl::Microseconds(1 + below(60));
        const ExtendReply reply = ApplyExtend(model.record, id, lease, now, effects);
        expected = reply.outcome == ExtendOutcome::kNotHeld
                       ? "[3]"
                       : absl::StrCat("[", static_cast<int>(reply.outcome) + 1, ",",
                                      MicrosText(reply.remaining), "]");
        seen[absl::StrCat("extend ", static_cast<int>(reply.outcome))]++;
        model.Finish(effects, now, id);
        actual = Text(scripts.Run(Step::kExtend, now, {id.ToString(), MicrosText(lease)}).get());
      } else if (kind == 8) {
        what = "confirm";
        const FencingToken token = model.record.fence + static_cast<uint64_t>(below(4)) - 1;
        const ConfirmReply reply = ApplyConfirm(model.record, id, token, now, effects);
        expected =
            reply.outcome == ConfirmOutcome::kNotHeld
                ? "[3]"
                : absl::StrCat("[", static_cast<int>(reply.outcome) + 1, ",", reply.token, "]");
        seen[absl::StrCat("confirm ", static_cast<int>(reply.outcome))]++;
        model.Finish(effects, now, id);
        actual = Text(scripts.Run(Step::kConfirm, now, {id.ToString(), absl::StrCat(token)}).get());
      } else if (kind < 11) {
        what = "watch";
        Waiter waiter{.acquisition = id,
                      .owner = owner_of[id],
                      .priority = priority(),
                      .length = absl::Microseconds(1 + below(80)),
                      .reservation = absl::Microseconds(1 + below(20)),
                      .barging = below(5) == 0};
        waiter.deadline = now + waiter.length;
        const std::string barging = waiter.barging ? "1" : "0";
        const bool as_holder = below(8) == 0;
        std::optional<AcquisitionId> place_of;
        if (below(6) == 0) place_of = ids[static_cast<size_t>(below(7))];
        const std::string lease = MicrosText(waiter.length);
        const Priority asked = waiter.priority;

        Expire(model.record, now, effects);
        const auto& holder = model.record.holder;
        const bool is_handle = holder && std::find(holder->handles.begin(), holder->handles.end(),
                                                   id) != holder->handles.end();
        if (is_handle) {
          expected = absl::StrCat("[1,", MicrosText(holder->deadline - now), "]");
          if (const auto& successor = model.record.successor) {
            expected = absl::StrCat("[2,", GraceText(successor->grace_end - now), ",",
                                    EncodePriority(successor->priority), ",",
                                    MicrosText(successor->deadline - now), "]");
          }
          model.Finish(effects, now, id);
        } else if (as_holder) {
          expected = "[3]";
          model.Finish(effects, now, id);
        } else {
          Waiter* old = model.Find(id);
          if (old != nullptr && old->priority == waiter.priority && old->deadline > now) {
            waiter.number = old->number;
            waiter.silent = old->silent;
          }
          model.Forget(id);
          if (place_of) {
            Waiter* other = model.Find(*place_of);
            // Its own place is gone already if the priority changed; otherwise it takes itself.
            if (*place_of == id && waiter.number != 0) {
              // Nothing changes.
            } else if (other != nullptr && other->deadline > now &&
                       other->priority == waiter.priority) {
              waiter.number = other->number;
              waiter.silent = false;
              if (auto& successor = model.record.successor;
                  !holder && successor && successor->acquisition == *place_of && model.nominated) {
                successor->acquisition = id;
                successor->owner = waiter.owner;
              }
              model.Forget(*place_of);
            }
          }
          if (waiter.number == 0) waiter.number = ++model.registered;
          model.waiters.push_back(waiter);
          model.MeetFirst(now);
          const HoldEnd why = effects.became_free ? effects.why : HoldEnd::kReleased;
          if (model.record.IsFree()) effects.became_free = true;
          effects.why = why;
          model.Finish(effects, now, id);
          const auto& successor = model.record.successor;
          const bool may_claim =
              !holder && ((model.claimer && *model.claimer == id) ||
                          (successor && (successor->acquisition == id ||
                                         waiter.priority > successor->priority)));
          if (may_claim) {
            expected = absl::StrCat("[4,", Model::Why(why), "]");
          } else {
            absl::Duration left = absl::ZeroDuration();
            if (holder) {
              left = holder->deadline - now;
            } else if (successor) {
              left = successor->deadline - now;
            }
            const bool next =
                (successor && successor->acquisition == id) ||
                std::all_of(model.waiters.begin(), model.waiters.end(), [&](const Waiter& w) {
                  return w.acquisition == id || w.deadline <= now || w.priority < waiter.priority ||
                         (w.priority == waiter.priority && w.number > waiter.number);
                });
            expected = absl::StrCat("[5,", MicrosText(left), ",", next ? 1 : 0, "]");
          }
        }
        seen[absl::StrCat("watch ", expected.substr(0, 2))]++;
        std::vector<std::string> arguments = {
            id.ToString(),
            as_holder ? ""
                      : absl::StrCat(ClientOf(id), Padded(waiter.reservation), barging,
                                     EncodePriority(asked), owner_of[id]),
            EncodePriorityDescending(asked), lease};
        if (place_of) arguments.push_back(place_of->ToString());
        actual = Text(scripts.Run(Step::kWatch, now, arguments).get());
      } else {
        what = "unwatch";
        Expire(model.record, now, effects);
        model.Forget(id);
        auto& successor = model.record.successor;
        if (!model.record.holder && successor && successor->acquisition == id && model.nominated) {
          successor.reset();
          if (!effects.became_free) {
            effects.became_free = true;
            effects.why = HoldEnd::kReleased;
          }
        }
        model.Finish(effects, now, id);
        expected = "1";
        actual = Text(scripts.Run(Step::kUnwatch, now, {id.ToString()}).get());
      }
      ASSERT_EQ(actual, expected) << what << " by " << id.ToString() << ", sequence " << sequence
                                  << ", step " << step;
      std::vector<std::string> messages = model.messages;
      std::sort(messages.begin(), messages.end());
      ASSERT_EQ(scripts.MessagesUntilMark(++mark), messages)
          << what << ", sequence " << sequence << ", step " << step;
      const Stored stored(scripts.Record());
      ASSERT_EQ(stored.Describe(), ExpectedRecord(model))
          << what << ", sequence " << sequence << ", step " << step;
      // Dead registrations are dropped when they are met; live ones must be there.
      double live = 0;
      absl::Time needed = absl::FromUnixMicros(static_cast<int64_t>(model.record.fence));
      if (needed > now + kTokenSlack) needed -= token_clock.ahead;
      for (const Waiter& waiter : model.waiters) {
        if (waiter.deadline <= now) continue;
        ++live;
        needed = std::max(needed, waiter.deadline);
      }
      ASSERT_EQ(scripts.WaitingListSize(), static_cast<int64_t>(stored.waiting));
      ASSERT_GE(stored.waiting, live);
      if (model.record.holder) needed = std::max(needed, model.record.holder->deadline);
      if (model.record.successor) needed = std::max(needed, model.record.successor->deadline);
      const absl::Time kept = absl::FromUnixMicros(static_cast<int64_t>(stored.kept));
      ASSERT_TRUE(kept == absl::UnixEpoch() || kept >= needed + kTokenSlack)
          << what << ", sequence " << sequence << ", step " << step;
      if (what == "release" && expected == "1" && stored.deadline == 0 && stored.IsShort()) {
        ASSERT_LE(kept, std::max(now, needed) + kTokenSlack + absl::Seconds(90));
      }
      // What the shortcuts and whatever is left over from before have been through.
      if (what == "obtain" && expected[0] != '[') {
        const bool shortcut = before.deadline == 0 && before.IsShort();
        seen[shortcut ? "obtain's shortcut" : "obtain without"]++;
        if (shortcut && waited) seen["obtain's shortcut where somebody had waited"]++;
        if (shortcut && before.fields.contains("si")) seen["a grant over an old successor"]++;
        if (before.deadline > 0) seen["a grant over an expired or stolen hold"]++;
        if (kept > absl::FromUnixMicros(static_cast<int64_t>(before.kept))) seen["kept longer"]++;
      }
      if (what == "release" && expected == "1") {
        const bool shortcut = before.IsShort() && kept_before <= now + absl::Seconds(100);
        seen[shortcut ? "release's shortcut" : "release without"]++;
        if (shortcut && waited) seen["release's shortcut where somebody had waited"]++;
        if (before.more >= 2 && stored.more < 2) seen["one handle is left"]++;
        if (kept < kept_before) seen["kept shorter"]++;
      }
      if (what != "obtain" && !model.record.successor && stored.fields.contains("si")) {
        seen["an old successor is not read"]++;
      }
      if (!model.record.holder && stored.fields.contains("h")) seen["an old hold is not read"]++;
      waited = waited || stored.waiting > 0;
    }
    seen["a waiter was cut"] += model.waiters_cut;
  }
  // The sequences met every outcome.
  for (const char* outcome : {"obtained",
                              "[2",
                              "[3",
                              "[4",
                              "release 1",
                              "release 2",
                              "release 3",
                              "extend 0",
                              "extend 1",
                              "extend 2",
                              "confirm 0",
                              "confirm 1",
                              "confirm 2",
                              "watch [1",
                              "watch [2",
                              "watch [3",
                              "watch [4",
                              "watch [5",
                              "obtain's shortcut",
                              "obtain without",
                              "obtain's shortcut where somebody had waited",

                              "a grant over an old successor",
                              "a grant over an expired or stolen hold",
                              "kept longer",
                              "release's shortcut",
                              "release without",
                              "release's shortcut where somebody had waited",
                              "one handle is left",
                              "kept shorter",
                              "an old successor is not read",
                              "an old hold is not read",
                              "a token by the clock",
                              "the clock went back",
                              "a hold was cut",
                              "a reservation was cut",
                              "a grace was cut",
                              "a waiter was cut"}) {
    EXPECT_GT(seen[outcome], 0) << outcome;
  }
}

// A plain request.
std::vector<std::string> ObtainArguments(AcquisitionId id, std::string_view proposal,
                                         absl::Duration max_lease = absl::ZeroDuration(),
                                         std::string_view skew = "") {
  return ObtainArguments(
      ObtainRequest{.resource = "r", .acquisition = id, .lease = absl::Seconds(1)}, proposal,
      max_lease, skew);
}

TEST(RedisScriptsTest, TokensFollowTheServersClockAndOnlyGrow) {
  RedisServer server;
  ScriptRunner scripts(server);
  const absl::Time now = absl::FromUnixSeconds(1'800'000'000);
  constexpr int64_t kNow = 1'800'000'000'000'000;
  const int64_t slack = absl::ToInt64Microseconds(kTokenSlack);
  uint64_t next_id = 1;
  auto token = [&](absl::Time time, std::string_view proposal) {
    const AcquisitionId id{1, next_id++};
    const Reply reply = scripts.Run(Step::kObtain, time, ObtainArguments(id, proposal));
    int64_t token = -1;
    EXPECT_TRUE(absl::SimpleAtoi(ObtainText(reply.get()), &token));
    scripts.Run(Step::kRelease, time, {id.ToString()});
    return token;
  };
  // A proposal within the slack is taken as it is, to the last digit.
  EXPECT_EQ(token(now, absl::StrCat(kNow + 123)), kNow + 123);
  // Never smaller than the last one plus one.
  EXPECT_EQ(token(now, absl::StrCat(kNow + 123)), kNow + 124);
  EXPECT_EQ(token(now, "0"), kNow + 125);
  // Absurd proposals move it no further than the slack.
  EXPECT_EQ(token(now, "9007199254740991"), kNow + slack);
  // The record is kept until the clock alone makes tokens larger.
  const std::string key = RecordKey("p:", "r");
  EXPECT_GE(scripts.commands().Do({"PTTL", key})->integer, 2 * slack / 1000);
  // And then it may be lost.
  scripts.commands().Do({"DEL", key});
  EXPECT_GT(token(now + 2 * kTokenSlack + absl::Microseconds(1), "0"), kNow + slack);
}

TEST(RedisScriptsTest, WithoutItsMarkerAServerGrantsNothingUntilItHasRecovered) {
  RedisServer server;
  ScriptRunner scripts(server);
  scripts.commands().Do({"DEL", MarkerKey("p:")});
  const absl::Time now = absl::FromUnixSeconds(1'800'000'000);
  const absl::Duration us = absl::Microseconds(1);
  auto obtain = [&](absl::Time time) {
    return ObtainText(
        scripts.Run(Step::kObtain, time, ObtainArguments({1, 1}, "0", 500 * us)).get());
  };
  // The longest lease, and the reach of every token on both sides.
  EXPECT_EQ(obtain(now), "[5,20000500]");
  EXPECT_EQ(obtain(now + 499 * us + 2 * kTokenSlack), "[5,1]");
  EXPECT_EQ(obtain(now + 500 * us + 2 * kTokenSlack)[0], '1');
}

// ---- A server's clock that is stepped back ----

TEST(RedisScriptsTest, ARecoveryBeginsAnewAtMostWhenTheClockGoesBackAndNeverOnceItIsOver) {
  RedisServer server;
  ScriptRunner scripts(server);
  scripts.commands().Do({"DEL", MarkerKey("p:")});
  const absl::Time start = absl::FromUnixSeconds(1'800'000'000);
  const absl::Duration us = absl::Microseconds(1);
  auto obtain = [&](absl::Time time, AcquisitionId id) {
    return ObtainText(scripts.Run(Step::kObtain, time, ObtainArguments(id, "0", 500 * us)).get());
  };
  EXPECT_EQ(obtain(start, {1, 1}), "[5,20000500]");
  EXPECT_EQ(obtain(start + 100 * us, {1, 1}), "[5,20000400]");
  const absl::Time back = start - absl::Hours(2);
  EXPECT_EQ(obtain(back, {1, 1}), "[5,20000500]");
  EXPECT_EQ(obtain(back + 100 * us, {1, 1}), "[5,20000400]") << "it goes on";
  const absl::Time over = back + 500 * us + 2 * kTokenSlack;
  int64_t token = 0;
  ASSERT_TRUE(absl::SimpleAtoi(obtain(over, {1, 1}), &token));
  EXPECT_GT(token, absl::ToUnixMicros(start + kTokenSlack)) << "the largest from before the loss";
  scripts.Run(Step::kRelease, over, {AcquisitionId{1, 1}.ToString()});
  int64_t next = 0;
  ASSERT_TRUE(absl::SimpleAtoi(obtain(over - absl::Hours(2), {1, 2}), &next))
      << "it has recovered, whatever its clock says";
  EXPECT_GT(next, token);
}

TEST(RedisScriptsTest, WhoReadsTheFenceBackIsToldThatItIsLostAlsoWhenTheClockGoesBack) {
  RedisServer server;
  ScriptRunner scripts(server);
  scripts.commands().Do({"DEL", MarkerKey("p:")});
  const absl::Time start = absl::FromUnixSeconds(1'800'000'000);
  const absl::Duration us = absl::Microseconds(1);
  auto obtain = [&](absl::Time time) {
    const ObtainRequest request{
        .resource = "r", .acquisition = {1, 1}, .owner = "an owner", .lease = absl::Hours(1)};
    return scripts.Run(Step::kObtain, time, ObtainArguments(request, "0", 500 * us, "70"));
  };
  EXPECT_EQ(Text(obtain(start).get()), "[5,500]");
  const absl::Time back = start - absl::Hours(2);
  EXPECT_EQ(Text(obtain(back).get()), "[5,500]");
  const Reply held = obtain(back + 500 * us);
  ASSERT_EQ(held->elements, 4u) << Text(held.get());
  EXPECT_EQ(held->element[3]->integer, 1);
  // For as long as its token may be below one that was given before the loss.
  const absl::Time later = back + absl::Minutes(30);
  const int64_t largest = absl::ToUnixMicros(start + 570 * us + kTokenSlack);
  for (const int64_t confirmed : {largest, largest + 1}) {
    scripts.Run(Step::kConfirm, later, {AcquisitionId{1, 1}.ToString(), absl::StrCat(confirmed)});
    EXPECT_EQ(obtain(later)->elements, confirmed == largest ? 4u : 3u);
  }
}

TEST(RedisScriptsTest, TokensGoOnWhenTheClockGoesBackAlthoughTheirRecordIsGone) {
  RedisServer server;
  ScriptRunner scripts(server);
  absl::Time now = absl::FromUnixSeconds(1'800'000'000);
  const std::string key = RecordKey("p:", "r");
  int64_t last = 0;
  uint64_t next_id = 1;
  for (const absl::Duration step :
       {absl::ZeroDuration(), absl::Hours(-2), absl::Seconds(1), absl::Seconds(-3),
        absl::Milliseconds(500), absl::Hours(2), absl::Hours(-200), absl::Hours(200)}) {
    now += step;
    const AcquisitionId id{1, next_id++};
    int64_t token = 0;
    ASSERT_TRUE(absl::SimpleAtoi(
        ObtainText(scripts.Run(Step::kObtain, now, ObtainArguments(id, "0")).get()), &token));
    EXPECT_GT(token, last) << step;
    last = token;
    scripts.Run(Step::kRelease, now, {id.ToString()});
    // For no longer than ever: such tokens do not have to be remembered.
    EXPECT_LE(scripts.commands().Do({"PTTL", key})->integer, 101'000) << step;
    scripts.commands().Do({"DEL", key});
  }
}

TEST(RedisScriptsTest, WhatALookFindsIsKeptForNoLongerBecauseTheClockWentBack) {
  RedisServer server;
  ScriptRunner scripts(server);
  const absl::Time start = absl::FromUnixSeconds(1'800'000'000);
  const std::string key = RecordKey("p:", "r");
  auto obtain = [&](absl::Time now, AcquisitionId id) {
    return Text(scripts.Run(Step::kObtain, now, ObtainArguments(id, "0")).get());
  };
  auto kept_for = [&] { return (scripts.commands().Do({"PTTL", key})->integer + 999) / 1000; };
  // A server takes what is to live for 10 s to its new time.
  auto go_back = [&] { scripts.commands().Do({"PEXPIRE", key, "7210000"}); };
  obtain(start, {1, 1});
  go_back();
  const absl::Time back = start - absl::Hours(2);
  EXPECT_EQ(obtain(back, {1, 2}).substr(0, 11), "[4,1000000,") << "the lease of the killed holder";
  EXPECT_EQ(kept_for(), 32) << "that, and 31 s as ever";
  // One that was released.
  scripts.Run(Step::kRelease, back, {AcquisitionId{1, 1}.ToString()});
  obtain(back + absl::Hours(2), {1, 3});
  scripts.Run(Step::kRelease, back + absl::Hours(2), {AcquisitionId{1, 3}.ToString()});
  go_back();
  obtain(back, {1, 4});
  scripts.Run(Step::kRelease, back, {AcquisitionId{1, 4}.ToString()});
  EXPECT_LE(kept_for(), 101);
}

TEST(RedisScriptsTest, AFenceThatAQuorumRaisedKeepsItsRecordUntilTheClockHasPassedIt) {
  RedisServer server;
  ScriptRunner scripts(server);
  const absl::Time now = absl::FromUnixSeconds(1'800'000'000);
  auto obtain = [&](absl::Time time, AcquisitionId id) {
    int64_t token = 0;
    EXPECT_TRUE(absl::SimpleAtoi(
        ObtainText(
            scripts
                .Run(Step::kObtain, time, ObtainArguments(id, "0", absl::ZeroDuration(), "1000000"))
                .get()),
        &token));
    return token;
  };
  obtain(now, {1, 1});
  // Another server's clock is ten minutes ahead, and gave this one.
  const int64_t raised = absl::ToUnixMicros(now + absl::Minutes(10));
  scripts.Run(Step::kConfirm, now, {AcquisitionId{1, 1}.ToString(), absl::StrCat(raised)});
  scripts.Run(Step::kRelease, now, {AcquisitionId{1, 1}.ToString()});
  // Dropped any earlier, the record would leave no trace of a token that this clock does not reach.
  const int64_t kept =
      (scripts.commands().Do({"PTTL", RecordKey("p:", "r")})->integer + 999) / 1000;
  EXPECT_GE(kept, 610);
  EXPECT_LE(kept, 610 + 21);
  EXPECT_EQ(obtain(now + absl::Minutes(1), {1, 2}), raised + 1);
  scripts.commands().Do({"DEL", RecordKey("p:", "r")});
  EXPECT_GT(obtain(now + absl::Minutes(10) + kTokenSlack + absl::Seconds(1), {1, 3}), raised + 1);
}

TEST(RedisScriptsTest, AMarkerThatIsSomethingElseIsRefused) {
  RedisServer server;
  ScriptRunner scripts(server);
  scripts.commands().Do({"SET", MarkerKey("p:"), "mine"});
  const absl::Time now = absl::FromUnixSeconds(1'800'000'000);
  EXPECT_EQ(Text(scripts.Run(Step::kObtain, now, ObtainArguments({1, 1}, "0")).get()),
            "WRONGTYPE marker");
  EXPECT_EQ(Text(scripts.commands().Do({"GET", MarkerKey("p:")}).get()), "mine");
}

TEST(RedisScriptsTest, WhoVouchesForAServerEndsItsRecoveryAndNothingElse) {
  RedisServer server;
  ScriptRunner scripts(server);
  const absl::Time now = absl::FromUnixSeconds(1'800'000'000);
  const absl::Duration us = absl::Microseconds(1);
  auto obtain = [&](absl::Time time, AcquisitionId id) {
    return ObtainText(scripts.Run(Step::kObtain, time, ObtainArguments(id, "0", 500 * us)).get());
  };
  auto vouch = [&](absl::Time time) {
    return Text(scripts.commands()
                    .Do({"EVAL", VouchTextWithTime("local now = tonumber(ARGV[1])\n"), "1",
                         MarkerKey("p:"), absl::StrCat(absl::ToUnixMicros(time))})
                    .get());
  };
  auto marker = [&] { return Text(scripts.commands().Do({"GET", MarkerKey("p:")}).get()); };
  // Before anybody has asked, and after.
  for (const bool asked : {false, true}) {
    scripts.commands().Do({"DEL", MarkerKey("p:")});
    if (asked) {
      EXPECT_EQ(obtain(now, {1, 1}), "[5,20000500]");
    }
    EXPECT_EQ(vouch(now + us), "1");
    const AcquisitionId id{1, asked ? 3u : 2u};
    EXPECT_EQ(obtain(now + 2 * us, id)[0], '1');
    scripts.Run(Step::kRelease, now + 2 * us, {id.ToString()});
  }
  // What a loss long ago has left is still to be known.
  scripts.commands().Do({"DEL", MarkerKey("p:")});
  obtain(now, {1, 4});
  const std::string kept = marker();
  const absl::Time over = now + 500 * us + 2 * kTokenSlack;
  EXPECT_EQ(vouch(over), "1");
  EXPECT_EQ(marker(), kept);
  EXPECT_EQ(vouch(over - us), "1");
  EXPECT_NE(marker(), kept);
  // What is no marker of ours is left alone.
  for (const std::vector<std::string>& strange :
       {std::vector<std::string>{"SET", MarkerKey("p:"), "mine"},
        std::vector<std::string>{"LPUSH", MarkerKey("p:"), "mine"}}) {
    scripts.commands().Do({"DEL", MarkerKey("p:")});
    scripts.commands().Do(strange);
    const std::string before = Text(scripts.commands().Do({"DUMP", MarkerKey("p:")}).get());
    EXPECT_EQ(vouch(now), "1");
    EXPECT_EQ(Text(scripts.commands().Do({"DUMP", MarkerKey("p:")}).get()), before);
  }
}

TEST(RedisScriptsTest, WhoReadsTheFenceBackIsGrantedEarlierAndToldThatItIsLost) {
  RedisServer server;
  ScriptRunner scripts(server);
  scripts.commands().Do({"DEL", MarkerKey("p:")});
  const absl::Time now = absl::FromUnixSeconds(1'800'000'000);
  const absl::Duration us = absl::Microseconds(1);
  auto obtain = [&](absl::Time time) {
    return scripts.Run(Step::kObtain, time, ObtainArguments({1, 1}, "0", 500 * us, "70"));
  };
  EXPECT_EQ(Text(obtain(now).get()), "[5,500]");
  EXPECT_EQ(Text(obtain(now + 499 * us).get()), "[5,1]");
  // Until its clock alone makes larger tokens than any that another server's clock has made.
  const absl::Time safe = now + 570 * us + 2 * kTokenSlack;
  Reply reply = obtain(now + 500 * us);
  ASSERT_EQ(reply->elements, 4u);
  EXPECT_EQ(Text(reply.get()).substr(0, 2), "[1");
  EXPECT_EQ(reply->element[3]->integer, 1);
  reply = obtain(safe - us);
  ASSERT_EQ(reply->elements, 4u);
  EXPECT_EQ(reply->element[3]->integer, 1);
  scripts.Run(Step::kRelease, safe, {AcquisitionId{1, 1}.ToString()});
  EXPECT_EQ(obtain(safe + us)->len, kStateSize);
}

TEST(RedisScriptsTest, AHoldFromWhenTheFenceWasLostIsToldSoForAsLongAsItHasItsToken) {
  RedisServer server;
  ScriptRunner scripts(server);
  scripts.commands().Do({"DEL", MarkerKey("p:")});
  const absl::Time start = absl::FromUnixSeconds(1'800'000'000);
  const absl::Duration us = absl::Microseconds(1);
  auto obtain = [&](absl::Time time, AcquisitionId id) {
    const ObtainRequest request{
        .resource = "r", .acquisition = id, .owner = "an owner", .lease = absl::Hours(1)};
    return scripts.Run(Step::kObtain, time, ObtainArguments(request, "0", 500 * us, "70"));
  };
  obtain(start, {1, 1});
  const Reply held = obtain(start + 500 * us, {1, 1});
  ASSERT_EQ(held->elements, 4u);
  const int64_t token = held->element[1]->integer;
  // The server's clock has passed every token meanwhile, and this hold's token is what it was: for
  // its own acquisition, and for another handle of its owner.
  const absl::Time later = start + absl::Minutes(30);
  for (const AcquisitionId id : {AcquisitionId{1, 1}, AcquisitionId{1, 2}}) {
    const Reply again = obtain(later, id);
    ASSERT_EQ(again->elements, 4u) << Text(again.get());
    EXPECT_EQ(again->element[1]->integer, token);
    EXPECT_EQ(again->element[3]->integer, 1);
  }
  // Until a larger token is confirmed there than any from before the loss can be.
  const int64_t largest = absl::ToUnixMicros(start + 570 * us + kTokenSlack);
  for (const int64_t confirmed : {largest, largest + 1}) {
    scripts.Run(Step::kConfirm, later, {AcquisitionId{1, 1}.ToString(), absl::StrCat(confirmed)});
    EXPECT_EQ(obtain(later, {1, 2})->elements, confirmed == largest ? 4u : 3u);
  }
}

TEST(RedisScriptsTest, WhoReadsTheFenceBackIsToldItWithEveryRefusal) {
  RedisServer server;
  ScriptRunner scripts(server);
  const absl::Time now = absl::FromUnixSeconds(1'800'000'000);
  constexpr int64_t kNow = 1'800'000'000'000'000;
  std::vector<std::string> arguments =
      ObtainArguments({1, 1}, absl::StrCat(kNow + 5), absl::ZeroDuration(), "0");
  scripts.Run(Step::kObtain, now, arguments);
  const Reply denied =
      scripts.Run(Step::kObtain, now, ObtainArguments({1, 2}, "0", absl::ZeroDuration(), "0"));
  ASSERT_EQ(denied->elements, 5u);
  EXPECT_EQ(denied->element[0]->integer, 4);
  EXPECT_EQ(denied->element[4]->integer, kNow + 5);
  // And a server that has lost its data does not say.
  scripts.commands().Do({"SET", MarkerKey("p:"), absl::StrCat(kNow)});
  const Reply lost =
      scripts.Run(Step::kObtain, now, ObtainArguments({1, 2}, "0", absl::ZeroDuration(), "0"));
  ASSERT_EQ(lost->elements, 5u);
  EXPECT_EQ(lost->element[4]->integer, 0);
  // Others hear nothing of it.
  scripts.commands().Do({"SET", MarkerKey("p:"), "1"});
  EXPECT_EQ(scripts.Run(Step::kObtain, now, ObtainArguments({1, 2}, "0"))->elements, 4u);
}

TEST(RedisScriptsTest, ARepeatedReleaseTouchesNoSuccessorAndNoStranger) {
  RedisServer server;
  ScriptRunner scripts(server);
  const absl::Time now = absl::FromUnixSeconds(1'800'000'000);
  const AcquisitionId first{1, 1};
  const AcquisitionId second{1, 2};
  scripts.Run(Step::kObtain, now, ObtainArguments(first, "0"));
  EXPECT_EQ(Text(scripts.Run(Step::kRelease, now, {first.ToString()}).get()), "1");
  scripts.Run(Step::kObtain, now, ObtainArguments(second, "0"));
  EXPECT_EQ(Text(scripts.Run(Step::kRelease, now, {first.ToString()}).get()), "3");
  EXPECT_EQ(Text(scripts.Run(Step::kExtend, now, {second.ToString(), "1000000"}).get()),
            "[1,1000000]");
}

TEST(RedisScriptsTest, ARecordIsKeptForLongerThanItMustAndNotForMuchLonger) {
  RedisServer server;
  ScriptRunner scripts(server);
  const absl::Time now = absl::FromUnixSeconds(1'800'000'000);
  const std::string key = RecordKey("p:", "r");
  // In seconds, rounded up, since the server's own time goes on.
  auto kept_for = [&](const std::string& key) {
    return (scripts.commands().Do({"PTTL", key})->integer + 999) / 1000;
  };
  auto obtain = [&](AcquisitionId id, absl::Duration lease) {
    scripts.Run(
        Step::kObtain, now,
        ObtainArguments(ObtainRequest{.resource = "r", .acquisition = id, .lease = lease}, "0"));
  };
  auto release = [&](AcquisitionId id) { scripts.Run(Step::kRelease, now, {id.ToString()}); };
  // The lease, 10 s that every record is kept for, and 20 s more; not one of them less when free.
  obtain({1, 1}, absl::Seconds(30));
  EXPECT_EQ(kept_for(key), 61);
  release({1, 1});
  EXPECT_EQ(kept_for(key), 61);
  // The next one has enough.
  scripts.commands().Do({"PEXPIRE", key, "50000"});
  obtain({1, 2}, absl::Seconds(50));
  EXPECT_EQ(kept_for(key), 50);
  release({1, 2});
  // Nor is it dropped earlier for the longest lease that is allowed unless one says so.
  obtain({1, 7}, absl::Minutes(1));
  EXPECT_EQ(kept_for(key), 91);
  release({1, 7});
  EXPECT_EQ(kept_for(key), 91);
  // Many of these must not pile up.
  obtain({1, 3}, absl::Minutes(10));
  EXPECT_EQ(kept_for(key), 631);
  release({1, 3});
  EXPECT_EQ(kept_for(key), 11);
  // The waiting list likewise, and the record as long as that.
  obtain({1, 4}, absl::Seconds(5));
  const std::string waiting_list = WaitingListKey("p:", "r");
  auto watch = [&](AcquisitionId id, absl::Duration lease) {
    scripts.Run(Step::kWatch, now,
                {id.ToString(),
                 absl::StrCat(ClientOf(id), Padded(absl::Seconds(1)), "0", EncodePriority(0)),
                 EncodePriorityDescending(0), MicrosText(lease)});
  };
  watch({1, 5}, absl::Seconds(3));
  EXPECT_EQ(kept_for(key), 36);
  EXPECT_EQ(kept_for(waiting_list), 34);
  watch({1, 6}, absl::Minutes(1));
  EXPECT_EQ(kept_for(key), 111);
  EXPECT_EQ(kept_for(waiting_list), 91);
  // And is gone with the last who waits.
  scripts.Run(Step::kUnwatch, now, {AcquisitionId{1, 5}.ToString()});
  scripts.Run(Step::kUnwatch, now, {AcquisitionId{1, 6}.ToString()});
  EXPECT_EQ(kept_for(waiting_list), 0);
}

TEST(RedisScriptsTest, TheServersOwnClockIsUsedInProduction) {
  RedisServer server;
  Connection connection(server);
  connection.Do({"SET", "p:marker", "1"});
  std::vector<std::string> command = {"EVAL", ScriptOf(Step::kObtain).text, "2",
                                      RecordKey("p:", "r"), "p:marker"};
  for (const std::string& argument : ObtainArguments({1, 1}, "0")) command.push_back(argument);
  EXPECT_EQ(connection.Do(command)->len, kStateSize);
  // The server knows the script by the name that the client computes.
  EXPECT_EQ(Text(connection.Do({"SCRIPT", "EXISTS", ScriptOf(Step::kObtain).sha1}).get()), "[1]");
}

}  // namespace
}  // namespace latchkey::redis

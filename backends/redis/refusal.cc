#include "latchkey/backends/redis/refusal.h"

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509_vfy.h>

#include <optional>
#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace latchkey::redis {
namespace {

constexpr std::string_view kCluster =
    "the server is part of a Redis Cluster, which is not supported";

// By the words that an error begins with. Each of these is said before anything was written.
struct Known {
  std::string_view words;
  Reason reason;
  std::string_view meaning;
};
constexpr Known kKnown[] = {
    {"OOM", Reason::kBackendUnavailable, "the server is out of memory"},
    {"MISCONF", Reason::kBackendUnavailable, "the server cannot write its data to disk"},
    {"NOREPLICAS", Reason::kBackendUnavailable, "the server lacks the replicas that it must have"},
    {"LOADING", Reason::kBackendUnavailable, "the server is still loading its data"},
    {"BUSY", Reason::kBackendUnavailable, "the server is busy with somebody's script"},
    {"READONLY", Reason::kBackendUnavailable, "the server is a read-only replica"},
    {"MASTERDOWN", Reason::kBackendUnavailable, "the server has lost its master"},
    {"NOSCRIPT", Reason::kBackendUnavailable, "the server does not know the script"},
    {"ERR max number of clients", Reason::kBackendUnavailable, "the server has too many clients"},

    {"NOAUTH", Reason::kBackendRefused, "the server asks for a password"},
    {"WRONGPASS", Reason::kBackendRefused, "the server refuses the login"},
    {"NOPERM", Reason::kBackendRefused, "the user lacks a permission"},
    {"DENIED", Reason::kBackendRefused, "the server is protected from other machines"},
    {"WRONGTYPE", Reason::kBackendRefused, "a key of ours holds something else"},
    {"ERR DB index", Reason::kBackendRefused, "the server does not have the database"},
    {"ERR invalid DB index", Reason::kBackendRefused, "the server does not have the database"},
    {"ERR unknown command", Reason::kBackendRefused, "the server lacks a command"},

    {"MOVED", Reason::kNotSupported, kCluster},
    {"ASK", Reason::kNotSupported, kCluster},
    {"CROSSSLOT", Reason::kNotSupported, kCluster},
    {"TRYAGAIN", Reason::kNotSupported, kCluster},
    {"CLUSTERDOWN", Reason::kNotSupported, kCluster},
    {"ERR SELECT is not allowed in cluster mode", Reason::kNotSupported, kCluster},
};

// Anywhere in an error that a script met at one of its commands, after it has run others.
constexpr Known kMetByScripts[] = {
    // Of Redis 6 and 7.0, and of later ones.
    {"user executing the script can't", Reason::kBackendRefused,
     "the user lacks a permission that the scripts need"},
    {"ACL failure in script", Reason::kBackendRefused,
     "the user lacks a permission that the scripts need"},
    {"Unknown Redis command called from", Reason::kBackendRefused,
     "the server lacks a command that the scripts need"},
    {"Redis command is not allowed from script", Reason::kBackendRefused,
     "the server lacks a command that the scripts need"},
};

// Which command it was that a script was refused: its name if the server says so, or else the line
// of the script that the server names, empty if there is none such. Nothing: the script has looked
// at the error and handed it on, as it does with those of its first write.
std::optional<std::string_view> CommandOf(std::string_view error, std::string_view script) {
  for (const std::string_view mark : {"run the '", "@user_script:"}) {
    const size_t at = error.find(mark);
    if (at == error.npos) continue;
    std::string_view rest = absl::StripLeadingAsciiWhitespace(error.substr(at + mark.size()));
    if (mark.back() == '\'') return rest.substr(0, rest.find('\''));
    const std::vector<std::string_view> lines = absl::StrSplit(script, '\n');
    size_t line = 0;
    if (!absl::SimpleAtoi(rest.substr(0, rest.find_first_not_of("0123456789")), &line) ||
        line < 1 || line > lines.size()) {
      return "";
    }
    return lines[line - 1];
  }
  return std::nullopt;
}

// Of what the scripts need a permission for, this alone comes after the write that counts.
bool MayFollowTheWrite(std::optional<std::string_view> command) {
  return command &&
         (command->empty() || absl::StrContains(absl::AsciiStrToLower(*command), "pexpire"));
}

bool BeginsWith(std::string_view text, std::string_view words) {
  return absl::StartsWith(text, words) &&
         (text.size() == words.size() || text[words.size()] == ' ');
}

}  // namespace

Refusal ReadScriptError(std::string_view error, std::string_view script) {
  for (const Known& known : kMetByScripts) {
    if (!absl::StrContains(error, known.words)) continue;
    const bool unknown = MayFollowTheWrite(CommandOf(error, script));
    return {unknown ? Reason::kBackendUnknown : known.reason, known.meaning};
  }
  // Redis before 7 wraps an error that a script met, its own with a sign before it.
  const bool wrapped = absl::StartsWith(error, "ERR Error running script") ||
                       absl::StartsWith(error, "@user_script");
  for (const Known& known : kKnown) {
    if (BeginsWith(error, known.words) ||
        (wrapped && (absl::StrContains(error, absl::StrCat(": ", known.words, " ")) ||
                     absl::StrContains(error, absl::StrCat(": -", known.words, " "))))) {
      return {known.reason, known.meaning};
    }
  }
  return {};
}

Refusal ReadGreetingError(std::string_view command, std::string_view error) {
  Refusal refusal = ReadScriptError(error, "");
  if (refusal.reason != Reason::kBackendUnknown) return refusal;
  if (command == "AUTH") refusal.meaning = "the server refuses the login";
  // A server that has no password set, or knows no users, says so in words of its version.
  const bool ours = (command == "AUTH" || command == "SELECT") && BeginsWith(error, "ERR");
  const bool met_by_script = command == "EVAL" && !refusal.meaning.empty();
  refusal.reason = ours || met_by_script ? Reason::kBackendRefused : Reason::kBackendUnavailable;
  return refusal;
}

Reason ReadTlsError(long verified, unsigned long error) {
  if (verified != X509_V_OK) return Reason::kBackendRefused;
  if (ERR_GET_LIB(error) != ERR_LIB_SSL) return Reason::kBackendUnavailable;
  switch (ERR_GET_REASON(error)) {
#ifdef SSL_R_UNEXPECTED_EOF_WHILE_READING
    case SSL_R_UNEXPECTED_EOF_WHILE_READING:
#endif
    case SSL_R_TLSV1_ALERT_INTERNAL_ERROR:
    case SSL_R_TLSV1_ALERT_USER_CANCELLED:
      return Reason::kBackendUnavailable;
    default:
      return Reason::kBackendRefused;
  }
}

}  // namespace latchkey::redis

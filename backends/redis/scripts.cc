#include "latchkey/backends/redis/scripts.h"

#include <openssl/sha.h>

#include <array>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "backends/redis/scripts_text.h"

namespace latchkey::redis {
namespace {

std::string_view BodyOf(Step step) {
  switch (step) {
    case Step::kObtain:
      return text::kObtain;
    case Step::kRelease:
      return text::kRelease;
    case Step::kExtend:
      return text::kExtend;
    case Step::kConfirm:
      return text::kConfirm;
    case Step::kWatch:
      return text::kWatch;
    case Step::kUnwatch:
      return text::kUnwatch;
  }
  return {};
}

// What may save all the rest.
std::string_view ShortcutOf(Step step) {
  switch (step) {
    case Step::kObtain:
      return text::kObtainFree;
    case Step::kRelease:
      return text::kReleaseLast;
    default:
      return {};
  }
}

Script MakeScript(Step step) {
  Script script{.text = ScriptTextWithTime(step, text::kServerTime), .sha1 = {}};
  std::array<unsigned char, SHA_DIGEST_LENGTH> digest;
  SHA1(reinterpret_cast<const unsigned char*>(script.text.data()), script.text.size(),
       digest.data());
  script.sha1 = absl::BytesToHexString(
      std::string_view(reinterpret_cast<const char*>(digest.data()), digest.size()));
  return script;
}

}  // namespace

const Script& ScriptOf(Step step) {
  // Never destroyed: I/O threads may outlive static objects.
  static const auto& scripts = *new std::array<Script, kSteps>{
      MakeScript(Step::kObtain),  MakeScript(Step::kRelease), MakeScript(Step::kExtend),
      MakeScript(Step::kConfirm), MakeScript(Step::kWatch),   MakeScript(Step::kUnwatch)};
  return scripts[static_cast<int>(step)];
}

std::string VouchTextWithTime(std::string_view time_source) {
  return absl::StrCat(time_source, text::kVouch);
}

std::string_view VouchText() {
  static const std::string& text = *new std::string(VouchTextWithTime(text::kServerTime));
  return text;
}

std::string ScriptTextWithTime(Step step, std::string_view time_source) {
  return absl::StrCat(time_source, ShortcutOf(step), text::kRecord, BodyOf(step), text::kWake,
                      step == Step::kWatch ? text::kWatched : "", text::kStore);
}

}  // namespace latchkey::redis

#include "latchkey/core/protocol/quorum_member.h"

#include <ostream>

namespace latchkey {

std::string_view ConfirmOutcomeName(ConfirmOutcome outcome) {
  switch (outcome) {
    case ConfirmOutcome::kConfirmed:
      return "Confirmed";
    case ConfirmOutcome::kRaise:
      return "Raise";
    case ConfirmOutcome::kNotHeld:
      return "NotHeld";
  }
  return "?";
}

std::ostream& operator<<(std::ostream& out, ConfirmOutcome outcome) {
  return out << ConfirmOutcomeName(outcome);
}

}  // namespace latchkey

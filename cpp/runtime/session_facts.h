// What a session is, as names and values: the model's shape, every setting as the plan resolved it, the policy with its own, and
// the sizes that follow. A snapshot begins with them, and is restored where all are the same. What only says where things
// are (the folder of the spill file) is not among them.
#pragma once

#include <string>
#include <vector>

#include "memory/snapshot.h"
#include "policy/policy.h"
#include "runtime/plan.h"

namespace mosaic {

struct SessionFact {
  std::string name;
  std::string value;
  const char* knob;  // what changes it
};
std::vector<SessionFact> session_facts(const Plan& plan, const Policy& policy);

// Writes them, or reads and compares. Throws InvalidInput naming the first that differs, what the snapshot has, what the
// session has, and the knob.
void serialize_facts(Snapshot& s, const std::vector<SessionFact>& facts);

}  // namespace mosaic

// Runs a fuzz target on the files given, and on those in the folders given, so that every compiler
// can run the corpus as a common test and a finding can be looked at in a debugger. Each file is
// named before it is run: the last one named is the one that failed.
//
//   bazel run //tests/fuzz:redis_url_fuzz_test -- crash-0123abcd
//
// A relative name counts from the folder in which `bazel run` was called.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

namespace fs = std::filesystem;

fs::path Find(const char* name) {
  const char* const called_in = std::getenv("BUILD_WORKING_DIRECTORY");
  if (!fs::exists(name) && called_in != nullptr) return fs::path(called_in) / name;
  return name;
}

int Run(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    std::fprintf(stderr, "cannot read %s\n", path.c_str());
    std::exit(1);
  }
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  std::fprintf(stderr, "%s (%zu bytes)\n", path.c_str(), bytes.size());
  LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  int inputs = 0;
  for (int i = 1; i < argc; ++i) {
    const fs::path path = Find(argv[i]);
    if (!fs::is_directory(path)) {
      inputs += Run(path);
      continue;
    }
    std::vector<fs::path> files;
    for (const auto& entry : fs::recursive_directory_iterator(path)) {
      if (entry.is_regular_file()) files.push_back(entry.path());
    }
    std::sort(files.begin(), files.end());
    for (const fs::path& file : files) inputs += Run(file);
  }
  std::fprintf(stderr, "%d inputs, no failure\n", inputs);
  return inputs > 0 ? 0 : 1;
}

#include "launch/cgroups.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <optional>
#include <sstream>

namespace laterna::launch {
namespace {

constexpr double kNone = std::numeric_limits<double>::infinity();

/// Returns the first number of a file; infinity for "max" and other text, nothing without the file.
std::optional<double> number_in(const std::string& path) {
  std::ifstream file(path);
  std::string text;
  if (!(file >> text)) return {};
  std::istringstream digits(text);
  double value = 0;
  return digits >> value ? value : kNone;
}

/// Returns the number after `key` in a file of lines "key number", or 0.
double number_after(const std::string& path, const std::string& key) {
  std::ifstream file(path);
  std::string name;
  for (double value = 0; file >> name >> value;) {
    if (name == key) return value;
  }
  return 0;
}

/// Returns the least limit(folder) over this process's group and those above it.
double least(const CgroupPaths& paths, const std::string& controller,
             double (*limit)(const std::string& folder)) {
  double found = kNone;
  std::ifstream groups(paths.membership);
  for (std::string line; std::getline(groups, line);) {  // "0::/path", or "4:cpu,cpuacct:/path"
    std::istringstream parts(line);
    std::string number, controllers, path;
    std::getline(parts, number, ':');
    std::getline(parts, controllers, ':');
    std::getline(parts, path);
    const bool version_2 = controllers.empty();
    if (!version_2 && ("," + controllers + ",").find("," + controller + ",") == std::string::npos) {
      continue;
    }
    const std::string top = paths.root + (version_2 ? "" : "/" + controllers);
    for (;; path.erase(path.rfind('/'))) {
      found = std::min(found, limit(top + path));
      if (path.find('/') == std::string::npos) break;
    }
  }
  return found;
}

double cpu_limit(const std::string& group) {
  double quota = kNone, period = 0;
  if (std::ifstream file(group + "/cpu.max"); file) {  // version 2: "150000 100000" or "max ..."
    file >> quota >> period;
  } else {
    quota = number_in(group + "/cpu.cfs_quota_us").value_or(kNone);  // -1: no limit
    period = number_in(group + "/cpu.cfs_period_us").value_or(0);
  }
  return std::isfinite(quota) && quota > 0 && period > 0 ? quota / period : kNone;
}

double memory_limit(const std::string& group) {
  const auto limit = number_in(group + "/memory.max");
  const bool version_2 = limit.has_value();
  const double allowed =
      version_2 ? *limit : number_in(group + "/memory.limit_in_bytes").value_or(kNone);
  if (!(allowed < 1e18)) return kNone;  // version 1 has a huge number where there is no limit
  const double used =
      number_in(group + (version_2 ? "/memory.current" : "/memory.usage_in_bytes")).value_or(0);
  const std::string kind = version_2 ? "" : "total_";
  const double cached = number_after(group + "/memory.stat", kind + "inactive_file") +
                        number_after(group + "/memory.stat", kind + "active_file");
  return std::max(0.0, allowed - used + cached);
}

}  // namespace

double cpu_quota(const CgroupPaths& paths) {
  const double quota = least(paths, "cpu", cpu_limit);
  return std::isfinite(quota) ? quota : 0;
}

double free_group_memory(const CgroupPaths& paths) { return least(paths, "memory", memory_limit); }

}  // namespace laterna::launch

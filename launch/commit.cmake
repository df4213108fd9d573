# Writes OUTPUT, a header with the commit that SOURCE is at, unless it says so already.
if(EXISTS "${SOURCE}/.git")
  execute_process(
    COMMAND git --no-optional-locks -C "${SOURCE}" describe --always --dirty --exclude=* --abbrev=12
    OUTPUT_VARIABLE commit OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
endif()
if(NOT commit)
  set(commit unknown)
endif()
set(text "inline constexpr const char* kCommit = \"${commit}\";\n")
set(before "")
if(EXISTS "${OUTPUT}")
  file(READ "${OUTPUT}" before)
endif()
if(NOT text STREQUAL before)
  file(WRITE "${OUTPUT}" "${text}")
endif()

// Asks valgrind to report the errors of the calling thread, or not to, and how many it has reported.
#include <valgrind/valgrind.h>

void disable_error_reporting(void) { VALGRIND_DISABLE_ERROR_REPORTING; }

void enable_error_reporting(void) { VALGRIND_ENABLE_ERROR_REPORTING; }

unsigned count_errors(void) { return VALGRIND_COUNT_ERRORS; }

/* Tells callgrind, from inside the program that it counts, where counting begins, where one stretch ends, and when to
   stop. Outside of callgrind these do nothing. */

#include <valgrind/callgrind.h>

void begin(void) { CALLGRIND_START_INSTRUMENTATION; }

/* Write down under `name` what was counted since the last mark, and count from nothing again. */
void mark(const char *name) { CALLGRIND_DUMP_STATS_AT(name); }

void end(void) { CALLGRIND_STOP_INSTRUMENTATION; }

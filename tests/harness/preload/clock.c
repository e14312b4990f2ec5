/* A wall clock that is off: loaded before the C library, it moves CLOCK_REALTIME by CLOCK_OFF_S seconds. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *now)
{
	int result = syscall(SYS_clock_gettime, clock, now);
	const char *off = getenv("CLOCK_OFF_S");
	if (result == 0 && off && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
		now->tv_sec += atol(off);
	return result;
}

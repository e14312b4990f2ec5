/* A thread that loses its processor for 120 ms at a bad moment: loaded before the C library, it stops
   every hundredth time behind an io_uring_enter that submits one entry and waits for nothing. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdarg.h>
#include <sys/syscall.h>
#include <unistd.h>

long syscall(long number, ...)
{
	static long (*next)(long, ...);
	static unsigned count;
	long a[6];
	va_list list;

	va_start(list, number);
	for (int i = 0; i < 6; i++)
		a[i] = va_arg(list, long);
	va_end(list);
	if (!next)
		next = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
	long result = next(number, a[0], a[1], a[2], a[3], a[4], a[5]);
	/* to_submit, min_complete and flags of io_uring_enter(2) */
	if (number == SYS_io_uring_enter && a[1] == 1 && a[2] == 0 && a[3] == 0 && ++count % 100 == 0)
		usleep(120000);
	return result;
}

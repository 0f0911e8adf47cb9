/* A file system without file locks: flock and fcntl's locks on files below $NO_LOCKS_BELOW end with the error number
 * $NO_LOCKS_ERRNO. Loaded with LD_PRELOAD.
 *
 *     cc -shared -fPIC -o no_locks.so no_locks.c -ldl
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

static int fails(int descriptor)
{
    const char *below = getenv("NO_LOCKS_BELOW"), *number = getenv("NO_LOCKS_ERRNO");
    char link[64], path[PATH_MAX];
    ssize_t length;

    if (!below || !number)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    if (strncmp(path, below, strlen(below)) != 0)
        return 0;
    errno = atoi(number);
    return 1;
}

static int is_lock(int command)
{
    return command == F_SETLK || command == F_SETLKW || command == F_GETLK || command == F_OFD_SETLK
        || command == F_OFD_SETLKW || command == F_OFD_GETLK;
}

int flock(int descriptor, int operation)
{
    return fails(descriptor) ? -1 : ((int (*)(int, int))dlsym(RTLD_NEXT, "flock"))(descriptor, operation);
}

#define FCNTL(name)                                                                                                    \
    int name(int descriptor, int command, ...)                                                                         \
    {                                                                                                                  \
        va_list arguments;                                                                                             \
        void *argument;                                                                                                \
        va_start(arguments, command);                                                                                  \
        argument = va_arg(arguments, void *);                                                                          \
        va_end(arguments);                                                                                             \
        if (is_lock(command) && fails(descriptor))                                                                     \
            return -1;                                                                                                 \
        return ((int (*)(int, int, void *))dlsym(RTLD_NEXT, #name))(descriptor, command, argument);                    \
    }

FCNTL(fcntl)
FCNTL(fcntl64)

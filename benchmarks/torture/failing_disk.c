/* A disk that fails: once the file $FAIL_WHEN exists, calls named in $FAIL_CALLS ("write", "sync") that concern files
 * below $FAIL_BELOW end with EIO. Loaded with LD_PRELOAD.
 *
 *     gcc -shared -fPIC -O2 -o failing_disk.so failing_disk.c -ldl
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static int fails(int descriptor, const char *call)
{
    const char *when = getenv("FAIL_WHEN"), *below = getenv("FAIL_BELOW"), *calls = getenv("FAIL_CALLS");
    char link[64], path[PATH_MAX];
    ssize_t length;
    int kept = errno;

    if (!when || !below || !calls || !strstr(calls, call) || access(when, F_OK) != 0) {
        errno = kept;
        return 0;
    }
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    length = readlink(link, path, sizeof path - 1);
    errno = kept;
    if (length < 0)
        return 0;
    path[length] = 0;
    if (strncmp(path, below, strlen(below)) != 0)
        return 0;
    errno = EIO;
    return 1;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int fd, const void *data, size_t size) { return fails(fd, "write") ? -1 : REAL(write)(fd, data, size); }

ssize_t pwrite(int fd, const void *data, size_t size, off_t at)
{
    return fails(fd, "write") ? -1 : REAL(pwrite)(fd, data, size, at);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at)
{
    return fails(fd, "write") ? -1 : REAL(pwrite64)(fd, data, size, at);
}

int fsync(int fd) { return fails(fd, "sync") ? -1 : REAL(fsync)(fd); }

int fdatasync(int fd) { return fails(fd, "sync") ? -1 : REAL(fdatasync)(fd); }

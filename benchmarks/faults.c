/* Count the file operations below a directory, and kill the process or fail at the n-th one.  Preloaded by faults.py.

   arm(root, n, error, rest): error 0 = SIGKILL at operation n, else operation n fails with errno = error; rest != 0: so do
   all later ones.  A write that is killed or fails writes its first half.  counted(): operations so far. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static char below[PATH_MAX];
static long at = -1, seen = 0;
static int failure = 0, all_after = 0;

void arm(const char *root, long n, int error, int rest) {
    snprintf(below, sizeof below, "%s", root);
    at = n, failure = error, all_after = rest, seen = 0;
}
long counted(void) { return seen; }

static int inside(const char *path) {
    return below[0] && path && strncmp(path, below, strlen(below)) == 0;
}
static int inside_fd(int fd) {
    char link[64], path[PATH_MAX];
    if (!below[0]) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return inside(path);
}
static int inside_at(int fd, const char *path) {
    return path && path[0] == '/' ? inside(path) : (fd == AT_FDCWD ? 0 : inside_fd(fd));
}
/* 0: do it; 1: it fails */
static int hit(void) {
    long now = seen++;
    if (at < 0 || now < at || (now > at && !all_after)) return 0;
    if (!failure) kill(getpid(), SIGKILL);
    errno = failure;
    return 1;
}
static int due(void) { return at >= 0 && (seen == at || (seen > at && all_after)); }

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define OPEN(name)                                                                          \
    int name(const char *path, int flags, ...) {                                            \
        mode_t mode = 0;                                                                    \
        if (flags & (O_CREAT | O_TMPFILE)) {                                                \
            va_list more;                                                                   \
            va_start(more, flags), mode = va_arg(more, mode_t), va_end(more);               \
        }                                                                                   \
        if ((flags & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC)) && inside(path) && hit()) return -1; \
        return NEXT(name)(path, flags, mode);                                               \
    }
OPEN(open)
OPEN(open64)
#define OPENAT(name)                                                                        \
    int name(int fd, const char *path, int flags, ...) {                                    \
        mode_t mode = 0;                                                                    \
        if (flags & (O_CREAT | O_TMPFILE)) {                                                \
            va_list more;                                                                   \
            va_start(more, flags), mode = va_arg(more, mode_t), va_end(more);               \
        }                                                                                   \
        if ((flags & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC)) && inside_at(fd, path) && hit()) return -1; \
        return NEXT(name)(fd, path, flags, mode);                                           \
    }
OPENAT(openat)
OPENAT(openat64)

ssize_t write(int fd, const void *data, size_t size) {
    if (inside_fd(fd)) {
        if (due() && size > 1) NEXT(write)(fd, data, size / 2);
        if (hit()) return -1;
    }
    return NEXT(write)(fd, data, size);
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
    if (inside_fd(fd)) {
        if (due() && count) NEXT(write)(fd, parts[0].iov_base, parts[0].iov_len / 2);
        if (hit()) return -1;
    }
    return NEXT(writev)(fd, parts, count);
}
#define ON_FD(result, name, declared, passed) \
    result name declared {                    \
        if (inside_fd(fd) && hit()) return -1; \
        return NEXT(name) passed;             \
    }
ON_FD(ssize_t, pwrite, (int fd, const void *data, size_t size, off_t where), (fd, data, size, where))
ON_FD(ssize_t, pwrite64, (int fd, const void *data, size_t size, off64_t where), (fd, data, size, where))
ON_FD(int, fsync, (int fd), (fd))
ON_FD(int, fdatasync, (int fd), (fd))
ON_FD(int, ftruncate, (int fd, off_t size), (fd, size))
ON_FD(int, ftruncate64, (int fd, off64_t size), (fd, size))
ON_FD(int, fallocate, (int fd, int mode, off_t from, off_t size), (fd, mode, from, size))
ON_FD(int, posix_fallocate, (int fd, off_t from, off_t size), (fd, from, size))

#define ON_PATH(name, declared, passed)      \
    int name declared {                      \
        if (inside(path) && hit()) return -1; \
        return NEXT(name) passed;            \
    }
ON_PATH(rename, (const char *path, const char *to), (path, to))
ON_PATH(unlink, (const char *path), (path))
ON_PATH(rmdir, (const char *path), (path))
ON_PATH(mkdir, (const char *path, mode_t mode), (path, mode))
ON_PATH(truncate, (const char *path, off_t size), (path, size))
#define ON_AT(name, declared, passed)                \
    int name declared {                              \
        if (inside_at(fd, path) && hit()) return -1; \
        return NEXT(name) passed;                    \
    }
ON_AT(renameat, (int fd, const char *path, int other, const char *to), (fd, path, other, to))
ON_AT(unlinkat, (int fd, const char *path, int flags), (fd, path, flags))
ON_AT(mkdirat, (int fd, const char *path, mode_t mode), (fd, path, mode))

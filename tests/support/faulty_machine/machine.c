/* A machine that fails when told to: loaded before the C library, it stands between a process and
 * the calls by which that changes its files, starts children and reads the clock.
 *
 * What it does is read from shared memory at every call, so that a test changes it at any time.
 * Processes that the program starts are not concerned: they do not inherit the library.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { OPEN = 1, WRITE = 2, SYNC = 4, RENAME = 8, LINK = 16, UNLINK = 32, MKDIR = 64, TRUNCATE = 128,
       SPAWN = 256 };

/* As machine.py lays it out. */
struct control {
    int64_t clock_offset_ns;
    int64_t left;      /* matching calls until one fails */
    int64_t seen;      /* matching calls so far */
    int32_t action;    /* an errno, -1 to be killed, -2 to be killed with half the bytes written */
    uint32_t kinds;    /* which calls match; 0 lets everything pass */
    int32_t lasting;   /* whether every further matching call fails too */
    int32_t prefix_length;
    char prefix[488];  /* below which folder */
};

static struct control *control;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("FAULTY_MACHINE");
    unsetenv("LD_PRELOAD");
    if (path == NULL) return;
    int (*real_open)(const char *, int, ...) = dlsym(RTLD_NEXT, "open");
    int fd = real_open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) return;
    void *map = mmap(NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (map != MAP_FAILED) control = map;
    close(fd);
}

static int is_below(const char *path) {
    return strncmp(path, control->prefix, control->prefix_length) == 0;
}

static int is_fd_below(int fd) {
    char link[64], target[4096];
    const char *digits = "0123456789";
    char *at = link + sizeof link;
    *--at = 0;
    do { *--at = digits[fd % 10]; fd /= 10; } while (fd);
    const char *folder = "/proc/self/fd/";
    at -= strlen(folder);
    memcpy(at, folder, strlen(folder));
    ssize_t length = readlink(at, target, sizeof target - 1);
    if (length <= 0) return 0;
    target[length] = 0;
    return is_below(target);
}

static int is_at_below(int folder, const char *path) {
    if (path[0] == '/') return is_below(path);
    return folder >= 0 && is_fd_below(folder);
}

/* Count a matching call; return 0 if it shall pass, else the action. */
static int strike(void) {
    __atomic_add_fetch(&control->seen, 1, __ATOMIC_SEQ_CST);
    int64_t left = __atomic_sub_fetch(&control->left, 1, __ATOMIC_SEQ_CST);
    if (left > 0 || (left < 0 && !control->lasting) || control->action == 0) return 0;
    if (control->action == -1) kill(getpid(), SIGKILL);
    return control->action;
}

#define WATCHES(kind) (control != NULL && (control->kinds & (kind)))
#define REAL(name) static __typeof__(name) *real; if (real == NULL) real = dlsym(RTLD_NEXT, #name)
#define FAILS(kind, matches) \
    do { \
        if (WATCHES(kind) && (matches)) { \
            int saved = errno, found = strike(); \
            errno = saved; \
            if (found == -2) kill(getpid(), SIGKILL); \
            if (found > 0) { errno = found; return -1; } \
        } \
    } while (0)

static int changes(int flags) { return (flags & (O_CREAT | O_TRUNC)) != 0; }

#define OPENER(name) \
    int name(const char *path, int flags, ...) { \
        mode_t mode = 0; \
        if (flags & (O_CREAT | O_TMPFILE)) { va_list more; va_start(more, flags); mode = va_arg(more, mode_t); va_end(more); } \
        REAL(name); \
        FAILS(OPEN, changes(flags) && is_below(path)); \
        return real(path, flags, mode); \
    }
OPENER(open)
OPENER(open64)

#define OPENER_AT(name) \
    int name(int folder, const char *path, int flags, ...) { \
        mode_t mode = 0; \
        if (flags & (O_CREAT | O_TMPFILE)) { va_list more; va_start(more, flags); mode = va_arg(more, mode_t); va_end(more); } \
        REAL(name); \
        FAILS(OPEN, changes(flags) && is_at_below(folder, path)); \
        return real(folder, path, flags, mode); \
    }
OPENER_AT(openat)
OPENER_AT(openat64)

#define TORN(call_half) \
    if (WATCHES(WRITE) && is_fd_below(fd)) { \
        int saved = errno, found = strike(); \
        errno = saved; \
        if (found == -2) { call_half; kill(getpid(), SIGKILL); } \
        if (found > 0) { errno = found; return -1; } \
    }

ssize_t write(int fd, const void *data, size_t size) {
    REAL(write);
    TORN(real(fd, data, size / 2))
    return real(fd, data, size);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
    REAL(pwrite);
    TORN(real(fd, data, size / 2, at))
    return real(fd, data, size, at);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    REAL(pwrite64);
    TORN(real(fd, data, size / 2, at))
    return real(fd, data, size, at);
}

int fsync(int fd) { REAL(fsync); FAILS(SYNC, is_fd_below(fd)); return real(fd); }
int fdatasync(int fd) { REAL(fdatasync); FAILS(SYNC, is_fd_below(fd)); return real(fd); }
int ftruncate(int fd, off_t size) { REAL(ftruncate); FAILS(TRUNCATE, is_fd_below(fd)); return real(fd, size); }
int ftruncate64(int fd, off64_t size) { REAL(ftruncate64); FAILS(TRUNCATE, is_fd_below(fd)); return real(fd, size); }
int fallocate(int fd, int mode, off_t at, off_t size) { REAL(fallocate); FAILS(TRUNCATE, is_fd_below(fd)); return real(fd, mode, at, size); }
int fallocate64(int fd, int mode, off64_t at, off64_t size) { REAL(fallocate64); FAILS(TRUNCATE, is_fd_below(fd)); return real(fd, mode, at, size); }

int rename(const char *from, const char *to) { REAL(rename); FAILS(RENAME, is_below(to)); return real(from, to); }
int renameat(int a, const char *from, int b, const char *to) { REAL(renameat); FAILS(RENAME, is_at_below(b, to)); return real(a, from, b, to); }
int link(const char *from, const char *to) { REAL(link); FAILS(LINK, is_below(to)); return real(from, to); }
int linkat(int a, const char *from, int b, const char *to, int flags) { REAL(linkat); FAILS(LINK, is_at_below(b, to)); return real(a, from, b, to, flags); }
int unlink(const char *path) { REAL(unlink); FAILS(UNLINK, is_below(path)); return real(path); }
int unlinkat(int folder, const char *path, int flags) { REAL(unlinkat); FAILS(UNLINK, is_at_below(folder, path)); return real(folder, path, flags); }
int rmdir(const char *path) { REAL(rmdir); FAILS(UNLINK, is_below(path)); return real(path); }
int mkdir(const char *path, mode_t mode) { REAL(mkdir); FAILS(MKDIR, is_below(path)); return real(path, mode); }
int mkdirat(int folder, const char *path, mode_t mode) { REAL(mkdirat); FAILS(MKDIR, is_at_below(folder, path)); return real(folder, path, mode); }

pid_t fork(void) { REAL(fork); FAILS(SPAWN, 1); return real(); }

int clock_gettime(clockid_t which, struct timespec *at) {
    REAL(clock_gettime);
    int answer = real(which, at);
    if (answer == 0 && control != NULL && (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE)) {
        int64_t now = at->tv_sec * 1000000000LL + at->tv_nsec + control->clock_offset_ns;
        at->tv_sec = now / 1000000000LL;
        at->tv_nsec = now % 1000000000LL;
    }
    return answer;
}
int gettimeofday(struct timeval *restrict at, void *restrict zone) {
    REAL(gettimeofday);
    int answer = real(at, zone);
    if (answer == 0 && control != NULL) {
        int64_t now = at->tv_sec * 1000000LL + at->tv_usec + control->clock_offset_ns / 1000;
        at->tv_sec = now / 1000000LL;
        at->tv_usec = now % 1000000LL;
    }
    return answer;
}
time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at != NULL) *at = now.tv_sec;
    return now.tv_sec;
}

/* Stands between a process and the C library (LD_PRELOAD), for tests of faults.

Every call that changes a file below a root, and every send, is held against rules that
the test has written to a shared file; it may fail, be done in part, or end the process.
What was done can be traced. The wall clock can be shifted. See interposer.py for the
layout of the shared file and of the trace. */

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
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>
#include <limits.h>
#include <stdio.h>

/* RECEIVE is traced, and no rule is for it. */
enum { OPEN, WRITE, SYNC, TRUNCATE, RENAME, UNLINK, MKDIR, LINK, SEND, RECEIVE };
enum { FAIL = 1, IN_PART, KILL_BEFORE, KILL_IN_PART, KILL_AFTER };
enum { RULES = 128, PATH_BYTES = 160, SENT_BYTES = 4096 };

struct rule {
    int32_t kinds;    /* bit mask; 0: no rule */
    int32_t action;
    int32_t error;    /* errno of FAIL */
    int32_t skip;     /* so many calls that match are let through first */
    int32_t times;    /* so many are acted on; negative: all */
    int32_t fired;
    int32_t seen;     /* calls that matched, acted on or not */
    int32_t pad;
    char parts[PATH_BYTES]; /* '\n' between: each must occur in the path, or in what is sent;
                               one that ends with '$' at its end */
};

struct control {
    int64_t clock_shift_ns;
    char root[1024];
    char trace[1024]; /* empty: no trace */
    struct rule rules[RULES];
};

struct record {
    uint32_t kind;
    uint32_t pid;
    int64_t offset;
    uint32_t path_bytes;
    uint32_t data_bytes;
};

static struct control *control;
static int trace_fd = -1;

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("INTERPOSER_CONTROL");
    if (!path) return;
    int fd = syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC, 0);
    if (fd < 0) return;
    void *mapped = mmap(NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    syscall(SYS_close, fd);
    if (mapped == MAP_FAILED) return;
    control = mapped;
    if (control->trace[0]) {
        int low = syscall(SYS_openat, AT_FDCWD, control->trace,
                          O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        /* Out of the way of programs that close or number descriptors themselves. */
        trace_fd = fcntl(low, F_DUPFD_CLOEXEC, 700);
        syscall(SYS_close, low);
    }
}

/* -- what a call is about ---------------------------------------------------------------- */

static int is_below_root(const char *path)
{
    size_t length = strlen(control->root);
    return length && strncmp(path, control->root, length) == 0;
}

static int name_of_path(int directory, const char *path, char *name)
{
    if (path[0] == '/') {
        if (strlen(path) >= PATH_MAX) return 0;
        strcpy(name, path);
        return 1;
    }
    char link[64], base[PATH_MAX];
    if (directory == AT_FDCWD) strcpy(link, "/proc/self/cwd");
    else snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
    ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, base, sizeof base - 1);
    if (length < 0 || (size_t)length + strlen(path) + 2 > PATH_MAX) return 0;
    base[length] = 0;
    strcpy(name, base);
    strcat(name, "/");
    strcat(name, path);
    return 1;
}

static int name_of_fd(int fd, char *name)
{
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, name, PATH_MAX - 1);
    if (length <= 0) return 0;
    name[length] = 0;
    return name[0] == '/' && is_below_root(name);
}

static int matches(const struct rule *rule, const char *text, size_t bytes)
{
    char parts[PATH_BYTES + 1], *rest = parts, *part;
    memcpy(parts, rule->parts, PATH_BYTES);
    parts[PATH_BYTES] = 0;
    while ((part = strsep(&rest, "\n"))) {
        size_t length = strlen(part);
        if (length && part[length - 1] == '$') {
            length--;
            if (length > bytes || memcmp(text + bytes - length, part, length)) return 0;
        } else if (!memmem(text, bytes, part, length)) {
            return 0;
        }
    }
    return 1;
}

/* The rule that acts on this call, if any. */
static struct rule *rule_of(int kind, const char *text, size_t bytes)
{
    for (int i = 0; i < RULES; i++) {
        struct rule *rule = &control->rules[i];
        int32_t kinds = __atomic_load_n(&rule->kinds, __ATOMIC_ACQUIRE);
        if (!(kinds & (1 << kind)) || !matches(rule, text, bytes)) continue;
        if (__atomic_add_fetch(&rule->seen, 1, __ATOMIC_SEQ_CST) <= rule->skip) continue;
        int32_t left = __atomic_load_n(&rule->times, __ATOMIC_SEQ_CST);
        while (left > 0 && !__atomic_compare_exchange_n(&rule->times, &left, left - 1, 0,
                                                        __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
        if (left == 0) continue;
        __atomic_add_fetch(&rule->fired, 1, __ATOMIC_SEQ_CST);
        return rule;
    }
    return NULL;
}

static struct rule *rule_for(int kind, const char *name)
{
    return rule_of(kind, name, strlen(name));
}

static void end(void)
{
    syscall(SYS_kill, syscall(SYS_getpid), SIGKILL);
    for (;;) pause();
}

static void trace(int kind, int64_t offset, const char *name, const void *data, size_t bytes)
{
    if (trace_fd < 0) return;
    struct record record = {kind, (uint32_t)syscall(SYS_getpid), offset, strlen(name), bytes};
    struct iovec pieces[] = {
        {&record, sizeof record}, {(void *)name, record.path_bytes}, {(void *)data, bytes},
    };
    int kept = errno;
    syscall(SYS_writev, trace_fd, pieces, 3);
    errno = kept;
}

/* 1: the call must not be made, errno is set. The caller does what is done in part. */
static int acts_before(struct rule *rule)
{
    if (!rule) return 0;
    if (rule->action == KILL_BEFORE) end();
    if (rule->action == FAIL) {
        errno = rule->error;
        return 1;
    }
    return 0;
}

static void acts_after(struct rule *rule)
{
    if (rule && (rule->action == KILL_AFTER || rule->action == KILL_IN_PART)) end();
}

static int is_in_part(struct rule *rule)
{
    return rule && (rule->action == IN_PART || rule->action == KILL_IN_PART);
}

/* -- calls that write -------------------------------------------------------------------- */

static ssize_t write_to(int fd, const struct iovec *pieces, int count, off_t offset)
{
    char name[PATH_MAX];
    int is_ours = control && name_of_fd(fd, name);
    struct rule *rule = is_ours ? rule_for(WRITE, name) : NULL;
    if (acts_before(rule)) return -1;
    if (!is_ours) {
        if (offset >= 0) return syscall(SYS_pwritev, fd, pieces, count, (long)offset, 0L);
        return syscall(SYS_writev, fd, pieces, count);
    }
    size_t total = 0;
    for (int i = 0; i < count; i++) total += pieces[i].iov_len;
    char *data = malloc(total + 1);
    for (size_t at = 0, i = 0; i < (size_t)count; at += pieces[i++].iov_len)
        memcpy(data + at, pieces[i].iov_base, pieces[i].iov_len);
    if (is_in_part(rule) && total > 1) total /= 2;
    off_t at = offset >= 0 ? offset : lseek(fd, 0, SEEK_CUR);
    ssize_t written = offset >= 0 ? syscall(SYS_pwrite64, fd, data, total, (long)offset)
                                  : syscall(SYS_write, fd, data, total);
    if (written > 0) trace(WRITE, at, name, data, written);
    free(data);
    acts_after(rule);
    return written;
}

ssize_t write(int fd, const void *data, size_t bytes)
{
    if (!control) return syscall(SYS_write, fd, data, bytes);
    struct iovec piece = {(void *)data, bytes};
    return write_to(fd, &piece, 1, -1);
}

ssize_t writev(int fd, const struct iovec *pieces, int count)
{
    return write_to(fd, pieces, count, -1);
}

ssize_t pwrite64(int fd, const void *data, size_t bytes, off64_t offset)
{
    struct iovec piece = {(void *)data, bytes};
    return write_to(fd, &piece, 1, offset);
}

ssize_t pwrite(int fd, const void *data, size_t bytes, off_t offset)
{
    return pwrite64(fd, data, bytes, offset);
}

ssize_t pwritev64(int fd, const struct iovec *pieces, int count, off64_t offset)
{
    return write_to(fd, pieces, count, offset);
}

ssize_t pwritev(int fd, const struct iovec *pieces, int count, off_t offset)
{
    return write_to(fd, pieces, count, offset);
}

/* What Python's os.pwritev calls, always without flags here. */
ssize_t pwritev64v2(int fd, const struct iovec *pieces, int count, off64_t offset, int flags)
{
    (void)flags;
    return write_to(fd, pieces, count, offset);
}

ssize_t pwritev2(int fd, const struct iovec *pieces, int count, off_t offset, int flags)
{
    return pwritev64v2(fd, pieces, count, offset, flags);
}

static int sync_of(int fd, int number)
{
    char name[PATH_MAX];
    if (!control || !name_of_fd(fd, name)) return syscall(number, fd);
    struct rule *rule = rule_for(SYNC, name);
    if (acts_before(rule)) return -1;
    int result = syscall(number, fd);
    if (!result) trace(SYNC, 0, name, "", 0);
    acts_after(rule);
    return result;
}

int fsync(int fd) { return sync_of(fd, SYS_fsync); }
int fdatasync(int fd) { return sync_of(fd, SYS_fdatasync); }

int ftruncate64(int fd, off64_t length)
{
    char name[PATH_MAX];
    if (!control || !name_of_fd(fd, name)) return syscall(SYS_ftruncate, fd, length);
    struct rule *rule = rule_for(TRUNCATE, name);
    if (acts_before(rule)) return -1;
    int result = syscall(SYS_ftruncate, fd, length);
    if (!result) trace(TRUNCATE, length, name, "", 0);
    acts_after(rule);
    return result;
}

int ftruncate(int fd, off_t length) { return ftruncate64(fd, length); }

/* -- calls that make and unmake names ---------------------------------------------------- */

static int open_at(int directory, const char *path, int flags, mode_t mode)
{
    char name[PATH_MAX];
    int writes = flags & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC);
    if (!control || !writes || !name_of_path(directory, path, name) || !is_below_root(name))
        return syscall(SYS_openat, directory, path, flags, mode);
    struct rule *rule = rule_for(OPEN, name);
    if (acts_before(rule)) return -1;
    int fd = syscall(SYS_openat, directory, path, flags, mode);
    if (fd >= 0 && flags & (O_CREAT | O_TRUNC)) trace(OPEN, flags & O_TRUNC ? 1 : 0, name, "", 0);
    acts_after(rule);
    return fd;
}

#define MODE_OF(flags) \
    mode_t mode = 0; \
    if (flags & (O_CREAT | O_TMPFILE)) { \
        va_list rest; \
        va_start(rest, flags); \
        mode = va_arg(rest, mode_t); \
        va_end(rest); \
    }

int open(const char *path, int flags, ...)
{
    MODE_OF(flags)
    return open_at(AT_FDCWD, path, flags, mode);
}

int open64(const char *path, int flags, ...)
{
    MODE_OF(flags)
    return open_at(AT_FDCWD, path, flags, mode);
}

int openat(int directory, const char *path, int flags, ...)
{
    MODE_OF(flags)
    return open_at(directory, path, flags, mode);
}

int openat64(int directory, const char *path, int flags, ...)
{
    MODE_OF(flags)
    return open_at(directory, path, flags, mode);
}

static int name_again(int kind, const char *from, const char *to, int number)
{
    char name[PATH_MAX], target[PATH_MAX];
    if (!control || !name_of_path(AT_FDCWD, from, name) || !name_of_path(AT_FDCWD, to, target)
        || !is_below_root(target))
        return syscall(number, from, to);
    struct rule *rule = rule_for(kind, target);
    if (acts_before(rule)) return -1;
    int result = syscall(number, from, to);
    if (!result) trace(kind, 0, name, target, strlen(target));
    acts_after(rule);
    return result;
}

int rename(const char *from, const char *to) { return name_again(RENAME, from, to, SYS_rename); }
int link(const char *from, const char *to) { return name_again(LINK, from, to, SYS_link); }

int linkat(int old, const char *from, int new, const char *to, int flags)
{
    if (old == AT_FDCWD && new == AT_FDCWD) return link(from, to);
    return syscall(SYS_linkat, old, from, new, to, flags);
}

static int unmake(int kind, const char *path, int number, long mode)
{
    char name[PATH_MAX];
    int is_ours = control && name_of_path(AT_FDCWD, path, name) && is_below_root(name);
    struct rule *rule = is_ours ? rule_for(kind, name) : NULL;
    if (acts_before(rule)) return -1;
    int result = syscall(number, path, mode);
    if (is_ours && !result) trace(kind, 0, name, "", 0);
    acts_after(rule);
    return result;
}

int unlink(const char *path) { return unmake(UNLINK, path, SYS_unlink, 0); }
int mkdir(const char *path, mode_t mode) { return unmake(MKDIR, path, SYS_mkdir, mode); }

/* -- what is said to others -------------------------------------------------------------- */

ssize_t send(int fd, const void *data, size_t bytes, int flags)
{
    struct rule *rule = control ? rule_of(SEND, data, bytes) : NULL;
    if (acts_before(rule)) return -1;
    /* Before it is done: whoever has heard it, the trace holds it. */
    if (control) trace(SEND, fd, "", data, bytes < SENT_BYTES ? bytes : SENT_BYTES);
    ssize_t sent = syscall(SYS_sendto, fd, data, bytes, flags, NULL, 0);
    acts_after(rule);
    return sent;
}

ssize_t recv(int fd, void *data, size_t bytes, int flags)
{
    ssize_t received = syscall(SYS_recvfrom, fd, data, bytes, flags, NULL, NULL);
    if (control && received > 0)
        trace(RECEIVE, fd, "", data, received < SENT_BYTES ? received : SENT_BYTES);
    return received;
}

/* -- the wall clock ---------------------------------------------------------------------- */

int clock_gettime(clockid_t clock, struct timespec *now)
{
    REAL(clock_gettime);
    int result = real(clock, now);
    if (result || !control || (clock != CLOCK_REALTIME && clock != CLOCK_REALTIME_COARSE))
        return result;
    int64_t ns = __atomic_load_n(&control->clock_shift_ns, __ATOMIC_RELAXED);
    ns += (int64_t)now->tv_sec * 1000000000 + now->tv_nsec;
    now->tv_sec = ns / 1000000000;
    now->tv_nsec = ns % 1000000000;
    return 0;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    struct timespec precise;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now)
{
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    if (now) *now = precise.tv_sec;
    return precise.tv_sec;
}

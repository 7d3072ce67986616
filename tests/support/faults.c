/*
 * Counts and fails the calls by which the SQLite in a process uses its files and memory. Loaded by
 * LD_PRELOAD; tests/process/injector.rs compiles it and controls it.
 *
 * FAULTS_PREFIX is the path of the database file. The files whose paths begin with it are watched:
 * the database, -wal and -shm. FAULTS_CONTROL is a file that holds a struct control; the test
 * writes rules to it and reads counts from it while the process runs.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/types.h>
#include <unistd.h>

enum operation { WRITE, READ, SYNC, TRUNCATE, LOCK, MAP, OPEN, ALLOCATE, OPERATIONS };
enum file { MAIN, WAL, SHM, MEMORY, FILES };

/* Effects above every errno. */
enum { SHORT_WRITE = 10001, CORRUPT = 10002 };

/* The calls of this kind from the nth on, counted from when the rule is armed, fail this often. */
struct rule {
    _Atomic uint64_t armed;
    uint64_t operation, file, effect, nth, times;
    _Atomic uint64_t seen, failed;
    /* The offset in the file of the last call that failed; of a lock, its byte. */
    _Atomic uint64_t offset;
};

struct control {
    _Atomic uint64_t loaded;
    /* Whether to refuse to map the database, so that SQLite reads it by calls. */
    uint64_t no_map;
    _Atomic uint64_t counts[OPERATIONS][FILES];
    struct rule rules[2];
};

#define MAX_FDS 65536
/* The file of each descriptor, plus one; 0 if it is not watched. */
static _Atomic unsigned char files[MAX_FDS];
static struct control *control;
static const char *prefix;

#define REAL(name) static __typeof__(&name) real_##name
REAL(open);
REAL(open64);
REAL(close);
REAL(read);
REAL(write);
REAL(pread64);
REAL(pwrite64);
REAL(fsync);
REAL(fdatasync);
REAL(ftruncate64);
REAL(fcntl64);
REAL(mmap64);

extern void *__libc_malloc(size_t);
extern void *__libc_realloc(void *, size_t);

#define TLS static __thread __attribute__((tls_model("initial-exec")))
/* Whether this thread checkpoints or recovers: SQLite does not check what it reads then. */
TLS int copying;
TLS int is_sqlite_thread;

__attribute__((constructor)) static void load(void) {
#define FIND(name) real_##name = (__typeof__(real_##name))dlsym(RTLD_NEXT, #name)
    FIND(open);
    FIND(open64);
    FIND(close);
    FIND(read);
    FIND(write);
    FIND(pread64);
    FIND(pwrite64);
    FIND(fsync);
    FIND(fdatasync);
    FIND(ftruncate64);
    FIND(fcntl64);
    FIND(mmap64);
    const char *path = getenv("FAULTS_CONTROL");
    prefix = getenv("FAULTS_PREFIX");
    if (path == NULL || prefix == NULL)
        return;
    int fd = real_open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return;
    void *shared = real_mmap64(NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    real_close(fd);
    if (shared == MAP_FAILED)
        return;
    control = shared;
    atomic_store(&control->loaded, sizeof(struct control));
}

/* The watched file at a path, plus one. */
static int watched(const char *path) {
    size_t length = prefix == NULL || control == NULL ? 0 : strlen(prefix);
    if (length == 0 || strncmp(path, prefix, length) != 0)
        return 0;
    if (path[length] == 0)
        return MAIN + 1;
    if (strcmp(path + length, "-wal") == 0)
        return WAL + 1;
    return strcmp(path + length, "-shm") == 0 ? SHM + 1 : 0;
}

static int of(int fd) {
    return fd >= 0 && fd < MAX_FDS ? atomic_load(&files[fd]) : 0;
}

/* Counts a call, and returns the effect that it is to have; 0 for none. */
static uint64_t effect(enum operation operation, int file, uint64_t offset) {
    atomic_fetch_add(&control->counts[operation][file], 1);
    for (int i = 0; i < 2; i++) {
        struct rule *rule = &control->rules[i];
        if (!atomic_load(&rule->armed) || rule->operation != operation || rule->file != (uint64_t)file)
            continue;
        if (rule->effect == CORRUPT && copying)
            continue;
        uint64_t seen = atomic_fetch_add(&rule->seen, 1) + 1;
        if (seen < rule->nth || seen - rule->nth >= rule->times)
            continue;
        atomic_store(&rule->offset, offset);
        atomic_fetch_add(&rule->failed, 1);
        if (rule->effect == SHORT_WRITE && seen > rule->nth)
            return ENOSPC;
        return rule->effect;
    }
    return 0;
}

static int fails(enum operation operation, int file, uint64_t offset) {
    uint64_t errnum = effect(operation, file, offset);
    if (errnum != 0)
        errno = (int)errnum;
    return errnum != 0;
}

#define OPENER(name)                                                                               \
    int name(const char *path, int flags, ...) {                                                   \
        va_list more;                                                                              \
        va_start(more, flags);                                                                     \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;                    \
        va_end(more);                                                                              \
        int file = watched(path);                                                                  \
        if (file && fails(OPEN, file - 1, 0))                                                      \
            return -1;                                                                             \
        int fd = real_##name(path, flags, mode);                                                   \
        if (fd >= 0 && fd < MAX_FDS)                                                               \
            atomic_store(&files[fd], (unsigned char)file);                                         \
        return fd;                                                                                 \
    }
OPENER(open)
OPENER(open64)

int close(int fd) {
    if (fd >= 0 && fd < MAX_FDS)
        atomic_store(&files[fd], 0);
    return real_close(fd);
}

/* The bytes to write; -1 for a failure. */
static ssize_t writable(int fd, size_t size, off64_t offset) {
    uint64_t how = effect(WRITE, of(fd) - 1, (uint64_t)offset);
    if (how == SHORT_WRITE)
        return (ssize_t)(size / 2);
    if (how == 0)
        return (ssize_t)size;
    errno = (int)how;
    return -1;
}

ssize_t write(int fd, const void *bytes, size_t size) {
    if (!of(fd))
        return real_write(fd, bytes, size);
    ssize_t allowed = writable(fd, size, lseek64(fd, 0, SEEK_CUR));
    return allowed <= 0 ? allowed : real_write(fd, bytes, (size_t)allowed);
}

ssize_t pwrite64(int fd, const void *bytes, size_t size, off64_t offset) {
    if (!of(fd))
        return real_pwrite64(fd, bytes, size, offset);
    ssize_t allowed = writable(fd, size, offset);
    return allowed <= 0 ? allowed : real_pwrite64(fd, bytes, (size_t)allowed, offset);
}

/*
 * SQLite finds a page whose first byte is invalid. It has no checksum of other bytes: it would take
 * them for data, and write them back.
 */
static ssize_t spoilt(uint64_t how, void *bytes, ssize_t size) {
    if (how == CORRUPT && size >= 512)
        *(unsigned char *)bytes = 0xff;
    return size;
}

ssize_t read(int fd, void *bytes, size_t size) {
    if (!of(fd))
        return real_read(fd, bytes, size);
    uint64_t how = effect(READ, of(fd) - 1, (uint64_t)lseek64(fd, 0, SEEK_CUR));
    if (how == 0 || how == CORRUPT)
        return spoilt(how, bytes, real_read(fd, bytes, size));
    errno = (int)how;
    return -1;
}

ssize_t pread64(int fd, void *bytes, size_t size, off64_t offset) {
    if (!of(fd))
        return real_pread64(fd, bytes, size, offset);
    uint64_t how = effect(READ, of(fd) - 1, (uint64_t)offset);
    if (how == 0 || how == CORRUPT)
        return spoilt(how, bytes, real_pread64(fd, bytes, size, offset));
    errno = (int)how;
    return -1;
}

int fsync(int fd) {
    return of(fd) && fails(SYNC, of(fd) - 1, 0) ? -1 : real_fsync(fd);
}

int fdatasync(int fd) {
    return of(fd) && fails(SYNC, of(fd) - 1, 0) ? -1 : real_fdatasync(fd);
}

int ftruncate64(int fd, off64_t size) {
    return of(fd) && fails(TRUNCATE, of(fd) - 1, (uint64_t)size) ? -1 : real_ftruncate64(fd, size);
}

/* The locks of SQLite's -shm: 120 writer, 121 checkpointer, 122 recovery, 123 to 127 readers. */
static void note_copying(const struct flock *lock) {
    off_t end = lock->l_start + lock->l_len;
    if (lock->l_start <= 122 && end > 121 && lock->l_type != F_RDLCK)
        copying = lock->l_type == F_WRLCK;
}

int fcntl64(int fd, int command, ...) {
    va_list more;
    va_start(more, command);
    void *argument = va_arg(more, void *);
    va_end(more);
    int file = of(fd);
    if (!file || (command != F_SETLK && command != F_SETLKW))
        return real_fcntl64(fd, command, argument);
    const struct flock *lock = argument;
    if (lock->l_type != F_UNLCK && fails(LOCK, file - 1, (uint64_t)lock->l_start))
        return -1;
    int done = real_fcntl64(fd, command, argument);
    if (done == 0 && file == SHM + 1)
        note_copying(lock);
    return done;
}

int fcntl(int fd, int command, ...) {
    va_list more;
    va_start(more, command);
    void *argument = va_arg(more, void *);
    va_end(more);
    return fcntl64(fd, command, argument);
}

void *mmap64(void *address, size_t size, int protection, int flags, int fd, off64_t offset) {
    int file = of(fd);
    if (file == MAIN + 1 && control->no_map) {
        errno = ENOMEM;
        return MAP_FAILED;
    }
    if (file && fails(MAP, file - 1, (uint64_t)offset))
        return MAP_FAILED;
    return real_mmap64(address, size, protection, flags, fd, offset);
}

void *mmap(void *address, size_t size, int protection, int flags, int fd, off_t offset) {
    return mmap64(address, size, protection, flags, fd, offset);
}

/* Whether this allocation, by a thread on which SQLite runs, fails. */
static int starved(void) {
    if (control == NULL)
        return 0;
    if (!is_sqlite_thread) {
        char name[16] = "";
        prctl(PR_GET_NAME, name);
        is_sqlite_thread = strncmp(name, "sqlx-sqlite", 11) == 0;
    }
    return is_sqlite_thread && fails(ALLOCATE, MEMORY, 0);
}

void *malloc(size_t size) {
    return starved() ? NULL : __libc_malloc(size);
}

void *realloc(void *block, size_t size) {
    return starved() ? NULL : __libc_realloc(block, size);
}

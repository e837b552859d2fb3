// Calls of the C library that meet a fault. It is loaded into a program before all other libraries (LD_PRELOAD).
//
// Counted are the calls of some names on files in some folders. The call of a certain number fails, or comes short, or a
// signal arrives before or after it. That reaches what Python cannot patch: its own imports, and native libraries.
//
// FAULT has what is to happen from the start on; `faulty.py` tells it by `fault_arm`.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char names[512], folders[4096];  // ",name,name," (empty: all) and "folder:folder" (empty: all files)
static char fault;                      // e: fails, s: comes short, z: reads nothing, b, a: a signal before, after
static int value, stays, report = -1;   // error or signal; whether it lasts; where name and path of the call are told
static long number;                     // of the first call that meets it, from 1
static atomic_long count;

void fault_arm(const char* of, const char* below, char what, int code, long nth, int lasts, int told) {
  snprintf(names, sizeof names, "%s", of);
  snprintf(folders, sizeof folders, "%s", below);
  fault = what, value = code, stays = lasts, report = told;
  atomic_store(&count, 0);
  number = nth;
}

__attribute__((constructor)) static void begin(void) {
  char of[512] = "", what = 0;
  int code = 0;
  long nth = 0;
  const char* told = getenv("FAULT");  // "e 5 17 ,read,": the 17th call of read fails with error 5
  if (told && sscanf(told, "%c %d %ld %511s", &what, &code, &nth, of) >= 3) fault_arm(of, "", what, code, nth, 0, -1);
}

static int is_below(const char* path) {
  if (!*folders) return 1;
  for (const char* at = folders; *at;) {
    const size_t size = strcspn(at, ":");
    if (strncmp(path, at, size) == 0 && (path[size] == '/' || !path[size])) return 1;
    at += size + (at[size] == ':');
  }
  return 0;
}

static int met(const char* name, const char* path) {
  char word[40];
  snprintf(word, sizeof word, ",%s,", name);
  if ((*names && !strstr(names, word)) || !is_below(path)) return 0;
  const long now = atomic_fetch_add(&count, 1) + 1;
  if (now == number && report >= 0) {
    char line[PATH_MAX + 64];
    const int size = snprintf(line, sizeof line, "%s %s", name, path);
    syscall(SYS_write, report, line, (size_t)size);
  }
  return now == number || (stays && now > number);
}

static int met_by(const char* name, int fd) {
  if (!number) return 0;
  char link[40], path[PATH_MAX];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  const long got = syscall(SYS_readlinkat, AT_FDCWD, link, path, sizeof path - 1);
  path[got > 0 ? got : 0] = 0;
  return met(name, path);
}

static int met_in(const char* name, int folder, const char* file) {
  if (!number) return 0;
  char link[40], above[PATH_MAX / 2], path[PATH_MAX];
  snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
  const long got = syscall(SYS_readlinkat, AT_FDCWD, folder == AT_FDCWD ? "/proc/self/cwd" : link, above,
                           sizeof above - 1);
  above[got > 0 ? got : 0] = 0;
  if (file[0] == '/') {
    snprintf(path, sizeof path, "%s", file);
  } else {
    snprintf(path, sizeof path, "%s/%.*s", above, PATH_MAX / 2 - 2, file);
  }
  return met(name, path);
}

static void arrive(char when) {
  if (fault != when) return;
  const int kept = errno;
  syscall(SYS_kill, getpid(), value);
  errno = kept;
}

// A function of the C library that does `act`, where the condition is not met, or not by an error; `failed` is what it
// returns else. In `act`, `real` is the function itself.
#define CALL(type, name, parameters, condition, failed, act)           \
  type name parameters {                                               \
    static type(*real) parameters;                                     \
    if (!real) real = (type(*) parameters)dlsym(RTLD_NEXT, #name);     \
    const int is_met = (condition);                                    \
    if (is_met && fault == 'e') return errno = value, failed;          \
    if (is_met) arrive('b');                                           \
    const type found = act;                                            \
    if (is_met) arrive('a');                                           \
    return found;                                                      \
  }

// Bytes to read or write where it comes short: half of them; one by one they would never be all.
#define LESS(size) (is_met && fault == 's' && (size) > 1 ? (size) / 2 : (size))
#define READ(act) (is_met && fault == 'z' ? 0 : (act))

CALL(ssize_t, read, (int fd, void* to, size_t size), met_by("read", fd), -1, READ(real(fd, to, LESS(size))))
CALL(ssize_t, pread64, (int fd, void* to, size_t size, off64_t at), met_by("pread", fd), -1,
     READ(real(fd, to, LESS(size), at)))
CALL(ssize_t, write, (int fd, const void* from, size_t size), met_by("write", fd), -1, real(fd, from, LESS(size)))
CALL(ssize_t, pwrite64, (int fd, const void* from, size_t size, off64_t at), met_by("pwrite", fd), -1,
     real(fd, from, LESS(size), at))
CALL(ssize_t, preadv64v2, (int fd, const struct iovec* runs, int many, off64_t at, int flags), met_by("preadv", fd),
     -1, READ(real(fd, many == 1 ? &(struct iovec){runs->iov_base, LESS(runs->iov_len)} : runs, many, at, flags)))
CALL(ssize_t, pwritev64v2, (int fd, const struct iovec* runs, int many, off64_t at, int flags), met_by("pwrite", fd),
     -1, real(fd, runs, many, at, flags))
CALL(ssize_t, copy_file_range, (int from, off64_t* at, int to, off64_t* place, size_t size, unsigned flags),
     met_by("copy_file_range", to), -1, real(from, at, to, place, LESS(size), flags))
CALL(int, fsync, (int fd), met_by("fsync", fd), -1, real(fd))
CALL(int, fchmod, (int fd, mode_t mode), met_by("fchmod", fd), -1, real(fd, mode))
CALL(int, ftruncate64, (int fd, off64_t size), met_by("ftruncate", fd), -1, real(fd, size))
CALL(int, posix_fallocate64, (int fd, off64_t at, off64_t size), met_by("fallocate", fd), value, real(fd, at, size))
CALL(int, rename, (const char* old, const char* new), met_in("rename", AT_FDCWD, new), -1, real(old, new))
CALL(int, renameat2, (int of, const char* old, int to, const char* new, unsigned flags), met_in("rename", to, new), -1,
     real(of, old, to, new, flags))
CALL(int, link, (const char* old, const char* new), met_in("link", AT_FDCWD, new), -1, real(old, new))
CALL(int, unlink, (const char* name), met_in("unlink", AT_FDCWD, name), -1, real(name))
CALL(int, unlinkat, (int in, const char* name, int flags), met_in("unlink", in, name), -1, real(in, name, flags))
CALL(int, rmdir, (const char* name), met_in("rmdir", AT_FDCWD, name), -1, real(name))
CALL(int, mkdir, (const char* name, mode_t mode), met_in("mkdir", AT_FDCWD, name), -1, real(name, mode))


static int opened(const char* called, int folder, const char* file, int flags, mode_t mode) {
  static int (*real)(int, const char*, int, ...);
  if (!real) real = (int (*)(int, const char*, int, ...))dlsym(RTLD_NEXT, "openat64");
  const int is_met = met_in(called, folder, file);
  if (is_met && fault == 'e') return errno = value, -1;
  if (is_met) arrive('b');
  const int found = real(folder, file, flags, mode);
  if (is_met) arrive('a');
  return found;
}

#define MODE(last)                                       \
  mode_t mode = 0;                                       \
  if (flags & (O_CREAT | O_TMPFILE)) {                   \
    va_list more;                                        \
    va_start(more, last);                                \
    mode = va_arg(more, mode_t);                         \
    va_end(more);                                        \
  }

int open64(const char* file, int flags, ...) {
  MODE(flags)
  return opened("open", AT_FDCWD, file, flags, mode);
}

int openat64(int folder, const char* file, int flags, ...) {
  MODE(flags)
  return opened("open", folder, file, flags, mode);
}

// The system closes a file whatever it returns.
int close(int fd) {
  static int (*real)(int);
  if (!real) real = (int (*)(int))dlsym(RTLD_NEXT, "close");
  const int is_met = met_by("close", fd);
  if (is_met) arrive('b');
  const int found = real(fd);
  if (is_met && fault == 'e') return errno = value, -1;
  if (is_met) arrive('a');
  return found;
}

/* One process at a time has a volume; the second is told who the first is. */
#include "store/volume_lock.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static char dir[] = "/tmp/test_store_lock.XXXXXX";
static char path[sizeof dir + 8], other[sizeof dir + 8];
static struct store_error error;

static void setup(void)
{
    cr_assert_not_null(mkdtemp(dir));
    (void)snprintf(path, sizeof path, "%s/volume", dir);
    (void)snprintf(other, sizeof other, "%s/other", dir);
}

static void teardown(void)
{
    (void)unlink(path);
    (void)unlink(other);
    (void)rmdir(dir);
}

TestSuite(lock, .init = setup, .fini = teardown);

static void expect_refused(const char *name, bool create, int rc, const char *text)
{
    memset(&error, 0, sizeof error);
    cr_assert_eq(volume_lock(name, create, &error), rc, "%s", error.text);
    cr_assert_not_null(strstr(error.text, text), "%s", error.text);
    cr_assert_not_null(strstr(error.text, name), "%s", error.text);
    cr_assert_null(strchr(error.text, '\n'));
}

/* A child that holds the lock until the returned pipe is closed. */
static pid_t hold(const char *name, int *release)
{
    int ready[2], done[2];
    char c;
    cr_assert_eq(pipe2(ready, O_CLOEXEC), 0);
    cr_assert_eq(pipe2(done, O_CLOEXEC), 0);
    pid_t pid = fork();
    if (pid == 0) {
        close(done[1]);
        int fd = volume_lock(name, false, NULL);
        (void)!write(ready[1], "x", 1);
        (void)!read(done[0], &c, 1);
        _exit(fd >= 0 ? 0 : 1);
    }
    close(ready[1]);
    close(done[0]);
    cr_assert_eq(read(ready[0], &c, 1), 1);
    close(ready[0]);
    *release = done[1];
    return pid;
}

Test(lock, is_taken_and_goes_with_its_descriptor)
{
    int fd = volume_lock(path, true, &error);
    cr_assert_geq(fd, 0, "%s", error.text);
    struct stat st;
    cr_assert_eq(stat(path, &st), 0);
    cr_assert_eq(st.st_mode & 07777, 0600);
    cr_assert_eq(st.st_size, 0);
    cr_assert(fcntl(fd, F_GETFD) & FD_CLOEXEC);
    expect_refused(path, false, -EBUSY, "in use");
    close(fd);
    fd = volume_lock(path, false, &error);
    cr_assert_geq(fd, 0);
    close(fd);
}

Test(lock, tells_the_holder)
{
    int release, fd = volume_lock(path, true, &error), status;
    char pid_text[32];
    close(fd);
    pid_t pid = hold(path, &release);
    (void)snprintf(pid_text, sizeof pid_text, "process %d (", (int)pid);
    expect_refused(path, false, -EBUSY, pid_text);
    cr_assert_not_null(strstr(error.text, "test_store_lock"), "%s", error.text);
    expect_refused(path, true, -EBUSY, pid_text);
    close(release);
    cr_assert_eq(waitpid(pid, &status, 0), pid);
    cr_assert_eq(status, 0);
    fd = volume_lock(path, false, &error);
    cr_assert_geq(fd, 0, "%s", error.text);
    close(fd);
}

Test(lock, goes_with_a_process_that_is_killed)
{
    int release, fd = volume_lock(path, true, &error);
    close(fd);
    pid_t pid = hold(path, &release);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    fd = volume_lock(path, false, &error);
    cr_assert_geq(fd, 0, "%s", error.text);
    close(fd);
    close(release);
}

Test(lock, is_the_files_whatever_it_is_called)
{
    int fd = volume_lock(path, true, &error);
    cr_assert_eq(symlink(path, other), 0);
    expect_refused(other, false, -EBUSY, "in use");
    close(fd);
    fd = volume_lock(other, false, &error);
    cr_assert_geq(fd, 0);
    expect_refused(path, false, -EBUSY, "in use");
    close(fd);
}

Test(lock, of_what_is_no_volume_is_refused_in_words)
{
    char deep[sizeof path + 8];
    expect_refused(path, false, -ENOENT, "does not exist");
    (void)snprintf(deep, sizeof deep, "%s/x", path);
    expect_refused(deep, true, -ENOENT, "directory does not exist");
    expect_refused(dir, false, -EISDIR, "is a directory");
    expect_refused(dir, true, -EISDIR, "is a directory");
    expect_refused("/dev/null", false, -EINVAL, "not a regular file");
    cr_assert_eq(mkfifo(other, 0600), 0);
    expect_refused(other, false, -EINVAL, "not a regular file");
    cr_assert_eq(unlink(other), 0);
    cr_assert_eq(symlink(other, other), 0);
    expect_refused(other, false, -ELOOP, "cannot be opened");
}

Test(lock, of_a_file_one_may_not_read_is_refused_in_words)
{
    int fd = volume_lock(path, true, &error);
    close(fd);
    cr_assert_eq(chmod(path, 0), 0);
    cr_assert_eq(chmod(dir, 0755), 0);
    pid_t pid = fork();
    if (pid == 0) {
        if (getuid() == 0 && setuid(65534) != 0)
            _exit(1);
        int rc = volume_lock(path, false, &error);
        _exit(rc == -EACCES && strstr(error.text, "become its owner") != NULL ? 0 : 2);
    }
    int status;
    cr_assert_eq(waitpid(pid, &status, 0), pid);
    cr_assert_eq(status, 0);
}

Test(lock, of_a_read_only_file_is_given)
{
    int fd = volume_lock(path, true, &error);
    close(fd);
    cr_assert_eq(chmod(path, 0444), 0);
    cr_assert_eq(chmod(dir, 0755), 0);
    pid_t pid = fork();
    if (pid == 0) {
        if (getuid() == 0 && setuid(65534) != 0)
            _exit(1);
        fd = volume_lock(path, false, &error);
        _exit(fd >= 0 && (fcntl(fd, F_GETFL) & O_ACCMODE) == O_RDONLY ? 0 : 2);
    }
    int status;
    cr_assert_eq(waitpid(pid, &status, 0), pid);
    cr_assert_eq(status, 0);
}

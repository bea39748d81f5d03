#include "fs/process.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

bool process_start(void)
{
    int fd;
    do
        fd = open("/dev/null", O_RDWR);
    while (fd >= 0 && fd <= STDERR_FILENO);
    if (fd < 0)
        return false;
    close(fd);
    struct rlimit limit;
    signal(SIGXFSZ, SIG_IGN);
    if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
        limit.rlim_cur = limit.rlim_max;
        (void)setrlimit(RLIMIT_FSIZE, &limit);
    }
    return true;
}

/* A letter that is unknown may be one of several in a word, which is not behind us then. */
const char *process_bad_option(char **argv, const char *letters)
{
    static char text[] = "-?";
    if (optopt <= ' ' || optopt > '~' || strchr(letters, optopt) != NULL)
        return argv[optind - 1];
    text[1] = (char)optopt;
    return text;
}

bool process_close_output(const char *program)
{
    bool failed = ferror(stdout) != 0;
    errno = 0;
    if (fclose(stdout) == 0 && !failed)
        return true;
    fprintf(stderr, "%s: standard output: %s\n", program,
            errno != 0 ? strerror(errno) : "not all of it could be written");
    return false;
}

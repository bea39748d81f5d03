#include "store/error.h"

#include <stdarg.h>
#include <stdio.h>

int store_fail(struct store_error *error, int err, const char *format, ...)
{
    if (error != NULL) {
        va_list args;
        va_start(args, format);
        (void)vsnprintf(error->text, sizeof error->text, format, args);
        va_end(args);
    }
    return err;
}

/* error.h: filling in a struct store_error. */
#ifndef FOLIO_STORE_ERROR_H
#define FOLIO_STORE_ERROR_H

#include "store/store.h"

/* Write the one line for a person into error (may be NULL).   Returns err, so that a function can
 * say why and return in one statement. */
__attribute__((format(printf, 3, 4))) int store_fail(struct store_error *error, int err,
                                                     const char *format, ...);

#endif

/* errseq.h: errors that several are to be told of, each of them once (Linux: lib/errseq.c).
 *
 * An errseq is one word: an error, whether anybody has been told of it, and a count of those that somebody was told
 * of. Who is to be told keeps a word of its own: the errseq as it was when it last looked. An error that nobody has
 * been told of yet is told to who begins to look now, too.
 */
#ifndef FOLIO_CACHE_ERRSEQ_H
#define FOLIO_CACHE_ERRSEQ_H

#include <stdatomic.h>
#include <stdint.h>

/* Which of two outcomes (0, -errno) to tell where only one can be: what stays, such as -EIO, hides want of memory,
 * that hides -EBUSY, and that -EAGAIN; of two alike, the first. */
int worse_error(int first, int second);

/* err: -errno. While nobody has been told of the last one, the worse of the two stays. */
void errseq_set(_Atomic uint32_t *eseq, int err);
/* For who begins to look. */
uint32_t errseq_sample(const _Atomic uint32_t *eseq);
/* An error newer than *since: it, once, however many ask at a time; else 0. */
int errseq_check_and_advance(_Atomic uint32_t *eseq, _Atomic uint32_t *since);

#endif

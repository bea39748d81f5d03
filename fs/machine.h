/* machine.h: what the machine lets us have. */
#ifndef FOLIO_FS_MACHINE_H
#define FOLIO_FS_MACHINE_H

#include <stdint.h>

/* Memory, bytes: the machine's, or what the strictest of our control groups allows. */
uint64_t machine_memory(void);

#endif

/* The same tests on nodes of four slots: a tree of few items is deep, grows and shrinks all the
 * time. */
#define RADIX_SHIFT 2
#include "tests/test_radix.c"

/* Sizes as people write them. */
#include "fs/size.h"

#include <criterion/criterion.h>
#include <errno.h>

#define COUNT(array) (sizeof(array) / sizeof(*(array)))

Test(size, is_parsed_with_its_unit)
{
    static const struct {
        const char *text;
        uint64_t bytes;
    } cases[] = {
        { "0", 0 },
        { "4096", 4096 },
        { "007", 7 },
        { "1K", 1024 },
        { "1k", 1024 },
        { "3KiB", 3072 },
        { "500M", (uint64_t)500 << 20 },
        { "20g", (uint64_t)20 << 30 },
        { "64T", (uint64_t)64 << 40 },
        { "2tib", (uint64_t)2 << 40 },
        { "18446744073709551615", UINT64_MAX },
        { "16777215T", (uint64_t)16777215 << 40 },
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        uint64_t out = 1;
        cr_assert_eq(parse_size(cases[i].text, &out), 0, "%s", cases[i].text);
        cr_assert_eq(out, cases[i].bytes, "%s", cases[i].text);
    }
}

Test(size, of_another_shape_is_refused)
{
    static const struct {
        const char *text;
        int rc;
    } cases[] = {
        { "", -EINVAL },     { "K", -EINVAL },         { "-1", -EINVAL },
        { "+1", -EINVAL },   { " 1", -EINVAL },        { "1 K", -EINVAL },
        { "1KB", -EINVAL },  { "1X", -EINVAL },        { "1KK", -EINVAL },
        { "1.5G", -EINVAL }, { "0x10", -EINVAL },      { "18446744073709551616", -ERANGE },
        { "1Ki", -EINVAL },  { "16777216T", -ERANGE },
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        uint64_t out = 77;
        cr_assert_eq(parse_size(cases[i].text, &out), cases[i].rc, "%s", cases[i].text);
        cr_assert_eq(out, 77);
    }
}

Test(size, is_written_in_the_largest_unit_that_divides_it)
{
    char buf[SIZE_TEXT_BYTES];
    cr_assert_str_eq(format_size(0, buf), "0 bytes");
    cr_assert_str_eq(format_size(1000, buf), "1000 bytes");
    cr_assert_str_eq(format_size(1536, buf), "1536 bytes");
    cr_assert_str_eq(format_size(1536 << 10, buf), "1536 KiB");
    cr_assert_str_eq(format_size((uint64_t)1 << 40, buf), "1 TiB");
    cr_assert_str_eq(format_size((uint64_t)1 << 50, buf), "1024 TiB");
    cr_assert_str_eq(format_size(UINT64_MAX, buf), "18446744073709551615 bytes");
}

#!/usr/bin/env python3
"""Make a tree like that of a program's source, the same on every machine.

    tree.py DIR FILES [UNITS]

FILES files of text in about FILES / 15 directories, most of some KiB, few large, and DIR/prog, a C
program of UNITS files with a Makefile.
"""
import os
import random
import sys

WORDS = """static int struct page cache return if else for while inode index offset size error lock
tree node count flags unsigned long char void const define include mapping dirty write read""".split()


def text(draw, size):
    lines, length = [], 0
    while length < size:
        line = "\t" * draw.randrange(3) + " ".join(draw.choices(WORDS, k=draw.randrange(2, 12)))
        lines.append(line)
        length += len(line) + 1
    return "\n".join(lines) + "\n"


def directories(draw, top, count):
    found = [top]
    while len(found) < count:
        path = os.path.join(draw.choice(found), "%s_%d" % (draw.choice(WORDS), len(found)))
        if path.count("/") - top.count("/") < 8:
            os.mkdir(path)
            found.append(path)
    return found


def make_files(draw, top, count):
    # Text is drawn once and cut: drawing 100 MB of words takes a minute.
    pool = text(draw, 4 << 20)
    where = directories(draw, top, max(count // 15, 1))
    for i in range(count):
        size = min(int(draw.lognormvariate(8.3, 1.3)), 1 << 20)
        start = draw.randrange(len(pool) - size)
        with open(os.path.join(draw.choice(where), "f%d.c" % i), "w") as f:
            f.write(pool[start:start + size])


def make_program(top, units):
    os.mkdir(top)
    with open(top + "/all.h", "w") as f:
        f.write("#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n#include <unistd.h>\n")
        for i in range(units):
            f.write("int unit%d(int n);\n" % i)
    for i in range(units):
        with open("%s/unit%d.c" % (top, i), "w") as f:
            f.write('#include "all.h"\n')
            for j in range(20):
                f.write("static int step%d(int n)\n{\n    char text[64];\n"
                        "    for (int i = 0; i < n; i++)\n"
                        '        snprintf(text, sizeof text, "%%d %%d", i * %d, n);\n'
                        "    return (int)strlen(text) + n %% %d;\n}\n" % (j, j + 3, j + 2))
            f.write("int unit%d(int n)\n{\n    return %s;\n}\n"
                    % (i, " + ".join("step%d(n)" % j for j in range(20))))
    with open(top + "/main.c", "w") as f:
        f.write('#include "all.h"\nint main(void)\n{\n    return (%s) == 0;\n}\n'
                % " + ".join("unit%d(3)" % i for i in range(units)))
    with open(top + "/Makefile", "w") as f:
        names = ["main"] + ["unit%d" % i for i in range(units)]
        f.write("CFLAGS = -O1\nobjects = %s\nprog: $(objects)\n\t$(CC) -o $@ $(objects)\n"
                "$(objects): all.h\nclean:\n\trm -f prog $(objects)\n"
                % " ".join(n + ".o" for n in names))


def main():
    top, files = sys.argv[1], int(sys.argv[2])
    units = int(sys.argv[3]) if len(sys.argv) > 3 else 30
    os.mkdir(top)
    make_files(random.Random(1), top, files)
    make_program(top + "/prog", units)


main()

#!/usr/bin/env python3
"""flame.py FOLDED > SVG: a flame graph of stacks ("outer;inner COUNT", "_[k]" behind what is the kernel's).

A box is a function, as wide as its share of the samples; above it stands what it called. The order
from left to right is the alphabet's and says nothing. Pointing at a box shows its share."""
import sys
from html import escape

WIDTH, ROW, LETTER = 1400, 17, 7  # pixels: the picture, a box's height, a letter's width
LEAST = 0.3                       # narrower boxes are left out


class Box:
    def __init__(self):
        self.count, self.above = 0, {}


def read(lines):
    root = Box()
    for line in lines:
        stack, count = line.rsplit(None, 1)
        box = root
        box.count += int(count)
        for name in stack.split(";"):
            box = box.above.setdefault(name, Box())
            box.count += int(count)
    return root


def height(box):
    return 1 + max(map(height, box.above.values()), default=0)


def colour(name):
    """The kernel's are blue, ours and the libraries' orange; the name decides on the shade."""
    shade = sum(map(ord, name)) % 40
    return "hsl(%d,60%%,%d%%)" % (210 if name.endswith("_[k]") else 30, 60 + shade // 2)


def draw(box, name, x, bottom, scale, total):
    width = box.count * scale
    if width < LEAST:
        return
    shown = name.removesuffix("_[k]")
    label = shown[:int((width - 4) / LETTER)]
    if len(label) < len(shown):
        label = label[:-2] + ".." if len(label) > 3 else ""
    print('<g><title>%s: %d samples, %.2f %%</title><rect x="%.1f" y="%d" width="%.1f" height="%d" fill="%s"/>'
          % (escape(shown), box.count, 100 * box.count / total, x, bottom - ROW, width, ROW - 1, colour(name)))
    print('<text x="%.1f" y="%d">%s</text></g>' % (x + 2, bottom - 5, escape(label)))
    for inner in sorted(box.above):
        draw(box.above[inner], inner, x, bottom - ROW, scale, total)
        x += box.above[inner].count * scale


def main():
    with open(sys.argv[1]) as f:
        root = read(f)
    tall = height(root) * ROW + 2 * ROW
    print('<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="monospace" font-size="11">'
          % (WIDTH, tall))
    print('<rect width="100%" height="100%" fill="white"/>')
    print('<text x="4" y="%d">%s: %d samples; blue: in the kernel</text>'
          % (ROW, escape(sys.argv[1].rsplit("/", 1)[-1]), root.count))
    if root.count > 0:
        draw(root, "all", 0, tall, WIDTH / root.count, root.count)
    print("</svg>")


sys.setrecursionlimit(10000)
main()

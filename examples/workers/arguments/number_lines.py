"""Numbers the lines of a text, as a program that knows nothing of leasehold: all it needs is in its arguments."""
import argparse

parser = argparse.ArgumentParser()
parser.add_argument("--in", dest="source", required=True)
parser.add_argument("--out", dest="target", required=True)
parser.add_argument("--first", type=int, default=1)
parser.add_argument("title")
arguments = parser.parse_args()
with open(arguments.source, encoding="utf-8") as source, open(arguments.target, "w", encoding="utf-8") as target:
    print("#", arguments.title, file=target)
    for number, line in enumerate(source, arguments.first):
        target.write(f"{number}: {line}")

#!/usr/bin/env python3
"""Finds words that the project avoids in the text files that Git tracks.

The words are either ambiguous (floor, letter, face) or have a plainer equivalent (anew: again). Where a word is exact, .ci/words.allow
lists the place: one "path: line" each, where the line is without its indentation.
"""

import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
WORDS = re.compile(
    r"\b("
    r"told|tells?|telling|anew|mend(s|ed)?|whoever|whomever|whatever becomes|of (its|their) own|besides?|(?<!there )is no(?= [a-z])|(has|have) not(?= (the|an?|any)\b)"
    r"|that which|in place of|by (itself|themselves)|so long as|heeds?|comes? about|a look|the house|floors?|faces?"
    r"|brakes?|(?<!dead )(?<!dead-)(?<!lower-case )letters?|nobody|somebody|a moment ago|at (the )?most, it"
    r")\b",
    re.IGNORECASE,
)
FOLDERS = ("src", "docs", "helm", "proto", "tests", "benches", "examples", ".ci", ".github")
# Generated, binary, or about these words.
SKIPPED = (".ci/words.py", ".ci/words.allow", "docs/openapi.json", ".ci/released.binpb", ".ci/chart-tools/")


def files():
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in filter(None, names):
        top = name.split("/")[0]
        if (top in FOLDERS or name.endswith(".md")) and not name.startswith(SKIPPED):
            yield name


def main():
    allowed = set((ROOT / ".ci/words.allow").read_text().splitlines())
    used, found = set(), []
    for name in files():
        try:
            lines = (ROOT / name).read_text().splitlines()
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(lines, 1):
            match = WORDS.search(line)
            place = f"{name}: {line.strip()}"
            if match and place in allowed:
                used.add(place)
            elif match:
                found.append((name, number, match.group(0), line.strip()))
    if sys.argv[1:] == ["--allow"]:
        print("\n".join(f"{name}: {line}" for name, _, _, line in found))
        return
    for name, number, word, line in found:
        print(f"{name}:{number}: {word!r}: {line}")
    stale = {place for place in allowed if place and not place.startswith("#")} - used
    for place in sorted(stale):
        print(f".ci/words.allow: no such line: {place}")
    if found or stale:
        sys.exit(f"{len(found)} words to replace, or to list in .ci/words.allow; {len(stale)} entries to remove from it")


main()

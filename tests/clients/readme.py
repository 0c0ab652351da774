"""The commands that the README shows are run as they stand, in a shell, and what they print is what stands below them. What differs
from run to run (times, ages, request ids) is not looked at."""

import pathlib
import re
import subprocess

README = pathlib.Path(__file__).resolve().parent.parent.parent / "README.md"
# The line that says where the gateway is; the only one that is changed.
PLACE = "gateway=http://127.0.0.1:8080 admin=http://127.0.0.1:9090"

VARYING = [
    (r"(?m)^(age|date|x-request-id): .*", r"\1: …"),
    (r"\bttl=\d+", "ttl=…"),
    (r'"(uptime_seconds|bytes|open|idle)":\d+', r'"\1":…'),
    (r'"name":"[0-9a-f]{8}","address":"[^"]*"', '"name":…,"address":…'),
]


def alike(text):
    """The text without what differs from run to run."""
    for pattern, instead in VARYING:
        text = re.sub(pattern, instead, text, flags=re.IGNORECASE)
    return text.replace("\r", "").strip()


def shown(readme):
    """(what is set beforehand, [(command, what it prints)]) of the section that is to be tried."""
    section = re.search(r"^## Try it\n(.*?)^## ", readme, re.M | re.S)[1]
    before = "".join(re.findall(r"^```sh\n(.*?)^```", section, re.M | re.S))
    pairs = []
    for block in re.findall(r"^```console\n(.*?)^```", section, re.M | re.S):
        # A command ends where its line does not end in a backslash.
        for command, output in re.findall(r"^\$ ((?:.*\\\n)*.*)\n((?:(?!\$ ).*\n)*)", block, re.M):
            pairs.append((command, output))
    return before, pairs


def works(that, url, admin):
    """`that(name, holds, seen)` takes each check."""
    before, pairs = shown(README.read_text())
    that("it says where the gateway is", before.count(PLACE) == 1 and len(pairs) > 8, (before, len(pairs)))
    end = "end of what it printed"
    lines = [before.replace(PLACE, f"gateway={url} admin={admin}")]
    # In one shell, for a later command uses what an earlier one set.
    lines += [f"{command}\nprintf '\\n%s\\n' '{end}'\n" for command, _ in pairs]
    run = subprocess.run(["bash"], input="".join(lines), capture_output=True, text=True, timeout=120)
    that("the commands run", run.returncode == 0 and run.stderr == "", (run.returncode, run.stderr))
    printed = run.stdout.split(f"\n{end}\n")[:-1]
    that("each of them", len(printed) == len(pairs), len(printed))
    for (command, expected), seen in zip(pairs, printed):
        that(command.split("\n")[0][:70], alike(seen) == alike(expected), seen)

"""Runs the commands that README and TUTORIAL show, in a shell, and compares their output with the documents. Parts that
differ from run to run (times, ages, request ids) are not compared."""

import pathlib
import re
import subprocess

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent.parent
DOCUMENTS = {"readme": REPOSITORY / "README.md", "tutorial": REPOSITORY / "docs" / "TUTORIAL.md"}
# The addresses of the gateway; the only part of a command that is replaced.
PLACE = "gateway=http://127.0.0.1:8080 admin=http://127.0.0.1:9090"

VARYING = [
    (r"(?m)^(age|date|x-request-id): .*", r"\1: …"),
    (r"\bttl=\d+", "ttl=…"),
    (r'"(uptime_seconds|bytes|open|idle)":\d+', r'"\1":…'),
    (r'"name":"[0-9a-f]{8}","address":"[^"]*"', '"name":…,"address":…'),
]


def alike(text):
    """Returns the text without the parts that differ from run to run."""
    for pattern, instead in VARYING:
        text = re.sub(pattern, instead, text, flags=re.IGNORECASE)
    return text.replace("\r", "").strip()


def shown(document):
    """Returns the assignments and [(command, output)] of the section "Try it"."""
    section = re.search(r"^## Try it\n(.*?)(?=^## |\Z)", document, re.M | re.S)[1]
    before = "".join(re.findall(r"^```sh\n(.*?)^```", section, re.M | re.S))
    pairs = []
    for block in re.findall(r"^```console\n(.*?)^```", section, re.M | re.S):
        # A command ends where its line does not end in a backslash.
        for command, output in re.findall(r"^\$ ((?:.*\\\n)*.*)\n((?:(?!\$ ).*\n)*)", block, re.M):
            pairs.append((command, output))
    return before, pairs


def works(that, name, url, admin):
    """`that(name, holds, seen)` takes each check."""
    before, pairs = shown(DOCUMENTS[name].read_text())
    enough = {"readme": 3, "tutorial": 9}[name]
    that("it states the addresses", before.count(PLACE) == 1 and len(pairs) >= enough, (before, len(pairs)))
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

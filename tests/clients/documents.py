"""Executes every console transcript of the documents and compares its output with the document.

A transcript is a ```console block: lines that begin with "$ " are commands, the lines below are
their output. A document runs in one shell, in an empty folder with:

- `gateway.toml`, the configuration of a running gateway, and `gateway.log`, its log;
- each block that names a file, such as ```toml bad.toml;
- the variables `gateway` and `admin`, its addresses, and what ```sh blocks with the line PLACE set.

Times, ages, sizes of connections and request ids differ from run to run and are not compared.
"""

import os
import pathlib
import re
import subprocess

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent.parent
# The addresses of `make demo`; replaced by those of the gateway under test.
PLACE = "gateway=http://127.0.0.1:8080 admin=http://127.0.0.1:9090"
OUTPUT_END = "end of the output"

VARYING = [
    (r"(?m)^(age|date|x-request-id): .*", r"\1: …"),
    (r"\bttl=\d+", "ttl=…"),
    (r'"(uptime_seconds|open|idle|duration_us)":\d+', r'"\1":…'),
    (r'"(timestamp|http\.request\.id|requestId|trace_id|span_id|host|url)":"[^"]*"', r'"\1":…'),
    (r'"name":"[0-9a-f]{8}","address":"[^"]*"', '"name":…,"address":…'),
]


def documents():
    """The documents with a transcript, by name."""
    paths = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", REPOSITORY / "SECURITY.md"]
    paths += sorted(REPOSITORY.glob("docs/**/*.md")) + [REPOSITORY / "deploy/README.md"]
    return {path.stem.lower() if path.parent.name != "deploy" else "deploy": path.read_text()
            for path in paths if "```console" in path.read_text()}  # fmt: skip


def without_varying(text):
    for pattern, replacement in VARYING:
        text = re.sub(pattern, replacement, text, flags=re.IGNORECASE)
    return text.replace("\r", "").strip()


def transcripts(document):
    """Returns [(command, output)] of all transcripts."""
    pairs = []
    for block in re.findall(r"^```console\n(.*?)^```", document, re.M | re.S):
        # A command ends where its line does not end in a backslash.
        pairs += re.findall(r"^\$ ((?:.*\\\n)*.*)\n((?:(?!\$ ).*\n)*)", block, re.M)
    return pairs


def settings(document):
    """Returns the ```sh blocks that set the addresses."""
    blocks = re.findall(r"^```sh\n(.*?)^```", document, re.M | re.S)
    return "".join(block for block in blocks if PLACE in block)


def write_files(document, folder):
    for name, text in re.findall(r"^```\w+ (\S+)\n(.*?)^```", document, re.M | re.S):
        (folder / name).write_text(text)


def check(that, document, folder, url, admin, binary):
    """`that(name, holds, seen)` records each check."""
    pairs = transcripts(document)
    write_files(document, folder)
    addresses = f"gateway={url} admin={admin}"
    script = [f"{addresses}\n", settings(document).replace(PLACE, addresses)]
    # In one shell, because a later command uses variables of an earlier one. Errors are part of the
    # output.
    script += [f"{command}\nprintf '\\n%s\\n' '{OUTPUT_END}'\n" for command, _ in pairs]
    environment = {**os.environ, "PATH": f"{binary.parent}:{os.environ['PATH']}"}
    run = subprocess.run(
        ["bash"], input="".join(script), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        timeout=120, cwd=folder, env=environment,
    )  # fmt: skip
    outputs = run.stdout.split(f"\n{OUTPUT_END}\n")[:-1]
    that("the commands run", len(outputs) == len(pairs) > 0, (run.returncode, run.stdout[-500:]))
    for (command, expected), seen in zip(pairs, outputs):
        seen = seen.replace(f"{folder}/", "")
        that(command.split("\n")[0][:70], without_varying(seen) == without_varying(expected), seen)


def check_commands(that, binary):
    """The table of commands in OPERATIONS has every command of `--help`."""
    text = subprocess.run([binary, "--help"], capture_output=True, text=True).stdout
    listed = text[text.index("Commands:") : text.index("Options:")]
    commands = set(re.findall(r"^  ([a-z]+) ", listed, re.M)) - {"help"}
    table = (REPOSITORY / "docs/OPERATIONS.md").read_text()
    table = table[table.index("## Commands") : table.index("Exit codes:")]
    missing = [name for name in sorted(commands) if not re.search(rf"`{name}\b", table)]
    that("OPERATIONS lists every command", len(commands) > 5 and not missing, missing)

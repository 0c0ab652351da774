"""The documents that packages contain, and their links.

documents.py copy FOLDER    copies the documents and every file that they link to
documents.py check FOLDER   checks every relative link of the documents in FOLDER
"""

import pathlib
import re
import shutil
import sys
import unicodedata

# Every document for users and operators is linked from these.
ROOTS = ["README.md", "CHANGELOG.md", "SECURITY.md", "LICENSE", "deploy/README.md"]
LINK = re.compile(r"!?\[[^\]]*\]\(\s*<?([^)\s>]+)>?[^)]*\)|(?:src|srcset|href)=\"([^\"]+)\"")


def without_blocks(text):
    return re.sub(r"^ *```.*?^ *```", "", text, flags=re.M | re.S)


def prose(text):
    """The text without code, which has no links."""
    return re.sub(r"`[^`\n]*`", "", without_blocks(text))


def links(path):
    """The relative links of a document, as file and anchor."""
    for match in LINK.finditer(prose(path.read_text())):
        target = match.group(1) or match.group(2)
        if re.match(r"[a-z]+:|//", target):
            continue
        file, _, anchor = target.partition("#")
        yield (path.parent / file if file else path), anchor


def anchors(path):
    """The anchors of a document's headings, as GitHub forms them."""
    found = set()
    for heading in re.findall(r"^#+ +(.*?) *$", without_blocks(path.read_text()), re.M):
        heading = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        kept = [char for char in heading if char in " -_" or unicodedata.category(char)[0] in "LN"]
        anchor = "".join(kept).replace(" ", "-")
        found.add(anchor if anchor not in found else f"{anchor}-1")
    return found


def documents():
    """The roots and what they link to, directly or not; a linked folder with all its files."""
    queue = [pathlib.Path(name) for name in ROOTS] + sorted(pathlib.Path("docs").glob("*.md"))
    found = []
    while queue:
        path = queue.pop().resolve().relative_to(pathlib.Path.cwd())
        if path in found:
            continue
        if path.is_dir():
            queue += [child for child in path.iterdir() if child.is_file()]
            continue
        found.append(path)
        if path.suffix == ".md":
            queue += [target for target, _ in links(path)]
    return sorted(found)


def copy(folder):
    for path in documents():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    print(f"{len(documents())} documents and linked files")


def check(folder):
    checked, broken = 0, []
    for path in sorted(folder.rglob("*.md")):
        for target, anchor in links(path):
            checked += 1
            if not target.exists():
                broken.append(f"{path.relative_to(folder)}: missing {target}")
            elif anchor and target.suffix == ".md" and anchor not in anchors(target):
                broken.append(f"{path.relative_to(folder)}: missing anchor {target.name}#{anchor}")
    print("\n".join(broken) or f"{checked} links lead to files of the package")
    sys.exit(bool(broken))


if __name__ == "__main__":
    {"copy": copy, "check": check}[sys.argv[1]](pathlib.Path(sys.argv[2]))

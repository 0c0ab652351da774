#!/usr/bin/env python3
"""Reads the list of dependencies that `cargo auditable` writes into a binary, and compares it with
Cargo.lock: each package of the list is locked in that version with that source, and each direct
dependency of the gateway is in the list.

    dependency_list.py BINARY             (in the root of the repository)
    dependency_list.py --print BINARY     one `name version` per line
"""

import json
import struct
import sys
import tomllib
import zlib

SECTION = ".dep-v0"
ROOT = "telecomx-gateway"


def section(binary, name):
    """The bytes of a section of a 64-bit little-endian ELF file, or None."""
    with open(binary, "rb") as file:
        data = file.read()
    if data[:6] != b"\x7fELF\x02\x01":
        sys.exit(f"{binary}: no 64-bit little-endian ELF file")
    (table,) = struct.unpack_from("<Q", data, 0x28)
    size, count, names = struct.unpack_from("<HHH", data, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", data, table + size * index) for index in range(count)]
    strings = headers[names][4]
    for header in headers:
        start = strings + header[0]
        if data[start : data.index(b"\0", start)] == name.encode():
            return data[header[4] : header[4] + header[5]]
    return None


def packages(binary):
    """The packages that are linked into the binary."""
    compressed = section(binary, SECTION)
    if compressed is None:
        sys.exit(f"{binary}: no section {SECTION}; build it with `cargo auditable build`")
    return json.loads(zlib.decompress(compressed))["packages"]


def faults(listed, lock, manifest):
    """Yields each difference between the list and Cargo.lock."""
    locked = {(package["name"], package["version"]): package for package in lock["package"]}
    roots = [package["name"] for package in listed if package.get("root")]
    if roots != [ROOT]:
        yield f"root packages: {roots}; expected {ROOT}"
    for package in listed:
        key = (package["name"], package["version"])
        if key not in locked:
            yield f"{' '.join(key)} is not in Cargo.lock"
        elif (package["source"] == "crates.io") != ("source" in locked[key]):
            yield f"{' '.join(key)} has the source {package['source']}"
    names = {package["name"] for package in listed}
    for name, dependency in manifest["dependencies"].items():
        is_optional = isinstance(dependency, dict) and dependency.get("optional")
        if not is_optional and name not in names:
            yield f"{name} is missing"


def main():
    *options, binary = sys.argv[1:]
    listed = packages(binary)
    if options == ["--print"]:
        for package in listed:
            print(package["name"], package["version"])
        return 0
    with open("Cargo.lock", "rb") as lock, open("Cargo.toml", "rb") as manifest:
        found = list(faults(listed, tomllib.load(lock), tomllib.load(manifest)))
    for fault in found:
        print(f"{binary}: {fault}")
    if not found:
        print(f"{binary}: lists {len(listed)} packages, as locked")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

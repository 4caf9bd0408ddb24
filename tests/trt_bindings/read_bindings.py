"""Reads from TensorRT's real Python bindings what Trunkline uses of them, and keeps it beside this file.

::

    python tests/trt_bindings/read_bindings.py tensorrt-cu12-bindings==10.3.0 tensorrt-lean-cu12-bindings==10.3.0

The wheels of the bindings hold one extension module each, which needs TensorRT's libraries, a driver and a GPU to do
anything, but only *some* libraries of the right names to be imported. Those are made here, empty. What a class offers
then stands in its members' docstrings: signatures are kept, prose is not. Members are those that
``runtime/backends/tensorrt_members.py`` lists, and nothing else; a member that a version lacks is left out.

Needs pip, gcc and readelf, and the Python that the wheel is made for. The tests read the files only.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from trunkline.runtime.backends.tensorrt_members import BUILD, CONSTRUCTED, INSPECT, RUN, SINCE

HERE = Path(__file__).parent

#: Functions that the extension modules ask TensorRT's libraries for when they are loaded.
SYMBOLS = (
    *("createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL"),
    *("createNvOnnxParserRefitter_INTERNAL", "createNvOnnxParser_INTERNAL", "getBuilderPluginRegistry"),
    *("getNvOnnxParserVersion", "getPluginRegistry", "initLibNvInferPlugins"),
)


def wanted() -> dict[str, list[str]]:
    """Members by class."""
    found: dict[str, list[str]] = {kind: ["__init__"] for kind in CONSTRUCTED}
    for members in (RUN, INSPECT, BUILD, SINCE):
        for kind, names in members.items():
            found[kind] = sorted({*found.get(kind, []), *names})
    return found


def described(kind: Any, member: str) -> Any:
    """A method's signatures, "property" with what it gives and whether it can be set, or an enumerator's number."""
    found = getattr(kind, member)
    if isinstance(found, property):
        gives = re.search(r"-> (.*)", (found.fget.__doc__ or "") if found.fget else "")
        return ["property", _plain(gives[1]) if gives else "", "settable" if found.fset else "read-only"]
    if isinstance(found, type):  # an enumeration inside a class
        return {name: int(value) for name, value in found.__members__.items()}
    if isinstance(found, kind):
        return int(found)
    lines = [line.strip() for line in (found.__doc__ or "").splitlines()]
    return [_signature(line) for line in lines if re.match(rf"(\d+\. )?{re.escape(member)}\(self", line)]


def _signature(line: str) -> str:
    """``name(self: Class, argument: type) -> type`` without what stands for every method."""
    arguments = line[line.index("(") :]
    return _plain(re.sub(r"^\(self: [\w.:]+(, )?", "(", arguments))


def _plain(text: str) -> str:
    return re.sub(r"tensorrt\w*\.tensorrt\w*\.|nv(infer1|onnxparser)::(v_\d_\d::)?", "", text)


def read(module: str) -> dict[str, Any]:
    """What a bindings module that can be imported offers."""
    trt = importlib.import_module(module)
    classes = {}
    for kind, members in wanted().items():
        there = getattr(trt, kind, None)
        if there is not None:
            classes[kind] = {name: described(there, name) for name in members if hasattr(there, name)}
    for base in ("ILogger", "IProgressMonitor"):  # ours derive from them
        type("Derived", (getattr(trt, base),), {})()
    return {"version": trt.__version__, "classes": classes}


def _needed(library: Path) -> list[str]:
    text = subprocess.run(["readelf", "-d", str(library)], check=True, capture_output=True, text=True).stdout
    return [name for name in re.findall(r"\(NEEDED\).*\[(.*)\]", text) if name.startswith("libnv")]


def _empty_libraries(folder: Path, names: list[str]) -> None:
    source = folder / "empty.c"
    source.write_text("".join(f"int {symbol}(void) {{ return 0; }}\n" for symbol in SYMBOLS))
    for name in names:
        options = ["-shared", "-fPIC", f"-Wl,-soname,{name}", "-Wl,--no-as-needed", "-ldl"]
        subprocess.run(["gcc", str(source), "-o", str(folder / name), *options], check=True)


def read_wheel(requirement: str) -> Path:
    """Downloads a wheel and writes what it offers."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        subprocess.run([*pip, "--dest", place, requirement], check=True)
        with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
            wheel.extractall(folder)
        library = next(folder.glob("*_bindings/*.so"))
        _empty_libraries(folder, _needed(library))
        paths = {"LD_LIBRARY_PATH": place, "PYTHONPATH": place}
        command = [sys.executable, __file__, "--module", library.parent.name]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **paths})
    found = json.loads(done.stdout)
    kind = "lean" if "lean" in requirement else "full"
    header = {"wheel": requirement, "made_with": f"python tests/trt_bindings/read_bindings.py {requirement}"}
    target = HERE / f"{kind}_{found['version'].replace('.post1', '')}.json"
    target.write_text(json.dumps({**header, **found}, indent=1) + "\n")
    return target


if __name__ == "__main__":
    if sys.argv[1] == "--module":
        print(json.dumps(read(sys.argv[2])))
    else:
        for argument in sys.argv[1:]:
            print(read_wheel(argument))

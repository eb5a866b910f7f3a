"""Writes the tables of accuracy.md between their markers: relative L2 errors that `tenon-op --check` finds over tests/vectors,
and those that the tests of the registry find over all ops' samples.

    python3 docs/accuracy.py                            the CPU's table
    python3 docs/accuracy.py --device cuda              a table for each set of CUDA kernels
    python3 docs/accuracy.py --device cuda --rows F     the rows alone, to F: for a machine that has no copy of the sources
    python3 docs/accuracy.py --take F                   tables from such rows
    python3 docs/accuracy.py --noted F --section NAME   a table from what tests noted: ./run gpu-test's build/gpu-test/accuracy-PATH

Options: --tenon-op PROGRAM (build/examples/tenon-op), --vectors FOLDER (tests/vectors), --registry PROGRAM (build/tests/test_registry)."""

import argparse
import glob
import json
import os
import re
import struct
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PAGE = os.path.join(ROOT, "docs/accuracy.md")
DTYPES = ("f64", "f32", "bf16")
LIMITS = {"f64": 1e-9, "f32": 3e-5, "bf16": 2.5e-2}
KINDS = ("out", "grad")
# A section that the page does not have yet goes before this.
LAST_HEADING = "## Writing them again"


def op_of(path):
    """The op that a vector file names in its header's metadata."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return json.loads(file.read(length))["__metadata__"]["op"]


def measure(tenon_op, vectors, device, cuda_path=None):
    """{op: {dtype: {kind: worst error}}}, {op: number of files}"""
    files = sorted(glob.glob(os.path.join(vectors, "*.safetensors")))
    if not files:
        raise SystemExit(f"accuracy.py: there are no vectors in {vectors}")
    errors, n_files = {}, {}
    for path in files:
        n_files[op_of(path)] = n_files.get(op_of(path), 0) + 1
    ops = {path: op_of(path) for path in files}
    environment = {**os.environ, **({"TENON_CUDA_PATH": cuda_path} if cuda_path else {})}
    for dtype in DTYPES:
        command = [tenon_op, "--check", *files, "--device", device, "--dtype", dtype]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode not in (0, 1):
            raise SystemExit(f"accuracy.py: {tenon_op} --check: {done.stderr}")
        for path, tensor, _, error in re.findall(r"^(\S+) (\S+) (\S+) ([\d.e+-]+) ", done.stdout, re.M):
            worst, kind = errors.setdefault(ops[path], {}).setdefault(dtype, {}), tensor.split(".")[0]
            worst[kind] = max(worst.get(kind, 0.0), float(error))
    return errors, n_files


def noted(path):
    """From lines "op dtype out|grad error", as tests/op_comparisons.c writes them."""
    errors = {}
    with open(path) as file:
        for op, dtype, kind, error in map(str.split, file):
            worst = errors.setdefault(op, {}).setdefault(dtype, {})
            worst[kind] = max(worst.get(kind, 0.0), float(error))
    errors.pop("outside_cube", None)
    return errors, None


def measure_samples(registry, device, cuda_path=None):
    """The same from the cases of tests/test_registry.c that compare with f64, which on the CPU is itself; no number of files."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "errors")
        environment = {**os.environ, "TENON_TEST_ACCURACY": path, "TENON_TEST_DEVICE": device, "TENON_TEST_COUNTS": ""}
        if cuda_path:
            environment["TENON_CUDA_PATH"] = cuda_path
        for dtype in DTYPES if device == "cuda" else DTYPES[1:]:
            subprocess.run([registry, "--filter", f"*/{dtype}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
        return noted(path)


def rows_of(options):
    """{section: [errors, number of files]}"""
    sections = {}
    for path in (None,) if options.device == "cpu" else ("plain", "base", "hopper"):
        name = options.device if path is None else f"cuda {path}"
        sections[name] = measure(options.tenon_op, options.vectors, options.device, path)
        if options.registry:
            sections[name + " samples"] = measure_samples(options.registry, options.device, path)
    return sections


def cell(errors, kind):
    return "" if kind not in errors else f"{errors[kind]:.1e}" if errors[kind] else "0"


def table(errors, n_files):
    dtypes = [dtype for dtype in DTYPES if any(dtype in of_op for of_op in errors.values())]
    heads = ["op"] + ["files"] * bool(n_files) + [f"{dtype} {what}" for dtype in dtypes for what in ("o", "gradients")]
    lines = ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    for op in sorted(errors):
        cells = [op] + ([str(n_files[op])] if n_files else [])
        cells += [cell(errors[op].get(dtype, {}), kind) for dtype in dtypes for kind in KINDS]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def put(sections):
    with open(PAGE) as file:
        page = file.read()
    for name, (errors, n_files) in sections.items():
        pattern = re.compile(rf"(<!-- accuracy: {name} -->\n).*?(<!-- end -->)", re.S)
        if not pattern.search(page):
            page = page.replace(LAST_HEADING, f"## {name}\n\n<!-- accuracy: {name} -->\n<!-- end -->\n\n{LAST_HEADING}")
        page = pattern.sub(lambda match: match.group(1) + table(errors, n_files) + "\n" + match.group(2), page)
    with open(PAGE, "w") as file:
        file.write(page)


def stored(name):
    """The section of the page as {op: [cells]}."""
    with open(PAGE) as file:
        section = re.search(rf"<!-- accuracy: {name} -->\n(.*?)<!-- end -->", file.read(), re.S).group(1)
    cells = [[cell.strip() for cell in line.strip("| \n").split("|")] for line in section.strip().splitlines()[2:]]
    return {row[0]: row[1:] for row in cells}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--tenon-op", default=os.path.join(ROOT, "build/examples/tenon-op"))
    parser.add_argument("--vectors", default=os.path.join(ROOT, "tests/vectors"))
    parser.add_argument("--registry", default=os.path.join(ROOT, "build/tests/test_registry"))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rows")
    parser.add_argument("--take")
    parser.add_argument("--noted")
    parser.add_argument("--section")
    options = parser.parse_args()
    if options.take:
        with open(options.take) as file:
            sections = json.load(file)
    elif options.noted:
        sections = {options.section: noted(options.noted)}
    else:
        sections = rows_of(options)
    if options.rows:
        with open(options.rows, "w") as file:
            json.dump(sections, file)
    else:
        put(sections)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Does what the pages say work? Every code block of *.md and docs/*.md is run, in the order of its page, with an
installed copy, in a folder that looks like the source root. What stands after ``` says how:

    c program           a whole program: compiled as a user would, run, exit code 0 wanted
    c file=NAME         written to a file of the folder; append=NAME: added to it
    sh                  run by bash, which stops at the first error
    sh slow             the same, by test_docs_slow
    text                what something prints or looks like: nothing is done

and besides: needs=cuda (a GPU) or needs=PROGRAM, skip="the reason", replace="long => short" (several: parted by ' ;; ').
The pages that are written by programs are compared with what these write."""

import functools
import glob
import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import script_cases
from installed_copy import run, scratch, skip_if_sanitized, surroundings
from script_cases import BUILD, SOURCES, skip, want

CC = os.environ.get("CC", "cc").split()
WRITTEN_TO_FILES = ("c", "cuda", "meson", "json", "markdown", "text")
FOLDERS = ("autograd", "bench", "docs", "examples", "libtensor", "ops", "tests")
INDENTED_CODE = re.compile(r"\n\n {4}\S")


# ---- pages and their blocks ----

def pages():
    found = glob.glob(os.path.join(SOURCES, "*.md")) + glob.glob(os.path.join(SOURCES, "docs/*.md"))
    return {os.path.splitext(os.path.basename(path))[0].lower(): path for path in sorted(found)}


class Block:
    def __init__(self, page, line, info, text):
        words = shlex.split(info)
        self.place = f"{os.path.basename(page)}:{line}"
        self.text = text
        self.language = words[0] if words else ""
        self.how = dict(word.split("=", 1) if "=" in word else (word, True) for word in words[1:])
        unknown = set(self.how) - {"program", "file", "append", "slow", "needs", "skip", "replace"}
        want(not unknown, f"{self.place}: {unknown} says nothing to test_docs.py")
        for change in filter(None, self.how.get("replace", "").split(" ;; ")):
            old, new = change.split(" => ")
            want(old in self.text, f"{self.place}: there is no '{old}' to replace")
            self.text = self.text.replace(old, new)


def blocks_of(path):
    with open(path) as file:
        text = file.read()
    blocks, outside, at = [], [], 0
    for match in re.finditer(r"^```([^\n]*)\n(.*?)^```$", text, re.M | re.S):
        blocks.append(Block(path, text.count("\n", 0, match.start()) + 1, match.group(1), match.group(2)))
        outside.append(text[at:match.start()])
        at = match.end()
    outside.append(text[at:])
    for part in outside:
        found = INDENTED_CODE.search(part)
        want(not found, f"{os.path.basename(path)} has indented code, which nothing runs: {part[found.start():][:100] if found else ''}")
    return blocks


# ---- running them ----

def source_root_like(name):
    """A folder with links to what lies in the source root, build/ among it, and some text to learn from."""
    folder = os.path.join(scratch(), name)
    os.mkdir(folder)
    for entry in os.listdir(SOURCES):
        if not entry.startswith((".git", "build")):
            os.symlink(os.path.join(SOURCES, entry), os.path.join(folder, entry))
    os.symlink(BUILD, os.path.join(folder, "build"))
    with open(os.path.join(folder, "input.txt"), "w") as text:
        for path in sorted(glob.glob(os.path.join(SOURCES, "*/*.h")) + glob.glob(os.path.join(SOURCES, "ops/*/*.h")))[:40]:
            with open(path) as header:
                text.write(header.read())
    return folder


@functools.cache
def environment():
    """Programs of this build, and the installed copy for what is compiled. LD_LIBRARY_PATH would lead builds of the pages' own to it too."""
    found = surroundings()
    found["LD_RUN_PATH"] = found.pop("LD_LIBRARY_PATH")
    found["PATH"] = os.pathsep.join([os.path.join(BUILD, "examples"), os.path.join(BUILD, "bench"), found["PATH"]])
    return found


def missing(need):
    """Why what a block needs is not there; None where it is."""
    if need == "cuda" and "cuda is off" in run([os.path.join(BUILD, "examples/tenon-op"), "--list"]):
        return "there is no GPU"
    if need not in (None, "cuda") and not shutil.which(need):
        return f"there is no {need}"
    return None


def run_shell(block, folder):
    done = subprocess.run(["bash", "-eu", "-c", block.text], cwd=folder, env=environment(), stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, errors="replace")
    want(done.returncode == 0, f"{block.place}: exit code {done.returncode}: {done.stdout[-3000:]}{done.stderr[-3000:]}")


def run_program(block, folder):
    name = "program-" + block.place.split(":")[1]
    with open(os.path.join(folder, name + ".c"), "w") as file:
        file.write(block.text)
    flags = run(["pkg-config", "--cflags", "--libs", "tenon"], env=environment()).split()
    command = CC + ["-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-o", name, name + ".c"] + flags + ["-lm"]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True)
    want(done.returncode == 0, f"{block.place}: {done.stderr[-4000:]}")
    done = subprocess.run([os.path.join(folder, name)], cwd=folder, env=environment(), capture_output=True, text=True, errors="replace")
    fine = done.returncode == 0 and not done.stderr
    want(fine, f"{block.place}: exit code {done.returncode}: {done.stdout[-2000:]}{done.stderr[-2000:]}")


def write_file(block, folder):
    name, mode = (block.how["file"], "w") if "file" in block.how else (block.how["append"], "a")
    path = os.path.join(folder, name)
    want(os.path.realpath(os.path.dirname(path)).startswith(os.path.realpath(scratch())), f"{block.place}: {name} lies in the sources")
    want(not os.path.islink(path), f"{block.place}: {name} is a file of the sources")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, mode) as file:
        file.write(block.text)


def run_block(block, folder):
    reason = block.how.get("skip") or missing(block.how.get("needs"))
    if reason:
        print(f"    {block.place}: set aside: {reason}")
    elif ("file" in block.how or "append" in block.how) and block.language in WRITTEN_TO_FILES: write_file(block, folder)
    elif block.language == "c" and "program" in block.how: run_program(block, folder)
    elif block.language == "sh": run_shell(block, folder)
    else: want(block.language == "text", f"{block.place}: ```{block.language} does not say how it is run")


def is_slow(path):
    with open(path) as file:
        return re.search(r"^```sh .*\bslow\b", file.read(), re.M) is not None


def run_page(path):
    skip_if_sanitized()
    if not shutil.which("bash"):
        skip("there is no bash")
    folder = source_root_like(os.path.splitext(os.path.basename(path))[0])
    blocks = blocks_of(path)
    for block in blocks:
        run_block(block, folder)
    print(f"    {len(blocks)} blocks")


def test_links():
    """Every page, those of the folders too, leads to files that are there."""
    broken, found = [], glob.glob(os.path.join(SOURCES, "*.md"))
    for folder in FOLDERS:
        found += glob.glob(f"{SOURCES}/{folder}/**/*.md", recursive=True)
    for path in found:
        with open(path) as file:
            targets = re.findall(r"\]\(([^)#\s]+)", file.read())
        broken += [f"{os.path.relpath(path, SOURCES)} -> {target}" for target in targets
                   if "://" not in target and not os.path.exists(os.path.join(os.path.dirname(path), target))]
    want(not broken, f"links to nothing: {broken}")


# ---- pages that programs write ----

def without_cuda(text):
    """Only a build with CUDA knows the lines about it."""
    return re.sub(r"^CUDA: .*\n\n?", "", text, flags=re.M)


def test_reference():
    skip_if_sanitized()
    written = run([os.path.join(BUILD, "examples/tenon-op"), "--reference"])
    with open(os.path.join(SOURCES, "docs/reference.md")) as file:
        kept = file.read()
    if written == kept:
        return
    lines = [without_cuda(text).splitlines() for text in (kept, written)]
    differ = [f"line {i + 1}: '{a}', and tenon-op says '{b}'" for i, (a, b) in enumerate(zip(*lines)) if a != b]
    fine = not differ and len(lines[0]) == len(lines[1])
    want(fine, "docs/reference.md is not what tenon-op --reference writes in a build with CUDA: " + "; ".join(differ[:3]))


def test_accuracy_table():
    """Other processors round elsewhere: a figure may be four times the stored one, and no more than what is allowed."""
    skip_if_sanitized()
    sys.path.insert(0, os.path.join(SOURCES, "docs"))
    import accuracy
    errors, n_files = accuracy.measure(os.path.join(BUILD, "examples/tenon-op"), os.path.join(SOURCES, "tests/vectors"), "cpu")
    stored = accuracy.stored("cpu")
    want(stored.keys() == errors.keys(), f"accuracy.md has the ops {sorted(stored)}, the vectors {sorted(errors)}: run docs/accuracy.py")
    for op, cells in stored.items():
        want(int(cells[0]) == n_files[op], f"accuracy.md has {cells[0]} files of {op}, there are {n_files[op]}: run docs/accuracy.py")
        places = [(dtype, kind) for dtype in accuracy.DTYPES for kind in accuracy.KINDS]
        for (dtype, kind), cell in zip(places, cells[1:]):
            error = errors[op].get(dtype, {}).get(kind, 0.0)
            want(error <= accuracy.LIMITS[dtype], f"{op} {dtype} {kind}: {error} is more than {accuracy.LIMITS[dtype]}")
            rounding = {"f64": 1e-16, "f32": 6e-8, "bf16": 4e-3}[dtype]
            near = error <= 4 * float(cell or 0) + rounding and float(cell or 0) <= 4 * error + rounding
            want(near, f"{op} {dtype} {kind}: {error}, and accuracy.md says {cell}: run docs/accuracy.py")


def test_accuracy_of_all_ops():
    """The tests of the registry hold each to its tolerance; here: is every op there, and no figure above that?"""
    skip_if_sanitized()
    sys.path.insert(0, os.path.join(SOURCES, "docs"))
    import accuracy
    ops = json.loads(run([os.path.join(BUILD, "examples/tenon-op"), "--list", "--json"]))["ops"]
    stored = accuracy.stored("cpu samples")
    lacking = {op["name"] for op in ops if op["differentiable"]} - stored.keys()
    want(not lacking, f"accuracy.md lacks {sorted(lacking)}: run docs/accuracy.py")
    want(stored.keys() <= {op["name"] for op in ops}, f"accuracy.md has ops that are not there: {sorted(stored)}")
    for op, cells in stored.items():
        for dtype, figures in (("f32", cells[:2]), ("bf16", cells[2:])):
            want(all(float(figure or 0) <= accuracy.LIMITS[dtype] for figure in figures), f"accuracy.md: {op} {dtype}: {figures}")


def cases(slow):
    written = {} if slow else {"links": test_links, "reference_written": test_reference, "accuracy_measured": test_accuracy_table,
                                "accuracy_of_all_ops": test_accuracy_of_all_ops}
    return {**written, **{name: functools.partial(run_page, path) for name, path in pages().items() if is_slow(path) == slow}}


if __name__ == "__main__":
    sys.exit(script_cases.main("test_docs", cases(False)))

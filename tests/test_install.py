"""What `meson install` puts somewhere: symbols, headers, a project that uses it, man pages, completion."""

import glob
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import script_cases
from installed_copy import installed, one, run, scratch, skip_if_sanitized, surroundings
from script_cases import BUILD, SOURCES, skip, want

CC = os.environ.get("CC", "cc").split()
CXX = os.environ.get("CXX", "c++").split()


def headers():
    folder = os.path.join(installed(), "include/tenon")
    found = sorted(glob.glob(folder + "/**/*.h", recursive=True))
    want(found, "no header was installed")
    return found


def programs():
    return sorted(glob.glob(os.path.join(installed(), "bin/*")))


# ---- the library ----

def declared_in(header):
    """Names of the functions that the header itself declares for export."""
    text = run(CC + ["-std=c11", "-E", "-x", "c", header])
    inside, lines = False, []
    for line in text.splitlines():
        if line.startswith("#"):
            inside = f'"{header}"' in line
        elif inside:
            lines.append(line)
    text = "\n".join(lines)
    return set(re.findall(r'visibility\("default"\)\)\)[^;{]*?\b(\w+)\s*\(', text))


def test_symbols():
    lines = run(["nm", "-D", "--defined-only", one("**/libtenon.so")]).splitlines()
    exported = {line.split()[-1].split("@")[0] for line in lines}
    declared = set()
    for header in headers():
        declared |= declared_in(header)
    strangers = sorted(name for name in exported if not name.startswith("tn_"))
    want(not strangers, f"exported, and not called tn_..: {strangers}")
    want(exported == declared, f"exported but declared in no installed header: {sorted(exported - declared)}; "
         f"declared but not exported: {sorted(declared - exported)}")
    print(f"{len(exported)} symbols")


def test_soname():
    library = one("**/libtenon.so")
    soname = re.search(r"SONAME.*\[(.*)\]", run(["readelf", "-d", library])).group(1)
    want(re.fullmatch(r"libtenon\.so\.\d+", soname), f"the soname is {soname}")
    folder = os.path.dirname(library)
    want(os.path.islink(library) and os.path.exists(os.path.join(folder, soname)), f"no {soname} beside libtenon.so")
    want(os.path.basename(os.path.realpath(library)) == "libtenon.so." + version(), "libtenon.so leads to another version's file")


def version():
    return json.loads(run(["meson", "introspect", "--projectinfo", BUILD]))["version"]


# ---- the headers ----

def complaint_about(header, compiler, language, flags):
    """What the compiler says of a file that has nothing but the header; "" if nothing."""
    source = os.path.join(scratch(), os.path.relpath(header, installed()).replace("/", "-") + "." + language)
    with open(source, "w") as file:
        file.write(f'#include "{header}"\nint something;\n')
    command = compiler + flags + ["-Wall", "-Wextra", "-pedantic", "-Werror", "-fsyntax-only", source]
    done = subprocess.run(command, capture_output=True, text=True)
    return "" if done.returncode == 0 else f"{' '.join(command)}: {done.stderr[:1500]}"


def want_headers_alone(compiler, language, *flags):
    if not shutil.which(compiler[0]):
        skip(f"there is no {compiler[0]}")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        complaints = list(pool.map(lambda header: complaint_about(header, compiler, language, list(flags)), headers()))
    want(not any(complaints), "\n".join(filter(None, complaints)))


def test_headers_c11():
    want_headers_alone(CC, "c", "-std=c11", "-Wstrict-prototypes", "-Wshadow")


def test_headers_cxx17():
    want_headers_alone(CXX, "cc", "-std=c++17", "-Wshadow")


# ---- a project that uses it ----

def test_pkg_config():
    text = open(one("**/tenon.pc")).read()
    want(f"Version: {version()}\n" in text, f"tenon.pc says another version:\n{text}")
    flags = run(["pkg-config", "--libs", "tenon"], env=surroundings()).split()
    want("-ltenon" in flags and not any("jansson" in flag for flag in flags), f"pkg-config --libs tenon: {flags}")
    static = run(["pkg-config", "--libs", "--static", "tenon"], env=surroundings()).split()
    want("-ljansson" in static and "-lm" in static, f"pkg-config --libs --static tenon: {static}")


def want_fitted_line(text):
    want(text.startswith(f"tenon {version()}: 2.0"), f"the consumer said: {text}")


def test_consumer_by_meson():
    folder = os.path.join(scratch(), "consumer")
    run(["meson", "setup", folder, os.path.join(SOURCES, "tests/consumer")], env=surroundings())
    run(["ninja", "-C", folder], env=surroundings())
    want_fitted_line(run([os.path.join(folder, "consumer")], env=surroundings()))


def test_consumer_by_cc():
    program = os.path.join(scratch(), "consumer-by-cc")
    flags = run(["pkg-config", "--cflags", "--libs", "tenon"], env=surroundings()).split()
    run(CC + ["-o", program, os.path.join(SOURCES, "tests/consumer/consumer.c")] + flags + ["-lm"])
    want_fitted_line(run([program], env=surroundings()))


def test_consumer_by_cxx():
    """The macros are C's, the calls anyone's."""
    if not shutil.which(CXX[0]):
        skip(f"there is no {CXX[0]}")
    source, program = os.path.join(scratch(), "consumer.cc"), os.path.join(scratch(), "consumer-by-cxx")
    with open(source, "w") as file:
        file.write("""#include <tenon.h>
int main() {
    tn_options options = {};
    options.device = "cpu";
    tn_context *cx = tn_open(&options);
    tn_shape shape = { 2, { 2, 3 } };
    double sum = tn_item(tn_sum(tn_full(cx, TN_F32, shape, 0.5)));
    bool well = !tn_failed(cx) && sum == 3;
    tn_close(cx);
    return !well;
}
""")
    flags = run(["pkg-config", "--cflags", "--libs", "tenon"], env=surroundings()).split()
    run(CXX + ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-o", program, source] + flags)
    run([program], env=surroundings())


# ---- programs, their pages and their completion ----

def options_of_help(program):
    text = run([program, "--help"], env=surroundings())
    return {line.split()[0]: line.split()[1] if len(line.split()) > 1 else "" for line in re.findall(r"^  (--.*)$", text, re.M)}


def page_of(name):
    return open(one(f"share/man/man1/{name}.1*")).read()


def options_of_page(text):
    """Options that have an entry of their own, with the word that stands for their value."""
    text = re.sub(r"\\f.", "", text).replace("\\-", "-")
    heads = re.findall(r"^\.TP\n(--.*)$", text, re.M)
    return {head.split()[0]: head.split()[1] if len(head.split()) > 1 else "" for head in heads}


def test_man_pages():
    want(programs(), "no program was installed")
    for program in programs():
        name = os.path.basename(program)
        page, from_help = page_of(name), options_of_help(program)
        from_page = options_of_page(page)
        strangers = sorted(from_page.keys() - from_help.keys())
        want(not strangers, f"{name}.1 has options that {name} has not: {strangers}")
        known = dict(from_page)
        if re.search(r"^Every key of\n\.BR tenon\\-train", page, re.M):
            known = {**options_of_page(page_of("tenon-train")), **from_page}
        want(from_help.keys() <= known.keys(), f"{name}.1 lacks {sorted(from_help.keys() - known.keys())}")
        other = {option: (known[option], word) for option, word in from_help.items() if known[option] != word}
        want(not other, f"{name}.1 and {name} --help differ in the values of options: {other}")
        for heading in ("NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS", "SEE ALSO"):
            want(f"\n.SH {heading}\n" in page, f"{name}.1 has no {heading}")
    if shutil.which("groff"):
        for page in glob.glob(os.path.join(installed(), "share/man/man1/tenon-*.1")):
            done = subprocess.run(["groff", "-man", "-Tutf8", "-ww", "-z", page], capture_output=True, text=True)
            want(done.returncode == 0 and not done.stderr, f"groff about {page}: {done.stderr}")


def test_completion():
    if not shutil.which("bash"):
        skip("there is no bash")
    folder = os.path.join(installed(), "share/bash-completion/completions")
    for program in programs():
        want(os.path.exists(os.path.join(folder, os.path.basename(program))), f"no completion for {program}")
    environment = surroundings()
    environment["PATH"] = os.path.join(installed(), "bin") + ":" + environment["PATH"]
    environment["HOME"] = scratch()
    print(run(["bash", os.path.join(SOURCES, "tests/test_completion.sh"), os.path.join(folder, "tenon-op")], env=environment), end="")


def test_source_archive():
    """What `meson dist` packs can be set up by itself."""
    skip_if_sanitized()
    if not os.path.exists(os.path.join(SOURCES, ".git")) or not shutil.which("git"):
        skip("meson dist wants a git checkout")
    run(["meson", "dist", "-C", BUILD, "--no-tests", "--allow-dirty", "--formats", "gztar"])
    archive, folder = glob.glob(os.path.join(BUILD, "meson-dist/tenon-*.tar.gz")), scratch()
    want(len(archive) == 1, f"meson dist left {archive}")
    run(["tar", "xzf", archive[0], "-C", folder])
    unpacked = archive[0].split("/")[-1][:-len(".tar.gz")]
    run(["meson", "setup", "-Dcuda=disabled", os.path.join(folder, "from-archive"), os.path.join(folder, unpacked)])


CASES = {name[len("test_"):]: function for name, function in list(globals().items()) if name.startswith("test_")}

if __name__ == "__main__":
    sys.exit(script_cases.main("test_install", CASES))

#!/usr/bin/env python3
"""Breaks the backward code of the CPU, or of the GPU, one place at a time, and lists what the tests do not notice.

A mutant is one change in a function that backward runs: a sign turned, a term, a factor, a sum or a call left out, a loop that starts one
late or ends one early. The sources are copied to the build folder first; the tree is never touched. For each mutant the object is compiled
anew, the test programs are linked and the tests of its family run until one fails. One that makes them crash, hang or not
compile counts as noticed; those that do not compile are counted apart.

Mutants that change nothing a test could see are listed, with a reason, in mutants_equivalent.txt and are not made.
"""
import argparse
import collections
import os
import random
import re
import shutil
import subprocess
import sys
import time

EXIT_SKIPPED = 77
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# Functions that backward runs and whose names don't say so.
MORE = {
    'ops/act/act_cpu_softmax.c': 'row_dot|row_back|column_dot|column_back',
    'ops/attention/attention_cpu.c': 'weigh|give_\\w+|clear_\\w+|query_items|key_items|first_query|load_queries|load_keys',
    'ops/cross_entropy/linear_cross_entropy_cpu.c': 'make_dx|add_dweight|scale_\\w+|chunk_entropy|rows_from|run_chunk',
    'ops/index/index_cpu_embedding.c': 'sum_\\w+|sort_places',
    'ops/index/index_cpu_gather.c': 'add_\\w+|narrow|outer_place',
    'ops/linear_attention/linear_attention_cpu.c': 'tn_la_load_upstream|tn_la_finish|sum_\\w+',
    'ops/linear_attention/linear_attention_cpu_causal.c': 'weigh|sweep\\w*|sum_decay|prepare_upstream|advance_state|to_end|from_start',
    'ops/linear_attention/linear_attention_cpu_full.c': 'sweep',
    'ops/lrpe/lrpe_cpu.c': 'merge_dots\\w*|chunks_sum|find_dots|add_up_dtheta|clear_sums',
    'ops/lrpe/lrpe_cpu_f64.c': 'do_at|add_turn|dots\\w*|decode|add_block_to_dtheta|merge_dots',
    'ops/lrpe/lrpe_cpu_rows.c': 'decode|add_turn|dots\\w*|finish_row|add_\\w+|merge_dots|act_back',
    'ops/matmul/linear_cpu.c': 'add_parts',
    'ops/matmul/matmul_call.c': '\\w+_gradient|rows_product',
    'ops/norm/norm_cpu.c': 'sum_chunks|finish_sum',
    'ops/norm/norm_cpu_simd.c': 'measure_row|finish_row|bias_row',
    'ops/reduce/reduce_cpu.c': 'scatter_part|clear_part|offset_of|lse_\\w+|cut_long_row|plan_lse_axes',
    'ops/reduce/reduce.c': 'broadcast_back',
    'ops/elementwise/elementwise_walk_cpu.c': 'sum_\\w+|add_\\w+|merge_segments|run_sum|store_unit',
}
BACKWARD = re.compile(r'back|gradient|bwd')
NOT_BACKWARD = re.compile(r'workspace|floor|saved|frame|scratch|grain|passes|row_count')

# How many turns the threads take: results are the same.
GRAIN = re.compile(r'tn_even_grain\(')

OPS = {
    'act': ['act'],
    'attention': ['attention', 'tpa_attention'],
    'cross_entropy': ['cross_entropy', 'linear_cross_entropy'],
    'dropout': ['dropout'],
    'elementwise': ['add', 'mul', 'div', 'pow', 'where', 'exp', 'log', 'log1p', 'clamp', 'affine', 'maximum', 'minimum', 'sqrt', 'rsqrt',
                    'softplus', 'sub', 'abs', 'sin', 'cos', 'neg', 'logsigmoid', 'pow_scalar'],
    'index': ['embedding', 'gather'],
    'linear_attention': ['linear_attention'],
    'lrpe': ['lrpe'],
    'matmul': ['matmul', 'linear'],
    'norm': ['rms_norm', 'layer_norm'],
    'reduce': ['sum', 'mean', 'max', 'logsumexp', 'cumsum'],
    'sampling': ['topk'],
    'swiglu': ['swiglu'],
    'view': ['reshape', 'permute', 'slice', 'expand', 'cast', 'concat', 'copy', 'contiguous'],
}
LARGE_KINDS = ['gradcheck', 'f32', 'threads', 'bf16', 'layouts']
KINDS = ['gradcheck', 'f32', 'bf16', 'one-gradient', 'f64', 'layouts', 'threads', 'broadcast-layout', 'red-zones']
PROGRAMS = {'attention': ['test_attention'], 'linear_attention': ['test_linear_attention'], 'elementwise': ['test_autograd']}

Mutant = collections.namedtuple('Mutant', 'file line function kind begin end text')


# ---- finding ----

def blanked(source):
    """The source with comments, texts and preprocessor lines blank, so that places in it are places in the source."""
    def blank(match):
        return re.sub(r'[^\n]', ' ', match.group())
    source = re.sub(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', blank, source, flags=re.S)
    return re.sub(r'^#[^\n]*(?:\\\n[^\n]*)*', blank, source, flags=re.M)


def functions(code):
    """name, begin and end of every body. The tree is formatted: a body ends with a brace in the first column."""
    for match in re.finditer(r'^(?!static const|typedef|struct|enum)[A-Za-z_][^;{}=\n]*?\b(\w+)\((?:[^;{}]*?)\) \{', code, flags=re.M):
        if code[match.end():].split('\n', 1)[0].rstrip().endswith('}'):
            end = code.index('\n', match.end())
        else:
            end = code.find('\n}', match.end())
        if end > 0:
            yield match.group(1), match.end(), end


def operand_end(code, at, stops, separators=';,'):
    """Where the operand that starts at `at` ends: at one of `stops` or `separators` outside its own brackets."""
    depth = 0
    while at < len(code):
        c = code[at]
        if c in '([{':
            depth += 1
        elif c in ')]}':
            if depth == 0:
                return at
            depth -= 1
        elif depth == 0 and (c in separators or any(code.startswith(stop, at) for stop in stops)):
            return at
        at += 1
    return at


SUM_STOPS = [' + ', ' - ', ' ? ', ' : ', ' < ', ' > ', ' <= ', ' >= ', ' == ', ' != ', ' && ', ' || ', ' << ', ' >> ', ' & ', ' | ', '\n']
FACTOR_STOPS = SUM_STOPS + [' * ', ' / ', ' % ']


def changes(code, begin, end):
    """kind, begin, end, new text of every change in code[begin:end]."""
    body = code[begin:end]

    def found(pattern):
        for match in re.finditer(pattern, body):
            yield match, begin + match.start()
    for match, at in found(r' ([+-]) (?=\S)'):
        other = '-' if match.group(1) == '+' else '+'
        yield 'sign', at, at + 3, f' {other} '
        yield 'term', at, operand_end(code, at + 3, SUM_STOPS), ''
    for match, at in found(r' ([+-])= '):
        yield 'sign', at, at + 4, ' -= ' if match.group(1) == '+' else ' += '
        yield 'sum', at, at + 4, ' = '
    for match, at in found(r'(?<=[(=,?:] )-(?=[A-Za-z(])|(?<=\()-(?=[A-Za-z(])|(?<=return )-(?=[A-Za-z(])'):
        yield 'sign', at, at + 1, ''
    for match, at in found(r' \* (?=\S)'):
        yield 'factor', at, operand_end(code, at + 3, FACTOR_STOPS), ''
    for match, at in found(r'for \((?:int64_t|int|size_t) \w+ = ([^;]*); [^;]*;'):
        yield 'bound', begin + match.start(1), begin + match.end(1), f'{match.group(1)} + 1'
    for match, at in found(r'for \([^;]*; [^;]*?\w+ (<) ([^;&]*?)(?= &&|;)'):
        yield 'bound', begin + match.start(2), begin + match.end(2), f'({match.group(2)}) - 1'
    for match, at in found(r'for \([^;]*; [^;]*?\w+ (>=) '):
        yield 'bound', begin + match.start(1), begin + match.end(1), '>'
    for match, at in found(r'(?<=[\n;)] )\s*((?:\w+->)*\w+\([^;{}]*\));'):
        # What is fetched ahead of its use is there without.
        if not re.match(r'(if|for|while|switch|return|sizeof)\b|\w*fetch', match.group(1)):
            yield 'call', begin + match.start(1), begin + match.end(1), ''


def is_backward(path, name, more):
    if path.endswith('.cu'):
        return True
    return not NOT_BACKWARD.search(name) and (BACKWARD.search(name) or more.match(name))


def mutants_of(path):
    with open(os.path.join(ROOT, path)) as file:
        source = file.read()
    code = blanked(source)
    more = re.compile(f"(?:{MORE.get(path, '(?!)')})$")
    for name, begin, end in functions(code):
        if not is_backward(path, name, more):
            continue
        grains = [(call.start() + begin, operand_end(code, call.end() + begin, [], ';')) for call in GRAIN.finditer(code[begin:end])]
        for kind, at, to, text in changes(code, begin, end):
            if any(first < at < last for first, last in grains):
                continue
            yield Mutant(path, source.count('\n', 0, at) + 1, name, kind, at, to, text)


def line_of(source, mutant):
    first = source.rfind('\n', 0, mutant.begin) + 1
    last = source.find('\n', mutant.end)
    return ' '.join(source[first:last].split()), ' '.join((source[first:mutant.begin] + mutant.text + source[mutant.end:last]).split())


def all_sources(cuda):
    found = []
    for family in sorted(OPS):
        folder = os.path.join(ROOT, 'ops', family)
        for name in sorted(os.listdir(folder)):
            if re.search(r'_bwd.*\.cu$', name) if cuda else \
                    name.endswith('.c') and not re.search(r'_samples|_cuda|attention_fused|sampling\.c', name):
                found.append(f'ops/{family}/{name}')
    return found


def read_equivalent():
    """File, function and the line before and after; the reason stands above."""
    known = set()
    path = os.path.join(ROOT, 'tests', 'mutants_equivalent.txt')
    with open(path) as file:
        for line in file:
            if line.strip() and not line.startswith('#'):
                where, function, change = line.rstrip('\n').split(' | ')
                known.add((where, function, change))
    return known


def choose(mutants, n, seed):
    """n of them: as many from each file as its share, but at least two where it has them."""
    by_file = collections.defaultdict(list)
    for mutant in mutants:
        by_file[mutant.file].append(mutant)
    chooser = random.Random(seed)
    chosen, rest = [], []
    for file in sorted(by_file):
        chooser.shuffle(by_file[file])
        chosen += by_file[file][:2]
        rest += by_file[file][2:]
    chooser.shuffle(rest)
    chosen = chosen[:n] if len(chosen) >= n else chosen + rest[:n - len(chosen)]
    return sorted(chosen)


# ---- running ----

def run(command, timeout=None, **more):
    return subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace',
                          timeout=timeout, **more)


def copy_if_new(path, to):
    with open(path, 'rb') as file:
        wanted = file.read()
    if os.path.exists(to):
        with open(to, 'rb') as file:
            if file.read() == wanted:
                return
    with open(to, 'wb') as file:
        file.write(wanted)


def gpu_architecture():
    """The first GPU's, as the option gpu_archs names it; None: there is no GPU."""
    try:
        said = run(['nvidia-smi', '--query-gpu=compute_cap', '--format=csv,noheader'])
    except FileNotFoundError:
        return None
    found = re.match(r'(\d+)\.(\d+)\n', said.stdout)
    if said.returncode or not found:
        return None
    return '90a' if found.group(1) == '9' else found.group(1) + found.group(2)


class Workshop:
    """A copy of the sources and a build of it."""

    def __init__(self, folder, cuda):
        """cuda: the GPU's architecture, None for the CPU's code."""
        self.source, self.build = os.path.join(folder, 'source'), os.path.join(folder, 'build')
        # Kernels that the GPU would not prefer are mutated too. The CPU does not look at this.
        self.paths = ['hopper', 'base', 'plain'] if cuda == '90a' else ['base', 'plain'] if cuda else ['plain']
        self.environment = dict(os.environ, OMP_NUM_THREADS='2', OMP_WAIT_POLICY='passive', TENON_TEST_DEVICE='cuda' if cuda else 'cpu')
        self.copy()
        if not os.path.exists(os.path.join(self.build, 'build.ninja')):
            options = ['-Dcuda=enabled', f'-Dgpu_archs={cuda}'] if cuda else ['-Dcuda=disabled']
            options += ['-Dbench=false', '-Dexamples=false', '-Dbuildtype=debugoptimized', '-Doptimization=1', '-Ddebug=false',
                        '-Dwerror=false', '-Dc_args=-DTN_NO_SIMD_CLONES']
            done = run(['meson', 'setup', self.build, self.source] + options)
            if done.returncode:
                sys.exit(done.stdout)
        done = self.compile()
        if done.returncode:
            sys.exit(done.stdout)
        self.clean = os.path.join(folder, 'clean')
        os.makedirs(self.clean, exist_ok=True)
        for name in self.programs():
            shutil.copy(os.path.join(self.build, 'tests', name), self.clean)
        self.seconds = {}

    def programs(self):
        return sorted({'test_chunk_edges', 'test_registry', 'test_registry_large', 'test_vectors'}.union(*PROGRAMS.values()))

    def seconds_of(self, test):
        """How long the test takes when all is well."""
        if tuple(test) not in self.seconds:
            begin = time.monotonic()
            said = self.fails(test, 600, self.clean)
            if said:
                sys.exit(f'mutate: {" ".join(test)} {said} before anything is changed')
            self.seconds[tuple(test)] = time.monotonic() - begin
        return self.seconds[tuple(test)]

    def copy(self):
        """Only what differs is written, so that only that is compiled."""
        for name in os.listdir(ROOT):
            top = os.path.join(ROOT, name)
            if name.startswith(('build', '.')):
                continue
            for folder, _, files in os.walk(top) if os.path.isdir(top) else [(ROOT, [], [name])]:
                target = os.path.join(self.source, os.path.relpath(folder, ROOT))
                os.makedirs(target, exist_ok=True)
                for file in [] if folder.endswith('__pycache__') or '/fuzz/corpus/' in folder else files:
                    copy_if_new(os.path.join(folder, file), os.path.join(target, file))

    def compile(self):
        return run(['ninja', '-C', self.build] + [f'tests/{name}' for name in self.programs()])

    def tests_of(self, family):
        yield ['test_vectors']
        for op in OPS[family]:
            yield ['test_chunk_edges', '--filter', f'{op}/*']
        for kind in KINDS:
            for op in OPS[family]:
                yield ['test_registry', '--filter', f'{op}/{kind}']
        for program in PROGRAMS.get(family, []):
            yield [program]
        for kind in LARGE_KINDS:
            for op in OPS[family]:
                yield ['test_registry_large', '--filter', f'{op}/{kind}']

    def fails(self, test, limit, folder=None):
        """None, or how the test ended."""
        program = os.path.join(folder or os.path.join(self.build, 'tests'), test[0])
        for path in self.paths:
            try:
                code = run([program] + test[1:], timeout=limit, env=dict(self.environment, TENON_CUDA_PATH=path)).returncode
            except subprocess.TimeoutExpired:
                return 'hangs'
            # 2: no case is called so.
            if code not in (0, EXIT_SKIPPED) and (code != 2 or len(test) == 1):
                return 'fails' if code == 1 else f'ends with {code}'
        return None


def try_mutant(shop, mutant):
    """'noticed by ...', 'does not compile' or 'lives'."""
    path = os.path.join(shop.source, mutant.file)
    with open(path) as file:
        source = file.read()
    with open(path, 'w') as file:
        file.write(source[:mutant.begin] + mutant.text + source[mutant.end:])
    try:
        if shop.compile().returncode:
            return 'does not compile'
        for test in shop.tests_of(mutant.file.split('/')[1]):
            said = shop.fails(test, 20 + 10 * shop.seconds_of(test))
            if said:
                return f'{" ".join(test)} {said}'
        return 'lives'
    finally:
        with open(path, 'w') as file:
            file.write(source)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--count', type=int, default=120, help='mutants to make (120)')
    parser.add_argument('--all', action='store_true', help='all of them')
    parser.add_argument('--cuda', action='store_true', help='of the kernels that backward runs on the GPU of this machine')
    parser.add_argument('--seed', type=int, default=1, help='which ones (1)')
    parser.add_argument('--file', action='append', metavar='TEXT', help='only those in files whose names contain it')
    parser.add_argument('--line', type=int, help='only those on this line')
    parser.add_argument('--list', action='store_true', help='say which, and stop')
    parser.add_argument('--minutes', type=float, default=0, help='make no new one after so long')
    parser.add_argument('--folder', default=os.path.join(ROOT, 'build-mutate'), help='where to build (build-mutate)')
    options = parser.parse_args()

    sources = [path for path in all_sources(options.cuda) if not options.file or any(text in path for text in options.file)]
    texts, mutants, n_equivalent, known = {}, [], 0, read_equivalent()
    for path in sources:
        with open(os.path.join(ROOT, path)) as file:
            texts[path] = file.read()
        for mutant in mutants_of(path):
            if (path, mutant.function, ' => '.join(line_of(texts[path], mutant))) in known:
                n_equivalent += 1
            elif not options.line or mutant.line == options.line:
                mutants.append(mutant)
    chosen = sorted(mutants) if options.all else choose(mutants, options.count, options.seed)
    if options.list:
        for mutant in chosen:
            print(f'{mutant.file}:{mutant.line}: {mutant.function}: {mutant.kind}: {line_of(texts[mutant.file], mutant)[1]}')
        print(f'{len(chosen)} of {len(mutants)} mutants in {len(sources)} files; {n_equivalent} more are known to change nothing')
        return 0

    architecture = gpu_architecture() if options.cuda else None
    if options.cuda and not architecture:
        print('mutate: there is no GPU here: nvidia-smi lists none', file=sys.stderr)
        return EXIT_SKIPPED
    shop = Workshop(options.folder + ('-cuda' if options.cuda else ''), architecture)
    counts, begin = collections.Counter(), time.monotonic()
    for i, mutant in enumerate(chosen):
        if options.minutes and time.monotonic() - begin > 60 * options.minutes:
            break
        said = try_mutant(shop, mutant)
        verdict = 'lives' if said == 'lives' else 'invalid' if said == 'does not compile' else 'noticed'
        counts[verdict] += 1
        old, new = line_of(texts[mutant.file], mutant)
        print(f'[{i + 1}/{len(chosen)}] {mutant.file}:{mutant.line}: {mutant.function}: {mutant.kind}: {said}', flush=True)
        if verdict == 'lives':
            print(f'    was: {old}\n    now: {new}', flush=True)
    shop.copy()
    print(f'{counts["noticed"]} of {counts["noticed"] + counts["lives"]} mutants noticed, {counts["lives"]} live; {counts["invalid"]} did not '
          f'compile, {n_equivalent} known to change nothing; {time.monotonic() - begin:.0f} s')
    return 1 if counts['lives'] else 0


if __name__ == '__main__':
    sys.exit(main())

#!/usr/bin/env python3
"""The headline of README.md from a stored run: a table and a plot, ours, the best peer's and the floor, for every family of ops.

    python3 bench/headline.py [--run bench/results/h100.json] [--readme README.md] [--plot bench/results/headline.svg] [--check]

Writes the plot, and the table between the markers in README.md; --check writes nothing and fails where they are not what the run says.
"""
import argparse
import json
import math
import os
import sys

BEGIN, END = "<!-- headline: from the stored run, by bench/headline.py -->", "<!-- end of the headline -->"

# What it is called, its table ({} stands for the pass), the column.
LINES = [
    ("linear attention, gated", "flao-speed-{}-batch12-head12-dim128-bf16", "flao"),
    ("… with silu and LRPE inside", "flao_fal-speed-{}-batch12-head12-dim128-dim128-bf16", "fal"),
    ("… with softmax, silu, LRPE inside",
     "flao_fal-speed-{}-batch12-head12-dim128-dim128-qact_softmax_-1-kact_silu_None-vact_none_None-gact_silu_None-bf16", "fal"),
    ("… causal, constant decay", "causal-speed-{}-batch4-head32-dim128-bf16", "constant"),
    ("… causal, decay per token", "causal-speed-{}-batch4-head32-dim128-bf16", "scalar"),
    ("… a step of generation", "causal-speed-{}-decode-head32-dim128-bf16", "step"),
    ("LRPE, rotate", "lrpe_rotate-speed-{}-batch12-head12-dim128-act_none-bf16", "tenon"),
    ("… after silu", "lrpe_rotate-speed-{}-batch12-head12-dim128-act_silu-bf16", "tenon"),
    ("… after softmax over features", "lrpe_rotate-speed-{}-batch12-head12-dim128-act_softmax-dim_-1-bf16", "tenon"),
    ("… after softmax over the sequence", "lrpe_rotate-speed-{}-batch12-head12-dim128-act_softmax-dim_1-bf16", "tenon"),
    ("LRPE, cosine, 1 axis", "md_lrpe_cosine-speed-{}-batch12-head12-dim128-bf16-1d-l0", "direct"),
    ("… 2 axes, 10 leading tokens", "md_lrpe_cosine-speed-{}-batch12-head12-dim128-bf16-2d-l10", "direct"),
    ("… 3 axes, 10 leading tokens", "md_lrpe_cosine-speed-{}-batch12-head12-dim128-bf16-3d-l10", "direct"),
    ("TPA, decoding, batch 8", "tpa_decode-speed-{}-batch8-head32-dim128-rank16-bf16", "auto"),
    ("… batch 32", "tpa_decode-speed-{}-batch32-head32-dim128-rank16-bf16", "auto"),
    ("TPA, training, ranks 6 and 2", "tpa_train-speed-{}-batch2-head32-dim128-rank6_2-bf16", "tenon"),
    ("… ranks 16 and 1", "tpa_train-speed-{}-batch2-head32-dim128-rank16_1-bf16", "tenon"),
    ("softmax attention, causal", "attention-speed-{}-batch2-head32-dim128-bf16", "multi-head"),
    ("… decoding, 8 heads of keys", "attention-speed-{}-decode-batch8-head32-dim128-bf16", "grouped-8"),
    ("matrix product, square", "gemm-speed-{}-square-bf16", "nn"),
    ("rms_norm, width 4096", "norm-speed-{}-d4096-bf16", "rms_norm"),
    ("softmax, width 1024", "softmax-speed-{}-d1024-bf16", "softmax"),
    ("transposed copy", "copy-speed-{}-bf16", "transpose"),
    ("elementwise product", "elementwise-speed-{}-binary-bf16", "mul"),
    ("swiglu", "elementwise-speed-{}-swiglu_2048-bf16", "swiglu"),
    ("cross_entropy, 50304 classes", "cross_entropy-speed-{}-v50304-bf16", "cross_entropy"),
    ("… with the head, both passes", "cross_entropy-speed-{}-linear-d768-v50304-bf16", "both_passes"),
    ("embedding", "embedding-speed-{}-d768-v50304-bf16", "embedding"),
    ("sum of all elements", "reduce-speed-{}-bf16", "sum"),
    ("dropout", "dropout-speed-{}-bf16", "dropout"),
    ("the 50 largest of 50304", "sampling-speed-{}-v50304-bf16", "topk_50"),
    ("a draw from 50304", "sampling-speed-{}-v50304-bf16", "multinomial"),
    ("AdamW", "adamw-speed-{}-bf16", "adamw"),
]


class Cell:
    """One pass of one line, at the largest n that has a peer, else at the largest."""

    def __init__(self, row, largest):
        self.at = "" if row["n"] == largest else f" at n = {row['n']}"
        self.n, self.ours, self.floor, self.tflops = row["n"], row["median"], row.get("floor_ms"), row.get("tflops")
        self.ratio = row.get("best_peer_over_tenon")
        self.name = row.get("best_peer")
        self.peer = self.ratio * self.ours if self.ratio else None


def find_cell(tables, name, column):
    rows = [row for row in tables.get(name, []) if row["column"] == column and row["status"] == "ok"]
    compared = [row for row in rows if row.get("best_peer")] or rows
    return Cell(max(compared, key=lambda row: row["n"]), max(row["n"] for row in rows)) if compared else None


def find_lines(run):
    """(title, forward or step, backward) of those that the run has."""
    tables = {table["name"]: table["rows"] for table in run["tables"]}
    for title, name, column in LINES:
        forward = find_cell(tables, name.format("fwd"), column) or find_cell(tables, name.format("step"), column)
        backward = find_cell(tables, name.format("bwd"), column)
        if forward:
            yield title, forward, backward


def figure(value):
    if value is None:
        return ""
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3}f}"


# ---- the table ----

def cells_of(cell):
    if not cell:
        return ["", "", "", ""]
    reached = f"{cell.tflops:.0f} TFLOP/s" if cell.tflops else figure(cell.floor)
    bold = "**" if cell.ratio and cell.ratio >= 1 else ""
    ratio = f"{bold}{cell.ratio:.2f}×{bold}" if cell.ratio else ""
    return [figure(cell.ours) + cell.at, f"{figure(cell.peer)} {cell.name}" if cell.peer else "", ratio, reached]


def peers_of(run):
    """Of all the runs that the stored one is made of."""
    names = [name for part in [run, *run["tables"]] for name in (part.get("peers") or {}).get("peer", "").split(", ") if name]
    return ", ".join(dict.fromkeys(names)) or "none"


def table_of(run, lines, run_path, plot_path):
    machine = run["machine"]
    others = sorted({table["commit"] for table in run["tables"] if "commit" in table})
    older = f" (tables that were not run again: {', '.join(others)})" if others else ""
    device = machine["device"].split(": ", 1)[-1]
    text = [BEGIN,
            f"{device}, bf16, milliseconds at the largest n; plain copy {run['copy_gb_per_s']:.0f} GB/s.",
            f"Commit {run['commit']}{older}, {run['date'][:10]}.",
            f"Peers: {peers_of(run)}; × is how many times as long the best of them takes.",
            "The floor is the bytes the pass must move at the speed of the plain copy; for what arithmetic bounds there stands TFLOP/s.",
            "All that was stored, with plots:",
            f"[bench/results]({os.path.dirname(run_path) or '.'}).", "",
            f"![How many times as long the best peer takes, forward and backward, beside the floor]({plot_path})", "",
            "| | forward | best peer | × | floor | backward | best peer | × | floor |",
            "| --- | --: | --: | --: | --: | --: | --: | --: | --: |"]
    for title, forward, backward in lines:
        text.append(f"| {title} | " + " | ".join(cells_of(forward) + cells_of(backward)) + " |")
    return "\n".join(text + [END])


# ---- the plot: each pass a bar from "as quick as the best peer", and a tick where the floor lies ----

WIDTH, LEFT, RIGHT, ROW, BAR, TOP, BOTTOM = 880, 262, 60, 33, 12, 64, 34

STYLE = """<style>
text{font:13px system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif;fill:#1b1f24}
.soft{fill:#57606a}.value{font-size:11.5px}.paper{fill:#fff}.grid{stroke:#e3e7eb}.one{stroke:#1b1f24;stroke-width:1.5}
.fwd{fill:#1f5fc4}.bwd{fill:#c2570c}.floor{stroke:#1b1f24;stroke-width:2}
@media (prefers-color-scheme:dark){text{fill:#e8ecf0}.soft{fill:#a3adb8}.paper{fill:#14171b}.grid{stroke:#2f363e}.one{stroke:#e8ecf0}
.fwd{fill:#79b0ff}.bwd{fill:#ffa657}.floor{stroke:#e8ecf0}}
</style>"""


def escape(text):
    return text.replace("&", "&amp;").replace("<", "&lt;")


class Scale:
    """Logarithmic, over all ratios and floors."""

    def __init__(self, cells):
        values = [1.0] + [c.ratio for c in cells] + [c.peer / c.floor for c in cells if c.floor and not c.tflops]
        self.low, self.high = min(0.8, min(values) / 1.05), max(values) * 1.05

    def x(self, value):
        return LEFT + (WIDTH - LEFT - RIGHT) * math.log(value / self.low) / math.log(self.high / self.low)

    def ticks(self):
        return [t for t in (0.25, 0.5, 1, 2, 4, 8, 16, 32) if self.low <= t <= self.high]


def draw_bar(scale, cell, y, kind):
    one, end = scale.x(1), scale.x(cell.ratio)
    out = [f'<rect class="{kind}" x="{min(one, end):.1f}" y="{y}" width="{max(abs(end - one), 1):.1f}" height="{BAR}" rx="1.5"/>']
    right = max(one, end)
    if cell.floor and not cell.tflops:
        floor = scale.x(cell.peer / cell.floor)
        out.append(f'<path class="floor" d="M{floor:.1f} {y - 1}v{BAR + 2}"/>')
        if floor < right + 46:
            right = max(right, floor)
    other = f" {cell.name}" if cell.at else ""
    out.append(f'<text class="value" x="{right + 5:.1f}" y="{y + BAR - 2}">{cell.ratio:.2f}×{other}</text>')
    return out


def draw_legend():
    out, x = [], LEFT
    for kind, text in (("fwd", "forward, or a whole step"), ("bwd", "backward"), ("floor", "floor: as fast as memory allows")):
        bar = f'<rect class="{kind}" x="{x}" y="34" width="12" height="12" rx="1.5"/>'
        mark = f'<path class="floor" d="M{x + 6} 33v14"/>' if kind == "floor" else bar
        out.append(f'{mark}<text class="soft" x="{x + 18}" y="45">{text}</text>')
        x += 40 + 7 * len(text)
    return out


def plot_of(run, lines):
    lines = [(title, *(cell if cell and cell.ratio else None for cell in passes)) for title, *passes in lines]
    lines = [line for line in lines if line[1] or line[2]]
    if not lines:
        return None
    scale = Scale([cell for _, *passes in lines for cell in passes if cell])
    height = TOP + ROW * len(lines) + BOTTOM
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img">',
           f"<title>How many times as long the best peer takes, {escape(run['machine']['device'])}</title>", STYLE,
           f'<rect class="paper" width="{WIDTH}" height="{height}"/>',
           f'<text x="{LEFT}" y="20">Times as quick as the best peer (PyTorch, torch.compile, FLA)</text>', *draw_legend()]
    for tick in scale.ticks():
        x = scale.x(tick)
        out.append(f'<path class="{"one" if tick == 1 else "grid"}" d="M{x:.1f} {TOP - 4}V{height - BOTTOM + 4}"/>')
        out.append(f'<text class="soft" x="{x:.1f}" y="{height - BOTTOM + 21}" text-anchor="middle">{tick:g}×</text>')
    for i, (title, forward, backward) in enumerate(lines):
        y = TOP + ROW * i
        out.append(f'<text x="{LEFT - 12}" y="{y + ROW / 2 + 3}" text-anchor="end">{escape(title)}</text>')
        both = forward and backward
        if forward:
            out += draw_bar(scale, forward, y + (2 if both else 9), "fwd")
        if backward:
            out += draw_bar(scale, backward, y + (3 + BAR if both else 9), "bwd")
    return "\n".join(out + ["</svg>", ""])


# ---- files ----

def read(path):
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return None


def put(path, text, check):
    """True where the file already says so."""
    same = read(path) == text
    if not same and not check:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    return same


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default="bench/results/h100.json")
    parser.add_argument("--readme", default="README.md")
    parser.add_argument("--plot", default="bench/results/headline.svg")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    run, readme = json.loads(read(args.run) or sys.exit(f"headline.py: there is no {args.run}")), read(args.readme) or ""
    begin, end = readme.find(BEGIN), readme.find(END)
    if begin < 0 or end < begin:
        sys.exit(f"headline.py: {args.readme} has no markers; they are\n{BEGIN}\n{END}")
    lines = list(find_lines(run))
    plot = plot_of(run, lines)
    readme = readme[:begin] + table_of(run, lines, args.run, args.plot) + readme[end + len(END):]
    same = [put(args.readme, readme, args.check), plot is None or put(args.plot, plot, args.check)]
    if args.check and not all(same):
        sys.exit(f"headline.py: {args.readme} or {args.plot} is not what {args.run} says; run bench/headline.py")


if __name__ == "__main__":
    main()

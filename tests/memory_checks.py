"""What the files of libtensor/memory_export.h must be for the programs that read them: PyTorch's memory viewer, Perfetto, spreadsheets.

    python3 tests/memory_checks.py --snapshot FILE --trace FILE --csv FILE      says what is wrong in them; exit code 1 if anything is

Each check returns what it found to be there, and raises AssertionError where a reader would stumble."""

import argparse
import csv
import json
import sys

STATES = ("active_allocated", "active_pending_free", "inactive")
ACTIONS = ("alloc", "free_requested", "free_completed", "segment_alloc", "segment_free", "oom", "snapshot")
LARGEST_EXACT = 1 << 53  # numbers of JavaScript are doubles


def want(condition, message):
    if not condition:
        raise AssertionError(message)


def is_count(value):
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < LARGEST_EXACT


def check_frames(frames, where):
    want(isinstance(frames, list), f"{where}: frames are a list")
    for frame in frames:
        want(isinstance(frame["filename"], str) and isinstance(frame["name"], str) and is_count(frame["line"]),
             f"{where}: a frame has filename, line and name")


# ---- PyTorch's snapshot ----


def check_segment(segment):
    at, end = segment["address"], segment["address"] + segment["total_size"]
    where = f"segment {at:#x}"
    want(is_count(at) and is_count(end), f"{where}: its addresses are exact in a double")
    want(segment["segment_type"] in ("small", "large") and is_count(segment["stream"]), f"{where}: type and stream")
    want(segment["blocks"], f"{where}: it has blocks")
    sums = dict.fromkeys(STATES, 0)
    for block in segment["blocks"]:
        want(block["address"] == at, f"{where}: blocks tile it in order: {block['address']:#x} stands where {at:#x} should")
        want(block["state"] in STATES and is_count(block["size"]) and block["size"] > 0, f"{where}: state and size of {at:#x}")
        want(0 <= block["requested_size"] <= block["size"], f"{where}: no more is asked of {at:#x} than it has")
        check_frames(block["frames"], f"block {at:#x}")
        sums[block["state"]] += block["size"]
        at += block["size"]
    want(at == end, f"{where}: its blocks end at {at:#x}, and it at {end:#x}")
    want(segment["allocated_size"] == sums["active_allocated"], f"{where}: allocated_size")
    want(segment["active_size"] == sums["active_allocated"] + sums["active_pending_free"], f"{where}: active_size")


def check_segments(segments):
    last = 0
    for segment in sorted(segments, key=lambda s: s["address"]):
        check_segment(segment)
        want(segment["address"] >= last, f"segment {segment['address']:#x} begins within another")
        last = segment["address"] + segment["total_size"]


def check_event(event, last_time):
    want(event["action"] in ACTIONS, f"action {event['action']}")
    where = f"{event['action']} at {event['time_us']} us"
    address = "device_free" if event["action"] == "oom" else "addr"
    want(is_count(event[address]) and is_count(event["size"]) and is_count(event["stream"]), f"{where}: {address}, size, stream")
    want(is_count(event["time_us"]) and event["time_us"] >= last_time, f"{where}: time goes forward")
    want(isinstance(event["category"], str), f"{where}: category")
    check_frames(event["frames"], where)


class Replay:
    """The events from the first to the last. Of what was there before the first, events tell only the end."""

    def __init__(self):
        self.live, self.pending, self.segments = {}, {}, {}
        self.n_frees = 0
        self.before = {}  # freed, and never allocated here

    def take(self, event):
        getattr(self, event["action"], lambda *_: None)(event.get("addr"), event["size"])

    def alloc(self, address, size):
        want(address not in self.live and address not in self.pending, f"alloc at {address:#x}, where something lives")
        self.live[address] = size

    def free_requested(self, address, size):
        if address not in self.live:
            self.before[address] = size
        want(self.live.pop(address, size) == size, f"free_requested at {address:#x} of another size than was allocated")
        want(address not in self.pending, f"free_requested twice at {address:#x}")
        self.pending[address] = size

    def free_completed(self, address, size):
        self.n_frees += 1
        known = self.pending.pop(address, None)
        want(known in (size, None) and address not in self.live, f"free_completed at {address:#x} that nobody requested")
        want(known is not None or address not in self.before, f"free_completed twice at {address:#x}")

    def segment_alloc(self, address, size):
        want(address not in self.segments, f"segment_alloc twice at {address:#x}")
        self.segments[address] = size

    def segment_free(self, address, size):
        want(self.segments.pop(address, size) == size, f"segment_free at {address:#x} of another size")


def blocks_by_state(snapshot):
    states = {state: {} for state in STATES}
    for segment in snapshot["segments"]:
        for block in segment["blocks"]:
            states[block["state"]][block["address"]] = block["size"]
    return states


def check_backwards(snapshot, events):
    """The viewer shows a moment by undoing what came after it, from the segments as they are at the end."""
    states = blocks_by_state(snapshot)
    live, pending = states["active_allocated"], states["active_pending_free"]
    for event in reversed(events):
        address, size = event.get("addr"), event["size"]
        if event["action"] == "alloc":
            want(live.pop(address, None) == size, f"undoing alloc at {address:#x}: it does not live then")
        elif event["action"] == "free_requested":
            want(pending.pop(address, None) == size, f"undoing free_requested at {address:#x}: its free is not pending")
            live[address] = size
        elif event["action"] == "free_completed":
            want(address not in live and address not in pending, f"undoing free_completed at {address:#x}: something lives there")
            pending[address] = size
    return live


def check_snapshot(snapshot):
    """Counts of segments, blocks, events and frees, and the bytes that live at the end."""
    check_segments(snapshot["segments"])
    (events,) = snapshot["device_traces"]
    replay, last = Replay(), 0
    for event in events:
        check_event(event, last)
        last = event["time_us"]
        replay.take(event)
    want(any(event["category"] == "unknown" for event in events), "an event of the category unknown, which the viewer looks for")
    states = blocks_by_state(snapshot)
    for kind, here in (("live", replay.live), ("pending", replay.pending)):
        there = states["active_allocated" if kind == "live" else "active_pending_free"]
        want(here.items() <= there.items(), f"what is {kind} after all events is so in the segments")
    segments = {segment["address"]: segment["total_size"] for segment in snapshot["segments"]}
    want(replay.segments.items() <= segments.items(), "segments that events made are there")
    before = check_backwards(snapshot, events)
    return {"segments": len(segments), "blocks": sum(map(len, states.values())), "events": len(events), "frees": replay.n_frees,
            "live_bytes": sum(states["active_allocated"].values()), "from_before": len(before)}


# ---- Chrome's trace ----


def check_counter(event, last):
    want(event["args"] and all(isinstance(v, (int, float)) and v >= 0 for v in event["args"].values()), "a counter's values are numbers")
    want(event["ts"] >= last, f"counters go forward in time: {event['ts']} after {last}")
    return event["ts"]


def check_slice(event, open_slices):
    """Async slices are matched by category, id and name."""
    key = event["cat"], event["id"], event["name"]
    if event["ph"] == "b":
        want(key not in open_slices, f"the slice {key} begins twice")
        open_slices[key] = event["ts"]
        want(isinstance(event["args"], dict), "args is an object")
    else:
        want(key in open_slices, f"the slice {key} ends before it began")
        want(event["ts"] >= open_slices.pop(key), f"the slice {key} ends before it begins")


def check_trace(trace):
    """Counts of counters and slices, and the largest sum of a counter."""
    want(trace["displayTimeUnit"] in ("ms", "ns"), "displayTimeUnit is ms or ns")
    open_slices, last, n, largest = {}, 0, {"M": 0, "C": 0, "b": 0, "e": 0}, 0
    for event in trace["traceEvents"]:
        want(event["ph"] in n and isinstance(event["name"], str) and event["name"], f"phase and name of {event}")
        want(isinstance(event["pid"], int) and isinstance(event["tid"], int), f"process and thread of {event}")
        n[event["ph"]] += 1
        if event["ph"] == "M":
            want(isinstance(event["args"]["name"], str), "metadata names something")
            continue
        want(isinstance(event["ts"], (int, float)) and event["ts"] >= 0, f"time of {event}")
        if event["ph"] == "C":
            last = check_counter(event, last)
            largest = max(largest, sum(event["args"].values()))
        else:
            check_slice(event, open_slices)
    want(not open_slices, f"{len(open_slices)} slices have no end")
    return {"counters": n["C"], "slices": n["b"], "largest": largest}


# ---- CSV ----

CSV_KINDS = ("alloc", "free_requested", "free_completed", "segment_alloc", "segment_free", "retag", "out_of_memory")


def check_csv(lines):
    """Counts of events by kind, and the bytes that live at the end of those that began within."""
    rows = list(csv.DictReader(lines))
    n, live, last = dict.fromkeys(CSV_KINDS, 0), {}, 0
    for row in rows:
        want(None not in row and None not in row.values(), f"a row has as many fields as the head: {row}")
        want(int(row["time_ns"]) >= last, f"time goes forward: {row}")
        last = int(row["time_ns"])
        want(row["event"] in CSV_KINDS and 0 <= int(row["requested_bytes"]) <= int(row["allocated_bytes"]), f"event and bytes: {row}")
        n[row["event"]] += 1
        if row["event"] == "alloc":
            live[row["address"]] = int(row["allocated_bytes"])
        elif row["event"] == "free_requested":
            live.pop(row["address"], None)
    return {**n, "live_bytes": sum(live.values())}


def load(path):
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for kind in ("snapshot", "trace", "csv"):
        parser.add_argument("--" + kind, metavar="FILE", action="append", default=[])
    given, failed = parser.parse_args(), False
    checks = [(path, lambda p: check_snapshot(load(p))) for path in given.snapshot]
    checks += [(path, lambda p: check_trace(load(p))) for path in given.trace]
    checks += [(path, lambda p: check_csv(open(p, encoding="utf-8", newline=""))) for path in given.csv]
    for path, check in checks:
        try:
            print(f"{path}: fine: {check(path)}")
        except (AssertionError, KeyError, TypeError, ValueError) as error:
            print(f"{path}: {error!r}")
            failed = True
    return failed


if __name__ == "__main__":
    sys.exit(main())

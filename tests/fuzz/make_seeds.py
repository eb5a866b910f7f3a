"""Writes the first inputs of each fuzz target, by hand what a fuzzer would need long to find: make_seeds.py FOLDER.

./run fuzz starts from the kept corpora in tests/fuzz/corpus, which grew from these."""

import json
import os
import pickle
import struct
import sys


def safetensors(header, data):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def npy(version, dtype, order, shape, data):
    text = repr({"descr": dtype, "fortran_order": order, "shape": shape}).encode() + b"\n"
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + length + text + data


def shard(tokens, magic=20240520, version=1):
    return struct.pack("<256i", magic, version, len(tokens), *([0] * 253)) + struct.pack(f"<{len(tokens)}H", *tokens)


def tokenizer(tokens, version=2, end=1):
    head = struct.pack("<256I", 20240328, version, len(tokens), end, *([0] * 252))
    return head + b"".join(bytes([len(t)]) + t for t in tokens)


def meta(text, protocol):
    characters = sorted(set(text))
    return pickle.dumps({"vocab_size": len(characters), "itos": dict(enumerate(characters)),
                         "stoi": {c: i for i, c in enumerate(characters)}}, protocol)


STATE = {"format": "tenon-checkpoint", "version": 1, "made_by": "0.1.0", "step": 20, "data_row": 240,
         "random": {"seed": "0x0000000000000539", "counter": "0x00000000000000ff"}, "threads": 2, "device": "cpu", "best_loss": 1.5,
         "files": {"model.safetensors": {"bytes": 1234, "crc32c": "0x0badf00d"}}, "config": {"model": "linear", "layers": 4},
         "more": None}

SEEDS = {
    "fuzz_safetensors": [
        safetensors({"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}, bytes(16)),
        safetensors({"__metadata__": {"op": "lrpe", "attrs": "{}"}, "x": {"dtype": "BOOL", "shape": [3], "data_offsets": [0, 3]},
                     "e": {"dtype": "I64", "shape": [0], "data_offsets": [3, 3]}}, bytes([0, 1, 1])),
        safetensors({}, b""),
    ],
    "fuzz_npy": [
        npy(1, "<f4", False, (2, 3), bytes(24)), npy(2, "<i8", True, (2, 1), bytes(16)), npy(3, "|b1", False, (), b"\1"),
        npy(1, "<f2", True, (2, 2), bytes(8)), npy(1, ">f8", False, (1,), bytes(8)),
    ],
    "fuzz_config": [
        b'{"data": "x.txt", "layers": 4, "lr": 1e-3, "model": "linear,softmax", "tied": true, "dtype": "bf16", "schedule": "cosine"}',
        b"{}", b"[1]", b'{"steps": 1.5}',
    ],
    "fuzz_checkpoint": [
        b"\0" + json.dumps(STATE).encode(),
        b"\0" + json.dumps(dict(STATE, best_loss=None, more={"a": [1, 2.5]})).encode(),
        b"\1" + json.dumps({"kind": "characters", "end": -1, "tokens": ["\n", " ", "a", "\u00e4", "\U0001f422"]}).encode(),
        b"\1" + json.dumps({"kind": "tokenizer", "end": 1, "tokens": ["\u00ff\u0080", "\x00"]}).encode(),
        b"\1" + json.dumps({"kind": "byte", "end": -1, "tokens": []}).encode(),
    ],
    "fuzz_shards": [
        bytes([4 + 8 * 5]) + shard(list(range(100, 240))), bytes([4]) + shard([1, 2, 3]),
        bytes([3 + 8]) + struct.pack("<30H", *range(30)), bytes([1]) + "tortoise and h\u00e4re \U0001f422 ran a long way to the end of it all".encode() * 3,
        bytes([2]) + bytes(range(128)) * 2, bytes([0]) + b"the quick brown fox jumps over the lazy dog, and over and over again",
    ],
    "fuzz_tokenizer": [
        b"\0" + tokenizer([bytes([i]) for i in range(256)] + [b"he", b" t", b" the", b"in", b"ing", b"'s"]),
        b"\0" + tokenizer([b"a", b"b", b"ab"], version=1, end=0),
        b"\1" + meta("hello\n w\u00f6rld", 4), b"\1" + meta("hello\n w\u00f6rld", 2), b"\1" + meta("".join(chr(c) for c in range(32, 300)), 4),
    ],
    "fuzz_op_attrs": [bytes([op, op % 3]) + text for op in range(60)
                      for text in (b"{}", b'{"dim": -1, "act": "silu", "keep": true}', b"dims=0,1\nscale=0.5")],
    "fuzz_graph": [
        # Two leaves, calls on them, a scope around some of it.
        bytes([0, 2, 3, 4, 5, 1, 9, 0, 2, 3, 4, 5, 1, 33]) + bytes([80 + k, 0, 3, 1, 0, 4]) for k in range(60)
    ] + [bytes([0, 2, 3, 4, 5, 1, 9, 45] + [(80 + 7 * i + k) % 256 for i in range(60)] + [55, 1, 70]) for k in range(20)],
}


def main(folder):
    for target, inputs in SEEDS.items():
        os.makedirs(os.path.join(folder, target), exist_ok=True)
        for i, data in enumerate(inputs):
            with open(os.path.join(folder, target, f"seed-{i:03d}"), "wb") as file:
                file.write(data)


if __name__ == "__main__":
    main(sys.argv[1])

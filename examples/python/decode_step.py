"""A decode step from Python: append, score, refine, plan, attend, merge over a small paged cache.

    python3 decode_step.py DIST [--binding ctypes|cuda-python]

DIST is the folder that `cargo xtask dist` makes. No package is needed with ctypes. First dense, compared with plain
attention; then progressive:0.95, compared with the same over the blocks that it read.
"""

import argparse
import math
import random
import struct
import sys

import psa_kernels

BLOCK, PAGE = 16, 64  # tokens of a block, of a mirror page
KV_HEADS, GROUP, HEAD_DIM = 2, 4, 64
HEADS = KV_HEADS * GROUP
LENGTHS = [500, 150]


def to_bf16(value):
    """The upper half of an f32, rounded to nearest, ties to even."""
    (bits,) = struct.unpack("<I", struct.pack("<f", value))
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16


def from_bf16(half):
    return struct.unpack("<f", struct.pack("<I", half << 16))[0]


def sequence(tokens, rng):
    """k, v [tokens][KV_HEADS] and q [HEADS] of rows of bf16; keys lie near one of four directions."""
    row = lambda f: [to_bf16(f(c)) for c in range(HEAD_DIM)]
    normal = lambda *_: rng.gauss(0.0, 1.0)
    axes = [[[normal() for _ in range(HEAD_DIM)] for _ in range(4)] for _ in range(KV_HEADS)]
    k = [[row(lambda c: 0.7 * axes[h][t // 48 % 4][c] + 0.7 * normal()) for h in range(KV_HEADS)] for t in range(tokens)]
    v = [[row(normal) for _ in range(KV_HEADS)] for _ in range(tokens)]
    q = [row(lambda c: 1.2 * axes[h // GROUP][h // GROUP][c] + 0.6 * normal()) for h in range(HEADS)]
    return k, v, q


def attention(k, v, q, head, blocks):
    """Output of a query head over the tokens of `blocks`, the logarithm of its softmax sum, their share of the mass."""
    kv = head // GROUP
    query = [from_bf16(x) for x in q[head]]
    scores = [sum(a * from_bf16(b) for a, b in zip(query, row[kv])) / math.sqrt(HEAD_DIM) for row in k]
    top = max(scores)
    weights = [math.exp(s - top) for s in scores]
    used = [(w, v[t][kv]) for t, w in enumerate(weights) if t // BLOCK in blocks]
    mass = sum(w for w, _ in used)
    out = [sum(w * from_bf16(row[c]) for w, row in used) / mass for c in range(HEAD_DIM)]
    return out, top + math.log(mass), mass / sum(weights)


def main():
    parser = argparse.ArgumentParser(description="A decode step with the kernels of a distribution folder.")
    parser.add_argument("dist", help="the folder that `cargo xtask dist` makes")
    parser.add_argument("--binding", choices=["ctypes", "cuda-python"], default="ctypes")
    options = parser.parse_args()
    driver = psa_kernels.Ctypes() if options.binding == "ctypes" else psa_kernels.CudaPython()
    kernels = psa_kernels.Kernels(options.dist, driver)

    def room(size):
        return driver.alloc(size)

    def upload(text, values):
        data = struct.pack(f"<{len(values)}{text}", *values)
        pointer = driver.alloc(len(data))
        driver.write(pointer, data)
        return pointer

    def rows(of):
        return [x for row in of for head in row for x in head]

    batch, longest = len(LENGTHS), max(LENGTHS)
    blocks = lambda tokens: -(-tokens // BLOCK)
    max_blocks = -(-blocks(longest) // 4) * 4
    splits = min(max(-(-blocks(longest) // 16), 1), 64)

    # The cache: tables that name a slot for each block and a page for each full group of 64 tokens.
    block_table, mirror_table, slots, pages = [], [], 0, 0
    for tokens in LENGTHS:
        for _ in range(KV_HEADS):
            for table, used, width, first in (
                (block_table, blocks(tokens), max_blocks, slots),
                (mirror_table, tokens // PAGE, max_blocks // 4, pages),
            ):
                table += [first + i if i < used else 0 for i in range(width)]
            slots += blocks(tokens)
            pages += tokens // PAGE
    heads, kv_rows = batch * HEADS, batch * KV_HEADS
    arguments = {
        "arena": room(slots * 2 * BLOCK * HEAD_DIM * 2),
        "mirror": room(pages * (4 * HEAD_DIM + PAGE * HEAD_DIM // 2)),
        "block_table": upload("I", block_table),
        "mirror_table": upload("I", mirror_table),
        "seqs": upload("I", range(batch)),
        "budget": upload("I", [8192] * batch),
        "log_mass": room(heads * max_blocks * 4),
        "doubt": room(heads * max_blocks),
        "threshold": room(heads * 4),
        "looks": upload("I", [0] * (2 * kv_rows)),  # 0 before the first step
        "order": room(kv_rows * max_blocks * 4),
        "count": room(kv_rows * 4),
        "peak": room(heads * 4),
        "rest": room(heads * 8),
        "partial": room(kv_rows * splits * GROUP * HEAD_DIM * 4),
        "partial_ml": room(kv_rows * splits * GROUP * 8),
        "out": room(heads * HEAD_DIM * 4),
        "lse": room(heads * 4),
        "read": room(kv_rows * 8),
        "mass_read": room(heads * 4),
        "scale": 1.0 / math.sqrt(HEAD_DIM),
        "layer": 0,
        "layers": 1,
        "kv_heads": KV_HEADS,
        "group": GROUP,
        "max_blocks": max_blocks,
        "max_splits": splits,
        "sink": 1,
        "recent": 2,
    }

    # Append: all tokens but the last, as a prefill; then the last one, as a decode step does.
    rng = random.Random(2503)
    sequences = [sequence(tokens, rng) for tokens in LENGTHS]
    append = kernels.find("append", T="bf16", D=HEAD_DIM, P=2)
    for part in (slice(0, -1), slice(-1, None)):
        new = [(range(n)[part][0], range(n)[part][-1] + 1) for n in LENGTHS]
        offsets = [0]
        for first, end in new:
            offsets.append(offsets[-1] + end - first)
        arguments["offsets"] = upload("I", offsets)
        arguments["lens"] = upload("I", [end for _, end in new])
        for name, at in (("k", 0), ("v", 1)):
            arguments[name] = upload("H", [x for s in sequences for x in rows(s[at][part])])
        groups = max(-(-end // PAGE) - first // PAGE for first, end in new)
        kernels.launch(append, (KV_HEADS, batch, groups), arguments)

    arguments["q"] = upload("H", [x for _, _, q in sequences for row in q for x in row])
    for mass in (0.0, 0.95):
        arguments["mass"] = mass
        grid = (KV_HEADS, batch, 1)
        if mass == 0.0:
            kernels.launch(kernels.find("plan_identity"), grid, arguments)
        else:
            arguments["target"] = math.ceil(mass * 65536)  # the prediction, as 16-bit fixed point, rounded up
            quarters = -(-(-(-longest // PAGE)) // 4)
            for family in ("score_nested", "refine"):
                kernels.launch(kernels.find(family, T="bf16", D=HEAD_DIM), (quarters, KV_HEADS, batch), arguments)
            kernels.launch(kernels.find("plan", N=512), grid, arguments)
        kernels.launch(kernels.find("attend", T="bf16", D=HEAD_DIM), (splits, KV_HEADS, batch), arguments)
        kernels.launch(kernels.find("merge", T="bf16", D=HEAD_DIM), grid, arguments)
        driver.synchronize()

        download = lambda name, text, n: struct.unpack(f"<{n}{text}", driver.read(arguments[name], n * 4))
        out = download("out", "f", heads * HEAD_DIM)
        lse = download("lse", "f", heads)
        order = download("order", "I", kv_rows * max_blocks)
        read = download("read", "I", kv_rows * 2)
        worst, worst_lse, missed = 0.0, 0.0, 0.0
        larger = lambda worst, error: worst if error <= worst else error  # a NaN stays
        for b, (k, v, q) in enumerate(sequences):
            for h in range(HEADS):
                row = b * KV_HEADS + h // GROUP
                used = set(order[row * max_blocks : row * max_blocks + read[2 * row]])
                expected, expected_lse, covered = attention(k, v, q, h, used)
                worst_lse = larger(worst_lse, abs(lse[b * HEADS + h] - expected_lse))
                missed = max(missed, 1.0 - covered)
                at = (b * HEADS + h) * HEAD_DIM
                for x, y in zip(out[at : at + HEAD_DIM], expected):
                    worst = larger(worst, abs(x - y))
        total = KV_HEADS * sum(blocks(n) for n in LENGTHS)
        name = "dense" if mass == 0.0 else f"progressive:{mass}"
        count = sum(read[::2])
        print(f"{name}: {count} of {total} blocks read, largest error {worst:.1e} (lse {worst_lse:.1e}),"
              f" largest missed mass {missed:.4f}")
        # attend rounds weights to bf16, each by 2^-9 of itself at most, and values are below 6 in magnitude: 6 * 2^-9 =
        # 0.0117; f32 sums of 500 of them add 500 * 2^-24 * 6 = 1.8e-4. The softmax's sum is of unrounded weights: a score is a
        # sum of 64 products below 300 in all, off by at most 68 * 2^-24 * 300 / 8 = 1.5e-4, and so is lse; as much again for
        # exp2 and the sum. The rest of the mass is an estimate, so what is missed may exceed 0.05 a little; twice that would
        # be a fault.
        right = worst < 0.0119 and worst_lse < 3e-4 and (missed < 1e-12 if mass == 0.0 else missed < 0.1 and count < total)
        if not right:
            print("WRONG")
            return 1
    print("as plain attention says")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except psa_kernels.Error as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)

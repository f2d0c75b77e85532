"""Triton kernels, compiled to PTX for sm_80 without a GPU.

    python3 -m venv v && v/bin/pip install triton==3.9.0 numpy
    TRITON_DEFAULT_FP_FUSION=1 v/bin/python kernels.py

writes NAME.ptx beside this file, with the launch (grid, threads, shared bytes) as a comment at the top and the
directories taken out of the `.file` lines. The two parameters Triton adds at the end of each kernel are pointers
to scratch memory, which none of these kernels uses.
"""

import os
import re

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def vector_add(x, y, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = i < n
    tl.store(out + i, tl.load(x + i, mask=mask) + tl.load(y + i, mask=mask), mask=mask)


@triton.jit
def softmax(x, out, cols, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    mask = i < cols
    v = tl.load(x + row * cols + i, mask=mask, other=-float("inf"))
    e = tl.exp(v - tl.max(v, axis=0))
    tl.store(out + row * cols + i, e / tl.sum(e, axis=0), mask=mask)


@triton.jit
def layer_norm(x, weight, bias, out, cols, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    mask = i < cols
    v = tl.load(x + row * cols + i, mask=mask, other=0.0).to(tl.float32)
    mean = tl.sum(v, axis=0) / cols
    d = tl.where(mask, v - mean, 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(d * d, axis=0) / cols + eps)
    y = d * scale * tl.load(weight + i, mask=mask) + tl.load(bias + i, mask=mask)
    tl.store(out + row * cols + i, y.to(tl.float16), mask=mask)


@triton.jit
def matmul(a, b, c, m, n, k, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    """c[m, n] = a[m, k] @ b[k, n], row-major; edges masked."""
    rows = tl.program_id(0) * M + tl.arange(0, M)
    cols = tl.program_id(1) * N + tl.arange(0, N)
    ks = tl.arange(0, K)
    acc = tl.zeros((M, N), dtype=tl.float32)
    for k0 in range(0, k, K):
        kk = k0 + ks
        ta = tl.load(a + rows[:, None] * k + kk[None, :], mask=(rows[:, None] < m) & (kk[None, :] < k), other=0.0)
        tb = tl.load(b + kk[:, None] * n + cols[None, :], mask=(kk[:, None] < k) & (cols[None, :] < n), other=0.0)
        acc = tl.dot(ta, tb, acc)
    tl.store(c + rows[:, None] * n + cols[None, :], acc, mask=(rows[:, None] < m) & (cols[None, :] < n))


@triton.jit
def attention(q, k, v, out, keys, scale, Q: tl.constexpr, K: tl.constexpr, D: tl.constexpr):
    """out[Q, D] = softmax(q k^T scale) v for one block of queries, online over blocks of keys; [row, D] each."""
    head = tl.program_id(0)
    rows = tl.arange(0, Q)
    d = tl.arange(0, D)
    qs = tl.load(q + head * Q * D + rows[:, None] * D + d[None, :])
    most = tl.full((Q,), -float("inf"), tl.float32)
    total = tl.zeros((Q,), tl.float32)
    acc = tl.zeros((Q, D), tl.float32)
    for start in range(0, keys, K):
        i = start + tl.arange(0, K)
        ks = tl.load(k + (head * keys + i)[None, :] * D + d[:, None], mask=i[None, :] < keys, other=0.0)
        s = tl.dot(qs, ks) * scale
        s = tl.where(i[None, :] < keys, s, -float("inf"))
        new = tl.maximum(most, tl.max(s, axis=1))
        p = tl.exp(s - new[:, None])
        alpha = tl.exp(most - new)
        total = total * alpha + tl.sum(p, axis=1)
        vs = tl.load(v + (head * keys + i)[:, None] * D + d[None, :], mask=i[:, None] < keys, other=0.0)
        acc = tl.dot(p.to(vs.dtype), vs, acc * alpha[:, None])
        most = new
    tl.store(out + head * Q * D + rows[:, None] * D + d[None, :], acc / total[:, None])


@triton.jit
def histogram(x, bins, n, BLOCK: tl.constexpr, BINS: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    counts = tl.histogram(tl.load(x + i, mask=i < n, other=0), BINS, mask=i < n)
    tl.atomic_add(bins + tl.arange(0, BINS), counts)


@triton.jit
def cumulative(x, out, cols, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    v = tl.load(x + row * cols + i, mask=i < cols, other=0)
    tl.store(out + row * cols + i, tl.cumsum(v, axis=0), mask=i < cols)


@triton.jit
def sort(x, out, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out + tl.program_id(0) * BLOCK + i, tl.sort(tl.load(x + tl.program_id(0) * BLOCK + i)))


@triton.jit
def widen(x, out, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i).to(tl.float16))


@triton.jit
def dot_int8(a, b, c, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    r, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    ta = tl.load(a + r[:, None] * K + k[None, :])
    tb = tl.load(b + k[:, None] * N + n[None, :])
    tl.store(c + r[:, None] * N + n[None, :], tl.dot(ta, tb, out_dtype=tl.int32))


P = "*"
KERNELS = [
    (vector_add, {"x": "*fp32", "y": "*fp32", "out": "*fp32", "n": "i32"}, {"BLOCK": 256}, {}),
    (softmax, {"x": "*fp32", "out": "*fp32", "cols": "i32"}, {"BLOCK": 512}, {}),
    (layer_norm, {"x": "*fp16", "weight": "*fp32", "bias": "*fp32", "out": "*fp16", "cols": "i32", "eps": "fp32"},
     {"BLOCK": 256}, {"num_warps": 2}),
    (matmul, {"a": "*fp16", "b": "*fp16", "c": "*fp32", "m": "i32", "n": "i32", "k": "i32"},
     {"M": 64, "N": 32, "K": 32}, {"num_stages": 3}),
    (attention, {"q": "*bf16", "k": "*bf16", "v": "*bf16", "out": "*fp32", "keys": "i32", "scale": "fp32"},
     {"Q": 32, "K": 32, "D": 64}, {"num_stages": 2}),
    (histogram, {"x": "*i32", "bins": "*i32", "n": "i32"}, {"BLOCK": 512, "BINS": 32}, {}),
    (cumulative, {"x": "*i32", "out": "*i32", "cols": "i32"}, {"BLOCK": 256}, {}),
    (sort, {"x": "*i32", "out": "*i32"}, {"BLOCK": 256}, {}),
    # One byte a load: LLVM packs bytes it never defined.
    (widen, {"x": "*fp8e5", "out": "*fp16"}, {"BLOCK": 256}, {"unaligned": True}),
    (dot_int8, {"a": "*i8", "b": "*i8", "c": "*i32"}, {"M": 32, "N": 32, "K": 64}, {}),
]


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    for fn, types, constants, options in KERNELS:
        signature = dict(types, **{name: "constexpr" for name in constants})
        # Pointers of 16 bytes alignment, as a framework's allocator gives: loads become vectors and cp.async.
        attrs = {(i,): [["tt.divisibility", 16]] for i, t in enumerate(types.values()) if t.startswith(P)}
        if fn in (matmul,):
            attrs |= {(i,): [["tt.divisibility", 16]] for i in (4, 5)}
        options = dict(options)
        if options.pop("unaligned", False):
            attrs = {}
        source = ASTSource(fn=fn, signature=signature, constexprs=constants, attrs=attrs)
        kernel = triton.compile(source, target=GPUTarget("cuda", 80, 32), options=options)
        meta = kernel.metadata
        ptx = re.sub(r'(\.file\t\d+ )"[^"]*/', r'\1"', kernel.asm["ptx"])
        ptx = re.sub(r"//[^\n]*", "", ptx)
        # Debug sections name directories.
        ptx = re.sub(r"\n\s*\.section\s+\.debug[^\n]*\n\s*\{.*?\n\s*\}", "", ptx, flags=re.S)
        head = f"// {fn.__name__} of kernels.py by Triton {triton.__version__}: {32 * meta.num_warps} threads, {meta.shared} bytes of shared memory\n"
        with open(os.path.join(here, fn.__name__ + ".ptx"), "w") as f:
            f.write(head + re.sub(r"\n\s*\n+", "\n", ptx))
        print(head, end="")


if __name__ == "__main__":
    main()

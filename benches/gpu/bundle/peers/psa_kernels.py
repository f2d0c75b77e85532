"""The toolkit's kernels, launched from Python on another library's tensors.

The PTX is loaded into the current context (torch's) through the driver API, by ctypes alone; parameters are passed
by the names that manifest.json gives them, so that a changed kernel is an error here and not a wrong launch. Shapes
are those of docs/kernels.md. `Step` holds the buffers of a decode step and makes its launches.
"""

import ctypes
import json

BLOCK = 16
QUANT_GROUP = 64
MAX_SPLITS = 64
BLOCKS_PER_SPLIT = 16
LEVELS = 65536  # a mass target of 1.0

_SCALARS = {"u32": ctypes.c_uint32, "i32": ctypes.c_int32, "u64": ctypes.c_uint64, "f32": ctypes.c_float}


class Unusable(Exception):
    """The driver or the kernels cannot be used; the text says why."""


class Manifest:
    """What the PTX holds: parameters, threads and shared memory of every entry."""

    def __init__(self, path):
        with open(path, encoding="utf-8") as file:
            self.kernels = {kernel["name"]: kernel for kernel in json.load(file)["kernels"]}

    def bind(self, name, values):
        """ctypes values of the parameters of `name`, in order; every parameter must be there, and no other."""
        if name not in self.kernels:
            raise Unusable(f"the PTX has no kernel {name}")
        params = self.kernels[name]["params"]
        names = [param["name"] for param in params]
        if sorted(names) != sorted(values):
            raise Unusable(f"{name} takes {names}, not {sorted(values)}")
        bound = []
        for param in params:
            kind = param["type"]
            ctype = ctypes.c_uint64 if kind.startswith("*") else _SCALARS[kind]
            if ctypes.sizeof(ctype) != param["bytes"]:
                raise Unusable(f"{name}: {param['name']} has {param['bytes']} bytes, not {ctypes.sizeof(ctype)}")
            bound.append(ctype(values[param["name"]]))
        return bound


class Driver:
    """The few calls of libcuda that launching needs."""

    def __init__(self, ptx, library="libcuda.so.1"):
        try:
            self.cuda = ctypes.CDLL(library)
        except OSError as error:
            raise Unusable(f"{library} does not load: {error}") from error
        self.module = ctypes.c_void_p()
        self.functions = {}
        with open(ptx, "rb") as file:
            text = file.read() + b"\0"
        call = self.cuda.cuModuleLoadDataEx(ctypes.byref(self.module), text, 0, None, None)
        self._check("cuModuleLoadDataEx", call)

    def _check(self, call, code):
        if code != 0:
            name = ctypes.c_char_p()
            self.cuda.cuGetErrorName(code, ctypes.byref(name))
            raise Unusable(f"{call}: {(name.value or b'unknown error').decode()} ({code})")

    def function(self, name, shared):
        if name not in self.functions:
            function = ctypes.c_void_p()
            call = self.cuda.cuModuleGetFunction(ctypes.byref(function), self.module, name.encode())
            self._check(f"cuModuleGetFunction({name})", call)
            if shared > 48 * 1024:
                max_dynamic_shared = 8
                call = self.cuda.cuFuncSetAttribute(function, max_dynamic_shared, shared)
                self._check(f"cuFuncSetAttribute({name})", call)
            self.functions[name] = function
        return self.functions[name]

    def launch(self, name, grid, block, shared, values, stream):
        pointers = (ctypes.c_void_p * len(values))(*[ctypes.addressof(value) for value in values])
        code = self.cuda.cuLaunchKernel(
            self.function(name, shared), *grid, *block, shared, ctypes.c_void_p(stream), pointers, None
        )
        self._check(f"cuLaunchKernel({name}, grid {grid})", code)


class Recorder:
    """In place of `Driver`: keeps what would have been launched."""

    def __init__(self):
        self.launches = []

    def launch(self, name, grid, block, shared, values, stream):
        self.launches.append((name, tuple(grid), tuple(block), shared, [value.value for value in values]))


def splits(blocks):
    """Splits of a row, as layout.rs has them."""
    return max(1, min(MAX_SPLITS, -(-blocks // BLOCKS_PER_SPLIT)))


def page_bytes(head_dim, planes=2):
    return 4 * head_dim + planes * (QUANT_GROUP * head_dim // 4)


class Step:
    """A cache of one layer with `tokens` tokens in each of `batch` sequences, and its decode steps.

    `alloc(bytes, values=None)` gives the address of device memory, with u32 `values` in it where given, and keeps
    it alive; `k`, `v` are addresses of `[batch * tokens, kv_heads, head_dim]` bf16, `q` of
    `[batch, kv_heads * group, head_dim]` bf16.
    """

    def __init__(self, manifest, driver, alloc, shape, k, v, q, slots):
        batch, tokens, kv_heads, group, head_dim = shape
        assert tokens % QUANT_GROUP == 0
        self.manifest, self.driver, self.shape = manifest, driver, shape
        blocks = tokens // BLOCK
        groups = tokens // QUANT_GROUP
        rows, heads = batch * kv_heads, batch * kv_heads * group
        self.splits = splits(blocks)
        self.arena = alloc(rows * blocks * 4 * BLOCK * head_dim)
        self.mirror = alloc(rows * groups * page_bytes(head_dim))
        self.block_table = alloc(4 * rows * blocks, slots)
        self.mirror_table = alloc(4 * rows * groups, range(rows * groups))
        self.seqs = alloc(4 * batch, range(batch))
        self.lens = alloc(4 * batch, [tokens] * batch)
        self.whole = alloc(4 * batch, [blocks] * batch)
        self.tenth = alloc(4 * batch, [-(-blocks // 10)] * batch)
        self.q = q
        self.log_mass = alloc(4 * heads * blocks)
        self.doubt = alloc(heads * blocks)
        self.threshold = alloc(4 * heads)
        self.looks = alloc(8 * rows, [0] * (2 * rows))
        self.order = alloc(4 * rows * blocks)
        self.count = alloc(4 * rows)
        self.peak = alloc(4 * heads)
        self.rest = alloc(8 * heads)
        self.partial = alloc(4 * heads * self.splits * head_dim)
        self.partial_ml = alloc(8 * heads * self.splits)
        self.out = alloc(4 * heads * head_dim)
        self.lse = alloc(4 * heads)
        self.read = alloc(8 * rows)
        self.mass = alloc(4 * heads)
        offsets = alloc(4 * (batch + 1), [i * tokens for i in range(batch + 1)])
        self._launch(
            f"append_bf16_d{head_dim}_p2",
            (kv_heads, batch, groups),
            dict(k=k, v=v, offsets=offsets, arena=self.arena, mirror=self.mirror, **self._tables(), **self._layer()),
            0,
        )

    def _tables(self):
        return dict(
            block_table=self.block_table, mirror_table=self.mirror_table, seqs=self.seqs, lens=self.lens
        )

    def _layer(self):
        _, tokens, kv_heads, _, _ = self.shape
        return dict(layer=0, layers=1, kv_heads=kv_heads, max_blocks=tokens // BLOCK)

    def _launch(self, name, grid, values, stream):
        kernel = self.manifest.kernels.get(name)
        bound = self.manifest.bind(name, values)
        self.driver.launch(name, grid, tuple(kernel["block"]), kernel["shared_bytes"], bound, stream)

    def run(self, policy, stream):
        """Queues a step: `dense`, `top-k:0.1` or `progressive:0.95`."""
        batch, tokens, kv_heads, group, head_dim = self.shape
        blocks = tokens // BLOCK
        scale = head_dim**-0.5
        plan = dict(
            lens=self.lens, order=self.order, count=self.count, peak=self.peak, rest=self.rest,
            kv_heads=kv_heads, group=group, max_blocks=blocks,
        )
        budget = self.tenth if policy == "top-k:0.1" else self.whole
        mass = 0.95 if policy == "progressive:0.95" else 0.0
        if policy == "dense":
            self._launch("plan_identity", (kv_heads, batch, 1), plan, stream)
        else:
            per_cta = 4 * QUANT_GROUP
            look = dict(q=self.q, mirror=self.mirror, log_mass=self.log_mass, doubt=self.doubt,
                        threshold=self.threshold, looks=self.looks, scale=scale, group=group, **self._layer())
            grid = (-(-tokens // per_cta), kv_heads, batch)
            self._launch(
                f"score_nested_bf16_d{head_dim}", grid, dict(arena=self.arena, **look, **self._tables()), stream
            )
            tables = dict(mirror_table=self.mirror_table, seqs=self.seqs, lens=self.lens)
            self._launch(f"refine_bf16_d{head_dim}", grid, dict(**look, **tables), stream)
            capacity = next(n for n in (512, 2048, 8192) if blocks <= n)
            # Rounded up, as numeric.rs does.
            target = -(-round(mass * LEVELS * 1024) // 1024) if mass else 0
            self._launch(
                f"plan_n{capacity}",
                (kv_heads, batch, 1),
                dict(log_mass=self.log_mass, budget=budget, target=target, sink=1, recent=2, **plan),
                stream,
            )
        shared = dict(
            q=self.q, arena=self.arena, block_table=self.block_table, seqs=self.seqs, lens=self.lens,
            order=self.order, count=self.count, partial=self.partial, partial_ml=self.partial_ml,
            scale=scale, group=group, max_splits=self.splits, **self._layer(),
        )
        name = f"bf16_d{head_dim}"
        self._launch(f"attend_{name}", (self.splits, kv_heads, batch), shared, stream)
        self._launch(
            f"merge_{name}",
            (kv_heads, batch, 1),
            dict(log_mass=self.log_mass, budget=budget, peak=self.peak, rest=self.rest, out=self.out,
                 lse=self.lse, read=self.read, mass_read=self.mass, mass=mass, **shared),
            stream,
        )

"""Times decode attention of what is installed here beside the toolkit's kernels: same tensors, same process,
alternating arms, L2 emptied before each round, one CUDA graph a step where the arm can be captured.

Every arm's output is compared with attention in f32 first; an arm that is wrong is not timed. What is not installed
is left out and said. `--dry-run` needs nothing but Python: it says what is missing, and makes every launch of the
toolkit's kernels against a recorder.
"""

import argparse
import importlib
import json
import os
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
sys.path.insert(0, HERE)
import psa_kernels  # noqa: E402

SETTINGS = [(1, 32768, 4), (16, 16384, 4), (16, 65536, 4), (1, 131072, 4), (64, 16384, 4), (16, 32768, 8)]
QUICK = [(1, 32768, 4), (16, 16384, 4)]
PSA = ("dense", "top-k:0.1", "progressive:0.95")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", help="write records to FILE, one JSON object a line")
    parser.add_argument("--quick", action="store_true", help="two shapes, fewer rounds")
    parser.add_argument("--budget", type=float, default=100, metavar="SECONDS", help="begin no shape after this long")
    parser.add_argument("--ptx", default=os.path.join(ROOT, "ptx", "psa_kernels.ptx"))
    parser.add_argument("--manifest", default=os.path.join(ROOT, "ptx", "manifest.json"))
    parser.add_argument("--traces", default=os.path.join(ROOT, "data", "traces.safetensors"))
    parser.add_argument("--dry-run", action="store_true", help="say what is missing; needs no GPU")
    return parser.parse_args()


def find(name):
    """The module, or why not."""
    try:
        return importlib.import_module(name), None
    except Exception as error:  # A broken installation fails in many ways; none shall take the others along.
        return None, f"{type(error).__name__}: {error}".splitlines()[0]


def dry_run(options):
    """Exit code 0 where the scripts and the manifest fit together; what is not installed is only said."""
    for name in ("torch", "triton", "flashinfer", "amass_kv"):
        module, why = find(name)
        print(f"{name}: {getattr(module, '__version__', 'found') if module else 'missing, ' + why}")
    manifest = psa_kernels.Manifest(options.manifest)
    for batch, tokens, group in SETTINGS:
        recorder = psa_kernels.Recorder()
        address = iter(range(1 << 20, 1 << 30, 1 << 20))
        alloc = lambda size, values=None: next(address)
        shape = (batch, tokens, 8, group, 128)
        step = psa_kernels.Step(manifest, recorder, alloc, shape, 1, 2, 3, [])
        for policy in PSA:
            step.run(policy, 0)
        names = [launch[0] for launch in recorder.launches]
        print(f"batch {batch}, {tokens} tokens, group {group}: {len(names)} launches, {', '.join(sorted(set(names)))}")
    return 0


class Arm:
    """A name, what it runs, and its output `[batch, heads, dim]`."""

    def __init__(self, by, policy, run, out, tolerance):
        self.by, self.policy, self.run, self.out, self.tolerance = by, policy, run, out, tolerance
        self.graph = None
        self.times = []

    def capture(self, torch):
        """Warm up on a side stream, then capture; without a graph the arm runs as it is."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self.run()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self.run()
            self.graph = graph
        except Exception as error:
            print(f"  {self.by} {self.policy}: no graph, {error}".splitlines()[0], file=sys.stderr)
            torch.cuda.synchronize()

    def go(self):
        if self.graph is not None:
            self.graph.replay()
        else:
            self.run()


def arms_of(torch, options, k, v, q, group, left):
    """All arms that can be built here. What cannot is appended to `left`."""
    batch, tokens, kv_heads, dim = k.shape
    keep, arms = [], []
    manifest = psa_kernels.Manifest(options.manifest)

    def attempt(name, build):
        try:
            build()
        except Exception as error:
            torch.cuda.synchronize()
            left.append((f"{name}, batch {batch}, {tokens} tokens, group {group}", f"{type(error).__name__}: {error}"))

    def ours():
        driver = psa_kernels.Driver(options.ptx)

        def alloc(size, values=None):
            if values is None:
                memory = torch.empty(size, dtype=torch.uint8, device="cuda")
            else:
                memory = torch.as_tensor(list(values), dtype=torch.int64).to(torch.int32).to("cuda")
            keep.append(memory)
            return memory.data_ptr()

        slots = torch.randperm(batch * kv_heads * (tokens // 16), generator=torch.Generator().manual_seed(1)).tolist()
        torch.cuda.synchronize()
        step = psa_kernels.Step(
            manifest, driver, alloc, (batch, tokens, kv_heads, group, dim), k.data_ptr(), v.data_ptr(), q.data_ptr(), slots
        )
        torch.cuda.synchronize()
        by_address = {memory.data_ptr(): memory for memory in keep}
        out = by_address[step.out].view(torch.float32).view(batch, -1, dim)
        read = by_address[step.read].view(torch.int32).view(-1, 2)
        for policy in PSA:
            def run(policy=policy):
                step.run(policy, torch.cuda.current_stream().cuda_stream)
            # Sparse arms are right where they are near; dense ones where they round as they must.
            arm = Arm("psa", policy, run, lambda: out, 2e-2 if policy == "dense" else None)
            arm.read = lambda: (int(read[:, 0].sum()), batch * kv_heads * (tokens // 16))
            arms.append(arm)

    kt, vt = (x.transpose(1, 2).contiguous() for x in (k, v))
    q4 = q.unsqueeze(2)

    def sdpa_gqa():
        box = {}
        def run():
            box["out"] = torch.nn.functional.scaled_dot_product_attention(q4, kt, vt, enable_gqa=True)
        run()
        arms.append(Arm("torch-sdpa-gqa", "dense", run, lambda: box["out"].squeeze(2), 2e-2))

    def sdpa_repeat():
        box = {}
        def repeat(x):
            return x[:, :, None].expand(batch, kv_heads, group, tokens, dim).reshape(batch, -1, tokens, dim)
        def run():
            box["out"] = torch.nn.functional.scaled_dot_product_attention(q4, repeat(kt), repeat(vt))
        run()
        arms.append(Arm("torch-sdpa-repeat", "dense", run, lambda: box["out"].squeeze(2), 2e-2))

    def triton():
        from triton_decode import TritonDecode
        decode = TritonDecode(q, kt, vt)
        decode.run()
        arms.append(Arm("triton-split", "dense", decode.run, lambda: decode.out, 2e-2))

    def flashinfer():
        module = importlib.import_module("flashinfer")
        page = 16
        pages = batch * tokens // page
        cache = torch.stack([k.view(pages, page, kv_heads, dim), v.view(pages, page, kv_heads, dim)], dim=1)
        workspace = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
        wrapper = module.BatchDecodeWithPagedKVCacheWrapper(workspace, "NHD", use_tensor_cores=True)
        indptr = torch.arange(batch + 1, dtype=torch.int32, device="cuda") * (tokens // page)
        indices = torch.arange(pages, dtype=torch.int32, device="cuda")
        last = torch.full((batch,), page, dtype=torch.int32, device="cuda")
        # Planned once, outside the time: to its advantage.
        wrapper.plan(indptr, indices, last, kv_heads * group, kv_heads, dim, page,
                     q_data_type=torch.bfloat16, kv_data_type=torch.bfloat16)
        box = {}
        def run():
            box["out"] = wrapper.run(q, cache)
        run()
        arms.append(Arm("flashinfer", "dense", run, lambda: box["out"], 2e-2))

    attempt("psa", ours)
    attempt("torch-sdpa-gqa", sdpa_gqa)
    attempt("torch-sdpa-repeat", sdpa_repeat)
    attempt("triton-split", triton)
    attempt("flashinfer", flashinfer)
    keep.extend([kt, vt])
    return arms, keep


def exact(torch, k, v, q, group):
    """Attention of the first sequence in f32, a KV head at a time."""
    _, _, kv_heads, dim = k.shape
    rows = []
    for h in range(kv_heads):
        queries = q[0, h * group : (h + 1) * group].double()
        weights = torch.softmax(queries @ k[0, :, h].double().T * dim**-0.5, dim=-1)
        rows.append((weights @ v[0, :, h].double()).float())
    return torch.cat(rows)


def copy_bandwidth(torch):
    source = torch.ones(1 << 28, dtype=torch.int32, device="cuda")
    target = torch.empty_like(source)
    times = []
    for round_ in range(12):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        target.copy_(source)
        end.record()
        torch.cuda.synchronize()
        if round_ >= 2:
            times.append(start.elapsed_time(end) * 1e3)
    return 2 * 4 * (1 << 28), times


def quantile(values, q):
    values = sorted(values)
    place = q * (len(values) - 1)
    low = int(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (values[high] - values[low]) * (place - low)


def figures(times, moved, copy_gb_s):
    median = quantile(times, 0.5)
    gb_s = moved / median / 1e3
    return dict(
        rounds=len(times), median_us=median, p10_us=quantile(times, 0.1), p90_us=quantile(times, 0.9),
        min_us=min(times), bytes=moved, gb_s=gb_s, copy_share=gb_s / copy_gb_s if copy_gb_s else 0.0,
    )


def one_setting(torch, options, template, setting, copy_gb_s, device, flush, emit):
    import inputs
    batch, tokens, group = setting
    k, v, q = inputs.batch_of(template, batch, tokens, group, "cuda")
    left = []
    arms, keep = arms_of(torch, options, k, v, q, group, left)
    for name, reason in left:
        emit(dict(part="left", name=name, reason=reason.splitlines()[0]))
    want = exact(torch, k, v, q, group)
    good = []
    bad = 0
    for arm in arms:
        name = f"{arm.by} {arm.policy}, batch {batch}, {tokens} tokens, group {group}"
        try:
            arm.run()
            torch.cuda.synchronize()
            error = float((arm.out()[0].float() - want).abs().max() / want.abs().max())
            arm.error = error
            if arm.tolerance is not None and not error <= arm.tolerance:
                emit(dict(part="left", name=name, reason=f"wrong: off by {error:.3g} of the largest output"))
                bad += arm.by == "psa"
                continue
            arm.blocks = arm.read() if hasattr(arm, "read") else (0, 0)
            if arm.by == "psa" and arm.policy != "dense" and not 0 < arm.blocks[0] < arm.blocks[1]:
                emit(dict(part="left", name=name, reason=f"not sparse: {arm.blocks[0]} of {arm.blocks[1]} blocks"))
                bad += 1
                continue
            arm.capture(torch)
            good.append(arm)
        except Exception as error:
            torch.cuda.synchronize()
            emit(dict(part="left", name=name, reason=f"{type(error).__name__}: {error}".splitlines()[0]))
    turns, rounds = (5, 4) if options.quick else (10, 5)
    for _ in range(turns):
        for arm in good:
            events = []
            for round_ in range(rounds + 1):
                flush.zero_()
                start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                start.record()
                arm.go()
                end.record()
                if round_ > 0:
                    events.append((start, end))
            torch.cuda.synchronize()
            arm.times.extend(start.elapsed_time(end) * 1e3 for start, end in events)
    slot = 2 * 16 * inputs.HEAD_DIM * 2
    rows = batch * inputs.KV_HEADS
    small = rows * group * inputs.HEAD_DIM * 2 + rows * group * (inputs.HEAD_DIM + 1) * 4
    for arm in good:
        read, total = arm.blocks
        mirror = 0 if arm.policy == "dense" else rows * (tokens // 64) * psa_kernels.page_bytes(inputs.HEAD_DIM)
        moved = (read if read else rows * (tokens // 16)) * slot + mirror + small
        emit(dict(
            part="time", device=device, by=arm.by, what="step", policy=arm.policy, batch=batch, tokens=tokens,
            kv_heads=inputs.KV_HEADS, group=group, head_dim=inputs.HEAD_DIM, dtype="bf16",
            mode="graph" if arm.graph is not None else "stream", l2_cold=True,
            **figures(arm.times, moved, copy_gb_s), blocks_read=read, blocks_total=total, error=arm.error,
            run="peers",
        ))
        print(f"  {arm.by} {arm.policy}: {quantile(arm.times, 0.5):.1f} us")
    del keep
    return bad


def main():
    options = arguments()
    if options.dry_run:
        return dry_run(options)
    begun = time.monotonic()
    torch, why = find("torch")
    if torch is None:
        print(f"torch is not installed ({why}): no peers", file=sys.stderr)
        return 2
    if not torch.cuda.is_available():
        print("torch finds no GPU: no peers", file=sys.stderr)
        return 2
    import inputs
    out = open(options.json, "w", encoding="utf-8") if options.json else None

    def emit(record):
        if record["part"] == "left":
            print(f"  not timed: {record['name']}: {record['reason']}")
        if out:
            out.write(json.dumps(record) + "\n")
            out.flush()

    torch.zeros(1, device="cuda")  # Makes the context that the kernels are loaded into.
    device = torch.cuda.get_device_name()
    print(f"device: {device}, torch {torch.__version__}")
    template = inputs.recorded(options.traces) if os.path.exists(options.traces) else inputs.made_up()
    moved, times = copy_bandwidth(torch)
    copy = figures(times, moved, 0.0)
    emit(dict(part="time", device=device, by="torch", what="copy", policy="", mode="stream", run="peers", **copy))
    print(f"copy: {copy['gb_s']:.0f} GB/s")
    flush = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    bad = 0
    for setting in QUICK if options.quick else SETTINGS:
        name = f"batch {setting[0]}, {setting[1]} tokens, group {setting[2]}"
        if time.monotonic() - begun > options.budget:
            emit(dict(part="left", name=f"peers, {name}", reason=f"no time left of {options.budget:.0f} s"))
            continue
        print(name)
        try:
            bad += one_setting(torch, options, template, setting, copy["gb_s"], device, flush, emit)
        except Exception as error:
            emit(dict(part="left", name=f"peers, {name}", reason=f"{type(error).__name__}: {error}".splitlines()[0]))
        torch.cuda.empty_cache()
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

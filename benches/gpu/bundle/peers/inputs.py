"""The tensors that all arms get: recorded attention heads in the shape of a layer of an 8B model, as
benches/gpu/src/time/inputs.rs makes them; without the traces, a made-up mixture of needles and a heavy tail.
"""

import json

import torch

KV_HEADS = 8
HEAD_DIM = 128
TOKENS = 4096


def read_safetensors(path):
    """All tensors of a file, f16 and f32; no library needed."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        data = bytearray(file.read())
    types = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        first, last = entry["data_offsets"]
        flat = torch.frombuffer(data, dtype=types[entry["dtype"]], count=(last - first) // types[entry["dtype"]].itemsize,
                                offset=first)
        tensors[name] = flat.reshape(entry["shape"])
    return tensors


def recorded(path):
    """k, v `[TOKENS, KV_HEADS, HEAD_DIM]`, q `[KV_HEADS, 8, HEAD_DIM]`, bf16."""
    tensors = read_safetensors(path)
    with open(path[: path.rindex(".")] + ".json", encoding="utf-8") as file:
        scale = json.load(file)["softmax_scale"]
    double = lambda x: torch.cat([x, x], dim=-1)
    k = torch.stack([tensors[f"case{h}.k"][-TOKENS:].float() for h in range(KV_HEADS)], dim=1)
    v = torch.stack([tensors[f"case{h}.v"][-TOKENS:].float() for h in range(KV_HEADS)], dim=1)
    # Channels occur twice: scores stay where queries are scaled for it.
    factor = scale * HEAD_DIM**0.5 / 2
    queries = []
    for h in range(KV_HEADS):
        q = tensors[f"case{h}.q"].float()  # [group, queries, 64]
        group, count, _ = q.shape
        queries.append(torch.stack([q[i % group, count - 1 - i // group] for i in range(8)]))
    q = torch.stack(queries) * factor
    return [double(x).to(torch.bfloat16) for x in (k, v, q)]


def made_up(seed=1):
    """As `recorded`."""
    random = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(shape, generator=random)
    axes = normal(KV_HEADS, HEAD_DIM)
    needle = torch.rand((TOKENS, KV_HEADS, 1), generator=random) < 1 / 500
    pull = torch.where(needle, torch.tensor(0.8), (normal(TOKENS, KV_HEADS, 1) ** 3 * 0.05).clamp(-0.6, 0.6))
    k = pull * axes + 0.6 * normal(TOKENS, KV_HEADS, HEAD_DIM)
    v = normal(TOKENS, KV_HEADS, HEAD_DIM)
    q = axes[:, None] + 0.3 * normal(KV_HEADS, 8, HEAD_DIM)
    return [x.to(torch.bfloat16) for x in (k, v, q)]


def batch_of(template, batch, tokens, group, device):
    """k, v `[batch, tokens, KV_HEADS, HEAD_DIM]`, q `[batch, KV_HEADS * group, HEAD_DIM]` on the device."""
    k, v, q = (x.to(device) for x in template)
    times = -(-tokens // TOKENS)
    spread = lambda x: x.repeat(times, 1, 1)[:tokens].unsqueeze(0).repeat(batch, 1, 1, 1).contiguous()
    q = q[:, :group].reshape(1, KV_HEADS * group, HEAD_DIM).repeat(batch, 1, 1).contiguous()
    return spread(k), spread(v), q

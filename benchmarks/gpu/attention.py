"""The attention that this platform gets (cuDNN on a GPU) against XLA's in float32 on the CPU, and its speed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import ceilings
import jax
import jax.numpy as jnp
import numpy as np
import subjects
from reporting import Report, Values

CUDNN = "__cudnn$fmha"  # how the names of jax's calls of cuDNN's fused attention begin
# ||got - expected|| / ||expected||, of values and of each gradient; the operands are rounded alike.
TOLERANCE = {"bfloat16": 2e-2, "float32": 1e-5}
SECONDS = 12.0  # that one case may take, compiling included
Arrays = tuple[jax.Array, jax.Array, jax.Array]


@dataclasses.dataclass(frozen=True)
class Case:
    """One call of the door. `fused`: whether cuDNN takes it on a GPU; where it does not, XLA must."""

    name: str
    K: int = 64
    H: int = 8
    G: int = 2
    T: int = 512
    documents: bool = False
    window: int | None = None
    softcap: float | None = None
    alibi: bool = False
    scale: float | None = None
    dtype: str = "bfloat16"
    fused: bool = True


CASES = (
    Case("head size 64, documents", documents=True),
    Case("head size 64", G=8),
    Case("head size 64, one key/value head", G=1),
    Case("head size 96", K=96),
    Case("head size 128", K=128),
    Case("head size 128, documents", K=128, documents=True),
    Case("head size 192", K=192),
    Case("head size 256", K=256),
    Case("head size 256, documents, window 100", K=256, G=1, documents=True, window=100),
    Case("window 100", window=100),
    Case("window 100, documents", window=100, documents=True),
    Case("window 1", window=1),
    Case("window of the whole row", window=512),
    Case("another scale", scale=0.05),
    Case("length 500, documents", T=500, documents=True),
    Case("soft cap", softcap=20.0, documents=True, fused=False),
    Case("soft cap, window", softcap=20.0, window=100, fused=False),
    Case("ALiBi", alibi=True, fused=False),
    Case("float32", dtype="float32", documents=True, fused=False),
    Case("head size 100", K=100, fused=False),
    Case("head size 320", K=320, fused=False),
    Case("length 511, documents", T=511, documents=True, fused=False),
)
ISOLATION = (
    Case("", documents=True),
    Case("", K=128, documents=True),
    Case("", K=256, documents=True),
    Case("", window=150, documents=True),
)
# A dry run takes these alone, in miniature.
DRY_CASES = ("window 1", "soft cap", "ALiBi")


def small(case: Case) -> Case:
    """A case in miniature."""
    return dataclasses.replace(case, T=64 - case.T % 2, H=4, G=min(case.G, 4))


def random_qkv(case: Case, rows: int = 2, seed: int = 0) -> Arrays:
    """q [B, T, H, K], k and v [B, T, G, K]."""
    rng = np.random.default_rng(seed)
    shapes = [(rows, case.T, heads, case.K) for heads in (case.H, case.G, case.G)]
    q, k, v = (jnp.asarray(rng.standard_normal(shape, np.float32), jnp.dtype(case.dtype)) for shape in shapes)
    return q, k, v


def random_probe(case: Case, rows: int = 2) -> jax.Array:
    """float32 [B, T, H, K], what the output is multiplied by before it is summed."""
    return jnp.asarray(np.random.default_rng(7).standard_normal((rows, case.T, case.H, case.K), np.float32))


def segments_of(case: Case, rows: int = 2) -> jax.Array | None:
    """Three documents a row and padding at the end, int32 [B, T]; None where the case has no documents."""
    if not case.documents:
        return None
    segments = subjects.packed_batch(8, rows, case.T, documents=3)["segments"]
    segments[:, -case.T // 10 :] = 0
    return jnp.asarray(segments)


def options(case: Case, segments_BT: jax.Array | None) -> dict[str, Any]:
    """The keyword arguments of the door."""
    return {
        "q_segments_BT": segments_BT,
        "kv_segments_BS": segments_BT,
        "q_offset": 0,
        "scale": case.K**-0.5 if case.scale is None else case.scale,
        "window": case.window,
        "softcap": case.softcap,
        "slopes_H": jnp.asarray(subjects.alibi_slopes(case.H)) if case.alibi else None,
    }


def with_gradients(attention: Callable[..., jax.Array], case: Case, segments_BT: jax.Array | None) -> Any:
    """Jitted (q, k, v, probe) -> (output, gradients of sum(output * probe))."""

    def run(q, k, v, probe):
        def loss(q, k, v):
            out = attention(q, k, v, **options(case, segments_BT))
            return jnp.sum(out.astype(jnp.float32) * probe), out

        gradients, out = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(q, k, v)
        return out, gradients

    return jax.jit(run)


def on_host(x: jax.Array) -> np.ndarray:
    """A float64 copy."""
    return np.asarray(x.astype(jnp.float32), np.float64)


def relative_error(got: jax.Array, expected: jax.Array, least: float = 0.0) -> float:
    """||got - expected|| / max(||expected||, least)."""
    return float(np.linalg.norm(on_host(got) - on_host(expected)) / max(np.linalg.norm(on_host(expected)), least))


def gradient_error(got: Arrays, expected: Arrays) -> float:
    """The largest relative error of the three; one that should vanish (a window of 1) is measured by all together."""
    least = 0.1 * float(np.sqrt(sum(np.sum(np.square(on_host(e))) for e in expected)))
    return max(relative_error(g, e, least) for g, e in zip(got, expected, strict=True))


def check_case(case: Case) -> Values:
    """Value and gradients against float32 on the CPU, and which kernel it was."""
    device, cpu = jax.devices()[0], jax.devices("cpu")[0]
    door = subjects.attention_for(device.platform)
    segments = segments_of(case)
    arrays = (*random_qkv(case), random_probe(case))
    with jax.default_matmul_precision("highest" if case.dtype == "float32" else "default"):
        lowered = with_gradients(door, case, segments).lower(*arrays)
        fused = CUDNN in lowered.as_text()
        out, gradients = lowered.compile()(*arrays)
    with jax.default_device(cpu), jax.default_matmul_precision("highest"):
        there = [jax.device_put(np.asarray(x, np.float32), cpu) for x in arrays]
        here = None if segments is None else jax.device_put(segments, cpu)
        expected, expected_gradients = with_gradients(subjects.xla_attention, case, here)(*there)
    value = relative_error(out, expected)
    gradient = gradient_error(gradients, expected_gradients)
    tolerance = TOLERANCE[case.dtype]
    right_kernel = fused == (case.fused and device.platform == "gpu")
    return {
        "passed": value <= tolerance and gradient <= tolerance and right_kernel,
        "value": value,
        "gradient": gradient,
        "tolerance": tolerance,
        "kernel": "cudnn" if fused else "xla",
    }


def check_step_of_decoding(length: int) -> Values:
    """One query at an index known at run time only, over a cache whose end is not written: XLA's, and right."""
    device, cpu = jax.devices()[0], jax.devices("cpu")[0]
    case = Case("", T=length)
    q, k, v = random_qkv(case)
    q = q[:, :1]
    index = length // 2
    door = subjects.attention_for(device.platform)
    run = jax.jit(lambda q, k, v, index: door(q, k, v, **options(case, None) | {"q_offset": index}))
    out = run(q, k, v, jnp.asarray(index))
    with jax.default_device(cpu), jax.default_matmul_precision("highest"):
        there = [jax.device_put(np.asarray(x, np.float32), cpu) for x in (q, k, v)]
        expected = subjects.xla_attention(*there, **options(case, None) | {"q_offset": index})
    value = relative_error(out, expected)
    return {"passed": value <= TOLERANCE["bfloat16"], "value": value, "tolerance": TOLERANCE["bfloat16"]}


def check_isolation(case: Case) -> Values:
    """Change document 1: no bit of document 2 moves, and no gradient of document 2 reaches document 1."""
    cut = case.T * 2 // 5
    segments = jnp.broadcast_to(1 + (jnp.arange(case.T) >= cut), (2, case.T)).astype(jnp.int32)
    first, other = random_qkv(case), random_qkv(case, seed=9)
    second = [jnp.concatenate([o[:, :cut], f[:, cut:]], axis=1) for o, f in zip(other, first, strict=True)]
    probe = random_probe(case).at[:, :cut].set(0)
    run = with_gradients(subjects.attention_for(jax.devices()[0].platform), case, segments)
    (out, gradients), (moved, _) = run(*first, probe), run(*second, probe)
    movement = np.abs(on_host(out) - on_host(moved))
    sizes = [np.abs(on_host(gradient)) for gradient in gradients]
    changed, leaked = float(movement[:, :cut].max()), float(movement[:, cut:].max())
    backward, own = max(float(g[:, :cut].max()) for g in sizes), min(float(g[:, cut:].max()) for g in sizes)
    passed = changed > 0.1 and leaked == 0.0 and backward == 0.0 and own > 0.0
    return {"passed": passed, "document 1 changed": changed, "leaked": leaked, "leaked gradient": backward}


def check(report: Report, *, dry_run: bool) -> None:
    """Every case, then isolation of documents by head size and window."""
    for case in CASES:
        if not dry_run or case.name in DRY_CASES:
            report.record(case.name, partial(check_case, small(case) if dry_run else case), needs=SECONDS)
    report.record("a step of decoding", partial(check_step_of_decoding, 64 if dry_run else 512), needs=SECONDS)
    for case in ISOLATION[-1:] if dry_run else ISOLATION:
        window = f", window {case.window}" if case.window else ""
        name = f"isolation of documents, head size {case.K}{window}"
        report.record(name, partial(check_isolation, small(case) if dry_run else case), needs=SECONDS)


def speed(report: Report, *, dry_run: bool) -> None:
    """Forward and backward alone at the sizes of the 1.1B and the 3B model, and what documents cost."""
    platform = jax.devices()[0].platform
    kernels: dict[str, tuple[Callable[..., jax.Array], bool]] = {
        "the door, documents": (subjects.attention_for(platform), True),
        "the door, one document": (subjects.attention_for(platform), False),
        "XLA, documents": (subjects.xla_attention, True),
    }
    if platform == "gpu":
        kernels["cuDNN, documents as a bias"] = (_cudnn_with_bias, True)
        kernels["cuDNN, documents as a mask"] = (_cudnn_with_mask, True)
    for H, K in ((4, 64),) if dry_run else ((32, 64), (24, 128)):
        case = Case("", H=H, G=4 if dry_run else 8, K=K, T=64 if dry_run else 2048)
        for name, (attention, documents) in kernels.items():
            case = dataclasses.replace(case, documents=documents)
            function = partial(_speed, attention, case, 1 if dry_run else 8)
            report.record(f"speed, {H} heads of {K}: {name}", function, needs=SECONDS)


def _speed(attention: Callable[..., jax.Array], case: Case, rows: int) -> Values:
    arrays = (*random_qkv(case, rows), random_probe(case, rows))
    run = with_gradients(attention, case, segments_of(case, rows)).lower(*arrays).compile()
    seconds = ceilings.seconds_of(lambda: run(*arrays))
    # Forward 2 products, backward 5 (the kernel forms the scores again), of the visible half of the square.
    flops = 7 * 2 * rows * case.H * case.K * case.T * (case.T + 1) / 2
    return {"rows": rows, "length": case.T, "milliseconds": seconds * 1e3, "tflops": flops / seconds / 1e12}


def _cudnn(q, k, v, documents: dict[str, jax.Array], scale: float) -> jax.Array:
    return jax.nn.dot_product_attention(q, k, v, **documents, scale=scale, is_causal=True, implementation="cudnn")


def _cudnn_with_bias(q, k, v, *, q_segments_BT, kv_segments_BS, scale, **rest) -> jax.Array:
    del rest
    same = q_segments_BT[:, None, :, None] == kv_segments_BS[:, None, None, :]
    return _cudnn(q, k, v, {"bias": jnp.where(same, 0.0, -1e9).astype(q.dtype)}, scale)


def _cudnn_with_mask(q, k, v, *, q_segments_BT, kv_segments_BS, scale, **rest) -> jax.Array:
    del rest
    same = q_segments_BT[:, None, :, None] == kv_segments_BS[:, None, None, :]
    return _cudnn(q, k, v, {"mask": same}, scale)

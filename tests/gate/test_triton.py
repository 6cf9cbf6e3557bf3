"""The Triton kernels: right in Triton's interpreter, compiled for GPUs, and left alone if wrong."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from circuits.gate.density import record_open_edges
from circuits.gate.fused import choose_path, fused_attention, triton_attention
from circuits.gate.fused.blockwise import BlockwiseAttention
from circuits.gate.fused.triton_attention import check_triton, kernel_options, triton_refuses
from circuits.gate.gate import add_gate
from tests.helpers import make_tiny_model

ROOT = Path(__file__).resolve().parents[2]
CUDA = torch.device("cuda")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION is unset"),
]
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)


@pytest.fixture(scope="module")
def kernels() -> Iterator[ModuleType]:
    """The kernels as users import them: the check of annotations that tests run under wraps every
    function of the package, and Triton compiles functions as they stand."""
    name = "circuits.gate.fused.kernels"
    spec = importlib.util.spec_from_file_location(name, ROOT / "circuits/gate/fused/kernels.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, name, module)
        yield module


@pytest.fixture(scope="module")
def interpreted() -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.gate.interpreted_kernels"],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_triton
def test_sampled_gates_and_their_gradients_are_those_of_the_formula(
    interpreted: dict[str, Any],
) -> None:
    errors = dict(interpreted["sampled"])
    assert errors.pop("open") == 0
    assert errors.pop("expected") < 1e-3  # of about a thousand edges
    assert max(errors.values()) < 1e-5


@needs_triton
def test_the_kernels_pass_their_own_check(interpreted: dict[str, Any]) -> None:
    assert set(interpreted["checks"].values()) == {None}


@needs_triton
def test_the_kernels_draw_uniform_numbers_that_their_blocks_do_not_change(
    interpreted: dict[str, Any],
) -> None:
    noise = interpreted["noise"]
    assert noise["same in other blocks"]
    assert 0 < noise["least"] < 0.002
    assert 0.998 < noise["greatest"] < 1
    assert noise["mean"] == pytest.approx(0.5, abs=5 * (1 / 12 / 2 / 70**2) ** 0.5)
    assert noise["equal neighbours"] < 0.001


@needs_triton
@pytest.mark.parametrize(
    ("capability", "d_head", "dtype"), [(80, 128, torch.bfloat16), (90, 64, torch.float32)]
)
def test_the_kernels_compile_for_gpus_and_fit_into_their_shared_memory(
    kernels: ModuleType, capability: int, d_head: int, dtype: torch.dtype
) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    options = kernel_options(torch.empty(1, 1, d_head, dtype=dtype))
    launch = {"num_stages": options.pop("num_stages"), "num_warps": 4}
    options |= {"SAMPLE": True, "FROZEN": False}
    own = {torch.bfloat16: "*bf16", torch.float32: "*fp32"}[dtype]
    kinds = dict.fromkeys(("LOG_SUMS", "ROW_SUMS", "EXPECTED", "EXPECTED_GRAD", "OPEN"), "*fp32")
    kinds |= {"seed": "i32", "n_pos": "i32", "scale": "fp32", "bias": "fp32"}
    for kernel in (kernels.forward_kernel, kernels.queries_kernel, kernels.keys_kernel):
        names = kernel.arg_names
        source = ASTSource(
            fn=kernel,
            signature={n: "constexpr" if n in options else kinds.get(n, own) for n in names},
            constexprs={name: options[name] for name in names if name in options},
        )
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch)
        assert compiled.metadata.shared < 99 * 1024


def test_what_the_kernels_do_not_take_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_attention, "check_triton", lambda *_: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    assert triton_refuses(CUDA, (2**15, 256), torch.bfloat16) is None
    assert "40000 tokens are more" in str(triton_refuses(CUDA, (40000, 64), torch.bfloat16))
    assert "heads of 200 numbers" in str(triton_refuses(CUDA, (64, 200), torch.float32))
    assert "torch.float64" in str(triton_refuses(CUDA, (64, 64), torch.float64))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert triton_refuses(CUDA, (64, 64), torch.float32) == "Triton is not installed"


@pytest.fixture
def kernels_as(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts something else in the place of the kernels, and forgets earlier checks."""

    def put(kind: Any) -> str | None:
        monkeypatch.setattr(triton_attention, "TritonAttention", kind)
        check_triton.cache_clear()
        return check_triton(torch.device("cpu"), 16, torch.float32)

    yield put
    check_triton.cache_clear()


def test_wrong_kernels_are_noticed(kernels_as: Any) -> None:
    class Wrong(BlockwiseAttention):
        @staticmethod
        def forward(*given: Any) -> Any:
            z, expected, n_open = BlockwiseAttention.forward(*given)
            return 1.01 * z, expected, n_open

    assert kernels_as(BlockwiseAttention) is None
    assert "kernels are wrong here: z differs by 1.0e-02" in kernels_as(Wrong)


def test_kernels_that_do_not_run_are_noticed(kernels_as: Any) -> None:
    class Broken:
        @staticmethod
        def apply(*_: Any) -> Any:
            raise RuntimeError("no kernel image is available")

    state = torch.get_rng_state()
    told = kernels_as(Broken)
    assert told == "its kernels do not run here: RuntimeError: no kernel image is available"
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.gpu
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_gpu_runs_the_kernels_to_the_numbers_of_the_hook_points(precision: str) -> None:
    model = add_gate(make_tiny_model(n_ctx=512, d_model=128, d_head=64)).to("cuda")
    assert choose_path(model, "auto", 512) == "triton"
    tokens = torch.randint(2, 30, (3, 500), device="cuda")
    found = []
    for path in ("hooks", "triton"):
        model.zero_grad()
        half = precision == "bfloat16"
        with (
            torch.autocast("cuda", torch.bfloat16, enabled=half),
            fused_attention(model, path),
            record_open_edges(model) as edges,
        ):
            logits = model(tokens)
        (logits.float().square().mean() + edges.expected.mean() * 1e-5).backward()
        found.append([logits.detach().float(), *(p.grad for p in model.parameters())])
    tolerance = {"float32": 1e-3, "bfloat16": 5e-2}[precision]
    for one, other in zip(*found, strict=True):
        assert (one - other).norm() <= tolerance * other.norm() + 1e-6

"""secateur.load of compressed weights: a normal model that computes what the dense one computes."""

from __future__ import annotations

import copy
import hashlib
import json
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import secateur
from secateur.data.cache import cache_folder
from secateur.errors import InputError
from secateur.runtime import choose, loading, measured_before, pages
from secateur.runtime.choose import Choice
from secateur.runtime.folder import Reader
from secateur.runtime.format import Packed, pack
from secateur.runtime.kernels import jit
from secateur.runtime.linear import PackedLinear, count_parameters, resident_weights
from secateur.runtime.matrix import Matrix
from tests.runtime.pruned import prune_copy
from tests.small import save_tiny

pytest.importorskip("llvmlite", reason="kernels need llvmlite (the extra `fast`)")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one test has measured is nothing to the next."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module", params=["stories260K", "shakespeare-gpt2-357K"])
def real(request: pytest.FixtureRequest, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A real model at 50 % and its compressed form."""
    folder = tmp_path_factory.mktemp("real")
    dense = prune_copy(shared / "models" / request.param, folder / "half")
    secateur.compress(dense, folder / "small", quiet=True)
    return dense, folder / "small"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tiny")
    dense = prune_copy(save_tiny(folder / "tiny", attention_bias=True), folder / "half")
    secateur.compress(dense, folder / "small", quiet=True)
    return dense, folder / "small"


def needs_slots() -> None:
    if "avx2" not in jit.variants() or not jit.shares_threads():
        pytest.skip("slots need AVX2 and an OpenMP library that can be shared")


def sparse() -> Packed:
    return pack((torch.rand(16, 64, generator=torch.Generator().manual_seed(0)) < 0.3).bfloat16())


def packed(model: nn.Module) -> list[PackedLinear]:
    return [module for module in model.modules() if isinstance(module, PackedLinear)]


def packed_modules(model: nn.Module) -> int:
    return len(packed(model))


def test_greedy_tokens_are_those_of_the_dense_model(real: tuple[Path, Path]) -> None:
    dense, small = (secateur.load(real[0]), secateur.load(real[1], runtime="compressed"))
    assert packed_modules(small) >= 12
    generator = torch.Generator().manual_seed(1)
    for batch, prompt in ((1, 6), (3, 4), (12, 5)):
        ids = torch.randint(3, 60, (batch, prompt), generator=generator)
        with torch.inference_mode():
            torch.testing.assert_close(small(ids).logits, dense(ids).logits, rtol=1e-4, atol=1e-4)
            settings = {"max_new_tokens": 40, "do_sample": False, "pad_token_id": 0}
            assert small.generate(ids, **settings).equal(dense.generate(ids, **settings))


def test_bf16_logits_are_within_rounding(real: tuple[Path, Path]) -> None:
    dense, small = (
        secateur.load(p, dtype="bfloat16", runtime=r) for p, r in zip(real, ("auto", "compressed"), strict=True)
    )
    exact = secateur.load(real[0])
    ids = torch.randint(3, 60, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = exact(ids).logits
        off, usual = ((model(ids).logits - expected).norm() / expected.norm() for model in (small, dense))
    assert off <= 1.5 * usual + 1e-3


def test_biases_uneven_batches_and_padding(tiny: tuple[Path, Path]) -> None:
    dense, small = secateur.load(tiny[0]), secateur.load(tiny[1], runtime="compressed")
    ids = torch.randint(3, 250, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    with torch.inference_mode():
        expected = dense(ids, attention_mask=mask).logits
        torch.testing.assert_close(small(ids, attention_mask=mask).logits, expected, rtol=1e-4, atol=1e-4)


def test_a_head_of_its_own_is_kept_though_the_configuration_ties_it(tmp_path: Path) -> None:
    dense = prune_copy(save_tiny(tmp_path / "tiny", tie_word_embeddings=False), tmp_path / "half")
    config = json.loads((dense / "config.json").read_text()) | {"tie_word_embeddings": True}
    (dense / "config.json").write_text(json.dumps(config))
    secateur.compress(dense, tmp_path / "small", quiet=True)
    ids = torch.arange(1, 9)[None]
    wanted = secateur.load(dense)(ids).logits
    for runtime in ("dense", "compressed"):
        assert torch.allclose(secateur.load(tmp_path / "small", runtime=runtime)(ids).logits, wanted, atol=1e-5)


def test_it_runs_under_torch_compile(tiny: tuple[Path, Path]) -> None:
    small = secateur.load(tiny[1], runtime="compressed")
    linear = small.model.layers[0].mlp.gate_proj
    x = torch.randn(1, 16)
    with torch.inference_mode():
        expected = linear(x)
        compiled = torch.compile(lambda x: torch.relu(linear(x) * 2), fullgraph=True, backend="inductor")
        torch.testing.assert_close(compiled(x), torch.relu(expected * 2))
    torch.library.opcheck(torch.ops.secateur.packed_linear.default, (x, linear.number, 24))


def test_gradients_pass_through(tiny: tuple[Path, Path]) -> None:
    dense, small = secateur.load(tiny[0]), secateur.load(tiny[1], runtime="compressed")
    found = []
    for model in (dense, small):
        x = torch.ones(2, 16, requires_grad=True)
        model.model.layers[0].mlp(x).sum().backward()
        found.append(x.grad)
    torch.testing.assert_close(found[1], found[0])


def test_saved_again_it_is_the_dense_checkpoint(tiny: tuple[Path, Path], tmp_path: Path) -> None:
    small = secateur.load(tiny[1], runtime="compressed")
    small.save_pretrained(tmp_path / "again")
    again, dense = secateur.load(tmp_path / "again"), secateur.load(tiny[0])
    for name, tensor in dense.state_dict().items():
        assert again.state_dict()[name].equal(tensor), name


def test_a_copy_and_another_dtype(tiny: tuple[Path, Path]) -> None:
    small = secateur.load(tiny[1], runtime="compressed")
    ids = torch.randint(3, 250, (1, 5))
    with torch.inference_mode():
        expected = small(ids).logits
        other = copy.deepcopy(small)
        assert other(ids).logits.equal(expected)
        torch.testing.assert_close(other.to(torch.bfloat16)(ids).logits.float(), expected, rtol=0.1, atol=0.5)


def test_it_says_how_many_parameters_it_has_and_what_they_take(real: tuple[Path, Path]) -> None:
    dense, small = secateur.load(real[0]), secateur.load(real[1], runtime="compressed")
    assert count_parameters(small) == count_parameters(dense)
    assert resident_weights(small) < resident_weights(dense)
    figures = (
        secateur.evaluate(real[1], "stdlib:prose", speed=False, quiet=True) if "stories" in str(real[0]) else None
    )
    if figures is not None:
        assert figures["parameters"] == count_parameters(dense)[0]
        assert figures["bytes_on_disk"] < (real[0] / "model.safetensors").stat().st_size


def test_int8_runs_as_what_it_stands_for(tiny: tuple[Path, Path], tmp_path: Path) -> None:
    secateur.compress(tiny[0], tmp_path / "int8", values="int8", quiet=True)
    secateur.decompress(tmp_path / "int8", tmp_path / "back", quiet=True)
    ids = torch.randint(3, 250, (1, 7))
    with torch.inference_mode():
        found = secateur.load(tmp_path / "int8", runtime="compressed")(ids).logits
        torch.testing.assert_close(found, secateur.load(tmp_path / "back")(ids).logits, rtol=1e-3, atol=1e-3)


def test_what_an_earlier_process_has_measured_is_not_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    needs_slots()
    asked: list[torch.dtype] = []

    def measured(packed: Packed, dtype: torch.dtype, slots: bool, anyway: bool) -> Choice:
        asked.append(dtype)
        return Choice(True, 8, True, None, 0.25, 0.5)

    def chosen(dtype: torch.dtype = torch.float32) -> Choice:
        choose.forget()  # as a new process knows nothing
        return choose.choose(sparse(), dtype)

    monkeypatch.setattr(choose, "measure", measured)
    monkeypatch.setattr(measured_before, "_busy", lambda: True)
    assert [chosen(), chosen()] == [Choice(True, 8, True, None, 0.25, 0.5)] * 2
    assert len(asked) == 2  # on a busy machine nothing is kept
    monkeypatch.setattr(measured_before, "_busy", lambda: False)
    assert chosen() == chosen() == Choice(True, 8, True, None, 0.25, 0.5)
    assert len(asked) == 3
    assert chosen(torch.bfloat16) == chosen(torch.bfloat16)
    assert asked[3:] == [torch.bfloat16]
    wild = json.dumps(asdict(Choice(True, 8, True, "another's", 0.25, 0.5)))
    for bad in (b"not it", b'[["", "{}"]]', b"[]", json.dumps([["", wild]]).encode()):
        for file in cache_folder(measured_before.FOLDER).iterdir():
            file.write_bytes(hashlib.sha256(bad).hexdigest().encode() + b"\n" + bad)
        before = len(asked)
        assert chosen().limit == 8
        assert len(asked) == before + 1
    choose.forget()


def test_each_shape_is_measured_once_and_runs_as_it_is_faster(
    tiny: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def measured(packed: Packed, dtype: torch.dtype, slots: bool, anyway: bool) -> Choice:
        shape = (packed.rows, packed.columns)
        asked.append(shape)
        return Choice(shape != (24, 16), 4, True, None, 1.0, 2.0)

    monkeypatch.setattr(choose, "measure", measured)
    choose.forget()
    try:
        model = secateur.load(tiny[1])
        assert sorted(asked) == sorted(set(asked))
        secateur.load(tiny[1])
        assert sorted(asked) == sorted(set(asked))
    finally:
        choose.forget()
    assert packed_modules(model) == 10  # of 14: gate and up of two layers are dense
    assert type(model.model.layers[0].mlp.gate_proj) is nn.Linear
    matrix = model.model.layers[0].mlp.down_proj.matrix
    assert (matrix.limit, matrix.wide) == (4, True)
    runs = {(row["rows"], row["columns"]): (row["runs"], row["count"]) for row in model.secateur_runtime["shapes"]}
    assert runs[24, 16] == ("dense", 4)
    assert runs[16, 24] == ("compressed", 2)
    ids = torch.randint(3, 250, (1, 7))
    with torch.inference_mode():
        torch.testing.assert_close(model(ids).logits, secateur.load(tiny[0])(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("one_row", "four_rows", "tiles_of_32_and_128", "expected"), [
    ((1.0, 2.0), 1.0, (12.0, 24.0), (True, 64)),  # unpacking takes 8, a row 1/8 then; 1/4 by the kernel
    ((1.0, 2.0), 0.4, (12.0, 24.0), (True, 4096)),  # the kernel's rows are cheaper too
    ((1.0, 2.0), 1.0, (3.2, 12.8), (True, 1)),  # unpacking takes nothing, and rows are cheaper
    ((2.0, 1.0), 1.0, (12.0, 24.0), (False, 0)),
])  # fmt: skip
def test_what_follows_from_a_measurement(
    tiny: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    one_row: tuple[float, float],
    four_rows: float,
    tiles_of_32_and_128: tuple[float, float],
    expected: tuple[bool, int],
) -> None:
    monkeypatch.setattr("secateur.runtime.race.FLUSH_BYTES", 1 << 16)
    matrix = Reader(tiny[1]).packed("model.layers.0.mlp.up_proj.weight")
    for dtype, wide in ((torch.float32, True), (torch.bfloat16, True), (torch.bfloat16, False)):
        in_float32 = [] if dtype == torch.float32 else [[1.0, 2.0] if wide else [2.0, 1.0]]
        answers = iter([[*one_row], *in_float32, [four_rows, *tiles_of_32_and_128]])
        monkeypatch.setattr(choose, "race", lambda *works, answers=answers: next(answers))
        found = choose.measure(matrix, dtype)
        assert (found.packed, found.limit) == expected
        assert found.wide == (wide and found.packed)


def test_the_measurement_itself(tiny: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.runtime.race.FLUSH_BYTES", 1 << 16)
    matrix = Reader(tiny[1]).packed("model.layers.0.mlp.up_proj.weight")
    for dtype in (torch.float32, torch.bfloat16):
        found = choose.measure(matrix, dtype)
        assert found.seconds_packed is not None
        assert found.seconds_packed > 0
        assert found.limit >= (1 if found.packed else 0)


@pytest.mark.parametrize(("one_row", "expected"), [
    ((2.0, 1.0, 3.0), (True, "slots", 1.0)),
    ((1.05, 1.0, 3.0), (True, None, 1.05)),  # too little for what they take
    ((2.0, 1.0, 0.5), (False, None, 1.0)),
    ((1.05, 1.0, 1.0), (True, "slots", 1.0)),  # the others would lose to the dense form
    ((2.0, 1.0), (True, "slots", 1.0)),  # packed anyway
])  # fmt: skip
def test_slots_are_taken_where_they_are_clearly_faster(
    monkeypatch: pytest.MonkeyPatch, one_row: tuple[float, ...], expected: tuple[bool, str | None, float]
) -> None:
    needs_slots()
    monkeypatch.setattr("secateur.runtime.race.FLUSH_BYTES", 1 << 16)
    answers, raced, times = iter([[*one_row], [1.0, 2.0], [1.0, 12.0, 24.0]]), [], Matrix.times

    def race(runs: int, *works: Callable[[], Tensor]) -> list[float]:
        for work in works:
            work()
        return next(answers)

    monkeypatch.setattr(choose, "race", race)
    monkeypatch.setattr(Matrix, "times", lambda matrix, x: raced.append(matrix.variant) or times(matrix, x))
    found = choose.measure(sparse(), torch.bfloat16, other="slots", anyway=len(one_row) == 2)
    assert (found.packed, found.variant, found.seconds_packed) == expected
    assert raced[:2] == [jit.variants()[0], "slots"]
    assert raced[2:] == [found.variant or jit.variants()[0]] * (1 if found.packed else 0)
    monkeypatch.undo()
    monkeypatch.setattr("secateur.runtime.race.FLUSH_BYTES", 1 << 16)
    assert choose.measure(sparse(), torch.bfloat16, other="slots").limit >= 0  # in earnest


def test_a_matrix_that_slots_cannot_take_is_not_put_there_from_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times an infinite weight, the zero of an empty slot would be NaN."""
    needs_slots()
    monkeypatch.setattr(choose, "measure", lambda p, d, other, a: Choice(True, 8, True, other))
    choose.forget()
    try:
        fine = sparse()
        values = fine.values.clone()
        values[3] = float("inf")
        assert choose.choose(fine, torch.bfloat16).variant == "slots"
        assert choose.choose(replace(fine, values=values), torch.bfloat16).variant is None
        assert choose.choose(fine, torch.float32).variant is None
    finally:
        choose.forget()


def test_slots_in_a_real_model(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fits runs in slots if they're faster."""
    needs_slots()
    dense = prune_copy(shared / "models" / "stories260K", tmp_path / "dense", 0.7)
    secateur.load(dense, dtype="bfloat16").save_pretrained(tmp_path / "half")
    secateur.compress(tmp_path / "half", tmp_path / "small", quiet=True)

    def measured(packed: Packed, dtype: torch.dtype, slots: bool, anyway: bool) -> Choice:
        return Choice(True, 8, True, "slots" if slots else None)

    monkeypatch.setattr(choose, "measure", measured)
    choose.forget()
    try:
        small = secateur.load(tmp_path / "small", dtype="bfloat16")
        assert {p.matrix.variant for p in packed(small) if p.in_features == p.out_features} == {"slots"}
        assert {"slots", jit.variants()[0]} == {row["kernel"] for row in small.secateur_runtime["shapes"]}
        in_float32 = secateur.load(tmp_path / "small")
        assert "slots" not in {p.matrix.variant for p in packed(in_float32)}
    finally:
        choose.forget()
    exact, usual = (secateur.load(tmp_path / "half", dtype=dtype) for dtype in ("float32", "bfloat16"))
    ids = torch.randint(3, 60, (2, 3), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = exact(ids).logits
        off, normal = ((model(ids).logits - expected).norm() / expected.norm() for model in (small, usual))
        assert off <= 1.5 * normal + 1e-3
        settings = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0}
        assert small.generate(ids[:1], **settings).shape == (1, 23)
        torch.testing.assert_close(small.float()(ids).logits, expected, rtol=1e-4, atol=1e-4)
    small.save_pretrained(tmp_path / "again")
    again = secateur.load(tmp_path / "again", dtype="bfloat16").state_dict()
    assert all(tensor.equal(again[name]) for name, tensor in usual.state_dict().items())


def test_what_stays_dense_lies_in_huge_pages_too(tiny: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux gives huge pages on request")
    monkeypatch.setattr(pages, "HUGE", 1 << 13)  # so small a model fills none of the real size
    model = secateur.load(tiny[1])
    large = [parameter for parameter in model.parameters() if parameter.nbytes >= 1 << 13]
    assert large
    assert all(parameter.data_ptr() % (1 << 13) == 0 for parameter in large)


def test_without_llvmlite_it_says_so_once_and_is_dense(
    tiny: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "variants", lambda: ())
    with pytest.warns(UserWarning, match=r'pip install .*\[fast\]"'):
        model = secateur.load(tiny[1])
    assert packed_modules(model) == 0
    monkeypatch.setattr("secateur.runtime.matrix.variants", lambda: ())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asked_for = secateur.load(tiny[1], runtime="compressed")  # slower than dense, but as small
    assert packed_modules(asked_for) == 14
    ids = torch.randint(3, 250, (2, 7))
    with torch.inference_mode():
        torch.testing.assert_close(asked_for(ids).logits, model(ids).logits)


def test_llvmlite_itself_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "llvmlite.binding", None)
    jit.llvm.cache_clear()
    jit.variants.cache_clear()
    try:
        assert jit.variants() == ()
    finally:
        jit.llvm.cache_clear()
        jit.variants.cache_clear()


def test_what_cannot_be_is_refused(tiny: tuple[Path, Path]) -> None:
    with pytest.raises(InputError, match="auto, compressed, dense or gpu"):
        secateur.load(tiny[1], runtime="fast")
    with pytest.raises(InputError, match="aren't compressed"):
        secateur.load(tiny[0], runtime="compressed")
    with pytest.raises(InputError, match="run on a CPU"):
        loading.check_runtime("compressed", torch.device("cuda"))
    assert loading.check_runtime("auto", torch.device("cuda")) == "dense"
    model = secateur.load(tiny[1], runtime="compressed")
    with pytest.raises(InputError, match="runtime='dense'"):
        model.model.layers[0].mlp.up_proj(torch.zeros(1, 16, device="meta"))

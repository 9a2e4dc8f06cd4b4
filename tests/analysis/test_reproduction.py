"""Two trainings are compared bit for bit, and by the conditions that decide the bits."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fashion.analysis.reproduction import Change, Reproduction, Result, note, render
from fashion.settings.tags import CODE_TAG

ONE = torch.tensor([1.0, 2.0])
CONDITIONS = {"cpu_capability": "AVX2", "threads": "2"}
METRICS = {"val_accuracy": 0.9, "test_accuracy": 0.875}


def reproduction(
    then: dict[str, Tensor], now: dict[str, Tensor], **conditions: str
) -> Reproduction:
    results = Result(then, METRICS, CONDITIONS), Result(now, METRICS, CONDITIONS | conditions)
    return Reproduction("cnn version 3", "0123456789" * 4, *results)


@pytest.mark.parametrize(
    "tensor",
    [
        ONE,
        torch.tensor(math.nan),
        torch.tensor(7),
        torch.tensor([True, False]),
        torch.ones(2, 3, dtype=torch.bfloat16).T,
        torch.empty(0),
    ],
    ids=lambda tensor: f"{tensor.dtype} {list(tensor.shape)}",
)
def test_equal_bits_are_reproduced(tensor: Tensor) -> None:
    found = reproduction({"a": tensor}, {"a": tensor.clone()})
    assert found.is_reproduced
    assert found.then.digest == found.now.digest
    assert found.metrics == {"tensors": 1, "differing_tensors": 0, "max_weight_difference": 0}
    for text in (render(found), note(found)):
        assert f"reproduced bit for bit: 1 tensors, SHA-256 {found.then.digest[:12]}" in text
        assert "differ" not in text


@pytest.mark.parametrize(
    ("other", "differing", "largest"),
    [
        ({"a": torch.tensor([1.0, 2.5])}, 1, 0.5),
        ({"a": -ONE}, 2, 4),
        ({"a": torch.tensor([1.0, math.nan])}, 1, math.inf),
        ({"a": torch.tensor([[1.0, 2.0]])}, 2, math.inf),
        ({"a": ONE.double()}, 2, math.inf),
        ({}, 2, math.inf),
    ],
)
def test_a_tensor_that_differs_is_named(
    other: dict[str, Tensor], differing: int, largest: float
) -> None:
    same = {"b": torch.zeros(3)}
    for found in (
        reproduction(same | {"a": ONE}, same | other),
        reproduction(same | other, same | {"a": ONE}),
    ):
        assert found.changes == [Change("a", 2, differing, largest)]
        assert not found.is_reproduced
        assert found.then.digest != found.now.digest
        assert found.metrics["differing_tensors"] == 1
        assert found.metrics["max_weight_difference"] == largest
        assert "not reproduced: 1 of" in render(found)


def test_the_sign_of_zero_is_a_bit() -> None:
    found = reproduction({"a": torch.tensor([0.0])}, {"a": torch.tensor([-0.0])})
    assert found.changes == [Change("a", 1, 1, 0)]


def test_conditions_that_differ_are_shown_with_both_values() -> None:
    found = reproduction({"a": ONE}, {"a": -ONE}, cpu_capability="AVX512", code_digest="1f")
    assert found.conditions == [("cpu_capability", "AVX2", "AVX512")]
    for text in (render(found), note(found)):
        assert "cpu_capability" in text
        assert "AVX2" in text
        assert "AVX512" in text
        assert "Nothing recorded differs" not in text
        assert " ".join(text.split()).count("Not recorded with one of them: code_digest.") == 1


def test_a_run_of_changed_files_is_told_from_its_commit() -> None:
    code = {CODE_TAG: "1f"}
    then, now = Result({"a": ONE}, {}, code), Result({"a": -ONE}, {}, code)
    changed = replace(now, conditions={CODE_TAG: "2e"})
    said = "files had been changed"
    assert said in render(Reproduction("cnn", "0" * 40, then, changed))
    assert said not in render(Reproduction("cnn", "0" * 40, then, now))


def test_if_no_condition_differs_it_is_said_which_are_equal() -> None:
    text = " ".join(render(reproduction({"a": ONE}, {"a": -ONE})).split())
    assert "Nothing recorded differs: cpu_capability, threads." in text


def test_it_fits_into_80_columns() -> None:
    names = {f"features.{'0' * 90}.weight": ONE, "[red]\n": ONE}
    found = reproduction(names, dict.fromkeys(names, -ONE), threads="64" * 40)
    lines = render(found).splitlines()
    assert max(map(len, lines)) <= 80
    assert any("[red]\\n" in line for line in lines)
    assert any("87.50%" in line for line in lines)

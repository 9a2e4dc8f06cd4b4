"""Stored models are read without running what they bring along, or writing to the store."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import mlflow
import pytest
import torch
import yaml
from click.testing import CliRunner
from mlflow.models import infer_signature

from fashion.errors import RegistryError
from fashion.settings.task import CHAMPION_URI, FASHION_MNIST, Task
from fashion.tracking import archive, faces, models
from tests.conftest import assert_one_line

EVIL = "import os; os.mkdir(os.environ['EVIL']); from pickle import *"


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that exists once planted code has run, and the module that makes it beside it."""
    (tmp_path / "evil_module.py").write_text(EVIL)
    monkeypatch.setenv("EVIL", str(tmp_path / "evil"))
    return tmp_path / "evil"


def log_linear(**options: object) -> Path:
    """Log a model; return the folder of its files."""
    images = torch.rand(2, *FASHION_MNIST.shape)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10)).eval()
    options = {"serialization_format": "pt2", "pip_requirements": ["torch"]} | options
    if options["serialization_format"] == "pt2":
        logits = model(images).detach().numpy()
        options |= {
            "signature": infer_signature(images.numpy(), logits),
            "input_example": images.numpy(),
        }
    with mlflow.start_run():
        logged = mlflow.pytorch.log_model(model, name="model", **options)
    return Path(mlflow.get_logged_model(logged.model_id).artifact_location.removeprefix("file://"))


def change(folder: Path, flavor: str, **settings: object) -> None:
    """Change what the model's description says about a flavour."""
    described = yaml.safe_load((folder / "MLmodel").read_text())
    described["flavors"].setdefault(flavor, {}).update(settings)
    (folder / "MLmodel").write_text(yaml.safe_dump(described))


@pytest.mark.parametrize("format_", ["pickle", "pt2"])
@pytest.mark.usefixtures("store")
def test_code_that_a_model_brings_along_is_not_run(
    evil: Path, tmp_path: Path, format_: str
) -> None:
    code = [str(tmp_path / "evil_module.py")]
    folder = log_linear(serialization_format=format_, code_paths=code)
    (folder / "data" / "pickle_module_info.txt").write_text("evil_module")
    for command in ("predict", "explore", "export", "evaluate"):
        arguments = ["--model-uri", str(folder)]
        arguments += ["--indices", "0"] if command == "predict" else []
        entry_point = getattr(import_module(f"entrypoints.{command}"), command)
        message = assert_one_line(CliRunner().invoke(entry_point, arguments))
        assert "needs code from outside this project" in message
    assert not evil.exists()


@pytest.mark.usefixtures("store")
def test_a_pickling_module_on_the_path_is_not_imported(
    evil: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = log_linear(serialization_format="pickle")
    (folder / "data" / "pickle_module_info.txt").write_text("evil_module")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(RegistryError, match="unpickling can run any code"):
        models.load(str(folder))
    assert not evil.exists()


@pytest.mark.parametrize(
    ("flavor", "settings", "said"),
    [
        ("python_function", {"loader_module": "evil_module"}, "code from outside"),
        ("python_function", {"code": "code"}, "code from outside"),
        ("sklearn", {"pickled_model": "model.pkl"}, "code from outside"),
        ("pytorch", {"model_data": "../elsewhere"}, "is missing"),
        ("pytorch", {"model_data": "code"}, "is missing"),
    ],
)
@pytest.mark.usefixtures("store")
def test_a_model_that_is_more_than_a_program_is_refused(
    flavor: str, settings: dict[str, str], said: str
) -> None:
    folder = log_linear()
    models.load(str(folder))
    change(folder, flavor, **settings)
    with pytest.raises(RegistryError, match=said):
        models.load(str(folder))


@pytest.mark.parametrize("temperature", ["hot", 0, float("nan"), [1]])
@pytest.mark.usefixtures("store")
def test_logits_are_divided_by_nothing_but_a_temperature(temperature: object) -> None:
    folder = log_linear(metadata={"temperature": temperature})
    with pytest.raises(RegistryError, match="is not positive"):
        models.load_calibrated(str(folder))


def describe(folder: Path, **changes: object) -> None:
    """Change the metadata of a model."""
    described = yaml.safe_load((folder / "MLmodel").read_text())
    described["metadata"] = {**(described.get("metadata") or {}), **changes}
    (folder / "MLmodel").write_text(yaml.safe_dump(described))


TOYS = {
    "name": "toys",
    "title": "Toys",
    "classes": ["ant", "bee"],
    "shape": [3, 20, 30],
    "extract": False,
    "mean": [0.5, 0.25, 1],
    "std": [],
}


@pytest.mark.usefixtures("store")
def test_the_task_of_a_model_is_in_its_metadata() -> None:
    folder = log_linear()
    assert archive.task_of(str(folder)) == FASHION_MNIST  # as of models logged before
    describe(folder, **TOYS)
    task = Task("toys", "Toys", ("ant", "bee"), (3, 20, 30), mean=(0.5, 0.25, 1))
    assert archive.task_of(str(folder)) == models.load_calibrated(str(folder)).task == task


NO_TASKS = [
    ("name", ""),
    ("title", None),
    ("title", ["Toys"]),
    ("classes", ["ant"]),
    ("classes", ["ant", "ant"]),
    ("classes", ["ant", 3]),
    ("classes", "ants"),
    ("shape", [20, 30]),
    ("shape", [3, 20, True]),
    ("shape", [2, 20, 20]),
    ("shape", [3, 0, 20]),
    ("shape", [3, 100_000, 100_000]),
    ("shape", "1x28x28"),
    ("extract", 1),
    ("mean", ["a"]),
    ("std", [float("nan")]),
    ("std", 1),
]


@pytest.mark.usefixtures("store")
def test_a_task_that_is_none_is_refused_in_one_line(subtests: pytest.Subtests) -> None:
    folder = log_linear()
    for name, value in NO_TASKS:
        describe(folder, **TOYS | {name: value})
        with subtests.test(name, value=value):
            for read in (archive.task_of, models.load):
                with pytest.raises(RegistryError) as refused:
                    read(str(folder))
                assert f"its metadata has no valid {name} of a task" in str(refused.value)
                assert len(str(refused.value).splitlines()) == 1


@pytest.mark.usefixtures("store")
def test_foregrounds_are_cut_out_for_one_size_only() -> None:
    folder = log_linear()
    describe(folder, **TOYS | {"extract": True})
    with pytest.raises(RegistryError, match="for images of 1x28x28 only"):
        models.load(str(folder))


def planted(folder: Path) -> Path:
    """Return the folder of the code in a logged model, one with this project's face."""
    (package,) = (folder / "code").iterdir()
    return package


@pytest.mark.parametrize(
    "change_it",
    [
        lambda code: (code / "served.py").write_text((code / "served.py").read_text() + "\n"),
        lambda code: (code / "pillow.py").write_text("import os"),
        lambda code: (code.parent / "torch.py").write_text("import os"),
        lambda code: (code / "__pycache__").unlink(),
        lambda code: ((code / "__pycache__").unlink(), (code / "__pycache__").mkdir()),
        lambda code: code.rename(code.with_name("fashion_served_0")),
    ],
    ids=["edited", "added", "shadows torch", "no guard", "bytecode", "renamed"],
)
def test_only_this_projects_own_code_may_travel_with_a_model(
    store: Path, train_small: Callable[..., str], change_it: Callable[[Path], object]
) -> None:
    uri = models.model_uri(mlflow.get_run(train_small()))
    folder = Path(mlflow.get_logged_model(uri.removeprefix("models:/")).artifact_location)
    change_it(planted(folder))
    with pytest.raises(RegistryError, match="code from outside"):
        models.load(uri)


def test_python_leaves_nothing_beside_the_code_that_it_loads(
    store: Path, train_small: Callable[..., str]
) -> None:
    """Or a model that someone has used from a local store could not be registered any more."""
    uri = models.model_uri(mlflow.get_run(train_small()))
    mlflow.pyfunc.load_model(uri)
    assert models.load(uri)


def test_the_code_stored_with_models_stays_known_when_it_changes() -> None:
    """Or models that were logged before a change would be refused after it."""
    digest = faces.digest(faces.code())
    assert digest in faces.RELEASED, f"add {digest} to faces.RELEASED"


@pytest.mark.usefixtures("store")
def test_code_of_a_released_version_is_accepted(
    train_small: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = models.model_uri(mlflow.get_run(train_small()))
    released = faces.digest(faces.code())
    monkeypatch.setattr(faces, "code", lambda: {"served.py": b"a newer one"})
    monkeypatch.setattr(faces, "RELEASED", frozenset())
    with pytest.raises(RegistryError, match="code from outside"):
        models.load(uri)
    monkeypatch.setattr(faces, "RELEASED", frozenset({released}))
    assert models.load(uri)


def files_below(folder: Path) -> dict[str, int]:
    """Return the time of the last change of each file and folder, in ns."""
    return {str(path): path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}


def test_reading_a_registered_model_writes_nothing_into_the_store(
    store: Path, train_small: Callable[..., str]
) -> None:
    uri = models.model_uri(mlflow.get_run(train_small()))
    mlflow.register_model(uri, "mine")
    folder = store / "mlruns"
    before = files_below(folder)
    assert any(path.endswith("model.pt2") for path in before)
    models.load("models:/mine/1")
    models.rebuild("models:/mine/1")
    assert files_below(folder) == before


@pytest.mark.usefixtures("store")
def test_where_nothing_is_registered_the_message_says_how_to() -> None:
    with pytest.raises(RegistryError, match="register a model first"):
        models.load(CHAMPION_URI)
    with pytest.raises(RegistryError) as refused:
        models.load("models:/m-0123456789abcdef0123456789abcdef")
    assert "register" not in str(refused.value)

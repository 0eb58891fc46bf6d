"""Model environments with the real frameworks, and inspections of what these frameworks write."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING, Any

import pytest

from server.environments.build import Environments
from server.environments.plan import plan
from server.environments.trees import build_tree
from server.errors import StepFailedError
from server.settings import Settings
from tests.support.wheels import wheel_links

if TYPE_CHECKING:
    from pathlib import Path

    from server.environments.build import Environment

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

INSPECT = (
    "import sys; sys.path.insert(0, sys.argv[1]);"
    "from server.artifacts.child import main; sys.exit(main(sys.argv[2:]))"
)

MAKE_SKLEARN = """
    import sys, pickle, joblib
    from pathlib import Path
    from sklearn.datasets import load_iris
    from sklearn.ensemble import RandomForestClassifier
    folder = Path(sys.argv[1])
    values, labels = load_iris(return_X_y=True, as_frame=True)
    names = labels.map(str).to_numpy(dtype=object) if len(sys.argv) > 2 else labels
    model = RandomForestClassifier(5).fit(values.to_numpy(), names)
    for protocol in range(6):
        (folder / f"{protocol}.pickle").write_bytes(pickle.dumps(model, protocol))
        joblib.dump(model, folder / f"{protocol}.joblib", protocol=protocol)
    for way in ("zlib", "gzip", "bz2", "xz", "lzma"):
        joblib.dump(model, folder / f"{way}.joblib", compress=(way, 3))
"""

MAKE_TORCH = """
    import sys, torch
    from pathlib import Path
    folder = Path(sys.argv[1])
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(4, 2)
        def forward(self, x):
            return self.layer(x)
    net = Net().eval()
    torch.jit.script(net).save(folder / "script.pt")
    torch.jit.trace(net, torch.zeros(1, 4)).save(folder / "trace.pt")
    torch.save(net.state_dict(), folder / "weights.pt")
    torch.save({"epoch": 3, "model": net.state_dict()}, folder / "checkpoint.pt")
    torch.save(net, folder / "module.pt")
    old = {"_use_new_zipfile_serialization": False}
    torch.save(net.state_dict(), folder / "old-weights.pt", **old)
    torch.save(net, folder / "old-module.pt", **old)
    torch.export.save(torch.export.export(net, (torch.zeros(1, 4),)), folder / "exported.pt2")
"""


def quiet(_code: str, _params: dict[str, Any]) -> None:
    pass


class Built:
    """Environments that are built when they are first needed, all over one cache."""

    def __init__(self, folder: Path) -> None:
        links = tuple(part for part in wheel_links().split(",") if part)
        self.settings = Settings(wheel_links=links)
        self.root = folder / "environments"
        self.cache = folder / "cache"

    def environments(self, **settings: Any) -> Environments:
        links = {"wheel_links": self.settings.wheel_links, **settings}
        return Environments(Settings(**links), self.root, cache=self.cache)

    async def of(self, kind: str, requirements: str | None = None) -> Environment:
        environments = self.environments()
        lock = await environments.lock(plan(kind, "any", requirements, "cpu"))
        return await environments.build(lock, quiet)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return Built(tmp_path_factory.mktemp("built"))


def in_environment(environment: Environment, program: str, *arguments: str) -> str:
    # A file, since torch.jit.script reads the source of what it compiles.
    file = environment.root / "program.py"
    file.write_text(textwrap.dedent(program))
    command = [str(environment.python), "-I", "-W", "ignore", str(file)]
    ended = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


def inspected(artifact: Path, tmp_path: Path) -> dict[str, Any]:
    tree = build_tree(tmp_path / "trees", "inspect")
    folder = tmp_path / "out"
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-I", "-S", "-c", INSPECT, str(tree), str(artifact), str(folder)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    report: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return report


@pytest.mark.parametrize(
    ("kind", "module", "version"),
    [
        ("onnx", "onnxruntime", "1.32.0"),
        ("sklearn", "sklearn", "1.9.1"),
        ("torchscript", "torch", "2.13.0+cpu"),
    ],
)
async def test_each_kind_gets_an_environment_that_runs_it(
    built: Built, kind: str, module: str, version: str
) -> None:
    environment = await built.of(kind)
    program = f"import {module}, httptools, prometheus_client, orjson; print({module}.__version__)"
    assert in_environment(environment, program) == version
    assert not [name for name in environment.lock.packages if name.startswith("nvidia")]


async def test_an_older_release_that_the_upload_asks_for_is_installed(built: Built) -> None:
    environment = await built.of("sklearn", "scikit-learn==1.5.2\nnumpy==1.26.4\n")
    program = "import sklearn, numpy; print(sklearn.__version__, numpy.__version__)"
    assert in_environment(environment, program) == "1.5.2 1.26.4"


async def test_what_does_not_fit_together_is_named_with_the_resolvers_reason(built: Built) -> None:
    with pytest.raises(StepFailedError) as caught:
        await built.of("sklearn", "numpy<1.20")
    assert caught.value.code == "dependency_conflict"
    assert "numpy" in caught.value.evidence


async def test_packages_without_a_wheel_or_without_existence_are_named(built: Built) -> None:
    for requirement in ("docopt==0.6.2", "tabulate==99"):
        with pytest.raises(StepFailedError) as caught:
            await built.of("onnx", requirement)
        assert caught.value.code == "package_unavailable"
        assert caught.value.params["package"].startswith(requirement.partition("=")[0])


async def test_without_network_known_models_prepare_and_unknown_ones_say_what_is_missing(
    built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = await built.of("onnx")
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "")
    assert await built.of("onnx") == environment
    # The folder is gone, but every wheel is still in the cache.
    (environment.root / "COMPLETE").unlink()
    assert await built.of("onnx") == environment
    with pytest.raises(StepFailedError) as caught:
        await built.of("onnx", "tabulate==0.9.0")
    assert caught.value.code == "packages_offline"
    assert caught.value.params["packages"] == ["tabulate"]


async def test_everything_scikit_learn_is_saved_as_is_told(built: Built, tmp_path: Path) -> None:
    environment = await built.of("sklearn", "pandas")
    models = tmp_path / "models"
    models.mkdir()
    in_environment(environment, MAKE_SKLEARN, str(models))
    objects = tmp_path / "objects"
    objects.mkdir()
    in_environment(environment, MAKE_SKLEARN, str(objects), "text labels")
    for path in sorted([*models.iterdir(), *objects.iterdir()]):
        report = inspected(path, tmp_path)
        assert report["ok"], (path.name, report)
        assert (report["kind"], report["format"]) == ("sklearn", path.suffix[1:])
        assert report["top"] == "sklearn.ensemble._forest.RandomForestClassifier"
        assert report["made_with"] == {"scikit-learn": "1.9.1", "numpy": "2"}


async def test_everything_pytorch_saves_is_told_apart(built: Built, tmp_path: Path) -> None:
    environment = await built.of("torchscript")
    models = tmp_path / "models"
    models.mkdir()
    in_environment(environment, MAKE_TORCH, str(models))
    told = {path.name: inspected(path, tmp_path) for path in models.iterdir()}
    assert {name: report.get("code", report.get("kind")) for name, report in told.items()} == {
        "script.pt": "torchscript",
        "trace.pt": "torchscript",
        "weights.pt": "state_dict_not_torchscript",
        "checkpoint.pt": "state_dict_not_torchscript",
        "module.pt": "module_pickle_not_torchscript",
        "old-weights.pt": "state_dict_not_torchscript",
        "old-module.pt": "module_pickle_not_torchscript",
        "exported.pt2": "torch_export",
    }
    assert told["module.pt"]["params"] == {"name": "__main__.Net"}

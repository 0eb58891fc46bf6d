"""Plans and locks: what an environment holds, before anything is installed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from server.environments.failures import main_line, misfit, missing_packages, named_failure
from server.environments.lock import (
    LockCache,
    cpu_builds,
    lock_of,
    refuse_cuda_on_cpu,
    source_options,
)
from server.environments.plan import FURTHER, plan
from server.environments.pythons import own_python
from server.errors import StepFailedError
from server.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path


def wanted(kind: str, text: str | None = None, device: str = "cpu") -> tuple[str, ...]:
    return plan(kind, "any", text, device).requirements


def test_each_kind_has_pinned_defaults() -> None:
    assert wanted("onnx") == ("onnxruntime==1.32.0",)
    assert wanted("torchscript") == ("numpy", "torch==2.13.0")
    assert wanted("sklearn") == ("joblib>=1.6", "numpy", "scikit-learn==1.9.1", "scipy")
    assert plan("onnx", "onnx", None, "cpu").is_pinned


def test_the_uploads_own_version_replaces_the_default() -> None:
    assert wanted("sklearn", "scikit_learn==1.6.1\npandas>=2") == (
        "joblib>=1.6",
        "numpy",
        "pandas>=2",
        "scikit_learn==1.6.1",
        "scipy",
    )
    assert not plan("sklearn", "pickle", "pandas>=2", "cpu").is_pinned


def test_a_name_without_a_version_keeps_the_default() -> None:
    assert "scikit-learn==1.9.1" in wanted("sklearn", "scikit-learn\n")


def test_the_mlflow_that_a_model_asks_for_loads_it() -> None:
    assert wanted("mlflow") == ("mlflow-skinny==3.17.2", "numpy", "pandas")
    asked = wanted("mlflow", "mlflow==2.9.2\npandas==2.2.3")
    assert asked == ("mlflow==2.9.2", "numpy", "pandas==2.2.3")


def test_a_frozen_joblib_is_replaced_by_one_that_loads_safely() -> None:
    made = plan("sklearn", "joblib", "joblib==1.2.0", "cpu")
    assert "joblib>=1.6" in made.requirements
    assert "joblib==1.2.0" not in made.requirements
    assert made.replaced == (("joblib==1.2.0", "joblib>=1.6"),)


@pytest.mark.parametrize(
    ("wrote", "asked", "chosen"),
    [
        ({"onnx-ir": "8", "onnx-opset": "13"}, "onnxruntime>=1.15", {"onnxruntime>=1.15"}),
        (
            {"onnx-ir": "9", "onnx-opset": "20"},
            "onnxruntime>=1.15",
            {"onnxruntime>=1.15", "onnxruntime>=1.17"},
        ),
        (
            {"onnx-ir": "9", "onnx-opset": "20"},
            "onnxruntime==1.17.3",
            {"onnxruntime==1.17.3", "numpy<2"},
        ),
        ({"onnx-ir": "8", "onnx-ml-opset": "4"}, None, {"onnxruntime==1.32.0"}),
        # Releases that nobody has tried yet, or nobody tries any more, judge for themselves.
        ({"onnx-opset": "99"}, "onnxruntime>=1.30", {"onnxruntime>=1.30"}),
        ({"onnx-opset": "99"}, "onnxruntime==9.1", {"onnxruntime==9.1"}),
        ({"onnx-opset": "99"}, "onnxruntime==1.10.0", {"onnxruntime==1.10.0", "numpy<2"}),
    ],
)
def test_an_onnx_model_gets_a_reader_that_is_new_enough(
    wrote: dict[str, str], asked: str | None, chosen: set[str]
) -> None:
    assert set(plan("onnx", "onnx", asked, "cpu", wrote).requirements) == chosen


@pytest.mark.parametrize(
    ("wrote", "asked", "evidence"),
    [
        ({"onnx-ir": "15"}, None, "IR version 15 is beyond the 14 of onnxruntime 1.32"),
        ({"onnx-opset": "29"}, None, "opset 29 is beyond the 28 of onnxruntime 1.32"),
        (
            {"onnx-ir": "8", "onnx-opset": "21"},
            "onnxruntime==1.17.3",
            "opset 21 is beyond the 20 of onnxruntime 1.17",
        ),
        (
            {"onnx-ml-opset": "5"},
            "onnxruntime>=1.15,<1.18",
            "ai.onnx.ml opset 5 is beyond the 4 of onnxruntime 1.17",
        ),
    ],
)
def test_an_onnx_model_beyond_every_reader_is_refused_with_both_numbers(
    wrote: dict[str, str], asked: str | None, evidence: str
) -> None:
    with pytest.raises(StepFailedError) as caught:
        plan("onnx", "onnx", asked, "cpu", wrote)
    assert (caught.value.code, caught.value.evidence) == ("onnx_opset_too_new", evidence)


@pytest.mark.parametrize(
    ("kind", "asked", "is_old"),
    [
        ("onnx", "onnxruntime==1.17.3", True),
        ("onnx", "onnxruntime>=1.15,<1.19", True),
        ("onnx", "onnxruntime==1.19.2", False),
        ("onnx", "onnxruntime>=1.15", False),
        ("onnx", "onnxruntime==1.17.3\nnumpy==1.26.4", False),
        ("onnx", None, False),
        ("torchscript", "torch==2.2.2+cu121", True),
        ("torchscript", "torch~=2.3", False),
    ],
)
def test_frameworks_of_numpy_1_get_numpy_1(kind: str, asked: str | None, *, is_old: bool) -> None:
    assert ("numpy<2" in wanted(kind, asked)) == is_old


def test_the_default_readers_are_known() -> None:
    newest = {"onnx-ir": "10000"}
    for device in ("cpu", "cuda"):
        with pytest.raises(StepFailedError):
            plan("onnx", "onnx", None, device, newest)


def test_the_build_follows_the_device() -> None:
    assert wanted("onnx", "onnxruntime-gpu==1.30.0") == ("onnxruntime==1.30.0",)
    (gpu,) = wanted("onnx", None, "cuda")
    assert gpu.startswith("onnxruntime-gpu[cuda,cudnn]==")
    assert wanted("onnx", "onnxruntime==1.30.0", "cuda") == ("onnxruntime-gpu[cuda,cudnn]==1.30.0",)
    assert wanted("torchscript", "torch==2.4.1+cu121") == ("numpy", "torch==2.4.1")
    assert "xgboost-cpu==3.0" in wanted("sklearn", "xgboost==3.0")
    assert "xgboost==1.7.6" in wanted("sklearn", "xgboost==1.7.6")
    assert "xgboost==3.0" in wanted("sklearn", "xgboost==3.0", "cuda")


def test_packages_that_the_file_names_are_added_once() -> None:
    def with_further(text: str | None, *packages: str, device: str = "cpu") -> set[str]:
        made = plan("sklearn", "joblib", text, device, None, packages).requirements
        return set(made) - set(wanted("sklearn", None))

    cpu = FURTHER["xgboost"].replace("xgboost", "xgboost-cpu")
    assert with_further(None, "xgboost", "lz4") == {cpu, FURTHER["lz4"]}
    assert with_further(None, "xgboost", device="cuda") == {FURTHER["xgboost"]}
    assert with_further("xgboost==1.7.6", "xgboost") == {"xgboost==1.7.6"}
    assert with_further("xgboost-cpu==3.0", "xgboost") == {"xgboost-cpu==3.0"}
    assert with_further("lightgbm", "lightgbm") == {"lightgbm", FURTHER["lightgbm"]}


def test_a_model_is_loaded_by_the_release_that_wrote_it() -> None:
    def matched(version: str, text: str | None = None) -> tuple[str, ...]:
        return plan("sklearn", "pickle", text, "cpu", {"scikit-learn": version}).requirements

    assert "scikit-learn==1.6.1" in matched("1.6.1")
    assert "scikit-learn==1.5.2" in matched("1.6.1", "scikit-learn==1.5.2")
    assert {"numpy<1.24", "scikit-learn==0.24.2", "scipy<1.10"} <= set(matched("0.24.2"))
    assert "scikit-learn==1.9.1" in matched("no version")
    assert "scikit-learn==1.9.1" in matched("1.10.dev0")
    assert {"numpy<2", "scikit-learn==1.4.2"} <= set(matched("1.4.2"))
    assert "numpy<2" not in matched("1.4.2", "numpy==1.26.4")


def test_boosters_are_read_by_a_release_that_is_not_older() -> None:
    def matched(version: str, text: str | None = None, device: str = "cpu") -> tuple[str, ...]:
        return plan("xgboost", "xgboost", text, device, {"xgboost": version}).requirements

    assert matched("2.0.3") == ("numpy", "xgboost-cpu==3.2.0")
    assert matched("3.9.0") == ("numpy", "xgboost-cpu==3.9.0")
    assert matched("no version", device="cuda") == ("numpy", "xgboost==3.2.0")
    both = "xgboost==3.1.0\nxgboost-cpu==3.1.0\n"
    assert matched("3.1.0", both) == ("numpy", "xgboost-cpu==3.1.0")
    assert matched("3.1.0", both, "cuda") == ("numpy", "xgboost==3.1.0")
    assert wanted("lightgbm") == ("lightgbm==4.7.0", "numpy")


def test_arrays_of_numpy_2_are_read_by_one_that_can() -> None:
    made_with = {"numpy": "2", "scikit-learn": "1.6.1"}
    assert "numpy>=1.26.1" in plan("sklearn", "pickle", None, "cpu", made_with).requirements
    pinned = plan("sklearn", "pickle", "numpy==1.24.0", "cpu", made_with).requirements
    assert "numpy>=1.26.1" not in pinned


def test_a_plan_for_another_python_has_what_there_is_for_it() -> None:
    text = 'pandas==1.5.3; python_version < "3.10"\npandas==2.2.2; python_version >= "3.10"\n'
    old = plan("sklearn", "pickle", text, "cpu", python="3.9.18")
    assert {"pandas==1.5.3", "joblib>=1.5"} <= set(old.requirements)
    new = plan("sklearn", "pickle", text, "cpu", python="3.11.7")
    assert {"pandas==2.2.2", "joblib>=1.6"} <= set(new.requirements)


def misfits(*codes: str, text: str | None = None) -> StepFailedError:
    made = plan("sklearn", "pickle", text, "cpu", {"scikit-learn": "1.0.2"})
    failures = [StepFailedError(code, package="odd==1", packages=["numpy"]) for code in codes]
    return misfit(failures, made, ["3.11", "3.9"])


def test_a_scikit_learn_that_no_python_has_is_named() -> None:
    failure = misfits("package_unavailable", "dependency_conflict")
    assert failure.code == "sklearn_version_unavailable"
    assert failure.params == {"version": "1.0.2", "pythons": ["3.11", "3.9"]}


def test_what_the_upload_asked_for_is_blamed_first() -> None:
    assert misfits("package_unavailable", "package_unavailable", text="odd==1").params == {
        "package": "odd==1",
        "packages": ["numpy"],
    }


def test_an_index_that_is_not_there_is_no_verdict_on_versions() -> None:
    assert misfits("package_unavailable", "packages_offline").code == "packages_offline"


def test_unknown_kinds_and_devices_are_errors() -> None:
    with pytest.raises(ValueError, match="keras"):
        plan("keras", "h5", None, "cpu")
    with pytest.raises(ValueError, match="tpu"):
        plan("onnx", "onnx", None, "tpu")


def test_a_lock_is_the_same_however_it_was_written() -> None:
    first = lock_of("numpy==2.0\nAioHTTP==3.1\n", "cpu")
    second = lock_of("# made by hand\naiohttp==3.1 # via x\n\nnumpy==2.0", "cpu")
    assert first == second
    assert first.text == "aiohttp==3.1\nnumpy==2.0\n"
    assert first.packages == {"aiohttp": "3.1", "numpy": "2.0"}
    assert len(first.digest) == 64
    assert lock_of("numpy==2.1\n", "cpu").digest != first.digest


@pytest.mark.parametrize("line", ["numpy", "numpy>=2", "numpy @ file:///tmp/numpy.whl", "-e ."])
def test_a_lock_without_exact_versions_is_refused(line: str) -> None:
    with pytest.raises(StepFailedError, match="environment_failed"):
        lock_of(line, "cpu")


@pytest.mark.parametrize(
    "pin",
    [
        "nvidia-cublas-cu12==12.1",
        "nvidia-nccl-cu13==2.29.7",
        "cuda-bindings==13.0",
        "triton==3.7.1",
        "pytorch-triton==3.0",
        "onnxruntime-gpu==1.31.1",
        "torch==2.13.0+cu130",
        "cupy-cuda12x==13.0",
    ],
)
def test_cuda_wheels_are_never_installed_for_a_cpu(pin: str) -> None:
    text = f"numpy==2.0\n{pin}\ntorch==2.13.0\n" if "torch==" not in pin else f"{pin}\n"
    with pytest.raises(StepFailedError) as caught:
        lock_of(text, "cpu")
    assert caught.value.code == "cuda_wheels_on_cpu"
    assert caught.value.params["packages"] == [pin]
    refuse_cuda_on_cpu(lock_of(text, "cuda"))


def test_builds_for_the_cpu_and_the_driver_library_may_be_there() -> None:
    lock_of("torch==2.13.0+cpu\nnvidia-ml-py==13.1\nnumpy==2.0\n", "cpu")


def test_builds_for_the_cpu_are_excluded_where_a_gpu_is_asked_for() -> None:
    text = "torch==2.13.0+cpu\nnumpy==2.0\n"
    assert cpu_builds(lock_of(text, "cuda")) == ["torch!=2.13.0+cpu"]
    assert cpu_builds(lock_of(text, "cpu")) == []


def test_wheels_come_from_where_settings_say() -> None:
    assert source_options(Settings(), "cpu") == ["--torch-backend", "cpu"]
    assert source_options(Settings(), "cuda") == []
    links = Settings(wheel_links=("/a", "/b"), wheel_index="https://i.example/simple")
    assert source_options(links, "cpu") == [
        *("--default-index", "https://i.example/simple"),
        *("--find-links", "/a", "--find-links", "/b"),
    ]
    cpu = Settings(wheel_index_cpu="https://c.example/cpu")
    assert source_options(cpu, "cpu")[:2] == ["--index", "https://c.example/cpu"]
    assert source_options(cpu, "cuda") == []


def test_locks_are_remembered_and_those_of_ranges_expire(tmp_path: Path) -> None:
    cache = LockCache(tmp_path)
    made = plan("onnx", "onnx", None, "cpu")
    key = cache.key(made, ("aiohttp",), (), own_python())
    lock = lock_of("onnxruntime==1.32.0\n", "cpu")
    cache.write(key, lock)
    assert cache.read(key, own_python(), is_pinned=True) == lock
    assert cache.read(key, own_python(), is_pinned=False) == lock
    path = tmp_path / f"{key}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "at": 0}))
    assert cache.read(key, own_python(), is_pinned=True) == lock
    assert cache.read(key, own_python(), is_pinned=False) is None
    assert cache.read(key, own_python(), is_pinned=False, stale=True) == lock
    path.write_text("{")
    assert cache.read(key, own_python(), is_pinned=True) is None


def test_the_key_of_a_plan_changes_with_everything_that_decides(tmp_path: Path) -> None:
    cache = LockCache(tmp_path)
    made = plan("onnx", "onnx", None, "cpu")
    keys = {
        cache.key(made, ("aiohttp",), (), own_python()),
        cache.key(made, ("aiohttp>3",), (), own_python()),
        cache.key(made, ("aiohttp",), ("--find-links", "/a"), own_python()),
        cache.key(plan("onnx", "onnx", "numpy==2.0", "cpu"), ("aiohttp",), (), own_python()),
        cache.key(plan("onnx", "onnx", None, "cuda"), ("aiohttp",), (), own_python()),
    }
    assert len(keys) == 5


CONFLICT = """error: No solution found when resolving dependencies
  cause: Because scikit-learn>=1.9.1 depends on numpy>=1.24.1 and you require numpy<1.20, we can
         conclude that your requirements are unsatisfiable.
"""
ABSENT = """error: No solution found when resolving dependencies
  cause: Because {reason}, we can conclude that your requirements are unsatisfiable.

hint: something
"""
OFFLINE = """error: Request failed after 3 retries in 10.2s
  cause: Failed to fetch: http://127.0.0.1:9/simple/numpy/
  cause: error sending request for url (http://127.0.0.1:9/simple/numpy/)
"""


def test_a_conflict_shows_the_resolvers_main_line() -> None:
    failure = named_failure(CONFLICT, ())
    assert failure.code == "dependency_conflict"
    assert failure.evidence.startswith("Because scikit-learn>=1.9.1 depends on numpy>=1.24.1")
    assert "\n" not in failure.evidence


@pytest.mark.parametrize(
    ("reason", "package"),
    [
        ("nosuch was not found in the package registry and you require nosuch", "nosuch"),
        ("there is no version of numpy==99 and you require numpy==99", "numpy==99"),
        ("docopt==0.6.2 has no usable wheels and you require docopt==0.6.2", "docopt==0.6.2"),
    ],
)
def test_a_package_that_cannot_be_had_is_named(reason: str, package: str) -> None:
    failure = named_failure(ABSENT.format(reason=reason), ())
    assert (failure.code, failure.params) == ("package_unavailable", {"package": package})


def test_without_network_the_missing_package_is_named() -> None:
    failure = named_failure(OFFLINE, ("numpy", "scipy"))
    assert (failure.code, failure.params) == ("packages_offline", {"packages": ["numpy"]})
    cached = ABSENT.format(reason="httpx was not found in the cache and you require httpx")
    failure = named_failure(cached + "the network was disabled", ())
    assert failure.params == {"packages": ["httpx"]}
    assert named_failure("dns error", ("a", "b")).params == {"packages": ["a", "b"]}


def test_a_full_disk_and_the_unknown_are_named() -> None:
    full = "error: failed to write\n  cause: No space left on device (os error 28)"
    assert named_failure(full, ()).code == "disk_full"
    assert named_failure("thread 'main' panicked", ()).code == "environment_failed"


def test_evidence_holds_no_addresses_and_no_paths() -> None:
    said = "error: cannot read /srv/data/a.txt from https://user:pw@host.example/x\n"
    assert main_line(said) == "cannot read … from …"
    assert named_failure(said, ()).log == ("error: cannot read /srv/data/a.txt from …",)


@pytest.mark.parametrize(
    "cause",
    [
        "Because tabulate was not found in the cache and you require tabulate==0.9.0",
        "Because tabulate==0.9.0 needs to be downloaded from a registry and you require it",
    ],
)
def test_what_the_cache_lacks_is_named_whether_its_index_was_seen_or_not(cause: str) -> None:
    assert missing_packages(f"error: No solution found\n  cause: {cause}, so there is none.") == (
        "tabulate",
    )

"""Uploaded requirements: names, extras, versions and markers; everything else is refused by line."""

from __future__ import annotations

import pytest

from server.environments.requirements import parse_requirements
from server.errors import StepFailedError


def texts(text: str) -> list[str]:
    return [str(requirement) for requirement in parse_requirements(text)]


def test_names_extras_versions_and_markers_are_read() -> None:
    text = """
    # what the model needs
    numpy>=1.26,<3   # comment
    scikit-learn [extra1, extra2] == 1.5.2
    scipy ; python_version >= "3.8"

    Some_Package~=2.0
    """
    assert texts(text) == [
        "numpy<3,>=1.26",
        "scikit-learn[extra1,extra2]==1.5.2",
        "scipy",
        "Some_Package~=2.0",
    ]


def test_lines_whose_marker_does_not_hold_are_left_out() -> None:
    assert texts('numpy==1.0; python_version < "3"\ntorch; extra == "gpu"') == []


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("--index-url https://example.org/simple", "option"),
        ("-i https://example.org/simple", "option"),
        ("-r other.txt", "option"),
        ("-e .", "option"),
        ("--find-links /tmp", "option"),
        ("numpy==1.26 --hash=sha256:00", "option"),
        ("numpy --no-binary numpy", "option"),
        ("https://example.org/numpy.whl", "address"),
        ("file:///etc/passwd", "address"),
        ("git+https://example.org/a.git", "version control"),
        ("./numpy", "path"),
        ("/etc/passwd", "path"),
        ("..\\numpy", "path"),
        ("C:\\wheels\\a.whl", "path"),
        ("numpy-1.0-py3-none-any.whl", "path"),
        ("numpy @ https://example.org/numpy.whl", "direct reference"),
        ("numpy@file:///tmp/numpy.whl", "direct reference"),
        ("numpy @ git+https://example.org/a.git", "direct reference"),
        ("numpy=1.0", "syntax"),
        ("numpy==1.0 \\", "syntax"),
        ("${HOME}", "syntax"),
        ("numpy; import os", "syntax"),
        ("a" * 401, "too long"),
    ],
)
def test_everything_else_is_refused_with_its_line(line: str, found: str) -> None:
    with pytest.raises(StepFailedError) as caught:
        parse_requirements(f"scipy\n{line}\n")
    assert caught.value.code == "requirement_refused"
    assert (caught.value.params["line"], caught.value.params["found"]) == (2, found)
    assert caught.value.params["text"] == line[:80].strip()


def test_size_and_number_of_lines_are_limited() -> None:
    with pytest.raises(StepFailedError, match="requirements_too_many_lines"):
        parse_requirements("numpy\n" * 501)
    with pytest.raises(StepFailedError, match="requirements_too_large"):
        parse_requirements("#" * 30_000)

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metrics import names
from metrics.exposition import (
    BUCKETS_FROM,
    LAYOUT,
    MAX_BYTES,
    ExpositionError,
    ExpositionReader,
    Layouts,
    parse,
)
from metrics.instruments import InferenceInstruments
from metrics.targets import sanitise

OK = 'inference_requests_total{code="2xx"} '


def used(requests: int = 5) -> InferenceInstruments:
    instruments = InferenceInstruments(
        None, framework="onnx", framework_version="1.20.1", digest="ab12", started_at=1.7e9
    )
    for number in range(requests):
        instruments.observe("2xx", 0.01 * (number + 1))
    return instruments


def test_a_text_read_again_is_read_by_place_with_the_same_answer() -> None:
    instruments, reader = used(), ExpositionReader()
    reader.read(instruments.text())
    instruments.observe("5xx", 0.2)
    text = instruments.text()

    assert reader._read_by_place(text) == reader.read(text)
    assert reader.read(text).counters == parse(text)[0]


def test_a_text_whose_lines_moved_is_read_in_full() -> None:
    instruments, reader = used(), ExpositionReader()
    text = instruments.text()
    expected = reader.read(text)
    moved = "\n".join(reversed(text.split("\n")))

    assert reader._read_by_place(moved) is None
    assert reader.read(moved) == expected
    assert reader.read("\n" + text) == expected


def test_the_first_text_of_a_reader_may_not_be_empty() -> None:
    with pytest.raises(ExpositionError):
        ExpositionReader().read("")


def test_the_vector_holds_requests_by_class_and_then_cumulated_buckets() -> None:
    vector, gauges, info = parse(used(5).text())

    assert list(vector[:BUCKETS_FROM]) == [5, 0, 0, 0, 0, 0]
    assert len(vector) == len(LAYOUT) == 6 + 352
    assert vector[-1] == 5
    assert list(vector[BUCKETS_FROM:]) == sorted(vector[BUCKETS_FROM:])
    assert gauges[names.START_TIME] == 1.7e9
    assert info == {"framework": "onnx", "framework_version": "1.20.1", "digest": "ab12"}


@pytest.mark.parametrize(
    "value", ["NaN", "-1", "+Inf", "1e300", "9007199254740993e3", "five", "", "1 2 3"]
)
def test_a_value_that_is_no_count_fails_the_scrape_on_both_ways_of_reading(value: str) -> None:
    text = used(5).text()
    reader = ExpositionReader()
    reader.read(text)
    bad = text.replace(OK + "5.0", OK + value)

    assert bad != text
    with pytest.raises(ExpositionError):
        parse(bad)
    with pytest.raises(ExpositionError):
        reader.read(bad)


def test_a_text_without_one_of_the_series_fails_as_a_whole() -> None:
    lines = used().text().split("\n")
    without = "\n".join(line for line in lines if 'code="4xx"' not in line)

    with pytest.raises(ExpositionError, match="4xx"):
        parse(without)


def test_a_text_over_256_kib_is_not_read() -> None:
    text = used().text()

    with pytest.raises(ExpositionError, match="larger"):
        parse(text + "#" * MAX_BYTES)
    with pytest.raises(ExpositionError, match="larger"):
        parse(text + "\n# " + "ж" * (MAX_BYTES // 2))
    with pytest.raises(ExpositionError, match="lines"):
        parse(text + "\n" * 3000)


def test_only_known_series_are_passed_on() -> None:
    text = used().text()
    hostile = text + (
        "evil_metric 1\n"
        'up{run_id="someone else"} 1\n'
        'inference_requests_total{code="418"} 7\n'
        'inference_requests_total{code="2xx",run_id="other"} 7\n'
        'inference_request_duration_seconds_bucket{le="0.1234"} 7\n'
        'inference_request_duration_seconds_bucket{le="0.001"} 7\n'
        'inference_model_info{framework="x",extra="y"} 1\n'
        "inference_requests_in_progress NaN\n"
        f"{names.START_TIME} 99 12345\n"
    )

    assert sanitise(hostile) == sanitise(text)


def test_cleaning_keeps_every_figure_and_cleaning_again_changes_nothing() -> None:
    text = used(40).text()
    clean = sanitise(text)

    assert parse(clean) == parse(text)
    assert sanitise(clean) == clean


def test_labels_of_the_model_are_the_services_own_where_it_knows_them() -> None:
    text = used().text()

    known = sanitise(text, info={"framework": "onnx", "digest": 'a"b\n'})
    assert 'inference_model_info{framework="onnx",framework_version="",digest="a_b_"} 1.0' in known
    assert names.MODEL_INFO not in sanitise(text, info={})


def test_a_refusal_counter_of_the_service_needs_no_model() -> None:
    instruments = InferenceInstruments(None)
    instruments.observe("5xx", 0.0, overloaded=True)

    assert 'code="5xx"} 1.0' in sanitise(instruments.text())
    assert "inference_requests_overloaded_total 1.0" in sanitise(instruments.text())


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=300), st.integers(0, 400))
def test_no_text_breaks_the_cleaning(noise: str, place: int) -> None:
    lines = used().text().split("\n")
    lines.insert(min(place, len(lines)), noise)
    try:
        clean = sanitise("\n".join(lines))
    except ExpositionError:
        return
    assert parse(clean)[0] == parse(used().text())[0]


def test_readers_share_the_layout_of_texts_that_differ_in_the_model_only() -> None:
    layouts: Layouts = {}
    ExpositionReader(layouts).read(used().text())
    other = InferenceInstruments(None, framework="torch", digest="ff", started_at=5.0).text()

    scrape = ExpositionReader(layouts)._read_by_place(other)
    assert scrape is not None
    assert scrape.counters == parse(other)[0]


def test_requests_in_progress_are_read_beside_the_counters() -> None:
    instruments, reader = used(), ExpositionReader()
    assert reader.read(instruments.text()).in_progress == 0
    for _ in range(3):
        instruments.in_progress.inc()
    assert reader.read(instruments.text()).in_progress == 3
    without = instruments.text().replace("inference_requests_in_progress 3.0\n", "")
    with pytest.raises(ExpositionError, match="in_progress"):
        reader.read(without)


@pytest.mark.parametrize("before", ["junk", "junk,", "x=1,", 'x="1"', " "])
def test_labels_are_looked_for_nowhere_but_at_their_place(before: str) -> None:
    """To search a line for them takes the square of its length, of any number of lines."""
    text = used().text().replace('total{code="2xx"', f'total{{{before}code="2xx"')
    with pytest.raises(ExpositionError, match="missing"):
        ExpositionReader().read(text)


def test_probes_are_the_services_own_to_count() -> None:
    instruments = InferenceInstruments(None, probes=True)
    instruments.probe(passed=True)
    text = instruments.text()

    assert list(ExpositionReader(probes=True).read(text).counters[4:6]) == [1, 0]
    reader = ExpositionReader()
    assert list(reader.read(text).counters[4:6]) == [0, 0]
    instruments.probe(passed=False)
    assert list(reader.read(instruments.text()).counters[4:6]) == [0, 0]
    assert names.PROBES not in sanitise(text)


def test_the_number_of_remembered_layouts_is_bounded() -> None:
    layouts: Layouts = {}
    reader, text = ExpositionReader(layouts), used().text()
    for number in range(50):
        reader.read(text + "# noise\n" * number)

    assert len(layouts) <= 8

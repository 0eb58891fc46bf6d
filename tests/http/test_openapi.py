from __future__ import annotations

import json
import re
from typing import Any

import pytest
from aiohttp import web
from openapi_spec_validator import validate

from server.api.openapi import document
from server.api.reference import PAGE, Reference
from server.settings import Settings
from tests.support.toy_edge import running

CYRILLIC = re.compile("[а-яА-Я]")


@pytest.mark.parametrize("language", ["ru", "en"])
def test_the_document_is_valid_openapi_3_1(language: str) -> None:
    made = document(Settings(), language)
    assert made["openapi"].startswith("3.1")
    validate(made)


def test_the_document_is_all_russian_or_all_english() -> None:
    assert not CYRILLIC.search(json.dumps(document(Settings(), "en"), ensure_ascii=False))
    for path, method, operation in operations():
        assert CYRILLIC.search(operation["summary"]), (method, path)


def operations() -> list[tuple[str, str, dict[str, Any]]]:
    paths = document(Settings())["paths"]
    return [(path, method, made) for path, item in paths.items() for method, made in item.items()]


def test_every_operation_has_an_id_of_its_own_and_an_error() -> None:
    ids = [made["operationId"] for _, _, made in operations()]
    assert len(set(ids)) == len(ids)
    for path, method, made in operations():
        assert "default" in made["responses"], (method, path)
        assert ("302" if path == "/" else "200") in made["responses"], (method, path)


def test_every_placeholder_of_a_path_is_a_parameter() -> None:
    for path, method, made in operations():
        named = {one["name"] for one in made.get("parameters", []) if one["in"] == "path"}
        assert named == set(re.findall(r"{(\w+)}", path)), (method, path)


def test_every_link_leads_to_an_operation_with_these_parameters() -> None:
    known = {made["operationId"]: made for _, _, made in operations()}
    linked = set()
    for _, _, made in operations():
        for link in made["responses"].get("200", {}).get("links", {}).values():
            follower = known[link["operationId"]]
            names = {one["name"] for one in follower["parameters"]}
            needed = {one["name"] for one in follower["parameters"] if one["required"]}
            assert needed <= set(link["parameters"]) | {"env"}, (made["operationId"], link)
            assert set(link["parameters"]) <= names, (made["operationId"], link)
            linked.add(link["operationId"])
    # From an upload on, everything of a run can be reached.
    reached, after = {"upload"}, {"upload"}
    while after:
        links = [known[name]["responses"]["200"].get("links", {}) for name in after]
        after = {link for found in links for link in found} - reached
        reached |= after
    assert reached == linked | {"upload"}
    assert {"deleteRun", "infer", "inferOfVersion", "monitorSummary", "stopDeployment"} <= reached


def test_every_answer_says_what_it_means_and_changes_may_be_refused_to_foreign_pages() -> None:
    for path, method, made in operations():
        assert {"400", "408", "417", "421", "431"} <= set(made["responses"]), (method, path)
        assert method == "get" or "403" in made["responses"], (method, path)
        for status, answer in made["responses"].items():
            assert answer["description"], (method, path, status)
            later = answer.get("$ref", "").endswith("Later")
            assert later == (status in {"429", "503"} and "$ref" in answer), (method, path, status)


def test_who_is_asked_for_a_token_may_have_a_bad_one_and_a_change_may_find_no_room() -> None:
    asked = 0
    for path, method, made in operations():
        answers, where = set(made["responses"]), (method, path)
        if "security" in made:
            asked += 1
            assert {"401", "403"} <= answers, where
        if method != "get" and "inference" not in made["tags"]:
            assert {"503", "507"} <= answers, where
        if "requestBody" in made:
            assert {"408", "413"} <= answers, where
        # A run, a token or a model that is named may be somebody else's; environments are known.
        names = {one["name"] for one in made.get("parameters", []) if one["required"]}
        assert not names - {"env"} or "404" in answers, where
    assert asked > len(document(Settings())["paths"]) / 2


def test_every_reference_leads_somewhere() -> None:
    made = document(Settings())
    for found in re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(made)):
        place: Any = made
        for key in found.split("/"):
            place = place[key]


def test_the_environments_of_the_settings_stand_in_the_document() -> None:
    made = document(Settings(environments=("alpha", "beta")))
    [env] = [
        one for one in made["paths"]["/deploy/start"]["post"]["parameters"] if one["name"] == "env"
    ]
    assert env["schema"]["enum"] == ["alpha", "beta"]


def test_the_page_needs_nothing_from_elsewhere() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert not re.search(r"""(?:src|href)=["'](?:https?:)?//""", page)
    assert "@import" not in page
    assert page.count("<script>") == page.count("<script") == 1


async def test_document_and_page_are_served() -> None:
    reference = Reference(Settings())
    added = [
        web.get("/openapi.json", reference.openapi),
        web.get("/docs", reference.docs),
        web.get("/", reference.home),
    ]
    async with running(routes=added) as toy:
        async with toy.client.get(toy.url("/openapi.json")) as response:
            assert response.content_type == "application/json"
            assert CYRILLIC.search((await response.json())["info"]["description"])
        headers = {"Accept-Language": "en"}
        async with toy.client.get(toy.url("/openapi.json"), headers=headers) as response:
            assert not CYRILLIC.search((await response.json())["info"]["description"])
        async with toy.client.get(toy.url("/docs")) as response:
            assert response.content_type == "text/html"
            policy = response.headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy
            assert "'sha256-" in policy
        async with toy.client.get(toy.url("/"), allow_redirects=False) as response:
            assert response.status == 302
        async with toy.client.get(toy.url("/")) as response:
            assert (response.status, response.url.path) == (200, "/docs")

"""Predictions on the API's own port: which deployment a name means, and the way to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from server import __version__, keys
from server.api import parameters
from server.api.gateway import GATEWAY
from server.api.replies import reply
from server.api.sessions import owner_of
from server.api.upstream import Place
from server.errors import NotFoundError, UnauthenticatedError, UnavailableError
from server.states import Wanted

if TYPE_CHECKING:
    from aiohttp import web

    from server.records import Deployment


async def server_metadata(request: web.Request) -> web.Response:
    """``GET /{env}/v2``."""
    _environment(request)
    return reply({"name": "persephone", "version": __version__, "extensions": []})


async def live(request: web.Request) -> web.Response:
    """``GET /{env}/v2/health/live``."""
    _environment(request)
    return reply({"live": True})


async def ready(request: web.Request) -> web.Response:
    """``GET /{env}/v2/health/ready``."""
    _environment(request)
    return reply({"ready": True})


def _environment(request: web.Request) -> str:
    name = request.match_info["env"]
    return parameters.checked_environment(name, request.app[keys.SETTINGS])


async def forward(request: web.Request) -> web.StreamResponse:
    """``/{env}/v2/models/{name}...``: hand the request to the deployment's replica."""
    environment = _environment(request)
    made = _deployment(request, environment, request.match_info["name"], await owner_of(request))
    replicas = request.app[keys.RECONCILER].replicas(made.key)
    if not replicas:
        raise _nobody(request, made)
    # They share one address and one secret: whichever is free takes the connection.
    spec = replicas[0].spec
    host = request.app[keys.SETTINGS].replica_host
    place = Place(host, replicas[0].port, f"{spec.run_id}.{spec.version}")
    secret = spec.model.get("secret")
    try:
        return await request.app[GATEWAY].forward(request, place, _target(request), secret)
    except UnavailableError:
        _count_refusal(request, made)
        raise


def _target(request: web.Request) -> str:
    """Return the path and query for the replica."""
    # Of the path that was routed: the request line may name a whole address, of any host.
    path = "/" + request.rel_url.raw_path.split("/", 2)[2]
    query = request.rel_url.raw_query_string
    return f"{path}?{query}" if query else path


def _deployment(request: web.Request, environment: str, name: str, owner: str | None) -> Deployment:
    """Return the deployment that a run's id or a model's name means in an environment.

    Raises:
        UnauthenticatedError: predictions are not open here, and the caller is a stranger.
        NotFoundError: there is none, or several owners have a model of that name.
    """
    is_open = request.app[keys.SETTINGS].inference_is_open
    if not is_open and owner is None:
        raise UnauthenticatedError("inference_needs_session")
    found = [
        made
        for made in request.app[keys.STORE].deployments_called(name)
        if made.key.environment == environment and (is_open or made.key.owner == owner)
    ]
    own = [made for made in found if made.key.owner == owner] or found
    if len(own) != 1:
        raise NotFoundError("model_not_deployed", name=name, environment=environment)
    return own[0]


def _nobody(request: web.Request, made: Deployment) -> Exception:
    if made.wanted is Wanted.STOPPED:
        name, environment = request.match_info["name"], made.key.environment
        return NotFoundError("model_not_deployed", name=name, environment=environment)
    _count_refusal(request, made)
    return UnavailableError("replica_absent")


def _count_refusal(request: web.Request, made: Deployment) -> None:
    if request.method == "POST":
        request.app[keys.SCRAPER].refused(made.key)

"""Predictions on the API's own port: which deployment a name means, and the way to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from server import __version__, keys
from server.api import parameters
from server.api.callers import beyond, token_of
from server.api.gateway import GATEWAY
from server.api.replies import reply
from server.api.sessions import session_owner
from server.api.upstream import Place
from server.errors import ForbiddenError, NotFoundError, UnauthenticatedError, UnavailableError
from server.logs import deployment_id_var, run_id_var
from server.states import Scope, Wanted

if TYPE_CHECKING:
    from aiohttp import web

    from server.records import Deployment
    from server.store.state import Store

EXTENSIONS = ("binary_tensor_data", "classification", "statistics")
"""What replicas can do beyond the protocol's core; a test holds it to their own list."""


async def server_metadata(request: web.Request) -> web.Response:
    """``GET /{env}/v2``."""
    _environment(request)
    return reply({"name": "persephone", "version": __version__, "extensions": list(EXTENSIONS)})


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
    caller = await _caller(request)
    made = _deployment(request, environment, request.match_info["name"], caller)
    run_id_var.set(made.run_id)
    deployment_id_var.set(made.id)
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


class _Caller(NamedTuple):
    owner: str | None
    model: str | None
    """The only one that the caller's token is good for."""


async def _caller(request: web.Request) -> _Caller:
    """Return whom a prediction is for.

    Raises:
        UnauthenticatedError, InvalidRequestError: the token is good for nothing.
        ForbiddenError: it is for something else.
    """
    token = token_of(request)
    if token is None:
        return _Caller(await session_owner(request), None)
    if token.scope is Scope.METRICS:
        raise beyond(token, Scope.INFERENCE)
    return _Caller(token.owner, token.model)


def _deployment(request: web.Request, environment: str, name: str, caller: _Caller) -> Deployment:
    """Return the deployment that a run's id or a model's name means in an environment.

    Raises:
        UnauthenticatedError: predictions are not open here, and the caller is a stranger.
        ForbiddenError: the caller's token is for another model.
        NotFoundError: there is none, or several owners have a model of that name.
    """
    store, (owner, model) = request.app[keys.STORE], caller
    is_open = request.app[keys.SETTINGS].inference_is_open and model is None
    if not is_open and owner is None:
        raise UnauthenticatedError("inference_needs_session")
    if model is not None and not _is_named(store, name, caller):
        raise ForbiddenError("token_for_other_model", model=model)
    found = [
        made
        for made in store.deployments_called(name)
        if made.key.environment == environment and (is_open or made.key.owner == owner)
    ]
    own = [made for made in found if made.key.owner == owner] or found
    if len(own) != 1:
        raise NotFoundError("model_not_deployed", name=name, environment=environment)
    return own[0]


def _is_named(store: Store, name: str, caller: _Caller) -> bool:
    """Whether a name means the model that the caller's token is for; deployed or not."""
    run = store.runs.get(name)
    return name == caller.model or (run is not None and (run.owner, run.model) == caller)


def _nobody(request: web.Request, made: Deployment) -> Exception:
    if made.wanted is Wanted.STOPPED:
        name, environment = request.match_info["name"], made.key.environment
        return NotFoundError("model_not_deployed", name=name, environment=environment)
    _count_refusal(request, made)
    return UnavailableError("replica_absent")


def _count_refusal(request: web.Request, made: Deployment) -> None:
    if request.method == "POST":
        request.app[keys.SCRAPER].refused(made.key)

"""Which operation leads to which, as OpenAPI links: from an upload to its predictions and figures."""

from __future__ import annotations

from typing import Any

_RUN = "$response.body#/runId"
_ENVIRONMENT = "$response.body#/environment"

_OF_RUN = {"runId": _RUN}
_OF_DEPLOYMENT = {"runId": _RUN, "env": _ENVIRONMENT}
_OF_MODEL = {"name": _RUN, "env": _ENVIRONMENT}
_OF_VERSION = {**_OF_MODEL, "version": "$response.body#/version"}

_MODEL = ("infer", "modelMetadata", "modelReady", "modelStatistics")
_LINKS: dict[str, dict[str, dict[str, str]]] = {
    "upload": {
        "startPreparation": _OF_RUN,
        "preparationStatus": _OF_RUN,
        "listGpus": _OF_RUN,
        "monitorSummary": _OF_RUN,
        "listEvents": _OF_RUN,
        "runLogs": _OF_RUN,
        "deleteRun": _OF_RUN,
    },
    "listGpus": {
        "startPreparation": {
            "runId": "$request.query.runId",
            "gpuId": "$response.body#/0/id",
        },
    },
    "startPreparation": {
        "preparationStatus": _OF_RUN,
        "startDeployment": _OF_RUN,
        "deleteRun": _OF_RUN,
    },
    "preparationStatus": {
        "startPreparation": _OF_RUN,
        "startDeployment": _OF_RUN,
        "showPassport": _OF_RUN,
        "supportBundle": _OF_RUN,
    },
    "startDeployment": {
        "deploymentStatus": _OF_DEPLOYMENT,
        "stopDeployment": _OF_DEPLOYMENT,
        "monitorSummary": _OF_DEPLOYMENT,
        "deleteRun": _OF_RUN,
        **dict.fromkeys(_MODEL, _OF_MODEL),
        **{f"{operation}OfVersion": _OF_VERSION for operation in _MODEL},
    },
    "deploymentStatus": {
        "startDeployment": _OF_DEPLOYMENT,
        "stopDeployment": _OF_DEPLOYMENT,
        "monitorSummary": _OF_DEPLOYMENT,
        **dict.fromkeys(_MODEL, _OF_MODEL),
    },
    "stopDeployment": {
        "startDeployment": _OF_DEPLOYMENT,
        "deleteRun": _OF_RUN,
    },
}
"""By operation: the operations that follow it, and where their parameters come from."""


def add_links(paths: dict[str, Any]) -> None:
    """Write down in ``paths`` which operations a success leads to."""
    for item in paths.values():
        for operation in item.values():
            following = _LINKS.get(operation["operationId"])
            if following is not None:
                operation["responses"]["200"]["links"] = {
                    name: {"operationId": name, "parameters": dict(parameters)}
                    for name, parameters in following.items()
                }

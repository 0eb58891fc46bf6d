from server.api import inference
from server.api.reference import Reference, document
from server.model_server import app as replica
from server.routes import routes
from server.settings import Settings


def test_the_openapi_document_and_the_routes_are_the_same() -> None:
    settings = Settings()
    served = {
        (definition.path, definition.method.lower()) for definition in routes(Reference(settings))
    }
    described = {
        (path, method)
        for path, item in document(settings)["paths"].items()
        for method in item
        if method in {"get", "post", "put", "delete"}
    }
    assert described == served


def test_the_gateway_names_the_extensions_of_replicas() -> None:
    assert inference.EXTENSIONS == replica.EXTENSIONS

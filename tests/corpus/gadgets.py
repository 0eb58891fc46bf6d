"""Functions that do harm when a pickle calls them, each inside the file of a model."""

from __future__ import annotations

import marshal
from typing import TYPE_CHECKING

from tests.corpus.opcodes import (
    Raw,
    built,
    call,
    in_model,
    method,
    name,
    pickle_of,
    then,
    value,
)
from tests.corpus.technique import LOADER, Technique

if TYPE_CHECKING:
    from collections.abc import Callable

    Gadget = Callable[[str], Raw]


def _python(mark: str) -> str:
    return f"open({mark!r}, 'w').close()"


def _touch(mark: str) -> str:
    return f"touch '{mark}'"


def _mkdir(mark: str) -> bytes:
    return pickle_of(call("os:mkdir", mark))


def _imported(module: str) -> Raw:
    return call("importlib:import_module", module)


def _marshalled(mark: str) -> Raw:
    code = marshal.dumps(compile(_python(mark), "m", "exec"))
    made = call("types:FunctionType", call("marshal:loads", code), {})
    return then(name("types:CodeType"), call(made))


def _walk(mark: str) -> Raw:
    """Reach a module over the functions of a class that everybody has."""
    scope = call("builtins:getattr", name("os:_wrap_close.__init__"), "__globals__")
    return call(method(scope, "get", "mkdir"), mark)


def _array_of(shape: tuple[int, ...], kind: Raw, data: object) -> Raw:
    empty = call("numpy._core.multiarray:_reconstruct", name("numpy:ndarray"), (0,), b"b")
    return Raw(empty + value((1, shape, kind, False, data)) + b"b")


def _type(kind: str, state: tuple[object, ...]) -> Raw:
    return Raw(call("numpy:dtype", kind, False, True) + value(state) + b"b")


# picklescan knows these by name: the inspection refuses them, and so would the unpickler alone.
_KNOWN: dict[str, Gadget] = {
    "a shell (os.system)": lambda m: call("os:system", _touch(m)),
    "the module behind os (posix.system)": lambda m: call("posix:system", _touch(m)),
    "a program (subprocess.check_call)": lambda m: call("subprocess:check_call", ["touch", m]),
    "text as code (builtins.exec)": lambda m: call("builtins:exec", _python(m)),
    "an expression (builtins.eval)": lambda m: call("builtins:eval", _python(m)),
    "compiled text (builtins.compile)": lambda m: call(
        "builtins:exec", call("builtins:compile", _python(m), "m", "exec")
    ),
    "code through a profiler (cProfile.run)": lambda m: call("cProfile:run", _python(m)),
    "code through the other profiler (profile.run)": lambda m: call("profile:run", _python(m)),
    "code through a stopwatch (timeit.timeit)": lambda m: call(
        "timeit:timeit", _python(m), "pass", name("time:perf_counter"), 1
    ),
    "code through a debugger (bdb.Bdb.run)": lambda m: method(call("bdb:Bdb"), "run", _python(m)),
    "code through runpy": lambda m: call(
        "runpy:_run_code", call("builtins:compile", _python(m), "m", "exec"), {}
    ),
    "an opened file (builtins.open)": lambda m: call("builtins:open", m, "w"),
    "an opened file by its class (_io.FileIO)": lambda m: call("_io:FileIO", m, "w"),
    "a log file (logging.FileHandler)": lambda m: call("logging:FileHandler", m),
    "a copied file (shutil.copyfile)": lambda m: call("shutil:copyfile", "/etc/hostname", m),
    "a file of a build tool (distutils)": lambda m: call(
        "distutils.file_util:write_file", m, ["x"]
    ),
    "functions of C (ctypes)": lambda m: call(
        call("builtins:getattr", call("ctypes:CDLL", None), "system"), _touch(m).encode()
    ),
    "a mail client that starts programs (imaplib)": lambda m: call(
        "imaplib:IMAP4_stream", _touch(m)
    ),
    "a pager (pydoc.pipepager)": lambda m: call("pydoc:pipepager", "", _touch(m)),
    "an id from a program (uuid)": lambda m: call("uuid:_get_command_stdout", "touch", m),
    "a helper for another system (_osx_support)": lambda m: call(
        "_osx_support:_read_output", _touch(m)
    ),
    "a download (urllib.request)": lambda m: call(
        "urllib.request:urlretrieve", "file:///etc/hostname", m
    ),
    "a pickle in a pickle (pickle.loads)": lambda m: call("pickle:loads", _mkdir(m)),
    "a pickle in a pickle in C (_pickle.loads)": lambda m: call("_pickle:loads", _mkdir(m)),
    "a looked-up name (pkgutil.resolve_name)": lambda m: call(
        call("pkgutil:resolve_name", "os:mkdir"), m
    ),
    "an attribute (builtins.getattr)": lambda m: method(_imported("os"), "mkdir", m),
    "an attribute (operator.attrgetter)": lambda m: call(
        call(call("operator:attrgetter", "mkdir"), _imported("os")), m
    ),
    "a method (operator.methodcaller)": lambda m: call(
        call("operator:methodcaller", "mkdir", m), _imported("os")
    ),
    "a prepared call (functools.partial)": lambda m: call(
        call("functools:partial", name("io:open"), m, "w")
    ),
    "a call per element (builtins.map)": lambda m: call(
        "builtins:list", call("builtins:map", name("os:mkdir"), [m])
    ),
    "a thread (threading.Timer)": lambda m: method(
        call("threading:Timer", 0, name("os:mkdir"), [m]), "run"
    ),
    "bytecode (marshal.loads)": _marshalled,
    "a walk over classes and globals": _walk,
    "a test helper of numpy (runstring)": lambda m: call(
        "numpy.testing._private.utils:runstring", _python(m), {}
    ),
    "numpy's Fortran reader (numpy.f2py)": lambda m: call(
        "numpy.f2py.crackfortran:myeval", _python(m), {}, {}
    ),
    "a helper of cloudpickle (subimport)": lambda m: method(
        call("cloudpickle.cloudpickle:subimport", "os"), "mkdir", m
    ),
}

# picklescan does not know these: the unpickler's list is all that stands before them.
_UNSEEN: dict[str, Gadget] = {
    "a path's method (pathlib.Path.touch)": lambda m: call(
        "pathlib:Path.touch", call("pathlib:Path", m)
    ),
    "a file of another encoding (codecs.open)": lambda m: call("codecs:open", m, "w"),
    "a file under another name (io.open)": lambda m: call("io:open", m, "w"),
    "an archive (zipfile.ZipFile)": lambda m: call("zipfile:ZipFile", m, "w"),
    "an archive (tarfile.open)": lambda m: call("tarfile:open", m, "w"),
    "a packed file (bz2.BZ2File)": lambda m: call("bz2:BZ2File", m, "w"),
    "a database (sqlite3.connect)": lambda m: call("sqlite3:connect", m),
    "a call at the end (atexit.register)": lambda m: call(
        "atexit:register", name("io:open"), m, "w"
    ),
    "a call at a collection (weakref.finalize)": lambda m: call(
        "weakref:finalize", call("collections:UserList"), name("io:open"), m, "w"
    ),
    "a reduction (functools.reduce)": lambda m: call("functools:reduce", name("io:open"), [m, "w"]),
    "a table of numbers (numpy.savetxt)": lambda m: call("numpy:savetxt", m, [1]),
    "a data file (scipy.io.savemat)": lambda m: call("scipy.io:savemat", m, {"a": 1}, False),
    "a cache on the disk (joblib.memory)": lambda m: call("joblib.memory:Memory", m),
    "a written pickle (joblib.dump)": lambda m: call("joblib:dump", 1, m),
    "a function behind scikit-learn's module": lambda m: call("sklearn.datasets._base:os.mkdir", m),
}

# These read, import or prepare; what they would do leaves no mark.
_QUIET: dict[str, Gadget] = {
    "an import (importlib.import_module)": lambda _: _imported("antigravity"),
    "an import (builtins.__import__)": lambda _: call("builtins:__import__", "antigravity"),
    "numbers from a file (numpy.fromfile)": lambda _: call("numpy:fromfile", "/etc/hostname"),
    "a second pickle (numpy.load)": lambda _: call("numpy:load", "/etc/hostname", None, True),
    "a second pickle (joblib.load)": lambda _: call("joblib:load", "/etc/hostname"),
    "a second pickle (pandas.read_pickle)": lambda _: call("pandas:read_pickle", "/etc/hostname"),
    "a second model (torch.load)": lambda _: call("torch:load", "/etc/hostname"),
    "a table with expressions (pandas.eval)": lambda _: call("pandas:eval", "1"),
    "a library (numpy.ctypeslib)": lambda _: call("numpy.ctypeslib:load_library", "libc.so.6", "/"),
    "a helper of scikit-learn's tests": lambda _: name("sklearn.utils._testing:_delete_folder"),
    "a folder read by scikit-learn": lambda _: call("sklearn.datasets:load_files", "/etc"),
    "a module that scikit-learn imported": lambda _: name("sklearn.datasets._base:os"),
    "a package inside scikit-learn": lambda _: name("sklearn.externals._packaging.version:Version"),
    "an estimator of no list (catboost)": lambda _: call("catboost.core:CatBoostClassifier"),
    "a function in a FunctionTransformer": lambda _: built(
        "sklearn.preprocessing._function_transformer:FunctionTransformer", {"func": name("io:open")}
    ),
    "an analyzer of one's own": lambda _: built(
        "sklearn.feature_extraction.text:CountVectorizer", {"analyzer": name("io:open")}
    ),
    "a distance function in Python": lambda _: name(
        "sklearn.metrics._dist_metrics:PyFuncDistance64"
    ),
    "another codec (codecs.encode)": lambda _: call("_codecs:encode", "x", "rot13"),
    "an object of any class (copyreg)": lambda _: call(
        "copyreg:_reconstructor", name("zipfile:ZipFile"), name("builtins:object"), None
    ),
    "an array of a foreign class (numpy)": lambda _: call(
        "numpy._core.multiarray:_reconstruct", name("zipfile:ZipFile"), (0,), b"b"
    ),
}

# The list has these names, for other ends than these.
_MISUSED: dict[str, tuple[Gadget, str]] = {
    "a mapped file (numpy.memmap)": (
        lambda m: call("numpy:memmap", m, "uint8", "w+", 0, (4,)),
        "pickle_not_loadable",
    ),
    "a booster from a file (xgboost)": (
        lambda _: call("xgboost.core:Booster", {}, (), "/etc/hostname"),
        "pickle_not_loadable",
    ),
    "a booster from a file (lightgbm)": (
        lambda _: call("lightgbm.basic:Booster", {}, None, "/etc/hostname"),
        "pickle_not_loadable",
    ),
    "a text reader that opens what callers name": (
        lambda _: built(
            "sklearn.feature_extraction.text:CountVectorizer",
            {"input": "filename", "analyzer": "word", "ngram_range": (1, 1)},
        ),
        "sklearn_reads_files",
    ),
    "an array of more objects than it is given": (
        lambda _: _array_of((10,), call("numpy:dtype", "O8", False, True), ["a", "b"]),
        "pickle_not_loadable",
    ),
    "an array of more numbers than it is given": (
        lambda _: _array_of((1 << 20,), call("numpy:dtype", "f8", False, True), b"\x00" * 8),
        "pickle_not_loadable",
    ),
    "a type whose flags say that numbers are objects": (
        lambda _: _type("f8", (3, "<", None, None, None, -1, -1, 63)),
        "pickle_not_loadable",
    ),
    "a type of another size than its name says": (
        lambda _: _type("V8", (3, "|", None, None, None, 1 << 20, 1, 16)),
        "pickle_not_loadable",
    ),
    "a type with a field outside of it": (
        lambda _: _type(
            "V8",
            (3, "|", None, ("a",), {"a": (call("numpy:dtype", "f8", False, True), 999)}, 8, 1, 16),
        ),
        "pickle_not_loadable",
    ),
    "a generator whose position lies outside of it": (
        lambda _: Raw(
            call("numpy.random._pickle:__bit_generator_ctor", "MT19937")
            + value({"bit_generator": "MT19937", "state": {"key": [0], "pos": 1 << 30}})
            + b"b"
        ),
        "pickle_not_loadable",
    ),
    "more memory than there is (bytearray)": (
        lambda _: call("builtins:bytearray", 1 << 45),
        "model_memory_exceeded",
    ),
}


def _of(gadget: Gadget) -> Callable[[str], bytes]:
    return lambda mark: in_model(gadget(mark))


def techniques() -> list[Technique]:
    group = "pickle: what it calls"
    known = [
        Technique(
            group=group,
            name=title,
            make=_of(gadget),
            code="pickle_cloudpickle" if "cloudpickle" in title else "pickle_dangerous",
            unpickler="unsafe_pickle",
            runs=True,
        )
        for title, gadget in _KNOWN.items()
    ]
    others = [
        Technique(
            group=group,
            name=title,
            make=_of(gadget),
            code="unsafe_pickle",
            stopped_by=LOADER,
            unpickler="unsafe_pickle",
            runs=title in _UNSEEN,
        )
        for title, gadget in {**_UNSEEN, **_QUIET}.items()
    ]
    misused = [
        Technique(
            group=group,
            name=title,
            make=_of(gadget),
            code=code,
            stopped_by=LOADER,
            unpickler=code,
            runs=title == "a mapped file (numpy.memmap)",
        )
        for title, (gadget, code) in _MISUSED.items()
    ]
    return [*known, *others, *misused]

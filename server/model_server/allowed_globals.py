"""The names that a pickle of a scikit-learn model may refer to, and what each one becomes.

XGBoost's and LightGBM's estimators speak scikit-learn's interface and belong to it.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any, Callable, Dict, FrozenSet, Iterable, Set, Tuple

from server.model_server.evidence import package_of
from server.model_server.failures import ModelFailure

_Name = Tuple[str, str]


def _names(module: str, names: str) -> Set[_Name]:
    return {(module, name) for name in names.split()}


def _either(path: str, names: str) -> Set[_Name]:
    """Names below numpy's core, which numpy 2 renamed."""
    return _names(f"numpy.core.{path}", names) | _names(f"numpy._core.{path}", names)


_PLAIN: FrozenSet[_Name] = frozenset(
    _names(
        "builtins",
        "set frozenset slice complex range bytearray object int float bool str bytes list dict tuple",
    )
    | _names("collections", "OrderedDict defaultdict Counter deque")
)

_NUMPY: FrozenSet[_Name] = frozenset(
    _names("numpy", "ndarray dtype matrix")
    | _names("numpy", "mean median amax amin max min sum prod std var nanmean nanmedian asarray")
    | _either("multiarray", "_reconstruct scalar")
    | _either("numeric", "_frombuffer")
    | _names("numpy.ma", "MaskedArray")
    | _names("numpy.ma.core", "_mareconstruct MaskedArray MaskedConstant")
    | _names("numpy.random", "__RandomState_ctor")
    | _names("numpy.random._pickle", "__randomstate_ctor __bit_generator_ctor __generator_ctor")
    | _names("numpy.random.bit_generator", "SeedSequence __pyx_unpickle_SeedSequence")
    | _names("numpy.random._mt19937", "MT19937")
    | _names("numpy.random._pcg64", "PCG64 PCG64DXSM")
    | _names("numpy.random._philox", "Philox")
    | _names("numpy.random._sfc64", "SFC64")
)

_SPARSE = ("csr", "csc", "coo", "bsr", "dia", "dok", "lil")

_SCIPY: FrozenSet[_Name] = frozenset(
    {
        (f"scipy.sparse._{kind}", f"{kind}_{shape}")
        for kind in _SPARSE
        for shape in ("matrix", "array")
    }
    | {(f"scipy.sparse.{kind}", f"{kind}_matrix") for kind in _SPARSE}
    | _names("scipy.interpolate._interpolate", "interp1d")
    | _names("scipy.interpolate.interpolate", "interp1d")
    | _names("scipy.interpolate._bsplines", "BSpline")
    | _names("scipy._lib.array_api_compat.numpy._aliases", "asarray")
)

_SKLEARN: FrozenSet[_Name] = frozenset(
    _names("sklearn.utils", "Bunch")
    | _names("sklearn.utils._bunch", "Bunch")
    | _names("sklearn.utils._metadata_requests", "MetadataRequest MethodMetadataRequest")
    | _names("sklearn.tree._tree", "Tree")
    | _names("sklearn.ensemble._hist_gradient_boosting.predictor", "TreePredictor")
    | _names("sklearn._loss.link", "Interval")
    | _names("sklearn._loss._loss", "__pyx_unpickle_CyHalfMultinomialLoss CyHalfMultinomialLoss")
    | _names("sklearn.linear_model._sgd_fast", "Hinge ModifiedHuber SquaredHinge Log SquaredLoss")
    | _names("sklearn.linear_model._sgd_fast", "Huber EpsilonInsensitive SquaredEpsilonInsensitive")
    | _names("sklearn.linear_model._sgd_fast", "__pyx_unpickle_Classification")
    | _names("sklearn.linear_model._sgd_fast", "__pyx_unpickle_Regression")
    | _names("sklearn.neighbors._kd_tree", "KDTree KDTree32 KDTree64 newObj")
    | _names("sklearn.neighbors._ball_tree", "BallTree BallTree32 BallTree64 newObj")
    | _names("sklearn.metrics._dist_metrics", "newObj")
    | _names("sklearn.neighbors._dist_metrics", "newObj")
    | _names("sklearn.gaussian_process.kernels", "Hyperparameter")
    | _names("sklearn.cluster._birch", "_CFNode _CFSubcluster")
    | _names("sklearn.cluster._kmeans", "_kmeans_single_lloyd _kmeans_single_elkan")
    | _names("sklearn.cluster._bisect_k_means", "_BisectingTree")
    | _names("sklearn.impute._iterative", "_ImputerTriplet")
    | _names("sklearn.compose._column_transformer", "_RemainderColsList make_column_selector")
    | _names("sklearn.calibration", "_CalibratedClassifier")
    | _names("sklearn.neural_network._stochastic_optimizers", "AdamOptimizer SGDOptimizer")
    | _names("sklearn.feature_selection._univariate_selection", "f_classif f_regression chi2")
    | _names("sklearn.feature_selection._univariate_selection", "f_oneway r_regression")
    | _names("sklearn.feature_selection._mutual_info", "mutual_info_classif")
    | _names("sklearn.feature_selection._mutual_info", "mutual_info_regression")
    | _names("sklearn.metrics._scorer", "_Scorer _PredictScorer _ProbaScorer _ThresholdScorer")
    | _names("sklearn.metrics._scorer", "_PassthroughScorer _MultimetricScorer _CurveScorer")
)

_BOOSTING: FrozenSet[_Name] = frozenset(
    _names("xgboost.sklearn", "XGBClassifier XGBRegressor XGBRanker XGBRFClassifier XGBRFRegressor")
    | _names("lightgbm.sklearn", "LGBMClassifier LGBMRegressor LGBMRanker")
)

_BOOSTERS: FrozenSet[_Name] = frozenset(
    {("xgboost.core", "Booster"), ("lightgbm.basic", "Booster")}
)
"""Classes that are only given their state: made with arguments they would read files."""

_FAMILIES: Dict[str, Tuple[str, ...]] = {
    "sklearn._loss.loss": ("BaseLoss",),
    "sklearn._loss.link": ("BaseLink",),
    "sklearn._loss._loss": ("CyLossFunction",),
    "sklearn.ensemble._gb_losses": ("LossFunction",),
    "sklearn.ensemble._hist_gradient_boosting.loss": ("BaseLoss",),
    "sklearn.gaussian_process.kernels": ("Kernel",),
    "sklearn.model_selection._split": (
        "BaseCrossValidator",
        "BaseShuffleSplit",
        "_RepeatedSplits",
        "_UnsupportedGroupCVMixin",
    ),
    "sklearn.metrics._dist_metrics": ("DistanceMetric", "DistanceMetric64", "DistanceMetric32"),
    "sklearn.neighbors._dist_metrics": ("DistanceMetric",),
}
"""Modules whose helper classes are told by a base class of that module."""

_REFUSED_PARTS = frozenset(
    (
        *("tests", "conftest", "_testing", "_mocking", "_test_common", "estimator_checks"),
        *("externals", "datasets", "experimental", "_build_utils"),
        *("PyFuncDistance", "PyFuncDistance32", "PyFuncDistance64"),
    )
)


def _encode_latin1(text: str, encoding: str = "latin1") -> bytes:
    """``codecs.encode`` as old pickle protocols use it for bytes; other codecs run code."""
    if encoding not in ("latin1", "latin-1") or not isinstance(text, str):
        raise ModelFailure("unsafe_pickle", name="_codecs.encode")
    return text.encode("latin1")


def _bare_object(cls: Any, base: Any, state: Any) -> Any:
    """``copyreg._reconstructor`` for plain objects and containers."""
    cls = getattr(cls, "bare_kind", cls)
    if base not in (object, dict, list, tuple, set, str, int, float):
        raise ModelFailure("unsafe_pickle", name="copyreg._reconstructor")
    made = base.__new__(cls) if base is object else base.__new__(cls, state)
    if base is not object and base.__init__ is not object.__init__:
        base.__init__(made, state)
    return made


def _without_arguments(kind: Any) -> Any:
    """Return what makes objects of a class as unpickling does, and not as a call does."""

    class Bare:
        bare_kind = kind

        def __new__(cls) -> Any:
            return kind.__new__(kind)

    return Bare


class AllowedGlobals:
    """Looks up what a pickle names; one object per loaded file."""

    def __init__(self) -> None:
        self._replaced: Dict[_Name, Callable[..., Any]] = {
            ("_codecs", "encode"): _encode_latin1,
            ("copyreg", "_reconstructor"): _bare_object,
            ("copy_reg", "_reconstructor"): _bare_object,
            ("numpy.core", "_ufunc_reconstruct"): self._ufunc,
            ("numpy._core", "_ufunc_reconstruct"): self._ufunc,
        }

    def find(self, module: str, name: str) -> Any:
        """Return the object behind a name of the list.

        Raises:
            ModelFailure: ``unsafe_pickle`` for any other name, ``module_missing`` where its
                package is not installed, ``sklearn_name_missing`` where
                the installed scikit-learn does not have an otherwise acceptable one.
        """
        if module == "__builtin__":
            module = "builtins"
        wanted = (module, name)
        if wanted in self._replaced:
            return self._replaced[wanted]
        if any(wanted in names for names in (_PLAIN, _NUMPY, _SCIPY, _SKLEARN, _BOOSTING)):
            return self._attribute(module, name)
        if wanted in _BOOSTERS:
            return _without_arguments(self._attribute(module, name))
        if wanted == ("numpy", "memmap"):
            # The type of an array that was mapped when it was saved: it is read as a plain one.
            return self._attribute("numpy", "ndarray")
        parts = (*module.split("."), name)
        if all(part.isidentifier() for part in parts) and _REFUSED_PARTS.isdisjoint(parts):
            found = self._by_kind(module, name)
            if found is not None:
                return found
        raise _unsafe(module, name)

    def _by_kind(self, module: str, name: str) -> Any:
        if module in ("numpy", "scipy.special", "scipy.special._ufuncs") or module in _UFUNC_HOMES:
            found = self._attribute(module, name)
            return found if _is_number_kind(found) else None
        if module.startswith("sklearn."):
            found = self._attribute(module, name)
            if _is_model_class(module, found) or _is_score(found):
                return found
        return None

    def _attribute(self, module: str, name: str) -> Any:
        for candidate in _spellings(module):
            try:
                return getattr(importlib.import_module(candidate), name)
            except (ImportError, AttributeError):
                continue
        package = module.partition(".")[0]
        if package not in _PACKAGES:
            raise _unsafe(module, name)
        if importlib.util.find_spec(package) is None:
            raise ModelFailure("module_missing", module=package, package=package_of(package))
        raise ModelFailure("sklearn_name_missing", name=_shown(module, name))

    def _ufunc(self, module: str, name: str) -> Any:
        found = self._by_kind(module, name) if "." not in name else None
        if found is None:
            raise _unsafe(module, name)
        return found


_PACKAGES = ("sklearn", "numpy", "scipy", "xgboost", "lightgbm")

_UFUNC_HOMES = frozenset(
    {
        "numpy.core._multiarray_umath",
        "numpy._core._multiarray_umath",
        "numpy.core.umath",
        "numpy._core.umath",
    }
)


def _spellings(module: str) -> Iterable[str]:
    yield module
    if module.startswith("numpy._core"):
        yield "numpy.core" + module[len("numpy._core") :]
    elif module.startswith("numpy.core"):
        yield "numpy._core" + module[len("numpy.core") :]


def _is_number_kind(found: Any) -> bool:
    import numpy as np

    return isinstance(found, np.ufunc) or (
        isinstance(found, type) and issubclass(found, np.generic)
    )


def _is_model_class(module: str, found: Any) -> bool:
    from sklearn.base import BaseEstimator

    if not isinstance(found, type) or not found.__module__.startswith("sklearn."):
        return False
    if not _REFUSED_PARTS.isdisjoint(found.__module__.split(".")):
        return False
    home = importlib.import_module(module)
    bases = [getattr(home, base, None) for base in _FAMILIES.get(module, ())]
    return issubclass(found, (BaseEstimator, *[base for base in bases if isinstance(base, type)]))


def _is_score(found: Any) -> bool:
    """Tell a function of one of scikit-learn's named scorers, as a search keeps it."""
    from sklearn.metrics import get_scorer

    if isinstance(found, type) or not callable(found):
        return False
    name = str(getattr(found, "__name__", "")).replace("_score", "")
    for spelled in (name, f"{name}_score", f"neg_{name}"):
        try:
            if getattr(get_scorer(spelled), "_score_func", None) is found:
                return True
        except ValueError:
            continue
    return False


def _shown(module: str, name: str) -> str:
    text = f"{module}.{name}"
    return "".join(c if c.isprintable() and c not in "{}/\\" else "?" for c in text)[:120]


def _unsafe(module: str, name: str) -> ModelFailure:
    return ModelFailure("unsafe_pickle", name=_shown(module, name))

"""Everything that a command imports, for processes that are forked from the one that has it."""

import importlib
import os
import pkgutil

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import elev_ssl_jax
from elev_ssl_jax.runtime import quiet

_OWN_FLAGS = ("elev_ssl_jax.main", "elev_ssl_jax.plan")  # each defines absl's anew

quiet.import_tensorflow()
for _name in ("clu.metric_writers", "geopandas", "matplotlib.figure", "sklearn.linear_model"):
    importlib.import_module(_name)
for _module in pkgutil.walk_packages(elev_ssl_jax.__path__, "elev_ssl_jax."):
    if _module.name not in _OWN_FLAGS and not _module.name.endswith("__main__"):
        importlib.import_module(_module.name)

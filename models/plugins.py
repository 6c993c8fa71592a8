"""Models and losses that users bring: named in the configuration as "package.module:name" and imported when first needed.

The module is looked for where Python looks for any: in installed packages and on `PYTHONPATH`. Naming it runs its code, with the
rights of the process: a configuration is as trusted as a program.
"""

import importlib
from typing import Any

from state import config


def is_path(name: str) -> bool:
    """Whether a model's name is a path to a user's own."""
    return ":" in name


def named(key: str, path: str) -> Any:
    """What `path` names; `key` is the setting that holds it.

    Raises:
        config.ConfigError: the path is no "package.module:name", the module cannot be imported, or it has no such name.
    """
    module_name, _, name = path.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), name)):
        raise config.ConfigError(f'{key}: "{path}" names nothing; write it as "package.module:name"')
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise config.ConfigError(
                f'{key}: there is no module "{module_name}" for "{path}"; install its package, or put its folder on PYTHONPATH'
            ) from error
        raise config.ConfigError(f'{key}: "{module_name}" needs the module "{error.name}", which is missing') from error
    except Exception as error:
        raise config.ConfigError(f'{key}: "{module_name}" cannot be imported: {type(error).__name__}: {error}') from error
    if not hasattr(module, name):
        own = ", ".join(sorted(n for n, v in vars(module).items() if getattr(v, "__module__", "") == module_name)) or "nothing"
        raise config.ConfigError(f'{key}: "{module_name}" has no "{name}"; it defines {own}')
    return getattr(module, name)


def sequential(name: str) -> bool:
    """Whether a user's model asks, by an attribute `sequential = True`, to read the user's last actions one by one."""
    return is_path(name) and bool(getattr(named("model.name", name), "sequential", False))

"""Where the worked examples of configurations are, in a checkout and in an installed wheel."""

import pathlib

import thousandfold

NAMES = (
    "ml1m",
    "ml1m_dupn",
    "ml1m_retrieval",
    "search_log",
    "ml1m_ids",
    "ml1m_ids_models",
    "ml1m_cut",
    "ml1m_random",
    "seesaw",
    "seesaw7",
    "obd",
    "planted",
    "ml1m_cold",
)
FOLDERS = ("examples", "benchmarks/multi_scenario", "benchmarks/cold_start")


def path(name: str) -> pathlib.Path:
    """The file of a worked example.

    Raises:
        FileNotFoundError: there is no example of this name; the message lists those that there are.
    """
    package = pathlib.Path(thousandfold.__file__).parent
    for folder in (package / "examples", *(package.parent / name for name in FOLDERS)):
        file = folder / f"{name}.toml"
        if file.is_file():
            return file
    raise FileNotFoundError(f"no example named {name!r}; there are: {', '.join(NAMES)}")

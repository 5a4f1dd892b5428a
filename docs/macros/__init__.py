"""Python of the site: what pages call between double braces. mkdocs-macros loads `define_env`."""

import posixpath
from typing import Any

from reporting.summaries import memory_table, ratio_table, speed_table, stream_table

from macros.figures import FIGURES
from macros.settings import settings_reference

RESULTS = "profiling/results"
"""Where the site has the committed results (`hooks.py`)."""


def define_env(env: Any) -> None:
    """Tell mkdocs-macros what pages may call. Each returns Markdown."""
    for macro in (speed_table, stream_table, memory_table, ratio_table, settings_reference, figure):
        env.macro(macro)

    def result_picture(path: str, alt: str) -> str:
        """A picture of `profiling/results`, as a link to itself in full size. The build fails where it is missing."""
        target = posixpath.relpath(f"{RESULTS}/{path}", posixpath.dirname(env.page.file.src_uri))
        return f"[![{alt}]({target})]({target})"

    env.macro(result_picture)


def figure(name: str) -> str:
    """A figure or a table of the committed results, by its name in `figures.py`."""
    if name not in FIGURES:
        raise KeyError(f"there is no figure {name}; figures.py has {', '.join(FIGURES)}")
    return FIGURES[name]()

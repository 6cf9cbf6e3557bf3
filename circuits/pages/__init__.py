"""What the HTML pages share: their style, and how text gets into them.

A page is one file that needs no network. A folder that makes one has a template of its own with
its code. Whatever the template is given is escaped, except what it marks as safe: style and
scripts of the package, and JSON from `as_script_data`.
"""

from __future__ import annotations

import base64
import gzip
import importlib.resources
import json
from typing import Any

import jinja2

from circuits.numbers import percent, sized


def rendered(package: str, template: str, **values: Any) -> str:
    """Returns the page that a template makes of values.

    The template finds the style that all pages share as `base_style`, and `sized` and `percent` to
    write numbers with.

    Args:
        package: The package that the template lies in, such as "circuits.report".
        template: The name of its file.
        values: What it shows.

    Raises:
        jinja2.UndefinedError: the template asks for a value that is not given.
    """
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: read_text_of(package, name)),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals |= {"sized": sized, "percent": percent}
    base_style = read_text_of("circuits.pages", "base.css")
    return environment.get_template(template).render(base_style=base_style, **values)


def read_text_of(package: str, name: str) -> str:
    """Returns the text of a file that lies in a package: a style, a script."""
    return (importlib.resources.files(package) / name).read_text(encoding="utf-8")


def as_packed_script(script: str) -> str:
    """Returns a script as compressed base64, which a page unpacks: much less than half its size."""
    return base64.b64encode(gzip.compress(script.encode(), mtime=0)).decode()


def as_script_data(data: Any) -> str:
    """Returns data as JSON that no text in it can break out of, whatever the text."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text

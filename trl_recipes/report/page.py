"""The pieces that pages are made of: text made safe, tables, a figure's number, the page itself.

Whatever comes from a model, a data set, a file or a user goes through `text`. The page names no
address that a browser would fetch, holds no script, and forbids both to the browser as well.
"""

import html
import math
from collections.abc import Iterable, Sequence
from importlib import resources

from trl_recipes.describe import printable

LONGEST = 2000  # characters of one text; a page is to be read

# Nothing is fetched and nothing is run, whatever slipped through.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


class Html(str):
    """Text that is HTML already, and safe."""

    __slots__ = ()


def text(value: object) -> Html:
    """Make anything safe to stand in a page: markup is shown as written, controls are spaces.

    Args:
        value: HTML that is safe already stays as it is; line ends are kept, and what exceeds
            `LONGEST` characters is cut and counted.

    >>> text("<b>1 & 2</b>")
    '&lt;b&gt;1 &amp; 2&lt;/b&gt;'
    """
    if isinstance(value, Html):
        return value
    whole = str(value)
    shown = "\n".join(printable(line) for line in whole[:LONGEST].split("\n"))
    more = len(whole) - LONGEST
    return Html(html.escape(shown) + (f" … ({more:,} more characters)" if more > 0 else ""))


def element(tag: str, *content: object, **attributes: object) -> Html:
    """Make an element, with content and attributes made safe.

    Args:
        tag: its name.
        *content: put one after another.
        **attributes: `_` in a name stands for a hyphen, one at its end is dropped; None leaves an
            attribute out.

    >>> element("p", "a < b", class_="note")
    '<p class="note">a &lt; b</p>'
    """
    given = {
        name.rstrip("_").replace("_", "-"): value
        for name, value in attributes.items()
        if value is not None
    }
    opening = "".join(f' {name}="{text(value)}"' for name, value in given.items())
    return Html(f"<{tag}{opening}>{join(content)}</{tag}>")


def join(parts: Iterable[object], between: str = "") -> Html:
    """Put pieces one after another, each made safe.

    Args:
        parts: the pieces.
        between: HTML that stands between them.
    """
    return Html(between.join(text(part) for part in parts))


def section(title: str, *content: object) -> Html:
    """Make a section of the page under a heading of the second level; empty without content.

    Args:
        title: the heading.
        *content: below it; empty pieces do not count.
    """
    kept = [part for part in content if part]
    return element("section", element("h2", title), *kept) if kept else Html("")


def table(
    head: Sequence[object], rows: Iterable[Sequence[object]], label: str, numbers: bool = False
) -> Html:
    """Make a table that scrolls by itself where the screen is narrower.

    Args:
        head: a heading for each column.
        rows: cells; the first of each row is its heading.
        label: what the table shows, for who cannot see it.
        numbers: whether all columns but the first hold numbers, which then stand at the right.
    """
    heads = join(element("th", cell, scope="col") for cell in head)
    body = join(
        element("tr", element("th", first, scope="row"), *(element("td", c) for c in cells))
        for first, *cells in rows
    )
    inner = element(
        "table",
        element("thead", element("tr", heads)),
        element("tbody", body),
        class_="numbers" if numbers else None,
    )
    return element(
        "div", inner, class_="scroll", role="region", aria_label=label, tabindex=0
    )  # a keyboard scrolls only what it can reach


def facts(pairs: Iterable[tuple[str, object]]) -> Html:
    """Make a list of names and values; those without a value are left out.

    Args:
        pairs: name and value.
    """
    kept = [(name, value) for name, value in pairs if value not in (None, "")]
    inside = join(element("div", element("dt", n), element("dd", v)) for n, v in kept)
    return element("dl", inside, class_="facts") if kept else Html("")


def folded(title: str, *content: object) -> Html:
    """Make a part that opens when it is asked for.

    Args:
        title: stands there always.
        *content: what is folded.
    """
    return element("details", element("summary", title), *content)


def number(value: object) -> str:
    """Show a number in few digits; a dash where there is none.

    Args:
        value: anything; what is no finite number has no digits.

    >>> [number(x) for x in (0.123456, 1234.5, 80, -0.00001, None)]
    ['0.123', '1,234', '80', '-1e-05', '-']
    >>> number(1e-13)  # rounding
    '0'
    """
    if not isinstance(value, int | float) or not math.isfinite(value):
        return "-"
    if abs(value) < 1e-9:
        return "0"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3f}" if 0.01 <= abs(value) < 10 else f"{value:.3g}"


def plus_minus(mean: object, half: object) -> str:
    """Show a mean with half the width of its interval; a dash where there is none.

    Args:
        mean: None or nan where there is none.
        half: the same.

    >>> [plus_minus(13.36, 0.4361), plus_minus(1234.5, 20.25), plus_minus(None, None)]
    ['13.360 ± 0.436', '1234.5 ± 20.2', '-']
    """
    if not isinstance(mean, int | float) or not math.isfinite(mean):
        return "-"
    digits = 3 if abs(mean) < 100 else 1
    known = isinstance(half, int | float) and math.isfinite(half)
    return f"{mean:.{digits}f}" + (f" ± {half:.{digits}f}" if known else "")


def page(title: str, kind: str, lead: object, *sections: object) -> str:
    """Make the whole page.

    Args:
        title: its heading, and the browser's name of it.
        kind: what it is a page of, above the heading.
        lead: the one thing to know, below it.
        *sections: as `section` makes them; empty ones are left out.
    """
    style = resources.files("trl_recipes.report").joinpath("page.css").read_text(encoding="utf-8")
    head = Html(
        '<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
    )
    top = element(
        "header", element("p", kind, class_="kind"), element("h1", title), element("p", lead)
    )
    foot = element(
        "footer", "Made by trl_recipes from the files of the run. No script, no network."
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n'
        f"{head}{element('title', title)}\n<style>\n{style}</style>\n</head>\n<body>\n"
        f"{top}\n<main>\n"
        + "\n".join(str(part) for part in sections if part)
        + f"\n</main>\n{foot}\n</body>\n</html>\n"
    )

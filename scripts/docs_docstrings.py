"""The docstrings of fnn as Markdown, for the site's pages of the interface."""

import re

import griffe

NAMED = re.compile(r"^(``?[^`]+``?(, ``?[^`]+``?)*( [A-Za-z]\w*)?:) ")  # "`clip_norm`: ..."
CODE = re.compile(r"(``.+?``|`[^`]+`)", re.DOTALL)


class AsMarkdown(griffe.Extension):
    """Each docstring as it is read in Python, with arguments as a list and stars as stars."""

    def on_object(self, *, obj: griffe.Object, **rest: object) -> None:
        """Rewrite the docstring of one function, class or module."""
        if obj.docstring:
            fields = _fields(obj) if isinstance(obj, griffe.Class) else ""
            obj.docstring.value = markdown(obj.docstring.value) + fields


def _fields(cls: griffe.Class) -> str:
    """The fields of a named tuple: type, default, and the comment beside it."""
    if "NamedTuple" not in map(str, cls.bases):
        return ""
    lines, rows = cls.lines_collection[cls.filepath], []
    for name, field in cls.members.items():
        if isinstance(field, griffe.Attribute) and field.annotation is not None:
            default = "" if field.value is None else f" = {field.value}"
            comment = _escaped(lines[(field.lineno or 1) - 1].partition("  # ")[2])
            said = f": {comment}" if comment else ""
            rows.append(f"- `{name}: {field.annotation}{default}`{said}")
    return "\n\n" + "\n".join(rows)


def markdown(text: str) -> str:
    """The docstring in Markdown."""
    text = re.sub(r"^::\n", "", text, flags=re.MULTILINE)  # what follows is indented, so code
    text = re.sub(r"::$", ":", text, flags=re.MULTILINE)
    parts = CODE.split("\n".join(_lists(text.splitlines())))
    return "".join(part if i % 2 else _escaped(part) for i, part in enumerate(parts))


def _escaped(text: str) -> str:
    """`*size` is no emphasis, `|w|` no table, `<name>` no tag; indented lines are code."""
    return re.sub(
        r"^(?! {4}).*$", lambda m: re.sub(r"([\[*_<|$])", r"\\\1", m[0]), text, flags=re.M
    )


def _lists(lines: list[str]) -> list[str]:
    """A line that begins with an argument's name begins an item; before a list is a blank line."""
    found: list[str] = []
    inside = False  # within such an item
    for line in (re.sub(r"^ +- ", "- ", line) for line in lines):
        before = found[-1] if found else ""
        if NAMED.match(line) and (inside or not before or before.endswith((".", ":"))):
            found += [f"- {line}"] if inside or not before else ["", f"- {line}"]
            inside = True
        elif inside and line and not line.startswith("- "):
            found.append(f"  {line.strip()}")
        else:
            inside = False
            starts = line.startswith("- ") and before and not before.startswith(("- ", "  "))
            found += ["", line] if starts else [line]
    return found

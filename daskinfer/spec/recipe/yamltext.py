"""YAML as people type it: values together with the place each one was written at, so that errors can point.

Scalars follow the YAML 1.2 core schema: `on` and `yes` are text, `1e3` is a number, `012` is twelve, `1:30` is
text. Duplicate keys are refused. `${VAR}` and `${VAR:-default}` expand inside text after parsing, so a variable
can never add keys; `$${` stands for a literal `${`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from daskinfer.redaction import is_telling_variable, learn, secret_spans

KeyPath = tuple[str | int, ...]

_LONGEST_EXCERPT = 120
# Aliases (`*name`) can make ten lines into ten thousand million values, or characters; no recipe has as many as these.
_MOST_VALUES = 20_000
_MOST_CHARACTERS = 2_000_000
_MOST_DIGITS = 300
_VARIABLE = re.compile(r"\$\$\{|\$\{(?:(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\})?")
_TAG = "tag:yaml.org,2002:"
# Keys whose values are URLs.
_URLS = frozenset({"address", "checkpoint", "registry", "url", "workspace"})


@dataclass(frozen=True, slots=True)
class Spot:
    """A place in a text."""

    source: str
    """File name as the user typed it, or `--set key=value`."""
    text: str
    """The whole line."""
    line: int | None
    """From 1; None where lines do not matter, as in an override."""
    column: int
    """From 1."""
    width: int = 1
    """Characters that the caret underlines."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake, and where it is."""

    spot: Spot
    path: str
    """Dotted key path; empty for the recipe as a whole."""
    message: str
    """What is wrong, in one sentence without its full stop."""
    suggestion: str | None = None
    """What was probably meant."""

    def __str__(self) -> str:
        """Return `file:line:column: path: message`, the line, and a caret under the mistake."""
        spot = self.spot
        place = spot.source if spot.line is None else f"{spot.source}:{spot.line}:{spot.column}"
        head = ": ".join(part for part in (place, self.path, self.message) if part)
        if self.suggestion:
            head += f". Did you mean {self.suggestion!r}?"
        start = max(0, spot.column - 1 - _LONGEST_EXCERPT // 2) if len(spot.text) > _LONGEST_EXCERPT else 0
        excerpt = spot.text[start : start + _LONGEST_EXCERPT].rstrip()
        before = excerpt[: spot.column - 1 - start]
        carets = "^" * max(1, min(spot.width, len(excerpt) - len(before)))
        number = "" if spot.line is None else str(spot.line)
        return f"{head}\n{number:>5} | {excerpt}\n{'':>5} | {_blank(before)}{carets}"


@dataclass(frozen=True, slots=True)
class Source:
    """A text and what to call it."""

    name: str
    lines: tuple[str, ...]
    numbered: bool = True

    def spot(self, line: int, column: int, width: int = 1) -> Spot:
        """Return the place at `line` and `column`, both counted from 0."""
        text = self.lines[line] if line < len(self.lines) else ""
        return Spot(self.name, text, line + 1 if self.numbered else None, column + 1, width)

    def span(self, start: yaml.Mark, end: yaml.Mark) -> Spot:
        """Return the place between two marks, as far as it lies on one line."""
        return self.spot(start.line, start.column, end.column - start.column if end.line == start.line else 1)


@dataclass(frozen=True, slots=True)
class Spots:
    """Where a value and its key were written."""

    key: Spot
    value: Spot


@dataclass(slots=True)
class Document:
    """A parsed text: plain values, where each was written, and what is wrong so far."""

    source: Source
    prefix: KeyPath = ()
    value: Any = None
    spots: dict[KeyPath, Spots] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def read_document(source: Source, text: str, environment: Mapping[str, str], prefix: KeyPath = ()) -> Document:
    r"""Parse `text`; mistakes are listed in the document and never raised.

    Parameters
    ----------
    source
        What errors show; its lines are those of `text`, or of what the user typed for it.
    text
        One YAML document.
    environment
        Where `${VAR}` is looked up.
    prefix
        Key path that the text's value will have.

    Examples
    --------
    >>> text = "name: ${USER:-nobody}\nrows: 1e3"
    >>> document = read_document(Source("a.yaml", tuple(text.splitlines())), text, {"USER": "ada"})
    >>> document.value
    {'name': 'ada', 'rows': 1000.0}
    >>> document.spots["rows",].value.line, document.spots["rows",].value.column
    (2, 7)
    """
    document = Document(source, prefix)
    name = dotted(prefix)
    try:
        node = yaml.compose(text, Loader=_CoreLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        spot = source.spot(mark.line, mark.column) if mark else source.spot(0, 0)
        document.problems.append(Problem(spot, name, _syntax(error)))
    except yaml.reader.ReaderError as error:
        line, column = text.count("\n", 0, error.position), error.position - (text.rfind("\n", 0, error.position) + 1)
        message = f"not YAML: the character U+{error.character:04X} is not allowed"
        document.problems.append(Problem(source.spot(line, column), name, message))
    except RecursionError:
        document.problems.append(Problem(source.spot(0, 0), name, "not YAML: nested too deeply"))
    else:
        if node is not None:
            _read_node(document, environment, node)
    return document


def _read_node(document: Document, environment: Mapping[str, str], node: yaml.Node) -> None:
    top = document.source.spot(0, 0)
    try:
        _Reader(document, environment).read(node)
    except _TooManyValues as error:
        message = f"it expands to more than {_MOST_VALUES:,} values, or too much text; write it without aliases (*name)"
        document.problems[:] = [Problem(error.spot, dotted(error.path), message)]
        document.value = None
    except RecursionError:
        document.problems.append(Problem(top, dotted(document.prefix), "nested too deeply"))
        document.value = None


def dotted(path: KeyPath) -> str:
    """Return a key path as people write it.

    Examples
    --------
    >>> dotted(("input", "url", 0))
    'input.url.0'
    """
    return ".".join(map(str, path))


class _CoreLoader(yaml.SafeLoader):
    """PyYAML with the implicit types of YAML 1.2 in place of 1.1's; it takes a minute over a megabyte, so values are counted."""

    yaml_implicit_resolvers = {}
    _values = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose the next node."""
        self._values += 1
        # Keys are nodes too.
        if self._values > 2 * _MOST_VALUES:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(problem=f"it has more than {_MOST_VALUES:,} values", problem_mark=mark)
        return super().compose_node(parent, index)


# .inf and .nan are left out: nothing in a recipe may be infinite, and JSON cannot carry them.
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", list("-+.0123456789")),
):
    _CoreLoader.add_implicit_resolver(_TAG + _tag, re.compile(f"^(?:{_pattern})$"), _first)


class _TooManyValues(Exception):
    def __init__(self, spot: Spot, path: KeyPath) -> None:
        super().__init__(path)
        self.spot = spot
        self.path = path


class _Reader:
    """Turns nodes into plain values, noting where each was written."""

    def __init__(self, document: Document, environment: Mapping[str, str]) -> None:
        self.document = document
        self.source = document.source
        self.environment = environment
        self.open: set[int] = set()
        self.characters = 0

    def read(self, root: yaml.Node) -> None:
        spot = self.source.spot(root.start_mark.line, root.start_mark.column)
        self.document.value = self._value(root, self.document.prefix, spot)

    def _report(self, spot: Spot, path: KeyPath, message: str) -> None:
        self.document.problems.append(Problem(spot, dotted(path), message))

    def _value(self, node: yaml.Node, path: KeyPath, key: Spot) -> Any:
        spot = self.source.span(node.start_mark, node.end_mark)
        if isinstance(node, yaml.ScalarNode):
            self.characters += len(node.value)
        if len(self.document.spots) >= _MOST_VALUES or self.characters > _MOST_CHARACTERS:
            raise _TooManyValues(spot, path)
        self.document.spots[path] = Spots(key, spot)
        if id(node) in self.open:
            self._report(spot, path, "refers to itself")
            return None
        self.open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
                return self._mapping(node, path)
            if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
                return [self._value(child, (*path, i), key) for i, child in enumerate(node.value)]
            if isinstance(node, yaml.ScalarNode) and node.tag in _SCALARS:
                return self._scalar(node, path, spot)
        finally:
            self.open.discard(id(node))
        self._report(spot, path, f"the tag {node.tag.replace(_TAG, '!!')} is not allowed")
        return None

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        result: dict[str, Any] = {}
        first: dict[str, int] = {}
        for key_node, value_node in node.value:
            key = self.source.span(key_node.start_mark, key_node.end_mark)
            name = key_node.value
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag not in (_TAG + "str", _TAG + "int"):
                self._report(key, path, "keys must be text; put this one in quotes")
                continue
            if name in result:
                message = f"duplicate key; the first one is on line {first[name]}"
                self._report(key, (*path, name), message)
                continue
            first[name] = key_node.start_mark.line + 1
            result[name] = self._value(value_node, (*path, name), key)
        return result

    def _scalar(self, node: yaml.ScalarNode, path: KeyPath, spot: Spot) -> Any:
        kind = node.tag.removeprefix(_TAG)
        try:
            return self._expand(node.value, path, spot) if kind == "str" else _SCALARS[node.tag](node.value)
        except (ValueError, KeyError):
            self._report(spot, path, f"{node.value[:40]!r} is not a valid {kind}")
            return None

    def _expand(self, text: str, path: KeyPath, spot: Spot) -> str:
        # Secrets of URLs stay names, and are filled in where the URL is opened.
        names = [step for step in path if isinstance(step, str)]
        secret = secret_spans(text) if names and names[-1] in _URLS else []

        def replace(match: re.Match[str]) -> str:
            token, name, default = match.group(), match["name"], match["default"]
            if token == "$${":
                return "${"
            # Quoting and folding can move text away from where it was typed.
            at = spot.text.find(token, spot.column - 1)
            place = spot if at < 0 else Spot(spot.source, spot.text, spot.line, at + 1, len(token))
            if name is None:
                self._report(place, path, "not a variable: write ${NAME} or ${NAME:-default}, or $${ for a literal ${")
                return token
            found = self.environment.get(name)
            if found is None and default is None:
                message = f"the environment variable {name} is not set; ${{{name}:-default}} would give it a default"
                self._report(place, path, message)
                return token
            # As in a shell, :- also covers a variable that is set to nothing.
            value = (found or default) if default is not None else (found or "")
            if any(begin <= match.start() and match.end() <= end for begin, end in secret):
                learn([(name, value)])
                return f"${{{name}}}"
            if value and is_telling_variable(name):
                learn([(name, value)])
                message = (
                    f"{name} looks like a secret, and what stands here is written down; only URLs may hold secrets"
                )
                self._report(place, path, f"{message} (as passwords, or in their query)")
            return value

        return _VARIABLE.sub(replace, text)


def _whole(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError("the number has too many digits")
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


_SCALARS: dict[str, Any] = {
    _TAG + "null": lambda text: None,
    _TAG + "bool": lambda text: {"true": True, "false": False}[text.lower()],
    _TAG + "int": _whole,
    _TAG + "float": float,
    _TAG + "str": str,
}


def _syntax(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or "cannot be read"
    if "'\\t'" in problem:
        return "not YAML: a tab cannot indent; use spaces"
    if error.context == "while scanning an alias" or problem.startswith("found undefined alias"):
        return "not YAML: a value that begins with * names an anchor; put it in quotes"
    context = f" {error.context}" if error.context else ""
    if context and error.context_mark and error.problem_mark and error.context_mark.line != error.problem_mark.line:
        context += f" that begins on line {error.context_mark.line + 1}"
    return f"not YAML: {problem}{context}"


def _blank(text: str) -> str:
    """Return whitespace as wide on a terminal as `text`."""
    wide = {"W", "F"}
    return "".join("\t" if c == "\t" else "  " if unicodedata.east_asian_width(c) in wide else " " for c in text)

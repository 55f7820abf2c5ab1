"""Secrets of URLs: known in this process's memory only. What is written names them; what opens a URL fills them in.

A secret is the password of a URL (`user:password@`), or a value of its query or fragment, as signed URLs have them. In its place
stands `${NAME}`: the variable that a recipe took it from, or a name made of where it stands, never of what it is, so that
a job goes on when its token has changed.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from urllib.parse import quote, unquote

_MARK = re.compile(r"\$\{([A-Za-z_][\w.-]*)\}")
_LOGIN = re.compile(r"(?P<scheme>[A-Za-z][\w+.-]*://)(?P<login>[^/?#\s'\"<>]*)@")
_QUERY = re.compile(r"(?P<base>[A-Za-z][\w+.-]*://[^?\s'\"<>]*)\?(?P<query>[^\s'\"<>]*)")
_FRAGMENT = re.compile(r"(?P<base>[A-Za-z][\w+.-]*://[^?#\s'\"<>]*)[^#\s'\"<>]*#(?P<fragment>[^\s'\"<>]*)")
_TELLING = re.compile(
    r"sig|token|secret|passw|pwd|auth|cred|session|api.?key|access.?key|^key$|policy|jwt|^x-(amz|goog|ms)-",
    re.IGNORECASE,
)
_TELLING_VARIABLE = re.compile(
    r"(^|_)(token|secret|passw(or)?d|passphrase|credentials?|(api|access|private|secret|account)_?key|sas)$",
    re.IGNORECASE,
)
_WEB = ("http://", "https://")
# Shorter values are common words, and are hidden only where a URL holds them.
_SHORTEST, _SHORTEST_OTHER = 6, 12

_known: dict[str, str] = {}


def learn(secrets: Iterable[tuple[str, str]]) -> None:
    """Take up secrets, by name, that another process of the job knows.

    Examples
    --------
    >>> learn([("STORE_PASSWORD", "correct-horse")])
    >>> conceal("cannot log in with correct-horse")
    'cannot log in with ${STORE_PASSWORD}'
    """
    _known.update(secrets)


def known_secrets() -> tuple[tuple[str, str], ...]:
    """Return what this process knows, for its workers: to be handed on in memory, and never written.

    Examples
    --------
    >>> learn([("PROXY_PASSWORD", "battery-staple")])
    >>> ("PROXY_PASSWORD", "battery-staple") in known_secrets()
    True
    """
    return tuple(sorted(_known.items()))


def protect(url: str) -> str:
    """Return a URL with names in place of its secrets, which this process remembers; others come back as they are.

    Examples
    --------
    >>> url = protect("s3://me:correct-horse@host/data")
    >>> url
    's3://me:${password-ce8e7dc1}@host/data'
    >>> reveal(url)
    's3://me:correct-horse@host/data'
    """
    if "://" not in url:
        return url
    pieces: list[str] = []
    end = 0
    for begin, stop, name in _find_secrets(url):
        _known[name] = url[begin:stop]
        pieces += [url[end:begin], f"${{{name}}}"]
        end = stop
    return "".join([*pieces, url[end:]])


def reveal(url: str) -> str:
    """Return a URL to open, its secrets filled in.

    Raises
    ------
    KeyError
        Nobody has told this process one of them; the environment does not either.

    Examples
    --------
    >>> reveal("s3://bucket/data")
    's3://bucket/data'
    >>> reveal("s3://${NOBODY_SET_THIS}@host/data")
    Traceback (most recent call last):
        ...
    KeyError: 'NOBODY_SET_THIS'
    """
    if "${" not in url or "://" not in url:
        return url

    def look_up(match: re.Match[str]) -> str:
        name = match[1]
        return _known[name] if name in _known else os.environ[name]

    return _MARK.sub(look_up, url)


def conceal_known(text: str) -> str:
    """Return a text with names in place of the secrets that this process knows.

    Examples
    --------
    >>> learn([("STORE_PASSWORD", "correct-horse")])
    >>> conceal_known("403 for correct-horse; https://me:other@host")
    '403 for ${STORE_PASSWORD}; https://me:other@host'
    """
    for name, value in sorted(_known.items(), key=lambda item: -len(item[1])):
        shortest = _SHORTEST_OTHER if _is_other(name) else _SHORTEST
        for spelling in {value, quote(value, safe=""), quote(value), unquote(value)}:
            if len(spelling) >= shortest and spelling in text:
                text = text.replace(spelling, f"${{{name}}}")
    return text


def conceal(text: str) -> str:
    """Return a text without secrets: known ones, wherever they stand, and those of any URL in it.

    Examples
    --------
    >>> conceal("403 for https://bucket.example/a?X-Amz-Signature=0123456789")
    '403 for https://bucket.example/a?X-Amz-Signature=${q-X-Amz-Signature-4bc6add7}'
    """
    text = conceal_known(text)
    if "://" not in text:
        return text
    pieces: list[str] = []
    end = 0
    for begin, stop, name in _find_secrets(text):
        pieces += [text[end:begin], f"${{{name}}}"]
        end = stop
    return "".join([*pieces, text[end:]])


def secret_spans(url: str) -> list[tuple[int, int]]:
    """Return where a URL that may hold variables (`${VAR}`) has its secrets: begin and end of each.

    Examples
    --------
    >>> url = "ftp://me:${PASSWORD}@host/a"
    >>> [url[begin:end] for begin, end in secret_spans(url)]
    ['${PASSWORD}']
    """
    return [(begin, stop) for begin, stop, _ in _find_secrets(url, skip=lambda value: False)]


def _find_secrets(
    text: str, skip: Callable[[str], bool] = lambda value: _MARK.search(value) is not None
) -> Iterator[tuple[int, int, str]]:
    """Yield begin, end and name of every secret, in order."""
    found: list[tuple[int, int, str]] = []
    for match in _LOGIN.finditer(text):
        user, colon, password = match["login"].partition(":")
        begin = match.start("login") + (len(user) + 1 if colon else 0)
        host = re.split(r"[/?#\s]", text[match.end() :], maxsplit=1)[0]
        value = password if colon else user
        if value and not skip(value):
            place = f"{match['scheme']}{user if colon else ''}@{host}"
            found.append((begin, match.end("login"), f"password-{_digest(place)}"))
    for match in _QUERY.finditer(text):
        base = _LOGIN.sub(r"\g<scheme>", match["base"])
        is_web = base.startswith(_WEB)
        begin = match.start("query")
        for piece in match["query"].partition("#")[0].split("&"):
            key, equals, value = piece.partition("=")
            start = begin + (len(key) + 1 if equals else 0)
            value = value if equals else key
            begin += len(piece) + 1
            key = key if equals else "query"
            if not value or skip(value) or not (is_web or (equals and _TELLING.search(key))):
                continue
            # What is no token tells which data are meant, and its digest keeps them apart.
            which = "" if _TELLING.search(key) else f"-{_digest(value)}"
            found.append((start, start + len(value), f"q-{_label(key)}-{_digest(f'{base}?{key}')}{which}"))
    for match in _FRAGMENT.finditer(text):
        begin, base = match.start("fragment"), match["base"]
        for piece in match["fragment"].split("&"):
            key, _, value = piece.partition("=")
            if value and _TELLING.search(key) and not skip(value):
                start = begin + len(key) + 1
                name = f"f-{_label(key)}-{_digest(f'{base}#{key}')}"
                found.append((start, start + len(value), name))
            begin += len(piece) + 1
    yield from sorted(found)


def is_telling(name: str) -> bool:
    """Whether a name tells that what it names is a secret.

    Examples
    --------
    >>> is_telling("X-Amz-Signature"), is_telling("versionId")
    (True, False)
    """
    return _TELLING.search(name) is not None


def is_telling_variable(name: str) -> bool:
    """Whether an environment variable's name tells that it is a secret: `HF_TOKEN`, and not `TOKENIZER`.

    Examples
    --------
    >>> is_telling_variable("HF_TOKEN"), is_telling_variable("TOKENIZER")
    (True, False)
    """
    return _TELLING_VARIABLE.search(name) is not None


def _label(key: str) -> str:
    return re.sub(r"[^\w.-]", "-", key)[:40]


def _is_other(name: str) -> bool:
    """Whether a name is that of a query's value that is no token."""
    return name.startswith("q-") and not is_telling(name.removeprefix("q-"))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()[:8]

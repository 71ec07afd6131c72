"""What runs in the worker: fetch one page, go wrong if that is planned, parse it.

A worker may die anywhere in here. The server does not mind: it loses a client, writes that nobody
reads, and goes on with the next one.
"""

from __future__ import annotations

import resource
import signal
import socket
import string
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from http.client import HTTPConnection, HTTPException
from urllib.parse import quote, urldefrag, urljoin, urlsplit

from poolwatch.cli.demo.faults import Fault, commit

# The server imports what it shows: these open a browser, print a poem, open windows, take hours.
LEFT_OUT = frozenset({"antigravity", "this", "idlelib", "test"})
_TITLE_PREFIX = "Pydoc: "
_ERROR_PREFIX = "Error - "
_CHUNK = 1 << 16


class PageError(Exception):
    """A page that could not be had; the pool and the worker are well."""


class FetchTimeoutError(PageError):
    """The server did not deliver the page within the fetch's deadline."""


class FetchError(PageError):
    """The server could not be reached, or did not answer as it should."""


class ErrorPageError(PageError):
    """The server says that it cannot show this: most often a module that does not import."""


@dataclass(frozen=True, slots=True)
class PageOrder:
    """One job: which page, and what to do with it.

    Attributes:
        site: Address of the server, with a slash at its end.
        path: The page, relative to ``site``.
        fetch_seconds: Seconds that the fetch may take, in all.
        fault: What the handler does instead of parsing, None to parse.
    """

    site: str
    path: str
    fetch_seconds: float
    fault: Fault | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """What a page has shown.

    Attributes:
        path: The page, relative to the site.
        title: Its title, without the server's own prefix.
        size: Its length in characters.
        links: The pages of the same site that it names, each once, in the page's order.
    """

    path: str
    title: str
    size: int
    links: tuple[str, ...]


def prepare_worker(reset_signals: bool) -> None:
    """Make a worker ready for handlers that crash: the pool's initializer.

    Args:
        reset_signals: Undo the parent's signal handlers, which a worker of the standard pool
            inherits: with them, terminating the pool would not end a worker that hangs.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    if reset_signals:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def read_page(order: PageOrder) -> object:
    """Fetch and parse one page; the function of every job of the crawl.

    Returns:
        A ``Page``, unless the order plans a fault that returns something else.

    Raises:
        FetchTimeoutError: If the page took longer than the order allows.
        FetchError: If the server could not be reached or answered wrongly.
        ErrorPageError: If the page is the server's error message.
        PlannedError: If the order says so.
    """
    text = fetch(order.site, order.path, order.fetch_seconds)
    if order.fault is not None:
        return commit(order.fault)
    return parse(order.site, order.path, text)


def fetch(site: str, path: str, seconds: float) -> str:
    """Return the text of a page, or raise a ``PageError``, within ``seconds`` in all."""
    address = urlsplit(site)
    connection = HTTPConnection(address.hostname or "", address.port, timeout=seconds)
    try:
        return b"".join(_chunks(connection, path, time.monotonic() + seconds)).decode()
    except TimeoutError:
        raise FetchTimeoutError(f"{path} was not there after {seconds:g} s") from None
    except (OSError, HTTPException, UnicodeError) as error:
        raise FetchError(f"{path}: {type(error).__name__}: {error}") from None
    finally:
        connection.close()


def _chunks(connection: HTTPConnection, path: str, deadline: float) -> Iterator[bytes]:
    """Yield the answer's body. A socket's limit bounds each wait, not their sum, so it shrinks."""
    connection.connect()
    sock: socket.socket = connection.sock  # getresponse() takes it out of the connection
    _bound_next_wait(sock, deadline)
    connection.request("GET", f"/{path}")
    with connection.getresponse() as response:
        if response.status != 200:
            raise FetchError(f"{path}: the server says {response.status} {response.reason}")
        while True:
            _bound_next_wait(sock, deadline)
            chunk = response.read1(_CHUNK)
            if not chunk:
                return
            yield chunk


def _bound_next_wait(sock: socket.socket, deadline: float) -> None:
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise TimeoutError
    sock.settimeout(remaining)


def parse(site: str, path: str, text: str) -> Page:
    """Return what the page's text shows.

    Raises:
        ErrorPageError: If the text is the server's error message.
    """
    parser = _PageParser()
    parser.feed(text)
    parser.close()
    title = parser.title.strip().removeprefix(_TITLE_PREFIX)
    if title.startswith(_ERROR_PREFIX):
        raise ErrorPageError(f"the server cannot show {title.removeprefix(_ERROR_PREFIX)}")
    return Page(path, title, len(text), tuple(_site_paths(site, path, parser.hrefs)))


class _PageParser(HTMLParser):
    """Collects a page's title and the targets of its links."""

    def __init__(self) -> None:
        super().__init__()
        self.hrefs: list[str] = []
        self.title = ""
        self._in_title = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in_title = tag == "title"
        if tag == "a":
            self.hrefs += [value for name, value in attrs if name == "href" and value]

    def handle_endtag(self, tag: str) -> None:
        self._in_title = False

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title += data


def _site_paths(site: str, path: str, hrefs: Iterable[str]) -> Iterable[str]:
    paths = (site_path(site, path, href) for href in hrefs)
    return dict.fromkeys(found for found in paths if found is not None and is_wanted(found))


def site_path(site: str, path: str, href: str) -> str | None:
    """Return the page that a link leads to, relative to the site; None if it leads elsewhere."""
    try:
        target = urldefrag(urljoin(site + path, href)).url
    except ValueError:  # documentation quotes addresses of every kind, broken ones too
        return None
    if not target.startswith(site):
        return None
    # The server takes a path as it comes, so only what HTTP does not allow in one is escaped.
    return quote(target[len(site) :], safe=string.punctuation)


def is_wanted(path: str) -> bool:
    """Say whether to crawl a page of the site.

    Left out are the style sheet, the modules of ``LEFT_OUT`` with all below them, and every
    ``__main__``: importing one runs a program, inside the server.
    """
    name = path.removeprefix("topic?key=")
    if name == path:
        name = path.removesuffix(".html")
        if name == path:
            return False
    parts = name.split(".")
    return parts[0] not in LEFT_OUT and parts[-1] != "__main__"

"""A crawler on Celery, whose parser has bugs: pages abort their process, or hang.

Beat sends ``crawl`` every two seconds. It orders some pages of the standard library's
documentation server, each of which is a task of its own. With poolwatch as the worker's pool a page
that kills its process is one failed task with a reason, and the worker goes on with as many
processes as before.
"""

from __future__ import annotations

import os
import random
import sys
import time
import urllib.request
import zlib
from html.parser import HTMLParser

from celery import Celery

SITE = os.environ.get("CRAWLER_SITE", "http://127.0.0.1:8000/")
BROKER = os.environ.get("CRAWLER_BROKER", "redis://127.0.0.1:6379")
PAGES_AT_ONCE = 6

app = Celery("crawler", broker=f"{BROKER}/0", backend=f"{BROKER}/1")
app.conf.update(
    beat_schedule={"crawl": {"task": "crawler.crawl", "schedule": 2.0}},
    task_time_limit=2,  # seconds; holds also while a C library does not return
    worker_pool_options={"terminate_grace": 1.0},  # keyword arguments of poolwatch.Pool
    broker_connection_retry_on_startup=True,
)


class Links(HTMLParser):
    """Counts the links of a page."""

    count = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count += tag == "a"


@app.task
def crawl() -> int:
    """Order some pages of the built-in modules, which the server lists first."""
    names = random.sample(sorted(sys.builtin_module_names), PAGES_AT_ONCE)
    for name in names:
        parse.delay(f"{name}.html")
    return len(names)


@app.task
def parse(page: str) -> dict[str, object]:
    """Fetch one page and count its links, unless the parser's bugs come in between."""
    with urllib.request.urlopen(SITE + page, timeout=10) as answer:
        text = answer.read().decode(errors="replace")
    go_wrong(page)
    links = Links()
    links.feed(text)
    return {"page": page, "links": links.count}


def go_wrong(page: str) -> None:
    """Stand in for a C library with bugs: always the same pages go wrong."""
    luck = zlib.crc32(page.encode()) % 10
    if luck < 3:
        os.abort()
    if luck == 3:
        time.sleep(3600)

"""The page of a real service in this process, as a browser without scripts sees it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from executor.endpoints.service import Service
from executor.endpoints.table import open_service
from executor.parameters import parse_executor_options
from executor.web.app import make_app
from executor.web.room import OwnRoom
from serving import QUICK

PAGE = "http://page.example"


class Visitor(TestClient):
    """Attributes: service: what is behind the page."""

    service: Service

    def submit(self, path: str, data: Any = None, *, files: Any = None, follow: bool = True) -> Any:
        """Send a form as a page of this session would."""
        fields = {"csrf": csrf_of(self), **(data or {})}
        return self.post(path, data=fields, files=files, follow_redirects=follow)


@contextmanager
def page_over(folder: Path, *, token: str | None = None, **options: Any) -> Iterator[Visitor]:
    """Visit the page of a service with a workspace of its own. Args: options: those of the executor, over `QUICK`."""
    settings = parse_executor_options(QUICK | {"receive_timeout": 1000.0} | options).with_roots()
    service = open_service(folder / "workspace", settings)
    try:
        with Visitor(make_app(OwnRoom(service), settings, token), PAGE) as visitor:
            visitor.service = service
            yield visitor
    finally:
        service.close()


def csrf_of(visitor: TestClient, path: str = "/ui/") -> str:
    """What a change of this visitor must bring."""
    (found,) = re.findall(r'data-csrf="(\w+)"', visitor.get(path).text)
    return str(found)

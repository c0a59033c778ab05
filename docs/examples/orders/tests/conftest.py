"""Every test has an empty database, and tokens for its clients."""

import os
import tempfile
import time
from collections.abc import Iterator

import jwt
import pytest
from socketspec.testing import SyncTestClient, TestClient

os.environ["JWT_SECRET"] = "of-the-tests-only-and-32-bytes-long"
os.environ["DATABASE_URL"] = f"sqlite:///{tempfile.mkdtemp()}/orders.db"

from app.main import app
from app.shared import Base, engine


def token(user: str, role: str = "customer") -> str:
    """What tells who somebody is."""
    claims = {"sub": user, "role": role, "exp": time.time() + 60}
    return jwt.encode(claims, os.environ["JWT_SECRET"], algorithm="HS256")


@pytest.fixture
def client() -> Iterator[SyncTestClient]:
    """The whole application, in an event loop of its own."""
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    with TestClient(app) as client:
        yield client

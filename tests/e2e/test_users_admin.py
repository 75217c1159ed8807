"""`DELETE /admin/users/{app}/{user}`: an end user is deleted from everything that the gateway keeps."""

import asyncio
from urllib.parse import quote

import pytest

from tests.e2e.engines import MODEL, Received, answer
from tests.e2e.gateway import ADMIN_KEY

pytestmark = pytest.mark.asyncio(loop_scope="session")
ADMIN = {"authorization": f"Bearer {ADMIN_KEY}"}


async def say(_: Received, writer: asyncio.StreamWriter) -> None:
    writer.write(answer())


@pytest.mark.parametrize("user", ["ann", "a/b ü?", "x" * 6000])
async def test_deleted_user_is_not_in_the_statistics(served_by, app, user):
    gateway, _ = served_by(say)
    for name in (user, user, "bob"):
        body = {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "user": name}
        assert (
            await gateway.http.post("/v1/chat/completions", json=body, headers={"x-app-id": app})
        ).status_code == 200
    await gateway.wait_for_totals(app, ok=3)
    response = await gateway.http.delete(f"/admin/users/{app}/{quote(user, safe='')}", headers=ADMIN)
    assert (response.status_code, response.json()["requests"]) == (200, 2), response.text
    stats = await gateway.stats(app=app)
    assert ([row["user"] for row in stats["users"]], stats["totals"]["requests"]) == (["bob"], 1)


@pytest.mark.parametrize("path", ["app", "app/", "a/b/c"])
async def test_path_that_does_not_name_a_user_is_refused(served_by, path):
    gateway, _ = served_by(say)
    assert (await gateway.http.delete(f"/admin/users/{path}", headers=ADMIN)).status_code == 400


async def test_deletion_needs_the_admin_key(served_by):
    gateway, _ = served_by(say)
    assert (await gateway.http.delete("/admin/users/app/ann")).status_code == 401

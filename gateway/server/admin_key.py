"""Creates and stores an admin key when the settings do not name one. Only its owner can read the file."""

import os
import secrets
from pathlib import Path


def stored_admin_key(directory: Path, *, create: bool = True) -> str | None:
    """Return the admin key in `directory`; create one if there is none, unless `create` is False."""
    path = directory / "admin_key"
    if path.exists():
        return path.read_text().strip()
    if not create:
        return None
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = f"mg-admin-{secrets.token_urlsafe(24)}"
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(key + "\n")
    return key

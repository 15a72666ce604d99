"""How an agent leaves its result for whoever fetches it."""

from __future__ import annotations

import contextlib
import json
import os
from typing import Any, Mapping

RESULT_NAME = "result.json"


def write_result(directory: str, result: Mapping[str, Any]) -> None:
    """Leaves `result.json` in a directory, whole or not at all. Raises OSError."""
    path = os.path.join(directory, RESULT_NAME)
    temporary = f"{path}.{os.getpid()}"
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(result, file)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise

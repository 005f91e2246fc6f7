"""The exit code of the trainer's commands."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any


def exit_code(command: str, run: Callable[[], Any]) -> int:
    """Runs a command and returns its exit code.

    Args:
        command: Its name, for the message.
        run: What it does.

    Returns:
        0; 2 after an error that the user can mend, of which one line is printed on stderr; 130 after Ctrl-C.

    Raises:
        ModuleNotFoundError: where a package is missing; ssl_fast.cli says which extra brings it.
    """
    try:
        run()
    except ModuleNotFoundError:
        raise
    except (ValueError, OSError, ImportError) as error:
        print(f"ssl-fast {command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0

"""What all of the trainer's commands share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any


def exit_code(command: str, run: Callable[[], Any]) -> int:
    """Runs a command: 0, 2 after an error that the user can mend (one line on stderr), 130 after Ctrl-C."""
    try:
        run()
    except ModuleNotFoundError:
        raise  # ssl_fast.cli says which extra has it
    except (ValueError, OSError, ImportError) as error:
        print(f"ssl-fast {command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0

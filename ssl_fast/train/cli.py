"""`ssl-fast train` and `ssl-fast eval`."""

# No `from __future__ import annotations`: tyro reads the annotations, some of which are made here.

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from tyro.conf import OmitArgPrefixes, Positional, arg
from tyro.extras import subcommand_cli_from_dict

from . import checkpoint, data, loop, report
from .methods import METHODS
from .recipes import RECIPES


def train_main(arguments: list[str]) -> int:
    """`ssl-fast train`: 0, 2 after an error that the user can mend, 130 after Ctrl-C."""
    commands = {name: _train_command(name) for name in RECIPES}
    return _run("train", lambda: subcommand_cli_from_dict(commands, prog="ssl-fast train", args=arguments))


def _train_command(method_name: str) -> Callable[..., None]:
    recipe_class = RECIPES[method_name]

    def command(
        data: str,
        recipe: OmitArgPrefixes[recipe_class] = recipe_class(),  # type: ignore[valid-type]  # noqa: B008 (frozen)
        folder: Path | None = None,
        resume: bool = False,
    ) -> None:
        """Train an encoder.

        Args:
            data: digits, fashion-mnist (downloaded once) or fashion-mnist:FOLDER.
            recipe: What to train with.
            folder: Where checkpoint, config and logs go; runs/METHOD-DATA unless given.
            resume: Go on from the folder's checkpoint.
        """
        folder = folder or Path("runs", f"{method_name}-{data.partition(':')[0]}")
        loop.train(method_name, recipe, data, folder, resume)
        print(f"ssl-fast eval {folder / checkpoint.NAME}")

    return command


def eval_main(arguments: list[str]) -> int:
    """`ssl-fast eval`: 0, or 2 after an error that the user can mend."""
    return _run("eval", lambda: tyro.cli(_evaluate, prog="ssl-fast eval", args=arguments))


def _evaluate(
    path: Annotated[Positional[Path], arg(metavar="CHECKPOINT")],
    data_spec: Annotated[str | None, arg(name="data", metavar="DATA")] = None,
) -> None:
    """kNN and linear-probe accuracy of a checkpoint's encoder.

    Args:
        path: A checkpoint.pt that ssl-fast train wrote.
        data_spec: Other data than it was trained on, e.g. fashion-mnist:FOLDER.
    """
    contents = checkpoint.load(path)
    dataset = data.load(data_spec or contents["data"])
    method = METHODS[contents["method"]](contents["recipe"], channels=dataset.train_images.shape[1])
    try:
        method.load_state_dict(contents["model"])
    except RuntimeError as error:  # torch lists every weight that does not fit
        raise ValueError(f"{path}: expected the weights of {contents['method']} on such data, got others") from error
    title = f"{contents['method']} on {dataset.name}, epoch {contents['epoch']}"
    Console().print(
        report.table({contents["method"]: report.accuracies(method.get_submodule("encoder"), dataset)}, title)
    )


def _run(command: str, run: Callable[[], Any]) -> int:
    try:
        run()
    except (ValueError, OSError) as error:
        print(f"ssl-fast {command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0

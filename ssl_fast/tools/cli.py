"""The command `ssl-fast`: each subcommand is imported when it is asked for and parses its own arguments."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable


def _lazily(module: str, function: str = "main") -> Callable[[list[str]], int]:
    """A command whose module is imported when it runs."""

    def run(arguments: list[str]) -> int:
        code: int = getattr(importlib.import_module(module, __package__), function)(arguments)
        return code

    return run


# name: what runs it, what it does, the extra that brings the packages it needs
COMMANDS = {
    "recipes": (
        _lazily("..train.commands.recipes"),
        "list what can be trained, or print one recipe: ssl-fast recipes moco-v2",
        "train",
    ),
    "train": (
        _lazily("..train.commands.train"),
        "train an encoder: ssl-fast train simclr-small --data digits",
        "train",
    ),
    "eval": (
        _lazily("..train.commands.eval"),
        "kNN, linear and low-label accuracy of a checkpoint; a map",
        "train",
    ),
    "compare": (
        _lazily("..train.commands.compare"),
        "draw several runs together",
        "train",
    ),
    "study": (
        _lazily("..train.commands.study"),
        "an ablation of the papers in miniature: ssl-fast study temperature",
        "train",
    ),
    "export": (
        _lazily("..train.commands.export"),
        "an encoder's weights for torchvision, timm, safetensors, ONNX or MoCo's own code",
        "train",
    ),
    "import-moco": (
        _lazily("..train.commands.import_moco"),
        "a checkpoint of facebookresearch/moco as one of ours",
        "train",
    ),
    "doctor": (
        _lazily(".doctor"),
        "show what was built and what runs where, and check every operator",
        "",
    ),
    "build": (
        _lazily(".build"),
        "compile the extension for the installed torch",
        "",
    ),
}


def main(arguments: list[str] | None = None) -> int:
    """Runs one subcommand and returns its exit code. arguments: None takes the command line's."""
    from ..version import __version__

    parser = argparse.ArgumentParser(
        prog="ssl-fast",
        description="Fused contrastive losses for PyTorch.",
        epilog="\n".join(["commands:", *(f"  {name:11} {what}" for name, (_, what, _) in COMMANDS.items())]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ssl_fast {__version__}")
    parser.add_argument("command", choices=COMMANDS, help="`ssl-fast COMMAND --help` shows its options")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="the command's own arguments")
    asked = parser.parse_args(arguments)
    run, _, extra = COMMANDS[asked.command]
    try:
        return run(asked.arguments)
    except KeyboardInterrupt:
        return 130
    except ModuleNotFoundError as error:
        if not extra or error.name is None or error.name.startswith("ssl_fast"):
            raise
        print(
            f"ssl-fast {asked.command} needs {error.name}, which is not installed: pip install 'ssl-fast[{extra}]'",
            file=sys.stderr,
        )
        return 1

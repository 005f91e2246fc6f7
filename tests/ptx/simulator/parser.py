"""PTX text to programs: the module, its kernels, their declarations, scopes and labels. decode.py does instructions."""

from __future__ import annotations

import re

from .control_flow import set_reconvergence
from .decode import decode
from .instructions import BYTES
from .program import Instruction, Program, PtxError
from .symbols import CONSTANT_WINDOW, SHARED_BASE, Scope, Symbols, Variable, aligned, literal

_LINKAGE = r"(?:\.(?:visible|weak|extern)\s+)?"
_VARIABLE = re.compile(
    rf"^\s*{_LINKAGE}\.(?P<space>shared|global|const)\s+(?:\.align\s+(?P<align>\d+)\s+)?\.(?P<type>\w+)\s+"
    r"(?P<name>[\w$]+)(?P<array>\[(?P<count>\d*)\])?\s*(?:=\s*\{(?P<list>[^}]*)\}|=\s*(?P<value>[^;]+))?;",
    re.MULTILINE,
)
_PARAMETER = re.compile(
    r"\.param\s+(?:\.align\s+(?P<align>\d+)\s+)?\.(?P<type>\w+)\s+"
    r"(?:\.ptr\s+(?:\.\w+\s+)?(?:\.align\s+\d+\s+)?)?(?P<name>[\w$]+)(?:\[(?P<count>\d+)\])?"
)
_LOCAL_VARIABLE = re.compile(
    r"\.(?P<space>shared|local)\s+(?:\.align\s+(?P<align>\d+)\s+)?\.(?P<type>\w+)\s+(?P<name>[\w$]+)(?:\[(?P<count>\d+)\])?"
)
_LOCATION = re.compile(r"\.loc\s+(\d+)\s+(\d+)(?:\s+\d+)?(?:.*inlined_at\s+(\d+)\s+(\d+))?")
_LABEL = re.compile(r"([\w$%]+)\s*:(?!:)")


def parse(text: str) -> dict[str, Program]:
    """All kernels of a module by name."""
    return _Module(text).programs


class _Module:
    """The variables of a module and its kernels."""

    def __init__(self, text: str):
        self.text = _without_comments(text)
        files = re.finditer(r'^\s*\.file\s+(\d+)\s+"([^"]*)"(?:\s+"([^"]*)")?', text, re.MULTILINE)
        self.files = {match[1]: (match[3] or match[2]).rsplit("/", 1)[-1] for match in files}
        self.variables: dict[str, Variable] = {}
        self.constants = bytearray()
        self.shared_bytes = 0
        for match in _VARIABLE.finditer(self._outside_of_kernels()):
            self._declare(match)
        # An array of unknown size is the dynamic shared memory: it follows the static variables.
        self.shared_bytes = aligned(self.shared_bytes, 16)
        for variable in self.variables.values():
            if variable.address < 0:
                variable.address = SHARED_BASE + self.shared_bytes
        self.programs = {}
        for match in re.finditer(r"\.entry\s+([\w$]+)\s*\(", self.text):
            self.programs[match[1]] = _Kernel(self, match[1], match.end()).program

    def _outside_of_kernels(self) -> str:
        first = re.search(rf"^\s*{_LINKAGE}\.entry\b", self.text, re.MULTILINE)
        return self.text[: first.start()] if first else self.text

    def _declare(self, match: re.Match[str]) -> None:
        size = BYTES[match["type"]]
        dynamic = match["array"] is not None and not match["count"]
        count = int(match["count"] or 1)
        alignment = int(match["align"] or size)
        if match["space"] == "shared":
            self.shared_bytes = aligned(self.shared_bytes, alignment)
            self.variables[match["name"]] = Variable("shared", -1 if dynamic else SHARED_BASE + self.shared_bytes)
            self.shared_bytes += 0 if dynamic else size * count
            return
        self.constants.extend(bytes(aligned(len(self.constants), alignment) - len(self.constants)))
        address = len(self.constants) + (CONSTANT_WINDOW if match["space"] == "global" else 0)
        self.variables[match["name"]] = Variable(match["space"], address)
        values = (match["list"] or match["value"] or "").split(",")
        data = b"".join(_initial(value.strip(), size) for value in values if value.strip())
        self.constants.extend(data.ljust(size * count, b"\0"))


def _initial(text: str, size: int) -> bytes:
    bits = literal(text)
    if bits is None:
        raise PtxError(f"initialiser {text}")
    return (bits & ((1 << 8 * size) - 1)).to_bytes(size, "little")


class _Kernel:
    """One `.entry`: `start` is where its parameters begin in the module's text."""

    def __init__(self, module: _Module, name: str, start: int):
        self.module, self.text = module, module.text
        self.program = program = Program(name, static_shared_bytes=module.shared_bytes)
        program.constant_bytes = bytes(module.constants)
        self.symbols = Symbols(program, module.variables)
        self.source, self.last_label = "?", ""
        self.branches: list[tuple[Instruction, str, list[Scope]]] = []  # ..., label, scopes around it
        self.tables: dict[str, tuple[list[str], list[Scope]]] = {}  # of brx: labels, scopes around them
        end = self.text.index(")", start)
        body = self.text.index("{", end)
        self._parameters(self.text[start:end])
        self._directives(self.text[end + 1 : body])
        self._body(body + 1)
        program.instructions.append(Instruction("ret", text="ret", source=self.source))
        for branch, label, scopes in self.branches:
            try:
                self._resolve(branch, label, scopes)
            except (PtxError, KeyError) as error:
                raise self._error(branch.text, branch.line, error) from error
        set_reconvergence(program.instructions)

    def _parameters(self, text: str) -> None:
        offset = 0
        for declaration in filter(None, map(str.strip, text.split(","))):
            match = _PARAMETER.fullmatch(declaration)
            if not match:
                raise PtxError(f"parameter {declaration}")
            size = BYTES[match["type"]]
            offset = aligned(offset, int(match["align"] or size))
            self.program.parameters[match["name"]] = (offset, size * int(match["count"] or 1))
            offset += size * int(match["count"] or 1)
        self.program.parameter_bytes = offset

    def _directives(self, text: str) -> None:
        if match := re.search(r"\.(?:reqntid|maxntid)\s+(\d+)(?:\s*,\s*(\d+))?(?:\s*,\s*(\d+))?", text):
            x, y, z = (int(number or 1) for number in match.groups())
            self.program.threads = (x, y, z)

    def _body(self, position: int) -> None:
        text, symbols = self.text, self.symbols
        line = text.count("\n", 0, position) + 1
        depth = 1
        while depth:
            if text[position] in "{} \t\n\r":
                if text[position] == "{":
                    symbols.scopes.append(Scope())
                    depth += 1
                elif text[position] == "}":
                    symbols.scopes.pop()
                    depth -= 1
                line += text[position] == "\n"
                position += 1
            elif text.startswith((".loc", ".file"), position):
                end = text.index("\n", position)
                self._location(text[position:end])
                position = end
            elif match := _LABEL.match(text, position):
                symbols.scopes[-1].labels[match[1]] = len(self.program.instructions)
                self.last_label = match[1]
                position = match.end()
            else:
                end = text.index(";", position)
                self._statement(" ".join(text[position:end].split()), line)
                line += text.count("\n", position, end)
                position = end + 1

    def _location(self, text: str) -> None:
        if match := _LOCATION.match(text):
            files = self.module.files
            self.source = f"{files.get(match[1], match[1])}:{match[2]}"
            if match[3]:
                self.source += f" @ {files.get(match[3], match[3])}:{match[4]}"

    def _statement(self, text: str, line: int) -> None:
        if not text or text.startswith(".pragma"):
            return
        try:
            if text.startswith("."):
                self._declaration(text)
            else:
                instruction, label = decode(text, self.symbols)
                instruction.text, instruction.line, instruction.source = text, line, self.source
                self.program.instructions.append(instruction)
                if label:
                    self.branches.append((instruction, label, list(self.symbols.scopes)))
        except (PtxError, KeyError, IndexError, ValueError, StopIteration) as error:
            raise self._error(text, line, error) from error

    def _error(self, text: str, line: int, error: Exception) -> PtxError:
        reason = error if isinstance(error, PtxError) else repr(error)
        return PtxError(f"{self.program.name}, PTX line {line}: {text}: {reason}")

    def _declaration(self, text: str) -> None:
        if match := re.fullmatch(r"\.reg\s+\.(\w+)\s+(.*)", text):
            for name in match[2].split(","):
                self.symbols.declare(match[1], name.strip())
        elif text.startswith(".branchtargets"):
            labels = [label.strip() for label in text.split(None, 1)[1].split(",")]
            self.tables[self.last_label] = (labels, list(self.symbols.scopes))
        elif match := _LOCAL_VARIABLE.fullmatch(text):
            program, size = self.program, BYTES[match["type"]]
            shared = match["space"] == "shared"
            used = program.static_shared_bytes if shared else program.local_bytes
            base = aligned(used, int(match["align"] or size))
            end = base + size * int(match["count"] or 1)
            if shared:
                program.static_shared_bytes = end
            else:
                program.local_bytes = end
            self.symbols.variables[match["name"]] = Variable(match["space"], base + (SHARED_BASE if shared else 0))
        else:
            raise PtxError("unknown directive")

    def _resolve(self, branch: Instruction, label: str, scopes: list[Scope]) -> None:
        if branch.opcode == "bra":
            branch.target = _find(label, scopes)
        else:
            labels, around = self.tables[label]
            branch.operands += [_find(each, around) for each in labels]


def _find(label: str, scopes: list[Scope]) -> int:
    for scope in reversed(scopes):
        if label in scope.labels:
            return scope.labels[label]
    raise PtxError(f"label {label}")


def _without_comments(text: str) -> str:
    text = re.sub(r"/\*.*?\*/", lambda match: "\n" * match[0].count("\n"), text, flags=re.DOTALL)
    return re.sub(r"//[^\n]*", "", text)

"""The public names of an installed Python package and their docstrings, read from source with ``ast``.

Nothing is imported or run. A name is public when no part of it starts with an underscore and its module exports
it: through ``__all__`` where that is a plain list, else by defining it, or (in a package's ``__init__``) importing it.
"""

from __future__ import annotations

import ast
import gc
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.machinery import PathFinder
from pathlib import Path

from neuroranker_pipeline.errors import BadInput

STDLIB = "stdlib"
"""Stands for every public module of the standard library that is written in Python."""

LEFT_OUT = {
    "test", "tests", "conftest", "externals", "extern", "vendored", "vendor", "third_party", "examples",
    "benchmarks", "setup", "site-packages", "distutils", "ensurepip", "idlelib", "lib2to3", "pydoc_data",
    "turtledemo", "encodings", "antigravity", "this",
}  # fmt: skip

Home = tuple[str, str]
"""Where an object is defined: (module, top-level name)."""


@dataclass
class Module:
    """What one source file defines, documents and passes on."""

    name: str
    is_package: bool = False
    docs: dict[str, str] = field(default_factory=dict)
    """Docstrings by name within the module (``Class.method``); the module's own under the empty name."""
    defined: set[str] = field(default_factory=set)
    imports: dict[str, Home] = field(default_factory=dict)
    stars: list[str] = field(default_factory=list)
    exported: list[str] | None = None
    added: list[tuple[str, str, str]] = field(default_factory=list)
    """Docstrings of C objects: (module, name within it, docstring)."""

    def define(self, name: str) -> None:
        """Record a C object as defined here, and as exported: it has been documented for users."""
        self.defined.add(name)
        if self.exported is not None:
            self.exported.append(name)


def public_docstrings(package: str) -> dict[str, str]:
    """Docstrings of every public object of ``package`` (or of the standard library) by qualified name.

    An object that several modules offer gets its shortest name. Raises ``BadInput`` when the package is not
    installed.
    """
    names = stdlib_modules() if package == STDLIB else [package]
    found: dict[str, str] = {}
    with _fast_parsing():
        for name in names:
            found.update(_Package(name, find(name)).docstrings())
    return found


def stdlib_modules() -> list[str]:
    """The standard library's public top-level modules that have Python source."""
    root = Path(sysconfig.get_path("stdlib"))
    names = sorted(n for n in sys.stdlib_module_names if _is_public(n))
    return [n for n in names if (root / f"{n}.py").is_file() or (root / n / "__init__.py").is_file()]


def find(package: str) -> Path:
    """The package's folder, or its file when it is a single module; found without importing it."""
    # A user's own random.py must not pass for the standard library's.
    path = [sysconfig.get_path("stdlib")] if package in sys.stdlib_module_names else None
    spec = PathFinder.find_spec(package, path) if package.isidentifier() else None
    if spec is None or not (spec.origin or "").endswith(".py"):
        raise BadInput(
            f"pydocs: package {package!r} is not installed here as Python source; install it, or leave it out of `packages`"
        )
    origin = Path(str(spec.origin))
    return origin.parent if origin.name == "__init__.py" else origin


class _Package:
    """The modules of one package, parsed when first needed."""

    def __init__(self, name: str, root: Path) -> None:
        self.name = name
        self.files = dict(_module_files(name, root))
        self.modules: dict[str, Module] = {}

    def docstrings(self) -> dict[str, str]:
        self._add_docs_of_c_objects()
        names: dict[Home, str] = {}
        found: dict[str, str] = {}
        public = sorted((m for m in self.files if _is_public(m)), key=lambda m: (m.count("."), m))
        for module in map(self.load, public):
            if "" in module.docs:
                found[module.name] = module.docs[""]
            for name in self._offered(module):
                home = self._resolve(module.name, name)
                if home is not None:
                    names[home] = min(names.get(home, f"{module.name}.{name}"), f"{module.name}.{name}", key=_brevity)
        for (home_module, home_name), public_name in sorted(names.items()):
            for local, docstring in self.load(home_module).docs.items():
                owner, _, member = local.partition(".")
                if owner == home_name:
                    found[f"{public_name}.{member}" if member else public_name] = docstring
        return found

    def load(self, name: str) -> Module:
        """Parse a module of this package; one without source (a C extension) is empty."""
        if name not in self.modules:
            file = self.files.get(name)
            self.modules[name] = _parse(name, file) if file else Module(name)
        return self.modules[name]

    def _offered(self, module: Module) -> list[str]:
        """The public names that a public module offers."""
        if module.exported is not None:
            names = set(module.exported)
        elif module.is_package:
            names = self._starred(module, set())
        else:
            names = module.defined
        return sorted(n for n in names if not n.startswith("_") and n not in LEFT_OUT)

    def _starred(self, module: Module, seen: set[str]) -> set[str]:
        """The names that ``from module import *`` brings."""
        if module.exported is not None:
            return set(module.exported)
        names = module.defined | set(module.imports)
        seen.add(module.name)
        for star in module.stars:
            if star not in seen:
                names = names | self._starred(self.load(star), seen)
        return names

    def _resolve(self, module_name: str, name: str, seen: frozenset[Home] = frozenset()) -> Home | None:
        """Follow imports to where the object is defined; None when that is another package or a module."""
        here = (module_name, name)
        if here in seen or module_name.split(".")[0] != self.name:
            return None
        module = self.load(module_name)
        if name in module.defined:
            return here
        if name in module.imports:
            return self._resolve(*module.imports[name], seen | {here})
        for star in module.stars:
            exported = self.load(star).exported
            if exported is None or name in exported:
                home = self._resolve(star, name, seen | {here})
                if home is not None:
                    return home
        return None

    def _add_docs_of_c_objects(self) -> None:
        """NumPy, SciPy and PyTorch document C objects by calls, in files such as ``_add_newdocs.py``."""
        for file_module in sorted(m for m in self.files if "docs" in m.rpartition(".")[2]):
            for module_name, local, docstring in self.load(file_module).added:
                if not _is_public(local):
                    continue
                owner, _, member = local.partition(".")
                home = self._resolve(module_name, owner)
                if home is None:
                    home = (module_name, owner)
                    self.load(module_name).define(owner)
                self.load(home[0]).docs.setdefault(f"{home[1]}.{member}" if member else home[1], docstring)


def _module_files(package: str, root: Path) -> Iterator[tuple[str, Path]]:
    if root.is_file():
        yield package, root
        return
    for file in sorted(root.rglob("*.py")):
        parts = file.relative_to(root).with_suffix("").parts
        if not LEFT_OUT.intersection(parts) and all(part.isidentifier() for part in parts):
            yield ".".join((package, *(parts[:-1] if parts[-1] == "__init__" else parts))), file


def _is_public(dotted: str) -> bool:
    return not any(part.startswith("_") or part in LEFT_OUT for part in dotted.split("."))


def _brevity(name: str) -> tuple[int, int, str]:
    return name.count("."), len(name), name


@contextmanager
def _fast_parsing() -> Iterator[None]:
    """No collector passes over the millions of live syntax nodes (halves the time), no warnings on others'
    code.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if was_enabled:
            gc.enable()


def _parse(name: str, file: Path) -> Module:
    module = Module(name, is_package=file.name == "__init__.py")
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # a template, or written for another Python version
        return module
    docstring = ast.get_docstring(tree, clean=False)
    if docstring:
        module.docs[""] = docstring
    _read_statements(module, tree.body)
    return module


def _read_statements(module: Module, body: list[ast.stmt]) -> None:
    for node in body:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                module.defined.add(node.name)
                _read_docstrings(module, node, "")
            case ast.ImportFrom():
                _read_import(module, node)
            case ast.Assign(targets=[ast.Name(id="__all__")]) | ast.AnnAssign(target=ast.Name(id="__all__")):
                module.exported = _strings(node.value)
            case ast.AugAssign(target=ast.Name(id="__all__")):
                more = _strings(node.value)
                module.exported = None if module.exported is None or more is None else module.exported + more
            case ast.Assign(targets=[ast.Name(id=target)], value=ast.Call(args=[_, doc])) if _is_adder(node.value):
                text = _static_text(doc)
                if text:
                    module.defined.add(target)
                    module.docs.setdefault(target, text)
            case ast.Expr(value=ast.Call() as call) if _is_adder(call):
                module.added.extend(_added_docs(module, call))
            case ast.If() | ast.Try() | ast.With():
                for part in ("body", "orelse", "finalbody"):
                    _read_statements(module, getattr(node, part, []))


def _read_docstrings(module: Module, node: ast.stmt, prefix: str) -> None:
    """Docstrings of a function or class and of its public members; overloads have none, so the first found counts."""
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return
    docstring = ast.get_docstring(node, clean=False)
    if docstring:
        module.docs.setdefault(prefix + node.name, docstring)
    if isinstance(node, ast.ClassDef):
        for member in node.body:
            if not getattr(member, "name", "_").startswith("_"):
                _read_docstrings(module, member, f"{prefix}{node.name}.")


def _read_import(module: Module, node: ast.ImportFrom) -> None:
    package = module.name.split(".") if module.is_package else module.name.split(".")[:-1]
    base = package[: len(package) - node.level + 1] if node.level else []
    source = ".".join([*base, *([node.module] if node.module else [])])
    for alias in node.names:
        if alias.name == "*":
            module.stars.append(source)
        else:
            module.imports[alias.asname or alias.name] = (source, alias.name)


def _strings(node: ast.expr | None) -> list[str] | None:
    """A list or tuple (or sum) of string literals; None for anything that only running the code would tell."""
    if isinstance(node, ast.BinOp):
        left, right = _strings(node.left), _strings(node.right)
        return None if left is None or right is None else left + right
    if not isinstance(node, ast.List | ast.Tuple):
        return None
    values = [e.value for e in node.elts if isinstance(e, ast.Constant) and isinstance(e.value, str)]
    return values if len(values) == len(node.elts) else None


def _is_adder(call: ast.expr) -> bool:
    names = {"add_newdoc", "add_docstr", "_add_docstr", "add_docstr_all", "_array_method_doc"}
    return isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in names


def _added_docs(module: Module, call: ast.Call) -> Iterator[tuple[str, str, str]]:
    """(module, name, docstring) of ``add_newdoc(module, name, doc or (member, doc) or a list of them)``
    (NumPy), ``add_newdoc(name, doc)`` (scipy.special), ``add_docstr(torch.name, doc)`` and
    ``add_docstr_all(method, doc)``.
    """
    match call.func, call.args:
        case ast.Name(id="_array_method_doc"), [ast.Constant(value=str(name)), _, doc]:
            yield "numpy._core.multiarray", f"ndarray.{name}", _static_text(doc)
        case _, [ast.Constant(value=str(place)), ast.Constant(value=str(name)), ast.List(elts=pairs)]:
            for pair in pairs:
                yield from _member_doc(place, name, pair)
        case _, [ast.Constant(value=str(place)), ast.Constant(value=str(name)), ast.Tuple() as pair]:
            yield from _member_doc(place, name, pair)
        case _, [ast.Constant(value=str(place)), ast.Constant(value=str(name)), doc]:
            yield place, name, _static_text(doc)
        case ast.Name(id="add_docstr_all"), [ast.Constant(value=str(name)), doc]:
            yield module.name.split(".")[0], f"Tensor.{name}", _static_text(doc)
        case _, [ast.Constant(value=str(name)), doc]:
            yield module.name.rpartition(".")[0], name, _static_text(doc)
        case _, [ast.Attribute() as target, doc]:
            place, _, name = ast.unparse(target).rpartition(".")
            yield place, name, _static_text(doc)


def _member_doc(place: str, owner: str, pair: ast.expr) -> Iterator[tuple[str, str, str]]:
    if isinstance(pair, ast.Tuple) and len(pair.elts) == 2 and isinstance(pair.elts[0], ast.Constant):
        member = str(pair.elts[0].value)
        yield place, f"{owner}.{member}", _static_text(pair.elts[1])


def _static_text(node: ast.expr) -> str:
    """The text of a string expression without running it; what ``format`` would fill in is left out."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _static_text(left) + _static_text(right)
        case ast.BinOp(left=left, op=ast.Mod()):
            return _static_text(left)
        case ast.Call(func=ast.Attribute(value=value, attr="format")):
            return _without_fields(_static_text(value))
        case ast.Call(func=ast.Attribute(value=value, attr="replace" | "strip")):
            return _static_text(value)
    return ""


def _without_fields(template: str) -> str:
    kept = template.replace("{{", "\0").replace("}}", "\1")
    while (start := kept.find("{")) >= 0 and (end := kept.find("}", start)) >= 0:
        kept = kept[:start] + kept[end + 1 :]
    return kept.replace("\0", "{").replace("\1", "}")

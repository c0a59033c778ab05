"""Which small changes there are to a source file: each is one slip that a programmer might make.

Only what is inside functions is changed. Tables, options and figures at the top of a module are declarations: whether
they are right is not for a test to say that reads the same table.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ("Change", "changes")

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef

COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any"}
LOGGING = ("debug", "info", "warning", "error", "exception", "isEnabledFor")
TOLD = ("warning", "error", "exception")
"""Log records that somebody waits for: leaving one out is a change; its wording is not."""


@dataclass(frozen=True, slots=True)
class Change:
    """One change to a file."""

    function: str
    """The qualified name of the function it is in, as Python has it."""
    scope: range
    """The lines of that function."""
    lines: range
    """The lines that are changed."""
    old: str
    new: str
    source: str
    """The whole file with the change. Every other line keeps its number."""

    @property
    def name(self) -> str:
        """What tells it from others, wherever its file goes."""
        return f"{self.function}: {self.old}  →  {self.new}"


def changes(source: str) -> list[Change]:
    """All changes to `source`, in the order of its lines; two that come to the same text are one."""
    lines = source.encode().splitlines(keepends=True)
    found: dict[str, Change] = {}
    for function, node in _functions(ast.parse(source)):
        for old, new in _in_function(node):
            new_text = ast.unparse(new)
            text = _replaced(lines, old, new, new_text)
            if text != source and _compiles(text):
                shown = _short(ast.unparse(old)), _short(new_text)
                found.setdefault(text, Change(function, _lines(node), _lines(old), *shown, text))
    return sorted(found.values(), key=lambda change: change.lines.start)


def _lines(node: ast.expr | ast.stmt) -> range:
    return range(node.lineno, (node.end_lineno or node.lineno) + 1)


def _functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, FunctionNode]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, FunctionNode):
            if node.name != "__repr__":
                yield prefix + node.name, node
            yield from _functions(node, f"{prefix}{node.name}.<locals>.")
        else:
            yield from _functions(node, f"{prefix}{node.name}." if isinstance(node, ast.ClassDef) else prefix)


def _replaced(lines: Sequence[bytes], old: ast.expr | ast.stmt, new: ast.AST, text: str) -> str:
    """The file with `text` where `old` was, as many lines long."""
    first, last = old.lineno - 1, (old.end_lineno or old.lineno) - 1
    text += "\n" * (last - first)
    if isinstance(new, ast.expr):
        text = f"({text})"
    head = lines[first][: old.col_offset]
    tail = lines[last][old.end_col_offset or 0 :]
    return b"".join([*lines[:first], head, text.encode(), tail, *lines[last + 1 :]]).decode()


def _compiles(text: str) -> bool:
    try:
        compile(text, "changed", "exec")
    except SyntaxError:
        return False
    return True


def _short(text: str) -> str:
    """One line of at most 160 characters."""
    text = " ".join(text.split())
    return text if len(text) <= 160 else f"{text[:100]} … {text[-57:]}"


Pair = tuple[ast.expr | ast.stmt, ast.expr | ast.stmt]


def _in_function(function: FunctionNode) -> Iterator[Pair]:
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    for statement in body:
        if not (statement is body[-1] and isinstance(statement, ast.Return) and statement.value is None):
            yield from _in(statement)


def _in(node: ast.AST) -> Iterator[Pair]:
    """The changes to `node` and to everything in it that is code: no annotations, no text for people."""
    if isinstance(node, FunctionNode | ast.ClassDef | ast.JoinedStr | ast.Import | ast.ImportFrom):
        if isinstance(node, ast.JoinedStr):
            yield from _of_text(node)
        return
    if _is_logging(node):
        if isinstance(node, ast.Expr) and _attribute(node.value) in TOLD:
            yield node, ast.Pass()
        return
    rule = _RULES.get(type(node))
    if rule is not None:
        yield from rule(node)
    for child in _children(node):
        yield from _in(child)


def _children(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.AnnAssign):
        yield node.target
        if node.value is not None:
            yield node.value
    elif isinstance(node, ast.Call) and _attribute(node) == "cast":
        yield node.args[-1]
    elif isinstance(node, ast.Call):
        yield from (
            node.func,
            *node.args,
            *(keyword.value for keyword in node.keywords if not _is_label(node, keyword)),
        )
    else:
        yield from ast.iter_child_nodes(node)


def _attribute(node: ast.AST) -> str:
    function = node.func if isinstance(node, ast.Call) else None
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def _is_logging(node: ast.AST) -> bool:
    call = node.value if isinstance(node, ast.Expr) else node
    return (
        isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr in LOGGING
        and isinstance(call.func.value, ast.Name)
        and call.func.value.id == "logger"
    )


def _of_condition(node: ast.If | ast.While | ast.IfExp) -> Iterator[Pair]:
    yield node.test, _negated(node.test)


def _of_return(node: ast.Return) -> Iterator[Pair]:
    if node.value is None:
        yield node, ast.Pass()
    elif not (isinstance(node.value, ast.Constant) and not node.value.value):  # None for False makes no difference
        yield node, ast.Return(ast.Constant(None))


def _left_out(node: ast.stmt) -> Iterator[Pair]:
    yield node, ast.Pass()


def _of_call_alone(node: ast.Expr) -> Iterator[Pair]:
    if isinstance(node.value, ast.Call | ast.Await):
        yield node, ast.Pass()


def _of_assignment(node: ast.Assign | ast.AnnAssign) -> Iterator[Pair]:
    """Not that of a variable: without it the function does not run, which needs no test."""
    target = node.targets[0] if isinstance(node, ast.Assign) else node.target
    if node.value is not None and isinstance(target, ast.Attribute | ast.Subscript):
        yield node, ast.Pass()


def _of_loop(node: ast.For | ast.AsyncFor) -> Iterator[Pair]:
    yield node.iter, ast.Tuple([], ast.Load())


def _of_with(node: ast.With | ast.AsyncWith) -> Iterator[Pair]:
    for item in node.items:
        if item.optional_vars is None:
            yield item.context_expr, _NO_CONTEXT


def _of_try(node: ast.Try) -> Iterator[Pair]:
    for handler in node.handlers:
        if handler.type is not None:
            yield handler.type, ast.Tuple([], ast.Load())


_NO_CONTEXT = ast.parse("__import__('contextlib').nullcontext()", mode="eval").body


def _of_both(node: ast.BoolOp) -> Iterator[Pair]:
    yield node, ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
    for index in range(len(node.values)):
        rest = [value for place, value in enumerate(node.values) if place != index]
        yield node, rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest)


def _of_sign(node: ast.UnaryOp) -> Iterator[Pair]:
    if isinstance(node.op, ast.Not | ast.USub):
        yield node, node.operand


def _of_arithmetic(node: ast.BinOp) -> Iterator[Pair]:
    if type(node.op) in OPERATORS:
        yield node, ast.BinOp(node.left, OPERATORS[type(node.op)](), node.right)


def _of_name(node: ast.Name) -> Iterator[Pair]:
    if node.id in NAMES:
        yield node, ast.Name(NAMES[node.id], ast.Load())


def _of_await(node: ast.Await) -> Iterator[Pair]:
    if isinstance(node.value, ast.Call):
        yield node, node.value


def _of_part(node: ast.Subscript) -> Iterator[Pair]:
    if isinstance(node.slice, ast.Slice):
        yield node, node.value


def _of_comprehension(node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> Iterator[Pair]:
    for generator in node.generators:
        yield generator.iter, ast.Tuple([], ast.Load())
        for condition in generator.ifs:
            yield condition, _negated(condition)
            yield condition, ast.Constant(True)


def _of_comparison(node: ast.Compare) -> Iterator[Pair]:
    for index, operator in enumerate(node.ops):
        for other in COMPARISONS[type(operator)]:
            yield node, ast.Compare(node.left, [*node.ops[:index], other(), *node.ops[index + 1 :]], node.comparators)


def _of_constant(node: ast.Constant) -> Iterator[Pair]:
    value = node.value
    if isinstance(value, bool):
        yield node, ast.Constant(not value)
    elif isinstance(value, int):
        yield node, ast.Constant(value + 1)
    elif isinstance(value, float):
        yield node, ast.Constant(value * 2 + 1)
    elif isinstance(value, str | bytes):
        yield from _of_text(node)


def _of_text(node: ast.Constant | ast.JoinedStr) -> Iterator[Pair]:
    """Names and keys; what has a space is for people."""
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    texts = [part.value for part in parts if isinstance(part, ast.Constant)]
    if any(
        isinstance(text, str | bytes) and (b" " in text if isinstance(text, bytes) else " " in text) for text in texts
    ):
        return
    yield node, ast.Constant(b"changed" if texts and isinstance(texts[0], bytes) else "changed")


def _of_call(node: ast.Call) -> Iterator[Pair]:
    for keyword in node.keywords:
        if keyword.arg is None or _is_label(node, keyword):
            continue
        yield node, ast.Call(node.func, node.args, [other for other in node.keywords if other is not keyword])


def _is_label(call: ast.Call, keyword: ast.keyword) -> bool:
    """Whether it only names a task for people."""
    return keyword.arg == "name" and _attribute(call) in ("create_task", "spawn")


def _negated(test: ast.expr) -> ast.expr:
    match test:
        case ast.UnaryOp(op=ast.Not()):
            return test.operand
        case ast.Compare(ops=[operator]):
            return ast.Compare(test.left, [COMPARISONS[type(operator)][-1]()], test.comparators)
        case _:
            return ast.UnaryOp(ast.Not(), test)


_RULES: dict[type[ast.AST], Callable[[Any], Iterator[Pair]]] = {
    ast.If: _of_condition,
    ast.While: _of_condition,
    ast.IfExp: _of_condition,
    ast.Return: _of_return,
    ast.Expr: _of_call_alone,
    ast.Assign: _of_assignment,
    ast.AnnAssign: _of_assignment,
    ast.AugAssign: _left_out,
    ast.Raise: _left_out,
    ast.Delete: _left_out,
    ast.Continue: _left_out,
    ast.Break: _left_out,
    ast.For: _of_loop,
    ast.AsyncFor: _of_loop,
    ast.With: _of_with,
    ast.AsyncWith: _of_with,
    ast.Try: _of_try,
    ast.Compare: _of_comparison,
    ast.BoolOp: _of_both,
    ast.UnaryOp: _of_sign,
    ast.BinOp: _of_arithmetic,
    ast.Constant: _of_constant,
    ast.Name: _of_name,
    ast.Await: _of_await,
    ast.Call: _of_call,
    ast.Subscript: _of_part,
    ast.ListComp: _of_comprehension,
    ast.SetComp: _of_comprehension,
    ast.DictComp: _of_comprehension,
    ast.GeneratorExp: _of_comprehension,
}

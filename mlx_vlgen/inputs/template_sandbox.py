"""A checkpoint's chat template is a program from elsewhere: what it may do, and how much of it.

It has all that transformers gives to templates but the filters made for web pages, and a `Budget`. Every value that a
template makes is measured as it is made. Each step takes time and memory in proportion to its input, so that no step
after it can be a large one. Every turn of a loop, every call and every filter checks the time.
"""

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, cast

import numpy as np
from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from ..errors import PromptError
from .template_budget import Budget, BudgetError, check_filter, check_format, check_method, check_operation, listed

MAX_TEMPLATE = 60_000
"""Characters, several times as many as published ones have: compiling takes time and memory, too."""
MAX_DEPTH = 100
"""Levels of lists and mappings in messages."""
MAX_PAD = 16
"""Characters of an indentation or separator in JSON."""

_REMOVED_FILTERS = ("urlize", "xmlattr", "wordwrap", "pprint", "striptags")
"""Filters that no chat template needs, and whose time is not in proportion to the size of their input."""
_REMOVED_METHODS = {"encode", "expandtabs", "format_map", "from_bytes", "maketrans", "to_bytes", "translate"}
"""Methods likewise."""
_SELECTING = ("first", "last", "default", "d", "attr", "min", "max", "random")
"""Filters that return their input, or a part of it."""


_budget: ContextVar[Budget] = ContextVar("budget")


def render(source: str, budget: Budget, **variables: Any) -> str:
    """A template's text. variables: plain data, as `to_plain` gives it.

    Raises BudgetError for one that takes too much, PromptError for one that is broken, or that refuses its input.
    """
    template = compiled(source)
    token = _budget.set(budget)
    try:
        return str(template.render(**variables))
    except BudgetError:
        raise
    except Exception as error:  # a template raises what it likes
        reason = str(error) or type(error).__name__
        raise PromptError(f"the chat template refuses these messages: {reason:.1000}") from None
    finally:
        _budget.reset(token)


def literals(source: str) -> str:
    """Every text that a template itself may write, separated by zero bytes."""
    return _read(source)[1]


def to_plain(value: Any, depth: int = 0) -> Any:
    """A value made of Python's mappings, lists, strings and numbers only; an object of another type becomes its type's
    name. PromptError for what is nested too deeply."""
    if depth > MAX_DEPTH:
        raise PromptError(
            f"messages, or what was given beside them, are nested more than {MAX_DEPTH} deep: flatten them"
        )
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Mapping):
        return {to_plain(key, depth + 1): to_plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [to_plain(item, depth + 1) for item in value]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, np.generic):
        return to_plain(value.item(), depth)
    if callable(dump := getattr(type(value), "model_dump", None)):
        return to_plain(dump(value), depth + 1)
    return f"<{type(value).__name__}>"


# -- the environment


class _Generation(Extension):
    """{% generation %} … {% endgeneration %}, which marks what an assistant said, for training."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


class _Namespace(Namespace):
    """Without names like `__class__`."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args
        names = dict(*rest, **kwargs)
        for name in names:
            _check_name(name)
        Namespace.__init__(self, names)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if str(name).startswith("_"):
        raise SecurityError(f"a namespace holds no name like {name!r}")


class _Dict:
    """Python's `dict`, of which a template needs no more."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Metering(NodeTransformer):
    """Puts filters that count around the parts of a template that the environment does not see: loops, lists and
    mappings, comparisons, slices, and texts that are joined by `~`."""

    def generic_visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:
        node = super().generic_visit(node, *args, **kwargs)
        if isinstance(node, nodes.For):
            node.iter = _filtered("_iterate", cast(nodes.Expr, node.iter))
        elif isinstance(node, nodes.Concat):
            return _filtered("join", nodes.List(node.nodes, lineno=node.lineno))
        elif isinstance(node, nodes.List | nodes.Dict | nodes.Compare | nodes.Test) or (
            (isinstance(node, nodes.Tuple) and node.ctx == "load")
            or (isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice))
        ):
            return _filtered("_charge", cast(nodes.Expr, node))
        return node


def _filtered(name: str, node: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        self.filters |= {"tojson": _to_json, "_iterate": lambda items: items, "_charge": lambda value: value}
        self.filters = {name: _metered(name, f) for name, f in self.filters.items() if name not in _REMOVED_FILTERS}
        self.globals |= {"raise_exception": _refuse, "strftime_now": _now, "dict": _Dict(), "namespace": _Namespace}
        del self.globals["lipsum"]

    def concat(self, parts: Iterable[str]) -> str:
        """Joins everything that is written, also into a variable."""
        budget, pieces, size = _budget.get(), [], 0
        for part in parts:
            pieces.append(budget.charge(part))
            size += len(part)
            budget.allow(size)
        return "".join(pieces)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        budget = _budget.get()
        budget.check_time()
        if isinstance(owner := getattr(__obj, "__self__", None), str | int | float | list | tuple | dict):
            args = check_method(budget, owner, __obj.__name__, args, kwargs)
        return budget.charge(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget = _budget.get()
        check_operation(budget, operator, left, right)
        return budget.charge(super().call_binop(context, operator, left, right))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return attr not in _REMOVED_METHODS and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None or value.__name__ in _REMOVED_METHODS:
            return None

        def formatted(*args: Any, **kwargs: Any) -> str:
            check_format(_budget.get(), str(value.__self__), "{", (args, kwargs))
            return wrapped(*args, **kwargs)

        return formatted


def compiled(source: str) -> Any:
    """The template. PromptError for one that is broken."""
    return _read(source)[0]


@functools.lru_cache(maxsize=32)
def _read(source: str) -> tuple[Any, str]:
    """The template, and its `literals`: parsing takes as long as all else of a short prompt."""
    if len(source) > MAX_TEMPLATE:
        raise PromptError(
            f"this checkpoint's chat template has {len(source):,} characters; expected {MAX_TEMPLATE:,} at most"
        )
    environment = _environment()
    try:
        parsed = environment.parse(source)
        data = [node.data for node in parsed.find_all(nodes.TemplateData)]
        constants = [str(node.value) for node in parsed.find_all(nodes.Const)]
        tree = _Metering().visit(parsed)
        tree.set_environment(environment)
        return environment.from_string(tree), "\0".join([*data, *constants])
    except Exception as error:  # of Jinja or of Python's compiler
        reason = f"{type(error).__name__}: {error}"
        raise PromptError(f"this checkpoint's chat template is broken: {reason:.300}") from None


@functools.cache
def _environment() -> _Environment:
    return _Environment()


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _now(format: str) -> str:
    return _budget.get().now.strftime(format)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Without the escapes for web pages of Jinja's filter."""
    budget, pieces, size = _budget.get(), [], 0
    padding = (indent if isinstance(indent, int) else len(indent or ""), *map(len, separators or ()))
    if max(padding) > MAX_PAD:
        raise BudgetError(f"this checkpoint's chat template asks tojson for more than {MAX_PAD} characters of space")
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    for piece in budget.iterate(encoder.iterencode(value)):
        pieces.append(piece)
        size += len(piece)
        budget.allow(size / 6)  # a character's escape is six long
    return "".join(pieces)


def _metered(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter of the environment, with its input checked and its result counted."""
    first = int(hasattr(function, "jinja_pass_arg"))  # Jinja itself gives the first argument to some

    @functools.wraps(function)
    def metered(*args: Any, **kwargs: Any) -> Any:
        budget = _budget.get()  # LookupError where Jinja tries to compute it while it compiles; it then leaves it
        budget.check_time()
        inputs = args[first:]
        if name == "_iterate":
            return budget.iterate(inputs[0])
        if name == "join":
            inputs = (
                listed(budget, inputs[0], str(kwargs.get("d", inputs[1] if inputs[1:] else ""))),
                *inputs[1:],
            )
        elif name == "sum" and not isinstance(kwargs.get("start", inputs[2] if inputs[2:] else 0), int | float):
            raise SecurityError("sum adds numbers")
        else:
            check_filter(budget, name, *inputs, **kwargs)
        result = function(*args[:first], *inputs, **kwargs)
        if isinstance(result, Iterator):
            return budget.iterate(result)
        return result if name in _SELECTING else budget.charge(result)

    return metered

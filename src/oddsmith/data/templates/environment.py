"""transformers' environment for chat templates, with the limits of ``limits`` compiled into every template.

transformers compiles templates for Jinja's sandbox, which denies them files, imports and private attributes, and bounds
``range``. Nested loops, macros that call themselves twice, ``'a' * 10**9`` and the like run forever there, or until the
memory is used up. Here

    {% for m in messages %} body          spends the size of its body in each iteration; so do macros and blocks
    a * b ~ c,  x[1:],  [a, b],  a + b    become calls of ``Operations``, or are passed to one
    text.replace(...), x | join(',')      are checked before and after, and so are tests
    a == b, a in b                        count what they compare, but where one side is short and in the template

``guard_chat_templates`` replaces transformers' environment with this one, so that everything that renders a chat
template in this process (``apply_chat_template``, transformers' server) does so within the limits.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any

from jinja2 import Template, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import TemplateError, TemplateRuntimeError, TemplateSyntaxError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer
from transformers.utils import chat_template_utils

from .limits import MAX_BITS, METHODS, NODE_WORK, REFUSED_FILTERS, Budget, Operations

MAX_CHARACTERS = 500_000
MAX_NODES = 20_000
MAX_TERMS = 16  # of a sum before its result is checked
MAX_TEMPLATES = 128  # kept compiled, as many as transformers keeps

OPERATORS: dict[type[nodes.BinExpr], str] = {nodes.Mul: "multiplied", nodes.Pow: "raised", nodes.Mod: "remainder"}
OPERATIONS = frozenset(("joined", "sliced", "made", "searched", *OPERATORS.values()))
EQUALITIES, SEARCHES = ("eq", "ne", "lt", "lteq", "gt", "gteq"), ("in", "notin")
HOOKS = OPERATIONS | {"spend"}  # what compiled templates call on their environment
METHODS_OF_MAPPINGS = frozenset(dir(dict))
# Python errors that a template can cause, besides Jinja's.
ERRORS_OF_TEMPLATES = (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, SyntaxError)


class _GuardedTemplate(Template):
    """A template that starts each conversation with a new budget and raises only ``TemplateError``."""

    def new_context(self, *args: Any, **kwargs: Any) -> Context:
        self.environment.budget.renew()  # type: ignore[attr-defined]
        return super().new_context(*args, **kwargs)

    def render(self, *args: Any, **kwargs: Any) -> str:
        try:
            return super().render(*args, **kwargs)
        except ERRORS_OF_TEMPLATES as error:
            raise TemplateRuntimeError(f"{type(error).__name__}: {error}") from error


class _DirectCalls(CodeGenerator):
    """Compile calls of our operations without the sandbox's checks."""

    def visit_Call(self, node: nodes.Call, frame: Frame, **kwargs: Any) -> None:  # type: ignore[override]
        if not isinstance(node.node, nodes.EnvironmentAttribute) or node.node.name not in HOOKS:
            super().visit_Call(node, frame, **kwargs)
            return
        self.write(f"environment.{node.node.name}(")
        for argument in node.args:
            self.visit(argument, frame)
            self.write(", ")
        self.write(")")


class GuardedEnvironment(ImmutableSandboxedEnvironment):
    """An environment that keeps templates within a budget, with the options, filters and globals of ``model``."""

    template_class = _GuardedTemplate
    code_generator_class = _DirectCalls
    # Should one of these remain in a template, the compiler does not compute it as a constant.
    intercepted_binops = frozenset(("*", "**", "%"))

    def __init__(self, model: ImmutableSandboxedEnvironment):
        self.budget = Budget()
        self.operations = operations = Operations(self.budget)
        self._safe_attributes: dict[tuple[type, str], bool] = {}
        super().__init__(
            trim_blocks=model.trim_blocks,
            lstrip_blocks=model.lstrip_blocks,
            extensions=[type(extension) for extension in model.extensions.values()],
            finalize=operations.made,
        )
        self.spend, self.concat = self.budget.spend, operations.concatenated  # type: ignore[method-assign]
        for name in OPERATIONS:
            setattr(self, name, getattr(operations, name))
        self.filters = {
            name: operations.guarded_filter(name, function)
            for name, function in model.filters.items()
            if name not in REFUSED_FILTERS
        }
        tests: dict[str, Any] = model.tests
        self.tests = {name: operations.guarded_test(name, function) for name, function in tests.items()}
        self.globals |= {name: value for name, value in model.globals.items() if name != "range"}
        self.globals.pop("lipsum", None)
        names: dict[str, Any] = self.globals
        names["strftime_now"] = operations.guarded_date(names["strftime_now"])
        names["dict"] = _guarded_mappings(names["dict"], operations)
        names["namespace"] = _guarded_namespaces(names["namespace"], operations)

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        if (count := _size(source)) > MAX_NODES:
            raise TemplateSyntaxError(f"it has {count:,} parts; expected at most {MAX_NODES:,}", 1)
        return super()._generate(_Guards(self).visit(source), *args, **kwargs)

    def make_globals(self, d: Any) -> dict[str, Any]:
        """Return the globals of a template in one dict; Jinja's chain of two takes as long to copy as to render."""
        return {**self.globals, **(d or {})}

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Return an attribute as the sandbox does; a key of a message is not searched among the methods first."""
        if type(obj) is dict and attribute not in METHODS_OF_MAPPINGS:
            return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Return an item as the sandbox does; the key's hash is counted."""
        if type(argument) is tuple:
            self.budget.spend_on(argument)
        return super().getitem(obj, argument)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Return whether the sandbox and, for plain values, ``METHODS`` allow an attribute; decided once a type."""
        kind = type(obj)
        if kind in METHODS:
            return attr in METHODS[kind]
        known = self._safe_attributes.get((kind, attr))
        if known is None:
            allowed = all(attr in names for base, names in METHODS.items() if isinstance(obj, base))
            known = allowed and super().is_safe_attribute(obj, attr, value)
            self._safe_attributes[kind, attr] = known
        return known

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        function = super().wrap_str_format(value)
        if function is None:
            return None

        @wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> str:
            self.operations.before_braces(str(value.__self__), (args, kwargs))
            return function(*args, **kwargs)

        return guarded

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str):  # a method of a text, which takes none of Jinja's variables
            kwargs.pop("_loop_vars", None)
            kwargs.pop("_block_vars", None)
            result = __obj(*__self.operations.method_arguments(owner, __obj.__name__, args), **kwargs)
        else:
            if owner is not None:
                for argument in args:
                    __self.operations.made(argument)
                if isinstance(owner, list | tuple):  # count, index
                    __self.operations.made(owner)
            result = super().call(__context, __obj, *args, **kwargs)
        __self.budget.spend_on(result)
        return result


class _Guards(NodeTransformer):
    """Add the guards to a parsed template."""

    def __init__(self, environment: GuardedEnvironment):
        self.environment = environment

    def _call(self, name: str, arguments: list[nodes.Expr], lineno: int) -> nodes.Call:
        place: dict[str, Any] = {"lineno": lineno, "environment": self.environment}
        return nodes.Call(nodes.EnvironmentAttribute(name, **place), arguments, [], None, None, **place)

    def _spend(self, parts: list[nodes.Node], lineno: int) -> nodes.Call:
        work = NODE_WORK * (4 + sum(map(_size, parts)))
        return self._call("spend", [nodes.Const(work, lineno=lineno, environment=self.environment)], lineno)

    def _visit_body(self, node: Any) -> Any:
        spent = self._spend(node.body, node.lineno)
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(spent, lineno=node.lineno, environment=self.environment))
        return node

    visit_Macro = visit_CallBlock = visit_Block = _visit_body

    def visit_For(self, node: nodes.For) -> nodes.For:
        test_work = self._spend([node.test], node.lineno) if node.test is not None else None
        self._visit_body(node)
        if node.test is not None:
            node.test = nodes.And(test_work, node.test, lineno=node.lineno, environment=self.environment)
        return node

    def visit_Add(self, node: nodes.Add) -> nodes.Call:
        """Check the result of a sum, and in long sums every ``MAX_TERMS`` terms."""
        innermost, terms = node, 2
        while isinstance(innermost.left, nodes.Add) and terms < MAX_TERMS:
            innermost.right = self.visit(innermost.right)
            innermost, terms = innermost.left, terms + 1
        self.generic_visit(innermost)
        return self._call("made", [node], node.lineno)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Call:
        return self._call("joined", [self.visit(part) for part in node.nodes], node.lineno)

    def _visit_operator(self, node: nodes.BinExpr) -> nodes.Call:
        return self._call(OPERATORS[type(node)], [self.visit(node.left), self.visit(node.right)], node.lineno)

    visit_Mul = visit_Pow = visit_Mod = _visit_operator

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        none = nodes.Const(None, lineno=node.lineno, environment=self.environment)
        bounds = [bound or none for bound in (node.arg.start, node.arg.stop, node.arg.step)]
        return self._call("sliced", [node.node, *bounds], node.lineno)

    def _visit_literal(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        parts = [part.value if isinstance(part, nodes.Pair) else part for part in node.items]
        if getattr(node, "ctx", "load") != "load" or all(isinstance(part, nodes.Const) for part in parts):
            return node
        return self._call("made", [node], node.lineno)

    def visit_Const(self, node: nodes.Const) -> nodes.Const:
        if type(node.value) is int and node.value.bit_length() > MAX_BITS:
            raise TemplateSyntaxError(f"it holds a number of more than {MAX_BITS} bits", node.lineno)
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Compare:
        """Count what is compared; a comparison with what is written in the template takes no longer than that is."""
        self.generic_visit(node)
        sides = [node.expr, *(operand.expr for operand in node.ops)]
        if len(sides) == 2 and (_is_constant(sides[1]) or (node.ops[0].op in EQUALITIES and _is_constant(sides[0]))):
            return node
        node.expr = self._counted("made", node.expr)
        for operand in node.ops:
            operand.expr = self._counted("searched" if operand.op in SEARCHES else "made", operand.expr)
        return node

    def _counted(self, name: str, side: nodes.Expr) -> nodes.Expr:
        return side if _is_constant(side) else self._call(name, [side], side.lineno)

    visit_List = visit_Tuple = visit_Dict = _visit_literal


def _is_constant(node: nodes.Node) -> bool:
    """Return whether a part of a template is a value that is written there, or the truth of a condition."""
    return isinstance(node, nodes.Const | nodes.Compare | nodes.Test | nodes.Not) or (
        isinstance(node, nodes.List | nodes.Tuple) and all(isinstance(item, nodes.Const) for item in node.items)
    )


def _guarded_mappings(own: Any, operations: Operations) -> Any:
    """Return transformers' ``dict`` that counts the pairs which it takes."""
    kind: Any = type(own)

    class Mappings(kind):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return super().__call__(*operations.mapping(*args), **kwargs)

        def fromkeys(self, *args: Any, **kwargs: Any) -> Any:
            return super().fromkeys(*operations.mapping(*args), **kwargs)

    return Mappings()


def _guarded_namespaces(own: Any, operations: Operations) -> Any:
    """Return transformers' ``namespace``, which counts the pairs that it takes and writes nothing of its inside."""

    class Namespace(own):
        __repr__ = object.__repr__

        def __init__(*args: Any, **kwargs: Any) -> None:
            own.__init__(args[0], *operations.mapping(*args[1:]), **kwargs)

    return Namespace


def _size(node: nodes.Node) -> int:
    """Return the number of nodes in a part of a template."""
    count, waiting = 0, [node]
    while waiting:
        count += 1
        waiting += waiting.pop().iter_child_nodes()
    return count


def guard_chat_templates() -> None:
    """Make all chat templates of this process render within the limits from now on; a second call changes nothing."""
    original = chat_template_utils._compile_jinja_template
    if getattr(original, "is_guarded", False):
        return
    model = original("").environment

    @lru_cache(maxsize=MAX_TEMPLATES)
    def compile_guarded(chat_template: str) -> Template:
        if (count := len(chat_template)) > MAX_CHARACTERS:
            raise TemplateSyntaxError(f"it has {count:,} characters; expected at most {MAX_CHARACTERS:,}", 1)
        try:
            return GuardedEnvironment(model).from_string(chat_template)
        except TemplateError:
            raise
        except ERRORS_OF_TEMPLATES as error:
            raise TemplateSyntaxError(f"it is nested too deeply ({type(error).__name__})", 1) from error

    compile_guarded.is_guarded = True  # type: ignore[attr-defined]
    chat_template_utils._compile_jinja_template = compile_guarded

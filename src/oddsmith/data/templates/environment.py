"""transformers' environment for chat templates, with the limits of ``budget`` built into the code it compiles.

transformers compiles templates for Jinja's sandbox, which keeps them from files, imports and private attributes, and
bounds ``range``. Nested loops, macros that call themselves twice, ``'a' * 10**9`` and the like go on for ever there, or
until the memory is gone. Here

    {% for m in messages %} body          spends the size of its body at each turn; so do macros and blocks
    a * b ~ c,  x[1:],  [a, b],  a + b    become calls of ``operations``, or are handed to one
    text.replace(...), x | join(',')      are looked at before and after

``guard_chat_templates`` puts it in the place of transformers' own, so that whatever renders a chat template in this
process (``apply_chat_template``, the server of transformers) does so within the limits.
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

from .budget import NODE_WORK, Budget
from .operations import METHODS, REFUSED_FILTERS, Operations

MOST_CHARACTERS = 500_000
MOST_NODES = 20_000
MOST_TERMS = 16  # of a sum that is computed before it is looked at
MOST_TEMPLATES = 128  # that are kept compiled, as many as transformers keeps

OPERATORS: dict[type[nodes.BinExpr], str] = {nodes.Mul: "multiplied", nodes.Pow: "raised", nodes.Mod: "remainder"}
METHODS_OF_MAPPINGS = frozenset(dir(dict))
HOOKS = frozenset(("spend", "joined", "sliced", "made", *OPERATORS.values()))
# Errors of Python that a template can cause, beside those that Jinja raises itself.
ERRORS_OF_TEMPLATES = (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, SyntaxError)


class _GuardedTemplate(Template):
    """A template that begins each conversation with a new budget, and fails with a ``TemplateError`` only."""

    def new_context(self, *args: Any, **kwargs: Any) -> Context:
        self.environment.budget.renew()  # type: ignore[attr-defined]
        return super().new_context(*args, **kwargs)

    def render(self, *args: Any, **kwargs: Any) -> str:
        try:
            return super().render(*args, **kwargs)
        except ERRORS_OF_TEMPLATES as error:
            raise TemplateRuntimeError(f"{type(error).__name__}: {error}") from error


class _DirectCalls(CodeGenerator):
    """Writes calls of our own operations without the sandbox's questions."""

    def visit_Call(self, node: nodes.Call, frame: Frame, **kwargs: Any) -> None:  # type: ignore[override]
        if not (isinstance(node.node, nodes.EnvironmentAttribute) and node.node.name in HOOKS):
            super().visit_Call(node, frame, **kwargs)
            return
        self.write(f"environment.{node.node.name}(")
        for argument in node.args:
            self.visit(argument, frame)
            self.write(", ")
        self.write(")")


class GuardedEnvironment(ImmutableSandboxedEnvironment):
    """An environment whose templates stay within a budget.

    Args:
        model: The environment whose options, extensions, filters and globals it has.
    """

    template_class = _GuardedTemplate
    code_generator_class = _DirectCalls
    # None that is left unchanged (there should be none) is computed while the template is compiled.
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
        self.made, self.sliced, self.joined = operations.made, operations.sliced, operations.joined
        self.multiplied, self.raised, self.remainder = operations.multiplied, operations.raised, operations.remainder
        self.filters = {
            name: operations.guarded_filter(name, function)
            for name, function in model.filters.items()
            if name not in REFUSED_FILTERS
        }
        self.globals |= {name: value for name, value in model.globals.items() if name not in ("lipsum", "range")}
        self.globals.pop("lipsum", None)
        namespace: Any = self.globals["namespace"]  # its repr would write out all that it holds, and those in it
        self.globals["namespace"] = type("Namespace", (namespace,), {"__repr__": object.__repr__})
        today: Any = self.globals["strftime_now"]
        self.globals["strftime_now"] = operations.guarded_date(today)

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        if (count := _size(source)) > MOST_NODES:
            raise TemplateSyntaxError(f"it has {count:,} parts; expected at most {MOST_NODES:,}", 1)
        return super()._generate(_Guards(self).visit(source), *args, **kwargs)

    def getattr(self, obj: Any, attribute: str) -> Any:
        """As in the sandbox; a key of a message is not first looked for among the methods of mappings."""
        if type(obj) is dict and attribute not in METHODS_OF_MAPPINGS:
            return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
        return super().getattr(obj, attribute)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """As in the sandbox, of plain values only what ``operations.METHODS`` names; decided once a type."""
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
        text = getattr(__obj, "__self__", None)
        if type(text) is str:  # one of its methods, none of which is handed Jinja's own variables
            kwargs.pop("_loop_vars", None)
            kwargs.pop("_block_vars", None)
            result = __obj(*__self.operations.method_arguments(text, __obj.__name__, args), **kwargs)
        else:
            result = super().call(__context, __obj, *args, **kwargs)
        __self.budget.spend_on(result)
        return result


class _Guards(NodeTransformer):
    """Puts the guards into a parsed template."""

    def __init__(self, environment: GuardedEnvironment):
        self.environment = environment

    def _call(self, name: str, arguments: list[nodes.Expr], lineno: int) -> nodes.Call:
        function = nodes.EnvironmentAttribute(name, lineno=lineno, environment=self.environment)
        return nodes.Call(function, arguments, [], None, None, lineno=lineno, environment=self.environment)

    def _spend(self, parts: list[nodes.Node], lineno: int) -> nodes.Call:
        work = NODE_WORK * (4 + sum(map(_size, parts)))
        return self._call("spend", [nodes.Const(work, lineno=lineno, environment=self.environment)], lineno)

    def visit_For(self, node: nodes.For) -> nodes.For:
        spent = self._spend(node.body, node.lineno)
        if node.test is not None:
            test, tested = self.visit(node.test), self._spend([node.test], node.lineno)
            node.test = nodes.And(tested, test, lineno=node.lineno, environment=self.environment)
            node.iter = self.visit(node.iter)
            node.body, node.else_ = self._all(node.body), self._all(node.else_)
        else:
            self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(spent, lineno=node.lineno, environment=self.environment))
        return node

    def _all(self, parts: list[nodes.Node]) -> list[nodes.Node]:
        return [self.visit(part) for part in parts]

    def _visit_body(self, node: Any) -> Any:
        spent = self._spend(node.body, node.lineno)
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(spent, lineno=node.lineno, environment=self.environment))
        return node

    visit_Macro = visit_CallBlock = visit_Block = _visit_body

    def visit_Add(self, node: nodes.Add) -> nodes.Call:
        """Sums stay as they are; the result is looked at, in long ones every so many terms."""
        innermost, terms = node, 2
        while isinstance(innermost.left, nodes.Add) and terms < MOST_TERMS:
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

    visit_List = visit_Tuple = visit_Dict = _visit_literal


def _size(node: nodes.Node) -> int:
    """How many nodes it is made of."""
    count, waiting = 0, [node]
    while waiting:
        count += 1
        waiting += waiting.pop().iter_child_nodes()
    return count


@lru_cache
def _environment_of(compile_template: Callable[[str], Template]) -> ImmutableSandboxedEnvironment:
    return compile_template("").environment  # type: ignore[return-value]


def guard_chat_templates() -> None:
    """Let all chat templates of this process render within the limits, from now on. To do so twice changes nothing."""
    original = chat_template_utils._compile_jinja_template
    if getattr(original, "is_guarded", False):
        return

    @lru_cache(maxsize=MOST_TEMPLATES)
    def compile_guarded(chat_template: str) -> Template:
        if len(chat_template) > MOST_CHARACTERS:
            raise TemplateSyntaxError(
                f"it has {len(chat_template):,} characters; expected at most {MOST_CHARACTERS:,}", 1
            )
        try:
            return GuardedEnvironment(_environment_of(original)).from_string(chat_template)
        except TemplateError:
            raise
        except ERRORS_OF_TEMPLATES as error:
            raise TemplateSyntaxError(f"it is nested too deeply ({type(error).__name__})", 1) from error

    compile_guarded.is_guarded = True  # type: ignore[attr-defined]
    chat_template_utils._compile_jinja_template = compile_guarded

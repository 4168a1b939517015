"""transformers' private names: each exists in the installed version, and one module alone uses them."""

import ast
import inspect
import re
from pathlib import Path

import pytest
import transformers
from transformers import Trainer

from oddsmith import ORPOTrainer
from oddsmith.training.private_names import PRIVATE_ATTRIBUTES, PRIVATE_METHODS

SOURCE = Path(inspect.getfile(ORPOTrainer)).parents[1]
TRAINER_SOURCE = inspect.getsource(Trainer)
PRIVATE = {
    name
    for name in (*vars(Trainer), *re.findall(r"\bself\.(_[a-z]\w*)", TRAINER_SOURCE))
    if name.startswith("_") and not name.startswith("__")
}


@pytest.mark.parametrize("name", PRIVATE_METHODS)
def test_a_private_method_exists(name):
    assert callable(getattr(Trainer, name, None)), (
        f"transformers {transformers.__version__} has no Trainer.{name}; look at what replaced it, and adapt"
        " training/transformers_adapter.py"
    )


@pytest.mark.parametrize("name", PRIVATE_ATTRIBUTES)
def test_a_private_attribute_is_set(name):
    assert f"self.{name} = " in TRAINER_SOURCE, (
        f"transformers {transformers.__version__} sets no Trainer.{name}; look at what replaced it, and adapt"
        " training/transformers_adapter.py"
    )


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_one_module_alone_names_them(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    used = {node.attr for node in attributes if "trainer" in ast.unparse(node.value).lower()}
    for trainer in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and _is_a_trainer(node)):
        for node in ast.walk(trainer):
            if isinstance(node, ast.FunctionDef):
                used.add(node.name)
            elif isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("self", "super()"):
                used.add(node.attr)
    used &= PRIVATE
    if path.name == "transformers_adapter.py":
        assert used == {*PRIVATE_METHODS, *PRIVATE_ATTRIBUTES}, "list exactly the names that are used"
    else:
        assert not used


def _is_a_trainer(node: ast.ClassDef) -> bool:
    return any(ast.unparse(base) in ("Trainer", "TransformersAdapter") for base in node.bases)


def test_at_most_two_classes_of_ours_in_the_resolution_order():
    ours = [one.__name__ for one in ORPOTrainer.__mro__ if one.__module__.startswith("oddsmith")]
    assert ours == ["ORPOTrainer", "TransformersAdapter"]

"""Write formulas as MathML, which browsers draw themselves: no script, nothing from the network."""

from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx


def _visit(translator, node) -> None:
    from docutils import nodes

    block = isinstance(node, nodes.math_block)
    text = tex2mathml(node.astext(), as_block=block)
    translator.body.append(f'<div class="formula">{text}</div>' if block else text)
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the renderer."""
    app.add_html_math_renderer("mathml", (_visit, None), (_visit, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}

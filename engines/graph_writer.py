"""Adding nodes to a graph, one line each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx_ir as ir

MICROSOFT = "com.microsoft"  # ONNX Runtime's own operators


class GraphWriter:
    """Adds nodes before one node of a model, which the caller owns."""

    def __init__(self, model: ir.Model, before: ir.Node) -> None:
        self._model, self._before = model, before

    def add(
        self,
        operator: str,
        *inputs: ir.Value | None,
        domain: str = "",
        **attributes: Any,
    ) -> ir.Value:
        """Add a node of one output and return that."""
        import onnx_ir as ir

        node = ir.node(operator, inputs, attributes, domain=domain)
        if domain:
            self._model.graph.opset_imports.setdefault(domain, 1)
        self._model.graph.insert_before(self._before, node)
        return node.outputs[0]

    def constant(self, values: NDArray[Any]) -> ir.Value:
        """Add an initializer under a name of its own."""
        import onnx_ir as ir

        initializers = self._model.graph.initializers
        name = f"constant_{len(initializers)}"
        while name in initializers:
            name += "_"
        tensor = ir.tensor(values, name=name)
        value = ir.Value(
            name=name,
            shape=ir.Shape(values.shape),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        self._model.graph.register_initializer(value)
        return value


def constant_of(value: ir.Value | None) -> NDArray[Any] | None:
    """Return the values of an initializer, None of anything else."""
    if value is None or value.const_value is None:
        return None
    return value.const_value.numpy()


def remove_unused(model: ir.Model) -> None:
    """Remove the nodes and initializers that nothing reads any more."""
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    RemoveUnusedNodesPass()(model)

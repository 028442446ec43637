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
        initializers = self._model.graph.initializers
        name = f"constant_{len(initializers)}"
        while name in initializers:
            name += "_"
        return add_constant(self._model, name, values)


def add_constant(model: ir.Model, name: str, values: NDArray[Any]) -> ir.Value:
    """Add an initializer called `name`."""
    import onnx_ir as ir

    tensor = ir.tensor(values, name=name)
    value = ir.Value(
        name=name,
        shape=ir.Shape(values.shape),
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )
    model.graph.register_initializer(value)
    return value


def constant_of(value: ir.Value | None) -> NDArray[Any] | None:
    """Return the values of an initializer, None of anything else."""
    if value is None or value.const_value is None:
        return None
    return value.const_value.numpy()


def producer_of(value: ir.Value | None, operator: str) -> ir.Node | None:
    """Return the node that makes `value`, None where that is another operator or none."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == operator else None


def other_input(node: ir.Node, value: ir.Value) -> ir.Value | None:
    """Return the one input of `node` that is not `value`, None where there is no such one."""
    others = [given for given in node.inputs if given is not value]
    return others[0] if len(others) == 1 else None


def replace_value(model: ir.Model, old: ir.Value, new: ir.Value) -> None:
    """Let `new` take the place, the name and the shape of `old` everywhere."""
    new.shape, new.type = old.shape, old.type
    name = old.name
    old.name = f"{name}_replaced"
    new.name = name
    for user, index in list(old.uses()):
        user.replace_input_with(index, new)
    outputs = model.graph.outputs
    for index, output in enumerate(outputs):
        if output is old:
            outputs[index] = new


def remove_unused(model: ir.Model) -> None:
    """Remove the nodes and initializers that nothing reads any more."""
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    RemoveUnusedNodesPass()(model)

"""What ONNX Runtime can do in one kernel, said in one node: attention, and GELU with the bias before it.

ONNX Runtime has these fusions itself, but for the patterns of other exporters: in the graph that ``torch.onnx.export``
writes today it finds neither. The operators are its own
(https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md). Its ``SkipLayerNormalization`` is left out:
on a CPU it took three times as long as the additions and the normalization that it stands for. A pattern that is not
found is left as it is, so any encoder may come, and so is attention that sees more than a padding mask (distances, windows,
causality), for the kernel would not; what the graph computes is for ``onnx.parity`` to prove.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnx.utils import Extractor

DOMAIN = "com.microsoft"
MASK = "attention_mask"
PROBED = 512  # tokens of the masks that a graph's own masking is tried with: no shorter window stays hidden
Node = onnx.NodeProto


def fuse(model: onnx.ModelProto, heads: int) -> dict[str, int]:
    """Rewrite the graph of an encoder with ``heads`` attention heads in place; returns how often each fusion was done."""
    fusion = _Fusion(model, heads)
    counts = {
        "attention": sum(map(fusion.attention, fusion.of_type("Softmax"))),
        "gelu": sum(map(fusion.gelu, fusion.of_type("Erf"))),
    }
    fusion.finish()
    if any(counts.values()) and DOMAIN not in {opset.domain for opset in model.opset_import}:
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return counts


class _Fusion:
    """One graph, who makes each of its values, and the nodes that take the place of others."""

    def __init__(self, model: onnx.ModelProto, heads: int) -> None:
        graph = model.graph
        self.graph, self.heads = graph, heads
        self.masks_padding = cache(lambda name: masks_padding(model, name))
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.maker = {output: node for node in graph.node for output in node.output}
        self.users: dict[str, list[Node]] = {}
        for node in graph.node:
            for name in node.input:
                self.users.setdefault(name, []).append(node)
        self.replaced: dict[str, list[Node]] = {}  # the output that a fused node gives -> it, and what it needs

    def of_type(self, operator: str) -> Iterator[Node]:
        return (node for node in self.graph.node if node.op_type == operator)

    def attention(self, softmax: Node) -> bool:
        """softmax(q k' * scale + mask) v, with heads split before and joined after."""
        scores = self._maker(softmax.input[0], "Add")
        scaled = self._maker(scores.input[0], "Mul") if scores else None
        product = self._maker(scaled.input[0], "MatMul") if scaled else None
        weighed = self._user(softmax.output[0], "MatMul")
        joined = self._user(self._user_output(weighed, "Transpose"), "Reshape")
        if scores is None or scaled is None or product is None or weighed is None or joined is None:
            return False
        parts = [self._projection(name) for name in (*product.input, weighed.input[1])]
        if None in parts or scaled.input[1] not in self.constants or not self.masks_padding(scores.input[1]):
            return False
        scale = float(numpy_helper.to_array(self.constants[scaled.input[1]]))
        out = joined.output[0]
        mask = helper.make_node("Cast", [MASK], [f"{out}/mask"], to=TensorProto.INT32)
        query, key, value = (str(part) for part in parts)
        fused = helper.make_node(
            "MultiHeadAttention", [query, key, value, "", mask.output[0]], [out],
            name=f"{out}/MultiHeadAttention", domain=DOMAIN, num_heads=self.heads, scale=scale,
        )  # fmt: skip
        self.replaced[out] = [mask, fused]
        return True

    def gelu(self, erf: Node) -> bool:
        """x * (0.5 * (1 + erf(x / sqrt 2))) of x = y + bias."""
        divided = self._maker(erf.input[0], "Div")
        x = divided.input[0] if divided else ""
        half = self._user(self._user_output(erf, "Add"), "Mul")
        whole = self._user(half.output[0], "Mul") if half else None
        biased = self._biased(x)
        if whole is None or biased is None or x not in whole.input:
            return False
        out = whole.output[0]
        self.replaced[out] = [helper.make_node("BiasGelu", biased, [out], name=f"{out}/BiasGelu", domain=DOMAIN)]
        return True

    def finish(self) -> None:
        """Put the fused nodes where the ones they replace ended, and drop what nothing needs any more."""
        nodes = [new for node in self.graph.node for new in self.replaced.get(node.output[0], [node])]
        needed = {output.name for output in self.graph.output}
        kept = []
        for node in reversed(nodes):
            if needed & set(node.output):
                kept.append(node)
                needed.update(node.input)
        weights = [tensor for tensor in self.graph.initializer if tensor.name in needed]
        del self.graph.node[:], self.graph.initializer[:], self.graph.value_info[:]
        self.graph.node.extend(reversed(kept))
        self.graph.initializer.extend(weights)

    def _projection(self, name: str) -> str | None:
        """What is split into heads to give ``name``: (b, t, heads * d)."""
        turned = self._maker(name, "Transpose")
        split = self._maker(turned.input[0], "Reshape") if turned else None
        return split.input[0] if split else None

    def _biased(self, name: str) -> list[str] | None:
        """[y, bias] of y + bias, where the bias is a weight."""
        node = self._maker(name, "Add")
        return list(node.input) if node and node.input[1] in self.constants else None

    def _maker(self, name: str, operator: str) -> Node | None:
        node = self.maker.get(name)
        return node if node is not None and node.op_type == operator else None

    def _user(self, name: str, operator: str) -> Node | None:
        """The one node that uses ``name``, if it is an ``operator``."""
        users = self.users.get(name, [])
        return users[0] if len(users) == 1 and users[0].op_type == operator else None

    def _user_output(self, node: Node | None, operator: str) -> str:
        user = self._user(node.output[0], operator) if node is not None else None
        return user.output[0] if user is not None else ""


def masks_padding(model: onnx.ModelProto, name: str) -> bool:
    """Whether a value of the graph, added to attention scores, hides the keys that the mask marks and does no more."""
    inputs = [node.name for node in model.graph.input]
    try:
        part = Extractor(model).extract_model(inputs, [name])
        session = ort.InferenceSession(part.SerializeToString(), providers=["CPUExecutionProvider"])
        mask = np.ones((2, PROBED), np.int64)
        mask[1, PROBED // 3 :] = 0
        added = session.run([name], dict.fromkeys(inputs, mask))[0]
        hidden = np.broadcast_to(added, (2, 1, PROBED, PROBED)) <= -1e4
    except Exception:  # onnx, ONNX Runtime and NumPy share no other base: what cannot be tried is left alone
        return False
    nothing_else = bool(np.all((added == 0) | (added <= -1e4)))
    return nothing_else and bool((hidden == (mask == 0)[:, None, None]).all())

"""Default limits of the guard, in one place because three modules read them."""

from __future__ import annotations

from typing import Final

MODEL_BYTES: Final = 512 * 2**20
STRUCTURE_BYTES: Final = 8 * 2**20  # everything that is not weights
VARINT_PAYLOAD_BYTES: Final = 16 * 2**20  # of int32_data and the like: one byte of them becomes eight in memory
FIELDS: Final = 500_000  # a message that says nothing takes two bytes and some 200 in memory
NODES: Final = 20_000
TENSORS: Final = 20_000
MESSAGE_DEPTH: Final = 64  # protobuf itself stops at 100
IF_DEPTH: Final = 3
NODE_INPUTS: Final = 1024
NODE_OUTPUTS: Final = 256
GRAPH_ENDS: Final = 256  # inputs, initializers apart, and outputs of the graph
NAME_CHARACTERS: Final = 512
TENSOR_RANK: Final = 8
DIMENSION: Final = 2**31 - 1
WINDOW: Final = 1024  # kernel, stride, dilation and pad
OPSETS: Final = (7, 28)  # onnxruntime 1.32 loads these
ML_OPSETS: Final = (1, 5)
MICROSOFT_OPSETS: Final = (1, 1)
IR_VERSIONS: Final = (3, 14)

"""ONNX in and out: `read` a classifier, `write` trained weights back, `export` a Network, `inspect` a file."""

from citrus_tool.onnx_io.contract import InputContract as InputContract
from citrus_tool.onnx_io.export_graph import fold_batch_norm as fold_batch_norm
from citrus_tool.onnx_io.import_graph import NodeRecord as NodeRecord
from citrus_tool.onnx_io.inspection import Inspection as Inspection
from citrus_tool.onnx_io.inspection import inspect as inspect
from citrus_tool.onnx_io.lowering import Binding as Binding
from citrus_tool.onnx_io.model import OnnxModel as OnnxModel
from citrus_tool.onnx_io.reader import read as read
from citrus_tool.onnx_io.runner import OnnxRunner as OnnxRunner
from citrus_tool.onnx_io.runner import Parity as Parity
from citrus_tool.onnx_io.runner import require_parity as require_parity
from citrus_tool.onnx_io.writer import export as export
from citrus_tool.onnx_io.writer import write as write

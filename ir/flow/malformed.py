"""What can be wrong with an ONNX file."""

from planish.ir.errors import PlanishError


class Malformed(PlanishError):
    """A file is no ONNX model, or one that can be understood in several ways."""


class NotOnnx(Malformed):
    """A file holds something else."""


class UnknownFormat(Malformed):
    """A model's format or operators are of a version that is not known."""


class AmbiguousGraph(Malformed):
    """Names do not say clearly what is computed from what."""


class AmbiguousTensor(Malformed):
    """A stored tensor can be read in two ways, or does not fit its own description."""


class ForeignData(Malformed):
    """External data that lie outside the model's folder, or nowhere."""

"""Two ONNX files as a pair that can be checked."""

from __future__ import annotations

import gc
from collections.abc import Collection, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
from onnx import ModelProto

from dwr_rewrite.equivalence.evidence import Probe
from dwr_rewrite.equivalence.sample import first_line
from dwr_rewrite.equivalence.subject import Site
from dwr_rewrite.equivalence.tolerance import UNIT_ROUNDOFF, Rounding
from dwr_rewrite.equivalence.verification import DOUBLE
from dwr_rewrite.passes.onnx import files
from dwr_rewrite.passes.onnx.fold import dtype_name
from dwr_rewrite.passes.onnx.hybrid import Changes
from dwr_rewrite.passes.onnx.probe import probes
from dwr_rewrite.passes.onnx.proof import prove
from dwr_rewrite.passes.onnx.structure import compare
from dwr_rewrite.passes.onnx.subject import OnnxSubject
from dwr_rewrite.passes.onnx.whole import versions


class OnnxPair:
    """A reference and a candidate.

    Args:
        reference: its file.
        candidate: its file.
        sites: the convolutions that are compared by themselves, in any scope.

    Raises:
        InputError: an input of a model is no tensor.
    """

    def __init__(self, reference: Path, candidate: Path, sites: Sequence[Site]) -> None:
        """Reads both files and compares them without running them; keeps neither in memory."""
        self.files = reference, candidate
        self.sites = sites
        self.notes: list[str] = []
        self._compare(self._invalid(candidate))
        gc.collect()  # graphsurgeon's views hold the models in cycles
        self._choose_engine()
        self.versions = versions()

    def _compare(self, refusal: str) -> None:
        """Takes everything from the models that can be had without running them."""
        models = onnx.load(self.files[0]), onnx.load(self.files[1])
        self.operators = files.count_nodes(models[0])
        self.weight_bytes = files.tensor_bytes(models[0])
        self.rounding = Rounding.of({*(s.dtype for s in self.sites), *weight_types(*models)})
        values = {site.value for site in self.sites}
        self.reference = OnnxSubject(self.files[0], models[0], self.rounding, values)
        self.candidate = self._subject(self.files[1], models[1], refusal)
        found = compare(*models)
        self.proof = prove(*models, found)
        self.changed = list(Changes(*models, found).names)

    def probes(self) -> Iterable[Probe]:
        """Every changed site by itself."""
        reference, candidate = self._models
        return probes(reference, candidate, self.sites)

    def hybrid(self, names: Collection[str]) -> OnnxSubject:
        """The reference with only these changes, in a file that lives as long as the pair."""
        path = Path(self._folder.name) / "hybrid.onnx"
        self.save_hybrid(names, path)
        return self._subject(path, onnx.load(path), self._invalid(path))

    def save_hybrid(self, names: Collection[str], path: Path) -> None:
        """Writes the reference with only these changes.

        Raises:
            DwrError: they cannot be applied or written.
        """
        model = self._changes.apply(names)
        with files.staging(path) as staged:
            large = files.tensor_bytes(model) > files.PROTOBUF_LIMIT - files.MARGIN
            staged.write(model, large)
            staged.commit()

    def _subject(self, path: Path, model: ModelProto, invalid: str) -> OnnxSubject:
        refusal = self._outputs_differ(model) or invalid
        subject = OnnxSubject(path, model, self.rounding, (), refusal)
        subject.engine = self.reference.engine
        return subject

    def _outputs_differ(self, model: ModelProto) -> str:
        """How the outputs' names differ, which no rewrite may change."""
        before, after = self.reference.outputs, [o.name for o in model.graph.output]
        return "" if before == after else f"the outputs {before} became {after}"

    def _invalid(self, path: Path) -> str:
        """Why a model is invalid although the reference is not; empty otherwise."""
        if self._reference_invalid:
            return ""
        try:
            onnx.checker.check_model(path, full_check=True)
        except Exception as error:  # noqa: BLE001  checker, inference and protobuf errors
            return f"onnx.checker refuses it: {first_line(error)}"
        return ""

    @cached_property
    def _reference_invalid(self) -> bool:
        try:
            onnx.checker.check_model(self.files[0], full_check=True)
        except Exception as error:  # noqa: BLE001  checker, inference and protobuf errors
            self.notes.append(f"onnx.checker refuses the reference: {first_line(error)}")
            return True
        return False

    def _choose_engine(self) -> None:
        """Float64 alone, where onnxruntime does not load the reference."""
        try:
            self.reference.load()
        except Exception as error:  # noqa: BLE001  onnxruntime raises many types
            self.notes.append(f"onnxruntime cannot run the reference: {first_line(error)}")
            self.reference.engine = self.candidate.engine = DOUBLE

    @cached_property
    def _models(self) -> tuple[ModelProto, ModelProto]:
        return onnx.load(self.files[0]), onnx.load(self.files[1])

    @cached_property
    def _changes(self) -> Changes:
        return Changes(*self._models)

    @cached_property
    def _folder(self) -> TemporaryDirectory[str]:
        return TemporaryDirectory(prefix="dwr-hybrid-")


def weight_types(*models: ModelProto) -> set[str]:
    """Floating-point types of the stored tensors with two axes or more."""
    found = {
        dtype_name(tensor.data_type)
        for model in models
        for tensor in model.graph.initializer
        if len(tensor.dims) >= 2
    }
    return found & UNIT_ROUNDOFF.keys()

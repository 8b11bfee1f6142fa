"""Builds synthetic reports; every figure comes from the package's own comparison and one seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from dwr_rewrite.equivalence.comparison import Comparison, compare
from dwr_rewrite.equivalence.evidence import (
    Gradient,
    Lemma,
    Probe,
    Proof,
    Reach,
    Tap,
    Training,
)
from dwr_rewrite.equivalence.statistics import errors, picture
from dwr_rewrite.equivalence.tolerance import Rounding
from dwr_rewrite.equivalence.verification import DOUBLE, Case, Verification
from dwr_rewrite.errors import Rejection
from dwr_rewrite.report import Report, SiteReport, Totals
from dwr_rewrite.spec import ConvSpec

ENGINE = "onnxruntime CPU"
UNIT = 2.0**-24
WIDTHS = (32, 96, 144, 192, 384, 576, 960)


def spec(channels: int, **fields: object) -> ConvSpec:
    kernel = fields.pop("kernel", (3, 3))
    return ConvSpec(channels, kernel, padding=((1, 1), (1, 1)), spatial=(56, None), **fields)


def site(name: str, depth: int, weights: str | None = "precomputed") -> SiteReport:
    channels = WIDTHS[depth % len(WIDTHS)]
    geometry = spec(channels, stride=(1 + depth % 2,) * 2, multiplier=1 + (depth % 5 == 4))
    form = "dense" if depth % 4 == 3 else "blocks:32"
    return SiteReport(
        name, "Conv", form, None, geometry, f"{name}:0", weights,
        0 if weights == "linked" else channels * 31 * 36, (channels * 1000, channels * 32_000),
    )  # fmt: skip


def kept(name: str, code: str = "over-budget", reason: str = "its weight would add too much"):
    return SiteReport(name, "Conv", "keep", Rejection(code, reason), spec(32), name,
                      macs=(32_000, 32_000))  # fmt: skip


class Builder:
    def __init__(self, names: Sequence[str], weights: str = "precomputed", seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.sites = [site(name, depth, weights) for depth, name in enumerate(names)]

    def noisy(self, truth: np.ndarray, size: float) -> np.ndarray:
        scale = float(np.abs(truth).max())
        return (truth + self.rng.standard_normal(truth.shape) * size * scale).astype("f4")

    def outputs(self, factor: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        truth = self.rng.standard_normal((2, 1000)) * 4
        return truth, self.noisy(truth, 2 * UNIT), self.noisy(truth, 2 * UNIT * factor)

    def comparison(self, factor: float = 1.0, output: str = "logits") -> Comparison:
        truth, before, after = self.outputs(factor)
        return compare(output, before, after, truth, movement=4e-6)

    def cases(self, factor: float = 1.0, outputs: Sequence[str] = ("logits",)) -> Iterator[Case]:
        shapes = {"pixel_values": (2, 3, 224, 224)}
        for kind in ("normal", "uniform", "sparse", "large", "one-hot"):
            found = tuple(self.comparison(factor, output) for output in outputs)
            yield Case(kind, ENGINE, found, "", shapes)
        exact = self.rng.standard_normal((2, 1000))
        algebra = compare(outputs[0], exact, exact * (1 + 1e-15), exact, movement=1e-13)
        yield Case("normal", DOUBLE, (algebra,), "", shapes)
        yield Case("tiny", ENGINE, (), "its activations overflow float32 before 'stem'", shapes)

    def taps(self, jump: int | None = None) -> tuple[Tap, ...]:
        found: list[Tap] = []
        for depth, here in enumerate(self.sites):
            truth = self.rng.standard_normal((1, 16, 64)) * 3
            worse = 3e4 if jump is not None and depth >= jump else 1.0
            size = UNIT * (1 + depth) ** 0.7
            pair = [self.noisy(truth, size), self.noisy(truth, size * worse)]
            before, after = (errors(a.astype("f8"), truth, "float32") for a in pair)
            scale = float(np.abs(truth).max())
            found.append(Tap(here.name, here.output, depth, truth.shape, scale, before, after))
        return tuple(found)

    def probes(self, leak: int | None = None) -> tuple[Probe, ...]:
        return tuple(self.probe(depth, depth == leak) for depth in range(len(self.sites)))

    def probe(self, depth: int, leaks: bool) -> Probe:
        here = self.sites[depth]
        assert here.spec is not None
        channels, m = here.spec.channels, here.spec.multiplier
        width = channels if here.form == "dense" else int(here.form.partition(":")[2])
        reach = tuple(Reach(value, 1, m, width * m) for value in ("Inf", "NaN"))
        pairs = tuple((3, 4 + n) for n in range(10)) if leaks else ()
        return Probe(here.name, here.form, channels, here.spec.out_channels, channels, pairs,
                     31 if leaks else 0, reach)  # fmt: skip

    def proof(self, refuted: int | None = None) -> Proof:
        wrong = "channel 7 of the weight is not the original's: 0.5 became 0.25"
        fine = "the weight unpacks to the original bits"
        lemmas = tuple(
            Lemma(here.name, here.form, here.weights or "precomputed",
                  "refuted" if depth == refuted else "proved",
                  wrong if depth == refuted else fine)
            for depth, here in enumerate(self.sites)
        )  # fmt: skip
        return Proof(lemmas, 224, 12, () if refuted is None else ("node 'add' has another input",))

    def training(self, factor: float = 1.0) -> Training:
        gradients = tuple(
            self.gradient(here.name, direction, factor)
            for here in self.sites
            for direction in ("grad_input", "grad_weight", "parameter")
        )
        steps = np.arange(1, 21)
        truth = 2.3 * np.exp(-steps / 12) + 0.05
        tolerance = 2e-6 * steps**1.5
        off = [self.rng.standard_normal(20) * tolerance / 10 * scale for scale in (1, factor)]
        return Training(
            (*gradients, self.gradient("pixel_values", "input", factor)), tuple(truth),
            tuple(truth + off[0]), tuple(truth + off[1]), tuple(tolerance),
            ("20 steps of SGD on seeded inputs",),
        )  # fmt: skip

    def gradient(self, name, direction, factor: float) -> Gradient:
        truth = self.rng.standard_normal(128)
        pair = [self.noisy(truth, UNIT), self.noisy(truth, UNIT * factor)]
        before, after = (errors(a.astype("f8"), truth, "float32") for a in pair)
        scale = float(np.abs(truth).max())
        return Gradient(name, direction, scale, before, after, 20 * UNIT * scale)

    def verification(self, factor: float = 1.0, **fields: object) -> Verification:
        truth, before, after = self.outputs(factor)
        wide = [np.asarray(a, "f8") for a in (before, after, truth)]
        found = Verification(
            tuple(self.cases(factor)),
            {"onnxruntime": "1.31.1", "onnx": "1.23.2", "numpy": "2.4.6"}, 3, 7.512,
            ("evaluated in float32 for want of a float64 kernel: NonMaxSuppression",),
            Rounding.of(["float32"]), (self.sites[-1].name, 960), self.taps(), "normal",
            self.probes(), self.proof(), None, None, picture("logits", "normal", *wide),
        )  # fmt: skip
        return replace(found, **fields)

    def report(self, verification: Verification | None, **fields: object) -> Report:
        others = (
            kept("features.18.conv"),
            kept("features.19.conv", "no-group-width", "C = 37 has no divisor near 32"),
            SiteReport("stem", "Conv", "keep", Rejection("grouped", "an ordinary convolution")),
        )
        found = Report(
            "0.1.0", "mobilenet_v2.onnx", "mobilenet_v2.fast.onnx",
            {"policy": "blocks:32", "weights": "precomputed", "restore": False, "seed": 0},
            (*self.sites, *others),
            Totals(242, 3_504_872, 14_023_504, "3f" * 32),
            Totals(242, 4_836_595, 19_400_112, "9a" * 32),
            verification, ("2 inputs were given by the user",), "rewrite",
            "dwr-rewrite mobilenet_v2.onnx -o mobilenet_v2.fast.onnx --report report.json",
            {"date": "2026-01-02 03:04 UTC", "system": "Linux x86_64", "python": "3.11.2",
             "processor": "a processor", "cores": 2},
        )  # fmt: skip
        return replace(found, **fields)

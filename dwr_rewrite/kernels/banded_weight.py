"""The gradient of a weight: the kernel of :func:`dwr_rewrite.kernels.banded.run_weight`."""

from __future__ import annotations

import triton
import triton.language as tl

from dwr_rewrite.kernels.banded_map import AWAY, product
from dwr_rewrite.kernels.common import last, meets, put, tap


@triton.jit
def banded_weight(
    part_ptr, sum_ptr, fine_ptr, coarse_ptr, filters, batch, DF, HF, WF, DC, HC, WC,
    boxes_h, boxes_w, splits, share, fs_n, fs_c, fs_d, fs_h, fs_w, cs_n, cs_c, cs_d, cs_h, cs_w,
    KD: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    SD: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    PD: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    DD: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    ADJOINT: tl.constexpr, M: tl.constexpr, BP: tl.constexpr, TH: tl.constexpr, R: tl.constexpr,
    V: tl.constexpr, N: tl.constexpr, FIRST: tl.constexpr, CHUNKS: tl.constexpr,
    VEC: tl.constexpr, UNIT: tl.constexpr, BIAS: tl.constexpr, WIDE: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Sums TH rows of taps of a filter over one of ``splits`` shares of the positions.

    A total[i, j] of a kernel row sums fine[.., i] * coarse[.., j] over boxes and their rows; each
    tap of the kernel row is the sum of a diagonal.
    """
    GROUPS: tl.constexpr = (KH + TH - 1) // TH
    H: tl.constexpr = (TH, SH, 0, DH, False)
    program = tl.program_id(0)
    kd, kh = program % (KD * GROUPS) // GROUPS, program % GROUPS * TH
    split = program // (KD * GROUPS) % splits
    f = (program // (KD * GROUPS) // splits).to(tl.int64)
    fs_n, fs_c, fs_d, fs_h = fs_n * VEC, fs_c * VEC, fs_d * VEC, fs_h * VEC
    cs_n, cs_c, cs_d, cs_h = cs_n * UNIT, cs_c * UNIT, cs_d * UNIT, cs_h * UNIT
    WF, WC = WF * VEC, WC * UNIT
    fine_ptr += (f if ADJOINT else f // M) * fs_c
    coarse_ptr += (f // M if ADJOINT else f) * cs_c
    if WIDE:
        wide = tl.zeros([], tl.int64)
        fs_n, fs_d, fs_h, fs_w = fs_n + wide, fs_d + wide, fs_h + wide, fs_w + wide
        cs_n, cs_d, cs_h, cs_w = cs_n + wide, cs_d + wide, cs_h + wide, cs_w + wide
    i, j = tl.arange(0, 16)[None, :], tl.arange(0, N)[None, :]
    totals = ()
    for _ in tl.static_range(TH * CHUNKS):
        totals = totals + (tl.zeros([16, N], tl.float32),)
    ones = tl.full([16, BP], 1, tl.float32).to(fine_ptr.dtype.element_ty)
    total = tl.zeros([16, N], tl.float32)
    for block in range(share):
        p = (split * share + block) * BP + tl.arange(0, BP)[:, None]
        w, h = p % boxes_w * V, p // boxes_w % boxes_h * R
        d, n = p // boxes_w // boxes_h % DC, p // boxes_w // boxes_h // DC
        exists = n < batch
        inside = exists & (j < V) & (w + j < WC)
        at = coarse_ptr + (n * cs_n + d * cs_d + h * cs_h + (w + j) * cs_w)
        rows = ()
        for r in tl.static_range(R):
            rows = rows + (tl.load(at + r * cs_h, mask=inside & (h + r < HC), other=0),)
            if BIAS:
                total = product(ones, rows[r], total, INTERPRETED)
        d, h, w = d * SD + kd * DD - PD, h * SH + kh * DH - PH, w * SW + FIRST
        exists = exists & (d >= 0) & (d < DF)
        places = ()
        for q in tl.static_range(CHUNKS):
            inside = exists & (w + 16 * q + i >= 0) & (w + 16 * q + i < WF)
            places = places + (tl.where(inside, h, AWAY),)
        at = fine_ptr + (n * fs_n + d * fs_d + h * fs_h + (w + i) * fs_w)
        for a in tl.static_range(last(R, H) + 1):
            if meets(a, 1, R, H):
                for q in tl.static_range(CHUNKS):
                    inside = (places[q] + a).to(tl.uint32, bitcast=True) < HF
                    x = tl.load(at + (a * fs_h + 16 * q * fs_w), mask=inside, other=0)
                    for r in tl.static_range(R):
                        if tap(a, r, H) >= 0:
                            value = totals[tap(a, r, H) * CHUNKS + q]
                            value = product(tl.trans(x), rows[r], value, INTERPRETED)
                            totals = put(totals, tap(a, r, H) * CHUNKS + q, value)
    reach = tl.trans(i) + FIRST + PW - j * SW
    out = part_ptr + (split * filters + f) * (KD * KH * KW) + kd * (KH * KW)
    for t in range(KW):
        for k in tl.static_range(TH):
            value = 0.0
            for q in tl.static_range(CHUNKS):
                diagonal = (reach + 16 * q == t * DW) & (j < V)
                value += tl.sum(tl.where(diagonal, totals[k * CHUNKS + q], 0.0))
            tl.store(out + (kh + k) * KW + t, value, mask=kh + k < KH)
    if BIAS and program % (KD * GROUPS) == 0:
        # every row of ``total`` is the same
        value = tl.sum(tl.where(tl.trans(i) == 0, total, 0.0))
        tl.store(sum_ptr + split * filters + f, value)

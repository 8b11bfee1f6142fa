"""A depthwise map on tensor cores: the kernel of :func:`dwr_rewrite.kernels.banded.run`."""

from __future__ import annotations

import triton
import triton.language as tl

from dwr_rewrite.kernels.common import activate, first, last, meets, put, tap

AWAY = tl.constexpr(-(1 << 30))


@triton.constexpr_function
def _filter_row(e, a, i, rows, depth, height):
    """The row of the filter with which input row (e, a) counts for row i of a box; -1 for none."""
    kd, kh = tap(e, i // rows, depth), tap(a, i % rows, height)
    return kd * height[0] + kh if kd >= 0 and kh >= 0 else -1


@triton.jit
def product(a, b, total, INTERPRETED: tl.constexpr):
    """The sum of ``total`` and a @ b. The interpreter would take bfloat16 for integers."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total)


@triton.jit
def _columns(piece: tl.constexpr, VEC: tl.constexpr):
    """The columns of a chunk that lanes load with one instruction, [1, 4 VEC].

    Four lanes share a row of a chunk. With pairs, lane t has the columns 4t to 4t + 3; with single
    elements t, 4 + t, 8 + t and 12 + t. (An order that lets the compiler see longer vectors would
    make it hand columns to other lanes than the product wants.)
    """
    i = tl.arange(0, 4 * VEC)[None, :]
    return i // 2 * 4 + i % 2 + 2 * piece if VEC == 2 else i + 4 * piece


@triton.jit
def _chunk(x, rows, a, length, q: tl.constexpr, xs_w, VEC: tl.constexpr):
    """Chunk q of the windows in row ``a``, [BP, 16]; zeros where there is no such row.

    Column 4t + i of the result is element i of lane t: what :func:`_weight` knows.
    """
    BP: tl.constexpr = rows[0].shape[0]
    pieces = ()
    for u in tl.static_range(4 // VEC):
        row = (rows[4 // VEC * q + u] + a).to(tl.uint32, bitcast=True)
        at = x + (_columns(u, VEC) + 16 * q) * xs_w
        pieces = pieces + (tl.load(at, mask=row < length, other=0),)
    if VEC == 2:
        both = tl.reshape(tl.join(pieces[0], pieces[1]), [BP, 4, 2, 2])
        return tl.reshape(tl.permute(both, [0, 1, 3, 2]), [BP, 16])
    else:
        even, odd = tl.join(pieces[0], pieces[2]), tl.join(pieces[1], pieces[3])
        return tl.reshape(tl.join(even, odd), [BP, 16])


@triton.jit
def _rows(row, exists, iw, WI, CHUNKS: tl.constexpr, VEC: tl.constexpr):
    """The input row of every element of a window; far AWAY where there is no such element.

    So one comparison of a row serves for the columns too.
    """
    found = ()
    for q in tl.static_range(CHUNKS):
        for u in tl.static_range(4 // VEC):
            at = iw + 16 * q + _columns(u, VEC)
            found = found + (tl.where(exists & (at >= 0) & (at < WI), row, AWAY),)
    return found


@triton.jit
def _weight(w, known, FIRST: tl.constexpr, W: tl.constexpr, N: tl.constexpr, VEC: tl.constexpr):
    """One row of every four of a band, [4, N]: that of column FIRST, and the other lanes'."""
    lane = tl.arange(0, 4)[:, None] * (4 if VEC == 2 else 1)
    # The sum hides from the compiler that outputs are neighbours: it would turn the lanes.
    out = tl.arange(0, N)[None, :]
    out = (out & 1) + (out & -2)
    KNOWN: tl.constexpr = W[2] - FIRST * W[1] if W[4] else FIRST + W[2]
    reach = out - lane * W[1] if W[4] else lane - out * W[1]
    exists = (reach + KNOWN).to(tl.uint32, bitcast=True) < W[0] * W[3]
    if W[3] == 1:
        at = (w + reach) + KNOWN
    else:
        exists = exists & ((reach + KNOWN) % W[3] == 0)
        at = w + (reach + KNOWN) // W[3]
    return tl.load(at, mask=exists & known, other=0)


@triton.jit
def _band(w, known, FIRST: tl.constexpr, W: tl.constexpr, N: tl.constexpr, VEC: tl.constexpr):
    """16 rows of the band of a kernel row, [16, N], in the order of :func:`_chunk`."""
    STEP: tl.constexpr = 1 if VEC == 2 else 4
    even = tl.join(
        _weight(w, known, FIRST, W, N, VEC), _weight(w, known, FIRST + 2 * STEP, W, N, VEC)
    )
    odd = tl.join(
        _weight(w, known, FIRST + STEP, W, N, VEC), _weight(w, known, FIRST + 3 * STEP, W, N, VEC)
    )
    return tl.reshape(tl.permute(tl.join(even, odd), [0, 2, 3, 1]), [16, N])


@triton.jit
def _taps(
    sums, x, w, kh, exists, idd, ih, iw, DI, HI, WI, xs_d, xs_h, xs_w,
    KH: tl.constexpr, D: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
    RD: tl.constexpr, R: tl.constexpr, N: tl.constexpr, FIRST: tl.constexpr, CHUNKS: tl.constexpr,
    VEC: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Adds the products of the kernel rows from ``w`` on, as many as the axes D and H have taps.

    Their bands are made first; then every input row is loaded once, for all outputs that it meets.
    """
    band = ()
    for t in tl.static_range(D[0] * H[0]):
        at = w + (t // H[0] * KH + t % H[0]) * W[0]
        known = (KH % H[0] == 0) | (kh + t % H[0] < KH)
        for q in tl.static_range(CHUNKS):
            band = band + (_band(at, known, FIRST + 16 * q, W, N, VEC),)
    for e in tl.static_range(first(RD, D), last(RD, D) + 1):
        if meets(e, 1, RD, D):
            deep = exists & (idd + e >= 0) & (idd + e < DI)
            rows = _rows(ih, deep, iw, WI, CHUNKS, VEC)
            for a in tl.static_range(first(R, H), last(R, H) + 1):
                if meets(a, 1, R, H):
                    for q in tl.static_range(CHUNKS):
                        part = _chunk(x + (e * xs_d + a * xs_h), rows, a, HI, q, xs_w, VEC)
                        for i in tl.static_range(RD * R):
                            if _filter_row(e, a, i, R, D, H) >= 0:
                                b = band[_filter_row(e, a, i, R, D, H) * CHUNKS + q]
                                sums = put(sums, i, product(part, b, sums[i], INTERPRETED))
    return sums


@triton.jit
def banded_map(
    y_ptr, x_ptr, w_ptr, scale_ptr, bias_ptr, batch, DI, HI, WI, DO, HO, WO,
    boxes_d, boxes_h, boxes_w, blocks, xs_n, xs_c, xs_d, xs_h, xs_w, ys_n, ys_c, ys_d, ys_h, ys_w,
    KD: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    SD: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    PD: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    DD: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    ADJOINT: tl.constexpr, REDUCE: tl.constexpr, M: tl.constexpr, ACTIVATION: tl.constexpr,
    BP: tl.constexpr, RD: tl.constexpr, R: tl.constexpr, V: tl.constexpr, N: tl.constexpr,
    FIRST: tl.constexpr, CHUNKS: tl.constexpr, VEC: tl.constexpr, OUT: tl.constexpr,
    TD: tl.constexpr, TH: tl.constexpr, WIDE: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """One program: BP boxes of a channel. Its arguments are those that ``run`` gives.

    Strides and lengths along the width come in units of VEC and OUT elements, so that the compiler
    sees where vectors begin.
    """
    D: tl.constexpr = (TD, SD, PD, DD, ADJOINT)
    H: tl.constexpr = (TH, SH, PH, DH, ADJOINT)
    W: tl.constexpr = (KW, SW, PW, DW, ADJOINT)
    GROUPS_H: tl.constexpr = (KH + TH - 1) // TH
    GROUPS: tl.constexpr = (KD + TD - 1) // TD * GROUPS_H
    c = (tl.program_id(0) // blocks).to(tl.int64)
    p = tl.program_id(0) % blocks * BP + tl.arange(0, BP)[:, None]
    xs_n, xs_c, xs_d, xs_h = xs_n * VEC, xs_c * VEC, xs_d * VEC, xs_h * VEC
    ys_n, ys_c, ys_d, ys_h = ys_n * OUT, ys_c * OUT, ys_d * OUT, ys_h * OUT
    WI, WO = WI * VEC, WO * OUT
    bw, bh = p % boxes_w, p // boxes_w % boxes_h
    bd, n = p // boxes_w // boxes_h % boxes_d, p // boxes_w // boxes_h // boxes_d
    exists = n < batch
    if ADJOINT:
        idd, ih, iw = bd * (RD // SD), bh * (R // SH), bw * (V // SW) + FIRST
    else:
        idd, ih, iw = bd * (RD * SD), bh * (R * SH), bw * (V * SW) + FIRST
    if WIDE:
        wide = tl.zeros([], tl.int64)
        xs_n, xs_d, xs_h, xs_w = xs_n + wide, xs_d + wide, xs_h + wide, xs_w + wide
        ys_n, ys_d, ys_h, ys_w = ys_n + wide, ys_d + wide, ys_h + wide, ys_w + wide
    sums = ()
    for _ in tl.static_range(RD * R):
        sums = sums + (tl.zeros([BP, N], tl.float32),)
    for part in range(M * GROUPS if REDUCE else GROUPS):
        if REDUCE:
            f = c * M + part // GROUPS
            x = x_ptr + f * xs_c
        else:
            f = c
            x = x_ptr + c // M * xs_c
        kd, kh = part % GROUPS // GROUPS_H * TD, part % GROUPS_H * TH
        if ADJOINT:
            near_d, near_h = idd - kd * DD // SD, ih - kh * DH // SH
        else:
            near_d, near_h = idd + kd * DD, ih + kh * DH
        w = w_ptr + (f * (KD * KH * KW) + (kd * KH + kh) * KW)
        x += n * xs_n + near_d * xs_d + near_h * xs_h + iw * xs_w
        sums = _taps(
            sums, x, w, kh, exists, near_d, near_h, iw, DI, HI, WI, xs_d, xs_h, xs_w, KH, D, H, W,
            RD, R, N, FIRST, CHUNKS, VEC, INTERPRETED,
        )  # fmt: skip
    # Seen as pairs, which is what a lane has of a product: longer vectors would cost an exchange.
    column = tl.arange(0, N)[None, :]
    column = column // 2 * 2 + column % 2
    od, oh, ow = bd * RD, bh * R, bw * V + column
    inside = exists & (column < V) & (ow < WO)
    y = y_ptr + c * ys_c + (n * ys_n + od * ys_d + oh * ys_h + ow * ys_w)
    if scale_ptr is not None:
        scale = tl.load(scale_ptr + c).to(tl.float32)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + c).to(tl.float32)
    for i in tl.static_range(RD * R):
        value = sums[i]
        if scale_ptr is not None:
            value *= scale
        if bias_ptr is not None:
            value += bias
        value = activate(value, ACTIVATION).to(y_ptr.dtype.element_ty)
        here = inside & (od + i // R < DO) & (oh + i % R < HO)
        tl.store(y + (i // R) * ys_d + (i % R) * ys_h, value, mask=here)

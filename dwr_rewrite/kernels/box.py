"""The kernel of :mod:`dwr_rewrite.kernels.gather`: a lane makes a box of outputs."""

from __future__ import annotations

import triton
import triton.language as tl

from dwr_rewrite.kernels.common import activate, first, last, meets, split, tap


@triton.constexpr_function
def _as_vector(group, VEC, outputs, axis):
    """Whether several elements of a vector count: one alone is loaded alone."""
    counts = [meets(group * VEC + i, 1, outputs, axis) for i in range(VEC)]
    return sum(map(bool, counts)) > 1


@triton.constexpr_function
def _place(out, t, outputs, axis):
    """Where in a line the input of an output and a tap stands; -1 where there is none."""
    _, stride, padding, dilation, adjoint = axis
    reach = out + padding - t * dilation if adjoint else out * stride + t * dilation - padding
    if adjoint and reach % stride:
        return -1
    return (reach // stride if adjoint else reach) - first(outputs, axis)


@triton.jit
def _join(items, START: tl.constexpr, STEP: tl.constexpr, V: tl.constexpr):
    """V items of a tuple of [BC, BP], STEP apart -> [BC, BP, V], for V = 2, 4 or 8."""
    if V == 2:
        return tl.join(items[START], items[START + STEP])
    else:
        even = _join(items, START, 2 * STEP, V // 2)
        odd = _join(items, START + STEP, 2 * STEP, V // 2)
        return tl.reshape(tl.join(even, odd), [even.shape[0], even.shape[1], V])


@triton.jit
def _line(
    x, row, iw, WI, xs_w, W: tl.constexpr, V: tl.constexpr, VEC: tl.constexpr, ACC: tl.constexpr
):
    """The columns of an input row that a box needs, a tuple of [BC, BP]; 0 outside of the row.

    ``x`` points at every lane's column ``iw``; ``row`` tells for which lanes the row exists. Where
    vectors are loaded, WI and the start of a row are multiples of VEC: one predicate does for all.
    """
    line = ()
    for group in tl.static_range(first(V, W) // VEC, last(V, W) // VEC + 1):
        inside = row & ((iw + group * VEC).to(tl.uint32, bitcast=True) < WI)
        if _as_vector(group, VEC, V, W):
            at = (x + group * VEC)[:, :, None] + tl.arange(0, VEC)[None, None, :]
            found = split(tl.load(at, mask=inside[:, :, None], other=0).to(ACC))
        for i in tl.static_range(VEC):
            if group * VEC + i >= first(V, W) and group * VEC + i <= last(V, W):
                if _as_vector(group, VEC, V, W):
                    line = line + (found[i],)
                elif meets(group * VEC + i, 1, V, W):
                    at = x + (group * VEC + i) * xs_w
                    line = line + (tl.load(at, mask=inside, other=0).to(ACC),)
                else:
                    line = line + (0.0,)
    return line


@triton.jit
def _row(sums, line, filters, i: tl.constexpr, f: tl.constexpr, W: tl.constexpr, V: tl.constexpr):
    """The sums i..i+V-1 of a row of outputs, with the products of a line and a filter's row f."""
    found = ()
    for q in tl.static_range(V):
        total = sums[i + q]
        for t in tl.static_range(W[0]):
            if _place(q, t, V, W) >= 0:
                total += line[_place(q, t, V, W)] * filters[f + t]
        found = found + (total,)
    return found


@triton.jit
def _filters(w_ptr, count: tl.constexpr, exists, ACC: tl.constexpr):
    """Weights that lie one behind the other, a tuple of [BC, 1]."""
    found = ()
    for t in tl.static_range(count):
        found = found + (tl.load(w_ptr + t, mask=exists, other=0).to(ACC),)
    return found


@triton.jit
def _unrolled(
    sums, x, w_ptr, known, exists, idd, ih, iw, DI, HI, WI, xs_d, xs_h, xs_w,
    D: tl.constexpr, H: tl.constexpr, W: tl.constexpr, RD: tl.constexpr, R: tl.constexpr,
    V: tl.constexpr, VEC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Every input row of the box once, for all outputs and taps that it meets."""
    filters = _filters(w_ptr, D[0] * H[0] * W[0], known, ACC)
    for e in tl.static_range(first(RD, D), last(RD, D) + 1):
        for a in tl.static_range(first(R, H), last(R, H) + 1):
            if meets(e, 1, RD, D) and meets(a, 1, R, H):
                row = exists & ((idd + e).to(tl.uint32, bitcast=True) < DI)
                row = row & ((ih + a).to(tl.uint32, bitcast=True) < HI)
                line = _line(x + e * xs_d + a * xs_h, row, iw, WI, xs_w, W, V, VEC, ACC)
                found = ()
                for i in tl.static_range(RD * R):
                    if tap(e, i // R, D) >= 0 and tap(a, i % R, H) >= 0:
                        found = found + _row(
                            sums,
                            line,
                            filters,
                            i * V,
                            (tap(e, i // R, D) * H[0] + tap(a, i % R, H)) * W[0],
                            W,
                            V,
                        )
                    else:
                        found = found + sums[i * V : i * V + V]
                sums = found
    return sums


@triton.jit
def _source(out, t, AXIS: tl.constexpr, length):
    """The input position of an output and a tap, known at run time, and whether it is one."""
    if AXIS[4]:
        reach = out + AXIS[2] - t * AXIS[3]
        at = reach // AXIS[1]
        return at, (reach >= 0) & (reach % AXIS[1] == 0) & (at < length)
    else:
        at = out * AXIS[1] + t * AXIS[3] - AXIS[2]
        return at, (at >= 0) & (at < length)


@triton.jit
def _looped(
    sums, x, w_ptr, known, exists, od, oh, iw, DI, HI, WI, xs_d, xs_h, xs_w,
    D: tl.constexpr, H: tl.constexpr, W: tl.constexpr, RD: tl.constexpr, R: tl.constexpr,
    V: tl.constexpr, VEC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The rows of the kernel one after the other, for every row of the box."""
    for t in range(D[0] * H[0]):
        filters = _filters(w_ptr + t * W[0], W[0], known, ACC)
        found = ()
        for i in tl.static_range(RD * R):
            depth, deep = _source(od + i // R, t // H[0], D, DI)
            height, high = _source(oh + i % R, t % H[0], H, HI)
            at = x + depth * xs_d + height * xs_h
            line = _line(at, exists & deep & high, iw, WI, xs_w, W, V, VEC, ACC)
            found = found + _row(sums, line, filters, i * V, 0, W, V)
        sums = found
    return sums


@triton.jit
def gathered(
    y_ptr, x_ptr, w_ptr, scale_ptr, bias_ptr, C, DI, HI, WI, DO, HO, WO, lanes_w, lanes, blocks_p,
    blocks_d, blocks_c, xs_n, xs_c, xs_d, xs_h, xs_w, ys_n, ys_c, ys_d, ys_h, ys_w,
    KD: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    SD: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    PD: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    DD: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    ADJOINT: tl.constexpr, REDUCE: tl.constexpr, M: tl.constexpr, ACTIVATION: tl.constexpr,
    BC: tl.constexpr, BP: tl.constexpr, RD: tl.constexpr, R: tl.constexpr, V: tl.constexpr,
    VEC: tl.constexpr, OUT: tl.constexpr, XU: tl.constexpr, YU: tl.constexpr,
    UNROLL: tl.constexpr, LAST: tl.constexpr, FLAT: tl.constexpr, WIDE: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """One program: BP boxes of BC channels of an image. Its arguments are those that ``run`` gives.

    Strides and C come in units of XU and YU elements, so that the compiler sees where vectors
    begin; UNROLL and the rest in capitals are known when it is compiled.
    """
    D: tl.constexpr = (KD, SD, PD, DD, ADJOINT)
    H: tl.constexpr = (KH, SH, PH, DH, ADJOINT)
    W: tl.constexpr = (KW, SW, PW, DW, ADJOINT)
    if FLAT:
        block = tl.program_id(0)
        if LAST:
            cb, rest = block % blocks_c, block // blocks_c
            pb, n = rest % blocks_p, rest // blocks_p
        else:
            pb, rest = block % blocks_p, block // blocks_p
            cb, n = rest % blocks_c, rest // blocks_c
    else:
        pb, cb, n = (
            tl.program_id(1 if LAST else 0),
            tl.program_id(0 if LAST else 1),
            tl.program_id(2),
        )
    pb, db, n = pb // blocks_d, pb % blocks_d, n.to(tl.int64)
    xs_n, xs_d, xs_h = xs_n * XU, xs_d * XU, xs_h * XU
    ys_n, ys_d, ys_h = ys_n * YU, ys_d * YU, ys_h * YU
    if LAST:
        C, xs_w, ys_w = C * YU, xs_w * XU, ys_w * YU
    else:
        xs_c, ys_c = xs_c * XU, ys_c * YU
    if WIDE:
        wide = tl.zeros([], tl.int64)
        xs_c, xs_d, xs_h, xs_w = xs_c + wide, xs_d + wide, xs_h + wide, xs_w + wide
        ys_c, ys_d, ys_h, ys_w = ys_c + wide, ys_d + wide, ys_h + wide, ys_w + wide
    c = cb * BC + tl.arange(0, BC)[:, None]
    p = pb * BP + tl.arange(0, BP)[None, :]
    # Unsigned, for which fewer instructions divide.
    ph = (tl.cast(p, tl.uint32) // tl.cast(lanes_w, tl.uint32)).to(tl.int32)
    pw = p - ph * lanes_w
    known, exists = c < C, (c < C) & (p < lanes)
    od, oh, ow = db * RD, ph * R, pw * V
    iw = pw * (V // SW if ADJOINT else V * SW)
    sums = ()
    for _ in tl.static_range(RD * R * V):
        sums = sums + (tl.zeros([BC, BP], ACC),)
    for j in range(M if REDUCE else 1):
        if REDUCE:
            source, f = c * M + j, c * M + j
        else:
            source, f = c // M, c
        x = x_ptr + n * xs_n + source * xs_c + iw * xs_w
        w = w_ptr + f * (KD * KH * KW)
        if UNROLL:
            idd = db * (RD // SD if ADJOINT else RD * SD)
            ih = ph * (R // SH if ADJOINT else R * SH)
            sums = _unrolled(
                sums, x + idd * xs_d + ih * xs_h, w, known, exists, idd, ih, iw, DI, HI, WI,
                xs_d, xs_h, xs_w, D, H, W, RD, R, V, VEC, ACC,
            )  # fmt: skip
        else:
            sums = _looped(
                sums, x, w, known, exists, od, oh, iw, DI, HI, WI,
                xs_d, xs_h, xs_w, D, H, W, RD, R, V, VEC, ACC,
            )  # fmt: skip
    y = y_ptr + n * ys_n + c * ys_c + od * ys_d + oh * ys_h + ow * ys_w
    results = ()
    for i in tl.static_range(RD * R * V):
        value = sums[i]
        if scale_ptr is not None:
            value *= tl.load(scale_ptr + c, mask=known, other=0).to(ACC)
        if bias_ptr is not None:
            value += tl.load(bias_ptr + c, mask=known, other=0).to(ACC)
        results = results + (activate(value, ACTIVATION).to(y_ptr.dtype.element_ty),)
    for i in tl.static_range(0, RD * R * V, OUT):
        inside = exists & (od + i // (R * V) < DO) & (oh + i // V % R < HO) & (ow + i % V < WO)
        at = y + (i // (R * V)) * ys_d + (i // V % R) * ys_h + (i % V) * ys_w
        if OUT == 1:
            tl.store(at, results[i], mask=inside)
        else:
            lane = tl.arange(0, OUT)[None, None, :]
            tl.store(at[:, :, None] + lane, _join(results, i, 1, OUT), mask=inside[:, :, None])

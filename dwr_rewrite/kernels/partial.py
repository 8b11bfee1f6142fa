"""The kernels of :mod:`dwr_rewrite.kernels.weight`: partial sums, then their sum.

A lane takes a box of ``RD * R * V`` coarse values and walks the fine rows that the box meets. It
loads each fine value once and multiplies it with every coarse value that it meets by a tap: the
reuse of rows and columns of Lu et al. 2021 (TPDS 33(1)), with the taps in the place of the outputs.
A register holds a lane's sum for a tap; the lanes are summed at the end.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dwr_rewrite.kernels.common import last, meets, split, tap

# The coarse side stands for outputs. Offsets count from the fine place that a lane's first coarse
# value meets with a program's first tap, so an axis here is (taps, stride, 0, dilation, False).


@triton.jit
def _widen(x, ACC: tl.constexpr):
    """Values in the type of the sums. A bfloat16 is the upper half of its float32."""
    if tl.float32 == ACC and x.dtype == tl.bfloat16:
        return (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        return x.to(ACC)


@triton.jit
def _read(at, row, group, groups, step, VEC: tl.constexpr, ACC: tl.constexpr):
    """VEC neighbours of a row, a tuple; zeros where there is no row or it has no such group."""
    inside = row & (group.to(tl.uint32) < groups)
    if VEC == 1:
        return (_widen(tl.load(at, mask=inside, other=0), ACC),)
    else:
        at = at[:, :, None] + tl.arange(0, VEC)[None, None, :] * step
        return split(_widen(tl.load(at, mask=inside[:, :, None], other=0), ACC))


@triton.jit
def _line(
    at, row, group, groups, step, V: tl.constexpr, W: tl.constexpr, SKEW: tl.constexpr,
    VEC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The fine values of a row that a row of the box meets, from offset -SKEW on."""
    line = ()
    for u in tl.static_range((SKEW + last(V, W)) // VEC + 1):
        if meets(u * VEC - SKEW, VEC, V, W):
            line = line + _read(at + u * VEC * step, row, group + u, groups, step, VEC, ACC)
        else:
            for _ in tl.static_range(VEC):
                line = line + (0.0,)
    return line


@triton.jit
def _row(
    sums, values, line, i: tl.constexpr, f: tl.constexpr, V: tl.constexpr, W: tl.constexpr,
    SKEW: tl.constexpr,
):  # fmt: skip
    """The sums; to those from f on it adds products of a line and the box's values from i on."""
    found = ()
    for t in tl.static_range(W[0]):
        total = sums[f + t]
        for q in tl.static_range(V):
            total = tl.fma(values[i + q], line[SKEW + q * W[1] + t * W[3]], total)
        found = found + (total,)
    return sums[:f] + found + sums[f + W[0] :]


@triton.jit
def _carry(digit, base):
    """A digit that is below twice its base, and what it carries to the next."""
    over = digit >= base
    return tl.where(over, digit - base, digit), over.to(tl.int32)


@triton.jit
def _put_sum(to, value, asked, ATOMIC: tl.constexpr):
    """Writes, or adds, the sum over the lanes of every channel."""
    if ATOMIC:
        tl.atomic_add(to, tl.sum(value, 1), mask=asked, sem="relaxed")
    else:
        tl.store(to, tl.sum(value, 1).to(to.dtype.element_ty), mask=asked)


@triton.jit
def partial(
    out_ptr, bias_ptr, fine_ptr, coarse_ptr, filters, N, FD, FH, FW, CD, CH, CW, pd, ph, pw,
    fs_n, fs_c, fs_d, fs_h, fs_w, cs_n, cs_c, cs_d, cs_h, cs_w,
    splits, tiles, lanes_d, lanes_h, lanes_w, step_n, step_d, step_h, step_w,
    KD: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    TD: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr,
    SD: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    DD: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    ADJOINT: tl.constexpr, M: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr,
    RD: tl.constexpr, R: tl.constexpr, V: tl.constexpr,
    UNIT: tl.constexpr, VEC: tl.constexpr, SKEW: tl.constexpr,
    ATOMIC: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """BC filters' sums of (TD, TH, TW) taps over ``tiles`` tiles of BP boxes (RD, R, V) each.

    UNIT divides every stride but that of the contiguous axis, and the length of that axis: channels
    if VEC is 1, else columns, of which VEC = UNIT are loaded at once. They arrive divided by it, so
    that the compiler sees it; and so do the columns' padding and positions.
    """
    D: tl.constexpr = (TD, SD, 0, DD, False)
    H: tl.constexpr = (TH, SH, 0, DH, False)
    W: tl.constexpr = (TW, SW, 0, DW, False)
    PARTS_H: tl.constexpr = (KH + TH - 1) // TH
    PARTS_W: tl.constexpr = (KW + TW - 1) // TW
    PARTS: tl.constexpr = (KD + TD - 1) // TD * PARTS_H * PARTS_W
    part, rest = tl.program_id(0) % PARTS, tl.program_id(0) // PARTS
    split, block = rest % splits, rest // splits
    kd, kh = part // (PARTS_H * PARTS_W) * TD, part // PARTS_W % PARTS_H * TH
    kw = part % PARTS_W * TW
    if WIDE:
        wide = tl.zeros([], tl.int64)
        fs_n, fs_d, fs_h, fs_w = fs_n + wide, fs_d + wide, fs_h + wide, fs_w + wide
        cs_n, cs_d, cs_h, cs_w = cs_n + wide, cs_d + wide, cs_h + wide, cs_w + wide
    fs_n, fs_d, fs_h, fs_w = fs_n * UNIT, fs_d * UNIT, fs_h * UNIT, fs_w * (UNIT // VEC)
    cs_n, cs_d, cs_h, cs_w = cs_n * UNIT, cs_d * UNIT, cs_h * UNIT, cs_w * (UNIT // VEC)
    filters = filters * (UNIT // VEC)
    r = block * BC + tl.arange(0, BC)[:, None]
    if ADJOINT:
        fine_ptr += r.to(tl.int64) * fs_c * VEC
        coarse_ptr += (r // M).to(tl.int64) * cs_c * VEC
    else:
        fine_ptr += (r // M).to(tl.int64) * fs_c * VEC
        coarse_ptr += r.to(tl.int64) * cs_c * VEC
    # A lane's box is a number with the digits n, d, h, w; in the next tile it is BP more.
    p = split * tiles * BP + tl.arange(0, BP)[None, :]
    w, h = p % lanes_w, p // lanes_w % lanes_h
    d, n = p // lanes_w // lanes_h % lanes_d, p // lanes_w // lanes_h // lanes_d
    sums = ()
    for _ in tl.static_range(TD * TH * TW):
        sums = sums + (tl.zeros([BC, BP], ACC),)
    total = tl.zeros([BC, BP], ACC)
    for _ in range(tiles):
        exists = (r < filters) & (n < N)
        at = n * cs_n + d * RD * cs_d + h * R * cs_h + w * V * cs_w
        values = ()
        for i in tl.static_range(RD * R):
            row = exists & (d * RD + i // R < CD) & (h * R + i % R < CH)
            row_at = coarse_ptr + (at + i // R * cs_d + i % R * cs_h)
            for u in tl.static_range(V // VEC):
                group = w * (V // VEC) + u
                values = values + _read(row_at + u * VEC * cs_w, row, group, CW, cs_w, VEC, ACC)
        if bias_ptr is not None:
            for i in tl.static_range(RD * R * V):
                total += values[i]
        fd, fh = d * (RD * SD) + (kd * DD - pd), h * (R * SH) + (kh * DH - ph)
        fw = w * (V * SW // VEC) + (kw * DW // VEC - pw)
        at = n * fs_n + fd * fs_d + fh * fs_h + fw * VEC * fs_w
        for e in tl.static_range(last(RD, D) + 1):
            for a in tl.static_range(last(R, H) + 1):
                if meets(e, 1, RD, D) and meets(a, 1, R, H):
                    row = exists & ((fd + e).to(tl.uint32) < FD)
                    row = row & ((fh + a).to(tl.uint32) < FH)
                    row_at = fine_ptr + (at + e * fs_d + a * fs_h)
                    line = _line(row_at, row, fw, FW, fs_w, V, W, SKEW, VEC, ACC)
                    for i in tl.static_range(RD * R):
                        if tap(e, i // R, D) >= 0 and tap(a, i % R, H) >= 0:
                            sums = _row(
                                sums, values, line, i * V,
                                (tap(e, i // R, D) * TH + tap(a, i % R, H)) * TW, V, W, SKEW,
                            )  # fmt: skip
        w, over = _carry(w + step_w, lanes_w)
        h, over = _carry(h + step_h + over, lanes_h)
        d, over = _carry(d + step_d + over, lanes_d)
        n += step_n + over
    r = block * BC + tl.arange(0, BC)
    place = r.to(tl.int64)
    if not ATOMIC:
        place += split.to(tl.int64) * filters
    for i in tl.static_range(TD * TH * TW):
        td, th, tw = kd + i // (TH * TW), kh + i // TW % TH, kw + i % TW
        asked = (r < filters) & (td < KD) & (th < KH) & (tw < KW)
        to = out_ptr + (place * (KD * KH * KW) + ((td * KH + th) * KW + tw))
        _put_sum(to, sums[i], asked, ATOMIC)
    if bias_ptr is not None:
        _put_sum(bias_ptr + place, total, (r < filters) & (part == 0), ATOMIC)


@triton.jit
def finish(
    out_ptr, bias_ptr, parts_ptr, bias_parts_ptr, taps, biases, splits,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Sums [splits, taps] and [splits, biases] over the splits in their order, and rounds once."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], ACC)
    for first in range(0, splits, ROWS):
        split = (first + tl.arange(0, ROWS)[:, None]).to(tl.int64)
        exists = split < splits
        value = tl.load(parts_ptr + (split * taps + i), mask=exists & (i < taps), other=0)
        if bias_ptr is not None:
            at = bias_parts_ptr + (split * biases + (i - taps))
            value += tl.load(at, mask=exists & (i >= taps) & (i - taps < biases), other=0)
        total += tl.sum(value, 0)
    tl.store(out_ptr + i, total.to(out_ptr.dtype.element_ty), mask=i < taps)
    if bias_ptr is not None:
        asked = (i >= taps) & (i - taps < biases)
        tl.store(bias_ptr + (i - taps), total.to(bias_ptr.dtype.element_ty), mask=asked)

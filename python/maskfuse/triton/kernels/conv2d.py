"""Convolutions as products that gather their pixels on the way: the kernels of masked_conv2d and gathered_conv2d.

    conv2d_product        pixels of a result times a weight: forward, and of the weight transposed, input_grad
    conv2d_outer_product  sums over pixels: weight_grad, masked as it is stored

The depth of a product is (tap, channel): each tap of the kernel is a product of its own, of the pixels that it meets.
A group of a convolution is a program's third index. Everything else is as in `product.py`; bits are by taps,
[rows][taps][words(channels)] (csrc/cuda/mask_lists.h).

With CHANNELS, `chosen` are bits [images or 1, words(channels)]: which channels of an image take part. Others are not
read, and a gradient is zero there.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._launch import tuned
from .._planner import FEW, FLOAT_FEW, FLOAT_SMALL, SMALL, SQUARE
from .product import masked_weight, part_of, row_words, store_masked
from .tile import bits_along_columns, bits_along_rows, far, operand, rounded, tile_of


@triton.jit
def pixels_of(pixel, height, width):
    """Image, row and column of pixels that are counted through all images."""
    area = height * width
    return pixel // area, pixel % area // width, pixel % width


@triton.jit
def at_pixel(image, row, column, of_image, of_row, of_column, FAR: tl.constexpr):
    """Where pixels lie, by the strides of images, rows and columns."""
    return far(image, FAR) * of_image + far(row, FAR) * of_row + far(column, FAR) * of_column


@triton.jit
def met(at, tap, stride, padding, dilation, size, BACKWARD: tl.constexpr):
    """The row or column of the other side that a tap meets from `at`, and whether there is one."""
    if BACKWARD:
        steps = at + padding - tap * dilation
        place = steps // stride
        return place, (steps >= 0) & (place * stride == steps) & (place < size)
    else:
        place = at * stride - padding + tap * dilation
        return place, (place >= 0) & (place < size)


@triton.jit
def chosen_words(chosen, first_channel, image, channels, ld, FAR: tl.constexpr, C: tl.constexpr):
    """The words of C channels of each pixel's image: [C / 32, pixels]."""
    word = first_channel // 32 + tl.arange(0, C // 32)
    at = far(image[None, :], FAR) * ld + word[:, None]
    return tl.load(chosen + at, mask=(word[:, None] * 32 < channels) & (image[None, :] >= 0), other=0)


@triton.jit
def conv2d_product_kernel(
    x, w, bits, bias, chosen, lists, y,
    m, n, k, y_height, y_width, x_height, x_width, kernel_width,
    x_image, x_channel, x_row, x_column, w_group, w_n, w_k, w_row, w_column,
    bits_group, bits_ld, bits_tap, chosen_ld, y_image, y_channel, y_row, y_column, list_ld,
    stride_row, stride_column, padding_row, padding_column, dilation_row, dilation_column, taps,
    KIND: tl.constexpr, BACKWARD: tl.constexpr, CHANNELS: tl.constexpr, LISTS: tl.constexpr, PIXEL_LISTS: tl.constexpr,
    BIAS: tl.constexpr, PARTS: tl.constexpr, FAR: tl.constexpr, ARCH: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """m pixels of the result, n of its channels and k of the other side's in a group. With PARTS > 1 y is contiguous
    [PARTS, m, groups n], for `add_parts`. Lists are for each 128 of n, or with PIXEL_LISTS of the pixels."""
    ACC: tl.constexpr = tl.float64 if w.dtype.element_ty == tl.float64 else tl.float32
    STEPS: tl.constexpr = 64 // BLOCK_K
    part, group = tl.program_id(1), tl.program_id(2)
    tile_n, tile_m = tile_of(tl.program_id(0), n, m, BLOCK_N, BLOCK_M)
    n0, m0 = tile_n * BLOCK_N, tile_m * BLOCK_M
    rn, rm = n0 + tl.arange(0, BLOCK_N), m0 + tl.arange(0, BLOCK_M)
    image, row, column = pixels_of(rm, y_height, y_width)
    image = tl.where(rm < m, image, -1)
    w += group.to(tl.int64) * w_group
    bits += group.to(tl.int64) * bits_group
    blocks_a_tap = tl.cdiv(k, 64)
    count = taps * blocks_a_tap
    if LISTS:
        of_group = (m0 if PIXEL_LISTS else group * n + n0) // 128
        blocks = lists + of_group.to(tl.int64) * list_ld + 1
        count = tl.load(blocks - 1)
    begin, end = part_of(count, part, PARTS)
    if CHANNELS and BACKWARD:
        of_result = chosen_words(chosen, n0, image, n, chosen_ld, FAR, BLOCK_N)
        end = tl.where(tl.max(tl.max((of_result != 0).to(tl.int32), 1), 0) != 0, end, begin)
    acc = tl.zeros((BLOCK_N, BLOCK_M), dtype=ACC)
    for step in range(begin * STEPS, end * STEPS):
        if LISTS:
            block = tl.load(blocks + step // STEPS)
        else:
            block = step // STEPS
        tap = block // blocks_a_tap
        k0 = (block - tap * blocks_a_tap) * 64 + step % STEPS * BLOCK_K
        tap_row = tap // kernel_width
        tap_column = tap - tap_row * kernel_width
        weight = masked_weight(
            w + tap_row.to(tl.int64) * w_row + tap_column * w_column, bits + tap * bits_tap,
            n0, k0, n, k, w_n, w_k, bits_ld, bits_ld, KIND, FAR, ACC, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        other_row, row_there = met(row, tap_row, stride_row, padding_row, dilation_row, x_height, BACKWARD)
        other_column, column_there = met(
            column, tap_column, stride_column, padding_column, dilation_column, x_width, BACKWARD
        )
        rk = k0 + tl.arange(0, BLOCK_K)
        here = (rk[:, None] < k) & ((image >= 0) & row_there & column_there)[None, :]
        if CHANNELS and not BACKWARD:
            here = here & bits_along_columns(chosen_words(chosen, k0, image, k, chosen_ld, FAR, BLOCK_K))
        pixel = at_pixel(image, other_row, other_column, x_image, x_row, x_column, FAR)
        at = pixel[None, :] + far((group * k + rk)[:, None], FAR) * x_channel
        acc = tl.dot(weight, operand(tl.load(x + at, mask=here, other=0.0)), acc, input_precision="ieee", out_dtype=ACC)
    if CHANNELS and BACKWARD:
        acc = tl.where(bits_along_columns(of_result), acc, 0.0)
    if BIAS:
        acc += tl.load(bias + group * n + rn, mask=rn < n, other=0.0).to(ACC)[:, None]
    here = (rm[None, :] < m) & (rn[:, None] < n)
    if PARTS > 1:
        to = far(part * m + rm[None, :], FAR) * tl.num_programs(2) * n + (group * n + rn)[:, None]
    else:
        pixel = at_pixel(image, row, column, y_image, y_row, y_column, FAR)
        to = pixel[None, :] + far((group * n + rn)[:, None], FAR) * y_channel
    tl.store(y + to, rounded(acc, y.dtype.element_ty), mask=here)


@triton.jit
def conv2d_outer_product_kernel(
    g, x, bits, chosen, y, m, n, k, g_height, g_width, x_height, x_width, kernel_width,
    g_image, g_channel, g_row, g_column, x_image, x_channel, x_row, x_column,
    bits_group, bits_ld, bits_tap, chosen_ld, y_n, y_k, y_tap,
    stride_row, stride_column, padding_row, padding_column, dilation_row, dilation_column, taps,
    KIND: tl.constexpr, CHANNELS: tl.constexpr, PARTS: tl.constexpr, FAR: tl.constexpr, ARCH: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """m pixels of the gradient g, n of its channels and k of the input's in a group: y is [groups n, k, taps] in any
    strides, or with PARTS > 1 contiguous [PARTS, taps, groups n, k], not masked yet, for `add_masked_parts`."""
    ACC: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    part, group, groups = tl.program_id(1), tl.program_id(2), tl.num_programs(2)
    tiles = tl.cdiv(n, BLOCK_N) * tl.cdiv(k, BLOCK_K)
    tap = tl.program_id(0) // tiles
    tile_n, tile_k = tile_of(tl.program_id(0) % tiles, n, k, BLOCK_N, BLOCK_K)
    n0, k0 = tile_n * BLOCK_N, tile_k * BLOCK_K
    rn, rk = n0 + tl.arange(0, BLOCK_N), k0 + tl.arange(0, BLOCK_K)
    tap_row = tap // kernel_width
    tap_column = tap - tap_row * kernel_width
    bits += group.to(tl.int64) * bits_group + tap * bits_tap
    begin, end = part_of(tl.cdiv(m, BLOCK_M), part, PARTS)
    if KIND != 0:
        words = row_words(bits, n0, k0, n, k, bits_ld, FAR, BLOCK_N, BLOCK_K)
        end = tl.where(tl.max(tl.max((words != 0).to(tl.int32), 1), 0) != 0, end, begin)
    acc = tl.zeros((BLOCK_N, BLOCK_K), dtype=ACC)
    for step in range(begin, end):
        rm = step * BLOCK_M + tl.arange(0, BLOCK_M)
        image, row, column = pixels_of(rm, g_height, g_width)
        left = tl.load(
            g
            + at_pixel(image, row, column, g_image, g_row, g_column, FAR)[None, :]
            + far((group * n + rn)[:, None], FAR) * g_channel,
            mask=(rn[:, None] < n) & (rm[None, :] < m),
            other=0.0,
        )
        other_row, row_there = met(row, tap_row, stride_row, padding_row, dilation_row, x_height, False)
        other_column, column_there = met(
            column, tap_column, stride_column, padding_column, dilation_column, x_width, False
        )
        here = ((rm < m) & row_there & column_there)[:, None] & (rk[None, :] < k)
        if CHANNELS:
            word = k0 // 32 + tl.arange(0, BLOCK_K // 32)
            of_pixels = tl.load(
                chosen + far(image[:, None], FAR) * chosen_ld + word[None, :],
                mask=(rm[:, None] < m) & (word[None, :] * 32 < k),
                other=0,
            )
            here = here & bits_along_rows(of_pixels)
        pixel = at_pixel(image, other_row, other_column, x_image, x_row, x_column, FAR)
        right = tl.load(x + pixel[:, None] + far((group * k + rk)[None, :], FAR) * x_channel, mask=here, other=0.0)
        acc = tl.dot(operand(left), operand(right), acc, input_precision="ieee", out_dtype=ACC)
    if PARTS > 1:
        at = far(((part * taps + tap) * groups + group) * n + rn[:, None], FAR)
        tl.store(y + at * k + rk[None, :], acc, mask=(rn[:, None] < n) & (rk[None, :] < k))
    else:
        y += group.to(tl.int64) * n * y_n + tap * y_tap
        store_masked(
            acc, y, bits, y, y, n0, k0, n, k, 0, 0, bits_ld, 1, y_n, y_k, KIND, FAR, ACC, BLOCK_N, BLOCK_K
        )  # fmt: skip


_TILE, _OUTER_TILE = ("BLOCK_M", "BLOCK_N", "BLOCK_K"), ("BLOCK_N", "BLOCK_K", "BLOCK_M")
_KEY = ["n", "k", "taps", "y_height", "BACKWARD", "LISTS"]
_OUTER_KEY = ["n", "k", "taps", "g_height"]
conv2d_product_large = tuned(conv2d_product_kernel, SQUARE, _TILE, _KEY)
conv2d_product_small = tuned(conv2d_product_kernel, SMALL, _TILE, _KEY)
conv2d_product_few = tuned(conv2d_product_kernel, FEW, _TILE, _KEY)
conv2d_product_float_small = tuned(conv2d_product_kernel, FLOAT_SMALL, _TILE, _KEY)
conv2d_product_float_few = tuned(conv2d_product_kernel, FLOAT_FEW, _TILE, _KEY)
conv2d_outer_product_large = tuned(conv2d_outer_product_kernel, SQUARE, _OUTER_TILE, _OUTER_KEY)
conv2d_outer_product_small = tuned(conv2d_outer_product_kernel, SMALL, _OUTER_TILE, _OUTER_KEY)
conv2d_outer_product_float_small = tuned(conv2d_outer_product_kernel, FLOAT_SMALL, _OUTER_TILE, _OUTER_KEY)

"""The shape of an affine convolution: everything but its numbers.

    y[n, o, i] = bias[o] + sum_{c, k} weight[o, c, k] * x[n, c, stride*i + origin + dilation*k]

where x is 0 outside its sizes. Per spatial axis of size `n`, with the pads of the ONNX Conv operator,

    origin = -pad_begin
    slack  = pad_begin + pad_end - dilation*(kernel - 1) - 1
    output = floor((n + slack) / stride) + 1

`slack` alone decides how many positions come out, whatever the kernel; `origin` alone decides where they
look. A kernel that is grown with zeros therefore keeps both, which is what makes sums of unlike kernels easy.

A transposed convolution (`transposed=True`, ONNX ConvTranspose) *writes* at `stride*i + origin + dilation*k`,
and `output = stride*(n - 1) + slack` with
`slack = dilation*(kernel - 1) + 1 + output_padding - pad_begin - pad_end`.

A matrix product on the last axis has no spatial axis: `kernel == ()`, `channel_axis == -1`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from math import prod

__all__ = ["Geometry"]


@dataclass(frozen=True)
class Geometry:
    """Channels, groups and sampling of an affine convolution of rank `len(kernel)`.

    Attributes:
        c_in, c_out: input and output channels.
        groups: as in ONNX Conv; divides both.
        kernel, strides, dilations: per spatial axis; the dilation of an axis with one tap is 1.
        origin, slack: per spatial axis, see the module's docstring.
        channel_axis: 1 (spatial axes follow) or -1 (every other axis is batch).
        transposed: a ConvTranspose.
    """

    c_in: int
    c_out: int
    groups: int
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    origin: tuple[int, ...]
    slack: tuple[int, ...]
    channel_axis: int = 1
    transposed: bool = False

    @classmethod
    @lru_cache(maxsize=1 << 12)  # a network has few geometries: the nodes of one share its cached properties
    def conv(
        cls,
        c_in: int,
        c_out: int,
        kernel: tuple[int, ...],
        *,
        groups: int = 1,
        strides: tuple[int, ...] | None = None,
        dilations: tuple[int, ...] | None = None,
        pads: tuple[int, ...] | None = None,
    ) -> Geometry:
        """The geometry of an ONNX Conv; `pads` are all begins, then all ends, as in the attribute.

        Raises:
            ValueError: sizes that no Conv can have.
        """
        rank = len(kernel)
        strides = strides or (1,) * rank
        dilations = dilations or (1,) * rank
        pads = pads or (0,) * (2 * rank)
        if (len(strides), len(dilations), len(pads)) != (rank, rank, 2 * rank):
            raise ValueError("kernel, strides, dilations and pads differ in rank")
        # Checked here, because files may say anything: what the algebra computes with is always possible.
        if min((c_in, c_out, groups, *kernel, *strides, *dilations)) < 1:
            raise ValueError("channels, groups, kernel, strides and dilations are positive")
        if c_in % groups or c_out % groups:
            raise ValueError(f"{groups} groups do not divide {c_in} -> {c_out} channels")
        # One tap has no dilation: equal operators get equal geometries.
        dilations = tuple(d if k > 1 else 1 for k, d in zip(kernel, dilations, strict=True))
        axes = zip(pads[:rank], pads[rank:], kernel, dilations, strict=True)
        slack = tuple(begin + end - d * (k - 1) - 1 for begin, end, k, d in axes)
        return cls(c_in, c_out, groups, kernel, strides, dilations, tuple(-p for p in pads[:rank]), slack)

    @classmethod
    def conv_transpose(
        cls,
        c_in: int,
        c_out: int,
        kernel: tuple[int, ...],
        *,
        groups: int = 1,
        strides: tuple[int, ...] | None = None,
        dilations: tuple[int, ...] | None = None,
        pads: tuple[int, ...] | None = None,
        output_padding: tuple[int, ...] | None = None,
    ) -> Geometry:
        """The geometry of an ONNX ConvTranspose without `output_shape` and `auto_pad`."""
        rank = len(kernel)
        pads = pads or (0,) * (2 * rank)
        extra = output_padding or (0,) * rank
        base = cls.conv(c_in, c_out, kernel, groups=groups, strides=strides, dilations=dilations, pads=pads)
        if len(extra) != rank:
            raise ValueError("kernel and output_padding differ in rank")
        # base.slack is pads - dilation*(kernel - 1) - 1, see the module's docstring.
        slack = tuple(e - s for e, s in zip(extra, base.slack, strict=True))
        return replace(base, slack=slack, transposed=True)

    def __hash__(self) -> int:  # the laws are cached by geometry: hashing ten fields each time would show
        return self._hash

    @cached_property
    def _hash(self) -> int:
        shape = self.c_in, self.c_out, self.groups, self.kernel, self.strides, self.dilations
        return hash((shape, self.origin, self.slack, self.channel_axis, self.transposed))

    @classmethod
    @lru_cache(maxsize=1 << 13)
    def diagonal(cls, channels: int, rank: int, channel_axis: int = 1) -> Geometry:
        """One value per channel: BatchNormalization, a constant factor, the identity."""
        ones, zeros = (1,) * rank, (0,) * rank
        return cls(channels, channels, channels, ones, ones, ones, zeros, (-1,) * rank, channel_axis)

    @classmethod
    def dense(cls, c_in: int, c_out: int) -> Geometry:
        """A matrix product on the last axis."""
        return cls(c_in, c_out, 1, (), (), (), (), (), -1)

    @property
    def rank(self) -> int:
        """Number of spatial axes."""
        return len(self.kernel)

    @cached_property
    def layout(self) -> tuple[int, int]:
        """(channel axis, rank): only operators of one layout compose and add."""
        return self.channel_axis, self.rank

    @cached_property
    def weight_shape(self) -> tuple[int, ...]:
        """(c_out, c_in / groups, *kernel), for transposed convolutions too."""
        return self.c_out, self.c_in // self.groups, *self.kernel

    @cached_property
    def weights(self) -> int:
        """Number of weights: multiply-adds per output position (input position if transposed)."""
        return prod(self.weight_shape)

    @cached_property
    def reads_padding(self) -> bool:
        """It may read zeros beside its input, where a bias in front of it is missing."""
        return self.transposed or max((*self.pads_begin, *self.pads_end), default=0) > 0

    @cached_property
    def enlarges(self) -> bool:
        """It writes more positions than it reads: stride 1, and pads that exceed `dilation*(kernel - 1)` along one axis
        and fall short of it along none."""
        if self.transposed or any(stride != 1 for stride in self.strides):
            return False
        ends = zip(self.pads_begin, self.pads_end, self.dilations, self.kernel, strict=True)
        gained = [begin + end - d * (k - 1) for begin, end, d, k in ends]
        return min(gained, default=0) >= 0 and max(gained, default=0) > 0

    @cached_property
    def is_pointwise(self) -> bool:
        """One tap, at the position itself: it commutes with everything that only moves positions."""
        ones, zeros = (1,) * self.rank, (0,) * self.rank
        sampling = self.transposed, self.kernel, self.strides, self.origin, self.slack
        return sampling == (False, ones, ones, zeros, (-1,) * self.rank)

    @cached_property
    def is_crop(self) -> bool:
        """One tap in each channel alone, which leaves out positions at the begin and at the end."""
        ones = (1,) * self.rank
        takes_all_between = (self.transposed, self.kernel, self.strides) == (False, ones, ones)
        is_within = min((*self.origin, *(-end for end in self.pads_end)), default=0) >= 0
        return takes_all_between and is_within and self.groups == self.c_in == self.c_out

    @lru_cache(maxsize=1 << 12)  # noqa: B019 - asked of every term below a view
    def in_layout(self, layout: tuple[int, int]) -> Geometry | None:
        """The same pointwise operator with another channel axis and rank; None if there is none.

        On the last axis, groups have no operator: a MatMul is dense, a Mul has one value per channel.
        """
        axis, rank = layout
        is_grouped = self.groups > 1 and not self.is_diagonal
        if not self.is_pointwise or (axis == -1 and is_grouped):
            return None
        ones, zeros = (1,) * rank, (0,) * rank
        return Geometry(self.c_in, self.c_out, self.groups, ones, ones, ones, zeros, (-1,) * rank, axis)

    @cached_property
    def is_diagonal(self) -> bool:
        """One value per channel."""
        return self.groups == self.c_in == self.c_out and self.is_pointwise

    @cached_property
    def pads_begin(self) -> tuple[int, ...]:
        """Per axis; negative where the operator starts inside its input."""
        return tuple(-o for o in self.origin)

    @cached_property
    def pads_end(self) -> tuple[int, ...]:
        """Per axis; for a transposed convolution, `pad_end - output_padding`."""
        reach = [d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]
        if self.transposed:
            return tuple(r + o - s for r, o, s in zip(reach, self.origin, self.slack, strict=True))
        return tuple(s + r + o for s, r, o in zip(self.slack, reach, self.origin, strict=True))

    def output(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Number of output positions per spatial axis for an input of `size` positions."""
        if self.transposed:
            return tuple(s * (n - 1) + e for n, e, s in zip(size, self.slack, self.strides, strict=True))
        return tuple((n + e) // s + 1 for n, e, s in zip(size, self.slack, self.strides, strict=True))

    def macs(self, positions: int) -> int:
        """Multiply-adds for `positions` output positions (input positions if transposed), batch included."""
        return self.weights * positions

    @cached_property
    def _crops(self) -> bool:
        return not self.transposed and min((*self.pads_begin, *self.pads_end), default=0) < 0

    def grown(self) -> Geometry:
        """The same operator with zero taps added until no pad is negative, which ONNX Conv does not allow."""
        if not self._crops:
            return self
        kernel, origin = list(self.kernel), list(self.origin)
        for axis, (begin, end) in enumerate(zip(self.pads_begin, self.pads_end, strict=True)):
            step = self.dilations[axis]
            before, after = -(min(begin, 0) // step), -(min(end, 0) // step)  # ceil(-pad / step) zero taps
            origin[axis] -= step * before
            kernel[axis] += before + after
        return replace(self, kernel=tuple(kernel), origin=tuple(origin))

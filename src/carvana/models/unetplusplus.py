"""U-Net++ with any timm encoder (Zhou, Siddiquee, Tajbakhsh, Liang: UNet++, 2018)."""

import torch
from torch import nn

from carvana.config import ModelConfig
from carvana.models.blocks import DecoderBlock, Head
from carvana.models.network import EncoderDecoder


class UNetPlusPlus(EncoderDecoder):
    """Nested, dense skips: node X[i][j] convolves all of X[i][:j] and X[i + 1][j - 1], doubled.

        X00  X01  X02  X03     Each row has one stride, row 0 the finest. Column 0 is the encoder.
        X10  X11  X12          Deep supervision takes X01, X02 and X03, all of the same size.
        X20  X21
        X30

    If the decoder goes beyond the encoder's finest level, blocks without a skip follow (`tail`).
    """

    options = EncoderDecoder.options | {"decoder_channels", "attention_gates", "scse"}

    def __init__(self, config: ModelConfig, pretrained: bool):
        super().__init__(config, pretrained)
        widths = dict(zip(self.strides, self.decoder_widths(config), strict=True))
        rows = [stride for stride in reversed(self.strides) if stride in self.channels]
        tail = [stride for stride in self.strides if stride not in self.channels]
        self.finest = rows[0]
        self.columns = nn.ModuleList()
        for column in range(len(rows)):
            in_widths = widths if column else self.channels
            skip_widths = {stride: self.channels[stride] + column * widths[stride] for stride in rows}
            self.columns.append(nn.ModuleList(
                DecoderBlock(in_widths[2 * stride], skip_widths[stride], widths[stride], config)
                for stride in rows[: len(rows) - column]
            ))  # fmt: skip
        self.tail = nn.ModuleList(DecoderBlock(widths[2 * stride], 0, widths[stride], config) for stride in tail)
        strides = [self.finest] * len(rows) + tail
        self.head = Head([widths[stride] for stride in strides], strides, config)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        levels = dict(zip(self.channels, self.encoder(images), strict=True))  # (N, channels, H / stride, W / stride)
        nodes, decoded = [[level] for stride, level in levels.items() if stride >= self.finest], []
        for column in self.columns:
            for row, block in enumerate(column):  # row + 1 still ends in the column before
                nodes[row].append(self.compute(block, nodes[row + 1][-1], *nodes[row]))
            decoded.append(nodes[0][-1])
        for block in self.tail:
            decoded.append(self.compute(block, decoded[-1]))
        return self.compute(self.head, images, decoded)

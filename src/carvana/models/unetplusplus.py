"""U-Net++ with any timm encoder (Zhou, Siddiquee, Tajbakhsh, Liang: UNet++, 2018)."""

import torch
from torch import nn

from carvana.config import ModelConfig
from carvana.models.blocks import DecoderBlock
from carvana.models.encoder_decoder import EncoderDecoder
from carvana.models.head import Head


class UNetPlusPlus(EncoderDecoder):
    """Nested, dense skips: node X[i][j] convolves all of X[i][:j] and X[i + 1][j - 1], doubled.

        X00  X01  X02  X03     Row i has a stride of its own, row 0 the finest; column 0 is the encoder.
        X10  X11  X12          Deep supervision sees X01, X02, X03, all of the same size.
        X20  X21
        X30

    Where the decoder goes beyond the encoder's finest level, blocks without a skip follow (`tail`).
    """

    options = EncoderDecoder.options | {"decoder_channels", "attention_gates", "scse"}

    def __init__(self, encoder: nn.Module, config: ModelConfig):
        super().__init__(encoder, config)
        widths = dict(zip(self.strides, self.decoder_widths(config), strict=True))
        rows = [stride for stride in reversed(self.strides) if stride in self.channels]
        tail = [stride for stride in self.strides if stride not in self.channels]
        self.finest = list(self.channels).index(rows[0])  # the encoder's level of row 0
        self.columns = nn.ModuleList()
        for column in range(1, len(rows) + 1):
            coarse_widths = self.channels if column == 1 else widths
            blocks = nn.ModuleList()
            for stride in rows[: len(rows) + 1 - column]:
                skip_channels = self.channels[stride] + (column - 1) * widths[stride]
                blocks.append(DecoderBlock(coarse_widths[2 * stride], skip_channels, widths[stride], config))
            self.columns.append(blocks)
        self.tail = nn.ModuleList(DecoderBlock(widths[2 * stride], 0, widths[stride], config) for stride in tail)
        strides = [rows[0]] * len(rows) + tail
        self.head = Head([widths[stride] for stride in strides], strides, config)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        levels = self.encoder(images)  # (N, channels, H / stride, W / stride), finest first
        nodes, decoded = [[level] for level in levels[self.finest :]], []
        for column in self.columns:
            for row, block in enumerate(column):  # row + 1 still ends in the column before
                nodes[row].append(self.run(block, nodes[row + 1][-1], *nodes[row]))
            decoded.append(nodes[0][-1])
        for block in self.tail:
            decoded.append(self.run(block, decoded[-1]))
        return self.run(self.head, images, decoded)

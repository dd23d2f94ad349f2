"""Leave-one-out perplexity for whole layers (SLEB, Song et al. 2024, https://arxiv.org/abs/2402.09025).

Greedy: remove, one after the other, the layer without which the remaining model's loss on the calibration
data is lowest. The measurement needs the whole model and lives in the pipeline; here is only its name.
"""

from __future__ import annotations

from secateur.methods.contract import Method

METHOD = Method.listed("leave_one_out", score_layers="leave_one_out")

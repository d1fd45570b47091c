"""TransNormer's image models, built of our parts, against the official ones; none is published, so none is registered.

Qin et al., "The Devil in Linear Transformer", arXiv 2210.10340; OpenNLPLab/im.
"""

from functools import partial

import pytest
import torch
from timm.layers import SwiGLU
from torch import nn

from saccade.layers import Mlp, PatchStem, PositionTable, build_mixer
from saccade.layers.transnormer import SimpleRMSNorm
from saccade.models.checkpoint import rename
from saccade.models.isotropic import Isotropic

from ..fill import GOLDENS, golden_image, load_golden, official_state
from ..parity import assert_close, assert_logits, assert_map, watch

NAMES = sorted(path.stem for path in (GOLDENS / "transnormer").glob("*.json"))
OFFICIAL_NAMES = [
    (r"^to_patch_embedding\.1\.", "stem.conv."),
    (r"^pos_embedding$", "position.table"),
    (r"^layers\.", "blocks."),
    (r"\.token_mixer\.to_qkv\.", ".mixer.qkv."),
    (r"\.token_mixer\.to_out\.0\.", ".mixer.proj."),
    (r"\.token_mixer\.lrpe\.theta$", ".mixer.core.rotation.theta"),
    (r"\.token_mixer\.lrpe\.v$", ".mixer.core.rotation.normal"),
    (r"\.feature_mixer\.l1\.", ".mlp.fc1_g."),
    (r"\.feature_mixer\.l2\.", ".mlp.fc1_x."),
    (r"\.feature_mixer\.l3\.", ".mlp.fc2."),
    (r"\.feature_mixer\.net\.0\.", ".mlp.fc1."),
    (r"\.feature_mixer\.net\.3\.", ".mlp.fc2."),
    (r"^head\.1\.", "head.fc."),
]
BLOCKS = 1
ACTS = {"1+elu": "elu_plus_one", "elu": "elu"}
PATCH, GRID = 16, (14, 14)


class TransNormer(Isotropic):
    """Blocks of attention inside windows, then of linear attention; the head has a norm after its pooling."""

    def __init__(self, kwargs):
        def mixer(index, dim):
            options = {"act": ACTS[kwargs["linear_act"]]}
            if kwargs["type_list"][index] == BLOCKS:
                weights = "softmax" if kwargs["use_softmax"] else kwargs["block_act"]
                options = {"block": kwargs["block_size"], "block_weights": weights}
            return build_mixer("transnormer", dim, kwargs["num_heads"], **options)

        def mlp(dim):
            # The official activation "swish" is not a name it knows, and does nothing.
            if kwargs["use_glu"]:
                return SwiGLU(dim, kwargs["glu_dim"], act_layer=nn.Identity)
            return Mlp(dim, kwargs["mlp_dim"])

        super().__init__(
            kwargs["dim"],
            kwargs["depth"],
            stem=partial(PatchStem, patch=PATCH, norm=nn.Identity),
            mixer=mixer,
            mlp=mlp,
            norm=lambda dim: SimpleRMSNorm(),
        )
        self.position = PositionTable(kwargs["dim"], GRID)

    def embed(self, x):
        return self.position(self.stem(x)), ()

    def forward_features(self, x):
        x, _ = self.embed(x)
        return self.blocks(x)

    def forward_head(self, x, pre_logits=False):
        return self.head.fc(self.norm(x.mean((1, 2))))


def ours(official, dim):
    """Return official tensors under our names and in our shapes."""
    state = rename(official, OFFICIAL_NAMES)
    state["stem.conv.weight"] = state["stem.conv.weight"].view(dim, PATCH, PATCH, 3).permute(0, 3, 1, 2)
    # The last code is of no token.
    state["position.table"] = state["position.table"][0, :-1].unflatten(0, GRID)
    return state


def load(name):
    golden = load_golden("transnormer", name)
    model = TransNormer(golden["kwargs"]).eval()
    model.load_state_dict(ours(official_state(golden), golden["kwargs"]["dim"]))
    return golden, model


@pytest.mark.parametrize("name", NAMES)
def test_classifier(name):
    golden, model = load(name)
    unused = golden["kwargs"]["dim"]
    assert sum(p.numel() for p in model.parameters()) == golden["params_trainable"] - unused
    maps = watch(*(model.blocks[index] for index in model.feature_indices))
    with torch.no_grad():
        assert_logits(model(golden_image(*golden["input"]))[0], golden)
    for (index, value), reference in zip(enumerate(maps.values()), golden["stages"], strict=True):
        assert_map(value, reference, f"stage {index}")


@pytest.mark.parametrize("name", [name for name in NAMES if "grad" in load_golden("transnormer", name)])
def test_gradients(name):
    golden, model = load(name)
    image = golden_image(*golden["input"]).requires_grad_()
    logits = model(image)
    (logits * torch.randn(logits.shape, generator=torch.Generator().manual_seed(7))).sum().backward()
    reference = golden["grad"]
    assert_close(image.grad.flatten()[:32], reference["input_first32"], "gradient of the image")
    assert_close(image.grad.double().norm(), reference["input_norm"], "norm of the gradient of the image")
    parameters = dict(model.named_parameters())
    norms = rename(reference["param_norms"], OFFICIAL_NAMES)
    assert norms.keys() == parameters.keys()
    for key, norm in norms.items():
        assert_close(parameters[key].grad.double().norm(), norm, f"norm of the gradient of {key}")

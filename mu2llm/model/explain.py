"""Where in the volume a draft comes from: gradient × grey, carried back through selection and tower.

The selection's weights alone do not tell: by the time tokens are selected, the tower's attention has gathered
what a lesion says in tokens that stand elsewhere (docs/model.md has the measurement). So the draft's
log-likelihood is followed back through the weights to the voxels (gradient × input, Shrikumar et al. 2016).
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from mu2llm.model.modeling import Mu2ForConditionalGeneration


def as_written(prompt: Mapping[str, Tensor], tokens: Sequence[int]) -> dict[str, Tensor]:
    """What `saliency` takes, of a prompt (a batch of one) and the very tokens that the model wrote to it.

    The text of them, read again, may be cut into other tokens.
    """
    ids = torch.cat([prompt["input_ids"], prompt["input_ids"].new_tensor([list(tokens)])], dim=1)
    labels = ids.clone()
    labels[:, : prompt["input_ids"].shape[1]] = -100
    return {**prompt, "input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def saliency(
    model: "Mu2ForConditionalGeneration", pixel_values: Tensor, labels: Tensor, **inputs: Tensor
) -> Tensor:
    """How much each place of a volume moved the text of `labels`: (B, T, K, H, W), from 0 to 1 per study.

    `labels` (B, L) are −100 but on the tokens to explain; the other inputs are those of the model's forward.
    Air adds nothing, since its grey is 0. Values are averaged over about half a patch, the finest detail that
    the tower's filters resolve. Raises `ValueError` where the labels do not fit the inputs, a row has none to
    explain, or gradients cannot be had.
    """
    ids = inputs.get("input_ids")
    if ids is not None and labels.shape != ids.shape:
        raise ValueError(f"labels is {tuple(labels.shape)}, input_ids {tuple(ids.shape)}: they must be alike")
    if not bool((labels[:, 1:] != -100).any(dim=1).all()):
        raise ValueError("labels leave a row without any token to explain: all are -100")
    if torch.is_inference_mode_enabled():
        raise ValueError("an explanation needs gradients, which torch.inference_mode forbids: use no_grad")
    with torch.enable_grad():
        frames = pixel_values.detach().clone().requires_grad_()
        logits = model(pixel_values=frames, **inputs).logits[:, :-1].float()
        wanted = labels[:, 1:]
        chosen = logits.log_softmax(-1).gather(2, wanted.clamp(min=0)[..., None])[..., 0]
        (gradient,) = torch.autograd.grad(chosen[wanted != -100].sum(), frames)
    effect = (gradient * frames.detach()).float()
    kernel = [size // 2 | 1 for size in model.config.vision_config.patch_size]  # odd: centred on the voxel
    slices = effect.flatten(1, 2)[:, None]
    smooth = F.avg_pool3d(slices, kernel, stride=1, padding=[k // 2 for k in kernel])
    strength = smooth.abs().view_as(effect)
    return strength / strength.amax((1, 2, 3, 4), keepdim=True).clamp(min=torch.finfo(strength.dtype).tiny)

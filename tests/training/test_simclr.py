import pytest
import torch
from torch import nn

from medclr.data.loader import Blocks
from medclr.losses.nt_xent import chance_level
from medclr.training.simclr import SimCLR
from medclr.transforms.presets import build_views


def build(views, encoder=None, temperature=0.2):
    torch.manual_seed(0)
    module = SimCLR(
        encoder or nn.Sequential(nn.Flatten(), nn.Linear(144, 6)),
        nn.Linear(6, 4),
        views,
        temperature=temperature,
        lr=0.1,
        weight_decay=0.1,
        warmup_steps=2,
        total_steps=10,
    )
    module.log = lambda name, value, **rest: None  # there is no Trainer
    return module


def batch_of(families, rows, seed=0):
    views = build_views("xray", 2)
    return views, Blocks(families.rows, families.store, families.spec, views, 2, seed).__getitems__(
        [(0, row) for row in rows]
    )


def by_hand(z, volume, patient, temperature):
    """Equation 1 of Chen et al. 2020 as loops, over views that know their volume and patient."""
    z = z / z.norm(dim=1, keepdim=True)
    losses = []
    for i in range(len(z)):
        terms = {}
        for k in range(len(z)):
            positive = k != i and volume[k] == volume[i]
            if k != i and (positive or patient[k] != patient[i]):
                terms[k] = torch.exp(z[i] @ z[k] / temperature)
                if positive:
                    numerator = terms[k]
        losses.append(-torch.log(numerator / sum(terms.values())))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("rows", [[0, 3, 6, 9], [0, 1, 2, 3, 4, 9]])
def test_the_loss_is_that_of_the_paper_on_the_same_views(families, rows):
    views, batch = batch_of(families, rows)
    module = build(views)
    loss = module.training_step(batch, 0)
    # Views one at a time, each with its own block, parameters and window.
    z = []
    for view in range(2):
        for i in range(len(rows)):
            params = {name: value[i, view][None] for name, value in batch["params"].items()}
            image = views.apply(
                batch["blocks"][i, view][None], params, batch["low"][i, view, None], batch["high"][i, view, None]
            )
            z.append(module.projector(module.encoder(image))[0])
    patients = [row // 3 for row in rows]
    expected = by_hand(torch.stack(z), rows * 2, patients * 2, 0.2)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


def test_other_volumes_of_the_patient_are_not_negatives(families):
    views, batch = batch_of(families, [0, 1, 2, 5])
    module = build(views)
    masked = module.training_step(batch, 0)
    unmasked = module.training_step(batch | {"patient": torch.arange(4)}, 0)
    assert masked < unmasked


def test_a_collapsed_encoder_is_at_chance(families):
    class Constant(nn.Module):
        def forward(self, images):
            return torch.ones(len(images), 6)

    views, batch = batch_of(families, [0, 3, 6, 9])
    loss = build(views, Constant()).training_step(batch, 0)
    assert loss.item() == pytest.approx(chance_level(batch["patient"]).item())


def test_gradients_reach_encoder_and_projector(families):
    views, batch = batch_of(families, [0, 3, 6])
    module = build(views)
    module.training_step(batch, 0).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.encoder.parameters())
    assert module.projector.weight.grad.abs().sum() > 0


def test_optimiser_and_schedule_tick_a_step(families):
    module = build(build_views("xray", 2))
    configured = module.configure_optimizers()
    assert configured["lr_scheduler"]["interval"] == "step"
    assert configured["optimizer"].param_groups[0]["lr"] == pytest.approx(0.05)  # half way up a warm-up of two steps
    assert configured["optimizer"].param_groups[0]["weight_decay"] == 0.1

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medclr.losses import distillation_loss, label_loss

NAN = math.nan


def naive(student, teacher, temperature, exclusive):
    """Equation 2 of Chen et al. 2020b, term by term; a label of its own is a choice of two classes, one of logit 0."""
    total = 0.0
    for row, its in zip(student.tolist(), teacher.tolist(), strict=True):
        choices = [(row, its)] if exclusive else [((0.0, a), (0.0, b)) for a, b in zip(row, its, strict=True)]
        for own, wanted in choices:
            p, q = ([math.exp(value / temperature) for value in values] for values in (wanted, own))
            total -= sum(a / sum(p) * math.log(b / sum(q)) for a, b in zip(p, q, strict=True))
    return total / (len(student) if exclusive else student.numel())


def drawn(seed, n, k):
    g = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(n, k, generator=g, dtype=torch.float64) for _ in range(2))


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(1, 5),
    k=st.integers(1, 4),
    seed=st.integers(0, 2**31),
    temperature=st.floats(0.2, 10),
    exclusive=st.booleans(),
)
def test_it_is_the_papers_equation(n, k, seed, temperature, exclusive):
    student, teacher = drawn(seed, n, k)
    found = distillation_loss(student, teacher, temperature, exclusive)
    assert found.item() == pytest.approx(naive(student, teacher, temperature, exclusive))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("exclusive", [True, False])
def test_a_student_that_agrees_has_the_teachers_entropy_and_nothing_to_learn(exclusive, temperature):
    teacher = next(drawn(3, 4, 3))
    student = teacher.clone().requires_grad_()
    loss = distillation_loss(student, teacher, temperature, exclusive)
    loss.backward()
    p = (teacher / temperature).softmax(1) if exclusive else torch.stack([teacher, -teacher]).div(temperature).sigmoid()
    entropy = -(p * p.log()).sum() / (4 if exclusive else 12)
    torch.testing.assert_close(loss.detach(), entropy)
    torch.testing.assert_close(student.grad, torch.zeros_like(teacher))
    worse = distillation_loss(teacher + torch.tensor([0.3, 0.0, 0.0]), teacher, temperature, exclusive)
    assert worse > loss


def test_the_gradient_is_the_difference_of_tempered_predictions():
    student, teacher = drawn(5, 2, 3)
    student.requires_grad_()
    distillation_loss(student, teacher, 4.0, exclusive=True).backward()
    expected = ((student / 4).softmax(1) - (teacher / 4).softmax(1)) / (4 * 2)
    torch.testing.assert_close(student.grad, expected.detach())


def test_of_two_classes_softmax_and_sigmoid_are_the_same():
    student, teacher = drawn(7, 6, 2)
    one = [(logits[:, 1] - logits[:, 0])[:, None] for logits in (student, teacher)]
    torch.testing.assert_close(
        distillation_loss(student, teacher, 2.5, exclusive=True), distillation_loss(*one, temperature=2.5)
    )


def test_the_teacher_gets_no_gradient():
    student, teacher = drawn(0, 2, 2)
    teacher.requires_grad_()
    distillation_loss(student.requires_grad_(), teacher).backward()
    assert teacher.grad is None


@pytest.mark.parametrize("exclusive", [True, False])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_labels_are_mixed_in_and_not_tempered(alpha, exclusive):
    student, teacher = drawn(1, 4, 3)
    y = torch.eye(3, dtype=torch.float64)[[0, 1, 2, 1]]
    y[1] = NAN
    known = [0, 2, 3]
    expected = (1 - alpha) * label_loss(student[known], y[known], exclusive=exclusive)
    expected = expected + alpha * distillation_loss(student, teacher, 3.0, exclusive)
    torch.testing.assert_close(distillation_loss(student, teacher, 3.0, exclusive, y, alpha), expected)


def test_unknown_labels_leave_no_trace():
    student, teacher = drawn(1, 4, 2)
    student.requires_grad_()
    distillation_loss(student, teacher, 1.0, False, torch.full((4, 2), NAN), 0.0).backward()
    assert (student.grad == 0).all()

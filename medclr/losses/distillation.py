"""The loss of a student that learns to predict what a teacher does."""

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from medclr.losses.classification import label_loss


def distillation_loss(
    student: Tensor,
    teacher: Tensor,
    temperature: float = 1.0,
    exclusive: bool = False,
    y: Tensor | None = None,
    alpha: float = 1.0,
) -> Tensor:
    """Chen et al. 2020b, equation 2: cross-entropy of the student's prediction with the teacher's, both tempered.

    With labels, equation 3: (1 - alpha) times the cross-entropy with these, not tempered, plus alpha times the above.
    Both are means over what there is of them in the batch, where the paper has sums over the whole set.

    Args:
        student: (B, K) logits.
        teacher: (B, K) logits of the same views; they get no gradient.
        temperature: above 0; divides both logits. The loss is not scaled back by its square.
        exclusive: the K columns are classes, whose probabilities are a softmax; else each is a label of its own, with
            a sigmoid, and the mean is over volumes and labels.
        y: (B, K) of 0, 1 and NaN, which is unknown and counts for nothing, as for `label_loss`.
        alpha: share of the teacher, 0 to 1.

    Returns:
        A scalar; at alpha 1 it is least, and the teacher's entropy, where the student agrees with the teacher.
    """
    own, wanted = student / temperature, teacher.detach() / temperature
    if exclusive:
        soft = cross_entropy(own, wanted.softmax(dim=1))
    else:
        soft = binary_cross_entropy_with_logits(own, wanted.sigmoid())
    if y is None:
        return soft
    return (1 - alpha) * label_loss(student, y, exclusive=exclusive) + alpha * soft

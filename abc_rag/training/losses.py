"""ABC's contrastive loss, and its gradients at the vectors for gradient caching."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["LossGradients", "contrastive_loss", "loss_gradients"]


def contrastive_loss(
    queries: torch.Tensor,
    candidates: torch.Tensor,
    targets: torch.Tensor,
    temperature: torch.Tensor,
    *,
    smoothing: float = 0.1,
    excluded: torch.Tensor | None = None,
    counted: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """InfoNCE with label smoothing (arXiv 2503.00329), and the accuracy.

    Args:
        queries: Unit rows ``(q, dim)``.
        candidates: Unit rows ``(c, dim)``.
        targets: int64 ``(q,)``: the position of each query's own candidate.
        temperature: Scalar that the cosines are divided by.
        smoothing: Share of the probability that is spread over all candidates.
        excluded: bool ``(q, c)``: candidates to leave out, as they are true of a query without being its own.
        counted: bool ``(q,)``: queries that count, at least one; all if None.

    Returns:
        Two scalars over the counted queries: the mean loss in nats, and the share in [0, 1] whose own candidate scores
        highest.
    """
    with torch.autocast(queries.device.type, enabled=False):
        scores = queries.float() @ candidates.float().T / temperature
    if excluded is not None:
        scores = scores.masked_fill(excluded, float("-inf"))
    log_probabilities = scores.log_softmax(dim=1)
    own = log_probabilities.gather(1, targets[:, None]).squeeze(1)
    kept = torch.isfinite(log_probabilities)
    # masked_fill, not a product: 0 * inf would be NaN.
    spread = log_probabilities.masked_fill(~kept, 0.0).sum(dim=1) / kept.sum(dim=1)
    losses = -((1 - smoothing) * own + smoothing * spread)
    right = (scores.argmax(dim=1) == targets).float()
    if counted is not None:
        losses, right = losses[counted], right[counted]
    return losses.mean(), right.mean()


@dataclass(frozen=True)
class LossGradients:
    """A loss and its gradients.

    Attributes:
        loss: Scalar, in nats.
        accuracy: Share of queries whose own candidate scores highest.
        queries: Gradient at the queries, ``(q, dim)``.
        candidates: Gradient at the candidates, ``(c, dim)``.
        temperature: Gradient at the temperature, a scalar.
    """

    loss: float
    accuracy: float
    queries: torch.Tensor
    candidates: torch.Tensor
    temperature: torch.Tensor


def loss_gradients(
    queries: torch.Tensor,
    candidates: torch.Tensor,
    targets: torch.Tensor,
    temperature: torch.Tensor,
    *,
    smoothing: float,
    min_temperature: float = 0.0,
    excluded: torch.Tensor | None = None,
    counted: torch.Tensor | None = None,
) -> LossGradients:
    """`contrastive_loss` of a whole batch, with its gradients at the vectors and the temperature.

    The arguments are those of `contrastive_loss`, with the candidates of all processes. Below ``min_temperature``, the
    temperature counts as this, and gets no gradient.
    """
    q, c, t = (x.detach().float().requires_grad_() for x in (queries, candidates, temperature))
    with torch.enable_grad():
        loss, accuracy = contrastive_loss(
            q,
            c,
            targets,
            t.clamp(min=min_temperature),
            smoothing=smoothing,
            excluded=excluded,
            counted=counted,
        )
        at_q, at_c, at_t = torch.autograd.grad(loss, (q, c, t))
    return LossGradients(loss.item(), accuracy.item(), at_q, at_c, at_t)

"""The objectives are what the paper says."""

import torch

from rljob.trainer.objectives.mirror_descent import mirror_descent
from rljob.trainer.objectives.sft import negative_log_likelihood, warmed_up


def tabular(theta: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
    """Log-probability of whole answers under a table of logits per position: theta [L, V], answers [k, L] -> [k]."""
    return theta.log_softmax(-1)[torch.arange(answers.shape[1]), answers].sum(1)


def test_gradient_is_equation_3() -> None:
    torch.manual_seed(0)
    start, theta = torch.randn(5, 7, dtype=torch.float64), torch.randn(5, 7, dtype=torch.float64).requires_grad_()
    answers, rewards = torch.randint(0, 7, (6, 5)), torch.rand(6, dtype=torch.float64)
    tau, advantages = 0.3, rewards - rewards.mean()

    reference = tabular(start, answers)
    loss = mirror_descent(tabular(theta, answers), advantages, reference, tau).total / len(answers)
    (gradient,) = torch.autograd.grad(loss, theta)

    equation = torch.zeros_like(theta)
    for j in range(len(answers)):
        (score,) = torch.autograd.grad(tabular(theta, answers[j : j + 1])[0], theta)
        ratio = tabular(theta, answers[j : j + 1])[0]
        (square,) = torch.autograd.grad((ratio - reference[j]) ** 2, theta)
        equation += (score * advantages[j] - tau / 2 * square) / len(answers)
    assert (gradient + equation).abs().max() < 1e-6, "minimising the loss follows equation 3"


def test_gradient_is_that_of_the_surrogate_loss() -> None:
    """Equation 3 is the gradient of E[(r - mean r - tau log-ratio)^2], divided by -2 tau."""
    torch.manual_seed(1)
    start, theta = torch.randn(4, 5, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64).requires_grad_()
    answers, rewards, tau = torch.randint(0, 5, (8, 4)), torch.rand(8, dtype=torch.float64), 0.7
    advantages, reference = rewards - rewards.mean(), tabular(start, answers)
    loss = mirror_descent(tabular(theta, answers), advantages, reference, tau).total
    (gradient,) = torch.autograd.grad(loss, theta)
    surrogate = (advantages - tau * (tabular(theta, answers) - reference)).square().sum()
    (expected,) = torch.autograd.grad(surrogate, theta)
    assert (gradient - expected / (2 * tau)).abs().max() < 1e-6


def test_without_regulariser_the_reference_changes_only_the_report() -> None:
    logprobs, advantages = torch.tensor([-3.0, -4.0]), torch.tensor([0.5, -0.5])
    near, far = (mirror_descent(logprobs, advantages, logprobs + shift, 0.0) for shift in (0.0, 2.0))
    assert near.total == far.total
    assert [float(near.kl), float(far.kl)] == [0.0, 4.0]


def test_no_gradient_flows_into_the_reference_or_out_of_the_report() -> None:
    logprobs = torch.tensor([-3.0, -4.0], requires_grad=True)
    found = mirror_descent(logprobs, torch.tensor([0.5, -0.5]), 2 * logprobs, 0.5)
    (gradient,) = torch.autograd.grad(found.total, logprobs)
    assert gradient.tolist() == [-0.5 + 0.5 * 3.0, 0.5 + 0.5 * 4.0], "-advantage + tau · log-ratio"
    assert not found.kl.requires_grad


def test_supervised_loss_is_the_negative_log_likelihood_of_whole_demonstrations() -> None:
    assert negative_log_likelihood(torch.tensor([-3.0, -4.0]), torch.zeros(2), torch.zeros(2)).total == 7.0


def test_the_learning_rate_rises_linearly_to_its_peak() -> None:
    assert [warmed_up(1.0, step, 4) for step in range(6)] == [0.2, 0.4, 0.6, 0.8, 1.0, 1.0]
    assert warmed_up(1.0, 0, 0) == 1.0

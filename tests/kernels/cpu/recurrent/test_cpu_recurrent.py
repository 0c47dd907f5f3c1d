"""Convolution and delta rule of the cpu kernels against their definitions in float64."""

from __future__ import annotations

import pytest
import torch
from support.cpu_cases import cpu, poisoned, ubatch_of

from elastikv.batch import UBatch
from elastikv.errors import InvalidRequest

SPANS = {4: (7, 1), 0: (3, 5), 2: (9, 70), 9: (2, 2)}


class States:
    """Stands for RecurrentMemory: a source and a target per sequence, which may be the same."""

    def __init__(self, ubatch: UBatch, in_place: bool, *shapes: tuple[int, ...]) -> None:
        self.before = {span.seq_id: tuple(torch.randn(shape) for shape in shapes) for span in ubatch.spans}
        self._source = {seq_id: tuple(state.clone() for state in states) for seq_id, states in self.before.items()}
        self._target = self._source if in_place else {
            seq_id: tuple(poisoned(*state.shape) for state in states) for seq_id, states in self.before.items()
        }  # fmt: skip

    def source(self, layer: int, seq_id: int) -> tuple[torch.Tensor, ...]:
        return self._source[seq_id]

    def target(self, layer: int, seq_id: int) -> tuple[torch.Tensor, ...]:
        return self._target[seq_id]


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize(("channels", "width"), [(64, 4), (37, 3), (5, 2), (160, 4)])
def test_causal_conv(channels: int, width: int, in_place: bool) -> None:
    torch.manual_seed(0)
    ubatch = ubatch_of(SPANS)
    x, weight = torch.randn(ubatch.n_tokens, channels + 6)[:, 6:], torch.randn(channels, width)
    states = States(ubatch, in_place, (channels, width - 1))
    out = cpu().causal_conv(x, weight, states, 0, ubatch, poisoned(ubatch.n_tokens, channels))  # type: ignore[arg-type]
    for span in ubatch.spans:
        inputs = torch.cat([states.before[span.seq_id][0].t(), x[span.start : span.stop]]).double()
        windows = inputs.unfold(0, width, 1)  # [n, channels, width]
        expected = torch.nn.functional.silu((windows * weight.double()).sum(-1))
        torch.testing.assert_close(out[span.start : span.stop].double(), expected, rtol=1e-5, atol=1e-6)
        state = states.target(0, span.seq_id)[0]
        assert torch.equal(state.double(), inputs[len(inputs) - width + 1 :].t())


def test_a_convolution_too_wide_is_refused() -> None:
    ubatch = ubatch_of({0: (0, 1)})
    with pytest.raises(InvalidRequest, match="5"):
        cpu().causal_conv(torch.ones(1, 2), torch.ones(2, 5), None, 0, ubatch, poisoned(1, 2))  # type: ignore[arg-type]


@pytest.mark.parametrize("n", [1, 3, 300])
def test_delta_gates(n: int) -> None:
    torch.manual_seed(0)
    wide = torch.randn(n, 40) * 10
    wide[0, 3], wide[0, 4] = 90.0, -90.0
    a, b, rate, bias = wide[:, 2:12], wide[:, 20:30], -torch.rand(10), torch.randn(10)
    decay, beta = poisoned(n, 10), poisoned(n, 10)
    cpu().delta_gates(a, b, rate, bias, decay, beta)
    expected = rate.double() * torch.nn.functional.softplus(a.double() + bias.double())
    torch.testing.assert_close(decay.double(), expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(beta.double(), b.double().sigmoid(), rtol=1e-6, atol=1e-7)


def exact_delta_rule(
    state: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, decay: torch.Tensor, beta: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token by token: state ``[heads, dk, dv]``, one q and k per v head."""
    out = []
    for token in range(len(q)):
        query, key = (x[token] / (x[token].square().sum(-1, keepdim=True) + 1e-6).sqrt() for x in (q, k))
        state = state * decay[token].exp()[:, None, None]
        wrong = v[token] - torch.einsum("hk,hkv->hv", key, state)
        state = state + torch.einsum("hk,hv->hkv", key, wrong * beta[token][:, None])
        out.append(torch.einsum("hk,hkv->hv", query * q.shape[-1] ** -0.5, state))
    return state, torch.stack(out)


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize(
    ("n_k_heads", "n_v_heads", "dk", "dv"), [(2, 4, 32, 32), (2, 2, 10, 24), (1, 3, 7, 5), (1, 1, 64, 128)]
)
def test_gated_delta_rule(n_k_heads: int, n_v_heads: int, dk: int, dv: int, in_place: bool) -> None:
    torch.manual_seed(0)
    ubatch = ubatch_of(SPANS)
    n = ubatch.n_tokens
    qkv = torch.randn(n, 2 * n_k_heads * dk + n_v_heads * dv)
    q, k, v = qkv.split([n_k_heads * dk, n_k_heads * dk, n_v_heads * dv], dim=1)
    q, k, v = q.unflatten(1, (-1, dk)), k.unflatten(1, (-1, dk)), v.unflatten(1, (-1, dv))
    decay, beta = -torch.rand(n, n_v_heads), torch.rand(n, n_v_heads)
    states = States(ubatch, in_place, (1,), (n_v_heads, dk, dv))
    out = poisoned(n, n_v_heads, dv)
    cpu().gated_delta_rule(q, k, v, decay, beta, states, 0, ubatch, out)  # type: ignore[arg-type]
    for span in ubatch.spans:
        rows = slice(span.start, span.stop)
        full_q, full_k = (x[rows].repeat_interleave(n_v_heads // n_k_heads, 1).double() for x in (q, k))
        others = (x[rows].double() for x in (v, decay, beta))
        state, expected = exact_delta_rule(states.before[span.seq_id][1].double(), full_q, full_k, *others)
        torch.testing.assert_close(out[rows].double(), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(states.target(0, span.seq_id)[1].double(), state, rtol=1e-5, atol=1e-5)

"""The gated delta rule in torch (Yang, Kautz, Hatamizadeh: Gated Delta Networks, arXiv:2412.06464).

Per head, with a state S ``[dk, dv]``, unit vectors k, and q scaled by ``dk ** -0.5``::

    S <- exp(decay) S
    S <- S + k (beta (v - k S))
    o  = q S

Short spans do just that. Long ones go through chunks of tokens at once: inside a chunk each token's correction
depends on the corrections before it, which is a triangular system.
"""

from __future__ import annotations

import torch

_CHUNK = 64
_LONGEST_RECURRENT = 8
_NORM_EPS = 1e-6


def run(
    state: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    decay: torch.Tensor,
    beta: torch.Tensor,
    out: torch.Tensor,
) -> torch.Tensor:
    """Write the outputs of consecutive tokens of one sequence to ``out``; returns the state after them.

    state ``[n_v_heads, dk, dv]`` (not changed); q, k ``[n, n_k_heads, dk]``; v, out ``[n, n_v_heads, dv]``;
    decay, beta ``[n, n_v_heads]``.
    """
    if len(q) <= _LONGEST_RECURRENT:
        return _recurrent(state, q, k, v, decay, beta, out)
    for start in range(0, len(q), _CHUNK):
        rows = slice(start, start + _CHUNK)
        state = _chunk(state, q[rows], k[rows], v[rows], decay[rows], beta[rows], out[rows])
    return state


def _recurrent(
    state: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    decay: torch.Tensor,
    beta: torch.Tensor,
    out: torch.Tensor,
) -> torch.Tensor:
    queries, keys = _prepare(q, k, v.shape[1])
    keep = decay.exp()
    for token in range(len(q)):
        state = state * keep[token, :, None, None]
        key = keys[:, token].unsqueeze(1)  # [n_v_heads, 1, dk]
        correction = (v[token].unsqueeze(1) - key @ state) * beta[token, :, None, None]
        state = torch.baddbmm(state, key.transpose(1, 2), correction)
        out[token] = (queries[:, token].unsqueeze(1) @ state).squeeze(1)
    return state


def _chunk(
    state: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    decay: torch.Tensor,
    beta: torch.Tensor,
    out: torch.Tensor,
) -> torch.Tensor:
    queries, keys = _prepare(q, k, v.shape[1])
    values = v.transpose(0, 1)
    rates = beta.t().unsqueeze(-1)  # [n_v_heads, n, 1]
    faded = decay.t().cumsum(-1)  # log of what is left of the incoming state at each token
    # what is left at token i of what token j <= i wrote: exp(faded_i - faded_j), never above 1
    between = (faded.unsqueeze(-1) - faded.unsqueeze(-2)).tril_().exp_().tril_()
    fade = faded.exp().unsqueeze(-1)

    # corrections c solve (I + A) c = beta (v - what the incoming state answers), A strictly lower triangular
    coupling = (rates * (keys @ keys.transpose(1, 2)) * between).tril_(-1)
    wanted = rates * (values - fade * (keys @ state))
    corrections: torch.Tensor = torch.linalg.solve_triangular(coupling, wanted, upper=False, unitriangular=True)

    seen = (queries @ keys.transpose(1, 2)) * between
    out.copy_((fade * (queries @ state) + seen @ corrections).transpose(0, 1))
    left = (faded[:, -1:] - faded).exp_().unsqueeze(-1)
    return state * fade[:, -1:] + (keys * left).transpose(1, 2) @ corrections


def _prepare(q: torch.Tensor, k: torch.Tensor, n_v_heads: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit q (scaled) and unit k, one per v head: ``[n_v_heads, n, dk]``."""
    n_group = n_v_heads // q.shape[1]
    unit_q = _unit(q) * q.shape[-1] ** -0.5
    return tuple(x.transpose(0, 1).repeat_interleave(n_group, dim=0) for x in (unit_q, _unit(k)))  # type: ignore[return-value]


def _unit(x: torch.Tensor) -> torch.Tensor:
    return x * (x.square().sum(-1, keepdim=True) + _NORM_EPS).rsqrt()

"""The application of Ray Serve: fronts that clients reach, and replicas that answer, as many as memory needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig

from elastikv.integrations.ray.arguments import plan
from elastikv.integrations.ray.front import Front
from elastikv.integrations.ray.replica import Replica

_TO_PARK = 60.0
"""Seconds after the drain in which a replica that goes may write its sessions."""

ROUTER = "elastikv.integrations.ray.router:PrefixRouter"


def build(arguments: Mapping[str, Any], router: str = ROUTER) -> serve.Application:
    """The application that ``arguments`` ask for. router: where the class is that routes. Raises InvalidRequest."""
    planned = plan(arguments)
    flags = planned.flags
    policy = AutoscalingPolicy(
        policy_function="elastikv.integrations.ray.policy:MemoryPolicy",
        policy_kwargs={"n_parallel": flags.parallel, "target_used": flags.target_used},
    )
    scaling = AutoscalingConfig(
        min_replicas=flags.min_replicas,
        max_replicas=flags.max_replicas,
        upscale_delay_s=flags.upscale_delay,
        downscale_delay_s=flags.downscale_delay,
        policy=policy,
    )
    routing = RequestRouterConfig(
        request_router_class=router,
        request_router_kwargs={"n_parallel": flags.parallel} if router == ROUTER else {},
        request_routing_stats_period_s=1.0,
    )
    # Requests wait at the replica, whose queue says when it is full and is seen by the policy.
    replicas = serve.deployment(
        Replica,
        name="replica",
        ray_actor_options={"num_cpus": flags.num_cpus},
        max_ongoing_requests=flags.max_queue + flags.parallel,
        autoscaling_config=scaling,
        request_router_config=routing,
        graceful_shutdown_timeout_s=planned.settings.drain + _TO_PARK,
        graceful_shutdown_wait_loop_s=0.5,
    ).bind(planned)
    front = serve.deployment(
        serve.ingress()(Front),
        name="front",
        num_replicas=flags.fronts,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=flags.fronts * (flags.max_queue + flags.parallel) * flags.max_replicas,
    )
    return front.bind(planned.settings, replicas)

"""Ray Serve's side of ``routing``: which replica a front's request goes to."""

from __future__ import annotations

import random
import time
from collections import OrderedDict
from typing import Any

from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter
from ray.serve.request_router import PendingRequest, ReplicaID, RunningReplica
from typing_extensions import override

from elastikv.integrations.ray.prefixes import mark_of_session
from elastikv.integrations.ray.request import Forwarded
from elastikv.integrations.ray.routing import Load, Routes

_TO_ARRIVE = 5.0
"""Seconds after which a choice that was not taken up is forgotten."""


class PrefixRouter(ConsistentHashRouter):
    """Sends requests where their cells are; sessions that nobody holds go where Ray's consistent hashing says."""

    @override
    def initialize_state(self, n_parallel: int = 4, **settings: Any) -> None:
        super().initialize_state(**settings)
        self._n_parallel = n_parallel
        self._routes: Routes[ReplicaID] = Routes()
        self._on_their_way: OrderedDict[str, tuple[float, ReplicaID]] = OrderedDict()

    @override
    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        super().update_replicas(replicas)
        for replica in replicas:
            self._routes.report(replica.replica_id, replica.routing_stats.get("marks", ()))
        self._routes.keep({replica.replica_id for replica in replicas})

    @override
    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        if pending_request is None or not candidate_replicas:
            return [candidate_replicas]
        request: Forwarded = pending_request.args[0]
        ranks = await super().choose_replicas(candidate_replicas, pending_request)
        ring = [replica.replica_id for rank in ranks for replica in rank] if request.session else []
        # Shuffled, so that routers that know the same do not all choose the first of equals.
        replicas = {r.replica_id: r for r in random.sample(candidate_replicas, len(candidate_replicas))}
        session = mark_of_session(request.session) if request.session else None
        chosen = self._routes.choose(request.marks, self._loads(replicas), session, ring)
        if pending_request.metadata.internal_request_id not in self._on_their_way:
            self._on_their_way[pending_request.metadata.internal_request_id] = (time.monotonic(), chosen[0])
            self._routes.sent(chosen[0], request.held_as)
        return [[replicas[name]] for name in chosen]

    @override
    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        _, expected = self._on_their_way.pop(pending_request.metadata.internal_request_id, (0, None))
        if replica_id != expected:
            self._routes.sent(replica_id, pending_request.args[0].held_as)

    def _loads(self, replicas: dict[ReplicaID, RunningReplica]) -> dict[ReplicaID, Load]:
        """What a replica told this router with its last answer, or else reported, and what is on its way there."""
        now = time.monotonic()
        while self._on_their_way and next(iter(self._on_their_way.values()))[0] < now - _TO_ARRIVE:
            self._on_their_way.popitem(last=False)
        loads = {}
        for name, replica in replicas.items():
            stats = replica.routing_stats
            told = self.replica_queue_len_cache.get(name)
            n_requests = stats.get("n_requests", 0) if told is None else told
            loads[name] = Load(n_requests, self._n_parallel, stats.get("used", 0.0))
        for _, name in self._on_their_way.values():
            if name in loads:
                loads[name] = Load(loads[name].n_requests + 1, self._n_parallel, loads[name].used)
        return loads

"""Gossip as values: who talks to whom, how models are mixed, how much is trained on what."""

from edgeweave.mixing.aggregation import Groups, aggregate
from edgeweave.mixing.balance import Balance, BalanceSettings
from edgeweave.mixing.exchange import ALGORITHMS, Algorithm, Exchange
from edgeweave.mixing.importance import (
    CHOOSINGS,
    IMPORTANCES,
    Choosing,
    Chosen,
    Importance,
    last_layer_scores,
    weighted,
    whole_groups,
)
from edgeweave.mixing.message import (
    KINDS,
    Effect,
    Finished,
    Message,
    Send,
    Train,
    Trained,
    Wake,
)
from edgeweave.mixing.peer import Peer, PeerStatistics
from edgeweave.mixing.sessions import LARGEST_INCARNATION
from edgeweave.mixing.settings import GossipSettings, exchange_of, graph_of
from edgeweave.mixing.topology import NAMES, Topology, edges_in, matching, topology
from edgeweave.mixing.weights import edge_weight, mixing_matrix, spectral_gap

__all__ = [
    "ALGORITHMS",
    "CHOOSINGS",
    "IMPORTANCES",
    "KINDS",
    "LARGEST_INCARNATION",
    "NAMES",
    "Algorithm",
    "Balance",
    "BalanceSettings",
    "Choosing",
    "Chosen",
    "Effect",
    "Exchange",
    "Finished",
    "GossipSettings",
    "Groups",
    "Importance",
    "Message",
    "Peer",
    "PeerStatistics",
    "Send",
    "Topology",
    "Train",
    "Trained",
    "Wake",
    "aggregate",
    "edge_weight",
    "edges_in",
    "exchange_of",
    "graph_of",
    "last_layer_scores",
    "matching",
    "mixing_matrix",
    "spectral_gap",
    "topology",
    "weighted",
    "whole_groups",
]

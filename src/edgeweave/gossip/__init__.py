"""Decentralised training: every device its own copy and its own data, averaged with neighbours."""

from edgeweave.gossip.members import Members, running, wait_members
from edgeweave.gossip.report import GossipReport, PeerReport, consensus_distance, mean_state
from edgeweave.gossip.trainer import DeviceFiles, GossipTrainer
from edgeweave.gossip.virtual import DeviceCosts, VirtualGossip

__all__ = [
    "DeviceCosts",
    "DeviceFiles",
    "GossipReport",
    "GossipTrainer",
    "Members",
    "PeerReport",
    "VirtualGossip",
    "consensus_distance",
    "mean_state",
    "running",
    "wait_members",
]

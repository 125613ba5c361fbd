"""What `benchmarks/edgepipe.py` measures, by key."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.claim import Claim, Metric

__all__ = ["CLAIM", "RECEPTIONS", "TABLE_ARMS", "WAITS"]

RECEPTIONS = {"1": 1.0, "0p95": 0.95, "0p9": 0.9, "0p8": 0.8, "0p7": 0.7, "0p5": 0.5}
TABLE_ARMS = {
    "hybrid": "super neurons",
    "vertical": "whole layers, a lost message ends the microbatch",
    "retransmitting": "whole layers, lost messages are sent again",
    "horizontal": "all layers over all devices, a lost message ends the batch",
    "masked_horizontal": "the same, with our exchange",
}
WAITS = (1, 4, 16, 64)
_OTHERS = {
    "lenet_mnist": "LeNet, MNIST, 4 devices, reception 0.8",
    "mlp_fashion": "MLP, Fashion-MNIST, 0.8",
    "lenet_fashion": "LeNet, Fashion-MNIST, 0.8",
    "cnn_cifar10": "CNN, CIFAR-10, 0.8",
    "cnn_har": "CNN, UCI-HAR windows, 0.8",
    "eight_devices": "MLP, MNIST, 8 devices, 0.8",
    "bursts": "MLP, MNIST, bursts of 5 packets, 0.8",
    "recorded": "MLP, MNIST, recorded Wi-Fi links that lose 10 to 50 %",
    "half_lost": "MLP, MNIST, 0.5",
}


def _metrics() -> Iterator[Metric]:
    yield Metric(
        "hybrid_accuracy_drop_at_0p8", "points lost at reception 0.8 by datagrams", most=1.0
    )
    yield Metric("vertical_accuracy_drop_at_0p8", "the same, vertical")
    yield Metric("vertical_accuracy_drop_at_0p8_messages", "vertical, losses of whole messages")
    yield Metric(
        "hybrid_accuracy_drop_one_dead_device", "points lost to a device that dies", most=2.0
    )
    yield Metric("vertical_accuracy_drop_one_dead_device", "the same, vertical")
    yield Metric("hybrid_accuracy_drop_two_dead_devices", "points lost to two")
    yield Metric("vertical_accuracy_drop_two_dead_devices", "the same, vertical")
    yield Metric(
        "ordered_share_accuracy",
        "receptions up to 0.9 with hybrid > vertical > horizontal, same samples",
        least=1.0,
    )
    yield Metric("ordered_share_fixed_time", "the same, in the same slots")
    yield Metric("spread_points_lossless", "points between those three at reception 1", most=0.5)
    for arm, words in TABLE_ARMS.items():
        for name, share in RECEPTIONS.items():
            yield Metric(f"{arm}_accuracy_{name}", f"{words}: accuracy at reception {share:g}, %")
            yield Metric(f"{arm}_fixed_time_{name}", "the same, after the hybrid's slots")
    for name, words in _OTHERS.items():
        yield Metric(f"hybrid_accuracy_{name}_lossless", f"{words}: accuracy without loss, %")
        yield Metric(f"hybrid_accuracy_drop_{name}", "points of it lost, by datagrams")
    for arm in ("hybrid", "random_mapping", "sequential"):
        yield Metric(f"{arm}_accuracy_drawn_links", f"{arm}, links of 0.6 to 1: accuracy, %")
        yield Metric(f"{arm}_fixed_time_drawn_links", "the same, after the hybrid's slots")
    for slots in WAITS:
        yield Metric(
            f"retransmitting_fixed_time_wait_{slots}",
            f"sending again takes {slots} slots: accuracy after the hybrid's slots at 0.8, %",
        )
    for arm in ("hybrid", "vertical", "horizontal"):
        yield Metric(f"values_per_batch_{arm}", f"{arm}: values sent per batch of 64")
    yield Metric("slots_hybrid_over_horizontal", "slots for the batches by the formulas (L = 6)")


CLAIM = Claim(
    name="edgepipe",
    title="Super neurons over links that lose",
    metrics=tuple(_metrics()),
    drawn=(),
    drawn_unit="",
)

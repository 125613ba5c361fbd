"""What is claimed: every metric by its key, what it means, and what it should be."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.claim import Claim, Metric
from benchmarks.edgepipe_claim import CLAIM as _EDGEPIPE

__all__ = ["CLAIMS", "RECORDED_DATA", "RECORDED_WAYS"]


_SIZES = {"16kb": "16 KB", "256kb": "256 KB", "1mb": "1 MB", "8mb": "8 MB"}
_WIRE_CASES = {
    f"{size}{suffix}": f"{words}, {mode}"
    for suffix, mode in {"": "TCP", "_tls": "TLS"}.items()
    for size, words in _SIZES.items()
}
_WIRE_COLUMNS = {
    "throughput_vs_raw_socket": "throughput, ours / raw",
    "throughput_mb_per_second": "ours, MB/s",
    "round_trip_vs_raw_socket": "round trip, ours / raw",
    "round_trip_ms": "ours, ms",
    "cpu_vs_raw_socket": "CPU, ours / raw",
    "cpu_seconds_per_gb": "ours, CPU s per GB",
}


_EFFICIENCY = Claim(
    name="efficiency",
    title="A pipeline keeps its devices' own speed",
    metrics=(
        Metric("efficiency", "fleet / sum of its devices alone", least=0.85),
        Metric("predicted_over_measured", "step time, plan / measured", least=0.9, most=1.1),
        Metric("agent_overhead_mb", "agent beyond torch and its stage, MB", most=80),
    ),
    drawn=(),
    drawn_unit="",
)

_PEERS = Claim(
    name="peers",
    title="The same work, done by others",
    metrics=(
        Metric("vs_torch_pipelining", "throughput, ours / torch, 2 processes, 1F1B", least=1.0),
        Metric(
            "vs_torch_pipelining_same_allocator", "the same, torch given our allocator settings"
        ),
        Metric("vs_torch_pipelining_gpipe", "the same, GPipe"),
        Metric("vs_torch_pipelining_3", "the same, 3 processes, 1F1B"),
        Metric("vs_torch_pipelining_3_gpipe", "the same, 3 processes, GPipe"),
        Metric(
            "loss_difference_vs_torch", "largest relative difference of a step's loss", most=1e-3
        ),
        Metric("vs_equal_split_1_1_0p1", "throughput, our plan / equal split", least=6.0),
        Metric("vs_one_device_1_1_0p1", "throughput, our plan / the fastest device alone"),
        Metric(
            "losses_bit_equal", "our plan, equal split, one device: same losses (1 is yes)", 1, 1
        ),
        Metric("predicted_over_measured_1_1_0p1", "step time of our plan, predicted / measured"),
    ),
    drawn=(
        "vs_torch_pipelining",
        "vs_torch_pipelining_same_allocator",
        "vs_torch_pipelining_gpipe",
        "vs_torch_pipelining_3",
        "vs_torch_pipelining_3_gpipe",
        "vs_equal_split_1_1_0p1",
        "vs_one_device_1_1_0p1",
    ),
    drawn_unit="throughput, ours / theirs",
)

_WIRE = Claim(
    name="wire",
    title="Frames beside a raw socket",
    metrics=tuple(
        Metric(f"{column}_{case}", f"{meaning}, {words}")
        for column, meaning in _WIRE_COLUMNS.items()
        for case, words in _WIRE_CASES.items()
    ),
    drawn=tuple(f"throughput_vs_raw_socket_{case}" for case in _WIRE_CASES),
    drawn_unit="throughput, ours / raw socket",
    columns=_WIRE_COLUMNS,
    rows=_WIRE_CASES,
)

_EMULATOR = Claim(
    name="emulator",
    title="An emulated fleet is what was asked for",
    metrics=(
        Metric("speed_error_max", "speed got / asked, largest error of 8", most=0.05),
        Metric("rate_error_max", "rate, largest error of 12 links", most=0.1),
        Metric("delay_error_max", "one-way delay", most=0.1),
        Metric("jitter_error_max", "jitter", most=0.1),
        Metric("loss_error_max", "loss", most=0.1),
        Metric("within_limits", "all of these are met (1 is yes)", 1, 1),
        Metric(
            "simulate_error_max", "step time, predicted / measured, worst of 10 fleets", most=0.1
        ),
        Metric("simulate_error_median", "the same, median fleet"),
        Metric("simulate_within_10_percent", "fleets predicted within 10 %", least=10),
    ),
    drawn=(),
    drawn_unit="got / asked, and measured against predicted steps",
)

_PREDICTOR = Claim(
    name="predictor",
    title="Seconds per unit on a device that never ran it",
    metrics=(
        Metric("unseen_zero_shot_mape", "mean error of a unit, from the probe", most=0.2),
        Metric("unseen_zero_shot_median_error", "the same, median unit"),
        Metric("unseen_network_mape", "the same, of whole networks"),
        Metric("unseen_within_interval", "share of units in the interval of 90 %"),
        *(
            Metric(
                f"unseen_{count}_samples_mape",
                f"after {count} samples",
                most=0.08 if count == 50 else None,
            )
            for count in (10, 20, 50, 100, 200)
        ),
        *(
            Metric(f"unseen_{count}_stages_mape", f"after {count} sums over stages instead")
            for count in (10, 50)
        ),
        Metric("unseen_stage_zero_shot_mape", "mean error of a stage, from the probe"),
        *(
            Metric(f"unseen_stage_{count}_stages_mape", f"after {count} sums over other stages")
            for count in (10, 50)
        ),
        Metric("unknown_network_mape", "one network's units, from the probe"),
        Metric("learnt_network_mape", "right after it was learnt"),
        Metric("replayed_network_mape", "after all the others were, 200 measurements kept"),
        Metric("last_kept_network_mape", "the same, the last 200 kept"),
        Metric("right_stages_kept", "share of right measurements of stages that are believed"),
        Metric("wrong_3x_refused", "share refused that are 3 times too slow"),
        Metric("wrong_30x_refused", "the same, 30 times"),
        Metric("learning_seconds", "seconds to judge one more stage, 200 measurements kept"),
        Metric("predicting_300_stages_seconds", "seconds to predict all units from 300 stages"),
        Metric("learnt_bytes", "bytes of a full store of a device"),
        Metric("taught_kind_mape", "the kind is among those that taught: no probe tells more"),
        Metric("repeatability_mape", "one recording of the known networks against two others"),
        Metric("scalar_capacity_mape", "a full profile of another kind, times one scalar"),
        Metric("flops_regression_mape", "regression on multiply-adds"),
        Metric("roofline_mape", "roofline"),
        Metric("boosted_trees_mape", "gradient-boosted trees"),
    ),
    drawn=(),
    drawn_unit="",
)

_REGRETS: Mapping[str, tuple[str, float | None]] = {
    "zero_shot": ("plan from the probes / from full profiles: step, median fleet", 1.05),
    "50_samples": ("the same, after 50 samples", 1.02),
    "scalar_capacity": ("the same, a full profile of another kind times one scalar", None),
    "flops": ("the same, regression on multiply-adds", None),
    "equal_split": ("the same, as many units for each device", None),
    "profiled_again": ("the same, a full profile, judged by two later ones", None),
}

RECORDED_DATA: Mapping[str, str] = {
    "tophub": "TopHub",
    "deepbench": "DeepBench",
    "ncnn": "ncnn",
    "nasbench": "NAS-Bench-201 (HELP)",
}
RECORDED_WAYS: Mapping[str, str] = {
    "ours": "ours",
    "scalar": "capacity scalar",
    "flops": "multiply-adds",
    "roofline": "roofline",
    "trees": "boosted trees",
    "factors": "latent factors",
}

_RECORDED = Claim(
    name="recorded",
    title="Other people's devices",
    metrics=tuple(
        metric
        for name, title in RECORDED_DATA.items()
        for metric in (
            Metric(
                f"recorded_{name}_over_best",
                f"{title}: median error, ours / best listed alternative",
                most=1.0,
            ),
            Metric(f"recorded_{name}_mean_over_best", "the same, mean error", most=1.0),
            *(
                Metric(
                    f"recorded_{name}_10_samples_error{'' if way == 'ours' else f'_{way}'}",
                    f"median error after 10 samples, {words}",
                )
                for way, words in RECORDED_WAYS.items()
            ),
        )
    ),
    drawn=(),
    drawn_unit="",
)

_PLANNER = Claim(
    name="planner",
    title="Plans are near the best, and soon there",
    metrics=(
        Metric("seconds_200_x_8", "200 units, 8 devices, exact: seconds", most=1.0),
        Metric("seconds_200_x_64", "200 units, 64 devices, heuristic: seconds", most=10.0),
        Metric("period_over_bound_200_x_8", "exact period / lower bound"),
        Metric("period_over_bound_200_x_64", "heuristic period / lower bound, worst", most=1.03),
        Metric("period_over_bound_slow_links", "the same, links a third as fast"),
        Metric("period_over_exact", "8 to 10 devices, heuristic period / exact, worst"),
        Metric("step_over_exact", "8 to 10 devices, heuristic step / exact proposals' step"),
        Metric("step_over_exact_worst", "the same, worst"),
        *(
            Metric(f"plan_regret_{way}", meaning, most=most)
            for way, (meaning, most) in _REGRETS.items()
        ),
        *(
            Metric(f"plan_regret_{way}_worst", f"the same, {way.replace('_', ' ')}: worst network")
            for way in _REGRETS
        ),
        Metric("plan_step_within_interval", "zero-shot plans: share of steps in their interval"),
    ),
    drawn=(),
    drawn_unit="",
)

_RELAYS_FLEETS = {
    "campus_lte": "`campus-lte`",
    "equal_lan": "`equal-lan`",
    "jetson_and_laptops": "`jetson-and-laptops`",
    "lan": "`lan`",
    "raspberry_pi_wifi": "`raspberry-pi-wifi`",
}
_RELAYS_COLUMNS = {
    "gain_unet": "U-Net",
    "gain_unet_all": "U-Net, every device used",
    "gain_resnet": "ResNet-18",
}

_RELAYS = Claim(
    name="relays",
    title="Skip connections past the stages that do not use them",
    metrics=tuple(
        Metric(f"{column}_{fleet}", f"step saved, {meaning}, {words}")
        for column, meaning in _RELAYS_COLUMNS.items()
        for fleet, words in _RELAYS_FLEETS.items()
    ),
    drawn=(),
    drawn_unit="",
    columns=_RELAYS_COLUMNS,
    rows=_RELAYS_FLEETS,
)

_MICROBATCHES = Claim(
    name="microbatches",
    title="Microbatches that the planner chooses",
    metrics=tuple(
        metric
        for case, words in {
            "digits_cnn": "the demo's CNN, batch 512",
            "mobilenet": "MobileNetV2, batch 128",
            "mlp": "an MLP, batch 512",
        }.items()
        for metric in (
            Metric(f"chosen_over_16_{case}", f"step with 16 / as chosen, {words}"),
            Metric(f"chosen_predicted_{case}", "predicted / measured step, as chosen"),
        )
    ),
    drawn=(),
    drawn_unit="",
)

_ACCEPT_RATES = {str(rate): f"{rate} Mbit/s" for rate in (5, 10, 20, 40, 80)}
_ACCEPT_ARMS = {
    "speedup_predictor": "predictor",
    "speedup_codec": "codec",
    "speedup_both": "both",
}

_ACCEPT = Claim(
    name="accept",
    title="What the predictor and codecs add to FTPipeHD's plan and raw float32",
    metrics=(
        Metric("best_speedup", "both / neither, best network and rate", least=3.0),
        Metric("speedup_at_80mbit", "both / neither at 80 Mbit/s, worst network", least=1.0),
        Metric("accuracy_loss_points", "points lost with the fewest bits used", most=0.5),
        Metric("best_speedup_json", "both / neither with floats as JSON text (simulated)"),
        *(
            Metric(f"{arm}_{rate}", f"{meaning} / neither, {words}, median network")
            for arm, meaning in _ACCEPT_ARMS.items()
            for rate, words in _ACCEPT_RATES.items()
        ),
    ),
    drawn=(),
    drawn_unit="",
)

_ADAPTIVE_TRACES = ("train", "home", "taxi", "walking", "short")

_ADAPTIVE = Claim(
    name="adaptive",
    title="Codecs that follow a link, on recorded links",
    metrics=(
        Metric("adaptive_vs_best_least", "worst of the traces below", least=0.97),
        *(
            Metric(f"adaptive_vs_best_{trace}", f"samples, adaptive / best fixed codec, {trace}")
            for trace in _ADAPTIVE_TRACES
        ),
        *(
            Metric(f"adaptive_bits_{trace}", f"bits of a value, adaptive, {trace}")
            for trace in _ADAPTIVE_TRACES
        ),
    ),
    drawn=(),
    drawn_unit="",
)

_FOLLOWING = Claim(
    name="following",
    title="The same in virtual time",
    metrics=(
        Metric("following_vs_best_least", "worst of the traces below", least=0.97),
        *(
            Metric(f"following_vs_best_{trace}", f"steps, following / best fixed codec, {trace}")
            for trace in _ADAPTIVE_TRACES
        ),
        *(
            Metric(f"following_bits_{trace}", f"bits of a value, following, {trace}")
            for trace in _ADAPTIVE_TRACES
        ),
    ),
    drawn=(),
    drawn_unit="",
)

_CODEC_LEAST = {8: 1.0, 4: 1.0, 7: 0.4, 6: 0.4, 5: 0.4, 3: 0.4, 2: 0.4}

_CODEC = Claim(
    name="codec",
    title="Bits on the wire cost little time",
    metrics=(
        *(
            Metric(f"{verb}_gb_s_{bits}bit", f"{verb}, {bits} bits, GB/s of float32", least=least)
            for bits, least in _CODEC_LEAST.items()
            for verb in ("encode", "decode")
        ),
        *(
            Metric(f"encode_at_random_gb_s_{bits}bit", f"encode, {bits} bits, at random", least=1.0)
            for bits in (8, 4)
        ),
        Metric("encode_relu_gb_s_8bit", "encode, 8 bits, half of the values zero and left out"),
        Metric("decode_relu_gb_s_8bit", "decode the same"),
        Metric("encode_gb_s_none", "encode, as it is, with a checksum"),
        Metric("decode_gb_s_none", "decode the same"),
        Metric("memcpy_gb_s", "copy the same tensor"),
    ),
    drawn=(),
    drawn_unit="",
)

_CONVERGENCE = Claim(
    name="convergence",
    title="What is learnt with few bits on the wire",
    metrics=(
        Metric("cifar10_accuracy", "a CNN on CIFAR-10, nothing coded: test accuracy, %"),
        *(
            Metric(
                f"cifar10_accuracy_loss_points_{bits}bit",
                f"points of it lost with {bits} bits",
                most=0.5 if bits == 8 else None,
            )
            for bits in (16, 8, 6, 4)
        ),
        Metric("shakespeare_loss", "a GPT-2 on tiny-shakespeare, nothing coded: validation loss"),
        *(
            Metric(
                f"shakespeare_loss_ratio_{bits}bit",
                f"loss with {bits} bits / nothing coded",
                most=1.01 if bits == 8 else None,
            )
            for bits in (8, 6, 4)
        ),
    ),
    drawn=(),
    drawn_unit="what is tested on the way, and gradients beside exact ones",
)

_FAULTS = Claim(
    name="faults",
    title="Devices vanish, the run goes on",
    metrics=(
        Metric("detect_seconds_p99", "a killed device is noticed after, s, largest", most=1.5),
        Metric(
            "detect_stopped_over_limit",
            "a stopped one, over three steps and 1 s, largest",
            most=1.0,
        ),
        Metric("recover_seconds_p99", "from there until the next step, s, largest", most=5.0),
        Metric("recover_seconds_median", "the same, median"),
        Metric("recomputed_over_interval", "steps computed again / interval of copies", most=1.0),
        Metric("bit_equal", "losses are those of the undisturbed run (1 is yes)", 1, 1),
        Metric("replication_cost", "throughput that copies take, 100 Mbit/s", most=0.03),
        Metric("vs_takeover", "time with one kill, neighbour takes over / ours", least=1.0),
        Metric("vs_restart", "time with one kill, restart from checkpoint / ours", least=1.0),
    ),
    drawn=(),
    drawn_unit="",
)

_CHAOS = Claim(
    name="chaos",
    title="Random trouble, and nothing is lost",
    metrics=(
        Metric("runs", "runs on real processes, each with random trouble", least=200),
        Metric("hangs", "runs that did not end by their deadline", most=0),
        Metric("unequal", "runs whose losses are not those of one device, bit for bit", most=0),
        Metric("ended_early", "runs that ended although a device was never killed", most=0),
        Metric("unclear", "runs without any device left that did not say so", most=0),
        Metric("nobody_left", "runs without any device left, which end with an error"),
        Metric("recovered", "runs that lost a device and went on"),
        Metric("orphans", "processes left behind", most=0),
        Metric("sockets", "sockets left open in the coordinator", most=0),
        Metric("files", "temporary files left behind", most=0),
        Metric("threads", "threads left behind in the coordinator", most=0),
    ),
    drawn=(),
    drawn_unit="",
)

_ASYNCHRONOUS = Claim(
    name="asynchronous",
    title="Steps without a flush between them",
    metrics=(
        Metric("async_vs_equal_split_1_1_0p1", "throughput, our plan / equal split", least=6.8),
        Metric("async_efficiency", "fleet / sum of its devices alone", least=0.93),
        Metric("async_vs_1f1b", "throughput of that fleet, async-1f1b / 1f1b"),
        Metric("async_predicted_over_measured", "step time, plan / measured"),
    ),
    drawn=("async_vs_equal_split_1_1_0p1",),
    drawn_unit="throughput, our plan / equal split",
)

_STALENESS = Claim(
    name="staleness",
    title="What weights of an earlier step cost",
    metrics=(
        Metric("accuracy_1f1b", "a CNN on CIFAR-10, 1f1b: test accuracy, %"),
        Metric("accuracy_loss_points_async", "points of it lost with async-1f1b"),
        Metric("accuracy_loss_points_extra", "the same, two more microbatches in flight"),
        Metric("accuracy_loss_points_aggregation", "the same as the first, means of versions"),
    ),
    drawn=(),
    drawn_unit="",
)

_SERVING = Claim(
    name="serving",
    title="Several devices serve what one is too slow for",
    metrics=(
        Metric("speedup_2", "MobileNetV2: requests a second, 2 equal devices / one", least=1.85),
        Metric("speedup_3", "the same, 3 devices", least=2.6),
        Metric("bound_2", "what the units allow 2 devices"),
        Metric("bound_3", "what they allow 3"),
        Metric("fraction_of_bound_3", "3 devices, got / allowed", least=0.95),
        Metric("bit_equal", "answers are the unsplit model's (1 is yes)", 1, 1),
        Metric("in_order", "and come in the order of requests (1 is yes)", 1, 1),
        *(
            metric
            for prefix, words in (("lenet_", "LeNet"), ("resnet18_", "ResNet-18"))
            for metric in (
                Metric(f"{prefix}speedup_2", f"{words}: 2 equal devices / one"),
                Metric(f"{prefix}speedup_3", "the same, 3 devices"),
                Metric(f"{prefix}bound_2", "what the units allow 2 devices"),
                Metric(f"{prefix}bound_3", "what they allow 3"),
                Metric(f"{prefix}fraction_of_bound_3", "3 devices, got / allowed", least=0.95),
                Metric(f"{prefix}bit_equal", "answers are the unsplit model's (1 is yes)", 1, 1),
                Metric(f"{prefix}in_order", "and come in order (1 is yes)", 1, 1),
            )
        ),
        Metric("unequal_over_sum", "0.3, 0.2 and 0.1 cores / the sum of each alone", least=0.9),
        Metric("unequal_bound", "what the units allow of that"),
        Metric("lost_requests", "20 devices killed, 20 added: requests not answered", most=0),
        Metric("answered_twice", "requests answered twice", most=0),
        Metric("wrong_answers", "answers that are not the model's, of every 20th", most=0),
        Metric("gap_seconds_p99", "time without an answer around a kill, s, largest", most=3),
        Metric("added_seconds", "from a kill until the device added serves, s, median"),
        Metric("http_requests", "good and bad requests over HTTP"),
        Metric(
            "http_wrong_replies", "bad ones without a 4xx and message, good without 200", most=0
        ),
        Metric("http_memory_growth", "the server's memory after the first tenth", most=0.05),
        Metric("http_requests_per_second", "four clients, a connection each, one after another"),
    ),
    drawn=("speedup_2", "speedup_3"),
    drawn_unit="requests a second, several equal devices / one",
)

_GOSSIP_VARIANTS = {
    "_balance_random": "balance by a random choice",
    "_published": "as published: whole groups, first layer",
    "_fixed_share": "half of every batch, on all",
}
_GOSSIP_BESIDE = {
    "": "ours",
    "_all_reduce": "all-reduce over Gloo",
    "_hivemind": "hivemind",
}
_GOSSIP = Claim(
    name="gossip",
    title="Gossip on unequal devices",
    metrics=(
        Metric("time_to_accuracy_speedup", "seconds to accuracy, plain / by score", least=2.7),
        Metric("accuracy_loss_points", "points lost in the end, by score", most=0.78),
        Metric("iteration_time_cv", "iteration times over peers, by score", most=0.05),
        Metric("iteration_time_cv_plain", "the same, the plain algorithm"),
        *(
            Metric(f"{column}{variant}", f"{meaning}, {words}")
            for variant, words in _GOSSIP_VARIANTS.items()
            for column, meaning in {
                "time_to_accuracy_speedup": "speed-up",
                "accuracy_loss_points": "points lost",
                "iteration_time_cv": "iteration times over peers",
            }.items()
        ),
        Metric("own_accuracy_loss_points", "points lost, mean of the peers' own models"),
        Metric("choosing_time_share", "of busy time, scoring points"),
        Metric("choosing_mb", "aggregated points on a device, MB"),
        Metric("equal_speeds_bit_equal", "equal devices: the plain bits (1 is yes)", 1, 1),
        Metric("churn_accuracy_loss_points", "points lost, one of 8 killed a minute", most=1),
        Metric("churn_longest_pause_seconds", "the longest time without any step"),
        Metric("churn_time_ratio", "seconds of that run / undisturbed"),
        Metric("churn_minutes", "minutes of that run"),
        *(
            Metric(f"scale_{n}_{column}", f"{n} peers: {meaning}")
            for n in (10, 100, 1000)
            for column, meaning in {
                "accuracy": "accuracy of the mean model, %",
                "consensus_distance": "distance from the mean / its norm",
                "ms_per_peer_step": "wall ms of a step of one",
            }.items()
        ),
        *(
            Metric(f"beside_{column}{suffix}", f"{meaning}, {whose}")
            for suffix, whose in _GOSSIP_BESIDE.items()
            for column, meaning in {
                "seconds_to_90": "seconds to 90 %",
                "seconds": "seconds of all steps",
                "accuracy": "accuracy in the end, %",
            }.items()
        ),
        *(
            Metric(f"beside_bytes_ratio{suffix}", f"bytes a device and step, ours / {whose}")
            for suffix, whose in _GOSSIP_BESIDE.items()
            if suffix
        ),
        Metric(
            "beside_groups_found_hivemind", "of hivemind's averages, those a group was found for"
        ),
        Metric("beside_left_after_death", "peers of 4 that finish when one is killed, ours", 3, 3),
        *(
            Metric(f"beside_left_after_death{suffix}", f"the same, {whose}")
            for suffix, whose in _GOSSIP_BESIDE.items()
            if suffix
        ),
    ),
    drawn=(),
    drawn_unit="",
)

CLAIMS: Mapping[str, Claim] = {
    claim.name: claim
    for claim in (
        _EMULATOR,
        _EFFICIENCY,
        _MICROBATCHES,
        _PEERS,
        _PLANNER,
        _PREDICTOR,
        _RECORDED,
        _RELAYS,
        _WIRE,
        _CODEC,
        _CONVERGENCE,
        _ACCEPT,
        _ADAPTIVE,
        _FOLLOWING,
        _FAULTS,
        _CHAOS,
        _ASYNCHRONOUS,
        _STALENESS,
        _SERVING,
        _GOSSIP,
        _EDGEPIPE,
    )
}

"""``edgeweave serve``: the plan, then requests over HTTP until told to stop, then what it took."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from edgeweave.cli.documents import serving_document
from edgeweave.cli.job_parts import build_model
from edgeweave.cli.jobs import FleetOptions, open_fleet
from edgeweave.cli.network import Network
from edgeweave.cli.output import Output, read_file
from edgeweave.cli.tables import serving_plan_table, serving_table
from edgeweave.codec import parse
from edgeweave.core.errors import ConfigError, FormatError
from edgeweave.data.batches import example as first_samples
from edgeweave.data.sources import load_source
from edgeweave.device.signals import StopSignals
from edgeweave.net.locators import Locator
from edgeweave.observe.serving_metrics import metrics_text
from edgeweave.program import capture_inference
from edgeweave.serving import Endpoint, ServeOptions
from edgeweave.serving.http import application
from edgeweave.serving.signature import DATATYPES
from edgeweave.train.checkpoint import latest, load
from edgeweave.train.jobs.serve_section import ExampleEntry, ServeSection
from edgeweave.train.jobs.service_job import ServiceJob

__all__ = ["load_weights", "run_serve"]

_DTYPES = {word: getattr(torch, name) for name, word in DATATYPES.items()}
_STOP_SECONDS = 5


@dataclass(frozen=True, slots=True)
class _Address:
    """Where HTTP is spoken, and with which certificate."""

    host: str
    port: int
    certificate: Path | None
    key: Path | None

    def url(self, port: int) -> str:
        """What a client on this machine writes."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'http' if self.certificate is None else 'https'}://{host}:{port}"


def run_serve(job: ServiceJob, options: FleetOptions, output: Output) -> None:
    """Serve the model of a job with the weights it was trained to, until SIGTERM or Ctrl-C.

    A second Ctrl-C gives up what was accepted and is not answered yet.
    """
    serve = job.serve
    address = _address(serve, options.network)
    uvicorn = _uvicorn()
    model = build_model(job)
    output.say(f"weights: {load_weights(model, job)}")
    example = _example(job)
    inference = capture_inference(model, example)
    with ExitStack() as stack:
        signals = stack.enter_context(StopSignals())
        listener = stack.enter_context(_listening(address))
        fleet = stack.enter_context(open_fleet(job.fleet, options, output))
        with output.doing("measuring every device"):
            endpoint = Endpoint(inference, fleet, example, _options(serve))
            stack.enter_context(endpoint)
        plan = endpoint.plan
        assert plan is not None, "open"
        output.show(serving_plan_table(plan))
        port = listener.getsockname()[1]
        output.say(f"{address.url(port)}/v2/models/{serve.name}/infer")
        output.say("Stop with Ctrl-C: what was accepted is answered first; twice: it is given up.")
        app = application(endpoint, name=serve.name, metrics=metrics_text(endpoint))
        config = uvicorn.Config(
            app,
            log_level="warning",
            ssl_certfile=address.certificate,
            ssl_keyfile=address.key,
            timeout_graceful_shutdown=round(serve.timeout_seconds) + _STOP_SECONDS,
        )
        _run(uvicorn.Server(config), listener, signals)
        report = endpoint.report()
    output.show(serving_table(report))
    for change in report.changes:
        output.say(change.line())
    output.finish({"report": serving_document(report)})


def _run(server: Any, listener: socket.socket, signals: StopSignals) -> None:
    """Until a signal, and then in order; a second Ctrl-C is a ``KeyboardInterrupt``.

    uvicorn is on a thread, where it leaves signals alone.
    """
    signals.hold()  # one that came between the start of the server and the wait would end neither
    with ThreadPoolExecutor(1, "edgeweave-http") as pool:
        serving = pool.submit(server.run, [listener])
        serving.add_done_callback(lambda _: signals.tell())
        try:
            signals.wait_until_told()
        finally:
            server.should_exit = True
        while not serving.done():
            if signal.SIGINT in signals.wait_until_told():
                server.force_exit = True
                raise KeyboardInterrupt
    serving.result()


def _uvicorn() -> Any:
    try:
        import uvicorn  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(
            f"serving over HTTP needs uvicorn ({error}). Run: pip install 'edgeweave[serve]'"
        ) from error
    return uvicorn


@contextmanager
def _listening(address: _Address) -> Iterator[socket.socket]:
    """The socket on which requests will come; ``ConfigError`` if the address is not to be had."""
    try:
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        listener = socket.create_server((address.host, address.port), family=family)
    except OSError as error:
        raise ConfigError(
            f"{address.host}:{address.port} is an address to listen on ({error.strerror}). Choose "
            "another --port, or 0 for a free one."
        ) from error
    with listener:
        yield listener


def _address(serve: ServeSection, network: Network) -> _Address:
    """Loopback needs nothing; other addresses TLS, or to be told that they go without."""
    tls = network.tls()
    host = f"[{serve.host}]" if ":" in serve.host else serve.host
    is_loopback = Locator.parse(f"tcp/{host}:{serve.port}").is_loopback
    if not is_loopback and tls is None and not network.insecure:
        raise ConfigError(
            f"requests from other machines come over TLS (serve.host is {serve.host}, and there "
            "is no certificate). Pass --tls-ca, --tls-certificate and --tls-key, or --insecure."
        )
    if is_loopback or tls is None:
        return _Address(serve.host, serve.port, None, None)
    return _Address(serve.host, serve.port, tls.certificate, tls.key)


def _options(serve: ServeSection) -> ServeOptions:
    return ServeOptions(
        objective=serve.objective,
        use=serve.use,
        kernels=serve.kernels,
        codec=parse(serve.codec),
        queue_size=serve.queue_size,
        timeout_seconds=serve.timeout_seconds,
        max_samples=serve.max_samples,
        join_samples=serve.join_samples,
        join_seconds=serve.join_seconds,
        watts=serve.watts,
    )


def load_weights(model: torch.nn.Module, job: ServiceJob) -> str:
    """Put the trained weights into the model, and say where they are from."""
    if job.serve.weights is not None:
        path = job.serve.weights
        try:
            state = safetensors.torch.load(read_file(path))
        except (safetensors.SafetensorError, ValueError, RuntimeError) as error:
            raise FormatError(
                f"{path} is a file of weights as train --save writes it ({error})."
            ) from error
        where = str(path)
    elif job.train.checkpoint_directory is not None:
        newest = latest(job.train.checkpoint_directory)
        state, where = load(newest).state, f"{newest}"
    else:
        return "as the factory made them (no serve.weights, no train.checkpoint_directory)"
    absent = _check_fits(model, state, where)
    model.load_state_dict(state, strict=False)
    if not absent:
        return where
    rest = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
    return f"{where}, but for {', '.join(absent[:3])}{rest}, which are as the factory made them"


def _check_fits(model: torch.nn.Module, state: dict[str, torch.Tensor], where: str) -> list[str]:
    """The parameters that no name of the file is of: those that training never touched.

    ``ConfigError`` if that is all of them, or the file has others.
    """
    own = model.state_dict()
    wrong = [n for n, t in state.items() if n not in own or own[n].shape != t.shape]
    pointers = {own[name].data_ptr() for name in state.keys() & own.keys()}
    trained = dict(model.named_parameters())
    absent = [n for n, p in trained.items() if n not in state and p.data_ptr() not in pointers]
    if wrong or len(absent) == len(trained) > 0:
        named = ", ".join((wrong or absent)[:3])
        raise ConfigError(
            f"the weights are those of the job's model ({where}: {named} "
            f"{'differ' if wrong else 'are missing'}). Serve it with the job it was trained by."
        )
    return absent


def _example(job: ServiceJob) -> Any:
    """A request as the job describes it, else the first sample of its test set."""
    entries = job.serve.example
    if not entries:
        assert job.data is not None, "checked when the job was read"
        data = job.data
        pair = load_source(data.source, path=data.path, normalise=data.normalise)
        return first_samples(pair.test, 1)[0]
    named = {each.name: _zeros(each) for each in entries if each.name is not None}
    if named and len(named) < len(entries):
        raise ConfigError(
            f"tensors of serve.example all have different names, or none has one (got "
            f"{', '.join(named)} and {len(entries) - len(named)} without). Name all or none."
        )
    if named:
        return named
    positional = tuple(_zeros(each) for each in entries)
    return positional if len(positional) > 1 else positional[0]


def _zeros(entry: ExampleEntry) -> torch.Tensor:
    return torch.zeros(entry.shape, dtype=_DTYPES[entry.datatype])

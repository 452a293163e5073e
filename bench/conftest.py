"""Options and fixtures of the benchmarks.

pytest bench/                       small shapes on this machine, a minute or two
pytest bench/ --full                the real shapes of this device
pytest bench/ --full --bench-results bench/results     ... and keep the medians
"""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.common import baselines, ours, peers  # noqa: F401  (they register the providers)
from bench.common.providers import PROVIDERS
from bench.common.session import DTYPES, BenchSession, open_session

SESSION = pytest.StashKey[BenchSession]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("amopo benchmarks")
    group.addoption("--full", action="store_true", help="the real shapes instead of small ones")
    group.addoption(
        "--shape", action="append", default=[], metavar="TEXT",
        help="only shapes whose name contains TEXT, e.g. 7b-8192; given twice, both",
    )  # fmt: skip
    group.addoption("--dtype", default="bf16", choices=sorted(DTYPES), help="of hidden states and weight")
    group.addoption("--device", default=None, choices=["cpu", "cuda"], help="default: CUDA where it is")
    group.addoption("--rounds", type=int, default=None, help="rounds per provider (default: by time)")
    group.addoption("--providers", default="", metavar="A,B", help="only names that start with one of these")
    group.addoption("--bench-results", default=None, metavar="DIR", help="write medians to DIR/<device>/")


def pytest_configure(config: pytest.Config) -> None:
    rounds = config.getoption("--rounds")
    if rounds is not None and rounds < 1:
        raise pytest.UsageError(f"--rounds must be at least 1, got {rounds}")
    config.stash[SESSION] = open_session(
        device=config.getoption("--device"), full=config.getoption("--full"), dtype=config.getoption("--dtype"),
        shape=config.getoption("--shape"), rounds=rounds, results=config.getoption("--bench-results"),
        skip_compiled=not config.getoption("--full") and not config.getoption("--providers"),
    )  # fmt: skip
    session = config.stash[SESSION]
    if not session.shapes() and not session.step_shapes() and not session.memory_cases():
        raise pytest.UsageError(f"no shape contains {' and '.join(config.getoption('--shape'))}")


def pytest_report_header(config: pytest.Config) -> str:
    session = config.stash[SESSION]
    sizes = ", ".join(map(str, session.shapes()))
    return f"amopo benchmarks: {session.device}, {session.dtype}, {'full' if session.full else 'small'} shapes: {sizes}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    session = metafunc.config.stash[SESSION]
    if "shape" in metafunc.fixturenames:
        metafunc.parametrize("shape", session.shapes(), ids=str, scope="session")
    if "step_shape" in metafunc.fixturenames:  # none for the full scale of CPUs
        metafunc.parametrize("step_shape", session.step_shapes(), ids=str, scope="session")
    if "memory_row" in metafunc.fixturenames:
        rows = [(case, tokens) for case in session.memory_cases() for tokens in case.tokens]
        ids = [f"{case}-{tokens}" for case, tokens in rows]
        metafunc.parametrize("memory_row", rows, ids=ids, scope="session")
    if "searched_case" in metafunc.fixturenames:
        metafunc.parametrize("searched_case", session.memory_cases(searched=True), ids=str, scope="session")
    if "provider" in metafunc.fixturenames:
        starts = tuple(filter(None, metafunc.config.getoption("--providers").split(",")))
        names = [name for name in PROVIDERS if not starts or name.startswith(starts)]
        metafunc.parametrize("provider", names)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The first test of a group runs the race of all: no limit of time per test fits that."""
    if config.pluginmanager.hasplugin("timeout"):
        for item in items:
            if Path(__file__).parent in Path(item.path).parents:
                item.add_marker(pytest.mark.timeout(0))


@pytest.fixture(scope="session")
def bench_session(request) -> BenchSession:
    return request.config.stash[SESSION]


def pytest_benchmark_update_json(config, benchmarks, output_json) -> None:
    """`--benchmark-json` stays small: medians, no raw rounds."""
    for item in output_json["benchmarks"]:
        item["stats"].pop("data", None)

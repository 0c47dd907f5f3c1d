"""``examples/deploy/`` and ``docs/operate.md``: they parse, and every flag, route and metric that they name exists."""

from __future__ import annotations

import argparse
import configparser
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from running import RunningServer

from elastikv.cli import serve
from elastikv.server.limits import is_open

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "examples" / "deploy"
OPERATE = (ROOT / "docs" / "operate.md").read_text(encoding="utf-8")
FLAGS_OF_OTHERS = {"--config", "--syntax-only"}
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
DASHBOARD = json.loads((DEPLOY / "dashboard.json").read_text(encoding="utf-8"))


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(exit_on_error=False, allow_abbrev=False)
    serve.add_arguments(parser)
    return parser


@pytest.fixture
def unit() -> dict[str, str]:
    """The service's settings; of a setting that is given twice, the last."""
    text = (DEPLOY / "elastikv.service").read_text(encoding="utf-8").replace("\\\n", " ")
    parsed = configparser.ConfigParser(strict=False, interpolation=None, delimiters="=")
    parsed.optionxform = str  # type: ignore[assignment,method-assign]
    parsed.read_string(text)
    return dict(parsed["Service"])


def image_command() -> list[str]:
    (line,) = re.findall(r"^ENTRYPOINT (.*)$", (DEPLOY / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    command: list[str] = json.loads(line)
    return command


def serve_flags(parser: argparse.ArgumentParser, command: list[str]) -> argparse.Namespace:
    assert Path(command[0]).name == "elastikv"
    assert command[1] == "serve"
    return parser.parse_args(command[2:])


def seconds(text: str) -> float:
    return float(text.removesuffix("s"))


def test_the_unit_waits_for_the_drain_and_reads_its_credential(
    parser: argparse.ArgumentParser, unit: dict[str, str]
) -> None:
    args = serve_flags(parser, shlex.split(unit["ExecStart"]))
    assert seconds(unit["TimeoutStopSec"]) >= args.drain + 30
    name, _, _ = unit["LoadCredential"].partition(":")
    assert str(args.api_key_file) == f"%d/{name}"
    assert str(args.kv_park).startswith(f"%S/{unit['StateDirectory']}/")
    assert f"NUMBA_CACHE_DIR=%C/{unit['CacheDirectory']}/" in unit["Environment"]


def test_the_composed_server_waits_for_the_drain_and_reads_its_secret(parser: argparse.ArgumentParser) -> None:
    service = COMPOSE["services"]["elastikv"]
    args = serve_flags(parser, [*image_command(), *shlex.split(service["command"])])
    assert seconds(service["stop_grace_period"]) >= args.drain + 30
    assert args.api_key_file.relative_to("/run/secrets").name in COMPOSE["secrets"]
    assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).resolve() == DEPLOY / "Dockerfile"


def test_what_compose_mounts_is_there() -> None:
    mounts = [mount for service in COMPOSE["services"].values() for mount in service.get("volumes", [])]
    files = [mount.split(":")[0] for mount in mounts if Path(mount.split(":")[0]).suffix]
    assert files
    assert all((DEPLOY / file).is_file() for file in files)
    assert {mount.split(":")[0] for mount in mounts if mount[0] != "."} == COMPOSE["volumes"].keys()
    for config in COMPOSE["configs"].values():
        assert yaml.safe_load(config["content"])["apiVersion"] == 1


def test_prometheus_asks_the_composed_server() -> None:
    (job,) = yaml.safe_load((DEPLOY / "prometheus.yml").read_text(encoding="utf-8"))["scrape_configs"]
    (target,) = job["static_configs"][0]["targets"]
    assert target.split(":")[0] in COMPOSE["services"]
    secret = Path(job["authorization"]["credentials_file"]).relative_to("/run/secrets").name
    assert secret in COMPOSE["services"]["prometheus"]["secrets"]


def test_flags_that_are_named_exist(parser: argparse.ArgumentParser) -> None:
    texts = [OPERATE, *((DEPLOY / name).read_text(encoding="utf-8") for name in ("nginx.conf", "Caddyfile"))]
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", "\n".join(texts)))
    assert "--kv-park" in named
    assert named - FLAGS_OF_OTHERS <= parser._option_string_actions.keys()


def expressions(panel: dict[str, Any]) -> list[str]:
    return [target["expr"] for target in panel["targets"]]


def test_metrics_that_are_named_exist(server: RunningServer) -> None:
    server.post("/v1/completions", prompt="hello")
    families = text_string_to_metric_families(server.http.get("/metrics").text)
    there = {sample.name for family in families for sample in family.samples}
    histograms = {name.removesuffix("_bucket") for name in there if name.endswith("_bucket")}
    name = re.compile(r"\b(?:elastikv|process)_[a-z_]+")
    shown = {word for panel in DASHBOARD["panels"] for text in expressions(panel) for word in name.findall(text)}
    assert "elastikv_kv_committed_bytes" in shown
    assert shown <= there
    assert set(name.findall(OPERATE)) <= there | histograms
    queries = [
        variable["query"]["query"] for variable in DASHBOARD["templating"]["list"] if variable["type"] == "query"
    ]
    assert {word for query in queries for word in name.findall(query)} <= there


def test_the_dashboard_shows_every_gauge_and_counter_of_the_memory(server: RunningServer) -> None:
    families = text_string_to_metric_families(server.http.get("/metrics").text)
    kept = {family.name for family in families if re.match("elastikv_(kv|sessions|compute)_", family.name)}
    shown = "\n".join(text for panel in DASHBOARD["panels"] for text in expressions(panel))
    assert {name for name in kept if name not in shown} == {"elastikv_kv_reserved_bytes"}  # promised, not held


def test_health_checks_need_no_key() -> None:
    routes = re.findall(r"path: (/\w+)", OPERATE) + re.findall(
        r"127\.0\.0\.1:8080(/\w+)", (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    )
    assert len(routes) == 4
    assert all(is_open(route) for route in routes)

"""The compose files hold together, and Docker Compose itself takes them: images, ports, volumes, health, profiles."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from typing import Any

import pytest
from compose_files import (
    AIRFLOW_FILE,
    FILES,
    KAFKA_FILE,
    ROOT,
    SETTINGS,
    all_services,
    compose,
    environment,
    published_ports,
    services,
)

PROFILES = ["cluster", "secure", "registry", "monitoring"]


def runs_once(name: str) -> bool:
    """Whether a service does its work and ends: it is not restarted, and what needs it waits for its end."""
    return all_services()[name].get("restart", "no") == "no"


@pytest.mark.parametrize("file", FILES)
def test_every_image_has_a_version(file: str) -> None:
    for name, service in services(file).items():
        assert re.search(r":v?\d+(\.\d+)*$", service["image"]), name


@pytest.mark.parametrize("file", FILES)
def test_every_port_is_on_loopback(file: str) -> None:
    for name, service in services(file).items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name


def test_no_two_services_want_the_same_port_of_the_host() -> None:
    wanted = [port for service in all_services().values() for port in published_ports(service)]
    assert len(wanted) == len(set(wanted))


@pytest.mark.parametrize("name", all_services())
def test_every_service_has_a_limit_of_memory_and_logs_that_rotate(name: str) -> None:
    service = all_services()[name]
    assert re.fullmatch(r"\d+[mg]", service["mem_limit"])
    assert service["logging"] == {"driver": "local"}


@pytest.mark.parametrize("name", all_services())
def test_every_service_that_stays_has_a_health_check_and_comes_back(name: str) -> None:
    service = all_services()[name]
    assert runs_once(name) or (service["restart"] == "unless-stopped" and "healthcheck" in service)


@pytest.mark.parametrize("file", FILES)
def test_what_is_waited_for_exists_and_can_become_what_is_waited_for(file: str) -> None:
    known = services(file)
    for service in known.values():
        for name, wanted in service.get("depends_on", {}).items():
            # a service of the profile, or of none: else the profile could not be started
            if wanted.get("required", True):
                assert set(known[name].get("profiles", [])) <= set(service.get("profiles", []))
            if runs_once(name):
                assert wanted["condition"] == "service_completed_successfully"
            else:
                assert wanted["condition"] == "service_healthy"


@pytest.mark.parametrize("file", FILES)
def test_every_folder_and_volume_that_is_mounted_exists_and_is_mounted(file: str) -> None:
    volumes = set(compose(file)["volumes"])
    used = set()
    for service in services(file).values():
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            if source.startswith((".", "/")):
                assert (ROOT / source).exists()
            else:
                used.add(source)
    assert used == volumes


def test_every_script_that_a_container_runs_is_there() -> None:
    words = [service.get("entrypoint", []) + service.get("command", []) for service in all_services().values()]
    ran = {str(word) for command in words for word in command}
    ran |= {word for service in all_services().values() for word in service.get("healthcheck", {}).get("test", [])}
    mounted = {f"/scripts/{path.name}" for path in (ROOT / "docker").glob("*/*")}
    assert {word for word in ran if word.startswith("/scripts/")} == mounted


@pytest.mark.parametrize("file", FILES)
def test_every_variable_of_a_file_is_documented(file: str) -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
    named = set(re.findall(r"(?<!\$)\$\{(\w+)", (ROOT / file).read_text(encoding="utf-8")))
    assert {name for name in named if f"`{name}`" not in text} == set()


# What Compose itself makes of them


def docker_compose() -> list[str]:
    """Compose v2: what DOCKER_COMPOSE names, docker-compose, or docker's plugin. Skips the test where there is none."""
    named = os.environ.get("DOCKER_COMPOSE")
    for command in [named.split()] if named else [["docker-compose"], ["docker", "compose"]]:
        if shutil.which(command[0]):
            asked = subprocess.run([*command, "version", "--short"], capture_output=True, text=True, check=False)
            if asked.returncode == 0 and not asked.stdout.startswith("1."):
                return command
    assert not named, f"DOCKER_COMPOSE={named} is no Docker Compose v2"
    pytest.skip("no Docker Compose v2: put docker-compose on the PATH, or name it: DOCKER_COMPOSE=/path/docker-compose")


def config(*arguments: str, **variables: str) -> dict[str, Any]:
    """What `docker-compose config` says of a file, in an environment with nothing but the variables given."""
    command = [*docker_compose(), *arguments, "config", "--format", "json"]
    clean = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **variables}
    # a developer's own .env is none of the test's business
    clean |= {} if "--env-file" in arguments else {"COMPOSE_DISABLE_ENV_FILE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=clean, capture_output=True, text=True, check=False)
    # a variable that is not set is a warning
    assert (done.returncode, done.stderr) == (0, "")
    read: dict[str, Any] = json.loads(done.stdout)
    return read


def test_without_a_profile_compose_starts_what_it_always_did() -> None:
    assert set(config("-f", KAFKA_FILE)["services"]) == {"kafka", "create-topics", "kafka-ui", "postgres"}


@pytest.mark.parametrize("profile", PROFILES)
def test_compose_takes_each_profile_and_adds_its_services(profile: str) -> None:
    found = set(config("-f", KAFKA_FILE, "--profile", profile)["services"])
    assert found == {name for name, one in services().items() if profile in one.get("profiles", [profile])}


def test_compose_reads_all_profiles_as_these_tests_do() -> None:
    # `config` doubles the dollar signs, so that what it prints is a compose file again
    found = config("-f", KAFKA_FILE, "--profile", "*")["services"]
    read = {
        name: {key: value.replace("$", "$$") for key, value in environment(one).items()}
        for name, one in services().items()
    }
    assert {name: one.get("environment") or {} for name, one in found.items()} == read


def test_compose_takes_the_airflow_file_with_its_settings() -> None:
    found = config("-f", AIRFLOW_FILE, "--env-file", ".env.airflow", "--profile", "*")["services"]
    assert set(found) == set(services(AIRFLOW_FILE))
    seen = found["airflow-scheduler"]["environment"]
    assert {name: seen[name].replace("$$", "$") for name in SETTINGS} == SETTINGS


def test_another_port_and_password_reach_every_setting_that_needs_them() -> None:
    changed = {"AIRFLOW_PORT": "8181", "AIRFLOW_METADATA_PASSWORD": "other"}
    found = config("-f", AIRFLOW_FILE, "--env-file", ".env.airflow", **changed)["services"]
    seen = found["airflow-api-server"]["environment"]
    assert seen["AIRFLOW__API__BASE_URL"] == "http://127.0.0.1:8181"
    assert ":other@" in seen["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"]
    assert found["airflow-metadata"]["environment"]["POSTGRES_PASSWORD"] == "other"

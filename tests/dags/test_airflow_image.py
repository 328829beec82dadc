"""Airflow's containers and their image have what the DAGs need, and the settings of the Airflow without Docker."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from compose_files import AIRFLOW_FILE, KAFKA_FILE, ROOT, SETTINGS, compose, published_ports, services
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from local_servers.airflow_services import AirflowServices
from pipeline_settings import POSTGRES_DEFAULTS


def test_airflow_reaches_the_other_files_warehouse_over_the_shared_network() -> None:
    warehouse = compose(KAFKA_FILE)
    assert SETTINGS["PGHOST"] in warehouse["services"]
    assert {name: SETTINGS[name] for name in POSTGRES_DEFAULTS} == POSTGRES_DEFAULTS | {"PGHOST": SETTINGS["PGHOST"]}
    assert warehouse["networks"]["default"]["name"] == compose(AIRFLOW_FILE)["networks"]["default"]["name"]


def test_airflow_has_the_settings_of_the_one_without_docker(tmp_path: Path) -> None:
    native = AirflowServices(tmp_path / "airflow", 8080, tmp_path)._environment()
    theirs = {name: value for name, value in native.items() if name.startswith(("AIRFLOW__", "DBT_"))}
    # a container has folders, hosts and secrets of its own
    other_places = {
        "AIRFLOW__CORE__DAGS_FOLDER": "/opt/airflow/dags",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": "/opt/airflow/simple_auth_manager_passwords.json",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": "http://airflow-api-server:8080/execution/",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "postgresql+psycopg2://airflow:airflow@airflow-metadata/airflow",
        "AIRFLOW__API__SECRET_KEY": SETTINGS["AIRFLOW__API__SECRET_KEY"],
        "AIRFLOW__API_AUTH__JWT_SECRET": SETTINGS["AIRFLOW__API_AUTH__JWT_SECRET"],
        "DBT_TARGET_PATH": "/opt/airflow/dbt-target",
        "DBT_LOG_PATH": "/opt/airflow/dbt-logs",
    }
    # inside, it listens on all addresses and on the port that is published
    assert theirs.pop("AIRFLOW__API__HOST") == "127.0.0.1"
    assert theirs.pop("AIRFLOW__API__PORT") == "8080"
    ours = {name: value for name, value in SETTINGS.items() if name.startswith(("AIRFLOW__", "DBT_"))}
    of_the_image = {
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__SCHEDULER__ENABLE_HEALTH_CHECK": "True",
        "DBT_PROJECT_DIR": "/opt/airflow/dbt",
        "DBT_PROFILES_DIR": "/opt/airflow/dbt",
    }
    assert ours == theirs | other_places | of_the_image
    assert {"airflow-api-server", "airflow-metadata"} <= services(AIRFLOW_FILE).keys()
    assert published_ports(services(AIRFLOW_FILE)["airflow-api-server"]) == {8080: 8080}
    assert SETTINGS["AIRFLOW_PORT"] == "8080"
    assert SETTINGS["AIRFLOW_UI_PASSWORD"] == "airflow"


def test_the_settings_point_at_what_is_mounted() -> None:
    mounts = [mount.split(":")[1] for mount in services(AIRFLOW_FILE)["airflow-scheduler"]["volumes"]]
    for name in ("AIRFLOW__CORE__DAGS_FOLDER", "DBT_PROJECT_DIR", "DBT_PROFILES_DIR", "BATCH_DROP_DIR"):
        assert SETTINGS[name] in mounts
    # two levels above a DAG
    assert str(Path(SETTINGS["AIRFLOW__CORE__DAGS_FOLDER"]).parents[1] / "streaming") in mounts
    # a named volume takes its owner from the image
    image = (ROOT / "airflow/Dockerfile").read_text(encoding="utf-8")
    assert f"mkdir {SETTINGS['BATCH_DROP_DIR']}\n" in image


ASK_AIRFLOW = """
import json, os, sys
from airflow.configuration import conf
known = {
    f"AIRFLOW__{section}__{option}".upper()
    for section, described in conf.configuration_description.items() for option in described["options"]
}
print(json.dumps(sorted(name for name in os.environ if name.startswith("AIRFLOW__") and name not in known)))
from airflow.dag_processing.dagbag import BundleDagBag
folder = conf.get("core", "dags_folder")
bag = BundleDagBag(folder, bundle_path=folder, bundle_name="dags-folder")  # with the folder on the path, as in service
print(json.dumps([sorted(bag.dags), bag.import_errors]))
"""


def test_airflow_knows_every_setting_and_loads_the_dags_with_them(tmp_path: Path) -> None:
    here = {name: str(value).replace("/opt/airflow", str(ROOT / "airflow")) for name, value in SETTINGS.items()}
    here["DBT_PROJECT_DIR"] = here["DBT_PROFILES_DIR"] = str(ROOT / "dbt")
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "AIRFLOW_HOME": str(tmp_path), **here}
    done = subprocess.run([sys.executable, "-c", ASK_AIRFLOW], env=env, capture_output=True, text=True, check=True)
    unknown, loaded = (json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))
    assert unknown == []
    names = ["smart_access_batch_pipeline", "smart_access_maintenance", "smart_access_streaming_pipeline"]
    assert loaded == [names, {}]


def pins() -> dict[str, str]:
    text = (ROOT / "airflow/Dockerfile").read_text(encoding="utf-8")
    return dict(re.findall(r"([\w-]+)==([\w.]+)", text))


def test_the_image_has_the_versions_of_the_lock() -> None:
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    for name, version in pins().items():
        assert re.search(rf"^{name}=={re.escape(version)} ", lock, re.MULTILINE), name
    text = (ROOT / "airflow/Dockerfile").read_text(encoding="utf-8")
    [base] = re.findall(r"^FROM apache/airflow:slim-([\d.]+)-python3\.\d+$", text, re.MULTILINE)
    assert pins()["apache-airflow"] == base
    for name in ("airflow-scheduler", "airflow-api-server", "airflow-dag-processor", "airflow-migrate"):
        assert services(AIRFLOW_FILE)[name]["image"].endswith(f":{base}")


def test_the_image_is_built_from_files_that_the_build_is_given() -> None:
    text = (ROOT / "airflow/Dockerfile").read_text(encoding="utf-8")
    copied = re.findall(r"^COPY (\S+) ", text, re.MULTILINE)
    given = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert [f"!{file}" for file in copied] == [line for line in given if line.startswith("!")]


def installed_with(names: set[str]) -> set[str]:
    """The distributions that come with these, themselves and their dependencies at any depth."""
    seen: set[str] = set()
    waiting = [Requirement(name) for name in names]
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        if name in seen and not wanted.extras:
            continue
        seen.add(name)
        for text in metadata.requires(name) or []:
            needed = Requirement(text)
            extras = wanted.extras or {""}
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(needed)
    return seen


def imported_by(file: Path) -> set[str]:
    """The packages that a Python file imports, by their distributions' names; not the standard library."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name.split(".")[0] for name in names} - sys.stdlib_module_names


def with_what_it_imports(script: Path) -> set[Path]:
    """A script and the files beside it that it comes to import."""
    seen: set[Path] = set()
    waiting = [script]
    while waiting:
        file = waiting.pop()
        if file not in seen and file.exists():
            seen.add(file)
            waiting += [script.with_name(f"{name}.py") for name in imported_by(file)]
    return seen


def test_everything_that_the_dags_and_what_they_run_import_is_in_the_image() -> None:
    files = {*(ROOT / "airflow/dags").glob("*.py"), *with_what_it_imports(ROOT / "dbt/one_at_a_time.py")}
    for script in ("drop_folder.py", "apply_retention.py"):
        files |= with_what_it_imports(ROOT / "streaming" / script)
    packages = metadata.packages_distributions()
    there = installed_with(set(pins()))
    ours = {file.stem for file in files}
    for file in files:
        for name in imported_by(file) - ours:
            assert {canonicalize_name(one) for one in packages[name]} & there, f"{file.name} imports {name}"
    # by name: a dependency of Airflow's today need not be one tomorrow
    directly = {"psycopg2": "psycopg2-binary", "dbt": "dbt-core", "airflow": "apache-airflow"}
    directly["dotenv"] = "python-dotenv"
    imported = {name for file in files for name in imported_by(file)} - ours
    assert {directly.get(name, name) for name in imported} <= set(pins())

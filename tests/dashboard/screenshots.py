"""Takes the pictures of docs/img: every page of the dashboard, light, dark and on a telephone.

    scripts/screenshots [FOLDER]

Of a simulated fleet on a PostgreSQL of its own. The pictures are reduced to 128 colours: they are to be looked at in a
repository.
"""

from __future__ import annotations

import io
import sys
import tempfile
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "streaming"), str(Path(__file__).resolve().parent)]

from browser import Visitor, browser_path, dashboard_server, open_browser  # noqa: E402
from PIL import Image  # noqa: E402
from shown_fleet import HEALTH_INTERVAL, PAGES, fill, run_dbt  # noqa: E402

import pipeline_settings  # noqa: E402
from local_servers import free_port  # noqa: E402
from local_servers.postgres_server import PostgresServer  # noqa: E402

LOOKS = {
    "light": {"width": 1440, "height": 900, "scheme": "light"},
    "dark": {"width": 1440, "height": 900, "scheme": "dark"},
    "narrow": {"width": 390, "height": 844, "scheme": "light"},
}


def main() -> int:
    if not browser_path():
        print("no Chromium here: apt install chromium", file=sys.stderr)
        return 1
    pictures = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs/img"
    pictures.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="smart-access-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        postgres = PostgresServer(folder / "postgres", free_port())
        postgres.start()
        try:
            environment = {**postgres.environment(), "HEALTH_CHECK_INTERVAL": str(HEALTH_INTERVAL)}
            with closing(postgres.connect(postgres.database)) as connection:
                connection.autocommit = False
                pipeline_settings.apply_schema(connection)
                connection.autocommit = True
                fill(connection, datetime.now(UTC) - timedelta(days=3))
            print("running dbt …", flush=True)
            run_dbt(environment, folder / "dbt")
            take(environment, pictures)
        finally:
            postgres.stop()
    return 0


def take(environment: dict[str, str], pictures: Path) -> None:
    paths = {name: "/" if name == "overview" else f"/{name}" for name in PAGES}
    paths["device"] = "/devices?device=draining&range=7d"
    with dashboard_server(environment) as address, open_browser() as browser:
        for look, options in LOOKS.items():
            for name, path in paths.items():
                with closing(Visitor(browser, address, **options)) as visitor:
                    visitor.open(path)
                    visitor.page.wait_for_timeout(1000)  # charts fade in
                    picture = Image.open(io.BytesIO(visitor.page.screenshot()))
                file = pictures / f"{name}-{look}.png"
                picture.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(file, optimize=True)
                print(file.relative_to(ROOT) if file.is_relative_to(ROOT) else file, flush=True)


if __name__ == "__main__":
    sys.exit(main())

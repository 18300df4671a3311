import os
import subprocess
import sys
from pathlib import Path

import pytest

from wattledger.home import HomeError, resolve_home

pytestmark = pytest.mark.unit


def test_the_flag_wins_over_the_variable() -> None:
    home = resolve_home({"WATTLEDGER_HOME": "/b"}, "/a")
    assert (home.root, home.origin) == (Path("/a"), "--home")


def test_the_variable_wins_over_the_default() -> None:
    assert resolve_home({"WATTLEDGER_HOME": "/b", "XDG_DATA_HOME": "/c"}).root == Path("/b")


def test_an_empty_variable_counts_as_unset() -> None:
    assert resolve_home({"WATTLEDGER_HOME": ""}).origin.startswith(("the default", "XDG"))


def test_root_keeps_its_state_under_var_lib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert resolve_home({"XDG_DATA_HOME": "/c"}).root == Path("/var/lib/wattledger/default")


@pytest.mark.parametrize(
    ("env", "root"),
    [
        ({"HOME": "/h"}, "/h/.local/share/wattledger"),
        ({"HOME": "/h", "XDG_DATA_HOME": "/c"}, "/c/wattledger"),
        ({"HOME": "/h", "XDG_DATA_HOME": "relative"}, "/h/.local/share/wattledger"),
    ],
)
def test_a_user_keeps_state_in_the_data_folder_of_the_xdg_rules(
    env: dict[str, str], root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert resolve_home(env).root == Path(root)


def test_creating_twice_is_creating_once(tmp_path: Path) -> None:
    home = resolve_home({}, tmp_path / "deep" / "home").create().create()
    assert home.log.is_dir()
    assert home.secrets.stat().st_mode & 0o777 == 0o700


def test_an_existing_folder_keeps_its_mode(tmp_path: Path) -> None:
    tmp_path.chmod(0o750)
    resolve_home({}, tmp_path).create()
    assert tmp_path.stat().st_mode & 0o777 == 0o750


def test_a_file_in_the_place_of_the_home_is_named(tmp_path: Path) -> None:
    (tmp_path / "home").touch()
    with pytest.raises(HomeError, match=r"home \(--home\) is not a folder; name another with --home"):
        resolve_home({}, tmp_path / "home").create()


def test_a_file_in_the_place_of_a_parent_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HomeError, match=r"cannot create .*file/home .*Not a directory"):
        resolve_home({}, tmp_path / "file" / "home").create()


def test_a_folder_without_write_rights_is_named(tmp_path: Path) -> None:
    """Root may write anywhere, so the question is asked by a process that has given that up."""
    folder = tmp_path / "sealed"
    folder.mkdir(mode=0o555)
    script = (
        "import ctypes, os, sys, encodings.idna\n"
        "from wattledger.home import resolve_home, HomeError\n"
        "if os.geteuid() == 0:\n"
        "    for capability in (0, 1, 2):  # CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH\n"
        "        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # from the bounding set, so that exec loses it\n"
        "    if len(sys.argv) == 2:\n"
        "        os.execv(sys.executable, [sys.executable, __file__, sys.argv[1], 'again'])\n"
        "try:\n"
        "    resolve_home({}, sys.argv[1]).create()\n"
        "except HomeError as error:\n"
        "    print(error)\n"
    )
    (tmp_path / "ask.py").write_text(script, encoding="utf-8")
    repository = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, tmp_path / "ask.py", folder],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(repository)},
    )
    assert f"cannot write to {folder} (--home): Permission denied; give uid" in done.stdout

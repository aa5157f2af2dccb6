"""The directories of compiled kernels: which one a process gets, and which of the others are removed."""

import fcntl
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cpu_kernels import code_cache
from cpu_kernels.code_cache import UNUSED_SECONDS, directory, hold, prune

OLD, OTHER = "kernels-0123456789abcdef", "kernels-fedcba9876543210"


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = tmp_path / "hetero"
    made.mkdir()
    return made


@pytest.fixture(autouse=True)
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Descriptors that `directory` keeps until the process ends are closed."""
    descriptors: list[int] = []

    def kept(path: Path) -> int:
        descriptors.append(hold(path))
        return descriptors[-1]

    monkeypatch.setattr(code_cache, "hold", kept)
    yield
    for descriptor in descriptors:
        os.close(descriptor)


def age(path: Path, seconds: float = UNUSED_SECONDS + 60) -> None:
    used = time.time() - seconds
    os.utime(path, (used, used), follow_symlinks=False)


def filled(path: Path, mode: int = 0o700) -> Path:
    """A directory of kernels, unused for long."""
    (path / "package").mkdir(parents=True)
    (path / "package" / "kernel.nbi").write_text("code")
    path.chmod(mode)
    age(path)
    return path


def test_what_nobody_uses_is_removed(base: Path) -> None:
    filled(base / OLD)
    used = filled(base / OTHER)
    age(used, UNUSED_SECONDS - 60)
    mine = directory()
    assert sorted(base.iterdir()) == sorted([mine, used])
    assert mine.parent == base and mine.stat().st_mode & 0o777 == 0o700
    age(mine)
    os.utime(mine / ".", (1, 1))
    assert directory() == mine and mine.stat().st_mtime > time.time() - 60, "it is used now"


def test_a_directory_in_use_stays_however_old(base: Path) -> None:
    descriptor = hold(base / OLD)
    age(base / OLD)
    prune(base)
    assert (base / OLD).exists()
    os.close(descriptor)
    prune(base)
    assert not (base / OLD).exists()


def other_mode(path: Path) -> None:
    filled(path, 0o755)


def a_file(path: Path) -> None:
    path.write_text("mine")
    path.chmod(0o700)
    age(path)


def other_owner(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root gives directories away")
    os.chown(filled(path), 12345, -1)


def a_link(path: Path) -> None:
    path.symlink_to(filled(path.parent.parent / OLD))
    age(path)


@pytest.mark.parametrize("make", [other_mode, a_file, other_owner, a_link])
def test_what_is_not_ours_stays(make: Callable[[Path], None], base: Path) -> None:
    make(base / OLD)
    prune(base)
    assert os.path.lexists(base / OLD)
    assert make is a_file or (base / OLD / "package" / "kernel.nbi").exists()


@pytest.mark.parametrize(
    "name", ["kernels-0123456789abcde", "kernels-0123456789ABCDEF", "kernels", "chat_history", OLD + "0"]
)
def test_other_names_stay(name: str, base: Path) -> None:
    filled(base / name)
    prune(base)
    assert (base / name).exists()


def test_links_inside_are_removed_and_not_followed(base: Path, tmp_path: Path) -> None:
    kept = filled(tmp_path / "kept")
    (filled(base / OLD) / "link").symlink_to(kept)
    age(base / OLD)
    prune(base)
    assert not (base / OLD).exists() and (kept / "package" / "kernel.nbi").exists()


def test_a_process_that_starts_while_its_directory_is_removed_makes_a_new_one(base: Path) -> None:
    """The other process holds the lock, removes, and lets go: what was opened before is not what is there then."""
    path, got = filled(base / OLD), list[int]()
    removing = os.open(path, os.O_RDONLY)
    fcntl.flock(removing, fcntl.LOCK_EX)
    starting = threading.Thread(target=lambda: got.append(hold(path)))
    starting.start()
    while path.stat().st_mtime < time.time() - 60:  # it has been opened
        time.sleep(0.001)
    shutil.rmtree(path)
    os.close(removing)
    starting.join()
    assert os.path.samestat(path.stat(), os.fstat(got[0])) and list(path.iterdir()) == []
    os.close(got[0])


def test_a_directory_that_stays_locked_is_given_up(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_cache, "_PAUSE", 0)
    path = filled(base / OLD)
    descriptor = os.open(path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    monkeypatch.setattr(code_cache, "_key", lambda: OLD.removeprefix("kernels-"))
    assert directory().parent == Path(tempfile.gettempdir())
    os.close(descriptor)
    assert (path / "package" / "kernel.nbi").exists()


@pytest.mark.parametrize("make", [a_link, a_file, other_owner])
def test_code_of_others_is_not_used(make: Callable[[Path], None], base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_cache, "_key", lambda: OLD.removeprefix("kernels-"))
    make(base / OLD)
    assert directory().parent == Path(tempfile.gettempdir())
    assert os.path.lexists(base / OLD)


def test_without_a_home_kernels_are_compiled_for_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert directory().parent == Path(tempfile.gettempdir())

"""How Transformers' source distribution is fetched, without a network."""

import io
import subprocess
import tarfile
from pathlib import Path

import pytest
import transformers

from tests.common import transformers_source


def pip_that_saves(members):
    """In place of `subprocess.run`: pip, which saves an archive with these members."""

    def run(command, **options):
        folder = next(part for part in command if part.startswith("--dest=")).removeprefix("--dest=")
        with tarfile.open(Path(folder, f"transformers-{transformers.__version__}.tar.gz"), "w:gz") as archive:
            for name, text in members.items():
                member = tarfile.TarInfo(name)
                member.size = len(text)
                archive.addfile(member, io.BytesIO(text))
        return subprocess.CompletedProcess(command, 0, "", "")

    return run


def test_one_file_and_nothing_else_leaves_the_archive(tmp_path, monkeypatch):
    name = f"transformers-{transformers.__version__}/tests/{transformers_source.FILE}"
    members = {name: b"tests = 1\n", "../outside.py": b"", str(tmp_path / "outside.py"): b"", "setup.py": b""}
    monkeypatch.setattr(subprocess, "run", pip_that_saves(members))
    path = tmp_path / "cache" / "file.py"
    transformers_source.fetch(path)
    assert path.read_bytes() == b"tests = 1\n"
    assert [one.name for one in tmp_path.rglob("*") if one.is_file()] == ["file.py"]


def test_skipped_with_the_reason_where_it_cannot_be_had(tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "Looking in indexes\nERROR: No matching distribution found\n")
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: failed)
    with pytest.raises(pytest.skip.Exception, match="No matching distribution found"):
        transformers_source.fetch(tmp_path / "file.py")
    assert not (tmp_path / "file.py").exists()


def test_the_cache_is_outside_the_repository(tmp_path, monkeypatch):
    repository = Path(__file__).resolve().parents[2]
    assert repository not in transformers_source.cached_file().resolve().parents
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert tmp_path in transformers_source.cached_file().parents

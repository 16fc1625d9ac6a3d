"""`deepcluster run` looks once at what does not change: the same answers as DVC's, for fewer looks."""

import pytest

from deepcluster.memo import looked_at_once


class Fs:
    protocol = "local"


class Dep:
    protocol, looks = "local", 0

    def __init__(self, path):
        self.def_path = self.fs_path = path


@pytest.fixture
def dvc(monkeypatch):
    """What was read or hashed, in order."""
    import dvc.dependency.param as params
    from dvc.dependency import Dependency

    looks = []

    def load(path, fs, **options):
        looks.append(path)
        return {"cluster": {"k": len(looks)}}

    def get_hash(dependency):
        looks.append(dependency.def_path)
        return len(looks)

    monkeypatch.setattr(params, "load_path", load)
    monkeypatch.setattr(Dependency, "get_hash", get_hash)
    return params, Dependency, looks


def test_params_are_read_once_and_what_one_stage_does_to_them_no_other_sees(dvc):
    params, _, looks = dvc
    with looked_at_once():
        params.load_path("/p/params.yaml", Fs())["cluster"]["k"] = 99
        assert params.load_path("/p/params.yaml", Fs()) == {"cluster": {"k": 1}}
        params.load_path("/p/other.json", Fs())
        params.load_path("/p/other.json", Fs())
    assert looks == ["/p/params.yaml", "/p/other.json", "/p/other.json"]
    assert params.load_path("/p/params.yaml", Fs()) == {"cluster": {"k": 4}}


def test_code_is_hashed_once_and_artifacts_each_time(dvc):
    _, dependency, looks = dvc
    code, data = Dep("deepcluster/models"), Dep("data/dataset/images.zarr")
    with looked_at_once():
        assert [dependency.get_hash(code), dependency.get_hash(code)] == [1, 1]
        assert [dependency.get_hash(data), dependency.get_hash(data)] == [2, 3]
    assert dependency.get_hash(code) == 4
    assert looks == [code.def_path, data.def_path, data.def_path, code.def_path]


def test_a_lock_is_parsed_again_only_once_its_file_is_another(monkeypatch, tmp_path):
    from dvc.dvcfile import Lockfile

    looks = []
    monkeypatch.setattr(Lockfile, "load", lambda lockfile, **options: looks.append(options) or len(looks))
    lock = Lockfile.__new__(Lockfile)
    lock.path = str(tmp_path / "dvc.lock")
    with looked_at_once():
        assert [lock.load(), lock.load()] == [1, 2]  # there is none
        (tmp_path / "dvc.lock").write_text("a")
        assert [lock.load(), lock.load(), lock.load(round_trip=True), lock.load()] == [3, 3, 4, 3]
        (tmp_path / "new").write_text("b")
        (tmp_path / "new").replace(tmp_path / "dvc.lock")
        assert [lock.load(), lock.load()] == [5, 5]

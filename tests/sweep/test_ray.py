"""Peers through Ray, where it is installed."""

import pytest

ray = pytest.importorskip("hydra_plugins.hydra_ray_launcher", reason="pip install 'whet[ray]'")


def test_peers_through_ray(tmp_path, monkeypatch):
    from tests.sweep.test_any_app import CONFIG, SPHERE, run, trials

    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "config.yaml").write_text(CONFIG)
    (tmp_path / "app.py").write_text(SPHERE)
    monkeypatch.chdir(tmp_path)
    run("hydra/launcher=ray", "hydra.sweeper.n_jobs=2", "hydra.sweeper.n_trials=4")
    assert [trial.state.name for trial in trials()] == ["COMPLETE"] * 4

"""Any Hydra app's sweep, as it is documented for Hydra's own Optuna plugin, and what that one can't do."""

import os
import signal
import time
from pathlib import Path

import optuna
import psutil
import pytest
from omegaconf import OmegaConf
from tests import forked

SPHERE = """
import os, time
from pathlib import Path
import hydra
from hydra.core.hydra_config import HydraConfig

@hydra.main(version_base=None, config_path="conf", config_name="config")
def sphere(cfg):
    with Path("calls.txt").open("a") as file:
        file.write(f"{HydraConfig.get().job.num} {cfg.x} {cfg.y} {os.getpid()} {os.environ.get('OMP_NUM_THREADS')}\\n")
    end = time.monotonic() + 60
    while len({line.split()[3] for line in Path("calls.txt").open()}) < cfg.get("peers", 1) and time.monotonic() < end:
        time.sleep(0.01)
    if cfg.get("hang", -1) == HydraConfig.get().job.num:
        time.sleep(600)
    if cfg.get("error", False) or cfg.x in cfg.get("bad", []):
        raise RuntimeError(f"cfg.error is True")
    if cfg.get("crash", -1) == cfg.y:
        os.kill(os.getpid(), 9)
    return cfg.x**2 + cfg.y**2

if __name__ == "__main__":
    sphere()
"""
CONFIG = """
defaults:
  - override hydra/sweeper: optuna
  - override hydra/sweeper/sampler: tpe
hydra:
  sweeper:
    sampler:
      seed: 123
    direction: minimize
    study_name: sphere
    storage: null
    n_trials: 20
    n_jobs: 1
    params:
      x: range(-5.5, 5.5, step=0.5)
      y: choice(-5 ,0 ,5)
x: 1
y: 1
z: 100
"""
MULTI = """
import hydra

@hydra.main(version_base=None, config_path="conf", config_name="config")
def binh_and_korn(cfg):
    x, y = cfg.x, cfg.y
    v0 = 4 * x**2 + 4 * y**2
    v1 = (x - 5) ** 2 + (y - 5) ** 2
    return v0, v1

if __name__ == "__main__":
    binh_and_korn()
"""


@pytest.fixture
def app(tmp_path, monkeypatch):
    """A folder with the documented example."""
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "config.yaml").write_text(CONFIG)
    (tmp_path / "app.py").write_text(SPHERE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return tmp_path


def run(*arguments, code=0):
    done = forked.run("app.py", "-m", "hydra.sweep.dir=sweep", *arguments)
    assert done.returncode == code, done.stderr
    return done


def results():
    return OmegaConf.to_container(OmegaConf.load("sweep/optimization_results.yaml"))


def calls():
    return [line.split() for line in Path("calls.txt").read_text().splitlines()]


def trials(name="sphere"):
    return optuna.load_study(study_name=name, storage="sqlite:///sweep/study.db").trials


def test_space_in_the_config(app):
    run("hydra.sweeper.n_trials=12")
    found = trials()
    assert len(found) == 12
    best = min(trial.value for trial in found)
    assert results() == {"name": "optuna", "best_params": results()["best_params"], "best_value": best}
    params = results()["best_params"]
    assert params["x"] ** 2 + params["y"] ** 2 == best
    points = {(trial.params["x"], trial.params["y"]) for trial in found}
    assert len(calls()) == len(points), "equal points run once"
    for trial in found:
        assert trial.value == trial.params["x"] ** 2 + trial.params["y"] ** 2
        assert trial.params["x"] * 2 == int(trial.params["x"] * 2)
        assert (Path("sweep") / str(trial.number)).is_dir() == ("reused_from" not in trial.user_attrs)


def test_space_on_the_command_line(app):
    run("x=interval(-5.0,5.0)", "y=int(interval(0,10))", "hydra.sweeper.n_trials=6", "z=3")
    assert len(trials()) == 6
    assert all(isinstance(trial.params["y"], int) for trial in trials())
    assert all(-5 <= trial.params["x"] <= 5 for trial in trials())
    run("x=2", "hydra.sweeper.study_name=other", "hydra.sweeper.n_trials=3")
    assert {tuple(trial.params) for trial in trials("other")} == {("y",)}
    assert {float(x) for _, x, *_ in calls()[6:]} == {2.0}


def test_grid(app):
    run("hydra/sweeper/sampler=grid", "x=range(-1,1)", "y=choice(0,2)", "hydra.sweeper.n_trials=2")
    points = sorted((trial.params["x"], trial.params["y"]) for trial in trials())
    assert points == [(x, y) for x in (-1, 0, 1) for y in (0, 2)], "all points, whatever n_trials says"
    assert results()["best_value"] == 0


@pytest.mark.parametrize("sampler", ["random", "cmaes", "nsgaii", "motpe", "qmc"])
def test_every_sampler_searches_in_its_own_way(sampler, app):
    more = ["x=interval(-5.0,5.0)", "y=interval(-5.0,5.0)", "hydra.sweeper.n_trials=4"]
    run(
        f"hydra/sweeper/sampler={sampler}",
        *more,
        "hydra.sweeper.sampler.seed=1",
    )
    kinds = {
        "tpe": "TPE",
        "motpe": "TPE",
        "cmaes": "CmaEs",
        "random": "Random",
        "nsgaii": "NSGAII",
        "qmc": "QMC",
    }
    told = OmegaConf.to_container(OmegaConf.create(Path("sweep/sweep.json").read_text()))
    assert told["sampler"] == f"{kinds[sampler]}Sampler"
    assert len({tuple(trial.params.values()) for trial in trials()}) == 4


def test_several_objectives(app):
    (app / "app.py").write_text(MULTI)
    run(
        "x=interval(0.0,5.0)",
        "y=interval(0.0,3.0)",
        "hydra.sweeper.direction=[minimize,minimize]",
        "hydra.sweeper.n_trials=6",
    )
    found = results()
    assert found["name"] == "optuna"
    values = [trial.values for trial in trials()]
    front = [
        v
        for v in values
        if not any(all(a <= b for a, b in zip(w, v, strict=True)) and w != v for w in values)
    ]
    assert sorted(map(tuple, front)) == sorted(tuple(item["values"]) for item in found["solutions"])


def test_custom_search_space(app):
    (app / "space.py").write_text(
        "def configure(cfg, trial):\n"
        "    x = trial.params['x']\n"
        "    trial.suggest_float('z', x - cfg.max_z, x + cfg.max_z)\n"
        "    trial.suggest_float('+w', 0.0, 1.0)\n"
    )
    os.environ["PYTHONPATH"] = str(app)
    try:
        run("hydra.sweeper.custom_search_space=space.configure", "+max_z=10", "hydra.sweeper.n_trials=4")
        assert all(abs(t.params["z"] - t.params["x"]) <= 10 and 0 <= t.params["+w"] <= 1 for t in trials())
        done = run(
            "hydra.sweeper.custom_search_space=space.configur",
            "+max_z=10",
            "hydra.sweeper.study_name=b",
            code=1,
        )
        assert "custom_search_space=space.configur" in done.stderr
    finally:
        del os.environ["PYTHONPATH"]


# ---------------------------------------------------------------- what is new


def test_the_same_command_goes_on_to_the_total(app):
    space = ["x=interval(-5.0,5.0)"]
    run(*space, "hydra.sweeper.n_trials=3")
    run(*space, "hydra.sweeper.n_trials=3")
    assert len(calls()) == 3
    run(*space, "hydra.sweeper.n_trials=5")
    assert [int(number) for number, *_ in calls()] == [0, 1, 2, 3, 4]
    run(*space, "hydra.sweeper.n_trials=5", "hydra.sweeper.more=2")
    assert len(trials()) == 7


def test_failures_do_not_end_the_sweep(app):
    run("x=choice(1,2,3,4,5,6)", "y=0", "+bad=[3]", "hydra/sweeper/sampler=grid")
    states = {trial.params["x"]: trial.state.name for trial in trials()}
    assert states == {x: "FAIL" if x == 3 else "COMPLETE" for x in range(1, 7)}
    (failed,) = [trial for trial in trials() if trial.state.name == "FAIL"]
    assert failed.user_attrs["reason"] == "RuntimeError: cfg.error is True"
    assert "RuntimeError" in (Path("sweep") / failed.user_attrs["run"] / "traceback.txt").read_text()


def test_the_sweep_ends_after_failures_that_are_alike(app):
    done = run("+error=true", "hydra.sweeper.same_failures=2", code=1)
    assert "the last 2 trials failed alike: RuntimeError: cfg.error is True" in done.stderr
    assert [trial.state.name for trial in trials()][:3] == ["FAIL", "FAIL", "WAITING"]


def test_a_rate_of_failures_may_end_it(app):
    run("+error=true", "hydra.sweeper.max_failure_rate=0.0", code=1)
    assert [trial.state.name for trial in trials()][:2] == ["FAIL", "WAITING"]


def test_peers_work_at_the_same_time(app):
    run("hydra.sweeper.n_jobs=2", "hydra.sweeper.n_trials=6", "+peers=2", "x=interval(-5.0,5.0)")
    assert len(trials()) == 6
    assert len({pid for *_, pid, _ in calls()}) == 2
    assert {threads for *_, threads in calls()} <= {"1"}, "the cores are divided"
    spans = [(t.datetime_start, t.datetime_complete) for t in trials()]
    overlap = [(a, b) for a in spans for b in spans if a < b and b[0] < a[1]]
    assert overlap
    firsts = [trial.params["x"] for trial in trials()]
    assert len(set(firsts)) == 6, "their samplers are seeded apart"


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_peers_through_any_launcher(launcher, app):
    run(
        f"hydra/launcher={launcher}",
        "hydra.sweeper.n_jobs=2",
        "hydra.sweeper.n_trials=4",
        "+peers=2",
        "x=interval(-5.0,5.0)",
    )
    assert [trial.state.name for trial in trials()] == ["COMPLETE"] * 4
    assert len({pid for *_, pid, _ in calls()}) == 2


def test_a_trial_in_a_process_of_its_own_may_crash(app):
    run("hydra.sweeper.isolate=true", "x=1", "y=choice(0,1,2)", "+crash=1", "hydra/sweeper/sampler=grid")
    states = {trial.params["y"]: trial.state.name for trial in trials()}
    assert states == {0: "COMPLETE", 1: "FAIL", 2: "COMPLETE"}
    assert len({pid for *_, pid, _ in calls()}) == 3
    assert "SIGKILL" in next(t.user_attrs["reason"] for t in trials() if t.state.name == "FAIL")


def test_killed_and_started_again(app):
    first = forked.start(
        "app.py",
        "-m",
        "hydra.sweep.dir=sweep",
        "+hang=1",
        "x=interval(-5.0,5.0)",
        "hydra.sweeper.n_trials=4",
    )
    while not Path("calls.txt").is_file() or len(calls()) < 2:
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    run("+hang=-1", "x=interval(-5.0,5.0)", "hydra.sweeper.n_trials=4")
    assert [trial.state.name for trial in trials()] == ["COMPLETE"] * 4
    again = [x for number, x, *_ in calls() if number == "1"]
    assert len(again) == 2 and len(set(again)) == 1, "the killed trial comes again with its parameters"


def test_a_trial_in_a_process_of_its_own_does_not_outlive_its_peer(app):
    """Whoever takes it over has its folder alone."""
    peer = forked.start(
        "app.py",
        "-m",
        "hydra.sweep.dir=sweep",
        "hydra.sweeper.isolate=true",
        "hydra.sweeper.n_trials=1",
        "+hang=0",
    )
    while not Path("calls.txt").is_file() or not calls():
        time.sleep(0.05)
    trial = psutil.Process(int(calls()[0][3]))
    assert trial.is_running() and trial.pid != peer.pid
    peer.send_signal(signal.SIGKILL)
    peer.wait()
    psutil.wait_procs([trial], timeout=60)
    assert not trial.is_running() or trial.status() == psutil.STATUS_ZOMBIE


def test_a_signal_ends_a_sweep_whose_trials_have_processes_of_their_own(app):
    """The trial dies of it, having no handler; it isn't counted as failed, and waits."""
    peer = forked.start(
        "app.py",
        "-m",
        "hydra.sweep.dir=sweep",
        "hydra.sweeper.isolate=true",
        "hydra.sweeper.n_trials=2",
        "+hang=0",
    )
    while not Path("calls.txt").is_file() or not calls():
        time.sleep(0.05)
    peer.send_signal(signal.SIGTERM)
    assert peer.wait(60) != 0
    assert [trial.state.name for trial in trials()] == ["WAITING", "WAITING"]


def test_known_points_come_first(app):
    run(
        "hydra.sweeper.start=true",
        "hydra.sweeper.enqueue=[{x: 2.5, y: 5}]",
        "hydra.sweeper.n_trials=3",
        "y=choice(1,5)",
    )
    assert [tuple(trial.params.values()) for trial in trials()][:2] == [(1.0, 1), (2.5, 5)]
    done = run("hydra.sweeper.enqueue=[{xx: 1}]", "hydra.sweeper.study_name=b", code=1)
    assert "did you mean x?" in done.stderr


def test_repeats_are_averaged(app):
    (app / "app.py").write_text(SPHERE.replace("return cfg.x**2", "return cfg.seed * 10 + cfg.x**2"))
    run("+seed=3", "hydra.sweeper.repeats=3", "x=choice(0,1)", "y=0", "hydra/sweeper/sampler=grid")
    found = {trial.params["x"]: trial for trial in trials()}
    assert found[0].user_attrs["values"] == [30, 40, 50]
    assert found[0].value == 40
    assert found[1].value == 41
    assert found[0].user_attrs["std"] == pytest.approx(10)


def test_an_app_may_report_and_be_pruned(app):
    (app / "app.py").write_text(
        SPHERE.replace(
            "    return cfg.x**2",
            "    from whet.sweep.current import report\n    for step in range(1, 5):\n        report(cfg.x, step)\n    return cfg.x**2",
        )
    )
    run(
        "x=range(1,8)",
        "y=0",
        "hydra/sweeper/sampler=grid",
        "hydra/sweeper/pruner=median",
        "hydra.sweeper.pruner.n_startup_trials=2",
    )
    found = {trial.params["x"]: trial for trial in trials()}
    assert [found[x].state.name for x in range(1, 8)] == ["COMPLETE"] * 2 + ["PRUNED"] * 5
    assert list(found[5].intermediate_values) == [1]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["x=interval(1,0)"], "x=interval(1,0)"),
        (["nosuch=interval(0,1)"], "nosuch"),
        (["hydra.sweeper.n_trials=0"], "hydra.sweeper.n_trials=0"),
        (["hydra.sweeper.storage=redis://x"], "hydra.sweeper.storage"),
        (["hydra.sweeper.direction=auto"], "hydra.sweeper.direction=auto"),
        (["x=1", "y=2"], "nothing is searched"),
        (
            ["hydra/sweeper/pruner=median", "hydra.sweeper.direction=[minimize,minimize]"],
            "hydra/sweeper/pruner",
        ),
    ],
)
def test_bad_input_is_told_before_any_trial(more, told, app):
    done = run(*more, code=1)
    assert told in done.stderr
    assert not Path("calls.txt").exists()

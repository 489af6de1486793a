"""What the command line says where a method and another setting don't go together."""

import pytest

from whet.cli.main import main

REFUSED = {
    "no room": (
        ["peft=prompt", "task.max_length=600"],
        "task.max_length=600: the model has 600 positions, and peft.tokens takes 20 of them: set 580",
    ),
    "prefix and packing": (
        ["peft=prefix", "engine.packing=on"],
        "engine.packing=on: bert can't be packed: it runs prefix_sdpa attention, not sdpa",
    ),
    "prompt and packing": (
        ["peft=prompt", "engine.packing=on"],
        "engine.packing=on: bert can't be packed: its blocks",
    ),
    "eager prefix": (
        ["peft=prefix", "model.attention=eager"],
        "model.attention=eager: is eager, and a prefix needs",
    ),
    "no part": (["peft=mam", "peft.parts=[]"], "peft.parts=[]: lists no method"),
    "a wrong part": (
        ["peft=mam", "peft.parts=[{_target_: whet.peft.lora.lora, q: 3}]"],
        "peft.parts.0.q=3: unknown key; choices: alpha, dropout, r, targets",
    ),
    "no time": (["peft=adalora", "peft.warmup=0.8"], "peft.warmup=0.8: of 2 updates, 1 are peft.final"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, workplace, quick, capsys):
    keys, told = REFUSED[case]
    assert main(["train", *quick, *keys]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("whet: ") and told in line


def test_a_run_with_soft_tokens_is_loaded_and_predicts(workplace, quick, capsys):
    assert (
        main(["train", *quick, "peft=p_tuning", "peft.encoder=mlp", "engine.duration=1st", "name=run"]) == 0
    )
    capsys.readouterr()
    assert main(["predict", "run=outputs/runs/run", "input=own.csv"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 60

"""The pages say what is so: their commands run, their versions are those that are installed and pinned."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from tested_versions import axolotl_versions, check_installed, llamafactory_versions, pins, versions

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs" / "integrations").glob("*.md"))
NEEDS = {"accelerate_loop": "accelerate", "peft_head": "peft", "trl_train": "trl", "trl_fused_head": "trl"}
# What an example must print, besides ending well.
PRINTS = {
    "plain_loop": r"step 16: loss 0\.\d+, margins \[",
    "accelerate_loop": r"step 8: loss 0\.\d+, margins \[",
    "hf_trainer": r"eval_rewards/margins/brevity",
    "trl_train": r"Model saved to ",
    "trl_fused_head": r"loss 0\.\d+ -> 0\.\d+",
    "peft_head": r"loss 0\.\d+ -> 0\.\d+",
}


def commands():
    """Every line of a bash block that starts an example, once; those in folders run in environments of their own."""
    found = {}
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
            for line in block.splitlines():
                if re.search(r"examples/\w+\.py", line):
                    found.setdefault(line.strip(), page.name)
    return found


def example_of(command):
    return re.search(r"examples/(\w+)\.py", command)[1]


def test_every_example_has_a_command_on_a_page():
    shown = {example_of(command) for command in commands()}
    examples = {path.stem for path in (ROOT / "examples").glob("*.py")} - {"tiny"}
    assert shown == examples == set(PRINTS)


@pytest.mark.slow
@pytest.mark.parametrize("command", sorted(commands()))
def test_the_command_on_the_page_runs(command, tmp_path):
    name = example_of(command)
    pytest.importorskip(NEEDS.get(name, "transformers"), reason=f"{NEEDS.get(name)} is not installed")
    words = shlex.split(command.replace("runs/", f"{tmp_path}/"))
    launcher = {"python": [sys.executable], "accelerate": [sys.executable, "-m", "accelerate.commands.accelerate_cli"]}
    words = [*launcher[words[0]], *words[1:]]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "hf"),
    }
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    if "--num_processes 2" in command:  # half as many steps, of twice as many samples; one process speaks
        lines = re.findall(r"^step (\d): loss 0\.\d+, margins \[", done.stdout, re.M)
        assert lines == ["1", "2", "3", "4"], done.stdout[-3000:]
        return
    assert re.search(PRINTS[name], done.stdout), done.stdout[-3000:]


def test_examples_that_may_run_on_several_ranks_end_as_ranks_do():
    """Half of the ranks that ended by end_training() hung, DDP's reducer being the last that held the group."""
    for name in set(PRINTS) - {"plain_loop"}:  # which refuses several processes
        source = (ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8")
        assert re.search(r'^if __name__ == "__main__":\n    entry\(\w+\)', source, re.M), name
        assert ".end_training(" not in source and "destroy_process_group(" not in source, name


@pytest.mark.parametrize("page", [p for p in PAGES if p.stem not in ("README", "versions")], ids=lambda page: page.name)
def test_a_page_says_what_to_install_before_its_first_example(page):
    text = "\n".join(re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.S))
    installing = re.search(r'^(pip install -e "\.\[|make venv-|\S+/pip install -r requirements/)', text, re.M)
    example = re.search(r"examples/", text)
    assert installing and example and installing.start() < example.start()
    for path in re.findall(r"examples/[\w/]+\.\w+|requirements/[\w.]+", text):
        assert (ROOT / path).is_file(), f"{page.name} names {path}"
    for extra in re.findall(r'pip install .*-e "\.\[([\w,]+)\]"', page.read_text(encoding="utf-8")):
        pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        assert all(re.search(rf"^{name} = ", pyproject, re.M) for name in extra.split(","))
    for target in re.findall(r"^make ([\w-]+)", text, re.M):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M), target


@pytest.mark.distributed
@pytest.mark.slow
def test_the_block_of_the_clusters_page_runs_as_it_stands(tmp_path):
    """In a folder that holds the examples alone, as a shell would run it; its data and results go there."""
    page = (ROOT / "docs" / "integrations" / "clusters.md").read_text(encoding="utf-8")
    install, *lines = re.search(r"```bash\n(.*?)```", page, re.S)[1].splitlines()
    assert install.startswith("pip install -e") and len(lines) == 2
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, module in (("python", ""), ("torchrun", "-m torch.distributed.run")):
        (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} -P {module} "$@"\n')
        (programs / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")]),
        "OMP_NUM_THREADS": "1",
    }
    command = ["bash", "-e", "-c", "\n".join(lines)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("saved in runs/cluster/ddp") == 1, "one process speaks"
    run = json.loads((tmp_path / "runs" / "cluster" / "ddp" / "amopo_run.json").read_text())
    assert run["settings"]["world_size"] == 2


def test_tested_versions_are_those_that_are_pinned():
    pinned = pins("constraints.txt") | {"triton": "3.9.0"}  # triton: the version that torch asks for
    assert versions() == {package: pinned[package] for package in versions()}
    pinned = pins("llamafactory.txt")
    assert llamafactory_versions() == {package: pinned[package] for package in llamafactory_versions()}
    pinned = pins("axolotl.txt") | {"torch": versions()["torch"]}  # torch: that of the environment below
    assert axolotl_versions() == {package: pinned[package] for package in axolotl_versions()}


@pytest.mark.parametrize("package", sorted(versions()))
def test_tested_versions_are_those_that_are_installed(package):
    check_installed(package, versions()[package])


def test_every_integration_has_a_page_with_its_version():
    pages = {
        "README",
        "plain",
        "accelerate",
        "hf",
        "trl",
        "llamafactory",
        "axolotl",
        "clusters",
        "peft",
        "patch",
        "versions",
    }
    assert {page.stem for page in PAGES} == pages
    index = (ROOT / "docs" / "integrations" / "README.md").read_text(encoding="utf-8")
    assert all(f"]({page}.md)" in index for page in pages - {"README"})
    assert {"torch", "transformers", "accelerate", "peft", "trl", "deepspeed"} <= set(versions())
    assert {"llamafactory", "torch", "transformers", "trl"} <= set(llamafactory_versions())
    assert {"axolotl", "torch", "transformers", "trl"} <= set(axolotl_versions())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_the_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"

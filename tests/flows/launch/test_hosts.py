"""Hostfiles: they are parsed as DeepSpeed does, and errors name file and line."""

import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from flows.launch.hosts import Host, HostfileError, count_ranks, find_cluster, read_hostfile
from flows.preflight.check import check_settings
from flows.preflight.dry_run import plan
from flows.preflight.outcome import NotChecked
from flows.recipe.launch import Launch
from flows.recipe.recipe import Recipe, RecipeError, load_recipe


def test_hostfiles_have_deepspeeds_format(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("# two racks\n\nnode-1 slots=8\n  bee@node-2.lan   slots=4  # an old one\n")
    assert read_hostfile(path) == (Host("node-1", 8), Host("bee@node-2.lan", 4))
    cluster = find_cluster(Launch(hostfile=path))
    assert cluster is not None
    assert cluster.describe() == "node-1 (ranks 0-7), bee@node-2.lan (ranks 8-11), rendezvous at node-1:29500"
    assert (cluster.world, cluster.python) == (12, sys.executable)
    assert list(cluster.ranks().values()) == [range(8), range(8, 12)]
    given = {"rendezvous": {"host": "10.0.0.1", "port": 4000}, "python": "/opt/bin/python"}
    cluster = find_cluster(Launch.model_validate({"hostfile": path, **given}))
    assert cluster is not None
    assert (cluster.address, cluster.port, cluster.python) == ("10.0.0.1", 4000, "/opt/bin/python")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "hosts cannot be read: .*No such file"),
        ("# nobody\n", "hosts lists no hosts"),
        ("a slots=1\nb\n", "hosts, line 2: 'b' is not of the form `host slots=N`"),
        ("a slots=two\n", "line 1: 'a slots=two' is not of the form"),
        ("a slots=-1\n", "line 1"),
        ("-oProxyCommand=x slots=1\n", "line 1: .* is not of the form"),
        ("a slots=1\nb slots=1\na slots=2\n", "line 3: a is listed twice"),
        ("a slots=0\n", "line 1: a has 0 slots"),
        (f"localhost slots=1\n{socket.gethostname()} slots=1\n", "localhost and .* are the same host"),
        ("localhost slots=1\nb slots=1\n", r"the other hosts cannot reach localhost: .* set launch\.rendezvous\.host"),
    ],
)
def test_an_error_in_a_hostfile_names_its_line(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "hosts"
    if text is not None:
        path.write_text(text)
    with pytest.raises(HostfileError, match=message):
        find_cluster(Launch(hostfile=path))


def test_without_a_hostfile_all_ranks_run_on_this_host() -> None:
    assert find_cluster(Launch(ranks=3)) is None
    assert (count_ranks(Launch(ranks=3)), count_ranks(Launch())) == (3, 1)


def test_a_recipe_is_checked_and_planned_for_all_hosts(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    recipe = recipe_of({"launch": {"hostfile": str(hosts), "device": "cpu"}, "finetune/train/micro_batch": 4})
    with pytest.raises(RecipeError, match=r"launch: .*hosts cannot be read") as caught:
        check_settings(recipe)
    assert str(caught.value).count("cannot be read") == 1
    hosts.write_text("a slots=2\nb slots=1\n")
    with pytest.raises(RecipeError, match=r"(?s)pretrain\.train: .*3 ranks.*finetune\.train: .*3 ranks"):
        check_settings(recipe)
    hosts.write_text("a slots=1\nb slots=1\n")
    recipe = recipe_of(
        {"launch": {"hostfile": str(hosts)}, "finetune/train/micro_batch": 4, "pretrain/train/micro_batch": 4}
    )
    lines: list[str] = []
    with pytest.raises(NotChecked, match=r"launch\.hostfile"):  # no host is reached by a dry run
        for line in plan(recipe):
            lines.append(line)
    assert "Hosts: a (rank 0), b (rank 1), rendezvous at a:29500." in lines
    assert any("2 ranks × micro-batch 4 × accumulation 1" in line for line in lines)


def test_a_written_recipe_can_be_loaded_again(write_recipe, tmp_path: Path) -> None:
    """A run's recipe.yaml contains all defaults; loading it does not require the hostfile."""
    recipe = load_recipe(write_recipe({"launch": {"hostfile": "gone/hosts", "env": {"NCCL_DEBUG": 1}}}))
    assert recipe.launch.env == {"NCCL_DEBUG": "1"}
    written = tmp_path / "written.yaml"
    written.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    assert load_recipe(written) == recipe

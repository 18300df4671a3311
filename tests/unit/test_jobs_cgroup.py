"""Whom a process runs for, from the text of its cgroup file, and whom no path can make it run for."""

from __future__ import annotations

import pytest

from collector.jobs.cgroup import Holder, parse

pytestmark = pytest.mark.unit

C = "a" * 64
U = "2fc932ce_fdcc_454b_97bd_aadfdeb4c340"
D = U.replace("_", "-")
KIND = "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice"
SCOPE = "0::/system.slice/slurmstepd.scope"


def slurm(
    job: str, step: str | None, task: str | None = None, *, node: str | None = None, uid: int | None = None
) -> Holder:
    return Holder("slurm", job, step=step, task=task, node=node, uid=uid)


def pod(qos: str = "guaranteed", *, runtime: str | None = None, uid: str = D, container: str | None = C) -> Holder:
    return Holder("pod", uid, qos=qos, container=container, runtime=runtime)


def container(runtime: str) -> Holder:
    return Holder("container", C, container=C, runtime=runtime)


@pytest.mark.parametrize(
    ("text", "holder"),
    [
        ("4:memory:/slurm/uid_1000/job_31/step_0/task_0", slurm("31", "0", "0", uid=1000)),
        ("4:memory:/slurm/uid_1000/job_31", slurm("31", None, uid=1000)),
        ("4:memory:/slurm_host0/uid_1000/job_31/step_batch/task_0", slurm("31", "batch", "0", node="host0", uid=1000)),
        (f"{SCOPE}/job_1009249/step_3/user/task_0", slurm("1009249", "3", "0")),
        (f"{SCOPE}/job_211/step_extern/user/task_0", slurm("211", "extern", "0")),
        (f"{SCOPE}/job_211/step_interactive/user/task_0", slurm("211", "interactive", "0")),
        (f"{SCOPE}/job_211/step_batch/user/task_special", slurm("211", "batch", "special")),
        (f"{SCOPE}/job_211/step_0/slurm", slurm("211", "0")),
        ("0::/system.slice/node0_slurmstepd.scope/job_211/step_0/user/task_1", slurm("211", "0", "1", node="node0")),
        (f"{SCOPE}/s5K1KKYAYG5D00/step_0/user/task_0", slurm("s5K1KKYAYG5D00", "0", "0")),
        (f"{SCOPE}/job_211/step_0/user/task_0 (deleted)", slurm("211", "0", "0")),
        (f"3:cpu:/kubepods/burstable/pod{D}/{C}", pod("burstable")),
        (f"0::/kubepods/pod{D}/{C}", pod()),
        (f"0::/kubepods/pod{D}", pod(container=None)),
        (f"0::/kubelet/kubepods/besteffort/pod{D}/{C}", pod("besteffort")),
        (f"0::/kubepods/burstable/pod{'b' * 32}/{C}", pod("burstable", uid="b" * 32)),
        (
            f"0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{U}.slice/cri-containerd-{C}.scope",
            pod("burstable", runtime="cri-containerd"),
        ),
        (f"0::/kubepods.slice/kubepods-pod{U}.slice/cri-containerd-{C}.scope", pod(runtime="cri-containerd")),
        (
            f"0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{U}.slice/crio-{C}.scope/container",
            pod("besteffort", runtime="crio"),
        ),
        (
            f"0::{KIND}/kubelet-kubepods-burstable-pod{U}.slice/cri-containerd-{C}.scope",
            pod("burstable", runtime="cri-containerd"),
        ),
        (f"5:devices:/docker/{C}", container("docker")),
        (f"0::/system.slice/docker-{C}.scope", container("docker")),
        (f"0::/system.slice/nerdctl-{C}.scope", container("nerdctl")),
        (f"0::/machine.slice/libpod-{C}.scope/container", container("libpod")),
        (f"0::/machine.slice/libpod-conmon-{C}.scope", container("libpod")),
        ("0::/user.slice/user-1000.slice/session-3.scope", Holder("login", "1000", uid=1000)),
        ("0::/system.slice/nvidia-persistenced.service", Holder("system", "nvidia-persistenced.service")),
        ("0::/system.slice/slurmd.service", Holder("system", "slurmd.service")),
        ("0::/init.scope", Holder("system", "init")),
    ],
)
def test_each_manager_s_paths_name_their_holder(text: str, holder: Holder) -> None:
    assert parse(text).holder == holder


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0::/",
        f"{SCOPE}/system",  # stepds between two jobs
        SCOPE,
        "0::/system.slice/node0_slurmstepd.scope",
        "no colons at all",
        f"{SCOPE}/job_/step_0",
        f"{SCOPE}/job_31x/step_0",
        f"{SCOPE}/job_123456789012345678901234567890",
        f"{SCOPE}/sILOU0000000000/step_0",  # letters Crockford's base 32 leaves out
        f"0::/kubepods/pod{D}x/{C}",
    ],
)
def test_what_names_nobody_is_nobody(text: str) -> None:
    assert parse(text).holder is None


@pytest.mark.parametrize(
    ("text", "kind", "identity"),
    [
        # A user may make cgroups of any name below his own session, rootless container, or job step.
        (
            "0::/user.slice/user-1000.slice/user@1000.service/system.slice/slurmstepd.scope/job_9/step_0",
            "login",
            "1000",
        ),
        (f"0::/user.slice/user-1000.slice/user@1000.service/kubepods/pod{D}/{C}", "login", "1000"),
        (f"0::/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{C}.scope", "login", "1000"),
        (f"{SCOPE}/job_31/step_0/user/task_0/system.slice/slurmstepd.scope/job_9/step_0", "slurm", "31"),
        (f"{SCOPE}/job_31/step_0/user/task_0/kubepods/pod{D}/{C}", "slurm", "31"),
        # slurmd inside a pod: whoever is root in there makes these names; the pod is what the host can vouch for.
        (f"0::/kubepods/pod{D}/{C}/system.slice/slurmstepd.scope/job_9/step_0", "pod", D),
        # kind: a Kubernetes node that is itself a container.
        (f"0::/docker/{C}/kubelet/kubepods/pod{D}/{'b' * 64}", "container", C),
        ("0::/system.slice/job.service/slurmstepd.scope/job_9", "system", "job.service"),
        ("0::/elsewhere/system.slice/slurmstepd.scope/job_9/step_0", None, None),
        ("0::/kubelet.slice/other-kubepods.slice/other-kubepods-pod" + U + ".slice", None, None),
    ],
)
def test_only_the_part_that_root_made_counts(text: str, kind: str | None, identity: str | None) -> None:
    holder = parse(text).holder
    assert (kind, identity) == (None, None) if holder is None else (holder.kind, holder.id) == (kind, identity)


def test_a_path_outside_the_reader_s_namespace_is_told_and_still_read_where_it_speaks_for_itself() -> None:
    sibling = parse(f"0::/../../kubepods-burstable-pod{U}.slice/cri-containerd-{C}.scope")
    assert sibling.foreign
    assert sibling.holder is not None
    assert (sibling.holder.kind, sibling.holder.id) == ("pod", D)
    assert parse("0::/../../../../system.slice/slurmstepd.scope/job_7/step_0").holder == slurm("7", "0")
    assert parse("0::/../slurmstepd.scope/job_7/step_0/user/task_0").holder == slurm("7", "0", "0")
    nameless = parse("0::/../../user/task_0")
    assert nameless.foreign
    assert nameless.holder is None
    assert "host's cgroup namespace" in (nameless.remark or "")


def test_a_session_seen_from_another_namespace_cannot_pass_for_a_job() -> None:
    forged = parse("0::/../../user.slice/user-1000.slice/user@1000.service/slurmstepd.scope/job_9/step_0").holder
    assert forged == Holder("login", "1000", uid=1000)


def test_lines_of_version_1_may_differ_in_kind_and_the_scheduler_s_word_counts() -> None:
    text = f"12:devices:/docker/{C}\n9:name=systemd:/user.slice/user-1000.slice\n4:memory:/slurm/uid_1000/job_31/step_0/task_0\n0::/"
    assert parse(text).holder == slurm("31", "0", "0", uid=1000)


def test_two_jobs_in_one_text_are_no_holder() -> None:
    torn = parse("4:memory:/slurm/uid_1000/job_31/step_0\n5:cpuset:/slurm/uid_1000/job_32/step_0")
    assert torn.holder is None
    assert "slurm 31" in (torn.remark or "")
    assert "slurm 32" in (torn.remark or "")


def test_a_sluid_is_known_for_what_it_is() -> None:
    assert slurm("s5K1KKYAYG5D00", "0").is_sluid
    assert not slurm("31", "0").is_sluid
    assert not pod().is_sluid


def test_a_long_hostile_text_takes_no_time() -> None:
    text = "\n".join("0::" + "/system.slice_slurmstepd.scope/job_" * 200 + "-" * 200 for _ in range(1_000))
    assert parse(text).holder is None

"""What the ledger makes of evidence: idle grants, hand-overs without hooks, shared devices, contradictions, restarts."""

from __future__ import annotations

from pathlib import Path

from collector.jobs.evidence import Change, Evidence, Grant, Job, JobKey, Use
from collector.jobs.holding import DECIDING
from collector.jobs.ledger import Ledger
from collector.jobs.roster import Roster
from collector.jobs.state import Memory, dump, load

S = 1_000_000
T = 1_800_000_000 * S
GPU = "GPU-1"


def job(number: int, *, scheduled: bool = True) -> Job:
    return Job(JobKey("lab", str(number), T), scheduled=scheduled)


def hook(number: int, at_s: float, **parts: float) -> Grant:
    return Grant(job(number), Evidence.HOOK, round(T + at_s * S), **parts)  # type: ignore[arg-type]


class Told:
    """A ledger that is told the time in seconds, and what it told in words."""

    def __init__(self) -> None:
        self.ledger = Ledger()

    def grant(self, at_s: float, number: int, **parts: float) -> None:
        self.ledger.granted(round(T + at_s * S), [GPU], hook(number, at_s, **parts))

    def release(self, at_s: float, number: int) -> None:
        self.ledger.released(round(T + at_s * S), job(number).key)

    def used(
        self, at_s: float, *numbers: int, since_s: float | None = None, evidence: Evidence = Evidence.CGROUP
    ) -> None:
        since_us = round(T + (at_s - 1 if since_s is None else since_s) * S)
        uses = [Use(job(number), evidence, since_us) for number in numbers]
        self.ledger.used({GPU: round(T + at_s * S)}, {GPU: uses})

    def stated(self, at_s: float, source: Evidence, *numbers: int) -> None:
        self.ledger.stated(round(T + at_s * S), source, {GPU: [Grant(job(number), source) for number in numbers]})

    def changes(self) -> list[str]:
        return [in_words(change) for change in self.ledger.take()[0]]


def in_words(change: Change) -> str:
    share = "" if change.share_ratio is None else f" {change.share_ratio:g}"
    at_s = f"{(change.at_us - T) / S:.6f}".rstrip("0").rstrip(".")
    return f"{at_s} {'+' if change.begins else '-'}{change.job.key.native_id}{share} {change.evidence}"


def test_a_device_without_a_process_stays_with_the_job_it_was_given_to() -> None:
    told = Told()
    told.grant(10, 31)
    for at_s in (15, 20, 600):
        told.used(at_s)
    assert told.changes() == ["10 +31 hook"]
    told.release(700.5, 31)
    assert told.changes() == ["700.5 -31 hook"]


def test_a_hand_over_between_two_looks_is_at_the_hooks_instants() -> None:
    told = Told()
    told.grant(10, 31)
    told.used(15, 31)
    told.release(17.25, 31)
    told.grant(17.5, 32)
    told.used(20, 32)
    assert told.changes() == ["10 +31 hook", "17.25 -31 hook", "17.5 +32 hook"]


def test_without_hooks_what_lies_between_two_jobs_is_nobody_s() -> None:
    told = Told()
    told.used(10, 31, since_s=8)
    told.used(15, 31, since_s=8)
    told.used(20, 32, since_s=17)
    assert told.changes() == ["8 +31 cgroup", "15 -31 cgroup", "17 +32 cgroup"]


def test_a_job_that_follows_at_once_begins_no_earlier_than_the_other_was_seen_last() -> None:
    told = Told()
    told.used(15, 31, since_s=8)
    told.used(20, 32, since_s=12)  # its process waited while the other's ran
    assert told.changes() == ["8 +31 cgroup", "15 -31 cgroup", "15 +32 cgroup"]


def test_a_process_missing_from_one_look_is_not_the_end() -> None:
    told = Told()
    told.used(10, 31, since_s=8)
    told.used(15)
    told.used(20, 31, since_s=8)
    assert told.changes() == ["8 +31 cgroup"]
    told.used(25)
    told.used(33)
    assert told.changes() == ["20 -31 cgroup"]


def test_a_job_s_pause_without_processes_is_bridged_only_by_a_process_that_lived_through_it() -> None:
    told = Told()
    told.used(10, 31, since_s=8)
    told.used(40)
    told.used(60, 31, since_s=50)
    assert told.changes() == ["8 +31 cgroup", "10 -31 cgroup", "50 +31 cgroup"]


def test_a_hook_takes_over_what_processes_showed_first_and_tells_its_end() -> None:
    told = Told()
    told.used(10, 31, since_s=8)
    told.grant(9, 31)
    told.release(30, 31)
    assert told.changes() == ["8 +31 cgroup", "30 -31 cgroup"]


def test_processes_seen_before_a_job_s_end_do_not_bring_it_back() -> None:
    told = Told()
    told.grant(10, 31)
    told.used(15, 31)
    told.release(16, 31)
    told.used(15.5, 31)  # an old list, read late
    told.stated(17, Evidence.JOB_MAPPING, 31)  # a note that nobody took away
    assert told.changes() == ["10 +31 hook", "16 -31 hook"]


def test_a_process_that_outlives_its_job_s_end_holds_the_device_by_its_cgroup() -> None:
    told = Told()
    told.grant(10, 31)
    told.release(16, 31)
    told.used(20, 31, since_s=11)
    assert told.changes() == ["10 +31 hook", "16 -31 hook", "16.000001 +31 cgroup"]


def test_what_is_left_of_a_job_after_its_epilog_leaves_the_device_to_the_next_and_is_told_once() -> None:
    told = Told()
    told.grant(10, 31)
    told.used(15, 31)
    told.release(16, 31)
    told.grant(17, 32)
    for at_s in (20, 25, 30, 5_000, 5_005):  # for longer than ends are remembered
        told.used(at_s, 31, 32)
    changes, findings = told.ledger.take()
    assert [in_words(change) for change in changes] == ["10 +31 hook", "16 -31 hook", "17 +32 hook"]
    assert [(finding.at_us, finding.kind, finding.detail) for finding in findings] == [
        (T + 20 * S, "job_leftover", "job 31 has ended and still runs processes there; job 32 holds it")
    ]
    assert job(31).key in told.ledger.held()
    again = Told()
    load(dump(Memory("boot"), told.ledger, Roster("lab")), again.ledger, Roster("lab"))
    again.used(5_010, 31, 32)
    assert again.ledger.take() == ([], [])


def test_a_job_whose_end_is_only_presumed_may_be_running_so_its_processes_do_contradict() -> None:
    told = Told()
    told.grant(10, 31)
    told.grant(17, 32)
    told.used(20, 31, 32)
    told.used(25, 31, 32)
    assert told.changes() == ["10 +31 hook", "17 -31 hook", "17 +32 hook", "20 -32 hook"]


def test_two_jobs_on_an_ungranted_device_share_it_equally_and_the_shares_follow_their_number() -> None:
    told = Told()
    told.used(10, 31, since_s=8)
    told.used(15, 31, 32, since_s=12)
    assert told.changes() == ["8 +31 cgroup", "15 -31 cgroup", "15.000001 +31 0.5 cgroup", "15 +32 0.5 cgroup"]


def test_shards_share_by_their_number() -> None:
    told = Told()
    told.grant(10, 31, weight=1)
    told.grant(20, 32, weight=3)
    told.release(30, 32)
    assert told.changes() == [
        "10 +31 hook",
        "20 -31 hook",
        "20.000001 +31 0.25 hook",
        "20 +32 0.75 hook",
        "30 -31 0.25 hook",
        "30 -32 0.75 hook",
        "30.000001 +31 hook",
    ]


def test_an_epilog_that_was_never_told_ends_with_the_next_prolog_and_is_a_finding() -> None:
    told = Told()
    told.grant(10, 31)
    told.grant(50, 32)
    changes, findings = told.ledger.take()
    assert [in_words(change) for change in changes] == ["10 +31 hook", "50 -31 hook", "50 +32 hook"]
    assert [(finding.kind, finding.detail) for finding in findings] == [
        ("job_end_missing", "job 31 held it when 32 began")
    ]


def test_a_stranger_seen_twice_on_a_granted_device_makes_it_nobody_s_from_when_he_was_first_seen() -> None:
    told = Told()
    told.grant(10, 31)
    told.used(15, 31, 32)
    assert told.changes() == ["10 +31 hook"]  # once may be a list from before
    told.used(20, 31, 32)
    changes, findings = told.ledger.take()
    assert [in_words(change) for change in changes] == ["15 -31 hook"]
    assert [(finding.at_us, finding.kind) for finding in findings] == [(T + 15 * S, "attribution_conflict")]
    assert findings[0].detail == "hook says job 31, cgroup says job 32 uses it"
    told.used(25, 31)
    changes, findings = told.ledger.take()
    assert [in_words(change) for change in changes] == ["25 +31 hook"]
    assert [finding.kind for finding in findings] == ["attribution_conflict_ended"]


def test_a_look_that_agrees_ends_the_doubt() -> None:
    told = Told()
    told.grant(10, 31)
    told.used(15, 32)
    told.used(20, 31)
    told.used(25, 32)
    assert told.changes() == ["10 +31 hook"]


def test_a_bare_container_and_an_environment_contradict_nobody() -> None:
    told = Told()
    told.grant(10, 31)
    for at_s in (15, 20, 25):
        container = Use(job(99, scheduled=False), Evidence.CGROUP, T)
        liar = Use(job(98), Evidence.ENVIRON, T)
        told.ledger.used({GPU: T + at_s * S}, {GPU: [container, liar]})
    assert told.changes() == ["10 +31 hook"]


def test_what_only_an_environment_says_gives_way_to_what_a_cgroup_says() -> None:
    told = Told()
    told.used(10, 31, since_s=8, evidence=Evidence.ENVIRON)
    assert told.changes() == ["8 +31 environ"]
    hinted, proven = Use(job(31), Evidence.ENVIRON, T + 8 * S), Use(job(32), Evidence.CGROUP, T + 9 * S)
    told.ledger.used({GPU: T + 15 * S}, {GPU: [hinted, proven]})
    assert told.changes() == ["15 -31 environ", "15 +32 cgroup"]


def test_two_managers_that_name_different_jobs_twice_are_a_contradiction() -> None:
    told = Told()
    told.grant(10, 31)
    told.stated(12, Evidence.JOB_MAPPING, 30)
    told.stated(17, Evidence.JOB_MAPPING, 30)
    assert told.changes() == ["10 +31 hook", "12 -31 hook"]
    told.grant(40, 33)  # a hook is a new beginning
    assert told.changes() == ["40 +33 hook"]


def test_a_manager_that_speaks_once_in_between_changes_nothing() -> None:
    told = Told()
    told.grant(10, 31)
    told.stated(12, Evidence.JOB_MAPPING, 30)
    told.stated(17, Evidence.JOB_MAPPING, 31)
    told.stated(22, Evidence.JOB_MAPPING)
    assert told.changes() == ["10 +31 hook"]


def test_a_pod_keeps_its_idle_device_until_the_kubelet_no_longer_lists_it() -> None:
    told = Told()
    told.stated(10, Evidence.POD_RESOURCES, 7)
    told.stated(20, Evidence.POD_RESOURCES, 7)
    told.stated(30, Evidence.POD_RESOURCES, 8)
    assert told.changes() == ["10 +7 pod-resources", "20 -7 pod-resources", "30 +8 pod-resources"]


def test_the_docs_rank_evidence_as_the_ledger_does() -> None:
    text = (Path(__file__).parents[2] / "docs" / "agent.md").read_text().split("\n## Jobs\n")[1].split("\n## ")[0]
    ranked = [*(source.value for source in DECIDING), "cgroup", "slurmstepd", "environ"]
    places = [text.index(f"`{name}`") for name in ranked]
    assert places == sorted(places)
    told = Told()
    for place, source in enumerate(reversed(DECIDING[1:])):
        told.stated(10 + place, source, 40 + place)
    told.grant(20, 31)
    told.used(20, 32)
    assert list(told.ledger.devices[GPU].wanted()) == [job(31).key]


def test_an_agent_that_restarts_tells_no_begin_again_and_no_end_too_few() -> None:
    told = Told()
    told.grant(10, 31)
    told.ledger.used({"GPU-2": T + 15 * S}, {"GPU-2": [Use(job(32), Evidence.CGROUP, T + 12 * S)]})
    told.changes()
    text = dump(Memory("boot", T + 16 * S), told.ledger, Roster("lab"))
    again = Told()
    memory = load(text, again.ledger, Roster("lab"))
    assert memory is not None
    assert memory.at_us == T + 16 * S
    again.used(40, 31)
    assert again.changes() == []
    again.release(50, 31)
    again.ledger.used({"GPU-2": T + 100 * S}, {})
    assert again.changes() == ["50 -31 hook", "15 -32 cgroup"]


def test_a_reboot_ends_everything_when_it_was_last_known_to_be() -> None:
    told = Told()
    told.grant(10, 31)
    told.changes()
    told.ledger.rebooted(T + 60 * S)
    assert told.changes() == ["60 -31 hook"]
    assert not told.ledger.devices


def test_a_text_that_is_no_state_is_none_and_leaves_nothing_behind() -> None:
    good = dump(Memory("boot"), Ledger(), Roster("lab"))
    for text in (None, "", "{}", "[]", "null", good[:-5], good.replace('"version":1', '"version":2'), "[" * 100_000):
        ledger, roster = Ledger(), Roster("lab")
        assert load(text, ledger, roster) is None
        assert not ledger.devices
        assert not roster.runs

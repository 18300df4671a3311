from datetime import UTC, datetime

import pytest

from analytics.io.bindings import BindingsError, check, explain

AT = datetime(2026, 3, 1, tzinfo=UTC)
FILE = """\
time_zone: Europe/Berlin
tenants:
  acme/research/nlp: {contact: nlp@acme.example, cost_centre: "4711"}
bindings:
  - {tenant: acme/research/nlp, account: "nlp-*", to: 2026-02-01}
  - {tenant: acme/product, account: "nlp-*", from: 2026-02-01}
  - {tenant: acme/product, key: "chat-?"}
  - {tenant: acme/research, user: ann, label: "team=*"}
"""


def faults(text: str) -> list[str]:
    with pytest.raises(BindingsError) as caught:
        check(text)
    return [str(fault) for fault in caught.value.faults]


def test_a_file_becomes_tenants_and_ordered_dated_rules() -> None:
    file = check(FILE)
    assert [tenant.path for tenant in file.tenants] == ["acme/research/nlp", "acme/product", "acme/research"]
    assert file.tenants[0].cost_centre == "4711"
    # Midnight in Berlin is 23:00 UTC the day before.
    assert file.rules[0].valid_to == datetime(2026, 1, 31, 23, tzinfo=UTC)
    assert file.rules[1].valid_from == file.rules[0].valid_to
    assert file.rules[3].patterns == {"user_name": "ann", "label": "team=*"}


def test_explain_names_the_rule_by_its_line_and_what_spoke_against_the_others() -> None:
    found = explain(check(FILE), {"account": "nlp-a"}, AT)
    assert (found.tenant, found.line) == ("acme/product", 6)
    earlier = explain(check(FILE), {"account": "nlp-a"}, datetime(2026, 1, 1, tzinfo=UTC))
    assert (earlier.tenant, earlier.line) == ("acme/research/nlp", 5)
    nobody = explain(check(FILE), {"user_name": "ann"}, AT)
    assert nobody.tenant is None
    assert nobody.steps[-1] == "no rule matches: unmapped"
    assert "label is missing" in nobody.steps[-2]


def test_unknown_keys_bad_paths_and_bad_dates_are_named_with_their_lines() -> None:
    text = """\
bindings:
  - {tenant: acme, acount: x}
  - {tenant: /acme, account: x}
  - account: y
  - {tenant: acme, account: z, from: soon}
  - {tenant: acme, account: q, from: 2026-02-01, to: 2026-01-01}
owner: me
"""
    found = faults(text)
    assert [fault.split(":")[0] for fault in found] == ["line 2", "line 3", "line 4", "line 5", "line 6", "line 7"]
    assert "unknown key; known are account, cluster" in found[0]
    assert "is not a tenant path" in found[1]
    assert "names no tenant" in found[2]
    assert "'soon' is not a date" in found[3]
    assert "ends before it starts" in found[4]


def test_rules_that_overlap_or_can_never_match_name_the_rule_in_their_way() -> None:
    text = """\
bindings:
  - {tenant: a, account: "nlp-*"}
  - {tenant: b, account: "nlp-*", from: 2026-01-01}
  - {tenant: c, account: "nlp-x?", user: ann}
  - {tenant: d, cluster: "*"}
  - {tenant: e, cluster: c1, account: web}
  - {tenant: f, account: web}
  - {tenant: g}
  - {tenant: h, user: bob}
"""
    found = faults(text)
    assert [fault.split(":")[0] for fault in found] == ["line 3", "line 4", "line 6", "line 9"]
    assert "patterns of the rule on line 2 and overlaps it" in found[0]
    assert "the rule on line 2 takes all of it" in found[1]
    assert "the rule on line 5 takes all of it" in found[2]
    assert "the rule on line 8 takes all of it" in found[3]


def test_a_rule_beyond_the_end_of_a_catch_all_can_be_reached() -> None:
    file = check("bindings:\n  - {tenant: a, to: 2026-01-01}\n  - {tenant: b, account: x}\n")
    assert len(file.rules) == 2


def test_a_question_mark_does_not_cover_a_star() -> None:
    assert len(check('bindings:\n  - {tenant: a, account: "n?"}\n  - {tenant: b, account: "n*"}\n').rules) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: the document is empty"),
        ("- a\n", "line 1: must be a mapping"),
        ("bindings: []\n", "line 1: bindings: must be a list of at least one rule"),
        ("bindings:\n  - {tenant: a\n", "not YAML"),
        ("time_zone: Mars/Olympus\nbindings:\n  - {tenant: a}\n", "not an IANA time zone"),
        ("bindings:\n  - {tenant: a, tenant: b}\n", "written twice"),
        ("tenants: [a]\nbindings:\n  - {tenant: a}\n", "must map tenant paths"),
        ("tenants:\n  a: {phone: x}\nbindings:\n  - {tenant: a}\n", "line 2: tenants.a.phone: unknown key"),
    ],
)
def test_what_is_no_bindings_file_is_refused(text: str, message: str) -> None:
    assert message in faults(text)[0]


@pytest.mark.parametrize("text", [r"a\0b", r"a\nb", r"\uD800", r"\x7F"])
def test_a_text_the_store_cannot_hold_is_named_with_its_line(text: str) -> None:
    file = (
        "bindings:\n"
        f'  - {{tenant: acme, account: "{text}"}}\n'
        f'  - {{tenant: "acme/{text}", account: x}}\n'
        "tenants:\n"
        f'  acme: {{contact: "{text}"}}\n'
    )
    found = faults(file)
    assert {fault.split(":")[0] for fault in found} == {"line 2", "line 3", "line 5"}

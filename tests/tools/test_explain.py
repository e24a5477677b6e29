"""explain.html: numbers are worked out again from the page alone, by lines that share no code."""

import math
import re
import statistics
from collections import Counter
from html import unescape
from pathlib import Path

import pytest

import grpo
import mmzero
import rewards
from tools import explain

LITTLE = """--explain --coder-proposals 16 --coder-prompts 4 --coder-update 2 --solver-proposals 48
--solver-prompts 4 --solver-update 2 --workers 1 --render-seconds 60""".split()
HOSTILE = "</span><script>alert(1)</script>"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of a run in which every caption, as it is read, holds hostile text."""
    out = tmp_path_factory.mktemp("runs") / "run"
    read, kept = rewards.parse_proposal, (mmzero.Roles.learn, grpo.policy_loss)

    def hostile(text, shown):
        proposal = read(text, shown)
        if proposal:
            vars(proposal)["caption"] = proposal.caption + HOSTILE
        return proposal

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rewards, "parse_proposal", hostile)
        mmzero.main([*LITTLE, "--out", str(out)])
    # The watched functions are the usual ones again.
    assert (mmzero.Roles.learn, grpo.policy_loss) == kept
    return (out / "explain.html").read_text(encoding="utf-8")


def number(text):
    return float(text.replace("−", "-"))


def cells(html, name):
    """The rows of the tables of a class, as texts."""
    tables = re.findall(rf'(?s)<table class="{name}">(.*?)</table>', html)
    rows = [re.findall(r"(?s)<tr[^>]*>(.*?)</tr>", table)[1:] for table in tables]

    def strip(cell):
        return unescape(re.sub("<[^>]+>", "", cell)).strip()

    cell = r"(?s)<t[hd][^>]*>(.*?)</t[hd]>"
    return [[list(map(strip, re.findall(cell, row))) for row in table] for table in rows]


def section(page, letter):
    return re.search(rf"(?s)<h2>{letter} · .*?</section>", page)[0]


def chips(html):
    """[(answer, colour of its camp)]; ✓ is no part of an answer."""
    found = re.findall(r'<span class="(c\d|grey)">(.*?)</span>', html)
    texts = [unescape(text).removesuffix(" ✓") for _, text in found]
    return [(None if t == "nothing read" else t, colour) for t, (colour, _) in zip(texts, found)]


def tagged(html, name):
    return number(re.search(rf'id="{name}">(.*?)<', html)[1])


def test_the_proposers_reward_from_the_answers_on_the_page(page):
    html, gains = section(page, "P"), []
    codes = re.search(r'(?s)id="codes">(.*?)<h3>Its reward', html)[1]
    for card in re.findall(r'(?s)<article class="code">(.*?)</article>', codes):
        if "no picture" in card:
            gains.append(0)
            continue
        easy, hard = map(chips, re.findall(r'(?s)<p class="answers">(.*?)</p>', card))
        right = unescape(re.search(r'<span class="a">(.*?)</span>', card)[1])
        s = sum(answer == right for answer, _ in easy) / len(easy)
        assert [colour == "c2" for _, colour in easy] == [answer == right for answer, _ in easy]
        votes = Counter(answer for answer, _ in hard if answer is not None)
        c = max(votes.values(), default=0) / len(hard)
        gains.append(min(s, 0.5) + min(c, 1 - c))
        assert number(re.search(r'class="earned">(.*?)<', card)[1]) == pytest.approx(gains[-1])
    assert len(gains) == 4 and 0 in gains and max(gains) > 0
    taken = sum(tagged(html, name) for name in "ETV")
    assert tagged(html, "R") == pytest.approx(sum(gains) / 4 - taken, abs=2e-4)


def test_the_penalties_of_every_proposal_from_the_batch_on_the_page(page):
    html = section(page, "P")
    (rows,) = cells(html, "batch")
    types = Counter(row[6] for row in rows)
    for caption, n_caption, easy, n_easy, hard, n_hard, kind, T, V, _ in rows:
        assert number(T) == pytest.approx(
            0.15 * max(0, types[kind] / len(rows) - 0.5) / 0.5, abs=6e-4
        )
        alike = 0.45 * (int(n_caption) - 1) + 0.2 * (int(n_easy) - 1) + 0.35 * (int(n_hard) - 1)
        assert number(V) == pytest.approx(min(0.5 * alike, 0.5), abs=6e-4)
        # The texts that are counted stand beside their number: equal ones share a cluster.
        for place, text in ((0, caption), (2, easy), (4, hard)):
            assert text and int(rows[0][place + 1]) >= 1
            same = [row[place + 1] for row in rows if row[place] == text and len(text.split()) > 3]
            assert len(set(same)) <= 1 and (not same or int(same[0]) >= len(same))
    for formula in (
        "0.15 max(0, f − 0.5) / 0.5",
        "0.5 Σ w<sub>k</sub> (n<sub>k</sub> − 1)",
        "−1 for",
    ):
        assert formula in html


def test_what_the_coder_draws_of_each_content_type(page):
    html = section(page, "C")
    types = re.search(r'(?s)id="types">By content type: (.*?)</p>', html)[1]
    found = re.findall(r"(\d+) [a-z ]+,\s+of whose codes (\d+) % draw", types)
    valid = int(re.search(r"16 were asked for, (\d+) valid", html)[1])
    assert sum(int(count) for count, _ in found) == valid > 0
    # By proposals and by types it is the same number of codes, but for the rounding of shares.
    drawn = re.search(r"(?s)codes that drew, of\s+4 each:(.*?)</p>", html, re.IGNORECASE)[1]
    codes = sum(int(n) * int(k) for n, k in re.findall(r"(\d+) proposals with (\d)", drawn))
    assert sum(4 * int(n) * int(share) / 100 for n, share in found) == pytest.approx(codes, abs=1)


def test_what_a_code_earns_the_coder(page):
    html = section(page, "C")
    (rows,) = cells(html, "group")
    earned = [number(text) for text in re.findall(r'class="earned">(.*?)<', html)]
    assert earned == [pytest.approx(number(row[-2]), abs=6e-3) for row in rows]
    assert "earns <b" in html and -0.1 in earned and "R = −0.1" in html  # one drew nothing


@pytest.mark.parametrize("letter", "PCS")
def test_answers_of_one_camp_have_one_colour_and_the_majority_the_first(page, letter):
    votes = re.findall(r'(?s)<p class="answers">(.*?)</p>', section(page, letter))
    for answers in map(chips, votes[:1] if letter == "S" else votes[1::2]):  # to hard questions
        camps = Counter(answer for answer, _ in answers if answer is not None)
        colours = dict(answers)
        assert colours.pop(None, "grey") == "grey" and len(set(colours.values())) == len(camps)
        assert not camps or colours[camps.most_common(1)[0][0]] == "c2"


def test_the_proposal_reads_as_it_was_written(page):
    """No log-prob stands in the text, which has no gaps; the least likely tokens stand below it."""
    html = section(page, "P")
    text = unescape(re.sub("<[^>]+>", "", re.search(r'(?s)<div class="said">(.*?)</div>', html)[1]))
    assert text.startswith("<content_type>") and "−" not in text
    easy = unescape(re.search(r"<dt>easy question</dt><dd>(.*?)</dd>", html)[1])
    assert f"<easy_question>{easy}</easy_question>" in text
    below = re.search(r'(?s)<div class="unlikely">(.*?)</div>', html)[1]
    tokens = re.findall(r"<span><code>(.*?)</code> (−[\d.]+)</span>", below)
    assert 0 < len(tokens) <= explain.UNLIKELY and all(number(logp) < 0 for _, logp in tokens)


@pytest.mark.parametrize("letter, size", [("P", 4), ("C", 4), ("S", 8)])
def test_the_advantages_from_the_rewards_on_the_page(page, letter, size):
    (rows,) = cells(section(page, letter), "group")
    paid = [number(row[-2]) for row in rows]
    assert len(paid) == size and len(set(paid)) > 1
    mean, std = statistics.mean(paid), statistics.stdev(paid)
    for row, r in zip(rows, paid):
        assert number(row[-1]) == pytest.approx((r - mean) / std, abs=2e-3)


@pytest.mark.parametrize("letter", "PCS")
def test_ratio_clip_and_kl_of_tokens_from_their_log_probs(page, letter):
    html = section(page, letter)
    (rows,) = cells(html, "tokens")
    (group,) = cells(html, "group")
    moved = 0
    for _, reply, old, logp, ref, ratio, A, counts, kl, cut in rows:
        old, logp, ref, ratio, A = map(number, (old, logp, ref, ratio, A))
        assert A == number(group[int(reply) - 1][-1])
        rho = math.exp(logp - old)
        moved += abs(rho - 1) > 1e-3
        assert ratio == pytest.approx(rho, abs=2e-4)
        clipped = min(max(rho, 0.8), 1.3)
        expected = min(rho * A, clipped * A)
        if A < 0:
            expected = max(expected, 3 * A)
        assert number(counts) == pytest.approx(expected, abs=1e-3)
        assert (cut == "clipped") == (expected != rho * A)
        gap = math.exp(ref - logp) - (ref - logp) - 1
        assert number(kl) == pytest.approx(gap, abs=2e-5)
    assert moved >= 5


def test_the_label_from_ten_answers(page):
    html = section(page, "S")
    votes = [answer for answer, _ in chips(re.search(r'(?s)id="votes">(.*?)</div>', html)[1])]
    label, count = Counter(v for v in votes if v is not None).most_common(1)[0]
    assert len(votes) == 10
    assert unescape(re.search(r'id="label">(.*?)<', html)[1]) == label
    assert tagged(html, "share") == count / 10 and 0.25 <= count / 10 <= 0.75


def test_no_head_and_no_table_is_empty(page):
    for table in re.findall(r"(?s)<table.*?</table>", page):
        heads = re.findall(r"(?s)<th\b[^>]*>(.*?)</th>", table.split("</thead>")[0])
        assert heads and all(head.strip() for head in heads)
        assert "<tr" in table.split("</thead>")[1]


def test_what_a_model_wrote_is_text(page):
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page
    assert "default-src 'none'" in page and "http" not in page.replace("http-equiv", "")


@pytest.mark.parametrize(
    "nothing, patches, said",
    [
        ("valid", {"parse_proposal": None}, "0 of 24 proposals could be read"),
        ("drawn", {"extract_code": None}, "0 drawn, <b>0 kept</b>"),
        ("kept", {"keep_for_coder": False, "keep_for_solver": False}, "<b>0 kept</b>"),
    ],
)
def test_the_page_is_there_where_nothing_is_valid_or_drawn_or_kept(
    nothing, patches, said, tmp_path, monkeypatch
):
    """As with a base that does not know the task: the page is what one then wants to look at."""
    for name, result in patches.items():
        monkeypatch.setattr(rewards, name, lambda *_, result=result, **__: result)
    mmzero.main([*LITTLE, "--out", str(tmp_path / "run")])
    page = (tmp_path / "run/explain.html").read_text(encoding="utf-8")
    assert said in page and "the Solver stays as it is" in section(page, "S")
    for letter in "PCS":
        section(page, letter)
    for table in re.findall(r"(?s)<table.*?</table>", page):
        assert "<tr" in table.split("</thead>")[1]


def test_a_page_or_a_usual_run_is_not_overwritten(tmp_path, monkeypatch):
    def explained(settings):
        return explain.explain(mmzero, settings)

    out = tmp_path / "run"
    settings, _ = mmzero.parse([*LITTLE, "--out", str(out)])
    usual, _ = mmzero.parse(["--out", str(out)])
    mmzero.Run(usual)
    with pytest.raises(SystemExit, match="holds a usual run: give another --out"):
        mmzero.main([*LITTLE, "--out", str(out)])
    (out / "explain.html").write_text("seen")
    with pytest.raises(ValueError, match="is there already"):
        explained(settings)
    assert (out / "explain.html").read_text() == "seen"

    # More than one step is none in slow motion.
    with pytest.raises(SystemExit, match="one step for each role"):
        mmzero.main([*LITTLE, "--steps", "2", "--out", str(tmp_path / "two")])
    assert not (tmp_path / "two").exists()

    # What one that was stopped has left is made anew.
    (out / "explain.html").unlink()
    (out / "config.json").write_text('{"settings": {"explain": true}}')
    (out / "rest").write_text("")

    def stopped(run, roles):
        raise KeyboardInterrupt

    monkeypatch.setattr(mmzero, "self_evolve", stopped)
    with pytest.raises(KeyboardInterrupt):
        explained(settings)
    assert Path(out).is_dir() and not (out / "rest").exists()

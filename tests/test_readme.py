"""README.md and docs/: their commands, flags, files, names and links exist; figures are told."""

import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mmzero
import support

ROOT = Path(__file__).parent.parent
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
}
README = PAGES["README.md"]
EVERYTHING = "\n".join(PAGES.values())

# Lines of the bash blocks, and pieces of inline code: `python mmzero.py --seed 0`.
BASH = {
    page: [
        line
        for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
        for line in block.splitlines()
    ]
    for page, text in PAGES.items()
}
INLINE = {
    page: re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    for page, text in PAGES.items()
}
MADE_BY_A_RUN = {
    "adapter_config.json",
    "config.json",
    "metrics.jsonl",
    "report.html",
    "explain.html",
    "runs/eval/MODEL/SET.jsonl",
    "results.jsonl",
    "results.md",
    "audit.html",
}
# Flags with a few known words as their value: these must stand in the program's help, too.
WORDS_OF_FLAGS = {"--preset", "--language", "--split", "--only"}


def commands(line):
    """(script, its arguments) in a line that runs one of our programs, else None.

    >>> commands("torchrun --nproc-per-node 8 mmzero.py --lora 32   # eight GPUs")
    ('mmzero.py', '--lora 32')
    >>> commands("python -m pytest tests/test_vlm.py -s"), commands("tests/test_vlm.py")
    (None, None)
    """
    line = re.sub(r"(^|\s)#.*$", "", line).strip()
    found = re.search(r"(?:^|[\s/])((?:bench/|docs/|tools/|tiny/)?\w+\.py)(?=\s|$)(.*)$", line)
    if found is None or "pytest" in line:
        return None
    script, arguments = found[1], found[2].strip()
    runs = re.search(r"\b(python|torchrun)\b", line[: found.start(1)])
    return (script, arguments) if runs or arguments else None


COMMANDS = sorted(
    {
        (page, *found)
        for page in PAGES
        for line in BASH[page] + INLINE[page]
        if (found := commands(line))
    }
)


# These are asked by eval.py and mmzero.py; all else in tools/ and bench/ is a program.
MODULES = ("__init__", "benchmarks", "compare", "judge", "measure")
PROGRAMS = [path for folder in ("tools", "bench") for path in (ROOT / folder).glob("*.py")]
PROGRAMS = sorted(str(p.relative_to(ROOT)) for p in PROGRAMS if p.stem not in MODULES)

# All of them in one process: importing torch takes longer than everything else here. But each as if
# Python had just started it: its own folder first on the path, and no module of ours loaded.
PRINT_HELP = """
import contextlib, io, json, runpy, sys, traceback
from pathlib import Path
root, path, found = Path(sys.argv[1]), sys.path[1:], {}
for script in sys.argv[2:]:
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None) or ""
        if file.startswith(str(root)) and "site-packages" not in file:
            del sys.modules[name]
    sys.path[:] = [str((root / script).parent), *path]
    sys.argv = [script, "--help"]
    printed, code = io.StringIO(), "it went on"
    try:
        with contextlib.redirect_stdout(printed):
            runpy.run_path(str(root / script), run_name="__main__")
    except SystemExit as end:
        code = end.code
    except Exception:
        code = traceback.format_exc()
    found[script] = printed.getvalue() if not code else f"FAILED: {code}"
print(json.dumps(found))
"""


@functools.cache
def every_help():
    """{script: what `python SCRIPT --help` prints, called from some other folder}."""
    scripts = sorted({script for _, script, arguments in COMMANDS if arguments} | {*PROGRAMS})
    printed = subprocess.run(
        [sys.executable, "-c", PRINT_HELP, str(ROOT), *scripts],
        cwd=ROOT.anchor,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return json.loads(printed.splitlines()[-1])


def words(text):
    return len(text.split())


# ---------------------------------------- commands


def test_the_first_two_commands_are_single_lines_with_their_own_set_up():
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    first, second = blocks[0].splitlines(), blocks[1].splitlines()
    assert len(first) == len(second) == 1
    for command in first + second:
        assert "libcairo2" in command and "venv" in command and "requirements.txt" in command
    assert first[0].endswith("python mmzero.py") and second[0].endswith("python -m pytest")


def test_ci_finds_the_test_command_below_its_marker():
    before, after = README.split("<!-- tests -->\n")
    assert after.startswith("```bash\n" + BASH["README.md"][1] + "\n```\n")
    assert before.count("```bash") == 1


def test_commands_are_found():
    assert {script for _, script, _ in COMMANDS} >= {"mmzero.py", "eval.py", "generate.py"}
    assert len(COMMANDS) > 20


@pytest.mark.parametrize("script", PROGRAMS)
def test_every_program_has_a_help_wherever_it_is_called_from(script):
    found = every_help()[script]
    assert found.startswith("usage: ") and "--help" in found, found


@pytest.mark.parametrize(("page", "script", "arguments"), COMMANDS)
def test_every_flag_of_a_command_is_known(page, script, arguments):
    assert (ROOT / script).exists()
    known = every_help()[script] if arguments else ""
    # What stands in quotes is for mmzero.py.
    for quoted in re.findall(r'"([^"]*)"', arguments):
        for flag in re.findall(r"--[a-z][\w-]*", quoted):
            assert f"  {flag} " in every_help()["mmzero.py"], flag
    arguments = re.sub(r'"[^"]*"', "", arguments)
    flags = re.findall(r"(?<!\S)--?[a-z][\w-]*", arguments)
    assert all(re.search(rf"(?<![\w-]){flag}(?![\w-])", known) for flag in flags), (flags, script)
    for flag, values in re.findall(r"(--[a-z][\w-]*)((?: \w[\w-]*)*)", arguments):
        if flag in WORDS_OF_FLAGS:
            unknown = [word for word in values.split() if word not in re.findall(r"[\w-]+", known)]
            assert not unknown, (flag, unknown, script)


def test_every_flag_named_alone_belongs_to_a_program():
    alone = {flag for page in PAGES for flag in INLINE[page] if re.fullmatch(r"--[\w-]+", flag)}
    known = "".join(every_help().values())
    assert alone
    assert not [flag for flag in alone if not re.search(rf"(?<![\w-]){flag}(?![\w-])", known)]


def test_every_pytest_command_selects_something():
    lines = [line for page in PAGES for line in BASH[page] + INLINE[page] if "-m pytest " in line]
    assert lines
    for line in lines:
        file, chosen = re.search(r"pytest (\S+\.py).* -k (\w+)", line).groups()
        assert re.search(rf"^def test_\w*{chosen}", (ROOT / file).read_text(), re.MULTILINE), line


# ---------------------------------------- files and names


def test_every_file_it_names_is_there():
    names = {
        name
        for page in PAGES
        for code in INLINE[page]
        for name in re.findall(r"^[\w./-]+\.(?:py|md|txt|json|jsonl|html|png)$", code)
    }
    names -= MADE_BY_A_RUN
    names |= set(re.findall(r"!\[.*?\]\((.*?)\)", README))
    assert names and not [name for name in names if not (ROOT / name).exists()]


def test_every_folder_it_names_is_there():
    names = {
        name
        for page in PAGES
        for name in INLINE[page]
        if re.fullmatch(r"(?!iter|resume)[a-z/]+/", name)
    }
    assert names and not [name for name in names if not (ROOT / name).is_dir()]


def test_every_name_in_the_paper_table_exists():
    entries = re.findall(r"`([\w/]+)\.py`: ((?:`\w+`(?:, )?)+)", README)
    assert len(entries) >= 9
    for file, names in entries:
        source = (ROOT / f"{file}.py").read_text()
        for name in re.findall(r"`(\w+)`", names):
            assert re.search(rf"^(def|class) {name}\b", source, re.MULTILINE), (file, name)


def test_the_reading_order_is_the_method():
    section = README.split("## Reading order")[1].split("\n## ")[0]
    order = re.findall(r"^\d\. `(\w+)\.py`", section, re.MULTILINE)
    assert order == ["mmzero", "rewards", "grpo", "generate", "vlm", "render", "eval"]
    assert "`mmzero.py`" in section.split("1. ")[0]  # where the glossary stands
    assert "Letters and words of all files:" in mmzero.__doc__


def test_the_list_of_support_names_every_file():
    named = re.findall(r"^(?:\w+)? +(\w+)  +\S", support.__doc__, re.MULTILINE)
    assert len(named) == len({*named})
    files = {path.stem for path in (ROOT / "support").glob("*.py")} - {"__init__"}
    assert not files - {*named}


def slug(heading):
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", PAGES[page]):
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), (page, target)
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [slug(heading) for heading in headings], (page, target)


def test_every_page_is_linked_from_the_readme_and_says_first_what_it_holds():
    for page, text in PAGES.items():
        if page == "README.md":
            continue
        assert f"]({page}" in README, page
        title, first = re.match(r"# (.+)\n\n(.+)\n", text).groups()
        assert first.startswith("This page "), (page, title)


# ---------------------------------------- figures


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """Of the smallest run that trains all three roles."""
    folder = tmp_path_factory.mktemp("readme") / "run"
    little = (
        "--iterations 1 --steps 1 --proposer-prompts 2 --coder-proposals 12 --coder-prompts 2 "
        "--solver-proposals 24 --solver-prompts 4 --questions 4 --probe 4 --workers 1 "
        "--render-seconds 60"
    )
    mmzero.main([*little.split(), "--out", str(folder)])
    return folder


def test_every_logged_figure_is_explained(run_folder):
    """Each key that a run writes stands in the first column of a table of docs/metrics.md."""
    records = [json.loads(line) for line in open(run_folder / "metrics.jsonl", encoding="utf-8")]
    kinds = {(record["kind"], record.get("phase")) for record in records}
    steps = {("step", "proposer"), ("step", "coder"), ("step", "solver")}
    assert kinds >= steps | {("eval", None), ("data", "coder"), ("data", "solver")}
    assert ("audit", "solver") in kinds

    logged = {key for record in records for key in record}
    assert logged >= {
        "reward",
        "valid",
        "rendered",
        "solvability",
        "difficulty",
        "easy_hard",
        "type",
        "diversity",
        "accuracy",
        "format",
        "loss",
        "kl",
        "approx_kl",
        "entropy",
        "clip_high",
        "clip_low",
        "clip_dual",
        "logp_gap_mean",
        "logp_gap",
        "grad_norm",
        "zero_variance",
        "truncated",
        "tokens",
        "updates",
        "skipped",
        "no_signal",
    }
    first_cells = re.findall(r"^\| ([^|]+) \|", PAGES["docs/metrics.md"], re.MULTILINE)
    explained = {name for cell in first_cells for name in re.findall(r"`(\w+)`", cell)}
    assert not logged - explained
    assert not explained - logged, "docs/metrics.md explains what no run writes"


def test_the_table_of_a_run_has_the_columns_that_are_explained():
    header = re.search(r"^\| +\| +held-out.*$", PAGES["docs/results.md"], re.MULTILINE)[0]
    columns = [cell.strip() for cell in header.strip("|").split("|")]
    section = PAGES["docs/metrics.md"].split("## The row of an iteration")[1].split("\n## ")[0]
    shown = re.findall(r"\| ([^|`]+) \|$", section, re.MULTILINE)
    for column in columns[1:]:
        assert column.replace(" (95 %)", "") in shown, column


# ---------------------------------------- the page for the Python prompt

BY_HAND, AS_TABLE = re.findall(r"```python\n(.*?)```", PAGES["docs/python.md"], re.DOTALL)


def test_the_roles_can_be_played_by_hand(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(BY_HAND, names)
    proposal, image = names["proposal"], names["image"]
    assert proposal in names["proposals"] and proposal.hard_question.endswith("?")
    assert names["code"].startswith("<svg") and (tmp_path / "picture.png").stat().st_size > 100
    assert image.size == names["drawings"][names["codes"].index(names["code"])].image.size
    answers = [names["extract_answer"](reply.text) for reply in names["replies"]]
    assert len(answers) == 10 and 0.1 <= names["c"] <= 1 and names["label"] in answers


def test_a_run_can_be_read_as_a_table(run_folder):
    pytest.importorskip("pandas")
    names, usual = {}, "runs/tiny-svg-seed0"
    assert AS_TABLE.count(usual) == 1
    exec(AS_TABLE.replace(usual, str(run_folder)), names)
    assert list(names["accuracy"].index) == [0, 1] and names["accuracy"].notna().all(axis=None)
    assert set(names["paid"].columns) == {"proposer", "coder", "solver"}
    assert list(names["paid"].index) == [(1, 1)]


# ---------------------------------------- form


@pytest.mark.parametrize("page", PAGES)
def test_tables_are_well_formed(page):
    text = re.sub(r"```.*?```", "", PAGES[page], flags=re.DOTALL)
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        rows = table.splitlines()
        cells = [len(re.split(r"(?<!\\)\|", row.rstrip()[1:-1])) for row in rows]
        assert len(rows) >= 3 and all(row.rstrip().endswith("|") for row in rows), rows[0]
        assert len(set(cells)) == 1, rows[0]
        assert re.fullmatch(r"\|(:?-+:?\|)+", rows[1]), rows[0]


def test_the_readme_is_short_and_comes_to_the_point():
    assert words(README) <= 1250
    assert len(README.splitlines()) <= 170
    assert words(README.split("## The idea")[0]) < 400
    assert "No licence has been chosen yet" in README


@pytest.mark.parametrize("page", PAGES)
def test_a_page_can_be_read_at_one_sitting(page):
    assert words(PAGES[page]) <= 1800
    wide = [line for line in PAGES[page].splitlines() if len(line) > 130]
    assert not [line for line in wide if not line.startswith(("|", "$", "!", "torchrun"))]


def test_no_placeholder_is_left():
    assert not re.findall(r"@[A-Z]+@", EVERYTHING)
    assert not re.findall(r"@[A-Z]\w*|<[A-Z]\d?>|\bT[O]DO\b|\bX[X]X\b|\bF[I]XME\b", EVERYTHING)


def test_nothing_points_outside_the_project():
    assert "shared/" not in EVERYTHING
    assert not re.findall(r"(?<![\w.])/(?:work|tmp|home|root)/", EVERYTHING)

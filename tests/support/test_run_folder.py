"""What a run prints (support/run_folder.py); tests/test_mmzero.py has its folder."""

import pytest

from support.run_folder import FIGURES, step_line


@pytest.mark.parametrize("seconds", [2.5, 99.9, 1234.5])
@pytest.mark.parametrize("role", FIGURES)
@pytest.mark.parametrize("end", [{"updates": 4}, {"updates": 0}, {"updates": 0, "skipped": 4}])
def test_the_line_of_a_step_fits_100_columns(role, seconds, end):
    names = FIGURES[role].replace("|", " ").split()
    record = dict.fromkeys(names, 0.5) | {"unread": 1.0, "kl": 10.0, "grad_norm": 99.99}
    record["reward"] = -0.99
    line = step_line(f"it 10 {role} 20/20", record | end | {"seconds": seconds})
    assert len(line) <= 100 and line.endswith(" s") and ("norm=" in line) == (end["updates"] > 0)

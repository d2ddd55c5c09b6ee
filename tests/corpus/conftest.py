"""Studies for the corpus tests: phantom reports, and reports in the styles of real data sets."""

import numpy as np
import pytest

from mu2llm.data.phantom import write_report
from mu2llm.data.records import Study
from mu2llm.volume.phantom import PRESETS, draw_findings
from tests.corpus.made_studies import REAL_STYLE, study


@pytest.fixture(scope="session")
def studies() -> list[Study]:
    made = []
    for index in range(40):
        rng = np.random.default_rng([3, index])
        made.append(study(f"p{index}", *write_report(draw_findings(PRESETS["demo"], rng), rng)))
    return made + [study(f"r{index}", text) for index, text in enumerate(REAL_STYLE)]

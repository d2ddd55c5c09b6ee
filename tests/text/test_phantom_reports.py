"""The phantom reports are read back as they were meant: the demo's truth and the text agree."""

import numpy as np

from mu2llm.data.phantom import LABELS, true_labels, write_report
from mu2llm.text.findings import extract, finding_keys
from mu2llm.volume.phantom import PRESETS, draw_findings


def test_every_phantom_report_gives_its_true_labels():
    seen: set[str] = set()
    for preset in PRESETS.values():
        for index in range(300):
            rng = np.random.default_rng([7, index])
            found = draw_findings(preset, rng)
            findings, impression = write_report(found, rng)
            truth = {name for name, present in true_labels(found).items() if present}
            for text in (findings, f"{findings}\n{impression}"):
                read = extract(text)
                assert finding_keys(read) == truth, text
                contradicted = {f.entity for f in read if f.status == "absent"} & {
                    name.split(",")[0] for name in truth
                }
                assert not contradicted, text
            seen |= truth
    assert seen == set(LABELS)

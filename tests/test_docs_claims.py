"""What docs/performance.md says in words is so in bench/results/*.json: a sentence, and what must hold for it.

Nothing is timed here. Where new results make a claim fail, the sentence is to be changed with it.
"""

from __future__ import annotations

import json

import docs_pages
import pytest

RESULTS = docs_pages.ROOT / "bench/results"
HALVES = "half of inputs and outputs"
pytestmark = pytest.mark.skipif(not docs_pages.pages(), reason="the pages are not here")


def rows(file: str, key: str = "rows", **wanted) -> list[dict]:
    """Rows of a file whose fields are as wanted, or for which a function of the field is true."""

    def fits(row: dict) -> bool:
        return all(want(row[field]) if callable(want) else row[field] == want for field, want in wanted.items())

    found = [row for row in json.loads((RESULTS / f"{file}.json").read_text())[key] if fits(row)]
    assert found, f"{file}.json has nothing of the kind"
    return found


def linear(section: str, **wanted) -> list[float]:
    return [row["vs dense"] for row in rows("masked_linear", section=section, **wanted)]


def on_gpu(start: str, against: str = "F.linear") -> float:
    return rows("nvidia-h100-80gb-hbm3", name=lambda name: name.startswith(start))[0]["ratios"][against]


def peaks(storage: str) -> list[float]:
    return [row["peak MiB"] for row in rows("memory", "peaks", storage=storage)]


def four_fifths(density: float) -> bool:
    return density < 0.21


def half(density: float) -> bool:
    return abs(density - 0.5) < 0.01


CLAIMS = {
    "Unstructured masks pay on the CPU from about four fifths masked": lambda: (
        min(linear("grid", mask="random", density=four_fifths, batch=lambda batch: batch >= 37)) > 1
        and min(linear("step", mask="random", density=four_fifths)) > 1
    ),
    "Half masked they are about as fast as dense at large batches, and slower at small ones": lambda: (
        all(0.9 < ratio < 1.15 for ratio in linear("grid", mask="random", density=half, batch=512))
        and max(linear("grid", mask="random", density=half, batch=1)) < 1
    ),
    "At batch 1 they pay only packed": lambda: (
        max(linear("grid", mask="random", batch=1)) < 1
        and min(linear("packed", mask="random", batch=1, density=four_fifths)) > 1
    ),
    "Half of the rows and half of the columns, or half of the blocks, are faster than dense": lambda: (
        min(linear("structure")) > 1 and min(row["vs dense"] for row in rows("masked_conv2d", mask=HALVES)) > 1
    ),
    "On a GPU structure is what pays": lambda: (
        min(on_gpu(f"block mask 128x64, 4096x4096, 8192 tokens, {share}") for share in ("50 %", "90 %")) > 1
        and on_gpu("channel mask, half x half") > 1
        and on_gpu("packed decode, 8192x8192, batch 1, 50 %") > 1
    ),
    "An unstructured mask costs a few percent at thousands of rows": lambda: (
        0.9 < on_gpu("masked forward, 4096x4096, 8192 tokens, 50 %") < 1
    ),
    "A training step of 1024 rows takes half as long again": lambda: (
        0.6 < on_gpu("masked forward + backward, 4096x4096, 1024 tokens, 50 %", "F.linear, nothing masked") < 0.72
    ),
    "a forward pass of 256 or 16 twice as long and more, unless it is packed": lambda: (
        max(
            on_gpu("masked forward, 4096x4096, 16 tokens, not packed, 50 %"),
            on_gpu("masked forward, 4096x4096, 256 tokens, 50 %"),
        )
        < 0.5
    ),
    "unstructured masks gain nothing": lambda: (
        max(row["vs dense"] for row in rows("masked_linear_bfloat16", mask="random", batch=512)) < 1
    ),
    "at a single row masks do, even unpacked": lambda: (
        min(
            row["vs dense"]
            for row in rows("masked_linear_bfloat16", section="grid", mask="random", batch=1)
            if row["density"] < 1
        )
        > 1
    ),
    "Memory shrinks with compact layers": lambda: max(peaks("compact")) < min(peaks("dense")) <= min(peaks("masked")),
    "Triton's kernels are slower than the compiled ones": lambda: (
        max(
            row["ratios"]["cuda kernels"]
            for row in rows("nvidia-h100-80gb-hbm3", name=lambda name: name.startswith("triton"), status="measured")
        )
        < 1
    ),
}


@pytest.mark.parametrize("sentence", CLAIMS)
def test_a_claim_is_what_was_measured(sentence):
    text = " ".join((docs_pages.DOCS / "performance.md").read_text().split())
    assert sentence in text, "the page says it in other words: change the sentence here too"
    assert CLAIMS[sentence]()

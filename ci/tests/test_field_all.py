"""Every small input of `../shared/field` has a test of its own; those of ids written in other ways stand here."""

import os
from pathlib import Path

import pytest

from madet.data.open_folder import open_data

FIELD = Path(os.environ.get("MADET_SHARED") or Path(__file__).parents[3] / "shared") / "field"
needs_field = pytest.mark.skipif(not FIELD.is_dir(), reason="no shared/field: set MADET_SHARED")


@needs_field
@pytest.mark.parametrize(
    "case", ["coco_float_ids", "coco_string_category_id", "coco_string_image_id"]
)
def test_ids_written_in_another_way_are_matched(case):
    """Every annotation of the file lands on its image, in its class."""
    dataset = open_data(FIELD / "upright" / case)
    objects = sum(len(record.objects.labels) for record in dataset.records)
    assert (len(dataset.records), objects, dataset.classes) == (2, 2, ("cup",))
    lost = [defect for defect in dataset.defects if "dropped" in defect.what]
    assert not lost and dataset.dropped_boxes == 0


@needs_field
def test_every_case_is_in_some_test():
    texts = [path.read_text() for path in Path(__file__).parent.glob("test_*.py")]
    cases = sorted(path.name for path in FIELD.glob("*/*") if path.is_dir())
    assert len(cases) > 60
    assert [case for case in cases if not any(case in text for text in texts)] == []

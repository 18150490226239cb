"""What is read of a cluster file: documents, commands in comments, directives."""

from __future__ import annotations

from tests.cluster.cases import CLUSTER
from tune_mm.cluster import checks
from tune_mm.cluster.formats import files, slurm
from tune_mm.cluster.formats.files import ClusterLine


def test_documents_keep_the_lines_of_the_whole_file():
    file = checks.read(CLUSTER / "kuberay.yaml")
    lines = file.text.splitlines()
    job, claim = file.documents
    assert (job.data["kind"], claim.data["kind"]) == ("RayJob", "PersistentVolumeClaim")
    for document in file.documents:
        number = document.line_of("kind")
        assert number is not None and lines[number - 1] == f"kind: {document.data['kind']}"


def test_commands_of_comments_are_joined_and_prose_is_not_one():
    text = "# Never ray submit --stop here.\n#   ray submit a.yaml b.py \\\n#     --x 1\n# ray is fast\n"
    assert files.documented(text)[:1] == (ClusterLine("ray submit a.yaml b.py --x 1", 2),)


def test_sbatch_directives_end_at_the_first_command():
    found = slurm.directives(
        "#!/bin/bash\n# a\n#SBATCH -N 2\n\n#SBATCH --time=1:00\ntrue\n#SBATCH --mem=1G\n"
    )
    assert [(d.name, d.value, d.line, d.late) for d in found] == [
        ("nodes", "2", 3, False),
        ("time", "1:00", 5, False),
        ("mem", "1G", 7, True),
    ]
